"""Broken models: bytes and fields of small sound ones, changed at random. Reading one has to end in a network or in
an error of mucg4's own, soon and without much memory."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import Any

import numpy as np
import onnx

from mucg4.errors import Mucg4Error
from mucg4.read.onnx import read_network

from .compare import make, targets

NUMBERS = (0, 1, -1, 2, 3, 7, -5, 64, 2**20, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-45, 3.4e38, -3.4e38, float("inf"), -float("inf"), float("nan"), 0.3)
OPERATORS = sorted({row.op for row, _, _ in targets()}) + ["If", "Loop", "LSTM", "Einsum", "", "NoSuch"]
SECONDS = 3.0  # reading a small mutant takes no longer, whatever numbers stand in it


def broken(chance: random.Random) -> bytes:
    """One mutant."""
    data = make(chance, chance.choice([None, *targets()])).data
    if chance.random() < 0.4:
        return _bytes(chance, data)
    model = onnx.load_model_from_string(data)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        _field(chance, model)
    try:
        return bytes(model.SerializeToString())
    except ValueError:
        return b""


def _bytes(chance: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(out))
        kind = chance.randrange(4)
        if kind == 0:
            out[at] = chance.randrange(256)
        elif kind == 1:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            del out[at : at + chance.choice((1, 1, 3, 20))]
        else:
            out[at:at] = bytes(chance.randrange(256) for _ in range(chance.choice((1, 4))))
        if not out:
            return b""
    return bytes(out)


def _field(chance: random.Random, model: Any) -> None:
    graph = model.graph
    choices = [_names, _nodes, _tensors, _tensors, _attributes, _attributes, _inputs, _header]
    chance.choice(choices)(chance, model, graph)


def _any(chance: random.Random, items: Any) -> Any:
    return items[chance.randrange(len(items))] if len(items) else None


def _names(chance: random.Random, model: Any, graph: Any) -> None:
    known = (
        [o for n in graph.node for o in n.output] + [t.name for t in graph.initializer] + ["x", "", "none", "a" * 300]
    )
    node = _any(chance, graph.node)
    if node is None:
        return
    side = chance.choice((node.input, node.output))
    if len(side) and chance.random() < 0.6:
        side[chance.randrange(len(side))] = chance.choice(known)
    elif len(side) and chance.random() < 0.5:
        del side[chance.randrange(len(side))]
    else:
        side.append(chance.choice(known))


def _nodes(chance: random.Random, model: Any, graph: Any) -> None:
    node = _any(chance, graph.node)
    if node is None:
        return
    kind = chance.randrange(4)
    if kind == 0:
        node.op_type = chance.choice(OPERATORS)
    elif kind == 1:
        graph.node.remove(node)
    elif kind == 2:
        graph.node.append(node)
    else:
        nodes = list(graph.node)
        chance.shuffle(nodes)
        del graph.node[:]
        graph.node.extend(nodes)


def _tensors(chance: random.Random, model: Any, graph: Any) -> None:
    tensors = [*graph.initializer, *(a.t for n in graph.node for a in n.attribute if a.type == 4)]
    tensor = _any(chance, tensors)
    if tensor is None:
        return
    kind = chance.randrange(6)
    if kind == 0:
        tensor.data_type = chance.choice((0, *range(1, 25), 99))
    elif kind == 1:
        tensor.dims.append(chance.choice(NUMBERS))
    elif kind == 2 and len(tensor.dims):
        tensor.dims[chance.randrange(len(tensor.dims))] = chance.choice(NUMBERS)
    elif kind == 3:
        tensor.raw_data = tensor.raw_data[: chance.randrange(len(tensor.raw_data) + 1)] + b"\xff" * chance.randrange(9)
    elif kind == 4 and tensor.data_type == 7 and len(tensor.raw_data):
        size = len(tensor.raw_data) // 8
        tensor.raw_data = np.array([chance.choice(NUMBERS) for _ in range(size)], np.int64).tobytes()
    elif tensor.data_type in (1, 11) and len(tensor.raw_data):
        dtype = np.float32 if tensor.data_type == 1 else np.float64
        count = len(tensor.raw_data) // np.dtype(dtype).itemsize
        with np.errstate(all="ignore"):
            tensor.raw_data = np.array([chance.choice(FLOATS) for _ in range(count)], dtype).tobytes()


def _attributes(chance: random.Random, model: Any, graph: Any) -> None:
    attribute = _any(chance, [a for n in graph.node for a in n.attribute])
    if attribute is None:
        return
    kind = chance.randrange(6)
    if kind == 0:
        attribute.type = chance.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 11))
    elif kind == 1:
        attribute.i = chance.choice(NUMBERS)
    elif kind == 2:
        attribute.f = chance.choice(FLOATS)
    elif kind == 3 and len(attribute.ints):
        attribute.ints[chance.randrange(len(attribute.ints))] = chance.choice(NUMBERS)
    elif kind == 4:
        attribute.ints.append(chance.choice(NUMBERS))
    else:
        attribute.s = chance.choice((b"", b"\xff\xfe", b"SAME_UPPER", b"constant", b"wrap", b"linear"))


def _inputs(chance: random.Random, model: Any, graph: Any) -> None:
    value = _any(chance, [*graph.input, *graph.output])
    if value is None:
        return
    dims = value.type.tensor_type.shape.dim
    kind = chance.randrange(4)
    if kind == 0:
        value.type.tensor_type.elem_type = chance.choice(range(0, 24))
    elif kind == 1 and len(dims):
        dims[chance.randrange(len(dims))].dim_value = chance.choice(NUMBERS)
    elif kind == 2:
        dims.add().dim_value = chance.choice(NUMBERS)
    else:
        value.name = chance.choice(("", "x", "z", "y", "none"))


def _header(chance: random.Random, model: Any, graph: Any) -> None:
    kind = chance.randrange(3)
    if kind == 0 and len(model.opset_import):
        model.opset_import[0].version = chance.choice((0, 1, 5, 6, 7, 9, 10, 11, 12, 13, 18, 25, 26, 2**40, -1))
    elif kind == 1:
        model.opset_import[0].domain = chance.choice(("ai.onnx.ml", "com.microsoft"))
    else:
        del graph.output[:]


def trial(seed: int, count: int) -> tuple[Counter[str], list[str]]:
    """How reading so many mutants ends, and what is wrong with the ends: `seed:number text`."""
    counts: Counter[str] = Counter()
    faults: list[str] = []
    for i in range(count):
        data = broken(random.Random(f"{seed} {i}"))
        start = time.process_time()
        try:
            read_network(data)
            counts["read"] += 1
        except Mucg4Error as error:
            counts["refused"] += 1
            if "\n" in str(error) or len(str(error)) > 600:
                faults.append(f"{seed} {i} message of {len(str(error))} letters: {str(error)[:80]!r}")
        except Exception as error:  # noqa: BLE001 (this is what is looked for)
            faults.append(f"{seed} {i} {type(error).__name__}: {str(error)[:160]}")
        if time.process_time() - start > SECONDS:
            faults.append(f"{seed} {i} takes {time.process_time() - start:.1f} s")
    return counts, faults
