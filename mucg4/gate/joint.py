"""Queries of VNN-LIB 2.0 in onnxruntime: every declared network runs in its own session.

A witness is judged by the assertions as they are written, over the declared variables: as a scorer evaluates them
(numbers of the element type, from the inside out, arguments left to right), in double, and exactly. Assertions that
speak of inputs alone and take no more than comparing, and equations of inputs, are judged as the scorer does only.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

import numpy as np

from mucg4.gate.runtime import Runtime
from mucg4.model.formula import Apply, Compare, Constant, Formula, Term, Variable
from mucg4.model.joint import Joint
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.ops.arrays import FloatArray


class JointRuntime(Runtime):
    """The parts of a joint network in onnxruntime, with the joint network's inputs and outputs."""

    def __init__(self, query: Query, dequantised: str = "default") -> None:
        super().__init__(query.network, dequantised)
        assert query.joint is not None
        self.joint = query.joint
        made = {id(p): Runtime(p, dequantised) for p in self.joint.parts}
        self.parts = [made[id(p)] for p in self.joint.parts]

    def outputs(self, x: FloatArray) -> FloatArray:
        return self._joined(x, [part.outputs for part in self.parts])

    def single(self, x: FloatArray) -> FloatArray:
        return self._joined(x, [part.single for part in self.parts])

    def threaded(self, x: FloatArray) -> FloatArray:
        return self._joined(x, [part.threaded for part in self.parts])

    def rest(self) -> None:
        for part in self.parts:
            part.rest()

    def _joined(self, x: FloatArray, runs: Sequence[Any]) -> FloatArray:
        """Outputs of all parts in the order of their declarations, then the monomials, rounded once or twice."""
        linked = self.joint.linked(self._cast(x))
        ys = [run(linked[:, links]) for run, links in zip(runs, part_links(self.joint), strict=True)]
        y = np.concatenate(ys, axis=1)
        if not self.joint.monomials:
            return y
        with np.errstate(all="ignore"):
            wide = y.astype(np.float64)
            columns = [
                reduce(operator.mul, [linked[:, c].astype(np.float64) if c >= 0 else wide[:, -1 - c] for c in m])
                for m in self.joint.monomials
            ]
            return np.concatenate([y, np.stack(columns, axis=1).astype(self.dtype)], axis=1)


def part_links(joint: Joint) -> list[list[int]]:
    """For each part the linked inputs that are its flat input."""
    return [
        [joint.links[v.start + i] for v in joint.declared.of(k, True) for i in range(v.size)]
        for k in range(len(joint.parts))
    ]


def part_queries(query: Query) -> list[tuple[Query, list[int]]]:
    """A query for each model, on the boxes of the joint one, and the linked inputs that are its input."""
    assert query.joint is not None
    out = []
    boxes = [_linked_box(query.joint, case.box) for case in query.cases if not case.box.empty]
    for part, links in {
        id(p): (p, at) for p, at in zip(query.joint.parts, part_links(query.joint), strict=True)
    }.values():
        anything = Conjunction.build([({}, {}, Fraction(0), False)], part.input_size, part.output_size)
        cases = [Case(_part_box(box, links), (anything,)) for box in boxes]
        out.append((Query((part,), tuple(cases)), links))
    return out


def _linked_box(joint: Joint, box: Box) -> Box:
    """The box of linked inputs that contains what a box of free ones stands for, up to rounding."""
    if not joint.derived:
        return box
    targets = {d.target for d in joint.derived}
    sides = [
        tuple(Fraction(end) if i in targets else stated for i, (stated, end) in enumerate(zip(side, ends, strict=True)))
        for side, ends in zip((box.lower, box.upper), joint.linked_ends(box.lo, box.hi), strict=True)
    ]
    return Box(sides[0], sides[1], box.element_type, tuple(e for e in box.ends if e[0] not in targets))


def _part_box(box: Box, links: Sequence[int]) -> Box:
    at: dict[int, list[int]] = {}
    for i, k in enumerate(links):
        at.setdefault(k, []).append(i)
    ends = tuple((i, upper, end) for k, upper, end in box.ends for i in at.get(k, ()))
    return Box(tuple(box.lower[k] for k in links), tuple(box.upper[k] for k in links), box.element_type, ends)


# --- assertions ------------------------------------------------------------------------------------------------

_RELATIONS: dict[str, Any] = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt,
    "==": operator.eq, "=": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ARITHMETIC: dict[str, Any] = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def satisfied(assertions: Sequence[Formula], x: FloatArray, y: FloatArray) -> Fraction | None:
    """By how much the worst assertion holds at declared inputs x and outputs y (element-type values); None: one fails.

    What speaks of inputs alone has no margin.
    """
    worst: Fraction | None = None
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        return None
    judge = _Judge(x, y)
    with np.errstate(all="ignore"):
        for formula in assertions:
            margin = judge.margin(formula)
            if margin is None:
                return None
            if margin is not True and (worst is None or margin < worst):
                worst = margin  # type: ignore[assignment]
    return Fraction(0) if worst is None else worst


def value_at(atom: Compare, inputs: Mapping[int, Fraction]) -> Fraction:
    """Left minus right of a comparison of inputs at the declared ones, exactly."""
    judge = _Judge(inputs, {})
    left, right = (judge.value(t, Fraction, Fraction) for t in (atom.left, atom.right))
    return Fraction(left - right)


class _Judge:
    """Evaluates formulas at one point."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y = x, y

    def margin(self, formula: Formula) -> Fraction | bool | None:
        """None when it fails; True when it holds and has no margin; else by how much it holds."""
        if isinstance(formula, Compare):
            return self.compared(formula)
        margins = [self.margin(f) for f in formula.args]
        if formula.op == "and":
            if any(m is None for m in margins):
                return None
            numbers = [m for m in margins if m is not None and m is not True]
            return min(numbers) if numbers else True
        held = [m for m in margins if m is not None]
        if not held:
            return None
        return True if any(m is True for m in held) else max(held)

    def compared(self, atom: Compare) -> Fraction | bool | None:
        relation = _RELATIONS[atom.op]
        sides = atom.left, atom.right
        stored = [self.value(t, lambda v: v, float) for t in sides]
        if not all(np.isfinite(v) for v in stored) or not relation(*stored):
            return None
        by_inputs = not any(map(_has_outputs, sides))
        if by_inputs and (atom.op in ("==", "=") or not any(map(_calculates, sides))):
            return True
        if not relation(*(self.value(t, float, float) for t in sides)):
            return None
        left, right = (self.value(t, lambda v: Fraction(float(v)), Fraction) for t in sides)
        if not relation(left, right):
            return None
        if by_inputs:
            return True
        return Fraction(abs(left - right)) if atom.op not in ("==", "=") else Fraction(0)

    def value(self, term: Term, of_variable: Any, of_constant: Any) -> Any:
        if isinstance(term, Constant):
            return of_constant(term.value)
        if isinstance(term, Variable):
            return of_variable(self.x[term.index] if term.is_input else self.y[term.index])
        values = [self.value(a, of_variable, of_constant) for a in term.args]
        if term.op == "-" and len(values) == 1:
            return -values[0]
        return reduce(_ARITHMETIC[term.op], values)


def _has_outputs(term: Term) -> bool:
    if isinstance(term, Apply):
        return any(map(_has_outputs, term.args))
    return isinstance(term, Variable) and not term.is_input


def _calculates(term: Term) -> bool:
    return isinstance(term, Apply) and (len(term.args) > 1 or _calculates(term.args[0]))
