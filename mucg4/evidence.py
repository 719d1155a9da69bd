"""From the trees of a search to a report of the independent checker: the way every `unsat` has to take.

The checker is given nothing that the search made but the proof's text. The network and the property are read again
from the original bytes of both files, so what a search did to its own copies cannot matter; the proof is decoded
from its text, so what is written and stored is what was checked. Queries that were built in a program have no files:
they are checked as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from mucg4.budget import Budget
from mucg4.check.walk import check
from mucg4.errors import InputError, ProofError
from mucg4.model.query import Query
from mucg4.model.verdict import CheckReport
from mucg4.proof.proof import Proof, Tree, from_text, to_text


def examine(query: Query, trees: Sequence[Tree], budget: Budget, workers: int = 1) -> CheckReport:
    """The checker's report on the trees as a proof of the query; never raises for a bad proof or a spent budget."""
    made = Proof(query.network.fingerprint, query.property_hash, tuple(trees), query.network.source_hash)
    try:
        budget.poll()
        proof, again = from_text(to_text(made)), read_again(query)
    except (ProofError, InputError) as error:
        return CheckReport(made, False, 0, 0, made.leaves, str(error), made.leaves)
    return check(proof, again, budget, workers=workers)


def read_again(query: Query) -> Query:
    """The query read anew from the bytes of its files; itself when it has none. Raises `InputError`."""
    if not (query.text and query.network.model_bytes):
        return query
    from mucg4.read.instance import query_of

    return query_of(query.network.model_bytes, query.text)
