"""The SMT engine on tiny networks: known answers, brute force, proofs for the checker, cores and their reuse."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from handmade import chain, one, random_layers

from mucg4.check.walk import check
from mucg4.errors import BudgetError, UnsupportedError
from mucg4.limits.budget import Budget
from mucg4.model.network import Network, Node
from mucg4.model.proof import Proof
from mucg4.model.query import Box, Case, Conjunction, Query, Witness
from mucg4.ops.affine import Concat, Dense, Index, Scale, Sum
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.ops.smooth import Sigmoid
from mucg4.relate.align import alignment_of
from mucg4.reuse.translate import translate
from mucg4.smt.encode import MAX_UNSTABLE, MAX_WEIGHTS, chord, constraint_rows, enclosure_of, encode, short
from mucg4.smt.relax import SmtRelaxation
from mucg4.smt.smt import SAMPLE, Core, SmtResult, refute, solve_smt
from mucg4.smt.transfer import classify, cores_of

pytest.importorskip("z3")
pytest.importorskip("onnx")

SIZES = (3, 8, 6, 2)


def gap_query(network, seed, factor, radius=1.0) -> Query:
    """Unsafe: y0 - y1 >= a threshold `factor` times the sampled range above the sampled least value."""
    n = network.input_size
    x = np.random.default_rng(seed).uniform(-radius, radius, (4000, n))
    y = network(x)
    d = y[:, 0] - y[:, 1]
    threshold = Fraction(float(d.min() + factor * (d.max() - d.min())))
    return one(network, [-radius] * n, [radius] * n, [({}, {0: -1, 1: 1}, threshold, False)])


def assert_proved(query: Query, trees) -> None:
    report = check(Proof(query.network.fingerprint, query.property_hash, tuple(trees)), query)
    assert report.accepted, report.reason


def decide(query: Query) -> str:
    """The verdict word, with the evidence checked."""
    found = solve_smt(query)
    if isinstance(found, Witness):
        return "sat"
    assert_proved(query, found)
    return "unsat"


ABSOLUTE = [(np.array([[1.0], [-1.0]]), np.zeros(2)), (np.array([[1.0, 1.0]]), np.zeros(1))]  # y = |x|


@pytest.mark.parametrize(
    "constant, strict, word",
    [("-0.5", False, "sat"), ("0.001", False, "unsat"), ("0", False, "sat"), ("-0.001", True, "sat")],
)
def test_known_answers_of_the_absolute_value(constant, strict, word):
    # unsafe: |x| + constant <= 0 on [-1, 2]
    query = one(chain(ABSOLUTE), [-1], [2], [({}, {0: 1}, Fraction(constant), strict)])
    assert decide(query) == word


def test_a_strict_constraint_that_only_equality_meets_is_unsat_by_equality():
    query = one(chain(ABSOLUTE), [-1], [2], [({}, {0: 1}, 0, True)])  # |x| < 0
    result = refute(query)
    assert result.witness is None and result.undecided == 0 and result.uncertified == 0
    proof = Proof(query.network.fingerprint, query.property_hash, tuple(solve_smt(query)))
    assert check(proof, query).accepted


def test_a_witness_that_rounding_destroys_is_not_claimed():
    # y = x, unsafe: exactly y = 1/3, which no float32 is
    rows = [({}, {0: 1}, Fraction(-1, 3), False), ({}, {0: -1}, Fraction(1, 3), False)]
    query = one(chain([(np.eye(1), np.zeros(1))]), [0], [1], rows)
    result = refute(query)
    assert result.witness is None and result.undecided == 1
    with pytest.raises(BudgetError, match="does not confirm"):
        solve_smt(query)


def test_unsat_speaks_of_the_hull_of_bound_and_rounding():
    low = float(np.float32(0.1))  # above 0.1
    network = chain([(np.eye(1), np.zeros(1))])
    for threshold, word in ((low, "sat"), (np.nextafter(low, 1), "unsat")):  # unsafe: y >= threshold on [0, 0.1]
        query = one(network, [0], ["0.1"], [({}, {0: -1}, Fraction(float(threshold)), False)])
        result = refute(query)
        assert (result.witness is not None) == (word == "sat") and result.undecided == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("factor", [0.6, 0.99, 1.1, 1.4])
def test_random_networks_agree_with_sampling_and_the_checker(seed, factor):
    query = gap_query(chain(random_layers(seed, SIZES)), seed, factor)
    word = decide(query)
    if factor < 1:
        assert word == "sat"
    if word == "unsat":
        x = np.random.default_rng(seed + 1).uniform(-1, 1, (20000, SIZES[0]))
        conj = query.cases[0].conjunctions[0]
        assert np.all(np.any(query.network(x) @ conj.y_coeffs.T + conj.constants > 0, axis=1))


@pytest.mark.parametrize("op", [TwoPiece(-1.0, 1.0), TwoPiece(0.125, 1.0), TwoPiece(-0.5, 2.0)])
@pytest.mark.parametrize("seed", range(2))
def test_other_two_piece_functions(op, seed):
    plain = chain(random_layers(seed)).nodes
    nodes = tuple(Node(op if n.op is RELU else n.op, n.inputs, n.name, n.shape) for n in plain)
    query = gap_query(Network(nodes), seed, 1.1)
    assert_proved(query, solve_smt(query))


def residual_network(seed: int) -> Network:
    """x -> Dense -> Relu -> Dense, plus x; scaled, doubled, permuted; a Relu straight on the input too."""
    random = np.random.default_rng(seed)
    w = [random.normal(size=s) for s in ((6, 3), (3, 6), (2, 9))]
    b = [random.normal(size=s) for s in (6, 3, 2)]
    ops = [
        (Dense(w[0], b[0]), (0,), 6),
        (RELU, (1,), 6),
        (Dense(w[1], b[1]), (2,), 3),
        (Sum((1.0, -1.0)), (3, 0), 3),
        (Scale(random.normal(size=3), b[1]), (4,), 3),
        (RELU, (5,), 3),
        (RELU, (0,), 3),
        (Concat((3, 3, 3)), (6, 7, 5), 9),
        (Index(random.permutation(9), 9), (8,), 9),
        (Dense(w[2], b[2]), (9,), 2),
    ]
    nodes = [Node(None, (), "x", (3,))]
    nodes += [Node(op, inputs, f"n{i}", (size,)) for i, (op, inputs, size) in enumerate(ops)]
    return Network(tuple(nodes))


@pytest.mark.parametrize("seed", range(4))
def test_graphs_with_joins_and_shared_pre_activations(seed):
    query = gap_query(residual_network(seed), seed, 1.15)
    assert_proved(query, solve_smt(query))


def test_cases_conjunctions_and_mixed_constraints():
    network = chain(ABSOLUTE)
    one_, half = Fraction(1), Fraction(1, 2)
    above = Conjunction.build([({0: -one_}, {0: one_}, half, False)], 1, 1)  # |x| + 1/2 <= x
    below = Conjunction.build([({0: one_}, {0: one_}, half, False), ({0: -one_}, {}, -half, False)], 1, 1)
    boxes = [Box((Fraction(a),), (Fraction(b),)) for a, b in ((-1, 1), (3, 2), (-1, 2))]
    query = Query((network,), tuple(Case(box, (above, below)) for box in boxes))
    assert decide(query) == "unsat"
    sat = Conjunction.build([({0: one_}, {0: -one_}, half, False)], 1, 1)  # x + 1/2 <= |x|
    assert decide(Query((network,), (*query.cases, Case(boxes[2], (above, sat))))) == "sat"
    assert decide(Query((network,), (Case(boxes[0], ()),))) == "unsat"


@pytest.mark.parametrize("seed", range(3))
def test_the_encoding_is_the_network(seed):
    network = residual_network(seed)
    query = gap_query(network, seed, 1.0)
    e = encode(network, query.cases[0].box, Budget(), enclosure_of(network))
    x = np.random.default_rng(seed).uniform(-1, 1, (50, 3))
    values = network.values(x)
    for b in range(len(x)):
        atoms = [Fraction(v) for v in x[b].tolist()]
        for atom in e.atoms[3:]:
            z = atom.argument.constant + sum(c * atoms[a] for a, c in atom.argument.coeffs.items())
            assert atom.z_low <= z <= atom.z_high
            atoms.append(max(atom.left * z, atom.right * z))
            slope, offset = chord(atom)
            assert atoms[-1] <= slope * z + offset
        for rows, value in zip(e.rows, values, strict=True):
            ours = [float(r.constant + sum(c * atoms[a] for a, c in r.coeffs.items())) for r in rows]
            np.testing.assert_allclose(ours, value[b], rtol=1e-12, atol=1e-12)
        for (k, j), sign in e.decided.items():
            assert values[k][b, j] * sign >= -1e-12


def test_short_numbers_are_above_and_close():
    for v in np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-100, 100):
        exact = Fraction(v)
        assert exact <= short(exact) <= exact + abs(exact) / 32


@pytest.mark.parametrize("seed", range(4))
def test_cores_are_infeasible_and_irreducible(seed):
    query = gap_query(chain(random_layers(seed, SIZES)), seed, 1.1)
    result = refute(query)
    conj, enclosure = query.cases[0].conjunctions[0], enclosure_of(query.network)
    e = encode(query.network, query.cases[0].box, Budget(), enclosure)
    relaxation = SmtRelaxation(e, enclosure, constraint_rows(e, conj.exact), [False], Budget())
    assert result.witness is not None or result.cores
    for core in result.cores:
        assert relaxation.refute(core.literals, minimise=False) is not None
        for literal in core.literals:
            assert relaxation.refute([lit for lit in core.literals if lit != literal]) is None


@pytest.mark.parametrize("seed", range(4))
def test_what_is_refuted_has_no_unsafe_point(seed):
    """Random sets of literals: none that is refuted holds where a sampled point is unsafe."""
    query = gap_query(chain(random_layers(seed, SIZES)), seed, 0.9)
    conj, enclosure = query.cases[0].conjunctions[0], enclosure_of(query.network)
    e = encode(query.network, query.cases[0].box, Budget(), enclosure)
    relaxation = SmtRelaxation(e, enclosure, constraint_rows(e, conj.exact), [False], Budget())
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (20000, SIZES[0]))
    values = query.network.values(x)
    unsafe = np.all(values[-1] @ conj.y_coeffs.T + conj.constants <= 0, axis=1)
    assert unsafe.any()
    refuted = 0
    for _ in range(60):
        point = rng.integers(len(x))
        keys = [list(e.unstable)[i] for i in rng.permutation(len(e.unstable))[: rng.integers(1, 12)]]
        literals = [(k, j, 1 if values[k][point, j] >= 0 else -1) for k, j in keys]
        core = relaxation.refute(literals)
        if core is not None:
            refuted += 1
            there = np.all([sign * values[k][:, j] >= 0 for k, j, sign in core] or [np.ones(len(x), bool)], axis=0)
            assert core <= set(literals) and not np.any(there & unsafe)
    assert refuted


def rounded(layers, bits=8):
    """Per-tensor symmetric quantisation of the weights."""
    out = []
    for w, b in layers:
        step = abs(w).max() / (2 ** (bits - 1) - 1)
        out.append((np.round(w / step) * step, b))
    return out


def same_property(query: Query, network: Network) -> Query:
    return Query((network,), query.cases)


def again(first: SmtResult, original: Query, variant: Query) -> SmtResult:
    """The variant with the cores of the original's proof."""
    alignment = alignment_of(original.network, variant.network)
    assert alignment is not None
    return refute(variant, related=cores_of([translate(tree, alignment) for tree in first.trees]))


def changes(original: Query, variant: Query) -> dict[str, int]:
    alignment = alignment_of(original.network, variant.network)
    assert alignment is not None
    return classify(original.network, variant.network, alignment)


@pytest.mark.parametrize("seed", range(6))
def test_cores_survive_quantisation_and_never_change_the_answer(seed):
    layers = random_layers(seed, SIZES)
    original = gap_query(chain(layers), seed, 1.25)
    first = refute(original)
    assert first.witness is None
    for bits in (8, 4):
        variant = same_property(original, chain(rounded(layers, bits)))
        warm, scratch = again(first, original, variant), refute(variant)
        assert (warm.witness is None) == (scratch.witness is None)
        assert changes(original, variant)["numerical"] > 0
        if warm.witness is None:
            assert_proved(variant, warm.trees)
        if bits == 8:
            assert warm.held > 0.5 * warm.offered


def test_a_proof_states_the_cores_that_closed_its_leaves():
    original = gap_query(chain(random_layers(1, SIZES)), 1, 1.1)
    first = refute(original)
    assert {(c.case, c.conjunction, c.literals) for c in cores_of(first.trees)} == {
        (c.case, c.conjunction, c.literals) for c in first.cores
    }
    assert sum(c.leaves for c in cores_of(first.trees)) == sum(len(t.leaves) for t in first.trees)


def test_all_cores_hold_on_the_network_itself():
    original = gap_query(chain(random_layers(1, SIZES)), 1, 1.1)
    first = refute(original)
    warm = again(first, original, original)
    found = changes(original, original)
    assert warm.held == warm.offered == len(first.cores) and found["numerical"] == found["structural"] == 0
    assert warm.residual_leaves == warm.regions == 0 and warm.reused_leaves > 0
    assert_proved(original, warm.trees)


@pytest.mark.parametrize("removed", [False, True])
def test_cores_move_over_pruned_neurons(removed):
    layers = random_layers(2, SIZES)
    original = gap_query(chain(layers), 2, 1.3)
    (w0, b0), (w1, b1), last = layers
    keep = np.argsort(abs(w1).sum(axis=0))[2:]  # two weakest neurons of the first layer go
    if removed:
        pruned = [(w0[np.sort(keep)], b0[np.sort(keep)]), (w1[:, np.sort(keep)], b1), last]
    else:
        mask = np.isin(np.arange(len(b0)), keep).astype(float)
        pruned = [(w0 * mask[:, None], b0 * mask), (w1 * mask, b1), last]
    variant = same_property(original, chain(pruned))
    if removed:
        expected = np.where(np.isin(np.arange(len(b0)), keep), np.searchsorted(np.sort(keep), np.arange(len(b0))), -1)
        alignment = alignment_of(original.network, variant.network)
        assert alignment is not None
        np.testing.assert_array_equal(alignment.neurons[1], expected)
    warm = again(refute(original), original, variant)
    assert changes(original, variant)["structural"] > 0
    assert (warm.witness is None) == (refute(variant).witness is None)
    if warm.witness is None:
        assert_proved(variant, warm.trees)


def test_cores_follow_neurons_that_changed_places():
    layers = random_layers(1, SIZES)
    original = gap_query(chain(layers), 1, 1.1)
    (w0, b0), (w1, b1), last = layers
    order = np.random.default_rng(0).permutation(len(b0))
    variant = same_property(original, chain([(w0[order], b0[order]), (w1[:, order], b1), last]))
    warm = again(refute(original), original, variant)
    found = changes(original, variant)
    assert warm.held == warm.offered > 0 and found["numerical"] == found["structural"] == 0
    assert_proved(variant, warm.trees)


def test_wrong_cores_are_not_believed():
    query = gap_query(chain(random_layers(0, SIZES)), 0, 0.9)
    lies = [Core(0, 0, ()), Core(0, 0, ((1, 0, 1),)), Core(0, 0, ((1, 0, -1),))]
    assert isinstance(solve_smt(query, related=lies), Witness)
    e = encode(query.network, query.cases[0].box, Budget(), enclosure_of(query.network))
    many = [
        Core(0, 0, tuple(sorted((*key, sign) for key in pair)))
        for pair in combinations(e.unstable, 2)
        for sign in (1, -1)
    ]
    result = refute(query, related=many)
    assert result.witness is not None and result.offered <= max(SAMPLE, 5 * result.held) < len(many)


def test_limits_and_unknown_operators_are_named():
    wide = chain(random_layers(0, (10, 200, 200, 2)))
    with pytest.raises(UnsupportedError, match=f"{MAX_WEIGHTS} weights"):
        solve_smt(gap_query(wide, 0, 1.5))
    open_ = chain(random_layers(0, (5, MAX_UNSTABLE + 20, 2)))
    with pytest.raises(UnsupportedError, match=f"{MAX_UNSTABLE} neurons"):
        solve_smt(gap_query(open_, 0, 1.5, radius=100.0))
    smooth = chain(random_layers(0), activation=("Sigmoid", Sigmoid()))
    with pytest.raises(UnsupportedError, match="Sigmoid"):
        solve_smt(gap_query(smooth, 0, 1.5))


def test_the_budget_is_respected():
    query = gap_query(chain(random_layers(0, SIZES)), 0, 1.1)
    with pytest.raises(BudgetError, match="timeout"):
        solve_smt(query, Budget.seconds(0))
    stopped = Budget()
    stopped.interrupted = "interrupted"
    with pytest.raises(BudgetError, match="interrupted"):
        solve_smt(query, stopped)
