"""Draws how the regions of a proof cover the box: boxes on the two inputs split most, or the tree as nested strips.

Where most splits are of inputs: the regions at which a check ends, projected on these two inputs, drawn from large to
small; they overlap where other inputs tell them apart. Else: one strip per tree node, halves below their whole, in the
colour of the layer that is split there. Other colours say by how much a region is closed, against the other ones.
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
from mucg4.ops.arrays import FloatArray
from mucg4.reuse.explain import named
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
SHALLOWEST = 4096  # strips of a tree narrower than one in so many are left out; not measured
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
    shapes, colours, deepest, left = [], [], 1, 0.0
    whole = len(proof.trees)
    for tree, m in sorted(zip(proof.trees, found, strict=True), key=lambda pair: -len(pair[0])):
        closeness = colormaps["viridis"](_ranks(_closeness(m, tree)))
        stack = [(0, left / whole, (left + 1) / whole, 0)]
        left += 1
        while stack:
            k, x0, x1, depth = stack.pop()
            if not m.seen[k] or x1 - x0 < 1 / SHALLOWEST:
                continue
            inner = tree.left[k] >= 0 and bool(m.seen[tree.left[k]] or m.seen[tree.right[k]])
            shapes.append([(x0, depth), (x1, depth), (x1, depth + 1), (x0, depth + 1)])
            colours.append(colour[int(tree.node[k])] if inner else closeness[k])
            deepest = max(deepest, depth + 1)
            if inner:
                middle = (x0 + x1) / 2
                stack += [(int(tree.left[k]), x0, middle, depth + 1), (int(tree.right[k]), middle, x1, depth + 1)]
    axes.add_collection(PolyCollection(shapes, facecolors=colours, edgecolors="white", linewidths=0.2))
    axes.set_xlim(0, 1)
    axes.set_ylim(deepest, 0)
    axes.set_xlabel("share of the box, halved at each split")
    axes.set_ylabel("splits")
    names = {k: query.network.nodes[k].name or f"node {k}" for k in layers}
    patches = [Patch(color=colour[k], label=f"split in {names[k] if k else 'the input'}") for k in layers]
    if patches:
        axes.legend(handles=patches, loc="lower right", fontsize=7)
    axes.set_title(f"{proof.leaves} leaves in {whole} {'tree' if whole == 1 else 'trees'}; dark: closed by little")
