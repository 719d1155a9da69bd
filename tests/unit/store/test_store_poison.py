"""A poisoned store costs a warning, never a verdict; the next result takes the place of what did not decode."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaign.mutants import STRANGE
from campaign.packed import MAGIC, closed, mutate_packed, opened
from effort import effort
from examples import dense, query_of, text
from mutants import mutate_bytes, mutate_json

from mucg4.errors import StoreError, StuckError
from mucg4.lab.compress import compress
from mucg4.limits.foreign import packed, unpack
from mucg4.model.proof_packed import from_packed
from mucg4.model.proof_text import to_text
from mucg4.model.query import Query
from mucg4.reuse import replay
from mucg4.settings import Settings
from mucg4.store.codec import Asked, asked_to_bytes, network_to_bytes
from mucg4.store.store import Store
from mucg4.verify import verify

BOX = [(-1.0, 1.0)] * 2
SETTINGS = Settings(workers=1, attack=False)
Change = Callable[[sqlite3.Connection], Any]


def queries(bound: str = "1.5") -> dict[str, Query]:
    """A query and the same of a variant; the largest value is below 1.4."""
    random = np.random.default_rng(3)
    layers = [(random.normal(size=(b, a)) / np.sqrt(a), np.zeros(b)) for a, b in ((2, 6), (6, 6), (6, 1))]
    onnx, prop = dense(layers), text(BOX, 1, f"(>= Y_0 {bound})")
    return {"same": query_of(onnx, prop), "variant": query_of(compress(onnx, "bf16"), prop)}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the result of one query."""
    path = tmp_path_factory.mktemp("kept") / "store.sqlite"
    with Store(path) as store:
        verdict = verify(queries()["same"], SETTINGS, store, effort())
        assert verdict.word == "unsat" and verdict.statistics.saved
    return path


def poisoned(kept: Path, folder: Path, change: Change) -> Path:
    path = folder / "store.sqlite"
    shutil.copy(kept, path)
    raw = sqlite3.connect(path)
    change(raw)
    raw.commit()
    raw.close()
    return path


def column(name: str, value: Any, table: str = "results") -> Change:
    return lambda raw: raw.execute(f"UPDATE {table} SET {name} = ?", (value,))


def of_proof(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """The stored proof with a change in its JSON, as stores once held it."""

    def change(raw: sqlite3.Connection) -> None:
        proof = json.loads(to_text(from_packed(raw.execute("SELECT evidence FROM results").fetchone()[0])))
        edit(proof)
        column("evidence", zlib.compress(json.dumps(proof).encode()))(raw)

    return change


def of_packed(edit: Callable[[dict[str, Any], dict[str, Any]], Any], restate: bool = True) -> Change:
    """The stored proof with a change of its head and columns."""

    def change(raw: sqlite3.Connection) -> None:
        head, columns = opened(raw.execute("SELECT evidence FROM results").fetchone()[0])
        edit(head, columns)
        column("evidence", closed(head, columns, restate))(raw)

    return change


def network_bytes(head: bytes) -> bytes:
    return zlib.compress(b"mn1\n" + len(head).to_bytes(8, "little") + head)


def bomb(count: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(b"[" * (1 << 20)) for _ in range(count)) + packer.flush()


LOST = b"mr1\n" + b"0" * 64
HUGE = zlib.compress(np.array([2**62, 2**62], dtype="<i8").tobytes())
EMPTY = zlib.compress(np.array([2**29, 0], dtype="<i8").tobytes())
DEEP = zlib.compress(b"[" * 100_000 + b"]" * 100_000)
POISONS: dict[str, Change] = {
    "boxes huge count": lambda raw: raw.execute("UPDATE results SET boxes = ?, boxes_hash = 'x'", (HUGE,)),
    "boxes of no size": lambda raw: raw.execute("UPDATE results SET boxes = ?, boxes_hash = 'x'", (EMPTY,)),
    "boxes text": lambda raw: raw.execute("UPDATE results SET boxes = 'abc', boxes_hash = 'x'"),
    "boxes of another size": lambda raw: raw.execute(
        "UPDATE results SET boxes = ?, boxes_hash = 'x'", (asked_to_bytes(Asked([(np.zeros(7), np.ones(7))])),)
    ),
    "boxes under another hash": lambda raw: raw.execute(
        "UPDATE results SET boxes = ?", (asked_to_bytes(Asked([(np.zeros(7), np.ones(7))])),)
    ),
    "evidence int": column("evidence", 2**40),
    "evidence text": column("evidence", "proof"),
    "evidence empty": column("evidence", b""),
    "evidence deep": column("evidence", DEEP),
    "evidence bomb": column("evidence", bomb(150)),
    "evidence deep notes": of_proof(lambda p: p.update(notes=json.loads('{"a":' * 900 + "1" + "}" * 900))),
    "node 2-d": of_proof(lambda p: p["trees"][0].update(node=[[k] for k in p["trees"][0]["node"]])),
    "other neurons": of_proof(
        lambda p: p["trees"][0].update(index=[k if k < 0 else 10**6 for k in p["trees"][0]["index"]])
    ),
    "no trees": of_proof(lambda p: p.update(trees=[])),
    "trees twice": of_proof(lambda p: p.update(trees=p["trees"] * 2)),
    "packed other neurons": of_packed(lambda h, c: c.update({"node.index": np.full_like(c["node.index"], 99)})),
    "packed too many nodes": of_packed(lambda h, c: c.update({"tree.nodes": np.array([2**31 - 1], dtype="<i4")})),
    "packed negative count": of_packed(lambda h, c: c.update({"tree.nodes": np.array([-5], dtype="<i4")})),
    "packed no columns": of_packed(lambda h, c: c.clear()),
    "packed bomb": of_packed(lambda h, c: c.update({"refutation.weights": np.zeros(2**27)})),
    "packed hidden bomb": of_packed(lambda h, c: c.update({"refutation.core": np.zeros(2**27)}), restate=False),
    "packed huge statement": of_packed(lambda h, c: h["columns"].update({"node.node": ["i4", 2**70]}), restate=False),
    "packed deep notes": of_packed(lambda h, c: h.update(notes=json.loads('{"a":' * 900 + "1" + "}" * 900))),
    "packed other leaves": of_packed(lambda h, c: h.update(leaves=h["leaves"] + 1)),
    "packed head beyond the end": column("evidence", b"mp1\n\xff\xff\xff\x7f{}"),
    "packed nothing": column("evidence", b"mp1\n"),
    "leaves text": column("leaves", "many"),
    "leaves negative": column("leaves", -5),
    "regions blob": column("regions", b"\0"),
    "grade text": column("grade", "x"),
    "scratch text": column("scratch_seconds", "soon"),
    "scratch infinite": column("scratch_seconds", 9e999),
    "times text": lambda raw: raw.execute("UPDATE results SET created = 'x', last_used = 'y'"),
    "bytes text": column("bytes", "large"),
    "verdict other": column("verdict", "maybe"),
    "verdict swapped": column("verdict", "sat"),
    "hashes as blobs": lambda raw: raw.execute("UPDATE results SET unsafe_hash = x'00', property_hash = x'01'"),
    "text that is no UTF-8": lambda raw: raw.execute("UPDATE results SET property_hash = CAST(x'ff80' AS TEXT)"),
    "box sketch text": column("box_sketch", "x" * 128),
    "box sketch not finite": column("box_sketch", b"\xff" * 128),
    "network of the result missing": column("network", "0" * 64),
    "networks missing": lambda raw: raw.execute("DELETE FROM networks"),
    "results missing": lambda raw: raw.execute("DELETE FROM results"),
    "sources int": column("sources", 3, "networks"),
    "sketch text": column("sketch", "x" * 128, "networks"),
    "sketch not finite": column("sketch", b"\xff" * 128, "networks"),
    "weights int": column("weights", 2**40, "networks"),
    "weights deep": column("weights", network_bytes(b"[" * 100_000), "networks"),
    "weights bomb": column("weights", bomb(150), "networks"),
    "weights frame bomb": column("weights", packed(b"[" * (150 << 20)), "networks"),
    "weights frame cut short": column("weights", network_to_bytes(queries("9")["variant"].network)[:-9], "networks"),
    "a reference to nothing": lambda raw: raw.execute("UPDATE results SET grade = -1, evidence = ?", (LOST,)),
    "a reference that is a proof": column("grade", -1),
    "weights of another network": column("weights", network_to_bytes(queries("9")["variant"].network), "networks"),
    "weights with a huge shape": column(
        "weights",
        network_bytes(b'{"nodes":[{"op":{"a":"f4","d":"f8","s":[1000000000,1000000000]},"inputs":[],"name":"","shape":[2]}]}'),
        "networks",
    ),
    "weights with a long text type": column(
        "weights",
        network_bytes(b'{"nodes":[{"op":{"a":"i1","d":"U900000000","s":[0]},"inputs":[],"name":"","shape":[2]}]}'),
        "networks",
    ),
    "sizes of the network text": lambda raw: raw.execute("UPDATE networks SET input_size = 'a', output_size = 'b'"),
}  # fmt: skip


@pytest.mark.parametrize("name", POISONS)
def test_a_poisoned_entry_costs_no_verdict(kept: Path, tmp_path: Path, name: str) -> None:
    path = poisoned(kept, tmp_path, POISONS[name])
    with Store(path) as store:
        for query in queries().values():
            verdict = verify(query, SETTINGS, store, effort())
            assert verdict.word == "unsat"
        assert len(store.warnings) == len(set(store.warnings)) <= 4
        assert all("\n" not in w and len(w) < 300 for w in store.warnings)
        for entry in store.entries():
            shown, content = store.show(entry.key)
            assert shown == entry and (content.proof is None or content.proof.leaves == entry.leaves)
    with Store(path) as store:  # healed: the results of the last run are used
        assert verify(queries()["same"], SETTINGS, store, effort()).statistics.relation == "identical"
        assert store.related(queries()["same"])[0].proof is not None and store.warnings == []
        store.gc(0)


def test_what_does_not_decode_is_told_once_per_kind(kept: Path, tmp_path: Path) -> None:
    path = poisoned(kept, tmp_path, column("evidence", DEEP))
    with Store(path) as store:
        for _ in range(3):
            assert store.related(queries()["same"])[0].proof is None
        (warning,) = store.warnings
        assert warning.startswith("a stored entry was not used: evidence of ") and "nested too deeply" in warning


ENDLESS = "WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n) SELECT k FROM n"


@pytest.mark.parametrize(
    "statements",
    [
        "DROP TABLE networks",
        "ALTER TABLE results DROP COLUMN boxes",
        "ALTER TABLE results ADD COLUMN more TEXT",
        "DROP INDEX results_used",
        f"DROP TABLE results; CREATE VIEW results AS {ENDLESS}",
        "CREATE TRIGGER gone AFTER UPDATE ON results BEGIN DELETE FROM networks; END",
        f"CREATE VIEW more AS {ENDLESS}",
        "CREATE TABLE more (x)",
    ],
)
def test_other_tables_are_not_used(kept: Path, tmp_path: Path, statements: str) -> None:
    path = poisoned(kept, tmp_path, lambda raw: raw.executescript(statements))
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not those of a mucg4 store"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("part", [b"CREATE TABLE networks", b"results_used", b"fingerprint TEXT"])
def test_a_schema_that_is_no_text_is_set_aside_or_left_alone(kept: Path, tmp_path: Path, part: bytes) -> None:
    path = tmp_path / "store.sqlite"
    data = kept.read_bytes()
    assert part in data
    path.write_bytes(data.replace(part, b"\xc0\xff\x1b" + part[3:]))
    try:
        with Store(path) as store:
            assert verify(queries()["same"], SETTINGS, store, effort()).word == "unsat"
            assert store.warnings
    except StoreError as error:
        assert "not those of a mucg4 store" in str(error)


def test_a_statement_that_does_not_end_is_ended(kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mucg4.store.store.QUIET_SECONDS", 0.05)
    with Store(poisoned(kept, tmp_path, lambda raw: None)) as store:
        found = store._quiet("looking", [], lambda: store._database.rows(f"SELECT count(*) FROM ({ENDLESS})"))
        assert found == [] and "interrupted" in store.warnings[0]
        assert store.related(queries()["same"])


@pytest.mark.parametrize("error", [StuckError("stuck"), ValueError("two\nlines"), MemoryError(), KeyError("x")])
def test_a_replay_that_fails_is_followed_by_a_search(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: Any) -> Any:
        raise error

    real = replay.completed  # without evidence, so that something is left to search
    bare = lambda query, trees: [replace(t, refutations=()) for t in real(query, trees)]  # noqa: E731
    monkeypatch.setattr(replay, "completed", bare)
    monkeypatch.setattr("mucg4.reuse.replay.Part.begin", fail)
    with Store(poisoned(kept, tmp_path, lambda raw: None)) as store:
        verdict = verify(queries()["same"], SETTINGS, store, effort())
    assert verdict.word == "unsat" and verdict.statistics.from_root == 1
    if isinstance(error, StuckError):  # a way of searching that came to no end, nobody's fault
        assert not verdict.statistics.warnings
    else:
        (warning,) = verdict.statistics.warnings
        assert warning.startswith("stored results were not used: ") and "\n" not in warning


def test_the_next_candidate_is_used_where_the_first_does_not_decode(tmp_path: Path) -> None:
    path, (same, variant) = tmp_path / "store.sqlite", queries().values()
    with Store(path) as store:
        for query in (same, variant):  # each with a proof of its own, not a reference
            verify(query, replace(SETTINGS, reuse=False), store, effort())
    raw = sqlite3.connect(path)
    raw.execute("UPDATE results SET evidence = x'00' WHERE key = ?", (same.key,))
    raw.commit()
    raw.close()
    with Store(path) as store:
        verdict = verify(same, SETTINGS, store, effort())
    assert verdict.word == "unsat" and verdict.statistics.related_proof == variant.key


@pytest.mark.parametrize("seed", range(12))
def test_random_edits_cost_no_verdict(kept: Path, tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    path = mutant(kept, tmp_path, random)
    try:
        store = Store(path)
    except StoreError:
        return
    with store:
        for query in queries().values():
            assert verify(query, SETTINGS, store, effort()).word == "unsat"


def mutant(kept: Path, folder: Path, random: np.random.Generator) -> Path:
    """A store with changed bytes of the file, or with changed values of one or two columns."""
    if random.random() < 0.4:
        path = folder / "store.sqlite"
        data = bytearray(kept.read_bytes())
        for _ in range(int(random.integers(1, 30))):
            data[int(random.integers(len(data)))] = int(random.integers(256))
        path.write_bytes(bytes(data))
        return path

    def change(raw: sqlite3.Connection) -> None:
        for _ in range(int(random.integers(1, 3))):
            table = ("results", "networks")[int(random.integers(2))]
            names = [row[1] for row in raw.execute(f"PRAGMA table_info({table})")]
            name = names[int(random.integers(len(names)))]
            (old,) = raw.execute(f"SELECT {name} FROM {table}").fetchone()
            odd: list[Any] = [0, -1, 2**62, 1e300, "x", "", b"", b"\0" * 128, 9e999]
            if isinstance(old, bytes):
                odd += [mutate_bytes(random, old)] * 6
                if old[:4] == MAGIC:
                    odd += [mutate_packed(old, random, lambda rng: STRANGE[int(rng.integers(len(STRANGE)))])] * 12
                try:
                    inner = unpack(old, 1 << 30)
                    odd += [packed(mutate_bytes(random, inner)), zlib.compress(mutate_bytes(random, inner))] * 3
                    odd += [packed(json.dumps(mutate_json(random, json.loads(inner))).encode())] * 12
                except ValueError:
                    pass
            try:
                raw.execute(f"UPDATE {table} SET {name} = ?", (odd[int(random.integers(len(odd)))],))
            except (sqlite3.IntegrityError, OverflowError):
                pass

    return poisoned(kept, folder, change)


def test_a_stored_proof_is_the_one_that_was_checked(kept: Path) -> None:
    with Store(kept) as store:
        verdict = verify(queries()["same"], Settings(workers=1, reuse=False, compact=False), None, effort())
        found = store.related(queries()["same"])[0].proof
        assert found is not None and json.loads(to_text(found))["property"] == verdict.proof.property
