"""The shipped instances hang together: files, lists, variants, and labels that concrete runs do not contradict."""

from __future__ import annotations

import csv
import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from effort import effort

from mucg4.cli.main import main
from mucg4.lab.compress import compress
from mucg4.read.instance import read_instances, read_query
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

FOLDER = Path(__file__).resolve().parents[2] / "instances"
FOLDERS = [FOLDER, FOLDER / "small"]
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f.name)


def table(folder: Path, name: str) -> list[tuple[str, ...]]:
    with (folder / name).open(newline="", encoding="utf-8") as file:
        return [tuple(row) for row in csv.reader(file)]


def unsat_rows() -> Iterator[tuple[Path, str, str]]:
    for folder in FOLDERS:
        rows = table(folder, "expected.csv")
        yield from ((folder, onnx, vnnlib) for onnx, vnnlib, verdict in rows if verdict == "unsat")


@each_folder
def test_every_row_is_labelled_and_its_files_exist(folder: Path) -> None:
    rows = read_instances(folder)
    assert all(r.onnx.is_file() and r.vnnlib.is_file() for r in rows)
    header, *labels = table(folder, "expected.csv")
    assert header == ("onnx", "vnnlib", "verdict")
    assert [r[:2] for r in labels] == [(r.onnx_text, r.vnnlib_text) for r in rows]
    assert {r[2] for r in labels} == {"sat", "unsat"}
    size = sum(p.stat().st_size for p in FOLDER.rglob("*") if p.is_file())
    assert size < 3_000_000


@each_folder
def test_rows_of_originals_come_first(folder: Path) -> None:
    _, *variants = table(folder, "manifest.csv")
    parent = {v[0]: v[1] for v in variants}
    originals = [r.onnx_text in parent for r in read_instances(folder)]
    assert originals == sorted(originals)
    assert set(parent.values()) <= {r.onnx_text for r in read_instances(folder)}


@each_folder
def test_variants_are_what_compress_makes(folder: Path) -> None:
    for name, parent, method in table(folder, "manifest.csv")[1:]:
        if method not in ("tune3", "permute"):  # these depend on the random stream of the installed NumPy
            assert (folder / name).read_bytes() == compress((folder / parent).read_bytes(), method)


def test_the_script_that_made_them_names_these_files() -> None:
    """It is imported, and its table holds the networks and methods that are there."""
    spec = importlib.util.spec_from_file_location("make_instances", FOLDER / "make_instances.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_instances"] = module
    spec.loader.exec_module(module)
    assert [FOLDER / family.folder for family in module.FAMILIES.values()] == FOLDERS
    for family in module.FAMILIES.values():
        there = {p.stem for p in (FOLDER / family.folder / "onnx").glob("*.onnx")}
        methods = ["", *(f"~{method}" for method in family.methods)]
        assert there == {f"{network}{method}" for network in family.properties for method in methods}


def test_the_smt_engine_decides_the_small_ones() -> None:
    """One property of each network, and a variant with the original's cores; never the opposite of what is known."""
    pytest.importorskip("z3")
    known = {row[:2]: row[2] for row in table(FOLDER / "small", "expected.csv")}
    rows = [("diabetes_3x10", "diabetes_near"), ("wine_3x12", "wine_sample59"), ("cancer_2x40", "cancer_near")]
    settings = Settings(engine="smt", workers=1)
    with Store(":memory:") as store:
        for network, prop in rows:
            for method in ("", "~fp16", "~neurons10"):
                row = f"onnx/{network}{method}.onnx", f"vnnlib/{prop}.vnnlib"
                query = read_query(FOLDER / "small" / row[0], FOLDER / "small" / row[1])
                verdict = verify(query, settings, store, effort())
                assert verdict.word == known[row]
                assert not method or verdict.statistics.reused_share > 0.7


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


@pytest.mark.parametrize(("folder", "onnx", "vnnlib"), list(unsat_rows()))
def test_sampling_does_not_contradict_unsat(folder: Path, onnx: str, vnnlib: str) -> None:
    query = read_query(folder / onnx, folder / vnnlib)
    for case in query.cases:
        x = np.random.default_rng(0).uniform(case.box.lo, case.box.hi, (2000, case.box.size))
        y = query.network(x)
        for conj in case.conjunctions:
            assert ((x @ conj.x_coeffs.T + y @ conj.y_coeffs.T + conj.constants).max(axis=1) > 0).all()
