"""Wrong readings of a model, as rewritings of its bytes: what a reader with an old fault took the file for.

Each takes an ONNX model and changes it in place; the network is read from the changed bytes and still says that it
comes from the original ones. So they do not depend on how the reader is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
Rewrite = Callable[[Any], None]


def attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def drop(node: Any, *names: str) -> None:
    kept = [a for a in node.attribute if a.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def put(node: Any, **values: Any) -> None:
    from onnx import helper

    drop(node, *values)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in values.items())


def tensors(model: Any) -> dict[str, np.ndarray]:
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def shapes(model: Any) -> dict[str, list[int]]:
    """Inferred dimensions of every tensor."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = (*graph.input, *graph.value_info, *graph.output)
    return {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in infos}


def constant(model: Any, name: str, value: np.ndarray) -> str:
    """A new constant; its name."""
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def without(*names: str) -> Rewrite:
    """Attributes that are ignored wherever they stand."""

    def rewrite(model: Any) -> None:
        for node in model.graph.node:
            drop(node, *names)

    return rewrite


def clip_limits(model: Any) -> None:
    """A limit of the largest float or more counts as none."""
    known = tensors(model)
    for node in model.graph.node:
        for i in range(1, len(node.input) if node.op_type == "Clip" else 0):
            if node.input[i] in known and np.all(np.abs(known[node.input[i]]) >= LARGEST):
                node.input[i] = ""


def same_padding(model: Any) -> None:
    """Automatic padding counts the dilated window."""
    known = shapes(model)
    weights = tensors(model)
    for node in model.graph.node:
        at = attributes(node)
        mode = at.get("auto_pad", b"NOTSET").decode()
        if node.op_type not in ("Conv", "MaxPool", "AveragePool") or not mode.startswith("SAME"):
            continue
        size = known[node.input[0]][2:]
        kernel = at.get("kernel_shape") or list(weights[node.input[1]].shape[2:])
        strides, dilations = (at.get(k, [1] * len(size)) for k in ("strides", "dilations"))
        if not any(d > 1 and k > 1 for d, k in zip(dilations, kernel, strict=True)):
            continue
        begin, end = [], []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
            small = total // 2
            begin.append(small if mode == "SAME_UPPER" else total - small)
            end.append(total - begin[-1])
        drop(node, "auto_pad")
        put(node, pads=[*begin, *end])


def equal_lengths(model: Any) -> None:
    """Upsample and Resize leave an axis alone that keeps its length."""
    known, numbers = shapes(model), tensors(model)
    for k, node in enumerate(model.graph.node):
        if node.op_type not in ("Upsample", "Resize"):
            continue
        at = 1 if node.op_type == "Upsample" else 2
        if len(node.input) > at and np.size(numbers.get(node.input[at], ())):
            scales = numbers[node.input[at]].astype(np.float64)
            length = np.array(known[node.input[0]])
            same = np.floor(length * scales) == length
            node.input[at] = constant(model, f"planted{k}", np.where(same, 1.0, scales).astype(np.float32))


def casts_nothing(model: Any) -> None:
    """A Cast between float types of a variable is the identity."""
    constants = set(tensors(model))
    for node in model.graph.node:
        if node.op_type == "Cast" and attributes(node)["to"] in (1, 11) and node.input[0] not in constants:
            if attributes(node)["to"] == 1 and model.graph.input[0].type.tensor_type.elem_type != 11:
                continue
            drop(node, "to")
            node.op_type = "Identity"


def folded(change: Callable[[Any, list[np.ndarray]], np.ndarray | None]) -> Rewrite:
    """Operators on constants that `change` evaluates, by numbers it makes up itself."""

    def rewrite(model: Any) -> None:
        known, kept = tensors(model), []
        for node in model.graph.node:
            args = [known[v] for v in node.input if v in known]
            value = change(node, args) if len(args) == len(node.input) else None
            if value is None:
                kept.append(node)
            else:
                known[node.output[0]] = value
                constant(model, node.output[0], value)
        del model.graph.node[:]
        model.graph.node.extend(kept)

    return rewrite


def in_float32(node: Any, args: list[np.ndarray]) -> np.ndarray | None:
    """Chains of constants in float32, as if nothing had been rounded."""
    if any(a.dtype.kind != "f" for a in args):
        return None
    ops = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "MatMul": np.matmul, "Div": np.divide}
    return np.asarray(ops[node.op_type](*args)) if node.op_type in ops else None


def in_double(node: Any, args: list[np.ndarray]) -> np.ndarray | None:
    """Chains in double, and their steps taken from that; only the end of a chain is rounded to float32."""
    ops = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    steps = {"Floor": np.floor, "Ceil": np.ceil, "Sign": np.sign}
    if any(a.dtype.kind != "f" for a in args):
        return None
    if node.op_type in ops:
        return np.asarray(ops[node.op_type](*(a.astype(np.float64) for a in args)))
    return np.asarray(steps[node.op_type](args[0]), dtype=np.float32) if node.op_type in steps else None


def narrow(model: Any) -> None:
    """Double constants that `in_double` left in a float32 model, rounded."""
    from onnx import numpy_helper

    if model.graph.input[0].type.tensor_type.elem_type == 1:
        for t in model.graph.initializer:
            if t.data_type == 11:
                t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float32), t.name))


def step_of_inexact(model: Any) -> None:
    folded(in_double)(model)
    narrow(model)


def integer_division(node: Any, args: list[np.ndarray]) -> np.ndarray | None:
    """Quotients of integers through floats."""
    if node.op_type != "Div" or any(a.dtype.kind != "i" for a in args):
        return None
    return np.asarray(np.trunc(args[0] / args[1]).astype(args[0].dtype))


def max_pool_zeros(model: Any) -> None:
    """The padding of a MaxPool counts as zero."""
    added = []
    for k, node in enumerate(model.graph.node):
        pads = attributes(node).get("pads", [])
        if node.op_type == "MaxPool" and any(pads):
            from onnx import helper

            half = len(pads) // 2
            both = [0, 0, *pads[:half], 0, 0, *pads[half:]]
            name = constant(model, f"planted{k}", np.array(both, dtype=np.int64))
            added.append((k, helper.make_node("Pad", [node.input[0], name], [f"padded{k}"], mode="constant")))
            node.input[0] = f"padded{k}"
            drop(node, "pads")
    for k, node in reversed(added):
        model.graph.node.insert(k, node)
