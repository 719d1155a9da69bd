"""How the linear equations of a variant differ from the original's, and where a core's literals went.

Both are hints for reuse: a core is always re-checked on the variant, whatever is said here.
"""

from __future__ import annotations

import numpy as np

from mucg4.model.network import Network
from mucg4.ops.arrays import FloatArray
from mucg4.ops.base import Affine
from mucg4.relate.align import Alignment
from mucg4.smt.encode import Literal


def classify(original: Network, variant: Network, alignment: Alignment) -> dict[str, int]:
    """Counts of the original's equations of pre-activations and outputs by what happened to them on the variant.

    `unchanged`; `numerical`: other coefficients, none of them gone; `structural`: a coefficient became
    zero, or the neuron is absent. Columns of absent neurons count as coefficients that became zero. Equations between
    nodes that are not aligned (sums within a layer) are not counted.
    """
    counts = {"unchanged": 0, "numerical": 0, "structural": 0}
    last, end = len(original.nodes) - 1, len(variant.nodes) - 1
    nodes = {**alignment.nodes, last: end}
    neurons = {**alignment.neurons, last: np.arange(original.output_size)}
    for k, other in nodes.items():
        node = original.nodes[k]
        if not isinstance(node.op, Affine) or len(node.inputs) != 1 or node.inputs[0] not in neurons:
            continue
        if variant.nodes[other].inputs != (nodes[node.inputs[0]],):
            continue
        ours, theirs = _rows(original, k), _rows(variant, other)
        rows, columns = neurons[k], neurons[node.inputs[0]]
        present, kept = np.flatnonzero(rows >= 0), np.flatnonzero(columns >= 0)
        new = np.zeros_like(ours)
        new[np.ix_(present, kept)] = theirs[np.ix_(rows[present], columns[kept])]
        new[present, -1] = theirs[rows[present], -1]
        gone = np.any((ours[:, :-1] != 0) & (new[:, :-1] == 0), axis=1)
        gone[rows < 0] = True
        same = np.all(ours == new, axis=1) & ~gone
        counts["unchanged"] += int(same.sum())
        counts["structural"] += int(gone.sum())
        counts["numerical"] += int((~gone & ~same).sum())
    return counts


def _rows(network: Network, k: int) -> FloatArray:
    """(size, inputs + 1) weights and bias of an affine node with one input."""
    node = network.nodes[k]
    assert isinstance(node.op, Affine)
    weight = node.op.linear([np.eye(network.nodes[node.inputs[0]].size)]).T
    bias = node.op.bias()
    return np.concatenate([weight, (np.zeros(node.size) if bias is None else bias)[:, None]], axis=1)


def move(literals: tuple[Literal, ...], alignment: Alignment) -> frozenset[Literal]:
    """The literals on the variant's neurons; those of absent neurons are dropped (a stronger obligation)."""
    moved = (
        (alignment.nodes[node], int(alignment.neurons[node][index]), sign)
        for node, index, sign in literals
        if node in alignment.nodes
    )
    return frozenset(lit for lit in moved if lit[1] >= 0)
