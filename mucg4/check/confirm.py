"""Is the network that `mucg4.read` made the one in the file? Asked of the second reading, tensor by tensor.

A canonical node carries the name of the ONNX tensor it computes (helpers between them are called `tensor#k`); a tensor
with such a node is a *cut*. Walking the file once, each cut is computed both ways from the cuts before it, compared,
and then replaced on both sides by the same numbers: at some points by its true value, at the others by free random
numbers. If at every cut both sides are the same function of the cuts before it, then by induction both networks are
the same function of the input. Free numbers make this local: what is compared is one affine map (two of which that
agree at a random point are equal with probability 1) or one nonlinear operator at any argument, so nothing hides
behind a saturated ReLU, and a deviation cannot shrink on its way to the output.

Tolerances are counted, not chosen: both sides carry bounds on their own rounding (`mucg4.check.values`), a cut starts
anew with 0, and their sum is allowed `ROOM` times. Numbers that overflow or whose error is unbounded (next to a jump)
are not compared; a component that is never compared makes its tensor a line in `fallback`.

Not seen: what the format leaves to the executor, such as optimisations of a session that change values (compare with
onnxruntime for that), and differences beyond the sizes tried, 1e30.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from mucg4.check.canonical import Known, evaluate, work
from mucg4.check.literals import RANGES
from mucg4.check.reading import ELEMENT_TYPES, WHOLE_TYPES, Reading
from mucg4.check.values import LEAST, UNIT, Value, fractions
from mucg4.check.wire import BOOL
from mucg4.errors import InputError
from mucg4.model.network import Network
from mucg4.ops.arrays import AnyArray, BoolArray, FloatArray, median
from mucg4.ops.base import Affine, Op
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

MOST_WORK = 600_000_000  # operations as `Reading` counts them, about 0.3 seconds of one core; not measured as a choice
ROOM = 4.0  # times the counted rounding of both sides that they may be apart; not measured
PER_NUMBER = 40  # operations of small steps for each number of the network, on both sides together; not measured
# points with true values, and with free ones; the first that can be afforded; not measured
PLANS = ((6, 11), (3, 5), (2, 3))
LEAST_COMPARED = 2  # a component is compared at more points than this, or it counts as never compared; not measured
MODEST = 1e100  # a number below it cannot be next to an overflow; not measured
# of free numbers; a negative row mirrors; not measured
SIZES = (1.0, -1.0, 1.0, 0.1, -0.1, 1e3, -1e3, 1e15, -1e15, 1e30, -1e30)
FLAT = ("Relu", "Clip", "HardSigmoid", "ThresholdedRelu")
# operators whose outputs may be computed from each other
_SKIP = ("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization")
TIED = frozenset(("RNN", "GRU", "LSTM", *_SKIP))
HALVES = 2  # the row of halves of integers; given: the row of SIZES without a mirror
MOST_WHOLE = 2.0**10  # free integers are no larger, so that sums and products of some stay in range; not measured
ALIKE = 5  # steps the first reader follows two factors back; not measured, above the depth of the gates it knows


@dataclass(frozen=True)
class Confirmation:
    """What `confirm` found. `problem` is one line when the network is not the file's, else None.

    `fallback` names what the second reading does not cover: nodes, and tensors that could not be compared; empty when
    the comparison reaches from the input to the output. `compared` counts comparisons of numbers.
    """

    problem: str | None
    fallback: tuple[str, ...]
    compared: int


class Differs(Exception):
    """Two values of one tensor are not the same."""


def confirm(
    data: bytes,
    network: Network,
    lo: FloatArray | None = None,
    hi: FloatArray | None = None,
    operations: int = MOST_WORK,
) -> Confirmation:
    """Compare the canonical network with the second reading of `data`, the bytes of its ONNX file.

    `lo` and `hi (input size,)` bound the points at true values (some lie far outside too). Work is limited to so many
    `operations`, counted, so that the answer is the same every time; when that is too little, `fallback` says so. Never
    raises for a bad model.
    """
    cost = 2 * work(network) + PER_NUMBER * network.size
    plan = next((p for p in PLANS if sum(p) * cost <= operations), None)
    if plan is None:
        return Confirmation(None, (f"the model: {work(network)} products a point are too many",), 0)
    try:
        reading = Reading(data, 2 * operations, inputs=network.inputs)
    except InputError as error:
        return Confirmation(None, (f"the model: {error}",), 0)
    random = np.random.default_rng(int.from_bytes(hashlib.sha256(data).digest()[:8], "little"))
    rows = _true_points(random, network.input_size, lo, hi)[: plan[0]]
    walk = Walk(network, reading, random, plan)
    problem = None
    if network.element_type != ELEMENT_TYPES[reading.input.kind]:
        problem = f"the input is {ELEMENT_TYPES[reading.input.kind]}, not {network.element_type}"
        return Confirmation(problem, (), 0)
    if network.integers != WHOLE_TYPES.get(reading.input.kind, ""):
        return Confirmation(f"the input is not {network.integers or 'of real numbers'}", (), 0)
    if walk.twice:
        return Confirmation(f"two nodes of the network are called {walk.twice!r}", (), 0)
    try:
        with np.errstate(all="ignore"):
            walk.finish(reading.run(np.concatenate([rows, np.zeros((plan[1], rows.shape[1]))]), walk.seen))
    except Differs as difference:
        problem = str(difference)
    except InputError as error:
        reading.fallback.append(f"the model: {error}")
    except MemoryError:
        reading.fallback.append("the model: out of memory")
    lines = (*reading.fallback, *walk.unseen) if problem is None else tuple(reading.fallback)
    return Confirmation(problem, tuple(dict.fromkeys(lines)), walk.compared)


def _true_points(random: np.random.Generator, n: int, lo: FloatArray | None, hi: FloatArray | None) -> FloatArray:
    """`(6, n)`: inside the box, far outside, inside, zeros, halves of integers, farther outside."""
    lo = np.full(n, -1.0) if lo is None else np.asarray(lo, dtype=np.float64)
    hi = np.full(n, 1.0) if hi is None else np.asarray(hi, dtype=np.float64)
    inside = lo + random.random((2, n)) * (hi - lo)
    wide = np.maximum(hi - lo, 1e-3 * np.maximum(1.0, abs(lo)))
    outside = lo + random.normal(size=(2, n)) * wide * np.array([[10.0], [1e3]])
    halves = np.round(random.normal(size=n) * 4) / 2
    return np.stack([inside[0], outside[0], inside[1], np.zeros(n), halves, outside[1]])


class Walk:
    """One pass over the file beside the canonical network; the first `true` points have true values."""

    def __init__(self, network: Network, reading: Reading, random: np.random.Generator, plan: tuple[int, int]) -> None:
        self.network, self.reading, self.random = network, reading, random
        self.true, self.free = plan
        self.compared = 0
        self.unseen: list[str] = []
        # the first reader may compute one output of a node from another, so none of several takes free values
        several = [node for node in reading.nodes if node.op in TIED and sum(map(bool, node.outputs)) > 1]
        names = reading.names.difference(*(node.outputs for node in several))
        helper = re.compile(r"(.+)#\d+'*$", re.DOTALL)
        self.cuts: dict[str, int] = {}
        self.twice = ""  # a tensor that two nodes claim to compute: one of them would not be compared
        for k, node in enumerate(network.nodes):
            match = helper.match(node.name)
            if node.name in names and not (match and match[1] in names):
                self.twice = node.name if node.name in self.cuts else self.twice
                self.cuts[node.name] = k
        self.bound = _uncut(network, reading, self.cuts)
        self.values: dict[int, Known] = {}
        # outputs of operators that can be flat, and their arguments where these are no cuts
        self.flat = {node.outputs[0]: node for node in reading.nodes if node.op in FLAT}
        self.loose: dict[str, Value | None] = {node.inputs[0]: None for node in self.flat.values()}

    def seen(self, name: str, value: Value) -> Value:
        """Compare a tensor where it is a cut; what its readers get."""
        k = self.cuts.get(name)
        if name in self.flat:
            self._cover(name, value)
        if k is None and name in self.loose:
            self.loose[name] = value
        if k is None:
            return value
        if k:
            self._compare(name, k, value)
        elif self.network.nodes[0].size != value.v[0].size:
            raise Differs(f"the input has {value.v[0].size} numbers, not {self.network.nodes[0].size}")
        v = value.v.copy()
        if name not in self.bound:
            v[self.true :] = self._freed(value)
        self.values[k] = v.reshape(len(v), -1), None
        return Value(v, value.kind, True)

    def _evaluate(self, op: Op, xs: Sequence[Known]) -> Known:
        return evaluate(op, xs)

    def finish(self, output: Value | None) -> None:
        """Compare the output, whatever the last node is called."""
        last = len(self.network.nodes) - 1
        if output is None or not self._reach(last):
            self.unseen.append("the output")
            return
        if not output.rows:
            v = np.broadcast_to(output.v, (len(self.values[0][0]), *output.v.shape))
            e = None if output.e is None else np.broadcast_to(output.e, v.shape)
            output = Value(v, output.kind, True, e)
        self._compare(self.network.nodes[last].name, last, output)
        for name, k in self.cuts.items():
            if k not in self.values:
                self.unseen.append(f"tensor {name!r} is not compared")

    def _freed(self, value: Value) -> AnyArray:
        """Random numbers of a tensor's kind for the points at which its values are free."""
        if value.kind == BOOL:
            return self._bits(value.v[self.true :])
        free = self._free(value.v[: self.true])
        if not value.is_whole:
            return free
        if free.dtype == object:
            return fractions(np.array([int(x) for x in free.ravel()], dtype=object).reshape(free.shape))
        least, most = RANGES[value.kind]
        return np.clip(np.round(free), max(least / 4, -MOST_WHOLE), min(most / 4, MOST_WHOLE))

    def _bits(self, like: AnyArray) -> AnyArray:
        """Random truth values, as the numbers that they are here."""
        bits = self.random.integers(0, 2, like.shape).astype(np.float64)
        return fractions(bits) if like.dtype == object else bits

    def _free(self, true: AnyArray) -> AnyArray:
        """Random numbers in many sizes, and halves of integers, for the points whose values are free."""
        finite = abs(true[np.isfinite(true)])
        typical = float(median(finite)) if finite.size else 1.0
        out = self.random.normal(size=(self.free, *true.shape[1:]))
        for row, size in enumerate(SIZES[: self.free]):
            if row == HALVES:
                out[row] = np.round(out[row] * 4) / 2
            elif size < 0:
                out[row] = -out[row - 1]
            else:
                out[row] *= size * (typical if typical > 0 and size <= 1.0 else 1.0)
        return out

    def _reach(self, k: int) -> bool:
        """Evaluate node k and what it needs; false where that needs a cut whose true values are unknown."""
        todo = [k]
        while todo:
            at = todo[-1]
            if at in self.values:
                todo.pop()
                continue
            node = self.network.nodes[at]
            missing = [i for i in node.inputs if i not in self.values]
            if node.op is None or any(self.network.nodes[i].name in self.cuts for i in missing):
                return False
            if missing:
                todo.extend(missing)
                continue
            self.values[at] = self._evaluate(node.op, [self.values[i] for i in node.inputs])
            todo.pop()
        return True

    def _compare(self, name: str, k: int, value: Value) -> None:
        if not self._reach(k):
            self.unseen.append(f"tensor {name!r} is not compared")
            return
        mine, other = self.values[k][0], value.v.reshape(len(value.v), -1)
        if mine.shape != other.shape:
            raise Differs(f"tensor {name!r} has {other.shape[1]} numbers, not {mine.shape[1]}")
        self._judge(name, k, mine, other, value.e)

    def _judge(self, name: str, k: int, mine: AnyArray, other: AnyArray, second: FloatArray | None) -> None:
        """Raise when two values `(points, n)` of a tensor are farther apart than rounding explains."""
        allowed = np.full(mine.shape, LEAST)
        for e in (self.values[k][1], None if second is None else second.reshape(other.shape)):
            if e is not None:
                allowed += ROOM * e
        gap = abs(mine - other)
        fine = np.isfinite(gap) & np.isfinite(allowed)
        # infinite on one side only, though nothing comes near an overflow
        torn = (np.isinf(mine) != np.isinf(other)) & (np.fmin(abs(mine), abs(other)) < MODEST) & np.isfinite(allowed)
        torn |= np.isnan(other) & np.isfinite(mine) & np.isfinite(allowed)  # what an integer type does not hold
        wrong = (fine & (gap > allowed)) | torn
        if wrong.any() and self._rectified(name, k):
            some = wrong.any(axis=0)
            wrong = (fine & (abs(np.maximum(mine, 0.0) - other) > allowed) & some) | torn
            self._tried(name, (mine > allowed)[:, some])
        if wrong.any():
            row, i = (int(v[0]) for v in np.nonzero(wrong))
            first, second_ = float(mine[row, i]), float(other[row, i])
            raise Differs(f"tensor {name!r}[{i}] is {first!r} as first read and {second_!r} as read again")
        self.compared += int(fine.sum())
        if fine.size and fine.sum(axis=0).min() < LEAST_COMPARED:
            self.unseen.append(f"tensor {name!r} is compared at too few points")

    def _tried(self, name: str, positive: BoolArray) -> None:
        """Numbers of which only the positive part is there need a point where it is not 0."""
        if not positive.any(axis=0).all():
            self.unseen.append(f"tensor {name!r} is compared at too few points")

    def _cover(self, name: str, value: Value) -> None:
        """A piecewise function of a tensor that is no cut must not be flat at all points, or the tensor is not tried.

        Where it is, one of the first reader's helpers may still show that it has the tensor, up to scale and shift.
        """
        node = self.flat[name]
        x = self.loose.get(node.inputs[0])
        if x is None or x.v.shape != value.v.shape:
            return
        y = value.v.reshape(len(value.v), -1)
        moves = (y > 0) & (y < 1) if node.op == "HardSigmoid" else y == x.v.reshape(y.shape)
        dead: BoolArray = ~np.any(np.asarray(moves, dtype=bool), axis=0)
        if dead.any() and not any(self._same_up_to_scale(k, x, dead) for k in self._helpers(name, y.shape[1])):
            self.unseen.append(f"tensor {name!r} is compared where it is flat only")

    def _helpers(self, name: str, size: int) -> list[int]:
        """The first reader's affine helper nodes for a tensor that can be evaluated."""
        return [
            k
            for k, node in enumerate(self.network.nodes)
            if node.name.startswith(f"{name}#") and isinstance(node.op, Affine) and node.size == size and self._reach(k)
        ]

    def _same_up_to_scale(self, k: int, x: Value, which: BoolArray) -> bool:
        """Whether node k is `s x + c` at all points, with one s and c for each of some numbers."""
        h, e = (None if a is None else a[:, which] for a in self.values[k])
        v, f = (None if a is None else a.reshape(len(a), -1)[:, which] for a in (x.v, x.e))
        assert h is not None and v is not None
        every = np.arange(v.shape[1])
        size = np.where(np.isfinite(v) & np.isfinite(h), abs(v), -1.0) if h.dtype != object else abs(v)
        far, near = size.argmax(axis=0), np.where(size < 0, np.inf, size).argmin(axis=0)
        span = v[far, every] - v[near, every]
        if not np.all(span != 0):
            return False
        s = (h[far, every] - h[near, every]) / span
        gap = abs(h - h[near, every] - s * (v - v[near, every]))
        if h.dtype == object:
            return bool(np.all(gap == 0))
        own = (0.0 if e is None else e) + abs(s) * (0.0 if f is None else f)
        own = own + 8 * UNIT * (abs(h) + abs(s * v) + LEAST)
        # an error at the far point counts in proportion to the distance
        own = own + own[near, every] * 2 + own[far, every] * abs((v - v[near, every]) / span)
        fine = np.isfinite(gap) & np.isfinite(own)
        return bool(np.all(~fine | (gap <= ROOM * own)) and np.all(fine.sum(axis=0) > LEAST_COMPARED))

    def _rectified(self, name: str, k: int) -> bool:
        """Whether all that read a tensor, on both sides, are zero on negative numbers.

        Then a component may be the positive part of what the first reader has: it folds `relu(c relu(z))` to
        `relu(c z)` and calls `c z` by the name of `c relu(z)`.
        """
        users = [self.network.nodes[i].op for i in self.network.users[k]]
        readers = [node.op for node in self.reading.nodes if name in node.inputs]
        first = all(isinstance(op, TwoPiece) and op.left == 0.0 for op in users)
        return first and bool(users) and all(op == "Relu" for op in readers) and name not in self.reading.outputs


def _uncut(network: Network, reading: Reading, cuts: dict[str, int]) -> set[str]:
    """Cuts that must keep their values because the first reader looks past them.

    It knows `x Sigmoid(x)` and products of factors that are made alike as one function of one tensor. Where a factor
    is a cut of its own, the product would be given free factors that do not belong together; so cuts a few steps
    before such a product stay what the cuts before them make them, at all points.
    """
    made = {name: node for node in reading.nodes for name in node.outputs}
    out: set[str] = set()
    for node in network.nodes:
        if node.op is None or node.op.kind not in ("Silu", "Square"):
            continue
        maker = made.get(node.name) or made.get(node.name.split("#")[0])
        if maker is None or len(set(maker.inputs)) < 2:
            continue
        source = network.nodes[node.inputs[0]].name
        gates = [name for name in maker.inputs if name in made and made[name].op == "Sigmoid"]
        if node.op.kind == "Silu" and any(
            {source, g} == set(maker.inputs) and made[g].inputs == (source,) for g in gates
        ):
            out.update(gates)
            continue
        level = set(maker.inputs)
        for _ in range(ALIKE):
            out |= {name for name in level if cuts.get(name)}
            level = {i for name in level if name in made for i in made[name].inputs}
    return out
