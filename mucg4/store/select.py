"""Which stored results may help a query: two indexed look-ups, a ranking on sketches, then a closer look.

Cost: one sketch per network of the same sizes, and at most a few thousand short rows and a dozen box
blobs, however large the store is; proofs and weights are not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mucg4.errors import StoreError
from mucg4.model.query import Query
from mucg4.ops.arrays import FloatArray
from mucg4.store import reference
from mucg4.store.codec import Asked, Names, asked_from_bytes, boxes_hash
from mucg4.store.kept import Kept
from mucg4.store.related import BOX_RELATIONS, Related, box_relation, hull
from mucg4.store.sketch import SIZE, box_sketch, network_sketch, sketch_distances

ROWS = 1024  # rows looked at per way of being related; not measured
MOST_NETWORKS = 200_000  # networks whose sketches are compared; not measured
NETWORKS = 48  # networks nearest by sketch whose results are looked at; not measured
BOX_COST = {"equal": 0.0, "inside": 0.05, "contains": 0.5, "overlaps": 1.0, "disjoint": 50.0}
# costs up to this are alike, and above it those within a factor of two; measured on a 2 x 24, a 256x4 and an ACAS Xu
# network: fp16, int8, qdq8 and prune10 are 1e-4 to 4e-3 from their original, prune30 0.02, int4 0.04 to 0.09
ALIKE = 4e-3
OTHER_UNSAFE_COST = 3.0  # rank lost by a result for another unsafe set; not measured

Rows = Callable[..., list[tuple[Any, ...]]]


class _Row(NamedTuple):
    key: str
    network: str
    property_hash: str
    unsafe_hash: str
    verdict: str
    leaves: int
    regions: int
    scratch_seconds: float | None
    created: float
    boxes_hash: str
    box_sketch: bytes
    grade: int

    @property
    def sound(self) -> bool:
        """True when every value is of the type and in the range that a store writes; SQLite keeps whatever it gets."""
        texts = (self.key, self.network, self.property_hash, self.unsafe_hash, self.boxes_hash)
        counts = all(type(n) is int for n in (self.leaves, self.regions, self.grade))
        counts = counts and min(self.leaves, self.regions) >= 0
        times = (self.created, 0.0 if self.scratch_seconds is None else self.scratch_seconds)
        return (
            all(type(t) is str for t in texts)
            and self.verdict in ("sat", "unsat")
            and counts
            and all(type(t) in (int, float) and 0 <= t < np.inf for t in times)
            and type(self.box_sketch) is bytes
            and len(self.box_sketch) == 4 * SIZE
        )


_FIELDS = ", ".join(_Row._fields)


def select_related(
    rows: Rows,
    load: Callable[[str, str], bytes | None],
    query: Query,
    unsafe: str,
    limit: int,
    broken: Callable[[str, str, str], None],
    kept: Kept,
    names: Names | None = None,
) -> list[Related]:
    """The candidates for `query`, most promising first; raises `sqlite3.Error` when the database fails.

    `rows` runs a query on the database, `load` fetches a blob for the lazily loaded parts, `unsafe` is
    the hash of the query's unsafe sets. `broken(what, key, why)` is told what does not decode; `kept` is what earlier
    queries needed. `names` of the query's conjunctions: only what answers for a part of the query, see `Store.related`.
    """
    distances = {query.network.fingerprint: 0.0, **_near_networks(rows, query, kept)}
    found = []
    own, holder = _own_result(rows, load, query, broken)
    if holder:
        distances.setdefault(own[0].network, 0.0)
    first = holder or query.key
    for row in _candidates(rows, query, unsafe, distances, own, parts=names is not None):
        if row.sound and row.network in distances:
            found.append(row)
        else:
            broken("entry", str(row.key), "its values are not what they should be")
    if not found:
        return []
    boxes = [(case.box.lo, case.box.hi) for case in query.cases]
    around = box_sketch(*hull(boxes)) if boxes else np.zeros(SIZE, dtype=np.float32)
    kinds = _sketched_relations(around, np.frombuffer(b"".join(r.box_sketch for r in found), "<f4").reshape(-1, SIZE))
    same = boxes_hash(boxes)
    kinds = ["equal" if r.boxes_hash == same else kind for r, kind in zip(found, kinds, strict=True)]
    costs = [_cost(r, kind, unsafe, distances) for r, kind in zip(found, kinds, strict=True)]
    order = sorted(range(len(found)), key=lambda i: (found[i].key != first, costs[i], found[i].created))[: 4 * limit]
    closer = [(found[i], _exact_relation(load, found[i], boxes, same, kinds[i], broken)) for i in order[: 4 * limit]]
    here = query.network.fingerprint
    if names is None:
        closer = [(r, kind) for r, kind in closer if r.network == here or kind != "disjoint"]
    else:
        closer = [p for p in closer if p[1] != "disjoint" and _answers_in_part(load, p[0], unsafe, names, broken)]
    closer.sort(key=lambda p: _rank(p[0], p[1], _cost(p[0], p[1], unsafe, distances), here, first))
    sources = _sources(rows, {r.network for r, _ in closer[:limit]})
    return [
        Related(
            r.key, r.verdict, r.network, r.property_hash, sources.get(r.network, ()), r.unsafe_hash == unsafe, kind,
            distances[r.network], r.leaves, r.regions, r.scratch_seconds, load, broken, kept,
        )
        for r, kind in closer[:limit]
    ]  # fmt: skip


def _near_networks(rows: Rows, query: Query, kept: Kept) -> dict[str, float]:
    """Sketch distances of the nearest other networks with the same input and output size."""
    network = query.network
    found = rows(
        "SELECT rowid, sketch FROM networks WHERE input_size = ? AND output_size = ?"
        " AND typeof(sketch) = 'blob' AND length(sketch) = ? LIMIT ?",
        (network.input_size, network.output_size, 4 * SIZE, MOST_NETWORKS),
    )
    if not found:
        return {}
    others = np.frombuffer(b"".join(blob for _, blob in found), "<f4").reshape(-1, SIZE).astype(np.float64)
    sketch = kept.of(("sketch", network.fingerprint), lambda: network_sketch(network))
    distances = np.nan_to_num(sketch_distances(sketch, others), nan=1e9)
    nearest = {found[i][0]: float(distances[i]) for i in np.argsort(distances, kind="stable")[:NETWORKS].tolist()}
    marks = ",".join("?" * len(nearest))
    names = rows(f"SELECT rowid, fingerprint FROM networks WHERE rowid IN ({marks})", tuple(nearest))
    return {name: nearest[row] for row, name in names if isinstance(name, str) and name != network.fingerprint}


def _own_result(
    rows: Rows, load: Callable[[str, str], bytes | None], query: Query, broken: Callable[[str, str, str], None]
) -> tuple[list[_Row], str]:
    """The very query's result, or the one that it refers to with that one's key."""
    sql = f"SELECT {_FIELDS} FROM results WHERE key = ?"
    found = [_Row(*row) for row in rows(sql, (query.key,))]
    if not found or found[0].grade != reference.GRADE:
        return found, ""
    evidence = load("evidence", query.key)
    try:
        holder = "" if evidence is None else reference.referred(evidence)
    except StoreError as error:
        broken("evidence", query.key, str(error))
        return [], ""
    found = [_Row(*row) for row in rows(sql, (holder,))]
    found = [row for row in found if row.grade != reference.GRADE]  # one that left is no result any more
    return found, holder if found else ""


def _candidates(
    rows: Rows, query: Query, unsafe: str, distances: dict[str, float], own: list[_Row], parts: bool
) -> list[_Row]:
    """The very query's result; results on this network, on any property; with the same unsafe set on the near ones.

    `parts`: on any property on the near ones, too.
    """
    here = query.network.fingerprint
    out: list[tuple[Any, ...]] = [*own]
    proofs = f"FROM results WHERE grade <> {reference.GRADE} AND network"
    out += rows(
        f"SELECT {_FIELDS} {proofs} = ? AND unsafe_hash = ? ORDER BY last_used DESC LIMIT ?", (here, unsafe, ROWS)
    )
    out += rows(f"SELECT {_FIELDS} {proofs} = ? AND unsafe_hash <> ? LIMIT ?", (here, unsafe, 64))
    others = [name for name in distances if name != here]
    if others:
        marks = ",".join("?" * len(others))
        sql = f"SELECT {_FIELDS} {proofs} IN ({marks}) AND unsafe_hash = ? LIMIT ?"
        out += rows(sql, (*others, unsafe, ROWS))
    if parts:
        marks = ",".join("?" * len(distances))
        sql = f"SELECT {_FIELDS} {proofs} IN ({marks}) AND unsafe_hash <> ? AND verdict = 'unsat' LIMIT ?"
        out += rows(sql, (*distances, unsafe, ROWS))
    unique = {row[0]: _Row(*row) for row in out}
    return list(unique.values())


def _sketched_relations(around: FloatArray, others: FloatArray) -> list[str]:
    """What the sketches allow at best, `others (n, 32)` against the query's."""
    lo, hi = around[:16], around[16:]
    low, high = others[:, :16], others[:, 16:]
    inside = np.all((lo >= low) & (hi <= high), axis=1)
    contains = np.all((lo <= low) & (hi >= high), axis=1)
    meets = np.all((lo <= high) & (hi >= low), axis=1)
    best = np.select([inside & contains, inside, contains, meets], [0, 1, 2, 3], 4)
    return [BOX_RELATIONS[i] for i in best.tolist()]


def _exact_relation(
    load: Callable[[str, str], bytes | None],
    row: _Row,
    boxes: list[tuple[FloatArray, FloatArray]],
    same: str,
    sketched: str,
    broken: Callable[[str, str, str], None],
) -> str:
    """The sketches only rank; boxes are compared in full where they may differ."""
    if row.boxes_hash == same:
        return "equal"
    if sketched == "disjoint":
        return sketched
    return box_relation(boxes, _asked(load, row, broken).boxes)


def _answers_in_part(
    load: Callable[[str, str], bytes | None],
    row: _Row,
    unsafe: str,
    names: Names,
    broken: Callable[[str, str, str], None],
) -> bool:
    """Whether a result is a proof about some conjunction of the query."""
    if row.verdict != "unsat" or row.unsafe_hash == unsafe:
        return row.verdict == "unsat"
    stored = _asked(load, row, broken).names
    return not {name for own in stored for name in own}.isdisjoint(name for own in names for name in own)


def _asked(load: Callable[[str, str], bytes | None], row: _Row, broken: Callable[[str, str, str], None]) -> Asked:
    """What a stored result is about; nothing where that does not decode."""
    found = load("boxes", row.key)
    try:
        return Asked([]) if found is None else asked_from_bytes(found)
    except StoreError as error:
        broken("boxes", row.key, str(error))
        return Asked([])


def _cost(row: _Row, kind: str, unsafe: str, distances: dict[str, float]) -> float:
    """How much work a candidate probably leaves."""
    other = 0.0 if row.unsafe_hash == unsafe else OTHER_UNSAFE_COST
    return min(distances[row.network], 20.0) + BOX_COST[kind] + other


def _rank(row: _Row, kind: str, cost: float, here: str, first: str) -> tuple[bool, int, bool, bool, float]:
    """This very query's result, then by cost; those alike by whether the box is held, then by age.

    The oldest is the likeliest original.
    """
    level = int(np.ceil(np.log2(max(cost / ALIKE, 1.0))))
    return row.key != first, level, row.network != here, kind not in ("equal", "inside"), row.created


def _sources(rows: Rows, networks: set[str]) -> dict[str, tuple[str, ...]]:
    marks = ",".join("?" * len(networks))
    found = rows(f"SELECT fingerprint, sources FROM networks WHERE fingerprint IN ({marks})", tuple(networks))
    return {name: tuple(text.split(",")) for name, text in found if isinstance(text, str)}
