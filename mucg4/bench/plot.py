"""Pictures of a comparison: how many rows within how much time, and each tool against the first, row by row.

matplotlib is imported here only, without its global state; every picture is written as PNG and as SVG.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mucg4.bench.compare import LEAST, VIRTUAL, Comparison, Line

# Colours that stay apart for colour-blind eyes and in print (after Okabe and Ito), with a line style each.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6B4C9A", "#333333")
STYLES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))
KINDS = {"unsat": ("#0072B2", "o"), "sat": ("#D55E00", "^")}
GREY = "#888888"
STYLE: dict[Any, Any] = {"svg.hashsalt": "mucg4", "svg.fonttype": "none", "font.size": 10, "axes.axisbelow": True}
DPI = 160  # dots per inch of the PNGs; not measured


def draw_all(c: Comparison, out: Path) -> list[str]:
    """Write all pictures into `out`; returns the files' names."""
    import matplotlib

    names = []
    with matplotlib.rc_context(STYLE):
        names += save_figure(_cactus(c), out, "cactus")
        first, *others = c.tools
        for other in others:
            if any(first in line.claims and other in line.claims for line in c.lines):
                names += save_figure(_scatter(c, first, other), out, f"scatter-{_slug(first)}-{_slug(other)}")
    return names


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "_", name).strip("_") or "tool"


def save_figure(figure: Any, out: Path, name: str) -> list[str]:
    """Write it as PNG and as SVG; the files' names."""
    for ending, more in (("png", {"dpi": DPI}), ("svg", {"metadata": {"Date": None}})):
        figure.savefig(out / f"{name}.{ending}", **more)
    return [f"{name}.png", f"{name}.svg"]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """An empty figure of so many inches, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    _plain(axes)
    return figure, axes


def new_panels(count: int, across: int) -> tuple[Any, list[Any]]:
    """An empty figure with so many square axes, at most `across` side by side."""
    from matplotlib.figure import Figure

    columns = min(count, across)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.7 * max(columns, 2) + 0.6, 2.9 * rows + 0.8), layout="constrained")
    panels = [figure.add_subplot(rows, columns, k + 1) for k in range(count)]
    for axes in panels:
        _plain(axes)
    return figure, panels


def _plain(axes: Any) -> None:
    axes.grid(True, which="major", color="#E4E4E4", linewidth=0.7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _label_seconds(axis: Any) -> None:
    """Plain numbers at the decades of a logarithmic axis of seconds."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _about(c: Comparison, lines: Sequence[Line]) -> str:
    names = list(dict.fromkeys(line.category for line in lines))
    what = names[0] if len(names) == 1 else f"{len(names)} benchmarks"
    return f"{what or 'no category'}, {len(lines)} rows"


def _limit(lines: Sequence[Line]) -> tuple[float, str]:
    """The longest timeout and what to call it."""
    limits = {line.limit for line in lines}
    return max(limits), "timeout" if len(limits) == 1 else "longest timeout"


def _cactus(c: Comparison) -> Any:
    """Rows solved (across) when each may take at most so many seconds (up)."""
    lines = list(c.lines)
    figure, axes = _figure(7.6, 4.8)
    most, low = 1, math.inf
    ranked = sorted(c.tools, key=lambda tool: -sum(line.solved(tool) for line in lines))
    for tool in ranked:
        times = sorted(line.cost(tool) for line in lines if line.solved(tool))
        rows = sum(tool in line.claims for line in lines)
        k = c.tools.index(tool)
        style = {"color": COLOURS[k % len(COLOURS)], "linestyle": STYLES[k // len(COLOURS) % len(STYLES)]}
        width = 2.6 if k == 0 else 1.7
        axes.plot(range(1, len(times) + 1), times, label=f"{tool}: {len(times)} of {rows}", linewidth=width, **style)
        if times:
            axes.plot(len(times), times[-1], marker="o", markersize=5, color=style["color"])
            most, low = max(most, len(times)), min(low, times[0])
    if len(c.tools) > 1:
        best = sorted(line.cost(line.fastest()) for line in lines if line.fastest())
        label = f"{VIRTUAL}: {len(best)} of {len(lines)}"
        axes.plot(range(1, len(best) + 1), best, label=label, linewidth=1.2, color=GREY, linestyle=":")
        most = max(most, len(best))
    limit, word = _limit(lines)
    axes.axhline(limit, color=GREY, linewidth=0.9, linestyle="--")
    axes.annotate(f"{word} {limit:g} s", (0.01, limit), xycoords=("axes fraction", "data"), color="#555555", fontsize=8,
                  xytext=(0, 3), textcoords="offset points")  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(0, most * 1.02 + 0.5)
    axes.set_ylim(min(low, limit / 10) / 1.5, limit * 2)
    axes.xaxis.get_major_locator().set_params(integer=True)
    _label_seconds(axes.yaxis)
    axes.set_xlabel("rows solved")
    axes.set_ylabel("seconds for each of them, at most")
    axes.set_title(f"Rows solved within a time  ({_about(c, lines)})", loc="left", fontsize=11)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, fontsize=9)
    return figure


def _scatter(c: Comparison, first: str, other: str) -> Any:
    """One mark per row that both have: time of `first` across, of `other` up; what was not solved on the borders."""
    lines = [line for line in c.lines if first in line.claims and other in line.claims]
    figure, axes = _figure(6.0, 6.2)
    limit, word = _limit(lines)
    border = limit * 1.8
    counted = [line for line in lines if line.solved(first) or line.solved(other)]
    times = [line.cost(tool) for line in counted for tool in (first, other) if line.solved(tool)]
    low = max(min([*times, limit / 100]) / 1.6, LEAST / 2)
    high = border * 1.5
    for factor, style in ((1, "-"), (10, ":"), (0.1, ":")):
        axes.plot([low, high], [low * factor, high * factor], color=GREY, linewidth=0.8, linestyle=style, zorder=1)
    for where in (axes.axvline, axes.axhline):
        where(limit, color=GREY, linewidth=0.8, linestyle="--", zorder=1)
        where(border, color="#CCCCCC", linewidth=6, zorder=0)
    for kind, (colour, marker) in KINDS.items():
        points = [_point(line, first, other, border) for line in counted if _kind(line, first, other) == kind]
        if points:
            label = f"{kind} ({len(points)})"
            axes.scatter(*zip(*points, strict=True), c=colour, marker=marker, s=34, alpha=0.75, linewidths=0.5,
                         edgecolors="white", label=label, zorder=3)  # fmt: skip
    bad = [line for line in lines if line.points(first) < 0 or line.points(other) < 0]
    if bad:
        points = [_point(line, first, other, border) for line in bad]
        label = f"wrong or disputed ({len(bad)})"
        ring = {"facecolors": "none", "edgecolors": "#C00000", "linewidths": 1.8}
        axes.scatter(*zip(*points, strict=True), s=130, label=label, zorder=4, **ring)
    square_seconds(axes, low, high)
    axes.annotate(f"not solved by {first}", (border, low), xytext=(7, 6), textcoords="offset points", rotation=90,
                  fontsize=8, color="#555555", va="bottom", ha="left")  # fmt: skip
    axes.annotate(f"not solved by {other}", (low, border), xytext=(6, 6), textcoords="offset points", fontsize=8,
                  color="#555555", va="bottom", ha="left")  # fmt: skip
    axes.set_xlabel(f"{first}, seconds")
    axes.set_ylabel(f"{other}, seconds")
    axes.set_title(_scatter_title(c, lines, counted, first, other, f"{word} {limit:g} s"), loc="left", fontsize=10)
    axes.legend(loc="lower right", bbox_to_anchor=(0.86, 0.02), frameon=True, framealpha=0.9, fontsize=9)
    return figure


def square_seconds(axes: Any, low: float, high: float) -> None:
    """The same logarithmic axis of seconds across and up."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    for axis in (axes.xaxis, axes.yaxis):
        _label_seconds(axis)


def _scatter_title(c: Comparison, lines: list[Line], counted: list[Line], first: str, other: str, limit: str) -> str:
    both = [line for line in counted if line.solved(first) and line.solved(other)]
    faster = sum(line.cost(first) < line.cost(other) for line in both)
    none = len(lines) - len(counted)
    facts = f"{limit}; both solve {len(both)}, {first} faster on {faster}; neither solves {none}"
    return f"{other} against {first}  ({_about(c, lines)})\n{facts}"


def _kind(line: Line, first: str, other: str) -> str:
    return line.claims[first if line.solved(first) else other].verdict


def _point(line: Line, first: str, other: str, border: float) -> tuple[float, float]:
    return (
        line.cost(first) if line.solved(first) else border,
        line.cost(other) if line.solved(other) else border,
    )
