"""Proofs of false claims, each once accepted: every claim here comes with a point that refutes it."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from examples import dense, model, query_of, text
from handmade import chain, one

from mucg4.check import narrow
from mucg4.check import walk as walk_module
from mucg4.check.enclose import Enclosure
from mucg4.check.walk import check
from mucg4.errors import UnsoundError
from mucg4.limits.budget import TIMEOUT, Budget
from mucg4.limits.processes import can_fork
from mucg4.model.network import Network, Node
from mucg4.model.proof import Alpha, Proof, Refutation, Tree, single_leaf
from mucg4.model.proof_text import from_text, to_text
from mucg4.model.query import Query
from mucg4.model.verdict import CheckReport, Safe, Statistics
from mucg4.ops.affine import Dense
from mucg4.ops.piecewise import RELU
from mucg4.settings import Settings
from mucg4.verify import replay

F = Fraction
RAMP = dense([([[1]], [0]), ([[1]], [0])])  # relu(x)
FALLING = dense([([[-1]], [0]), ([[1]], [0])])  # relu(-x)
HAIR = 2.0**-60  # nothing beside 1 in doubles
MULTIPLIER = float(np.nextafter(2.0**16, 0))  # just below 2**60 in the exact mode's units: sums of 16 are past 2**63


def by_weights(*weights, **more) -> Tree:
    """A tree of the root alone, refuted by such weights of its first conjunction."""
    return single_leaf([Refutation(0, 0, weights, **more)])


def split(thresholds, refutations=()) -> Tree:
    """Splits of input 0, each in the left child of the one before: split k is node 2k, its children 2k + 1, 2k + 2.

    The left child has the larger number, so the leaves are the odd numbers and the last one.
    """
    n, inner = 2 * len(thresholds) + 1, 2 * np.arange(len(thresholds))
    arrays = [np.full(n, v, dtype=np.int32) for v in (-1, 0, -1, -1)]
    node, index, left, right = arrays
    node[inner], left[inner], right[inner] = 0, inner + 2, inner + 1
    at = np.zeros(n)
    at[inner] = thresholds
    return Tree(node, index, at, left, right, np.ones(n, dtype=bool), np.zeros(n, dtype=bool), tuple(refutations))


def proof_of(query: Query, *trees: Tree) -> Proof:
    """As it is read back from its text."""
    return from_text(to_text(Proof(query.network.fingerprint, query.property_hash, trees)))


def unsafe(query: Query, x, y) -> bool:
    """Whether the exact point is in the stated unsafe set; `y` is what the network makes of it by hand."""

    def holds(row, strict) -> bool:
        cx, cy, c = row
        value = sum(F(v) * F(x[i]) for i, v in cx.items()) + sum(F(v) * F(y[i]) for i, v in cy.items()) + c
        return value < 0 or (value == 0 and not strict)

    return any(
        all(a <= F(v) <= b for a, v, b in zip(case.box.lower, x, case.box.upper, strict=True))
        and any(all(map(holds, c.exact, c.stated_strict.tolist())) for c in case.conjunctions)
        for case in query.cases
    )


def accepted(query: Query, *trees: Tree) -> list[bool]:
    """What the checker says, with and without rounding."""
    return [check(proof_of(query, *trees), query, exact=exact).accepted for exact in (False, True)]


# ---- numbers of the property ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim",
    [
        "(>= (* 7e-324 Y_0) 1.4e-323)",  # y >= 2: the doubles 1 and 3 units say 3
        "(<= (* -1.2e-322 Y_0) -2.99e-322)",  # y >= 2.49...: 24 and 61 units say 2.54...
    ],
)
def test_numbers_of_a_property_below_the_normal_doubles(claim):
    """Coefficients that have lost their digits, made large again by a weight."""
    query = query_of(RAMP, text([(0, "2.5")], 1, claim))
    assert unsafe(query, [F(5, 2)], [F(5, 2)])
    for weight in (1.0, 1e160, 1e300, 1e308):
        assert accepted(query, by_weights(weight)) == [False, False]


def test_a_constant_of_a_property_below_the_normal_doubles():
    """The coefficient is a normal number, the constant is rounded up by 0.3 of the least: past the largest output."""
    coefficient, constant = (Decimal(v).scaleb(-1) * Decimal(2) ** e for v, e in ((5300008, -1041), (5300007, -1074)))
    query = query_of(RAMP, text([(0, Decimal(2) ** -33)], 1, f"(>= (* {coefficient} Y_0) {constant})"))
    assert F(constant) < F(coefficient) / 2**33 < F(float(constant)) and float(coefficient) > 2.0**-1022
    assert unsafe(query, [F(1, 2**33)], [F(1, 2**33)])
    for weight in (1.0, 1e160, 1e300, 1e308):
        assert accepted(query, by_weights(weight)) == [False, False]


def test_a_replay_does_not_lift_them_either(monkeypatch, tmp_path):
    """The whole way from a stored proof to a verdict."""
    monkeypatch.setattr("mucg4.store.store.cases_folder", lambda: tmp_path)
    query = query_of(RAMP, text([(0, "2.5")], 1, "(>= (* 7e-324 Y_0) 1.4e-323)"))
    settings = Settings(workers=1, attack=False)
    assert replay(proof_of(query, by_weights(1e300)), query, settings, Budget.seconds(5)).word != "unsat"


# ---- ties on networks with rounded numbers -------------------------------------------------------


def shifted(claim) -> Query:
    """y = relu(x + 1 + HAIR) + HAIR, twice; the reader adds 1 and HAIR to 1, so each number is there once or twice."""
    nodes = [
        ("Add", "x one", "a", None),
        ("Add", "a t", "b", None),
        ("Relu", "b", "h", None),
        ("Add", "h u", "y", None),
    ]
    data = model(nodes, {"one": [1, 1], "t": [HAIR], "u": [HAIR]}, 2, 2)
    return query_of(data, text([(0, 1), (0, 1)], 2, claim))


def test_a_tie_that_the_reader_rounded():
    """The largest output is 2 + 2 HAIR; that of the network read is 2 + HAIR, and equality refutes `>`."""
    query = shifted(f"(> Y_0 {Decimal(2) + Decimal(HAIR):f})")
    assert unsafe(query, [1, 1], [2 + 2 * F(HAIR)] * 2)
    assert accepted(query, by_weights(1.0)) == [False, False]


def test_a_tie_on_rounded_biases():
    """y_0 = |x_0 - p| - relu(-x_1) + 1 - HAIR; y_1 keeps the numbers that y_0 lost in the inventory of all."""
    p = float(np.float32(0.3))
    nodes = [
        ("Gemm", "x w b", "z", {"transB": 1}),
        ("Relu", "z", "h", None),
        ("Gemm", "h v c", "a", {"transB": 1}),
        ("Add", "a one", "s", None),
        ("Add", "s t", "y", None),
    ]
    tensors = {"w": [[1, 0], [-1, 0], [0, -1]], "b": [-p, p, 0], "v": [[1, 1, -1], [1, 0, 0]], "c": [0, 0]}
    data = model(nodes, tensors | {"one": [1, 0], "t": [-HAIR]}, 2, 2)
    query = query_of(data, text([(0, 1), (-1, -1)], 2, "(< Y_0 0)"))
    assert unsafe(query, [F(p), -1], [-F(HAIR), -F(HAIR)])
    (z,) = (k for k in query.network.pre_activations if k)
    even = Alpha(z, np.arange(3, dtype=np.int32), np.zeros(3, dtype=np.uint8))
    assert accepted(query, by_weights(1.0, alpha=(even,))) == [False, False]


# ---- integers of the exact mode ------------------------------------------------------------------


def test_multipliers_of_one_literal_that_wrap_together():
    """relu(-x) >= 1 on [-2, 0], a multiplier named 16 times on the left half."""
    query = query_of(FALLING, text([(-2, 0)], 1, "(>= Y_0 1)"))
    assert unsafe(query, [-2], [2])
    for times in (1, 2, 8, 16, 32):
        literals = ((2, MULTIPLIER),) * times
        tree = split([-0.9], [Refutation(2, 0, (0.0,), beta=literals), Refutation(1, 0, (1.0,))])
        assert accepted(query, tree) == [False, False], times


def test_multipliers_of_nested_literals_that_wrap_together():
    """The same with 16 different literals of one input."""
    query = query_of(FALLING, text([(-2, 0)], 1, "(>= Y_0 1)"))
    lefts = range(2, 33, 2)
    refutations = [Refutation(k - 1, 0, (1.0,)) for k in lefts]
    refutations.append(Refutation(32, 0, (0.0,), beta=tuple((k, MULTIPLIER) for k in lefts)))
    assert accepted(query, split([-0.9] * 16, refutations)) == [False, False]


def test_errors_that_wrap():
    """Three layers of large weights beside a wide input: the charge for shortened coefficients is past 2**63."""
    large = [2.0**15 + 0.5, float(np.float32(2.0**15 - 1 / 3)), float(np.float32(2.0**15 - 1 / 7))]
    layers = [([[large[0], 0], [0, 0]], [0, 2.0**20]), ([[large[1], 0]], [0]), ([[large[2]]], [0])]
    query = query_of(dense(layers), text([(0, "0.0078125"), (0, 2**28)], 1, "(>= Y_0 1)"))
    x = F(1, 128)
    assert unsafe(query, [x, 0], [x * F(large[0]) * F(large[1]) * F(large[2])])
    for weight in (1.0, 2.0**10, 2.0**15, 2.0**15.5):
        tree = single_leaf(
            [Refutation(0, 0, (weight,)), Refutation(0, 0, (0.77,))]
        )  # the first is given up, the second not yet
        assert accepted(query, tree) == [False, False], weight


def test_input_coefficients_that_are_shortened_to_nothing():
    """5e-14 is less than a unit of the exact mode, and 5e-8 beside an input of -1e6."""
    net = dense([([[1, 0]], [0]), ([[1]], [0])])
    query = query_of(net, text([(0, 1), (-1000000, 0)], 1, "(<= (+ Y_0 (* 0.00000000000005 X_1)) -0.00000001)"))
    assert unsafe(query, [0, -1000000], [0])
    assert accepted(query, by_weights(1.0)) == [False, False]


# ---- late ----------------------------------------------------------------------------------------


def two_halves() -> tuple[Query, list[Tree]]:
    """Two conjunctions, of which relu(x) misses the first; each tree states a refutation of its own."""
    query = query_of(RAMP, text([(0, 1)], 1, "(or (>= Y_0 2) (>= Y_0 0.5))"))
    assert unsafe(query, [1], [1]) and len(query.cases) == 1
    return query, [replace(single_leaf(), refutations=(Refutation(0, k, (1.0,)),), conjunctions=(k,)) for k in range(2)]


def test_a_tree_that_was_not_begun_states_its_evidence_or_is_not_late():
    """Time is over in the first tree; the second one states nothing."""
    query, (first, second) = two_halves()
    over = Budget(deadline=-1.0)
    report = check(proof_of(query, first, second), query, over)
    assert report.late and report.reason == TIMEOUT and not report.accepted
    report = check(proof_of(query, first, replace(second, refutations=())), query, over)
    assert not report.late and not report.accepted and report.skipped == report.leaves == 2


def test_only_time_makes_a_report_late():
    """Memory that is used up and signals end a check, too: nothing is known then."""
    query, trees = two_halves()
    for why in ("reached the memory limit", "interrupted by SIGTERM"):
        report = check(proof_of(query, *trees), query, Budget(interrupted=why))
        assert not report.late and not report.accepted and report.reason == why
        with pytest.raises(UnsoundError):
            Safe(report, Statistics())


@pytest.mark.skipif(not can_fork(), reason="needs processes that fork")
@pytest.mark.parametrize("how", ["killed", "slow"])
def test_lost_parts_of_a_check_are_not_late(how, monkeypatch):
    """A process is killed, or in a long call when time is over: what the others saw is lost with it."""
    query = query_of(RAMP, text([(0, 1)], 1, "(>= Y_0 0.999)"))
    assert unsafe(query, [1], [1])
    thresholds = [2.0**-k for k in range(1, 9)]
    leaves = [*range(1, 17, 2), 16]
    proof = proof_of(query, split(thresholds, [Refutation(k, 0, (1.0,)) for k in leaves]))
    monkeypatch.setattr(walk_module, "SHARED", 2)
    monkeypatch.setattr(walk_module, "LEAST_SHARED", 0)
    monkeypatch.setattr(walk_module, "LEAVES_EACH", 1)
    report = check(proof, query, workers=2)
    assert (report.checked, report.failed, report.late) == (8, 1, False)
    budget, part, forked = Budget(), walk_module._Walk.part, walk_module.forked

    def hurt(walk, which, threads):
        if 0 in which and how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if 0 in which:
            time.sleep(60)  # the parent ends this process
        return part(walk, which, threads)

    def ending(jobs, poll, **more):
        if how == "slow":
            budget.deadline = -1.0
        return forked(jobs, poll, **more)

    monkeypatch.setattr(walk_module._Walk, "part", hurt)
    monkeypatch.setattr(walk_module, "forked", ending)
    report = check(proof, query, budget, workers=2)
    assert not report.accepted and not report.late and walk_module.LOST in report.reason


# ---- reports made by hand ------------------------------------------------------------------------


def test_only_the_checker_makes_reports_that_verdicts_are_made_of():
    """Counts that fit each other are no evidence."""
    proof = Proof("x", "y", (single_leaf(),))
    for report in (
        CheckReport(Proof("x", "y", ()), True, 0, 0, 0),
        CheckReport(proof, True, 1, 0, 0, leaves=1),
        CheckReport(proof, False, 0, 0, 1, TIMEOUT, 1, (), True),
    ):
        with pytest.raises(UnsoundError, match="no unsat without evidence"):
            Safe(report, Statistics())


# ---- bounds --------------------------------------------------------------------------------------


def with_dead_end() -> Network:
    """y = relu(x - 1/2) on [0, 1] by way of z = x - 2, which a neuron that is off and read by nothing reads, too."""

    def layer(offset) -> Dense:
        return Dense(np.ones((1, 1)), np.array([offset]))

    ops = [(None, ()), (layer(-2.0), (0,)), (RELU, (1,)), (layer(1.5), (1,)), (RELU, (3,)), (layer(0.0), (4,))]
    return Network(tuple(Node(op, inputs, f"n{k}", (1,)) for k, (op, inputs) in enumerate(ops)))


def residual() -> Network:
    """y = relu(x) + x."""
    nodes = [("Relu", "x", "h", None), ("Add", "h x", "s", None), ("Gemm", "s v c", "y", None)]
    return query_of(model(nodes, {"v": [[1]], "c": [0]}, 1, 1), text([(0, 1)], 1, "(>= Y_0 9)")).network


def test_the_quick_path_is_for_chains():
    """Columns of neurons that are off may be left out where nothing else reads what they read."""
    assert narrow.suits(Enclosure(chain([(np.eye(2), np.zeros(2)), (np.eye(2), np.zeros(2))])))
    for network in (with_dead_end(), residual()):
        enclosure = Enclosure(network)
        assert not narrow.suits(enclosure) and not enclosure.quick


def test_a_dead_neuron_does_not_hide_what_it_reads():
    """Without the column of z the argument of the last neuron was 3/2, beyond its interval bounds: an empty region."""
    query = one(with_dead_end(), [0], [1], [({}, {0: -1}, F(2, 5), False)])
    assert unsafe(query, [1], [F(1, 2)])
    assert accepted(query, single_leaf()) == accepted(query, by_weights(1.0)) == [False, False]
    low = np.full((1, 2), -np.inf)
    up, every = -low, np.ones(1, dtype=bool)
    frame, empty = Enclosure(query.network).sweep((np.zeros((1, 1)), np.ones((1, 1))), low, up, every, every)
    assert not empty.any() and frame.lower[3][0, 0] <= -0.5 and frame.upper[3][0, 0] >= 0.5


def test_blocks_keep_what_an_outer_reader_needs():
    """In a chain the argument of a neuron that is off is left out, elsewhere only where all readers are off."""
    layers = [(np.eye(2), np.array([-2.0, -0.5])), (np.eye(2), np.zeros(2)), (np.eye(2), np.zeros(2))]
    for network, argument, kept in ((chain(layers), True, [1]), (with_dead_end(), False, [])):
        enclosure, d = Enclosure(network), network.input_size
        far, every = np.full((1, enclosure.width), np.inf), np.ones(1, dtype=bool)
        frame, _ = enclosure.sweep((np.zeros((1, d)), np.ones((1, d))), -far, far.copy(), every, every)
        block = narrow.Block.of(enclosure, frame, 3, 0, 1)
        assert block.keep[2].tolist() == kept
        assert (1 in block.keep) == argument


def test_nan_closes_nothing(monkeypatch):
    """A box that became nan is not known to be empty, neither are bounds that overflowed."""
    query = query_of(RAMP, text([(0, 1)], 1, "(>= Y_0 0.5)"))
    leaf = single_leaf()
    clipping = replace(leaf, clip=np.array([True]))
    assert accepted(query, clipping) == [False, False]

    def lost(self, rows, part, lo, hi):
        return np.full_like(lo, np.nan), np.full_like(hi, np.nan)

    monkeypatch.setattr(Enclosure, "cut", lost)
    assert not check(proof_of(query, clipping), query).accepted
    monkeypatch.undo()
    weights = [[1e200], [-1e200]], [[1e200, -1e200]], [[1.0]]
    huge = chain([(np.array(w), np.zeros(len(w))) for w in weights], np.float64)
    query = one(huge, [-1], [1], [({}, {0: 1}, 0, False)])
    assert unsafe(query, [0], [0])
    for tree in (leaf, clipping, by_weights(1.0), by_weights(1e300), split([0.0])):
        assert accepted(query, tree) == [False, False]


@pytest.mark.parametrize("exact", (False, True))
@pytest.mark.parametrize("end", (HAIR, 1e-6, 1e-4, 0.5))
def test_slopes_of_neurons_that_are_stable_by_a_hair_are_lower_lines_only(end, exact):
    """Any slope serves the lower side of a neuron whose sign is known; none makes a false claim true."""
    net = chain([(np.eye(1), np.zeros(1)), (np.eye(1), np.zeros(1))], np.float64)  # relu(x)
    for low, high in ((end, 1.0), (-1.0, -end)):
        top, bottom = F(max(high, 0.0)), F(max(low, 0.0))
        for row, constant, x in (({0: -1}, top, high), ({0: 1}, -bottom, low)):  # y >= top, y <= bottom
            query = one(net, [low], [high], [({}, row, constant, False)])
            assert unsafe(query, [x], [max(x, 0.0)])
            for level in (0, 1, 100, 254, 255):
                alpha = (Alpha(1, np.zeros(1, dtype=np.int32), np.full(1, level, dtype=np.uint8)),)
                leaf = by_weights(1.0, alpha=alpha)
                assert not check(proof_of(query, leaf), query, exact=exact).accepted
