"""The shipped instances hang together: files, lists, variants, and labels that concrete runs do not contradict."""

from __future__ import annotations

import csv
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from mucg4.cli.main import main
from mucg4.lab.compress import compress
from mucg4.read.instance import read_instances, read_query

FOLDER = Path(__file__).resolve().parents[2] / "instances"


def table(name: str) -> list[tuple[str, ...]]:
    with (FOLDER / name).open(newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)]


def unsat_rows() -> Iterator[tuple[str, str]]:
    yield from ((onnx, vnnlib) for onnx, vnnlib, verdict in table("expected.csv") if verdict == "unsat")


def test_every_row_is_labelled_and_its_files_exist() -> None:
    rows = read_instances(FOLDER)
    assert all(r.onnx.is_file() and r.vnnlib.is_file() for r in rows)
    header, *labels = table("expected.csv")
    assert header == ("onnx", "vnnlib", "verdict")
    assert [r[:2] for r in labels] == [(r.onnx_text, r.vnnlib_text) for r in rows]
    assert {r[2] for r in labels} == {"sat", "unsat"}
    size = sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file())
    assert size < 3_000_000


def test_rows_of_originals_come_first() -> None:
    _, *variants = table("manifest.csv")
    parent = {v[0]: v[1] for v in variants}
    originals = [r.onnx_text in parent for r in read_instances(FOLDER)]
    assert originals == sorted(originals)
    assert set(parent.values()) <= {r.onnx_text for r in read_instances(FOLDER)}


def test_variants_are_what_compress_makes() -> None:
    for name, parent, method in table("manifest.csv")[1:]:
        if method not in ("tune3", "permute"):  # these depend on the random stream of the installed NumPy
            assert (FOLDER / name).read_bytes() == compress((FOLDER / parent).read_bytes(), method)


def block(page: str, name: str) -> str:
    """The code that follows a mark on a page."""
    found = re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", (FOLDER.parent / "docs" / page).read_text(), re.DOTALL)
    assert found, f"{page} has no {name}"
    return found[1]


def test_the_example_of_two_networks_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pair.vnnlib").write_text(block("vnnlib2.md", "example-query"))
    tool, *words = shlex.split(block("vnnlib2.md", "example-command"))
    monkeypatch.chdir(FOLDER)
    monkeypatch.setenv("MUCG4_STORE", "off")
    assert tool == "mucg4" and main([str(tmp_path / w) if w == "pair.vnnlib" else w for w in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line == "sat" or " " in line] == [
        "sat", "X real [1,5]", "Y real [1,3]", "U real [1,5]", "V real [1,3]",
    ]  # fmt: skip


@pytest.mark.parametrize(("onnx", "vnnlib"), list(unsat_rows()))
def test_sampling_does_not_contradict_unsat(onnx: str, vnnlib: str) -> None:
    query = read_query(FOLDER / onnx, FOLDER / vnnlib)
    for case in query.cases:
        x = np.random.default_rng(0).uniform(case.box.lo, case.box.hi, (2000, case.box.size))
        y = query.network(x)
        for conj in case.conjunctions:
            assert ((x @ conj.x_coeffs.T + y @ conj.y_coeffs.T + conj.constants).max(axis=1) > 0).all()
