"""A store filled with made-up results, and what finding and saving cost then, in CPU time.

The networks are ReLU chains of several sizes, each with copies of slightly other weights; the properties are boxes of
many sizes and places; the proofs are random trees with slopes and multipliers. Nothing in them holds: the store
does not look at that. A share of the copies is kept as references.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from mucg4.model.network import Network, Node
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.refutations import KINDS, TYPES, Refutations
from mucg4.ops.affine import Dense
from mucg4.ops.arrays import FloatArray
from mucg4.ops.piecewise import RELU
from mucg4.records import dataclass
from mucg4.store.store import Store

SHAPES = ((5, 50, 50, 50, 5), (20, 64, 64, 10), (30, 40, 2))  # layers of the networks; not measured
COPIES = 10  # networks that are alike; not measured
PROPERTIES = 8  # queries per network; not measured
LEAVES = 100  # of a proof; not measured
REFERENCES = 0.3  # share of results that are kept as references, where there is a proof to refer to; not measured
LAST = 200  # saves and matches that are measured when the store is full; not measured


@dataclass(frozen=True)
class Scale:
    """Results saved and still there, bytes in use, and CPU milliseconds: median and most of the last `LAST` of each."""

    saved: int
    kept: int
    bytes: int
    save: tuple[float, float]
    reference: tuple[float, float]
    match: tuple[float, float]


def measure(results: int, path: Path, max_bytes: int, seed: int = 0) -> Scale:
    """Save `results` made-up results into a new store at `path`, then look for those related to variants of some.

    Raises `StoreError` when the file cannot be used.
    """
    random = np.random.default_rng(seed)
    spent: dict[bool, list[float]] = {False: [], True: []}
    probes: list[Query] = []
    known: dict[str, str] = {}  # per property a stored proof
    with Store(path, max_bytes) as store:
        for number, query in enumerate(made_up(random, results)):
            if number % max(results // LAST, 1) == 0:
                probes.append(query)
            parent = known.get(query.property_hash)
            refers = parent is not None and bool(random.random() < REFERENCES)
            proof = None if refers else proof_for(query, random)
            start = time.process_time()
            if proof is None:
                assert parent is not None
                store.save_reference(query, parent, leaves=LEAVES)
            else:
                store.save(query, "unsat", proof=proof)
                known[query.property_hash] = query.key
            spent[refers].append(1e3 * (time.process_time() - start))
        kept, used = len(store.entries()), store.used_bytes()
    matched = []
    for query in probes:
        asked = _variant(query, random)
        _ = asked.network.fingerprint  # which a run needs anyway
        with Store(path, max_bytes) as store:
            start = time.process_time()
            store.related(asked)
            matched.append(1e3 * (time.process_time() - start))
    return Scale(results, kept, used, _summary(spent[False]), _summary(spent[True]), _summary(matched))


def made_up(random: np.random.Generator, count: int) -> Iterator[Query]:
    """So many queries: networks in families, each network with several properties that the whole family shares."""
    made = 0
    while True:
        shape = SHAPES[int(random.integers(len(SHAPES)))]
        base = [random.normal(size=(b, a)) / np.sqrt(a) for a, b in zip(shape[:-1], shape[1:], strict=True)]
        cases = [_case(shape[0], shape[-1], random) for _ in range(PROPERTIES)]
        for copy in range(COPIES):
            network = _chain([w * (1 + 1e-3 * copy * random.normal(size=w.shape)) for w in base])
            for case in cases:
                if made == count:
                    return
                made += 1
                yield Query((network,), (case,))


def _chain(weights: list[FloatArray]) -> Network:
    nodes = [Node(None, (), "x", (weights[0].shape[1],))]
    for k, w in enumerate(weights):
        weight = w.astype(np.float32).astype(np.float64)
        nodes.append(Node(Dense(weight, np.zeros(len(w))), (len(nodes) - 1,), f"z{k}", (len(w),)))
        if k + 1 < len(weights):
            nodes.append(Node(RELU, (len(nodes) - 1,), f"h{k}", (len(w),)))
    return Network(tuple(nodes))


def _variant(query: Query, random: np.random.Generator) -> Query:
    weights = [node.op.weight for node in query.network.nodes if isinstance(node.op, Dense)]
    return Query((_chain([w * (1 + 1e-3 * random.normal(size=w.shape)) for w in weights]),), query.cases)


def _case(inputs: int, outputs: int, random: np.random.Generator) -> Case:
    middle, half = random.uniform(-1, 1, size=inputs), random.uniform(0.01, 0.5)
    lower, upper = (tuple(Fraction(float(np.float32(v))) for v in middle + side * half) for side in (-1, 1))
    level = Fraction(int(random.integers(8)))
    constraint: tuple[dict[int, Fraction], dict[int, Fraction], Fraction, bool] = ({}, {0: Fraction(1)}, level, False)
    return Case(Box(lower, upper), (Conjunction.build([constraint], inputs, outputs),))


def proof_for(query: Query, random: np.random.Generator) -> Proof:
    """A random tree over the inputs and first neurons, with a refutation of each leaf."""
    network, count = query.network, 2 * LEAVES - 1
    inner = np.arange(count) < LEAVES - 1
    first = network.pre_activations[0]
    left = np.where(inner, 2 * np.arange(count) + 1, -1).astype(np.int32)
    node = np.where(inner, first, -1).astype(np.int32)
    index = np.where(inner, random.integers(network.nodes[first].size, size=count), -1).astype(np.int32)
    flags = np.arange(count) == 0, np.zeros(count, dtype=bool)
    right = np.where(inner, left + 1, -1).astype(np.int32)
    tree = Tree(node, index, np.zeros(count), left, right, *flags, _refutations(query, random), 0, (0,))
    return Proof(network.fingerprint, query.property_hash, (tree,))


def _refutations(query: Query, random: np.random.Generator) -> Refutations:
    at = np.arange(LEAVES - 1, 2 * LEAVES - 1)
    first = query.network.pre_activations[0]
    size = query.network.nodes[first].size
    one = np.ones(LEAVES)
    held = {
        "at": at,
        "margin": random.random(LEAVES),
        "weight_count": one,
        "weights": one,
        "group_count": one,
        "slope_node": first * one,
        "slope_count": size * one,
        "slope_index": np.tile(np.arange(size), LEAVES),
        "slope_value": random.integers(256, size=size * LEAVES),
        "beta_count": one,
        "literal": at,
        "beta": random.random(LEAVES),
        "core_count": -one,
    }
    empty = ("cut", "multiplier", "core")
    return Refutations(
        **{
            name: np.asarray(held.get(name, np.zeros(0 if name in empty else LEAVES)), dtype=TYPES[name])
            for name in KINDS
        }
    )


def _summary(spent: list[float]) -> tuple[float, float]:
    last = spent[-LAST:]
    return (float(np.median(last)), max(last)) if last else (0.0, 0.0)
