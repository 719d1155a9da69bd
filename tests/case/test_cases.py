"""Every saved failing case stays mended."""

from __future__ import annotations

from pathlib import Path

import pytest

from mucg4.lab.case import run_case

CASES = sorted(Path(__file__).parent.glob("*.json"))


@pytest.mark.parametrize("path", CASES, ids=lambda p: p.stem)
def test_case(path: Path) -> None:
    report = run_case(path)
    assert report.ok, report.problems
    assert {"scratch", "with store", "again"} <= set(report.findings)
