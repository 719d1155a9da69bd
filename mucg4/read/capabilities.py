"""What the command `supports` of the VNN-LIB standard answers (its chapter on the solver command-line interface)."""

from __future__ import annotations

from collections.abc import Callable

from mucg4.errors import InputError


def supports(capability: str) -> str:
    """The lines of an answer. Raises `InputError`, with those that are known, for a capability that is none."""
    name = capability.removeprefix("--")
    answer = CAPABILITIES.get(name)
    if answer is None:
        raise InputError(f"unknown capability {capability!r} (known: {', '.join('--' + k for k in CAPABILITIES)})")
    return "".join(f"{line}\n" for line in answer())


def _opsets() -> tuple[str, ...]:
    from mucg4.read.table import NEWEST, TABLE

    return str(min(row.opsets[0] for row in TABLE)), str(NEWEST)


def _operators() -> tuple[str, ...]:
    from mucg4.read.table import TABLE

    return tuple(dict.fromkeys(row.op for row in TABLE if "::" not in row.op))  # the standard knows ONNX's own set


def _of(*lines: str) -> Callable[[], tuple[str, ...]]:
    return lambda: lines


CAPABILITIES: dict[str, Callable[[], tuple[str, ...]]] = {
    "onnx-opset-versions": _opsets,
    "onnx-element-types": _of("float32", "real"),
    "onnx-operators": _operators,
    "vnnlib-versions": _of("1.0", "2.0"),
    "hidden-node-theories": _of("NH", "H"),
    "multiple-input-output-theories": _of("SIO", "MIO"),
    "multiple-inputs-output-theories": _of("SIO", "MIO"),
    "multiple-inputs-outputs-theories": _of("SIO", "MIO"),
    "multiple-network-theories": _of("SNET", "MENET", "MINET", "MNET"),
    "multiple-node-comparison-theories": _of("SNC", "MNC"),
    "arithmetic-complexity-theories": _of("BND", "OUTC", "LIN", "POLY"),
    "optimised-disjunctive-reasoning": _of("false"),  # choices that stay open in their thousands are left out
    "serialise-assignments": _of("true"),
}
