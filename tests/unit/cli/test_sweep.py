"""The command `sweep`: what it prints and writes, and its errors."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from .test_main import Call, call, refused  # noqa: F401 - a fixture


def test_a_sweep_prints_rows_frontiers_and_counts(call: Call) -> None:  # noqa: F811
    pytest.importorskip("matplotlib")
    arguments = ["sweep", "net.onnx", "unsat.vnnlib", "sat.vnnlib", "--methods", "int8..2,prune25..75/25"]
    more = ["--store", "fresh", "--csv", "a.csv", "--plot", "a.png", "--workers", "1", "--timeout", "60"]
    status, out, err = call(*arguments, *more)
    assert (status, err) == (0, "")
    assert "unsat     original" in out and "proved up to" in out and "14 variants: " in out
    rows = list(csv.DictReader(Path("a.csv").open()))
    assert [r["method"] for r in rows[:8]] == "original int8 int6 int4 int2 prune25 prune50 prune75".split()
    assert all(r["verdict"] in ("sat", "unsat") for r in rows) and rows[1]["relation"]
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")


def test_scratch_and_store_agree(call: Call) -> None:  # noqa: F811
    words = []
    for more in (["--store", "fresh"], ["--no-reuse"], ["--store", "off"]):
        status, _, _ = call("sweep", "net.onnx", "unsat.vnnlib", "--methods", "fp16,int4", "--csv", "a.csv", *more)
        rows = list(csv.DictReader(Path("a.csv").open()))
        assert status == 0 and len(rows) == 3
        words.append([r["verdict"] for r in rows])
    assert words[0] == words[1] == words[2]


def test_a_sweep_shares_its_store_with_other_commands(call: Call) -> None:  # noqa: F811
    assert call("verify", "net.onnx", "unsat.vnnlib", "--store", "s.sqlite", "--workers", "1")[0] == 0
    arguments = ["sweep", "net.onnx", "unsat.vnnlib", "--methods", "fp16", "--store", "s.sqlite", "--csv", "a.csv"]
    assert call(*arguments)[0] == 0
    rows = list(csv.DictReader(Path("a.csv").open()))
    assert rows[0]["relation"] == "identical"


def test_bad_input_is_told_before_anything_runs(call: Call) -> None:  # noqa: F811
    start = ["sweep", "net.onnx", "unsat.vnnlib"]
    refused(call(*start, "--methods", "int8,prune"), "unknown method", "prune")
    refused(call(*start, "--methods", "prune10..99/"), "no range of methods")
    refused(call(*start, "--methods", "int8", "--csv", "no/folder.csv"), "--csv", "no folder")
    refused(call("sweep", "net.onnx", "none.vnnlib", "--methods", "int8"), "none.vnnlib", "no such file")
    refused(call("sweep", "none.onnx", "unsat.vnnlib", "--methods", "int8"), "none.onnx", "no such file")
    pytest.importorskip("matplotlib")
    refused(call(*start, "--methods", "int8", "--plot", "a.txt"), "--plot", ".png")
