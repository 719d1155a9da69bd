"""A 2.0 query's syntax tree -> free inputs, monomials, and the cases over both.

Three steps before the normal form of version 1.0 (`mucg4.read.normal`). Inputs that the text says are equal become one
free input (equality of two inputs is exact in every arithmetic, so nothing is lost). A comparison that is not linear
is written out as a polynomial; each product of variables in it is a monomial, to be computed by the joint network
(`mucg4.read.joint`), so that the comparison is a linear row again. An input without a bound gets the one that follows
from the constraints that hold everywhere, or the largest number of its type.

Inputs that affine equations give are substituted at the end (`mucg4.read.substitute`).

Constraints on inputs alone are loosened by what evaluating them in the element type may be off, also where they are
polynomials (`mucg4.read.rounding` has the analysis of linear ones, `_Evaluation` here that of products).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import field, replace
from fractions import Fraction
from functools import partial
from itertools import chain, product
from typing import Any, NamedTuple

from mucg4.errors import UnsupportedError
from mucg4.model.decimals import Plain
from mucg4.model.formula import Apply, Compare, Constant, Formula, Junction, Term, Variable, inputs_of
from mucg4.model.joint import Declared, Derived, Joint, Monomial
from mucg4.model.network import Network
from mucg4.model.query import Box, Case, Finer, hull
from mucg4.read.choices import Choices, distinct
from mucg4.read.normal import (
    MOST_BITS,
    MOST_DISJUNCTS,
    Bound,
    Disjunct,
    Key,
    Limits,
    Row,
    Side,
    _at,
    _flatten,
    _join,
    _Normal,
    _refuse_large,
    _too_many,
)
from mucg4.read.rounding import Kind, Rounding, _fits, _growth, kind_of, rounding_of
from mucg4.read.substitute import Substitution
from mucg4.read.vnnlib2 import ParsedQuery
from mucg4.records import dataclass

MOST_DEGREE = 16  # of a polynomial; not measured
MOST_MONOMIALS = 10_000  # of a query; not measured
MOST_ROUNDS = 8  # of following rows to bounds of inputs; not measured
WRITTEN = 1024  # choices of several disjunctions that are written out; not measured
ZERO, ONE = Fraction(0), Fraction(1)

Polynomial = dict[Monomial, Fraction]  # the empty monomial is the constant


def links_of(parsed: ParsedQuery) -> tuple[tuple[int, ...], int]:
    """For every declared input its free input, and how many free inputs there are.

    Inputs are linked by equalities of two inputs that hold everywhere, however they are written. Free inputs are in the
    order in which the first of their declared inputs stands.
    """
    count = parsed.declared.count(True)
    stated = [(op, a, b) for op, a, b in map(_of_two, _flatten(parsed.assertions, "and")) if op]
    below = {(a, b) if op == "<=" else (b, a) for op, a, b in stated if op != "=="}
    equal = [(a, b) for op, a, b in stated if op == "==" or (op == "<=" and (b, a) in below)]
    if not equal:
        return tuple(range(count)), count
    parent = list(range(count))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in equal:
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    numbers: dict[int, int] = {}
    links = tuple(numbers.setdefault(root(i), len(numbers)) for i in range(count))
    return links, len(numbers)


def _of_two(formula: Formula) -> tuple[str, int, int]:
    """`<=`, `>=` or `==` and the two inputs that a formula compares; else no word.

    A difference that is compared with 0 compares its two terms: with gradual underflow its sign is theirs.
    """
    if isinstance(formula, Compare) and formula.op in ("<=", ">=", "==", "="):
        left, right = formula.left, formula.right
        op = formula.op if formula.op in ("<=", ">=") else "=="
        if isinstance(left, Constant) and left.value == 0:
            left, right = right, left
            op = {"<=": ">=", ">=": "<="}.get(op, op)
        if isinstance(right, Constant) and right.value == 0:
            left, right = _difference(left)
        if isinstance(left, Variable) and isinstance(right, Variable) and left.is_input and right.is_input:
            return op, left.index, right.index
    return "", 0, 0


def _difference(term: Term) -> tuple[Term, Term]:
    """The terms of a difference of two; 0 behind another term."""
    if isinstance(term, Apply) and len(term.args) == 2:
        first, second = term.args
        if term.op == "-":
            return first, second
        if term.op == "+":
            for a, b in ((first, second), (second, first)):
                if isinstance(b, Apply) and b.op == "-" and len(b.args) == 1:
                    return a, b.args[0]
    return term, Constant(ZERO)


def _said(formula: Formula, links: Sequence[int]) -> bool:
    """Whether a formula holds because of the links."""
    op, a, b = _of_two(formula)
    return bool(op) and links[a] == links[b]


class Normalised(NamedTuple):
    """`links`, `free`, `derived` as in `mucg4.model.joint.Joint`.

    The cases speak of free inputs, and of declared outputs and then of `monomials`; `finer` makes cases that leave no
    disjunction out, where some are.
    """

    links: tuple[int, ...]
    free: int
    monomials: tuple[Monomial, ...]
    cases: tuple[Case, ...]
    assertions: tuple[Formula, ...]
    derived: tuple[Derived, ...]
    finer: Finer | None

    def joint(self, declared: Declared, parts: tuple[Network, ...]) -> Joint:
        """The record for networks that are not joined yet."""
        return Joint(
            declared, parts, self.links, self.free, self.monomials, assertions=self.assertions, derived=self.derived
        )


class _Sizes(NamedTuple):
    """What `_Normal` asks of a property."""

    inputs: int
    outputs: int
    assertions: tuple[Formula, ...]
    bounds: tuple[Plain, Plain] | None = None


def normalise(parsed: ParsedQuery, element_type: str) -> Normalised:
    """The normal form of a query whose models have inputs of `element_type`.

    Raises `UnsupportedError` for polynomials of a degree above 16 and for more than a million disjuncts.
    """
    links, free = links_of(parsed)
    stated = tuple(_flatten(parsed.assertions, "and"))
    kept = tuple(f for f in stated if not _said(f, links))
    same = links == tuple(range(free))
    renamed = kept if same else tuple(_renamed(f, links) for f in kept)
    bounds = parsed.lower, parsed.upper
    if not same:
        bounds = Plain(False), Plain(True)
        for side, declared in zip(bounds, (parsed.lower, parsed.upper), strict=True):
            for i, value in declared.items():
                side.tighten(links[i], value)
    sizes = _Sizes(free, parsed.declared.count(False), renamed, bounds)
    normal = _Normal2(sizes, element_type)  # type: ignore[arg-type]
    cases, choices = normal.cases(), normal.choices
    monomials = tuple(normal.monomials)
    assertions = _as_equations(kept)
    substitution = Substitution.of(normal, normal.common, (case.box for case in cases))
    if substitution is None:
        return Normalised(links, free, monomials, cases, assertions, (), choices)
    finer = None if choices is None else partial(substitution.finer, choices)
    assertions = (*substitution.bounds(links), *assertions)
    return Normalised(links, free, monomials, substitution.cases(cases), assertions, substitution.derived, finer)


def _as_equations(formulas: Iterable[Formula]) -> tuple[Formula, ...]:
    """The same with one equation in the place of two comparisons of the same terms, one each way.

    In every arithmetic that means the same; but of an equation no margin is asked.
    """
    out: dict[int, Formula] = {}
    below: dict[tuple[Term, Term], int] = {}  # where `left <= right` stands
    for k, f in enumerate(formulas):
        out[k] = f
        if not isinstance(f, Compare) or f.op not in ("<=", ">="):
            continue
        if isinstance(f.left, Apply) or isinstance(f.right, Apply):
            pair = (f.left, f.right) if f.op == "<=" else (f.right, f.left)
            other = below.get(pair[::-1])
            if other is None:
                below.setdefault(pair, k)
            elif other in out:
                out[k] = replace(f, op="==")
                del out[other]
    return tuple(out.values())


def _renamed(node: Any, links: Sequence[int]) -> Any:
    """The same with free inputs in the place of declared ones."""
    if isinstance(node, Variable):
        return replace(node, index=links[node.index]) if node.is_input else node
    if isinstance(node, Constant):
        return node
    if isinstance(node, Compare):
        return replace(node, left=_renamed(node.left, links), right=_renamed(node.right, links))
    return replace(node, args=tuple([_renamed(a, links) for a in node.args]))


@dataclass
class _Normal2(_Normal):
    """Owner of one query's way to its normal form."""

    monomials: dict[Monomial, int] = field(default_factory=dict)  # to its output
    made: int = 0  # disjuncts
    common: tuple[Row, ...] = ()  # what holds in all cases
    choices: Choices | None = None  # where disjunctions of the top level are left out of the cases
    products: dict[int, Compare] = field(default_factory=dict)  # comparisons that are no linear ones, by identity

    def cases(self) -> tuple[Case, ...]:
        common, several = self.split(self.prop.assertions)
        kept = written(several)
        boxes, others = self.factors(kept)
        limits, self.common = self.limits(common.bounds), common.rows
        self.complete(limits, common.rows)
        self.choices = Choices(self, common, limits, several) if len(kept) < len(several) else None
        grouped: dict[Key, dict[tuple[Row, ...], None]] = {}
        for alternative in boxes:
            alone = self.own_bounds(alternative, limits)
            for other in others:
                key = self.own_bounds((*alternative, *other.bounds), limits) if other.bounds else alone
                rows = distinct((*common.rows, *other.rows))
                if rows is not None:
                    grouped.setdefault(key, {})[rows] = None
        outputs = self.prop.outputs + len(self.monomials)
        _refuse_large(grouped, self.prop.inputs, outputs)
        self.prop = self.prop._replace(outputs=outputs)  # type: ignore[attr-defined]
        if not grouped:
            return self.nothing_unsafe(limits)
        made = []
        gaps = limits.missing(self.prop.inputs)
        for key, conjunctions in grouped.items():
            box = self.box(limits, key, gaps)
            made.append(Case(box, tuple(self.conjunction(rows, box, key) for rows in conjunctions)))
        return tuple(made)

    # -- disjunctions

    def factors(self, several: list[list[Disjunct]]) -> tuple[list[tuple[Bound, ...]], list[Disjunct]]:
        """The box alternatives and the other alternatives."""
        boxes = [f for f in several if not any(d.rows for d in f)]
        others = [f for f in several if any(d.rows for d in f)]
        return [_join(p).bounds for p in product(*boxes)], [_join(p) for p in product(*others)]

    def split(self, formulas: Sequence[Formula]) -> tuple[Disjunct, list[list[Disjunct]]]:
        """A conjunction: what holds in all disjuncts, and of each list one."""
        lists = [self.disjuncts(f) for f in _conjuncts(formulas)]
        return _join([f[0] for f in lists if len(f) == 1]), [f for f in lists if len(f) != 1]

    def disjuncts(self, formula: Formula) -> list[Disjunct]:
        if isinstance(formula, Compare):
            return self.atom(formula)
        if formula.op == "and":
            single, several = self.split([formula])
            return [_join((single, *choice)) for choice in product(*written(several))]
        out = list(chain.from_iterable(map(self.disjuncts, formula.args)))
        self.made += len(out)
        if self.made > MOST_DISJUNCTS:
            raise _too_many()
        return out

    # -- inputs without bounds

    def complete(self, limits: Limits, rows: Iterable[Row]) -> None:
        """Give every input both bounds: from rows of inputs that hold everywhere, else the largest of its type."""
        missing = limits.missing(self.prop.inputs)
        if not missing:
            return
        usable = [row for row in rows if not row[1] and len(row[0]) > 1]
        for _ in range(min(len(usable), MOST_ROUNDS)):
            found = len(limits.own)
            for row in usable:
                self.follow(row, limits)
            if len(limits.own) == found:
                break
        most = kind_of(self.element_type).most
        for i, upper in missing:
            limits.own.setdefault((i, upper), (most if upper else -most, None))

    def follow(self, row: Row, limits: Limits) -> None:
        """A bound for an input of a row whose other inputs have bounds, with what evaluating it may be off.

        Of rows that are not evaluated exactly only for an input that cannot overflow where they hold.
        """
        xs, _, constant, _, atom = row
        if all(limits.get(v, c > 0) is not None for v, c in xs) or (atom is not None and id(atom) in self.products):
            return
        rounding = None if atom is None else rounding_of(atom, self.element_type)
        for v, c in xs:
            if limits.get(v, c > 0) is not None or (atom is not None and not _apart(atom, v)):
                continue
            rest = [(j, s, limits.get(j, s < 0)) for j, s in xs if j != v]
            if any(side is None for *_, side in rest):
                continue
            low = constant + sum((s * self.reached(side, s < 0) for _, s, side in rest if side is not None), ZERO)
            value = -low / c
            if rounding is not None:
                end = self.loosened(-low, abs(c), v, rounding, limits)
                if end is None:
                    continue
                value = end if c > 0 else -end
            limits.own[v, c > 0] = (value, None)

    def loosened(self, room: Fraction, slope: Fraction, v: int, rounding: Rounding, limits: Limits) -> Fraction | None:
        """The largest t with `slope t <= room + error`, t the input v or its negative; None when there is none."""
        far = {v: ZERO}
        for i in rounding.inputs - {v}:
            sides = [limits.get(i, upper) for upper in (False, True)]
            if any(side is None for side in sides):
                return None
            far[i] = max(abs(self.reached(side, bool(u))) for u, side in enumerate(sides) if side is not None)
        off = rounding.error.inputs.get(v, ZERO)
        if rounding.peak.at(far) > rounding.most or off >= slope:
            return None
        room += rounding.error.at(far)
        return room / (slope - off if room >= 0 else slope + off)

    def reached(self, side: Side, upper: bool) -> Fraction:
        value, end = side
        return self.end(value, upper) if end is None else end

    # -- comparisons

    def atom(self, formula: Compare) -> list[Disjunct]:
        if max(_degree(formula.left), _degree(formula.right)) <= 1:
            return super().atom(formula)
        difference = dict(_expanded(formula.left, formula))
        for m, c in _expanded(formula.right, formula).items():
            difference[m] = difference.get(m, ZERO) - c
        opposite = {m: -c for m, c in difference.items()}
        op = formula.op
        if op in ("=", "=="):
            return [_join([self.row(form, False, formula) for form in (difference, opposite)])]
        if op == "!=":
            return [self.row(form, True, formula) for form in (difference, opposite)]
        return [self.row(difference if op in ("<", "<=") else opposite, op in ("<", ">"), formula)]

    def row(self, form: Polynomial, strict: bool, formula: Compare) -> Disjunct:
        """`form <= 0` (`< 0`) with monomials as outputs."""
        xs: dict[int, Fraction] = {}
        ys: dict[int, Fraction] = {}
        for m, c in form.items():
            if not c or not m:
                continue
            if len(m) > 1:
                ys[self.output(m, formula)] = c
            elif m[0] >= 0:
                xs[m[0]] = c
            else:
                ys[-1 - m[0]] = c
        by_inputs = not any(c and m and m[0] < 0 for m, c in form.items())  # outputs may cancel
        if by_inputs:
            self.products[id(formula)] = formula
        row = (tuple(sorted(xs.items())), tuple(sorted(ys.items())), form.get((), ZERO), strict)
        return Disjunct((), ((*row, formula if by_inputs else None),))

    def output(self, monomial: Monomial, formula: Compare) -> int:
        if len(self.monomials) >= MOST_MONOMIALS:
            raise UnsupportedError(_at(formula, f"more than {MOST_MONOMIALS} products of variables"))
        return self.monomials.setdefault(monomial, self.prop.outputs + len(self.monomials))

    def proved(self, row: Row, box: Box) -> tuple[dict[int, Fraction], dict[int, Fraction], Fraction, bool]:
        xs, ys, constant, strict, atom = row
        if atom is None or id(atom) not in self.products:
            return super().proved(row, box)
        far = {i: Fraction(max(abs(box.lo[i]), abs(box.hi[i])).item()) for i in inputs_of(atom)}
        off = _Evaluation(far, self.element_type).off(atom)
        if off is None:
            return {}, {}, ZERO, False
        constant = Fraction(hull((constant - off,), -1, "float64")[0].item())
        return dict(xs), dict(ys), constant, strict


def _apart(atom: Compare, v: int) -> bool:
    """Whether the input v is read on one side only, and alone or in an equation.

    Then no overflow makes the comparison hold: what overflowed does not become finite again, and the other side is.
    """
    for one, other in ((atom.left, atom.right), (atom.right, atom.left)):
        if v in inputs_of(one) and v not in inputs_of(other):
            return isinstance(one, Variable) or atom.op in ("==", "=")
    return False


def _conjuncts(formulas: Iterable[Formula]) -> list[Formula]:
    """The members of nested conjunctions; a junction of one formula is that."""
    out: list[Formula] = []
    for f in formulas:
        while isinstance(f, Junction) and len(f.args) == 1:
            f = f.args[0]
        out.extend(_conjuncts(f.args) if isinstance(f, Junction) and f.op == "and" else (f,))
    return out


def written(factors: list[list[Disjunct]]) -> list[list[Disjunct]]:
    """The disjunctions that are multiplied out: the shortest ones, while all their choices are at most `WRITTEN`.

    Those of the top level that are left out come back on demand (`mucg4.read.choices`). Leaving one out enlarges the
    unsafe set: then more is proved empty than was asked. A witness has to meet all.
    """
    count = 1
    kept: set[int] = set()
    for k in sorted(range(len(factors)), key=lambda k: len(factors[k])):
        count *= len(factors[k])
        if count > WRITTEN and kept:
            break
        kept.add(k)
    return [f for k, f in enumerate(factors) if k in kept]


# --- polynomials -----------------------------------------------------------------------------------------------


def _degree(term: Term) -> int:
    """How many variables are multiplied at most; structural."""
    if isinstance(term, Constant):
        return 0
    if isinstance(term, Variable):
        return 1
    degrees = [_degree(a) for a in term.args]
    return sum(degrees) if term.op == "*" else max(degrees)


def _expanded(term: Term, atom: Compare) -> Polynomial:
    """The polynomial of a term, exactly."""
    if isinstance(term, Constant):
        return {(): term.value}
    if isinstance(term, Variable):
        return {(term.index if term.is_input else -1 - term.index,): ONE}
    parts = [_expanded(a, atom) for a in term.args]
    if term.op == "*":
        total = parts[0]
        for part in parts[1:]:
            total = _multiplied(total, part, atom)
        return total
    out = dict(parts[0]) if term.op == "+" or len(parts) > 1 else {m: -c for m, c in parts[0].items()}
    sign = ONE if term.op == "+" else -ONE
    for part in parts[1:]:
        for m, c in part.items():
            out[m] = out.get(m, ZERO) + sign * c
    return out


def _multiplied(a: Polynomial, b: Polynomial, atom: Compare) -> Polynomial:
    out: Polynomial = {}
    for m, c in a.items():
        for n, d in b.items():
            name = tuple(sorted(m + n))
            out[name] = out.get(name, ZERO) + c * d
    if len(out) > MOST_MONOMIALS or max((len(m) for m in out), default=0) > MOST_DEGREE:
        raise UnsupportedError(_at(atom, f"a polynomial with many terms, or of a degree above {MOST_DEGREE}"))
    if any(max(c.numerator.bit_length(), c.denominator.bit_length()) > MOST_BITS for c in out.values()):
        raise UnsupportedError(_at(atom, "a number is too long"))
    return out


class _Reach(NamedTuple):
    size: Fraction
    error: Fraction
    peak: Fraction
    leaves: int


@dataclass
class _Evaluation:
    """What evaluating a comparison of inputs may be off where `|x_i| <= far[i]`; the model of `rounding`."""

    far: dict[int, Fraction]
    element_type: str

    def off(self, atom: Compare) -> Fraction | None:
        """The largest error of left minus right; None when something may overflow."""
        kind = kind_of(self.element_type)
        left, right = (self.term(t, kind) for t in (atom.left, atom.right))
        peak = left.peak + right.peak
        return 2 * (left.error + right.error) if peak <= kind.most / 4 else None

    def term(self, term: Term, kind: Kind) -> _Reach:
        if isinstance(term, Constant):
            size = abs(term.value)
            error = ZERO if _fits(term.value, self.element_type) else size * kind.unit * 3 + kind.least
            return _Reach(size, error, size + error, 1)
        if isinstance(term, Variable):
            size = self.far[term.index] if term.is_input else ZERO  # an output's rounding is the network's
            error = size * kind.unit + kind.least if term.is_input else ZERO
            return _Reach(size, error, size + error, 1)
        parts = [self.term(a, kind) for a in term.args]
        if term.op == "*":
            total = parts[0]
            for part in parts[1:]:
                total = self.product(total, part, kind)
            return total
        size, error = sum((p.size for p in parts), ZERO), sum((p.error for p in parts), ZERO)
        leaves = sum(p.leaves for p in parts)
        if len(parts) > 1:
            error += (size + error) * _growth(leaves, kind.unit)
        return _Reach(size, error, sum((p.peak for p in parts), ZERO) + size + error, leaves)

    @staticmethod
    def product(a: _Reach, b: _Reach, kind: Kind) -> _Reach:
        size = a.size * b.size
        error = a.size * b.error + b.size * a.error + a.error * b.error
        error += (size + error) * kind.unit + kind.least
        partial = max(a.peak, ONE) * max(b.peak, ONE)
        return _Reach(size, error, partial + size + error, a.leaves + b.leaves)
