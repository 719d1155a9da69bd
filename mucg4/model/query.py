"""The frozen problem: networks, input boxes, and the unsafe set; and the answers to it.

The unsafe set is a union of cases. A case is a box over all inputs and a disjunction of conjunctions
of linear constraints over inputs and outputs. The query is `sat` when some point of some case's box
makes all constraints of one of its conjunctions true, `unsat` when no such point exists.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np

from mucg4.errors import InputError
from mucg4.model.network import Network
from mucg4.ops.base import Array


def _hull(bounds: tuple[Fraction, ...], sign: int) -> Array:
    """float64 bounds that contain the exact bound and its float32 rounding (sign -1: lower, +1: upper)."""
    out = np.array([float(b) for b in bounds], dtype=np.float64)
    for i in np.flatnonzero([Fraction(v) != b for v, b in zip(out.tolist(), bounds, strict=True)]):
        out[i] = np.nextafter(out[i], sign * np.inf)
    with np.errstate(over="ignore"):
        rounded = np.array([float(b) for b in bounds]).astype(np.float32).astype(np.float64)
    rounded = np.where(np.isfinite(rounded), rounded, out)
    return np.minimum(out, rounded) if sign < 0 else np.maximum(out, rounded)


@dataclass(frozen=True, eq=False)
class Box:
    """Exact input bounds as stated, one Fraction per flat input.

    `lo`/`hi` are float64 arrays of the hull of each stated bound and its float32 rounding: the scorer
    compares float32(x) with float32(bound), so `unsat` is proved on this hull (interface 2.4).
    """

    lower: tuple[Fraction, ...]
    upper: tuple[Fraction, ...]

    @cached_property
    def lo(self) -> Array:
        return _hull(self.lower, -1)

    @cached_property
    def hi(self) -> Array:
        return _hull(self.upper, +1)

    @cached_property
    def stated(self) -> tuple[Array, Array]:
        """The stated bounds as nearest float64: what a reader of the text compares an input with."""
        return np.array([float(b) for b in self.lower]), np.array([float(b) for b in self.upper])

    @property
    def size(self) -> int:
        return len(self.lower)

    @cached_property
    def empty(self) -> bool:
        """True when some stated lower bound exceeds the upper one AND their float32 roundings do too."""
        return bool(np.any(self.lo > self.hi))


@dataclass(frozen=True, eq=False)
class Conjunction:
    """All of `x_coeffs @ x + y_coeffs @ y + constants <= 0` (strict where `strict`).

    `x_coeffs (m, inputs)`, `y_coeffs (m, outputs)`, `constants (m,)` are float64, each the nearest
    double of the stated exact number; the rounding place accounts for the difference. `exact` keeps
    per constraint the exact `({input: c}, {output: c}, constant)` for the witness gate, SMT and checker.
    """

    x_coeffs: Array
    y_coeffs: Array
    constants: Array
    strict: Array
    exact: tuple[tuple[dict[int, Fraction], dict[int, Fraction], Fraction], ...]

    def __len__(self) -> int:
        return len(self.constants)

    @property
    def mixed(self) -> bool:
        """True when some constraint speaks of inputs."""
        return any(x for x, _, _ in self.exact)

    @staticmethod
    def build(
        rows: list[tuple[dict[int, Fraction], dict[int, Fraction], Fraction, bool]], inputs: int, outputs: int
    ) -> Conjunction:
        """From exact rows `(input coefficients, output coefficients, constant, strict)`, each `<= 0` or `< 0`."""
        if any(cx for cx, *_ in rows):
            xs = np.zeros((len(rows), inputs))
        else:  # a thousand such rows of an image must not fill the memory
            xs = np.broadcast_to(np.zeros(1), (len(rows), inputs))
        ys = np.zeros((len(rows), outputs))
        for r, (cx, cy, _, _) in enumerate(rows):
            for i, v in cx.items():
                xs[r, i] = float(v)
            for i, v in cy.items():
                ys[r, i] = float(v)
        constants = np.array([float(c) for _, _, c, _ in rows], dtype=np.float64)
        strict = np.array([s for _, _, _, s in rows], dtype=bool)
        return Conjunction(xs, ys, constants, strict, tuple((cx, cy, c) for cx, cy, c, _ in rows))


@dataclass(frozen=True, eq=False)
class Case:
    """One box and the conjunctions that are unsafe on it."""

    box: Box
    conjunctions: tuple[Conjunction, ...]


@dataclass(frozen=True, eq=False)
class Query:
    """The problem. Inputs (outputs) of several networks are concatenated in declaration order.

    This release solves queries of one network; readers of two-network queries fill `networks` with
    more and `names` with their declared names.
    """

    networks: tuple[Network, ...]
    cases: tuple[Case, ...]
    names: tuple[str, ...] = ("N",)
    source_hash: str = field(default="")
    text: str = field(default="", repr=False)  # of the property, for those who read it again

    def __post_init__(self) -> None:
        n = sum(net.input_size for net in self.networks)
        m = sum(net.output_size for net in self.networks)
        for case in self.cases:
            if case.box.size != n:
                raise InputError(f"the property declares {case.box.size} inputs but the network has {n}")
            for conj in case.conjunctions:
                if conj.y_coeffs.shape[1] != m or conj.x_coeffs.shape[1] != n:
                    raise InputError(f"the property speaks of {conj.y_coeffs.shape[1]} outputs, the network has {m}")

    @property
    def network(self) -> Network:
        """The only network of a single-network query."""
        if len(self.networks) != 1:
            raise InputError(f"this query has {len(self.networks)} networks; only one can be solved so far")
        return self.networks[0]

    @cached_property
    def property_hash(self) -> str:
        """Hex SHA-256 of the exact cases (boxes and constraints), however the text was written."""
        h = hashlib.sha256()
        for case in self.cases:
            h.update(repr(("box", [str(b) for b in case.box.lower], [str(b) for b in case.box.upper])).encode())
            h.update(self.unsafe_hash_of(case).encode())
        return h.hexdigest()

    @staticmethod
    def unsafe_hash_of(case: Case) -> str:
        """Hex SHA-256 of a case's conjunctions without its box: equal for the same unsafe set."""
        h = hashlib.sha256()
        for conj in case.conjunctions:
            for (cx, cy, c), s in zip(conj.exact, conj.strict.tolist(), strict=True):
                sides = [sorted((i, str(v)) for i, v in side.items()) for side in (cx, cy)]
                h.update(repr((*sides, str(c), s)).encode())
            h.update(b"or")
        return h.hexdigest()

    @property
    def key(self) -> str:
        """Identity of network(s) and property together."""
        parts = [*(n.fingerprint for n in self.networks), self.property_hash]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Witness:
    """An input that violates the property. Only `mucg4.gate.runtime.replay_witness` builds it.

    `x` holds the float32 (or float64) input values handed to onnxruntime, flat; `y` the outputs that
    onnxruntime returned, flat. Tolerance zero: see design section 3.
    """

    x: Array
    y: Array
