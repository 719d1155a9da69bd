"""A forked child takes the crash, the hang or the flood of memory of something native; files are walked without one."""

from __future__ import annotations

import ctypes
import os
import time

import numpy as np
import pytest

from mucg4.errors import InputError
from mucg4.gate.child import ordeal
from mucg4.gate.runtime import Runtime
from mucg4.gate.wire import skeleton, with_outputs
from mucg4.model.network import Network, Node
from mucg4.ops.affine import Dense
from unit.read.test_onnx import f32, model

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def leave_quietly():
    os._exit(3)


def test_what_ends_well_says_nothing():
    assert ordeal(lambda: None, 10) == ""


def test_an_error_is_an_answer():
    def fail():
        raise InputError("no")

    assert ordeal(fail, 10) == ""


def test_crash_hang_and_exit_are_told_apart(capfd):
    assert "signal 11" in ordeal(lambda: ctypes.string_at(0), 10)
    assert "status 3" in ordeal(leave_quietly, 10)
    assert "does not end" in ordeal(lambda: time.sleep(60), 1)
    assert capfd.readouterr() == ("", "")


def test_a_child_leaves_no_process_and_no_descriptor_behind():
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    ordeal(lambda: None, 10)
    ordeal(leave_quietly, 10)
    assert not before or len(os.listdir("/proc/self/fd")) == len(before)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


NODES = [("Gemm", "x w b", "t", {"transB": 1}), ("Relu", "t", "y", {})]
TENSORS = {"w": f32(4, 6), "b": f32(4)}


def plain():
    return onnx.load_model_from_string(model(NODES, [1, 6], TENSORS))


def emptied():
    proto = plain()
    proto.graph.node[1].output[0] = proto.graph.output[0].name = ""
    return proto


def with_dead_node():
    proto = plain()
    proto.graph.node.append(onnx.helper.make_node("Neg", ["t"], ["unused"]))
    return proto


def with_foreign_domain():
    proto = plain()
    proto.graph.node[1].domain = "somewhere"
    return proto


def with_stated_values():
    proto = plain()
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("t", 1, [7, 7]))
    return proto


def with_name_twice():
    proto = plain()
    proto.graph.node.append(onnx.helper.make_node("Neg", ["x"], ["t"]))
    return proto


def with_huge_attribute():
    proto = plain()
    proto.graph.node[0].attribute[0].i = 2**62
    return proto


def with_subgraph():
    proto = plain()
    proto.graph.node[1].attribute.append(onnx.helper.make_attribute("body", proto.graph))
    return proto


ODD = [
    emptied,
    with_dead_node,
    with_foreign_domain,
    with_stated_values,
    with_name_twice,
    with_huge_attribute,
    with_subgraph,
]


def test_an_ordinary_file():
    found = skeleton(plain().SerializeToString())
    assert found.oddity == "" and found.inputs == ("x",) and found.outputs == ("y",)
    assert [(s.op, s.inputs, s.outputs) for s in found.steps] == [
        ("Gemm", ("x", "w", "b"), ("t",)),
        ("Relu", ("t",), ("y",)),
    ]
    assert found.initial == {"w": 6, "b": 4} and found.producer == {"t": 0, "y": 1}
    assert found.between("y", {"x"}).ops == {"Gemm", "Relu"} and found.between("y", {"t"}).roundings == 2


@pytest.mark.parametrize("make", ODD)
def test_an_odd_file(make):
    assert skeleton(make().SerializeToString()).oddity


def test_an_empty_name_is_an_error_and_no_crash():
    nodes = (Node(None, (), "x", (6,)), Node(Dense(np.zeros((4, 6)), np.zeros(4)), (0,), "y", (4,)))
    with pytest.raises(InputError) as error:
        Runtime(Network(nodes, model_bytes=emptied().SerializeToString())).outputs(np.zeros((1, 6)))
    assert "onnxruntime" in str(error.value) and "\n" not in str(error.value)


def test_odd_models_that_do_no_harm_run():
    network = Network(
        (Node(None, (), "x", (6,)), Node(Dense(np.zeros((4, 6)), np.zeros(4)), (0,), "y", (4,))),
        model_bytes=with_dead_node().SerializeToString(),
    )
    assert Runtime(network).outputs(np.zeros((2, 6))).shape == (2, 4)


def test_more_outputs_are_appended():
    data = with_outputs(plain().SerializeToString(), ["t", "w"])
    assert [o.name for o in onnx.load_model_from_string(data).graph.output] == ["y", "t", "w"]
    assert skeleton(data).outputs == ("y", "t", "w")


@pytest.mark.parametrize("data", [b"\x0a", b"\xff" * 20, b"\x3a\xff\x01", b"junk"])
def test_bytes_that_are_no_message(data):
    with pytest.raises(InputError):
        skeleton(data)
