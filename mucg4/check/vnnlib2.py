"""The checker's own reader of VNN-LIB 2.0, and whether a query's cases contain what a text calls unsafe.

Atoms, rounding and the comparison with the cases are those of version 1.0 (`mucg4.check.vnnlib`,
`mucg4.check.contained`); nothing is taken from `mucg4.read`. A product of variables is one more variable, with a number
of its own: a *monomial*, whose size is at most the product of the sizes of its factors. Inputs that the query takes for
one linked input have to be equal by equations that hold everywhere; what the outputs of the joint network are is found
by `mucg4.check.joint`.

Where the query has free inputs w in the place of linked ones x, which is a change of variables, its cases are read as
what they say of x (`mucg4.check.given`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import field
from fractions import Fraction
from functools import cached_property
from math import isfinite, prod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from mucg4.check.contained import Comparison, End, Side
from mucg4.check.given import Form, Given
from mucg4.check.joint import meaning
from mucg4.check.vnnlib import (
    MOST_BITS,
    NOTHING,
    NOWHERE,
    ONE,
    ZERO,
    Atom,
    Direction,
    Reach,
    Reader,
    Refusal,
    Row,
    _Formula,
    _outward,
    _shown,
    _Term,
    _total,
    directed,
)
from mucg4.limits.budget import Budget
from mucg4.model.network import Network
from mucg4.model.query import Case, Query
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.records import dataclass

# codes of monomials: from here on of inputs alone, from -FIRST down with outputs; given: above all variables
FIRST = 1 << 40
MOST_TERMS = 10_000  # of a polynomial, and products in a text; not measured
MOST_COMPONENTS = 1 << 28  # of a variable; not measured
CHOICES = 1024  # of disjunctions that are written out; not measured, but not below the first reader's

# as in `mucg4.check.vnnlib`, with other variables: comment | (never) | comparison | parenthesis | word | anything else
_PIECE = re.compile(
    r"\s*(?:(;[^\n]*)|((?!))"
    r"|(\(\s*assert\s*)?\(\s*([<>]=?)\s+([A-Za-z]\w*(?:\[[\d,]*\])?)\s+([+-]?[.\d][^\s();\"|]*)\s*\)(?(3)\s*\))"
    r"|([()])|(\"[^\"]*\"|\|[^|]*\||[^\s();\"|]+)|(\S))",
    re.ASCII,
)
_BRACKETS = re.compile(r"\"[^\"]*\"|;[^\n]*|\[[^\]\[();\"]*\]")
_COMPONENT = re.compile(r"([A-Za-z]\w*)(?:\[(\d{1,9}(?:,\d{1,9})*)\])?", re.ASCII)
_SHAPE = re.compile(r"\[(\d{1,9}(?:,\d{1,9})*)?\]", re.ASCII)


class Named(NamedTuple):
    """A declared variable: its network, kind (input, hidden, output), first flat position, and shape."""

    network: int
    kind: str
    start: int
    shape: tuple[int, ...]
    tensor: str

    @property
    def positions(self) -> range:
        return range(self.start, self.start + prod(self.shape))


@dataclass
class Reader2(Reader):
    """A 2.0 text. `links[i]` is the free input that declared input i is taken for; None: it stands for itself."""

    links: Sequence[int] | None = None
    networks: list[tuple[str, str, str]] = field(default_factory=list)  # name, relation, its target
    variables: dict[str, Named] = field(default_factory=dict)
    monomials: dict[tuple[int, ...], int] = field(default_factory=dict)
    factors_of: dict[int, tuple[int, ...]] = field(default_factory=dict)

    pattern: ClassVar[re.Pattern[str]] = _PIECE

    def __post_init__(self) -> None:
        super().__post_init__()
        if re.search(r"\[[^\]\s]*\s", self.text):  # blanks inside of brackets
            self.text = _BRACKETS.sub(lambda m: m[0] if m[0][0] in '";' else "".join(m[0].split()), self.text)

    def piece(self, text: str, pos: int) -> int:
        return self.bounds(text, pos)

    def codes(self, names: Sequence[str]) -> IntArray | None:
        """The codes of components of one input, None where there are others."""
        start = names[0].partition("[")[0] + "["
        found = self.variables.get(start[:-1])
        if found is None or found.kind != "input":
            return None
        (before, *inside) = ("]" + "".join(names)).split("]" + start)  # each `0,1` of `X[0,1]`, the last one as `0,1]`
        axes = len(found.shape)
        if before or len(inside) != len(names) or names[-1][-1] != "]" or any(i.count(",") != axes - 1 for i in inside):
            return None
        words = ",".join(inside)[:-1].split(",")
        if (
            re.fullmatch(r"[\d,]*", "".join(words), re.ASCII) is None
            or not 0 < max(map(len, words)) <= 9
            or "" in words
        ):
            return None
        index = np.array(list(map(int, words))).reshape(-1, axes)
        if not np.all(index < found.shape):
            return None
        steps = [prod(found.shape[k + 1 :]) for k in range(axes)]
        at: IntArray = found.start + index @ np.array(steps)
        return at if self.links is None else np.array(self.links)[at]

    def shift(self, stack: list[list[Any]], which: int | None, m: re.Match[str]) -> None:
        piece = m.group().lstrip()
        if piece[0] == "[" and stack and stack[0][:1] == ["assert"] and stack[-1] and isinstance(stack[-1][-1], str):
            stack[-1][-1] += piece  # an index behind a blank
        else:
            super().shift(stack, which, m)

    def positions(self, inputs: bool) -> int:
        return sum(prod(v.shape) for v in self.variables.values() if (v.kind == "input") == inputs)

    def of(self, network: int, inputs: bool) -> list[int]:
        """The flat positions of a network's inputs, or of its outputs and hidden nodes."""
        return sorted(i for v in self.own(network, inputs) for i in v.positions)

    def own(self, network: int, inputs: bool) -> list[Named]:
        return [v for v in self.variables.values() if v.network == network and (v.kind == "input") == inputs]

    def exposed(self, network: int) -> bytes:
        """What a model ends with that also returns the network's hidden nodes: a graph of nothing but outputs.

        Message fields that come twice are merged, and lists are joined (protobuf.dev, "Last One Wins").
        """
        hidden = sorted((v for v in self.own(network, False) if v.kind == "hidden"), key=lambda v: v.start)
        kind = _field(2, _field(1, b"\x08\x0b" if self.element_type == "float64" else b"\x08\x01"))
        ends = b"".join(_field(12, _field(1, v.tensor.encode()) + kind) for v in hidden)
        return _field(7, ends) if hidden else b""

    # -- commands

    def command(self, items: list[Any]) -> None:
        head = items[0] if items else None
        if head in ("vnnlib-version", "declare-network"):
            self.open_still()
        if head == "vnnlib-version":
            if len(items) != 2 or not str(items[1]).startswith("<2"):
                raise Refusal("another version of VNN-LIB")
        elif head == "declare-network":
            self.network(items)
        elif head in ("declare-const", "declare-fun"):
            raise Refusal(f"command {_shown(head)} is not known here")
        else:
            super().command(items)

    def network(self, items: list[Any]) -> None:
        name = items[1] if len(items) > 1 and isinstance(items[1], str) else ""
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or any(n == name for n, *_ in self.networks):
            raise Refusal(f"declaration of network {_shown(name)} is not understood")
        relation, target = "", ""
        for item in items[2:]:
            head = item[0] if isinstance(item, tuple) and item and isinstance(item[0], str) else ""
            if head in ("equal-to", "isomorphic-to") and not relation and len(item) == 2:
                relation, target = head, str(item[1])
                if target not in [n for n, *_ in self.networks]:
                    raise Refusal(f"network {_shown(target)} is not declared")
            elif head in ("declare-input", "declare-output", "declare-hidden"):
                self.declare_variable(head.removeprefix("declare-"), item[1:])
            else:
                raise Refusal(f"declaration {_shown(head)} is not known here")
        at = min((v.start for v in self.own(len(self.networks), False)), default=0)
        for hidden in (False, True):  # a network's outputs come before its hidden nodes
            for word, v in self.variables.items():
                if v.network == len(self.networks) and v.kind == ("hidden" if hidden else "output"):
                    self.variables[word] = v._replace(start=at)
                    at += prod(v.shape)
        self.networks.append((name, relation, target))

    def declare_variable(self, kind: str, words: Sequence[Any]) -> None:
        if len(words) != (4 if kind == "hidden" else 3) or not all(isinstance(w, str) for w in words):
            raise Refusal("a declaration of a variable is not understood")
        name, shape = words[0], _SHAPE.fullmatch(words[2])
        if shape is None or not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name in self.variables:
            raise Refusal(f"declaration of {_shown(name)} is not understood")
        dims = tuple(int(d) for d in shape[1].split(",")) if shape[1] else ()
        if not all(dims) or prod(dims) > MOST_COMPONENTS:
            raise Refusal(f"{_shown(name)} has no values, or too many")
        tensor = words[3][1:-1] if kind == "hidden" else ""
        start = self.positions(kind == "input")
        self.variables[name] = Named(len(self.networks), kind, start, dims, tensor)

    # -- variables and terms

    def variable(self, name: str) -> int:
        code = self.declared.get(name)
        if code is None:
            m = _COMPONENT.fullmatch(name)
            found = self.variables.get(m[1]) if m else None
            if m is None or found is None:
                raise Refusal(f"variable {_shown(name)} is not declared")
            index = [int(i) for i in m[2].split(",")] if m[2] else []
            if len(index) != len(found.shape) or any(i >= n for i, n in zip(index, found.shape, strict=True)):
                raise Refusal(f"{_shown(name)} does not index a value of its variable")
            flat = 0
            for i, n in zip(index, found.shape, strict=True):
                flat = flat * n + i
            at = found.start + flat
            code = -1 - at if found.kind != "input" else at if self.links is None else self.links[at]
            self.declared[name] = code
        return code

    def term(self, item: Any) -> _Term:
        if isinstance(item, str) and item[:1].isalpha():
            code = self.variable(item)
            size = Reach({code: ONE}, ZERO) if code >= 0 else NOWHERE
            return _Term({code: ONE}, ZERO, size, NOWHERE, size, False)
        return super().term(item)

    def monomial(self, factors: tuple[int, ...]) -> int:
        """The code of a product of variables; a single one is its own."""
        if len(factors) == 1:
            return factors[0]
        code = self.monomials.get(factors)
        if code is None:
            if len(self.monomials) >= MOST_TERMS:
                raise Refusal(f"more than {MOST_TERMS} products of variables")
            code = (FIRST + len(self.monomials)) if factors[0] >= 0 else -FIRST - len(self.monomials)
            self.monomials[factors] = code
            self.factors_of[code] = factors
        return code

    def product(self, a: int, b: int) -> int:
        return self.monomial(tuple(sorted(self.factors_of.get(a, (a,)) + self.factors_of.get(b, (b,)))))

    def times(self, a: _Term, b: _Term) -> _Term:
        if not a.form or not b.form:
            return super().times(a, b)
        if len(a.form) * len(b.form) > MOST_TERMS:
            raise Refusal("a polynomial of too many terms")
        form: dict[int, Fraction] = {}
        for v, c in [*a.form.items(), (None, a.constant)]:
            for w, d in [*b.form.items(), (None, b.constant)]:
                code = w if v is None else v if w is None else self.product(v, w)
                if code is not None and c * d:
                    form[code] = form.get(code, ZERO) + c * d
        size = self.crossed(a.size, b.size)
        error = _total([self.crossed(a.size, b.error), self.crossed(a.error, b.size), self.crossed(a.error, b.error)])
        error = _total([error, _total([size, error]).times(self.unit), Reach({}, self.least)])
        constant = a.constant * b.constant
        if any(
            max(c.numerator.bit_length(), c.denominator.bit_length()) > MOST_BITS for c in (*form.values(), constant)
        ):
            raise Refusal("a number is too long")
        peak = _total([a.peak, b.peak, self.crossed(a.peak, b.peak), size, error])
        return _Term(form, constant, size, error, peak, True)

    def crossed(self, a: Reach, b: Reach) -> Reach:
        """The product of two bounds; what outputs contribute is no part of them."""
        out = Reach({}, a.constant * b.constant)
        for v, c in a.inputs.items():
            out.inputs[v] = out.inputs.get(v, ZERO) + c * b.constant
            for w, d in b.inputs.items():
                code = self.product(v, w)
                out.inputs[code] = out.inputs.get(code, ZERO) + c * d
        for w, d in b.inputs.items():
            out.inputs[w] = out.inputs.get(w, ZERO) + d * a.constant
        return out

    def one_of(self, parts: Sequence[_Formula]) -> _Formula:
        return super().one_of(
            [p._replace(factors=tuple(_fewer(p.factors))) for p in parts] if len(parts) > 1 else parts
        )

    def atom(self, term: _Term, strict: bool) -> Atom | _Formula:
        form = {v: c for v, c in term.form.items() if c}
        if len(form) == 1 and next(iter(form)) >= FIRST:  # no bound of an input
            direction, scale = directed(form.items())
            number = self.numbered(direction)
            return Row(number, term.constant / scale, strict, term.error.times(1 / scale), term.peak)
        return super().atom(term._replace(form=form), strict)


@dataclass
class Reader1(Reader2):
    """A 1.0 text with products of variables: one network without a name, of `width` outputs."""

    width: int = 0

    run, shift, command, open_still = Reader.run, Reader.shift, Reader.command, Reader.open_still
    codes = Reader.codes

    def __post_init__(self) -> None:
        super().__post_init__()
        self.networks = [("", "", "")]

    def positions(self, inputs: bool) -> int:
        stated = self.sizes()[0 if inputs else 1]
        return stated if inputs else max(stated, self.width)

    def sizes(self) -> tuple[int, int]:
        """By names: the codes of inputs may be those of free ones."""
        names = [(name[0], int(name[2:])) for name in self.declared]
        counts = [max((i + 1 for kind, i in names if kind == end), default=0) for end in "XY"]
        if sum(kind == "X" for kind, _ in names) != counts[0]:
            raise Refusal("some inputs are not declared, but ones with a higher number are")
        return counts[0], counts[1]

    def of(self, network: int, inputs: bool) -> list[int]:
        return list(range(self.positions(inputs)))

    def exposed(self, network: int) -> bytes:
        return b""

    def declare(self, name: Any, sort: Any) -> None:
        super().declare(name, sort)
        code = self.declared[name]
        if code >= 0 and self.links is not None:
            if code >= len(self.links):
                raise Refusal("the query has fewer inputs than the text")
            self.declared[name] = self.links[code]

    def variable(self, name: str) -> int:
        return Reader.variable(self, name)


def _reader(text: str, element_type: str, links: Sequence[int] | None, width: int) -> Reader2:
    """The reader of a text's version: 2.0 texts declare networks, 1.0 texts constants."""
    if "declare-network" in text:
        return Reader2(text, element_type, links=links)
    return Reader1(text, element_type, links=links, width=width)


def _fewer(factors: Sequence[list[tuple[Atom, ...]]]) -> list[list[tuple[Atom, ...]]]:
    """Some of the disjunctions of which one choice each holds: the shortest, so that there are not too many choices.

    Without a disjunction more is unsafe, so what covers the rest covers all.
    """
    choices = 1
    kept: list[int] = []
    for at, factor in sorted(enumerate(factors), key=lambda pair: len(pair[1])):
        choices *= len(factor)
        if choices > CHOICES and kept:
            break
        kept.append(at)
    return [factors[at] for at in sorted(kept)]


# --- a point ---------------------------------------------------------------------------------------------------


def denies(text: str, element_type: str, x: FloatArray, y: FloatArray) -> str | None:
    """None when the text calls declared inputs x and declared outputs y unsafe, else one line that says why not.

    Constraints on inputs may be off by what evaluating them may: the witness gate evaluates them.
    """
    try:
        reader = _reader(text, element_type, None, len(y))
        with np.errstate(all="ignore"):
            reader.run(None)
        sizes = reader.positions(True), reader.positions(False)
        if (len(x), len(y)) != sizes:
            return f"the text does not declare {len(x)} inputs and {len(y)} outputs"
        if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
            return "the point is not finite"
        return _denied(reader, x, y)
    except Refusal as refusal:
        return str(refusal)
    except OverflowError:
        return "a number is outside the range of doubles"


def _denied(reader: Reader2, x: FloatArray, y: FloatArray) -> str | None:
    def value(code: int) -> Fraction:
        if code in reader.factors_of:
            return prod((value(v) for v in reader.factors_of[code]), start=ONE)
        return Fraction(float(x[code] if code >= 0 else y[-1 - code]))

    def holds(row: Row) -> bool:
        pairs = () if row.direction == NOTHING else reader.named[row.direction]
        total = sum((c * value(v) for v, c in pairs), row.constant)
        off = reader.off(row.error, row.peak, lambda v: abs(value(v)))
        return off is None or total < off or (total == off and (bool(off) or not row.strict))

    return reader.denied(x, holds)


# --- cases -----------------------------------------------------------------------------------------------------


def covers(text: str, query: Query, budget: Budget | None = None) -> str | None:
    """None when the query's cases contain the unsafe set of the text; else one line that says why not.

    Never raises for any text; a spent budget raises `BudgetError`.
    """
    try:
        joint = query.joint
        if joint is None or len(query.networks) != 1:
            return "the query does not say how its network is made"
        network = query.networks[0]
        with np.errstate(all="ignore"):
            width = sum(part.output_size for part in joint.parts)
            reader = _linked(text, network.element_type, joint.links, joint.free, width, budget)
            outputs = _outputs(reader, query)
            _Comparison2(reader, query, budget or Budget(), values=outputs, given=Given.of(joint.derived)).run()
    except Refusal as refusal:
        return str(refusal)
    except OverflowError:
        return "a number is outside the range of doubles"
    return None


def _linked(
    text: str, element_type: str, links: Sequence[int], free: int, width: int, budget: Budget | None
) -> Reader2:
    """The text read with free inputs, which its equations have to allow."""
    if set(links) != set(range(free)):
        raise Refusal("the free inputs of the query are not all in use")
    if list(links) == list(range(free)):
        reader = _reader(text, element_type, None, width)
        reader.run(budget)
    else:
        first = _reader(text, element_type, None, width)
        first.run(budget)
        _equal_inputs(first, links)
        reader = _reader(text, element_type, links, width)
        reader.run(budget)
    if reader.positions(True) != len(links):
        raise Refusal("the text declares another number of inputs")
    return reader


def _equal_inputs(reader: Reader2, links: Sequence[int]) -> None:
    """Raises where inputs are taken for one that no equations of the text make one."""
    sides: set[Direction] = set()
    for atom in reader.atoms:
        if isinstance(atom, Row) and atom.direction != NOTHING and not atom.constant:
            pairs = reader.named[atom.direction]
            exact = not atom.error.constant and not any(atom.error.inputs.values())
            if exact and len(pairs) == 2 and 0 <= pairs[0][0] and pairs[1][0] < FIRST and pairs[0][1] == -pairs[1][1]:
                sides.add(pairs)
    group = list(range(len(links)))

    def root(i: int) -> int:
        while group[i] != i:
            group[i] = group[group[i]]
            i = group[i]
        return i

    for pairs in sides:
        if tuple((v, -c) for v, c in pairs) in sides:
            group[root(pairs[0][0])] = root(pairs[1][0])
    first: dict[int, int] = {}
    for i, link in enumerate(links):
        if root(first.setdefault(link, i)) != root(i):
            raise Refusal("the query takes inputs for equal that are not by the text")


def _outputs(reader: Reader2, query: Query) -> list[int]:
    """The codes of the outputs of the query's network; raises where it is not made of the declared ones."""
    joint, network = query.joint, query.networks[0]
    assert joint is not None
    if len(joint.parts) != len(reader.networks):
        raise Refusal("the query has another number of networks")
    names = [n for n, *_ in reader.networks]
    links = joint.links
    models = [_model(part, reader.exposed(k)) for k, part in enumerate(joint.parts)]
    inputs, outputs = [], []
    for k, ((_, relation, target), part) in enumerate(zip(reader.networks, joint.parts, strict=True)):
        if part.element_type != reader.element_type:
            raise Refusal("networks of different types")
        if relation == "equal-to" and models[k] != models[names.index(target)]:
            raise Refusal("networks that are equal by the text are not")
        inputs.append([links[i] for i in reader.of(k, True)])
        outputs.append(reader.of(k, False))
        if (len(inputs[k]), len(outputs[k])) != (part.input_size, part.output_size):
            raise Refusal(
                f"the text declares {len(inputs[k])} inputs and {len(outputs[k])} outputs of network {names[k]}"
            )
    if joint.places:
        values = meaning(network, joint.parts, joint.places, inputs, outputs, joint.derived)
    else:
        alone = network is joint.parts[0] and len(joint.parts) == 1 and not joint.derived
        if not alone or inputs[0] != list(range(joint.free)):
            raise Refusal("the query's network is not the declared one")
        values = [(-1 - j,) for j in outputs[0]]
    return [reader.monomial(m) for m in values]


def _model(part: Network, exposed: bytes) -> tuple[bytes, Any]:
    """The model as it was given, without what returns its hidden nodes; raises where it does not return them."""
    if exposed and not part.model_bytes.endswith(exposed):
        raise Refusal("a model does not return the hidden nodes of its network")
    given = part.model_bytes[: len(part.model_bytes) - len(exposed)]
    return given, part.source_hash if part.original is not None or not given else None


def _field(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    out, size = bytearray([number << 3 | 2]), len(content)
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(out) + bytes([size]) + content


@dataclass
class _Comparison2(Comparison):
    """As for version 1.0; `values` are the codes of the network's outputs, `given` has the derived inputs."""

    reader: Reader2
    values: list[int] = field(default_factory=list)
    given: Given = field(default_factory=Given)
    written: ClassVar[int] = CHOICES

    def sizes(self) -> None:
        if any(case.box.size != self.query.networks[0].input_size for case in self.query.cases):
            raise Refusal("a box of the query has another number of inputs")
        self.most = float(self.reader.most)  # no input is beyond

    def complete(self) -> None:
        """Bounds that follow from rows of inputs that hold everywhere."""
        rows = [r for r in self.common.rows if r.direction != NOTHING]
        for _ in range(min(8, len(rows))):
            if not any([self.follow(row) for row in rows]):
                break
        super().complete()
        self.ends[0][self.unlimited[0]] = -self.most
        self.ends[1][self.unlimited[1]] = self.most

    def follow(self, row: Row) -> bool:
        """Whether an input that is evaluated alone, so that it does not overflow, got a bound from a row.

        The other inputs of the row have one, or are limited by their type.
        """
        pairs = self.reader.named[row.direction]
        found = False
        if len(pairs) < 2 or pairs[0][0] < 0 or pairs[-1][0] >= FIRST:
            return found
        exact = not row.error.constant and not any(row.error.inputs.values())
        for v, c in pairs:
            if isfinite(self.ends[int(c > 0), v]):
                continue
            slope = self.slope(row, v, c)
            if slope is None:
                continue
            low = row.constant
            for w, d in pairs:
                if w != v:
                    low += d * Fraction(self.known_end(w, d < 0))
            if not exact:

                def far(w: int, v: int = v) -> Fraction:
                    ends = (abs(Fraction(self.known_end(w, upper))) for upper in (False, True))
                    return ZERO if w == v else max(ends)

                if (
                    any(w >= FIRST for w in (*row.error.inputs, *row.peak.inputs))
                    or row.peak.at(far) > self.reader.most
                ):
                    continue
                low -= row.error.at(far)
            end, _ = _outward(-low / (slope[low > 0] if c > 0 else -slope[low > 0]), c > 0)
            self.ends[int(c > 0), v] = end
            found = True
        return found

    def known_end(self, i: int, upper: bool) -> float:
        """The end of an input's side, the largest number of its type where it has none yet."""
        end = float(self.ends[int(upper), i])
        return end if isfinite(end) else self.most if upper else -self.most

    def slope(self, row: Row, v: int, c: Fraction) -> tuple[Fraction, Fraction] | None:
        """What `|c|` is at least and at most with the part of the error that grows with v; None: nothing is known.

        An input that is compared as it is does not overflow. Where an equation has it on one side only an overflow
        there makes the equation false: the other side is finite.
        """
        grows = row.error.inputs.get(v, ZERO)
        alone = row.peak.inputs.get(v, ONE) == ONE and not grows
        apart = v in self.reader.equations.get(id(row.peak), (row.peak, set()))[1]
        if not (alone or apart) or grows >= abs(c):
            return None
        return abs(c) - grows, abs(c) + grows

    def tightest(self, rows: Sequence[Row], own: dict[Side, End]) -> dict[int, tuple[Fraction, bool]]:
        out: dict[int, tuple[Fraction, bool]] = {}

        def far(i: int) -> Fraction:
            if i in self.reader.factors_of:
                return prod((far(v) for v in self.reader.factors_of[i]), start=ONE)
            low, high = self.side(own, i, False)[0], self.side(own, i, True)[0]
            return Fraction(max(abs(low), abs(high)))

        for row in rows:
            off = self.reader.off(row.error, row.peak, far)
            if off is None:
                continue
            known = row.constant - off if off else row.constant, row.strict
            out[row.direction] = max(out.get(row.direction, known), known)
        for direction, (constant, strict) in list(out.items()):
            pairs = () if direction == NOTHING else self.reader.named[direction]
            opposite = self.reader.directions.get(tuple((v, -c) for v, c in pairs)) if pairs else None
            if opposite in out and opposite is not None:
                both = constant + out[opposite][0]
                if both > 0 or (both == 0 and (strict or out[opposite][1])):
                    return {NOTHING: (ONE, False)}  # they contradict each other
        return out

    def bounded(self, direction: int, constant: Fraction, strict: bool, own: dict[Side, End]) -> bool:
        pairs = self.reader.named[direction]
        return all(0 <= v < FIRST for v, _ in pairs) and super().bounded(direction, constant, strict, own)

    def code(self, j: int) -> int:
        return self.values[j]

    # -- inputs that equations give

    def needed(self, case: Case) -> dict[Side, float]:
        return {side: end for side, end in super().needed(case).items() if side[0] not in self.given.derived}

    def idle(self, i: int) -> bool:
        return i not in self.given.spoken and super().idle(i)

    def stated(self, xs: dict[int, Fraction], constant: Fraction) -> tuple[dict[int, Fraction], Fraction]:
        return self.given.over_linked(xs, constant)

    def inside(
        self, case: Case, rows: dict[int, tuple[Fraction, bool]], own: dict[Side, End], quick: bool = False
    ) -> bool:
        return self.remainders_inside(case, rows, own) and super().inside(case, rows, own, quick)

    @cached_property
    def solutions(self) -> dict[int, Form]:
        """What the equations that hold everywhere say of the given inputs."""
        stated = {(r.direction, r.constant) for r in self.common.rows if r.direction != NOTHING}
        pairs = []
        for direction, constant in stated:
            form = self.reader.named[direction]
            opposite = self.reader.directions.get(tuple((v, -c) for v, c in form))
            if opposite is not None and direction < opposite and (opposite, -constant) in stated:
                if 0 <= form[0][0] and form[-1][0] < FIRST:
                    pairs.append(direction)
        return self.given.solutions({direction: dict(self.reader.named[direction]) for direction in sorted(pairs)})

    def remainders_inside(self, case: Case, rows: dict[int, tuple[Fraction, bool]], own: dict[Side, End]) -> bool:
        """Whether the remainders of all points of a disjunct lie in a case's box."""

        def ends(name: int) -> tuple[Fraction, Fraction] | None:
            if name >= 0:
                return Fraction(self.side(own, name, False)[0]), Fraction(self.side(own, name, True)[0])
            direction = -1 - name
            opposite = self.reader.directions[tuple((v, -c) for v, c in self.reader.named[direction])]
            if direction not in rows or opposite not in rows:
                return None
            return rows[opposite][0], -rows[direction][0]

        self.step(len(self.given.derived))
        for t in self.given.derived:
            found = self.given.remainder(t, self.solutions, ends)
            low, high = (Fraction(side[t].item()) for side in (case.box.lo, case.box.hi))
            if not (low <= found[0] and found[1] <= high):
                return False
        return True
