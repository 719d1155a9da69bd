"""The comparison of `mucg4 bench --compare`: reads the files, writes tables, `compare.csv` and pictures."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from mucg4.bench.claims import Entry, Results, paths_of, read_results
from mucg4.bench.compare import Comparison, Figures, Line, compare, figures, scores, virtual_best
from mucg4.bench.plan import Plan
from mucg4.bench.results import read_expected
from mucg4.bench.table import file_stem, grid
from mucg4.errors import InputError
from mucg4.files import write_atomic

ASSUMED = "result files do not tell whether a witness is valid: a sat counts as right unless unsat is known or claimed"
ABSENT = "rows that a tool does not have give it no points; its time figures are those of the rows it has"


def read_all(texts: Sequence[str], taken: Sequence[str] = ()) -> list[Results]:
    """The results of all files given as `[NAME=]PATH`. Raises `InputError`, also when two are called the same."""
    out: list[Results] = []
    for text in texts:
        for results in read_results(text):
            if results.tool in (*taken, *(r.tool for r in out)):
                raise InputError(f"two results are called {results.tool}; give a name: --compare NAME={text}")
            out.append(results)
    return out


def check_pictures() -> None:
    """Raise `InputError` when pictures cannot be drawn here."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError("the pictures need matplotlib: pip install 'mucg4[bench]', or --no-plots for tables only")


def own_results(plan: Plan) -> list[Results]:
    """The results of a run that has ended, from its folder."""
    out = read_results(f"mucg4={plan.out / 'results.csv'}")
    if plan.scratch:
        out += read_results(f"mucg4 scratch={plan.out / 'results_scratch.csv'}")
    return out


def planned(plan: Plan) -> list[Entry]:
    """Limits and known answers of the rows of a run."""
    answers = read_expected(plan.folder)
    return [
        Entry(plan.category, *names, limit=row.timeout, answer=answers.get(names, ""))
        for row in plan.rows
        for names in [(row.onnx_text, row.vnnlib_text)]
    ]


def run_compare(
    results: Sequence[Results],
    reference: Sequence[Entry],
    out: Path,
    plots: bool,
    say: Callable[[str], None],
    only: bool = False,
) -> int:
    """Compare, say the tables, write `compare.txt`, `compare.csv` and the pictures into `out`.

    Returns 1 when an answer of the first tool is wrong, or stands against another's and nothing tells which is right;
    else 0.
    """
    c = compare(results, reference, only)
    if not c.lines:
        raise InputError("the files to compare have no rows in common with what was run")
    out.mkdir(parents=True, exist_ok=True)
    lines = text_of(c)
    for line in lines:
        say(line)
    write_atomic(out / "compare.txt", "\n".join(lines) + "\n")
    write_atomic(out / "compare.csv", csv_of(c))
    names = ["compare.txt", "compare.csv"]
    if plots:
        from mucg4.bench.plot import draw_all

        names += draw_all(c, out)
    say(f"written to {out}: {', '.join(names)}")
    first = c.tools[0]
    return int(any(line.points(first) < 0 or (line.open_conflict and line.is_decided(first)) for line in c.lines))


# --- text ------------------------------------------------------------------------------------------------------


def text_of(c: Comparison) -> list[str]:
    """All tables: row by row, then summed up, then points."""
    out: list[str] = []
    for category in c.categories:
        out += ["", f"{category or 'no category'}, row by row", *_rows(c, c.of(category))]
    for category in c.categories:
        out += ["", *_summary(c, category)]
    if len(c.categories) > 1:
        out += ["", *_totals(c)]
    notes = [*c.notes, ASSUMED, *([ABSENT] if any(len(line.claims) < len(c.tools) for line in c.lines) else [])]
    out += ["", *_notable(c), "", *_conflicts(c), *[f"note: {text}" for text in notes]]
    return out[1:]


def _name(text: str) -> str:
    return "+".join(file_stem(path) for path in paths_of(text))


def _cell(line: Line, tool: str) -> tuple[str, str]:
    claim = line.claims.get(tool)
    if claim is None:
        return "-", ""
    return claim.verdict, "" if math.isnan(claim.seconds) else f"{claim.seconds:.2f}"


def _rows(c: Comparison, lines: list[Line]) -> list[str]:
    tools = [tool for tool in c.tools if any(tool in line.claims for line in lines)]
    head = ["network", "property", "answer"]
    for tool in tools:
        head += [tool, "s"]
    body = []
    for line in lines:
        cells = [_name(line.onnx), _name(line.vnnlib), line.truth or "-"]
        for tool in tools:
            cells += _cell(line, tool)
        body.append([*cells, line.remark(tools)])
    times = set(range(4, 3 + 2 * len(tools), 2))
    return grid([*head, "remark"], body, left=len(head) + 1, right=times)


def _summary(c: Comparison, category: str) -> list[str]:
    """The figures of one benchmark; once more over the rows that all have, when they do not have the same."""
    lines = c.of(category)
    tools = [tool for tool in c.tools if any(tool in line.claims for line in lines)]
    common = c.common(lines)
    name = category or "no category"
    out = [f"{name}: {len(lines)} rows", *_figures(lines, tools)]
    if 0 < len(common) < len(lines):
        out += ["", f"{name}: the {len(common)} rows that all of them have", *_figures(common, tools)]
    elif not common:
        out.append("no row that all of them have")
    return out


def _figures(lines: list[Line], tools: list[str]) -> list[str]:
    score = scores(lines, tools)
    alone = {tool: sum(line.alone() == tool for line in lines) for tool in tools}
    body = [_figures_row(figures(lines, tool), f"{score[tool]:.1f}", str(alone[tool])) for tool in tools]
    if len(tools) > 1:
        body.append(_figures_row(virtual_best(lines), "-", "-"))
    counts = ("rows", "solved", "sat", "unsat", "wrong", "alone")
    return grid(("tool", *counts, "median s", "geomean s", "PAR2 s", "points", "score"), body, left=1)


def _figures_row(f: Figures, score: str, alone: str) -> list[str]:
    counts = [str(n) for n in (f.rows, f.solved, f.sat, f.unsat, f.wrong)]
    return [f.tool, *counts, alone, *(_seconds(v) for v in (f.median, f.mean, f.par2)), str(f.points), score]


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _totals(c: Comparison) -> list[str]:
    """Scores per benchmark, best total first (equal ones by total time)."""
    per = {category: scores(c.of(category), c.tools) for category in c.categories}
    total = {tool: sum(score[tool] for score in per.values()) for tool in c.tools}
    time = {tool: sum(line.cost(tool) for line in c.lines) for tool in c.tools}
    order = sorted(c.tools, key=lambda tool: (-round(total[tool], 6), time[tool]))
    body = [[category or "no category", *(f"{score[tool]:.1f}" for tool in order)] for category, score in per.items()]
    body.append(["total", *(f"{total[tool]:.1f}" for tool in order)])
    return ["competition score, best total first", *grid(["benchmark", *order], body, left=1)]


def _notable(c: Comparison) -> list[str]:
    """The rows on which the tools contradict each other or the known answer."""
    bad = [line for line in c.lines if line.open_conflict or any(line.points(tool) < 0 for tool in c.tools)]
    return [f"disagreements and wrong answers: {len(bad)}"] + [
        f"  {_name(line.onnx)} {_name(line.vnnlib)}: "
        + ", ".join(f"{tool} {line.claims[tool].verdict}" for tool in c.tools if line.is_decided(tool))
        + (f"; known: {line.truth}" if line.truth else "; nothing known")
        for line in bad
    ]


def _conflicts(c: Comparison) -> list[str]:
    """What the scores would be were the witnesses of undecided conflicts valid."""
    count = sum(line.open_conflict for line in c.lines)
    if not count:
        return []
    total = {tool: 0.0 for tool in c.tools}
    for category in c.categories:
        for tool, score in scores(c.of(category), c.tools, witnessed=True).items():
            total[tool] += score
    text = ", ".join(f"{tool} {total[tool]:.1f}" for tool in c.tools)
    return [
        f"note: on {count} rows sat stands against unsat and no witness is known: scored against sat by the rule for"
        f" sat without a witness; were these witnesses valid, the total scores would be {text}"
    ]


# --- machine-readable ------------------------------------------------------------------------------------------

COLUMNS = ("category", "onnx", "vnnlib", "limit", "answer", "tool", "verdict", "run_time", "late", "points", "remark")


def csv_of(c: Comparison) -> str:
    """One line per instance and tool that has it, with a header; `--compare` reads it again."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for line in c.lines:
        remark = line.remark(c.tools)
        for tool in c.tools:
            claim = line.claims.get(tool)
            if claim is not None:
                time = "" if math.isnan(claim.seconds) else f"{claim.seconds:.3f}"
                where = (line.category, line.onnx, line.vnnlib, f"{line.limit:g}", line.truth)
                writer.writerow([*where, tool, claim.verdict, time, claim.late, line.points(tool), remark])
    return file.getvalue()
