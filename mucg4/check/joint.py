"""What the joint network of a 2.0 query computes, found without the code that made it.

Every node has to be a node of one of the declared networks, with the same operator on the same values, or a movement
of values (Index, Concat), a product of them, or a dense map of free inputs to linked ones. The values that are no inner
ones of a network then are products of linked inputs and declared outputs, and are followed as such, exactly. A linked
input that is claimed to be given by others is `sum c x_i + constant` and a remainder, which is the free input in its
place and nothing else: what range the remainder needs is found by `mucg4.check.vnnlib2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import numpy as np

from mucg4.check.vnnlib import Refusal
from mucg4.model.joint import Derived
from mucg4.model.network import Network
from mucg4.ops.affine import Concat, Dense, Index
from mucg4.ops.bilinear import Product
from mucg4.ops.curves import Square

MOST_DEGREE = 64  # of a monomial; not measured, above what the first reader makes

REMAINDER = 1 << 50  # codes of remainders: this and the input; given: above those of inputs

Code = tuple[int, ...]  # sorted: linked input i is i, declared output j is -1 - j
Meaning = list[Code]  # per value
Definitions = dict[tuple[frozenset[tuple[int, float]], float], int]  # affine forms of free inputs, by what they give


def meaning(
    network: Network,
    parts: Sequence[Network],
    places: Sequence[Sequence[int]],
    inputs: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    derived: Sequence[Derived] = (),
) -> Meaning:
    """What the values of the last node are.

    `inputs[p]` are the linked inputs that part p has to read, `outputs[p]` the declared outputs that it computes,
    `places[p]` where its nodes are claimed to stand, `derived` which inputs are claimed to be given. Raises `Refusal`
    where that is not so.
    """
    if len(places) != len(parts):
        raise Refusal("the joint network does not tell where its parts are")
    owner: dict[int, tuple[int, int]] = {}
    starts: dict[int, list[int]] = {}
    for p, (part, at) in enumerate(zip(parts, places, strict=True)):
        if len(at) != max(2, len(part.nodes)):
            raise Refusal("the joint network does not tell where all nodes of a part are")
        starts.setdefault(at[0], []).append(p)
        for i, k in enumerate(at[1:], 1):
            if k in owner:
                raise Refusal("two nodes of parts stand in one place")
            owner[k] = p, i
    if not all(0 <= k < len(network.nodes) for at in places for k in at):
        raise Refusal("a part stands outside the joint network")
    free, definitions = _free(network.nodes[0].size, derived)
    known: dict[int, Meaning | None] = {}
    for k, node in enumerate(network.nodes):
        if k in owner:
            p, i = owner[k]
            copied = len(parts[p].nodes) == 1  # outputs that are the inputs have a copy of these
            if copied and _moved(k, node, known, free, definitions) != known.get(places[p][0]):
                raise Refusal("the outputs of a part are not its inputs")
            if not copied and not _is_of(node, parts[p].nodes[i], [places[p][j] for j in parts[p].nodes[i].inputs], k):
                raise Refusal(f"node {k} of the joint network is not that of its part")
            ends = copied or i == len(parts[p].nodes) - 1
            known[k] = [(-1 - j,) for j in outputs[p]] if ends else None
            if ends and len(outputs[p]) != node.size:
                raise Refusal("a part has another number of outputs")
        else:
            known[k] = _moved(k, node, known, free, definitions)
        for p in starts.get(k, ()):
            if known[k] != [(i,) for i in inputs[p]] or parts[p].input_size != len(inputs[p]):
                raise Refusal("a part of the joint network reads other inputs than its own")
    last = known[len(network.nodes) - 1]
    if last is None:
        raise Refusal("the joint network ends inside a part")
    if any(m[-1] >= REMAINDER for m in last):
        raise Refusal("the joint network ends with a remainder")
    return last


def _free(count: int, derived: Sequence[Derived]) -> tuple[Meaning, Definitions]:
    """What free inputs are, and which affine forms of them are linked inputs."""
    given = {d.target: d for d in derived}
    if len(given) != len(derived) or not all(0 <= t < count for t in given):
        raise Refusal("inputs are given twice, or are none")
    free: Meaning = [(REMAINDER + i if i in given else i,) for i in range(count)]
    definitions: Definitions = {(frozenset([(i, 1.0)]), 0.0): i for i in range(count) if i not in given}
    for t, d in given.items():
        terms = dict(d.terms)
        if len(terms) != len(d.terms) or any(i in given or not 0 <= i < count or not c for i, c in terms.items()):
            raise Refusal("an input is given by others that are given, or are none")
        if not all(map(isfinite, (d.constant, *terms.values()))):
            raise Refusal("an input is given by numbers that are not finite")
        definitions[frozenset([*terms.items(), (REMAINDER + t, 1.0)]), d.constant] = t
    return free, definitions


def _is_of(node: Any, original: Any, inputs: list[int], k: int) -> bool:
    """Whether a node is a part's own one: the same operator on the same, earlier, nodes."""
    earlier = all(j < k for j in inputs)
    return earlier and list(node.inputs) == inputs and node.size == original.size and _same(node.op, original.op)


def _moved(k: int, node: Any, known: Mapping[int, Meaning | None], free: Meaning, definitions: Definitions) -> Meaning:
    """A node between the parts."""
    if node.op is None:
        if k:
            raise Refusal("an input inside the joint network")
        return free
    given = [known[i] for i in node.inputs]
    values = [v for v in given if v is not None]
    if len(values) != len(given):
        raise Refusal(f"node {k} of the joint network reads the inside of a part")
    made: Meaning
    if type(node.op) is Index and len(values) == 1 and len(values[0]) == node.op.size:
        made = [values[0][int(i)] for i in node.op.index]
    elif type(node.op) is Concat and tuple(map(len, values)) == tuple(node.op.sizes):
        made = [m for v in values for m in v]
    elif type(node.op) is Dense and len(values) == 1:
        made = _given(k, node.op, values[0], definitions)
    elif type(node.op) is Product and len(values) == 2 and len(values[0]) == len(values[1]):
        made = [tuple(sorted(a + b)) for a, b in zip(*values, strict=True)]
    elif type(node.op) is Square and len(values) == 1:
        made = [tuple(sorted(a + a)) for a in values[0]]
    else:
        raise Refusal(f"node {k} of the joint network is {getattr(node.op, 'kind', 'no operator')}, of no part")
    if len(made) != node.size or max(map(len, made), default=0) > MOST_DEGREE:
        raise Refusal(f"node {k} of the joint network has another size")
    return made


def _given(k: int, op: Dense, values: Meaning, definitions: Definitions) -> Meaning:
    """The linked inputs that an exact dense map of different values makes of them."""
    exact = op.offset_magnitude is None and op.slack is None and not op.roundings
    names = [m[0] for m in values if len(m) == 1]
    if not exact or len(set(names)) < len(values) or op.weight.shape != (len(op.offset), len(values)):
        raise Refusal(f"node {k} of the joint network is no exact map of its inputs")
    made: Meaning = []
    for row, offset in zip(np.asarray(op.weight), np.asarray(op.offset).tolist(), strict=True):
        at = np.flatnonzero(row).tolist()
        found = definitions.get((frozenset((names[j], float(row[j])) for j in at), float(offset)))
        if found is None:
            raise Refusal(f"node {k} of the joint network computes something else than inputs")
        made.append((found,))
    return made


def _same(a: Any, b: Any) -> bool:
    """Whether two operators are the same function."""
    if a is b:
        return a is not None
    if type(a) is not type(b) or a is None:
        return False
    mine, other = vars(a), vars(b)
    names = set(a.__dataclass_fields__) if hasattr(a, "__dataclass_fields__") else set()
    return bool(names) and all(_equal(mine.get(n), other.get(n)) for n in names)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return (
            isinstance(a, np.ndarray)
            and isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and bool(np.array_equal(a, b))
        )
    return type(a) is type(b) and bool(a == b)
