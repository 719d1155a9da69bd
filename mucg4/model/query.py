"""The frozen problem: networks, input boxes, and the unsafe set; and the answers to it.

The unsafe set is a union of cases. A case is a box over all inputs and a disjunction of conjunctions
of linear constraints over inputs and outputs. The query is `sat` when some point of some case's box
makes all constraints of one of its conjunctions true, `unsat` when no such point exists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from mucg4.errors import InputError
from mucg4.model.decimals import Decimals
from mucg4.model.network import Network
from mucg4.ops.arrays import BoolArray, FloatArray
from mucg4.records import dataclass

if TYPE_CHECKING:
    from mucg4.model.joint import Joint

ELEMENTS = ("float16", "float32", "float64")  # types of inputs whose rounding is known here


def hull(bounds: Sequence[Fraction], sign: int, element_type: str) -> FloatArray:
    """float64 ends that contain each exact bound and what a runtime compares with (sign -1: lower, +1: upper).

    The bound of a text is read as the nearest double and then rounded to the element type; an end is the outermost
    of the exact number, the double and the rounded one, as the nearest double that is not inside. Bounds beyond the
    largest element-type number stay as they are: a runtime compares with infinity, and lets no finite input pass
    that the stated bound keeps out. Ends of subnormal numbers follow from IEEE rounding, those of -0.0 are those of 0.
    """
    near = nearest(bounds)
    with np.errstate(over="ignore", under="ignore"):
        rounded = near.astype(element_type).astype(np.float64)
    rounded = np.where(np.isfinite(rounded), rounded, near)
    out = np.minimum(near, rounded) if sign < 0 else np.maximum(near, rounded)
    if isinstance(bounds, Decimals):
        return np.where(bounds.outside(out, sign), np.nextafter(out, sign * np.inf), out) + 0.0
    for i in np.flatnonzero(out == near).tolist():  # else the rounded number is further out than half a double's step
        (p, q), bound = out[i].item().as_integer_ratio(), bounds[i]
        if (p * bound.denominator - bound.numerator * q) * sign < 0:
            out[i] = np.nextafter(out[i], sign * np.inf)
    return out + 0.0


def nearest(bounds: Sequence[Fraction]) -> FloatArray:
    """The nearest double of each number."""
    if isinstance(bounds, Decimals):
        return bounds.near
    return np.array([float(b) for b in bounds], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Box:
    """Exact input bounds as stated, one Fraction per flat input.

    `lo`/`hi` are float64 arrays of the hull of each stated bound and its rounding to `element_type`, the model's
    input type: the scorer compares x of that type with the rounded bound, so `unsat` is proved on this hull
    (interface 2.4). `ends` lists sides `(input, is upper, end)` that constraints with arithmetic take part in
    (`3 X_0 <= 0.3`): there the stated bound is the exact solution, and the end contains what passes when the
    constraint is evaluated in the element type (`mucg4.read.rounding`).
    """

    lower: Sequence[Fraction]
    upper: Sequence[Fraction]
    element_type: str = "float32"
    ends: tuple[tuple[int, bool, Fraction], ...] = ()

    def __post_init__(self) -> None:
        if self.element_type not in ELEMENTS:
            raise InputError(f"inputs of type {self.element_type} are not supported")

    @cached_property
    def lo(self) -> FloatArray:
        return self._side(self.lower, False)

    @cached_property
    def hi(self) -> FloatArray:
        return self._side(self.upper, True)

    def _side(self, bounds: Sequence[Fraction], upper: bool) -> FloatArray:
        sign = 1 if upper else -1
        out = hull(bounds, sign, self.element_type)
        for i, side, end in self.ends:
            if side == upper:
                out[i] = hull((end,), sign, "float64")[0]
        return out

    @cached_property
    def stated(self) -> tuple[FloatArray, FloatArray]:
        """The stated bounds as nearest float64: what a reader of the text compares an input with."""
        return nearest(self.lower), nearest(self.upper)

    @property
    def size(self) -> int:
        return len(self.lower)

    @cached_property
    def empty(self) -> bool:
        """True when some lower bound exceeds the upper one as stated AND as a runtime evaluates them."""
        return bool(np.any(self.lo > self.hi))


ExactRow = tuple[dict[int, Fraction], dict[int, Fraction], Fraction]  # inputs, outputs, constant


@dataclass(frozen=True, eq=False)
class Conjunction:
    """All of `x_coeffs @ x + y_coeffs @ y + constants <= 0` (strict where `strict`).

    There are two sets. The *stated* one is what the text says: `exact` has per constraint the exact
    `({input: c}, {output: c}, constant)` and `stated_strict (m,)` says which are strict. The witness gate and the
    hashes use it alone. The *proved* one contains it, and every point that passes the constraints when they are
    evaluated in the model's input type; whatever bounds, clips, prunes, proves or checks uses it alone. `proved`
    has its exact rows; `x_coeffs (m, inputs)`, `y_coeffs (m, outputs)`, `constants (m,)` are the nearest doubles of
    those (the rounding place accounts for the difference), and `strict (m,)` says which are strict.

    They differ in constraints that speak of inputs only. A strict bound of one input speaks of the end of the
    bound's hull and stays strict: an input at this end is neither below the exact bound nor, rounded, below the
    rounded one. (Ends of a box come from the tightest constraint, so an end that another constraint attains too is
    excluded when one that attains it is strict; one whose own end lies further out excludes nothing.) Constraints
    with arithmetic (factors, several inputs) are loosened by what evaluating them may be off
    (`mucg4.read.rounding`). The contract for outputs is real arithmetic: constraints of outputs alone are proved as
    stated. Constraints of inputs and outputs are loosened by the rounding of their input terms and constants; that is
    sound for `unsat`, since the stated set is still inside. What rounding does to an output, and to sums with it, is
    no part of the contract here.
    """

    x_coeffs: FloatArray
    y_coeffs: FloatArray
    constants: FloatArray
    strict: BoolArray
    exact: tuple[ExactRow, ...]
    stated_strict: BoolArray
    proved: tuple[ExactRow, ...]

    def __len__(self) -> int:
        return len(self.constants)

    @property
    def mixed(self) -> bool:
        """True when some constraint speaks of inputs."""
        return any(x for x, _, _ in self.exact)

    @property
    def stated_text(self) -> str:
        """The stated constraints in order, however they were written: equal for the same ones."""
        out = []
        for (cx, cy, c), s in zip(self.exact, self.stated_strict.tolist(), strict=True):
            sides = [sorted((i, str(v)) for i, v in side.items()) for side in (cx, cy)]
            out.append(repr((*sides, str(c), s)))
        return "".join(out)

    @property
    def name(self) -> str:
        """16 hexadecimal digits, equal for the same stated constraints: how stored proofs are told what they are of."""
        return hashlib.sha256(self.stated_text.encode()).hexdigest()[:16]

    @staticmethod
    def build(
        rows: list[tuple[dict[int, Fraction], dict[int, Fraction], Fraction, bool]],
        inputs: int,
        outputs: int,
        proved: list[tuple[dict[int, Fraction], dict[int, Fraction], Fraction, bool]] | None = None,
    ) -> Conjunction:
        """From exact rows `(input coefficients, output coefficients, constant, strict)`, each `<= 0` or `< 0`.

        `proved` are the rows of the proved set, one per stated row; without it they are the stated ones.
        """
        used = rows if proved is None else proved
        if any(cx for cx, *_ in used):
            xs = np.zeros((len(rows), inputs))
        else:  # a thousand such rows of an image must not fill the memory
            xs = np.broadcast_to(np.zeros(1), (len(rows), inputs))
        ys = np.zeros((len(rows), outputs))
        for r, (cx, cy, _, _) in enumerate(used):
            for i, v in cx.items():
                xs[r, i] = float(v)
            for i, v in cy.items():
                ys[r, i] = float(v)
        constants = np.array([float(c) for _, _, c, _ in used], dtype=np.float64)
        strict, stated = (np.array([s for _, _, _, s in some], dtype=bool) for some in (used, rows))
        exact, kept = (tuple((cx, cy, c) for cx, cy, c, _ in some) for some in (rows, used))
        return Conjunction(xs, ys, constants, strict, exact, stated, kept)


@dataclass(frozen=True, eq=False)
class Case:
    """One box and the conjunctions that are unsafe on it."""

    box: Box
    conjunctions: tuple[Conjunction, ...]


# of cases, which conjunctions hold nowhere
Impossible = Callable[[Sequence[Case]], Sequence[BoolArray]]
# the cases of a query that leave no disjunction out, None where they are too many (`mucg4.read.choices`)
Finer = Callable[[Impossible], tuple[Case, ...] | None]


@dataclass(frozen=True, eq=False)
class Query:
    """The problem: one canonical network, and the cases over its inputs and outputs.

    For a VNN-LIB 2.0 text `joint` tells how that network is made of the declared ones (`mucg4.model.joint`).
    """

    networks: tuple[Network, ...]
    cases: tuple[Case, ...]
    names: tuple[str, ...] = ("N",)
    source_hash: str = field(default="")
    text: str = field(default="", repr=False)  # of the property, for those who read it again
    joint: Joint | None = field(default=None, repr=False)
    finer: Finer | None = field(default=None, repr=False)  # where disjunctions are left out of the cases
    limited: str = ""  # why the cases are not all that the property asks about: then they can only show `sat`

    def __post_init__(self) -> None:
        n = sum(net.input_size for net in self.networks)
        m = sum(net.output_size for net in self.networks)
        types = {net.element_type for net in self.networks}
        for case in self.cases:
            if case.box.size != n:
                raise InputError(f"the property declares {case.box.size} inputs but the network has {n}")
            # what is loosened for float32 is loose enough for float64, but not the other way round
            if not types <= {case.box.element_type, "float64" if case.box.element_type == "float32" else ""}:
                raise InputError(f"the property was read for {case.box.element_type} inputs, the network has others")
            for conj in case.conjunctions:
                if conj.y_coeffs.shape[1] != m or conj.x_coeffs.shape[1] != n:
                    raise InputError(f"the property speaks of {conj.y_coeffs.shape[1]} outputs, the network has {m}")

    @property
    def network(self) -> Network:
        """The only network of a single-network query."""
        if len(self.networks) != 1:
            raise InputError(f"this query has {len(self.networks)} networks; only one can be solved so far")
        return self.networks[0]

    @property
    def executable(self) -> bool:
        """True when onnxruntime can run what the query speaks of."""
        return all(p.model_bytes for p in (self.networks if self.joint is None else self.joint.parts))

    @cached_property
    def property_hash(self) -> str:
        """Hex SHA-256 of the cases as stated (boxes and constraints), however the text was written."""
        h = hashlib.sha256()
        for case in self.cases:
            sides = (
                b.texts() if isinstance(b, Decimals) else list(map(str, b)) for b in (case.box.lower, case.box.upper)
            )
            h.update(repr(("box", *sides)).encode())
            h.update(self.unsafe_hash_of(case).encode())
        return h.hexdigest()

    @staticmethod
    def unsafe_hash_of(case: Case) -> str:
        """Hex SHA-256 of a case's conjunctions without its box: equal for the same unsafe set."""
        h = hashlib.sha256()
        for conj in case.conjunctions:
            h.update(conj.stated_text.encode() + b"or")
        return h.hexdigest()

    @cached_property
    def conjunction_names(self) -> tuple[tuple[str, ...], ...]:
        """The names of each case's conjunctions."""
        return tuple(tuple(c.name for c in case.conjunctions) for case in self.cases)

    @property
    def key(self) -> str:
        """Identity of network(s) and property together."""
        parts = [*(n.fingerprint for n in self.networks), self.property_hash]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Witness:
    """An input that violates the property. Only `mucg4.gate.witness.replay_witness` builds it.

    `x` holds the float32 (or float64) input values handed to onnxruntime, flat; `y` the outputs that
    onnxruntime returned, flat. Tolerance zero: see design section 3. For a query with a `Joint`, x holds the free
    inputs and y the joint network's outputs; `values` then has the declared inputs and outputs, flat.
    """

    x: FloatArray
    y: FloatArray
    values: tuple[FloatArray, FloatArray] | None = None
