"""Backward bounds of single neurons without the neurons that are stable: the checker's quick path for dense networks.

Most of a check are rows `+v` and `-v` of unstable neurons, pulled back to the input in every region (see
`mucg4.check.enclose`). A two-piece neuron whose lines are both zero on a region is zero there. Where that holds on
ALL regions of a block, its column in a row multiplies zero, so leaving the column out changes nothing but the work:
no matrix product computes it, no later one reads it. In the small regions of a long search 40 to 60 % of the neurons
are such. Likewise a neuron that is its argument on all regions of a block passes its column on as it is, so only the
*bent* columns, which come first, are multiplied by lines. Matrices with few numbers in each column (selections,
differences) are multiplied entry by entry. All other rows (refutations, tightenings, cuts; `through`) leave out what
is off on all regions of a frame, and columns that are zero in all of them. The rounding charges are those of `enclose`
for the columns that are left; what is left out is exactly zero and costs nothing, and no step has more roundings than
are charged.
"""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.curves import Lines
from mucg4.check.rowwise import TINY, dots
from mucg4.ops.affine import Dense
from mucg4.ops.base import Array
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

if TYPE_CHECKING:
    from mucg4.check.enclose import Enclosure, Frame, Rows


def suits(enclosure: Enclosure) -> bool:
    """True for float checks of chains of dense layers and two-piece functions of such layers.

    In a chain a neuron that is off has no other reader that its argument could matter to.
    """
    chain = all(node.inputs == (k,) for k, node in enumerate(enclosure.nodes[1:]))
    plain = chain and all(isinstance(op, (Dense, TwoPiece)) for op in enclosure.ops[1:])
    return plain and all(isinstance(enclosure.ops[k], Dense) for k in enclosure.slot)


# multiplications of a matrix product that one entry of a sparse product takes as long as; measured on one core: 30
# where rows are few, 230 where blocks outgrow the cache
ENTRY_COST = 24

COPY_COST = 16  # multiplications of a matrix product that one number takes to be copied; not measured


@dataclass(eq=False)
class Block:
    """The columns that matter on the regions `first <= b < end` of a frame, for rows that start at node `start`.

    `keep[k]` are the columns of node k that may be nonzero and matter; a node that is not listed keeps all. The first
    `bent[k]` columns of a two-piece node are those that its lines change.
    """

    enclosure: Enclosure
    frame: Frame
    first: int
    end: int
    keep: dict[int, Array] = field(default_factory=dict)
    bent: dict[int, int] = field(default_factory=dict)

    @staticmethod
    def of(enclosure: Enclosure, frame: Frame, start: int, first: int, end: int) -> Block:
        """Look for columns that are off, or pass, on the whole block."""
        block = Block(enclosure, frame, first, end)
        for k, lines in frame.lines.items():
            if k >= start:
                continue
            on, changed = (np.any(flag[first:end], axis=0) for flag in _flags(lines))
            bends = np.flatnonzero(on & changed)
            block.bent[k] = len(bends)
            block.keep[k] = np.concatenate([bends, np.flatnonzero(on & ~changed)])
            argument = enclosure.nodes[k].inputs[0]
            # what feeds a neuron that is off matters only to other readers
            if argument and [j for j in enclosure.network.users[argument] if j <= start] == [k]:
                block.keep[argument] = block.keep[k]
        return block

    def start_rows(self, rows: Rows, k: int, neuron: Array, scale: Array) -> None:
        """Fill rows `+v` (first half) and `-v` of neurons of the dense node k."""
        op, source = self.enclosure.ops[k], self.enclosure.nodes[k].inputs[0]
        half, charge = neuron[: len(neuron) // 2], rows.region[: len(neuron) // 2]
        part = self._weight(op, half, self.keep.get(source))
        rows.coef[source] = np.concatenate([part, -part])
        const = op.offset[half]
        rows.const = np.concatenate([const, -const])
        error = self.enclosure.start_charge(k) * scale[charge, half]
        rows.error = np.concatenate([error, error])

    @staticmethod
    def _weight(op: Dense, outputs: Array | None, inputs: Array | None) -> Array:
        """The chosen rows of the chosen columns of a weight; the smaller copy first."""
        weight = op.weight if inputs is None else op.weight.take(inputs, axis=1)
        return weight if outputs is None else weight.take(outputs, axis=0)

    def pull(self, rows: Rows, start: int) -> Rows:
        """Rewrite rows over node `start` as rows over the input alone, as `Enclosure.pull` does.

        On the way the coefficients are one array or two: of the columns that a two-piece node bends, and of the others.
        """
        e, k = self.enclosure, start
        parts = self._split(k, rows.coef.pop(start))
        while k:
            source = e.nodes[k].inputs[0]
            squares = sum(dots(p, p) for p in parts)
            rows.error = rows.error + (np.sqrt(squares) + TINY) * self.frame.cost[k][rows.region]
            if isinstance(e.ops[k], Dense):
                parts = self._through_dense(k, parts, source, rows)
            else:
                parts[0] = self._through_curve(k, parts[0], rows)
                if source not in self.keep:
                    parts = [_spread(np.concatenate(parts, axis=1), self.keep[k], e.nodes[source].size)]
            k = source
        rows.coef[0] = parts[0]
        return rows

    def _split(self, k: int, a: Array) -> list[Array]:
        """The kept columns of a node in one or two parts; the bent ones in an array of their own."""
        if k not in self.bent:
            return [a]
        bent = self.bent[k]
        return [np.ascontiguousarray(a[:, :bent]), a[:, bent:]]

    def _through_dense(self, k: int, parts: list[Array], source: int, rows: Rows) -> list[Array]:
        """Rows over a dense node as rows over its argument, in parts as that node wants them."""
        e, own, wanted = self.enclosure, self.keep.get(k), self.keep.get(source)
        op, few = e.ops[k], e.few[k]
        offset = op.offset if own is None else op.offset[own]
        edges = np.cumsum([0, *(p.shape[1] for p in parts)]).tolist()
        pieces = list(zip(parts, edges[:-1], edges[1:], strict=True))
        e.add(rows, sum(p @ offset[i:j] for p, i, j in pieces))
        if few is not None:
            return self._split(source, few.product(np.concatenate(parts, axis=1), own, wanted))
        weight = self._weight(op, own, wanted)
        bent = self.bent.get(source)
        halves = [weight] if bent is None else [weight[:, :bent], weight[:, bent:]]
        return [_sum([p @ half[i:j] for p, i, j in pieces if i < j], len(rows.region), half) for half in halves]

    def _through_curve(self, k: int, a: Array, rows: Rows) -> Array:
        """The bent columns `a` of a two-piece node as columns of its argument: see `Enclosure._pull_curve`."""
        lines, block, bends = self.frame.lines[k], slice(self.first, self.end), self.keep[k][: self.bent[k]]
        low, span, offset = (v[block].take(bends, axis=1) for v in (lines.low, lines.span, lines.up_offset))
        region, negative = rows.region - self.first, np.minimum(a, 0)
        self.enclosure.add(rows, dots(negative, offset.take(region, axis=0)))
        negative *= span.take(region, axis=0)
        a *= low.take(region, axis=0)
        a += negative
        return a


def through(op: Dense, a: Array, lines: Lines | None) -> Array:
    """Rows `a (R, m)` over a dense node times its weight: rows `(R, n)` over its argument.

    Left out are columns of `a` that are all zero, and components of the argument that are zero on all regions: they
    have these `lines`, None for an argument that is no elementwise node.
    """
    outputs, inputs = op.weight.shape
    kept, wanted = np.flatnonzero(a.any(axis=0)), np.arange(inputs)
    if lines is not None and lines.low_offset is None and lines.other is None:
        wanted = np.flatnonzero(_flags(lines)[0].any(axis=0))
    left = len(kept) * len(wanted)
    if len(a) * (outputs * inputs - left) < COPY_COST * (left + len(a) * (len(kept) + inputs)):
        return a @ op.weight
    weight = Block._weight(op, kept, wanted if len(wanted) < inputs else None)
    part = a.take(kept, axis=1) @ weight
    return part if len(wanted) == inputs else _spread(part, wanted, inputs)


def _sum(parts: list[Array], rows: int, like: Array) -> Array:
    """The sum of some products `(rows, n)`; zeros of the width of `like` for none."""
    if not parts:
        return np.zeros((rows, like.shape[1]))
    for part in parts[1:]:
        parts[0] += part
    return parts[0]


@dataclass(frozen=True, eq=False)
class Few:
    """A weight `(m, n)` with at most c numbers in each column: their rows `index (c, n)` and `value (c, n)`."""

    index: Array
    value: Array
    outputs: int

    @staticmethod
    def of(weight: Array) -> Few | None:
        """None where a matrix product is quicker."""
        outputs, inputs = weight.shape
        most = int(np.count_nonzero(weight, axis=0).max(initial=0))
        if most * ENTRY_COST >= outputs:
            return None
        index, value = np.zeros((most, inputs), dtype=np.int64), np.zeros((most, inputs))
        column, row = np.nonzero(weight.T)
        slot = np.arange(len(column)) - np.searchsorted(column, column)
        index[slot, column], value[slot, column] = row, weight[row, column]
        return Few(index, value, outputs)

    def product(self, a: Array, own: Array | None, source: Array | None) -> Array:
        """Rows `a` times the weight, of which `a` has the rows `own` and the result gets the columns `source`."""
        index, value = (self.index, self.value) if source is None else (self.index[:, source], self.value[:, source])
        if own is not None:
            place = np.full(self.outputs, -1)
            place[own] = np.arange(len(own))
            index = place[index]
            value, index = np.where(index >= 0, value, 0.0), np.maximum(index, 0)
        out = np.zeros((len(a), index.shape[1]))
        if not a.shape[1]:
            return out
        for where, numbers in zip(index, value, strict=True):
            part = a.take(where, axis=1)
            part *= numbers
            out += part
        return out


def _flags(lines: Lines) -> tuple[Array, Array]:
    """`(B, n)`: where a neuron is not known to be zero, and where it is not known to be its argument."""
    if lines.flags is None:
        on = (lines.low != 0) | (lines.up != 0) | (lines.up_offset != 0) | lines.free
        bent = (lines.low != 1) | (lines.up != 1) | (lines.up_offset != 0) | lines.free
        lines.flags = on, bent
    return lines.flags


def _spread(part: Array, columns: Array, size: int) -> Array:
    out = np.zeros((len(part), size))
    out[:, columns] = part
    return out
