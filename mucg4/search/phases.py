"""Bounding and splitting when phases are split: one conjunction at a time, on the network between unstable neurons.

Order for a batch of regions. (1) Dual ascent on the reduced network in float32 (`mucg4.bound.reduced`); what
looks refuted is confirmed in float64 on the network itself and recorded. (2) Regions that promise large
subtrees get their neurons' bounds tightened on the part that is unsafe (output-constrained bounds, INVPROP,
arXiv 2302.01404), layer by layer; every row is confirmed in float64 and recorded as a `Tightening`; then (1)
again. Measured: on mnist 256x4 at radius 0.05 two rounds at the root close conjunctions that tens of thousands
of phase splits leave open. (3) The rest is split by strong branching at the parents' duals.

When tightening pays. A region of bound v < 0 needs about STRETCH |v| / drop more levels, `drop` being the running
mean gain of one split (at the root: of the split that strong branching would choose), so about 2 to that many
regions. A tightening that removes a share f of v saves the difference; it is done when that exceeds its own cost in
row passes. Counted work, not seconds, decides: runs repeat exactly. Measured with cuts on one core: a 30-128-2
network (safenlp) takes 20, 19, 23 and over 40 s with STRETCH 1, 1.5, 2 and 2.5; of the nine conjunctions of a row of
mnist 256x4 at radius 0.05 two close in 39 s with 1, five with 1.5 and more. Before cuts 2.5 was best.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mucg4.bound.compute import plain_duals
from mucg4.bound.planes import CutPlanes, derive, propose
from mucg4.bound.propagate import Regions
from mucg4.bound.reduced import Block, Pass, Reduced, ReducedDuals, ReducedLines
from mucg4.bound.tighten import Ascent, apply_tightening
from mucg4.model.proof import Alpha, Cuts, Tightening, kept_rows
from mucg4.ops.arrays import NUMPY, xp
from mucg4.ops.base import Array
from mucg4.ops.piecewise import TwoPiece
from mucg4.search.split import Choice, locate, loss

if TYPE_CHECKING:
    from mucg4.search.loop import Search
    from mucg4.search.region import Batch

F = np.float32
CANDIDATES = 32  # neurons tried by a backward pass per region: the estimate that picks them is a poor judge of them
DIRECT_CELLS, MOST_DIRECT = 1 << 16, 64  # first-layer neurons tried in closed form: inputs times neurons per region
SCALES = (0.3, 1.0, 3.0, 10.0)  # first guesses of the constraint weights, relative to width / range
FIRST_STEPS, LATER_STEPS, LAST_STEPS = 10, 20, 60  # ascent steps per row: first round, later, when those stall
ROOT_ROUNDS, ROUNDS = 12, 1  # most rounds at the root and at any other region
EXPLORE = 16  # where tightening has stopped to help it is still tried at every so many regions
TARGETS = 512  # most neurons tightened per round: those whose lines lose most
CUT_ROUNDS, CUT_STEPS, LEAST_CUT_GAIN = 4, 40, 0.02  # at the root; the last: share of the bound that cuts must save
CUT_CELLS = 1 << 23  # most numbers that the cuts' coefficients may take
LEAST_GAIN = 1e-3  # share of a neuron's width that a row has to remove to be kept
REGION_PASSES = 120.0  # row passes that bounding and splitting one region costs, all told
ROW_PASSES = 2.5  # cost of a tightening row's float64 confirmation in row passes, per step of which there are two
FORGET = 0.9
STRETCH = 1.5  # gains shrink further down: levels needed over those at the present gain
HOPE = 0.1  # at the root a further round, with more steps, is expected to remove at least this share
STALL = 0.01  # a round that removes less of the bound and of the widths is the last one at its region


class PhaseSearch:
    """What a phase-splitting search knows besides its frontier: the reduced network and the running gains."""

    def __init__(self, search: Search, root: Regions, conjunction: int) -> None:
        self.search, self.conjunction = search, conjunction
        self.bounder, self.objective, self.compute = search.bounder, search.objective, search.compute
        self.own = self.objective.rows_of(conjunction)
        self.soft = self.own.stop - self.own.start
        self.asked = 0
        self.share = 0.5  # mean share of the bound that one round of tightening removes
        self._rebase(root)

    def _rebase(self, root: Regions) -> None:
        """Take bounds that hold on every region of this search as the new root bounds."""
        self.low, self.up = root.low[0].copy(), root.up[0].copy()
        whole = self.compute.reduced(root) if root is self.search.root else Reduced.build(self.compute.bounder, root)
        self.reduced = whole.constrained(self.compute.objective, self.conjunction).with_cuts(self.search.planes)
        red = self.reduced
        self.direct = ~np.any(red.mix, axis=1) & (red.gap > 0)  # affine in the input alone: closed-form gains

    # ---- what the frontier keeps: bounds, literals and duals of units only ----------------------

    def pack(self, work: Batch, which: Array) -> dict[str, Array]:
        """Frontier fields of the regions `which`."""
        units = self.reduced.positions
        assert work.duals is not None
        return {
            "low": work.regions.low[np.ix_(which, units)],
            "up": work.regions.up[np.ix_(which, units)],
            "phases": work.phases[np.ix_(which, units)],
            "weights": work.duals.weights[which],
            "alpha": np.round(work.duals.alpha[which] * 255).astype(np.uint8),
            "beta": work.duals.beta[which],
        }

    def unpack(self, batch: dict[str, Array]) -> tuple[Regions, Array, ReducedDuals]:
        """The inverse: regions, phases and duals."""
        count, units = len(batch["ids"]), self.reduced.positions
        low, up = np.repeat(self.low[None], count, axis=0), np.repeat(self.up[None], count, axis=0)
        low[:, units], up[:, units] = batch["low"], batch["up"]
        phases = np.zeros(low.shape, dtype=np.int8)
        phases[:, units] = batch["phases"]
        signs = batch["phases"].astype(F)
        duals = ReducedDuals(batch["weights"], batch["alpha"].astype(F) / F(255), batch["beta"], signs)
        return Regions(batch["lo"], batch["hi"], low, up), phases, duals

    def adopt(self, low: Array, up: Array, planes: CutPlanes) -> None:
        """Root bounds `(P,)` and cuts that a worker found."""
        same = np.array_equal(planes.number, self.search.planes.number)
        self.search.planes = planes
        if not (same and np.array_equal(low, self.low) and np.array_equal(up, self.up)):
            self._rebase(Regions(self.bounder.lo[None], self.bounder.hi[None], low[None], up[None]))

    # ---- one batch -----------------------------------------------------------------------------

    def refuted(self, work: Batch) -> bool:
        """Only the first step on the single region of `work`."""
        self.search.statistics.regions += 1
        self.bounder.refresh(work.regions, backward=False)
        return bool(work.regions.empty()[0]) or bool(self._refute(work, None)[0][0])

    def bound(self, work: Batch) -> None:
        """Refute, tighten, split or keep the regions of `work`; all have `conjunction` open."""
        search = self.search
        self.bounder.refresh(work.regions, backward=False)
        work = work.take(np.flatnonzero(~work.regions.empty()))
        if not len(work.ids):
            return
        closed, done = self._refute(work, work.duals)
        search.learn_drop(work, done.value)
        left = np.flatnonzero(~closed)
        if search.witness is None and search.attack is not None and len(left):
            search.probe(work, self._points(done.coeffs[left]), left)
        if search.witness is not None or not len(left):
            return
        work, done = work.take(left), done.take(left)
        work, done = self._tighten(work, done)
        if not len(work.ids) or search.witness is not None:
            return
        low, up = self._unit_bounds(work)
        choice = self._split(work, done, self.reduced.lines(low, up).on(NUMPY))
        search.push(work, np.ones(len(work.ids), dtype=bool), done.value.astype(np.float64), choice)

    def _unit_bounds(self, work: Batch) -> tuple[Array, Array]:
        units = self.reduced.positions
        return work.regions.low[:, units], work.regions.up[:, units]

    def _points(self, coeffs: Array) -> Array:
        """Minimising corners of rows, as inputs."""
        return self.reduced.middle - self.reduced.radius * np.sign(coeffs)

    def _refute(self, work: Batch, duals: ReducedDuals | None) -> tuple[Array, Pass]:
        """Ascent on all regions; leaves their duals in `work`, records refutations; `(B,)` closed, and the bounds."""
        red = self.reduced
        lines = red.lines(*self._unit_bounds(work))
        signs = work.phases[:, red.positions].astype(F)
        if duals is None:
            alpha = red.default_alpha(lines)
            duals = ReducedDuals(self._start_weights(alpha, signs, lines), alpha, np.zeros_like(alpha), signs)
        duals.signs = signs
        work.duals, done = red.ascend(duals, lines, self.search.plan.steps, simplex=True)
        closed = np.zeros(len(work.ids), dtype=bool)
        which = np.flatnonzero(done.value > 0)
        if len(which):
            closed[which] = self._confirm(work.take(which))
        return closed, done

    def _start_weights(self, alpha: Array, signs: Array, lines: ReducedLines) -> Array:
        """The single best constraint of the conjunction on each region, no cuts, `(B, m + C)`."""
        count, m = len(alpha), self.soft
        single = np.eye(m, m + self.reduced.cuts, dtype=F)
        if m == 1:
            return np.repeat(single, count, axis=0)
        value = np.empty((count, m))
        for k in range(m):
            weights = np.repeat(single[k : k + 1], count, axis=0)
            value[:, k] = self.reduced.backward(ReducedDuals(weights, alpha, np.zeros_like(alpha), signs), lines).value
        return single[np.nan_to_num(value, nan=-np.inf).argmax(axis=1)]

    def _confirm(self, part: Batch) -> Array:
        """Evaluate the duals of regions in float64 on the network itself, record refutations; `(B,)` closed."""
        assert part.duals is not None
        units, compute = self.reduced.positions, self.compute
        there, refreshed = compute.refresh(part.regions, backward=False)
        phases, planes = compute.backend.place(part.phases), self.search.planes
        ascent = Ascent(compute.bounder, compute.objective, there, refreshed, phases, planes)
        weights = np.zeros((len(part.ids), len(self.objective.owner)))
        weights[:, self.own] = part.duals.weights[:, : self.soft]
        duals = plain_duals(ascent.default_duals(weights))
        duals.cuts = part.duals.weights[:, self.soft :].astype(np.float64)
        duals.alpha[:, units] = np.round(part.duals.alpha.astype(np.float64) * 255) / 255
        duals.beta[:, units] = part.duals.beta
        bounded, _ = ascent.bound(compute.duals(duals))
        bound = NUMPY.place(bounded.value)
        closed = bound > 0
        self.search.close_duals(part, NUMPY.place(ascent.default_alpha()), self.conjunction, duals, bound, closed)
        return closed

    # ---- tightening ----------------------------------------------------------------------------

    def _tighten(self, work: Batch, done: Pass) -> tuple[Batch, Pass]:
        """Tighten regions where it pays and refute again; returns the regions that are still open."""
        keep = np.ones(len(work.ids), dtype=bool)
        for i in range(len(work.ids)):
            root = work.ids[i] == 0
            steps = FIRST_STEPS
            share = 1.0
            for turn in range(ROOT_ROUNDS if root else ROUNDS):
                value = float(done.value[i])
                drop = self._expected_drop(work, done) if root and turn else self.search.drop
                share = max(share, HOPE) if root else self.share
                if not (root and turn == 0) and not self._pays(work, i, value, drop, share):
                    break
                if not root and self.search.budget.work >= self.search.until:
                    break
                one = work.take(np.array([i]))
                if root and self._seek_cuts(one, done):
                    closed, again = self._refute(one, one.duals)
                    _put(work, i, one)
                    _put_pass(done, i, again)
                    if closed[0]:
                        keep[i] = False
                        break
                width = self._slack(one)
                if self._round(one, done.take(np.array([i])), steps):
                    keep[i], after = False, 0.0
                else:
                    if root:
                        self._rebase_root(one)
                    closed, again = self._refute(one, one.duals)
                    keep[i], after = not closed[0], min(float(again.value[0]), 0.0)
                    _put(work, i, one)
                    _put_pass(done, i, again)
                share = min(max(1.0 - after / value, 0.0), 1.0) if value < 0 else 1.0
                self.share = FORGET * self.share + (1 - FORGET) * share
                if not keep[i]:
                    break
                stalled = share < STALL and self._slack(one) > (1 - STALL) * width
                if stalled and (steps == LAST_STEPS or not root):
                    break
                steps = LAST_STEPS if stalled else max(steps, LATER_STEPS)
        left = np.flatnonzero(keep)
        return work.take(left), done.take(left)

    def _seek_cuts(self, one: Batch, done: Pass) -> bool:
        """Look for cuts at the root's present bounds; True when they replaced the ones in use, or none are needed.

        They are sought anew rather than added: the bounds they rest on have changed, and all regions pay for each.
        """
        search, bounder, old = self.search, self.compute.bounder, self.reduced
        assert one.duals is not None
        after = search.recorder.root_tightenings
        number = search.recorder.cut_count
        most = min(old.units, CUT_CELLS // bounder.network.size)
        cuts: list[Cuts] = []
        planes, red = CutPlanes.none(bounder.lo), old.with_cuts(CutPlanes.none(bounder.lo))
        lines, rows = red.lines(*self._unit_bounds(one)), replace(one.duals, weights=one.duals.weights[:, : self.soft])
        value = -np.inf
        for turn in range(CUT_ROUNDS + 1):
            room = most - len(planes)
            points: list[tuple[Array, Array]] = []
            rows, top = red.ascend(rows, lines, CUT_STEPS, simplex=True, points=points)
            if (
                room <= 0
                or turn == CUT_ROUNDS
                or top.value[0] > 0
                or top.value[0] < value + LEAST_CUT_GAIN * abs(value)
            ):
                break
            value = float(top.value[0])
            half = points[len(points) // 2 :]
            t, h = (np.mean([p[k][0] for p in half], axis=0) for k in (0, 1))
            worth = {
                b.user: self._spread_out(b, np.maximum(-top.on[0, b.where], 0.0))
                for b in red.blocks
                if isinstance(b.op, TwoPiece)
            }
            found = propose(self.bounder, one.regions, self._values_at(t, h), worth, room, after)
            if not found:
                break
            for c in found:
                planes = planes.joined(derive(bounder, one.regions, c, number + len(planes)))
            cuts += found
            red = red.with_cuts(planes)
            rows.weights = np.pad(rows.weights, ((0, 0), (0, len(planes) + self.soft - rows.weights.shape[1])))
        if not len(planes) and top.value[0] > 0:  # closed by more ascent alone
            one.duals = replace(rows, weights=np.pad(rows.weights, ((0, 0), (0, old.cuts))))
            return True
        if not len(planes) or top.value[0] < done.value[0] + LEAST_CUT_GAIN * abs(done.value[0]):
            return False
        keep = rows.weights[0, self.soft :] > 0
        used = np.flatnonzero(keep)
        search.planes = replace(planes.take(used), number=number + np.arange(len(used)))
        search.recorder.cuts += kept_rows(cuts, keep)
        self.reduced = red.with_cuts(search.planes)
        rows.weights = np.concatenate([rows.weights[:, : self.soft], rows.weights[:, self.soft + used]], axis=1)
        one.duals = rows
        return True

    def _spread_out(self, block: Block, values: Array) -> Array:
        """Values of a block's units as an array over its whole node."""
        out = np.zeros(self.bounder.network.nodes[block.user].size)
        out[self.reduced.positions[block.where] - self.bounder.slices[block.node].start] = values
        return out

    def _values_at(self, t: Array, h: Array) -> list[Array]:
        """Node values `(1, size)` at a point of the relaxation: scaled input `(d,)` and values of the units `(U,)`."""
        red, network = self.reduced, self.bounder.network
        units = {b.user: b for b in red.blocks}
        values: list[Array] = [(red.middle + red.radius * t)[None]]
        for k, node in enumerate(network.nodes[1:], 1):
            assert node.op is not None
            value = node.op.apply([values[i] for i in node.inputs])
            if k in units:
                own = self._spread_out(units[k], np.ones(units[k].where.stop - units[k].where.start)) > 0
                value = np.where(own, self._spread_out(units[k], h[units[k].where]), value)
            values.append(value)
        return values

    def _slack(self, one: Batch) -> float:
        """Summed widths of the unstable units of one region."""
        low, up = self._unit_bounds(one)
        return float(np.where((low < 0) & (up > 0), up - low, 0.0).sum())

    def _rebase_root(self, one: Batch) -> None:
        """The root's better bounds hold everywhere: a smaller reduced network, duals carried over."""
        assert one.duals is not None
        old = self.reduced.positions
        full = np.zeros((2, len(self.low)), dtype=F)
        full[0, old], full[1, old] = one.duals.alpha[0], one.duals.beta[0]
        self._rebase(one.regions)
        units = self.reduced.positions
        signs = np.zeros((1, len(units)), dtype=F)
        one.duals = ReducedDuals(one.duals.weights, full[:1, units], full[1:, units], signs)

    def _expected_drop(self, work: Batch, done: Pass) -> float:
        """Mean gain of the split that strong branching would choose at the root."""
        gain = self._split(work, done, self.reduced.lines(*self._unit_bounds(work)).on(NUMPY)).gain[0]
        return float(np.sqrt(max(gain, 0.0)))

    def _pays(self, work: Batch, i: int, value: float, drop: float, share: float) -> bool:
        """The rule of the module text: a split gains `drop`, one more round removes the share `share` of the bound."""
        if value >= 0:
            return True
        self.asked += 1
        if drop <= 0 or (share < STALL and self.asked % EXPLORE):
            return False
        units = self.reduced.positions
        low, up = work.regions.low[i, units], work.regions.up[i, units]
        rows = 2 * min(int(np.count_nonzero((low < 0) & (up > 0))), TARGETS)
        cost = rows * 2 * (LATER_STEPS + ROW_PASSES)
        depth = min(STRETCH * -value / drop, 40.0)
        saved = 2.0**depth - 2.0 ** (depth * (1 - share))
        return bool(saved * REGION_PASSES > cost)

    def _round(self, one: Batch, done: Pass, steps: int) -> bool:
        """One sweep over the layers of a region; its bounds shrink in place. True when the region is empty."""
        red, search = self.reduced, self.search
        targets = self._targets(one, done)
        spread = max(2.0 * float(np.abs(done.coeffs[0]).sum()), abs(float(done.value[0])), 1e-6)
        for block in red.blocks:
            low, up = self._unit_bounds(one)
            w = block.where
            own = targets[(targets >= w.start) & (targets < w.stop)]
            own = own[(low[0, own] < 0) & (up[0, own] > 0)]
            if not len(own):
                continue
            rows = self._tightened(one, own, red.lines(low, up), spread, steps)
            if rows is None:
                continue
            evidence, held, planes = self._evidence(one, block.node, rows, low[0], up[0])
            where = self.compute.bounder, self.compute.objective
            improved = apply_tightening(*where, one.regions, evidence, held, one.phases[0, held], planes)
            if np.any(improved):
                search.recorder.tighten(int(one.ids[0]), evidence, improved, held)
                self.bounder.refresh(one.regions, backward=False)
            if bool(one.regions.empty()[0]):
                return True
        return False

    def _targets(self, one: Batch, done: Pass) -> Array:
        """Units to tighten, in order: those whose lines lose most of the refutation's value."""
        low, up = (b[0] for b in self._unit_bounds(one))
        score = loss(done.on[0] * self.reduced.gap, low, up)
        open_ = np.flatnonzero((low < 0) & (up > 0))
        return np.sort(open_[np.argsort(-score[open_], kind="stable")[:TARGETS]])

    def _tightened(self, one: Batch, own: Array, lines: ReducedLines, spread: float, steps: int) -> ReducedDuals | None:
        """Optimised rows for both bounds of the units `own`; only those that promise a gain."""
        red, m = self.reduced, self.soft
        assert one.duals is not None
        count = 2 * len(own)
        unit = np.concatenate([own, own])
        sign = np.where(np.arange(count) < len(own), F(1), F(-1))
        signs = one.duals.signs
        low, up = NUMPY.place(lines.low)[0, unit], NUMPY.place(lines.up)[0, unit]
        width = (up - low).astype(F)
        base = one.duals.weights[:1] * (width / F(spread))[:, None]
        base[:, m:] = 0.0
        start = ReducedDuals(
            np.zeros((count, m + red.cuts), dtype=F),
            np.repeat(red.default_alpha(lines), count, axis=0),
            np.zeros((count, red.units), dtype=F),
            signs,
            unit,
            sign,
        )
        fixed = start.on(red.backend)
        best = red.backward(start, lines).value
        for scale in SCALES:
            trial = replace(fixed, weights=base * F(scale))
            value = red.backward(trial, lines).value
            better = value > best
            best = np.where(better, value, best)
            start.weights[better] = trial.weights[better]
        reach = np.maximum(start.weights[:, :m], F(0.3) * (width / F(spread))[:, None])
        rows, done = red.ascend(start, lines, steps, simplex=False, reach=reach)
        known = np.where(sign > 0, low, -up)
        gained = np.flatnonzero(done.value - known > LEAST_GAIN * width)
        return rows.take(gained) if len(gained) else None

    def _evidence(
        self, one: Batch, node: int, rows: ReducedDuals, low: Array, up: Array
    ) -> tuple[Tightening, Array, CutPlanes]:
        """Rows as a proof states them: slopes of all unstable units, multipliers of the region's literals and of cuts.

        Also the flat positions of these literals (the recorder names the tree nodes they belong to), and these cuts.
        """
        red = self.reduced
        assert rows.unit is not None and rows.sign is not None
        level = np.round(rows.alpha * 255).astype(np.uint8)
        alphas = []
        for block in red.blocks:
            w = block.where
            if isinstance(block.op, TwoPiece):
                own = w.start + np.flatnonzero((low[w] < 0) & (up[w] > 0))
                if len(own):
                    index = red.positions[own] - self.bounder.slices[block.node].start
                    alphas.append(Alpha(block.node, index.astype(np.int32), level[:, own]))
        held = np.flatnonzero(np.any(rows.beta > 0, axis=0))
        used = np.flatnonzero(np.any(rows.weights[:, self.soft :] > 0, axis=0))
        planes = self.search.planes.take(used)
        evidence = Tightening(
            at=int(one.ids[0]),
            conjunction=self.conjunction,
            node=node,
            index=(red.positions[rows.unit] - self.bounder.slices[node].start).astype(np.int32),
            side=rows.sign.astype(np.int8),
            weights=rows.weights[:, : self.soft].astype(np.float64),
            alpha=tuple(alphas),
            literals=np.zeros(len(held), dtype=np.int32),
            beta=rows.beta[:, held].astype(np.float64),
            cuts=planes.number.astype(np.int32),
            cut_weights=rows.weights[:, self.soft + used].astype(np.float64),
        )
        return evidence, red.positions[held], planes

    # ---- splitting -----------------------------------------------------------------------------

    def _split(self, work: Batch, done: Pass, lines: ReducedLines) -> Choice:
        """Strong branching: the literal with the best product of both children's gains at the parent's duals."""
        red, count = self.reduced, len(work.ids)
        none = np.full(count, -1, dtype=np.int32)
        if not red.units:
            return Choice(none, none.copy(), np.zeros(count), np.zeros(count))
        low, up = lines.low, lines.up
        piecewise = red.gap > 0
        bare = self._bare(work, done)
        score = np.where(
            piecewise,
            np.where(lines.unstable, loss(bare * red.gap, low, up) + 1e-9 * np.minimum(-low, up), -1.0),
            np.where(up - low > 1e-6, np.abs(done.on) * (up - low), -1.0),
        )
        cut = np.where(piecewise, 0.0, (low.astype(np.float64) + up) / 2)
        every = np.arange(count)[:, None]
        picked, gains = [], []
        direct = np.flatnonzero(self.direct)
        if len(direct):
            most = max(CANDIDATES, min(MOST_DIRECT, DIRECT_CELLS // max(red.a.shape[1], 1)))
            top = direct[np.argsort(-score[:, direct], axis=1, kind="stable")[:, :most]]
            gain = self._direct_gains(work, done, lines, top)
            picked.append(top)
            gains.append(np.where(score[every, top] > 0, gain, -1.0))
        later = np.flatnonzero(~self.direct)
        if len(later):
            top = later[np.argsort(-score[:, later], axis=1, kind="stable")[:, :CANDIDATES]]
            valid = score[every, top] > 0
            if np.any(valid):
                picked.append(top)
                gains.append(np.where(valid, self._children_gains(work, done, top, cut[every, top]), -1.0))
        if not picked:
            return Choice(none, none.copy(), np.zeros(count), np.zeros(count))
        candidates, gain = np.concatenate(picked, axis=1), np.concatenate(gains, axis=1)
        pick, one = gain.argmax(axis=1), np.arange(count)
        unit = candidates[one, pick]
        node, index = locate(self.bounder, red.positions[unit])
        valid = gain[one, pick] >= 0
        return Choice(
            np.where(valid, node, -1).astype(np.int32), index.astype(np.int32), cut[one, unit], gain[one, pick]
        )

    def _children_gains(self, work: Batch, done: Pass, units: Array, cut: Array) -> Array:
        """(B, C) product of both children's gains for candidate literals on `units (B, C)` at `cut`."""
        red = self.reduced
        assert work.duals is not None
        count, width = units.shape
        region = np.repeat(np.arange(count), width)
        place = red.backend.place  # the children's rows are many: made where they are used
        low, up = (place(b) for b in self._unit_bounds(work))
        duals, own, at = work.duals.on(red.backend).take(place(region)), place(region), place(cut.ravel())
        each, unit, m = place(np.arange(len(region))), place(units.ravel()), xp(low)
        out = np.ones((count, width))
        for upper in (False, True):
            child_low, child_up = low[own], up[own]
            if upper:
                child_low[each, unit] = m.maximum(child_low[each, unit], at)
            else:
                child_up[each, unit] = m.minimum(child_up[each, unit], at)
            value = red.backward(duals, red.lines(child_low, child_up)).value
            gain = np.minimum(value, 0) - done.value[region]
            out *= np.clip(np.nan_to_num(gain), 1e-9, None).reshape(count, width)
        return out

    def _direct_gains(self, work: Batch, done: Pass, lines: ReducedLines, units: Array) -> Array:
        """(B, C) product of both children's gains when units that are affine in the input are split, in closed form.

        Replacing a unit's line changes the input row by a multiple of the unit's own, so each child's bound is
        one dot product; the multiplier of the new literal is tried at three values.
        """
        red = self.reduced
        assert work.duals is not None
        every = np.arange(len(units))[:, None]
        g, bare = done.on[every, units], self._bare(work, done)[every, units]
        positive = g > 0
        lower = np.where(
            lines.unstable[every, units],
            red.left[units] + red.gap[units] * work.duals.alpha[every, units],
            lines.lower[every, units],
        )
        slope = g * np.where(positive, lower, lines.upper[every, units])
        freed = np.where(positive, F(0), g * lines.upper_offset[every, units])
        base = done.value + np.abs(done.coeffs).sum(axis=1)
        out, held = np.ones(units.shape), work.duals.weights[:, self.soft :]
        step = max(1, (1 << 22) // max(units.shape[1] * (red.a.shape[1] + red.cuts), 1))
        for begin in range(0, len(units), step):
            part = slice(begin, begin + step)
            coeffs, value = done.coeffs[part, None], base[part, None] - freed[part]
            if red.cut is not None:  # a neuron that is split needs its cuts no more
                own = held[part, None] * (red.cut == units[part, :, None])
                coeffs, value = coeffs - own @ red.ga[self.soft :], value - own @ red.gc[self.soft :]
            for side in (0, 1):
                own = bare[part] * (red.left[units[part]] + side * red.gap[units[part]]) - slope[part]
                sign = F(1) if side == 0 else F(-1)  # z <= 0 adds beta z, z >= 0 subtracts it
                best = np.full(own.shape, -np.inf)
                for share in (0.0, 0.5, 1.0):
                    change = own + sign * F(share) * np.abs(bare[part]) * red.gap[units[part]]
                    moved = coeffs + change[:, :, None] * red.a[units[part]]
                    bound = value + change * red.c[units[part]] - np.abs(moved).sum(axis=2)
                    best = np.maximum(best, bound)
                gain = np.minimum(best, 0) - done.value[part, None]
                out[part] *= np.clip(np.nan_to_num(gain), 1e-9, None)
        return out

    def _bare(self, work: Batch, done: Pass) -> Array:
        """(B, U) coefficients on the units' values without what each unit's own cuts add."""
        if self.reduced.cut is None:
            return done.on
        assert work.duals is not None
        own = np.zeros((self.reduced.cuts, self.reduced.units), dtype=F)
        known = np.flatnonzero(self.reduced.cut >= 0)
        own[known, self.reduced.cut[known]] = 1.0
        return done.on - work.duals.weights[:, self.soft :] @ own


def _put(work: Batch, i: int, one: Batch) -> None:
    """Write a single region back into its batch."""
    for f in ("lo", "hi", "low", "up"):
        getattr(work.regions, f)[i] = getattr(one.regions, f)[0]
    assert one.duals is not None
    if len(work.ids) == 1:  # the root may have fewer units than before
        work.duals = one.duals
        return
    assert work.duals is not None
    for f in ("weights", "alpha", "beta"):
        getattr(work.duals, f)[i] = getattr(one.duals, f)[0]


def _put_pass(done: Pass, i: int, one: Pass) -> None:
    if len(done.value) == 1:
        done.value, done.coeffs, done.on = one.value, one.coeffs, one.on
        return
    done.value[i], done.coeffs[i], done.on[i] = one.value[0], one.coeffs[0], one.on[0]
