"""Reading one model, running it, and judging what comes out.

The network as read is evaluated in double, onnxruntime in the model's own types, once with its default options and
once without optimisations. Values count as equal up to the rounding of the model's type.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnxruntime

from mucg4.check.confirm import confirm
from mucg4.errors import Mucg4Error
from mucg4.read.onnx import read_network
from mucg4.read.protobuf import DOUBLE, FLOAT, INT32, INT64
from mucg4.read.table import TABLE, Row

from . import arithmetic, chains, composed, fused, images, moves, recurrent, stored
from .make import Case, Maker

# which generator covers which operators of the table
COVERS = {
    op: generator
    for module in (arithmetic, images, moves, stored, composed, fused, recurrent)
    for generator, ops in module.GENERATORS.items()
    for op in ops.split()
}
MANY_FORMS = frozenset(
    "Slice Pad Clip Resize Upsample Gather Split MatMul Gemm Pow ReduceSum ReduceMax Conv MaxPool AveragePool "
    "Einsum".split()
)
POINTS = 5
TOLERANCE = {FLOAT: 2e-5, DOUBLE: 1e-12}
Target = tuple[Row, bool, int]  # a row of the table, whether the operator reads the input, an element type

onnxruntime.set_default_logger_severity(4)


def targets() -> list[Target]:
    """Every entry of the table: row, on variables or constants, element type."""
    out = [(row, True, kind) for row in TABLE for kind in row.variable]
    return out + [(row, False, kind) for row in TABLE for kind in row.constant]


def make(chance: random.Random, target: Target | None, chain: Callable[[Maker], Case] | None = None) -> Case:
    """A random model for an entry of the table, or a chain."""
    if target is None:
        m = Maker(chance, None, True, FLOAT, chance.randint(13, 18))
        return (chain or chance.choice(chains.GENERATORS))(m)
    row, variable, kind = target
    first, last = row.opsets if "::" not in row.op else (13, 20)  # of the ordinary operators beside it
    first = max(9, first) if variable and kind not in (FLOAT, DOUBLE) else first
    if (
        not variable or row.op == "Shape" or kind not in (FLOAT, DOUBLE)
    ):  # a Cast follows, which is older than no operator set but the first ones
        first = min(max(first, 7), last)
    return COVERS[row.op](Maker(chance, row, variable, kind, chance.randint(first, last)))


@dataclass
class Tally:
    """What became of the models."""

    counts: Counter[str] = field(default_factory=Counter)
    compared: Counter[Target] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)  # what the checker's reader does not know
    sessions: list[str] = field(default_factory=list)  # onnxruntime against itself

    def judge(self, case: Case, target: Target | None, chance: random.Random, twice: bool = False) -> None:
        """Compare one model and count it; `twice`: with the checker's own reading too."""
        self.counts["models"] += 1
        try:
            network = read_network(case.data)
        except Mucg4Error as error:
            self.counts["refused"] += 1
            self.refused[str(error).split("(node")[0].strip() + str(error).rpartition("):")[2][:70]] += 1
            return
        points = _points(case, chance)
        runs = [_run(case, points, optimise) for optimise in (True, False)]
        if runs[0] is None or runs[1] is None:
            self.counts["not run"] += 1
            return
        self.counts["compared"] += 1
        if target is not None:
            self.compared[target] += 1
        with np.errstate(all="ignore"):
            read = network(points.reshape(len(points), -1).astype(np.float64))
        kind = case.kind if runs[1].dtype == np.float64 else FLOAT
        plain = runs[1].reshape(len(points), -1)
        if read.shape != plain.shape or not _equal(read, plain, TOLERANCE[kind]):
            self.counts["differ"] += 1
            self.faults.append(
                f"{case.text}\n    read {read.ravel()[:6]} {read.shape} run {plain.ravel()[:6]} {plain.shape}"
            )
        if twice:
            found = confirm(case.data, network)
            self.unread.update(f"{line.split(' (')[0]}:{line.rpartition(':')[2]}" for line in found.fallback)
            if found.problem is not None:
                self.faults.append(f"{case.text}\n    read again: {found.problem}")
        if not _equal(runs[0].reshape(plain.shape), plain, TOLERANCE[kind]):
            self.counts["sessions differ"] += 1
            self.sessions.append(case.text)


def _points(case: Case, chance: random.Random) -> np.ndarray:
    rng = np.random.default_rng(chance.getrandbits(32))
    points = rng.standard_normal((POINTS, *case.shape)) * case.scale
    points[0] = np.round(points[0] * 2) / 2
    points[1] *= 10
    if case.positive:
        points = abs(points) + 0.1
    if case.kind in (INT32, INT64):
        return np.rint(points * 3).astype(np.int32 if case.kind == INT32 else np.int64)
    return points.astype(np.float32 if case.kind == FLOAT else np.float64)


def _run(case: Case, points: np.ndarray, optimise: bool) -> np.ndarray | None:
    """onnxruntime's outputs, None when it refuses the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(case.data, options, providers=["CPUExecutionProvider"])
        return np.array([session.run(None, {"x": p})[0] for p in points])
    except Exception as error:
        if "onnxruntime" not in type(error).__module__:
            raise
        return None


def _equal(a: np.ndarray, b: np.ndarray, tolerance: float) -> bool:
    with np.errstate(all="ignore"):
        finite = abs(np.where(np.isfinite(b), b, 0.0))
        size = np.maximum(1.0, finite.max(initial=0.0))
        close = abs(a - b) <= tolerance * size
        both = (np.isnan(a) & np.isnan(b)) | ((abs(a) > 1e30) & (abs(b) > 1e30) & (np.sign(a) == np.sign(b)))
    return bool(np.all(close | both))


def sweep(seed: int, models: int, only: frozenset[str] = frozenset(), twice: bool = False) -> Tally:
    """Random models: one in eight a chain, three for the entries of the table in turn, four for the entries with
    more to them more often. `only`: entries of these operators, no chains; `twice`: as for `Tally.judge`."""
    tally, chance, every = Tally(), random.Random(seed), [t for t in targets() if not only or t[0].op in only]
    order, weights = _endless(list(every), chance), [_weight(target) for target in every]
    for _ in range(models):
        kind = chance.randrange(8) if not only else chance.randrange(1, 8)
        target = None if kind == 0 else next(order) if kind < 4 else chance.choices(every, weights)[0]
        tally.judge(make(chance, target), target, chance, twice)
    return tally


def _weight(target: Target) -> float:
    """How much there is to an entry: attributes, and inputs that mean as much."""
    row, variable, kind = target
    if not variable:
        return 1.0 if kind in (FLOAT, INT32, INT64) else 0.2
    return 1.0 + 2.0 * len(row.attributes) + (10.0 if row.op in MANY_FORMS else 0.0)


def _endless(every: list[Target], chance: random.Random) -> Iterator[Target]:
    while True:
        chance.shuffle(every)
        yield from list(every)
