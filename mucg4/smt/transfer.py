"""How the linear equations of a variant differ from the original's, and where the original's neurons went.

Both are hints for reuse: a core is always re-checked on the variant, whatever is said here.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mucg4.errors import UnsupportedError
from mucg4.model.network import Network
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.ops.base import Affine
from mucg4.smt.encode import Literal

Alignment = Mapping[
    int, IntArray
]  # network node -> (size,) position in the variant of each original neuron, -1: absent


def align(original: Network, variant: Network) -> dict[int, IntArray]:
    """Neurons of the original in the variant: by position, or where a layer's width changed by nearest rows.

    Rows are compared over the inputs already aligned (squared distance of weights and bias, optimal
    assignment). Raises `UnsupportedError` when the graphs are not made of the same operators.
    """
    shape = [(n.op.kind if n.op else "", n.inputs) for n in original.nodes]
    if shape != [(n.op.kind if n.op else "", n.inputs) for n in variant.nodes]:
        raise UnsupportedError("cores can be moved between networks of the same graph only")
    out: dict[int, IntArray] = {}
    for k, (node, other) in enumerate(zip(original.nodes, variant.nodes, strict=True)):
        if node.size == other.size:
            out[k] = np.arange(node.size)
        elif isinstance(node.op, Affine) and len(node.inputs) == 1:
            out[k] = _assign(_rows(original, k), _rows(variant, k), out[node.inputs[0]])
        elif node.op is not None and len(node.inputs) == 1:
            out[k] = out[node.inputs[0]]
        else:
            raise UnsupportedError(f"cores cannot be moved: node {node.name!r} changed its size")
    return out


def _rows(network: Network, k: int) -> FloatArray:
    """(size, inputs + 1) weights and bias of an affine node with one input."""
    node = network.nodes[k]
    assert isinstance(node.op, Affine)
    weight = node.op.linear([np.eye(network.nodes[node.inputs[0]].size)]).T
    bias = node.op.bias()
    return np.concatenate([weight, (np.zeros(node.size) if bias is None else bias)[:, None]], axis=1)


def _assign(ours: FloatArray, theirs: FloatArray, columns: IntArray) -> IntArray:
    from scipy.optimize import linear_sum_assignment

    kept = np.flatnonzero(columns >= 0)
    a = np.concatenate([ours[:, kept], ours[:, -1:]], axis=1)
    b = np.concatenate([theirs[:, columns[kept]], theirs[:, -1:]], axis=1)
    cost = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    first, second = linear_sum_assignment(cost)
    out = np.full(len(ours), -1)
    out[first] = second
    return out


def classify(original: Network, variant: Network, alignment: Alignment) -> dict[str, int]:
    """Counts of the original's neuron equations by what happened to them on the variant.

    `unchanged`; `numerical`: other coefficients, none of them gone; `structural`: a coefficient became
    zero, or the neuron is absent. Columns of absent neurons count as coefficients that became zero.
    """
    counts = {"unchanged": 0, "numerical": 0, "structural": 0}
    for k, node in enumerate(original.nodes):
        if not isinstance(node.op, Affine) or len(node.inputs) != 1:
            continue
        ours, theirs, columns = _rows(original, k), _rows(variant, k), alignment[node.inputs[0]]
        new = np.zeros_like(ours)
        present, kept = np.flatnonzero(alignment[k] >= 0), np.flatnonzero(columns >= 0)
        new[np.ix_(present, kept)] = theirs[np.ix_(alignment[k][present], columns[kept])]
        new[present, -1] = theirs[alignment[k][present], -1]
        gone = np.any((ours[:, :-1] != 0) & (new[:, :-1] == 0), axis=1)
        gone[alignment[k] < 0] = True
        same = np.all(ours == new, axis=1) & ~gone
        counts["unchanged"] += int(same.sum())
        counts["structural"] += int(gone.sum())
        counts["numerical"] += int((~gone & ~same).sum())
    return counts


def move(literals: tuple[Literal, ...], alignment: Alignment) -> frozenset[Literal]:
    """The literals on the variant's neurons; those of absent neurons are dropped (a stronger obligation)."""
    moved = ((node, int(alignment[node][index]), sign) for node, index, sign in literals)
    return frozenset(lit for lit in moved if lit[1] >= 0)
