"""Which sets of phases contradict: HiGHS proposes, z3 decides in exact rational arithmetic.

The rows of the relaxation (`mucg4.smt.encode`) under some phase literals are a linear system. A float
LP proposes whether it is infeasible and which rows and literals are to blame; the blamed rows go to z3
with the blamed literals as assumptions, and only z3's `unsat` counts. Its unsat core is the answer. Where the
LP proposes nothing and every phase is chosen, z3 decides the whole system, so nothing is lost by rounding.

Handing z3 the blamed rows instead of the whole system is what makes the engine usable: exact pivoting on
51 open neurons takes 0.3 s for the blamed rows and 1-15 s for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from mucg4.errors import BudgetError
from mucg4.limits.budget import Budget
from mucg4.ops.arrays import FloatArray
from mucg4.program import Optimum, least_violation
from mucg4.smt.encode import Encoding, Literal, Row, chord

LONGEST_CHECK = 3600.0  # seconds; z3 takes a finite number; given
GAP = 1e-7  # an LP violation below this is left to more splits and, in the end, to z3; not measured

Core = frozenset[Literal]


class SmtRelaxation:
    """One box and one conjunction. `checks` counts z3 calls; `optimum` is the last LP of `refute`."""

    def __init__(self, encoding: Encoding, constraints: Sequence[Row], strict: Sequence[bool], budget: Budget) -> None:
        self.encoding, self.budget = encoding, budget
        self.checks = 0
        self.rows: list[Row] = list(constraints)
        self.strict = list(strict)
        self.chords: dict[tuple[int, int], list[int]] = {}  # neuron -> positions of its upper lines in `rows`
        self.phases: dict[Literal, list[Row]] = {}
        for key, atoms in encoding.unstable.items():
            budget.poll()
            self._relax(key, atoms)
        self.base = self._floats(self.rows)
        self.phase_floats = {lit: self._floats(rows) for lit, rows in self.phases.items()}
        infinite = float("inf")
        inputs = [a for a in encoding.atoms if a.argument is None]
        free = len(encoding.atoms) - len(inputs)
        self.low = np.array([float(a.low) for a in inputs] + [-infinite] * free)
        self.high = np.array([float(a.high) for a in inputs] + [infinite] * free)
        self.optimum: Optimum | None = None
        self._variables: list[Any] = []
        self._formulas: dict[int | Literal, Any] = {}

    def _relax(self, key: tuple[int, int], atoms: Sequence[int]) -> None:
        z = self.encoding.argument_of(key)
        active: list[Row] = []
        inactive: list[Row] = []
        self.chords[key] = []
        for a in atoms:
            atom = self.encoding.atoms[a]
            slope, offset = chord(atom)
            self.rows += [_line(z, atom.left, a, -1), _line(z, atom.right, a, -1)]
            self.chords[key].append(len(self.rows))
            upper = _line(z, slope, a, 1)
            self.rows.append(Row(upper.coeffs, upper.constant - offset))
            active.append(_line(z, atom.right, a, 1))  # with h >= left z this says z >= 0
            inactive.append(_line(z, atom.left, a, 1))
        node, neuron = key
        self.phases[node, neuron, 1], self.phases[node, neuron, -1] = active, inactive

    def _floats(self, rows: Sequence[Row]) -> FloatArray:
        """(rows, atoms + 1) coefficients and constant."""
        out = np.zeros((len(rows), len(self.encoding.atoms) + 1))
        for i, row in enumerate(rows):
            for a, c in row.coeffs.items():
                out[i, a] = float(c)
            out[i, -1] = float(row.constant)
        return out

    # ---- refutation ----------------------------------------------------------------------------

    def refute(self, literals: Iterable[Literal]) -> Core | None:
        """A subset of the literals that z3 found infeasible, irreducible up to rounding of the LP; or None.

        None says "feasible" only when all phases are chosen; before, it may mean "too close to call".
        Raises `BudgetError` when z3 was stopped.
        """
        chosen = sorted(literals)
        self.optimum = self._program(chosen)
        if self.optimum is not None and self.optimum.value > GAP:
            blamed = self._blamed(chosen, self.optimum)
            small, rows = self._delete(*blamed)
            for part, support in ((small, rows), blamed):
                core = self.decide(part, support)
                if core is not None:
                    return core
            return self.decide(chosen)
        if len(chosen) == len(self.encoding.unstable):
            return self.decide(chosen)
        return None

    def _program(self, chosen: Sequence[Literal]) -> Optimum | None:
        self.budget.poll()
        table = np.concatenate([self.base, *(self.phase_floats[lit] for lit in chosen)])
        soft = np.ones(len(table), dtype=bool)
        return least_violation(table[:, :-1], table[:, -1], soft, self.low, self.high, accurate=True)

    def _blamed(self, chosen: Sequence[Literal], optimum: Optimum) -> tuple[list[Literal], list[int]]:
        """The literals and the positions in `rows` that carry a multiplier."""
        big = optimum.multipliers > 0
        at, blamed = len(self.rows), []
        for lit in chosen:
            size = len(self.phases[lit])
            if np.any(big[at : at + size]):
                blamed.append(lit)
            at += size
        return blamed, np.flatnonzero(big[: len(self.rows)]).tolist()

    def _delete(self, core: list[Literal], rows: list[int]) -> tuple[list[Literal], list[int]]:
        """Deletion to an irreducible core; every LP that stays infeasible may drop several literals at once."""
        needed: list[Literal] = []
        rest = list(core)
        while rest:
            tried = rest.pop()
            optimum = self._program([*needed, *rest])
            if optimum is None or optimum.value <= GAP:
                needed.append(tried)
                continue
            kept, rows = self._blamed([*needed, *rest], optimum)
            # a needed literal is in every core; one that lost its multiplier to rounding stays in
            rest = [lit for lit in rest if lit in kept]
        return sorted(needed), rows

    # ---- z3 ------------------------------------------------------------------------------------

    def decide(self, literals: Sequence[Literal], rows: Sequence[int] | None = None) -> Core | None:
        """z3 on the given rows (None: all) under the literals as assumptions: an unsat core, or None.

        After None for all rows, `self.optimum.point` holds the feasible point found.
        """
        import z3

        self.budget.poll()
        solver = z3.SolverFor("QF_LRA")
        solver.set("timeout", max(1, int(1000 * min(self.budget.left(), LONGEST_CHECK))))
        terms = self._terms()
        for v, atom in zip(terms, self.encoding.atoms, strict=True):
            if atom.argument is None:
                solver.add(v >= _number(atom.low), v <= _number(atom.high))
        for k in range(len(self.rows)) if rows is None else rows:
            solver.add(self._formula(k))
        switches = {z3.Bool(f"p{i}"): lit for i, lit in enumerate(literals)}
        for switch, lit in switches.items():
            solver.add(z3.Implies(switch, self._formula(lit)))
        self.checks += 1
        answer = solver.check(*switches)
        if answer == z3.unsat:
            core = {str(v) for v in solver.unsat_core()}
            return frozenset(lit for switch, lit in switches.items() if str(switch) in core)
        if answer == z3.unknown:
            self.budget.poll()
            reason = solver.reason_unknown()
            raise BudgetError("timeout" if reason in ("timeout", "canceled") else f"z3 gave up: {reason}")
        if rows is None:
            model = solver.model()
            values = [model.eval(v, model_completion=True).as_fraction() for v in terms]
            point = np.array([float(v) for v in values])
            self.optimum = Optimum(0.0, point, np.zeros(len(self.rows)))
        return None

    def _terms(self) -> list[Any]:
        import z3

        if not self._variables:
            self._variables = [z3.Real(f"v{a}") for a in range(len(self.encoding.atoms))]
        return self._variables

    def _formula(self, what: int | Literal) -> Any:
        """The z3 formula of a row (by position) or of a phase; made once."""
        import z3

        if what not in self._formulas:
            if isinstance(what, int):
                left = self._expression(self.rows[what])
                strict = what < len(self.strict) and self.strict[what]
                self._formulas[what] = left < 0 if strict else left <= 0
            else:
                self._formulas[what] = z3.And([self._expression(row) <= 0 for row in self.phases[what]])
        return self._formulas[what]

    def _expression(self, row: Row) -> Any:
        import z3

        terms = self._terms()
        return z3.Sum([*(_number(c) * terms[a] for a, c in row.coeffs.items()), _number(row.constant)])

    # ---- points --------------------------------------------------------------------------------

    def deepest(self, literals: Sequence[Literal]) -> FloatArray | None:
        """The input that violates the property most (in floats) where all phases are as given, or None."""
        table = np.concatenate([self.base, *(self.phase_floats[lit] for lit in literals)])
        soft = np.arange(len(table)) < len(self.strict)
        optimum = least_violation(table[:, :-1], table[:, -1], soft, self.low, self.high, accurate=True)
        return None if optimum is None else optimum.point


def _line(z: Row, slope: Fraction, atom: int, sign: int) -> Row:
    """`sign * (h - slope * z)`."""
    coeffs = {a: -sign * slope * c for a, c in z.coeffs.items() if slope}
    coeffs[atom] = coeffs.get(atom, Fraction(0)) + sign
    return Row(coeffs, -sign * slope * z.constant)


def _number(value: Fraction) -> Any:
    import z3

    return z3.RealVal(f"{value.numerator}/{value.denominator}")
