"""Boxes and unsafe sets for a graph: thresholds at chosen relative distances from the true or sampled extremum."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np

from . import exact
from .families import EXACT, FAMILIES, SHARE, pick
from .instance import Instance, Row, decimal, hull
from .scorer import Scorer, legal

Rng = np.random.Generator
POINTS, ROUNDS = 300, 3  # sampled points, and times that the best one's surroundings are sampled again
SIZES = (1, 1, 1, 2, 2, 3)  # free inputs of exact families


class NoInstance(Exception):
    """The graph that was drawn cannot be run, or has nothing to ask about."""


def make(seed: int, family: str | None = None) -> Instance:
    """The instance of a seed, with its exact answer where there is one. Raises `NoInstance`."""
    rng = np.random.default_rng(seed)
    names = list(SHARE)
    share = np.array([SHARE[n] for n in names])
    drawn = names[int(rng.choice(len(names), p=share / share.sum()))]
    family = family or drawn
    try:
        graph = FAMILIES[family](rng)
        scorer = Scorer(graph)
        outputs = len(scorer.one(np.zeros(graph.shape)))
    except Exception as error:  # whatever onnx and onnxruntime say about a graph that makes no sense
        raise NoInstance(f"{family}: {error}") from error
    box = random_box(rng, graph.inputs, int(pick(rng, *SIZES)) if family in EXACT else 4)
    bare = Instance(family, seed, graph, box, (), outputs=outputs)
    if family in EXACT:
        try:
            return _exact(rng, bare)
        except exact.UnknownTruth:
            pass
    return _sampled(rng, bare, scorer)


def random_box(rng: Rng, n: int, free: int) -> tuple[tuple[str, str], ...]:
    """Ends as decimals: short ones that binary floats miss, integers, long ones, and those between two floats."""
    loose = set(rng.permutation(n)[:free].tolist()) if rng.random() > 0.06 else set()
    out = []
    for i in range(n):
        style = rng.integers(5)
        low, high = np.sort(rng.normal(size=2) * pick(rng, 0.01, 0.3, 1.0, 1.0, 3.0))
        if style == 0:
            ends = [str(int(np.floor(low))), str(int(np.ceil(high)) + 1)]
        elif style == 1:
            ends = [f"{low:.1f}", f"{high + 0.1:.1f}"]
        elif style == 2:  # not a float32 number, and rounded inwards or outwards
            ends = [
                decimal(Fraction(float(np.float32(v))) * (1 + Fraction(int(rng.integers(-3, 4)), 10**9)))
                for v in (low, high)
            ]
        elif style == 3:
            ends = [decimal(Fraction(float(v)), 12) for v in (low, high)]
        else:
            ends = [decimal(Fraction(float(np.float32(v)))) for v in (low, high)]
        if Fraction(ends[0]) > Fraction(ends[1]):
            ends.reverse()
        out.append((ends[0], ends[1]) if i in loose else (ends[0], ends[0]))
    return tuple(out)


def distance_of(rng: Rng) -> float:
    """0 (a tie), or plus or minus 1e-1 ... 1e-15: how far beyond the extremum the threshold is, relative."""
    if rng.random() < 0.15:
        return 0.0
    return float(pick(rng, 1, -1)) * 10.0 ** -int(rng.integers(1, 16))


def direction(rng: Rng, outputs: int, inputs: int) -> Row:
    """A functional that is asked for its least value: one output, a difference or a mixture, rarely with an input."""
    kind = rng.integers(5)
    j = int(rng.integers(outputs))
    ys = [(j, pick(rng, "1", "-1"))]
    if outputs > 1 and kind == 1:
        other = (j + 1) % outputs
        ys = [(j, "1"), (other, "-1")]
    elif kind == 2:
        ys = [(i, decimal(Fraction(int(rng.integers(-9, 10)), 10))) for i in range(outputs)]
        ys = [(i, c) for i, c in ys if Fraction(c)] or [(j, "0.7")]
    xs = [(int(rng.integers(inputs)), pick(rng, "1", "-0.5", "0.3"))] if rng.random() < 0.12 else []
    return Row(tuple(xs), tuple(ys), "0", bool(rng.random() < 0.3), bool(rng.random() < 0.5))


def threshold(least: Fraction, most: Fraction, distance: float) -> str:
    """Bound of `functional <= bound`: beyond the least value (nothing unsafe) for positive distances."""
    scale = max(abs(least), (most - least) / 1000, Fraction(1, 10**6))
    value = least - Fraction(distance) * scale
    return decimal(value, None if not distance else 25)


def _exact(rng: Rng, bare: Instance) -> Instance:
    cells = exact.regions(bare.graph, hull(bare))
    if cells.free and rng.random() < 0.08:
        return _edge(rng, bare, cells)
    distance, unsafe = distance_of(rng), []
    for number in range(int(pick(rng, 1, 1, 1, 2, 3))):
        row = direction(rng, bare.outputs, len(bare.box))
        most, least, where = cells.extremum(row)
        own = distance if not number else float(pick(rng, 0.1, 0.01, 1.0, distance if distance >= 0 else 0.5))
        row = replace(row, bound=threshold(least, most, own))
        conjunction = [row]
        for _ in range(int(pick(rng, 0, 0, 0, 1, 2))):  # more constraints, met at the extremum
            more = direction(rng, bare.outputs, len(bare.box))
            high, low, _ = cells.extremum(more)
            at = _value(cells, more, where)
            bound = at + (high - low) * Fraction(pick(rng, "0", "0.001", "0.1", "0.4"))
            conjunction.append(replace(more, bound=decimal(bound, 20), strict=bool(rng.random() < 0.2)))
        unsafe.append(tuple(conjunction))
    instance = replace(bare, unsafe=tuple(unsafe), always=_inputs(rng, bare, cells), distance=distance)
    truth, _ = exact.answer(instance, cells)
    return replace(instance, truth=truth)


def _edge(rng: Rng, bare: Instance, cells: exact.Regions) -> Instance:
    """A constraint over inputs that leaves a vertex of the box by a hair or misses it by one; outputs are unsafe there.

    Evaluated in the type of the inputs it may hold at the vertex though it does not exactly.
    """
    chosen = rng.permutation(cells.free)[:2].tolist()
    xs = tuple((int(i), pick(rng, "1", "3", "-1", "0.1", "-0.7")) for i in chosen)
    row = Row(xs, (), "0", bool(rng.random() < 0.3), bool(rng.random() < 0.5))
    most, least, where = cells.extremum(row)
    hair = max(abs(least), abs(most)) * Fraction(int(rng.integers(-9, 10)), 10 ** int(rng.integers(8, 18)))
    inputs = replace(row, bound=decimal(least + hair, 30))
    out = replace(direction(rng, bare.outputs, len(bare.box)), xs=())
    high, low, _ = cells.extremum(out)
    bound = _value(cells, out, where) + (high - low) / 5 + Fraction(1, 100)
    instance = replace(bare, unsafe=((replace(out, bound=decimal(bound, 9)),),), always=(inputs,), distance=-0.1)
    return replace(instance, truth=exact.answer(instance, cells)[0])


def _value(cells: exact.Regions, row: Row, vertex: Any) -> Fraction:
    for cell, outputs in cells.cells:
        if any(np.array_equal(v, vertex) for v in cell.vertices):
            return Fraction(cells.form(row, outputs) @ vertex)
    raise AssertionError("the vertex is of no cell")


def _inputs(rng: Rng, bare: Instance, cells: exact.Regions) -> tuple[Row, ...]:
    """Sometimes a constraint over several inputs that stands before the disjunction."""
    if rng.random() > 0.15 or not cells.free:
        return ()
    chosen = cells.free[:2]
    xs = tuple((i, pick(rng, "1", "1", "3", "-1", "0.1")) for i in chosen)
    row = Row(xs, (), "0", bool(rng.random() < 0.2), bool(rng.random() < 0.5))
    most, least, _ = cells.extremum(row)
    share = Fraction(pick(rng, "0", "0.0000001", "0.3", "0.7"))
    return (replace(row, bound=decimal(least + share * (most - least), int(pick(rng, 2, 8, 25)))),)


def _sampled(rng: Rng, bare: Instance, scorer: Scorer) -> Instance:
    """The extremum of one functional among points that onnxruntime ran; no exact answer."""
    row = direction(rng, bare.outputs, len(bare.box))
    x = sample(bare, rng, scorer, row)
    y = scorer.many(x)
    value = [float(v) for v in _values(row, x, y)]
    finite = [v for v in value if np.isfinite(v)]
    if not finite:
        raise NoInstance("no finite value")
    distance = distance_of(rng)
    if bare.family in ("exotic", "casts") and rng.random() < 0.8:  # not about rounding
        distance = float(pick(rng, 1.0, 0.1, 0.01, -0.001, -0.01, -0.1))
    row = replace(row, bound=threshold(Fraction(min(finite)), Fraction(max(finite)), distance))
    unsafe = [(row,)]
    if rng.random() < 0.25:
        far = replace(row, bound=threshold(Fraction(min(finite)), Fraction(max(finite)), 2.0))
        unsafe.insert(int(rng.integers(2)), (far,))
    return replace(bare, unsafe=tuple(unsafe), distance=distance)


def _values(row: Row, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    out = sum(float(Fraction(c)) * y[:, j].astype(np.float64) for j, c in row.ys)
    return np.asarray(out + sum(float(Fraction(c)) * x[:, i].astype(np.float64) for i, c in row.xs))


def sample(instance: Instance, rng: Rng, scorer: Scorer, row: Row | None = None) -> np.ndarray:
    """Corners, random points and points near the best for `row` (the first unsafe one), in the model's type."""
    row = instance.unsafe[0][0] if row is None else row
    low, high = legal(instance)
    wide = (high.astype(np.float64) - low) * np.ones(len(low))
    share = rng.random((POINTS, len(low)))
    share[: POINTS // 3] = np.round(share[: POINTS // 3])
    x = low + share * wide
    out = [_inside(x, low, high)]
    for k in range(ROUNDS):
        value = _values(row, out[-1], scorer.many(out[-1]))
        best = out[-1][int(np.argmin(np.where(np.isfinite(value), value, np.inf)))]
        near = best + rng.normal(size=(POINTS // 4, len(low))) * wide * 0.1 ** (k + 1)
        out.append(_inside(near, low, high))
    out += [_at_the_edge(r, out[0][: POINTS // 4], low, high) for r in instance.always]
    return np.concatenate(out)


def _at_the_edge(row: Row, x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The points moved in one input to where a constraint over inputs is met, and up to two floats beyond."""
    xs, _, bound = row.exact()
    out = x.astype(np.float64)
    for k, point in enumerate(out):
        i = list(xs)[k % len(xs)]
        rest = sum(c * Fraction(float(point[j])) for j, c in xs.items() if j != i)
        edge = low.dtype.type(float((bound - rest) / xs[i]))
        for _ in range(k // len(xs) % 3):
            edge = np.nextafter(edge, low.dtype.type(np.inf if xs[i] > 0 else -np.inf))
        point[i] = edge
    return _inside(out, low, high)


def _inside(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return np.clip(x.astype(low.dtype), low, high)
