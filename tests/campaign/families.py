"""Random graphs, one function per family. Each takes a generator and gives a graph and the spread of its inputs' box.

`EXACT` families are piecewise linear and so small that `exact` knows their answers; for `SAMPLED` ones points run by
onnxruntime are the evidence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .instance import Graph, Node

Rng = np.random.Generator


class Net:
    """Grows a graph; method names are the operators' (`net.Relu(v)`), keyword arguments their attributes."""

    def __init__(self, shape: tuple[int, ...], dtype: str = "float32", opset: int = 13) -> None:
        self.shape, self.dtype, self.opset = shape, dtype, opset
        self.nodes: list[Node] = []
        self.tensors: dict[str, np.ndarray] = {}

    def const(self, value: Any, dtype: Any = None) -> str:
        name = f"c{len(self.tensors)}"
        self.tensors[name] = np.asarray(value, dtype=dtype or self.dtype)
        return name

    def ints(self, *value: int) -> str:
        return self.const(value, np.int64)

    def __getattr__(self, op: str) -> Callable[..., str]:
        if not op[0].isupper():
            raise AttributeError(op)

        def add(*inputs: str, **attributes: Any) -> str:
            out = f"v{len(self.nodes)}"
            known = tuple((k, v) for k, v in attributes.items() if v is not None)
            self.nodes.append(Node(op, inputs, (out,), known))
            return out

        return add

    def graph(self) -> Graph:
        return Graph(tuple(self.nodes), self.tensors, self.shape, self.dtype, self.opset)


def weights(rng: Rng, *shape: int) -> np.ndarray:
    """Numbers of one style: coarse with many ties, dyadic, plain, plain with zeros, or of very different size."""
    style = rng.integers(5)
    w = rng.normal(size=shape)
    if style == 0:
        return np.round(2 * w) / 2
    if style == 1:
        return np.round(64 * w) / 64
    if style == 3:
        return w * (rng.random(shape) < 0.6)
    if style == 4:
        return w * 10.0 ** rng.integers(-3, 4, size=shape)
    return w


def pick(rng: Rng, *choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def dense(rng: Rng) -> Graph:
    """Gemm or MatMul and Add, ReLUs between."""
    return chain(rng, lambda net, v: net.Relu(v))


def double(rng: Rng) -> Graph:
    """The same in float64."""
    return chain(rng, lambda net, v: net.Relu(v), dtype="float64")


def chain(rng: Rng, activation: Callable[[Net, str], str], dtype: str = "float32", depth: int = 3) -> Graph:
    sizes = [int(rng.integers(1, 5)), *rng.integers(1, 5, size=int(rng.integers(1, depth))), int(rng.integers(1, 4))]
    net = Net((1, sizes[0]), dtype)
    v = "x"
    for k, (n, m) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        v = affine(net, rng, v, n, int(m))
        if k + 2 < len(sizes):
            v = activation(net, v)
    return net.graph()


def affine(net: Net, rng: Rng, v: str, n: int, m: int) -> str:
    """A dense layer in one of its spellings."""
    w, b = weights(rng, m, n), weights(rng, m)
    kind = rng.integers(3)
    if kind == 0:
        return net.Gemm(v, net.const(w), net.const(b), transB=1)
    if kind == 1:
        return net.Gemm(v, net.const(w.T), net.const(b), alpha=float(pick(rng, 1.0, 0.5, 0.1)), beta=1.0)
    return net.Add(net.MatMul(v, net.const(w.T)), net.const(b))


def pieces(rng: Rng) -> Graph:
    """Clip, PRelu, LeakyRelu, HardSigmoid, Abs, Max, Min."""

    def activation(net: Net, v: str) -> str:
        kind = rng.integers(8)
        if kind == 0:
            return net.LeakyRelu(v, alpha=float(pick(rng, 0.1, -0.5, 1.5, 0.01, -2.0)))
        if kind == 1:
            return net.PRelu(v, net.const(pick(rng, [0.25], [-0.5], [1.5], [0.0])))
        if kind == 2:
            return net.Abs(v)
        if kind == 3:
            return net.HardSigmoid(v, alpha=float(pick(rng, 0.2, 0.5, 1.0)), beta=float(pick(rng, 0.5, 0.1, 0.0)))
        if kind == 4:
            return net.Max(v, net.const(pick(rng, 0.0, -0.5, 0.3)))
        if kind == 5:
            return net.Min(v, net.Mul(v, net.const(pick(rng, 0.5, -1.0, 2.0))))
        if kind == 6:
            low, high = sorted(rng.choice([-2.0, -1.0, -0.3, 0.0, 0.1, 0.5, 1.0, 6.0], size=2, replace=False))
            return net.Clip(v, net.const(low), net.const(high))
        big = np.finfo(np.float32).max
        low, high = pick(rng, (big, None), (-big, big), (None, -big), (-np.inf, 0.5), (0.0, np.inf), (0.0, big))
        ends = ["" if e is None else net.const(e) for e in (low, high)]
        return net.Clip(v, *(ends if ends[1] else ends[:1]))

    return chain(rng, activation)


def residual(rng: Rng) -> Graph:
    """A sum of a branch and what it started from, and a difference or concatenation behind it."""
    n, m = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    net = Net((1, n))
    first = net.Relu(affine(net, rng, "x", n, m))
    inner = net.Relu(affine(net, rng, first, m, m))
    v = pick(rng, net.Add, net.Sub)(first, affine(net, rng, inner, m, m))
    if rng.random() < 0.4:
        v, m = net.Concat(v, "x", axis=1), m + n
    return affine_end(net, rng, v, m)


def affine_end(net: Net, rng: Rng, v: str, m: int) -> Graph:
    affine(net, rng, net.Relu(v) if rng.random() < 0.5 else v, m, int(rng.integers(1, 3)))
    return net.graph()


def conv(rng: Rng) -> Graph:
    """Convolutions with explicit padding, strides, dilations and groups, then a dense end."""
    c, h, w = int(rng.integers(1, 3)), int(rng.integers(2, 5)), int(rng.integers(2, 5))
    net = Net((1, c, h, w))
    k = [int(rng.integers(1, 3)), int(rng.integers(1, 3))]
    group = c if rng.random() < 0.3 else 1
    out = c * int(rng.integers(1, 3))
    at: dict[str, Any] = {"strides": [int(rng.integers(1, 3)) for _ in k], "group": group}
    if rng.random() < 0.5:
        at["pads"] = [int(rng.integers(0, 2)) for _ in range(4)]
    v = net.Conv("x", net.const(weights(rng, out, c // group, *k)), net.const(weights(rng, out)), kernel_shape=k, **at)
    v = net.Relu(v)
    return flat_end(net, rng, v)


def flat_end(net: Net, rng: Rng, v: str) -> Graph:
    """Flatten and a dense layer; the size comes from onnx's own shape inference."""
    shape = shape_of(net, v)
    if not np.prod(shape):
        raise ValueError("nothing is left of the image")
    flat = net.Flatten(v) if shape[0] == 1 and rng.random() < 0.7 else net.Reshape(v, net.ints(1, -1))
    return affine_end(net, rng, flat, int(np.prod(shape)))


def shape_of(net: Net, v: str) -> list[int]:
    """The dimensions of the tensor v."""
    import onnx

    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(net.graph().onnx()))
    known = {i.name: i.type.tensor_type.shape.dim for i in (*inferred.graph.value_info, *inferred.graph.output)}
    return [d.dim_value for d in known[v]]


def pools(rng: Rng) -> Graph:
    """Max and average pools between a scale and a dense end."""
    c, h, w = int(rng.integers(1, 3)), int(rng.integers(2, 5)), int(rng.integers(2, 5))
    net = Net((1, c, h, w))
    v = net.Mul("x", net.const(weights(rng, 1, c, 1, 1)))
    kind = rng.integers(4)
    at: dict[str, Any] = {"kernel_shape": [2, int(rng.integers(1, 3))], "strides": [1, int(rng.integers(1, 3))]}
    if rng.random() < 0.4:
        at["pads"] = [1, 0, int(rng.integers(0, 2)), 0]
    if kind == 0:
        v = net.MaxPool(v, **at)
    elif kind == 1:
        v = net.AveragePool(v, count_include_pad=int(rng.integers(2)), **at)
    elif kind == 2:
        v = net.GlobalMaxPool(v)
    else:
        v = net.ReduceMax(v, axes=[int(rng.integers(1, 4))], keepdims=int(rng.integers(2)))
    return flat_end(net, rng, v)


def cancel(rng: Rng) -> Graph:
    """Terms of size 2^10 to 2^24 that cancel, exactly in real arithmetic and not in float32."""
    n = int(rng.integers(1, 3))
    net = Net((1, n))
    m = int(rng.integers(1, 3))
    big = float(2.0 ** rng.integers(10, 25))
    v = affine(net, rng, "x", n, m)
    bend = net.Relu(net.Add(v, net.const(weights(rng, m))))
    up = net.Mul(bend, net.const(big))
    v = net.Sub(net.Add(net.Relu(v), up), net.Mul(bend, net.const(big * pick(rng, 1.0, 1.0, 1 + 2.0**-23))))
    return affine_end(net, rng, v, m)


def folded(rng: Rng) -> Graph:
    """Constants computed in the graph: chains of sums, products, matrix products, steps and integer divisions."""
    n = int(rng.integers(1, 3))
    net = Net((1, n))
    kind = rng.integers(5)
    if kind == 0:  # many additions of one constant
        c, step = net.const(weights(rng, n)), net.const(rng.normal(size=n) * 0.1)
        for _ in range(int(pick(rng, 10, 100, 900))):
            c = net.Add(c, step)
    elif kind == 1:  # digits that are lost and scaled up again
        big = net.const(float(2.0 ** rng.integers(20, 50)))
        c = net.Mul(net.Sub(net.Add(net.const(weights(rng, n)), big), big), net.const(float(pick(rng, 1.0, 8.0))))
    elif kind == 2:  # a step of a computed constant
        third = net.Div(net.const(1.0), net.const(float(rng.integers(3, 50))))
        scaled = net.Mul(net.const(float(rng.integers(3, 50))), third)
        c = pick(rng, net.Floor, net.Ceil, net.Sign)(net.Sub(scaled, net.const(float(rng.integers(0, 3)))))
    elif kind == 3:  # integers
        top = int(pick(rng, 7, -7, 2**53 + 1, -(2**53) - 3, 2**62 + 5))
        q = net.Div(net.ints(top), net.ints(int(pick(rng, 2, 3, -3, 2**30))))
        c = net.Cast(net.Sub(q, net.ints(round(top / 3) if abs(top) < 99 else top // 3)), to=1)
    else:
        a, b = net.const(weights(rng, 1, 8)), net.const(weights(rng, 8, n))
        c = net.MatMul(a, b)
    v = net.Relu(net.Add("x", c))
    return affine_end(net, rng, v, n)


def smooth(rng: Rng) -> Graph:
    """Smooth functions in a dense network."""
    names = ("Sigmoid", "Tanh", "Softplus", "Softsign", "Atan", "Erf", "Exp", "Sin", "Cos", "Elu", "Selu", "Mish")
    opset = 18
    chosen = pick(rng, *names)

    def activation(net: Net, v: str) -> str:
        net.opset = opset
        return getattr(net, chosen)(v)

    return chain(rng, activation)


def steps(rng: Rng) -> Graph:
    """Functions that jump."""

    def activation(net: Net, v: str) -> str:
        return pick(rng, net.Sign, net.Floor, net.Ceil, net.Round, lambda u: net.ThresholdedRelu(u, alpha=0.5))(v)

    return chain(rng, activation, depth=2)


def choices(rng: Rng) -> Graph:
    """Comparisons, logic, choices, and integers that casts make, of a dense layer's outputs."""
    n, m = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    net = Net((1, n), opset=int(pick(rng, 13, 16, 18)))
    a, b = affine(net, rng, "x", n, m), affine(net, rng, "x", n, m)
    limit = net.const(np.round(2 * rng.normal(size=m)) / 2)

    def test(v: str) -> str:
        other = pick(rng, limit, limit, b, net.const(0.0))
        op = pick(rng, net.Greater, net.Less, net.GreaterOrEqual, net.LessOrEqual, net.Equal)
        return op(*pick(rng, (v, other), (other, v)))

    kind = rng.integers(6)
    if kind == 0:
        v = net.Where(test(a), a, pick(rng, b, limit, net.const(0.0)))
    elif kind == 1:
        both = pick(rng, net.And, net.Or, net.Xor)(test(a), net.Not(test(b)))
        v = net.Where(both, pick(rng, a, limit), pick(rng, b, net.const(1.0)))
    elif kind == 2:
        v = net.Mul(a, net.Cast(test(b), to=1))
    elif kind == 3:
        v = net.Cast(net.Cast(net.Mul(a, net.const(pick(rng, 1.0, 3.0))), to=int(pick(rng, 6, 7, 3))), to=1)
    elif kind == 4:
        to = int(pick(rng, 6, 7))
        i, j = net.Cast(a, to=to), net.Cast(net.Mul(b, net.const(2.0)), to=to)
        k = net.const(rng.integers(-2, 3, size=m), np.int64 if to == 7 else np.int32)
        i = pick(rng, net.Add, net.Sub, net.Mul)(i, pick(rng, j, k))
        chosen = net.Where(pick(rng, net.Greater, net.Equal)(i, k), i, pick(rng, j, k))
        v = net.Cast(pick(rng, i, chosen, net.Abs(net.Neg(i))), to=1)
    else:
        v = net.Mul(net.Cast(net.Cast(a, to=9), to=1), b)
    return affine_end(net, rng, pick(rng, v, net.Add(v, a)), m)


def masked(rng: Rng) -> Graph:
    """Attention with a mask of minus infinity."""
    n, rows = int(rng.integers(1, 3)), int(rng.integers(2, 4))
    net = Net((1, n))
    a, b = affine(net, rng, "x", n, rows), affine(net, rng, "x", n, rows)
    scores = net.MatMul(net.Reshape(a, net.ints(rows, 1)), net.Reshape(b, net.ints(1, rows)))
    mask = rng.random((rows, rows)) < 0.5
    mask[np.arange(rows), np.arange(rows)] = False
    if rng.random() < 0.5:
        low = net.const(-np.inf)
        scores = net.Where(net.const(mask, bool), low, scores)
    else:
        scores = net.Add(scores, net.const(np.where(mask, -np.inf, 0.0)))
    kind = rng.integers(3)
    if kind == 0:
        v = net.MatMul(net.Softmax(scores, axis=-1), net.Reshape(a, net.ints(rows, 1)))
    elif kind == 1:
        v = net.ReduceMax(scores, axes=[1], keepdims=0)
        v = net.Reshape(v, net.ints(1, rows))
    else:
        v = pick(rng, net.Relu, net.Exp, net.Sigmoid)(scores)
    return flat_end(net, rng, v)


def products(rng: Rng) -> Graph:
    """Products of variables, powers, quotients, Softmax."""
    n = int(rng.integers(1, 4))
    net = Net((1, n))
    a, b = affine(net, rng, "x", n, 2), affine(net, rng, "x", n, 2)
    kind = rng.integers(7)
    if kind == 0:
        v = net.Mul(a, b)
    elif kind == 5:
        v = net.Pow(net.const(pick(rng, [2.0, 0.5], [1.0, 3.0])), a)
    elif kind == 6:
        positive = net.Add(net.Abs(a), net.const(0.5))
        v = net.Pow(positive, net.const(rng.choice([0.0, 1.0, 2.0, -1.0, 0.5, 0.3, -1.5, 3.0], size=2)))
    elif kind == 1:
        v = net.Softmax(net.Concat(a, b, axis=1), axis=-1)
    elif kind == 2:
        v = net.Pow(a, net.const(float(pick(rng, 2, 3, 4))))
    elif kind == 3:
        v = net.Div(a, net.Add(net.Abs(b), net.const(1.0)))
    else:
        v = net.MatMul(net.Reshape(a, net.ints(2, 1)), net.Reshape(b, net.ints(1, 2)))
    return flat_end(net, rng, v)


def exotic(rng: Rng) -> Graph:
    """One operator with attributes that few models use, on an image, with a dense end."""
    kind = int(pick(rng, 0, 1, 1, 2, 3, 4, 4, 5, 6, 7, 8))
    opset = int(pick(rng, 11, 13, 18, 18))
    c, h, w = int(rng.integers(1, 3)), int(rng.integers(2, 6)), int(rng.integers(2, 6))
    net = Net((1, c, h, w), opset=opset)
    spatial = {
        "strides": [int(rng.integers(1, 3)) for _ in "ab"],
        "auto_pad": pick(rng, "SAME_UPPER", "SAME_LOWER", "VALID"),
    }
    spread = {"dilations": [int(rng.integers(1, 3)) for _ in "ab"]} if rng.random() < 0.6 else {}
    k = [int(rng.integers(1, 4)), int(rng.integers(1, 4))]
    if kind == 0:
        out, group = c * 2, pick(rng, 1, c)
        v = net.Conv("x", net.const(weights(rng, out, c // group, *k)), group=group, **spatial, **spread)
    elif kind == 1:
        v = net.MaxPool("x", kernel_shape=k, **_ceiling(rng, k, spatial), **spread)
    elif kind == 2:
        v = net.AveragePool("x", kernel_shape=k, count_include_pad=int(rng.integers(2)), **_ceiling(rng, k, spatial))
    elif kind in (3, 4):
        v = _resize(net, rng, (1, c, h, w))
    elif kind == 5:
        at = {"strides": spatial["strides"], "pads": [int(rng.integers(0, 2)) for _ in range(4)]}
        at["output_padding"] = [int(rng.integers(0, s)) for s in at["strides"]]
        v = net.ConvTranspose("x", net.const(weights(rng, c, 2, *k)), **at)
    elif kind == 6:
        mode = pick(rng, "reflect", "edge", "constant")
        pads = [0, 0, *(int(v) for v in rng.integers(0, 2, size=2))] * 2
        v = net.Pad("x", net.ints(*pads), *([net.const(1.25)] if mode == "constant" else []), mode=mode)
    elif kind == 7:
        axes = [int(v) for v in rng.choice([-1, -2, -3], size=int(rng.integers(1, 3)), replace=False)]
        keep = int(rng.integers(2))
        name = pick(rng, "ReduceMean", "ReduceMax", "ReduceMin")
        if opset >= 18:
            v = getattr(net, name)("x", net.ints(*axes), keepdims=keep)
        else:
            v = getattr(net, name)("x", axes=axes, keepdims=keep)
    else:
        rows = net.Reshape("x", net.ints(c * h, w))
        v = net.Gemm(rows, net.const(weights(rng, c * h, 2)), transA=1, alpha=0.5)
    if len(shape_of(net, v)) == 4 and rng.random() < 0.5:  # an end that fits whatever size somebody reads
        v = pick(rng, net.GlobalMaxPool, net.GlobalAveragePool)(v)
    return flat_end(net, rng, v)


def _ceiling(rng: Rng, k: list[int], spatial: dict[str, Any]) -> dict[str, Any]:
    """Explicit padding with `ceil_mode`, or the automatic one."""
    if rng.random() < 0.4:
        return spatial
    pads = [int(rng.integers(0, n)) for n in (*k, *k)]
    return {"strides": spatial["strides"], "pads": pads, "ceil_mode": int(rng.random() < 0.7)}


def _resize(net: Net, rng: Rng, shape: tuple[int, ...]) -> str:
    """Upsample or Resize to the nearest pixel, sizes and scales that keep the length included."""
    if rng.random() < 0.25:
        net.opset = 9
        scales = [1.0, 1.0, *(float(np.float32(pick(rng, 1.0, 1.3, 1.5, 2.0))) for _ in "ab")]
        return net.Upsample("x", net.const(scales), mode="nearest")
    at: dict[str, Any] = {
        "mode": "nearest",
        "coordinate_transformation_mode": pick(rng, "half_pixel", "asymmetric", "align_corners"),
        "nearest_mode": pick(rng, "floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
    }
    empty = net.const(np.zeros(0))
    if rng.random() < 0.5:
        scales = [1.0, 1.0, *(float(np.float32(pick(rng, 1.0, 1.2, 1.3, 0.9, 1.5, 2.0, 0.6))) for _ in "ab")]
        return net.Resize("x", empty, net.const(scales), **at)
    sizes = [*shape[:2], *(int(n + rng.integers(-1, 4)) for n in shape[2:])]
    if net.opset >= 18 and rng.random() < 0.6:
        at["keep_aspect_ratio_policy"] = pick(rng, "not_larger", "not_smaller")
    return net.Resize("x", empty, empty, net.ints(*sizes), **at)


def casts(rng: Rng) -> Graph:
    """A float64 model that goes through float32 and back, the lost digits scaled up."""
    n = int(rng.integers(1, 3))
    net = Net((1, n), "float64")
    low = net.Cast(net.Cast("x", to=1), to=11)
    lost = net.Mul(net.Sub("x", low), net.const(float(2.0 ** rng.integers(18, 26))))
    v = net.Relu(net.Add(lost, net.const(weights(rng, n)))) if rng.random() < 0.5 else net.Add(lost, "x")
    return affine_end(net, rng, v, n)


EXACT: dict[str, Callable[[Rng], Graph]] = {
    "dense": dense,
    "double": double,
    "pieces": pieces,
    "residual": residual,
    "conv": conv,
    "pools": pools,
    "cancel": cancel,
    "folded": folded,
}
SAMPLED: dict[str, Callable[[Rng], Graph]] = {
    "smooth": smooth,
    "steps": steps,
    "choices": choices,
    "masked": masked,
    "products": products,
    "exotic": exotic,
    "casts": casts,
}
FAMILIES = {**EXACT, **SAMPLED}
SHARE = {"dense": 4, "double": 1, "pieces": 3, "residual": 2, "conv": 1, "pools": 1, "cancel": 1.5}
SHARE |= {
    "smooth": 1.5,
    "steps": 1.5,
    "choices": 1.5,
    "masked": 1,
    "products": 1,
    "exotic": 4,
    "folded": 1.5,
    "casts": 0.7,
}
