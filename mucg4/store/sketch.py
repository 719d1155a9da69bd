"""Small fixed-size summaries that rank candidates before anything large is loaded.

A network's sketch does not change when hidden neurons change places and changes little when weights are
rounded, the smallest ones dropped or weak neurons removed: per affine operator the largest weight,
the spread, the skew and the mean bias. A box's sketch is the box on a few fixed coordinates.
"""

from __future__ import annotations

import numpy as np

from mucg4.model.network import Network
from mucg4.ops.arrays import FloatArray

SIZE = 32  # float32 numbers per sketch; not measured
_LAYERS = SIZE // 4  # layers in a sketch; given: four numbers a layer
_SAMPLE = 1 << 22  # of larger operators only some weights are looked at; not measured


def network_sketch(network: Network) -> FloatArray:
    """`(32,)` float32: four numbers for each of the first and last four operators that hold weights."""
    held = [node.op.parameters() for node in network.nodes if node.op is not None]
    rows = [_features(p) for p in held if "weight" in p or "scale" in p]
    if len(rows) > _LAYERS:
        rows = rows[: _LAYERS // 2] + rows[-(_LAYERS // 2) :]
    out = np.zeros((_LAYERS, 4), dtype=np.float32)
    if rows:
        out[: len(rows)] = rows
    return out.reshape(-1)


def _features(held: dict[str, FloatArray]) -> list[float]:
    """Sums rather than means, and no dead rows: neurons with small weights come and go almost unnoticed."""
    weight = np.asarray(held["weight"] if "weight" in held else held["scale"], dtype=np.float64)
    bias = np.asarray(held.get("offset", np.zeros(1)), dtype=np.float64).reshape(-1)
    if weight.ndim > 1 and len(bias) == len(weight):
        bias = bias[weight.any(axis=tuple(range(1, weight.ndim)))]
    weight = weight.reshape(-1)
    weight = weight[:: 1 + weight.size // _SAMPLE]
    squares = weight * weight
    square = float(squares.sum())  # sums without BLAS, whose threads cost more than they give here
    if not np.isfinite(square) or square <= 0.0:
        return [0.0, 0.0, 0.0, 0.0]
    largest = float(max(weight.max(), -weight.min()))
    spread = 0.5 * np.log2(square) - 0.25 * np.log2(float(np.einsum("i,i->", squares, squares)))
    skew = float(np.einsum("i,i->", squares, weight)) / square**1.5
    level = float(bias.sum()) / largest / max(1.0, np.sqrt(bias.size))
    return [np.log2(largest), spread, 4.0 * skew, np.tanh(level)]


def sketch_distances(sketch: FloatArray, others: FloatArray) -> FloatArray:
    """`(n,)` Euclidean distances from one sketch to `others (n, 32)`."""
    return np.asarray(np.sqrt(np.square(others - sketch).sum(axis=1)))


def box_sketch(lo: FloatArray, hi: FloatArray) -> FloatArray:
    """`(32,)` float32: the bounds on 16 fixed coordinates (all of them, padded, when there are fewer)."""
    size = len(lo)
    chosen = np.arange(size) if size <= 16 else np.sort(np.random.default_rng(size).permutation(size)[:16])
    out = np.zeros((2, 16), dtype=np.float32)
    with np.errstate(over="ignore"):
        out[0, : len(chosen)], out[1, : len(chosen)] = lo[chosen], hi[chosen]
    return out.reshape(-1)
