"""Upper planes of two-piece neurons: cuts that every region below a root may add to its rows.

The chord bounds a neuron by its own argument alone. Over the box of what feeds it (its *carriers*: the input and the
nonlinear nodes from which affine nodes lead to it) a neuron has exponentially many more upper planes, and together
they are its convex hull there (Anderson et al., arXiv 1811.01988; Tjandraatmadja et al., arXiv 2006.14076). Write
z = w . v + b over the carriers, f(z) = max(left z, right z). For shares s in [0, 1] per component of v let

    p = (left + (right - left) s) w,      q = max over the box of max(left z - p . v, right z - p . v).

Then `f(z) <= p . v + q` holds whatever the shares; nothing but q has to be sound, and it is one backward pass with
constant lines. A row adds a nonnegative multiple of `f(z) - p . v - q <= 0` (GCP-CROWN, arXiv 2208.05740), so
cuts look like further constraints of the conjunction. The best shares at a point fill a knapsack: components in the
order of how near they are to the end where z is small, until both maxima above are equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mucg4.bound.inner_loops import row_norms
from mucg4.bound.propagate import CHUNK_ELEMENTS, Bounder, Regions
from mucg4.bound.rounding import gamma, image
from mucg4.model.network import Network
from mucg4.model.proof import Alpha, Cuts
from mucg4.ops.arrays import arange, backend_of, chunk, full, row_dots, xp, zeros
from mucg4.ops.base import Affine, Array, Nonlinear, Relaxation
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

# of the neuron's largest value: cuts that remove less of a point are not worth a row; not measured
LEAST_VIOLATION = 1e-4


@dataclass(eq=False)
class CutPlanes:
    """C inequalities `sum_k coeffs[k] . v_k + offset <= 0` on node values; `coeffs[k] (C, size_k)`, `offset (C,)`.

    `size (C,)` is at least the sum of the sizes of an inequality's terms, by norms (`mucg4.bound.rounding`). In NumPy:
    `neuron (C,)`, the flat pre-activation position of the neuron each one bounds, and `number (C,)`, its number in the
    proof. An inequality that could not be derived is `0 <= 0`.
    """

    coeffs: dict[int, Array]
    offset: Array
    size: Array
    neuron: Array
    number: Array

    def __len__(self) -> int:
        return len(self.neuron)

    @staticmethod
    def none(like: Array) -> CutPlanes:
        """No inequality, on the backend of `like`."""
        none = np.zeros(0, dtype=np.int64)
        return CutPlanes({}, zeros((0,), like), zeros((0,), like), none, none)

    def joined(self, other: CutPlanes) -> CutPlanes:
        """The inequalities of both, this one's first."""
        m, coeffs = xp(self.offset), {}
        for k in sorted(self.coeffs.keys() | other.coeffs.keys()):
            width = (self.coeffs if k in self.coeffs else other.coeffs)[k].shape[1]
            coeffs[k] = m.concatenate([p.coeffs.get(k, zeros((len(p), width), self.offset)) for p in (self, other)])
        there = (m.concatenate([getattr(self, f), getattr(other, f)]) for f in ("offset", "size"))
        here = (np.concatenate([getattr(self, f), getattr(other, f)]) for f in ("neuron", "number"))
        return CutPlanes(coeffs, *there, *here)

    def take(self, which: Array) -> CutPlanes:
        """The chosen inequalities; `which` is in NumPy."""
        at = backend_of(self.offset).place(which)
        coeffs = {k: a[at] for k, a in self.coeffs.items()}
        return CutPlanes(coeffs, self.offset[at], self.size[at], self.neuron[which], self.number[which])

    def weighted(self, bounder: Bounder, multipliers: Array) -> tuple[dict[int, Array], Array, Array]:
        """Sums of inequalities times `multipliers (R, C)`: coefficients per node, constants, rounding error `(R,)`."""
        rows = {k: multipliers @ a for k, a in self.coeffs.items()}
        error = gamma(len(self), bounder.precision.unit) * (multipliers @ self.size)
        return rows, multipliers @ self.offset, error


def carrier_rows(network: Network, node: int, index: Array) -> dict[int, Array]:
    """Components `index (R,)` of a node as rows over its carriers, `{carrier: (R, size)}`, without biases."""
    like = network.backend.array(np.zeros(1))
    rows = zeros((len(index), network.nodes[node].size), like)
    rows[arange(len(index), like), network.backend.place(index)] = 1.0
    pending, out = {node: rows}, {}
    for k in range(node, -1, -1):
        a = pending.pop(k, None)
        if a is None:
            continue
        op = network.nodes[k].op
        if not isinstance(op, Affine):
            out[k] = a
            continue
        for i, part in zip(network.nodes[k].inputs, op.adjoint(a), strict=True):
            pending[i] = pending[i] + part if i in pending else part
    return out


def _hull(bounder: Bounder, region: Regions, k: int) -> tuple[Array, Array]:
    """Bounds `(1, size_k)` of the values of a carrier on a batch of one region."""
    if k == 0:
        return region.lo, region.hi
    node = bounder.network.nodes[k]
    assert isinstance(node.op, Nonlinear)
    bounds = [bounder.pre_bounds(region, i) for i in node.inputs]
    return image(node.op, [b[0] for b in bounds], [b[1] for b in bounds])


def derive(bounder: Bounder, region: Regions, cuts: Cuts, first: int) -> CutPlanes:
    """The planes that `cuts` propose, on a batch of one region (NumPy); sound on that region, rounding included.

    Their numbers count from `first`. Believes nothing but that nodes and neurons exist (see `mucg4.reuse.fits`).
    """
    network, there = bounder.network, bounder.network.backend
    region = region.on(there)
    op, node = network.nodes[cuts.node].op, network.nodes[cuts.node].inputs[0]
    assert isinstance(op, TwoPiece)
    flat = {}
    for k in network.nonlinear:
        low, up = _hull(bounder, region, k)
        slopes = tuple(zeros(low.shape, low) for _ in network.nodes[k].inputs)
        flat[k] = Relaxation(slopes, low, slopes, up)
    parts = CutPlanes.none(bounder.lo)
    step = max(16, chunk(CHUNK_ELEMENTS, bounder.lo) // max(n.size for n in network.nodes))
    for at in range(0, len(cuts.index), step):
        index = cuts.index[at : at + step].astype(np.int64)
        every, own = arange(len(index), bounder.lo), there.place(index)
        planes = {}
        for k, w in carrier_rows(network, node, index).items():
            share = zeros(w.shape, w)
            for s in cuts.shares:
                if s.node == k:
                    share[:, there.place(s.index.astype(np.int64))] = there.array(s.value[at : at + step] / 255.0)
            planes[k] = w * (op.left + (op.right - op.left) * share)
        least = full(len(index), np.inf, bounder.lo)
        for slope in {op.left, op.right}:
            pending = {k: p + 0.0 for k, p in planes.items()}
            if slope:
                pending[node] = pending.get(node, zeros((len(index), network.nodes[node].size), bounder.lo))
                pending[node][every, own] -= slope
            rows = bounder.carry(pending, every * 0, flat)
            lo, hi = (xp(v).broadcast_to(v, rows.coeffs.shape) for v in (region.lo, region.hi))
            least = xp(least).minimum(least, rows.minimum(lo, hi, bounder.scales.input_dot))
        coeffs = {k: -p for k, p in planes.items()}
        coeffs[cuts.node] = zeros((len(index), network.nodes[cuts.node].size), bounder.lo)
        coeffs[cuts.node][every, own] = 1.0
        known = xp(least).isfinite(least)
        coeffs = {k: xp(a).where(known[:, None], a, 0.0) for k, a in coeffs.items()}
        offset = xp(least).where(known, least, 0.0)
        size = abs(offset)
        for k, a in coeffs.items():
            size = size + row_norms(a) * bounder.scales.norm[k]
        found = CutPlanes(coeffs, offset, size, bounder.slices[node].start + index, first + at + np.arange(len(index)))
        parts = parts.joined(found)
    return parts


def propose(
    bounder: Bounder, region: Regions, values: Sequence[Array], weight: dict[int, Array], most: int, after: int
) -> list[Cuts]:
    """Cuts that a point violates, at most `most`; everything is in NumPy.

    `values[k] (1, size_k)` are the point's node values: those of neurons may be any that a relaxation allows.
    `weight[node] (size,)` tells per two-piece node what a smaller value of a neuron is worth; neurons with
    weight 0 are left alone. `after`: see `mucg4.model.proof.Cuts`.
    """
    found: list[tuple[int, Array, Array, dict[int, Array]]] = []
    for user, worth in weight.items():
        index = np.flatnonzero(worth > 0)
        op, node = bounder.network.nodes[user].op, bounder.network.nodes[user].inputs[0]
        assert isinstance(op, TwoPiece)
        step = max(16, 4 * CHUNK_ELEMENTS // max(n.size for n in bounder.network.nodes))
        for part in (index[i : i + step] for i in range(0, len(index), step)):
            bounder.poll(len(part) * bounder.network.nodes[node].size)
            rows = carrier_rows(bounder.network, node, part)
            hulls = [_hull(bounder, region, k) for k in rows]
            low, up = (np.concatenate([h[i][0] for h in hulls]) for i in (0, 1))
            point = np.concatenate([values[k][0] for k in rows])
            argument = values[node][0, part]
            share, bound = _knapsack(np.concatenate(list(rows.values()), axis=1), point, argument, low, up)
            height = (values[user][0, part] - op.left * argument) / (op.right - op.left)
            violation = height - bound
            good = np.flatnonzero(violation > LEAST_VIOLATION * np.maximum(height, 1e-9))
            ends = np.cumsum([a.shape[1] for a in rows.values()]).tolist()
            shares = {k: share[good, e - a.shape[1] : e] for (k, a), e in zip(rows.items(), ends, strict=True)}
            found.append((user, part[good], violation[good] * worth[part[good]], shares))
    scores = np.concatenate([f[2] for f in found]) if found else np.zeros(0)
    if not len(scores):
        return []
    least = np.sort(scores)[-min(most, len(scores))]
    out = []
    for user, index, score, shares in found:
        own = np.flatnonzero(score >= least)
        if not len(own):
            continue
        kept = []
        for k, share in shares.items():
            level = np.round(share[own] * 255).astype(np.uint8)
            columns = np.flatnonzero(level.any(axis=0))
            kept.append(Alpha(k, columns.astype(np.int32), level[:, columns]))
        out.append(Cuts(user, index[own].astype(np.int32), tuple(kept), after))
    return out


def _knapsack(w: Array, point: Array, argument: Array, low: Array, up: Array) -> tuple[Array, Array]:
    """Best shares `(R, n)` at a point for rows `w (R, n)` over the box `low, up (n,)`, and the planes' heights `(R,)`.

    The heights speak of max(0, z); they are inf where the box alone decides the sign of z.
    """
    near: Array = np.where(w > 0, low, up)
    far: Array = np.where(w > 0, up, low)
    reach = w * (far - near)
    top = argument + row_dots(w, far - point)
    bottom = argument + row_dots(w, near - point)
    with np.errstate(divide="ignore", invalid="ignore"):
        order = np.argsort(np.where(reach > 0, w * (point - near) / reach, 2.0), axis=1, kind="stable")
        filled = np.take_along_axis(reach, order, axis=1)
        before = np.cumsum(filled, axis=1) - filled
        taken = np.clip((top[:, None] - before) / np.where(filled > 0, filled, np.inf), 0.0, 1.0)
    share = np.zeros_like(w)
    np.put_along_axis(share, order, taken, axis=1)
    height = (share * w * (point - near)).sum(axis=1)
    return share, np.where((bottom < 0) & (top > 0), height, np.inf)
