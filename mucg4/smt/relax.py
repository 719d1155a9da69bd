"""Which sets of phases contradict: HiGHS proposes, exact rational arithmetic decides.

Under some phase literals the network's values obey linear rows (`mucg4.smt.encode`): the unsafe constraints, and for
each open neuron its two lower lines and one upper line, which is the chord on the neuron's range or, for a neuron with
a literal, the line of its phase. Ranges are the checker's own bounds under the same literals (outward rounded), so they
shrink with every literal.

A float LP proposes whether the rows contradict each other and with which multipliers; the combination is then computed
in whole numbers (`mucg4.smt.farkas`), and only a contradiction there counts. Where that falls short, z3 decides the
rows that the LP blamed, with literals as assumptions; and where all phases are chosen, the system is exact, and z3
decides it whole, so nothing is lost by rounding. z3 alone would be exact, too, but pivots on long rationals: measured
on 64 inputs and 26 open neurons, 5 s a question, against 1 ms for the combination.

A core is a set of literals that is refuted so. It is made irreducible by deletion: a literal goes when the others,
with ranges derived from them alone, still contradict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from mucg4.check.enclose import Enclosure
from mucg4.errors import BudgetError
from mucg4.limits.budget import Budget
from mucg4.ops.arrays import FloatArray
from mucg4.program import Optimum, least_violation
from mucg4.smt.encode import Atom, Encoding, Literal, Row, chord
from mucg4.smt.farkas import Combinations, whole_shares

LONGEST_CHECK = 3600.0  # seconds; z3 takes a finite number; given
GAP = 1e-7  # an LP violation below this is left to more splits and, in the end, to z3; not measured

Core = frozenset[Literal]


class Lines(NamedTuple):
    """Upper lines of the open outputs `(P,)`: slopes, and offsets to the nearest; both ends of the arguments' ranges.

    What is exact about them is that a line with this slope lies above the output on this range with `upper_offset`.
    """

    slope: FloatArray
    offset: FloatArray
    z_low: FloatArray
    z_high: FloatArray


class _Tried(NamedTuple):
    """Literals, the upper lines under them (None where the ranges contradict already), and their LP."""

    literals: list[Literal]
    lines: Lines | None
    optimum: Optimum | None

    @property
    def infeasible(self) -> bool:
        return self.lines is None or (self.optimum is not None and self.optimum.value > GAP)


class SmtRelaxation:
    """One box and one conjunction. `exact` counts what z3 was asked.

    `optimum` is the last LP of `refute` on all of its literals, `lines` are its upper lines.
    """

    def __init__(
        self,
        encoding: Encoding,
        enclosure: Enclosure,
        constraints: Sequence[Row],
        strict: Sequence[bool],
        budget: Budget,
    ) -> None:
        self.encoding, self.enclosure, self.budget = encoding, enclosure, budget
        self.exact = 0
        self.constraints, self.strict = list(constraints), list(strict)
        self.inputs = sum(a.argument is None for a in encoding.atoms)
        self.open = encoding.atoms[self.inputs :]  # the outputs of open neurons, in order
        budget.poll()
        arguments = [a.argument for a in self.open if a.argument is not None]
        self.combinations = Combinations(
            [(r.coeffs, r.constant) for r in (*self.constraints, *arguments)],
            [(a.low, a.high) for a in encoding.atoms],
        )
        self.z = self._floats(arguments)
        self.base = self._base()
        infinite = np.full(len(self.open), np.inf)
        inputs = encoding.atoms[: self.inputs]
        self.low = np.r_[[float(a.low) for a in inputs], [-np.inf if a.left and a.right else 0.0 for a in self.open]]
        self.high = np.r_[[float(a.high) for a in inputs], infinite]
        self.left, self.right, self.z_low, self.z_high = (
            np.array([float(getattr(a, f)) for a in self.open]) for f in ("left", "right", "z_low", "z_high")
        )
        self.owners = [a.literal for a in self.open if a.literal is not None]
        self.root = self._chords(self.z_low, self.z_high)
        self.optimum: Optimum | None = None
        self.lines: Lines | None = None
        self._variables: list[Any] = []

    def _floats(self, rows: Sequence[Row]) -> FloatArray:
        """(rows, atoms + 1) coefficients and constant."""
        out = np.zeros((len(rows), len(self.encoding.atoms) + 1))
        for i, row in enumerate(rows):
            for a, c in row.coeffs.items():
                out[i, a] = float(c)
            out[i, -1] = float(row.constant)
        return out

    def _base(self) -> FloatArray:
        """Constraints, then per open output three rows: both lower lines, and a place for the upper one."""
        lines = np.zeros((len(self.open), 3, len(self.encoding.atoms) + 1))
        for p, atom in enumerate(self.open):
            for side, slope in enumerate((atom.left, atom.right)):
                if slope:  # a line that is 0 is a bound of the output itself
                    lines[p, side] = float(slope) * self.z[p]
                    lines[p, side, self.inputs + p] -= 1.0
        return np.concatenate([self._floats(self.constraints), lines.reshape(-1, lines.shape[2])])

    def upper_row(self, p: int) -> int:
        """The position of the upper line of open output p among the rows."""
        return len(self.constraints) + 3 * p + 2

    # ---- refutation ----------------------------------------------------------------------------

    def refute(self, literals: Iterable[Literal], minimise: bool = True) -> Core | None:
        """A subset of the literals that is infeasible in exact arithmetic, or None; irreducible where `minimise`.

        None says "feasible" only when all phases are chosen; before, it may mean "too close to call".
        Raises `BudgetError` when z3 was stopped.
        """
        whole = self._try(sorted(literals))
        self.optimum, self.lines = whole.optimum, whole.lines
        if whole.infeasible:
            small = self._smaller(whole, minimise)
            for tried in (small, whole) if small is not whole else (whole,):
                if self._contradicts(tried):
                    return frozenset(tried.literals)
            core = self.decide(whole.literals, self._support(whole))
            return self.decide(whole.literals) if core is None else core
        if len(whole.literals) == len(self.encoding.unstable):
            return self.decide(whole.literals)
        return None

    def _try(self, literals: list[Literal]) -> _Tried:
        """Bounds under the literals, and the LP."""
        self.budget.poll()
        lines = self._lines(literals)
        if lines is None:
            return _Tried(literals, None, None)
        table = self._table(lines)
        soft = np.ones(len(table), dtype=bool)
        optimum = least_violation(table[:, :-1], table[:, -1], soft, self.low, self.high, accurate=True)
        return _Tried(literals, lines, optimum)

    def _table(self, lines: Lines) -> FloatArray:
        table: FloatArray = self.base.copy()
        places = np.arange(len(self.open))
        upper = -lines.slope[:, None] * self.z
        upper[:, -1] -= lines.offset
        upper[places, self.inputs + places] += 1.0
        table[len(self.constraints) + 2 :: 3] = upper
        return table

    def _chords(self, z_low: FloatArray, z_high: FloatArray) -> Lines:
        """Chords on ranges `(P,)`; the piece itself where a range has one sign."""
        open_ = (z_low < 0) & (z_high > 0)
        width = np.where(open_, z_high - z_low, 1.0)
        slope = np.where(open_, self.left + (self.right - self.left) * (z_high / width), self.left)
        slope = np.where(z_low >= 0, self.right, slope)
        return Lines(slope, np.where(open_, (self.left - slope) * z_low, 0.0), z_low, z_high)

    def _lines(self, literals: Sequence[Literal]) -> Lines | None:
        """Upper lines of all open outputs under the literals; None where the ranges leave no point."""
        if not literals:
            return self.root
        slot, box = self.enclosure.slot, self.encoding.box
        low, up = (np.full((1, self.enclosure.width), side) for side in (-np.inf, np.inf))
        ends = (box[0][None].copy(), box[1][None].copy())
        for k, s in slot.items():
            if k in self.encoding.known:
                low[0, s], up[0, s] = self.encoding.known[k]
        for k, j, sign in literals:
            lower, upper = ends if k == 0 else (low[:, slot[k]], up[:, slot[k]])
            side, best = (lower, max) if sign > 0 else (upper, min)
            side[0, j] = best(side[0, j], 0.0)
        yes = np.array([True])
        with np.errstate(all="ignore"):
            _, empty = self.enclosure.sweep(ends, low, up, yes, ~yes)
        if empty[0]:
            return None
        found = [
            (ends[0][0, j], ends[1][0, j]) if k == 0 else (low[0, slot[k]][j], up[0, slot[k]][j])
            for k, j in self.owners
        ]
        lower, upper = np.array(found).T
        z_low, z_high = np.maximum(lower, self.z_low), np.minimum(upper, self.z_high)
        chosen = {(k, j): sign for k, j, sign in literals}
        signs = np.array([chosen.get(key, 0) for key in self.owners])  # a literal's neuron has its phase's line
        return self._chords(np.where(signs > 0, 0.0, z_low), np.where(signs < 0, np.minimum(z_high, 0.0), z_high))

    def _smaller(self, whole: _Tried, minimise: bool) -> _Tried:
        """Deletion: what the LP does not blame goes first, all at once, then each literal is tried."""
        last = whole
        if whole.lines is not None:
            blamed = self._blamed(whole)
            if len(blamed) < len(whole.literals):
                tried = self._try(blamed)
                last = tried if tried.infeasible else last
        for literal in reversed(last.literals) if minimise else ():
            if literal in last.literals:
                tried = self._try([lit for lit in last.literals if lit != literal])
                last = tried if tried.infeasible else last
        return last

    def _blamed(self, tried: _Tried) -> list[Literal]:
        """The literals whose neuron's upper line carries a multiplier."""
        assert tried.optimum is not None
        upper = tried.optimum.multipliers[len(self.constraints) + 2 :: 3] > 0
        keys = {a.literal for a, used in zip(self.open, upper.tolist(), strict=True) if used}
        return [lit for lit in tried.literals if lit[:2] in keys]

    def _contradicts(self, tried: _Tried) -> bool:
        """Whether the rows contradict each other in exact arithmetic, by the LP's multipliers."""
        if tried.lines is None:  # outward rounded bounds say so
            return True
        assert tried.optimum is not None
        shares, m = whole_shares(tried.optimum.multipliers), len(self.constraints)
        rows = {k: v for k, v in enumerate(shares[:m]) if v}
        strict = any(self.strict[k] for k in rows)
        atoms: dict[int, Fraction] = {}
        constant = Fraction(0)
        for p, atom in enumerate(self.open):
            left, right, upper = shares[m + 3 * p : m + 3 * p + 3]
            slope = Fraction(float(tried.lines.slope[p]))
            on_z = left * atom.left + right * atom.right - upper * slope
            if on_z:
                rows[m + p] = on_z
            if upper != left + right:
                atoms[self.inputs + p] = upper - left - right
            constant -= upper * self._offset(atom, slope, tried.lines, p)
        least = self.combinations.least(rows, atoms, constant)
        return least > 0 or (least == 0 and strict)

    @staticmethod
    def _offset(atom: Atom, slope: Fraction, lines: Lines, p: int) -> Fraction:
        """The least offset with which a line of this slope lies above the output on its range."""
        z_low, z_high = (Fraction(float(side[p])) for side in (lines.z_low, lines.z_high))
        ends = [f * z - slope * z for f in (atom.left, atom.right) for z in (z_low, z_high)]
        low, high = max(ends[0], ends[2]), max(ends[1], ends[3])
        return max(low, high)

    # ---- z3 ------------------------------------------------------------------------------------

    def _support(self, tried: _Tried) -> list[int]:
        """The open outputs of which a line carries a multiplier."""
        assert tried.optimum is not None
        used = (tried.optimum.multipliers > 0)[len(self.constraints) :].reshape(-1, 3).any(axis=1)
        return [int(p) for p in np.flatnonzero(used)]

    def decide(self, literals: Sequence[Literal], outputs: Sequence[int] | None = None) -> Core | None:
        """z3 on all constraints and the lines of the given open outputs (None: all), on their ranges in the whole box,
        under the literals as assumptions: an unsat core, or None.

        After None for all of them, `self.optimum.point` holds the feasible point found.
        """
        import z3

        self.budget.poll()
        solver = z3.SolverFor("QF_LRA")
        solver.set("timeout", max(1, int(1000 * min(self.budget.left(), LONGEST_CHECK))))
        terms = self._terms()
        for v, atom in zip(terms, self.encoding.atoms, strict=True):
            if atom.argument is None:
                solver.add(v >= _number(atom.low), v <= _number(atom.high))
        for row, strict in zip(self.constraints, self.strict, strict=True):
            left = self._expression(row)
            solver.add(left < 0 if strict else left <= 0)
        chosen = range(len(self.open)) if outputs is None else outputs
        switches = {z3.Bool(f"p{i}"): lit for i, lit in enumerate(literals)}
        names = {lit[:2]: (switch, lit[2]) for switch, lit in switches.items()}
        for p in chosen:
            atom, h = self.open[p], terms[self.inputs + p]
            assert atom.argument is not None and atom.literal is not None
            z, (slope, offset) = self._expression(atom.argument), chord(atom)
            left, right = _number(atom.left) * z, _number(atom.right) * z
            solver.add(h >= left, h >= right, h <= _number(slope) * z + _number(offset))
            if atom.literal in names:  # with h >= left z, h <= right z says z >= 0
                switch, sign = names[atom.literal]
                solver.add(z3.Implies(switch, h <= (right if sign > 0 else left)))
        self.exact += 1
        answer = solver.check(*switches)
        if answer == z3.unsat:
            core = {str(v) for v in solver.unsat_core()}
            return frozenset(lit for switch, lit in switches.items() if str(switch) in core)
        if answer == z3.unknown:
            self.budget.poll()
            reason = solver.reason_unknown()
            raise BudgetError("timeout" if reason in ("timeout", "canceled") else f"z3 gave up: {reason}")
        if outputs is None:
            model = solver.model()
            values = [model.eval(v, model_completion=True).as_fraction() for v in terms]
            point = np.array([float(v) for v in values])
            self.optimum = Optimum(0.0, point, np.zeros(len(self.base)))
        return None

    def _terms(self) -> list[Any]:
        import z3

        if not self._variables:
            self._variables = [z3.Real(f"v{a}") for a in range(len(self.encoding.atoms))]
        return self._variables

    def _expression(self, row: Row) -> Any:
        import z3

        terms = self._terms()
        return z3.Sum([*(_number(c) * terms[a] for a, c in row.coeffs.items()), _number(row.constant)])

    # ---- points --------------------------------------------------------------------------------

    def arguments(self, point: FloatArray) -> FloatArray:
        """The open outputs' arguments `(P,)` at a point of the LP."""
        return np.asarray(self.z[:, :-1] @ point + self.z[:, -1])

    def deepest(self, literals: Sequence[Literal]) -> FloatArray | None:
        """The input that violates the property most (in floats) where all phases are as given, or None."""
        signs = {(k, j): sign for k, j, sign in literals}
        slope = np.where([signs[key] > 0 for key in self.owners], self.right, self.left)
        lines = self.root._replace(slope=slope, offset=np.zeros(len(slope)))
        table = self._table(lines)
        soft = np.arange(len(table)) < len(self.strict)
        optimum = least_violation(table[:, :-1], table[:, -1], soft, self.low, self.high, accurate=True)
        return None if optimum is None else optimum.point


def _number(value: Fraction) -> Any:
    import z3

    return z3.RealVal(f"{value.numerator}/{value.denominator}")
