"""The proof store: what goes in comes out, nothing is lost, and no failure costs more than a warning."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from handmade import chain, one, random_layers

from mucg4.errors import StoreError
from mucg4.limits.foreign import unpack
from mucg4.model.network import Network, Node
from mucg4.model.proof import Alpha, Proof, Refutation, Tree
from mucg4.ops.affine import Concat, Index, Place, Reduce, RowDense, Scale, Sum
from mucg4.ops.conv import Conv, ConvTranspose, Window
from mucg4.ops.piecewise import RELU
from mucg4.ops.smooth import SIGMOID
from mucg4.store import database
from mucg4.store.codec import (
    Asked,
    asked_from_bytes,
    asked_to_bytes,
    narrowed,
    network_from_bytes,
    network_to_bytes,
)  # fmt: skip
from mucg4.store.related import box_relation, witness_from_bytes, witness_to_bytes
from mucg4.store.sketch import network_sketch, sketch_distances
from mucg4.store.store import Store, lighter_forms

TESTS = Path(__file__).resolve().parents[2]


def query(seed=0, lower=0.0, width=1.0, constant=0.0, sizes=(3, 8, 6, 2), network=None):
    network = network or chain(random_layers(seed, sizes))
    n = network.input_size
    return one(network, [lower] * n, [lower + width] * n, [({}, {0: 1}, constant, False)])


def make_tree(depth, seed=0):
    """A full tree of splits on the first pre-activation, with alphas, betas and cores at the leaves."""
    count, inner = 2 ** (depth + 1) - 1, 2**depth - 1
    is_inner = np.arange(count) < inner
    node = np.where(is_inner, 1, -1).astype(np.int32)
    index = np.where(is_inner, np.arange(count) % 8, -1).astype(np.int32)
    children = [np.where(is_inner, 2 * np.arange(count) + k, -1).astype(np.int32) for k in (1, 2)]
    random = np.random.default_rng(seed)
    refutations = tuple(
        Refutation(
            leaf,
            0,
            (1.0,),
            (Alpha(1, np.arange(8, dtype=np.int32), random.integers(0, 256, 8).astype(np.uint8)),),
            ((leaf, float(random.random())),) if depth else (),
            (leaf,) if depth else (),
            0.5,
        )
        for leaf in range(inner, count)
    )
    flags = np.ones(count, dtype=bool), np.zeros(count, dtype=bool)
    return Tree(node, index, np.zeros(count), *children, *flags, refutations)


def proof_of(q, depth=2, seed=0):
    return Proof(q.network.fingerprint, q.property_hash, (make_tree(depth, seed),), q.network.source_hash)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "folder" / "store.sqlite"


# --- codecs ----------------------------------------------------------------------------------------------------


def every_operator():
    random = np.random.default_rng(0)
    window = Window(2, 4, 4, (2, 2), (2, 2))
    nodes = [
        Node(None, (), "x", (2, 4, 4)),
        Node(Conv(window, random.normal(size=(3, 2, 2, 2)), random.normal(size=12)), (0,), "a", (3, 2, 2)),
        Node(RELU, (1,), "b", (3, 2, 2)),
        Node(Scale(random.normal(size=12), np.float32(random.normal(size=12)).astype(float)), (2,), "c", (12,)),
        Node(Sum((1.0, -1.0)), (2, 3), "d", (12,)),
        Node(Concat((12, 12)), (3, 4), "e", (24,)),
        Node(Index(np.arange(12)[::-1].copy(), 24), (5,), "f", (12,)),
        Node(RowDense(random.normal(size=(5, 4)), 3), (6,), "g", (3, 5)),
        Node(SIGMOID, (7,), "h", (15,)),
        Node(Reduce((3, 5), (1,), 0.2), (8,), "i", (3,)),
        Node(Place(np.array([0, 2, 4]), np.array([0, 1.5, 0, 2.5, 0])), (9,), "j", (5,)),
    ]
    return Network(tuple(nodes), "cafe", "float64", b"onnx")


def test_networks_come_back_exactly():
    network = every_operator()
    back = network_from_bytes(network_to_bytes(network))
    assert back.fingerprint == network.fingerprint
    assert (back.source_hash, back.element_type, back.model_bytes) == ("cafe", "float64", b"")
    assert [(n.name, n.shape, n.inputs) for n in back.nodes] == [(n.name, n.shape, n.inputs) for n in network.nodes]
    x = np.random.default_rng(1).normal(size=(3, 32))
    assert np.array_equal(back(x), network(x))


def test_transposed_convolutions_come_back_exactly():
    window = Window(2, 4, 4, (2, 2), (2, 2))
    op = ConvTranspose(window, np.random.default_rng(0).normal(size=(3, 2, 2, 2)))
    network = Network((Node(None, (), "x", (12,)), Node(op, (0,), "y", (2, 4, 4))))
    assert network_from_bytes(network_to_bytes(network)).fingerprint == network.fingerprint


def test_float32_weights_are_stored_as_float32():
    exact, single = np.array([0.1, 1.0]), np.float32([0.1, 1.0]).astype(np.float64)
    assert narrowed(exact).dtype == np.float64
    assert narrowed(single).dtype == np.float32
    assert narrowed(np.array([1, 200])).dtype == np.int16
    assert narrowed(np.array([np.inf, 1e300])).dtype == np.float64


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_malformed_networks_are_store_errors(damage):
    blob = network_to_bytes(chain(random_layers(0)))
    with pytest.raises(StoreError):
        network_from_bytes(blob[: len(blob) // 2] if damage is None else damage)


def test_older_stores_are_read():
    """They hold zlib streams."""
    network = chain(random_layers(0))
    old = zlib.compress(unpack(network_to_bytes(network), 1 << 20))
    assert network_from_bytes(old).fingerprint == network.fingerprint
    boxes = [(np.zeros(2), np.ones(2))]
    back = asked_from_bytes(zlib.compress(unpack(asked_to_bytes(Asked(boxes)), 1000)))
    assert np.array_equal(back.boxes, boxes) and back.names == ()


def test_boxes_and_witnesses_come_back_exactly():
    random = np.random.default_rng(0)
    boxes = [(random.normal(size=4), random.normal(size=4)) for _ in range(3)]
    names = (("0123456789abcdef", "fedcba9876543210"), (), ("0123456789abcdef",))
    back = asked_from_bytes(asked_to_bytes(Asked(boxes, names)))
    assert all(np.array_equal(a, b) for x, y in zip(boxes, back.boxes, strict=True) for a, b in zip(x, y, strict=True))
    assert back.names == names
    assert asked_from_bytes(asked_to_bytes(Asked([]))).boxes == []
    for damaged in (Asked(boxes, names[:2]), Asked(boxes, (*names, ()))):
        with pytest.raises(StoreError):
            asked_from_bytes(asked_to_bytes(damaged))
    for dtype in (np.float32, np.float64):
        x = random.normal(size=5).astype(dtype)
        again = witness_from_bytes(witness_to_bytes(x))
        assert again.dtype == dtype and np.array_equal(again, x)
    with pytest.raises(StoreError):
        witness_from_bytes(b"f123")


def test_sketches_ignore_the_order_of_neurons_and_small_changes():
    layers = random_layers(0, (5, 30, 30, 5))
    order = np.random.default_rng(1).permutation(30)
    (w0, b0), (w1, b1), (w2, b2) = layers
    permuted = [(w0[order], b0[order]), (w1[:, order], b1), (w2, b2)]
    nudged = [(w * 1.001, b) for w, b in layers]
    base, moved, near, far = (
        network_sketch(chain(v)) for v in (layers, permuted, nudged, random_layers(9, (5, 30, 30, 5)))
    )
    distances = sketch_distances(base, np.array([moved, near, far]))
    assert distances[0] < 1e-4 and distances[1] < 0.02 and distances[2] > 10 * distances[1]


def test_box_relations():
    def box(*bounds):
        return [(np.array([lo, lo]), np.array([hi, hi])) for lo, hi in bounds]

    assert box_relation(box((0, 1)), box((0, 1))) == "equal"
    assert box_relation(box((0.2, 0.8)), box((0, 1))) == "inside"
    assert box_relation(box((0, 1)), box((0.2, 0.8))) == "contains"
    assert box_relation(box((0, 1)), box((0.5, 2))) == "overlaps"
    assert box_relation(box((0, 1)), box((2, 3))) == "disjoint"
    assert box_relation(box((0, 1), (4, 5)), box((0, 1), (7, 8))) == "overlaps"
    assert box_relation(box((0, 1)), box((0, 1), (4, 5))) == "inside"  # by hulls
    assert box_relation([], box((0, 1))) == "disjoint"


# --- results ---------------------------------------------------------------------------------------------------


def test_a_proof_comes_back(path):
    q = query()
    with Store.open(path) as store:
        assert store.save(q, "unsat", proof=proof_of(q), scratch_seconds=1.5, regions=7)
        assert store.warnings == []
    with Store.open(path) as store:
        (found,) = store.related(q)
        assert (found.key, found.word, found.leaves, found.regions) == (q.key, "unsat", 4, 7)
        assert (found.scratch_seconds, found.box_relation, found.same_unsafe) == (1.5, "equal", True)
        assert found.network.fingerprint == q.network.fingerprint
        assert found.witness_x is None
        tree, stored = found.proof.trees[0], proof_of(q).trees[0]
        assert np.array_equal(tree.left, stored.left)
        assert [r.beta for r in tree.refutations] == [r.beta for r in stored.refutations]
        (lo, hi), box = found.boxes[0], q.cases[0].box
        assert np.array_equal(lo, box.lo) and np.array_equal(hi, box.hi)


def test_a_witness_comes_back():
    q, x = query(), np.array([0.25, 0.5, 1.0], dtype=np.float32)
    with Store(":memory:") as store:
        assert store.save(q, "sat", witness_x=x, regions=1)
        (found,) = store.related(q)
        assert found.word == "sat" and found.proof is None
        assert found.witness_x.dtype == np.float32 and np.array_equal(found.witness_x, x)


def test_evidence_has_to_fit_the_verdict():
    with Store(":memory:") as store, pytest.raises(ValueError):
        store.save(query(), "unsat", witness_x=np.zeros(3))


def test_fewer_leaves_win():
    q = query()
    with Store(":memory:") as store:
        assert store.save(q, "unsat", proof=proof_of(q, 3), scratch_seconds=9.0)
        assert not store.save(q, "unsat", proof=proof_of(q, 4), scratch_seconds=1.0)
        assert not store.save(q, "unsat", proof=proof_of(q, 3), scratch_seconds=1.0)
        assert store.related(q)[0].leaves == 8
        assert store.save(q, "unsat", proof=proof_of(q, 1))
        found = store.related(q)[0]
        assert (found.leaves, found.scratch_seconds) == (2, 9.0)
        assert store.warnings == []


def test_more_evidence_wins_at_equal_leaves():
    q, proof = query(), proof_of(query(), 5)
    poorer = [p for _, p in lighter_forms(proof)][1]
    with Store(":memory:") as store:
        assert store.save(q, "unsat", proof=proof, max_proof_bytes=size(poorer))
        assert not any(r.alpha for t in store.related(q)[0].proof.trees for r in t.refutations)
        assert store.save(q, "unsat", proof=proof)
        assert any(r.alpha for t in store.related(q)[0].proof.trees for r in t.refutations)


def test_a_better_proof_takes_the_place_of_the_stored_one_unless_it_would_lose_evidence():
    q = query()
    first, larger = proof_of(q), proof_of(q, depth=3, seed=1)
    with Store(":memory:") as store:
        assert store.save(q, "unsat", proof=first)
        assert not store.save(q, "unsat", proof=larger, improved=True, max_proof_bytes=size(larger) - 1)
        assert store.related(q)[0].proof.leaves == first.leaves and "old one stays" in store.warnings[-1]
        assert store.save(q, "unsat", proof=larger, improved=True)
        assert store.related(q)[0].proof.leaves == larger.leaves


def size(proof):
    from mucg4.model.proof_packed import to_packed
    from mucg4.store.store import PACKING_LEVEL

    return len(to_packed(proof, PACKING_LEVEL))


def test_a_large_proof_loses_slopes_then_cores_then_multipliers_then_all():
    q = query()
    proof = proof_of(q, 6)
    forms = [p for _, p in lighter_forms(proof)]
    sizes = [size(p) for p in forms]
    assert sizes == sorted(sizes, reverse=True)
    for limit, alpha, core, beta in (
        (sizes[0], True, True, True),
        (sizes[0] - 1, False, True, True),
        (sizes[1] - 1, False, False, True),
        (sizes[2] - 1, False, False, False),
    ):
        with Store(":memory:") as store:
            assert store.save(q, "unsat", proof=proof, max_proof_bytes=limit)
            back = store.related(q)[0].proof.trees[0].refutations
            assert (any(r.alpha for r in back), any(r.core for r in back), any(r.beta for r in back)) == (
                alpha,
                core,
                beta,
            )
    with Store(":memory:") as store:
        assert not store.save(q, "unsat", proof=proof, max_proof_bytes=sizes[3] - 1)
        assert len(store.warnings) == 1 and store.entries() == []


def test_a_contradicting_entry_is_replaced():
    q = query()
    with Store(":memory:") as store:
        store.save(q, "unsat", proof=proof_of(q))
        assert store.save(q, "sat", witness_x=np.zeros(3, dtype=np.float32))
        assert [e.word for e in store.entries()] == ["sat"]


def test_file_hashes_of_one_network_are_collected():
    q = query()
    other = replace(q, networks=(replace(q.network, source_hash="bb"),))
    with Store(":memory:") as store:
        store.save(replace(q, networks=(replace(q.network, source_hash="aa"),)), "unsat", proof=proof_of(q, 2))
        store.save(other, "unsat", proof=proof_of(q, 1))
        assert store.related(q)[0].sources == ("aa", "bb")


# --- what is related -------------------------------------------------------------------------------------------


def test_of_networks_that_are_alike_one_about_the_whole_box_comes_first():
    """Then the oldest one."""
    near = [query(network=chain([(w * (1 + 1e-6 * k), b) for w, b in random_layers(0)])) for k in range(4)]
    own, old, young = near[:3]
    part = query(network=near[3].network, lower=0.25, width=0.5)
    with Store(":memory:") as store:
        for q in (part, old, young):
            store.save(q, "unsat", proof=proof_of(q))
        assert [f.key for f in store.related(own)] == [old.key, young.key, part.key]


def test_candidates_are_ranked():
    base = random_layers(0)
    own = query(network=chain(base))
    variant = query(network=chain([(w * 1.01, b) for w, b in base]))
    stranger = query(network=chain(random_layers(5)))
    inside, larger = query(network=own.network, lower=0.25, width=0.5), query(network=own.network, lower=-1, width=3)
    far_box = query(network=variant.network, lower=50.0)
    other = query(network=own.network, constant=3.0)
    with Store(":memory:") as store:
        for q in (stranger, other, far_box, inside, larger, variant, own):
            store.save(q, "unsat", proof=proof_of(q))
        found = store.related(own, limit=9)
        keys = [f.key for f in found]
        assert keys[0] == own.key
        assert set(keys[1:3]) == {larger.key, variant.key}  # a proof for a larger box is as good as a near network's
        assert keys.index(inside.key) < keys.index(other.key)
        assert far_box.key not in keys  # neither the network nor the box is the same
        assert {f.key: f.box_relation for f in found}[larger.key] == "inside"
        assert not {f.key: f.same_unsafe for f in found}[other.key]
        assert len(store.related(own, limit=2)) == 2


def test_other_sizes_and_other_properties_on_other_networks_are_no_candidates():
    q = query()
    with Store(":memory:") as store:
        for other in (query(1, constant=2.0), query(sizes=(4, 8, 6, 2)), query(sizes=(3, 8, 6, 3))):
            store.save(other, "unsat", proof=proof_of(other))
        assert store.related(q) == []


def test_neighbours_are_found_among_many():
    with Store(":memory:") as store:
        for seed in range(60):
            q = query(seed)
            store.save(q, "unsat", proof=proof_of(q, 0))
        for seed in (3, 31, 59):
            near = query(network=chain([(w * (1 + 1e-3), b) for w, b in random_layers(seed)]))
            assert store.related(near)[0].fingerprint == query(seed).network.fingerprint


def test_damaged_blobs_are_misses(path):
    q = query()
    with Store(path) as store:
        store.save(q, "unsat", proof=proof_of(q))
    raw = sqlite3.connect(path)
    raw.execute("UPDATE results SET evidence = x'00', boxes = x'01'")
    raw.execute("UPDATE networks SET weights = x'02'")
    raw.commit()
    raw.close()
    with Store(path) as store:
        (found,) = store.related(q)
        assert found.proof is None and found.network is None and found.boxes == []


def test_a_proof_for_something_else_is_a_miss():
    q = query()
    with Store(":memory:") as store:
        store.save(q, "unsat", proof=proof_of(query(7)))
        assert store.related(q)[0].proof is None


# --- maintenance -----------------------------------------------------------------------------------------------


def test_entries_show_and_clear(path):
    first, second = query(0), query(1)
    with Store(path) as store:
        store.save(first, "unsat", proof=proof_of(first), scratch_seconds=2.0)
        store.save(second, "sat", witness_x=np.zeros(3))
        assert [e.key for e in store.entries()] == [second.key, first.key]
        entry, content = store.show(first.key[:12])
        assert (entry.leaves, entry.input_size, entry.output_size) == (4, 3, 2)
        assert content.proof.leaves == 4 and content.network.fingerprint == first.network.fingerprint
        for prefix in ("", "nothing"):
            with pytest.raises(StoreError):
                store.show(prefix)
        assert store.clear() == 2
        assert store.entries() == [] and store.related(first) == []


def test_the_least_recently_used_results_leave_first(path):
    queries = [query(seed, sizes=(3, 20, 20, 2)) for seed in range(12)]
    with Store(path) as store:
        for q in queries:
            store.save(q, "unsat", proof=proof_of(q, 4))
        used = store.used_bytes()
    with Store(path) as store:
        assert store.related(queries[0])[0].proof is not None  # now it is the last used one
    with Store(path) as store:
        assert store.gc(used // 2) > 0
        kept = {e.key for e in store.entries()}
        assert queries[0].key in kept and queries[1].key not in kept
        assert store.used_bytes() <= used // 2
        assert store.gc(used) == 0
        assert store.gc(0) == len(kept) and store.entries() == []


def test_the_store_stays_within_its_size(path):
    limit = 300_000
    with Store(path, max_bytes=limit) as store:
        for seed in range(40):
            q = query(seed, sizes=(3, 20, 20, 2))
            assert store.save(q, "unsat", proof=proof_of(q, 5))
            assert store.used_bytes() <= limit
        entries = store.entries()
        assert 0 < len(entries) < 40
        assert q.key in {e.key for e in entries}
        assert store.warnings == []


# --- the file --------------------------------------------------------------------------------------------------


def test_the_file_is_in_wal_mode_and_versioned(path):
    with Store(path):
        raw = sqlite3.connect(path)
        values = [raw.execute(f"PRAGMA {p}").fetchone()[0] for p in ("journal_mode", "user_version", "application_id")]
        raw.close()
    assert values == ["wal", database.SCHEMA, database.APPLICATION]


@pytest.mark.parametrize("content", [b"this is no database" * 300, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_damaged_file_is_set_aside(path, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    q = query()
    with Store(path) as store:
        assert "set aside as store.sqlite.damaged-1" in store.warnings[0]
        assert store.save(q, "unsat", proof=proof_of(q))
    assert path.with_name("store.sqlite.damaged-1").read_bytes() == content
    path.write_bytes(content)
    with Store(path) as store:
        assert "damaged-2" in store.warnings[0] and store.related(q) == []


def test_a_truncated_file_is_set_aside_and_an_empty_one_used(path):
    with Store(path) as store:
        for seed in range(20):
            store.save(query(seed), "unsat", proof=proof_of(query(seed)))
    path.write_bytes(path.read_bytes()[: 4096 * 3])
    with Store(path) as store:
        store.related(query(3))  # found out at the latest when it is read
        assert store.save(query(3), "unsat", proof=proof_of(query(3)))
        assert len(store.entries()) == 1
        assert any("damaged-1" in w for w in store.warnings)
    other = path.with_name("empty.sqlite")
    other.touch()
    with Store(other) as store:
        assert store.warnings == [] and store.save(query(), "unsat", proof=proof_of(query()))


def test_a_file_damaged_while_it_is_open_costs_a_warning(path):
    q = query()
    with Store(path) as store:
        for seed in range(30):
            store.save(query(seed), "unsat", proof=proof_of(query(seed), 5))
        store._database.shrink()
        data = bytearray(path.read_bytes())
        data[4096:] = b"\xa5" * (len(data) - 4096)
        path.write_bytes(bytes(data))
        store._database.connection.execute("PRAGMA shrink_memory")
        assert store.save(q, "unsat", proof=proof_of(q, 0)) or store.warnings
        assert isinstance(store.related(q), list)
    with Store(path) as store:
        assert store.save(q, "unsat", proof=proof_of(q, 0)) or q.key in {e.key for e in store.entries()}


def test_a_healthy_file_is_not_set_aside_for_a_passing_failure(path):
    q = query()
    with Store(path) as store:
        store.save(q, "unsat", proof=proof_of(q))
        assert store._database.recover(sqlite3.DatabaseError("database disk image is malformed"))
        assert [e.key for e in store.entries()] == [q.key]
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_newer_schema_is_refused_and_left_alone(path):
    with Store(path) as store:
        store.save(query(), "unsat", proof=proof_of(query()))
    raw = sqlite3.connect(path)
    raw.execute(f"PRAGMA user_version={database.SCHEMA + 1}")
    raw.commit()
    raw.close()
    before = path.read_bytes(), path.stat().st_mtime_ns, sorted(p.name for p in path.parent.iterdir())
    with pytest.raises(StoreError, match=f"schema {database.SCHEMA + 1}"):
        Store(path)
    assert before == (path.read_bytes(), path.stat().st_mtime_ns, sorted(p.name for p in path.parent.iterdir()))


@pytest.mark.parametrize("pragma", [None, "user_version=5", "application_id=99"])
def test_a_database_of_another_program_is_refused_and_left_alone(path, pragma):
    path.parent.mkdir(parents=True)
    raw = sqlite3.connect(path)
    raw.execute("CREATE TABLE something (a)")
    if pragma:
        raw.execute(f"PRAGMA {pragma}")
    raw.commit()
    raw.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_paths_that_cannot_hold_a_store_are_store_errors(tmp_path):
    (tmp_path / "file").write_text("x")
    for bad in (tmp_path / "file" / "store.sqlite", tmp_path, Path("/dev/null")):
        with pytest.raises(StoreError):
            Store(bad)


def test_a_full_disk_costs_a_warning(path):
    queries = [query(seed, sizes=(3, 40, 40, 2)) for seed in range(3)]
    with Store(path) as store:
        assert store.save(queries[0], "unsat", proof=proof_of(queries[0], 0))
        pages = store._database.rows("PRAGMA page_count")[0][0]
        store._database.connection.execute(f"PRAGMA max_page_count={pages}").fetchall()
        assert not store.save(queries[1], "unsat", proof=proof_of(queries[1], 6))
        assert "full" in store.warnings[-1]
        assert store.related(queries[0])[0].proof is not None
    with Store(path) as store:
        assert len(store.entries()) == 1
        assert store.save(queries[1], "unsat", proof=proof_of(queries[1], 6))


def test_a_closed_store_only_warns():
    store = Store(":memory:")
    store.close()
    store.close()
    assert not store.save(query(), "unsat", proof=proof_of(query()))
    assert store.related(query()) == []
    with pytest.raises(StoreError):
        store.entries()


def test_without_write_permission_the_store_is_read(monkeypatch):
    """As an ordinary user, since the superuser may write everywhere."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    q = query()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        with Store(folder / "store.sqlite") as store:
            store.save(q, "unsat", proof=proof_of(q))
        (folder / "store.sqlite").chmod(0o444)
        folder.chmod(0o555)
        try:
            child = os.fork()
            if child == 0:
                os._exit(_read_only_child(folder, q))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            folder.chmod(0o755)
        with Store(folder / "store.sqlite") as store:
            assert len(store.entries()) == 1


def _read_only_child(folder, q):
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        with Store(folder / "store.sqlite") as store:
            assert store.related(q)[0].proof is not None
            assert not store.save(query(5), "unsat", proof=proof_of(query(5)))
            assert any("no write permission" in w for w in store.warnings)
            with pytest.raises(StoreError):
                store.clear()
        with pytest.raises(StoreError, match="permission"):
            Store(folder / "new.sqlite")
    except BaseException as error:  # noqa: BLE001 - must not run on as a second test process
        os.write(2, repr(error).encode())
        return 1
    return 0


# --- several processes -----------------------------------------------------------------------------------------

WRITER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from unit.store.test_store import Store, proof_of, query
first, count = int(sys.argv[2]), int(sys.argv[3])
with Store(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    for seed in range(first, first + count):
        q = query(seed)
        assert store.save(q, "unsat", proof=proof_of(q, 3)), store.warnings
        print(seed, flush=True)
        assert store.related(q)[0].key == q.key
    assert all("set aside" in w for w in store.warnings), store.warnings
    print(len(store.warnings), "warnings", flush=True)
"""


def writer(path, first, count):
    text = textwrap.dedent(WRITER).format(tests=str(TESTS))
    command = [sys.executable, "-c", text, str(path), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS.parent)


def test_processes_share_a_new_store(path):
    children = [writer(path, 100 * k, 15) for k in range(4)]
    for child in children:
        output, errors = child.communicate(timeout=100)
        assert child.returncode == 0, errors
        assert "0 warnings" in output
    with Store(path) as store:
        assert len(store.entries()) == 60 and store.warnings == []


def test_processes_meet_a_damaged_store(path):
    path.parent.mkdir(parents=True)
    path.write_bytes(b"garbage" * 1000)
    children = [writer(path, 100 * k, 5) for k in range(4)]
    for child in children:
        _, errors = child.communicate(timeout=100)
        assert child.returncode == 0, errors
    assert [p.name for p in path.parent.glob("*.damaged-*")] == ["store.sqlite.damaged-1"]
    assert path.with_name("store.sqlite.damaged-1").read_bytes() == b"garbage" * 1000
    with Store(path) as store:
        assert len(store.entries()) == 20 and store.warnings == []


def test_kill_9_while_writing_loses_nothing_saved(path):
    saved = 0
    for attempt in range(3):
        child = writer(path, 1000 * attempt, 900)
        seeds = []
        assert child.stdout is not None
        for line in child.stdout:
            if line.strip().isdigit():
                seeds.append(int(line))
            if len(seeds) >= 5 + 7 * attempt:
                time.sleep(0.002 * attempt)
                child.send_signal(signal.SIGKILL)
                break
        child.communicate()
        with Store(path) as store:
            keys = {e.key for e in store.entries()}
            assert store.warnings == []
            assert {query(s).key for s in seeds} <= keys
            assert store._database.rows("PRAGMA integrity_check") == [("ok",)]
            assert store.related(query(seeds[-1]))[0].proof is not None
            saved = len(keys)
    assert saved >= 5 + 12 + 19
