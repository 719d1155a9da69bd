"""Verifies what was written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mucg4.errors import Mucg4Error
from mucg4.read.instance import read_query
from mucg4.settings import Settings
from mucg4.verify import verify


def answers(folder: Path, only: str = "", timeout: float = 20.0) -> Iterator[tuple[str, str, str, str]]:
    """For each property its name, the right answer, the answer, and why there is none."""
    for path in sorted(folder.glob("*.vnnlib")):
        stem, _, right = path.stem.rpartition("_")
        if only not in stem:
            continue
        try:
            verdict = verify(read_query(folder / f"{stem}.onnx", path), Settings(timeout=timeout))
            yield path.stem, right, verdict.word, getattr(verdict, "reason", "") or ""
        except Mucg4Error as error:
            yield path.stem, right, "refused", str(error).rpartition("/")[2]
