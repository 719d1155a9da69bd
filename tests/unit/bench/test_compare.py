"""Comparing tools from result files: layouts, matching of rows, points, figures, tables and pictures."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mucg4.bench.claims import Entry, Results, parts_of, read_reference, read_results, same_name, verdict_of
from mucg4.bench.compare import Claim, Line, compare, figures, scores, virtual_best
from mucg4.bench.side_by_side import COLUMNS, csv_of, read_all, text_of
from mucg4.cli.main import main
from mucg4.errors import InputError

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUCG4_STORE", "off")

    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(["bench", *arguments])
        except SystemExit as leave:
            status = int(leave.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def write(path: Path, *rows: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def results(tool: str, *rows: tuple[str, str, float], category: str = "cat_2023") -> Results:
    """Rows of (property, verdict, seconds) of one network."""
    return Results(tool, tuple(Entry(category, "onnx/n.onnx", f"vnnlib/{p}.vnnlib", v, s) for p, v, s in rows))


def known(**answers: str) -> list[Entry]:
    """Reference rows with a limit of 100 s; an empty answer is not known."""
    return [Entry("cat_2023", "onnx/n.onnx", f"vnnlib/{p}.vnnlib", limit=100.0, answer=a) for p, a in answers.items()]


# --- reading ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "verdict"),
    [
        ("sat", "sat"),
        ("UNSAT", "unsat"),
        ("violated", "sat"),
        ("holds", "unsat"),
        ("", "unknown"),
        ("unknown", "unknown"),
        ("timeout (X_0", "timeout"),
        ("timed-out", "timeout"),
        ("run_instance_timeout", "timeout"),
        ("prepare_instance_timeout", "timeout"),
        ("no_result_in_file", "unknown"),
        ("prepare_instance_error_1", "unknown"),
        ("error_exit_code_137", "error"),
        ("error_nonmaximal", "unknown"),
        ("maybe", None),
    ],
)
def test_verdict_words(word: str, verdict: str | None) -> None:
    assert verdict_of(word) == verdict


@given(st.text())
def test_no_word_crashes(word: str) -> None:
    assert verdict_of(word) in ("sat", "unsat", "unknown", "timeout", "error", None)


def test_official_layout(tmp_path: Path) -> None:
    pair = "[('f', './benchmarks/c/2.0/onnx/a.onnx'), ('g', './benchmarks/c/2.0/onnx/b.onnx')]"
    path = write(
        tmp_path / "tool_a" / "results.csv",
        "c,./benchmarks/c/1.0/onnx/n.onnx,./benchmarks/c/1.0/vnnlib/p.vnnlib,0.5,unsat,1.25",
        '"c","onnx/n, 2.onnx",vnnlib/p.vnnlib,0.5,holds maybe not,2',
        "",
        f'c,"{pair}",vnnlib/q.vnnlib,0,sat,3',
        f"c,{pair},vnnlib/q.vnnlib,0,no_result_in_file,-",
        "broken,line",
    )
    (read,) = read_results(path)
    assert read.tool == "tool_a"
    assert [(e.verdict, e.seconds) for e in read.entries[:3]] == [("unsat", 1.25), ("unsat", 2.0), ("sat", 3.0)]
    assert read.entries[1].onnx == "onnx/n, 2.onnx"
    assert read.entries[3].verdict == "unknown" and math.isnan(read.entries[3].seconds)
    assert parts_of(read.entries[2].onnx, "c") == parts_of(read.entries[3].onnx, "c") == (("a",), ("b",))
    assert len(read.notes) == 1 and "1 lines" in read.notes[0] and "line 6" in read.notes[0]


def test_foreign_words_count_as_error_and_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "c,n.onnx,p.vnnlib,0,perhaps,1", "c,n.onnx,q.vnnlib,0,perhaps,1")
    (read,) = read_results(path)
    assert [e.verdict for e in read.entries] == ["error", "error"]
    assert "'perhaps'" in read.notes[0] and "2 rows" in read.notes[0]


def test_lists_with_a_header(tmp_path: Path) -> None:
    head = "peer,family,onnx,vnnlib,timeout_s,wall_s,cpu_s,peak_rss_mib,verdict,rc,other_cpu_s,note"
    path = write(
        tmp_path / "x.csv",
        head,
        "alpha,c,n.onnx,p.vnnlib,60,3.5,3,400,unsat,0,0.0,",
        'beta,c,n.onnx,p.vnnlib,60,61,3,400,error,1,0.0,"TypeError: (2, given)"',
    )
    alpha, beta = read_results(path)
    assert (alpha.tool, beta.tool) == ("alpha", "beta")
    assert alpha.entries == (Entry("c", "n.onnx", "p.vnnlib", "unsat", 3.5, 60.0),)
    assert beta.entries[0].verdict == "error"
    with pytest.raises(InputError, match="alpha, beta"):
        read_results(f"NAME={path}")


def test_names(tmp_path: Path) -> None:
    row = "c,n.onnx,p.vnnlib,0,sat,1"
    a, b = write(tmp_path / "tool" / "results.csv", row), write(tmp_path / "other.csv", row)
    assert [r.tool for r in read_all([a, b, f"mine={b}", f"folder={tmp_path / 'tool'}"])] == [
        "tool",
        "other",
        "mine",
        "folder",
    ]
    with pytest.raises(InputError, match="NAME="):
        read_all([a, a])
    with pytest.raises(InputError, match="mucg4"):
        read_all([f"mucg4={b}"], ["mucg4"])


def test_files_that_are_no_results(tmp_path: Path) -> None:
    for content in ("", "hello\n", "a,b,c\n", "onnx,vnnlib,timeout\nn.onnx,p.vnnlib,3\n"):
        (tmp_path / "x.csv").write_text(content)
        with pytest.raises(InputError, match="x.csv"):
            read_results(str(tmp_path / "x.csv"))
    with pytest.raises(InputError):
        read_results(str(tmp_path / "missing.csv"))
    write(tmp_path / "instances.csv", "n.onnx,p.vnnlib,3")
    with pytest.raises(InputError, match="before --compare"):
        read_results(str(tmp_path))


def test_records_beside_own_results_give_limits_and_witnesses(tmp_path: Path) -> None:
    path = write(tmp_path / "results.csv", "c,n.onnx,p.vnnlib,0,sat,1", "c,n.onnx,q.vnnlib,0,unsat,1")
    record = {"onnx": "n.onnx", "vnnlib": "p.vnnlib", "timeout": 7.0, "verdict": "sat", "witness": {"x": [1.0]}}
    write(tmp_path / "runs.jsonl", json.dumps(record), '{"onnx": "n.on')
    (read,) = read_results(f"mine={path}")
    assert [(e.limit, e.witness) for e in read.entries][0] == (7.0, True)
    assert math.isnan(read.entries[1].limit) and not read.entries[1].witness


def test_reference_of_folders(tmp_path: Path) -> None:
    write(tmp_path / "one" / "instances.csv", "onnx/n.onnx,vnnlib/p.vnnlib,30")
    write(tmp_path / "one" / "expected.csv", "onnx,vnnlib,verdict", "onnx/n.onnx,vnnlib/p.vnnlib,sat")
    write(tmp_path / "two" / "instances.csv", "onnx/n.onnx,vnnlib/p.vnnlib,40")
    found = read_reference([tmp_path])
    assert [(e.category, e.limit, e.answer) for e in found] == [("one", 30.0, "sat"), ("two", 40.0, "")]
    assert read_reference([tmp_path / "one"]) == found[:1]
    with pytest.raises(InputError, match="instances.csv"):
        read_reference([tmp_path / "three"])


# --- which rows are the same -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("./benchmarks/cat_2023/1.0/onnx/n.onnx", "onnx/n.onnx.gz", True),
        ("/data/benchmarks/cat_2023/onnx/sub/n.onnx", "sub/n.onnx", True),
        ("onnx/sub/n.onnx", "n.onnx", True),
        ("onnx/sub/n.onnx", "onnx/other/n.onnx", False),
        ("onnx/n.onnx", "onnx/m.onnx", False),
        ("/anywhere/n.onnx", "onnx/sub/n.onnx", True),
        ("benchmarks/cat/2.0/n.onnx", "n.onnx", True),
        ("benchmarks/cat/2.0/nets/n.onnx", "other/n.onnx", False),
        ("[('f', 'onnx/a.onnx'), ('g', 'onnx/b.onnx')]", "[('f', './c/onnx/a.onnx'), ('g', './c/onnx/b.onnx')]", True),
        ("[('f', 'onnx/a.onnx'), ('g', 'onnx/b.onnx')]", "onnx/a.onnx", False),
        ("[broken", "[broken", True),
    ],
)
def test_same_files(a: str, b: str, same: bool) -> None:
    assert same_name(parts_of(a, "cat_2023"), parts_of(b, "cat_2023")) is same


def one(tool: str, category: str, onnx: str, vnnlib: str = "p.vnnlib", verdict: str = "unsat") -> Results:
    return Results(tool, (Entry(category, onnx, vnnlib, verdict, 1.0),))


def test_a_year_less_name_is_the_benchmark_with_a_year() -> None:
    assert len(compare([one("a", "cat_2023", "n.onnx"), one("b", "CAT", "n.onnx")]).lines) == 1
    assert len(compare([one("a", "2026_cat_2023", "n.onnx"), one("b", "cat_2023", "n.onnx")]).lines) == 1
    assert len(compare([one("a", "cat_2023", "n.onnx"), one("b", "cat_2022", "n.onnx")]).lines) == 2
    assert len(compare([one("a", "cat_int8", "n.onnx"), one("b", "cat", "n.onnx")]).lines) == 2


def test_a_bare_name_joins_only_where_one_fits() -> None:
    deep, other, bare = one("a", "c", "onnx/x/n.onnx"), one("b", "c", "onnx/y/n.onnx"), one("d", "c", "n.onnx")
    assert len(compare([deep, bare]).lines) == 1
    assert len(compare([deep, other]).lines) == 2
    assert len(compare([deep, other, bare]).lines) == 3  # it may be either


def test_repeated_rows_meet_in_order() -> None:
    a = results("a", ("p", "sat", 1), ("p", "unknown", 2))
    b = results("b", ("p", "sat", 3), ("p", "timeout", 4))
    c = compare([a, b])
    assert [[claim.seconds for claim in line.claims.values()] for line in c.lines] == [[1, 3], [2, 4]]
    assert sum("several rows" in note for note in c.notes) == 2


def test_only_the_rows_of_the_run() -> None:
    theirs = results("b", ("p", "sat", 1), ("q", "sat", 1))
    c = compare([results("a", ("p", "sat", 1)), theirs], known(p=""), only=True)
    assert len(c.lines) == 1 and c.lines[0].limit == 100.0
    assert any("1 rows are not among those that were run" in note for note in c.notes)
    assert len(compare([theirs], known(p="", q="", r="")).lines) == 2


# --- points ----------------------------------------------------------------------------------------------------


def line(answer: str = "", **claims: str) -> Line:
    """`a="sat+"`: with a replayed witness."""
    return Line(
        "c", "n", "p", 10.0, answer, {t: Claim(w.rstrip("+"), 1.0, witness="+" in w) for t, w in claims.items()}
    )


@pytest.mark.parametrize(
    ("case", "points"),
    [
        (line(a="sat", b="unknown"), (10, 0)),
        (line(a="unsat", b="timeout"), (10, 0)),
        (line(a="sat", b="error"), (10, 0)),
        (line("sat", a="sat", b="unsat"), (10, -150)),
        (line("unsat", a="sat", b="unsat"), (-150, 10)),
        (line("sat", a="unsat", b="unsat"), (-150, -150)),
        (line(a="sat+", b="unsat"), (10, -150)),
        (line(a="sat", b="unsat"), (-150, 10)),  # no witness is known: sat is wrong by rule
        (line("unsat", a="sat+", b="unsat"), (-150, 10)),
    ],
)
def test_points(case: Line, points: tuple[int, int]) -> None:
    assert (case.points("a"), case.points("b")) == points


def test_no_majority_counts() -> None:
    many = line(a="sat", b="unsat", c="sat", d="sat")
    assert [many.points(t) for t in "abcd"] == [-150, 10, -150, -150]
    assert [many.points(t, witnessed=True) for t in "abcd"] == [10, -150, 10, 10]


def test_an_answer_after_the_timeout_is_none() -> None:
    c = compare([results("a", ("p", "unsat", 100.5)), results("b", ("p", "unsat", 100.0))], known(p="sat"))
    claims = c.lines[0].claims
    assert (claims["a"].verdict, claims["a"].late, c.lines[0].points("a")) == ("timeout", "unsat", 0)
    assert c.lines[0].points("b") == -150
    assert "late a" in c.lines[0].remark(c.tools)


def test_scores() -> None:
    rows = [line(a="sat", b="sat"), line(a="unsat", b="unknown")]
    assert scores(rows, "ab") == {"a": 100.0, "b": 50.0}
    assert scores([line(a="unknown", b="error")], "ab") == {"a": 0.0, "b": 0.0}
    assert scores([line("sat", a="unsat", b="sat")], "ab") == {"a": 0.0, "b": 100.0}


# --- figures ---------------------------------------------------------------------------------------------------


def test_figures_of_a_small_table() -> None:
    a = results("a", ("p", "sat", 1.0), ("q", "unsat", 4.0), ("r", "timeout", 101.0), ("s", "sat", 2.0))
    b = results("b", ("p", "sat", 2.0), ("q", "unknown", 1.0), ("r", "unsat", 25.0))
    c = compare([a, b], known(p="", q="", r="", s="unsat"))
    f, g, best = figures(c.lines, "a"), figures(c.lines, "b"), virtual_best(c.lines)
    assert (f.rows, f.sat, f.unsat, f.wrong, f.points) == (4, 1, 1, 1, 20 - 150)
    assert f.median == pytest.approx(52.0) and f.par2 == pytest.approx((1 + 4 + 200 + 200) / 4)
    assert f.mean == pytest.approx((1.0 * 4.0 * 100 * 100) ** 0.25)
    assert (g.rows, g.solved, g.points) == (3, 2, 20)
    assert (best.rows, best.sat, best.unsat, best.points) == (4, 1, 2, 30)
    assert best.par2 == pytest.approx((1 + 4 + 25 + 200) / 4)
    assert len(c.common(c.lines)) == 3
    assert math.isnan(figures([], "a").median) and math.isnan(virtual_best([]).par2)


def test_unknown_timeouts_have_a_stand_in() -> None:
    c = compare([results("a", ("p", "sat", 1.0), ("q", "timeout", 50.0))])
    assert [line.limit for line in c.lines] == [50.0, 50.0]
    assert any("not known" in note and "50.0 s" in note for note in c.notes)
    told = Results("b", (Entry("cat", "n.onnx", "p.vnnlib", "sat", 30.0, 60.0),))
    less = Results("a", (Entry("cat", "n.onnx", "p.vnnlib", "sat", 1.0, 20.0),))
    assert compare([told, less]).lines[0].claims["b"].late == "sat"  # the smallest limit told holds for all


def test_times_of_nought_and_times_not_told() -> None:
    c = compare([results("a", ("p", "sat", 0.0), ("q", "sat", math.nan))], known(p="", q=""))
    assert figures(c.lines, "a").mean == pytest.approx(math.sqrt(0.001 * 100.0))


def test_all_tools_against_the_known_answer_may_be_another_edition() -> None:
    c = compare([results("a", ("p", "sat", 1)), results("b", ("p", "sat", 1))], known(p="unsat"))
    assert any("another edition" in note for note in c.notes)


# --- what is written -------------------------------------------------------------------------------------------


def test_text_marks_what_matters() -> None:
    a = results("a", ("p", "sat", 1.0), ("q", "unsat", 4.0), ("r", "sat", 1.0), ("s", "sat", 1.0))
    b = results("b", ("p", "unsat", 2.0), ("q", "unknown", 1.0), ("r", "unsat", 1.0))
    text = "\n".join(text_of(compare([a, b], known(p="", q="", r="sat", s=""))))
    assert "DISAGREE" in text and "WRONG b" in text and "only a" in text
    assert "disagreements and wrong answers: 2" in text and "nothing known" in text and "known: sat" in text
    assert "virtual best" in text and "the 3 rows that all of them have" in text
    assert "the total scores would be a 100.0, b 0.0" in text
    assert "do not tell whether a witness is valid" in text


def test_total_over_benchmarks() -> None:
    a = Results("a", tuple(e for k in "xy" for e in results("a", ("p", "sat", 9.0), category=k).entries))
    b = Results("b", results("b", ("p", "sat", 1.0), category="x").entries)
    text = text_of(compare([b, a]))
    head = text.index("competition score, best total first")
    assert text[head + 1].split() == ["benchmark", "a", "b"]
    assert [row.split() for row in text[head + 3 : head + 6]] == [
        ["x", "100.0", "100.0"],
        ["y", "100.0", "0.0"],
        ["total", "200.0", "100.0"],
    ]


def test_csv_is_read_again(tmp_path: Path) -> None:
    c = compare([results("a", ("p", "sat", 1.0)), results("b", ("p", "unsat", 2.0))], known(p="sat"))
    rows = list(csv.DictReader(csv_of(c).splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [(r["tool"], r["verdict"], r["points"], r["answer"]) for r in rows] == [
        ("a", "sat", "10", "sat"),
        ("b", "unsat", "-150", "sat"),
    ]
    (tmp_path / "compare.csv").write_text(csv_of(c))
    again = read_results(str(tmp_path / "compare.csv"))
    assert [(r.tool, r.entries[0].verdict, r.entries[0].limit) for r in again] == [
        ("a", "sat", 100.0),
        ("b", "unsat", 100.0),
    ]


def test_on_its_own(call: Call, tmp_path: Path) -> None:
    write(tmp_path / "cat" / "instances.csv", "onnx/n.onnx,vnnlib/p.vnnlib,30")
    write(tmp_path / "cat" / "expected.csv", "onnx/n.onnx,vnnlib/p.vnnlib,sat")
    a = write(tmp_path / "a.csv", "cat,./benchmarks/cat/onnx/n.onnx,./benchmarks/cat/vnnlib/p.vnnlib,0,sat,1")
    b = write(tmp_path / "b.csv", "cat,n.onnx,p.vnnlib,0,unsat,2")
    status, out, err = call("--compare", a, f"other={b}", "--benchmarks", "cat", "--no-plots", "--out", "o")
    assert (status, err) == (0, "") and "WRONG other" in out
    assert {p.name for p in Path("o").iterdir()} == {"compare.txt", "compare.csv"}
    assert Path("o/compare.txt").read_text() in out
    assert call("--compare", b, a, "--benchmarks", "cat", "--no-plots", "--out", "o")[0] == 1  # now the first is wrong
    assert call("--compare", a, b, "--no-plots", "--out", "o")[0] == 1  # disputed, nothing known


def test_after_a_run(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from mucg4.bench import run as bench_run

    code = "import pathlib, sys; a = sys.argv; pathlib.Path(a[a.index('--result') + 1]).write_text('unsat\\n')"
    monkeypatch.setattr(bench_run, "TOOL", (sys.executable, "-c", code))
    for name in ("onnx/n.onnx", "vnnlib/p.vnnlib", "vnnlib/q.vnnlib"):
        write(tmp_path / "cat" / name, name)
    write(tmp_path / "cat" / "instances.csv", "onnx/n.onnx,vnnlib/p.vnnlib,30", "onnx/n.onnx,vnnlib/q.vnnlib,30")
    theirs = write(tmp_path / "x.csv", "cat,n.onnx,p.vnnlib,0,unsat,1", "cat,n.onnx,q.vnnlib,0,sat,1")
    status, out, _ = call("cat", "--limit", "1", "--no-plots", "--compare", theirs)
    assert status == 0 and "mucg4" in out and "not among those that were run" in out
    assert (Path("bench-out") / "cat" / "compare.csv").exists()
    assert call("cat", "--no-plots", "--compare", theirs)[0] == 1  # the second row is disputed


def test_refusals(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a = write(tmp_path / "a.csv", "cat,n.onnx,p.vnnlib,0,sat,1")
    for arguments, word in (
        ([], "--compare"),
        (["--compare", "missing.csv"], "missing.csv"),
        (["--compare", a, a, "--no-plots"], "NAME="),
        (["cat", "--compare", a, "--no-plots", "--benchmarks", "cat"], "--benchmarks"),
    ):
        status, out, err = call(*arguments)
        assert (status, out) == (2, "") and word in err and err.count("\n") == 1
    real = importlib.util.find_spec
    absent: Callable[..., object] = lambda name, *more: None if name == "matplotlib" else real(name, *more)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    status, out, err = call("--compare", a)
    assert (status, out) == (2, "") and "pip install 'mucg4[bench]'" in err and err.count("\n") == 1
    assert call("--compare", a, "--no-plots")[0] == 0


def test_pictures(call: Call, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [("p", "sat", 1.0), ("q", "unsat", 4.0), ("r", "timeout", 99.0), ("s", "unsat", 0.0)]
    files = []
    for k, tool in enumerate(("a b", "c/d", "none")):
        lines = [f"cat,n.onnx,{p}.vnnlib,0,{v if tool != 'none' else 'unknown'},{s * (k + 1)}" for p, v, s in rows[k:]]
        files.append(f"{tool}=" + write(tmp_path / f"{k}.csv", *lines))
    status, out, err = call("--compare", *files, "--out", "o")
    assert (status, err) == (0, "")
    names = {p.name for p in Path("o").iterdir()}
    for name in ("cactus", "scatter-a_b-c_d", "scatter-a_b-none"):
        assert Path(f"o/{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "not solved by" in Path(f"o/{name}.svg").read_text() or name == "cactus"
        assert {f"{name}.png", f"{name}.svg"} <= names and f"{name}.svg" in out
    first = {p.name: p.read_bytes() for p in Path("o").glob("*.svg")}
    call("--compare", *files, "--out", "o")
    assert first == {p.name: p.read_bytes() for p in Path("o").glob("*.svg")}  # the same files, the same pictures
