"""Canonical form: neighbouring affine nodes are composed where that neither multiplies two full
matrices nor writes out a convolution; nodes that change nothing or reach no output disappear; neurons split into
opposite pairs are put together (`mucg4.read.unsplit`).

A composed node takes the name of the last tensor merged into it. Two nodes are composed only when the
first has no other reader. Every product of two stored numbers is one rounding of that product; every
term merged into an offset enters `offset_magnitude`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from mucg4.model.network import Node
from mucg4.ops.affine import Dense, Index, Scale
from mucg4.ops.base import Array, Op
from mucg4.ops.conv import Conv, ConvTranspose
from mucg4.read.build import DENSE_ENTRIES, Draft
from mucg4.read.unsplit import unsplit


def _offset(op: Any) -> tuple[Array, Array]:
    """`(offset, magnitude)` of an affine operator; zeros where it has none."""
    bias, magnitude = op.bias(), op.bias_magnitude()
    return (0.0, 0.0) if bias is None else (bias, magnitude)


def _scale_scale(first: Scale, second: Scale) -> Op:
    (c, m), s = _offset(first), second.scale
    return Scale(first.scale * s, c * s + second.offset, m * abs(s) + _offset(second)[1])


def _dense_scale(first: Dense, second: Scale) -> Op:
    (c, m), s = _offset(first), second.scale
    weight = first.weight if np.all(s == 1.0) else first.weight * s[:, None]
    return Dense(weight, c * s + second.offset, m * abs(s) + _offset(second)[1])


def _scale_dense(first: Scale, second: Dense) -> Op:
    (c, m), (d, n) = _offset(first), _offset(second)
    weight = second.weight if np.all(first.scale == 1.0) else second.weight * first.scale
    return Dense(weight, second.weight @ c + d, second.abs_weight @ m + n)


def _per_channel(values: Array, channels: int) -> Array | None:
    """One number per channel, or None when positions of a channel differ."""
    table = values.reshape(channels, -1)
    return table[:, 0] if np.all(table == table[:, :1]) else None


def _conv_scale(first: Conv, second: Scale) -> Op | None:
    (c, m), s = _offset(first), second.scale
    channel = _per_channel(s, len(first.weight))
    if channel is None:
        return None
    weight = first.weight * channel[:, None, None, None]
    return Conv(first.window, weight, c * s + second.offset, m * abs(s) + _offset(second)[1])


def _scale_conv(first: Scale, second: Conv) -> Op | None:
    channel = _per_channel(first.scale, second.window.channels)
    if channel is None:
        return None
    (c, m), (d, n), w = _offset(first), _offset(second), second.window
    inner = channel.reshape(w.group, -1)  # each group of kernels sees its own input channels
    weight = second.weight.reshape(w.group, -1, *second.weight.shape[1:]) * inner[:, None, :, None, None]
    # the padding is zero after the scale, so the constant passes through the padded convolution as it is
    offset, magnitude = second.linear([c[None]])[0] + d, second.magnitude([m[None]])[0] + n
    return Conv(w, weight.reshape(second.weight.shape), offset, magnitude)


def _transpose_scale(first: ConvTranspose, second: Scale) -> Op | None:
    (c, m), s, w = _offset(first), second.scale, first.window
    channel = _per_channel(s, w.channels)
    if channel is None:
        return None
    outer = channel.reshape(w.group, -1)
    weight = first.weight.reshape(w.group, -1, *first.weight.shape[1:]) * outer[:, None, :, None, None]
    return ConvTranspose(w, weight.reshape(first.weight.shape), c * s + second.offset, m * abs(s) + _offset(second)[1])


def _scale_transpose(first: Scale, second: ConvTranspose) -> Op | None:
    channel = _per_channel(first.scale, len(second.weight))
    if channel is None:
        return None
    (c, m), (d, n) = _offset(first), _offset(second)
    offset, magnitude = second.linear([c[None]])[0] + d, second.magnitude([m[None]])[0] + n
    return ConvTranspose(second.window, second.weight * channel[:, None, None, None], offset, magnitude)


def _index_index(first: Index, second: Index) -> Op:
    return Index(first.index[second.index], first.size)


def _dense_index(first: Dense, second: Index) -> Op | None:
    if not second.injective:
        return None
    return Dense(first.weight[second.index], *(v[second.index] for v in _offset(first)))


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
        return bool(np.all(op.scale == 1.0) and not np.any(op.offset) and not np.any(_offset(op)[1]))
    if isinstance(op, Index):
        return len(op.index) == op.size and np.array_equal(op.index, np.arange(op.size))
    return False


def simplify(drafts: Sequence[Draft], output: int) -> tuple[Node, ...]:
    """The nodes of the canonical network: input first, output last, all of them needed."""
    return _simplified(drafts, output)[0]


def separate(drafts: Sequence[Draft], output: int) -> tuple[tuple[Node, ...], tuple[int, ...]]:
    """The needed drafts as they are, nothing composed; and for each the node of `simplify` with its value, or -1."""
    uses, canonical = _uses(drafts, output), _simplified(drafts, output)[1]
    kept = [d if uses[k] or not k else None for k, d in enumerate(drafts)]
    return _finish(kept, output), tuple(canonical.get(k, -1) for k, d in enumerate(kept[: output + 1]) if d)


def _simplified(drafts: Sequence[Draft], output: int) -> tuple[tuple[Node, ...], dict[int, int]]:
    """The nodes, and which of them has the value of which draft, for drafts whose value is still computed."""
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
