"""The network as it is inside one root box: what is fixed there is folded away.

Two things are affine on a whole box and need no rows of their own. *Fixed inputs* are constants, so that an affine
map of the input keeps a column per free input only (image generators and partial perturbations leave most inputs
fixed). *Stable neurons* of two pieces are multiples of their argument, so that the dense map behind them reads
what their own map read, next to the unstable ones:

    W relu(V z + b) = W_S diag(s) (V_S z + b_S) + W_U relu(V_U z + b_U).

Backward bounds of the result are those of the original in real arithmetic, with fewer columns. What folding rounds,
and the width of fixed inputs, is stated per output (`Dense.slack`) and enters bounds at the rounding place. Measured
on dist_shift, row 70 (8 of 792 inputs free, 190 of 200 first neurons stable), one core: 16 regions/s become 480.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.bound.propagate import Bounder, Regions
from mucg4.bound.rounding import gamma
from mucg4.model.network import Network, Node, affine_magnitude
from mucg4.ops.affine import Concat, Dense
from mucg4.ops.arrays import DOUBLE
from mucg4.ops.base import Affine, Array, Nonlinear
from mucg4.ops.bilinear import Product
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

WORTH = 0.7  # neurons are folded where the width falls below this share; not measured
MOST_CELLS = 1 << 24  # of the columns that maps of the input may take: a convolution's are dense; not measured
# inputs with a smaller share of the largest width are fixed: the hull gives every input some width; not measured
NARROW = 1e-9


@dataclass(frozen=True)
class Folding:
    """A network equal to another one on a box.

    `columns (d',)`: which inputs it has; `positions (P',)`: which flat pre-activation positions. The other network has
    `inputs` and `width` of them.
    """

    network: Network
    columns: Array
    positions: Array
    inputs: int
    width: int


def free_inputs(lo: Array, hi: Array) -> Array:
    """Positions of the inputs that a box `lo, hi (d,)` leaves free."""
    width = hi - lo
    return np.flatnonzero(width > NARROW * width.max(initial=0.0))


def fold_network(bounder: Bounder, root: Regions, fold_inputs: bool = True) -> Folding | None:
    """The network on the box of `root` (a refreshed batch of one, NumPy); None when nothing is worth folding.

    Sound: bounds of the result hold for the original on every sub-region of `root`.
    """
    maker = _Maker(bounder, root, fold_inputs)
    maker.make()
    if not maker.folded:
        return None
    network = replace(bounder.network, nodes=tuple(maker.nodes))
    return Folding(network, maker.columns, maker.at(), bounder.network.input_size, bounder.width)


class _Maker:
    """Rewrites a network node by node; `new[k]` is where the value of old node k is."""

    def __init__(self, bounder: Bounder, root: Regions, fold_inputs: bool) -> None:
        self.bounder, self.root, self.old = bounder, root, bounder.network
        self.columns = np.arange(self.old.input_size)
        self.folded = False
        free = free_inputs(bounder.lo, bounder.hi)
        if fold_inputs and 0 < 2 * len(free) <= self.old.input_size and self._foldable(len(free)):
            self.columns, self.folded = free, True
        size = np.maximum(abs(bounder.lo), abs(bounder.hi))
        first = self.old.nodes[0]
        self.nodes = [replace(first, shape=(len(self.columns),)) if self.folded else first]
        self.new = {0: 0}
        self.sizes: dict[int, Array] = {0: size[self.columns]}  # largest absolute values of new nodes, where known
        self.positions: list[Array] = []
        self.halves: dict[int, tuple[Dense, int, Array]] = {}  # two-piece node: argument, what that reads, unstable

    def _foldable(self, free: int) -> bool:
        """Fixed inputs reach affine maps alone, in few columns, and no bound depends on how many inputs there are."""
        users = [self.old.nodes[k] for k in self.old.users[0]]
        simple = bool(users) and all(isinstance(n.op, Affine) and n.inputs == (0,) for n in users)
        simple &= free * max([self.old.input_size, *(n.size for n in users)]) <= MOST_CELLS
        return simple and not any(isinstance(n.op, Product) for n in self.old.nodes)

    def at(self) -> Array:
        """The kept flat positions."""
        return np.concatenate([*self.positions, np.zeros(0, dtype=np.int64)])

    def make(self) -> None:
        """Rewrite all nodes in order."""
        for k, node in enumerate(self.old.nodes):
            if k == 0:
                self._keep_positions(0, None)
            elif k in self.halves:
                self._unstable_part(k)
            else:
                dense, reads = self._dense(k)
                if dense is None:
                    self._add(k, replace(node, inputs=tuple(self.new[i] for i in node.inputs)))
                elif not self._halve(k, dense, reads):
                    self._add(k, replace(node, op=dense, inputs=(reads,)))

    def _add(self, k: int, node: Node) -> None:
        self.nodes.append(node)
        self.new[k] = len(self.nodes) - 1
        self._keep_positions(k, None)
        if isinstance(node.op, Nonlinear):
            bounds = [self.bounder.pre_bounds(self.root, i) for i in self.old.nodes[k].inputs]
            lo, hi = node.op.interval([b[0] for b in bounds], [b[1] for b in bounds])
            self.sizes[self.new[k]] = np.maximum(abs(lo), abs(hi))[0]

    def _keep_positions(self, k: int, part: Array | None) -> None:
        if k in self.bounder.slices:
            where = self.bounder.slices[k]
            every = np.arange(where.start, where.stop)
            self.positions.append(every if part is None else every[part])

    def _dense(self, k: int) -> tuple[Dense | None, int]:
        """Old node k as a dense map of a new node, if it is one; which node that is."""
        node = self.old.nodes[k]
        if node.inputs == (0,) and len(self.columns) < self.old.input_size:
            assert isinstance(node.op, Affine)
            return self._without_fixed(node.op), 0
        if not isinstance(node.op, Dense):
            return None, -1
        source = node.inputs[0]
        if source in self.halves:
            return self._composed(node.op, source), self.new[source]
        return node.op, self.new[source]

    def _without_fixed(self, op: Affine) -> Dense:
        """An affine map of the input on the free inputs."""
        lo, hi = self.bounder.lo, self.bounder.hi
        middle, radius = lo / 2 + hi / 2, hi - lo
        middle[self.columns] = radius[self.columns] = 0.0
        unit = np.zeros((len(self.columns), len(lo)))
        unit[np.arange(len(self.columns)), self.columns] = 1.0
        terms = affine_magnitude(op, [abs(middle)[None]])[0]
        share, size = gamma(op.fan_in + len(lo), DOUBLE.unit), np.maximum(abs(lo), abs(hi))
        whole = _row_norms(op, len(lo)) * np.linalg.norm(size)  # the checker's charge for a row over all inputs
        rounding = share * (terms + whole) + DOUBLE.tiny * (1.0 + abs(middle).max(initial=0.0))
        slack = op.magnitude([radius[None]])[0] + rounding
        return Dense(np.ascontiguousarray(op.linear([unit]).T), op.apply([middle[None]])[0], terms, slack=slack)

    def _halve(self, k: int, dense: Dense, reads: int) -> bool:
        """Keep the unstable neurons of a dense map only, when that pays and the one reader is of two pieces."""
        nodes, users = self.old.nodes, self.old.users
        if len(users[k]) != 1:
            return False
        reader = users[k][0]
        behind = users[reader]
        if not isinstance(nodes[reader].op, TwoPiece) or not behind:
            return False
        if not all(isinstance(nodes[i].op, Dense) for i in behind) or reads not in self.sizes:
            return False
        low, up = (b[0] for b in self.bounder.pre_bounds(self.root, k))
        unstable = (low < 0) & (up > 0)
        count = int(unstable.sum())
        if dense.weight.shape[1] + count > WORTH * nodes[k].size or not np.all(np.isfinite(self.sizes[reads])):
            return False
        self.halves[reader] = dense, reads, unstable
        self.folded = True
        if count:
            kept = self._charged(dense, unstable, reads)
            self.nodes.append(replace(nodes[k], op=kept, inputs=(reads,), shape=(count,)))
            self.new[k] = len(self.nodes) - 1
        self._keep_positions(k, unstable)
        return True

    def _charged(self, dense: Dense, which: Array, reads: int) -> Dense:
        """The outputs `which` of a dense map, with the rounding charge of all: multipliers of literals start here, and
        where the checker pulls such rows back it charges by the norm of all neurons' sizes."""
        kept = _rows(dense, which)
        whole = np.linalg.norm(dense.abs_weight @ self.sizes[reads] + dense.bias_magnitude())
        return replace(kept, offset_magnitude=kept.bias_magnitude() + whole / len(kept.offset) ** 0.5)

    def _unstable_part(self, k: int) -> None:
        """The two-piece node of the unstable neurons, next to what the stable ones are affine functions of."""
        dense, reads, unstable = self.halves[k]
        node = self.old.nodes[k]
        if not np.any(unstable):
            self.new[k] = reads
            return
        count = int(unstable.sum())
        self.nodes.append(replace(node, inputs=(self.new[node.inputs[0]],), shape=(count,)))
        sizes = (dense.weight.shape[1], count)
        name = f"{node.name} beside its argument's"
        self.nodes.append(Node(Concat(sizes), (reads, len(self.nodes) - 1), name, (sum(sizes),)))
        self.new[k] = len(self.nodes) - 1
        assert isinstance(node.op, TwoPiece)
        low, up = (b[:, unstable] for b in self.bounder.pre_bounds(self.root, node.inputs[0]))
        a, b = node.op.interval([low], [up])
        self.sizes[self.new[k]] = np.concatenate([self.sizes[reads], np.maximum(abs(a), abs(b))[0]])

    def _composed(self, outer: Dense, source: int) -> Dense:
        """`outer` behind the two-piece node `source`, on what that node's argument reads and its unstable neurons."""
        inner, reads, unstable = self.halves[source]
        op, pre = self.old.nodes[source].op, self.old.nodes[source].inputs[0]
        assert isinstance(op, TwoPiece)
        stable = ~unstable
        low = self.bounder.pre_bounds(self.root, pre)[0][0, stable]
        through = outer.weight[:, stable] * np.where(low >= 0, op.right, op.left)
        own = _rows(inner, stable)
        size = self.sizes[reads]
        reach = own.abs_weight @ size + own.bias_magnitude()
        terms = abs(through) @ reach + outer.bias_magnitude()
        # The checker charges the nodes that are skipped here: norms of rows times norms of all neurons' sizes, and what
        # the inner map skips itself. By norms, not term by term, which also bounds how far the maps are apart.
        steep = max(1.0, abs(op.left), abs(op.right))
        every = np.linalg.norm(inner.abs_weight @ size + inner.bias_magnitude())
        charged = steep * np.linalg.norm(outer.weight, axis=1)
        rounding = gamma(own.fan_in + outer.fan_in + len(unstable), DOUBLE.unit) * (terms + charged * every)
        floor = DOUBLE.tiny * (1.0 + reach.max(initial=0.0) + size.max(initial=0.0))
        slack = charged * np.linalg.norm(inner.known_slack()) + outer.known_slack() + rounding + floor
        weight = np.concatenate([through @ own.weight, outer.weight[:, unstable]], axis=1)
        roundings = own.roundings + outer.roundings
        return Dense(weight, outer.offset + through @ own.offset, terms, roundings=roundings, slack=slack)


def _row_norms(op: Affine, inputs: int) -> Array:
    """(m,) at least the norms of the rows of a map's matrix of so many columns."""
    if isinstance(op, Dense):
        return np.asarray(np.linalg.norm(op.weight, axis=1))
    return np.asarray(op.magnitude([np.ones((1, inputs))])[0])


def _rows(dense: Dense, which: Array) -> Dense:
    """Some outputs of a dense map."""
    size, slack = dense.bias_magnitude()[which], None if dense.slack is None else dense.slack[which]
    return Dense(dense.weight[which], dense.offset[which], size, roundings=dense.roundings, slack=slack)
