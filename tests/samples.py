"""Random small networks with properties and variants, and what all parts of mucg4 have to agree on about them.

`judge` runs one combination of network and variant through search, store, replay, SMT and checker and lists
what is wrong; `shrink` makes a failing combination smaller; `keep` writes it as a replayable case.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from examples import model, query_of, text

from mucg4.check.walk import check
from mucg4.errors import BudgetError, InputError, Mucg4Error, UnsupportedError
from mucg4.evidence import Established, Examined
from mucg4.gate.runtime import Runtime
from mucg4.gate.witness import replay_witness
from mucg4.lab.compress import compress
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Statistics, Unsafe, Verdict
from mucg4.read.case import save_case
from mucg4.reuse.reopen import reopen
from mucg4.reuse.replay import SAMPLE, ReplayedArm, completed, replay_all
from mucg4.search.loop import Search
from mucg4.search.run import Run, new_search, open_case, root_work
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

SECONDS = 0.8  # of one run; one that needs more proves nothing either way
SMT_SECONDS = 0.25
SMT = Settings(engine="smt")
SMT_UNSTABLE = 10  # hidden neurons up to which the SMT engine is asked
POINTS = 1500
CLEAR = 1e-5  # relative margin that makes a sampled point unsafe whatever the rounding
GUARD_TURNS = 6
METHODS = (
    "int8",
    "int4",
    "fp16",
    "bf16",
    "qdq8",
    "prune20",
    "neurons20",
    "zeroed20",
    "permute",
    "tune1",
    "tune2",
    "tune3",
)
OTHERS = ("inner box", "moved box", "other bound", "added disjunct", "reserialise")
FAULTS = (
    Mucg4Error, ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError,
    ValueError, MemoryError, OSError, sqlite3.Error,
)  # fmt: skip

Constraint = tuple[tuple[float, ...], tuple[float, ...], float]  # x coefficients, y coefficients, bound: sum <= bound


@dataclass(frozen=True)
class Layer:
    """`activation(weights h + bias)`, plus h itself where `skip`."""

    weights: np.ndarray
    bias: np.ndarray
    activation: str = ""
    skip: bool = False


@dataclass(frozen=True)
class Sample:
    """A network, a property, and how the variant is made: `compress`'s method, or one of `OTHERS`."""

    layers: tuple[Layer, ...]
    box: tuple[tuple[float, float], ...]
    unsafe: tuple[tuple[Constraint, ...], ...]
    variant: str = "tune2"
    seed: int = 0
    split: str = "auto"

    def onnx(self) -> bytes:
        nodes: list[Any] = []
        tensors: dict[str, Any] = {}
        at = "x"
        for k, layer in enumerate(self.layers):
            tensors |= {f"w{k}": layer.weights, f"b{k}": layer.bias}
            nodes.append(("Gemm", f"{at} w{k} b{k}", f"z{k}", {"transB": 1}))
            before, at = at, f"z{k}"
            if layer.activation:
                nodes.append(
                    (layer.activation, at, f"h{k}", {"alpha": 0.1} if layer.activation == "LeakyRelu" else None)
                )
                at = f"h{k}"
            if layer.skip:
                nodes.append(("Add", f"{at} {before}", f"s{k}", None))
                at = f"s{k}"
        return model(nodes, tensors, len(self.box), len(self.layers[-1].bias))

    def vnnlib(self) -> str:
        outputs = len(self.layers[-1].bias)
        parts = ["(and " + " ".join(constraint_text(c) for c in conj) + ")" for conj in self.unsafe]
        box = [(number(a), number(b)) for a, b in self.box]
        return text(box, outputs, "(or " + " ".join(parts) + ")")


def number(value: float) -> str:
    """The double as a decimal of the format's grammar, exactly enough to read it back."""
    return np.format_float_positional(value, trim="0")


def constraint_text(constraint: Constraint) -> str:
    xs, ys, bound = constraint
    terms = [f"(* {number(c)} {n}_{i})" for n, cs in (("X", xs), ("Y", ys)) for i, c in enumerate(cs) if c]
    return f"(<= {terms[0] if len(terms) == 1 else '(+ ' + ' '.join(terms) + ')'} {number(bound)})"


# -- random samples --------------------------------------------------------------------------------------------


def random_sample(seed: int) -> Sample:
    """A network of 1-3 hidden layers with a property whose thresholds lie near the sampled range."""
    rng = np.random.default_rng(seed)
    layers = random_layers(rng)
    centre = rng.uniform(-1, 1, layers[0].weights.shape[1])
    radius = rng.choice([0.05, 0.3, 1.0]) * rng.uniform(0.5, 1, len(centre))
    radius[rng.random(len(centre)) < 0.1] = 0.0
    digits = int(rng.integers(1, 6))
    box = tuple((round(float(c - r), digits), round(float(c + r), digits)) for c, r in zip(centre, radius, strict=True))
    sample = Sample(layers, box, (), split=str(rng.choice(["auto", "input", "phase"])))
    return replace(sample, unsafe=random_unsafe(rng, sample), seed=seed)


def random_layers(rng: np.random.Generator) -> tuple[Layer, ...]:
    sizes = [int(rng.integers(2, 7)), *rng.integers(2, 9, size=int(rng.integers(1, 4))), int(rng.integers(1, 4))]
    activation = str(rng.choice(["Relu", "Relu", "Relu", "Relu", "LeakyRelu", "Abs"]))
    residual = rng.random() < 0.15
    if residual and len(sizes) > 3:
        sizes[2] = sizes[1]
    coarse, sparse = rng.random() < 0.2, rng.choice([0.0, 0.0, 0.3, 0.6])
    out = []
    for k, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        w = rng.normal(size=(m, n)) * np.sqrt(2 / n) * (rng.random((m, n)) >= sparse)
        b = rng.normal(size=m) * rng.choice([0.0, 0.1, 0.5])
        if coarse:  # many exact ties and zero bounds
            w, b = np.round(2 * w) / 2, np.round(2 * b) / 2
        last = k == len(sizes) - 2
        skip = residual and k == 1 and m == n and not last
        out.append(Layer(w.astype(np.float32), b.astype(np.float32), "" if last else activation, skip))
    return tuple(out)


def random_unsafe(rng: np.random.Generator, sample: Sample) -> tuple[tuple[Constraint, ...], ...]:
    """1-3 conjunctions of 1-3 constraints; bounds near the least sampled value, or near one sampled point."""
    network = query_of(sample.onnx(), replace(sample, unsafe=((((0.0,), (1.0,), 0.0),),)).vnnlib()).network
    x = points_of(sample, rng)
    y = network(x)
    out = []
    aim = rng.choice([-1, -1, 1])  # of all conjunctions: just missed by the sampled points, or met by one
    for _ in range(rng.choice([1, 1, 2, 3])):
        cy = np.round(rng.normal(size=(int(rng.choice([1, 1, 2, 3])), y.shape[1])), 1)
        cy *= rng.random(cy.shape) < 0.7
        cy[np.arange(len(cy)), rng.integers(cy.shape[1], size=len(cy))] = rng.choice([-1.0, 1.0], size=len(cy))
        cx = np.round(rng.normal(size=(len(cy), x.shape[1])), 1) * (rng.random((len(cy), 1)) < 0.2)
        value = x @ cx.T + y @ cy.T
        spread = np.ptp(value, axis=0) + 1e-3
        base = value[int(rng.integers(len(x)))]
        least = ((value - base) / spread).max(axis=1).min()  # the bounds base + least * spread are just met
        share = aim * rng.choice([0.001, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4])
        bounds = np.round(base + (least + share) * spread, 6)
        out.append(tuple(zip(map(tuple, cx.tolist()), map(tuple, cy.tolist()), bounds.tolist(), strict=True)))
    return tuple(out)


def points_of(sample: Sample, rng: np.random.Generator, count: int = POINTS) -> np.ndarray:
    """Random points and corners of the box as float32 values inside it, `(count, n)`."""
    lo, hi = (np.array([b[i] for b in sample.box]) for i in (0, 1))
    share = rng.random((count, len(lo)))
    share[: count // 4] = np.round(share[: count // 4])
    x = (lo + share * (hi - lo)).astype(np.float32).astype(np.float64)
    return np.clip(x, lo, hi)


def variants(sample: Sample, count: int) -> Iterator[Sample]:
    """The sample with `count` ways of making a variant."""
    rng = np.random.default_rng(sample.seed + 1)
    plain = not any(layer.skip for layer in sample.layers)
    methods = [m for m in METHODS if plain or not m.startswith(("neurons", "zeroed", "permute"))]
    for k in range(count):
        group = OTHERS if k % 4 == 3 else tuple(methods)
        yield replace(sample, variant=str(rng.choice(group)))


def variant_of(sample: Sample) -> tuple[bytes, str]:
    """ONNX bytes and property text of the variant."""
    rng = np.random.default_rng(sample.seed + 2)
    data, method = sample.onnx(), sample.variant
    if method not in OTHERS:
        try:
            return compress(data, method, sample.seed), sample.vnnlib()
        except InputError:  # the method has nothing to work on here
            method = "reserialise"
    if method == "reserialise":
        return compress(data, method, sample.seed), sample.vnnlib()
    return data, changed(sample, method, rng).vnnlib()


def changed(sample: Sample, method: str, rng: np.random.Generator) -> Sample:
    """Another property on the same network."""
    if method == "added disjunct":
        return replace(sample, unsafe=sample.unsafe + random_unsafe(rng, sample)[:1])
    if method == "other bound":
        moved = tuple(tuple((*c[:2], round(c[2] + rng.normal() * 0.05, 6)) for c in conj) for conj in sample.unsafe)
        return replace(sample, unsafe=moved)
    inner = method == "inner box"
    box = []
    for a, b in sample.box:
        low, high = (0.1 * rng.random(), 1 - 0.1 * rng.random()) if inner else rng.normal(size=2) * 0.03 + (0, 1)
        low, high = min(low, high), max(low, high)
        new = round(a + low * (b - a), 7), round(a + high * (b - a), 7)
        box.append((max(a, new[0]), min(b, new[1])) if inner else new)
    return replace(sample, box=tuple(box))


# -- agreement -------------------------------------------------------------------------------------------------


@dataclass
class Judgement:
    """`problems`: what is wrong, `kind: detail`; `words`: what each engine said."""

    problems: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    relation: str = ""
    seconds: float = 0.0

    @property
    def kinds(self) -> set[str]:
        return {p.split(":")[0] for p in self.problems}


def judge(sample: Sample, seconds: float = SECONDS) -> Judgement:
    """Original into a store, variant by replay, from scratch, both split rules, SMT with and without cores of the
    original, sampling, guards.
    """
    out, started = Judgement(), time.monotonic()
    data, prop = variant_of(sample)
    original, variant = query_of(sample.onnx(), sample.vnnlib()), query_of(data, prop)
    settings = Settings(split=sample.split)
    runs: dict[str, Verdict] = {}

    def attempt(name: str, query: Query, settings: Settings, store: Store | None = None) -> None:
        limit = SMT_SECONDS if settings.engine == "smt" else seconds
        try:
            runs[name] = verify(query, settings, store, Budget.seconds(limit))
            out.words[name] = runs[name].word
            out.problems += [f"{p} ({name})" for p in evidence(query, runs[name])]
        except UnsupportedError:
            return
        except FAULTS as error:
            out.problems.append(f"crash {type(error).__name__}: {error} ({name})")

    with Store(":memory:") as store:
        attempt("original", original, settings, store)
        attempt("replay", variant, settings, store)
        attempt("again", variant, settings, store)
        if store.warnings:
            out.problems.append(f"store: {store.warnings[0]}")
    attempt("input", variant, Settings(split="input"))
    attempt("phase", variant, Settings(split="phase"))
    if sum(len(layer.bias) for layer in sample.layers[:-1]) <= SMT_UNSTABLE:
        attempt("smt", variant, SMT)
        with Store(":memory:") as store:
            attempt("smt original", original, SMT, store)
            attempt("smt with store", variant, SMT, store)
        runs.pop("smt original", None)  # another query: its evidence has been looked at
    if "replay" in runs:
        out.relation = runs["replay"].statistics.relation
    out.problems += contradictions(sample, original, variant, runs)
    out.seconds = time.monotonic() - started
    return out


def evidence(query: Query, verdict: Verdict) -> list[str]:
    """What the checker or onnxruntime has against a verdict."""
    if isinstance(verdict, Safe):
        report = check(verdict.proof, query, Budget.seconds(20 * SECONDS))
        return [] if report.accepted else [f"proof rejected: {report.reason}"]
    if isinstance(verdict, Unsafe):
        return [] if replay_witness(query, verdict.witness.x) is not None else ["witness refused:"]
    known = ("timeout", "too tight", "does not confirm", "HiGHS")
    return [] if any(k in verdict.reason for k in known) else [f"unknown: {verdict.reason}"]


def contradictions(sample: Sample, original: Query, variant: Query, runs: dict[str, Verdict]) -> list[str]:
    """Verdicts against each other, against sampled points, and search states that lost a known witness."""
    out = []
    same = {k: v for k, v in runs.items() if k != "original"}
    words = {v.word for v in same.values()}
    if {"sat", "unsat"} <= words:
        out.append(f"verdicts differ: { ({k: v.word for k, v in same.items()}) }")
    first = runs["original"].word if "original" in runs else ""
    implied = {"permute": ("sat", "unsat"), "reserialise": ("sat", "unsat"), "inner box": ("unsat",)}
    implied["added disjunct"] = ("sat",)
    if first in implied.get(sample.variant, ()) and words & ({"sat", "unsat"} - {first}):
        out.append(f"metamorphic {sample.variant}: {first} became {words}")
    rng = np.random.default_rng(sample.seed + 3)
    for query, verdicts in ((original, {k: v for k, v in runs.items() if k == "original"}), (variant, same)):
        case = query.cases[0] if query.cases else None
        if case is None or case.box.empty:
            continue
        box = tuple(zip(*(v.tolist() for v in case.box.stated), strict=True))
        found = [unsafe_points(query, points_of(replace(sample, box=box), rng))]
        found += [
            unsafe_points(query, v.witness.x[None].astype(np.float64)) for v in verdicts.values() if v.word == "sat"
        ]
        known = [p for part in found for p in part]
        if known and any(v.word == "unsat" for v in verdicts.values()):
            out.append(f"sampled point is unsafe: {known[0][0].tolist()}")
        if known:
            proofs = [v.proof for v in runs.values() if isinstance(v, Safe)]
            out += guard(query, *known[0], proofs)
    return out


def unsafe_points(query: Query, x: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Points that violate a conjunction of the first case by a clear margin, worst first, with its number."""
    y = query.network(x)
    out = []
    for number, conj in enumerate(query.cases[0].conjunctions):
        value = x @ conj.x_coeffs.T + y @ conj.y_coeffs.T + conj.constants
        size = 1 + abs(x) @ abs(conj.x_coeffs).T + abs(y) @ abs(conj.y_coeffs).T + abs(conj.constants)
        worst = (value + CLEAR * size).max(axis=1)
        out += [(x[k], number) for k in np.flatnonzero(worst <= 0)[:2]]
    return out


def replayed(run: Run, trees: list[Tree]) -> list[Tree]:
    """What a replay makes of stored trees, as the checker accepts it; raises `AssertionError` for anything else."""
    found = replay_all(run, trees)
    if isinstance(found, Established):
        report = found.examined.report
        if not report.accepted:
            report = found.examined.go_on(found.trees, Budget())
        if report.rejected:
            again = reopen(run, found.examined)
            assert isinstance(again, Established)
            report = again.examined.go_on(again.trees, Budget())
        assert report.accepted, report.reason
        return list(report.proof.trees)
    assert isinstance(found, list)
    return found


# -- the known-witness guard -------------------------------------------------------------------------------------


def guard(query: Query, x: np.ndarray, conjunction: int, proofs: list[Proof]) -> list[str]:
    """Search and replay without attack: as long as a witness exists, some open region has to hold it."""
    out = []
    for split in ("input", "phase"):
        run = Run(
            query,
            Settings(split=split, attack=False),
            Budget.seconds(3 * SECONDS),
            Statistics(),
            Runtime(query.network),
        )
        try:
            out += _guard_search(run, x, conjunction)
            for tree in (t for p in proofs for t in p.trees):
                out += _guard_replay(run, x, conjunction, tree)
        except BudgetError:
            continue
        except FAULTS as error:
            out.append(f"crash {type(error).__name__}: {error} (guard, {split})")
    return out


def _guard_search(run: Run, x: np.ndarray, conjunction: int) -> list[str]:
    state = open_case(run, 0)
    if state is None:
        return ["guard: the case was taken for empty"]
    mask = np.arange(state.objective.count) == conjunction
    search = new_search(run, state, None)
    search.bound(root_work(state, np.ones(len(mask), dtype=bool) if state.way.joint else mask))
    for turn in range(GUARD_TURNS):
        if not holds_open(search, x, conjunction):
            return [f"guard: the search lost a witness in turn {turn} ({state.way.name})"]
        search.turn()
    tree = search.recorder.tree()
    return (
        [f"guard: a refutation contains a witness ({state.way.name})"]
        if refuted(tree, run.query, x, conjunction)
        else []
    )


def _guard_replay(run: Run, x: np.ndarray, conjunction: int, tree: Tree) -> list[str]:
    """Neither the checker's open regions nor the searches that go on there lose the point."""
    answers = range(len(run.query.cases[0].conjunctions)) if tree.conjunctions is None else tree.conjunctions
    if tree.case or conjunction not in answers:
        return []
    opens = Examined(run.query, completed(run.query, [tree]), run.budget, 1, SAMPLE).open()
    state = open_case(run, 0)
    if opens is None or state is None:
        return []
    arm = ReplayedArm(run, state, opens)
    arm.begin()
    assert arm.stuck is None, run.statistics.warnings
    (search,) = (s for s, mask in zip(arm.searches, arm.masks, strict=True) if mask[conjunction])
    for turn in range(GUARD_TURNS):
        if not holds_open(search, x, conjunction):
            return [f"guard: the replay lost a witness in turn {turn} ({state.way.name})"]
        search.run(1)
    if refuted(search.recorder.tree(), run.query, x, conjunction):
        return [f"guard: a replayed refutation contains a witness ({state.way.name})"]
    return []


def holds_open(search: Search, x: np.ndarray, conjunction: int) -> bool:
    """True when an open region, the root that waits or one of the frontier, holds the point for the conjunction."""
    found = []
    if search.pending is not None:
        found.append((search.pending.open, search.pending.regions))
    if len(search.frontier):
        field = search.frontier.content()
        found.append((field["open"], search.way.unpack(field).regions))
    values = search.bounder.network.values(x[None])
    z = np.concatenate([values[k][0] for k in search.bounder.pre] or [x[:0]])
    for open_, regions in found:
        inside = open_[:, conjunction].copy()
        for v, low, up in ((x, regions.lo, regions.hi), (z, regions.low, regions.up)):
            slack = 1e-9 * (1 + abs(v))
            inside &= np.all((low <= v + slack) & (up >= v - slack), axis=1)
        if inside.any():
            return True
    return False


def refuted(tree: Tree, query: Query, x: np.ndarray, conjunction: int) -> bool:
    """True when on every path of the tree that the point takes some refutation claims the conjunction.

    A point on a split's threshold takes both paths; the claims on one of them are wrong then already.
    """
    values = query.network.values(x[None])
    claimed = {r.at for r in tree.refutations if r.conjunction == conjunction}
    stack = [0]
    while stack:
        k = stack.pop()
        if k in claimed:
            return True
        if tree.left[k] >= 0:
            v, t = values[tree.node[k]][0, tree.index[k]], tree.threshold[k]
            slack = 1e-9 * (1 + abs(t))
            stack += [tree.left[k]] * bool(v <= t - slack) + [tree.right[k]] * bool(v >= t + slack)
    return False


# -- shrinking ---------------------------------------------------------------------------------------------------


def smaller(sample: Sample) -> Iterator[Sample]:
    """Candidates one step simpler, boldest first."""
    for i in range(len(sample.unsafe)):
        if len(sample.unsafe) > 1:
            yield replace(sample, unsafe=sample.unsafe[:i] + sample.unsafe[i + 1 :])
        for j in range(len(sample.unsafe[i])):
            if len(sample.unsafe[i]) > 1:
                conj = sample.unsafe[i][:j] + sample.unsafe[i][j + 1 :]
                yield replace(sample, unsafe=(*sample.unsafe[:i], conj, *sample.unsafe[i + 1 :]))
    if not any(layer.skip for layer in sample.layers):
        for k in range(len(sample.layers) - 1):
            for j in range(len(sample.layers[k].bias) if len(sample.layers[k].bias) > 1 else 0):
                yield replace(sample, layers=without_neuron(sample.layers, k, j))
    for i, (a, b) in enumerate(sample.box):
        if a < b:
            for point in ((a + b) / 2, a, b):
                yield replace(sample, box=(*sample.box[:i], (point, point), *sample.box[i + 1 :]))
    for digits in (1, 2, 3):
        rounded = tuple(
            replace(v, weights=np.round(v.weights, digits), bias=np.round(v.bias, digits)) for v in sample.layers
        )
        if any(
            np.any(a.weights != b.weights) or np.any(a.bias != b.bias)
            for a, b in zip(rounded, sample.layers, strict=True)
        ):
            yield replace(sample, layers=rounded)


def without_neuron(layers: tuple[Layer, ...], k: int, j: int) -> tuple[Layer, ...]:
    """Hidden neuron j of layer k removed."""
    here, after = layers[k], layers[k + 1]
    here = replace(here, weights=np.delete(here.weights, j, 0), bias=np.delete(here.bias, j))
    after = replace(after, weights=np.delete(after.weights, j, 1))
    return (*layers[:k], here, after, *layers[k + 2 :])


def shrink(sample: Sample, fails: Callable[[Sample], bool], seconds: float = 60.0) -> Sample:
    """The smallest failing sample found by taking every step after which it still fails."""
    deadline = time.monotonic() + seconds
    progress = True
    while progress:
        progress = False
        for candidate in smaller(sample):
            if time.monotonic() > deadline:
                return sample
            try:
                bad = fails(candidate)
            except FAULTS:
                continue
            if bad:
                sample, progress = candidate, True
                break
    return sample


def keep(sample: Sample, problems: list[str], folder: Path) -> Path:
    """Write a failing sample as a replayable case; returns its path."""
    data, prop = variant_of(sample)
    path = folder / f"{'_'.join(sorted({p.split(':')[0] for p in problems})).replace(' ', '-')}_{sample.seed}.json"
    save_case(
        path,
        data,
        prop,
        kind=problems[0].split(":")[0],
        related=sample.onnx(),
        related_vnnlib=None if prop == sample.vnnlib() else sample.vnnlib(),
        settings=Settings(split=sample.split),
        note=f"seed {sample.seed}, variant {sample.variant}: " + "; ".join(problems),
    )
    return path


def report(sample: Sample, judgement: Judgement, folder: Path, seconds: float = 60.0) -> str:
    """Shrink and keep a failing combination; the text for the failing test."""
    kinds = judgement.kinds
    small = shrink(sample, lambda s: bool(judge(s).kinds & kinds), seconds)
    problems = judge(small).problems or judgement.problems
    path = keep(small, problems, folder)
    return f"seed {sample.seed}, variant {sample.variant}: {judgement.problems}; shrunk, kept as {path}"


def tally(judgements: list[Judgement]) -> dict[str, Counter[str]]:
    """How often each engine said what, and the relations found."""
    out: dict[str, Counter[str]] = {"relation": Counter(j.relation for j in judgements)}
    for j in judgements:
        for name, word in j.words.items():
            out.setdefault(name, Counter())[word] += 1
    return out
