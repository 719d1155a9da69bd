"""A way of splitting: what bounds the regions of a search, and what chooses the literals they are split at.

The loop (`mucg4.search.loop`) keeps the frontier, the tree, the attack and the counters, and in each turn asks its way:
`unpack` regions popped from the frontier, `bound` their children, `split` those that are left, `pack` them for the
frontier. Refutations come back from every step, and the loop records them. What a way changes on regions that stay open
(tightenings, cuts) goes to the recorder at once, because its order counts.

`bound` and `split` are apart, so that one way's splits can follow another's bounds: what one hands to the other are
`Findings`. The ways are `mucg4.search.inputs` and `mucg4.search.phases`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import field
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from mucg4.bound.compute import Compute
from mucg4.bound.objective import Objective
from mucg4.bound.planes import CutPlanes
from mucg4.bound.propagate import Bounder, Regions
from mucg4.limits.budget import Budget
from mucg4.ops.base import Array
from mucg4.records import dataclass
from mucg4.search.record import Recorder
from mucg4.search.refuted import ByConstraints, Refuted
from mucg4.search.region import Batch, Plan
from mucg4.search.split import Literals
from mucg4.search.ties import Ties

FORGET = 0.9  # of a running mean, at each new value; not measured
# gains shrink further down: levels needed over those at the present gain; measured: see `mucg4.search.phase_tighten`
STRETCH = 1.5


@dataclass
class Pace:
    """How a search goes: kept by the loop, read by its way."""

    turns: int = 0
    gain: float = 0.0  # mean gain of one split, known after the first
    has_split: bool = False
    until: float = float("inf")  # work of the budget at which optional steps are left out

    def learn(self, parents: Array, value: Array) -> None:
        """Update the mean gain from children's bounds `value (B,)` and their parents', nan where there is none."""
        known = np.isfinite(parents)
        if np.any(known):
            gain = np.minimum(value[known], 0) - parents[known]
            mean = float(np.fmax(gain, 0).mean())
            self.gain = mean if self.gain == 0.0 else FORGET * self.gain + (1 - FORGET) * mean
            self.has_split = True


@dataclass(frozen=True)
class Stored:
    """Duals of an earlier proof for B regions: where ascent may begin.

    `weights (B, M)` on all constraints of the case, nan in rows without any duals. `alpha`, `beta`, `cuts` are triples
    of equally long arrays: rows, flat pre-activation positions (for `cuts`: columns of the planes), values.
    """

    weights: Array
    alpha: tuple[Array, Array, Array]
    beta: tuple[Array, Array, Array]
    cuts: tuple[Array, Array, Array]


@dataclass
class Context:
    """What a way of splitting is given: the case, where it is computed, and what the loop keeps."""

    bounder: Bounder
    objective: Objective
    compute: Compute
    root: Regions
    plan: Plan
    recorder: Recorder
    budget: Budget
    pace: Pace = field(default_factory=Pace)
    ties: Ties = field(init=False)

    def __post_init__(self) -> None:
        self.ties = Ties(self.bounder, self.objective, self.budget)


@dataclass
class Findings(ABC):
    """What `bound` found on the regions of `work`, whose `open` no longer marks what was refuted.

    A way adds what its split needs.
    """

    work: Batch
    value: Array  # (B,) bounds
    alive: Array  # (B,) bool, where something is open
    refuted: list[Refuted]
    near: Array  # (R,) regions, alive, that a linear program may close: see `Ties.worth_a_program`

    @abstractmethod
    def corners(self, which: Array) -> Array:
        """Inputs `(R, d)` at which the bounds of the regions `which (R,)` are attained: candidates for the attack."""


@dataclass
class Kept:
    """Regions `which (R,)` of `work` that stay open, with what they are split at next; the others are closed.

    `value` and `literals` have an entry for each region of `work`. Regions `affine` have no neuron left to split: a
    linear program decides them before they are split.
    """

    work: Batch
    which: Array
    value: Array
    literals: Literals
    refuted: list[Refuted] = field(default_factory=list)
    affine: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    clipped: Array = field(default_factory=lambda: np.zeros(0, dtype=np.int64))  # ids of regions with a smaller box


F = TypeVar("F", bound=Findings)


class Way(ABC, Generic[F]):
    """A way of splitting at work in one search. The class itself stands for the way before there is a search."""

    name: ClassVar[str]  # as settings and statistics say it
    joint: ClassVar[bool]  # one search serves all conjunctions; else each needs its own
    refreshes: ClassVar[bool]  # neurons' bounds are derived anew on every region
    long_turns: ClassVar[bool]  # a turn may take seconds, the root's most of all

    planes: CutPlanes  # cuts that hold on all regions, as the compute knows them

    def __init__(self, context: Context) -> None:
        self.context = context
        self.planes = CutPlanes.none(context.compute.bounder.lo)

    @staticmethod
    @abstractmethod
    def possible(bounder: Bounder, root: Regions) -> bool:
        """Whether the network on its root box allows this way."""

    @staticmethod
    @abstractmethod
    def first_work(bounder: Bounder, root: Regions) -> float:
        """About how much work the first steps take."""

    @staticmethod
    @abstractmethod
    def prepared(compute: Compute, bounder: Bounder, root: Regions) -> Compute:
        """What this way computes with, made from the compute of all inputs and neurons."""

    @abstractmethod
    def begin(self, work: Batch) -> tuple[Batch, list[Refuted]]:
        """A first, cheap look at the root: the batch without what it refuted, and that."""

    def take_up(self, work: Batch, planes: CutPlanes, stored: Stored, dear: bool) -> Batch:
        """Regions below a root whose cuts are known, where duals of an earlier proof are; before any other batch.

        Where the root itself is among them, it is given its dear steps once more; without `dear` as little as others.
        """
        return work

    def root_cost(self) -> float:
        """About how many regions cost as much as dear steps at a root where some were done; inf: there are none."""
        return float("inf")

    @abstractmethod
    def bound(self, work: Batch) -> F | None:
        """Bound regions that are not empty; their bounds shrink in place. None where they all turn out empty."""

    @abstractmethod
    def split(self, found: F) -> Kept:
        """Choose what each region that is alive is split at; regions may shrink in place, or be closed after all."""

    @abstractmethod
    def pack(self, work: Batch, which: Array) -> dict[str, Array]:
        """Fields in which the frontier keeps neurons' bounds, phases and duals of the regions `which`."""

    @abstractmethod
    def unpack(self, popped: dict[str, Array]) -> Batch:
        """The regions of a frontier's fields."""

    def learned(self, whole: bool) -> Any:
        """What a worker sends home about the way itself; `whole` where it had the whole search, else part of one."""
        return None

    def adopt(self, learned: Any) -> None:
        """Take over what a worker's way has learned."""


def by_constraints(
    context: Context, work: Batch, value: Array, error: Array, alive: Array | None = None
) -> tuple[Array, list[Refuted]]:
    """What bounds `value, error (B, M)` of single constraints refute: `(B, K)` left open, and the refutations.

    Regions that are not `alive (B,)` are left as they are.
    """
    objective = context.objective
    closed = work.open & (objective.best(value) > 0)
    if alive is not None:
        closed &= alive[:, None]
    out: list[Refuted] = []
    region, conjunction = np.nonzero(closed)
    if len(region):
        row = objective.best_row(value[region], conjunction)
        constraint = row - objective.starts[conjunction]
        out.append(ByConstraints(work.ids[region], conjunction, constraint, value[region, row]))
    open_ = work.open & ~closed
    region, conjunction, constraint = context.ties.by_single(work, open_, value, error)
    if len(region):
        open_[region, conjunction] = False
        out.append(ByConstraints(work.ids[region], conjunction, constraint, np.zeros(len(region))))
    return open_, out


def at_first_sight(context: Context, work: Batch) -> tuple[Array, list[Refuted]]:
    """What single constraints with default slopes refute on regions, whose bounds shrink in place a little.

    `(B, K)` conjunctions left open, and the refutations.
    """
    bounder, objective = context.bounder, context.objective
    refreshed = bounder.refresh(work.regions, backward=False)
    error = np.zeros((len(work.ids), len(objective.owner)))
    value = objective.values(bounder, work.regions, refreshed, work.open, error)
    return by_constraints(context, work, value, error)
