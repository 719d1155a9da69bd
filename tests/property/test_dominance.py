"""The search's charge for rounding covers the checker's: on the same evidence its bounds are never the better ones.

Random networks of every family of the campaign, some with weights between 1e-8 and 1e8 that cancel, and with neurons
that are off. A random path of literals is followed on both sides, each with its own bounds; on every region of it the
bounds of neurons, the constraints alone, random combinations with slopes, multipliers of literals, tightenings and
clips are compared. See `mucg4.bound.rounding`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from campaign.families import FAMILIES, Net, affine_end, pick, weights
from campaign.judge import query_of

from mucg4.bound.compute import Compute
from mucg4.bound.objective import Objective, clip_box
from mucg4.bound.planes import carrier_rows, derive
from mucg4.bound.propagate import Bounder
from mucg4.bound.tighten import Ascent, Duals, evaluate_tightening
from mucg4.check.enclose import Enclosure, Frame, Rows
from mucg4.check.walk import _Walk, planned
from mucg4.errors import Mucg4Error
from mucg4.limits.budget import Budget
from mucg4.model.proof import Alpha, Cuts, Refutation, Tightening, Tree
from mucg4.model.query import Query
from mucg4.ops.arrays import NUMPY
from mucg4.ops.piecewise import TwoPiece
from mucg4.search.loop import apply_literals

STEPS, EACH, START = 3, 6, 500
LINEAR = ("badly", "off", "dense", "double", "pieces", "residual", "conv", "pools", "cancel", "folded")
SMOOTH = ("smooth", "steps", "products", "exotic")


def badly(rng):
    """Weights of sizes from 1e-8 to 1e8, columns that cancel or nearly do."""
    net = Net((1, int(rng.integers(1, 4))), pick(rng, "float32", "float64"))
    sizes = [net.shape[1], *rng.integers(1, 9, size=int(rng.integers(1, 4))), int(rng.integers(1, 3))]
    v = "x"
    for k, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        w, b = (
            rng.normal(size=s) * 10.0 ** rng.integers(-8, 9, size=s) * (rng.random(s) < 0.8) for s in ((m, n), (m,))
        )
        if n > 1 and rng.random() < 0.5:
            w[:, 1] = -w[:, 0] * pick(rng, 1.0, 1 + 2.0**-20)
        v = net.Gemm(v, net.const(w), net.const(b), transB=1)
        if k + 2 < len(sizes):
            v = net.LeakyRelu(v, alpha=0.1) if rng.random() < 0.3 else net.Relu(v)
    return net.graph()


def off(rng):
    """Neurons that are off and scaled by numbers that cancel: what is left of them is exactly 0."""
    n, m = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    net = Net((1, n))
    bias = weights(rng, m) - 3 * (rng.random(m) < 0.6)
    z = net.Gemm("x", net.const(weights(rng, m, n)), net.const(bias), transB=1)
    v = net.LeakyRelu(net.Relu(z), alpha=0.1) if rng.random() < 0.3 else net.Relu(z)
    big = 2.0**18
    one = net.Add(net.Mul(v, net.const(big)), net.Relu(net.Add(z, net.const(1.0))))
    return affine_end(net, rng, net.Sub(one, net.Mul(v, net.const(big + pick(rng, 0.0, 0.03125)))), m)


MAKERS = {**FAMILIES, "badly": badly, "off": off}


def instances(family: str, count: int) -> Iterator[tuple[int, Query]]:
    """Seeds and queries of one case and one conjunction."""
    seed = START
    while count:
        seed += 1
        rng = np.random.default_rng(seed)
        try:
            graph = MAKERS[family](rng)
        except ValueError:
            continue
        for outputs in (1, 2, 3, 4, 6, 8):
            try:
                query = query_of(graph.onnx(), prop(np.random.default_rng(seed), graph.inputs, outputs))
            except Mucg4Error:
                continue
            if not query.cases[0].box.empty:
                count -= 1
                yield seed, query
                break


def prop(rng, inputs: int, outputs: int) -> str:
    """A box of sides from 0 to 2 and one conjunction."""
    lines = [f"(declare-const {v}_{i} Real)" for v, n in (("X", inputs), ("Y", outputs)) for i in range(n)]
    for i in range(inputs):
        middle, radius = rng.normal() * (rng.random() < 0.7), pick(rng, 1.0, 0.1, 1e-3, 0.0)
        lines += [f"(assert ({s} X_{i} {v:.9f}))" for s, v in ((">=", middle - radius), ("<=", middle + radius))]
    for _ in range(int(rng.integers(1, 4))):
        terms = [f"(* {pick(rng, 1.0, -1.0, 0.9, rng.normal(), 1e8, 1e-8):.12f} Y_{i})" for i in range(outputs)]
        terms += [f"(* {rng.normal():.6f} X_0)"] * (rng.random() < 0.3)
        lines.append(f"(assert (<= (+ 0.0 {' '.join(terms)}) {rng.normal():.4f}))")
    return "\n".join(lines)


class Sides:
    """A path of literals, with the search's regions and the checker's."""

    def __init__(self, query: Query, rng: np.random.Generator, folded: bool) -> None:
        self.rng, self.query, self.network, self.case = rng, query, query.network, query.cases[0]
        box = self.case.box
        self.bounder, self.objective = Bounder(self.network, box.lo, box.hi), Objective(self.case)
        self.region = self.bounder.root()
        self.compute = Compute.of(self.bounder, self.objective, NUMPY)
        self.compute.refresh(self.region, settle=True)
        self.bounder.tighten_scales(self.region)
        if folded:
            self.compute = self.compute.folded_on(self.bounder, self.region)
        self.there, self.lines = self.compute.refresh(self.region)
        self.phases = np.zeros((1, self.bounder.width), dtype=np.int8)
        self.path: list[tuple[int, int, float, bool]] = []
        self.enclosure = Enclosure(self.network)
        far = np.full((1, self.enclosure.width), np.inf)
        self.box, self.low, self.up = (box.lo[None].copy(), box.hi[None].copy()), -far, far.copy()
        self.frame, self.empty = self.sweep(np.ones(1, dtype=bool))

    def sweep(self, root) -> tuple[Frame, bool]:
        frame, empty = self.enclosure.sweep(self.box, self.low, self.up, np.ones(1, dtype=bool), root)
        return frame, bool(empty[0])

    @property
    def open_(self):
        """(P,) neurons whose sign the search does not know."""
        return (self.region.low[0] < 0) & (self.region.up[0] > 0)

    @property
    def pieces(self):
        """(P,) neurons whose multipliers a search may use: arguments of two pieces."""
        out = np.zeros(self.bounder.width, dtype=np.int8)
        for node in self.network.nodes:
            if isinstance(node.op, TwoPiece):
                out[self.bounder.slices[node.inputs[0]]] = 1
        return out

    def step(self) -> None:
        """One more literal, of a neuron or an input."""
        rng, bounder = self.rng, self.bounder
        upper, unstable = bool(rng.random() < 0.5), np.flatnonzero(self.open_)
        place, threshold = -1, 0.0
        if rng.random() < 0.5 and len(unstable):
            place = int(rng.choice(unstable))
            node = next(k for k, s in bounder.slices.items() if s.start <= place < s.stop)
            index = place - bounder.slices[node].start
        if place < 0 or node == 0:
            node, index = 0, int(rng.integers(self.network.input_size))
            threshold = float((self.region.lo[0, index] + self.region.hi[0, index]) / 2)
        self.path.append((node, index, threshold, upper))
        one = [np.array([v]) for v in (node, index, threshold, upper)]
        apply_literals(bounder, self.region, *one, self.phases)
        low, up = self.box if node == 0 else (a[:, self.enclosure.slot[node]] for a in (self.low, self.up))
        (low if upper else up)[0, index] = (np.maximum if upper else np.minimum)(
            (low if upper else up)[0, index], threshold
        )
        self.there, self.lines = self.compute.refresh(self.region)
        self.frame, self.empty = self.sweep(np.zeros(1, dtype=bool))

    @property
    def behind(self) -> list[int]:
        """The tree nodes behind the literals of the path."""
        return [2 * k + 1 + upper for k, (*_, upper) in enumerate(self.path)]

    def walk(self, refutations: Sequence[Refutation] = ()) -> _Walk:
        """A walk on a tree that has this path, with refutations."""
        n, steps = 2 * len(self.path) + 1, range(len(self.path))
        node, index, left, right = (np.full(n, -1, dtype=np.int32) for _ in range(4))
        threshold, at = np.zeros(n), 0
        for k in steps:
            node[at], index[at], threshold[at], upper = self.path[k]
            left[at], right[at] = 2 * k + 1, 2 * k + 2
            at = self.behind[k]
        flags = np.ones(n, dtype=bool)
        tree = Tree(node, index, threshold, left, right, flags, ~flags, tuple(refutations))
        return _Walk(planned(tree, self.query), self.enclosure, {}, Budget())


def assert_bounds(s: Sides) -> None:
    """The checker's bounds of neurons lie inside the search's; both may know the sign differently well."""
    for k, slot in s.enclosure.slot.items():
        low, up = (a[0] for a in s.bounder.pre_bounds(s.region, k))
        own = s.low[0, slot], s.up[0, slot]
        both = ((low >= 0) & (own[0] >= 0)) | ((up <= 0) & (own[1] <= 0))
        asked = ~both | s.enclosure._bent_users(k)
        assert np.all((own[0] >= low)[asked]) and np.all((own[1] <= up)[asked]), k


def assert_values(s: Sides) -> None:
    """Constraints alone with default slopes, then combinations with random slopes and multipliers of literals."""
    rng, m = s.rng, len(s.objective.owner)
    mixed = abs(rng.normal(size=(2, m))) * 10.0 ** rng.integers(-6, 7, size=(2, m))
    for weight, several in ((np.eye(m), False), (mixed, True)):
        count = len(weight)
        repeated = np.zeros(count, dtype=np.int64)
        phases = np.repeat(s.phases, count, axis=0)
        ascent = Ascent(
            s.compute.bounder,
            s.compute.objective,
            s.there.take(repeated),
            s.lines.take(repeated),
            s.compute.place_neurons(phases),
        )
        duals = ascent.default_duals(weight)
        if several:
            duals.alpha[:] = np.round(255 * rng.random(duals.alpha.shape)) / 255
            held = s.compute.place_neurons(phases * s.pieces) != 0
            duals.beta[:] = held * abs(rng.normal(size=duals.beta.shape)) * 10.0 ** rng.integers(-3, 4)
        mine = ascent.bound(duals)[0]
        theirs, _ = checked(s, s.compute.plain(duals), several)
        known = np.isfinite(mine.value)
        assert np.all((theirs >= mine.value)[known]), (theirs, mine.value)


def checked(s: Sides, duals, several: bool) -> tuple[np.ndarray, Rows]:
    """The checker's bounds for duals, as a proof would state them."""
    alphas = []
    for k, where in s.bounder.slices.items():
        index = np.flatnonzero(s.open_[where])
        if several and len(index):
            level = np.round(255 * duals.alpha[:, where][:, index]).astype(np.uint8)
            alphas.append((k, index.astype(np.int32), level))
    group = []
    for row, w in enumerate(duals.weights):
        beta, seen = [], set()
        for (node, index, threshold, _), at in zip(s.path[::-1], s.behind[::-1], strict=True):
            place = -1 if node == 0 else s.bounder.slices[node].start + index
            if node and threshold == 0 and place not in seen and duals.beta[row, place]:
                beta.append((at, float(duals.beta[row, place])))
            seen.add(place)
        own = tuple(Alpha(k, index, level[row]) for k, index, level in alphas)
        group.append(Refutation(s.behind[-1] if s.path else 0, 0, tuple(w), own, tuple(beta)))
    e, every = s.enclosure, np.arange(len(group))
    rows = e.pull(s.frame, s.walk(group)._rows_of(every, 0 * every, 0, s.frame), len(e.nodes) - 1)
    copy = Rows(rows.region, dict(rows.coef), rows.const, rows.error)
    return e.minimum(s.frame, rows), copy


def assert_tightenings(s: Sides) -> None:
    """Both bounds of some neuron on the unsafe points."""
    nodes = [
        k for k in s.bounder.pre if k and any(isinstance(s.network.nodes[j].op, TwoPiece) for j in s.network.users[k])
    ]
    if not nodes:
        return
    rng, node, m = s.rng, int(s.rng.choice(nodes)), len(s.objective.owner)
    walk, behind = s.walk(), s.behind
    size = s.network.nodes[node].size
    neurons = np.sort(rng.permutation(size)[:4]).astype(np.int32)
    index, side = np.concatenate([neurons, neurons]), np.repeat(np.array([1, -1], dtype=np.int8), len(neurons))
    held = [
        (at, s.bounder.slices[k].start + j, 1 if upper else -1)
        for (k, j, t, upper), at in zip(s.path, behind, strict=True)
        if k and t == 0
    ]
    literals, position, sign = (np.array([h[i] for h in held], dtype=np.int64) for i in range(3))
    alphas = []
    for k, where in s.bounder.slices.items():
        own = np.flatnonzero(s.open_[where])
        if len(own):
            alphas.append(Alpha(k, own.astype(np.int32), rng.integers(0, 256, (len(index), len(own))).astype(np.uint8)))
    t = Tightening(
        at=behind[-1] if behind else 0,
        conjunction=0,
        node=node,
        index=index,
        side=side,
        weights=abs(rng.normal(size=(len(index), m))) * 10.0 ** rng.integers(-6, 4, size=(len(index), m)),
        alpha=tuple(alphas),
        literals=literals.astype(np.int32),
        beta=abs(rng.normal(size=(len(index), len(held)))),
        cuts=np.zeros(0, dtype=np.int32),
        cut_weights=np.zeros((len(index), 0)),
    )
    mine = evaluate_tightening(s.bounder, s.objective, s.region, t, position, sign)
    theirs = walk._bounds(t, s.frame)
    known = np.isfinite(mine)
    assert np.all((theirs >= mine)[known]), (theirs, mine)


def assert_cuts(s: Sides) -> None:
    """Random combinations of constraints and random cuts of the root."""
    users = [k for k in s.network.nonlinear if isinstance(s.network.nodes[k].op, TwoPiece)]
    if not users or s.path:
        return
    rng, user, m = s.rng, int(s.rng.choice(users)), len(s.objective.owner)
    index = rng.permutation(s.network.nodes[user].size)[:3].astype(np.int32)
    shares = []
    for k in carrier_rows(s.network, s.network.nodes[user].inputs[0], index.astype(np.int64)):
        size = s.network.nodes[k].size
        value = rng.integers(0, 256, (len(index), size)).astype(np.uint8)
        shares.append(Alpha(k, np.arange(size, dtype=np.int32), value))
    cuts = Cuts(user, index, tuple(shares), 0)
    planes, walk = derive(s.bounder, s.region, cuts, 0), s.walk()
    walk._derive([cuts], s.frame)
    multipliers = abs(rng.normal(size=(2, len(index)))) * 10.0 ** rng.integers(-3, 4, size=(2, 1))
    weight, twice = abs(rng.normal(size=(2, m))), np.zeros(2, dtype=np.int64)
    ascent = Ascent(s.bounder, s.objective, s.region.take(twice), s.lines.take(twice), None, planes)
    mine = ascent.bound(replace(ascent.default_duals(weight), cuts=multipliers))[0].value
    e = s.enclosure
    rows = walk._functional(walk.constraints[0], weight, twice, s.frame)
    walk._add_cuts(rows, np.arange(len(index)), multipliers, s.frame)
    theirs = e.minimum(s.frame, e.pull(s.frame, rows, len(e.nodes) - 1))
    known = np.isfinite(mine)
    assert np.all((theirs >= mine)[known]), (theirs, mine)


def assert_clips(s: Sides) -> None:
    """Boxes cut by each constraint."""
    compute, every = s.compute, np.zeros(1, dtype=np.int64)
    found = compute.objective.evaluate(compute.bounder, s.there, s.lines, np.ones((1, 1), dtype=bool))
    regions, wide = s.region.take(every), compute.on_inputs(found.coeffs)
    none = np.zeros((len(s.objective.owner), s.bounder.width))
    _, rows = checked(s, Duals(np.eye(len(none)), none, none), False)
    lo, hi = s.box
    for k in range(len(none)):
        clip_box(regions, wide[every, k], found.offset[every, k], every)
        lo, hi = s.enclosure.cut(rows, np.array([k]), lo, hi)
        if np.any(lo > hi):
            return
        assert np.all(lo >= regions.lo) and np.all(hi <= regions.hi)


def compare(seed: int, query: Query) -> None:
    rng = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        s = Sides(query, rng, folded=bool(seed % 2))
        for _ in range(STEPS):
            assert s.empty or not s.region.empty()[0]  # the search finds no region empty that the checker does not
            if s.empty:
                return
            assert_bounds(s)
            assert_values(s)
            assert_clips(s)
            if s.compute.fold is None:
                assert_tightenings(s)
                assert_cuts(s)
            s.step()


@pytest.mark.parametrize("family", (*LINEAR, *SMOOTH))
def test_the_search_charges_at_least_what_the_checker_does(family):
    for seed, query in instances(family, EACH):
        try:
            compare(seed, query)
        except AssertionError as error:
            raise AssertionError(f"{family} {seed}") from error
