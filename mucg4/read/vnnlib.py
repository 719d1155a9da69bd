"""VNN-LIB text -> syntax tree (`model/formula.py`).

Two layers: a reader of s-expressions, the same for every version of the format, and a table of
commands and operators. The table holds version 1.0 so far; version 2.0 adds rows to it
(`declare-network`) and other names (`X[0,1]`) to the same dictionary of variables.
The normal form (`to_cases`) is in `read/normal.py`.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from fractions import Fraction
from itertools import combinations, pairwise, repeat
from math import prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.decimals import Plain
from mucg4.model.formula import (
    RELATIONS,
    Apply,
    Compare,
    Constant,
    Formula,
    Junction,
    ParsedProperty,
    Term,
    Variable,
)
from mucg4.read import runs
from mucg4.read.disjunctions import disjunction
from mucg4.read.normal import to_cases

__all__ = ["ParsedProperty", "parse_vnnlib", "to_cases"]

DEPTH = 200  # deepest nesting of parentheses: keeps the recursive walks far from Python's own limit; not measured
EXPONENT = 400  # no double is beyond 1e308; a larger exponent would only cost memory; given
DIGITS = 2000  # characters of one number; not measured

_NUMBER_TEXT = r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]+))?", re.ASCII)
_NUMERIC = re.compile(_NUMBER_TEXT, re.ASCII)
_NAME = re.compile(r"([XY])_(0|[1-9][0-9]{0,8})", re.ASCII)
_SKIP = re.compile(r"(?:\s+|;[^\n]*)*", re.ASCII)
_TOKEN = re.compile(r"\s+|;[^\n]*|([()])|(\"[^\"]*\"|\|[^|]*\||[^\s();\"|]+)|(.)", re.ASCII)
# The two forms that fill almost every file. Whatever does not match goes through the reader, which
# gives the same result: this is a short cut, not a second grammar (a test compares the two).
_SHORT = re.compile(
    rf"\s*\((?:assert\s+\(([<>]=)\s+([XY]_[0-9]+)\s+({_NUMBER_TEXT})\s*\)|declare-const\s+([XY]_[0-9]+)\s+Real)\s*\)",
    re.ASCII,
)

_INDEX = "(?:0|[1-9][0-9]{0,8})"  # of a run's variables
_DECLARED = re.compile(rf"(?:\s*\(declare-const\s+X_{_INDEX}\s+Real\s*\))+", re.ASCII)

# commands that ask an SMT solver for something, or tell it how; the question asked here is always the same one
_IGNORED = frozenset(
    "set-logic set-info set-option check-sat get-model get-value get-assignment get-info get-option get-proof "
    "get-unsat-core get-unsat-assumptions get-assertions get-objectives echo exit".split()
)
_OTHER_LOGIC = ("let", "forall", "exists")
_OTHER_ARITHMETIC = ("^", "div", "mod", "abs", "min", "max", "ite", "let", "sin", "cos", "exp")
_LOGIC = frozenset(("and", "or", "not", "=>", "xor", "ite", "distinct", *RELATIONS))
_NEGATED = {"<=": ">", ">=": "<", "<": ">=", ">": "<=", "=": "!=", "==": "!=", "!=": "="}
_TRUTH = {"true": "<=", "false": "<"}  # `0 <= 0` and `0 < 0`
_ZERO = Constant(Fraction(0))
# formulas made of an assertion with `xor` and `ite`, which write their parts twice; not measured
MOST_FORMULAS = 2_000_000
MOST_BITS = 200_000  # of the numerator and denominator of a quotient; not measured


class _Word(NamedTuple):
    text: str
    offset: int


class _List(NamedTuple):
    items: tuple[_Form, ...]
    offset: int


_Form = _Word | _List


def parse_vnnlib(text: str, short_cuts: bool = True) -> ParsedProperty:
    """Parse the text of a property into its syntax tree.

    Raises `InputError` with the line number for text that is not VNN-LIB or that uses undeclared
    variables, `UnsupportedError` for VNN-LIB 2.0 and for commands or operators outside the subset.
    `short_cuts=False` sends every form through the general reader (for tests).
    """
    return _Parser(text).run(_SHORT if short_cuts else None)


class _Parser:
    """Owner of one parse; `run` is called once. Its tables are another version's where that differs."""

    commands: ClassVar[Mapping[str, Callable[[Any, _List], None]]]  # what means something, by name

    def __init__(self, text: str) -> None:
        self.text = text
        self.variables: dict[str, Variable] = {}
        self.constants: dict[str, Constant] = {}
        self.assertions: list[Formula] = []
        self.bounds = Plain(False), Plain(True)
        self.newlines: list[int] | None = None
        self.ended = False
        self.next_run = 0  # where reading in runs is tried again
        self.without_gap = 0  # X_0 .. X_(n - 1) are known to be declared
        self.made = 0

    def run(self, short: re.Pattern[str] | None) -> ParsedProperty:
        self.scan(short)
        return self._finish()

    def scan(self, short: re.Pattern[str] | None) -> None:
        """Every command of the text."""
        text, pos = self.text, 0
        long = short is not None and len(text) >= runs.TEXT
        self.next_run = 0 if long else len(text)
        while True:
            if short is not None and not self.ended:
                while m := short.match(text, pos):
                    end = self._run(m) if pos >= self.next_run else pos
                    if end == pos and not self._take_short(m):
                        break
                    pos = max(end, m.end())
            skipped = _SKIP.match(text, pos)
            pos = skipped.end() if skipped else pos
            if pos == len(text):
                return
            if text[pos] != "(":
                raise self._error(pos, f"expected '(' but found {text[pos : pos + 20].split()[0]!r}")
            end = self._disjunction(pos) if long and not self.ended else pos
            if end > pos:
                pos = end
                continue
            form, pos = self._read(pos)
            self._command(form)

    # -- text -> forms ---------------------------------------------------------------------------

    def _read(self, start: int) -> tuple[_List, int]:
        """The form that starts with the parenthesis at `start`, and the position after it."""
        open_at: list[int] = []
        items: list[list[_Form]] = []
        for m in _TOKEN.finditer(self.text, start):
            kind = m.lastindex
            if kind == 2:
                items[-1].append(_Word(m.group(), m.start()))
            elif kind == 1 and m.group() == "(":
                if len(items) == DEPTH:
                    raise UnsupportedError(self._place(m.start(), f"parentheses nested deeper than {DEPTH}"))
                open_at.append(m.start())
                items.append([])
            elif kind == 1:
                form = _List(tuple(items.pop()), open_at.pop())
                if not items:
                    return form, m.end()
                items[-1].append(form)
            elif kind == 3:
                raise self._error(m.start(), f"unexpected character {m.group()!r}")
        raise self._error(open_at[-1], "this parenthesis is never closed")

    def _place(self, offset: int, message: str) -> str:
        return f"line {self._line(offset)}: {message}"

    def _error(self, offset: int, message: str) -> InputError:
        return InputError(self._place(offset, message))

    def _line(self, offset: int) -> int:
        if self.newlines is None:
            self.newlines = [m.start() for m in re.finditer("\n", self.text)]
        return bisect_right(self.newlines, offset) + 1

    # -- forms -> commands -----------------------------------------------------------------------

    def _run(self, m: re.Match[str]) -> int:
        """Read what starts at a short form in one run; where that ends, or where it started."""
        start = m.start()
        end = self._declared_run(start) if m[4] else self._bounds_run(m, start)
        if end == start:
            self.next_run = start + runs.PAUSE
        return end

    def _declared_run(self, start: int) -> int:
        found = _DECLARED.match(self.text, start, start + runs.RUN)
        names = found.group().replace(")", " ").split()[1::3] if found else []
        new = dict(zip(names, map(Variable, names, repeat(True), [int(n[2:]) for n in names]), strict=False))
        if (
            found is None
            or len(names) < runs.LEAST
            or len(new) < len(names)
            or not self.variables.keys().isdisjoint(new)
        ):
            return start
        self.variables.update(new)
        return found.end()

    def _bounds_run(self, m: re.Match[str], start: int) -> int:
        """Bounds of inputs, one per assertion."""
        run = runs.bounds_run(self.text, start, "X_", _INDEX, _NUMBER_TEXT)
        if run is None:
            return start
        inputs = np.array(list(map(int, run.names)))
        while f"X_{self.without_gap}" in self.variables:
            self.without_gap += 1
        numbers = runs.numbers_of(run.numbers, _number) if int(inputs.max()) < self.without_gap else None
        if numbers is None:
            return start
        runs.put(self.bounds, inputs, run.relations, numbers)
        return run.end

    def _disjunction(self, start: int) -> int:
        """Read an assertion of a plain disjunction; where it ends, or where it started when it is none."""
        found = disjunction(self.text, start, self._plain_term, self._line)
        if found is None:
            return start
        formula, end, made = found
        self.made += made
        self.assertions.append(formula)
        return end

    def _plain_term(self, word: str) -> Term | None:
        return self.variables.get(word) or self._constant(word)

    def _take_short(self, m: re.Match[str]) -> bool:
        op, name, number, declared = m.groups()
        if declared is not None:
            return self._declare(declared)
        variable, constant = self.variables.get(name), self._constant(number)
        if variable is None or constant is None:
            return False
        self.assertions.append(Compare(op, variable, constant))
        return True

    def _command(self, form: _List) -> None:
        head = self._head(form, "a command")
        command = self.commands.get(head)
        if command is not None:
            if self.ended:
                raise self._error(form.offset, f"{head} after (exit)")
            command(self, form)
        elif head == "exit":
            self.ended = True
        elif head not in _IGNORED:
            known = ", ".join(self.commands)
            raise UnsupportedError(self._place(form.offset, f"unknown command {_shown(head)} (known: {known})"))

    def _version(self, form: _List) -> None:
        words = [f.text for f in form.items[1:] if isinstance(f, _Word)]
        if len(words) != 1 or not words[0].startswith("<1."):
            version = " ".join(words).strip("<>") or "?"
            raise UnsupportedError(
                self._place(form.offset, f"VNN-LIB {_shown(version, False)} is not supported, only 1.0 and 2.0 are")
            )

    def _declare_const(self, form: _List) -> None:
        items = form.items
        if len(items) == 4 and _word(items[0]) == "declare-fun" and items[2] == _List((), items[2].offset):
            items = (items[0], items[1], items[3])
        if len(items) != 3 or not all(isinstance(f, _Word) for f in items):
            raise self._error(form.offset, "a declaration has the form (declare-const X_0 Real)")
        name, sort = _word(items[1]), _word(items[2])
        if sort != "Real":
            raise UnsupportedError(self._place(form.offset, f"variable {_shown(name)} is not Real but {_shown(sort)}"))
        if name in self.variables:
            raise self._error(form.offset, f"variable {name} is declared twice")
        if not self._declare(name):
            raise UnsupportedError(self._place(form.offset, f"variable {_shown(name)} is neither X_i nor Y_j"))

    def _declare(self, name: str) -> bool:
        m = _NAME.fullmatch(name)
        if m is None or name in self.variables:
            return False
        self.variables[name] = Variable(name, m[1] == "X", int(m[2]))
        return True

    def _assert(self, form: _List) -> None:
        if len(form.items) != 2:
            raise self._error(form.offset, f"assert takes one formula, here are {len(form.items) - 1}")
        self.assertions.append(self._formula(form.items[1]))

    def _finish(self) -> ParsedProperty:
        """Inputs are numbered without a gap; outputs that the property does not speak of need no declaration."""
        inputs = sum(v.is_input for v in self.variables.values())
        if not inputs:
            raise InputError("the property declares no input variable X_0")
        for i in range(inputs):
            if f"X_{i}" not in self.variables:
                raise InputError(f"variable X_{i} is not declared, but one with a higher number is")
        outputs = max((v.index + 1 for v in self.variables.values() if not v.is_input), default=0)
        bounds = self.bounds if self.bounds[0].many or self.bounds[1].many else None
        return ParsedProperty(inputs, outputs, tuple(self.assertions), bounds=bounds)

    # -- forms -> formulas and terms -------------------------------------------------------------

    def _head(self, form: _Form, expected: str) -> str:
        if isinstance(form, _Word):
            raise self._error(form.offset, f"expected {expected} but found {_shown(form.text)}")
        if not form.items or isinstance(form.items[0], _List):
            raise self._error(form.offset, f"expected {expected} after the parenthesis")
        return form.items[0].text

    def _formula(self, form: _Form, negated: bool = False) -> Formula:
        """The formula, or its negation with all negations moved down to the comparisons."""
        self.made += 1
        if self.made > MOST_FORMULAS + len(self.text):
            raise UnsupportedError(self._place(form.offset, "the formula is too large once it is written out"))
        if isinstance(form, _Word) and form.text in _TRUTH:
            op = _TRUTH[form.text]
            return Compare(_NEGATED[op] if negated else op, _ZERO, _ZERO, self._line(form.offset))
        head = self._head(form, "a formula")
        assert isinstance(form, _List)
        args = form.items[1:]
        if head in ("and", "or"):
            if not args:
                raise self._error(form.offset, f"{head!r} without a formula")
            head = {"and": "or", "or": "and"}[head] if negated else head
            return Junction(head, tuple([self._formula(f, negated) for f in args]))
        if head in RELATIONS or head == "distinct":
            return self._relation(form, head, negated)
        if head in ("not", "=>", "xor", "ite"):
            return self._logic(form, head, negated)
        if head in _OTHER_LOGIC:
            raise UnsupportedError(self._place(form.offset, f"operator {head!r} is not supported"))
        raise self._error(form.offset, f"expected and, or or a comparison but found {_shown(head)}")

    def _logic(self, form: _List, head: str, negated: bool) -> Formula:
        """`not`, `=>` (from the right: a chain of premises), `xor` and `ite` by `and` and `or`."""
        args = form.items[1:]
        least = {"not": 1, "=>": 2, "xor": 2, "ite": 3}[head]
        if len(args) < least or (head != "=>" and len(args) > least):
            raise self._error(form.offset, f"{head!r} takes {least} formulas, here are {len(args)}")
        if head == "not":
            return self._formula(args[0], not negated)
        outer, inner = ("and", "or") if negated else ("or", "and")
        if head == "=>":
            premises = [self._formula(f, not negated) for f in args[:-1]]
            return Junction(outer, (*premises, self._formula(args[-1], negated)))
        if head == "xor":
            pairs = [((args[0], False), (args[1], True)), ((args[0], True), (args[1], False))]
        else:
            pairs = [((args[0], False), (args[1], False)), ((args[0], True), (args[2], False))]
        parts = [tuple([self._formula(f, no != negated) for f, no in pair]) for pair in pairs]
        return Junction(outer, tuple([Junction(inner, part) for part in parts]))

    def _relation(self, form: _List, head: str, negated: bool) -> Formula:
        """A comparison; of more than two terms each with the next, `distinct` each with every other."""
        args = form.items[1:]
        if len(args) < 2 or (head == "!=" and len(args) > 2):
            raise self._error(form.offset, f"{head!r} takes two arguments, here are {len(args)}")
        if all(self._is_formula(f) for f in args):
            return self._equivalence(form, head, negated)
        if any(self._is_formula(f) for f in args):
            raise UnsupportedError(self._place(form.offset, f"{head!r} between formulas is not supported"))
        terms, line = [self._term(f) for f in args], self._line(form.offset)
        op = "!=" if head == "distinct" else head
        op = _NEGATED[op] if negated else op
        if len(terms) == 2:
            return Compare(op, terms[0], terms[1], line)
        pairs = list(pairwise(terms) if head != "distinct" else combinations(terms, 2))
        self.made += len(pairs)
        return Junction("or" if negated else "and", tuple([Compare(op, a, b, line) for a, b in pairs]))

    def _equivalence(self, form: _List, head: str, negated: bool) -> Formula:
        """`=`, `!=` and `distinct` of truth values: each pair `xor`, or not; three are never distinct."""
        if head not in ("=", "==", "!=", "distinct"):
            raise UnsupportedError(self._place(form.offset, f"{head!r} between formulas is not supported"))
        equal, args = head in ("=", "=="), form.items[1:]
        if not equal and len(args) > 2:
            return self._formula(_Word("true" if negated else "false", form.offset))
        pairs = [_List((_Word("xor", form.offset), a, b), form.offset) for a, b in pairwise(args)]
        parts = tuple([self._logic(pair, "xor", negated != equal) for pair in pairs])
        return parts[0] if len(parts) == 1 else Junction("or" if negated else "and", parts)

    def _is_formula(self, form: _Form) -> bool:
        return form.text in _TRUTH if isinstance(form, _Word) else bool(form.items) and _word(form.items[0]) in _LOGIC

    def _term(self, form: _Form) -> Term:
        if isinstance(form, _Word):
            found = self.variables.get(form.text) or self._constant(form.text)
            if found is not None:
                return found
            if _NAME.fullmatch(form.text):
                raise self._error(form.offset, f"variable {form.text} is not declared")
            if _NUMERIC.fullmatch(form.text):
                raise self._error(form.offset, f"number {_shown(form.text)} is outside the range of doubles")
            raise self._error(form.offset, f"expected a number or a variable but found {_shown(form.text)}")
        head, args = self._head(form, "an operator"), form.items[1:]
        if head in ("+", "-", "*"):
            if not args:
                raise self._error(form.offset, f"{head!r} without an argument")
            return Apply(head, tuple([self._term(f) for f in args]))
        if head == "/":
            return self._quotient(form, [self._term(f) for f in args])
        if head in _OTHER_ARITHMETIC:
            raise UnsupportedError(self._place(form.offset, f"operator {head!r} is not supported"))
        raise self._error(form.offset, f"expected +, - or * but found {_shown(head)}")

    def _quotient(self, form: _List, args: list[Term]) -> Term:
        """A quotient of numbers is a number; a term is divided by a number that every element type has exactly."""
        if len(args) < 2:
            raise self._error(form.offset, f"'/' takes two arguments, here are {len(args)}")
        divisor = Fraction(1)
        for arg in args[1:]:
            value = _fixed(arg)
            if value is None:
                raise UnsupportedError(self._place(form.offset, "a division by a variable is not supported"))
            divisor *= value
            if not divisor:
                raise self._error(form.offset, "a division by zero")
            if max(divisor.numerator.bit_length(), divisor.denominator.bit_length()) > MOST_BITS:
                raise UnsupportedError(self._place(form.offset, "a number is too long"))
        first = _fixed(args[0])
        if first is not None:
            quotient = first / divisor
            if abs(quotient) >= 10**308:
                raise self._error(form.offset, "the quotient is outside the range of doubles")
            return Constant(quotient)
        if divisor.denominator != 1 or abs(divisor) > 2**24 or len(args) > 2:
            raise UnsupportedError(self._place(form.offset, "a term divided by other than one whole number"))
        return Apply("*", (args[0], Constant(1 / divisor)))

    def _constant(self, text: str) -> Constant | None:
        """The number that `text` denotes, exactly; None when it is none or no double is near it."""
        known = self.constants.get(text)
        if known is None:
            value = _number(text)
            if value is None:
                return None
            known = self.constants[text] = Constant(value)
        return known


_Parser.commands = {
    "assert": _Parser._assert,
    "declare-const": _Parser._declare_const,
    "declare-fun": _Parser._declare_const,
    "vnnlib-version": _Parser._version,
}


def _number(text: str) -> Fraction | None:
    if not _NUMERIC.fullmatch(text) or len(text) > DIGITS:
        return None
    m = _NUMBER.fullmatch(text)
    assert m is not None
    sign, whole, part, exponent = m[1], m[2], m[3] or "", int(m[4] or 0)
    if abs(exponent) > EXPONENT:
        return None
    digits, places = int(sign + whole + part), len(part) - exponent
    value = Fraction(digits, 10**places) if places > 0 else Fraction(digits * 10**-places)
    return value if abs(value) < 10**308 else None


def _fixed(term: Term) -> Fraction | None:
    """The number that a term without variables denotes."""
    if not isinstance(term, Apply):
        return term.value if isinstance(term, Constant) else None
    values = [_fixed(t) for t in term.args]
    if any(v is None or max(v.numerator.bit_length(), v.denominator.bit_length()) > MOST_BITS for v in values):
        return None
    numbers = [v for v in values if v is not None]
    if term.op == "*":
        return prod(numbers, start=Fraction(1))
    rest = sum(numbers[1:], Fraction(0))
    return numbers[0] + rest if term.op == "+" else numbers[0] - rest if len(numbers) > 1 else -numbers[0]


def _word(form: _Form) -> str:
    return form.text if isinstance(form, _Word) else ""


def _shown(text: str, quoted: bool = True) -> str:
    text = text if len(text) <= 30 else text[:27] + "..."
    return repr(text) if quoted else text
