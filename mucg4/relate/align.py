"""Which neuron of the new network is which neuron of the old one.

Layer by layer from the input: rows are compared after their columns were put into the new order. Units
that stayed in place are taken first; the others go to their most similar partner, one to one. A
heuristic: a wrong pair costs time in the replay, never soundness.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

import numpy as np

from mucg4.model.network import Network
from mucg4.ops.arrays import BoolArray, FloatArray, IntArray
from mucg4.records import dataclass
from mucg4.relate.layers import Form, Layer, elementwise, form_of, silent_when_low

IN_PLACE = 0.98  # similarity in place above which nothing better is looked for; not measured
SLACK = 0.4  # where most units are in place, one moves only for a partner better by this; not measured
LEAST = 0.9  # and at least this similar; not measured


@dataclass(frozen=True, eq=False)
class Alignment:
    """Neuron map from an old network to a new one, for the input, every pre-activation and elementwise node.

    `nodes`: old node -> new node. `neurons[old node] (size,)`: new neuron, or -1 where it is absent.
    `phase[old node] (size,)`: the sign of the pre-activation that weights alone fix in the new network
    (-1 also for a removed ReLU neuron, which acts as an inactive one), 0 where it varies. A hint: the
    replay bounds the new network itself. `scale[old node] (size,)`: what values are multiplied by, 1 where nothing is
    said.
    """

    nodes: dict[int, int]
    neurons: Mapping[int, IntArray] = field(repr=False)
    phase: Mapping[int, IntArray] = field(repr=False)
    scale: Mapping[int, FloatArray] = field(default_factory=dict, repr=False)

    @property
    def trivial(self) -> bool:
        """True when every neuron keeps its node, place and scale."""
        return (
            not self.scale
            and all(k == v for k, v in self.nodes.items())
            and all(np.array_equal(a, np.arange(len(a))) and not self.phase[k].any() for k, a in self.neurons.items())
        )

    def scale_of(self, node: int, index: IntArray) -> FloatArray:
        """What the values of components of an old node are multiplied by, `(n,)`; 1 for those that it does not have."""
        scale = self.scale.get(node, np.ones(0))
        return np.append(scale, 1.0)[np.minimum(index, len(scale))]


@dataclass(frozen=True, eq=False)
class UnitMap:
    """One layer's units: `new (old units,)` partner or -1; `dead (old units,)` partner has a zero row or no reader."""

    new: IntArray
    sign: IntArray  # (old units,) int8: fixed sign of a partner whose row is zero, else 0
    unread: BoolArray  # (old units,) bool: partner exists but nothing reads it any more


def alignment_of(old: Network, new: Network) -> Alignment | None:
    """By units of layers where both networks have that form and it fits, else by position; None where neither does."""
    ours, theirs = form_of(old), form_of(new)
    maps = None if ours is None or theirs is None else match_units(ours, theirs)
    if ours is None or theirs is None or maps is None:
        return by_position(old, new)
    return from_units(old, ours, theirs, maps)


def by_position(old: Network, new: Network) -> Alignment | None:
    """Neurons keep their place in the sequence of pre-activations; None when the sizes differ."""
    pairs = [(0, 0)]
    ours, theirs = elementwise(old), elementwise(new)
    if len(ours) != len(theirs):
        return None
    for (k, reads), (j, read) in zip(ours, theirs, strict=True):
        if len(reads) != len(read):
            return None
        pairs += [*zip(reads, read, strict=True), (k, j)]
    if any(old.nodes[k].size != new.nodes[j].size for k, j in pairs):
        return None
    neurons = {k: np.arange(old.nodes[k].size) for k, _ in pairs}
    return Alignment(dict(pairs), neurons, {k: np.zeros(len(a), dtype=np.int8) for k, a in neurons.items()})


def match_units(old: Form, new: Form) -> list[UnitMap] | None:
    """Partners of every layer's units; None when the forms differ in wiring, spread or kernel size."""
    if _wiring(old) != _wiring(new):
        return None
    found: list[IntArray] = []
    for number, (a, b) in enumerate(zip(old.layers, new.layers, strict=True)):
        columns = found[a.reads] if a.reads >= 0 else np.arange(a.weight.shape[1])
        if (a.reads < 0 and a.weight.shape[1] != b.weight.shape[1]) or len(columns) != a.weight.shape[1]:
            return None
        pinned = a.pinned or old.last in (number, a.tied)
        if pinned and a.units != b.units:
            return None
        partner = np.arange(a.units) if pinned else found[a.tied] if a.tied >= 0 else _partners(*_rows(a, b, columns))
        if len(partner) != a.units or partner.max(initial=-1) >= b.units:
            return None
        found.append(partner)
    return [_describe(partner, number, new) for number, partner in enumerate(found)]


def _wiring(form: Form) -> list[tuple[int, ...]]:
    """What has to be the same for units to face each other; sizes may differ."""
    layers = [(a.reads, a.tied, int(a.pinned), a.spread, a.weight.shape[2]) for a in form.layers]
    return [*layers, tuple(layer for *_, layer in form.values), (form.last,)]


def _rows(a: Layer, b: Layer, columns: IntArray) -> tuple[FloatArray, FloatArray]:
    """Rows with bias of both layers on the columns that both have, in the old order."""
    ours, theirs = a.weight, b.weight
    if a.weight.shape[1] != b.weight.shape[1] or not np.array_equal(columns, np.arange(len(columns))):
        kept = columns >= 0
        ours, theirs = ours[:, kept], theirs[:, columns[kept]]
    ours, theirs = ours.reshape(a.units, -1), theirs.reshape(b.units, -1)
    return np.column_stack([ours, a.bias.mean(axis=1)]), np.column_stack([theirs, b.bias.mean(axis=1)])


def _partners(ours: FloatArray, theirs: FloatArray) -> IntArray:
    """`(old units,)` new unit or -1, from rows `(old units, n)` and `(new units, n)`.

    Similarity of rows a, b is `2 a.b / (a.a + b.b)`: 1 only for equal rows, so scale counts too.
    """
    square, squares = np.einsum("ij,ij->i", ours, ours), np.einsum("ij,ij->i", theirs, theirs)
    identity = np.arange(len(ours))
    same_count = len(ours) == len(theirs)
    if same_count:
        diagonal = _ratio(2 * np.einsum("ij,ij->i", ours, theirs), square + squares)
        if np.all((diagonal >= IN_PLACE) | (squares == 0)):
            return identity
    similarity = _ratio(2 * ours @ theirs.T, square[:, None] + squares)
    if not same_count:
        return _assign(similarity)
    # Coarse rounding makes rows alike: where most are in place, only a much better partner moves a unit.
    in_place = similarity[identity, identity]
    slack, least = (SLACK, LEAST) if in_place.mean() > 0.5 else (0.0, -1.0)
    free = np.flatnonzero(similarity.max(axis=1) > np.maximum(in_place + slack, least))
    if len(free):
        identity[free] = free[_assign(similarity[np.ix_(free, free)])]
    return identity


def _ratio(a: FloatArray, b: FloatArray) -> FloatArray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _assign(similarity: FloatArray) -> IntArray:
    """One-to-one partners by falling similarity, -1 for rows left over.

    Rounds of mutual favourites, which is the greedy assignment. Where favourites do not collide it is the
    optimal one; elsewhere the partners are doubtful anyway, and loading an optimal solver would cost more
    than a whole small run.
    """
    rows, columns = (np.arange(n) for n in similarity.shape)
    out = np.full(len(rows), -1)
    left = similarity
    while left.size:
        there, back = left.argmax(axis=1), left.argmax(axis=0)
        mutual = back[there] == np.arange(len(rows))
        out[rows[mutual]] = columns[there[mutual]]
        others = np.flatnonzero(~np.isin(np.arange(len(columns)), there[mutual]))
        rows, columns, left = rows[~mutual], columns[others], left[np.ix_(~mutual, others)]
    return out


def _describe(partner: IntArray, number: int, new: Form) -> UnitMap:
    """What the weights alone tell about each unit's partner; nothing is told about units that are sums."""
    b = new.layers[number]
    there = partner >= 0
    sign, unread = np.zeros(len(partner), dtype=np.int8), np.zeros(len(partner), dtype=bool)
    if b.pinned or b.tied >= 0 or new.summed(number) or number == new.last:
        return UnitMap(partner, sign, unread)
    at = np.where(there, partner, 0)
    flat = there & ~np.any(b.weight.reshape(b.units, -1), axis=1)[at]
    sign[flat & np.all(b.bias > 0, axis=1)[at]] = 1
    sign[flat & np.all(b.bias <= 0, axis=1)[at]] = -1
    readers = [layer.weight for layer in new.layers if layer.reads == number]
    if readers and all(w.shape[1] == b.units for w in readers):
        unread = there & ~np.any([w.any(axis=(0, 2)) for w in readers], axis=0)[at]
    return UnitMap(partner, sign, unread)


def from_units(
    old: Network, ours: Form, theirs: Form, maps: list[UnitMap], scales: list[FloatArray] | None = None
) -> Alignment:
    """Unit maps spread out to neurons. A partner that nothing reads counts as absent.

    `scales`: per layer what its units are multiplied by; nothing is where that is not given.
    """
    factors: dict[int, FloatArray] = {}
    size = old.nodes[0].size
    nodes, neurons, phase = {0: 0}, {0: np.arange(size)}, {0: np.zeros(size, dtype=np.int8)}
    for (read, node, number), (other_read, other, _) in zip(ours.values, theirs.values, strict=True):
        units, spread = maps[number], ours.layers[number].spread
        to = np.where(units.unread, -1, units.new)
        signs = units.sign
        if silent_when_low(old, node):
            signs = np.where((to < 0) & (signs == 0), -1, signs).astype(np.int8)
        expanded = np.where(to[:, None] >= 0, to[:, None] * spread + np.arange(spread), -1).reshape(-1)
        for k, j in ((read, other_read), (node, other)):
            nodes[k], neurons[k], phase[k] = j, expanded, np.repeat(signs, spread)
            if scales is not None:
                factors[k] = np.repeat(scales[number], spread)
    return Alignment(nodes, neurons, phase, factors)
