"""Inputs that a query derives from others: what its cases say of the inputs that the text speaks of.

The query's free inputs w are the text's linked inputs x but for the derived ones, where

    w_t = x_t - (sum c_i x_i + constant),    no x_i derived.

For every x there is one w, and back, whatever the coefficients: a row over w is a row over x, exactly. It is left to
see that w_t is in its place's range for all x that the text lets pass. Its equations are solved here by themselves:
with what each one leaves, a number of a known range, in the solution. Nothing is taken from how the query came about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from fractions import Fraction

from mucg4.check.vnnlib import ONE, ZERO, Refusal
from mucg4.model.joint import Derived
from mucg4.records import dataclass

MOST_TERMS = 1_000_000  # of all solutions; not measured

Form = dict[int, Fraction]  # coefficients: x_i is i, the value of the left side of equation d is -1 - d
Range = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class Given:
    """`derived[t]` are the coefficients and the constant of `w_t`'s definition."""

    derived: dict[int, tuple[Form, Fraction]] = field(default_factory=dict)

    @staticmethod
    def of(derived: Sequence[Derived]) -> Given:
        """`mucg4.check.joint` has seen that the numbers are finite and no derived input gives another."""
        return Given({d.target: ({i: Fraction(c) for i, c in d.terms}, Fraction(d.constant)) for d in derived})

    @property
    def spoken(self) -> set[int]:
        """All inputs that take part in some definition."""
        return {*self.derived, *(i for terms, _ in self.derived.values() for i in terms)}

    def over_linked(self, form: Form, constant: Fraction) -> tuple[Form, Fraction]:
        """An affine form of w as one of x."""
        out = dict(form)
        for t, (terms, rest) in self.derived.items():
            factor = form.get(t, ZERO)
            if factor:
                constant -= factor * rest
                for i, c in terms.items():
                    out[i] = out.get(i, ZERO) - factor * c
        return out, constant

    def solutions(self, equations: Mapping[int, Form]) -> dict[int, Form]:
        """x_t for derived t over other inputs and the values of equations, `d -> form of inputs`, by elimination.

        Raises `Refusal` where that takes too many terms.
        """
        last: dict[int, Form] = {}  # may speak of targets that come later
        count = 0
        for d, equation in equations.items():
            form = _put({**equation, -1 - d: -ONE}, last)
            count += len(form)
            target = next((i for i in form if i in self.derived), None)
            if target is not None:
                slope = form.pop(target)
                last[target] = {i: -c / slope for i, c in form.items()}
            if count > MOST_TERMS:
                raise Refusal("the equations of inputs have too many terms once they are solved")
        out: dict[int, Form] = {}
        for target, form in reversed(last.items()):
            out[target] = _put(form, out)
            count += len(out[target])
            if count > MOST_TERMS:
                raise Refusal("the equations of inputs have too many terms once they are solved")
        return out

    def remainder(self, t: int, solutions: Mapping[int, Form], ends: Callable[[int], Range | None]) -> Range:
        """The range of w_t: by the solution, or where something in it has no range by that of x_t itself.

        `ends` gives the ranges of inputs, and those of equations, which may have none.
        """
        terms, rest = self.derived[t]
        for form in (solutions.get(t), {t: ONE}):
            if form is None or (t not in form and any(i in self.derived for i in form)):
                continue
            total = dict(form)
            for i, c in terms.items():
                total[i] = total.get(i, ZERO) - c
            ranges = {i: ends(i) for i, c in total.items() if c}
            if all(r is not None for r in ranges.values()):
                both = [sorted((total[i] * r[0], total[i] * r[1])) for i, r in ranges.items() if r is not None]
                return sum((b[0] for b in both), -rest), sum((b[1] for b in both), -rest)
        raise AssertionError("an input has a range")


def _put(form: Form, known: Mapping[int, Form]) -> Form:
    """A form with solutions in the place of the inputs that they give, as long as there are such inputs."""
    while any(i in known for i in form):
        out: Form = {}
        for i, c in form.items():
            for j, d in known.get(i, {i: ONE}).items():
                out[j] = out.get(j, ZERO) + c * d
        form = {i: c for i, c in out.items() if c}
    return form
