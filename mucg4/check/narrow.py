"""Backward bounds of single neurons without the neurons that are off: the checker's quick path for dense networks.

Most of a check are rows `+v` and `-v` of unstable neurons, pulled back to the input in every region (see
`mucg4.check.enclose`). A two-piece neuron whose lines are both zero on a region is zero there. Where that holds on
ALL regions of a block, its column in a row multiplies zero, so leaving the column out changes nothing but the work:
no matrix product computes it, no later one reads it. In the small regions of a long search 40 to 60 % of the neurons
are such. The rounding charges are those of `enclose` for the columns that are left; what is left out is exactly zero
and costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.curves import Lines
from mucg4.ops.affine import Dense
from mucg4.ops.base import Array
from mucg4.ops.piecewise import TwoPiece

if TYPE_CHECKING:
    from mucg4.check.enclose import Enclosure, Frame, Rows


def suits(enclosure: Enclosure) -> bool:
    """True for float checks of chains of dense layers and two-piece functions of such layers.

    In a chain a neuron that is off has no other reader that its argument could matter to.
    """
    chain = all(node.inputs == (k,) for k, node in enumerate(enclosure.nodes[1:]))
    plain = chain and all(isinstance(op, (Dense, TwoPiece)) for op in enclosure.ops[1:])
    return plain and all(isinstance(enclosure.ops[k], Dense) for k in enclosure.slot)


@dataclass(eq=False)
class Block:
    """The columns that matter on the regions `first <= b < end` of a frame, for rows that start at node `start`.

    `keep[k]` are the columns of node k that may be nonzero and matter; a node that is not listed keeps all.
    """

    enclosure: Enclosure
    frame: Frame
    first: int
    end: int
    keep: dict[int, Array] = field(default_factory=dict)

    @staticmethod
    def of(enclosure: Enclosure, frame: Frame, start: int, first: int, end: int) -> Block:
        """Look for columns that are off on the whole block."""
        block = Block(enclosure, frame, first, end)
        for k, lines in frame.lines.items():
            if k >= start:
                continue
            on = _on(lines, first, end)
            if np.count_nonzero(on) < len(on):
                kept = np.flatnonzero(on)
                argument = enclosure.nodes[k].inputs[0]
                block.keep[k] = kept
                # what feeds a neuron that is off matters only to other readers
                if argument and [j for j in enclosure.network.users[argument] if j <= start] == [k]:
                    block.keep[argument] = kept
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
        """Rewrite rows over nodes `<= start` as rows over the input alone, as `Enclosure.pull` does."""
        e, frame = self.enclosure, self.frame
        for k in range(start, 0, -1):
            a = rows.coef.pop(k, None)
            if a is None:
                continue
            e.charge(rows, a, frame.cost[k])
            op, source, own = e.ops[k], e.nodes[k].inputs[0], self.keep.get(k)
            if isinstance(op, Dense):
                if op.bias() is not None:
                    e.add(rows, a @ (op.offset if own is None else op.offset[own]))
                part = a @ self._weight(op, own, self.keep.get(source))
            else:
                part = self._through(frame.lines[k], a, own, rows)
                if own is not None and source not in self.keep:
                    part = _spread(part, own, e.nodes[source].size)
            e.push(rows, source, part, frame)
        if 0 not in rows.coef:
            rows.coef[0] = e.zeros(len(rows.region), e.nodes[0].size)
        return rows

    def _through(self, lines: Lines, a: Array, own: Array | None, rows: Rows) -> Array:
        """Rows over a two-piece node as rows over its argument: see `Enclosure._pull_curve`."""
        block = slice(self.first, self.end)
        low, span, offset = (v[block] for v in (lines.low, lines.span, lines.up_offset))
        if own is not None:
            low, span, offset = (v.take(own, axis=1) for v in (low, span, offset))
        region = rows.region - self.first
        negative = np.minimum(a, 0)
        self.enclosure.add(rows, np.einsum("ij,ij->i", negative, offset.take(region, axis=0)))
        negative *= span.take(region, axis=0)
        part = low.take(region, axis=0)
        part *= a
        part += negative
        return part


def _on(lines: Lines, first: int, end: int) -> Array:
    """(n,) True where a neuron is not known to be zero on all regions of the block."""
    block = slice(first, end)
    parts = (lines.low[block] != 0, lines.up[block] != 0, lines.up_offset[block] != 0, lines.free[block])
    on = np.logical_or.reduce([np.any(p, axis=0) for p in parts])
    return on if lines.low_offset is None else on | np.any(lines.low_offset[block] != 0, axis=0)


def _spread(part: Array, columns: Array, size: int) -> Array:
    out = np.zeros((len(part), size))
    out[:, columns] = part
    return out
