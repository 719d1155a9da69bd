"""The independent checker: right proofs are accepted, wrong ones never."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import numpy as np
import pytest

from mucg4.check import enclose as enclose_module
from mucg4.check import walk as check_module
from mucg4.check.curves import enclose
from mucg4.check.enclose import Enclosure, Rows
from mucg4.check.exact import ExactEnclosure
from mucg4.check.walk import check
from mucg4.errors import ProofError
from mucg4.limits.budget import Budget
from mucg4.model.network import Network, Node
from mucg4.model.proof import Alpha, Proof, Refutation, Tree, single_leaf
from mucg4.model.proof_packed import from_packed, to_packed
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.ops.affine import Concat, Dense, Sum
from mucg4.ops.base import Nonlinear
from mucg4.ops.piecewise import RELU, TwoPiece

F = Fraction


def build_tree(nested, refutations=(), refresh=True, clip=False):
    """From nested tuples `(node, index, threshold, left, right)`, leaves None; numbered breadth first."""
    rows, queue = [], [nested]
    while queue:
        item = queue.pop(0)
        child = len(rows) + len(queue) + 1
        if item is None:
            rows.append((-1, -1, 0.0, -1, -1))
        else:
            rows.append((*item[:3], child, child + 1))
            queue += item[3:]
    columns = list(zip(*rows, strict=True))
    n = len(rows)
    node, index, left, right = (np.array(columns[i], dtype=np.int32) for i in (0, 1, 3, 4))
    flags = [np.broadcast_to(np.asarray(v, dtype=bool), (n,)).copy() for v in (refresh, clip)]
    return Tree(node, index, np.array(columns[2], dtype=np.float64), left, right, *flags, tuple(refutations))


def dense_net(layers, op=RELU):
    """`[(W, b), ...]` with `op` between them."""
    nodes = [Node(None, (), "x", (np.shape(layers[0][0])[1],))]
    for k, (w, b) in enumerate(layers):
        w, b = np.array(w, dtype=np.float64), np.array(b, dtype=np.float64)
        nodes.append(Node(Dense(w, b), (len(nodes) - 1,), f"z{k}", (len(b),)))
        if k + 1 < len(layers):
            nodes.append(Node(op, (len(nodes) - 1,), f"h{k}", (len(b),)))
    return Network(tuple(nodes))


def box_of(lo, hi):
    return Box(tuple(map(F, lo)), tuple(map(F, hi)))


def query_of(network, lo, hi, *conjunctions):
    """Each conjunction is a list of `({input: c}, {output: c}, constant)`."""
    built = tuple(
        Conjunction.build([(*row, False) for row in rows], network.input_size, network.output_size)
        for rows in conjunctions
    )
    return Query((network,), (Case(box_of(lo, hi), built),))


def proof_of(query, *trees):
    return Proof(query.network.fingerprint, query.property_hash, trees)


def absolute(weight=1.0):
    """y = weight * relu(x) + relu(-x)."""
    return dense_net([([[1.0], [-1.0]], [0.0, 0.0]), ([[weight, 1.0]], [0.0])])


def above_line(network):
    """Unsafe: `y - x + 1/5 <= 0` on [-1, 1]; for `absolute()` the left side is at least 1/5."""
    return query_of(network, [-1], [1], [({0: F(-1)}, {0: F(1)}, F(1, 5))])


def slopes(*values):
    return (Alpha(1, np.arange(len(values), dtype=np.int32), np.array(values, dtype=np.uint8)),)


BY_BETA = build_tree(
    (1, 0, 0.0, None, None), [Refutation(1, 0, (1.0,), beta=((1, 1.0),)), Refutation(2, 0, (1.0,), beta=())]
)
BY_INPUT = build_tree((0, 0, 0.0, None, None), [Refutation(1, 0, (1.0,)), Refutation(2, 0, (3.0,))])
BY_ALPHA = single_leaf([Refutation(0, 0, (1.0,), alpha=slopes(255, 0))])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("tree", [BY_BETA, BY_INPUT, BY_ALPHA])
def test_accepts_correct_proofs(tree, exact):
    query = above_line(absolute())
    proof = proof_of(query, tree)
    report = check(proof, query, exact=exact)
    assert report.accepted and report.reason == ""
    assert (report.checked, report.failed, report.skipped) == (report.leaves, 0, 0)
    assert check(from_packed(to_packed(proof)), query).accepted


def change(tree, at, **fields):
    """The tree with the refutation at tree node `at` changed."""
    changed = [dataclasses.replace(r, **fields) if r.at == at else r for r in tree.refutations]
    return dataclasses.replace(tree, refutations=tuple(changed))


def test_missing_refutation():
    query = above_line(absolute())
    for tree in (BY_BETA, BY_INPUT, BY_ALPHA):
        for k in range(len(tree.refutations)):
            rest = tree.refutations[:k] + tree.refutations[k + 1 :]
            report = check(proof_of(query, dataclasses.replace(tree, refutations=rest)), query)
            assert (report.accepted, report.failed, report.reason) == (False, 1, "incomplete: 1 open leaf")


@pytest.mark.parametrize(
    "fields",
    [
        {"beta": ((1, -1.0),)},
        {"beta": ((1, float("nan")),)},
        {"beta": ((1, float("inf")),)},
        {"beta": ((2, 1.0),)},  # the sibling's literal
        {"beta": ((0, 1.0),)},  # the root restricts nothing
        {"beta": ((-1, 1.0),)},
        {"beta": ((7, 1.0),)},
        {"beta": ()},
        {"weights": (-1.0,)},
        {"weights": (float("nan"),)},
        {"weights": (float("inf"),)},
        {"weights": (0.0,)},
        {"weights": ()},
        {"weights": (1.0, 1.0)},
        {"conjunction": 1},
        {"conjunction": -1},
        {"alpha": (Alpha(2, np.array([0]), np.array([0])),)},  # not a pre-activation
        {"alpha": (Alpha(1, np.array([2]), np.array([0])),)},
        {"alpha": (Alpha(1, np.array([-1]), np.array([0])),)},
        {"alpha": (Alpha(1, np.array([0]), np.array([256])),)},
        {"alpha": (Alpha(1, np.array([0, 1]), np.array([0])),)},
        {"alpha": (Alpha(-1, np.array([0]), np.array([0])),)},
    ],
)
def test_wrong_refutation(fields):
    query = above_line(absolute())
    report = check(proof_of(query, change(BY_BETA, 1, **fields)), query)
    assert not report.accepted and report.reason and report.failed + report.skipped > 0


def test_legal_but_useless_slopes():
    query = above_line(absolute())
    assert not check(proof_of(query, change(BY_ALPHA, 0, alpha=slopes(0, 0))), query).accepted
    assert not check(proof_of(query, change(BY_ALPHA, 0, alpha=slopes(100, 0))), query).accepted


def test_wrong_hash_and_wrong_network():
    query, other = above_line(absolute()), above_line(absolute(0.5))  # 0.5 x - x + 0.2 < 0 at x = 1
    proof = proof_of(query, BY_BETA)
    assert check(proof, other).reason == "the proof is for another network"
    for tree in (BY_BETA, BY_INPUT, BY_ALPHA):
        assert not check(proof_of(other, tree), other).accepted
    wider = query_of(query.network, [-1], [2], [({0: F(-1)}, {0: F(1)}, F(1, 5))])
    assert check(proof, wider).reason == "the proof is for another property"
    assert (
        "no tree answers for conjunction 0 of case 0" == check(Proof(proof.network, proof.property, ()), query).reason
    )


def test_swapped_children():
    query = above_line(absolute())
    swapped = dataclasses.replace(BY_BETA, left=BY_BETA.right, right=BY_BETA.left)
    assert not check(proof_of(query, swapped), query).accepted


def test_moved_threshold():
    query = above_line(absolute())
    moved = build_tree((0, 0, 0.5, None, None), BY_INPUT.refutations)  # on [-1, 1/2] the lines are too far apart
    assert not check(proof_of(query, moved), query).accepted
    below = build_tree((0, 0, -3.0, None, None), [Refutation(2, 0, (1.0,), alpha=slopes(255, 0))])
    report = check(proof_of(query, below), query)  # the left child is empty
    assert report.accepted and report.checked == 2


def test_literal_of_no_neuron():
    query = above_line(absolute())
    for node, index in ((2, 0), (3, 0), (1, 2), (0, 1), (1, -1), (9, 0)):
        tree = build_tree((node, index, 0.0, None, None), BY_INPUT.refutations)
        report = check(proof_of(query, tree), query)
        assert not report.accepted and "literal" in report.reason


def test_clip_needs_the_flag_and_a_single_open_conjunction():
    rows = [({0: F(1)}, {}, F(1, 2)), ({}, {0: F(1)}, F(-2, 5))]  # x <= -1/2 and |x| <= 2/5
    query = query_of(absolute(), [-1], [1], rows)
    only_second = [Refutation(1, 0, (0.0, 1.0))]
    clipped = build_tree((0, 0, 0.0, None, None), only_second, clip=[True, False, False])
    for exact in (False, True):
        assert check(proof_of(query, clipped), query, exact=exact).accepted
    assert not check(proof_of(query, build_tree((0, 0, 0.0, None, None), only_second)), query).accepted
    # a second conjunction that really has a point: clipping by the first must not hide it
    both = query_of(absolute(), [-1], [1], rows, [({0: F(-1)}, {}, F(1, 2))])
    extra = (*only_second, Refutation(1, 1, (1.0,)))
    assert not check(proof_of(both, dataclasses.replace(clipped, refutations=extra)), both).accepted


def test_clip_leaves_the_query_alone():
    rows = [({0: F(1)}, {}, F(1, 2)), ({}, {0: F(1)}, F(-2, 5))]
    query = query_of(absolute(), [-1], [1], rows)
    tree = build_tree((0, 0, 0.0, None, None), [Refutation(1, 0, (0.0, 1.0))], clip=True)
    for _ in range(2):
        assert check(proof_of(query, tree), query).accepted
    assert query.cases[0].box.lo.tolist() == [-1.0] and query.cases[0].box.hi.tolist() == [1.0]


def test_refutation_at_an_ancestor_closes_the_subtree():
    query = above_line(absolute())
    deep = build_tree((0, 0, 0.0, (0, 0, -0.5, None, None), None), BY_INPUT.refutations)
    report = check(proof_of(query, deep), query)
    assert report.accepted and report.checked == 3


def test_empty_cases_and_several_cases():
    net = absolute()
    some = Conjunction.build([({0: F(-1)}, {0: F(1)}, F(1, 5), False)], 1, 1)
    empty_box = Case(box_of([1], [-1]), (some,))
    nothing = Case(box_of([-1], [1]), ())
    real = Case(box_of([-1], [1]), (some,))
    query = Query((net,), (empty_box, nothing, real))
    third = dataclasses.replace(BY_INPUT, case=2)
    assert check(proof_of(query, third), query).accepted
    assert check(proof_of(query, single_leaf(), dataclasses.replace(single_leaf(), case=1), third), query).accepted
    for trees in ((), (BY_INPUT,), (single_leaf(), dataclasses.replace(BY_INPUT, case=1))):
        assert "no tree answers" in check(proof_of(query, *trees), query).reason
    for case in (3, -1):
        assert not check(proof_of(query, third, dataclasses.replace(BY_INPUT, case=case)), query).accepted
    unconstrained = query_of(net, [-1], [1], [])
    assert not check(proof_of(unconstrained, single_leaf([Refutation(0, 0, ())])), unconstrained).accepted


def test_trees_share_the_conjunctions_of_a_case():
    row = [({0: F(-1)}, {0: F(1)}, F(1, 5))]
    query = query_of(absolute(), [-1], [1], row, row)
    second = tuple(dataclasses.replace(r, conjunction=1) for r in BY_INPUT.refutations)
    a = dataclasses.replace(BY_INPUT, conjunctions=(0,))
    b = dataclasses.replace(BY_INPUT, conjunctions=(1,), refutations=second)
    assert check(from_packed(to_packed(proof_of(query, a, b))), query).accepted
    for trees in ((a,), (b,), (a, a)):
        assert "no tree answers" in check(proof_of(query, *trees), query).reason
    wrong = dataclasses.replace(a, conjunctions=(0, 1))  # claims more than it refutes
    assert not check(proof_of(query, wrong), query).accepted
    for conjunctions in ((2,), (-1,)):
        assert not check(proof_of(query, a, b, dataclasses.replace(a, conjunctions=conjunctions)), query).accepted
    joint = dataclasses.replace(BY_INPUT, refutations=BY_INPUT.refutations + second)
    assert check(proof_of(query, joint), query).accepted


def test_clip_that_leaves_nothing_closes_a_leaf():
    rows = [({0: F(1)}, {}, F(1, 2)), ({0: F(-1)}, {}, F(1, 2))]  # x <= -1/2 and x >= 1/2
    query = query_of(absolute(), [-1], [1], rows)
    leaf = dataclasses.replace(single_leaf(), clip=np.array([True]))
    for exact in (False, True):
        assert check(proof_of(query, leaf), query, exact=exact).accepted
    assert not check(proof_of(query, single_leaf()), query).accepted
    other = query_of(absolute(), [-1], [1], rows, [({0: F(-1)}, {}, F(1, 2))])
    assert not check(proof_of(other, leaf), other).accepted


def test_zero_margin_is_not_a_refutation():
    query = query_of(absolute(), [-1], [1], [({0: F(-1)}, {0: F(1)}, F(0))])  # |x| - x <= 0 holds at x = 1
    for exact in (False, True):
        for tree in (BY_BETA, BY_INPUT, BY_ALPHA):
            assert not check(proof_of(query, tree), query, exact=exact).accepted


def test_nan_and_overflow_close_nothing():
    for value in (float("nan"), 1e200, 1e308, float("inf")):
        net = dense_net([([[value], [-1.0]], [0.0, 0.0]), ([[value, 1.0]], [0.0])])
        query = query_of(net, [-1], [1], [({}, {0: F(-1)}, F(1, 5))])
        for tree in (BY_BETA, BY_INPUT, BY_ALPHA):
            assert not check(proof_of(query, tree), query).accepted


def test_rounding_is_accounted_for():
    """y = relu(1e16 x + 1) - relu(1e16 x) is 1 at x = 1, but float64 says 0."""
    net = dense_net([([[1e16], [1e16]], [1.0, 0.0]), ([[1.0, -1.0]], [0.0])])
    leaf = single_leaf([Refutation(0, 0, (1.0,))])
    unsafe = query_of(net, [1], [1], [({}, {0: F(-1)}, F(1, 2))])  # y >= 1/2 is true
    safe = query_of(net, [1], [1], [({}, {0: F(1)}, F(-1, 2))])  # y <= 1/2 is false
    assert net(np.ones((1, 1)))[0, 0] == 0.0
    assert not check(proof_of(unsafe, leaf), unsafe).accepted
    assert not check(proof_of(unsafe, leaf), unsafe, exact=True).accepted
    assert not check(proof_of(safe, leaf), safe).accepted
    assert "too large" in check(proof_of(safe, leaf), safe, exact=True).reason  # refused rather than rounded


def test_coefficients_are_rounded_decimals():
    """x / 10 <= 1 / 10 exactly at x = 1; the nearest doubles must not decide."""
    net = dense_net([([[1.0]], [0.0])])
    for a, b in ((F(1, 10), F(1, 10)), (F(1, 3), F(1, 3)), (F(7, 100), F(7, 100))):
        query = query_of(net, [1], [1], [({}, {0: a}, -b)])
        assert not check(proof_of(query, single_leaf([Refutation(0, 0, (1.0,))])), query).accepted


def test_spent_budget_is_not_acceptance():
    query = above_line(absolute())
    report = check(proof_of(query, BY_INPUT), query, Budget.seconds(0))
    assert not report.accepted and report.skipped == 2 and report.reason == "timeout"


def test_unknown_operator():
    class Cube(Nonlinear):
        kind = "Cube"

        def apply(self, xs):
            return xs[0] ** 3

    query = above_line(dense_net([([[1.0]], [0.0]), ([[1.0]], [0.0])], Cube()))
    report = check(proof_of(query, single_leaf([Refutation(0, 0, (1.0,))])), query)
    assert not report.accepted and "Cube" in report.reason and report.skipped == 1
    with pytest.raises(ProofError):
        Enclosure(query.network)


# ---- random networks and proofs ------------------------------------------------------------------


def smooth_ops():
    smooth = pytest.importorskip("mucg4.ops.smooth")
    return [smooth.SIGMOID, smooth.TANH]


def random_network(rng, ops):
    """A few dense layers, sometimes with a skip connection or a concatenation."""
    size = int(rng.integers(1, 4))
    nodes = [Node(None, (), "x", (size,))]
    for k in range(int(rng.integers(1, 4))):
        width, last = int(rng.integers(2, 6)), len(nodes) - 1
        w = rng.normal(size=(width, nodes[last].size))
        nodes.append(Node(Dense(w, rng.normal(size=width) / 2), (last,), f"z{k}", (width,)))
        nodes.append(Node(ops[int(rng.integers(len(ops)))], (last + 1,), f"h{k}", (width,)))
        extra = rng.random()
        if extra < 0.25:
            signs = (1.0, float(rng.choice([-1.0, 1.0])))
            nodes.append(Node(Sum(signs), (last + 2, last + 1), f"s{k}", (width,)))
        elif extra < 0.4:
            nodes.append(
                Node(Concat((width, nodes[last].size)), (last + 2, last), f"c{k}", (width + nodes[last].size,))
            )
    last = len(nodes) - 1
    nodes.append(Node(Dense(rng.normal(size=(2, nodes[last].size)), rng.normal(size=2)), (last,), "y", (2,)))
    return Network(tuple(nodes))


def random_query(rng, network, points, edges=(-0.02, 0.02, 0.1, 0.3)):
    """One or two conjunctions near the edge of being satisfiable; also which points are unsafe."""
    n = network.input_size
    lo, hi = -rng.random(n).round(3), rng.random(n).round(3)
    x = lo + (hi - lo) * rng.random((points, n))
    corner = rng.random((points, n)) < 0.2
    x = np.where(corner, np.where(rng.random((points, n)) < 0.5, lo, hi), x)
    y, unsafe, conjunctions = network(x), np.zeros(points, dtype=bool), []
    for _ in range(int(rng.integers(1, 3))):
        rows, holds = [], np.ones(points, dtype=bool)
        for _ in range(int(rng.integers(1, 3))):
            cx, cy = rng.normal(size=n).round(2) * (rng.random() < 0.3), rng.normal(size=2).round(2)
            g = x @ cx + y @ cy
            c = round(float(-g.min() + (g.max() - g.min()) * rng.choice(edges)), 4)
            rows.append((dict(enumerate(map(F, cx))), dict(enumerate(map(F, cy))), F(c)))
            holds &= g + c <= -1e-9
        conjunctions.append(rows)
        unsafe |= holds
    return query_of(network, [F(v) for v in lo], [F(v) for v in hi], *conjunctions), bool(unsafe.any())


def random_nested(rng, network, lo, hi, depth):
    if depth == 0 or rng.random() < 0.1:
        return None
    nodes = [0, *network.pre_activations]
    node = 0 if rng.random() < 0.6 else int(rng.choice(nodes))
    index = int(rng.integers(network.nodes[node].size))
    if node:
        t = 0.0 if rng.random() < 0.8 else float(rng.normal() / 4)
        return (node, index, t, *(random_nested(rng, network, lo, hi, depth - 1) for _ in range(2)))
    t = float(lo[index] + (hi[index] - lo[index]) * rng.choice([0.3, 0.5, 0.5, 0.6]))
    low, high = lo.copy(), hi.copy()
    high[index] = low[index] = t
    sides = [random_nested(rng, network, lo, high, depth - 1), random_nested(rng, network, low, hi, depth - 1)]
    return (node, index, t, *sides)


def random_tree(rng, network, case, depth):
    """A random tree with legal refutations of every conjunction at most of its nodes."""
    bare = build_tree(random_nested(rng, network, case.box.lo, case.box.hi, depth))
    parents, refutations = bare.parents(), []
    for at in range(len(bare)):
        if bare.left[at] >= 0 and rng.random() < 0.7:
            continue
        path, k = [], at
        while k > 0:
            path.append(k)
            k = int(parents[k])
        for q, conjunction in enumerate(case.conjunctions):
            for chosen in range(len(conjunction)):
                weights = np.eye(len(conjunction))[chosen] + (rng.random() < 0.3) * rng.random(len(conjunction))
                beta = [(k, float(rng.random())) for k in path if rng.random() < 0.3]
                alpha = []
                if rng.random() < 0.3:
                    node = int(rng.choice(network.pre_activations))
                    index = np.flatnonzero(rng.random(network.nodes[node].size) < 0.5)
                    alpha = [Alpha(node, index.astype(np.int32), rng.integers(0, 256, len(index)).astype(np.uint8))]
                for b in (beta, ()):
                    refutations.append(Refutation(at, q, tuple(weights.tolist()), tuple(alpha), tuple(b)))
    flags = {"refresh": rng.random(len(bare)) < 0.8, "clip": rng.random(len(bare)) < 0.5}
    return dataclasses.replace(bare, refutations=tuple(refutations), **flags)


SHORT = [RELU, RELU, TwoPiece(0.125, 1.0), TwoPiece(-1.0, 1.0), TwoPiece(-0.5, 0.25)]
PIECES = [RELU, RELU, TwoPiece(0.1, 1.0), TwoPiece(-1.0, 1.0), TwoPiece(-0.5, 0.25)]


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("seed", range(60))
def test_an_unsafe_query_has_no_accepted_proof(seed, smooth):
    rng = np.random.default_rng([seed, smooth])
    unsafe = False
    while not unsafe:
        network = random_network(rng, PIECES + (smooth_ops() if smooth else []))
        query, unsafe = random_query(rng, network, 2000, edges=(-0.3, -0.02, -0.005, 0.02))
    for depth in (1, 3, 5, 6):
        tree = random_tree(rng, network, query.cases[0], depth)
        report = check(proof_of(query, tree), query)
        assert not report.accepted
        assert report.checked + report.failed == report.leaves


@pytest.mark.parametrize("smooth", [False, True])
def test_many_safe_queries_are_accepted(smooth):
    accepted = 0
    for seed in range(40):
        rng = np.random.default_rng([seed, smooth])
        network = random_network(rng, PIECES + (smooth_ops() if smooth else []))
        query, unsafe = random_query(rng, network, 2000)
        if not unsafe:
            tree = random_tree(rng, network, query.cases[0], 7)
            accepted += check(proof_of(query, tree), query).accepted
    assert accepted >= 5


@pytest.mark.parametrize("seed", range(25))
def test_exact_and_float_agree(seed):
    rng = np.random.default_rng(1000 + seed)
    network = random_network(rng, SHORT)
    query, _ = random_query(rng, network, 500)
    proof = proof_of(query, random_tree(rng, network, query.cases[0], 3))
    assert check(proof, query) == check(proof, query, exact=True)


def swept(network, lo, hi, refresh, exact=False):
    enclosure = (
        ExactEnclosure(network, [box_of(a, b) for a, b in zip(lo, hi, strict=True)]) if exact else Enclosure(network)
    )
    far = np.full((len(lo), enclosure.width), np.inf)
    low, up = -far, far
    box = enclosure.numbers(lo), enclosure.numbers(hi)
    root = np.ones(len(lo), dtype=bool)
    frame, empty = enclosure.sweep(box, low, up, root & refresh, root)
    assert not empty.any()
    return enclosure, frame, low, up


@pytest.mark.parametrize("refresh", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_hulls_contain_the_points_and_agree(seed, refresh):
    rng = np.random.default_rng(2000 + seed)
    network = random_network(rng, SHORT)
    lo = rng.normal(size=(3, network.input_size)).round(2)
    hi = lo + rng.random(lo.shape).round(2)
    _, frame, low, up = swept(network, lo, hi, refresh)
    _, exact_frame, exact_low, exact_up = swept(network, lo, hi, refresh, exact=True)
    assert np.allclose(low, exact_low, atol=1e-9) and np.allclose(up, exact_up, atol=1e-9)
    for b in range(3):
        for k, value in enumerate(network.values(lo[b] + (hi[b] - lo[b]) * rng.random((300, lo.shape[1])))):
            for own in (frame, exact_frame):
                assert np.all(value >= own.lower[k][b] - 1e-12) and np.all(value <= own.upper[k][b] + 1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_rows_stay_below_with_any_slopes(seed):
    rng = np.random.default_rng(3000 + seed)
    network = random_network(rng, PIECES + smooth_ops())
    last = len(network.nodes) - 1
    lo = rng.normal(size=(1, network.input_size))
    hi = lo + rng.random(lo.shape)
    enclosure, frame, _, _ = swept(network, lo, hi, True)
    coefficients = rng.normal(size=(8, network.output_size))
    rows = Rows(np.zeros(8, dtype=int), {last: coefficients}, np.zeros(8), np.zeros(8))
    for k, lines in frame.lines.items():
        any_slope = rng.uniform(*lines.reach, size=(8, network.nodes[k].size))
        rows.slopes[k] = np.where(lines.free, any_slope, lines.low)
    value = enclosure.minimum(frame, enclosure.pull(frame, rows, last))
    points = lo + (hi - lo) * rng.random((2000, lo.shape[1]))
    assert np.all(value <= (network(points) @ coefficients.T).min(axis=0) + 1e-12)


def test_smooth_lines_are_sound_and_tight():
    rng = np.random.default_rng(7)
    for op in smooth_ops():
        lo = np.concatenate([rng.normal(size=300) * 4, [-800.0, -50.0, 0.0, 30.0, -1e-9, -3.0]])[None, :]
        hi = lo + np.concatenate([rng.random(300) * rng.choice([1e-6, 0.1, 1, 10], 300), [1600, 100, 5, 1, 2e-9, 0]])
        lines, flo, fhi = enclose(op, [lo], [hi])
        proposed = op.relax([lo], [hi])
        for s in np.linspace(0, 1, 401):
            z = lo + s * (hi - lo)
            f = op.apply([z])
            assert np.all(lines.low * z + lines.low_offset <= f + 1e-15) and np.all(flo <= f)
            assert np.all(lines.up * z + lines.up_offset >= f - 1e-15) and np.all(fhi >= f)
        assert np.all(lines.low_offset >= proposed.lower_offset - 1e-10)
        assert np.all(lines.up_offset <= proposed.upper_offset + 1e-10)


def test_infinite_boxes_of_smooth_operators_close_nothing():
    for op in smooth_ops():
        lines, _, _ = enclose(op, [np.array([[-np.inf]])], [np.array([[np.inf]])])
        low, up = lines.low * -1e9 + lines.low_offset, lines.up * 1e9 + lines.up_offset
        assert not low[0, 0] > -1 and not up[0, 0] < 1


@pytest.mark.parametrize("seed", range(10))
def test_batch_size_does_not_matter(seed, monkeypatch):
    rng = np.random.default_rng(4000 + seed)
    network = random_network(rng, PIECES)
    query, _ = random_query(rng, network, 500)
    proof = proof_of(query, random_tree(rng, network, query.cases[0], 6))
    whole = check(proof, query)
    monkeypatch.setattr(check_module, "BATCH", 3)
    monkeypatch.setattr(enclose_module, "CELLS", 8)
    monkeypatch.setattr(enclose_module, "UNIT_CELLS", 4)
    few = check(proof, query)
    assert (whole.accepted, whole.checked, whole.failed) == (few.accepted, few.checked, few.failed)
