"""The part of a network of images that some neurons see: backward rows need not carry the rest.

A row that starts at neurons of one tile of an image has coefficients only inside the tile's receptive field, a few
pixels wide in the first layers. A `Cone` holds the nodes below a tile cropped to what the tile sees: convolutions on
smaller images with the padding that is left to them, everything elementwise on fewer components. Its rows are those of
the network with the zeros left out, so bounds and their rounding errors are the same. Nothing is approximated.

Cost. Whole rows of a convolution of c channels on an image of s pixels cost s c per kernel element and output channel;
those of a cone the tile's field instead of s. Small tiles carry little, large ones serve many neurons at once: `tiling`
takes the side with the least estimated cost, counting what building a cone takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from math import prod

import numpy as np

from mucg4.model.network import Network, Node
from mucg4.ops.affine import Index, Scale, Sum
from mucg4.ops.base import Array, Nonlinear, Relaxation
from mucg4.ops.conv import Conv, Window
from mucg4.records import dataclass

Rect = tuple[int, int, int, int]  # top, left, bottom, right (exclusive) in pixels
SIDES = (1, 2, 4, 8)  # of tiles that are tried, in pixels; not measured
BUILD_COST = 1e6  # of one node of a cone, in multiplications; not measured


@dataclass(frozen=True)
class Cone:
    """`nodes` compute, from the components `at[0]` of the input, the components `at[-1]` of a node of the network.

    `old[j]`: the node of the network that `nodes[j]` crops, to the flat components `at[j]`. Crops in between, which
    make images of the same node fit, have -1 and no components.
    """

    nodes: tuple[Node, ...]
    old: tuple[int, ...]
    at: tuple[Array, ...]

    def relaxations(self, known: dict[int, Relaxation], place: Callable[[Array], Array]) -> dict[int, Relaxation]:
        """The relaxations of the cropped nonlinear nodes, of all regions."""
        out = {}
        for j, (node, k) in enumerate(zip(self.nodes, self.old, strict=True)):
            if isinstance(node.op, Nonlinear):
                at, line = place(self.at[j]), known[k]
                lower, upper = (tuple(s[:, at] for s in slopes) for slopes in (line.lower_slopes, line.upper_slopes))
                out[j] = Relaxation(lower, line.lower_offset[:, at], upper, line.upper_offset[:, at])
        return out


class Images:
    """Which nodes of a network are images all the way down to the input, and the cones below them."""

    def __init__(self, network: Network) -> None:
        self.network = network

    @cached_property
    def shapes(self) -> dict[int, tuple[int, int, int]]:
        """Channels, height and width of the input and of the nodes that convolutions and elementwise maps make."""
        nodes = self.network.nodes
        first = [n.op for n in nodes if isinstance(n.op, Conv) and n.inputs == (0,)]
        if not first:
            return {}
        window = first[0].window
        out = {0: (window.channels, window.height, window.width)}
        for k, node in enumerate(nodes[1:], 1):
            if any(i not in out for i in node.inputs):
                continue
            shape, op = out[node.inputs[0]], node.op
            if isinstance(op, Conv):
                if shape == (op.window.channels, op.window.height, op.window.width) and _meets_image(op.window):
                    out[k] = (len(op.weight), *op.window.out)
            elif isinstance(op, Sum | Scale | Nonlinear) and all(out[i] == shape for i in node.inputs):
                out[k] = shape
        return out

    def tiling(self, k: int, neuron: Array, rows: int) -> Iterator[tuple[Array, Cone]] | None:
        """Cones for the neurons `neuron (n,)` of node k, each with the places in `neuron` that it serves.

        None where whole rows cost less. `rows`: how many each neuron needs.
        """
        if k not in self.shapes or not len(neuron):
            return None
        _, height, width = self.shapes[k]
        y, x = np.divmod(neuron % (height * width), width)
        best, pick = rows * len(neuron) * self._cost(k, (0, 0, height, width)), 0
        for side in SIDES:
            if side >= max(height, width):
                break
            tiles = len(np.unique(y // side * width + x // side))
            top, left = max(height // 2 - side, 0), max(width // 2 - side, 0)
            middle = (top, left, min(top + side, height), min(left + side, width))
            cost = rows * len(neuron) * self._cost(k, middle) + tiles * BUILD_COST * k
            if cost < best:
                best, pick = cost, side
        return self._cones(k, y, x, pick) if pick else None

    def _cones(self, k: int, y: Array, x: Array, side: int) -> Iterator[tuple[Array, Cone]]:
        _, height, width = self.shapes[k]
        tile = y // side * width + x // side
        order = np.argsort(tile, kind="stable")
        for own in np.split(order, np.flatnonzero(np.diff(tile[order])) + 1):
            top, left = int(y[own[0]]) // side * side, int(x[own[0]]) // side * side
            yield own, self.cone(k, (top, left, min(top + side, height), min(left + side, width)))

    def _fields(self, k: int, rect: Rect) -> dict[int, Rect]:
        """The pixels of every node that pixels `rect` of node k see."""
        needs = {k: rect}
        for j in range(k, 0, -1):
            if j in needs:
                for i in self.network.nodes[j].inputs:
                    seen = self._seen(j, needs[j])
                    needs[i] = _union(needs[i], seen) if i in needs else seen
        return needs

    def _seen(self, j: int, rect: Rect) -> Rect:
        """The pixels of each input of node j that pixels `rect` of node j see."""
        op = self.network.nodes[j].op
        if not isinstance(op, Conv):
            return rect
        w = op.window
        ends = []
        for axis, size in enumerate((w.height, w.width)):
            first = rect[axis] * w.strides[axis] - w.pads[axis]
            last = (rect[axis + 2] - 1) * w.strides[axis] - w.pads[axis] + (w.kernel[axis] - 1) * w.dilations[axis] + 1
            ends.append((max(first, 0), min(last, size)))
        (top, bottom), (left, right) = ends
        return top, left, bottom, right

    def _cost(self, k: int, rect: Rect) -> float:
        """Multiplications that a row starting in `rect` of node k takes, about."""
        total = 0.0
        for j, r in self._fields(k, rect).items():
            area, op = (r[2] - r[0]) * (r[3] - r[1]), self.network.nodes[j].op
            total += area * self.shapes[j][0] * 10
            if isinstance(op, Conv):
                total += area * prod(op.weight.shape)
        return total

    def cone(self, k: int, rect: Rect) -> Cone:
        """What pixels `rect` of node k see."""
        fields = self._fields(k, rect)
        nodes: list[Node] = []
        old: list[int] = []
        at: list[Array] = []
        new: dict[int, int] = {}
        place = self.network.backend.place
        for j in sorted(fields):
            node, r = self.network.nodes[j], fields[j]
            flat = self._flat(j, r)
            inputs = []
            for i in node.inputs:
                seen = self._seen(j, r)
                if seen != fields[i]:
                    index = _within(seen, fields[i], self.shapes[i][0])
                    size = nodes[new[i]].size
                    nodes.append(Node(Index(place(index), size), (new[i],), "", (len(index),)))
                    old.append(-1)
                    at.append(np.zeros(0, dtype=np.int64))
                    inputs.append(len(nodes) - 1)
                else:
                    inputs.append(new[i])
            new[j] = len(nodes)
            op = node.op
            if isinstance(op, Conv):
                op = self._cropped(op, r, self._seen(j, r), place(flat))
            elif isinstance(op, Scale):
                op = replace(op, scale=op.scale[place(flat)], offset=op.offset[place(flat)], offset_magnitude=None)
            nodes.append(Node(op, tuple(inputs), "", (len(flat),)))
            old.append(j)
            at.append(flat)
        return Cone(tuple(nodes), tuple(old), tuple(at))

    def _flat(self, j: int, rect: Rect) -> Array:
        """Flat components of node j in the pixels `rect`, in order."""
        channels, height, width = self.shapes[j]
        return _within(rect, (0, 0, height, width), channels)

    @staticmethod
    def _cropped(op: Conv, rect: Rect, seen: Rect, flat: Array) -> Conv:
        w = op.window
        pads = []
        for axis in (0, 1):
            before = max(0, seen[axis] - (rect[axis] * w.strides[axis] - w.pads[axis]))
            span = (rect[axis + 2] - rect[axis] - 1) * w.strides[axis] + (w.kernel[axis] - 1) * w.dilations[axis] + 1
            pads.append((before, span - before - (seen[axis + 2] - seen[axis])))
        (top, bottom), (left, right) = pads
        window = Window(
            w.channels,
            seen[2] - seen[0],
            seen[3] - seen[1],
            w.kernel,
            w.strides,
            (top, left, bottom, right),
            w.dilations,
            w.group,
        )
        return Conv(window, op.weight, None if op.offset is None else op.offset[flat])


def _meets_image(w: Window) -> bool:
    """True when no position of the window lies in the padding alone."""
    spans = [(k - 1) * d + 1 for k, d in zip(w.kernel, w.dilations, strict=True)]
    return all(max(w.pads[axis], w.pads[axis + 2]) < spans[axis] for axis in (0, 1))


def _union(a: Rect, b: Rect) -> Rect:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _within(inner: Rect, outer: Rect, channels: int) -> Array:
    """Flat indices of the pixels `inner` in an image of the pixels `outer`."""
    height, width = outer[2] - outer[0], outer[3] - outer[1]
    rows = np.arange(inner[0], inner[2]) - outer[0]
    columns = np.arange(inner[1], inner[3]) - outer[1]
    every = np.arange(channels)[:, None, None] * (height * width) + rows[:, None] * width + columns
    return every.ravel()
