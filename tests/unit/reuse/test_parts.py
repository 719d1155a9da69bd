"""Several stored proofs that are each about a part of a query: together they leave nothing open."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_query, random_layers

from mucg4.check.walk import check
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.verdict import Safe
from mucg4.relate.align import by_position
from mucg4.reuse.parts import StoredPart, joined, parts_of
from mucg4.reuse.translate import restricted
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

SETTINGS = Settings(workers=1, attack=False, compact=False, split="input")
LAYERS = random_layers(3, (3, 12, 10, 2))


def conjunction(network, output: int, bound: float) -> Conjunction:
    """Output at least `bound`."""
    row = {}, {output: Fraction(-1)}, Fraction(bound), False
    return Conjunction.build([row], network.input_size, network.output_size)


def largest(output: int) -> float:
    """The most that LAYERS give on sampled points of [-1, 1]."""
    h = np.clip(np.random.default_rng(0).uniform(-2, 2, size=(4000, 3)), -1, 1)  # edges and corners too
    for k, (weights, bias) in enumerate(LAYERS):
        h = h @ weights.T + bias
        h = np.maximum(h, 0) if k + 1 < len(LAYERS) else h
    return float(h[:, output].max())


def box(lo, hi) -> Box:
    return Box(tuple(map(Fraction, lo)), tuple(map(Fraction, hi)))


def query(layers, boxes, outputs=(0,), room: float = 0.3) -> Query:
    """A case for each box, on which each of the outputs is unsafe a little above what it attains on [-1, 1]."""
    network = chain(LAYERS)
    bounds = [conjunction(network, k, round(largest(k) + room, 3)) for k in outputs]
    return Query((chain(layers),), tuple(Case(box(*ends), tuple(bounds)) for ends in boxes))


def moved(size: float):
    random = np.random.default_rng(1)
    return [(w * (1 + size * random.normal(size=w.shape)), b) for w, b in LAYERS]


WHOLE = ((-1, -1, -1), (1, 1, 1))
QUARTERS = [((a, b, -1), (a + 1, b + 1, 1)) for a, b in product((-1, 0), (-1, 0))]  # together they are the whole box


def solved(store: Store, asked: Query) -> Safe:
    verdict = verify(asked, SETTINGS, store, budget=effort())
    assert isinstance(verdict, Safe)
    return verdict


def lent(store: Store, asked: Query) -> Safe:
    """Decided with what is stored; the proof is one of the query."""
    found = solved(store, asked)
    assert check(found.proof, asked).accepted
    return found


def test_proofs_on_boxes_that_cover_the_box_leave_nothing_open():
    with Store(":memory:") as store:
        leaves = [solved(store, query(LAYERS, [part])).proof.leaves for part in QUARTERS]
        assert min(leaves) > 1
        found = lent(store, query(LAYERS, [WHOLE]))
        s = found.statistics
        assert s.related_proofs == 4 and s.stored_leaves >= sum(leaves)
        assert s.regions == 0 and s.rungs["checked"] == s.stored_leaves
        assert not any(entry.refers_to for entry in store.entries())  # no single proof stands for this one
        again = lent(store, query(LAYERS, [WHOLE]))
        assert again.statistics.relation == "identical" and again.statistics.regions == 0


def test_a_variant_is_lent_the_parts_too():
    with Store(":memory:") as store:
        for part in QUARTERS:
            solved(store, query(LAYERS, [part]))
        asked = query(moved(1e-3), [WHOLE])
        s = lent(store, asked).statistics
        assert s.related_proofs == 4 and s.relation == "fine-tuned"
        assert s.rungs["checked"] > 0.8 * s.stored_leaves
        with Store(":memory:") as empty:
            assert s.regions < 0.5 * lent(empty, asked).statistics.regions


def test_what_no_proof_is_about_is_searched():
    """Three quarters are known: the fourth is the search's."""
    asked = query(LAYERS, [WHOLE])
    with Store(":memory:") as store:
        for part in QUARTERS[:3]:
            solved(store, query(LAYERS, [part]))
        s = lent(store, asked).statistics
        assert s.related_proofs == 3 and 0 < s.regions
    with Store(":memory:") as store:
        assert s.regions < lent(store, asked).statistics.regions


@pytest.mark.parametrize("split", ["input", "phase"])
def test_conjunctions_come_from_proofs_of_other_properties(split):
    """Each of two outputs was proved by itself; numbers differ, and a third conjunction is new."""
    formulas = [clauses(k, 8, 60) for k in range(3)]
    asked = formula_query(formulas, 8)
    (case,) = asked.cases
    settings = replace(SETTINGS, split=split)
    with Store(":memory:") as store:
        for number in (2, 0):
            one = Query(asked.networks, (replace(case, conjunctions=(case.conjunctions[number],)),))
            assert isinstance(verify(one, settings, store, budget=effort()), Safe)
        two = Query(asked.networks, (replace(case, conjunctions=(case.conjunctions[0], case.conjunctions[2])),))
        found = verify(two, settings, store, budget=effort())
        assert isinstance(found, Safe) and check(found.proof, two).accepted
        assert found.statistics.related_proofs == 2 and found.statistics.regions == 0
        found = verify(asked, settings, store, budget=effort())
        assert isinstance(found, Safe) and check(found.proof, asked).accepted
        with Store(":memory:") as empty:
            scratch = verify(asked, settings, empty, budget=effort())
        assert 0 < found.statistics.regions < scratch.statistics.regions


def test_a_proof_of_more_conjunctions_serves_one_of_them():
    asked = query(LAYERS, [WHOLE], (0, 1))
    with Store(":memory:") as store:
        solved(store, asked)
        for output in (1, 0):
            s = lent(store, query(LAYERS, [WHOLE], (output,))).statistics
            assert s.relation == "other-property" and s.regions == 0 and s.related_proofs == 1


def test_cases_come_from_different_proofs():
    """Two boxes, each proved by itself, as the cases of one query; in another order, and with another property."""
    first, second = ((-1, -1, -1), (0, 0, 1)), ((0, 0, -1), (1, 1, 1))
    with Store(":memory:") as store:
        solved(store, query(LAYERS, [second], (1, 0)))
        solved(store, query(LAYERS, [first], (0,)))
        s = lent(store, query(LAYERS, [second, first], (0,))).statistics
        assert s.related_proofs == 2 and s.regions == 0


def part_of(asked: Query, verdict: Safe) -> StoredPart:
    (tree,) = verdict.proof.trees
    (case,) = asked.cases
    return StoredPart(case.box.lo, case.box.hi, replace(tree, conjunctions=(0,)), frozenset({0}))


def test_pieces_on_boxes_that_overlap_and_stand_out():
    """However the boxes lie, the tree covers the box of the case: the checker accepts what has evidence everywhere."""
    parts, asked = [], query(LAYERS, [((-0.75, -0.75, -0.75), (0.5, 0.75, 0.25))])
    lower = [((-1, -1, -1), (0.25, 0, 1)), ((-0.5, -1, -1), (1, 0.125, 1)), ((-1, -0.125, -1), (1, 1, 1))]
    for ends in lower:
        own = query(LAYERS, [ends])
        with Store(":memory:") as store:
            parts.append(part_of(own, solved(store, own)))
    for some, closed in ((parts, True), (parts[::-1], True), (parts[1:], False)):
        (tree,) = joined(asked, some)
        report = check(Proof(asked.network.fingerprint, asked.property_hash, (tree,)), asked)
        assert report.accepted == closed
        open_ = [leaf for _, leaf, _ in report.rejected]
        assert not np.isin(tree.table.at, open_).any()  # what no part is about has no evidence, all else holds


def test_a_box_of_many_inputs_is_not_divided_for_proofs_without_a_split():
    """It would have a piece for every input and side."""
    layers = random_layers(2, (20, 6, 1))
    network = chain(layers)
    ends = [((-k / 10,) * 20, (k / 10,) * 20) for k in (1, 2, 3)]
    small, middle, asked = (Query((network,), (Case(box(*e), (conjunction(network, 0, 1e4),)),)) for e in ends)
    with Store(":memory:") as store:
        parts = [part_of(q, solved(store, q)) for q in (small, middle)]
    assert all(len(part.tree) == 1 for part in parts)
    assert [len(tree) for tree in joined(asked, parts)] == [1]


def test_a_restricted_tree_has_the_regions_that_meet_the_part():
    asked = query(LAYERS, [WHOLE])
    with Store(":memory:") as store:
        (tree,) = solved(store, asked).proof.trees
    lo, hi = np.array([-1.0, -0.25, 0.0]), np.array([-0.5, 0.25, 1.0])
    small = restricted(tree, asked.network, lo, hi)
    assert 1 < len(small) < len(tree)
    part = query(LAYERS, [(lo.tolist(), hi.tolist())])
    assert check(Proof(part.network.fingerprint, part.property_hash, (small,)), part).accepted
    assert restricted(tree, asked.network, *(np.array(v, dtype=float) for v in WHOLE)) is tree


def test_a_stored_entry_that_does_not_fit_lends_nothing():
    """Names, boxes and trees of a stored result are hints: none of them is taken at its word."""
    asked = query(LAYERS, [WHOLE], (0, 1))
    with Store(":memory:") as store:
        solved(store, query(LAYERS, [QUARTERS[0]], (1,)))
        (related,) = store.related(asked, parts=True)
        alignment = by_position(asked.network, asked.network)
        assert [sorted(p.answers) for p in parts_of(asked, related, alignment)] == [[1]]
        other = query(LAYERS, [QUARTERS[0]], (0,))
        assert not store.related(other, parts=True)  # of no conjunction of that query
        assert not parts_of(other, related, alignment)
        lying = replace(related, same_unsafe=True)  # then its names are those of the query: one tree, two names
        parts = parts_of(asked, lying, alignment)
        assert len(parts) == 1
        trees: list[Tree] = joined(asked, parts)
        report = check(Proof(asked.network.fingerprint, asked.property_hash, tuple(trees)), asked)
        assert not report.accepted
