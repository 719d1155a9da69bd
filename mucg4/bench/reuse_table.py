"""The report on reuse as text: its tables for the terminal and as Markdown, and every run as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import field

from mucg4.bench.results import STAGES
from mucg4.bench.reuse_figures import BEYOND, WITHIN, Band, Group, Line, figures, groups_of
from mucg4.bench.table import DECIDED, file_stem, geometric_mean, grid
from mucg4.records import dataclass

WEIGHTS = (
    "leaves closed without search: shares of the stored leaves, rows weighted by their seconds from scratch; leaves of "
    "one row count alike, as records do not say what work each stands for"
)
# what was published about reuse of splits alone, each against its own search from scratch: IVAN, arXiv 2304.01874
CITED = ((3.8, "IVAN as published, five inputs"), (2.4, "IVAN as published, images"))


@dataclass(frozen=True)
class Table:
    """A title, the names of columns (the first `left` hold words), rows of cells, and remarks below."""

    title: str
    head: tuple[str, ...]
    rows: list[list[str]]
    left: int
    notes: list[str] = field(default_factory=list)

    def text(self) -> list[str]:
        """Lines for the terminal."""
        return [self.title, *(grid(self.head, self.rows, self.left) if self.rows else ["  none"]), *self.notes]

    def markdown(self) -> list[str]:
        """Lines of Markdown."""
        out = [f"## {self.title}", ""]
        if self.rows:
            sides = ["---" if k < self.left else "---:" for k in range(len(self.head))]
            out += [_marked(self.head), _marked(sides), *map(_marked, self.rows)]
        else:
            out.append("none")
        return out + [line for note in self.notes for line in ("", note)]


@dataclass(frozen=True)
class Parents:
    """What became of a list's parents: their verdicts, seconds in all, and what compacting them took and refused."""

    category: str
    verdicts: dict[str, int]
    seconds: float
    compacting: float = 0.0
    refused: tuple[str, ...] = ()


def tables(
    lines: Sequence[Line], parents: Sequence[Parents], bands: Sequence[Band], together: Sequence[Sequence[str]] = ()
) -> list[Table]:
    """All tables of the report."""
    proved = [line for line in lines if line.verdict("scratch") == "unsat"]
    groups = groups_of(proved, bands, together)
    out = [gains(groups), costs(lines)]
    out += [_named(lines, *one) for one in NAMED]
    if any(stage in line.runs for line in lines for stage in STAGES):
        out.append(ablation(groups))
    return [*out, _parents(parents)]


# ---- the tables --------------------------------------------------------------------------------


def gains(groups: Sequence[Group]) -> Table:
    """Per group of unsat rows: factor, costs, leaves, checks."""
    head = ("list", "method", "from scratch", "rows", "with proof", "factor", "worst", "within", "beyond", "lost",
            "differ", "closed", "by ascent", "checked in both")  # fmt: skip
    rows = []
    for group in groups:
        f = figures(group.lines)
        cells = [str(f.rows), str(f.borrowed), _number(f.factor), _number(f.worst), _share(f.within)]
        cells += [*map(str, (f.beyond, f.lost, f.differing)), _share(f.closed), _share(f.ascent), str(f.checked)]
        rows.append([group.category, group.method, group.band, *cells])
    return Table("Rows that are unsat from scratch", head, rows, 3, [_limits(), WEIGHTS])


def _limits() -> str:
    (a, b), (c, d) = WITHIN, BEYOND
    return (
        "factor: seconds from scratch over seconds with the store, whole processes, median over the pairs, geometric "
        f"mean over rows; within: at most {a:g} x from scratch + {b:g} s; beyond: more than {c:g} x + {d:g} s, or lost"
    )


def costs(lines: Sequence[Line]) -> Table:
    """Per list and answer, all rows that scratch decides: what the store cost."""
    rows = []
    categories = list(dict.fromkeys(line.category for line in lines))
    for category in [*categories, "all"] if len(categories) > 1 else categories:
        for word in (*DECIDED, "both"):
            words = DECIDED if word == "both" else (word,)
            of = [line for line in lines if category in (line.category, "all") and line.verdict("scratch") in words]
            if of:
                f = figures(of)
                cells = [str(f.rows), _number(f.factor), _number(f.worst), _share(f.within)]
                rows.append([category, word, *cells, *map(str, (f.beyond, f.lost, f.differing))])
    head = ("list", "answer", "rows", "factor", "worst", "within", "beyond", "lost", "differ")
    alone = sum(line.is_gained for line in lines)
    neither = sum(not line.is_decided("store") and not line.is_decided("scratch") for line in lines)
    note = f"{len(lines)} rows were run; with the store, but not always from scratch: {alone}; by neither: {neither}"
    return Table("All rows that are decided from scratch", head, rows, 2, [note])


# rows to be named: the title, and whether a row is one of them
NAMED: tuple[tuple[str, Callable[[Line], bool]], ...] = (
    ("Answers that differ: sat against unsat", lambda line: line.differs),
    ("Lost: decided from scratch, not with the store", lambda line: line.is_lost),
    ("Beyond the limit of time", lambda line: line.is_decided("scratch") and not line.keeps(BEYOND)),
    ("Gained: decided with the store, not from scratch", lambda line: line.is_gained),
)


def _named(lines: Sequence[Line], title: str, belongs: Callable[[Line], bool]) -> Table:
    head = ("list", "network", "property", "method", "parent", "with store", "from scratch", "s", "scratch s")
    rows = [
        [line.category, file_stem(line.onnx), file_stem(line.vnnlib), line.method, line.parent or "-",
         line.verdict("store"), line.verdict("scratch"), _number(line.wall("store")), _number(line.wall("scratch"))]
        for line in lines
        if belongs(line)
    ]  # fmt: skip
    return Table(f"{title}: {len(rows)}", head, rows, 7)


def ablation(groups: Sequence[Group]) -> Table:
    """Per group the factors of the stages of reuse, each of which does more than the one before it."""
    head = ("list", "method", "from scratch", "rows", "structure", "+ duals", "+ ascent", "+ compaction and margins")
    rows = []
    for group in groups:
        lines = [line for line in group.lines if all(stage in line.runs for stage in STAGES)]
        if lines:
            cells = [_stage(lines, mode) for mode in (*STAGES, "store")]
            rows.append([group.category, group.method, group.band, str(len(lines)), *cells])
    rows += [["-", name, "-", "-", f"{factor:g}", "-", "-", "-"] for factor, name in CITED]
    notes = [
        "structure: stored leaves as regions of a new search (IVAN's scheme); duals: the checker has the stored "
        "evidence; ascent: what it rejects begins there; last: the same with compacted proofs. In brackets rows that "
        "are not decided, which count with the time they took: such a factor is too good",
        "IVAN (PLDI 2023, arXiv 2304.01874) is cited: other networks, machine and search from scratch",
    ]
    return Table("What each part of reuse adds: factors", head, rows, 3, notes)


def _stage(lines: Sequence[Line], mode: str) -> str:
    open_ = sum(not line.is_decided(mode) for line in lines)
    text = _number(geometric_mean([line.factor(mode) for line in lines]))
    return f"{text} ({open_})" if open_ else text


def _parents(parents: Sequence[Parents]) -> Table:
    head = ("list", "verdicts", "seconds", "compacting s", "not compacted")
    rows = [
        [p.category, ", ".join(f"{word} {n}" for word, n in sorted(p.verdicts.items())) or "given",
         f"{p.seconds:.1f}", f"{p.compacting:.1f}", str(len(p.refused))]
        for p in parents
    ]  # fmt: skip
    notes = [f"not compacted: {p.category} {text}" for p in parents for text in p.refused]
    return Table("Parents, in no figure above", head, rows, 2, notes)


# ---- cells and files ---------------------------------------------------------------------------


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.1f} %"


def _marked(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


OWN: tuple[str, ...] = ("list", "onnx", "vnnlib", "method", "parent", "mode", "pair")
RECORD: tuple[str, ...] = (
    "verdict",
    "wall",
    "timeout",
    "peak_rss",
    "checker",
    "relation",
    "relation_detail",
    "stored_leaves",
)
RECORD += ("replay_regions", "regions", "from_root", "leaves", "second_mode", "killed", "reason")
RUNGS = ("witness", "checked", "near", "ascent", "cores")


def csv_of(lines: Sequence[Line]) -> str:
    """One line per run, with a header."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*OWN, *RECORD, *RUNGS])
    for line in lines:
        for mode, records in line.runs.items():
            for pair, record in enumerate(records):
                own = [line.category, line.onnx, line.vnnlib, line.method, line.parent, mode, pair + 1]
                rungs = record.get("rungs", {})
                writer.writerow([*own, *(record.get(key) for key in RECORD), *(rungs.get(key) for key in RUNGS)])
    return file.getvalue()
