"""Draws how the regions of a proof cover the box: boxes on the two inputs split most, or the tree as nested strips.

Where most splits are of inputs: the regions at which a check ends, projected on these two inputs, drawn from large to
small; they overlap where other inputs tell them apart. Else: one strip per tree node, as wide as it has regions below,
in the colour of the layer that is split there. What closes a region by little, against the other ones, is dark.
matplotlib is imported here only, without its global state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mucg4.check.margins import Margins
from mucg4.errors import InputError
from mucg4.files import write_atomic
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Query
from mucg4.ops.arrays import FloatArray, IntArray
from mucg4.reuse.explain import layer, named
from mucg4.reuse.survey import ends

ENDINGS = ("png", "svg", "pdf")  # of pictures; given
LAYERS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # given: see `mucg4.bench.plot`
MANY = 1000  # regions that are drawn without lines between them; not measured
DPI = 160  # dots per inch; not measured


def draw(proof: Proof, query: Query, found: Sequence[Margins], path: Path) -> None:
    """Write the picture; its kind is the ending of the name. Raises `InputError` for another one, or no matplotlib."""
    import io

    kind = path.suffix[1:].lower()
    if kind not in ENDINGS:
        raise InputError(f"pictures are written as {', '.join(ENDINGS)}, not {path.suffix or 'without an ending'}")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("drawing needs matplotlib, which is not installed") from error
    splits: Counter[tuple[int, int]] = Counter()
    for tree in proof.trees:
        inner = tree.left >= 0
        splits.update(zip(tree.node[inner].tolist(), tree.index[inner].tolist(), strict=True))
    with matplotlib.rc_context({"svg.hashsalt": "mucg4", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(7.0, 5.5), layout="constrained")
        axes = figure.add_subplot()
        inputs = [i for (node, i), _ in splits.most_common() if node == 0]
        if 2 * sum(count for (node, _), count in splits.items() if node == 0) > splits.total():
            _boxes(axes, proof, query, found, inputs)
        else:
            _strips(axes, proof, query, found)
        content = io.BytesIO()
        figure.savefig(content, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    write_atomic(path, content.getvalue())


def _closeness(found: Margins, tree: Tree) -> FloatArray:
    """(N,) the least margin of what closes a tree node, nan where nothing does."""
    out = np.full(len(tree), np.inf)
    held = found.value > 0
    np.minimum.at(out, tree.table.at[held], found.value[held])
    return np.where(np.isfinite(out), out, np.nan)


def _ranks(values: FloatArray) -> FloatArray:
    """Shares in [0, 1] of the values that are smaller; 0 for nan."""
    known = np.sort(values[np.isfinite(values)])
    return np.where(np.isfinite(values), np.searchsorted(known, values) / max(len(known), 1), 0.0)


def _boxes(axes: Any, proof: Proof, query: Query, found: Sequence[Margins], inputs: list[int]) -> None:
    from matplotlib.collections import PolyCollection

    a, b = (*inputs, *(i for i in range(query.network.input_size) if i not in inputs), inputs[0])[:2]
    corners, closed = [], []
    for tree, m in zip(proof.trees, found, strict=True):
        whole = query.cases[tree.case].box
        lo, hi = (np.repeat(v[None, [a, b]], len(tree), axis=0) for v in (whole.lo, whole.hi))
        for k in np.flatnonzero(tree.left >= 0).tolist():  # parents stand before children
            for child, side in ((int(tree.left[k]), hi), (int(tree.right[k]), lo)):
                lo[child], hi[child] = lo[k], hi[k]
                if tree.node[k] == 0 and tree.index[k] in (a, b):
                    side[child, 0 if tree.index[k] == a else 1] = tree.threshold[k]
        own = ends(tree, m)
        corners.append(np.concatenate([lo, hi], axis=1)[own])
        closed.append(_closeness(m, tree)[own])
    box, rank = np.concatenate(corners), _ranks(np.concatenate(closed))
    order = np.argsort(-(box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]), kind="stable")
    x0, y0, x1, y1 = box[order].T
    shapes = np.stack([np.stack([x0, x1, x1, x0], 1), np.stack([y0, y0, y1, y1], 1)], axis=2)
    boxes = PolyCollection(list(shapes), array=rank[order], cmap="viridis", edgecolors="#333333", linewidths=0.3)
    axes.add_collection(boxes)
    axes.autoscale_view()
    axes.set_xlabel(named(query, 0, a))
    axes.set_ylabel(named(query, 0, b))
    axes.set_title(f"{len(order)} regions on the two inputs split most")
    axes.figure.colorbar(boxes, label="share of regions closed by less")


def _strips(axes: Any, proof: Proof, query: Query, found: Sequence[Margins]) -> None:
    from matplotlib import colormaps
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    layers = sorted({int(k) for tree in proof.trees for k in tree.node[tree.left >= 0].tolist()})
    colour = {k: to_rgba(LAYERS[i % len(LAYERS)]) for i, k in enumerate(layers)}
    grey = colormaps["Greys_r"]
    closed = [_closeness(m, tree) for tree, m in zip(proof.trees, found, strict=True)]
    ranks = np.split(_ranks(np.concatenate(closed)), np.cumsum([len(c) for c in closed])[:-1])
    below = [_ends_below(tree, m) for tree, m in zip(proof.trees, found, strict=True)]
    total = sum(int(b[0]) for b in below)
    shapes, colours, deepest, begin = [], [], 1, 0
    for number in sorted(range(len(proof.trees)), key=lambda k: -int(below[k][0])):
        tree, width = proof.trees[number], below[number]
        stack = [(0, begin, 0)]
        begin += int(width[0])
        while stack:
            k, x, depth = stack.pop()
            left, right, size = int(tree.left[k]), int(tree.right[k]), int(width[k])
            if size == 0:
                continue
            inner = left >= 0 and width[left] + width[right] > 0
            shapes.append([(x, depth), (x + size, depth), (x + size, depth + 1), (x, depth + 1)])
            colours.append(colour[int(tree.node[k])] if inner else grey(0.1 + 0.8 * float(ranks[number][k])))
            deepest = max(deepest, depth + 1)
            if inner:
                stack += [(left, x, depth + 1), (right, x + int(width[left]), depth + 1)]
    lines = 0.3 if total < MANY else 0.0
    axes.add_collection(PolyCollection(shapes, facecolors=colours, edgecolors="white", linewidths=lines))
    axes.set_xlim(0, total)
    axes.set_ylim(deepest, 0)
    axes.set_xlabel("regions at which a check ends, side by side")
    axes.set_ylabel("splits")
    patches = [Patch(color=colour[k], label=f"split in {layer(query, k) if k else 'the input'}") for k in layers]
    patches.append(Patch(facecolor=grey(0.3), label="closed (dark: by little)"))
    axes.legend(handles=patches, loc="lower right", fontsize=7)
    trees = "1 tree" if len(proof.trees) == 1 else f"{len(proof.trees)} trees"
    axes.set_title(f"{total} regions in {trees}")


def _ends_below(tree: Tree, found: Margins) -> IntArray:
    """(N,) how many regions at which a check ends lie in each subtree."""
    out: IntArray = ends(tree, found).astype(np.int64)
    for k in np.flatnonzero(tree.left >= 0)[::-1].tolist():  # children stand after their parents
        out[k] += out[tree.left[k]] + out[tree.right[k]]
    return out
