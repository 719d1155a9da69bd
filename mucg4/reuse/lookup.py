"""What a store lends to one query: related results, the nearest first, in the words of this network.

The nearest proof about the whole query lends its trees, or one about as near that is stronger. Where there is none,
proofs about parts of it do so together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from mucg4.errors import ProofError
from mucg4.model.proof import Proof, Tree
from mucg4.ops.arrays import FloatArray
from mucg4.records import dataclass
from mucg4.relate.align import Alignment
from mucg4.reuse.aside import begin_aside
from mucg4.reuse.guard import guarded
from mucg4.reuse.parts import StoredPart, joined, parts_of
from mucg4.reuse.relation import Match, relate, translate
from mucg4.reuse.structure import splits_phases
from mucg4.search.run import Run
from mucg4.store.codec import boxes_hash
from mucg4.store.select import ALIKE

if TYPE_CHECKING:
    from mucg4.store.related import Related
    from mucg4.store.store import Store

PARENTS = 64  # most stored proofs that together lend trees where none is about the whole query; not measured
WITNESSES = 2  # stored witnesses that are tried; not measured


@dataclass(frozen=True, eq=False)
class Hints:
    """Inputs `points (N, d)` that were witnesses of the same unsafe set, and trees on this network's neurons.

    They come from `related`; `alignment` maps its network's neurons, None where the networks are unrelated.
    """

    points: FloatArray
    trees: tuple[Tree, ...]
    related: Related
    alignment: Alignment | None


def look_up(run: Run, store: Store) -> Hints | None:
    """What the store knows that may help; None when that is nothing. Whatever goes wrong is a warning and None.

    The relation to the most promising entry goes into the statistics. Raises `BudgetError` when the budget is spent.
    """
    return guarded(run, lambda: _look_up(run, store))


def own_proof(run: Run, store: Store) -> tuple[Related, Proof] | None:
    """The stored result of this very query and its proof, unchecked; None when there is none.

    Of a result kept as a reference, these are the other result and its proof in the words of this network. Whatever
    goes wrong is a warning and None. Raises `BudgetError` when the budget is spent.
    """
    return guarded(run, lambda: _own_proof(run, store))


def _own_proof(run: Run, store: Store) -> tuple[Related, Proof] | None:
    query, holder = run.query, store.holder(run.query.key)
    if holder is None:
        return None
    related = next((r for r in store.related(query, 1) if r.key == holder), None)
    if related is None or related.proof is None:
        return None
    if holder == query.key:
        return related, related.proof
    match = _compared(run, related)
    trees = tuple(_translated(related, match)) if match is not None else ()
    return (related, Proof(query.network.fingerprint, query.property_hash, trees)) if trees else None


def _look_up(run: Run, store: Store) -> Hints | None:
    candidates: list[tuple[Related, Match]] = []
    chosen = None
    stored_here = store.related(run.query)
    for related in stored_here:
        match = _compared(run, related)
        if match is None:
            continue
        candidates.append((related, match))
        chosen = most_helpful(candidates)
        if chosen is not None and chosen[0].word == "unsat" and chosen[0].same_unsafe:
            break  # a nearer proof serves better than whatever follows
    trees: Sequence[Tree]
    statistics = run.statistics
    if chosen is not None and _answers_all(chosen[0]):
        chosen = _strongest(run, chosen, stored_here)
        if _splits_phases(chosen[0]):  # others are translated at once, and may meet a witness first
            begin_aside(run)
        trees, parents = _translated(*chosen), [chosen]
    else:
        trees, parents = _from_parts(run, store)
    if chosen is None and not parents:
        return None
    related, found = chosen = chosen or parents[0]
    statistics.relation, statistics.relation_detail = found.relation, found.detail
    statistics.related_proof, statistics.scratch_seconds = related.key, related.scratch_seconds
    statistics.related_proofs = len(parents)
    for used, _ in {chosen, *parents}:
        store.touch(used.key)
    size = run.query.network.input_size
    stored = [r.witness_x for r, _ in candidates if r.word == "sat" and r.same_unsafe]
    own = [np.asarray(x, dtype=np.float64) for x in stored if x is not None][:WITNESSES]
    own = [x for x in own if x.shape == (size,)]
    points = np.array(own).reshape(len(own), size)
    return Hints(points, tuple(trees), related, found.alignment)


def _compared(run: Run, related: Related) -> Match | None:
    """How the query relates to a stored result, whose weights are read for it; None where it does not."""
    found = guarded(run, partial(relate, related, run.query), partial(_incomparable, related))
    return None if found is None or found.relation == "unrelated" else found


def _incomparable(related: Related, why: str) -> None:
    """A network that decodes may still be beyond comparing."""
    related.broken("weights", related.fingerprint, f"it cannot be compared: {why}")


def most_helpful(candidates: list[tuple[Related, Match]]) -> tuple[Related, Match] | None:
    """The first candidate, or the first proof of the same unsafe set behind a witness; what does not decode is none."""
    left = list(candidates)
    while left:
        proofs = (c for c in left if c[0].word == "unsat" and c[0].same_unsafe)
        chosen = next(proofs, left[0]) if left[0][0].word == "sat" else left[0]
        related = chosen[0]
        if not related.same_unsafe or (related.proof if related.word == "unsat" else related.witness_x) is not None:
            return chosen
        left.remove(chosen)
    return None


def _answers_all(related: Related) -> bool:
    """True for a proof about all of the query's unsafe points."""
    return related.word == "unsat" and related.same_unsafe and related.box_relation in ("equal", "inside")


def _splits_phases(related: Related) -> bool:
    return related.proof is not None and any(map(splits_phases, related.proof.trees))


def _strongest(run: Run, chosen: tuple[Related, Match], others: Sequence[Related]) -> tuple[Related, Match]:
    """The proof itself, or where phases are split one on a network as near that was made from a stored one.

    Its bounds came from two searches, the second of which began at what the first had found. Measured on mnist 256x4:
    of a copy pruned by 10 %, the original's proofs leave 168 of 184 and 23 of 24 leaves open (309 and 292 regions,
    properties 14 at 0.05 and 8 at 0.03), those of its int8 copy 1 of 9 and 1 of 95 (1 region each). Where inputs are
    split such a proof has more leaves, and leaves as much open.
    """
    first = chosen[0]
    own = first.fingerprint == run.query.network.fingerprint
    if own or not _splits_phases(first):
        return chosen
    for other in reversed(others):  # those alike come by age: the youngest had most to begin at
        if other is first:
            return chosen
        near = other.distance <= max(ALIKE, 2 * first.distance)
        if near and other.scratch_seconds is None and _answers_all(other):
            found = _compared(run, other)
            if found is not None and found.alignment is not None and other.proof is not None:
                return other, found
    return chosen


def _from_parts(run: Run, store: Store) -> tuple[list[Tree], list[tuple[Related, Match]]]:
    """Trees made of proofs about parts of the query, and these proofs. Of several about the same, the nearest counts.

    These may be on other networks, each with a relation of its own.
    """
    parts: list[StoredPart] = []
    parents: list[tuple[Related, Match]] = []
    known = set()
    for related in store.related(run.query, PARENTS, parts=True):
        about = boxes_hash(related.boxes), run.query.conjunction_names if related.same_unsafe else related.names
        found = None if about in known else _compared(run, related)
        if found is None or found.alignment is None:
            continue
        own = parts_of(run.query, related, found.alignment)
        if own:
            parts += own
            known.add(about)
            parents.append((related, found))
    return joined(run.query, parts), parents


def _translated(related: Related, found: Match) -> list[Tree]:
    """The stored trees on this network's neurons; none when the entry holds no usable proof."""
    proof = related.proof
    if proof is None or found.alignment is None:
        return []
    try:
        return [translate(tree, found.alignment) for tree in proof.trees]
    except (ProofError, IndexError):
        return []  # a stored entry is a hint: one that does not fit is a miss
