"""Tightening when phases are split: neurons' bounds on the unsafe part of a region, and cuts at the root.

Regions that promise large subtrees get their neurons' bounds tightened on the part that is unsafe (output-constrained
bounds, INVPROP, arXiv 2302.01404), layer by layer; every row is confirmed in float64 and recorded as a `Tightening`;
then the region is refuted again. Measured: on mnist 256x4 at radius 0.05 two rounds at the root close conjunctions that
tens of thousands of phase splits leave open.

When tightening pays. A region of bound v < 0 needs about STRETCH |v| / gain more levels, `gain` being the running
mean gain of one split (at the root: of the split that strong branching would choose), so about 2 to that many
regions. A tightening that removes a share f of v saves the difference; it is done when that exceeds its own cost in
row passes. Counted work, not seconds, decides: runs repeat exactly. Measured with cuts on one core: a 30-128-2
network (safenlp) takes 20, 19, 23 and over 40 s with STRETCH 1, 1.5, 2 and 2.5; of the nine conjunctions of a row of
mnist 256x4 at radius 0.05 two close in 39 s with 1, five with 1.5 and more. Before cuts 2.5 was best.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mucg4.bound.planes import CutPlanes, derive, propose
from mucg4.bound.reduced import Block, Reduced, ReducedDuals, ReducedLines
from mucg4.bound.tighten import apply_tightening
from mucg4.model.proof import Alpha, Cuts, Tightening, kept_rows
from mucg4.ops.arrays import NUMPY
from mucg4.ops.base import Array
from mucg4.ops.piecewise import TwoPiece
from mucg4.search.branch import strong_branching
from mucg4.search.phase_bound import F, PhaseBounder, PhaseFindings, unit_bounds
from mucg4.search.region import Batch
from mucg4.search.split import loss
from mucg4.search.way import FORGET, STRETCH, Context

SCALES = (0.3, 1.0, 3.0, 10.0)  # first guesses of the constraint weights, relative to width / range; not measured
# ascent steps per row: first round, later, when those stall; not measured
FIRST_STEPS, LATER_STEPS, LAST_STEPS = 10, 20, 60
ROOT_ROUNDS, ROUNDS = 12, 1  # most rounds at the root and at any other region; not measured
EXPLORE = 16  # where tightening has stopped to help it is still tried at every so many regions; not measured
TARGETS = 512  # most neurons tightened per round: those whose lines lose most; not measured
# at the root; the last: share of the bound that cuts must save; not measured
CUT_ROUNDS, CUT_STEPS, LEAST_CUT_GAIN = 4, 40, 0.02
CUT_CELLS = 1 << 23  # most numbers that the cuts' coefficients may take; not measured
LEAST_GAIN = 1e-3  # share of a neuron's width that a row has to remove to be kept; not measured
REGION_PASSES = 120.0  # row passes that bounding and splitting one region costs, all told; not measured
# cost of a tightening row's float64 confirmation in row passes, per step of which there are two; not measured
ROW_PASSES = 2.5
HOPE = 0.1  # at the root a further round, with more steps, is expected to remove at least this share; not measured
STALL = 0.01  # a round that removes less of the bound and of the widths is the last one at its region; not measured


def round_regions(units: int) -> float:
    """How many regions cost as much as one round of tightening where so many units are unstable."""
    return 2 * min(units, TARGETS) * 2 * (LATER_STEPS + ROW_PASSES) / REGION_PASSES


class Tightener:
    """Rounds of tightening on regions that a `PhaseBounder` left open, and what they have gained so far."""

    def __init__(self, context: Context, bounding: PhaseBounder) -> None:
        self.context, self.bounding, self.compute = context, bounding, context.compute
        self.bounder = context.bounder
        self.asked = 0
        self.share = 0.5  # mean share of the bound that one round removes
        self.spares_root = False  # the root is tightened no sooner than other regions

    def tighten(self, found: PhaseFindings) -> PhaseFindings:
        """Tighten regions where it pays and refute again: the regions that are still open, and what was refuted."""
        changed: dict[int, PhaseFindings] = {}
        for i, at in enumerate(found.work.ids.tolist()):
            one = self._at_root(found) if at == 0 and not self.spares_root else self._below(found, i)
            if one is not None:
                changed[i] = one
        keep = [i for i in range(len(found.value)) if i not in changed or changed[i].alive[0]]
        refuted = [r for one in changed.values() for r in one.refuted]
        if len(found.value) == 1 and keep:  # the root may have fewer units than before
            return replace(changed.get(0, found), refuted=refuted)
        left = replace(found.take(np.array(keep, dtype=np.int64)), refuted=refuted)
        for place, i in enumerate(keep):
            if i in changed:
                left.put(place, changed[i])
        return left

    def _at_root(self, one: PhaseFindings) -> PhaseFindings:
        """Rounds, and cuts before each, as long as one more is expected to pay."""
        share, steps = 1.0, FIRST_STEPS
        for turn in range(ROOT_ROUNDS):
            value, share = float(one.value[0]), max(share, HOPE)
            if turn and not self._pays(one, 0, self._expected_gain(one), share):
                break
            duals = self._seek_cuts(one)
            if duals is not None:
                one = self._refuted_again(one, replace(one.work, duals=duals))
                if not one.alive[0]:
                    break
            width = self._slack(one)
            one, share = self._round(one, steps, value)
            if not one.alive[0]:
                break
            stalled = share < STALL and self._slack(one) > (1 - STALL) * width
            if stalled and steps == LAST_STEPS:
                break
            steps = LAST_STEPS if stalled else max(steps, LATER_STEPS)
        return one

    def _below(self, found: PhaseFindings, i: int) -> PhaseFindings | None:
        """One round on region i, None where it is not expected to pay."""
        pace = self.context.pace
        if not self._pays(found, i, pace.gain, self.share) or self.context.budget.work >= pace.until:
            return None
        one = found.take(np.array([i]))
        return self._round(one, FIRST_STEPS, float(one.value[0]))[0]

    def _round(self, one: PhaseFindings, steps: int, value: float) -> tuple[PhaseFindings, float]:
        """Tighten a region and refute it again; also the share of its bound, `value` before, that this removed."""
        if self._sweep(one, steps):
            one, after = replace(one, alive=np.zeros(1, dtype=bool)), 0.0
        else:
            work = self._rebased(one) if one.work.ids[0] == 0 else one.work
            one = self._refuted_again(one, work)
            after = min(float(one.value[0]), 0.0)
        share = min(max(1.0 - after / value, 0.0), 1.0) if value < 0 else 1.0
        self.share = FORGET * self.share + (1 - FORGET) * share
        return one, share

    def _refuted_again(self, one: PhaseFindings, work: Batch) -> PhaseFindings:
        """The region of `one` as it is in `work`, refuted once more; refutations add up."""
        found = self.bounding.refute(work)
        return replace(found, refuted=[*one.refuted, *found.refuted])

    def _seek_cuts(self, one: PhaseFindings) -> ReducedDuals | None:
        """Look for cuts at the root's present bounds; duals when they replaced the ones in use, or none are needed.

        They are sought anew rather than added: the bounds they rest on have changed, and all regions pay for each.
        """
        recorder, bounder, old, duals = self.context.recorder, self.compute.bounder, one.reduced, one.work.duals
        assert duals is not None
        after, number, soft = recorder.root_tightenings, recorder.cut_count, one.soft
        most = min(old.units, CUT_CELLS // bounder.network.size)
        cuts: list[Cuts] = []
        planes, red = CutPlanes.none(bounder.lo), old.with_cuts(CutPlanes.none(bounder.lo))
        lines, rows = one.lines, replace(duals, weights=duals.weights[:, :soft])
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
                b.user: self._spread_out(red, b, np.maximum(-top.on[0, b.where], 0.0))
                for b in red.blocks
                if isinstance(b.op, TwoPiece)
            }
            found = propose(self.bounder, one.work.regions, self._values_at(red, t, h), worth, room, after)
            if not found:
                break
            for c in found:
                planes = planes.joined(derive(bounder, one.work.regions, c, number + len(planes)))
            cuts += found
            red = red.with_cuts(planes)
            rows.weights = np.pad(rows.weights, ((0, 0), (0, len(planes) + soft - rows.weights.shape[1])))
        if not len(planes) and top.value[0] > 0:  # closed by more ascent alone
            return replace(rows, weights=np.pad(rows.weights, ((0, 0), (0, old.cuts))))
        if not len(planes) or top.value[0] < one.value[0] + LEAST_CUT_GAIN * abs(one.value[0]):
            return None
        keep = rows.weights[0, soft:] > 0
        used = np.flatnonzero(keep)
        self.bounding.use_cuts(replace(planes.take(used), number=number + np.arange(len(used))))
        recorder.cuts += kept_rows(cuts, keep)
        weights = np.concatenate([rows.weights[:, :soft], rows.weights[:, soft + used]], axis=1)
        return replace(rows, weights=weights)

    def _spread_out(self, red: Reduced, block: Block, values: Array) -> Array:
        """Values of a block's units as an array over its whole node."""
        out = np.zeros(self.bounder.network.nodes[block.user].size)
        out[red.positions[block.where] - self.bounder.slices[block.node].start] = values
        return out

    def _values_at(self, red: Reduced, t: Array, h: Array) -> list[Array]:
        """Node values `(1, size)` at a point of the relaxation: scaled input `(d,)` and values of the units `(U,)`."""
        network = self.bounder.network
        units = {b.user: b for b in red.blocks}
        values: list[Array] = [(red.middle + red.radius * t)[None]]
        for k, node in enumerate(network.nodes[1:], 1):
            assert node.op is not None
            value = node.op.apply([values[i] for i in node.inputs])
            if k in units:
                own = self._spread_out(red, units[k], np.ones(units[k].where.stop - units[k].where.start)) > 0
                value = np.where(own, self._spread_out(red, units[k], h[units[k].where]), value)
            values.append(value)
        return values

    @staticmethod
    def _slack(one: PhaseFindings) -> float:
        """Summed widths of the unstable units of one region."""
        low, up = unit_bounds(one.reduced, one.work)
        return float(np.where((low < 0) & (up > 0), up - low, 0.0).sum())

    def _rebased(self, one: PhaseFindings) -> Batch:
        """The root's better bounds hold everywhere: a smaller reduced network, duals carried over."""
        duals, old = one.work.duals, one.reduced.positions
        assert duals is not None
        full = np.zeros((2, self.bounder.width), dtype=F)
        full[0, old], full[1, old] = duals.alpha[0], duals.beta[0]
        self.bounding.rebase(one.work.regions)
        units = self.bounding.reduced.positions
        signs = np.zeros((1, len(units)), dtype=F)
        return replace(one.work, duals=ReducedDuals(duals.weights, full[:1, units], full[1:, units], signs))

    def _expected_gain(self, one: PhaseFindings) -> float:
        """Mean gain of the split that strong branching would choose at the root."""
        gain = strong_branching(one, self.bounding.direct).gain[0]
        return float(np.sqrt(max(gain, 0.0)))

    def _pays(self, found: PhaseFindings, i: int, gain: float, share: float) -> bool:
        """The rule of the module text: a split gains `gain`, one more round removes the share `share` of the bound."""
        value = float(found.value[i])
        if value >= 0:
            return True
        self.asked += 1
        if gain <= 0 or (share < STALL and self.asked % EXPLORE):
            return False
        units = found.reduced.positions
        low, up = found.work.regions.low[i, units], found.work.regions.up[i, units]
        cost = round_regions(int(np.count_nonzero((low < 0) & (up > 0))))
        depth = min(STRETCH * -value / gain, 40.0)
        saved = 2.0**depth - 2.0 ** (depth * (1 - share))
        return bool(saved > cost)

    # ---- one sweep over the layers of a region -------------------------------------------------

    def _sweep(self, one: PhaseFindings, steps: int) -> bool:
        """Tighten layer by layer; the region's bounds shrink in place. True when it is empty."""
        red, recorder, work = one.reduced, self.context.recorder, one.work
        targets = self._targets(one)
        spread = max(2.0 * float(np.abs(one.done.coeffs[0]).sum()), abs(float(one.value[0])), 1e-6)
        for block in red.blocks:
            low, up = unit_bounds(red, work)
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
            improved = apply_tightening(*where, work.regions, evidence, held, work.phases[0, held], planes)
            if np.any(improved):
                recorder.tighten(int(work.ids[0]), evidence, improved, held)
                self.bounder.refresh(work.regions, backward=False)
            if bool(work.regions.empty()[0]):
                return True
        return False

    @staticmethod
    def _targets(one: PhaseFindings) -> Array:
        """Units to tighten, in order: those whose lines lose most of the refutation's value."""
        low, up = (b[0] for b in unit_bounds(one.reduced, one.work))
        score = loss(one.done.on[0] * one.reduced.gap, low, up)
        open_ = np.flatnonzero((low < 0) & (up > 0))
        return np.sort(open_[np.argsort(-score[open_], kind="stable")[:TARGETS]])

    @staticmethod
    def _tightened(
        one: PhaseFindings, own: Array, lines: ReducedLines, spread: float, steps: int
    ) -> ReducedDuals | None:
        """Optimised rows for both bounds of the units `own`; only those that promise a gain."""
        red, m, duals = one.reduced, one.soft, one.work.duals
        assert duals is not None
        count = 2 * len(own)
        unit = np.concatenate([own, own])
        sign = np.where(np.arange(count) < len(own), F(1), F(-1))
        signs = duals.signs
        low, up = NUMPY.place(lines.low)[0, unit], NUMPY.place(lines.up)[0, unit]
        width = (up - low).astype(F)
        base = duals.weights[:1] * (width / F(spread))[:, None]
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
        self, one: PhaseFindings, node: int, rows: ReducedDuals, low: Array, up: Array
    ) -> tuple[Tightening, Array, CutPlanes]:
        """Rows as a proof states them: slopes of all unstable units, multipliers of the region's literals and of cuts.

        Also the flat positions of these literals (the recorder names the tree nodes they belong to), and these cuts.
        """
        red, soft = one.reduced, one.soft
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
        used = np.flatnonzero(np.any(rows.weights[:, soft:] > 0, axis=0))
        planes = self.bounding.planes.take(used)
        evidence = Tightening(
            at=int(one.work.ids[0]),
            conjunction=self.bounding.conjunction,
            node=node,
            index=(red.positions[rows.unit] - self.bounder.slices[node].start).astype(np.int32),
            side=rows.sign.astype(np.int8),
            weights=rows.weights[:, :soft].astype(np.float64),
            alpha=tuple(alphas),
            literals=np.zeros(len(held), dtype=np.int32),
            beta=rows.beta[:, held].astype(np.float64),
            cuts=planes.number.astype(np.int32),
            cut_weights=rows.weights[:, soft + used].astype(np.float64),
        )
        return evidence, red.positions[held], planes
