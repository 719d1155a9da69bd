"""Two ways of splitting on one case: when the second one is tried, and what its proof answers for."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_layers, formula_query, one, satisfiable

import mucg4.search.parallel as parallel
import mucg4.search.portfolio as solve
from mucg4.check.walk import check
from mucg4.errors import StuckError
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Box, Query
from mucg4.model.verdict import Safe, Statistics
from mucg4.search.inputs import InputWay
from mucg4.search.loop import Search
from mucg4.search.phases import PhaseWay
from mucg4.search.portfolio import Fresh
from mucg4.search.record import Recorder
from mucg4.search.run import Run, open_case
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import replay, verify

VARIABLES = 14  # more than LOW_DIMENSION: phases are split first


def run_of(query, **options) -> Run:
    settings = Settings(workers=1, attack=False, **options)
    return Run(query, settings, Budget.seconds(60), Statistics(), Runtime(query.network))


@pytest.fixture
def hasty(monkeypatch):
    """The second arm enters almost at once."""
    monkeypatch.setattr(solve, "_entry", lambda run, state: 10_000.0)
    monkeypatch.setattr(solve, "FIRST", 20_000.0)


@pytest.mark.parametrize("seed", range(6))
def test_formulas_are_decided_as_by_trying_all_assignments(seed, hasty):
    formula = clauses(seed, VARIABLES, 60 if seed % 2 else 90)
    query = formula_query([formula], VARIABLES)
    said: list[str] = []
    verdict = verify(query, Settings(workers=1 + seed % 2), budget=Budget.seconds(60), progress=said.append)
    assert verdict.word == ("sat" if satisfiable(*formula, VARIABLES) else "unsat")
    if isinstance(verdict, Safe):
        assert check(verdict.proof, query).accepted


def test_the_second_arm_is_tried_when_the_first_stalls():
    query = formula_query([clauses(1, 20, 120)], 20)
    said: list[str] = []
    verdict = verify(query, Settings(workers=1), budget=Budget.seconds(60), progress=said.append)
    assert isinstance(verdict, Safe) and any("trying input" in text for text in said)
    assert all(tree.refresh[1:].all() for tree in verdict.proof.trees)
    assert check(verdict.proof, query).accepted


def test_a_mode_that_was_asked_for_stays_alone(monkeypatch):
    monkeypatch.setattr(solve, "FIRST", 1.0)
    query = formula_query([clauses(3, 16, 96)], 16)
    said: list[str] = []
    verify(query, Settings(workers=1, split="phase"), budget=Budget.seconds(2), progress=said.append)
    assert not any("trying" in text for text in said)


def test_arms_share_out_the_conjunctions(hasty):
    """Formulas of very different hardness: every one is answered for by exactly one tree."""
    formulas = [clauses(k, VARIABLES, count) for k, count in enumerate((110, 400, 90))]
    query = formula_query(formulas, VARIABLES)
    assert not any(satisfiable(*f, VARIABLES) for f in formulas)
    verdict = verify(query, Settings(workers=1), budget=Budget.seconds(60))
    assert isinstance(verdict, Safe)
    answered = [c for t in verdict.proof.trees for c in (range(3) if t.conjunctions is None else t.conjunctions)]
    assert sorted(answered) == [0, 1, 2]
    assert check(verdict.proof, query).accepted
    again = replay(verdict.proof, query, Settings(workers=1), Budget.seconds(60))
    assert isinstance(again, Safe) and again.statistics.reused_share == 1.0


def test_conjunctions_that_another_arm_closed_are_forgotten():
    query = formula_query([clauses(k, 6, 60) for k in range(3)], 6)
    run = run_of(query)
    state = open_case(run, 0)
    assert state is not None and state.way is InputWay
    arms = [Fresh(run, state.by(way), None, np.ones(3, dtype=bool)) for way in (PhaseWay, InputWay)]
    for arm in arms:
        arm.begin()
        assert not arm.closed.any()
        arm.forget(np.array([False, True, False]))
        assert arm.closed.tolist() == [False, True, False] and arm.is_open
        arm.advance(float("inf"))
        assert arm.closed.all() and not arm.is_open
        assert sorted(c for t in arm.trees() for c in t.conjunctions) == [0, 2] and not list(arm.trees())


@pytest.mark.parametrize("workers", [1, 2])
def test_an_arm_that_gets_stuck_leaves_the_rest_to_the_other(workers, monkeypatch):
    """Splits of inputs break off after some turns and lose what they held: the other arm refutes all of that."""
    query = formula_query([clauses(k, 7, 60) for k in range(3)], 7)
    real = Search._require_progress

    def breaks_off(self, kept, which):
        real(self, kept, which)
        if self.way.name == "input" and self.pace.turns > 3:
            raise StuckError("undecided: as the test says")

    monkeypatch.setattr(Search, "_require_progress", breaks_off)
    monkeypatch.setattr(parallel, "SERIAL_TURNS", 1)
    verdict = verify(query, Settings(workers=workers, batch=2), budget=Budget.seconds(60))
    assert isinstance(verdict, Safe) and verdict.statistics.second_mode == "phase"
    answered = [c for t in verdict.proof.trees for c in (range(3) if t.conjunctions is None else t.conjunctions)]
    assert sorted(answered) == [0, 1, 2]
    assert check(verdict.proof, query).accepted
    alone = verify(query, Settings(workers=workers, batch=2, split="input"), budget=Budget.seconds(60))
    assert alone.word == "unknown" and alone.reason == "undecided: as the test says"


def test_the_outlook_is_never_better_than_what_was_spent():
    query = formula_query([clauses(5, 18, 120)], 18)
    run = run_of(query)
    state = open_case(run, 0)
    assert state is not None
    arm = Fresh(run, state.by(InputWay), None, np.ones(1, dtype=bool))
    arm.begin()
    while arm.is_open:
        assert arm.outlook() >= np.log2(arm.spent)
        before = run.budget.work
        arm.advance(1)
        assert run.budget.work > before
    assert arm.searches[0].outlook() == 0.0


def test_phase_splits_that_close_ever_less_make_room():
    """Closing shallow regions early looked like progress once: 20 s were not enough where inputs take a moment."""
    formula = clauses(2002, 15, 69)
    assert not satisfiable(*formula, 15)
    verdict = verify(formula_query([formula], 15), Settings(workers=1), budget=Budget.seconds(60))
    assert isinstance(verdict, Safe) and verdict.statistics.second_mode == "input"


def test_shares_of_open_regions_now_and_at_two_thirds():
    random = np.random.default_rng(4)
    state = open_case(run_of(formula_query([clauses(1, 5, 30)], 5)), 0)
    assert state is not None
    recorder, open_ = Recorder(state.bounder, [1]), [0]
    share = {0: 1.0}
    history = {1: 1.0}
    for _ in range(40):
        k = open_.pop(int(random.integers(len(open_))))
        ids, one = np.array([k]), np.zeros(1, dtype=np.int32)
        children = [int(c[0]) for c in recorder.split(ids, one, one, np.zeros(1), True)]
        share.update(dict.fromkeys(children, share[k] / 2))
        open_ += [c for c in children if random.random() < 0.7]
        open_ = open_ or [children[0]]
        history[recorder.count] = sum(share[c] for c in open_)
        now, before, since = recorder.open_shares(np.array(open_))
        then = recorder.count - since
        assert then == 2 * recorder.count // 3
        assert np.isclose(now, sum(share[c] for c in open_))
        if then in history:
            assert np.isclose(before, history[then])


def test_a_stored_proof_is_replayed_in_the_mode_it_was_found_in():
    """Phases come first on such a network, but the proof splits inputs; its variant moves every weight a little."""
    formula = clauses(2, 20, 130)
    query = formula_query([formula], 20)
    verdict = verify(query, Settings(workers=1, split="input"), budget=Budget.seconds(60))
    assert isinstance(verdict, Safe)
    random = np.random.default_rng(0)
    moved = [(w * (1 + 1e-3 * random.normal(size=w.shape)), b) for w, b in formula_layers([formula], 20)]
    variant = Query((chain(moved),), query.cases)
    again = replay(verdict.proof, variant, Settings(workers=1), Budget.seconds(60))
    assert isinstance(again, Safe) and again.statistics.reused_share > 0.9
    assert check(again.proof, variant).accepted
    broken = replace(verdict.proof, trees=tuple(replace(t, conjunctions=()) for t in verdict.proof.trees))
    assert not check(broken, query).accepted


# --- no store may cost a verdict -----------------------------------------------------------------------------------


def test_a_proof_of_one_leaf_leaves_the_portfolio_as_it_is():
    """A smaller box fell at its root: the whole one is searched as from scratch, the second mode included."""
    query = formula_query([clauses(2002, 15, 69)], 15)
    box = query.cases[0].box
    small = Box(box.lower, (Fraction(1, 4),) * 15)
    part = Query(query.networks, (replace(query.cases[0], box=small),))
    settings, scratch = Settings(workers=1), effort()
    assert isinstance(verify(query, settings, budget=scratch), Safe)
    with Store(":memory:") as store:
        stored = verify(part, settings, store, Budget.seconds(60))
        assert isinstance(stored, Safe) and stored.proof.leaves == 1
        verdict = verify(query, settings, store, effort(1.1 * scratch.work))
    assert isinstance(verdict, Safe) and verdict.statistics.related_proof == part.key
    assert verdict.statistics.second_mode == "input" and verdict.statistics.from_root == 0


IDLE = 7  # neurons that hardly matter


def idle_query(seed: int) -> Query:
    """A network that work at the root decides and phase splits do not; the last IDLE neurons of its first layer are
    open and hardly matter."""
    random = np.random.default_rng(seed)
    sizes = (16, 20, 20, 1)
    layers = [
        (random.normal(size=(m, n)) / np.sqrt(n), 0.3 * random.normal(size=m))
        for n, m in zip(sizes[:-1], sizes[1:], strict=True)
    ]
    (w, b), (v, c), *rest = layers
    w, b = np.vstack([w, random.normal(size=(IDLE, sizes[0]))]), np.append(b, np.zeros(IDLE))
    network = chain([(w, b), (np.hstack([v, 1e-4 * random.normal(size=(sizes[1], IDLE))]), c), *rest])
    x = random.uniform(-1, 1, (5000, sizes[0]))
    values = network(np.vstack([x, np.sign(x)]))[:, 0]
    level = Fraction(float(np.round(values.max() + 2 * values.std(), 2)))
    return one(network, [-1] * sizes[0], [1] * sizes[0], [({}, {0: -1}, level, False)])


def idle_tree() -> Tree:
    """A stored tree that splits all of them and refutes nothing."""
    k = np.arange(2 ** (IDLE + 1) - 1)
    inner, depth = k < 2**IDLE - 1, np.log2(k + 1).astype(np.int32)
    node, index, left, right = (
        np.where(inner, a, -1).astype(np.int32) for a in (np.ones_like(k), 20 + depth, 2 * k + 1, 2 * k + 2)
    )
    none = np.zeros(len(k), dtype=bool)
    return Tree(node, index, np.zeros(len(k)), left, right, none, none, (), 0, None)


def test_a_stored_tree_that_leads_astray_is_left_for_the_root():
    """Its open leaves, searched without work at the root of this network, once took more than this budget."""
    query = idle_query(0)
    settings, scratch = Settings(workers=1, attack=False), effort()
    assert isinstance(verify(query, settings, budget=scratch), Safe)
    proof = Proof(query.network.fingerprint, query.property_hash, (idle_tree(),))
    verdict = replay(proof, query, settings, effort(solve.TRIAL * solve.FIRST + 4 * scratch.work))
    assert isinstance(verdict, Safe) and verdict.statistics.from_root == 1
    assert verdict.statistics.stored_leaves == 2**IDLE and verdict.statistics.reused_share == 0.0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("turns", [0, 3])
def test_a_replay_that_gets_stuck_is_followed_by_the_portfolio(workers, turns, monkeypatch):
    """Splits of inputs break off, in the walk or after some turns of what it leaves open: phases refute the rest."""
    query = formula_query([clauses(k, 7, 60) for k in range(3)], 7)
    real = Search._require_progress

    def breaks_off(self, kept, which):
        real(self, kept, which)
        if self.way.name == "input" and self.pace.turns >= turns:
            raise StuckError("undecided: as the test says")

    monkeypatch.setattr(Search, "_require_progress", breaks_off)
    monkeypatch.setattr(parallel, "SERIAL_TURNS", 1)
    node, left, right = (np.array([k, -1, -1], dtype=np.int32) for k in (0, 1, 2))
    flags = np.ones(3, dtype=bool)
    halves = Tree(node, node, np.full(3, 0.5), left, right, flags, ~flags, (), 0, None)
    proof = Proof(query.network.fingerprint, query.property_hash, (halves,))
    verdict = replay(proof, query, Settings(workers=workers, batch=2), effort(200e6))
    assert isinstance(verdict, Safe) and verdict.statistics.second_mode == "phase"
    answered = [c for t in verdict.proof.trees for c in (range(3) if t.conjunctions is None else t.conjunctions)]
    assert sorted(answered) == [0, 1, 2]
