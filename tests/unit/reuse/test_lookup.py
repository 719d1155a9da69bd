"""Which of several stored proofs about the same is taken."""

from __future__ import annotations

import numpy as np
import pytest
from effort import effort
from handmade import chain, clauses, formula_layers, formula_query

from mucg4.gate.runtime import Runtime
from mucg4.model.query import Query
from mucg4.model.verdict import Safe, Statistics
from mucg4.reuse.lookup import look_up
from mucg4.search.run import Run
from mucg4.settings import Settings
from mucg4.store.store import Store
from mucg4.verify import verify

FORMULA = clauses(3, 8, 60)


def copies(count: int) -> list[Query]:
    """A query and others on networks whose weights moved a little."""
    query, random = formula_query([FORMULA], 8), np.random.default_rng(0)
    out = [query]
    for _ in range(count - 1):
        layers = [(w * (1 + 1e-5 * random.normal(size=w.shape)), b) for w, b in formula_layers([FORMULA], 8)]
        out.append(Query((chain(layers),), query.cases))
    return out


@pytest.mark.parametrize("split", ["phase", "input"])
@pytest.mark.parametrize("first", [1.0, None])  # None: with the help of a proof for a smaller box, say
def test_where_phases_are_split_a_proof_made_from_another_is_the_stronger(split, first):
    """Not where inputs are, and not in place of this network's own proof."""
    original, variant, asked = copies(3)
    settings = Settings(workers=1, attack=False, split=split)
    with Store(":memory:") as store:
        for query, seconds in ((original, first), (variant, None)):
            verdict = verify(query, settings, budget=effort())
            assert isinstance(verdict, Safe)
            store.save(query, "unsat", proof=verdict.proof, scratch_seconds=seconds)
        taken = {}
        for query in (asked, original):
            hints = look_up(Run(query, settings, effort(), Statistics(), Runtime(query.network)), store)
            assert hints is not None and hints.trees
            taken[query.key] = hints.related.key
        assert taken[asked.key] == (variant.key if split == "phase" else original.key)
        assert taken[original.key] == original.key
