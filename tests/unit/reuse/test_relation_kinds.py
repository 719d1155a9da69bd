"""Every way in which a network comes back is recognised, alone and combined, and the proof of its parent serves it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from handmade import model_bytes

from mucg4.check.walk import check
from mucg4.lab.compress import compress
from mucg4.model.network import Network, Node
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Box, Query
from mucg4.ops.affine import Dense
from mucg4.ops.conv import Conv, Window
from mucg4.ops.piecewise import RELU, TwoPiece
from mucg4.read.onnx import read_network
from mucg4.relate.layers import form_of
from mucg4.reuse.relation import Match, match, relate, translate
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify
from unit.read.test_unsplit import split_layer
from unit.search.test_phases import hard_query
from unit.search.test_phases import layers as hard_layers

SIZES, SEED = (5, 24, 24, 2), 1
METHODS = {  # relation, what the detail tells, and the share of leaves that have to hold
    "reserialise": ("re-serialised", "", 1.0),
    "matmul": ("re-serialised", "", 1.0),
    "split20": ("re-serialised", "", 1.0),
    "split100": ("re-serialised", "", 1.0),
    "permute": ("permuted", "", 1.0),
    "permute+split40": ("permuted", "", 1.0),
    "split40+permute": ("permuted", "", 1.0),
    "split40+matmul+reserialise": ("re-serialised", "", 1.0),
    "tune4": ("fine-tuned", "distance", 0.9),
    "permute+tune4": ("fine-tuned", "neurons permuted", 0.9),
    "tune4+split50": ("fine-tuned", "distance", 0.9),
    "fp16": ("quantised", "fp16", 0.9),
    "int8+split50": ("quantised", "int8 per tensor", 0.5),
    "qdq8": ("quantised", "int8 per channel", 0.5),
    "permute+int8": ("quantised", "neurons permuted", 0.5),
    "prune10": ("pruned-weights", "zero rate 0.1", 0.5),
    "prune10+int8": ("quantised", "int8", 0.5),
    "prune5+permute": ("pruned-weights", "neurons permuted", 0.5),
    "neurons5": ("pruned-neurons", "2 of 48 removed", 0.35),
    "neurons5+permute": ("pruned-neurons", "neurons permuted", 0.35),
    "neurons5+int8": ("pruned-neurons", "the rest moved", 0.35),
    "neurons5+split30": ("pruned-neurons", "2 of 48 removed", 0.35),
    "zeroed5+split30": ("pruned-neurons", "2 of 48 zeroed", 0.35),
}


@pytest.fixture(scope="module")
def parent() -> tuple[bytes, Query, Proof]:
    """A network of float32 weights, a query that needs splits, and its proof."""
    data = model_bytes(hard_layers(SEED, SIZES))
    query = Query((read_network(data),), hard_query(SEED, SIZES, 0.85).cases)
    verdict = verify(query, Settings(split="phase", workers=1), None, effort())
    assert verdict.word == "unsat" and verdict.proof.leaves > 20
    return data, query, verdict.proof


def holds(trees: tuple[Tree, ...], found: Match, query: Query) -> float:
    """The share of leaves of the translated trees that the checker accepts on the query."""
    assert found.alignment is not None
    moved = tuple(translate(t, found.alignment) for t in trees)
    report = check(Proof(query.network.fingerprint, query.property_hash, moved), query)
    return 1.0 if report.accepted else 1 - report.failed / report.proof.leaves


@pytest.mark.parametrize("method", METHODS)
def test_a_variant_is_recognised_and_its_parents_proof_serves_it(method, parent):
    relation, detail, share = METHODS[method]
    data, query, proof = parent
    variant = Query((read_network(compress(data, method, seed=1)),), query.cases)
    found = match(query.network, variant.network)
    assert found.relation == relation and detail in found.detail
    assert holds(proof.trees, found, variant) >= share
    back = match(variant.network, query.network)  # and the variant's proof would serve the parent
    assert back.relation != "unrelated" and back.alignment is not None


def test_pairs_that_are_no_exact_opposites_are_put_together_in_the_form(parent):
    """A scale that is no power of two, weights rounded after the split: no reader may fold that, a comparison may."""
    _, query, _ = parent
    layers = hard_layers(SEED, SIZES)
    third = split_layer(layers, 1, {0, 5, 11}, 0.3, 3.0)
    third[1] = tuple(np.float32(v).astype(np.float64) for v in third[1])
    bytes_of = {"scaled": model_bytes(third), "int8": compress(model_bytes(third), "int8")}
    for name, word in (("scaled", "split-neurons"), ("int8", "quantised")):
        network = read_network(bytes_of[name])
        assert len(network.nodes) > len(query.network.nodes)
        for old, new in ((query.network, network), (network, query.network)):
            found = match(old, new)
            assert "3 opposite pairs" in found.detail, (name, found)
            assert old is network or found.relation == word
        x = np.random.default_rng(0).uniform(-1, 1, size=(20, 5))
        ours, theirs = query.network.values(x), network.values(x)
        alignment = match(query.network, network).alignment
        for node, neurons in alignment.neurons.items():
            assert np.array_equal(neurons, np.arange(len(neurons)))
            if node in query.network.nonlinear:  # before, neurons that are passed through are rectified already
                assert np.allclose(ours[node], theirs[alignment.nodes[node]], atol=1e-5 if name == "scaled" else 0.3)


def scaled(layers, seed: int = 0):
    """Every hidden neuron multiplied by a factor of its own, and what reads it divided by it."""
    random, out = np.random.default_rng(seed), [(w.copy(), b.copy()) for w, b in layers]
    for k in range(len(out) - 1):
        factor = np.exp(random.uniform(-2, 2, len(out[k][1])))
        out[k] = out[k][0] * factor[:, None], out[k][1] * factor
        out[k + 1] = out[k + 1][0] / factor, out[k + 1][1]
    return out


@pytest.mark.parametrize("method, relation, share", [("", "re-serialised", 1.0), ("permute", "permuted", 1.0),
                                                     ("neurons5", "pruned-neurons", 0.35)])  # fmt: skip
def test_scaled_neurons_are_recognised(method, relation, share, parent):
    """As equalisation before quantising leaves them: multipliers of literals and rows of tightenings are scaled too."""
    _, query, proof = parent
    assert proof.trees[0].table.beta_count.any()
    data = model_bytes(scaled(hard_layers(SEED, SIZES)))
    variant = Query((read_network(compress(data, method, seed=1) if method else data),), query.cases)
    found = match(query.network, variant.network)
    assert found.relation == relation and "neurons scaled" in found.detail
    assert holds(proof.trees, found, variant) >= share
    assert found.alignment is not None and found.alignment.scale
    unscaled = replace(found, alignment=replace(found.alignment, scale={}))
    assert holds(proof.trees, unscaled, variant) < share


def test_scales_go_to_all_evidence_of_a_neuron(parent):
    """Thresholds, rows of tightenings, multipliers of literals and of cuts, to the new network and back."""
    _, query, proof = parent
    variant = read_network(model_bytes(scaled(hard_layers(SEED, SIZES))))
    there, back = match(query.network, variant), match(variant, query.network)
    assert there.alignment is not None and back.alignment is not None
    for tree in proof.trees:
        again = translate(translate(tree, there.alignment), back.alignment)
        assert np.allclose(again.table.beta, tree.table.beta, rtol=1e-4)
        assert np.allclose(again.table.multiplier, tree.table.multiplier, rtol=1e-4)
        assert np.allclose(again.threshold, tree.threshold, rtol=1e-4)
        for a, b in zip(again.tightenings, tree.tightenings, strict=True):
            assert np.allclose(a.weights, b.weights, rtol=1e-4) and np.allclose(a.beta, b.beta, rtol=1e-4)
            assert np.allclose(a.cut_weights, b.cut_weights, rtol=1e-4)


def linear_chain(layers, linear=()):
    nodes = [Node(None, (), "x", (layers[0][0].shape[1],))]
    for k, (w, b) in enumerate(layers):
        nodes.append(Node(Dense(w, b), (len(nodes) - 1,), f"z{k}", (len(b),)))
        if k + 1 < len(layers) and k not in linear:
            nodes.append(Node(RELU, (len(nodes) - 1,), f"h{k}", (len(b),)))
    return Network(tuple(nodes))


@pytest.mark.parametrize("at", [0, 1])
def test_layers_that_follow_each_other_are_one(at):
    """A converter may multiply two matrices, or write one as a product."""
    random = np.random.default_rng(at)
    base = [(w.astype(np.float64), b) for w, b in hard_layers(3, SIZES)]
    w, b = base[at]
    inner = random.normal(size=w.shape[:1] * 2)
    parts = [(np.linalg.solve(inner, w), np.linalg.solve(inner, b) + 1.0), (inner, -inner.sum(axis=1))]
    longer = linear_chain([*base[:at], *parts, *base[at + 1 :]], {at})
    shorter = linear_chain(base)
    assert len(longer.nodes) == len(shorter.nodes) + 1
    for old, new in ((longer, shorter), (shorter, longer)):
        found = match(old, new)
        assert found.relation == "re-serialised"
        x = random.uniform(-1, 1, size=(20, 5))
        ours, theirs = old.values(x), new.values(x)
        for node, neurons in found.alignment.neurons.items():
            assert np.allclose(ours[node], theirs[found.alignment.nodes[node]][:, neurons])


def image(split: bool, shift: float = 0.3) -> Network:
    """A convolution and a dense tail; the convolution's channels plain, or as pairs and a convolution of size 1."""
    random = np.random.default_rng(0)
    weight, bias = random.normal(size=(4, 2, 3, 3)), random.normal(size=4)
    dense, tail = random.normal(size=(8, 100)), random.normal(size=(3, 8))
    nodes = [Node(None, (), "x", (2, 5, 5))]

    def add(op, size):
        nodes.append(Node(op, (len(nodes) - 1,), f"n{len(nodes)}", size))

    def conv(channels, weight, bias, side):
        window = Window(channels, 5, 5, (side, side), (1, 1), (side // 2,) * 4)
        add(Conv(window, weight, np.repeat(bias, 25)), (len(weight), 5, 5))

    if split:
        chosen = [0, 2]
        moved = np.where(np.isin(np.arange(4), chosen), shift, 0.0)
        merge = np.concatenate([np.eye(4), -np.eye(4)[chosen] / 3.0]).T[:, :, None, None]
        rows, offsets = (
            np.concatenate([weight, -3.0 * weight[chosen]]),
            np.append(bias - moved, -3.0 * (bias - shift)[chosen]),
        )
        conv(2, rows, offsets, 3)
        add(RELU, (6, 5, 5))
        conv(6, merge, moved, 1)
    else:
        conv(2, weight, bias, 3)
    add(RELU, (4, 5, 5))
    add(Dense(dense, np.zeros(8)), (8,))
    add(RELU, (8,))
    add(Dense(tail, np.zeros(3)), (3,))
    return Network(tuple(nodes))


def test_split_channels_are_put_together():
    old, new = image(False), image(True)
    x = np.random.default_rng(0).normal(size=(4, 50))
    ours, theirs = old.values(x), new.values(x)
    assert np.allclose(ours[-1], theirs[-1])
    found = match(old, new)
    assert (found.relation, found.detail) == ("split-neurons", "2 opposite pairs")
    for node in old.nonlinear:
        assert np.allclose(ours[node], theirs[found.alignment.nodes[node]][:, found.alignment.neurons[node]])
    assert match(new, old).relation == "split-neurons"


def test_what_is_no_pair_stays_a_layer():
    """A neuron passed through without a rectifier behind it, an offset on it, and halves that do not fit."""
    base = hard_layers(1, SIZES)
    split = split_layer(base, 1, {0, 3}, 0.3, 3.0)
    assert len(form_of(linear_chain(split)).layers) == 3

    def with_merge(change):
        layers = [tuple(v.copy() for v in layer) for layer in split]
        change(*layers[2])
        return form_of(linear_chain(layers))

    assert len(with_merge(lambda m, c: c.__setitem__(7, 0.5)).layers) == 4
    assert len(with_merge(lambda m, c: m.__setitem__((0, 1), 0.7)).layers) == 4
    network = linear_chain(split)
    steps = [replace(n, op=TwoPiece(0.1, 1.0)) if k == 6 else n for k, n in enumerate(network.nodes)]
    assert len(form_of(Network(tuple(steps))).layers) == 4


def test_several_parents_the_nearest_wins(parent):
    """The nearest comes first, however old it is; of those alike the oldest, which is the likeliest original."""
    data, query, proof = parent
    with Store(":memory:") as store:

        def save(method):
            variant = query if method is None else Query((read_network(compress(data, method)),), query.cases)
            store.save(variant, "unsat", proof=Proof(variant.network.fingerprint, variant.property_hash, proof.trees))

        near = Query((read_network(compress(data, "tune5", seed=3)),), query.cases)
        for method in ("int4", "neurons20", "prune30", None):
            save(method)
        assert store.related(near)[0].fingerprint == query.network.fingerprint
        for method in ("tune4", "fp16"):
            save(method)
        assert store.related(near)[0].fingerprint == query.network.fingerprint
        coarse = Query((read_network(compress(data, "int4+tune5")),), query.cases)
        assert store.related(coarse)[0].distance < 1e-3


@pytest.mark.parametrize(
    ("lo", "hi", "kind"), [(-0.5, 0.5, "inside"), (-1.1, 1.1, "contains"), (-0.8, 1.2, "overlaps")]
)
@pytest.mark.parametrize("method", ["reserialise", "permute+tune5"])
def test_other_boxes_and_another_network_at_once(lo, hi, kind, method, parent):
    data, query, proof = parent
    network = read_network(compress(data, method))
    case = query.cases[0]
    asked = Query((network,), (replace(case, box=Box((Fraction(lo),) * 5, (Fraction(hi),) * 5)),))
    with Store(":memory:") as store:
        store.save(query, "unsat", proof=proof)
        (related,) = store.related(asked)
        assert related.box_relation == kind and related.same_unsafe
        found = relate(related, asked)
        assert found.relation == ("other-box" if method == "reserialise" else "fine-tuned")
        assert kind != "inside" or holds(related.proof.trees, found, asked) >= 0.9


def normalised(layers, behind: bool, folded: bool) -> bytes:
    """Dense layers with a BatchNormalization each before or `behind` the ReLU, as nodes or folded into the weights."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(5)
    layers = [(w.astype(np.float64), b.astype(np.float64)) for w, b in layers]
    nodes, tensors, at, carried = [], {}, "x", None
    for k, (weight, bias) in enumerate(layers):
        w, b = (weight, bias) if carried is None else (weight * carried[0], bias + weight @ carried[1])
        last, carried = k + 1 == len(layers), None
        scale, shift, mean, var = (random.uniform(0.5, 1.5, len(b)) for _ in range(4))
        factor = scale / np.sqrt(var + 1e-5)
        if folded and not last and not behind:
            w, b = w * factor[:, None], (b - mean) * factor + shift
        if folded and not last and behind:
            carried = factor, shift - mean * factor
        tensors |= {f"w{k}": w.T, f"b{k}": b}
        nodes += [
            helper.make_node("MatMul", [at, f"w{k}"], [f"m{k}"]),
            helper.make_node("Add", [f"m{k}", f"b{k}"], [f"z{k}"]),
        ]
        at = f"z{k}"
        if last:
            break
        norm = []
        if not folded:
            tensors |= {f"s{k}": scale, f"t{k}": shift, f"e{k}": mean, f"v{k}": var}
            norm = [("BatchNormalization", [f"s{k}", f"t{k}", f"e{k}", f"v{k}"])]
        for op, more in [("Relu", []), *norm] if behind else [*norm, ("Relu", [])]:
            nodes.append(helper.make_node(op, [at, *more], [f"{op}{k}"]))
            at = f"{op}{k}"
    ends = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s])] for n, s in (("x", SIZES[0]), (at, SIZES[-1]))
    ]
    held = [numpy_helper.from_array(v.astype(np.float32), name) for name, v in tensors.items()]
    graph = helper.make_graph(nodes, "g", *ends, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("behind", [False, True])
def test_folded_normalisations_change_nothing(behind):
    nodes, folded = (read_network(normalised(hard_layers(2, SIZES), behind, f)) for f in (False, True))
    x = np.random.default_rng(0).uniform(-1, 1, size=(20, SIZES[0]))
    assert np.allclose(nodes(x), folded(x), atol=1e-5)
    for old, new in ((nodes, folded), (folded, nodes)):
        found = match(old, new)
        assert found.relation == "re-serialised" and found.alignment.trivial
