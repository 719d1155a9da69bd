"""A network as affine layers between elementwise nodes, in units that can change places.

A unit is a neuron of a dense layer or a channel of a convolution. Two ways lead to this form: networks
of dense layers, convolutions, sums and elementwise nodes as they stand; and chains of any affine
operators by writing small ones out as matrices. Other networks are compared operator by operator.

Converters and tools write one function in several ways. In the form, layers that follow each other with nothing between
them are one (products of large matrices and convolutions stay), and a layer of opposite pairs and the layer that reads
them are one: `f(u) - f(-s u) / s = (left + right) u`, as `mucg4.read.unsplit` has it, here up to rounding and noise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mucg4.model.network import Network, Node
from mucg4.ops.affine import Dense, Sum
from mucg4.ops.arrays import FloatArray
from mucg4.ops.base import Affine, Nonlinear
from mucg4.ops.conv import Conv
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

_LARGEST = 1 << 23  # entries of a matrix that may be written out; not measured
_OPPOSITE = 0.05  # relative distance of two rows from opposites up to which they count as a pair; not measured


@dataclass(frozen=True, eq=False)
class Layer:
    """One affine map. `weight (units, sources, k)`: `k` numbers per pair of a unit and a unit of the layer it reads.

    `bias (units, spread)`: `spread` values (pixels of a channel) belong to each unit. `reads` is the
    number of the layer whose units are the sources (-1: the input). `tied` is the number of an earlier
    layer to which this one is added, so that both have the same units in the same order (-1: none).
    The units of a `pinned` layer are taken to stay in place.
    """

    weight: FloatArray
    bias: FloatArray
    reads: int
    tied: int = -1
    pinned: bool = False

    @property
    def units(self) -> int:
        return len(self.weight)

    @property
    def spread(self) -> int:
        return int(self.bias.shape[1])


@dataclass(frozen=True, eq=False)
class Form:
    """Layers in topological order. `values` lists each elementwise node as (what it reads, itself, layer of its units).

    `last` is the layer whose units are the network's outputs, which stay in place. `pairs` units of layers that are no
    longer there were opposites of others.
    """

    layers: tuple[Layer, ...]
    values: tuple[tuple[int, int, int], ...]
    last: int
    pairs: int = 0

    def summed(self, number: int) -> bool:
        """True when other layers are added to this one."""
        return any(layer.tied == number for layer in self.layers)


def form_of(network: Network) -> Form | None:
    """The layered form, or None where it does not exist."""
    form = _graph_form(network) or _chain_form(network)
    return None if form is None else _Merged(network, form).form()


def balanced(network: Network, form: Form) -> tuple[Form, list[FloatArray]]:
    """The form with rows of length 1 where functions let positive factors through, and their lengths `(units,)` before.

    Tools scale the neurons of a layer one by one, and what reads them by the inverse (equalisation before quantising):
    in this form nothing of that is left. Lengths are 1 where nothing may be scaled.
    """
    layers = list(form.layers)
    sizes: list[FloatArray] = [np.ones(layer.units) for layer in layers]
    functions: dict[int, list[int]] = {}
    for _, node, number in form.values:
        functions.setdefault(number, []).append(node)
    for number in range(len(layers)):
        layer, own = layers[number], functions.get(number, [])
        readers = [k for k, other in enumerate(layers) if other.reads == number]
        free = number != form.last and not layer.pinned and layer.tied < 0 and not form.summed(number)
        even = own and all(isinstance(network.nodes[k].op, TwoPiece) for k in own)
        if not (free and even and all(layers[k].weight.shape[1] == layer.units for k in readers)):
            continue
        size = np.sqrt(np.square(layer.weight).sum(axis=(1, 2)))
        sizes[number] = size = np.where(size > 0, size, 1.0)
        layers[number] = replace(layer, weight=layer.weight / size[:, None, None], bias=layer.bias / size[:, None])
        for k in readers:
            layers[k] = replace(layers[k], weight=layers[k].weight * size[None, :, None])
    return replace(form, layers=tuple(layers)), sizes


# --- networks as they stand ----------------------------------------------------------------------------------------


def _graph_form(network: Network) -> Form | None:
    layers: list[Layer] = []
    leader, spreads = [-1], [1]  # per node: the layer whose units it holds, and values per unit
    values: list[tuple[int, int, int]] = []
    for k, node in enumerate(network.nodes[1:], 1):
        at = node.inputs[0]
        if isinstance(node.op, Nonlinear) and len(node.inputs) == 1 and leader[at] >= 0:
            values.append((at, k, leader[at]))
            leader.append(leader[at])
            spreads.append(spreads[at])
        elif isinstance(node.op, Sum):
            found = _tie(layers, [leader[i] for i in node.inputs])
            if found is None:
                return None
            leader.append(found)
            spreads.append(layers[found].spread)
        else:
            layer = _plain_layer(node, layers, leader[at], spreads[at])
            if layer is None:
                return None
            leader.append(len(layers))
            spreads.append(layer.spread)
            layers.append(layer)
    return Form(tuple(layers), tuple(values), leader[-1])


def _tie(layers: list[Layer], leaders: list[int]) -> int | None:
    """The layer that leads a sum; the later ones are tied to it. None when the input itself is a term.

    Terms whose units are of different kinds (neurons here, channels there) are pinned; the finest leads.
    """
    if min(leaders) < 0:
        return None
    terms = sorted(set(leaders))
    shapes = {layers[i].bias.shape for i in terms}
    if len(shapes) > 1:
        for i in range(len(layers)):
            if i in terms or layers[i].tied in terms:
                layers[i] = replace(layers[i], pinned=True)
        return min(terms, key=lambda i: layers[i].spread)
    for i in terms[1:]:
        if layers[i].tied not in (-1, terms[0]):
            return None
        layers[i] = replace(layers[i], tied=terms[0], pinned=layers[i].pinned or layers[terms[0]].pinned)
    return terms[0]


def _plain_layer(node: Node, layers: list[Layer], reads: int, spread: int) -> Layer | None:
    """A dense layer or convolution on the units of layer `reads`."""
    op = node.op
    if isinstance(op, Conv):
        if op.window.group != 1 or (reads >= 0 and op.window.channels != layers[reads].units):
            return None
        bias = np.zeros(node.size) if op.offset is None else op.offset
        return Layer(op.weight.reshape(*op.weight.shape[:2], -1), bias.reshape(len(op.weight), -1), reads)
    if isinstance(op, Dense) and op.weight.shape[1] % spread == 0:
        return Layer(op.weight.reshape(node.size, -1, spread), op.offset.reshape(-1, 1), reads)
    return None


# --- chains, written out -------------------------------------------------------------------------------------------


def _chain_form(network: Network) -> Form | None:
    nodes = network.nodes
    if any(node.inputs != (k - 1,) for k, node in enumerate(nodes) if k) or not network.nonlinear:
        return None
    layers: list[Layer] = []
    values: list[tuple[int, int, int]] = []
    start, spread = 0, 1
    for end in (*network.nonlinear, len(nodes)):
        inner = nodes[start + 1 : end]
        if not inner:
            return None
        layer = _plain_layer(inner[0], layers, len(layers) - 1, spread) if len(inner) == 1 else None
        layer = layer or _written_out(inner, len(layers) - 1, spread)
        if layer is None:
            return None
        if end < len(nodes):
            values.append((end - 1, end, len(layers)))
        layers.append(layer)
        start, spread = end, layer.spread
    return Form(tuple(layers), tuple(values), len(layers) - 1)


def _written_out(nodes: tuple[Node, ...], reads: int, spread: int) -> Layer | None:
    """The matrix and bias of consecutive affine operators."""
    size = nodes[-1].size
    if size * size > _LARGEST:
        return None
    rows, bias = np.eye(size), np.zeros(size)
    for node in reversed(nodes):
        assert isinstance(node.op, Affine)
        offset = node.op.bias()
        if offset is not None:
            bias = bias + rows @ offset
        rows = node.op.adjoint(rows)[0]
        if rows.size > _LARGEST:
            return None
    return None if rows.shape[1] % spread else Layer(rows.reshape(size, -1, spread), bias.reshape(-1, 1), reads)


# --- the same function with fewer layers ---------------------------------------------------------------------------


class _Merged:
    """A form whose layers are put together one by one; `layers[i]` is None for one that went into its reader."""

    def __init__(self, network: Network, form: Form) -> None:
        self.network, self.old, self.pairs = network, form, 0
        self.layers: list[Layer | None] = list(form.layers)
        self.activations: dict[int, list[int]] = {}  # per layer the elementwise nodes on its units
        for _, node, number in form.values:
            self.activations.setdefault(number, []).append(node)
        self.reads = [layer.reads for layer in form.layers]

    def form(self) -> Form:
        """The form with as few layers as there are."""
        for number in range(len(self.layers)):
            while self._take_in(number):
                pass
        left = [k for k, layer in enumerate(self.layers) if layer is not None]
        if len(left) == len(self.layers):
            return self.old
        place = {k: i for i, k in enumerate(left)} | {-1: -1}
        kept = [layer for layer in self.layers if layer is not None]
        layers = [replace(layer, reads=place[layer.reads], tied=place[layer.tied]) for layer in kept]
        values = [(read, node, place[number]) for read, node, number in self.old.values if number in place]
        return Form(tuple(layers), tuple(values), place[self.old.last], self.pairs)

    def _take_in(self, number: int) -> bool:
        """Put the layer that this one reads into it, where nothing else needs that one."""
        second, before = self.layers[number], self.reads[number]
        first = self.layers[before] if before >= 0 else None
        ends = before == self.old.last or self.reads.count(before) != 1
        if first is None or second is None or ends or first.pinned or first.tied >= 0 or self.old.summed(before):
            return False
        between = self.activations.get(before, [])
        if not between:
            made = _composed(first, second)
        else:
            found = _unsplit(first, self._pieces(between), second, self._rectified(number))
            made, pairs = found or (None, 0)
            self.pairs += pairs
        if made is None:
            return False
        self.layers[before], self.layers[number] = None, made
        self.reads[number], self.reads[before] = first.reads, -2  # a number that no layer has
        return True

    def _pieces(self, nodes: list[int]) -> TwoPiece | None:
        op = self.network.nodes[nodes[0]].op
        return op if len(nodes) == 1 and isinstance(op, TwoPiece) else None

    def _rectified(self, number: int) -> bool:
        """Whether the units of a layer are read through functions alone that are zero below zero."""
        readers = self.activations.get(number, [])
        silent = all(silent_when_low(self.network, node) for node in readers)
        return number != self.old.last and len(readers) > 0 and silent


def _composed(first: Layer, second: Layer) -> Layer | None:
    """One layer for two; None where that would be large, or a convolution of convolutions."""
    if second.weight.shape[1] != first.units or second.units * first.weight[0].size > _LARGEST:
        return None
    if second.weight.shape[2] == 1 and first.spread == second.spread:
        weight = np.tensordot(second.weight[:, :, 0], first.weight, 1)
        return replace(second, weight=weight, bias=second.weight[:, :, 0] @ first.bias + second.bias, reads=first.reads)
    if first.weight.shape[2] == 1 and second.weight.shape[2] == first.spread:  # each value of a unit by itself
        weight = np.einsum("uak,as->usk", second.weight, first.weight[:, :, 0])
        bias = second.bias + np.einsum("uak,ak->u", second.weight, first.bias)[:, None]
        return replace(second, weight=weight, bias=bias, reads=first.reads)
    return None


def _unsplit(first: Layer, pieces: TwoPiece | None, second: Layer, rectified: bool) -> tuple[Layer, int] | None:
    """The one layer that `second(pieces(first))` nearly is, and how many pairs it had; None where it has other rows."""
    if pieces is None or second.weight.shape[1:] != (first.units, 1) or second.spread != first.spread:
        return None
    table = second.weight[:, :, 0]
    terms = np.count_nonzero(table, axis=1)
    if terms.max(initial=0) > 2 or not np.any(terms == 2):
        return None
    every = np.arange(len(table))
    order = np.argsort(table == 0, axis=1, kind="stable")
    i, j = order[:, 0], order[:, 1]
    c, d = table[every, i], np.where(terms == 2, table[every, j], 0.0)
    rows = np.column_stack([first.weight.reshape(first.units, -1), first.bias])
    size = np.sqrt(np.square(rows).sum(axis=1))
    scale = np.divide(size[j], size[i], out=np.zeros(len(i)), where=size[i] > 0)
    off = np.sqrt(np.square(rows[j] + scale[:, None] * rows[i]).sum(axis=1))
    opposite = (scale > 0) & (off <= _OPPOSITE * size[j]) & (abs(c + d * scale) <= _OPPOSITE * abs(c))
    pair = (terms == 2) & opposite
    through = (terms == 1) & (c > 0) & rectified & (pieces.left == 0.0) & ~second.bias.any(axis=1)
    if not np.all(pair | through | (terms == 0)):
        return None
    factor = np.where(pair, c * (pieces.left + pieces.right), np.where(through, c * pieces.right, 0.0))
    weight = first.weight[i] * factor[:, None, None]
    made = replace(second, weight=weight, bias=first.bias[i] * factor[:, None] + second.bias, reads=first.reads)
    return made, int(np.count_nonzero(pair))


# --- small questions -----------------------------------------------------------------------------------------------


def tensors_of(network: Network) -> list[tuple[bool, FloatArray]]:
    """All real-valued parameter arrays in graph order, each with whether it is a bias."""
    out: list[tuple[bool, FloatArray]] = []
    for node in network.nodes:
        held: dict[str, Any] = node.op.parameters() if node.op is not None else {}
        for name in ("weight", "scale", "offset"):
            if isinstance(value := held.get(name), np.ndarray) and value.dtype.kind == "f":
                out.append((name == "offset", value))
    return out


def silent_when_low(network: Network, node: int) -> bool:
    """True when the elementwise node gives 0 for every negative value, as ReLU does."""
    op = network.nodes[node].op
    return isinstance(op, TwoPiece) and op.left == 0.0


def elementwise(network: Network) -> list[tuple[int, tuple[int, ...]]]:
    """The nonlinear nodes with what they read."""
    return [(k, network.nodes[k].inputs) for k in network.nonlinear]
