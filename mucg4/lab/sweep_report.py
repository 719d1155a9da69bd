"""What a sweep found, as tables, as lines of CSV and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mucg4.bench.plot import DPI, GREY, KINDS
from mucg4.bench.table import file_stem, grid
from mucg4.lab.sweep import NOT_RUN, ORIGINAL, Frontier, Row, frontiers

COLUMNS = (
    "property", "method", "family", "verdict", "reason", "seconds", "ratio", "relation", "relation_detail",
    "reused_share", "stored_leaves", "leaves", "regions", "checker", "float32",
)  # fmt: skip
SHADES = {**{word: colour for word, (colour, _) in KINDS.items()}, NOT_RUN: "#FFFFFF"}  # others: grey


def cells(row: Row) -> list[Any]:
    """One line of the CSV file, in the order of COLUMNS."""
    s = row.statistics
    numbers = [round(row.seconds, 4) if row.ran else "", "" if row.ratio is None else round(row.ratio, 4)]
    found = [s.relation, s.relation_detail] if row.ran and s.related_proof else ["", ""]
    counts = [s.reused_share, s.stored_leaves, s.leaves, s.regions] if row.ran else [""] * 4
    return [
        row.prop, row.method.name, row.method.family, row.word, row.reason, *numbers, *found, *counts, s.checker,
        s.float32,
    ]  # fmt: skip


def rows_table(rows: Sequence[Row]) -> list[str]:
    """Every row: verdict, time, what was reused, and the time over that of the network itself from scratch."""
    head = ("property", "method", "relation", "verdict", "time s", "reused", "leaves", "x original")
    return grid(head, [_shown(row) for row in rows], left=4)


def _shown(row: Row) -> list[str]:
    s = row.statistics
    return [
        file_stem(row.prop),
        row.method.name,
        s.relation if s.related_proof else "-",
        row.word,
        f"{row.seconds:.2f}" if row.ran else "-",
        f"{100 * s.reused_share:.0f} %" if s.stored_leaves else "-",
        str(s.leaves) if s.leaves else "-",
        "-" if row.ratio is None else f"{row.ratio:.2f}",
    ]


def frontier_table(rows: Sequence[Row]) -> list[str]:
    """Per property and family: up to where all methods are proved, what stopped there, and what is proved beyond."""
    head = ("property", "family", "proved up to", "next", "which is", "proved beyond")
    return grid(head, [_frontier(f) for f in frontiers(rows)], left=6)


def _frontier(f: Frontier) -> list[str]:
    return [
        file_stem(f.prop),
        f.family,
        f.last.method.name if f.last else "-",
        f.first.method.name if f.first else "-",
        f.first.word if f.first else "-",
        " ".join(row.method.name for row in f.beyond) or "-",
    ]


def summary(rows: Sequence[Row]) -> list[str]:
    """Counts of the verdicts, times, and rows that could not be run."""
    variants = [row for row in rows if row.method != ORIGINAL]
    ran, lines = [row for row in variants if row.ran], []
    counts: dict[str, int] = {}
    for row in variants:
        counts[row.word] = counts.get(row.word, 0) + 1
    first = sum(row.seconds for row in rows if row.method == ORIGINAL)
    total = sum(row.seconds for row in ran)
    words = ", ".join(f"{word} {count}" for word, count in sorted(counts.items()))
    lines.append(f"{len(variants)} variants: {words or 'none'}")
    if ran:
        lines.append(f"{total:.1f} s, {total / len(ran):.2f} s each; the network itself {first:.1f} s")
    seen: dict[tuple[str, str], int] = {}
    for row in rows:
        if not row.ran and row.word != NOT_RUN:
            seen[row.method.name, row.reason] = seen.get((row.method.name, row.reason), 0) + 1
    lines += [f"error: {name}: {reason}" for name, reason in seen]
    return lines


def draw(rows: Sequence[Row], path: Path) -> None:
    """The picture: properties down, methods across, families apart; a line where the frontier lies.

    Raises `OSError` when it cannot be written, `ImportError` without matplotlib, `ValueError` for a format it does not
    know.
    """
    import matplotlib

    style: dict[Any, Any] = {"svg.hashsalt": "mucg4", "svg.fonttype": "none", "font.size": 9}
    metadata = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
    with matplotlib.rc_context(style):
        _picture(rows).savefig(path, dpi=DPI, **metadata)


def _picture(rows: Sequence[Row]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    names = list(dict.fromkeys(row.prop for row in rows))
    methods = list(dict.fromkeys(row.method for row in rows))
    at = _places([m.family or m.name for m in methods])
    place = dict(zip((m.name for m in methods), at, strict=True))
    figure = Figure(figsize=(2.2 + 0.62 * at[-1], 1.3 + 0.34 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for row in rows:
        x, y = place[row.method.name], names.index(row.prop)
        colour = SHADES.get(row.word, "#BBBBBB")
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5))
        text = f"{row.seconds:.2g}" if row.ran else ""
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color="white" if row.word in KINDS else "#333333")
    for f in frontiers(rows):
        family = [place[m.name] for m in methods if m.family == f.family]
        x = place[f.last.method.name] + 0.5 if f.last else family[0] - 0.5
        y = names.index(f.prop)
        axes.plot([x, x], [y - 0.5, y + 0.5], color="black", linewidth=2.6, solid_capstyle="butt")
    axes.set_xlim(-0.7, at[-1] + 0.7)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(at, [m.name for m in methods], rotation=50, ha="right")
    axes.set_yticks(range(len(names)), [file_stem(name) for name in names])
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    words = dict.fromkeys(row.word for row in rows)
    patches = [Rectangle((0, 0), 1, 1, facecolor=SHADES.get(w, "#BBBBBB"), edgecolor=GREY, label=w) for w in words]
    axes.legend(handles=patches, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(patches), frameon=False)
    axes.set_xlabel("method, milder to harder; numbers are seconds, bars end what is proved without a gap")
    return figure


def _places(families: Sequence[str]) -> list[float]:
    """Where the methods stand across: one apart, families a little more."""
    out, x = [0.0], 0.0
    for before, after in zip(families, families[1:], strict=False):
        x += 1.0 if before == after else 1.3
        out.append(x)
    return out
