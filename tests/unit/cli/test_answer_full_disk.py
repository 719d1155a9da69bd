"""A result file on a full disk: a legal word from the first moment on, and never an empty file."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripts.test_scripts import PROPERTY, REAL, Harness

from mucg4.files import reserve_result, write_result

LONG = "sat\n" + "((X_0 1.0))\n" * 2000
STALE = "sat\n((X_0 0.5)\n(Y_0 2.0))\n"


class Disk:
    """A disk that takes `room` more bytes; what is in a file has its place already."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
        self.room = room
        self.pwrite = os.pwrite
        monkeypatch.setattr(os, "pwrite", self.put)
        monkeypatch.setattr(Path, "write_bytes", lambda path, data: self.refuse(path))

    def put(self, handle: int, data: bytes, at: int) -> int:
        grows = max(at + len(data) - os.fstat(handle).st_size, 0)
        taken = len(data) - max(grows - self.room, 0)
        if data and taken <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= max(grows - (len(data) - taken), 0)
        return self.pwrite(handle, data[:taken], at)

    def refuse(self, path: Path) -> int:
        with path.open("wb"):
            pass
        raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_in_place_where_no_new_file_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = tmp_path / "out.txt"
    result.write_text(STALE)
    Disk(monkeypatch, 0)
    write_result(result, "unsat\n")
    assert result.read_text() == "unsat\n" and os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("room", [0, 1, 1000])
def test_an_answer_without_room_leaves_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    result = tmp_path / "out.txt"
    result.write_text("timeout\n")
    Disk(monkeypatch, room)
    write_result(result, LONG)
    assert result.read_text() == "unknown\n"


def test_no_room_at_all_is_an_error_and_no_empty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, 0)
    with pytest.raises(OSError):
        write_result(tmp_path / "out.txt", "unsat\n")
    assert os.listdir(tmp_path) == []


def test_a_word_is_reserved_only_where_there_is_none(tmp_path: Path) -> None:
    for name, before, after in (
        ("new", None, "unknown\n"),
        ("empty", "", "unknown\n"),
        ("own", "timeout\n", "timeout\n"),
    ):
        path = tmp_path / name
        if before is not None:
            path.write_text(before)
        reserve_result(path, "unknown\n")
        assert path.read_text() == after


# --- a real small disk ---------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 KiB, where this user may mount one."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    with pytest.raises(OSError):
        (folder / "filler").write_bytes(bytes(1 << 20))


@pytest.mark.parametrize("before", [None, "", STALE], ids=["no file", "empty file", "older file"])
def test_a_full_disk_holds_the_answer(tmp_path: Path, small: Path, before: Any) -> None:
    (tmp_path / "h").mkdir()
    harness, result = Harness(tmp_path / "h"), small / "out.txt"
    if before is not None:
        result.write_text(before)
    fill(small)
    harness.tool(f'head -n 1 "$5" > "$PIDS"; {REAL}')  # what the file holds when the tool starts
    assert harness.run("net 1.onnx", "unsat.vnnlib", str(result)) == "unsat\n"
    assert harness.pids.read_text() == "timeout\n"
    (harness.work / "sat.vnnlib").write_text(PROPERTY.format(bound="1.5"))
    assert harness.run("net 1.onnx", "sat.vnnlib", str(result)).startswith("sat\n((X_0 ")


def test_a_disk_that_fills_up_later_holds_the_answer(tmp_path: Path, small: Path) -> None:
    (tmp_path / "h").mkdir()
    harness, result = Harness(tmp_path / "h"), small / "out.txt"
    harness.tool(f'dd if=/dev/zero of="{small}/filler" bs=4k count=100 2>/dev/null; {REAL}')
    assert harness.run("net 1.onnx", "unsat.vnnlib", str(result)) == "unsat\n"
    harness.tool(f'dd if=/dev/zero of="{small}/filler" bs=4k count=100 2>/dev/null; kill -KILL $$')
    (small / "filler").unlink()
    assert harness.run("net 1.onnx", "unsat.vnnlib", str(result)) == "timeout\n"
