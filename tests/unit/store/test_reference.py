"""Results kept as references: they lead to the proof they were made for, and are nothing without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mucg4.model.network import Network
from mucg4.model.query import Query
from mucg4.store.store import Store
from unit.store.test_store import path, proof_of, query

__all__ = ["path"]


def related_pair(seed=0):
    """A query, and the same one on a variant of its network."""
    old = query(seed, sizes=(3, 20, 20, 2))
    nodes = [n if n.op is None or not hasattr(n.op, "weight") else scaled(n) for n in old.network.nodes]
    return old, Query((Network(tuple(nodes)),), old.cases)


def scaled(node):
    return replace(node, op=replace(node.op, weight=node.op.weight * 1.001))


def test_a_reference_leads_to_the_proof_it_was_made_for(path):
    old, new = related_pair()
    proof = proof_of(old, 5)
    with Store(path) as store:
        store.save(old, "unsat", proof=proof, scratch_seconds=3.0)
        before = store.used_bytes()
        assert store.save_reference(new, old.key, scratch_seconds=2.0, regions=1, leaves=proof.leaves)
        assert store.used_bytes() - before <= 8192  # neither weights nor evidence
        assert store.save_reference(new, old.key)  # once more: the stored time stays
    with Store(path) as store:
        (found,) = store.related(new)
        assert (found.key, found.fingerprint, found.box_relation) == (old.key, old.network.fingerprint, "equal")
        assert found.proof.leaves == proof.leaves and found.network.fingerprint == old.network.fingerprint
        entries = {e.key: e for e in store.entries()}
        assert (entries[new.key].refers_to, entries[new.key].scratch_seconds) == (old.key, 2.0)
        assert entries[old.key].refers_to == ""
        assert store.show(new.key)[1].proof is not None
        assert store.warnings == []


def test_a_reference_is_no_candidate_for_other_queries(path):
    old, new = related_pair()
    other = Query(new.networks, tuple(replace(c, box=smaller(c.box)) for c in new.cases))
    with Store(path) as store:
        store.save(old, "unsat", proof=proof_of(old, 5))
        store.save_reference(new, old.key)
        assert [r.key for r in store.related(other)] == [old.key]
        assert [r.key for r in store.related(old)] == [old.key]
        assert not store.save_reference(old, old.key)  # there is a proof of its own


def smaller(box):
    return replace(box, lower=tuple(v / 2 for v in box.lower), upper=tuple(v / 2 for v in box.upper))


def test_a_reference_of_a_reference_leads_to_the_proof(path):
    old, new = related_pair()
    third = Query((Network(tuple(scaled(n) if hasattr(n.op, "weight") else n for n in new.network.nodes)),), old.cases)
    with Store(path) as store:
        store.save(old, "unsat", proof=proof_of(old, 5))
        assert store.save_reference(new, old.key)
        assert store.save_reference(third, new.key)
        assert {e.key: e.refers_to for e in store.entries()}[third.key] == old.key
        assert not store.save_reference(old, new.key)


def test_there_has_to_be_something_to_refer_to(path):
    old, new = related_pair()
    with Store(path) as store:
        assert not store.save_reference(new, old.key)
        store.save(old, "sat", witness_x=np.zeros(3))
        assert not store.save_reference(new, old.key)
        assert store.warnings == [] and len(store.entries()) == 1


def test_references_to_what_has_left_are_misses(path):
    old, new = related_pair()
    with Store(path) as store:
        store.save(old, "unsat", proof=proof_of(old, 5))
        store.save_reference(new, old.key)
        with store._database.change() as connection:
            connection.execute("DELETE FROM results WHERE key = ?", (old.key,))
        assert store.related(new) == [] and store.warnings == []
        assert store.save(new, "unsat", proof=proof_of(new, 5))  # a proof takes the reference's place
        (found,) = store.related(new)
        assert found.key == new.key and found.proof is not None
        assert store.save_reference(old, new.key)
        store.gc(0)
        assert store.entries() == []


def test_the_garbage_collector_removes_lost_references(path):
    old, new = related_pair()
    with Store(path) as store:
        store.save(old, "unsat", proof=proof_of(old, 5))
        store.save_reference(new, old.key)
        with store._database.change() as connection:
            connection.execute("DELETE FROM results WHERE key = ?", (old.key,))
        store.gc()
        assert store.entries() == []


def test_a_reference_keeps_what_it_refers_to_in_use(path):
    old, new = related_pair()
    with Store(path) as store:
        store.save(old, "unsat", proof=proof_of(old, 5))
        for seed in range(1, 8):
            q = query(seed, sizes=(3, 20, 20, 2))
            store.save(q, "unsat", proof=proof_of(q, 5))
        store.save_reference(new, old.key)
        store.gc(store.used_bytes() // 2)
        assert {old.key, new.key} <= {e.key for e in store.entries()}


@pytest.mark.parametrize("evidence", [b"", b"mr1\n", b"mr1\n" + b"x" * 65, b"mr1\n%$", b"garbage", "text", 7, None])
def test_a_damaged_reference_is_a_miss(path, evidence):
    old, new = related_pair()
    with Store(path) as store:
        store.save(old, "unsat", proof=proof_of(old, 5))
        store.save_reference(new, old.key)
        with store._database.change() as connection:
            held = b"" if evidence is None else evidence
            connection.execute("UPDATE results SET evidence = ? WHERE key = ?", (held, new.key))
    with Store(path) as store:
        assert [r.key for r in store.related(new)] == [old.key]  # as a related result
        assert len(store.warnings) == 1
        store.entries()
        assert store.save_reference(new, old.key)
    with Store(path) as store:
        assert store.related(new)[0].key == old.key and store.warnings == []
