"""Equations between inputs that hold everywhere: points that meet them, which nothing finds by chance.

Each equation gives one free input in terms of the others (a triangular system); that of a substituted input gives its
remainder, which then is next to nothing. In double this moves a point onto all equations and a gradient along them. In
the element type's arithmetic, in which a scorer evaluates the equation as it is written, the nearest values are tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache

import numpy as np

from mucg4.gate.joint import satisfied, value_at
from mucg4.model.formula import Apply, Compare, Formula, Junction, Term, Variable
from mucg4.model.joint import Derived, Joint, over_free
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.ops.base import Array
from mucg4.records import dataclass

Form = tuple[Compare, dict[int, Fraction], Fraction]  # an equation, as affine form of free inputs and constant

STEPS = 4  # neighbours of a value that are tried on either side; not measured
MOST_POINTS = 256  # of one batch that are settled; not measured
MOST_EQUATIONS = 4096  # that are looked at; not measured


@dataclass(frozen=True, eq=False)
class Relation:
    """`x[target] = coeffs . x + constant` over free inputs `(d,)`; `coeffs[target]` is 0.

    `given`: of a substituted target.
    """

    atom: Compare
    target: int
    coeffs: FloatArray
    constant: float
    given: Derived | None = None

    def met(self, declared: FloatArray) -> bool:
        """Whether a scorer finds the equation to hold at declared inputs `(n,)`."""
        return satisfied([self.atom], declared, declared[:0]) is not None


@dataclass(frozen=True, eq=False)
class Relations:
    """The equations of a query's free inputs, each after those that give what it reads."""

    joint: Joint
    relations: tuple[Relation, ...]
    matrix: FloatArray  # (d, d) and (d,): the point on all equations is `matrix @ x + shift`
    shift: FloatArray

    @staticmethod
    def of(joint: Joint | None) -> Relations | None:
        """None where there are none."""
        return None if joint is None else _relations(joint)

    def onto(self, x: Array) -> Array:
        """Points `(N, d)` with the inputs that equations give, in double."""
        return x @ self.matrix.T + self.shift

    def along(self, slope: Array) -> Array:
        """Gradients `(N, d)` with respect to the inputs that no equation gives; 0 for the others."""
        out: Array = slope @ self.matrix
        return out

    def settled(self, points: FloatArray) -> FloatArray:
        """Element-type points `(N, d)`, the first of which meet the equations as a scorer evaluates them, if that is
        possible near by."""
        out: FloatArray = points.copy()
        links = np.array(self.joint.links)
        for x, linked in zip(out[:MOST_POINTS], self.joint.linked(out[:MOST_POINTS]), strict=True):
            for r in self.relations:
                if not r.met(linked[links]):
                    self._settle(r, x, linked, links)
        return out

    def _settle(self, r: Relation, x: FloatArray, linked: FloatArray, links: IntArray) -> None:
        """Try the values next to the one that the others give; of a substituted input, remainders that lead there.

        `linked` follows x, in place like x.
        """
        kind, old, before = x.dtype.type, x[r.target], linked.copy()
        base = 0.0 if r.given is None else float(r.given.value(x[None])[0])
        with np.errstate(over="ignore", invalid="ignore"):
            middle = kind(base + (r.coeffs @ x.astype(np.float64) + r.constant))
            low = high = middle
            tried = [middle]
            for _ in range(STEPS):
                low, high = np.nextafter(low, kind(-np.inf)), np.nextafter(high, kind(np.inf))
                tried += [low, high]
            for value in tried:
                x[r.target] = value if r.given is None else kind(float(value) - base)
                if r.given is None:
                    linked[:] = self.joint.linked(x[None])[0]
                else:
                    linked[r.target] = kind(base + float(x[r.target]))
                if np.isfinite(value) and r.met(linked[links]):
                    return
        x[r.target], linked[:] = old, before


@lru_cache(maxsize=2)
def _relations(joint: Joint) -> Relations | None:
    given = {d.target: d for d in joint.derived}
    found: list[Relation] = []
    used: set[int] = set()
    forms = [(atom, _linear(atom, joint)) for atom in _equations(joint.assertions)[:MOST_EQUATIONS]]
    for atom, form, constant in _in_order([(atom, *form) for atom, form in forms if form is not None], set(given)):
        free = [i for i, c in form.items() if c and i not in used]
        if not free:
            continue
        target = next((i for i in free if i in given), free[-1])
        slope = form[target]
        coeffs = np.zeros(joint.free)
        for i, c in form.items():
            coeffs[i] = float(-c / slope) if i != target else 0.0
        found.append(Relation(atom, target, coeffs, float(-constant / slope), given.get(target)))
        used.update(form)
    matrix, shift = np.eye(joint.free), np.zeros(joint.free)
    for r in found:
        terms = np.flatnonzero(r.coeffs)
        matrix[r.target] = r.coeffs[terms] @ matrix[terms]
        shift[r.target] = r.coeffs[terms] @ shift[terms] + r.constant
    return Relations(joint, tuple(found), matrix, shift) if found else None


def _in_order(forms: list[Form], given: set[int]) -> Iterator[Form]:
    """Those first that speak of fewest substituted inputs of which none before them has spoken."""
    while forms:
        counts = [len(given & form.keys()) for _, form, _ in forms]
        least = min(counts)
        ready = [k for k, count in enumerate(counts) if count == least][: None if least <= 1 else 1]
        yield from (forms[k] for k in ready)
        given = given.difference(*(forms[k][1] for k in ready))
        taken = set(ready)
        forms = [form for k, form in enumerate(forms) if k not in taken]


def _equations(assertions: tuple[Formula, ...]) -> list[Compare]:
    """The equations among nested conjunctions."""
    out: list[Compare] = []
    todo = list(reversed(assertions))
    while todo:
        f = todo.pop()
        if isinstance(f, Junction):
            todo.extend(reversed(f.args) if f.op == "and" or len(f.args) == 1 else ())
        elif f.op in ("==", "="):
            out.append(f)
    return out


def _linear(atom: Compare, joint: Joint) -> tuple[dict[int, Fraction], Fraction] | None:
    """Left minus right over free inputs, and its constant; None where it is not affine in inputs alone."""
    read = sorted(_inputs(atom))
    if read and read[0] < 0:
        return None  # an output
    groups: dict[int, list[int]] = {}
    for i in read:
        groups.setdefault(joint.links[i], []).append(i)

    def at(values: dict[int, Fraction]) -> Fraction:
        return value_at(atom, {i: v for k, v in values.items() for i in groups[k]})

    zero = {k: Fraction(0) for k in groups}
    constant = at(zero)
    form = {k: at({**zero, k: Fraction(1)}) - constant for k in sorted(groups)}
    for seed in (2, 5):  # polynomials differ from their linear part there
        point = {k: Fraction(seed * n * n + 3 * n + 1, 7) for n, k in enumerate(form, 1)}
        if at(point) != constant + sum((c * point[k] for k, c in form.items()), Fraction(0)):
            return None
    form, constant = over_free(form, constant, joint.derived)
    return {i: form[i] for i in sorted(form)}, constant


def _inputs(atom: Compare) -> set[int]:
    """Declared inputs that an equation reads; -1 for outputs."""
    out: set[int] = set()
    todo: list[Term] = [atom.left, atom.right]
    while todo:
        t = todo.pop()
        if isinstance(t, Apply):
            todo.extend(t.args)
        elif isinstance(t, Variable):
            out.add(t.index if t.is_input else -1)
    return out
