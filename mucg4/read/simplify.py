"""Canonical form: neighbouring affine nodes are composed where that neither multiplies two full
matrices nor writes out a convolution; nodes that change nothing or reach no output disappear; neurons split into
opposite pairs are put together (`mucg4.read.unsplit`).

A composed node takes the name of the last tensor merged into it. Two nodes are composed only when the
first has no other reader. What composing rounds is counted: products of weights in `roundings`, and what offsets
lose, bounded by `mucg4.read.roundoff`, in `offset_magnitude` (see `mucg4.ops.affine.Dense`). Nodes are not composed
beyond `LARGEST_COUNT` roundings of a weight, nor where a product of weights would underflow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any, TypeVar

import numpy as np

from mucg4.model.network import Node
from mucg4.ops.affine import Dense, Index, Scale
from mucg4.ops.arrays import FloatArray
from mucg4.ops.base import Op
from mucg4.ops.conv import Conv, ConvTranspose
from mucg4.read.build import DENSE_ENTRIES, Draft
from mucg4.read.roundoff import UNIT, Pair, known, magnitude, plus, times
from mucg4.read.unsplit import unsplit

LARGEST_COUNT = 48  # roundings of one weight; not measured
Shifted = TypeVar("Shifted", Dense, Scale, Conv, ConvTranspose)


def _offset(op: Any) -> Pair:
    """`(offset, error)` of an affine operator; zeros where it has none."""
    bias, known = op.bias(), getattr(op, "offset_magnitude", None)
    if bias is None:
        return np.zeros(op.outputs), None
    return bias, None if known is None else known * (2.0 * UNIT * op.fan_in)


def _scaled(offset: Pair, scale: FloatArray, roundings: int) -> Pair:
    """An offset times scales that are good to so many roundings."""
    return times(offset[0], scale, offset[1], UNIT * roundings * abs(scale) if roundings else None)


def _with_offset(op: Shifted, offset: Pair) -> Shifted:
    """The operator with another offset."""
    return replace(op, offset=offset[0], offset_magnitude=magnitude(*offset, op.fan_in))


def _product(weight: FloatArray, scale: FloatArray, first: int, second: int) -> tuple[FloatArray, int] | None:
    """`weight * scale` and its roundings; None where that is too many, or the product too small or too large."""
    if np.all(scale == 1.0):
        return weight, first + second
    exact = np.all((abs(np.frexp(scale)[0]) == 0.5) | (scale == 0))
    count = first + second + (not exact)
    (low, high), (least, most) = _range(weight), _range(scale)
    good = low * least > 2.0**-960 and high * most < 2.0**1000 and count <= LARGEST_COUNT
    return (weight * scale, int(count)) if good else None


def _range(values: FloatArray) -> tuple[float, float]:
    """The smallest and the largest size of the numbers that are not zero."""
    sizes = abs(values)
    high = float(sizes.max(initial=0.0))
    low = float(sizes.min(initial=np.inf))
    return (low if low else float(sizes.min(where=sizes > 0, initial=np.inf))), high


def _scale_scale(first: Scale, second: Scale) -> Op | None:
    made = _product(first.scale, second.scale, first.roundings, second.roundings)
    if made is None:
        return None
    offset = _scaled(_offset(first), second.scale, second.roundings)
    return _with_offset(Scale(made[0], second.offset, roundings=made[1]), _sum(offset, _offset(second)))


def _sum(a: Pair, b: Pair) -> Pair:
    return plus(a[0], b[0], a[1], b[1])


def _dense_scale(first: Dense, second: Scale) -> Op | None:
    made = _product(first.weight, second.scale[:, None], first.roundings, second.roundings)
    if made is None:
        return None
    offset = _scaled(_offset(first), second.scale, second.roundings)
    return _with_offset(Dense(made[0], second.offset, roundings=made[1]), _sum(offset, _offset(second)))


def _through(second: Any, offset: Pair) -> Pair:
    """What an affine map without its own offset makes of a constant, with the rounding of the map's weights."""
    value, error = offset
    if not np.any(value) and error is None:
        return np.zeros(second.outputs if second.offset is None else len(second.offset)), None
    lost = abs(value) * (UNIT * (second.fan_in + 1))
    if error is not None:
        lost = lost + error * (1.0 + 4.0 * UNIT * second.fan_in)
    return second.linear([value[None]])[0], known(second.magnitude([lost[None]])[0])


def _scale_dense(first: Scale, second: Dense) -> Op | None:
    made = _product(second.weight, first.scale, second.roundings, first.roundings)
    if made is None:
        return None
    offset = _sum(_through(second, _offset(first)), _offset(second))
    return _with_offset(replace(second, weight=made[0], roundings=made[1]), offset)


def _per_channel(values: FloatArray, channels: int) -> FloatArray | None:
    """One number per channel, or None when positions of a channel differ."""
    table = values.reshape(channels, -1)
    return table[:, 0] if np.all(table == table[:, :1]) else None


def _conv_scale(first: Conv, second: Scale) -> Op | None:
    channel = _per_channel(second.scale, len(first.weight))
    if channel is None:
        return None
    made = _product(first.weight, channel[:, None, None, None], first.roundings, second.roundings)
    if made is None:
        return None
    offset = _sum(_scaled(_offset(first), second.scale, second.roundings), _offset(second))
    return _with_offset(Conv(first.window, made[0], roundings=made[1]), offset)


def _scale_conv(first: Scale, second: Conv) -> Op | None:
    channel = _per_channel(first.scale, second.window.channels)
    if channel is None:
        return None
    w = second.window
    inner = channel.reshape(w.group, -1)  # each group of kernels sees its own input channels
    weight = second.weight.reshape(w.group, -1, *second.weight.shape[1:])
    made = _product(weight, inner[:, None, :, None, None], second.roundings, first.roundings)
    if made is None:
        return None
    # the padding is zero after the scale, so the constant passes through the padded convolution as it is
    offset = _sum(_through(second, _offset(first)), _offset(second))
    return _with_offset(Conv(w, made[0].reshape(second.weight.shape), roundings=made[1]), offset)


def _transpose_scale(first: ConvTranspose, second: Scale) -> Op | None:
    w = first.window
    channel = _per_channel(second.scale, w.channels)
    if channel is None:
        return None
    outer = channel.reshape(w.group, -1)
    weight = first.weight.reshape(w.group, -1, *first.weight.shape[1:])
    made = _product(weight, outer[:, None, :, None, None], first.roundings, second.roundings)
    if made is None:
        return None
    offset = _sum(_scaled(_offset(first), second.scale, second.roundings), _offset(second))
    return _with_offset(ConvTranspose(w, made[0].reshape(first.weight.shape), roundings=made[1]), offset)


def _scale_transpose(first: Scale, second: ConvTranspose) -> Op | None:
    channel = _per_channel(first.scale, len(second.weight))
    if channel is None:
        return None
    made = _product(second.weight, channel[:, None, None, None], second.roundings, first.roundings)
    if made is None:
        return None
    offset = _sum(_through(second, _offset(first)), _offset(second))
    return _with_offset(ConvTranspose(second.window, made[0], roundings=made[1]), offset)


def _dense_dense(first: Dense, second: Dense) -> Op | None:
    """Only where every row of `second` takes one value, or none: then no two full matrices are multiplied."""
    rows, columns = second.weight.shape
    there = second.weight != 0
    if rows > columns or np.any(np.count_nonzero(there, axis=1) > 1):
        return None
    index = np.argmax(there, axis=1)
    value, error = _offset(first)
    chosen = value[index], None if error is None else error[index]
    picked = _with_offset(replace(first, weight=first.weight[index]), chosen)
    factors = Scale(second.weight[np.arange(rows), index], second.offset, roundings=second.roundings)
    return _dense_scale(picked, _with_offset(factors, _offset(second)))


def _index_index(first: Index, second: Index) -> Op:
    return Index(first.index[second.index], first.size)


def _dense_index(first: Dense, second: Index) -> Op | None:
    if not second.injective:
        return None
    value, error = _offset(first)
    chosen = value[second.index], None if error is None else error[second.index]
    return _with_offset(replace(first, weight=first.weight[second.index]), chosen)


def _index_dense(first: Index, second: Dense) -> Op | None:
    wide = first.size > len(first.index) and len(second.weight) * first.size > DENSE_ENTRIES
    if wide or not first.injective:
        return None
    weight = np.zeros((len(second.weight), first.size))
    weight[:, first.index] = second.weight
    return replace(second, weight=weight)


COMPOSERS: dict[tuple[type, type], Callable[[Any, Any], Op | None]] = {
    (Scale, Scale): _scale_scale,
    (Dense, Scale): _dense_scale,
    (Dense, Dense): _dense_dense,
    (Scale, Dense): _scale_dense,
    (Conv, Scale): _conv_scale,
    (Scale, Conv): _scale_conv,
    (ConvTranspose, Scale): _transpose_scale,
    (Scale, ConvTranspose): _scale_transpose,
    (Index, Index): _index_index,
    (Dense, Index): _dense_index,
    (Index, Dense): _index_dense,
}


def _changes_nothing(op: Op | None) -> bool:
    if isinstance(op, Scale):
        return bool(np.all(op.scale == 1.0) and not np.any(op.offset) and op.offset_magnitude is None)
    if isinstance(op, Index):
        return len(op.index) == op.size and np.array_equal(op.index, np.arange(op.size))
    return False


def separate(
    drafts: Sequence[Draft], output: int, simplified: Sequence[Draft]
) -> tuple[tuple[Node, ...], tuple[int, ...]]:
    """The needed drafts as they are, nothing composed; and for each the node of `simplify` with its value, or -1.

    `simplified` are the drafts that were simplified: the same, but for what is known of their rounding.
    """
    uses, canonical = _uses(drafts, output), simplify(simplified, output)[1]
    kept = [d if uses[k] or not k else None for k, d in enumerate(drafts)]
    return _finish(kept, output), tuple(canonical.get(k, -1) for k, d in enumerate(kept[: output + 1]) if d)


def simplify(drafts: Sequence[Draft], output: int) -> tuple[tuple[Node, ...], dict[int, int]]:
    """The nodes of the canonical network: input first, output last, all of them needed.

    And which of them has the value of which draft, for drafts whose value is still computed.
    """
    uses = _uses(drafts, output)
    kept: list[Draft | None] = []
    readers: list[int] = []  # how many readers each kept node has
    where: dict[int, int] = {}
    for k, draft in enumerate(drafts):
        if not uses[k] and k:
            continue
        node, inputs = draft, tuple(where[i] for i in draft.inputs)
        while len(inputs) == 1 and inputs[0] > 0:
            first = kept[inputs[0]]
            assert first is not None
            compose = COMPOSERS.get((type(first.op), type(node.op)))
            merged = compose(first.op, node.op) if compose and readers[inputs[0]] == 1 else None
            if merged is None:
                break
            kept[inputs[0]] = None
            node, inputs = replace(node, op=merged), first.inputs
        if _changes_nothing(node.op):
            where[k] = inputs[0]
            readers[inputs[0]] += uses[k] - 1
            continue
        where[k] = len(kept)
        kept.append(replace(node, inputs=inputs))
        readers.append(uses[k])
    final = unsplit(kept, readers, where[output])
    for k, folded in enumerate(final):  # of a layer that was put together, little more than factors may be left
        if folded is not None and folded is not kept[k] and readers[folded.inputs[0]] == 1:
            first = final[folded.inputs[0]]
            pair = [d.op for d in (first, folded) if d and isinstance(d.op, Dense)]
            merged = _dense_dense(*pair) if len(pair) == 2 else None
            if first and merged is not None:
                final[folded.inputs[0]] = None
                final[k] = replace(folded, op=merged, inputs=first.inputs)
    left = [k for k, draft in enumerate(final[: where[output] + 1]) if draft is not None]
    place = {k: i for i, k in enumerate(left) if final[k] is kept[k]}  # a pair put together may differ below zero
    return _finish(final, where[output]), {k: place[w] for k, w in where.items() if w in place}


def _uses(drafts: Sequence[Draft], output: int) -> list[int]:
    """How many needed nodes read each node; the output counts as read once more."""
    uses = [0] * len(drafts)
    uses[output] = 1
    for k in range(len(drafts) - 1, 0, -1):
        for i in drafts[k].inputs if uses[k] else ():
            uses[i] += 1
    return uses


def _finish(kept: Sequence[Draft | None], output: int) -> tuple[Node, ...]:
    """Renumber without the merged nodes."""
    nodes: list[Node] = []
    place: dict[int, int] = {}
    for k, draft in enumerate(kept[: output + 1]):
        if draft is None:
            continue
        place[k] = len(nodes)
        shape = draft.shape[1:] if len(draft.shape) > 1 and draft.shape[0] == 1 else draft.shape
        nodes.append(Node(draft.op, tuple(place[i] for i in draft.inputs), draft.name, shape))
        assert prod(shape) == prod(draft.shape)
    return tuple(nodes)
