"""Sweeps: rows in order, none claimed without a run, the same verdicts with and without the store, frontiers."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from examples import text

from mucg4.gate.witness import replay_witness
from mucg4.lab.compress import compress
from mucg4.lab.methods import Method, methods_of
from mucg4.lab.sweep import Row, Sweep, frontiers, in_order
from mucg4.lab.sweep_report import COLUMNS, cells, draw, frontier_table, rows_table, summary
from mucg4.limits.budget import Budget
from mucg4.read.case import layers_to_onnx
from mucg4.read.instance import Model, Property, query_of
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

RNG = np.random.default_rng(4)
SIZES = (2, 8, 8, 1)
LAYERS = [
    (RNG.normal(size=(b, a)) / np.sqrt(a), RNG.normal(size=b) / 4) for a, b in zip(SIZES, SIZES[1:], strict=False)
]
DATA = layers_to_onnx(LAYERS)
QUICK = Settings(workers=1)
METHODS = "fp16,int2,prune30..90/30,neurons50,permute"


def largest() -> float:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 101)] * 2), axis=-1).reshape(-1, 2)
    network = query_of(DATA, text([(-1, 1), (-1, 1)], 1, "(>= Y_0 100)")).network
    return float(network(grid).max())


def prop(threshold: float, name: str) -> Property:
    return Property(text([(-1, 1), (-1, 1)], 1, f"(>= Y_0 {threshold})"), name)


@pytest.fixture(scope="module")
def swept() -> tuple[list[Row], list[Row]]:
    """Rows of one sweep, from a store and from scratch."""
    top = largest()
    properties = [prop(top + 0.05, "near"), prop(top + 0.3, "far"), prop(top - 0.1, "unsafe")]
    made = []
    for store in (partial(Store, ":memory:"), lambda: None):
        sweep = Sweep(Model(DATA, "net"), methods_of([METHODS]), properties, QUICK, store)
        made.append(list(sweep.rows()))
        assert len(made[-1]) == sweep.count
    return made[0], made[1]


def test_every_property_has_the_network_first_and_then_all_variants(swept: tuple[list[Row], list[Row]]) -> None:
    rows, _ = swept
    order = ["original", *(m.name for m in methods_of([METHODS]))]
    assert [(r.prop, r.method.name) for r in rows] == [(p, m) for p in ("near", "far", "unsafe") for m in order]
    assert [r.word for r in rows if r.method.name == "original"] == ["unsat", "unsat", "sat"]


def test_verdicts_are_those_of_single_runs(swept: tuple[list[Row], list[Row]]) -> None:
    with_store, scratch = swept
    assert [r.word for r in with_store] == [r.word for r in scratch]
    assert {"sat", "unsat"} == {r.word for r in scratch}
    for row in with_store:
        data = DATA if row.method.name == "original" else compress(DATA, row.method.name)
        threshold = {"near": 0.05, "far": 0.3, "unsafe": -0.1}[row.prop] + largest()
        query = query_of(data, prop(threshold, row.prop).text)
        alone = verify(query, QUICK)
        assert alone.word == row.word
        if row.word == "sat":
            witness = getattr(alone, "witness", None)
            assert witness is not None and replay_witness(query, witness.x) is not None
        else:
            assert row.statistics.checker == "accepted"


def test_several_processes_give_the_same_rows(swept: tuple[list[Row], list[Row]], tmp_path: Path) -> None:
    top = largest()
    properties = [prop(top + 0.05, "near"), prop(top + 0.3, "far"), prop(top - 0.1, "unsafe")]
    stores = partial(Store, tmp_path / "s.sqlite")
    sweep = Sweep(Model(DATA, "net"), methods_of([METHODS]), properties, QUICK, stores, jobs=2)
    rows = in_order(list(sweep.rows()), sweep)
    assert [(r.prop, r.method, r.word) for r in rows] == [(r.prop, r.method, r.word) for r in swept[0]]
    proved = [r for r in rows if r.proved]
    assert sum(bool(r.statistics.related_proof) for r in proved) > len(proved) / 2
    with Store(tmp_path / "s.sqlite") as store:
        assert len(store.entries()) >= len(properties)


def test_the_variants_use_the_proof_of_the_network(swept: tuple[list[Row], list[Row]]) -> None:
    with_store, scratch = swept
    variants = [r for r in with_store if r.proved and r.method.name != "original"]
    assert all(r.statistics.related_proof for r in variants)
    assert sum(r.statistics.reused_share for r in variants) > len(variants) / 2
    assert not any(r.statistics.related_proof for r in scratch)
    assert all(r.ratio is not None for r in with_store)


def test_a_witness_of_one_variant_is_tried_on_the_others(swept: tuple[list[Row], list[Row]]) -> None:
    rows = [r for r in swept[0] if r.word == "sat" and r.method.name != "original"]
    known = [r for r in rows if r.statistics.rungs["witness"] and not r.statistics.related_proof]
    assert known and all(r.statistics.attack_points == 0 for r in known)
    assert not any(r.statistics.rungs["witness"] for r in swept[1])


def test_nothing_is_claimed_of_what_was_not_run() -> None:
    top = largest()
    sweep = Sweep(Model(DATA), methods_of(["prune10..90"]), [prop(top - 0.1, "p")], QUICK, patience=2)
    rows = list(sweep.rows())
    words = [r.word for r in rows[1:]]
    left_out = words.index("not run")
    assert words[left_out:] == ["not run"] * (len(words) - left_out)
    assert "unsat" not in words[left_out - 2 : left_out]
    assert all(r.statistics.checker == "" and r.ratio is None and r.reason for r in rows if r.word == "not run")


def test_large_variants_are_made_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    from mucg4.lab import sweep as module

    properties = [prop(largest() + 0.3, "far"), prop(largest() - 0.1, "unsafe")]
    words = []
    for held in (0, module.HELD):
        monkeypatch.setattr(module, "HELD", held)
        sweep = Sweep(Model(DATA), methods_of(["int8,neurons50,permute"]), properties, QUICK)
        words.append([(r.method.name, r.word) for r in sweep.rows()])
    assert words[0] == words[1]


def test_a_method_that_does_not_fit_is_a_row_of_its_own() -> None:
    alone = layers_to_onnx([([[1.0, 1.0]], [0.0])])
    sweep = Sweep(Model(alone, "net"), methods_of(["permute,int8"]), [prop(3.0, "p")], QUICK)
    rows = {r.method.name: r for r in sweep.rows()}
    assert (rows["permute"].word, rows["int8"].word) == ("error", "unsat")
    assert "no hidden dense layer" in rows["permute"].reason
    assert "error: permute: " in "\n".join(summary(list(rows.values())))


def test_a_spent_row_ends_alone_and_an_interrupted_sweep_ends() -> None:
    from mucg4.errors import BudgetError

    top = largest()
    settings = Settings(workers=1, timeout=0.0)
    rows = list(Sweep(Model(DATA), methods_of(["int8"]), [prop(top + 0.05, "p")], settings).rows())
    assert [r.word for r in rows] == ["timeout", "timeout"]
    with pytest.raises(BudgetError):
        list(Sweep(Model(DATA), methods_of(["int8"]), [prop(top, "p")], QUICK, budget=Budget(interrupted="x")).rows())


def row(name: str, word: str) -> Row:
    return Row("p", Method.of(name), word, 1.0)


def test_a_frontier_has_no_gap_below_it() -> None:
    words = ["unsat", "unsat", "timeout", "unsat", "sat"]
    rows = [row(m.name, w) for m, w in zip(methods_of(["prune10..50"]), words, strict=True)]
    (f,) = frontiers(rows)
    assert f.last is rows[1] and f.first is rows[2] and f.beyond == (rows[3],)
    (f,) = frontiers([row("int8", "sat"), row("int4", "unsat")])
    assert f.last is None and f.first is not None and [r.method.name for r in f.beyond] == ["int4"]
    (f,) = frontiers([row("int8", "unsat"), row("int4", "unsat"), row("permute", "sat")])
    assert f.last is not None and f.last.method.name == "int4" and f.first is None
    assert "int4" in "\n".join(frontier_table([row("int8", "unsat"), row("int4", "unsat")]))


def test_tables_lines_and_picture(swept: tuple[list[Row], list[Row]], tmp_path: Path) -> None:
    rows, _ = swept
    assert len(rows_table(rows)) == len(rows) + 2
    lines = [dict(zip(COLUMNS, cells(r), strict=True)) for r in rows]
    assert {line["verdict"] for line in lines} == {"sat", "unsat"}
    with (tmp_path / "a.csv").open("w") as file:
        csv.writer(file).writerows(cells(r) for r in rows)
    pytest.importorskip("matplotlib")
    draw(rows, tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert all(f">{name}<" in drawn for name in ("near", "far", "unsafe", "fp16", "prune90", "original"))
    draw(rows, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == drawn
