"""Before `unsat`: does onnxruntime compute what was read? Two comparisons on the run's own network.

1. The outputs of the unmodified model with default options, one point a run: what a scorer does. Rounding adds up
   along the network, so the allowance is an estimate (`mucg4.gate.allowance`).
2. Every tensor, with optimisations off, and each canonical node evaluated on onnxruntime's own values of its inputs:
   then only the node's own rounding is allowed, which is bounded rigorously and small.

Neither replaces the other: tensors that are asked for are not fused, and default options may replace operators by
others (products with dequantised weights, for one, are run in 8-bit activations); on the other hand a wrong reading
that hardly shows at the outputs does at its own node. The points lie inside the query's boxes (centre, corners, random
ones, some that the search has seen) and far outside, since a box may hide a wrong reading. Like every comparison at
points this finds mistakes, it does not prove that there are none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mucg4.errors import InputError
from mucg4.gate.allowance import TRIALS, evaluate, local_error
from mucg4.gate.runtime import Runtime, Tensors
from mucg4.gate.wire import Skeleton, Slice
from mucg4.gate.witness import snap, whole
from mucg4.limits.processes import single_thread
from mucg4.model.network import Network
from mucg4.model.query import Case, Query
from mucg4.ops.affine import Dense
from mucg4.ops.arrays import BoolArray, FloatArray
from mucg4.ops.piecewise import TwoPiece
from mucg4.ops.steps import Trunc
from mucg4.records import dataclass

LARGE = 200_000  # neurons of a network that takes few points of the second comparison; not measured
FEW = (1, 6)  # those: a point that the search has seen, if there is one, and one far outside; not measured
OTHERWISE = "; the operators agree one by one: default options that change the function, or rounding that adds up"
DEQUANTISED = (
    "; onnxruntime multiplies by weights behind DequantizeLinear in 8-bit activations: --dequantised float32 is for "
    "networks deployed otherwise"
)
TOGETHER = 4_000_000  # numbers of one tensor list that are held at a time; not measured
RECTIFIERS = {
    "Relu",
    "LeakyRelu",
    "PRelu",
    "Clip",
    "Max",
    "FusedGemm",
    "FusedConv",
}  # operators that may be zero on negative values
HELPER = Slice(1, 1, frozenset())  # of the file that a node without a tensor stands for
SMALL = 2_000  # neurons of a network on which a round takes about a millisecond; not measured
LEAST_ROUNDS, MOST_ROUNDS = 2, 200  # of points of one run; not measured
SCALES = (10.0, 1e3)  # how many times the box is blown up; not measured


@dataclass(frozen=True)
class Agreement:
    """`problem` is one line, None when both comparisons pass at `points` points; `tensors` is how many were compared.

    `share` is the largest part of an allowance that was used, over both.
    """

    problem: str | None
    points: int = 0
    tensors: int = 0
    share: float = 0.0


def agreement(
    query: Query, runtime: Runtime | None = None, visited: FloatArray | None = None, seconds: float = 0.03
) -> Agreement:
    """Compare the canonical network with onnxruntime; see the module text.

    `visited (N, n)` are points that the search has seen; without them those that the runtime remembers. Rounds of ten
    points follow each other until `seconds` have passed, at least one, some on small networks. The points depend on
    the query alone (and on `visited`); how many there are on the machine. A query without a nonempty box needs no
    comparison. A network that agreed under another query, in the same runtime, gets the least rounds: they lie in the
    boxes of this one.
    """
    if query.joint is not None and not query.joint.plain:
        return _of_parts(query, runtime, visited, seconds)
    network, until = query.network, time.monotonic() + seconds
    cases = [case for case in query.cases if not case.box.empty]
    if not cases:
        return Agreement(None)
    runtime = Runtime(network) if runtime is None else runtime
    visited = runtime.visited if visited is None else visited
    random = np.random.default_rng(int(query.key[:16], 16))
    done = Agreement(None)
    with single_thread():  # on busy cores several threads make small products five times slower
        try:
            if runtime.inner is None or runtime.inner.network is not network:
                runtime.inner, runtime.compared = _Inner(network, runtime), 0
            inner, until = runtime.inner, 0.0 if runtime.compared else until
            for turn in range(MOST_ROUNDS):
                x, inside = _points(cases[turn % len(cases)], turn, visited, random, network.element_type)
                x = whole(network, x)
                done = _round(done, network, x, inside, runtime, inner)
                enough = turn + 1 >= LEAST_ROUNDS or network.size > SMALL
                if done.problem is not None or (enough and time.monotonic() >= until):
                    break
        except InputError as error:
            return replace(done, problem=str(error))
    runtime.compared += turn + 1 if done.problem is None else 0
    return done


def _of_parts(query: Query, runtime: Runtime | None, visited: FloatArray | None, seconds: float) -> Agreement:
    """Every model of a query of several networks, or with products, on its own."""
    from mucg4.gate.joint import part_queries

    assert query.joint is not None
    parts, total = part_queries(query), Agreement(None)
    visited = runtime.visited if visited is None and runtime is not None else visited
    for part, links in parts:
        seen = None if visited is None else query.joint.linked(visited)[:, links]
        alone = Runtime(part.network, "default" if runtime is None else runtime.dequantised)
        done = agreement(part, alone, seen, seconds / len(parts))
        total = Agreement(
            done.problem, total.points + done.points, total.tensors + done.tensors, max(total.share, done.share)
        )
        if done.problem is not None:
            break
    return total


def _round(
    done: Agreement, network: Network, x: FloatArray, inside: BoolArray, runtime: Runtime, inner: _Inner
) -> Agreement:
    """Both comparisons at some more points."""
    if network.size <= LARGE:
        problem, used = _outputs(network, x, inside, runtime, inner)
        fault, part = inner.compare(x, inside)
    else:
        few = list(FEW)
        problem, used = _outputs(network, x[few], inside[few], runtime, inner)
        fault, part = inner.compare(x[few], inside[few])
        if fault is None and problem is None:
            problem = _sessions(network, x, inside, runtime, inner)
    if fault is None and problem is not None:
        fault = problem + (_cause(network, x, inside, runtime, inner) if "disagrees" in problem else "")
    return Agreement(fault, done.points + len(x), len(inner.names), max(done.share, used, part))


# --- points ----------------------------------------------------------------------------------------------------


def _points(
    case: Case, turn: int, visited: FloatArray | None, random: np.random.Generator, element_type: str
) -> tuple[FloatArray, BoolArray]:
    """Ten points as element-type values `(10, n)`, and which of them lie in the box."""
    lo, hi = case.box.lo, case.box.hi
    n = len(lo)
    middle, spread = lo / 2 + hi / 2, hi / 2 - lo / 2
    share = random.random((4, n))
    share[2] = share[2] < 0.5  # a corner
    if turn == 0:
        share[0], share[3] = 0.5, 1 - share[2]
    inside = lo * (1 - share) + hi * share
    if visited is not None and len(visited):
        inside[1] = np.asarray(visited[int(random.integers(len(visited)))], dtype=np.float64)
    wide = np.maximum(spread, 1e-3 * (1 + abs(middle)))
    outside = [middle + scale * wide * random.uniform(-1, 1, n) for scale in SCALES]
    outside.append(random.normal(size=n) * 10.0 ** random.uniform(-1, 3))
    outside.append(random.choice([-1, 1], n) * 10.0 ** random.uniform(-2, 9, n))  # all magnitudes
    outside.append(random.integers(-16, 17, n) / (1 + random.integers(2)))  # whole or half numbers
    outside.append(np.zeros(n) if turn == 0 else np.where(random.random(n) < 0.25, random.normal(size=n) * 10, 0.0))
    largest = float(np.finfo(element_type).max) / 4
    away = np.clip(np.array(outside), -largest, largest).astype(element_type)
    return np.concatenate([snap(case.box, inside, element_type), away]), np.arange(4 + len(away)) < 4


# --- outputs, default options ----------------------------------------------------------------------------------


def _outputs(
    network: Network, x: FloatArray, inside: BoolArray, runtime: Runtime, inner: _Inner
) -> tuple[str | None, float]:
    """The first output that differs by more than rounding, as text, and how much of the allowance was used."""
    theirs = runtime.single(x).astype(np.float64)
    every = TRIALS if network.size <= LARGE / 10 else TRIALS // 2 if network.size <= LARGE else 2
    step = max(1, TOGETHER // (network.size * every))
    worst = 0.0
    for at in range(0, len(x), step):
        part = slice(at, at + step)
        ours, allowed, fine = evaluate(network, x[part].astype(np.float64), every, merged=inner.passed)
        finite = np.isfinite(theirs[part])
        if np.any(inside[part] & ~finite.all(axis=1)):
            return "onnxruntime's outputs are not finite at a point of the box", worst
        with np.errstate(all="ignore"):
            off = abs(ours - theirs[part])
            judged = fine[:, None] & finite  # far outside a step between may overflow
            bad = judged & ~(off <= allowed) & (off != 0)  # an allowance may be nan; equal numbers need none
            used = np.where(judged & (off != 0), off / allowed, 0.0)
        if np.any(bad):
            k, j = np.argwhere(bad)[0].tolist()
            return _text(f"output {j}", ours[k, j], theirs[at + k, j], allowed[k, j]), worst
        worst = max(worst, float(used.max(initial=0.0)))
    return None, worst


def _cause(network: Network, x: FloatArray, inside: BoolArray, runtime: Runtime, inner: _Inner) -> str:
    """What may be behind outputs that disagree where every operator agrees; `DEQUANTISED` where that was seen."""
    suspected = runtime.dequantised == "default" and any("DequantizeLinear" in s.ops for s in runtime.file.steps)
    if suspected and network.size <= LARGE:  # of larger ones too few points were compared
        with suppress(InputError):
            if _outputs(network, x, inside, Runtime(network, "float32"), inner)[0] is None:
                return DEQUANTISED
    return OTHERWISE


def _sessions(network: Network, x: FloatArray, inside: BoolArray, runtime: Runtime, inner: _Inner) -> str | None:
    """As `_outputs` for large networks, whose evaluation in float64 takes long: with and without optimisations.

    The latter are known to compute the network as read. How far two runs may be off from each other is taken from
    the points `FEW`, in units of the largest output.
    """
    default, plain = (v.astype(np.float64) for v in (runtime.single(x), inner.tensors.outputs(x)))
    if not np.all(np.isfinite(default[inside])):
        return "onnxruntime's outputs are not finite at a point of the box"
    with np.errstate(all="ignore"):
        size = abs(plain).max(axis=1)
        units = [
            evaluate(network, x[i : i + 1].astype(np.float64), 2, merged=inner.passed)[1].max() / size[i] for i in FEW
        ]
        allowed = 2 * float(np.nanmax(units)) * size
        off = abs(default - plain)
        bad = ~(off <= allowed[:, None]) & np.isfinite(default)
    if not np.any(bad):
        return None
    k, j = np.argwhere(bad)[0].tolist()
    return _text(f"output {j}", plain[k, j], default[k, j], allowed[k])


def _text(what: str, ours: float, theirs: float, allowed: float) -> str:
    return (
        f"{what} disagrees with onnxruntime at a point: {float(ours)!r} here, {float(theirs)!r} there, "
        f"allowed difference {float(allowed):.3g}"
    )


# --- every tensor, optimisations off ---------------------------------------------------------------------------


class Known(NamedTuple):
    """Values of a node `(batch, size)`, how far they may be off, and whether onnxruntime gave them."""

    value: FloatArray
    error: FloatArray | float
    given: bool


class _Inner:
    """The canonical nodes that are tensors of the file (helpers are not), and the session that returns these.

    A node may be several tensors, where an operator between them was read as changing nothing.
    """

    def __init__(self, network: Network, runtime: Runtime) -> None:
        self.network = network
        file = runtime.file
        self.at: dict[int, list[str]] = {}
        known = dict(network.tensors)
        for name, k in known.items():
            if name in file.producer:
                self.at.setdefault(k, []).append(name)
        for k, node in enumerate(network.nodes):
            if k not in self.at and node.name in file.producer and node.name not in known:
                self.at[k] = [node.name]
        if len(file.outputs) == 1:
            self.at.setdefault(len(network.nodes) - 1, [file.outputs[0]])
        self.names = [name for names in self.at.values() for name in names]
        sizes = [network.nodes[k].size for k, names in self.at.items() for _ in names]
        self.tensors: Tensors = runtime.tensors(self.names, sizes)
        self.passed = _passed(network, file, self.at)
        self.rectified = {k for k in self.at if _rectified(network, k) and self.passed[k].ops & RECTIFIERS}
        self.last_use = [max(users, default=k) for k, users in enumerate(network.users)]
        self.unit = network.unit

    def compare(self, x: FloatArray, inside: BoolArray) -> tuple[str | None, float]:
        """The first tensor that differs by more than its own rounding at the points `x`; how much of it was used.

        A constant that operators of the file add and take away again may leave no trace in the node they were merged
        into (`Slice.inner`), but takes digits of the values inside the box, which usually are of its size: the
        allowance at the points marked `inside` holds at the others too.
        """
        step = max(1, TOGETHER // self.network.size)
        worst = 0.0
        for at in range(0, len(x), step):
            part = x[at : at + step]
            theirs = dict(zip(self.names, self.tensors.values(part), strict=True))
            problem, used = self._walk(part, theirs, inside[at : at + step])
            worst = max(worst, used)
            if problem is not None:
                return problem, worst
        return None, worst

    def _walk(self, x: FloatArray, theirs: dict[str, FloatArray], inside: BoolArray) -> tuple[str | None, float]:
        known: dict[int, Known] = {}
        worst = 0.0
        for k, node in enumerate(self.network.nodes):
            inputs = [known[i] for i in node.inputs]
            part = self.passed.get(k, HELPER)
            with np.errstate(all="ignore"):
                if node.op is None:
                    value = x.astype(np.float64)
                    size: FloatArray = abs(value)
                    error: FloatArray = self.unit * part.roundings * (size + part.inner + part.outer)
                else:
                    value = node.op.apply([i.value for i in inputs])
                    own, passed, size = local_error(node, inputs, value, self.unit, part)
                    known_sizes = np.where(np.isfinite(own[inside]), own[inside], 0.0)
                    error = np.maximum(own, known_sizes.max(axis=0, initial=0.0)) + passed
            known[k] = Known(value, error, False) if k else Known(value, 0.0, True)
            for name in self.at.get(k, ()):
                other = theirs[name].astype(np.float64)
                if isinstance(node.op, Trunc):  # what becomes of numbers beyond an integer type says nothing
                    other = np.where(np.isnan(value), np.nan, other)
                bad, used = self._judge(k, inputs, value, other, error, size, inside)
                if bad is not None:
                    point, j = bad
                    what = f"tensor {name!r} (value {j}, {getattr(node.op, 'kind', 'the input')})"
                    limit = np.broadcast_to(error, value.shape)[point, j]
                    return _text(what, value[point, j], other[point, j], limit), worst
                worst = max(worst, used)
                if k:
                    known[k] = Known(other, 0.0, True)
            for i in {*node.inputs, k}:
                if self.last_use[i] <= k:
                    known.pop(i, None)
        return None, worst

    def _judge(
        self,
        k: int,
        inputs: Sequence[Known],
        ours: FloatArray,
        theirs: FloatArray,
        error: FloatArray,
        size: FloatArray,
        inside: BoolArray,
    ) -> tuple[tuple[int, int] | None, float]:
        """Where a node disagrees, `(point, value)`, and the largest share of its allowance that was used.

        Points where an input is not finite say nothing; a value that overflows in the model's type may be
        infinite or nan there, and outside the box so may one behind several operators of the file.
        """
        largest = self.network.largest
        fine = np.ones(len(ours), dtype=bool)
        for i in inputs:
            fine &= np.isfinite(i.value).all(axis=1) if i.given else True
        direct = all(i.given for i in inputs)
        with np.errstate(all="ignore"):
            a, b = (np.maximum(v, 0.0) for v in (ours, theirs)) if k in self.rectified else (ours, theirs)
            off = abs(a - b)
            near = (off <= error) | (a == b)
            near |= (size >= largest / 4) & ~np.isfinite(theirs)
            if self.passed[k].nodes > 1:
                near |= ~inside[:, None] & ~np.isfinite(theirs)
            if direct:
                near |= np.isnan(a) & np.isnan(b)
            else:  # a step between may leave the range of numbers where onnxruntime's does not
                near |= ~np.isfinite(ours) | ~np.isfinite(error)
            bad = fine[:, None] & ~near
            used = np.where(fine[:, None] & np.isfinite(error) & (error > 0) & np.isfinite(off), off / error, 0.0)
        if np.any(bad):
            point, j = np.argwhere(bad)[0].tolist()
            return (point, j), 0.0
        return None, float(np.nanmax(np.where(used <= 1, used, 0.0), initial=0.0))


def _passed(network: Network, file: Skeleton, at: dict[int, list[str]]) -> dict[int, Slice]:
    """For the nodes that are tensors: the part of the file that was merged into them."""
    own = {network.nodes[0].name, *file.inputs}
    nearest: dict[int, set[str]] = {}
    out: dict[int, Slice] = {}
    for k, node in enumerate(network.nodes):
        sources = set().union(*(nearest[i] for i in node.inputs)) if k else own
        parts = [file.between(name, sources) for name in at.get(k, ())]
        if parts:
            out[k] = Slice.over(parts)
        nearest[k] = {*at.get(k, ()), *(own if not k else ())} or sources
    return out


def _rectified(network: Network, k: int) -> bool:
    """True where all readers are zero on negative values: then only the positive part of node k means anything.

    `mucg4.read.unsplit` leaves out a rectification that the next one does anyway: then only that part can agree.
    """
    ops = [network.nodes[i].op for i in network.users[k]]
    return (
        isinstance(network.nodes[k].op, Dense)
        and bool(ops)
        and all(isinstance(op, TwoPiece) and op.left == 0.0 for op in ops)
    )
