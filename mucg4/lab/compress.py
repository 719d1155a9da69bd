"""Make compressed variants of an ONNX model: rounded, pruned, narrowed, tuned, permuted, re-serialised.

The methods are the plain textbook ones (round to nearest, smallest magnitude first), so that a variant
is what a user's own tool would give. Biases are left alone, as quantisers and pruners usually do.
A model is edited in place in its protobuf form: everything a method does not speak of stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.ops.arrays import AnyArray, FloatArray
from mucg4.records import dataclass

# ops through which a hidden neuron keeps its own channel
_ELEMENTWISE = (
    "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Softsign",
    "ThresholdedRelu", "Sign", "Abs", "Clip", "Sin", "Cos", "Erf", "Gelu", "HardSwish", "Mish",
)  # fmt: skip
_TRANSPARENT = ("Identity", "Dropout")
_BROADCAST = ("Add", "Sub", "Mul", "Div")
# ops whose meaning is the same from opset 7 to 13, so that the number alone may be raised
_UNCHANGED = (
    "MatMul", "Gemm", "Conv", "Add", "Sub", "Mul", "Div", "Neg", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "Flatten",
    "Reshape", "Transpose", "Concat", "Identity", "Constant", "AveragePool", "GlobalAveragePool", "BatchNormalization",
)  # fmt: skip

PLAIN = ("fp16", "bf16", "qdq8", "permute", "reserialise", "matmul")
RATED = ("intN", "pruneN", "neuronsN", "zeroedN", "tuneN", "splitN")
WIDTHS = range(2, 17)  # bits of `intN`; given


def compress(data: bytes, method: str, seed: int = 0) -> bytes:
    """The bytes of a variant of the ONNX model `data`.

    Methods: `fp16`, `bf16` (weights rounded to that type), `intN` (rounded per tensor to N bits, symmetric, N from 2
    to 16), all stored back in the model's own type; `qdq8` (int8 initialisers, one scale per output channel, and
    DequantizeLinear nodes); `pruneN` (the N % smallest weights of each tensor set to zero); `neuronsN`
    (the N % weakest hidden neurons of each dense layer removed), `zeroedN` (the same, set to zero);
    `tuneN` (relative Gaussian noise of 1e-N on the weights); `permute` (hidden neurons in random order);
    `reserialise` (all tensors renamed); `matmul` (Gemm written as MatMul and Add); `splitN` (N % of the neurons of one
    hidden ReLU layer as `relu(z - t) - relu(t - z) + t` in an added layer, as the tool ReluSplitter does). Weakest:
    smallest product of the norms of incoming and outgoing weights. Methods joined by `+` are applied one after the
    other (`prune10+int8`). `seed` serves `tuneN`, `permute` and `splitN`.

    Raises `InputError` for an unknown method, for data that is no ONNX model and for a model on which
    the method has nothing to work on; `UnsupportedError` for models with subgraphs.
    """
    edits = edits_of(method)
    model = _load(data)
    try:
        with np.errstate(all="ignore"):  # what overflows was no number that a network computes with
            for edit in edits:
                edit(model, np.random.default_rng(seed))
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        # Types, shapes and names in a model that nobody checked may contradict each other in any way.
        raise InputError(f"the model is malformed: {_first_line(error)}") from error
    del model.graph.value_info[:]  # shapes of inner tensors may have changed
    return bytes(model.SerializeToString())


def edits_of(method: str) -> list[Callable[[Any, np.random.Generator], None]]:
    """The edits of a method, or of methods joined by `+`, in order. Raises `InputError`."""
    return [_edit(name) for name in method.split("+")]


def _edit(method: str) -> Callable[[Any, np.random.Generator], None]:
    """The edit that a method's name asks for: a function of (model, random generator)."""
    if method in _ROUNDINGS:
        rounding = _ROUNDINGS[method]
        return lambda model, rng: _map_weights(model, rounding)
    if method in _EDITS:
        return _EDITS[method]
    m = re.fullmatch(r"(prune|neurons|zeroed|tune|split)([0-9]+(?:\.[0-9]+)?)", method)
    if m is None:
        raise InputError(f"unknown method {method!r}; methods are {', '.join(PLAIN + RATED)} (N a number)")
    name, value = m[1], float(m[2])
    if name != "tune" and value >= 100 + (name == "split"):
        raise InputError(f"method {method!r}: the share must be below 100 %")
    if name == "split":
        return lambda model, rng: _split(model, min(value, 100.0) / 100, rng)
    if name == "tune":
        return lambda model, rng: _map_weights(model, lambda w: w * (1 + 10.0**-value * rng.standard_normal(w.shape)))
    if name == "prune":
        return lambda model, rng: _map_weights(model, lambda w: _prune(w, value / 100))
    return lambda model, rng: _drop_neurons(model, value / 100, remove=name == "neurons")


# -- weights ------------------------------------------------------------------------------------


def _to_fp16(w: FloatArray) -> FloatArray:
    return np.clip(w, -65504.0, 65504.0).astype(np.float16)


def _to_bf16(w: FloatArray) -> FloatArray:
    """Round to nearest, ties to even, on the upper 16 bits of the float32 pattern."""
    bits = np.ascontiguousarray(w, dtype=np.float32).view(np.uint32)
    rounded = (bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) & np.uint32(0xFFFF0000)
    return np.asarray(rounded.view(np.float32))


def _to_int(w: FloatArray, levels: int) -> FloatArray:
    scale = np.float32(np.abs(w).max(initial=0.0) / levels) or np.float32(1)
    return np.asarray(np.clip(np.rint(w / scale), -levels, levels).astype(np.float32) * scale)


_ROUNDINGS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "fp16": _to_fp16,
    "bf16": _to_bf16,
    **{f"int{bits}": partial(_to_int, levels=2 ** (bits - 1) - 1) for bits in WIDTHS},
}


def _prune(w: FloatArray, share: float) -> FloatArray:
    out: FloatArray = w.copy()
    order = np.argsort(np.abs(w), axis=None, kind="stable")
    out.reshape(-1)[order[: round(share * w.size)]] = 0
    return out


def _map_weights(model: Any, change: Callable[[FloatArray], FloatArray]) -> None:
    tensors = _Tensors(model)
    for name in _weights(model, tensors):
        old = tensors[name]
        tensors[name] = change(old).astype(old.dtype)


def _weights(model: Any, tensors: _Tensors) -> dict[str, int]:
    """The weight initialisers of Gemm, MatMul and Conv nodes with their output-channel axis."""
    found: dict[str, int] = {}
    for node in model.graph.node:
        for k, name in enumerate(node.input[:2]):
            if name in tensors and tensors[name].ndim >= 2 and tensors[name].dtype.kind == "f":
                if node.op_type == "MatMul":
                    found.setdefault(name, tensors[name].ndim - (1 if k else 2))
                elif k == 1 and node.op_type in ("Gemm", "Conv", "ConvTranspose"):
                    swapped = node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not _flag(node, "transB"))
                    found.setdefault(name, int(swapped))
    if not found:
        raise InputError("the model has no constant weights in Gemm, MatMul or Conv nodes")
    return found


def _quantise(model: Any, rng: np.random.Generator) -> None:
    """Replace every weight by int8 values, one scale per output channel, and a DequantizeLinear node."""
    from onnx import helper

    _raise_opset(model, 13)
    tensors = _Tensors(model)
    nodes = []
    for name, axis in _weights(model, tensors).items():
        w = tensors[name]
        if w.dtype != np.float32:
            raise UnsupportedError(f"qdq8 needs float32 weights; {name!r} is {w.dtype}")
        others = tuple(k for k in range(w.ndim) if k != axis)
        scale = (np.abs(w).max(axis=others, initial=0.0) / 127).astype(np.float32)
        scale[scale == 0] = 1
        q = np.clip(np.rint(w / np.expand_dims(scale, others)), -127, 127).astype(np.int8)
        del tensors[name]
        parts = [
            tensors.add(name + suffix, v)
            for suffix, v in (("_q", q), ("_s", scale), ("_z", np.zeros_like(scale, np.int8)))
        ]
        nodes.append(helper.make_node("DequantizeLinear", parts, [name], axis=axis))
    kept = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *kept])


def _raise_opset(model: Any, version: int) -> None:
    import onnx
    from onnx import version_converter

    own = [o for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if own and own[0].version >= version:
        return
    if own and own[0].version >= 7 and all(n.op_type in _UNCHANGED for n in model.graph.node):
        own[0].version = version
        return
    try:
        model.CopyFrom(version_converter.convert_version(model, version))
    except (RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise UnsupportedError(f"the model cannot be raised to opset {version}: {_first_line(error)}") from error


# -- hidden neurons -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """One hidden dense layer: `(initialiser, axis)` of all that has a slot per neuron.

    The first entry is the incoming weight, the last the outgoing one, those between are biases and scales.
    """

    size: int
    slots: tuple[tuple[str, int], ...]


def _permute(model: Any, rng: np.random.Generator) -> None:
    tensors = _Tensors(model)
    for layer in _hidden_layers(model, tensors):
        order = rng.permutation(layer.size)
        for name, axis in layer.slots:
            tensors[name] = np.take(tensors[name], order, axis=axis)


def _drop_neurons(model: Any, share: float, remove: bool) -> None:
    tensors = _Tensors(model)
    for layer in _hidden_layers(model, tensors):
        order = np.argsort(_strength(layer, tensors), kind="stable")
        weakest = order[: min(round(share * layer.size), layer.size - 1)]
        for name, axis in layer.slots:
            if remove:
                tensors[name] = np.delete(tensors[name], weakest, axis=axis)
            else:
                np.moveaxis(tensors[name], axis, 0)[weakest] = 0
                tensors[name] = tensors[name]


def _strength(layer: _Layer, tensors: _Tensors) -> FloatArray:
    """Norm of the incoming times norm of the outgoing weights, per neuron."""
    out = np.ones(layer.size)
    for name, axis in (layer.slots[0], layer.slots[-1]):
        out *= np.linalg.norm(np.moveaxis(tensors[name], axis, 0).reshape(layer.size, -1), axis=1)
    return out


def _hidden_layers(model: Any, tensors: _Tensors) -> list[_Layer]:
    """Dense layers whose outputs go through element-wise operators into one next dense layer."""
    tensors.unshare()
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in model.graph.output}
    found = [layer for node in model.graph.node if (layer := _hidden_layer(node, readers, outputs, tensors))]
    if not found:
        raise InputError("the model has no hidden dense layer (Gemm or MatMul, activation, Gemm or MatMul)")
    return found


def _hidden_layer(node: Any, readers: dict[str, list[Any]], outputs: set[str], tensors: _Tensors) -> _Layer | None:
    first = _dense(node, tensors)
    if first is None:
        return None
    name, axis, right = first
    size = tensors[name].shape[axis]
    slots = [(name, axis)]
    if (
        node.op_type == "Gemm"
        and len(node.input) > 2
        and node.input[2]
        and not _vector(node.input[2], size, tensors, slots)
    ):
        return None
    active = False
    while True:
        value = node.output[0]
        if value in outputs or len(readers.get(value, [])) != 1:
            return None
        node = readers[value][0]
        if (last := _dense(node, tensors)) is not None:
            name, out_axis, side = last
            fits = side == right and tensors[name].shape[1 - out_axis] == size
            return _Layer(size, (*slots, (name, 1 - out_axis))) if fits and active else None
        active = active or node.op_type in _ELEMENTWISE
        if node.op_type in _BROADCAST:
            (other,) = [n for n in node.input if n != value] or [value]
            if not _vector(other, size, tensors, slots, right):
                return None
        elif node.op_type == "BatchNormalization" and right:
            if not all(_vector(n, size, tensors, slots) for n in node.input[1:5]):
                return None
        elif node.op_type not in _ELEMENTWISE + _TRANSPARENT:
            return None


def _dense(node: Any, tensors: _Tensors) -> tuple[str, int, bool] | None:
    """Weight, its output axis, and whether it stands on the right of the data; None for other nodes."""
    constant = [k for k, name in enumerate(node.input[:2]) if name in tensors]
    if node.op_type not in ("Gemm", "MatMul") or len(constant) != 1 or tensors[node.input[constant[0]]].ndim != 2:
        return None
    k = constant[0]
    if node.op_type == "MatMul":
        return node.input[k], k, k == 1
    if k == 0 or _flag(node, "transA"):
        return None
    return node.input[1], 0 if _flag(node, "transB") else 1, True


def _vector(name: str, size: int, tensors: _Tensors, slots: list[tuple[str, int]], right: bool = True) -> bool:
    """Note a constant that has one entry per neuron (or one for all); False when it is anything else."""
    if name not in tensors:
        return False
    shape = tensors[name].shape
    axis = len(shape) - 1 if right or len(shape) == 1 else len(shape) - 2
    if tensors[name].size == 1 and size > 1:
        return True
    if tensors[name].size != size or shape[axis] != size:
        return False
    slots.append((name, axis))
    return True


# -- the same function written otherwise ---------------------------------------------------------


def _split(model: Any, share: float, rng: np.random.Generator) -> None:
    """Neurons of one layer as opposite pairs, in an added layer before the layer's own ReLU; the others pass it."""
    from onnx import helper

    tensors = _Tensors(model)
    made = {n.output[0]: n for n in model.graph.node}
    found = [
        (k, size)
        for k, n in enumerate(model.graph.node)
        if n.op_type == "Relu" and (size := _width(made.get(n.input[0]), made, tensors)) is not None
    ]
    if not found:
        raise InputError("the model has no dense layer with a Relu behind it")
    at, size = found[int(rng.integers(len(found)))]
    relu = model.graph.node[at]
    chosen = np.sort(rng.permutation(size)[: max(round(share * size), 1)])
    shift = np.zeros(size)
    shift[chosen] = 0.25 * rng.normal(size=len(chosen))
    rows = np.concatenate([np.eye(size), -np.eye(size)[chosen]])
    offset = np.concatenate([-shift, shift[chosen]])
    merge = rows.T
    kind = _float_type(tensors)
    held = {"split_w": rows, "split_b": offset, "merge_w": merge, "merge_b": shift}
    names = {name: tensors.add(name, value.astype(kind)) for name, value in held.items()}
    taken = {o for n in model.graph.node for o in n.output}
    values = [_fresh(name, taken) for name in ("split_z", "split_h", "merge_z")]
    added = [
        helper.make_node("Gemm", [relu.input[0], names["split_w"], names["split_b"]], [values[0]], transB=1),
        helper.make_node("Relu", [values[0]], [values[1]]),
        helper.make_node("Gemm", [values[1], names["merge_w"], names["merge_b"]], [values[2]], transB=1),
    ]
    relu.input[0] = values[2]
    nodes = [*model.graph.node[:at], *added, *model.graph.node[at:]]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _width(node: Any, made: dict[str, Any], tensors: _Tensors) -> int | None:
    """The number of neurons of a dense layer, with or without nodes that shift or scale them; None for others."""
    if node is not None and node.op_type == "BatchNormalization":
        node = made.get(node.input[0])
    if node is not None and node.op_type == "Add" and any(name in tensors for name in node.input):
        node = next((made[name] for name in node.input if name in made), None)
    dense = None if node is None else _dense(node, tensors)
    return None if dense is None or not dense[2] else int(tensors[dense[0]].shape[dense[1]])


def _float_type(tensors: _Tensors) -> Any:
    return next(a.dtype for a in tensors.arrays.values() if a.ndim == 2 and a.dtype.kind == "f")


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name


def _use_matmul(model: Any, rng: np.random.Generator) -> None:
    """Every plain Gemm as MatMul and Add."""
    from onnx import helper

    tensors = _Tensors(model)
    nodes: list[Any] = []
    taken = {o for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        plain = node.op_type == "Gemm" and not _flag(node, "transA") and _dense(node, tensors) is not None
        if not plain or any(a.name in ("alpha", "beta") and a.f != 1 for a in node.attribute):
            nodes.append(node)
            continue
        weight = tensors[node.input[1]]
        held = tensors.add(node.input[1] + "_t", weight.T.copy() if _flag(node, "transB") else weight)
        if len(node.input) < 3 or not node.input[2]:
            nodes.append(helper.make_node("MatMul", [node.input[0], held], [node.output[0]]))
            continue
        middle = _fresh(node.output[0] + "_product", taken)
        taken.add(middle)
        nodes.append(helper.make_node("MatMul", [node.input[0], held], [middle]))
        nodes.append(helper.make_node("Add", [middle, node.input[2]], [node.output[0]]))
    if nodes == list(model.graph.node):
        raise InputError("the model has no Gemm that could be written as MatMul and Add")
    read = {name for n in nodes for name in n.input}
    for name in [n for n in tensors.protos if n not in read]:
        del tensors[name]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


# -- the protobuf -------------------------------------------------------------------------------


class _Tensors:
    """The initialisers of a model by name, as arrays; what is assigned is written back at once."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.graph = model.graph
        self.protos = {t.name: t for t in model.graph.initializer}
        self.arrays = {name: numpy_helper.to_array(t).copy() for name, t in self.protos.items()}

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> FloatArray:
        return np.asarray(self.arrays[name])

    def __setitem__(self, name: str, value: AnyArray) -> None:
        from onnx import numpy_helper

        self.arrays[name] = value
        self.protos[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), name))

    def __delitem__(self, name: str) -> None:
        self.graph.initializer.remove(self.protos.pop(name))
        del self.arrays[name]

    def add(self, name: str, value: AnyArray) -> str:
        """Add an initialiser under this name, or a fresh one like it; returns the name."""
        taken = set(self.arrays).union(*((*n.input, *n.output) for n in self.graph.node))
        while name in taken:
            name += "_"
        self.protos[name] = self.graph.initializer.add()
        self[name] = value
        return name

    def unshare(self) -> None:
        """Give every reader of an initialiser its own copy."""
        seen: set[str] = set()
        for node in self.graph.node:
            for k, name in enumerate(node.input):
                if name in self.arrays and name in seen:
                    node.input[k] = self.add(name + "_copy", self.arrays[name].copy())
                seen.add(name)


def _load(data: bytes) -> Any:
    """The model with all constants as initialisers that are not graph inputs too."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise InputError("the file is not an ONNX model") from error
    if not model.graph.node or not model.graph.output:
        raise InputError("the file is not an ONNX model, or an empty one")
    graph = model.graph
    for node in list(graph.node):
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise UnsupportedError(f"operator {node.op_type} has a subgraph; such models cannot be compressed")
        if node.op_type == "Constant" and node.output and [a.name for a in node.attribute] == ["value"]:
            tensor = graph.initializer.add()
            tensor.CopyFrom(node.attribute[0].t)
            tensor.name = node.output[0]
            graph.node.remove(node)
    constants = {t.name for t in graph.initializer}
    for value in [v for v in graph.input if v.name in constants]:
        graph.input.remove(value)
    model.ir_version = max(model.ir_version, 8)  # before version 4 initialisers had to be graph inputs
    return model


def _rename(model: Any, rng: np.random.Generator) -> None:
    """New names for all tensors and nodes; order, operators and numbers stay."""
    graph = model.graph
    values: Iterable[str] = [v.name for v in (*graph.input, *graph.initializer)]
    names = {
        name: f"t{k}" for k, name in enumerate(dict.fromkeys([*values, *(o for n in graph.node for o in n.output)]))
    }
    names[""] = ""  # an optional input that is absent
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names[value.name]
    for k, node in enumerate(graph.node):
        node.name, node.doc_string = f"n{k}", ""
        node.input[:] = [names[i] for i in node.input]
        node.output[:] = [names[o] for o in node.output]
    graph.name, model.producer_name, model.producer_version, model.doc_string = "g", "", "", ""
    del model.metadata_props[:]


def _flag(node: Any, name: str) -> bool:
    return any(a.name == name and a.i != 0 for a in node.attribute)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


_EDITS: dict[str, Callable[[Any, np.random.Generator], None]] = {
    "qdq8": _quantise,
    "permute": _permute,
    "reserialise": _rename,
    "matmul": _use_matmul,
}
