"""Tables and files of the report on reuse, from made-up records."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mucg4.bench.reuse_figures import Band, groups_of
from mucg4.bench.reuse_table import Parents, Table, ablation, csv_of, tables
from unit.bench.test_reuse_figures import line, record

NO = record("timeout", 60.0)
LINES = [
    line([record("unsat", 1.0, stored=4, checked=3, ascent=1)], [8.0]),
    line([NO], [3.0], "prune10"),
    line([2.0], [NO], "fp16"),
    line([record("sat", 1.0)], [record("sat", 1.5)]),
]


def cells(table: Table, *key: str) -> list[str]:
    return next(row for row in table.rows if row[: len(key)] == list(key))


def test_rows_are_counted_named_and_left_out() -> None:
    report = tables(LINES, [Parents("some", {"unsat": 2, "timeout": 1}, 12.5, 3.0, ("n p: killed",))], [Band(0.0)])
    gains, costs, differ, lost, beyond, gained, parents = report
    int8 = dict(zip(gains.head, cells(gains, "some", "int8", "all"), strict=True))
    assert (int8["rows"], int8["with proof"], int8["factor"], int8["worst"]) == ("1", "1", "8.00", "8.00")
    assert (int8["closed"], int8["by ascent"], int8["within"]) == ("75.0 %", "25.0 %", "100.0 %")
    assert cells(gains, "some", "prune10")[5:7] == ["-", "-"]  # nothing to compare: it is lost
    assert not any(row[1] == "fp16" for row in gains.rows)  # scratch proves nothing there
    assert cells(costs, "some", "sat")[2] == "1" and cells(costs, "some", "both")[2] == "3"
    assert [len(t.rows) for t in (differ, lost, beyond, gained)] == [0, 1, 1, 1]
    assert lost.rows[0][3:7] == ["prune10", "unsat", "timeout", "unsat"] and gained.rows[0][3] == "fp16"
    assert parents.rows == [["some", "timeout 1, unsat 2", "12.5", "3.0", "1"]] and "killed" in parents.notes[0]


def test_stages_stand_beside_what_was_published() -> None:
    lines = [line([1.0], [4.0], structure=[4.0], duals=[2.0], ascent=[1.0])]
    lines.append(line([1.0], [16.0], structure=[NO], duals=[4.0], ascent=[1.0]))
    table = ablation(groups_of(lines, [Band(0.0)]))
    assert cells(table, "some", "int8")[3:] == ["2", "0.52 (1)", "2.83", "8.00", "8.00"]
    assert [row[4] for row in table.rows if "IVAN" in row[1]] == ["3.8", "2.4"]
    assert any(t.title == table.title for t in tables(lines, [], [Band(0.0)]))
    assert not any(t.title == table.title for t in tables(LINES, [], [Band(0.0)]))


def test_text_and_markdown_hold_the_same_cells() -> None:
    table = Table("A title", ("word", "n"), [["a|b", "1"]], 1, ["a note"])
    assert table.text() == ["A title", "word  n", "----  -", "a|b   1", "a note"]
    assert table.markdown() == ["## A title", "", "| word | n |", "| --- | ---: |", "| a\\|b | 1 |", "", "a note"]
    assert Table("T", ("x",), [], 1).text() == ["T", "  none"] and "none" in Table("T", ("x",), [], 1).markdown()


def test_every_run_is_a_line_of_the_csv() -> None:
    rows = list(csv.DictReader(csv_of([line([1.0, 2.0], [8.0, 9.0])]).splitlines()))
    assert [(r["mode"], r["pair"], r["wall"]) for r in rows] == [
        ("store", "1", "1.0"), ("store", "2", "2.0"), ("scratch", "1", "8.0"), ("scratch", "2", "9.0"),
    ]  # fmt: skip
    assert {r["checker"] for r in rows} == {"accepted"} and rows[0]["checked"] == "0"


def test_a_picture_of_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("mucg4.bench.plot.DPI", 30)
    from mucg4.bench.reuse_plot import draw

    assert draw(LINES, tmp_path) == ["reuse.png", "reuse.svg"]
    text = (tmp_path / "reuse.svg").read_text()
    for word in ("int8: 2 rows, factor 3.5", "prune10: 0 rows", "fp16: 0 rows", "factor 10", "not decided"):
        assert word in text
    assert draw([line([NO], [NO])], tmp_path) == []
