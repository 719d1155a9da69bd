"""The picture of the report on reuse: seconds from scratch against seconds with the store, a panel per method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mucg4.bench.compare import LEAST
from mucg4.bench.plot import COLOURS, GREY, STYLE, new_panels, save_figure, square_seconds
from mucg4.bench.reuse_figures import Line
from mucg4.bench.table import geometric_mean

FACTORS: tuple[tuple[int, Any], ...] = ((1, "-"), (10, ":"))  # diagonals; not measured
MARKERS = ("o", "^", "s", "D", "v", "P")
WAYS = "scratch", "store"  # across, up
ACROSS = 4  # panels side by side; not measured


def draw(lines: Sequence[Line], out: Path) -> list[str]:
    """Write `reuse.png` and `reuse.svg` into `out`; their names, none when no row was decided."""
    import matplotlib

    shown = [line for line in lines if line.is_decided("store") or line.is_decided("scratch")]
    if not shown:
        return []
    with matplotlib.rc_context(STYLE):
        return save_figure(_panels(shown), out, "reuse")


def _panels(lines: Sequence[Line]) -> Any:
    methods = sorted({line.method for line in lines})
    lists = list(dict.fromkeys(line.category for line in lines))
    walls = [max(line.wall(mode), LEAST) for line in lines for mode in WAYS]
    low, border = min(walls) / 1.5, 1.5 * max(walls)
    missed = any(not line.is_decided(mode) for line in lines for mode in WAYS)
    figure, panels = new_panels(len(methods), ACROSS)
    for axes, method in zip(panels, methods, strict=True):
        own = [line for line in lines if line.method == method]
        for factor, style in FACTORS:
            axes.plot(
                [low, border], [low / factor, border / factor], color=GREY, linewidth=0.8, linestyle=style, zorder=1
            )
        for where in (axes.axvline, axes.axhline) if missed else ():
            where(border, color="#CCCCCC", linewidth=5, zorder=0)
        for k, category in enumerate(lists):
            points = [_point(line, border) for line in own if line.category == category]
            if points:
                axes.scatter(*zip(*points, strict=True), c=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)],
                             s=26, alpha=0.75, linewidths=0.5, edgecolors="white", zorder=3)  # fmt: skip
        square_seconds(axes, low, 1.3 * border)
        axes.set_title(_title(method, own), loc="left", fontsize=9)
    _legend(figure, lists, missed)
    figure.supxlabel("from scratch, seconds", fontsize=10)
    figure.supylabel("with the store, seconds", fontsize=10)
    return figure


def _point(line: Line, border: float) -> tuple[float, float]:
    """Seconds of both ways; on the border where a way does not decide the row."""
    x, y = (max(line.wall(mode), LEAST) if line.is_decided(mode) else border for mode in WAYS)
    return x, y


def _title(method: str, lines: Sequence[Line]) -> str:
    both = [line for line in lines if line.is_comparable]
    mean = geometric_mean([line.factor("store") for line in both])
    rows = f"{len(both)} row" if len(both) == 1 else f"{len(both)} rows"
    return f"{method}: {rows}" + ("" if math.isnan(mean) else f", factor {mean:.1f}")


def _legend(figure: Any, lists: Sequence[str], missed: bool) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=COLOURS[k % len(COLOURS)], marker=MARKERS[k % len(MARKERS)], linestyle="", label=name)
        for k, name in enumerate(lists)
    ]
    marks += [Line2D([], [], color=GREY, linewidth=0.8, linestyle=style, label=f"factor {f}") for f, style in FACTORS]
    if missed:
        marks.append(Line2D([], [], color="#CCCCCC", linewidth=5, label="not decided"))
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks), frameon=False, fontsize=9)
