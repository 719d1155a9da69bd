"""The parents of variants, and copies of the store with their proofs."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from mucg4.bench.parents import Variant, parents_of, snapshot, variants_of
from mucg4.bench.plan import Row
from mucg4.errors import InputError


def rows(*names: str) -> list[Row]:
    pairs = [name.split() for name in names]
    return [Row(k, net, prop, net, prop, 60.0) for k, (net, prop) in enumerate(pairs)]


def test_parents_of_the_chosen_rows_under_their_properties(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("onnx,parent,method\nv.onnx,a.onnx,int8\nabsent.onnx,a.onnx,int4\n")
    all_ = rows("a.onnx p", "a.onnx q", "b.onnx p", "v.onnx p", "v.onnx r")
    variants = variants_of(tmp_path, all_)
    assert variants == {"v.onnx": Variant("a.onnx", "int8")}
    assert [row.index for row in parents_of(all_, variants, all_[3:4])] == [0]
    assert not parents_of(all_, variants, all_[4:])  # a property that the parent has no row for


def test_names_are_read_where_there_is_no_manifest(tmp_path: Path) -> None:
    all_ = rows("onnx/a.onnx p", "onnx/a~int8.onnx.gz p", "onnx/c~fp16.onnx p")
    assert variants_of(tmp_path, all_) == {"onnx/a~int8.onnx.gz": Variant("onnx/a.onnx", "int8")}


def test_a_snapshot_has_what_a_writer_has_not_yet_moved_and_nothing_from_before(tmp_path: Path) -> None:
    store, target = tmp_path / "s.sqlite", tmp_path / "t.sqlite"
    old = sqlite3.connect(target)
    old.execute("pragma journal_mode = wal")
    old.execute("create table other (x)")
    with sqlite3.connect(store) as writer:
        writer.execute("pragma journal_mode = wal")
        writer.execute("create table saved (x)")
        writer.execute("insert into saved values (1)")
    assert (tmp_path / "s.sqlite-wal").stat().st_size and (tmp_path / "t.sqlite-wal").exists()
    snapshot(store, target)
    old.close()
    assert target.read_bytes() and not (tmp_path / "t.sqlite-wal").exists()
    with sqlite3.connect(target) as reader:
        assert reader.execute("select name from sqlite_master").fetchall() == [("saved",)]
        assert reader.execute("select x from saved").fetchall() == [(1,)]
    writer.close()
    store.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    (tmp_path / "s.sqlite-wal").unlink(missing_ok=True)
    with pytest.raises(InputError, match="s.sqlite"):
        snapshot(store, target)
