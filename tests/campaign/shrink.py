"""Make a failing instance smaller while it fails, and keep it as a replayable case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mucg4.read.case import save_case
from mucg4.settings import Settings

from . import exact
from .instance import Graph, Instance, decimal
from .judge import Outcome

SECONDS = 40.0


def smaller(instance: Instance) -> Iterator[Instance]:
    """Candidates one step simpler, boldest first; their truth is computed anew by `settled`."""
    unsafe = instance.unsafe
    for i in range(len(unsafe) if len(unsafe) > 1 else 0):
        yield replace(instance, unsafe=unsafe[:i] + unsafe[i + 1 :])
    for i, c in enumerate(unsafe):
        for j in range(len(c) if len(c) > 1 else 0):
            yield replace(instance, unsafe=(*unsafe[:i], c[:j] + c[j + 1 :], *unsafe[i + 1 :]))
    for j in range(len(instance.always)):
        yield replace(instance, always=instance.always[:j] + instance.always[j + 1 :])
    for graph in smaller_graphs(instance.graph):
        yield replace(instance, graph=graph)
    for i, (a, b) in enumerate(instance.box):
        if a != b:
            for end in (a, b, decimal((Fraction(a) + Fraction(b)) / 2, 6)):
                yield replace(instance, box=(*instance.box[:i], (end, end), *instance.box[i + 1 :]))
    for i, (a, b) in enumerate(instance.box):
        for digits in (1, 3):
            pair = (decimal(Fraction(a), digits), decimal(Fraction(b), digits))
            if pair != (a, b):
                yield replace(instance, box=(*instance.box[:i], pair, *instance.box[i + 1 :]))
    for i, c in enumerate(unsafe):
        for digits in (2, 5, 9, 17):
            rows = tuple(replace(r, bound=decimal(Fraction(r.bound), digits)) for r in c)
            if rows != c:
                yield replace(instance, unsafe=(*unsafe[:i], rows, *unsafe[i + 1 :]))


def smaller_graphs(graph: Graph) -> Iterator[Graph]:
    """A node left out (its readers take its input), a tensor rounded or with a number less."""
    for k in range(len(graph.nodes)):
        node, rest = graph.nodes[k], graph.nodes[:k] + graph.nodes[k + 1 :]
        variables = [v for v in node.inputs if v and v not in graph.tensors]
        if len(node.outputs) != 1 or not variables or not rest:
            continue
        names = {node.outputs[0]: variables[0]}
        moved = tuple(replace(n, inputs=tuple(names.get(v, v) for v in n.inputs)) for n in rest)
        yield replace(graph, nodes=moved)
    used = {name for node in graph.nodes for name in node.inputs}
    for name, value in graph.tensors.items():
        if name not in used or value.dtype.kind != "f":
            continue
        for digits in (0, 1, 3):
            with np.errstate(all="ignore"):
                rough = np.round(value, digits)
            if np.all(np.isfinite(rough)) and not np.array_equal(rough, value):
                yield replace(graph, tensors={**graph.tensors, name: rough})
        for at in zip(*np.nonzero(np.atleast_1d(value)), strict=True):
            if np.ndim(value):
                less = value.copy()
                less[at] = 0
                yield replace(graph, tensors={**graph.tensors, name: less})


def settled(instance: Instance) -> Instance | None:
    """With the truth of the changed instance; None where it had one and has none any more."""
    if instance.truth is None:
        return instance
    try:
        return replace(instance, truth=exact.answer(instance)[0])
    except exact.UnknownTruth:
        return None


def shrink(instance: Instance, fails: Callable[[Instance], bool], seconds: float = SECONDS) -> Instance:
    """The smallest failing instance found by taking every step after which it still fails."""
    deadline = time.monotonic() + seconds
    progress = True
    while progress:
        progress = False
        for candidate in smaller(instance):
            if time.monotonic() > deadline:
                return instance
            try:
                new = settled(candidate)
                bad = new is not None and fails(new)
            except Exception:  # noqa: BLE001 - graphs that make no sense any more
                continue
            if bad and new is not None:
                instance, progress = new, True
                break
    return instance


def keep(instance: Instance, outcome: Outcome, folder: Path) -> Path:
    """Write a failing instance as a case that `mucg4 case` replays; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    kinds = sorted(outcome.kinds) or ["none"]
    path = folder / f"{kinds[0].replace(' ', '-')}_{instance.family}_{instance.seed}.json"
    details = "; ".join(f"{k}: {d}" for k, d in (*outcome.problems, *outcome.loud))
    forbidden: dict[str, Any] = {"sat": "not unsat", "unsat": "not sat"}
    save_case(
        path,
        instance.onnx(),
        instance.vnnlib(),
        kind=kinds[0],
        settings=Settings(workers=1, attack="no attack" not in details),
        expected=forbidden.get(instance.truth or ""),
        note=f"campaign seed {instance.seed}, family {instance.family}, distance {instance.distance:g}: {details}",
    )
    return path
