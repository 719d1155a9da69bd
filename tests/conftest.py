"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1].parent / "shared" / "benchmarks"


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """The folder of public benchmark families; tests that need it are skipped where it is absent."""
    if not BENCHMARKS.is_dir():
        pytest.skip("no benchmark data beside the repository")
    return BENCHMARKS
