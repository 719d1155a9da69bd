"""Replayable cases: one small JSON file with everything that is needed to see a failure again.

Keys: `format` ("mucg4-case"), `version` (1), `kind` (free text: what failed), `vnnlib` (the property's text), the
network as `onnx_base64` or, for small dense ReLU networks, as `layers` (a list of `{"weights": rows, "bias": [...]}`, a
ReLU between two layers, `x W^T + b`), optionally the original it is a variant of (`related_onnx_base64` or
`related_layers`: it is verified first, into the store) and the property that one has if it is another
(`related_vnnlib`), `settings` (fields of `Settings`), `expected` (sat, unsat, "not sat" or "not unsat" where unknown is
right too, or null), `seconds` (limit of one engine), `note`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import asdict, field, fields
from pathlib import Path
from typing import Any

from mucg4.errors import InputError
from mucg4.files import json_text, write_atomic
from mucg4.limits.budget import Budget
from mucg4.limits.foreign import fields_of, items, json_value, member, number, numbers, read_limited, text_of
from mucg4.model.query import Query
from mucg4.records import dataclass
from mucg4.settings import Settings

FORMAT = "mucg4-case"
VERSION = 1  # of the format; given
SECONDS = 60.0  # of one engine where the case does not say; not measured
LARGEST = 2**30  # most bytes of a case file; not measured
Layers = Sequence[tuple[Any, Any]]


def layers_to_onnx(layers: Layers) -> bytes:
    """ONNX bytes of a dense network: `layers` are pairs of weights `(out, in)` and bias `(out,)`, ReLU in between."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, value = [], [], "X"
    for k, (weights, bias) in enumerate(layers):
        arrays = [np.asarray(weights, dtype=np.float32), np.asarray(bias, dtype=np.float32)]
        constants += [numpy_helper.from_array(a, f"{n}{k}") for a, n in zip(arrays, "WB", strict=True)]
        last = k == len(layers) - 1
        nodes.append(helper.make_node("Gemm", [value, f"W{k}", f"B{k}"], ["Y" if last else f"Z{k}"], transB=1))
        if not last:
            nodes.append(helper.make_node("Relu", [f"Z{k}"], [f"H{k}"]))
            value = f"H{k}"
    sizes = len(layers[0][0][0]), len(layers[-1][1])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in zip("XY", sizes, strict=True)]
    graph = helper.make_graph(nodes, "case", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8  # read by every onnxruntime since opset 13
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def save_case(
    path: Path,
    network: bytes | Layers,
    vnnlib: str,
    *,
    kind: str,
    related: bytes | Layers | None = None,
    related_vnnlib: str | None = None,
    settings: Settings | None = None,
    expected: str | None = None,
    note: str = "",
) -> None:
    """Write a case; networks are ONNX bytes or dense layers (see `layers_to_onnx`). Raises `OSError`."""
    changed = {k: v for k, v in asdict(settings or Settings()).items() if v != getattr(Settings(), k)}
    record: dict[str, Any] = {"format": FORMAT, "version": VERSION, "kind": kind, "note": note, "expected": expected}
    record.update(settings=changed, vnnlib=vnnlib, **_network_entry("", network))
    if related is not None:
        record.update(_network_entry("related_", related))
        if related_vnnlib is not None:
            record["related_vnnlib"] = related_vnnlib
    write_atomic(path, json_text(record, indent=1) + "\n")


def _network_entry(prefix: str, network: bytes | Layers) -> dict[str, Any]:
    if isinstance(network, bytes):
        return {prefix + "onnx_base64": base64.b64encode(network).decode()}
    return {prefix + "layers": [{"weights": _list(w), "bias": _list(b)} for w, b in network]}


def _list(array: Any) -> Any:
    return array.tolist() if hasattr(array, "tolist") else array


def _network_bytes(data: dict[str, Any], prefix: str) -> bytes | None:
    """The network's bytes, None when there is none; raises `ValueError` for layers that make no network."""
    if prefix + "onnx_base64" in data:
        return base64.b64decode(text_of(data[prefix + "onnx_base64"], prefix + "onnx_base64"), validate=True)
    if prefix + "layers" not in data:
        return None
    layers: list[tuple[Any, Any]] = []
    size = 0
    for entry in items(data[prefix + "layers"], prefix + "layers"):
        layer = fields_of(entry, "a layer")
        rows = [numbers(row, "weights") for row in items(member(layer, "weights"), "weights")]
        bias = numbers(member(layer, "bias"), "bias")
        if not rows or not rows[0].size or len({len(row) for row in rows}) > 1 or len(rows) != len(bias):
            raise ValueError("the weights of a layer are no matrix with a bias for each row")
        if layers and rows[0].size != size:
            raise ValueError("a layer does not fit the one before")
        layers.append((rows, bias))
        size = len(rows)
    if not layers:
        raise ValueError("there are no layers")
    return layers_to_onnx(layers)


@dataclass(frozen=True)
class SavedCase:
    """A case as read: the query, the one it is a variant of if there is one, and what is expected."""

    query: Query
    related: Query | None
    settings: Settings
    expected: str | None
    seconds: float
    budget: Budget = field(default_factory=Budget)  # of all runs together


def read_case(path: Path, folder: Path) -> SavedCase:
    """The queries of a case, through files in `folder` so that the usual reader reads them."""
    from mucg4.read.instance import read_query

    try:
        data = fields_of(json_value(read_limited(path, LARGEST)), "the case")
        if data.get("format") != FORMAT or data.get("version") != VERSION:
            raise InputError(f"{path}: not a {FORMAT} file of version {VERSION}")
        queries: list[Query | None] = []
        for prefix in ("", "related_"):
            network, prop = folder / f"{prefix}network.onnx", folder / f"{prefix}property.vnnlib"
            content = _network_bytes(data, prefix)
            if content is not None:
                network.write_bytes(content)
                prop.write_text(text_of(data.get(prefix + "vnnlib", member(data, "vnnlib")), "vnnlib"))
            queries.append(None if content is None else read_query(network, prop))
        if queries[0] is None:
            raise InputError(f"{path}: the case holds no network")
        expected = data.get("expected")
        if expected not in ("sat", "unsat", "not sat", "not unsat", None):
            raise ValueError("expected is neither sat nor unsat")
        seconds = number(data.get("seconds", SECONDS), "seconds")
        return SavedCase(queries[0], queries[1], _settings(data.get("settings", {})), expected, seconds)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, binascii.Error) as error:
        raise InputError(f"{path}: malformed case: {error}") from error


def _settings(value: Any) -> Settings:
    """The settings of a case, each of the type of its default; names that are no longer known are left out."""
    held = fields_of(value, "settings")
    chosen = {f.name: held[f.name] for f in fields(Settings) if f.name in held}
    for f in fields(Settings):
        kinds = (int, float, type(None)) if f.default is None else (type(f.default),)
        if f.name in chosen and type(chosen[f.name]) not in kinds:
            raise ValueError(f"the setting {f.name} is of the wrong type")
    return Settings(**chosen)
