"""Relations, neuron maps and translated trees, on hand-made networks and on public compressed ones."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from handmade import chain, one, random_layers
from hypothesis import given, settings
from hypothesis import strategies as st

from mucg4.lab.compress import compress
from mucg4.model.network import Network, Node
from mucg4.model.proof import Alpha, Proof, Refutation, Tree
from mucg4.model.verdict import RELATIONS
from mucg4.ops.affine import Dense, Scale, Sum
from mucg4.ops.conv import Conv, Window
from mucg4.ops.piecewise import RELU
from mucg4.relate.align import Alignment, by_position
from mucg4.reuse.relation import match, relate, relation_of, translate
from mucg4.store.store import Store

SIZES = (5, 40, 40, 40, 3)


def layers(seed=0, sizes=SIZES):
    return [(w / np.sqrt(w.shape[1]), b * 0.3) for w, b in random_layers(seed, sizes)]


def change(base, edit, biases=False):
    random = np.random.default_rng(11)
    return [(edit(w, random), edit(b, random) if biases else b) for w, b in base]


def permuted(base, seed=3):
    random = np.random.default_rng(seed)
    out, before, orders = [], np.arange(base[0][0].shape[1]), []
    for depth, (w, b) in enumerate(base):
        order = random.permutation(len(b)) if depth + 1 < len(base) else np.arange(len(b))
        out.append((w[order][:, before], b[order]))
        orders.append(order)
        before = order
    return out, orders


def without(base, gone=(1, 7, 20), zero=False, bias=0.0):
    """Hidden neurons removed, or their rows and columns set to zero."""
    out = []
    kept = np.setdiff1d(np.arange(base[0][0].shape[0]), gone)
    for depth, (w, b) in enumerate(base):
        w, b = w.copy(), b.copy()
        if depth:
            w = w if zero else w[:, kept]
            if zero:
                w[:, list(gone)] = 0
        if depth + 1 < len(base):
            if zero:
                w[list(gone)] = 0
                b[list(gone)] = bias
            else:
                w, b = w[kept], b[kept]
        out.append((w, b))
    return out, kept


def rounded(bits, axis=None):
    def edit(w, random):
        step = np.abs(w).max(axis=axis, keepdims=axis is not None) / (2 ** (bits - 1) - 1)
        return np.rint(w / step) * step

    return edit


def prune(share):
    return lambda w, random: np.where(np.abs(w) < np.quantile(np.abs(w), share), 0, w)


def bf16(w, random):
    return (w.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


CHANGES = {
    "fp16": ("quantised", "fp16", lambda w, random: w.astype(np.float16)),
    "bf16": ("quantised", "bf16", bf16),
    "int8": ("quantised", "int8 per tensor", rounded(8)),
    "int4": ("quantised", "int4 per tensor", rounded(4)),
    "int2": ("quantised", "int2 per tensor", rounded(3)),
    "int8 rows": ("quantised", "int8 per channel", rounded(8, 1)),
    "int8 columns": ("quantised", "int8 per channel", rounded(8, 0)),
    "int4 rows": ("quantised", "int4 per channel", rounded(4, 1)),
    "prune30": ("pruned-weights", "zero rate 0.30", prune(0.3)),
    "prune80": ("pruned-weights", "zero rate 0.80", prune(0.8)),
    "prune30, tuned": (
        "pruned-weights",
        "the rest moved by 0.001",
        lambda w, random: prune(0.3)(w, random) * (1 + 1e-3 * random.normal(size=w.shape)),
    ),
    "tune": ("fine-tuned", "distance 0.01", lambda w, random: w * (1 + 1e-2 * random.normal(size=w.shape))),
    "rounding": ("re-serialised", "rounding", lambda w, random: w * (1 + 6e-8 * random.normal(size=w.shape))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_weights_are_recognised(name):
    relation, detail, edit = CHANGES[name]
    old, new = chain(layers(), np.float64), chain(change(layers(), edit), np.float32)
    if name == "rounding":
        new = chain(change(layers(), edit), np.float64)
    found = match(old, new)
    assert found.relation == relation in RELATIONS
    assert detail in found.detail
    assert found.alignment is not None
    for neurons in found.alignment.neurons.values():
        there = np.flatnonzero(neurons >= 0)  # rounding and pruning may leave a neuron without readers
        assert np.array_equal(neurons[there], there) and len(there) > 0.5 * len(neurons)


@pytest.mark.parametrize("name", [n for n in CHANGES if n != "prune80"])
def test_changes_of_weights_are_recognised_behind_a_permutation(name):
    relation, _, edit = CHANGES[name]
    moved, orders = permuted(layers())
    found = match(chain(layers(), np.float64), chain(change(moved, edit), np.float64))
    assert found.relation == ("permuted" if relation == "re-serialised" else relation)
    if relation != "re-serialised":
        assert "neurons permuted" in found.detail
    right = [np.mean(found.alignment.neurons[1 + 2 * k] == np.argsort(o)) for k, o in enumerate(orders[:-1])]
    assert min(right) > 0.8


def test_identical_and_reserialised():
    network = chain(layers())
    network = replace(network, source_hash="a")
    assert match(network, network).relation == "identical"
    assert match(network, replace(network, source_hash="b")).relation == "re-serialised"
    assert match(network, network).alignment.trivial


def test_permuted_neurons_are_mapped_exactly():
    moved, orders = permuted(layers())
    old, new = chain(layers()), chain(moved)
    found = match(old, new)
    assert (found.relation, found.detail) == ("permuted", "")
    x = np.random.default_rng(0).normal(size=(6, 5))
    ours, theirs = old.values(x), new.values(x)
    for node, neurons in found.alignment.neurons.items():
        assert np.allclose(ours[node], theirs[found.alignment.nodes[node]][:, neurons])


def test_removed_neurons_are_absent_and_inactive():
    fewer, kept = without(layers())
    found = match(chain(layers()), chain(fewer))
    assert (found.relation, found.detail) == ("pruned-neurons", "9 of 120 removed")
    for node in (1, 2, 3, 4, 5, 6):
        neurons = found.alignment.neurons[node]
        assert np.array_equal(np.flatnonzero(neurons >= 0), kept)
        assert np.array_equal(neurons[kept], np.arange(37))
        assert np.array_equal(np.flatnonzero(found.alignment.phase[node]), [1, 7, 20])
        assert set(found.alignment.phase[node][[1, 7, 20]]) == {-1}


@pytest.mark.parametrize("bias", [0.0, -1.0])
@pytest.mark.parametrize("tuned", [0.0, 1e-4])
def test_zeroed_neurons_are_found(bias, tuned):
    zeroed, _ = without(layers(), zero=True, bias=bias)
    zeroed = [(w * (1 + tuned * np.random.default_rng(0).normal(size=w.shape)), b) for w, b in zeroed]
    found = match(chain(layers()), chain(zeroed))
    assert found.relation == "pruned-neurons" and found.detail.startswith("9 of 120 zeroed")
    assert np.array_equal(np.flatnonzero(found.alignment.neurons[3] < 0), [1, 7, 20])
    assert set(found.alignment.phase[3][[1, 7, 20]]) == {-1}


def test_a_constant_active_neuron_has_a_positive_phase():
    base = change(layers(), lambda w, random: w.copy(), biases=True)
    base[1][0][4] = 0.0
    base[1][1][4] = 0.5
    found = match(chain(layers()), chain(base))
    assert found.relation == "pruned-weights"
    assert found.alignment.phase[3][4] == 1 and np.count_nonzero(found.alignment.phase[3]) == 1


def test_removed_and_permuted_at_once():
    fewer, kept = without(layers())
    moved, orders = permuted(fewer)
    found = match(chain(layers()), chain(moved))
    assert found.relation == "pruned-neurons" and "permuted" in found.detail
    assert np.array_equal(found.alignment.neurons[3][kept], np.argsort(orders[1]))


@pytest.mark.parametrize("seed", range(4))
def test_other_networks_are_unrelated(seed):
    found = match(chain(layers(seed)), chain(layers(seed + 10)))
    assert (found.relation, found.alignment) == ("unrelated", None)
    for sizes in ((4, 40, 40, 40, 3), (5, 40, 40, 3), (5, 40, 40, 40, 4), (5, 40, 20, 40, 3)):
        assert match(chain(layers(seed)), chain(layers(seed, sizes))).relation == "unrelated"


def with_scale(base):
    """The same function with the second layer's rows scaled by a separate node."""
    plain = chain(base, np.float64)
    nodes = list(plain.nodes)
    factor = np.linspace(0.5, 2, 40)
    op = nodes[3].op
    nodes[3] = Node(Dense(op.weight / factor[:, None], op.offset / factor), (2,), "pre", (40,))
    nodes.insert(4, Node(Scale(factor, np.zeros(40)), (3,), "z1", (40,)))
    nodes[5:] = [Node(n.op, (k,), n.name, n.shape) for k, n in enumerate(plain.nodes[4:], 4)]
    return Network(tuple(nodes))


def test_an_additional_scale_changes_nothing():
    old, new = chain(layers(), np.float64), with_scale(layers())
    found = match(old, new)
    assert found.relation == "re-serialised"
    assert found.alignment.nodes == {0: 0, 1: 1, 2: 2, 3: 4, 4: 5, 5: 6, 6: 7}


def residual(seed=0, order=None, edit=lambda w: w):
    """Convolution, block with a skip connection, dense tail; the block's inner channels in a given order."""
    random = np.random.default_rng(seed)
    order = np.arange(6) if order is None else order
    first, inner, back = (random.normal(size=s) for s in ((4, 2, 3, 3), (6, 4, 3, 3), (4, 6, 3, 3)))
    biases = random.normal(size=4), random.normal(size=6), random.normal(size=4)

    def conv(channels, weight, bias):
        window = Window(channels, 5, 5, (3, 3), (1, 1), (1, 1, 1, 1))
        return Conv(window, edit(weight), np.repeat(bias, 25))

    dense, tail = random.normal(size=(8, 100)), random.normal(size=(3, 8))
    nodes = [
        Node(None, (), "x", (2, 5, 5)),
        Node(conv(2, first, biases[0]), (0,), "a", (4, 5, 5)),
        Node(RELU, (1,), "b", (4, 5, 5)),
        Node(conv(4, inner[order], biases[1][order]), (2,), "c", (6, 5, 5)),
        Node(RELU, (3,), "d", (6, 5, 5)),
        Node(conv(6, back[:, order], biases[2]), (4,), "e", (4, 5, 5)),
        Node(Sum((1.0, 1.0)), (1, 5), "f", (4, 5, 5)),
        Node(RELU, (6,), "g", (4, 5, 5)),
        Node(Dense(edit(dense), np.zeros(8)), (7,), "h", (8,)),
        Node(RELU, (8,), "i", (8,)),
        Node(Dense(edit(tail), np.zeros(3)), (9,), "j", (3,)),
    ]
    return Network(tuple(nodes))


def test_residual_networks_are_matched():
    order = np.array([3, 1, 0, 5, 4, 2])
    old, new = residual(), residual(order=order)
    found = match(old, new)
    assert found.relation == "permuted"
    x = np.random.default_rng(0).normal(size=(4, 50))
    ours, theirs = old.values(x), new.values(x)
    assert set(found.alignment.nodes) == {0, 1, 2, 3, 4, 6, 7, 8, 9}
    for node, neurons in found.alignment.neurons.items():
        assert np.allclose(ours[node], theirs[node][:, neurons])
    assert match(old, residual(edit=lambda w: rounded(8)(w, None))).relation == "quantised"
    assert match(old, residual(edit=lambda w: w * 1.02)).relation == "fine-tuned"
    assert match(old, residual(seed=5)).relation == "unrelated"


def test_conv_networks_of_public_methods(benchmarks):
    data = (benchmarks / "oval21_compressed" / "onnx" / "cifar_base_kw.onnx").read_bytes()
    from mucg4.read.onnx import read_network

    old = read_network(data)
    for method, word in (("permute", "permuted"), ("neurons20", "pruned-neurons"), ("int4", "quantised")):
        assert match(old, read_network(compress(data, method))).relation == word


# --- public networks -------------------------------------------------------------------------------------------

WORDS = {
    "fp": "quantised", "bf": "quantised", "int": "quantised", "qdq": "quantised", "prune": "pruned-weights",
    "neurons": "pruned-neurons", "tune": "fine-tuned", "permute": "permuted", "split": "re-serialised",
}  # fmt: skip


@pytest.mark.parametrize("family", ["acasxu_compressed", "mnist_fc_compressed", "oval21_compressed"])
def test_public_variants_get_the_right_word(benchmarks, family):
    from mucg4.read.onnx import read_network

    folder, wrong = benchmarks / family, []
    with (folder / "manifest.csv").open() as file:
        for row in csv.DictReader(file):
            old, new = (read_network((folder / row[k]).read_bytes()) for k in ("parent", "onnx"))
            found = match(old, new)
            if found.relation != WORDS[row["method"].rstrip("0123456789")]:
                wrong.append((row["onnx"], found.relation, found.detail))
    assert not wrong


def test_public_pruned_networks_get_the_right_word(benchmarks):
    from mucg4.read.onnx import read_network

    folder = benchmarks / "acasxu_pruned" / "onnx"
    for path in sorted((folder / "nets_pruned").glob("*.onnx")):
        original = folder / "nets" / (path.name.rsplit("_pruned", 1)[0] + ".onnx")
        found = match(read_network(original.read_bytes()), read_network(path.read_bytes()))
        assert found.relation == "pruned-neurons", (path.name, found.detail)
        share = int(path.stem.rsplit("_pruned", 1)[1]) / 100
        assert abs(int(found.detail.split()[0]) / 300 - share) < 0.1


def test_public_originals_are_unrelated_to_each_other(benchmarks):
    from mucg4.read.onnx import read_network

    paths = sorted((benchmarks / "acasxu_2023" / "onnx").glob("*.onnx"))[:12]
    networks = [read_network(p.read_bytes()) for p in paths]
    assert {match(a, b).relation for a in networks for b in networks if a is not b} == {"unrelated"}


# --- the property too ------------------------------------------------------------------------------------------


def query(network, width=1.0, constant=0.0):
    return one(network, [0] * 5, [width] * 5, [({}, {0: 1}, constant, False)])


@pytest.mark.parametrize(
    ("width", "constant", "relation"), [(1.0, 0.0, "identical"), (0.5, 0.0, "other-box"), (1.0, 2.0, "other-property")]
)
def test_other_properties_on_the_same_network(width, constant, relation):
    network = replace(chain(layers()), source_hash="a")
    stored = query(network)
    proof = Proof(network.fingerprint, stored.property_hash, (tree_of([]),))
    with Store(":memory:") as store:
        store.save(stored, "unsat", proof=proof)
        asked = query(network, width, constant)
        (found,) = store.related(asked)
        assert relation_of(found, asked) == relation
        assert relate(found, asked).alignment.trivial
        again = query(replace(network, source_hash="b"), width, constant)
        assert relation_of(found, again) == ("re-serialised" if relation == "identical" else relation)
        variant = query(chain(change(layers(), rounded(8))), width, 0.0)
        assert relation_of(store.related(variant)[0], variant) == "quantised"


# --- trees -----------------------------------------------------------------------------------------------------


def tree_of(rows, refutations=()):
    """Rows `(node, index, left, right)`, leaves are None; an empty list is a lone leaf."""
    rows = rows or [None]
    full = [(-1, -1, -1, -1) if r is None else r for r in rows]
    node, index, left, right = (np.array(c, dtype=np.int32) for c in zip(*full, strict=True))
    refresh = np.zeros(len(rows), dtype=bool)
    refresh[0] = True
    return Tree(node, index, np.zeros(len(rows)), left, right, refresh, np.zeros(len(rows), dtype=bool), refutations)


def alignment_of(neurons, phase=None):
    new = np.array(neurons)
    signs = np.zeros(len(new), dtype=np.int8) if phase is None else np.array(phase, dtype=np.int8)
    return Alignment({0: 0, 1: 1}, {0: np.arange(2), 1: new}, {0: np.zeros(2, dtype=np.int8), 1: signs})


def refutation(at, literals, neurons=(0, 1, 2)):
    alpha = Alpha(1, np.array(neurons, dtype=np.int32), np.array([10, 20, 30][: len(neurons)], dtype=np.uint8))
    return Refutation(at, 0, (1.0,), (alpha,), tuple((k, 0.5) for k in literals), tuple(literals))


def sample_tree():
    """Neuron 0 splits, its right side by neuron 1, whose left side by input 1."""
    rows = [(1, 0, 1, 2), None, (1, 1, 3, 4), (0, 1, 5, 6), None, None, None]
    leaves = [refutation(1, [1]), refutation(4, [2, 4]), refutation(5, [2, 3, 5]), refutation(6, [3, 6])]
    return tree_of(rows, tuple(leaves))


def test_translating_by_the_identity_changes_nothing():
    tree = sample_tree()
    assert translate(tree, alignment_of([0, 1, 2])) is tree


def test_translating_renames_neurons():
    tree = translate(sample_tree(), alignment_of([2, 0, 1]))
    assert tree.index[:4].tolist() == [2, -1, 0, 1]
    assert tree.left.tolist() == sample_tree().left.tolist()
    (alpha,) = tree.refutations[0].alpha
    assert alpha.index.tolist() == [0, 1, 2] and alpha.value.tolist() == [20, 30, 10]
    assert [r.beta for r in tree.refutations] == [r.beta for r in sample_tree().refutations]


def test_an_absent_neuron_keeps_the_subtree_with_fewer_leaves():
    tree = translate(sample_tree(), alignment_of([0, -1, 1]))
    assert tree.node.tolist() == [1, -1, -1] and tree.index.tolist() == [0, -1, -1]
    assert [r.at for r in tree.refutations] == [1, 2]  # the right leaf of neuron 1 has taken its place
    assert [r.beta for r in tree.refutations] == [((1, 0.5),), ((2, 0.5),)]
    assert [r.core for r in tree.refutations] == [(1,), (2,)]
    assert tree.refutations[0].alpha[0].index.tolist() == [0, 1]
    assert tree.refutations[0].alpha[0].value.tolist() == [10, 30]


def test_a_fixed_phase_keeps_its_side():
    tree = translate(sample_tree(), alignment_of([0, 1, 2], [0, -1, 0]))
    assert tree.node.tolist() == [1, -1, 0, -1, -1]
    assert [r.beta for r in tree.refutations][1:] == [((2, 0.5), (3, 0.5)), ((4, 0.5),)]
    tree = translate(sample_tree(), alignment_of([-1, 1, 2], [1, 0, 0]))
    assert tree.node.tolist() == [1, 0, -1, -1, -1] and tree.refresh[0]
    assert [r.at for r in tree.refutations] == [2, 3, 4]


def test_a_tree_may_shrink_to_its_root():
    tree = translate(sample_tree(), alignment_of([-1, -1, -1]))
    assert len(tree) == 1 and [r.at for r in tree.refutations] == [0]
    assert tree.refutations[0].alpha == () and tree.refutations[0].core == ()


def test_case_and_conjunctions_stay():
    tree = replace(sample_tree(), case=2, conjunctions=(1,))
    found = translate(tree, alignment_of([0, -1, 1]))
    assert (found.case, found.conjunctions) == (2, (1,))


def random_tree(random, count):
    rows, free = [None], [0]
    for _ in range(count):
        at = free.pop(int(random.integers(len(free))))
        rows[at] = (1, int(random.integers(6)), len(rows), len(rows) + 1)
        free += [len(rows), len(rows) + 1]
        rows += [None, None]
    parents = {c: k for k, r in enumerate(rows) if r for c in r[2:]}
    refutations = []
    for at in random.permutation(len(rows))[: count + 1].tolist():
        path, k = [], at
        while k in parents:
            path.append(k)
            k = parents[k]
        used = tuple(sorted(p for p in path if random.random() < 0.7))
        refutations.append(Refutation(at, 0, (1.0,), (), tuple((p, 1.0) for p in used), used))
    return tree_of(rows, tuple(refutations))


def literal_paths(tree):
    """For each refutation the literals `(node, index, side)` above it and those it uses."""
    parents = tree.parents()

    def literal(k):
        up = int(parents[k])
        return int(tree.node[up]), int(tree.index[up]), int(tree.right[up]) == k

    out = []
    for r in tree.refutations:
        path, k = set(), r.at
        while parents[k] >= 0:
            path.add(literal(k))
            k = int(parents[k])
        used = {literal(k) for k, _ in r.beta}
        assert used <= path and {literal(k) for k in r.core} == used
        out.append((path, used))
    return out


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), count=st.integers(0, 25))
def test_translated_trees_cover_and_keep_their_literals(seed, count):
    """Every translated tree is a tree (its constructor checks that), and literals stay on their paths."""
    random = np.random.default_rng(seed)
    tree = random_tree(random, count)
    neurons = np.where(random.random(6) < 0.3, -1, random.permutation(6))
    alignment = alignment_of(neurons, np.where(random.random(6) < 0.2, random.choice([-1, 1], 6), 0))
    found = translate(tree, alignment)
    assert len(found) <= len(tree)
    back = {int(n): k for k, n in enumerate(neurons) if n >= 0}
    originals = [path for path, _ in literal_paths(tree)]
    for path, _ in literal_paths(found):
        renamed = {(n, back[i], side) for n, i, side in path}
        assert any(renamed <= original for original in originals)
    live = {k for k in range(6) if neurons[k] >= 0 and alignment.phase[1][k] == 0}
    assert all(back[int(i)] in live for i in found.index[found.left >= 0])


def test_positions_of_networks_of_other_sizes_do_not_align():
    assert by_position(chain(layers()), chain(layers(0, (5, 40, 3)))) is None
    assert by_position(chain(layers()), chain(layers(0, (5, 40, 39, 40, 3)))) is None


def test_a_translated_proof_of_a_permuted_network_is_accepted():
    """End to end: the permuted network computes the same function, so its translated proof has to hold."""
    from mucg4.check.walk import check
    from mucg4.settings import Settings
    from mucg4.verify import verify

    base = layers(4, (3, 12, 12, 2))
    moved, _ = permuted(base)
    old, new = chain(base), chain(moved)
    values = old(np.random.default_rng(0).uniform(0, 1, (4000, 3)))[:, 0]
    gap = 0.05 * (values.max() - values.min())
    asked = [one(n, [0] * 3, [1] * 3, [({}, {0: 1}, float(gap - values.min()), False)]) for n in (old, new)]
    verdict = verify(asked[0], Settings(split="phase"))
    assert verdict.word == "unsat" and verdict.proof.leaves > 1
    alignment = match(old, new).alignment
    trees = tuple(translate(t, alignment) for t in verdict.proof.trees)
    moved_proof = Proof(new.fingerprint, asked[1].property_hash, trees)
    assert check(moved_proof, asked[1]).accepted
    assert not check(replace(verdict.proof, network=new.fingerprint), asked[1]).accepted
