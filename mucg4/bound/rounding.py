"""The one place where floating-point rounding enters bounds.

Backward bounds carry rows `A` of functionals from the output side to the input. All arithmetic is
IEEE, in the precision of the inputs, with unit roundoff `u = 2**-53` (float64) or `2**-24` (float32).
Write `M_k` for a vector that is at least the size of
every term summed in component j of node k anywhere in the root box: `|W| max(|l|, |u|) + |b|` for an
affine node (with folded terms, see `Affine.bias_magnitude`), `max(|l|, |u|)` for the input, and the
sizes of slope times argument plus offset for a nonlinear node. A product of a row with an affine map
of fan-in n, in any order of summation and with or without fused multiply-add, is off by at most
`gamma_n |A| M_k` when applied to any admissible value, `gamma_n = n u / (1 - n u)` (Higham, Accuracy
and Stability of Numerical Algorithms, 2nd ed., section 3.1). With the inequality of Cauchy and
Schwarz one number per row and node is enough:

    error(row) <= sum_k E_k ||A_k||_2,    E_k = gamma(fan_in_k + size_k + ...) ||M_k||_2.

SLACK covers the few extra roundings per element: slopes and offsets of a relaxation, stored weights
that were rounded while merging a diagonal scale or (`Network.cast`) to float32, rows that meet where the
graph joins, property coefficients (nearest numbers of exact decimals), and the constants' own summation.
`M_k` of the root box serves every region inside it, so the whole contract costs one norm per row and
node. A factor of 2 in `gamma` would cover that norms, `M_k` and errors are themselves computed rounded, as long
as k u is well below 1 (beyond that gamma is useless or negative: `gamma` gives inf); it is larger for the next reason.

The checker's charge is dominated. What is closed here has to be closed by the checker (`mucg4.check.enclose`), which
bounds the same functional with the same slopes but its own hulls, additions and charges. Let c be its charge for a
row, s the one here. Lower bounds of a row with given slopes grow when hulls shrink, so by induction over the nodes
it is enough that every bound here (neurons, clipped boxes, refutations) is below the checker's: s >= 1.01 c + what
either computation was really off by. The latter is at most c / 2 there and s / HEADROOM here (`gamma` there is twice
and here HEADROOM times Higham's), so s >= 2 c suffices; HEADROOM = 5 gives s >= 2.5 c where the counts of roundings
agree. They do, and norms are never replaced by products that may cancel:

* affine node: there gamma(fan + 8) ||S|| + gamma(size + 8) ||b||, with ||b|| <= ||S|| <= ||M||; here
  gamma(fan + size + readers + 2 nodes + SLACK) ||M||. `readers` pays for blocks that meet at the node, `2 nodes` for
  the additions to the constant (each at most the sum of ||A_k|| ||M_k||), SLACK for the rest.
* elementwise node: there gamma(8) steep ||M_in|| + gamma(size + 8) (||lower offset|| + ||upper offset||). Offsets are
  at most the value plus slope times argument, so M_k = 2 |value| + 4 |slopes times arguments| is at least the sum.
  Smooth functions are evaluated there with allowances for the elementary functions, SMOOTH roundings and FLAT
  absolutely.
* constraints, literals, cuts: their coefficients may cancel each other, so they are charged by themselves: norms of the
  absolute coefficients times ||values||, with as many roundings as terms (`Objective.functional`, `CutPlanes`).
* intervals of affine nodes: gamma(2 fan + ...) |W| M on both sides, and a floor that exceeds the guards against
  underflow there; where nothing is added up both sides have 0, exactly. Of elementwise nodes: see `image`. Clips: see
  `clip_box`.
* `mucg4.bound.folded` skips nodes and inputs that the checker passes: its slack has their charges, norm by norm.
* magnitudes: those of a region are at most those of the root box, which serve here (the induction's differences aside).
* additions of 1e-50 and less (`TINY` there): `LEAST` times all magnitudes.

Networks cast to float32 only propose; what closes is computed in float64. Slopes have to be the same ones: those of two
pieces are stored or tip where no rounding reaches (`TwoPiece.default_alpha`; a neuron that is stable by a hair there
takes the stored slope all the same), those of smooth functions and products are chosen on a grid (`mucg4.ops.base`,
`coarse`). Not argued: joint lines of products; bounds that lie on both sides of a line of that grid; chords, where a
row reaches far beyond a hull that it is bent at. There a proof may be rejected (and is searched again with charges
many times these), never a wrong one accepted. `tests/property/test_dominance.py` compares both sides on networks of all
kinds.

A map that stands for another one within a known distance per output (`Dense.slack`) adds the norm of the
distances to E_k.

Underflow. Numbers below the smallest normal one may lose all digits. An entry of a row that underflowed is
charged by the floor under every row norm (`Precision.floor` times gamma exceeds the underflow errors of 1e17
operations); products with offsets by `tiny` in a row's error; weights that `Backend.parameter` moved to the
smallest normal number by `tiny (1 + ||inputs||)` in E_k. A number that is zero because nothing was added up
stays exactly zero.

A bound that uses this error is sound in real arithmetic for the stored weights. nan never compares
as closed; overflow gives inf, which closes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mucg4.model.network import Network, affine_magnitude
from mucg4.ops.affine import Dense
from mucg4.ops.arrays import DOUBLE, Array, precision, xp
from mucg4.ops.base import Affine, Nonlinear
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

SLACK = 64  # given: see the module text
HEADROOM = 5.0  # over Higham's bound, see the module text; given
# roundings, and absolute error, that the checker may allow for one smooth function; given: see the module text
SMOOTH, FLAT = 512, 2.0**-42
IMAGE = 2.0**-43  # share by which images of intervals under smooth functions and products are widened; not measured
LEAST = 1e-45  # share of all magnitudes that the checker's guards against underflow may add; given


def gamma(n: int, unit: float = DOUBLE.unit) -> float:
    """HEADROOM times Higham's gamma_n for n + SLACK operations."""
    k = (n + SLACK) * unit
    return HEADROOM * k / (1.0 - k) if k < 0.125 else np.inf


EXACT = ("TwoPiece", "Sign", "Floor", "Round", "Trunc")  # their images are numbers that either side computes alike
BY_ENDS = ("Exp", "Reciprocal", "Square")  # each end of an image is off by a share of itself
NO_NOISE = (*BY_ENDS, "Product", "Log", "Sqrt", "Softplus", "Elu")  # the others are off absolutely
NONNEGATIVE = ("Exp", "Square", "Sqrt", "Softplus")


def image(op: Nonlinear, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
    """Interval image of an elementwise node, `(B, n)` pairs of ends, that contains the checker's.

    `mucg4.check.curves` allows `2**-47` of the value (twice, where pieces are convex) per evaluation of an elementary
    function, the same absolutely where values cancel inside (times the width, where a tangent is followed), and 2**-48
    of the arguments of waves; a product is off by `2**-49` of the largest corner. Ranges are cut the same way there.
    """
    low, high = op.interval(lo, hi)
    if op.kind in EXACT:
        return low, high
    m, p = xp(low), precision(low)
    below, above = abs(low), abs(high)
    with np.errstate(over="ignore", invalid="ignore"):
        if op.kind not in BY_ENDS:
            far = [m.maximum(abs(a), abs(b)) for a, b in zip(lo, hi, strict=True)]
            below = far[0] * far[1] if op.kind == "Product" else m.maximum(below, above)
            if op.kind not in NO_NOISE:
                below = below + 1.0 + far[0] / 8 + (hi[0] - lo[0])
            above = below
        share, tiny = max(IMAGE, p.unit), max(p.tiny, LEAST**3)
        least = low - (share * below + tiny)
        if op.kind in NONNEGATIVE:
            least = m.where(low >= 0, m.maximum(least, 0.0 * least), least)
        return least, high + (share * above + tiny)


@dataclass(frozen=True)
class Scales:
    """`error[k]` is E_k of the module text; `value[k] (size_k,)` bounds |value| of node k on the root box.

    `norm[k]` is the Euclidean norm of `value[k]`, `input_dot` gamma of a product with an input, `tiny` what a row's
    error starts from.
    """

    error: tuple[float, ...]
    value: tuple[Array, ...]
    norm: tuple[float, ...]
    input_dot: float
    tiny: float

    def times(self, caution: float) -> Scales:
        """Every charge so many times."""
        error, dot, tiny = tuple(caution * e for e in self.error), caution * self.input_dot, caution * self.tiny
        return replace(self, error=error, input_dot=dot, tiny=tiny)


def scales(network: Network, low: list[Array], up: list[Array]) -> Scales:
    """E_k for every node from sound interval bounds `low[k], up[k] (size_k,)` of all node values."""
    value = [xp(lo).maximum(abs(lo), abs(hi)) for lo, hi in zip(low, up, strict=True)]
    p = precision(low[0])
    with np.errstate(over="ignore"):
        norms = [float(xp(v).linalg.norm(v)) for v in value]
        # of the nodes so far: what overflows behind a node does not spoil the bounds in front of it
        moved = max(p.tiny, LEAST) * (1.0 + np.cumsum(norms))
    error, every = [], 2 * len(network.nodes)
    for k, node in enumerate(network.nodes):
        apart = 0.0
        if node.op is None:
            m = value[k]
            fan = 2
        elif isinstance(node.op, Affine):
            m = affine_magnitude(node.op, [value[i][None] for i in node.inputs])[0] + value[k]
            fan = node.op.fan_in
            if isinstance(node.op, Dense) and node.op.slack is not None:
                apart = float(xp(m).linalg.norm(node.op.slack))
        else:
            assert isinstance(node.op, Nonlinear)
            m = 2.0 * value[k] + 4.0 * node.op.terms([low[i] for i in node.inputs], [up[i] for i in node.inputs])
            fan = 8
            if not isinstance(node.op, TwoPiece):
                fan, apart = SMOOTH, FLAT * node.size**0.5
        with np.errstate(over="ignore"):
            # a row's product with a bias or with line offsets sums over its own size, constants over all nodes
            share = gamma(fan + node.size + len(network.users[k]) + every, p.unit)
            error.append((share * float(xp(m).linalg.norm(m)) + apart) * (1 + 1e-6) + float(moved[k]))
    return Scales(tuple(error), tuple(value), tuple(norms), gamma(network.input_size, p.unit), p.tiny)
