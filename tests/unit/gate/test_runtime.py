"""The witness gate and the agreement test, on hand-made models with known values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from handmade import chain, model_bytes, one, random_layers

from mucg4.errors import InputError
from mucg4.gate.agreement import agreement
from mucg4.gate.allowance import evaluate
from mucg4.gate.runtime import Runtime
from mucg4.gate.witness import REPLAYS, legal_bounds, replay_witness, snap
from mucg4.model.network import Network, Node
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.ops.affine import Dense
from mucg4.ops.smooth import Sigmoid

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


IDENTITY = [(np.eye(1), np.zeros(1))]


@pytest.mark.parametrize("dims", [None, ["batch", 3], [1, 3]])
def test_outputs_are_flat_and_right(dims):
    network = chain(random_layers(0), dims=dims)
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    y = Runtime(network).outputs(x)
    assert y.shape == (5, 2) and y.dtype == np.float32
    np.testing.assert_allclose(y, network(x), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(Runtime(network).single(x), y, rtol=1e-6, atol=1e-6)


def test_double_models_run_in_double():
    network = chain(random_layers(0), dtype=np.float64)
    x = np.random.default_rng(1).normal(size=(2, 3))
    y = Runtime(network).outputs(x)
    assert y.dtype == np.float64
    np.testing.assert_allclose(y, network(x), rtol=1e-13)


def test_batched_run_falls_back_when_the_model_flattens_its_batch():
    helper = onnx.helper
    shape = onnx.numpy_helper.from_array(np.array([1, 2], dtype=np.int64), "shape")
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, d) for n, d in (("x", ["b", 2]), ("y", [1, 2]))]
    graph = helper.make_graph([helper.make_node("Reshape", ["x", "shape"], ["y"])], "g", info[:1], info[1:], [shape])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    nodes = (Node(None, (), "x", (2,)), Node(Dense(np.eye(2), np.zeros(2)), (0,), "y", (2,)))
    x = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(Runtime(Network(nodes, model_bytes=model.SerializeToString())).outputs(x), x)


def test_bad_models_give_one_clear_line():
    nodes = chain(IDENTITY).nodes
    for data in (b"", b"not an onnx file"):
        with pytest.raises(InputError) as error:
            Runtime(Network(nodes, model_bytes=data)).outputs(np.zeros((1, 1)))
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="does not hold"):
        Runtime(Network(nodes, model_bytes=model_bytes(random_layers(0)))).outputs(np.zeros((1, 1)))
    with pytest.raises(InputError, match="read as float64"):
        Runtime(Network(nodes, element_type="float64", model_bytes=model_bytes(IDENTITY))).outputs(np.zeros((1, 1)))


def test_two_outputs_that_were_not_read_are_noticed():
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    info = [helper.make_tensor_value_info(n, kind, [1, 1]) for n in "xab"]
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["x"], ["b"])]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:]), ir_version=8)
    model.opset_import[0].version = 13
    with pytest.raises(InputError, match="2 values, but the network has 1 outputs"):
        Runtime(Network(chain(IDENTITY).nodes, model_bytes=model.SerializeToString())).outputs(np.zeros((1, 1)))


def test_nothing_is_printed(capfd):
    runtime = Runtime(chain(random_layers(0)))
    runtime.outputs(np.zeros((1, 3)))
    with pytest.raises(InputError):
        Runtime(Network(chain(IDENTITY).nodes, model_bytes=b"junk")).outputs(np.zeros((1, 1)))
    assert capfd.readouterr() == ("", "")


def test_a_bound_that_rounds_is_met_by_its_rounding():
    query = one(chain(IDENTITY), ["-0.16247807"], ["0.1"], [({}, {0: 1}, -10, False)])
    low, high = (float(b[0]) for b in legal_bounds(query.cases[0].box))
    assert low < -0.16247807 and high > 0.1
    for x in (low, high):
        found = replay_witness(query, np.array([x]))
        assert found is not None and found.x.dtype == np.float32 and found.x[0] == x
    assert replay_witness(query, np.array([np.nextafter(np.float32(low), np.float32(-1))])) is None
    assert replay_witness(query, np.array([np.nextafter(np.float32(high), np.float32(1))])) is None


def test_double_models_meet_bounds_in_double():
    query = one(chain(IDENTITY, dtype=np.float64), ["0.1"], ["0.2"], [({}, {0: 1}, -10, False)])
    assert replay_witness(query, np.array([0.1])) is not None
    assert replay_witness(query, np.array([np.nextafter(0.1, 0)])) is None


@pytest.mark.parametrize("strict", [False, True])
def test_strict_constraints_are_strict(strict):
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, Fraction(-1, 2), strict)])  # y <= 1/2
    assert (replay_witness(query, np.array([0.5])) is None) is strict
    assert replay_witness(query, np.array([0.25])) is not None
    assert replay_witness(query, np.array([0.5000001])) is None


def test_constraint_must_hold_exactly_not_only_rounded():
    # y <= 0.1 as a decimal: float32(0.1) lies above it, though both round to the same float32
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, Fraction("-0.1"), False)])
    assert np.float32(0.1) <= np.float32(0.1)
    assert replay_witness(query, np.array([0.1])) is None
    assert replay_witness(query, np.array([np.nextafter(np.float32(0.1), np.float32(0))])) is not None


def test_constraint_must_hold_rounded_not_only_exactly():
    # y - 1 - 2**-30 < 0 holds exactly at y = 1, but float32(1 + 2**-30) is 1
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, -1 - Fraction(1, 2**30), True)])
    assert replay_witness(query, np.array([1.0])) is None
    assert replay_witness(query, np.array([0.875])) is not None


def test_constraint_must_hold_exactly_not_only_in_double():
    # y <= 1/2 - 2**-80: the nearest double of the bound is 1/2
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, Fraction(1, 2**80) - Fraction(1, 2), False)])
    assert replay_witness(query, np.array([0.5])) is None
    assert replay_witness(query, np.array([0.25])) is not None


def test_mixed_constraints_any_case_any_conjunction():
    network = chain([(np.array([[2.0]]), np.zeros(1))])
    never = Conjunction.build([({}, {0: Fraction(1)}, Fraction(100), False)], 1, 1)
    mixed = Conjunction.build([({0: Fraction(1)}, {0: Fraction(-1)}, Fraction(1), False)], 1, 1)  # x + 1 <= y = 2x
    boxes = [Box((Fraction(a),), (Fraction(b),)) for a, b in ((-1, 0), (0, 3))]
    query = Query((network,), (Case(boxes[0], (mixed,)), Case(boxes[1], (never, mixed))))
    assert replay_witness(query, np.array([0.5])) is None
    assert replay_witness(query, np.array([-0.5])) is None
    found = replay_witness(query, np.array([1.0]))
    assert found is not None and found.x[0] >= 1 and found.y[0] == 2 * found.x[0]
    assert replay_witness(query, np.array([3.5])) is None


def test_candidates_that_are_not_finite_fail():
    query = one(chain(IDENTITY), [-1], [1], [({}, {0: 1}, -10, False)])
    assert replay_witness(query, np.array([[np.nan], [np.inf], [1e300]])) is None
    overflow = one(chain([(np.full((1, 1), 3e38), np.zeros(1))]), [-5], [5], [({}, {0: 1}, 0, False)])
    assert replay_witness(overflow, np.array([-5.0])) is None
    assert replay_witness(overflow, np.array([-0.5])) is not None


def test_best_of_many_candidates_is_replayed_first():
    query = one(chain(IDENTITY), [0], [1], [({}, {0: 1}, Fraction(-1, 2), False)])
    x = np.linspace(0.49, 1.0, 20 * REPLAYS)[::-1][:, None]
    found = replay_witness(query, x)
    assert found is not None and found.x[0] == np.float32(0.49)
    assert replay_witness(query, x[x[:, 0] > 0.51]) is None
    assert replay_witness(query, np.zeros((0, 1))) is None


def test_snap_gives_legal_values():
    box = Box((Fraction("0.1"), Fraction(-1)), (Fraction("0.3"), Fraction("0.7")))
    x = snap(box, np.array([[0.0, 5.0], [0.2, 0.7], [1e300, -np.inf]]))
    lo, hi = legal_bounds(box)
    assert x.dtype == np.float32 and np.all(x >= lo) and np.all(x <= hi)
    assert np.all(x >= box.lo) and np.all(x <= box.hi)  # the hull on which unsat is proved contains them


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(5))
def test_agreement_accepts_the_right_network(seed, dtype):
    query = one(chain(random_layers(seed, (4, 50, 50, 3)), dtype), [-1] * 4, [1] * 4, [({}, {0: 1}, 0, False)])
    assert agreement(query).problem is None


def test_agreement_accepts_smooth_networks():
    network = chain(random_layers(3, (4, 30, 30, 3)), activation=("Sigmoid", Sigmoid()))
    assert agreement(one(network, [-9] * 4, [9] * 4, [({}, {0: 1}, 0, False)])).problem is None


def test_agreement_names_a_mismatch():
    layers = random_layers(0)
    network = chain(layers)
    wrong = [(w.copy(), b.copy()) for w, b in layers]
    wrong[-1][1][1] += 1e-3
    mixed_up = Network(chain(wrong).nodes, model_bytes=network.model_bytes)
    message = agreement(one(mixed_up, [-1] * 3, [1] * 3, [({}, {0: 1}, 0, False)])).problem
    assert message is not None and message.startswith("tensor 'z2' (value 1, Dense) disagrees") and "\n" not in message


def test_agreement_reports_what_cannot_run_and_skips_empty_boxes():
    broken = Network(chain(IDENTITY).nodes, model_bytes=b"junk")
    assert "cannot load" in str(agreement(one(broken, [0], [1], [({}, {0: 1}, 0, False)])).problem)
    assert agreement(one(broken, [1], [0], [({}, {0: 1}, 0, False)])).problem is None
    overflow = chain([(np.full((1, 1), 3e38), np.zeros(1))])
    assert agreement(one(overflow, [5], [6], [({}, {0: 1}, 0, False)])).problem is not None


@pytest.mark.parametrize("seed", range(3))
def test_the_allowance_is_small_and_covers_float32(seed):
    network = chain(random_layers(seed, (5, 50, 50, 50, 2)))
    x = np.random.default_rng(seed).normal(size=(20, 5)).astype(np.float32)
    y, allowed, fine = evaluate(network, x.astype(np.float64))
    error = abs(Runtime(network).single(x) - y)
    assert np.all(fine) and np.all(error <= allowed) and np.all(allowed < 0.1 * (1 + abs(y).max()))


def test_the_allowance_of_a_deep_network_still_shows_a_small_mistake():
    layers = [(w / np.sqrt(w.shape[1]), b) for w, b in random_layers(0, (20, *[60] * 12, 3))]
    network = chain(layers)
    x = np.random.default_rng(0).normal(size=(8, 20)).astype(np.float32)
    y, allowed, _ = evaluate(network, x.astype(np.float64))
    assert np.all(allowed < 1e-2 * abs(y).max())
