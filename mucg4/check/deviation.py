"""How far an execution in the model's own precision may be from the real network: a running error analysis.

`unsat` speaks of real arithmetic on the stored weights. An execution rounds: its node values are `v'_k =
op_k(v'_inputs) + delta_k`. This module bounds `|g_i(execution at x) - g_i(real at x)|` for every unsafe constraint, for
all points x of a region that the model's input type can hold. Where even `g_i - d_i <= 0` is refuted, no such execution
meets the property's unsafe set.

Covered: every operator of the file executed in the model's type (unit roundoff u), rounded to nearest; sums in any
order, blocked, and with or without fused multiply-add, whose error the two roundings it replaces dominate; products and
offsets that the runtime merges into neighbouring operators; denormal numbers kept or flushed; functions off by
`LIBRARY` units (of `1 + |f(z)|`, gates also of |z|). Not covered, hence not claimed: arithmetic in fewer bits (the
8-bit activations of a fused DequantizeLinear, TF32, bfloat16), Strassen's or Winograd's products, and fusions that
compute by another formula (LayerNormalization: so networks with a Sqrt have no bound). Overflow gives no bound.

Local errors. A sum of n products in any order is off by at most `gamma(n) |W| |v'|`, gamma(n) = n u / (1 - n u)
(Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., sections 3.1, 3.5 and 4.2). n counts the nonzero
weights of a row and no more than the inputs that are not exactly zero on the region, since adding zero does not round;
`FUSED` more are for factors that a runtime merges into the weights. Underflow adds `n` times a multiple of the least
normal number.

Forward. `|v'_k - v_k| <= E_k`, from node to node: `E = |W| E + local`, or the largest slope times E. It widens the
hulls of the real values to hulls of the executed ones. There is no circle: a node's local error needs the E of earlier
nodes.

Backward. Subtracting, `v'_k - v_k = sum_i S_ki (v'_i - v_i) + delta_k` exactly, where S is the weight matrix or, for an
elementwise f, the divided difference `(f(z') - f(z)) / (z' - z)`, which lies between the least and the largest slope on
the hull of both: 1 for an active ReLU, 0 for an inactive one, [0, 1] otherwise; for a product x y the pair `(y', x)`.
Hence `g' - g = sum_k J_k delta_k` with J a product of such matrices, and an interval product encloses it: rows `[c - r,
c + r]` are pulled back, `c W` and `r |W|`. That is far sharper than E: signs of weights cancel in c. At a jump (Floor,
Sign) the whole rise over the widened hull is a local error.

The analysis itself runs in float64; its rounding is added to r, and sums of nonnegative numbers are off by less than
the factor `ROOM`. Comparisons with nan are false and bounds that are not finite become inf: they hold nothing.

Related work: Jia and Rinard (Exploiting Verified Neural Networks via Floating Point Numerical Error, SAS 2021) show
that verified networks can be attacked by their rounding; Zombori et al. (Fooling a Complete Neural Network Verifier,
ICLR 2021) build the cancellations. Singh et al. (DeepPoly, POPL 2019) make bounds that hold under rounding in any
order; there one region's bounds widen, here the claim is for the constraints, so that proofs stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import inf
from typing import Any

import numpy as np

from mucg4.check.enclose import CELLS
from mucg4.model.network import Network, affine_magnitude
from mucg4.model.query import Case, Conjunction
from mucg4.ops.affine import Concat, Dense, Index, Place, Scale, Sum
from mucg4.ops.base import Affine, Array, Nonlinear
from mucg4.ops.conv import Conv
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

LIBRARY = 16.0  # units of error of a function; measured against onnxruntime: 8.5 at most
# roundings of factors that a runtime merges into weights: scale / sqrt(variance + epsilon), and products;
# not measured
FUSED = 8
STORED = 2  # the same where the network has no such factor; not measured
# factors up to these merge into a weight without overflow; given: 2**120 is below float32's 2**127
FACTOR, WEIGHT = 2.0**30, 2.0**60
ROOM = 1 + 2.0**-30  # for the rounding of this analysis' sums; given: dominates any number of nonnegative terms
DOUBLE = 2.0**-52  # generous relative error of one operation of this analysis; given: 2**-53 is the format's
# arguments of the exponential whose shifted one cannot underflow; given: e**-87 is float32's least normal number
FARTHEST = 80.0

# the least and largest slope of functions, rounded outward; |z| counts in the error of those marked True
SLOPES: dict[str, tuple[float, float, bool]] = {
    "Sigmoid": (0.0, 0.25, False),
    "Tanh": (0.0, 1.0, False),
    "Erf": (0.0, 1.12838, False),
    "Softsign": (0.0, 1.0, False),
    "Atan": (0.0, 1.0, False),
    "Sin": (-1.0, 1.0, False),
    "Cos": (-1.0, 1.0, False),
    "Softplus": (0.0, 1.0, False),
    "HardSwish": (-0.5, 1.5, True),
    "Gelu": (-0.13, 1.13, True),
    "GeluTanh": (-0.13, 1.13, True),
    "Silu": (-0.1, 1.1, True),
    "Mish": (-0.2, 1.1, True),
}
BELLS: dict[str, Any] = {  # derivatives that fall on both sides of zero, off by a relative 1e-9 at most
    "Sigmoid": lambda z: 1.0 / (np.exp(-abs(z)) + np.exp(abs(z)) + 2.0),
    "Tanh": lambda z: 4.0 / (np.exp(-2.0 * abs(z)) + np.exp(2.0 * abs(z)) + 2.0),
    "Softsign": lambda z: 1.0 / (1.0 + abs(z)) ** 2,
    "Atan": lambda z: 1.0 / (1.0 + z * z),
}
Pair = tuple[Array, Array]
STEPS = ("Floor", "Round", "Sign", "Trunc")


@dataclass(frozen=True)
class Arithmetic:
    """The type of an execution: unit roundoff, a number far above what flushed numbers lose, the overflow limit."""

    unit: float
    flush: float
    limit: float

    @staticmethod
    def of(element_type: str) -> Arithmetic:
        """float32 or float64."""
        double = element_type == "float64"
        return Arithmetic(2.0**-53, 2.0**-900, 1e300) if double else Arithmetic(2.0**-24, 2.0**-90, 1e38)

    def gamma(self, n: Any) -> Any:
        """The relative error of n roundings; inf where the analysis does not hold."""
        nu = np.asarray(n, dtype=np.float64) * self.unit
        return np.where(nu < 0.5, nu / np.where(nu < 0.5, 1 - nu, 1.0) * ROOM, inf)


@dataclass(eq=False)
class _Errors:
    """Per node of one batch of regions: `total` |v' - v|, `local` |delta|, and the slopes `(least, largest)` for each
    input of an elementwise node; `far` at least |v'|. Arrays `(B, n)`."""

    total: list[Array]
    local: list[Array]
    far: list[Array]
    slopes: dict[int, list[tuple[Array, Array]]]


class Deviation:
    """Bounds of the deviation for one network, operator by operator as in the file.

    `network` should hold a node for every operator, not merged (`mucg4.read.onnx.read_operators`): a merged node hides
    values that an execution rounds. `twins[k]` is the node of the walked network with the same value as node k, or
    -1; without it both networks are one. `roundings` is how many roundings of the element type are behind any constant.
    `reason` tells why there is no bound for any region, "" where there may be one.
    """

    def __init__(self, network: Network, twins: Sequence[int] | None = None, roundings: int = 0) -> None:
        self.network, self.nodes = network, network.nodes
        self.arithmetic = Arithmetic.of(network.element_type)
        self.twins = tuple(range(len(self.nodes))) if twins is None else tuple(twins)
        self.reason = self._obstacle()
        scales = [n.op for n in self.nodes if isinstance(n.op, Scale)]
        merged = any(bool(np.any(abs(op.scale) != 1)) or op.offset_magnitude is not None for op in scales)
        self.extra = (FUSED if merged else STORED) + roundings
        self.certain = not roundings  # an execution has each constant exactly
        self.absolute = {k: _absolute(n.op) for k, n in enumerate(self.nodes) if isinstance(n.op, Affine)}
        self.counts = {k: _count(n.op) for k, n in enumerate(self.nodes) if isinstance(n.op, Affine)}

    def _obstacle(self) -> str:
        for node in self.nodes[1:]:
            op = node.op
            known = isinstance(op, (Affine, TwoPiece)) or getattr(op, "kind", "") in (*SLOPES, *STEPS, *_RULES)
            if not known:
                return f"there is no bound of the rounding of operator {getattr(op, 'kind', op)} (node {node.name!r})"
            f = abs(getattr(op, "scale", np.ones(1)))
            if np.any((f > FACTOR) | ((f < 1 / FACTOR) & (f > 0))) or (
                isinstance(op, Affine) and _largest_weight(op) > WEIGHT
            ):
                return f"a factor is too large or too small (node {node.name!r})"
        return ""

    def bound(
        self,
        lower: Sequence[Array],
        upper: Sequence[Array],
        case: Case,
        sharp: Array | None = None,
        backward: bool = True,
    ) -> Array:
        """`(B, M)`: at least |g' - g| for all M constraints of the case's conjunctions, one after the other.

        `lower`, `upper` are hulls `(B, n)` of the real values of the walked network's nodes on B regions. `sharp (B,)`
        tells where the dearer bounds of single neurons are worth their price; everywhere if not given. Without
        `backward` the bounds are those of the forward analysis alone: much larger ones, for a third of the work. inf
        where nothing is known.
        """
        rows = [_rows(c) for c in case.conjunctions]
        count, batch = sum(len(y) for y, _, _ in rows), len(lower[0])
        out = np.full((batch, count), inf)
        if self.reason or not count:
            return out
        y, x = (np.concatenate([np.asarray(r[i]) for r in rows]) for i in (0, 1))
        constants = np.concatenate([r[2] for r in rows])
        widest = max(n.size for n in self.nodes)
        sharp = np.ones(batch, dtype=bool) if sharp is None else sharp
        step = max(1, 8 * CELLS // (count * widest))
        with np.errstate(all="ignore"):
            for part in (slice(i, i + step) for i in range(0, batch, step)):
                errors = self._forward([a[part] for a in lower], [a[part] for a in upper], sharp[part])
                d = self._constraints(errors, y) if backward else errors.total[-1] @ abs(y).T * (1 + 8 * DOUBLE) * ROOM
                d = d + self._evaluation(errors, y, x, constants)
                out[part] = np.where(np.isfinite(d), d * ROOM, inf)
        return out

    # ---- forward -------------------------------------------------------------------------------

    def _forward(self, lower: list[Array], upper: list[Array], sharp: Array) -> _Errors:
        zero = np.zeros_like(lower[0])
        out = _Errors([zero], [zero], [np.maximum(abs(lower[0]), abs(upper[0]))], {})
        hulls = [(lower[0], upper[0])]
        largest = out.far[0].max(axis=1, keepdims=True, initial=0.0)  # (B, 1) of all values so far
        for k, node in enumerate(self.nodes[1:], 1):
            if isinstance(node.op, Affine):
                e, local = self._affine(k, node.op, node.inputs, out, largest)
            else:
                assert isinstance(node.op, Nonlinear)
                if isinstance(node.op, TwoPiece) and sharp.any():
                    self._sharpen(node.inputs[0], out, hulls, sharp)
                e, local, out.slopes[k] = self._curve(node.op, node.inputs, out, hulls)
            twin = self.twins[k]
            lo, hi = (lower[twin], upper[twin]) if twin >= 0 else self._hull(k, hulls)
            if (zero := self._cancels(node.op, node.inputs, out, hulls)) is not None:
                lo, hi, e, local = (np.where(zero, 0.0, a) for a in (lo, hi, e, local))
            far = np.maximum(abs(lo), abs(hi)) + e
            e = np.where(far < self.arithmetic.limit, e, inf)
            largest = np.maximum(largest, far.max(axis=1, keepdims=True, initial=0.0))
            hulls.append((lo, hi))
            out.total.append(e)
            out.local.append(local)
            out.far.append(far)
        return out

    def _affine(self, k: int, op: Affine, inputs: tuple[int, ...], out: _Errors, largest: Array) -> tuple[Array, Array]:
        """`(total, local)` error of an affine node."""
        a, far = self.arithmetic, [out.far[i] for i in inputs]
        carried = op.magnitude([out.total[i] for i in inputs])
        size = affine_magnitude(op, far)
        count = self.counts[k]
        if isinstance(op, (Index, Place, Concat)):  # numbers are moved; a constant among them may be a rounded one
            b = op.bias_magnitude()
            local = np.zeros(size.shape) if b is None else np.broadcast_to(a.gamma(self.extra) * b, size.shape)
            return carried, local
        live = sum((f > 0).sum(axis=1, keepdims=True) for f in far)
        n = np.minimum(count, live) + 1 + (0 if isinstance(op, Sum) else self.extra)
        local = a.gamma(n) * size + a.flush * (1 + n) * (1 + largest) * (1 + _largest_weight(op))
        return (carried + local) * ROOM, np.where(size < a.limit, local, inf)

    def _cancels(self, op: Any, inputs: tuple[int, ...], out: _Errors, hulls: list[Pair]) -> Array | None:
        """Where a sum or difference of two numbers that every execution has is 0, which it is there, too.

        That decides comparisons with inputs that are single numbers. None where no sum is of that kind.
        """
        plain = isinstance(op, Scale) and op.offset_magnitude is None and bool(np.all(abs(op.scale) == 1))
        if not self.certain or not (plain or (isinstance(op, Sum) and len(inputs) == 2)):
            return None
        known = np.logical_and.reduce([(hulls[i][0] == hulls[i][1]) & (out.total[i] == 0) for i in inputs])
        return known & (op.apply([hulls[i][0] for i in inputs]) == 0) if known.any() else None

    def _curve(
        self, op: Nonlinear, inputs: tuple[int, ...], out: _Errors, hulls: list[Pair]
    ) -> tuple[Array, Array, list[tuple[Array, Array]]]:
        """`(total, local)` error of an elementwise node, and its slopes."""
        flush, wide = self.arithmetic.flush, []
        for i in inputs:
            (lo, hi), e = hulls[i], out.total[i]
            room = np.where((lo == 0) & (hi == 0) & (e == 0), 0.0, e + flush)  # a zero cannot be flushed
            wide.append((lo - room, hi + room))
        if op.kind in STEPS:
            low, high = op.interval([w[0] for w in wide], [w[1] for w in wide])
            flat = np.zeros(low.shape)
            return high - low, high - low, [(flat, flat)]
        unit = self.arithmetic.unit
        if isinstance(op, TwoPiece):
            slopes, local = _two_piece(op, *wide[0], unit)
            local = np.where((slopes[0][0] == 0) & (slopes[0][1] == 0), 0.0, local + flush)  # zero exactly
        elif op.kind in _RULES:
            slopes, local = _RULES[op.kind](op, wide, [hulls[i] for i in inputs], unit)
            local = local + flush
        else:
            slopes, local = _function(op, *wide[0], unit)
            local = local + flush
        steep = [np.maximum(abs(s), abs(t)) for s, t in slopes]
        total = sum(_times(s, out.total[i]) for s, i in zip(steep, inputs, strict=True)) + local
        return total * ROOM, local, slopes

    def _hull(self, k: int, hulls: list[Pair]) -> tuple[Array, Array]:
        """The image of the hulls of a node that the walked network has not, rounded outward."""
        node, op = self.nodes[k], self.nodes[k].op
        lo, hi = [hulls[i][0] for i in node.inputs], [hulls[i][1] for i in node.inputs]
        if isinstance(op, Affine):
            mid = [a + (b - a) / 2 for a, b in zip(lo, hi, strict=True)]
            rad = [np.maximum(b - m, m - a) for a, b, m in zip(lo, hi, mid, strict=True)]
            size = affine_magnitude(op, [np.maximum(abs(a), abs(b)) for a, b in zip(lo, hi, strict=True)])
            y, r = op.apply(mid), op.magnitude(rad) + (DOUBLE * (2 * op.fan_in + 8)) * size + 1e-150
            return y - r, y + r
        assert isinstance(op, Nonlinear)
        low, high = op.interval(lo, hi)
        return low - (1 + abs(low)) * 2.0**-40, high + (1 + abs(high)) * 2.0**-40

    # ---- backward ------------------------------------------------------------------------------

    def _sharpen(self, i: int, out: _Errors, hulls: list[Pair], sharp: Array) -> None:
        """Backward bounds of the errors of node i, in place, where they decide whether a neuron is stable."""
        (lo, hi), e = hulls[i], out.total[i] + 2 * self.arithmetic.flush
        region, neuron = np.nonzero(sharp[:, None] & (((lo > 0) & (lo <= e)) | ((hi < 0) & (hi >= -e))))
        step = max(1, 4 * CELLS // max(n.size for n in self.nodes[: i + 1]))
        for part in (slice(k, k + step) for k in range(0, len(region), step)):
            r, j = region[part], neuron[part]
            unit = np.zeros((len(r), self.nodes[i].size))
            unit[np.arange(len(r)), j] = 1.0
            d = self._backward(out, unit, np.zeros_like(unit), r, i) * ROOM
            out.total[i][r, j] = np.fmin(out.total[i][r, j], d)

    def _backward(self, errors: _Errors, c: Array, r: Array, region: Array, start: int) -> Array:
        """`(R,)` at least `|sum_k J_k delta_k|` for the rows `c +- r` `(R, n)` over node `start` on regions `(R,)`."""
        d = np.zeros(len(c))
        rows: dict[int, tuple[Array, Array]] = {start: (c, r)}
        for k in range(start, 0, -1):
            if k not in rows:
                continue
            c, r = rows.pop(k)
            d = d + np.einsum("rn,rn->r", abs(c) + r, errors.local[k][region])
            d = np.where(np.isnan(d), inf, d)
            op = self.nodes[k].op
            if isinstance(op, Affine):
                parts = self._pull_affine(k, op, c, r)
            else:
                parts = [_interval_product(c, r, s[region], t[region]) for s, t in errors.slopes[k]]
            for i, (cc, rr) in zip(self.nodes[k].inputs, parts, strict=True):
                if i in rows:
                    cc, rr = rows[i][0] + cc, (rows[i][1] + rr) + DOUBLE * (abs(rows[i][0]) + abs(cc))
                rows[i] = cc, rr
        return d

    def _constraints(self, errors: _Errors, y: Array) -> Array:
        """`(B, M)` at least `|y . (v' - v)|` at the output."""
        batch = len(errors.total[0])
        c, region = np.tile(y, (batch, 1)), np.repeat(np.arange(batch), len(y))
        d = self._backward(errors, c, abs(c) * DOUBLE, region, len(self.nodes) - 1)  # coefficients are nearest doubles
        return d.reshape(batch, -1)

    def _pull_affine(self, k: int, op: Affine, c: Array, r: Array) -> list[tuple[Array, Array]]:
        """Rows over the inputs of an affine node: `c W` and `r |W|`, with the rounding of both in the latter."""
        slack = (op.fan_in + 8) * DOUBLE
        radii = self.absolute[k].adjoint(r + slack * (abs(c) + r))
        return [(centre, radius + 1e-150) for centre, radius in zip(op.adjoint(c), radii, strict=True)]

    def _evaluation(self, errors: _Errors, y: Array, x: Array, constants: Array) -> Array:
        """`(B, M)` rounding of the constraints themselves, in any order, with coefficients and constants rounded."""
        terms = np.count_nonzero(y, axis=1) + np.count_nonzero(x, axis=1) + 1
        size = errors.far[-1] @ abs(y).T + errors.far[0] @ abs(x).T + abs(constants)
        exact = (terms <= 3) & (constants == 0) & np.all((y == 0) | (abs(y) == 1), axis=1) & np.all(x == 0, axis=1)
        n = np.where(exact, 0, terms + 3)  # comparing two outputs does not round
        return self.arithmetic.gamma(n) * size + self.arithmetic.flush


def _rows(conj: Conjunction) -> tuple[Array, Array, Array]:
    return conj.y_coeffs, conj.x_coeffs, conj.constants


def _absolute(op: Affine) -> Affine:
    """The operator with all its factors made nonnegative."""
    changes: dict[str, Any] = {name: abs(getattr(op, name)) for name in ("weight", "scale") if hasattr(op, name)}
    if isinstance(op, Sum):
        changes["signs"] = tuple(abs(s) for s in op.signs)
    if getattr(op, "factor", 1.0) < 0:
        changes["factor"] = -op.factor  # type: ignore[attr-defined]
    return replace(op, **changes) if changes else op  # type: ignore[type-var]


def _count(op: Affine) -> Any:
    """How many numbers are added in one value, the offset aside; a number, or one per value `(n,)`."""
    if isinstance(op, Dense):
        return np.count_nonzero(op.weight, axis=1)
    if isinstance(op, Conv):
        return int(np.prod(op.weight.shape[1:]))
    return op.fan_in


def _largest_weight(op: Affine) -> float:
    """The size of the largest factor."""
    values = [abs(getattr(op, name)).max(initial=0.0) for name in ("weight", "scale") if hasattr(op, name)]
    return float(max(values, default=1.0))


def _times(a: Array, b: Array) -> Array:
    """Products of nonnegative numbers; 0 times infinity is 0, since the factor is exact."""
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def _interval_product(c: Array, r: Array, least: Array, most: Array) -> tuple[Array, Array]:
    """`[c - r, c + r]` times `[least, most]`, all `(R, n)`, as centre and radius."""
    products = [np.where((a == 0) | (b == 0), 0.0, a * b) for a in (c - r, c + r) for b in (least, most)]
    first = np.minimum(np.minimum(products[0], products[1]), np.minimum(products[2], products[3]))
    last = np.maximum(np.maximum(products[0], products[1]), np.maximum(products[2], products[3]))
    centre = first + (last - first) / 2
    radius = np.maximum(last - centre, centre - first) + 4 * DOUBLE * np.maximum(abs(first), abs(last))
    return centre, radius


# ---- elementwise rules: slopes on the widened hull, and the local error -----------------------------------------

Slopes = list[Pair]


def _two_piece(op: TwoPiece, lo: Array, hi: Array, unit: float) -> tuple[Slopes, Array]:
    """Where z and z' are on the same side of zero the slope is that side's, whatever they are."""
    left = np.where(lo >= 0, op.right, op.left)
    right = np.where(hi <= 0, op.left, op.right)
    if op.left in (-1.0, 0.0, 1.0) and op.right in (-1.0, 0.0, 1.0):
        return [(left, right)], np.zeros(lo.shape)
    return [(left, right)], 4 * unit * max(abs(op.left), abs(op.right)) * np.maximum(abs(lo), abs(hi))


def _function(op: Nonlinear, lo: Array, hi: Array, unit: float) -> tuple[Slopes, Array]:
    """Functions with bounded slopes; sharper where the slope falls on both sides of zero.

    Softmax of two values is read as the Sigmoid s of their difference d. A runtime's quotient is off by s (1 - s) of
    what both exponentials are relatively off, `LIBRARY + |d|` units, one of which is exp(0), and by a few roundings:
    less than LIBRARY units. Likewise the Softplus of LogSoftmax, whose value is at least |d| where |d| counts.
    """
    least, most, gated = SLOPES[op.kind]
    low, high = op.interval([lo], [hi])
    size = 1 + np.maximum(abs(low), abs(high)) + (np.maximum(abs(lo), abs(hi)) if gated else 0.0)
    first, last = np.full(lo.shape, least), np.full(lo.shape, most)
    if op.kind in BELLS:
        near = np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(abs(lo), abs(hi)))
        far = np.maximum(abs(lo), abs(hi))
        first = np.maximum(first, np.nan_to_num(BELLS[op.kind](far)) * (1 - 1e-6))
        last = np.fmin(last, BELLS[op.kind](near) * (1 + 1e-6) + 1e-150)
    return [(first, last)], LIBRARY * unit * size


def _square(op: Nonlinear, wide: list[Pair], hulls: list[Pair], unit: float) -> tuple[Slopes, Array]:
    """z'^2 - z^2 = (z' + z) (z' - z)."""
    (lo, hi), (a, b) = wide[0], hulls[0]
    far = np.maximum(abs(lo), abs(hi))
    slack = 4 * DOUBLE * far
    return [(lo + a - slack, hi + b + slack)], 4 * unit * far * far


def _product(op: Nonlinear, wide: list[Pair], hulls: list[Pair], unit: float) -> tuple[Slopes, Array]:
    """x' y' - x y = y' (x' - x) + x (y' - y). A quotient, whose reciprocal is not rounded, errs by less."""
    (xl, xu), (yl, yu) = wide
    size = np.maximum(abs(xl), abs(xu)) * np.maximum(abs(yl), abs(yu))
    return [(yl, yu), hulls[0]], 4 * unit * size


def _exponential(op: Nonlinear, wide: list[Pair], hulls: list[Pair], unit: float) -> tuple[Slopes, Array]:
    """exp. Softmax is read as `1 / (1 + sum_j exp(x_j - x_i))`, a runtime divides exp(x_i - max x) by their sum.

    Its exponents are differences that are rounded, at most as large as the largest difference in the node: a relative
    error of u times that, twice. Within FARTHEST nothing underflows.
    """
    lo, hi = wide[0]
    far = np.maximum(abs(lo), abs(hi)).max(axis=1, keepdims=True, initial=0.0)
    known = far <= FARTHEST
    first = np.where(known, np.exp(np.minimum(lo, FARTHEST)) * (1 - 1e-9), 0.0)
    last = np.where(known, np.exp(np.minimum(hi, FARTHEST)) * (1 + 1e-9), inf)
    return [(first, last)], (LIBRARY + 8 * far) * unit * last


def _reciprocal(op: Nonlinear, wide: list[Pair], hulls: list[Pair], unit: float) -> tuple[Slopes, Array]:
    """1 / z where all z have one sign."""
    lo, hi = wide[0]
    near = np.where((lo > 0) | (hi < 0), np.minimum(abs(lo), abs(hi)), 0.0)
    far = np.maximum(abs(lo), abs(hi))
    first = -(1 + 1e-9) / (near * near)
    return [(first, -(1 - 1e-9) / (far * far))], LIBRARY * unit / near


def _logarithm(op: Nonlinear, wide: list[Pair], hulls: list[Pair], unit: float) -> tuple[Slopes, Array]:
    """log z where all z are positive. LogSoftmax is `-log(1 + sum_j exp(x_j - x_i))`, which is at least max x - x_i and
    at least the logarithm of a runtime's sum."""
    lo, hi = wide[0]
    size = 1 + np.maximum(abs(np.log(lo)), abs(np.log(hi)))
    first, last = (1 - 1e-9) / hi, np.where(lo > 0, (1 + 1e-9) / lo, inf)
    return [(np.where(lo > 0, first, -inf), last)], np.where(lo > 0, LIBRARY * unit * size, inf)


def _root(op: Nonlinear, wide: list[Pair], hulls: list[Pair], unit: float) -> tuple[Slopes, Array]:
    """sqrt(z') - sqrt(z) = (z' - z) / (sqrt z' + sqrt z), where all of both are positive."""
    lo, top = wide[0][0], np.sqrt(np.maximum(wide[0][1], 0.0))
    first, last = 0.5 * (1 - 1e-9) / top, np.where(lo > 0, 0.5 * (1 + 1e-9) / np.sqrt(lo), inf)
    return [(np.where(lo > 0, first, -inf), last)], np.where(lo > 0, LIBRARY * unit * top, inf)


def _elu(op: Any, wide: list[Pair], hulls: list[Pair], unit: float) -> tuple[Slopes, Array]:
    lo, hi = wide[0]
    alpha = abs(float(op.alpha))
    size = alpha + 1 + np.maximum(hi, 0.0)
    return [(np.zeros(lo.shape), np.full(lo.shape, max(1.0, alpha)))], LIBRARY * unit * size


_RULES: dict[str, Any] = {
    "Square": _square,
    "Product": _product,
    "Exp": _exponential,
    "Reciprocal": _reciprocal,
    "Log": _logarithm,
    "Sqrt": _root,
    "Elu": _elu,
}


def enlarged(case: Case, d: Array) -> Case:
    """The case with every constraint `g_i <= 0` loosened to `g_i - d_i <= 0` in what is proved; `d (M,)`, finite.

    What is stated, and with it the witness gate and the hashes, stays as it is.
    """
    conjunctions, at = [], 0
    for conj in case.conjunctions:
        part = d[at : at + len(conj)]
        at += len(conj)
        exact = [Fraction(v) for v in part.tolist()]
        proved = tuple((x, y, c - e) for (x, y, c), e in zip(conj.proved, exact, strict=True))
        constants = np.array([float(c) for _, _, c in proved], dtype=np.float64)
        conjunctions.append(replace(conj, constants=constants, proved=proved))
    return replace(case, conjunctions=tuple(conjunctions))
