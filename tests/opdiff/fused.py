"""Generators for operators that onnxruntime's optimiser writes."""

from __future__ import annotations

from typing import Any

from .arithmetic import gemm
from .images import conv
from .make import Case, Maker

ENDS = {"": 0, "Relu": 0, "Sigmoid": 0, "Tanh": 0, "LeakyRelu": 1, "HardSigmoid": 2, "Clip": 2}
MORE = {"Elu": ("alpha",), "Selu": ("alpha", "gamma"), "ThresholdedRelu": ("alpha",), "Softplus": (), "Softsign": ()}


def _replaced(m: Maker, more: list[str], **attributes: Any) -> None:
    """Make the last plain node a fused one."""
    from onnx import helper

    assert m.row
    plain = next(n for n in m.nodes if n.op_type in m.row.op and "beside" not in n.output)
    at = {a.name: helper.get_attribute_value(a) for a in plain.attribute} | attributes
    names = [*plain.input, *([""] if more and len(plain.input) == 2 else []), *more]
    domain, _, op = m.row.op.partition("::")
    made = helper.make_node(op, names, plain.output, name=plain.name, domain=domain, **at)
    m.nodes[m.nodes.index(plain)] = made


def fused_gemm(m: Maker) -> Case:
    assert m.row
    row, m.row = m.row, next(r for r in _table() if str(r).startswith("Gemm 11"))
    made = gemm(m)
    name = m.pick(*(n for n in (*ENDS, *MORE) if n != "Clip"))
    keys = MORE.get(name, ("alpha", "beta")[: ENDS.get(name, 0)])
    at = {f"activation_{k}": m.pick(0.1, 0.25, 0.5) for k in keys}
    m.row = row
    _replaced(m, [], activation=name, **at)
    return _again(m, made)


def fused_conv(m: Maker) -> Case:
    assert m.row
    row, m.row = m.row, next(r for r in _table() if str(r).startswith("Conv 1"))
    made = conv(m)
    name = m.pick(*ENDS)
    numbers = {"LeakyRelu": [0.1], "HardSigmoid": [0.3, 0.4], "Clip": [-0.5, 0.75]}.get(name, [])
    m.row, more = row, []
    if m.likely(0.3) and len(made.shape) == 4:
        plain = next(n for n in m.nodes if n.op_type == "Conv")
        more = [m.node("Neg", [m.node("Conv", list(plain.input), "beside", **_attributes(plain))], "addend")]
        m.nodes.insert(0, m.nodes.pop())
        m.nodes.insert(0, m.nodes.pop())
    at: dict[str, Any] = {"activation": name} if name else {}
    _replaced(m, more, **at, **({"activation_params": numbers} if numbers else {}))
    return _again(m, made)


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def _table() -> Any:
    from mucg4.read.table import TABLE

    return TABLE


def _again(m: Maker, case: Case) -> Case:
    """The case with the nodes as they are now."""
    import onnx

    model = onnx.load_model_from_string(case.data)
    output = model.graph.output[0].name
    del model.graph.node[:]
    model.graph.node.extend(m.nodes)
    assert any(output in n.output for n in m.nodes)
    return Case(model.SerializeToString(), case.shape, case.kind, case.scale, case.positive, case.text)


def fused_matmul(m: Maker) -> Case:
    """Either side variable; one or both of them turned, in their last two axes or in the first ones."""
    assert m.row
    outer = [m.whole(1, 2) for _ in range(m.whole(0, 2))] if m.likely(0.6) else []
    n, k, p = (m.whole(1, 4) for _ in range(3))
    sides, at = [], m.some(alpha=m.pick(1.0, 0.5, -0.3))
    for side, lines in (("A", [n, k]), ("B", [k, p])):
        turn, deep = m.pick(0, 1), int(bool(outer) and m.likely(0.3))
        last = lines[::-1] if turn else lines
        sides.append([last[0], *outer, last[1]] if deep else [*outer, *last])
        at |= {f"trans{side}": turn} | ({f"transBatch{side}": deep} if deep or m.likely(0.3) else {})
    which = m.whole(0, 1)
    names = ["x" if i == which else m.tensor("w", m.draw(s)) for i, s in enumerate(sides)]
    if sides[0] == sides[1] and m.likely(0.7):
        names[1 - which] = m.node("Abs", ["x"], "ax")
    return m.case(m.node(m.row.op, names, "z", **at), sides[which])


def gelus(m: Maker) -> Case:
    """Gelu, BiasGelu, FastGelu and QuickGelu."""
    assert m.row
    shape, names = m.shape(2, 3), ["x"]
    if m.row.inputs[1] == 2 and (m.row.inputs[0] == 2 or m.likely(0.5)):
        names.append(m.tensor("b", m.draw(shape[-1:])))
    return m.case(m.node(m.row.op, names, "z", **m.some(0.7, alpha=m.pick(1.0, 1.702, 0.5, 3.0))), shape)


def skipped(m: Maker) -> Case:
    """SkipLayerNormalization and its simplified form, some with the sum as an output."""
    assert m.row
    simple = "Simplified" in m.row.op
    shape = [m.pick(1, 2), m.whole(1, 3), m.whole(2, 5)]
    other = m.node("Sin", ["x"], "s") if m.likely(0.5) else m.tensor("k", m.draw(shape))
    names = ["x", other, *(m.tensor(k, m.draw(shape[-1:])) for k in ("g" if simple else "gb"))]
    if m.likely(0.5):
        names.append(m.tensor("c", m.draw(shape[-1:])))
    if m.likely(0.5):
        m.node(m.row.op, names, ["z0", "", "", "z1"], **m.some(epsilon=m.pick(1e-5, 1e-3)))
        return m.case(m.node("Add", ["z0", "z1"], "z"), shape)
    return m.case(m.node(m.row.op, names, "z", **m.some(0.8, epsilon=m.pick(1e-5, 1e-3))), shape)


def learned(m: Maker) -> Case:
    """Scaler and LinearRegressor."""
    assert m.row
    if m.row.op.endswith("Scaler"):
        shape = m.shape(2, 2)
        size = m.pick(1, shape[-1])
        at = {k: m.draw([size]).tolist() for k in ("offset", "scale")}
        return m.case(m.node(m.row.op, ["x"], "z", **at), shape)
    shape, targets = [1, m.whole(1, 4)], m.whole(1, 3)
    at = {"coefficients": m.draw([targets * shape[1]]).tolist(), "targets": targets}
    at |= {"intercepts": m.draw([targets]).tolist()} if m.likely(0.7) else {}
    return m.case(m.node(m.row.op, ["x"], "z", **at, **m.some(post_transform="NONE")), shape)


_SET = "com.microsoft::"
GENERATORS = {
    learned: "ai.onnx.ml::Scaler ai.onnx.ml::LinearRegressor",
    fused_gemm: f"{_SET}FusedGemm",
    fused_conv: f"{_SET}FusedConv",
    fused_matmul: f"{_SET}FusedMatMul",
    gelus: " ".join(f"{_SET}{k}Gelu" for k in ("", "Bias", "Fast", "Quick")),
    skipped: f"{_SET}SkipLayerNormalization {_SET}SkipSimplifiedLayerNormalization",
}
