"""VNN-LIB 2.0 text -> declarations and syntax tree.

The reader of s-expressions is that of version 1.0 (`mucg4.read.vnnlib`); the commands, and what names a variable, are
others. Grammar: the standard's (`(vnnlib-version <2.0>)`, networks, assertions), and what public files have besides:
exponents, integers where decimals are expected, `=` for `==`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from math import prod

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.decimals import Plain
from mucg4.model.formula import Compare, Constant, Formula, Term, Variable
from mucg4.model.joint import Declaration, Declared, DeclaredNetwork
from mucg4.read import runs
from mucg4.read.vnnlib import _NUMBER_TEXT, _Form, _List, _number, _Parser, _shown, _Word, _word
from mucg4.records import dataclass

MOST_COMPONENTS = 2**28  # of all variables together; not measured

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*", re.ASCII)
_ELEMENT = re.compile(r"[A-Za-z][A-Za-z0-9]*", re.ASCII)
_SHAPE = re.compile(r"\[((?:[0-9]{1,12}(?:,[0-9]{1,12})*)?)\]", re.ASCII)
_NAMED = re.compile(r"([A-Za-z][A-Za-z0-9_]*)(?:\[([0-9]{1,12}(?:,[0-9]{1,12})*)\])?", re.ASCII)
_BLANKS = re.compile(r"\"[^\"]*\"|;[^\n]*|\s*\[[^\][();\"]*\]")
_BLANK_INSIDE = re.compile(r"\[[^\]\s]*\s")
# one bound per assert, the form that fills the largest files; a short cut like that of version 1.0
_BOUND = re.compile(
    r"\s*\(assert\s+\(([<>]=)\s+([A-Za-z][A-Za-z0-9_]*(?:\[[0-9,]*\])?)\s+(-?[0-9]{1,30})(?:\.([0-9]{1,30}))?\s*\)\s*\)",
    re.ASCII,
)
_TENS = [10**k for k in range(31)]
_KINDS = {"declare-input": "input", "declare-hidden": "hidden", "declare-output": "output"}
_FIRST = re.compile(r"(?:\s+|;[^\n]*)*\(\s*(?:vnnlib-version\s*<\s*2|declare-network\b)", re.ASCII)


def is_version_2(text: str) -> bool:
    """Whether a text is VNN-LIB 2.0, by its first command and what it declares (some 1.0 texts claim to be 2.0)."""
    return _FIRST.match(text) is not None and ("declare-network" in text or "declare-const" not in text)


@dataclass(frozen=True)
class ParsedQuery:
    """A text as written: what it declares; plain bounds of inputs, `declared input -> value`; all other assertions.

    `Variable.index` is a flat position among declared inputs or outputs.
    """

    declared: Declared
    lower: Plain
    upper: Plain
    assertions: tuple[Formula, ...]


def parse_query(text: str, short_cuts: bool = True) -> ParsedQuery:
    """Parse a VNN-LIB 2.0 text.

    Raises `InputError` with the line number for text that is not VNN-LIB 2.0 or that uses undeclared variables,
    `UnsupportedError` for other versions and for what the format does not have.
    """
    return _Parser2(_compact(text)).parse(short_cuts)


def _compact(text: str) -> str:
    """Without blanks inside and in front of brackets, so that `X[0, 1]` is one word; lines keep their numbers."""
    start = text.find("(assert")
    blank = start >= 0 and (
        any(text.find(f"{c}[", start) >= 0 for c in " \t\n\r\f\v") or _BLANK_INSIDE.search(text, start) is not None
    )
    if not blank:  # the rule: only declarations have blanks there
        return _tight(text[:start]) + text[start:] if start >= 0 else _tight(text)
    return _tight(text)


def _tight(text: str) -> str:
    def tight(m: re.Match[str]) -> str:
        piece = m.group()
        if piece[0] in '";':
            return piece
        packed = "".join(piece.split())
        return packed + "\n" * piece.count("\n")

    def spaced(m: re.Match[str]) -> str:  # a type keeps its distance from a shape
        return m.group(1) + " " + m.group(2)

    return re.sub(r"(declare-(?:input|output|hidden)\s+\w+\s+\w+)(\[)", spaced, _BLANKS.sub(tight, text))


class _Parser2(_Parser):
    """Owner of one parse."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.networks: list[DeclaredNetwork] = []
        self.declared: dict[str, Declaration] = {}
        self.ends: dict[bool, int] = {True: 0, False: 0}
        self.last, self.at = "", 0

    def parse(self, short_cuts: bool) -> ParsedQuery:
        self.scan(_BOUND if short_cuts else None)
        if not self.networks:
            raise InputError("the query declares no network")
        declared = Declared(tuple(self.networks), tuple(self.declared.values()))
        return ParsedQuery(declared, *self.bounds, tuple(self.assertions))

    # -- commands

    def _take_short(self, m: re.Match[str]) -> bool:
        op, name, whole, part = m.groups()
        if name != self.last:  # both bounds of an input often follow each other
            position = self._input(name)
            if position is None:
                return False
            self.last, self.at = name, position
        value = Fraction(int(whole + part), _TENS[len(part)]) if part else Fraction(int(whole))
        self._bound(self.at, op == "<=", value)
        return True

    def _run(self, m: re.Match[str]) -> int:
        start = m.start()
        end = self._bounds_run(m, start)
        if end == start:
            self.next_run = start + runs.PAUSE
        return end

    def _bounds_run(self, m: re.Match[str], start: int) -> int:
        word = m[2].partition("[")[0]
        declaration = self.declared.get(word)
        if declaration is None or not declaration.is_input or not declaration.shape:
            return start
        axes = len(declaration.shape)
        index = "[0-9]{1,9}" + f"(?:,[0-9]{{1,9}}){{{axes - 1}}}" * (axes > 1) + r"\]"
        run = runs.bounds_run(self.text, start, word + "[", index, _NUMBER_TEXT)
        if run is None:
            return start
        every = np.array(list(map(int, "".join(run.names).replace("]", ",")[:-1].split(",")))).reshape(-1, axes)
        numbers = runs.numbers_of(run.numbers, _number) if np.all(every < np.array(declaration.shape)) else None
        if numbers is None:
            return start
        inputs = np.ravel_multi_index(tuple(every.T), declaration.shape) + declaration.start
        runs.put(self.bounds, inputs, run.relations, numbers)
        return run.end

    def _input(self, name: str) -> int | None:
        """The flat position of a component of an input; None when it is none."""
        word, _, index = name.partition("[")
        declaration = self.declared.get(word)
        if declaration is None or not declaration.is_input:
            return None
        return self._position(declaration, index[:-1])

    def _bound(self, position: int, upper: bool, value: Fraction) -> None:
        self.bounds[upper].tighten(position, value)

    def _command(self, form: _List) -> None:
        head = self._head(form, "a command")
        if head in ("declare-const", "declare-fun"):
            raise InputError(self._place(form.offset, f"{head} is VNN-LIB 1.0, but this is a 2.0 query"))
        super()._command(form)

    def _version2(self, form: _List) -> None:
        words = [f.text for f in form.items[1:] if isinstance(f, _Word)]
        if len(words) != 1 or not words[0].startswith("<2"):
            version = " ".join(words).strip("<>") or "?"
            raise UnsupportedError(self._place(form.offset, f"VNN-LIB {_shown(version, False)} is not supported"))

    def _network(self, form: _List) -> None:
        if len(form.items) < 2 or not _IDENTIFIER.fullmatch(name := _word(form.items[1])):
            raise self._error(form.offset, "a network has the form (declare-network NAME ...)")
        if any(n.name == name for n in self.networks):
            raise self._error(form.offset, f"network {_shown(name)} is declared twice")
        relation, target = "", ""
        kinds: list[str] = []
        for item in form.items[2:]:
            head = self._head(item, "a declaration")
            assert isinstance(item, _List)
            if head in ("equal-to", "isomorphic-to"):
                if relation or kinds:
                    raise self._error(item.offset, f"{head} stands once, before the inputs")
                relation, target = head, self._target(item)
            elif head == "isometric-to":
                raise self._error(item.offset, "isometric-to is called isomorphic-to")
            elif head in _KINDS:
                kinds.append(_KINDS[head])
                self._variable(item, kinds[-1])
            else:
                raise self._error(item.offset, f"unknown declaration {_shown(head)} (known: {', '.join(_KINDS)})")
        for kind in ("input", "output"):
            if kind not in kinds:
                raise self._error(form.offset, f"network {_shown(name)} declares no {kind}")
        self._place_hidden()
        self.networks.append(DeclaredNetwork(name, relation, target))
        if relation:
            self._same_shapes(form, relation, target)

    def _place_hidden(self) -> None:
        """Put the hidden nodes of the network behind its outputs."""
        own = [v for v in self.declared.values() if v.network == len(self.networks) and not v.is_input]
        at = min((v.start for v in own), default=0)
        for variable in sorted(own, key=lambda v: v.kind == "hidden"):
            self.declared[variable.name] = replace(variable, start=at)
            at += variable.size

    def _target(self, item: _List) -> str:
        target = _word(item.items[1]) if len(item.items) == 2 else ""
        known = {n.name: n for n in self.networks}
        if target not in known:
            raise self._error(item.offset, f"{_word(item.items[0])} names no network declared before: {_shown(target)}")
        if known[target].relation == "equal-to" or (known[target].relation and _word(item.items[0]) != "equal-to"):
            raise self._error(item.offset, f"network {_shown(target)} is itself related to another one")
        return target

    def _same_shapes(self, form: _List, relation: str, target: str) -> None:
        own, other = len(self.networks) - 1, [n.name for n in self.networks].index(target)
        for kind in ("input", "output"):
            a, b = (
                [(v.shape, v.element) for v in self.declared.values() if v.network == k and v.kind == kind]
                for k in (own, other)
            )
            if [s for s, _ in a] != [s for s, _ in b] or (relation == "equal-to" and a != b):
                raise self._error(form.offset, f"the {kind}s are not those of {_shown(target)}, which it is {relation}")

    def _variable(self, item: _List, kind: str) -> None:
        words = [_word(f) for f in item.items[1:]]
        hidden = kind == "hidden"
        good = len(words) == 3 + hidden and _IDENTIFIER.fullmatch(words[0]) and _ELEMENT.fullmatch(words[1])
        shape = _SHAPE.fullmatch(words[2]) if good else None
        if shape is None or (hidden and not re.fullmatch(r"\"[^\"]+\"", words[3])):
            form = 'NAME TYPE [SHAPE] "TENSOR"' if hidden else "NAME TYPE [SHAPE]"
            raise self._error(item.offset, f"a declaration has the form (declare-{kind} {form})")
        name = words[0]
        if name in self.declared:
            raise self._error(item.offset, f"variable {_shown(name)} is declared twice")
        dims = tuple(int(d) for d in shape[1].split(",")) if shape[1] else ()
        if not all(dims) or prod(dims) + self.ends[True] + self.ends[False] > MOST_COMPONENTS:
            raise self._error(item.offset, f"variable {_shown(name)} has a shape of {prod(dims)} values")
        start = self.ends[kind == "input"]
        made = Declaration(
            name, kind, words[1].lower(), dims, len(self.networks), start, words[3][1:-1] if hidden else ""
        )
        self.declared[name] = made
        self.ends[kind == "input"] += made.size

    def _assert(self, form: _List) -> None:
        before = len(self.assertions)
        super()._assert(form)
        made = self.assertions[before:]
        for formula in made:  # what the short cut would have taken
            if isinstance(formula, Compare) and formula.op in ("<=", ">="):
                left, right = formula.left, formula.right
                if isinstance(left, Variable) and left.is_input and isinstance(right, Constant):
                    del self.assertions[before:]
                    self._bound(left.index, formula.op == "<=", right.value)

    # -- terms

    def _position(self, declaration: Declaration, index: str) -> int | None:
        """The flat position of a component; None where the index does not fit the shape."""
        if not index:
            return declaration.start if not declaration.shape else None
        flat = 0
        parts = index.split(",")
        if len(parts) != len(declaration.shape):
            return None
        for part, size in zip(parts, declaration.shape, strict=True):
            if not part or int(part) >= size:
                return None
            flat = flat * size + int(part)
        return declaration.start + flat

    def _component(self, form: _Word) -> Variable | None:
        """The variable that a word names; None when it names none."""
        m = _NAMED.fullmatch(form.text)
        declaration = self.declared.get(m[1]) if m else None
        if m is None or declaration is None:
            return None
        position = self._position(declaration, m[2] or "")
        if position is None:
            shape = ",".join(map(str, declaration.shape))
            raise self._error(form.offset, f"{_shown(form.text)} does not index a value of shape [{shape}]")
        made = Variable(form.text, declaration.is_input, position)
        self.variables[form.text] = made
        return made

    def _plain_term(self, word: str) -> Term | None:
        if word in self.variables or not word[:1].isalpha():
            return super()._plain_term(word)
        try:
            return self._component(_Word(word, 0))
        except InputError:  # the reader of forms says where
            return None

    def _term(self, form: _Form) -> Term:
        if isinstance(form, _Word) and form.text not in self.variables and form.text[:1].isalpha():
            found = self._component(form)
            if found is None:
                raise self._error(form.offset, f"variable {_shown(form.text)} is not declared")
            return found
        return super()._term(form)


_Parser2.commands = {
    "assert": _Parser2._assert,
    "declare-network": _Parser2._network,
    "vnnlib-version": _Parser2._version2,
}
