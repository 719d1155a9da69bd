"""What a run answers: a closed sum of three verdicts, each with the run's statistics."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from mucg4.errors import UnsoundError
from mucg4.model.proof import Proof
from mucg4.model.query import Witness

RELATIONS = (
    "identical",
    "re-serialised",
    "fine-tuned",
    "quantised",
    "pruned-weights",
    "pruned-neurons",
    "permuted",
    "split-neurons",
    "other-box",
    "other-property",
    "unrelated",
)
# what closes stored leaves: a stored witness (of the whole query), the checker as they are, the evidence of near
# leaves, dual ascent without a split, a minimal unsat core that holds (the SMT engine)
RUNGS = ("witness", "checked", "near", "ascent", "cores")


@dataclass
class Statistics:
    """The run record; `--json` writes it. Times are wall seconds, counts are exact and repeatable.

    But for `attack_points` where other processes check a stored proof: the attack takes the time that they leave it.
    """

    relation: str = "unrelated"  # how this query relates to the best stored proof, see RELATIONS
    relation_detail: str = ""  # e.g. "int8 per tensor", "zero rate 0.30"
    related_proof: str | None = None  # key of the stored proof that was used, the nearest one of several
    related_proofs: int = 0  # how many stored proofs lent trees: several where each is about a part of the query
    stored_leaves: int = 0  # leaves of what was lent after alignment
    rungs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RUNGS, 0))  # leaves closed by each rung
    reused_share: float = 0.0  # closed by the rungs / stored_leaves
    replay_regions: int = 0  # leaves of the stored proof that went on to a search (SMT engine: cores that were asked)
    regions: int = 0  # regions bounded by the search
    from_root: int = 0  # cases with stored trees that were searched from the root after all
    second_mode: str = ""  # what was split besides when the first search stalled: "input" or "phase"
    open_share: float | None = None  # of the query, 0 when decided, see `mucg4.search.standing`; None: not known
    open_cases: list[dict[str, Any]] = field(default_factory=list)  # begun and not closed: share and lowest bound
    resumed_seconds: float | None = None  # what the runs took whose checkpoint this one went on from
    leaves: int = 0  # leaves of the final proof
    max_depth: int = 0
    attack_points: int = 0  # points evaluated by the attack
    lp_calls: int = 0
    times: dict[str, float] = field(default_factory=dict)  # seconds per stage
    scratch_seconds: float | None = None  # stored from-scratch time of the related proof
    checked_leaves: int = 0  # of these, the checker accepted
    checker: str = ""  # on the proof: accepted, unfinished (time ran out), or why it was rejected
    fallback: tuple[str, ...] = ()  # parts of the files that the checker's second reading does not cover
    reopened: int = 0  # leaves that the checker rejected at first, searched again
    smt: dict[str, Any] = field(default_factory=dict)  # figures of the SMT engine, see `mucg4.smt.answer`
    float32: str = ""  # whether unsat holds for executions in the model's precision: "holds" or "not established: ..."
    dequantised: str = "default"  # the setting under which this is the answer
    saved: bool = False  # the result went into the store
    warnings: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain JSON-able dictionary."""
        return asdict(self)


# What carries a verdict is frozen when the program runs, too: these are the standard library's.


@dataclass(frozen=True, eq=False)
class Seal:
    """The checker's mark on its report, which nobody else makes: which proof it examined, and the outcome."""

    proof: Proof
    accepted: bool
    late: bool


@dataclass(frozen=True)
class CheckReport:
    """What the independent checker says about `proof`.

    Counts are leaves over all trees, `checked + failed + skipped == leaves`: `checked` ones were re-established,
    `failed` ones examined in vain, `skipped` ones not examined (malformed proof, spent budget). `accepted` only when
    the last two are 0 and nothing else is wrong; otherwise `reason` is one line. `rejected` names the failed leaves as
    (tree, tree node, conjunction). `late`: time alone kept the others from being examined, none that was examined
    failed, and each states its evidence. `fallback` names parts of the files that only one reading covers.
    """

    proof: Proof = field(compare=False, repr=False)
    accepted: bool
    checked: int
    failed: int
    skipped: int
    reason: str = ""
    leaves: int = 0
    rejected: tuple[tuple[int, int, int], ...] = ()
    late: bool = False
    seal: Seal | None = field(default=None, compare=False, repr=False)
    fallback: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        whole = self.leaves == self.proof.leaves == self.checked + self.failed + self.skipped
        clean = not self.failed and not self.rejected and (not self.reason or self.late)
        if not whole or (self.accepted and (not clean or self.skipped or self.late)) or (self.late and not clean):
            raise UnsoundError("a report of the checker contradicts itself")


@dataclass(frozen=True, eq=False)
class Safe:
    """`unsat`: no unsafe point exists. It is made of the checker's report on the very proof it holds.

    Raises `UnsoundError` for a report that is not the checker's, or neither accepted nor merely late. `checked` tells
    them apart: what the checker could not finish in time is never stored.
    """

    report: CheckReport
    statistics: Statistics
    word = "unsat"

    def __post_init__(self) -> None:
        report, seal = self.report, self.report.seal
        known = seal is not None and seal.proof is report.proof
        if seal is None or not known or not (report.accepted and seal.accepted or report.late and seal.late):
            raise UnsoundError(f"no unsat without evidence: {self.report.reason}")

    @property
    def proof(self) -> Proof:
        """The evidence: the proof that the checker examined."""
        return self.report.proof

    @property
    def checked(self) -> bool:
        """True when the checker accepted the whole proof."""
        return self.report.accepted

    @property
    def final(self) -> bool:
        """True when nothing is left to do: see `checked`."""
        return self.checked


@dataclass(frozen=True, eq=False)
class Unsafe:
    """`sat`: `witness` was replayed by onnxruntime with zero tolerance."""

    witness: Witness
    statistics: Statistics
    word = "sat"
    final = True


@dataclass(frozen=True, eq=False)
class Unknown:
    """Neither was established; `reason` is one line, `word` is `timeout` or `unknown`."""

    reason: str
    statistics: Statistics
    final = False

    @property
    def word(self) -> str:
        return "timeout" if self.reason == "timeout" else "unknown"


Verdict = Safe | Unsafe | Unknown
