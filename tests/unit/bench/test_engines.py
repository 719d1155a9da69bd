"""The table of both engines, from records."""

from __future__ import annotations

from mucg4.bench.engines import checks, table


def record(onnx, verdict="unsat", stored=0, held=0, replayed=0, regions=0, wall=1.0, reason=None):
    rungs = {"witness": 0, "duals": 0, "cores": held}
    return {
        "onnx": onnx, "vnnlib": "p.vnnlib", "verdict": verdict, "stored_leaves": stored, "rungs": rungs,
        "replay_regions": replayed, "regions": regions, "wall": wall, "reason": reason,
    }  # fmt: skip


def rows(scale, refused=False):
    small, large = "onnx/a~int8.onnx", "onnx/b~int8.onnx"
    verdict = "error" if refused else "unsat"
    return {
        0: (record("onnx/a.onnx", regions=9), record("onnx/a.onnx", regions=9)),
        1: (record(small, stored=10, held=9, replayed=4 * scale, regions=scale), record(small, regions=10 * scale)),
        2: (record(large, verdict, stored=2, held=2, reason="too large"), record(large, verdict, reason="too large")),
    }


def test_checks_are_what_the_engines_do_over_and_over():
    assert checks(record("a", replayed=3, regions=4)) == 7 and checks({}) == 0


def test_only_rows_that_both_decide_and_reuse_are_compared():
    lines = table({"smt": rows(1, refused=True), "bab": rows(20)}, {"onnx/a~int8.onnx": "int8"})
    cells = [line.split() for line in lines]
    assert ["int8", "smt", "1", "10", "90", "%", "5", "10", "50", "%", "1.00", "1.00"] in cells
    assert ["int8", "bab", "1", "10", "90", "%", "100", "200", "50", "%", "1.00", "1.00"] in cells
    assert [c[0] for c in cells].count("all") == 2
    assert any(line.endswith("both ways: 2") for line in lines) and lines[-1].strip() == "b~int8: too large"


def test_nothing_to_compare():
    lines = table({"smt": {}, "bab": {}}, {})
    assert sum(line.startswith("all") for line in lines) == 2 and lines[-1].endswith("both ways: 0")
