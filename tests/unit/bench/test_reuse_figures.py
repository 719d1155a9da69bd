"""Figures of the report on reuse, from made-up records."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mucg4.bench.reuse_figures import BEYOND, WITHIN, Band, Line, figures, groups_of, read_bands, weighted
from mucg4.errors import InputError


def record(
    verdict: str, wall: float, stored: int = 0, checked: int = 0, ascent: int = 0, **more: Any
) -> dict[str, Any]:
    rungs = {"witness": 0, "checked": checked, "ascent": ascent, "cores": 0}
    checker = "accepted" if verdict == "unsat" else ""
    own = {"verdict": verdict, "wall": wall, "timeout": 60.0, "stored_leaves": stored, "rungs": rungs}
    return {**own, "checker": checker, **more}


def line(store: list[Any], scratch: list[Any], method: str = "int8", category: str = "some", **modes: Any) -> Line:
    """Runs as records, or as seconds of an unsat run."""
    runs = {
        mode: tuple(r if isinstance(r, dict) else record("unsat", r) for r in of)
        for mode, of in {"store": store, "scratch": scratch, **modes}.items()
    }
    return Line(category, "onnx/n.onnx", "vnnlib/p.vnnlib", method, "unsat", runs)


def test_the_factor_is_the_median_over_pairs_not_a_ratio_of_medians() -> None:
    one = line([1.0, 2.0, 1.0], [2.0, 12.0, 9.0])
    assert one.factor("store") == 6.0 and one.wall("scratch") == 9.0
    other = line([4.0], [6.0])
    assert figures([one, other]).factor == pytest.approx(3.0) and figures([one, other]).worst == 1.5


def test_lost_gained_and_different_rows() -> None:
    late, no, yes = record("timeout", 61.0, claimed="sat"), record("timeout", 60.0), record("unsat", 1.0)
    lost, gained, apart = line([yes, no], [yes, yes]), line([yes, yes], [no, yes]), line([yes], [late])
    assert (lost.is_lost, lost.is_gained, lost.differs, lost.is_comparable) == (True, False, False, False)
    assert (gained.is_lost, gained.is_gained, gained.differs) == (False, True, False)
    assert apart.differs and lost.verdict("store") == "unsat/timeout"
    assert not lost.keeps(WITHIN) and not lost.keeps(BEYOND)
    f = figures([lost, line([1.0], [5.0])])
    assert (f.rows, f.compared, f.lost, f.beyond) == (2, 1, 1, 1) and f.factor == pytest.approx(5.0)


def test_costs_are_held_against_scratch_and_a_constant() -> None:
    assert line([1.2], [1.0]).keeps(WITHIN) and not line([1.21], [1.0]).keeps(WITHIN)
    assert line([1.45], [1.0]).keeps(BEYOND) and not line([1.46], [1.0]).keeps(BEYOND)


def test_leaves_are_weighted_by_the_seconds_they_save() -> None:
    long = line([record("unsat", 1.0, stored=10, checked=9, ascent=1)], [9.0])
    short = line([record("unsat", 1.0, stored=10, checked=4)], [1.0])
    none = line([1.0], [50.0])
    assert weighted([long, short, none], ("checked",)) == pytest.approx((9 * 0.9 + 0.4) / 10)
    f = figures([long, short, none])
    assert f.closed == pytest.approx(0.85) and f.ascent == pytest.approx(0.09) and f.borrowed == 2
    assert math.isnan(weighted([none], ("checked",))) and math.isnan(figures([]).factor)


def test_a_row_is_checked_when_both_ways_are() -> None:
    unfinished = record("unsat", 1.0) | {"checker": "unfinished"}
    assert figures([line([1.0], [2.0]), line([unfinished], [2.0]), line([1.0], [unfinished])]).checked == 1


def test_bands() -> None:
    bands = read_bands("6:,2:6,:1,0:")
    assert [b.name for b in bands] == [">= 6 s", "2-6 s", "< 1 s", "all"]
    assert [b.holds(line([1.0], [6.0])) for b in bands] == [True, False, False, True]
    for wrong in ("", "6", "2:1", "a:b", "-1:2", "1:1", "nan:"):
        with pytest.raises(InputError, match="--bands"):
            read_bands(wrong)


def test_groups_by_list_and_method_then_together() -> None:
    lines = [line([1.0], [3.0]), line([1.0], [1.0], "fp16"), line([1.0], [3.0], "fp16", "other")]
    found = groups_of(lines, [Band(2.0), Band(0.0)], [["int8", "fp16"], ["none"]])
    counts = {(g.category, g.method, g.band): len(g.lines) for g in found}
    assert counts == {
        ("some", "int8", ">= 2 s"): 1, ("some", "int8", "all"): 1, ("some", "fp16", "all"): 1,
        ("some", "all", ">= 2 s"): 1, ("some", "all", "all"): 2,
        ("other", "fp16", ">= 2 s"): 1, ("other", "fp16", "all"): 1,
        ("other", "all", ">= 2 s"): 1, ("other", "all", "all"): 1,
        ("all", "int8, fp16", ">= 2 s"): 2, ("all", "int8, fp16", "all"): 3,
        ("all", "all", ">= 2 s"): 2, ("all", "all", "all"): 3,
    }  # fmt: skip
