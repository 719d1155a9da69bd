"""What is read: operator by operator, in which operator sets, of which element types, with which attribute values.

Everything that is not in `TABLE` is refused by name. Each row is covered by a seeded comparison with onnxruntime
(`tests/opdiff`, which fails when a row has no generator), so a row promises that the network as read is the function
that onnxruntime computes, in real arithmetic. What depends on shapes or on values beside attributes is refused by the
operator's handler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import isfinite
from typing import Any

from mucg4.errors import UnsupportedError
from mucg4.read.protobuf import BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64, OnnxNode, shortened
from mucg4.records import dataclass

NEWEST = 25  # the newest operator set that is read; given
SINGLE, FLOATS, INTEGERS = (FLOAT,), (FLOAT, DOUBLE), (INT32, INT64)
NUMBERS = FLOATS + INTEGERS
TRUTHS = (FLOAT, DOUBLE, BOOL)
MOVABLE = (*TRUTHS, *INTEGERS)  # on what depends on the input
WHOLE = (*range(2, 8), 12, 13)  # integers
STORED = (*range(1, 8), BOOL, FLOAT16, DOUBLE, 12, 13, BFLOAT16, 21, 22)  # every type a tensor can be decoded from
MOVED = (*range(1, 8), BOOL, FLOAT16, DOUBLE, 12, 13)


@dataclass(frozen=True)
class Rule:
    """What an attribute may be: its kind in the file (see `KINDS`), and which values; `text` says so."""

    kind: str
    allows: Callable[[Any], bool]
    text: str


@dataclass(frozen=True, eq=False)
class Row:
    """One operator in a range of operator sets.

    `inputs` are the least and the most it takes, the first `inputs[0]` of them present. `variable` and `constant` are
    the element types of its first input (`typed` of them count: all that share its type) where an input depends on the
    network's input, and where none does; () where that is not read.
    """

    op: str
    opsets: tuple[int, int]
    inputs: tuple[int, int]
    variable: tuple[int, ...]
    constant: tuple[int, ...]
    attributes: dict[str, Rule]

    def __str__(self) -> str:
        return f"{self.op} {self.opsets[0]}-{self.opsets[1]}"


KINDS = {"float": 1, "int": 2, "string": 3, "tensor": 4, "floats": 6, "ints": 7, "strings": 8}


def _any(kind: str) -> Rule:
    finite = kind in ("float", "floats")

    def allows(value: Any) -> bool:
        return not finite or all(isfinite(v) for v in (value if kind == "floats" else (value,)))

    return Rule(kind, allows, "any")


def _of(kind: str, *values: Any) -> Rule:
    return Rule(kind, lambda v: v in values, " | ".join(map(str, values)))


def _at_least(kind: str, least: int) -> Rule:
    several = kind == "ints"
    return Rule(kind, lambda v: all(n >= least for n in v) if several else v >= least, f"at least {least}")


_FLAG, _INTS, _INT, _FLOAT, _TENSOR = _of("int", 0, 1), _any("ints"), _any("int"), _any("float"), _any("tensor")
_POSITIVE = Rule("float", lambda v: 0 < v < 3e38, "positive")
_LIMIT = Rule("float", lambda v: v == v, "a number or infinite")
_NONNEGATIVE = Rule("float", lambda v: 0 <= v < 3e38, "not negative")
_SLIDING = {
    "auto_pad": _of("string", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"),
    "kernel_shape": _at_least("ints", 1),
    "pads": _at_least("ints", 0),
    "strides": _at_least("ints", 1),
}
_DILATED = {**_SLIDING, "dilations": _at_least("ints", 1)}
_POOL = {**_SLIDING, "ceil_mode": _FLAG}
_REDUCE_OLD = {"axes": _INTS, "keepdims": _FLAG}
_REDUCE = {"keepdims": _FLAG, "noop_with_empty_axes": _FLAG}
_RESIZE = {
    "mode": _of("string", "nearest", "linear"),
    "coordinate_transformation_mode": _of("string", "half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"),
    "nearest_mode": _of("string", "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    "cubic_coeff_a": _FLOAT,  # of modes and frames that are refused, like the next two
    "exclude_outside": _of("int", 0),
    "extrapolation_value": _FLOAT,
}


def _row(
    op: str,
    first: int,
    last: int,
    inputs: tuple[int, int],
    variable: tuple[int, ...],
    constant: tuple[int, ...] = (),
    **attributes: Rule,
) -> Row:
    return Row(op, (first, last), inputs, variable, constant, attributes)


def _rows() -> Iterator[Row]:
    new, many = NEWEST, 2**31
    for op in ("Add", "Sub", "Mul", "Div"):
        yield _row(op, 7, new, (2, 2), FLOATS if op == "Div" else NUMBERS, NUMBERS)
    yield _row("Neg", 6, new, (1, 1), NUMBERS, NUMBERS)
    yield _row("Abs", 6, new, (1, 1), NUMBERS, NUMBERS)
    yield _row("Sum", 8, new, (1, many), FLOATS, FLOATS)
    yield _row("Max", 8, 11, (1, many), FLOATS, FLOATS)
    yield _row("Max", 12, new, (1, many), NUMBERS, NUMBERS)
    yield _row("Min", 8, 11, (1, many), FLOATS, FLOATS)
    yield _row("Min", 12, new, (1, many), NUMBERS, NUMBERS)
    yield _row("MatMul", 1, 8, (2, 2), FLOATS, FLOATS)
    yield _row("MatMul", 9, new, (2, 2), FLOATS, NUMBERS)
    gemm = {"alpha": _FLOAT, "beta": _FLOAT, "transA": _FLAG, "transB": _FLAG}
    yield _row("Gemm", 7, 10, (3, 3), FLOATS, FLOATS, **gemm)
    yield _row("Gemm", 11, new, (2, 3), FLOATS, FLOATS, **gemm)
    normal = {"epsilon": _NONNEGATIVE, "momentum": _FLOAT}
    yield _row("BatchNormalization", 7, 8, (5, 5), FLOATS, (), **normal, spatial=_of("int", 1))
    yield _row("BatchNormalization", 9, 13, (5, 5), FLOATS, (), **normal)
    yield _row("BatchNormalization", 14, new, (5, 5), FLOATS, (), **normal, training_mode=_of("int", 0))
    yield _row("Relu", 6, new, (1, 1), FLOATS, FLOATS)
    yield _row("LeakyRelu", 6, new, (1, 1), SINGLE, (), alpha=_FLOAT)
    yield _row("PRelu", 7, new, (2, 2), SINGLE)
    yield _row("Clip", 6, 10, (1, 1), SINGLE, (), min=_LIMIT, max=_LIMIT)
    yield _row("Clip", 11, 11, (1, 3), SINGLE)
    yield _row("Clip", 12, new, (1, 3), FLOATS)
    yield _row("HardSigmoid", 6, new, (1, 1), SINGLE, (), alpha=_FLOAT, beta=_FLOAT)
    for op in ("Sigmoid", "Tanh"):
        yield _row(op, 6, new, (1, 1), FLOATS, FLOATS if op == "Tanh" else ())
    for op in ("Sin", "Cos"):
        yield _row(op, 7, new, (1, 1), FLOATS, FLOATS)
    for op in ("Exp", "Log", "Sqrt", "Reciprocal"):
        yield _row(op, 6, new, (1, 1), FLOATS, FLOATS)
    for op in ("Floor", "Ceil"):
        yield _row(op, 6, new, (1, 1), FLOATS, FLOATS)
    yield _row("Round", 11, new, (1, 1), FLOATS, FLOATS)
    yield _row("Sign", 9, new, (1, 1), NUMBERS, NUMBERS)
    yield _row("Tan", 7, new, (1, 1), SINGLE)
    yield _row("Shrink", 9, new, (1, 1), SINGLE, (), lambd=_FLOAT, bias=_FLOAT)
    yield _row("Mean", 8, new, (1, many), SINGLE, SINGLE)
    yield _row("ThresholdedRelu", 10, new, (1, 1), SINGLE, (), alpha=_FLOAT)
    for op in ("Softmax", "LogSoftmax"):
        yield _row(op, 1, 12, (1, 1), FLOATS, (), axis=_INT)
        yield _row(op, 13, new, (1, 1), FLOATS, (), axis=_INT)
    yield _row("Softplus", 1, new, (1, 1), SINGLE)
    yield _row("Softsign", 1, new, (1, 1), SINGLE)
    yield _row("Atan", 7, new, (1, 1), SINGLE)
    yield _row("Erf", 9, new, (1, 1), SINGLE)
    yield _row("Gelu", 20, new, (1, 1), SINGLE, (), approximate=_of("string", "none", "tanh"))
    yield _row("HardSwish", 14, new, (1, 1), SINGLE)
    yield _row("Mish", 18, new, (1, 1), SINGLE)
    yield _row("Elu", 6, new, (1, 1), SINGLE, (), alpha=_POSITIVE)
    yield _row("Selu", 6, new, (1, 1), SINGLE, (), alpha=_POSITIVE, gamma=_POSITIVE)
    yield _row("Celu", 12, new, (1, 1), SINGLE, (), alpha=_POSITIVE)
    yield _row("Pow", 7, new, (2, 2), FLOATS, NUMBERS)
    yield from _windows(new)
    yield from _reductions(new, many)
    yield from _normalisations(new)
    yield from _movements(new, many)
    yield from _constants(new)
    yield from _recurrent(new)
    yield from _fused()
    floats = {"coefficients": _any("floats"), "intercepts": _any("floats"), "targets": _at_least("int", 1)}
    plain = _of("string", "NONE")
    yield _row("ai.onnx.ml::LinearRegressor", 1, 5, (1, 1), SINGLE, (), **floats, post_transform=plain)
    yield _row("ai.onnx.ml::Scaler", 1, 5, (1, 1), SINGLE, (), offset=_any("floats"), scale=_any("floats"))


def _windows(new: int) -> Iterator[Row]:
    conv = {**_DILATED, "group": _at_least("int", 1)}
    back = {**conv, "output_padding": _at_least("ints", 0), "output_shape": _at_least("ints", 1)}
    yield _row("Conv", 1, new, (2, 3), SINGLE, (), **conv)
    yield _row("ConvTranspose", 1, new, (2, 3), SINGLE, (), **back)
    include = {"count_include_pad": _FLAG}
    yield _row("AveragePool", 7, 9, (1, 1), SINGLE, (), **_SLIDING, **include)
    yield _row("AveragePool", 10, 18, (1, 1), SINGLE, (), **_POOL, **include)
    yield _row("AveragePool", 19, new, (1, 1), SINGLE, (), **_POOL, **include, dilations=_at_least("ints", 1))
    yield _row("MaxPool", 1, 7, (1, 1), SINGLE, (), **_SLIDING)
    yield _row("MaxPool", 8, 9, (1, 1), FLOATS, (), **_SLIDING, storage_order=_of("int", 0))
    dilated = {"dilations": _at_least("ints", 1), "storage_order": _of("int", 0)}
    yield _row("MaxPool", 10, 11, (1, 1), FLOATS, (), **_POOL, **dilated)
    yield _row("MaxPool", 12, new, (1, 1), FLOATS, (), **_POOL, **dilated)
    yield _row("GlobalAveragePool", 1, new, (1, 1), SINGLE)
    yield _row("GlobalMaxPool", 1, new, (1, 1), SINGLE)


def _reductions(new: int, many: int) -> Iterator[Row]:
    yield _row("ReduceSum", 1, 12, (1, 1), FLOATS, NUMBERS, **_REDUCE_OLD)
    yield _row("ReduceSum", 13, new, (1, 2), NUMBERS, NUMBERS, **_REDUCE)
    yield _row("ReduceMean", 1, 17, (1, 1), FLOATS, FLOATS, **_REDUCE_OLD)
    yield _row("ReduceMean", 18, new, (1, 2), FLOATS, FLOATS, **_REDUCE)
    for op in ("ReduceMax", "ReduceMin"):
        yield _row(op, 1, 17, (1, 1), FLOATS, (), **_REDUCE_OLD)
        yield _row(op, 18, new, (1, 2), FLOATS, (), **_REDUCE)
    yield _row("ReduceProd", 1, 17, (1, 1), FLOATS, INTEGERS, **_REDUCE_OLD)
    yield _row("ReduceProd", 18, new, (1, 2), FLOATS, INTEGERS, **_REDUCE)
    for op in ("ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"):
        yield _row(op, 1, 17, (1, 1), FLOATS, (), **_REDUCE_OLD)
        yield _row(op, 18, new, (1, 2), FLOATS, (), **_REDUCE)
    yield _row("CumSum", 11, new, (2, 2), FLOATS, NUMBERS, exclusive=_FLAG, reverse=_FLAG)
    yield _row("Einsum", 12, new, (1, many), FLOATS, (), equation=Rule("string", lambda v: True, "any"))


def _normalisations(new: int) -> Iterator[Row]:
    epsilon, axis = {"epsilon": _NONNEGATIVE}, {"axis": _INT}
    stash = {"stash_type": _of("int", 1)}
    yield _row("LayerNormalization", 1, new, (2, 3), FLOATS, (), **epsilon, **axis, **stash)  # onnxruntime's before 17
    yield _row("SimplifiedLayerNormalization", 1, new, (2, 2), FLOATS, (), **epsilon, **axis, **stash)
    yield _row("RMSNormalization", 23, new, (2, 2), FLOATS, (), **epsilon, **axis, **stash)
    yield _row("InstanceNormalization", 6, new, (3, 3), SINGLE, (), **epsilon)
    groups = {"num_groups": _at_least("int", 1)}
    yield _row("GroupNormalization", 18, 20, (3, 3), SINGLE, (), **epsilon, **groups)
    yield _row("GroupNormalization", 21, new, (3, 3), SINGLE, (), **epsilon, **groups, stash_type=_of("int", 1))
    yield _row("LpNormalization", 1, new, (1, 1), FLOATS, (), **axis, p=_of("int", 1, 2))


def _movements(new: int, many: int) -> Iterator[Row]:
    yield _row("Identity", 1, new, (1, 1), MOVABLE, MOVED)
    yield _row("Dropout", 7, 11, (1, 1), FLOATS, FLOATS, ratio=_FLOAT)
    yield _row("Dropout", 12, new, (1, 3), FLOATS, FLOATS, seed=_INT)
    yield _row("Reshape", 5, 13, (2, 2), MOVABLE, MOVED)
    yield _row("Reshape", 14, new, (2, 2), MOVABLE, MOVED, allowzero=_FLAG)
    yield _row("Flatten", 1, 10, (1, 1), FLOATS, FLOATS, axis=_at_least("int", 0))
    yield _row("Flatten", 11, new, (1, 1), MOVABLE, MOVED, axis=_INT)
    yield _row("Squeeze", 1, 10, (1, 1), FLOATS, MOVED, axes=_at_least("ints", 0))
    yield _row("Squeeze", 11, 12, (1, 1), FLOATS, MOVED, axes=_INTS)
    yield _row("Squeeze", 13, new, (1, 2), MOVABLE, MOVED)
    yield _row("Unsqueeze", 1, 10, (1, 1), FLOATS, MOVED, axes=_at_least("ints", 0))
    yield _row("Unsqueeze", 11, 12, (1, 1), FLOATS, MOVED, axes=_INTS)
    yield _row("Unsqueeze", 13, new, (2, 2), MOVABLE, MOVED)
    yield _row("Transpose", 1, new, (1, 1), MOVABLE, MOVED, perm=_at_least("ints", 0))
    yield _row("Slice", 1, 9, (1, 1), FLOATS, MOVED, starts=_INTS, ends=_INTS, axes=_INTS)
    yield _row("Slice", 10, new, (3, 5), MOVABLE, MOVED)
    yield _row("Gather", 1, 10, (2, 2), FLOATS, MOVED, axis=_INT)
    yield _row("Gather", 11, new, (2, 2), MOVABLE, MOVED, axis=_INT)
    yield _row("Split", 2, 12, (1, 1), FLOATS, MOVED, axis=_INT, split=_at_least("ints", 0))
    yield _row("Split", 13, 17, (1, 2), MOVABLE, MOVED, axis=_INT)
    yield _row("Split", 18, new, (1, 2), MOVABLE, MOVED, axis=_INT, num_outputs=_at_least("int", 1))
    yield _row("Expand", 8, new, (2, 2), MOVABLE, MOVED)
    yield _row("Tile", 6, new, (2, 2), MOVABLE, MOVED)
    yield _row("Concat", 4, new, (1, many), MOVABLE, MOVED, axis=_INT)
    yield _row("DepthToSpace", 1, 10, (1, 1), FLOATS, (), blocksize=_at_least("int", 1))
    dcr = _of("string", "DCR", "CRD")
    yield _row("DepthToSpace", 11, new, (1, 1), FLOATS, (), blocksize=_at_least("int", 1), mode=dcr)
    yield _row("SpaceToDepth", 1, new, (1, 1), FLOATS, (), blocksize=_at_least("int", 1))
    nearest = _of("string", "nearest", "linear")
    yield _row("Upsample", 7, 8, (1, 1), SINGLE, (), mode=nearest, scales=_any("floats"))
    yield _row("Upsample", 9, 9, (2, 2), SINGLE, (), mode=nearest)
    yield _row("Resize", 10, 10, (2, 2), SINGLE, (), mode=nearest)
    yield _row("Resize", 11, 17, (1, 4), SINGLE, (), **_RESIZE)
    policy = _of("string", "stretch", "not_larger", "not_smaller")
    later = {"antialias": _of("int", 0), "keep_aspect_ratio_policy": policy}
    yield _row("Resize", 18, new, (1, 4), SINGLE, (), **_RESIZE, **later)
    modes = _of("string", "constant", "edge", "reflect")
    yield _row("Pad", 2, 10, (1, 1), FLOATS, (), mode=modes, pads=_INTS, value=_FLOAT)
    yield _row("Pad", 11, 17, (2, 3), FLOATS, (), mode=modes)
    yield _row("Pad", 18, 18, (2, 4), FLOATS, (), mode=modes)
    yield _row("Pad", 19, new, (2, 4), FLOATS, (), mode=_of("string", "constant", "edge", "reflect", "wrap"))
    yield _row("GatherND", 11, 11, (2, 2), FLOATS, MOVED)
    yield _row("GatherND", 12, new, (2, 2), FLOATS, MOVED, batch_dims=_at_least("int", 0))
    yield _row("GatherElements", 11, new, (2, 2), FLOATS, MOVED, axis=_INT)
    reduction = _of("string", "none")
    for op, axis in (("ScatterND", {}), ("ScatterElements", {"axis": _INT})):
        yield _row(op, 11, 15, (3, 3), FLOATS, MOVED, **axis)
        yield _row(op, 16, new, (3, 3), FLOATS, MOVED, **axis, reduction=reduction)
    yield _row("Trilu", 14, new, (1, 2), FLOATS, (BOOL, *NUMBERS), upper=_FLAG)


def _constants(new: int) -> Iterator[Row]:
    yield _row("Shape", 1, 14, (1, 1), FLOATS, MOVED)
    yield _row("Shape", 15, new, (1, 1), FLOATS, MOVED, start=_INT, end=_INT)
    wide = (*MOVED, BFLOAT16)
    yield _row("Cast", 6, 12, (1, 1), (*TRUTHS, *WHOLE), MOVED, to=_of("int", *MOVED))
    yield _row("Cast", 13, 18, (1, 1), (*TRUTHS, *WHOLE), wide, to=_of("int", *wide))
    yield _row("Cast", 19, 20, (1, 1), (*TRUTHS, *WHOLE), wide, to=_of("int", *wide), saturate=_FLAG)
    yield _row("Cast", 21, new, (1, 1), (*TRUTHS, *WHOLE), STORED, to=_of("int", *wide), saturate=_FLAG)
    yield _row("Constant", 1, 11, (0, 0), (), MOVED, value=_TENSOR)
    lists = {"value_int": _INT, "value_ints": _INTS, "value_float": _any("float"), "value_floats": _any("floats")}
    yield _row("Constant", 12, 12, (0, 0), (), MOVED, value=_TENSOR, **lists)
    yield _row("Constant", 13, 20, (0, 0), (), wide, value=_TENSOR, **lists)
    yield _row("Constant", 21, new, (0, 0), (), STORED, value=_TENSOR, **lists)
    yield _row("ConstantOfShape", 9, new, (1, 1), (), (INT64,), value=_TENSOR)
    quantised = (2, 3, INT32)
    yield _row("DequantizeLinear", 10, 12, (2, 3), (), quantised)
    yield _row("DequantizeLinear", 13, 18, (2, 3), (), quantised, axis=_INT)
    yield _row("DequantizeLinear", 19, 20, (2, 3), (), quantised, axis=_INT)
    blocks = {"axis": _INT, "block_size": _at_least("int", 0)}
    yield _row("DequantizeLinear", 21, 22, (2, 3), (), (*quantised, 4, 5, 21, 22), **blocks)
    yield _row("DequantizeLinear", 23, new, (2, 3), (), (*quantised, 4, 5, 21, 22), **blocks, output_dtype=_INT)
    yield _row("Equal", 7, 10, (2, 2), INTEGERS, (BOOL, *INTEGERS))
    yield _row("Equal", 11, new, (2, 2), NUMBERS, (BOOL, *NUMBERS))
    for op in ("Less", "Greater"):
        yield _row(op, 7, 8, (2, 2), FLOATS, FLOATS)
        yield _row(op, 9, new, (2, 2), NUMBERS, NUMBERS)
        yield _row(f"{op}OrEqual", 12, new, (2, 2), NUMBERS, NUMBERS)
    yield _row("Not", 1, new, (1, 1), (BOOL,), (BOOL,))
    yield _row("And", 7, new, (2, 2), (BOOL,), (BOOL,))
    yield _row("Or", 7, new, (2, 2), (BOOL,), (BOOL,))
    yield _row("Xor", 7, new, (2, 2), (BOOL,), (BOOL,))
    yield _row("Where", 9, new, (3, 3), (BOOL,), (BOOL,))
    yield _row("Mod", 10, new, (2, 2), (), INTEGERS, fmod=_FLAG)
    yield _row("Range", 11, new, (3, 3), (), INTEGERS)


def _recurrent(new: int) -> Iterator[Row]:
    more: dict[str, tuple[int, dict[str, Rule]]] = {
        "RNN": (6, {}),
        "GRU": (6, {"linear_before_reset": _FLAG}),
        "LSTM": (8, {"input_forget": _of("int", 0)}),
    }
    for op, (most, extra) in more.items():
        shared = {
            "direction": _of("string", "forward", "reverse", "bidirectional"),
            "hidden_size": _at_least("int", 1),
            "activations": _any("strings"),  # its handler knows which
        }
        yield _row(op, 7, 13, (3, most), SINGLE, (), **shared, **extra)
        yield _row(op, 14, new, (3, most), SINGLE, (), **shared, **extra, layout=_of("int", 0))


def _fused() -> Iterator[Row]:
    """What onnxruntime's optimiser writes, in its own operator set."""
    gemm = {"alpha": _FLOAT, "beta": _FLOAT, "transA": _FLAG, "transB": _FLAG}
    name = "activation"
    some = ("", "Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid")
    functions = _of("string", *some, "Elu", "Selu", "Softplus", "Softsign", "ThresholdedRelu")
    numbers = {f"{name}_{k}": _FLOAT for k in ("alpha", "beta", "gamma")}
    yield _row("com.microsoft::FusedGemm", 1, 1, (2, 3), SINGLE, (), **gemm, **numbers, **{name: functions})
    conv = {**_DILATED, "group": _at_least("int", 1), f"{name}_params": _any("floats")}
    clipped = _of("string", *some[1:], "Clip")  # onnxruntime knows no function without a name here
    yield _row("com.microsoft::FusedConv", 1, 1, (2, 4), SINGLE, (), **conv, **{name: clipped})
    turns = {"alpha": _FLOAT, **dict.fromkeys(("transA", "transB", "transBatchA", "transBatchB"), _FLAG)}
    yield _row("com.microsoft::FusedMatMul", 1, 1, (2, 2), SINGLE, (), **turns)
    yield _row("com.microsoft::Gelu", 1, 1, (1, 1), SINGLE)
    yield _row("com.microsoft::BiasGelu", 1, 1, (2, 2), SINGLE)
    yield _row("com.microsoft::FastGelu", 1, 1, (1, 2), SINGLE)
    yield _row("com.microsoft::QuickGelu", 1, 1, (1, 1), SINGLE, (), alpha=_FLOAT)
    epsilon = {"epsilon": _NONNEGATIVE}
    yield _row("com.microsoft::SkipLayerNormalization", 1, 1, (3, 5), SINGLE, (), **epsilon)
    yield _row("com.microsoft::SkipSimplifiedLayerNormalization", 1, 1, (3, 4), SINGLE, (), **epsilon)


TABLE: tuple[Row, ...] = tuple(_rows())
_BY_NAME: dict[str, tuple[Row, ...]] = {}
for _entry in TABLE:
    _BY_NAME[_entry.op] = (*_BY_NAME.get(_entry.op, ()), _entry)


# parts of the names of operators that compute in few bits, but for DequantizeLinear, which is read
QUANTISING = ("QuantizeLinear", "QLinear", "Integer", "Quantize", "QGemm", "NBits", "QAttention", "FusedQuant")
QUANTISED = "activations in few bits are not read so far, weights in few bits are (DequantizeLinear)"


def lookup(node: OnnxNode) -> Row:
    """The row of a node, its operator set, number of inputs and attributes checked.

    Raises `UnsupportedError` naming what the table does not hold.
    """
    rows = _BY_NAME.get(node.op)
    if rows is None:
        word = node.op.rpartition("::")[2]
        raise node.unsupported(QUANTISED if any(part in word for part in QUANTISING) else "")
    row = next((r for r in rows if r.opsets[0] <= node.opset <= r.opsets[1]), None)
    if row is None:
        raise node.unsupported(f"operator set {node.opset}")
    least, most = row.inputs
    if not least <= len(node.inputs) <= most or not all(node.inputs[:least]):
        wanted = f"{least}" if least == most else f"{least} or more" if most > 9 else f"{least} to {most}"
        raise node.invalid(f"it takes {wanted} inputs, here are {[i[:20] for i in node.inputs[:8]]}")
    for key, value in node.attributes.items():
        rule = row.attributes.get(key)
        if rule is None:
            raise node.unsupported(f"attribute {shortened(key)} in operator set {node.opset}")
        if node.attribute_kinds[key] != KINDS[rule.kind]:
            raise node.invalid(f"attribute {key!r} is not of the kind {rule.kind}")
        if not rule.allows(value):
            shown = repr(value[:80] if isinstance(value, (str, tuple)) else value)
            raise node.unsupported(f"{key} {shown} (read are: {rule.text})")
    return row


def check_types(node: OnnxNode, row: Row, kinds: list[int], variable: bool) -> None:
    """Refuse element types that the row does not hold, and first inputs of different types where they must agree."""
    if not kinds:
        return
    allowed = row.variable if variable else row.constant
    if not allowed:
        raise node.unsupported("on values that depend on the network's input" if variable else "on constants")
    if kinds[0] not in allowed:
        raise UnsupportedError(f"{node.title} is not supported: element type {kinds[0]}")
    if node.op not in MIXED and any(k != kinds[0] for k in kinds[1:]):
        raise node.invalid(f"its inputs have the element types {kinds}")


# operators whose further inputs have types of their own (their handlers look at them)
MIXED = frozenset(
    "Reshape Squeeze Unsqueeze Slice Gather Split Expand Tile Upsample Resize Dropout Pow Pad Where DequantizeLinear "
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum "
    "ReduceLogSumExp GatherND GatherElements ScatterND ScatterElements Trilu CumSum LSTM GRU RNN".split()
)
