"""Networks whose neurons were split into opposite pairs are read as what they were."""

from __future__ import annotations

import numpy as np
import pytest
from effort import effort
from handmade import model_bytes, random_layers

from mucg4.check.walk import check
from mucg4.gate.runtime import Runtime
from mucg4.model.query import Query
from mucg4.model.verdict import Safe
from mucg4.read.onnx import read_network
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify
from unit.search.test_phases import hard_query
from unit.search.test_phases import layers as hard_layers


def split_layer(layers, at, chosen, shift=0.3, scale=1.0, rest="whole"):
    """Layer `at` as two: neurons `chosen` as relu(z - shift) - relu(shift - z) + shift, the others as they are.

    `scale` is that of the negative part; `rest` "whole" passes the other neurons through, "pairs" makes pairs of
    them too, shifted far enough to be stable.
    """
    w, b = (v.astype(np.float32).astype(np.float64) for v in layers[at])
    rows, offsets, merge = [], [], np.zeros((len(b), 2 * len(b)))
    moved = np.zeros(len(b))
    for i in range(len(b)):
        if i in chosen or rest == "pairs":
            moved[i] = shift if i in chosen else 40.0
            near = np.float64(np.float32(b[i] - moved[i]))
            merge[i, len(rows)], merge[i, len(rows) + 1] = 1.0, -1.0 / scale
            rows += [w[i], -scale * w[i]]
            offsets += [near, -scale * near]
        else:
            merge[i, len(rows)] = 1.0
            rows.append(w[i])
            offsets.append(b[i])
    split = np.array(rows), np.array(offsets)
    return [*layers[:at], split, (merge[:, : len(rows)], moved), *layers[at + 1 :]]


def read(layers, **options):
    return read_network(model_bytes(layers, **options))


@pytest.mark.parametrize("scale", [1.0, 0.25, 8.0])
@pytest.mark.parametrize("rest", ["whole", "pairs"])
@pytest.mark.parametrize("at", [0, 1])
def test_a_split_network_is_read_as_its_base(at, rest, scale):
    layers = random_layers(3, (4, 9, 7, 3))
    base, split = read(layers), read(split_layer(layers, at, {0, 3, 6}, 0.3, scale, rest))
    assert split.signature == base.signature
    for a, b in zip(base.nodes[1:], split.nodes[1:], strict=True):
        for name, value in a.op.parameters().items():
            np.testing.assert_allclose(b.op.parameters()[name], value, atol=2e-6 * (40 if rest == "pairs" else 1))
    x = np.random.default_rng(0).uniform(-2, 2, size=(100, 4))
    np.testing.assert_allclose(split(x), Runtime(split).outputs(x), atol=1e-4)


def test_every_split_layer_is_folded():
    layers = random_layers(1, (3, 6, 6, 6, 2))
    split = layers
    for at in (2, 1, 0):
        split = split_layer(split, at, {1, 2, 5})
    assert len(read(split).nodes) == len(read(layers).nodes)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_pair_layer_that_stands_behind_its_layer_leaves_nothing(scale):
    """A layer of its own for the pairs, of unit rows: put together it is the identity, up to a shift that goes back."""
    layers = random_layers(7, (4, 9, 7, 3))
    unit = (np.eye(7), np.zeros(7))
    added = split_layer([*layers[:2], unit], 2, {0, 3, 6}, 0.5, scale)[2:]
    base, split = read(layers), read([*layers[:2], *added, layers[2]], linear={1})
    assert split.fingerprint == base.fingerprint
    assert all(getattr(n.op, "offset_magnitude", None) is None for n in split.nodes)
    scaled = read([*layers[:2], (np.diag(np.linspace(0.5, 1.5, 7)), np.ones(7)), layers[2]], linear={1})
    assert len(scaled.nodes) == len(base.nodes)  # and factors go into the layer before them
    x = np.random.default_rng(0).uniform(-2, 2, size=(100, 4))
    np.testing.assert_allclose(scaled(x), Runtime(scaled).outputs(x), atol=1e-4)


@pytest.mark.parametrize("change", ["weight", "offset", "merge", "scale"])
def test_what_is_no_exact_pair_stays(change):
    layers = split_layer(random_layers(2, (4, 6, 2)), 0, {1, 4}, scale=3.0 if change == "scale" else 1.0)
    (w, b), (m, c) = (tuple(v.copy() for v in layer) for layer in layers[:2])
    if change == "weight":
        w[2, 0] = np.nextafter(np.float32(w[2, 0]), np.float32(9))
    if change == "offset":
        b[2] = np.nextafter(np.float32(b[2]), np.float32(9))
    if change == "merge":
        m[1, 2] = -0.75
    if change == "scale":
        w[2] = np.float32(w[2])
    network = read([(w, b), (m, c), *layers[2:]])
    assert len(network.nodes) == 6
    assert network.nodes[1].size == 8


def test_a_neuron_that_is_passed_through_needs_a_rectifier():
    """relu(z) is not z: without a ReLU behind, only the pairs could be folded."""
    layers = split_layer(random_layers(4, (3, 5)), 0, {0, 2})
    assert len(read(layers).nodes) == 4
    pairs = split_layer(random_layers(4, (3, 5)), 0, {0, 2}, rest="pairs")
    assert len(read(pairs).nodes) == 2


def test_a_passed_neuron_with_an_offset_or_a_negative_sign_stays():
    for sign, offset in ((-1.0, 0.0), (1.0, 0.5)):
        layers = split_layer(random_layers(5, (3, 5, 2)), 0, {0, 2})
        (m, c) = (v.copy() for v in layers[1])
        m[1] *= sign
        c[1] += offset
        assert len(read([layers[0], (m, c), *layers[2:]]).nodes) == 6


@pytest.mark.parametrize("activation", ["LeakyRelu", "Abs"])
def test_other_functions_of_two_pieces(activation):
    layers = split_layer(random_layers(6, (3, 5)), 0, {0, 2}, rest="pairs")
    network = read(layers, activation=activation)
    assert len(network.nodes) == 2
    x = np.random.default_rng(1).uniform(-2, 2, size=(50, 3))
    np.testing.assert_allclose(network(x), Runtime(network).outputs(x), atol=1e-4)


def test_a_proof_of_the_base_serves_the_split_network():
    sizes = (3, 24, 24, 2)
    cases = hard_query(0, sizes).cases
    base = Query((read(hard_layers(0, sizes)),), cases)
    variant = Query((read(split_layer(hard_layers(0, sizes), 0, {1, 5, 20})),), cases)
    with Store(":memory:") as store:
        first = verify(base, Settings(workers=1), store, effort())
        verdict = verify(variant, Settings(workers=1), store, effort())
    assert isinstance(first, Safe) and isinstance(verdict, Safe)
    assert verdict.statistics.stored_leaves > 1 and verdict.statistics.reused_share == 1.0
    assert check(verdict.proof, variant).accepted
