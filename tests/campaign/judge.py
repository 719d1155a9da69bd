"""One instance through engines, checker, store and onnxruntime, against its truth and against each other."""

from __future__ import annotations

import re
import sqlite3
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from mucg4.check.exactly import exactly_equal
from mucg4.check.walk import check
from mucg4.errors import InputError, Mucg4Error, UnsoundError, UnsupportedError
from mucg4.lab.compress import compress
from mucg4.limits.budget import Budget
from mucg4.model.proof_text import from_text, to_text
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Unknown, Unsafe, Verdict
from mucg4.read import instance as reader
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

from . import exact
from .families import pick
from .instance import Instance, decimal, hull
from .properties import sample
from .scorer import Scorer, clearly, promising, slack, violates

SECONDS, NEAR, SHORT = 0.5, 0.2, 0.03  # of one run
EXACT_SECONDS, EXACT_LEAVES, EXACT_NEURONS = 2.0, 20, 12
CLEAR = {"float32": 1e-5, "float64": 1e-12}  # relative margin that makes a sampled point unsafe whatever rounds
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError,
    MemoryError, OSError, sqlite3.Error,
)  # fmt: skip
LOUD = re.compile(r"checker|denies|disagree|reject|evidence|contradict|differ|was read as", re.IGNORECASE)
SMT_SIZE = 8
ROUGH = ("cancel", "folded")  # float32 is far from real arithmetic in these
MOST_SLOWED = 6.0
METHODS = ("fp16", "bf16", "int8", "qdq8", "prune20", "neurons20", "tune2", "permute", "reserialise")


@dataclass
class Outcome:
    """`problems` are disagreements `(kind, detail)`; `loud` rejections inside a run, which cost a verdict only."""

    seed: int = 0
    family: str = ""
    problems: list[tuple[str, str]] = field(default_factory=list)
    loud: list[tuple[str, str]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def kinds(self) -> set[str]:
        return {k for k, _ in self.problems}

    @property
    def events(self) -> set[str]:
        return self.kinds | {f"loud {k}" for k, _ in self.loud}


@dataclass(frozen=True)
class Mode:
    """How a run is made; `seconds` None: by how near a tie the instance is."""

    name: str
    settings: Settings
    seconds: float | None = None


def modes(instance: Instance, rng: np.random.Generator) -> Iterator[Mode]:
    """The default, and two others of which the seed decides."""
    yield Mode("auto", Settings(workers=1))
    few = sum(n.op == "Relu" for n in instance.graph.nodes) and instance.graph.inputs <= SMT_SIZE
    others = [
        Mode("input", Settings(workers=1, split="input")),
        Mode("phase", Settings(workers=1, split="phase")),
        Mode("no attack", Settings(workers=1, attack=False)),
        Mode("no attack, phase", Settings(workers=1, attack=False, split="phase", batch=1)),
        Mode("no attack, input", Settings(workers=1, attack=False, split="input")),
        Mode("short", Settings(workers=1, attack=False), SHORT),
        *([Mode("smt", Settings(engine="smt"), 0.5)] if few else []),
        *([Mode("two workers", Settings(workers=2))] if rng.random() < 0.05 else []),
    ]
    for k in rng.permutation(len(others))[:2]:
        yield others[int(k)]


def false_claim(instance: Instance, rng: np.random.Generator) -> Instance | None:
    """The first constraint loosened to a relative 1e-2 ... 1e-17 past where the set begins to have a point."""
    conjunction = instance.unsafe[0]
    cells = exact.regions(instance.graph, hull(instance))
    _, least, _ = cells.extremum(replace(conjunction[0], bound="0"))
    scale = max(abs(least), Fraction(1, 10**6))
    bound = least + scale / 10 ** int(rng.integers(2, 18))
    row = replace(conjunction[0], bound=decimal(bound, 40), strict=False)
    false = replace(instance, unsafe=((row, *conjunction[1:]),))
    truth, _ = exact.answer(false, cells)
    return replace(false, truth=truth) if truth == "sat" else None


def query_of(onnx: bytes, vnnlib: str) -> Query:
    return reader.query_of(onnx, vnnlib)


def slowed(wall: float, cpu: float) -> float:
    """How much longer than alone this process takes since the two clocks showed these: cores may be busy."""
    used = time.process_time() - cpu
    return min(max((time.monotonic() - wall) / used, 1.0), MOST_SLOWED) if used > 0.05 else 1.5


class Judge:
    """Collects what is wrong with one instance."""

    def __init__(self, instance: Instance, full: bool = True) -> None:
        self.instance, self.full = instance, full
        self.out = Outcome(instance.seed, instance.family)
        self.rng = np.random.default_rng([instance.seed, 7])
        self.verdicts: dict[str, Verdict] = {}
        self.began = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        """Of one run: near a tie most end by the clock, whatever they get."""
        return (NEAR if abs(self.instance.distance) < 1e-8 else SECONDS) * slowed(*self.began)

    def problem(self, kind: str, detail: str) -> None:
        self.out.problems.append((kind, detail))

    def run(self) -> Outcome:
        self.out.counts["instances"] += 1
        self.out.counts[f"truth {self.instance.truth or 'not known'}"] += 1
        try:
            query = query_of(self.instance.onnx(), self.instance.vnnlib())
        except UnsupportedError:
            self.out.counts["refused"] += 1
            return self.out
        except FAULTS as error:
            self.problem("traceback", f"{type(error).__name__} while reading: {error}")
            return self.out
        except Mucg4Error as error:
            self.out.loud.append(("not read", str(error)))
            return self.out
        for mode in modes(self.instance, self.rng):
            verdict = self.attempt(mode, query, self.instance)
            if verdict is not None:
                self.verdicts[mode.name] = verdict
            if self.out.counts["runs timeout"] > 1:  # nothing to see here
                break
        self.together()
        if self.full:
            self.related(query)
            if self.rng.random() < 0.3 and not self.out.counts["runs timeout"]:
                self.stored(query)
        return self.out

    # -- one run ---------------------------------------------------------------------------------

    def attempt(
        self, mode: Mode, query: Query, instance: Instance, store: Store | None = None, data: bytes | None = None
    ) -> Verdict | None:
        """A run with its evidence examined; None where the engine does not take the query or fails."""
        try:
            verdict = verify(query, mode.settings, store, Budget.seconds(mode.seconds or self.seconds))
        except UnsoundError as error:
            self.out.loud.append(("checker", f"{mode.name}: {error}"))
            return None
        except (UnsupportedError, InputError):
            self.out.counts[f"not taken ({mode.name})"] += 1
            return None
        except Mucg4Error as error:
            self.out.loud.append((type(error).__name__, f"{mode.name}: {error}"))
            return None
        except FAULTS as error:
            self.problem("traceback", f"{type(error).__name__}: {error} ({mode.name})")
            return None
        self.out.counts[f"runs {verdict.word}"] += 1
        try:
            if isinstance(verdict, Safe):
                self.safe(mode, query, instance, verdict, data)
            elif isinstance(verdict, Unsafe):
                self.unsafe(mode, instance, verdict, data)
            else:
                self.unknown(mode, verdict)
        except FAULTS as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            at = f"{Path(place.filename).name}:{place.lineno}"
            self.problem("traceback", f"{type(error).__name__}: {error} at {at} (evidence of {mode.name})")
        return verdict

    def safe(self, mode: Mode, query: Query, instance: Instance, verdict: Safe, data: bytes | None) -> None:
        if instance.truth == "sat":
            self.problem("unsat where truth is sat", f"{mode.name}, distance {instance.distance:g}")
        if mode.settings.engine == "smt":
            return
        text = to_text(verdict.proof)
        report = check(from_text(text), query, Budget.seconds(20 * SECONDS))
        if not report.accepted and "timeout" not in report.reason:
            self.problem("proof rejected", f"{mode.name}: {report.reason}")
        self.out.counts["proofs checked"] += 1
        if report.accepted and data is None:
            self.forge(query, instance, verdict)
        network = query.network
        piecewise = all(n.op is None or not hasattr(n.op, "curve") for n in network.nodes)
        size = sum(network.nodes[k].size for k in network.nonlinear)
        if piecewise and size <= EXACT_NEURONS and verdict.proof.leaves <= EXACT_LEAVES:
            exactly = check(from_text(text), query, Budget.seconds(EXACT_SECONDS), exact=True)
            self.out.counts["exact checks accepted" if exactly.accepted else "exact checks not accepted"] += 1
            if exactly.accepted and instance.truth == "sat":
                self.problem("exact check accepts a false claim", mode.name)

    def forge(self, query: Query, instance: Instance, verdict: Safe) -> None:
        """The proof handed in for a false claim: a bound moved until the answer is sat by a little must be rejected."""
        if (
            instance.truth != "unsat"
            or len(instance.unsafe) != 1
            or not instance.unsafe[0]
            or self.out.counts["forged"]
        ):
            return
        try:
            false = false_claim(instance, self.rng)
        except exact.UnknownTruth:
            return
        if false is None:
            return
        other = query_of(false.onnx(), false.vnnlib())
        self.out.counts["forged"] += 1
        proof = replace(verdict.proof, property=other.property_hash)
        # exact mode is about the network as read, which is the stored one where no constant was rounded on the way
        stored = exactly_equal(other.network.model_bytes, other.network) is None
        for exactly in (False, True) if stored else (False,):
            if check(proof, other, Budget.seconds(EXACT_SECONDS), exact=exactly).accepted:
                self.problem("checker accepts a false claim", f"exact={exactly}, bound {false.unsafe[0][0].bound}")

    def unsafe(self, mode: Mode, instance: Instance, verdict: Unsafe, data: bytes | None) -> None:
        x = verdict.witness.x
        y = Scorer(instance.graph, data).one(x)
        if not violates(instance, x, y):
            self.problem("witness does not replay", f"{mode.name}: x = {x.tolist()}, y = {y.tolist()}")
        elif instance.truth == "unsat" and data is None:
            exactly = all(slack(r, x, y)[0] <= 0 for r in instance.always)  # else it passes by the inputs' rounding
            off = clearly(instance, x, y, 1e-4) and instance.family not in ROUGH and exactly
            self.out.counts["sat by float rounding"] += 1
            if off:
                self.problem("sat where truth is unsat", f"{mode.name}: x = {x.tolist()}, y = {y.tolist()}")

    def unknown(self, mode: Mode, verdict: Unknown) -> None:
        if verdict.word == "timeout":
            return
        reason = re.sub(r"[-+]?\d[\d.e+-]*", "#", verdict.reason)[:90]
        self.out.counts[f"unknown: {reason}"] += 1
        if LOUD.search(verdict.reason):
            self.out.loud.append((reason, f"{mode.name}: {verdict.reason}"))

    # -- runs against each other -------------------------------------------------------------------

    def together(self) -> None:
        words = {v.word for v in self.verdicts.values()}
        if {"sat", "unsat"} <= words and self.instance.truth is None:
            sat = next(v for v in self.verdicts.values() if isinstance(v, Unsafe))
            y = Scorer(self.instance.graph).one(sat.witness.x)
            if clearly(self.instance, sat.witness.x, y, CLEAR[self.instance.graph.dtype]):
                self.problem("engines contradict", str({k: v.word for k, v in self.verdicts.items()}))
        if "unsat" not in words:
            return
        scorer = Scorer(self.instance.graph)
        x = sample(self.instance, self.rng, scorer)
        real = self.instance.truth == "unsat"  # what float32 says then is rounding
        margin = CLEAR[self.instance.graph.dtype]
        y = scorer.many(x)
        for k in np.flatnonzero(promising(self.instance, x, y)):
            if not violates(self.instance, x[k], y[k]):
                continue
            text = f"x = {x[k].tolist()}, y = {y[k].tolist()}"
            self.out.counts["float points against unsat"] += 1
            if any(
                getattr(v.statistics, "float32", "") == "holds" for v in self.verdicts.values() if v.word == "unsat"
            ):
                self.problem("float32 holds, but does not", text)
            elif clearly(self.instance, x[k], y[k], margin):
                edge = not all(slack(r, x[k], y[k])[0] <= 0 for r in self.instance.always)
                if edge and self.really(x[k], margin):
                    self.problem("a point that passes at the edge of the inputs is unsafe", text)
                elif not real and not edge:
                    self.problem("a sampled point is unsafe", text)
            break

    def really(self, x: np.ndarray, margin: float) -> bool:
        """Whether the outputs in real arithmetic are clearly unsafe at x; what float32 makes of them where unknown."""
        try:
            y = exact.value_at(self.instance.graph, [Fraction(float(v)) for v in x])
        except exact.UnknownTruth:
            return True
        return clearly(self.instance, x, np.array([float(v) for v in y]), margin)

    def related(self, query: Query) -> None:
        """A changed instance whose answer follows from this one's."""
        base = self.verdicts.get("auto")
        if base is None or isinstance(base, Unknown):
            return
        changed, kind = self.changed()
        if changed is None:
            return
        try:
            other = query_of(changed.onnx(), changed.vnnlib())
        except Mucg4Error as error:
            self.problem("not read", f"{kind}: {error}")
            return
        verdict = self.attempt(Mode(kind, Settings(workers=1)), other, changed)
        if verdict is None or isinstance(verdict, Unknown):
            return
        self.out.counts[f"related: {kind}"] += 1
        implied = {"smaller box": ("unsat",), "more disjuncts": ("sat",), "scaled": ("sat", "unsat")}[kind]
        if base.word in implied and verdict.word != base.word:
            where, at = (base, self.instance) if isinstance(base, Unsafe) else (verdict, changed)
            x = where.witness.x  # type: ignore[union-attr]
            y = Scorer(at.graph).one(x)
            by_rounding = at.truth == "unsat"  # the execution's doing, which `unsafe` has looked at
            if not by_rounding and clearly(at, x, y, CLEAR[at.graph.dtype]):
                self.problem("related instances contradict", f"{kind}: {base.word} became {verdict.word}")

    def changed(self) -> tuple[Instance | None, str]:
        i, kind = self.instance, pick(self.rng, "smaller box", "more disjuncts", "scaled")
        if kind == "scaled":
            factor = pick(self.rng, "2", "0.5", "3", "0.1", "1000")
            unsafe = tuple(tuple(r.scaled(factor) for r in c) for c in i.unsafe)
            return replace(i, unsafe=unsafe), kind
        if kind == "more disjuncts":
            row = i.unsafe[0][0]
            far = replace(row, bound=decimal(Fraction(row.bound) - 10**6))
            unsafe = tuple((far,) if self.rng.random() < 0.5 else c for c in i.unsafe[:1]) + i.unsafe
            return replace(i, unsafe=unsafe), kind
        box = []
        for a, b in i.box:
            low, high = Fraction(a), Fraction(b)
            width = high - low
            box.append(
                (decimal(low + width / 8, 9), decimal(high - width / 8, 9)) if width > Fraction(1, 10**3) else (a, b)
            )
        changed = replace(i, box=tuple(box), truth=None)
        return (replace(changed, truth="unsat") if i.truth == "unsat" else changed), kind

    # -- the store ---------------------------------------------------------------------------------

    def stored(self, query: Query) -> None:
        """Base into a store, a variant by replay, and the same without the store."""
        method = pick(self.rng, *METHODS)
        try:
            data = compress(self.instance.onnx(), method, self.instance.seed % 1000)
            variant = query_of(data, self.instance.vnnlib())
        except Mucg4Error:
            self.out.counts["no variant"] += 1
            return
        same = method in ("permute", "reserialise")
        changed = replace(self.instance, truth=self.instance.truth if method == "reserialise" else None)
        mode, plain = Settings(workers=1), None
        with Store(":memory:") as store:
            self.attempt(Mode("base", mode), query, self.instance, store)
            by = self.attempt(Mode("store", mode), variant, changed, store, data)
            again = self.attempt(Mode("again", mode), variant, changed, store, data)
            if store.warnings:
                self.problem("store", store.warnings[0])
        plain = self.attempt(Mode("no store", mode), variant, changed, None, data)
        self.out.counts[f"variants {method}"] += 1
        words = {v.word for v in (by, again, plain) if v is not None}
        if {"sat", "unsat"} <= words and abs(self.instance.distance) >= 1e-4 and self.instance.family not in ROUGH:
            self.problem(
                "store changes the verdict",
                f"{method}: {by and by.word}, {again and again.word}, {plain and plain.word}",
            )
        if isinstance(plain, (Safe, Unsafe)) and isinstance(by, Unknown) and by.word != "timeout":
            self.out.loud.append(("store costs a verdict", f"{method}: {by.reason}"))
        base = self.verdicts.get("auto")
        if same and base is not None and plain is not None and {base.word, plain.word} == {"sat", "unsat"}:
            if abs(self.instance.distance) >= 1e-4 and self.instance.family not in ROUGH:
                self.problem("variant contradicts", f"{method}: {base.word} became {plain.word}")


def judge(instance: Instance, full: bool = True) -> Outcome:
    """Everything that is wrong with one instance; `full` with related instances and the store."""
    out = Judge(instance, full).run()
    if instance.truth is not None:
        out.problems += evaluator(instance)
    return out


def evaluator(instance: Instance) -> list[tuple[str, str]]:
    """Whether the exact evaluation is what onnxruntime computes at one point: guards this campaign itself."""
    point = [
        Fraction(float(np.dtype(instance.graph.dtype).type(float(Fraction(a) + (Fraction(b) - Fraction(a)) / 3))))
        for a, b in instance.box
    ]
    ours = np.array([float(v) for v in exact.value_at(instance.graph, point)])
    theirs = Scorer(instance.graph).one(np.array([float(v) for v in point])).astype(np.float64)
    scale = (
        1
        + abs(ours)
        + max(
            (float(np.abs(v[np.isfinite(v)]).max(initial=0)) for v in map(_finite, instance.graph.tensors.values())),
            default=0,
        )
    )
    if not np.all(np.isfinite(theirs)) or instance.family in ROUGH or np.all(abs(ours - theirs) <= 1e-4 * scale**2):
        return []
    return [("campaign evaluates otherwise", f"{ours.tolist()} for onnxruntime's {theirs.tolist()}")]


def _finite(v: np.ndarray) -> np.ndarray:
    v = np.asarray(v, dtype=np.float64)
    return v[np.abs(v) < 1e30]
