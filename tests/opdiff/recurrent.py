"""Generators for recurrent layers."""

from __future__ import annotations

import numpy as np

from .make import Case, Maker

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def recurrent(m: Maker) -> Case:
    """LSTM, GRU and RNN in all directions, with or without biases, lengths and states; one of the outputs."""
    assert m.row
    op = m.row.op
    steps, batch, inputs, hidden = m.whole(1, 4), m.pick(1, 1, 2), m.whole(1, 3), m.whole(1, 3)
    way = m.pick("forward", "reverse", "bidirectional")
    ways, rows = 2 if way == "bidirectional" else 1, GATES[op] * hidden
    names = ["x", m.tensor("w", m.draw([ways, rows, inputs])), m.tensor("r", m.draw([ways, rows, hidden]))]
    names.append(m.tensor("b", m.draw([ways, 2 * rows])) if m.likely(0.6) else "")
    names.append(m.tensor("l", np.full(batch, steps, np.int32)) if m.likely(0.2) else "")
    for state in "hc" if op == "LSTM" else "h":
        names.append(m.tensor(f"{state}0", m.draw([ways, batch, hidden])) if m.likely(0.4) else "")
    at = {"hidden_size": hidden} | m.some(0.7 if way == "forward" else 1.0, direction=way)
    at |= m.some(linear_before_reset=m.pick(0, 1), input_forget=0, layout=0)
    if m.likely(0.3):
        free = op == "RNN"
        at["activations"] = [m.pick("Sigmoid", "Tanh", "Relu") if free else a for a in USUAL[op] * ways]
    outputs = ["every", "hidden", "cell"] if op == "LSTM" else ["every", "hidden"]
    which = m.whole(0, len(outputs) - 1)
    m.node(op, names, [o if i == which or m.likely(0.3) else "" for i, o in enumerate(outputs)], **at)
    return m.case(m.node("Neg", [outputs[which]], "z"), [steps, batch, inputs])


GENERATORS = {recurrent: "LSTM GRU RNN"}
