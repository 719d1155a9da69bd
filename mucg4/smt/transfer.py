"""What a stored proof says to the SMT engine: how the variant's equations differ from the original's, and the cores.

Both are hints for reuse: a core is always re-checked on the variant, whatever is said here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mucg4.model.network import Network
from mucg4.model.proof import Tree
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.ops.base import Affine
from mucg4.relate.align import Alignment
from mucg4.smt.encode import Literal
from mucg4.smt.smt import Core


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


def cores_of(trees: Sequence[Tree]) -> list[Core]:
    """The cores of a proof's leaves, with how many leaves rest on each; of refuted inner nodes, all leaves below.

    A core is the literals that a refutation names, else all on its path. What speaks of halves of an input is no set of
    phases and is left out; where bounds alone closed a leaf, its path counts for every conjunction of the tree.
    """
    found: Counter[tuple[int, int, tuple[Literal, ...]]] = Counter()
    for tree in trees:
        below, parents = tree.leaf_counts(), tree.parents()
        closed = set()
        for r in tree.refutations:
            closed.add(r.at)
            literals = _phases(tree, parents, _path(parents, r.at) if r.core is None else r.core)
            if literals is not None:
                found[tree.case, r.conjunction, literals] += int(below[r.at])
        for leaf in tree.leaves.tolist():
            path = _path(parents, leaf)
            literals = None if closed & {0, *path} else _phases(tree, parents, path)
            if literals is not None:
                for conjunction in tree.conjunctions or ():
                    found[tree.case, conjunction, literals] += 1
    return [Core(case, conjunction, literals, leaves) for (case, conjunction, literals), leaves in found.items()]


def _path(parents: IntArray, k: int) -> list[int]:
    """The tree nodes from below the root to node k."""
    out = []
    while parents[k] >= 0:
        out.append(k)
        k = int(parents[k])
    return out


def _phases(tree: Tree, parents: IntArray, nodes: Sequence[int]) -> tuple[Literal, ...] | None:
    """The phase literals that introduced these tree nodes; None where one of them is no phase literal."""
    out = set()
    for k in nodes:
        p = int(parents[k])
        if p < 0 or tree.threshold[p] != 0.0:
            return None
        out.add((int(tree.node[p]), int(tree.index[p]), 1 if tree.right[p] == k else -1))
    return tuple(sorted(out))
