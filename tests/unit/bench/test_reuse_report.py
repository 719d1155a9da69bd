"""The report on reuse with a stand-in for the tool: what runs when with which store, resuming, what is said."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from mucg4.bench import run as bench_run
from mucg4.cli import bench as command
from mucg4.cli.options import make_parser
from mucg4.errors import InputError
from unit.bench.test_run import calls, fill

# Its store holds a line per call that had it, as many as each call found stand in the file `calls`. The property says
# what comes out with the store, and from scratch after a slash.
STAND_IN = """
import json, pathlib, sqlite3, sys
arguments = sys.argv[1:]
option = lambda name: arguments[arguments.index(name) + 1] if name in arguments else None
verb = arguments[0]
net, prop = map(pathlib.Path, arguments[4:6] if verb == "store" else arguments[1:3])
store, seen = option("--store"), "-"
if store != "off":
    with sqlite3.connect(store) as database:
        database.execute("create table if not exists saved (name text)")
        seen = database.execute("select count(*) from saved").fetchone()[0]
        database.execute("insert into saved values (?)", [net.name])
with (prop.parent.parent / "calls").open("a") as file:
    stage = option("--reuse-upto") or ("compact" if "--no-compact" not in arguments else "plain")
    file.write(f"{verb} {net.stem} {prop.stem} {seen} {stage}\\n")
words = prop.read_text().split("/")
if verb == "store":
    sys.exit("mucg4: error: no room" if words[0] == "refuse" else 0)
word = words[-1 if store == "off" else 0].replace("refuse", "unsat")
pathlib.Path(option("--result")).write_text(word + "\\n")
record = {"checker": "accepted", "rungs": {"checked": 3, "ascent": 0}, "stored_leaves": 4 * (seen not in ("-", 0))}
pathlib.Path(option("--json")).write_text(json.dumps(record))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of one parent and its variant under one property."""
    stand_in = tmp_path / "stand_in.py"
    stand_in.write_text(STAND_IN)
    monkeypatch.setattr(bench_run, "TOOL", (sys.executable, str(stand_in)))
    monkeypatch.chdir(tmp_path)
    some = tmp_path / "some_family"
    for name in ("onnx", "vnnlib"):
        (some / name).mkdir(parents=True)
    return some


def rows(folder: Path, *properties: str, manifest: bool = True) -> None:
    """The parent `a` and its variant `b` under each property, by what the stand-in does."""
    fill(folder, [("a.onnx", "unsat", 30)] * len(properties) + [("b~int8.onnx", "", 30)] * len(properties))
    text = [f"onnx/{net}.onnx,vnnlib/p{k}.vnnlib,30" for net in ("a", "b~int8") for k in range(len(properties))]
    (folder / "instances.csv").write_text("\n".join(text) + "\n")
    for k, todo in enumerate(properties):
        (folder / "vnnlib" / f"p{k}.vnnlib").write_text(todo)
    if manifest:
        (folder / "manifest.csv").write_text("onnx,parent,method\nonnx/b~int8.onnx,onnx/a.onnx,int8\n")


def report(*arguments: str) -> tuple[int, str]:
    """Exit status, and what was said and alarmed."""
    from rich.console import Console

    args = make_parser().parse_args(["bench", *arguments, "--reuse-report", "--no-plots"])
    console, lines = Console(file=io.StringIO()), []
    status = command._reuse_report(args, console, lines.append)
    return status, "\n".join(lines) + console.file.getvalue()


def test_parents_first_then_both_ways_in_turns_from_a_lent_store(folder: Path) -> None:
    rows(folder, "unsat", "unsat")
    status, text = report("some_family", "--pairs", "2")
    assert status == 0 and "2 rows were run" in text and "int8" in text
    assert calls(folder) == [
        "verify a p0 0 compact",
        "verify a p1 1 compact",
        "verify b~int8 p0 2 compact",
        "verify b~int8 p0 - compact",
        "verify b~int8 p1 - compact",
        "verify b~int8 p1 2 compact",
        "verify b~int8 p0 - compact",
        "verify b~int8 p0 2 compact",
        "verify b~int8 p1 2 compact",
        "verify b~int8 p1 - compact",
    ]
    assert (Path("bench-out") / "reuse" / "reuse.md").read_text().count("| some_family |") > 1


def test_the_same_command_runs_only_what_is_missing(folder: Path) -> None:
    rows(folder, "unsat", "unsat")
    report("some_family", "--limit", "1")
    assert len(calls(folder)) == 3  # the parent under that property alone
    report("some_family", "--limit", "1")
    assert len(calls(folder)) == 3
    report("some_family", "--limit", "1", "--pairs", "2")
    assert len(calls(folder)) == 5
    report("some_family")
    assert calls(folder)[5:7] == ["verify a p1 1 compact", "verify b~int8 p1 - compact"] and len(calls(folder)) == 8
    report("some_family", "--no-resume")
    assert calls(folder)[8] == "verify a p0 0 compact" and len(calls(folder)) == 14


def test_an_ablation_runs_the_stages_from_proofs_as_they_were(folder: Path) -> None:
    rows(folder, "unsat", "refuse")
    status, text = report("some_family", "--ablation", "--compact-effort", "0.5")
    assert status == 0 and "IVAN" in text and "not compacted: some_family a p1: mucg4: error: no room" in text
    assert calls(folder)[:5] == [
        "verify a p0 0 plain",
        "verify a p1 1 plain",
        "store a p0 2 compact",
        "store a p1 3 compact",
        "verify b~int8 p0 4 compact",
    ]
    assert calls(folder)[5:9] == [
        "verify b~int8 p0 - compact",
        "verify b~int8 p0 2 structure",
        "verify b~int8 p0 2 duals",
        "verify b~int8 p0 2 ascent",
    ]
    done = len(calls(folder))
    report("some_family", "--ablation", "1", "--compact-effort", "0.5", "--pairs", "2")
    assert [line.split()[-1] for line in calls(folder)[done:]] == ["compact"] * 4  # the second pair has no stages
    with pytest.raises(InputError, match="another plan"):  # other proofs were lent there
        report("some_family", "--compact-effort", "2")


def test_variants_that_feed_each_other(folder: Path) -> None:
    rows(folder, "unsat", "unsat")
    report("some_family", "--accumulate")
    assert [line.split()[3] for line in calls(folder) if "b~int8" in line] == ["2", "-", "-", "3"]


def test_a_given_store_spares_the_parents(folder: Path) -> None:
    rows(folder, "unsat")
    report("some_family")
    store = Path("bench-out") / "reuse" / "some_family" / "parents.sqlite"
    report("some_family", "--store", str(store), "--out", "other")
    assert calls(folder)[3:] == ["verify b~int8 p0 - compact", "verify b~int8 p0 1 compact"]
    with pytest.raises(InputError, match="no store there"):
        report("some_family", "--store", "none.sqlite", "--out", "third")


def test_what_differs_is_named_and_wrong_answers_are_shouted(folder: Path) -> None:
    rows(folder, "timeout/unsat", "unsat/timeout", "sat/unsat")
    status, text = report("some_family")
    assert status == 1 and "CONTRADICTION" in text
    for title in ("Lost", "Gained", "Answers that differ"):
        assert any(x.startswith(title) and x.endswith(": 1") for x in text.splitlines()), title


def test_names_tell_where_no_manifest_does(folder: Path) -> None:
    rows(folder, "unsat", manifest=False)
    (folder / "instances.csv").write_text("onnx/b.onnx,vnnlib/p0.vnnlib,30\nonnx/b~int8.onnx,vnnlib/p0.vnnlib,30\n")
    (folder / "onnx" / "b.onnx").write_text("b")
    assert "int8" in report("some_family")[1] and calls(folder)[0] == "verify b p0 0 compact"
    (folder / "instances.csv").write_text("onnx/b~int8.onnx,vnnlib/p0.vnnlib,30\n")
    with pytest.raises(InputError, match="which networks are variants"):
        report("some_family", "--out", "other")


@pytest.mark.parametrize(
    "options",
    [["--engines"], ["--with-scratch"], ["--store", "off"], ["--no-reuse"], ["--reuse-upto", "duals"],
     ["--store", "x.sqlite", "--ablation"], ["--bands", "x"]],
)  # fmt: skip
def test_options_that_do_not_go_together(folder: Path, options: list[str]) -> None:
    rows(folder, "unsat")
    with pytest.raises(InputError):
        report("some_family", *options)
    assert not (folder / "calls").exists()


def test_several_lists_go_with_the_report_alone_and_have_different_names(folder: Path) -> None:
    rows(folder, "unsat")
    with pytest.raises(InputError, match="same name"):
        report("some_family", "some_family/instances.csv")
    with pytest.raises(InputError, match="one folder at a time"):
        command.run(make_parser().parse_args(["bench", "some_family", "other"]))
