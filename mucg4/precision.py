"""Real arithmetic against the model's own precision: whether `unsat` holds for executions, too.

`unsat` is claimed for real arithmetic on the stored weights. What can be said beyond that is said here, and stands in
the run record:

* `holds`: the checker accepted the proof with every constraint loosened by what an execution in the model's precision
  may deviate (`mucg4.check.deviation` says which executions are covered, `mucg4.check.executions` how);
* `not established: ...`: it did not, for the reason given. That is no sign that a float32 execution is unsafe, only
  that this proof, in the time there was, does not exclude it. A witness is looked for (`mucg4.search.cancel`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mucg4.check.deviation import Deviation, enlarged
from mucg4.check.executions import check_executions
from mucg4.errors import InputError
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.network import Network, Node
from mucg4.model.proof import Proof
from mucg4.model.query import Case, Query, Witness
from mucg4.ops.base import Array
from mucg4.read.onnx import Operators, read_operators
from mucg4.records import dataclass
from mucg4.search.cancel import float_witness

if TYPE_CHECKING:
    from mucg4.model.joint import Joint

SHARE, LEAST_SECONDS = 0.08, 0.15  # of the run so far, and at least, where executions are not demanded; not measured
FIRST_SHARE = 0.3  # of the time that is left, where they are, for the first proof; not measured
HUNT_SHARE, LEAST_HUNT = 0.03, 0.04  # of the run so far, and at least, for looking for a witness; not measured
EFFORT, DEMANDED_EFFORT = 1, 16  # see `check_executions`; not measured
# points whose deviations say what margin a search should leave, and how many times it; not measured
SAMPLES, ROOM = 64, 3.0
HOLDS, NOT_ESTABLISHED = "holds", "not established"
TOO_LITTLE = "there was too little time"


@dataclass(frozen=True)
class Precision:
    """What is known about executions in the model's precision; `witness` when one of them is unsafe."""

    word: str
    witness: Witness | None = None

    @property
    def holds(self) -> bool:
        """True when no such execution is unsafe."""
        return self.word == HOLDS


@dataclass(frozen=True)
class Hunted:
    """A witness that only an execution has, None where none was found in so many `seconds`."""

    witness: Witness | None = None
    seconds: float = 0.0


def hunted(query: Query, runtime: Runtime, budget: Budget, seed: int = 0) -> Hunted:
    """A hunt of the usual length, which asks nothing of a proof. Raises `BudgetError`."""
    deviation = deviation_of(query)
    if isinstance(deviation, str):
        return Hunted()
    budget.poll()
    seconds = _hunting(budget)
    return Hunted(float_witness(query, runtime, deviation, seconds, seed), seconds)


def _hunting(budget: Budget) -> float:
    """Seconds that a hunt may take."""
    return min(budget.left(), max(LEAST_HUNT, HUNT_SHARE * budget.elapsed()))


def settle(
    query: Query,
    proof: Proof,
    runtime: Runtime | None,
    budget: Budget,
    demanded: bool = False,
    workers: int = 1,
    seed: int = 0,
    checked_in: float = 0.0,
    before: Callable[[], Hunted] = Hunted,
) -> Precision:
    """Whether the proof, which holds in real arithmetic, holds for executions; if not, a hunt for a witness.

    It takes a share of the time so far, or where it is `demanded` of the time that is left. The walk for executions is
    never quicker than the plain check, which took `checked_in` seconds, so where that is more than there is the walk is
    left out. No `runtime`: no hunt. `before`: waits for what a hunt elsewhere found; what came of the rest of the time
    here is added.
    Raises `BudgetError` when the whole run's time is over.
    """
    budget.poll()
    seconds = FIRST_SHARE * budget.left() if demanded else max(LEAST_SECONDS, SHARE * budget.elapsed())
    deviation = deviation_of(query)
    if isinstance(deviation, str):
        return Precision(f"{NOT_ESTABLISHED}: {deviation}")
    reason = TOO_LITTLE
    if checked_in <= seconds:
        own = budget.share(seconds)
        report = check_executions(proof, query, deviation, own, DEMANDED_EFFORT if demanded else EFFORT, workers)
        if report.accepted:
            return Precision(HOLDS)
        reason = TOO_LITTLE if own.spent() else report.reason
    budget.poll()
    witness = None
    if runtime is not None:
        done = before()
        witness, seconds = done.witness, _hunting(budget) - done.seconds
        if witness is None and (seconds >= LEAST_HUNT or not done.seconds):
            witness = float_witness(query, runtime, deviation, seconds, seed)
    return Precision(f"{NOT_ESTABLISHED}: {reason}", witness)


def deviation_of(query: Query) -> Deviation | str:
    """Bounds of the deviation for a query's network, or why there are none."""
    network, joint = query.network, query.joint
    if not query.executable:
        return "the network was not read from a file"
    try:
        if joint is None or joint.plain:
            operators = _of_file(network)
        else:
            operators = _of_parts(joint, len(network.nodes))
    except InputError as error:
        return str(error)
    if operators.roundings is None:
        return "the file computes constants whose rounding is not known"
    if any(t >= len(network.nodes) or network.nodes[t].size != n.size for n, t in _pairs(operators)):
        return "the network is not the one of its file"
    deviation = Deviation(operators.network, operators.twins, operators.roundings)
    return deviation.reason or deviation


def _of_file(network: Network) -> Operators:
    return read_operators(network.model_bytes, dict(network.inputs), network.input_size)


def _of_parts(joint: Joint, count: int) -> Operators:
    """The operators of all parts, joined as the parts are; products of variables are executed too."""
    from mucg4.read.joint import joined

    of_part = {id(part): _of_file(part) for part in joint.parts}
    operators = [of_part[id(part)] for part in joint.parts]
    network, made = joined(replace(joint, parts=tuple(o.network for o in operators), places=()))
    twins = [-1] * len(network.nodes)
    for mine, theirs, part in zip(made.places, joint.places, operators, strict=True):
        for k, twin in zip(mine, part.twins, strict=False):
            twins[k] = theirs[twin] if twin >= 0 else -1
    between = [
        [k for k in range(nodes) if k not in {k for at in places for k in at[1:]}]
        for nodes, places in ((len(network.nodes), made.places), (count, joint.places))
    ]
    for k, twin in zip(*between, strict=True):
        twins[k] = twin
    roundings = [o.roundings for o in operators if o.roundings is not None]
    return Operators(network, tuple(twins), max(roundings) if len(roundings) == len(operators) else None)


def _pairs(operators: Operators) -> list[tuple[Node, int]]:
    """Nodes with their twins."""
    return [(n, t) for n, t in zip(operators.network.nodes, operators.twins, strict=True) if t >= 0]


def enlarged_query(query: Query, deviation: Deviation, seed: int = 0) -> Query:
    """The query whose proofs leave room for executions: what a search is given where executions are demanded.

    Hashes and the witness gate keep to the constraints as stated. By how much the others are loosened is a guess from
    single points, since the deviation of the whole box may be far too large; the checker uses its own bounds.
    """
    cases = []
    for k, case in enumerate(query.cases):
        cases.append(case if case.box.empty else enlarged(case, _typical(query, case, deviation, seed + k)))
    return replace(query, cases=tuple(cases))


def _typical(query: Query, case: Case, deviation: Deviation, seed: int) -> Array:
    """(M,) the largest deviation at some points of the box, with room; 0 where there is none that is known."""
    lo, hi = case.box.lo, case.box.hi
    share = np.random.default_rng(seed).random((SAMPLES, len(lo)))
    with np.errstate(all="ignore"):
        values = query.network.values(lo * (1 - share) + hi * share)
        d = ROOM * np.max(deviation.bound(values, values, case), axis=0, initial=0.0)
    return np.where(np.isfinite(d), d, 0.0)
