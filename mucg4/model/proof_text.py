"""The text form of proofs (`mucg4.model.proof`): what `--proof` files hold.

JSON (gzip when the name ends in .gz) with the fields of the dataclasses of a proof; flags are strings of
0 and 1. The arrays of tightenings are base64 of zlib-compressed little-endian bytes, row by row: `index` and `literals`
int32, `side` int8, `weights`, `beta` and `cut_weights` float64, slopes and shares uint8. Version 1 had no tightenings,
version 2 no cuts. A file is validated when it is parsed: types, ranks, lengths and ranges of all values, and at most
LARGEST bytes of text and of unpacked arrays.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import numpy as np

from mucg4.errors import ProofError
from mucg4.limits.foreign import (
    Packed,
    fields_of,
    flags,
    inflate,
    items,
    json_value,
    member,
    number,
    numbers,
    shallow,
    text_of,
    whole,
    wholes,
)
from mucg4.model.proof import Alpha, Cuts, Proof, Refutation, Tightening, Tree
from mucg4.ops.arrays import AnyArray, FloatArray

FORMAT = "mucg4-proof"
VERSION = 3  # of the format; given
READABLE = (1, 2, 3)  # a version is the next one without what that added; given
LARGEST = 2**29  # most bytes of a proof's text, and of its packed arrays together; not measured


def _tree_to_json(tree: Tree) -> dict[str, Any]:
    plain = {k: getattr(tree, k).tolist() for k in ("node", "index", "threshold", "left", "right")}
    flags = {k: "".join("1" if v else "0" for v in getattr(tree, k)) for k in ("refresh", "clip")}
    rows = []
    for r in tree.refutations:
        row: dict[str, Any] = {"at": r.at, "conjunction": r.conjunction, "weights": list(r.weights), "margin": r.margin}
        if r.alpha:
            row["alpha"] = [{"node": a.node, "index": a.index.tolist(), "value": a.value.tolist()} for a in r.alpha]
        if r.beta:
            row["beta"] = [list(b) for b in r.beta]
        if r.cuts is not None:
            row["cuts"] = [r.cuts[0].tolist(), r.cuts[1].tolist()]
        if r.core is not None:
            row["core"] = list(r.core)
        rows.append(row)
    covers = None if tree.conjunctions is None else list(tree.conjunctions)
    tightenings = [_tightening_to_json(t) for t in tree.tightenings]
    out = {"case": tree.case, "conjunctions": covers, **plain, **flags, "refutations": rows}
    if tightenings:
        out["tightenings"] = tightenings
    if tree.cuts:
        out["cuts"] = [_cuts_to_json(c) for c in tree.cuts]
    return out


def _packed(values: AnyArray, dtype: str) -> str:
    return base64.b64encode(zlib.compress(np.ascontiguousarray(values, dtype=dtype).tobytes(), 6)).decode()


def _cuts_to_json(c: Cuts) -> dict[str, Any]:
    return {
        "node": int(c.node),
        "index": _packed(c.index, "<i4"),
        "shares": _slopes_to_json(c.shares),
        "after": c.after,
    }


def _cuts_from_json(value: Any, packed: Packed) -> Cuts:
    """Raises as `_tightening_from_json`."""
    data = fields_of(value, "an entry of cuts")
    index = packed.array(member(data, "index"), "<i4", "index of cuts")
    shares = _slopes_from_json(member(data, "shares"), len(index), packed)
    return Cuts(whole(member(data, "node"), "node"), index, shares, whole(member(data, "after"), "after"))


def _slopes_to_json(slopes: tuple[Alpha, ...]) -> list[dict[str, Any]]:
    return [{"node": int(a.node), "index": _packed(a.index, "<i4"), "value": _packed(a.value, "<u1")} for a in slopes]


def _slopes_from_json(value: Any, count: int, packed: Packed) -> tuple[Alpha, ...]:
    out = []
    for a in items(value, "slopes"):
        data = fields_of(a, "an entry of slopes")
        neurons = packed.array(member(data, "index"), "<i4", "index of slopes")
        values = packed.array(member(data, "value"), "<u1", "value of slopes", count * len(neurons))
        out.append(Alpha(whole(member(data, "node"), "node"), neurons, values.reshape(count, len(neurons))))
    return tuple(out)


def _tightening_to_json(t: Tightening) -> dict[str, Any]:
    out = {
        "at": int(t.at),
        "conjunction": int(t.conjunction),
        "node": int(t.node),
        "index": _packed(t.index, "<i4"),
        "side": _packed(t.side, "<i1"),
        "weights": _packed(t.weights, "<f8"),
        "alpha": _slopes_to_json(t.alpha),
        "literals": _packed(t.literals, "<i4"),
        "beta": _packed(t.beta, "<f8"),
    }
    if len(t.cuts):
        out["cuts"], out["cut_weights"] = _packed(t.cuts, "<i4"), _packed(t.cut_weights, "<f8")
    return out


def _tightening_from_json(value: Any, packed: Packed) -> Tightening:
    """Raises `ValueError` where the values do not make rows, `ProofError` where rows make no sense."""
    data = fields_of(value, "a tightening")
    index = packed.array(member(data, "index"), "<i4", "index of a tightening")
    literals = packed.array(member(data, "literals"), "<i4", "literals of a tightening")
    cuts = packed.array(data["cuts"], "<i4", "cuts of a tightening") if "cuts" in data else np.zeros(0, dtype=np.int32)
    weights = packed.array(member(data, "weights"), "<f8", "weights of a tightening")
    count = len(index)
    if not count or len(weights) % count:
        raise ProofError("a tightening has no rows, or not one list of weights per row")

    def rows(name: str, width: int) -> FloatArray:
        return packed.array(member(data, name), "<f8", name, count * width).reshape(count, width)

    return Tightening(
        at=whole(member(data, "at"), "at"),
        conjunction=whole(member(data, "conjunction"), "conjunction"),
        node=whole(member(data, "node"), "node"),
        index=index,
        side=packed.array(member(data, "side"), "<i1", "side", count),
        weights=weights.reshape(count, -1),
        alpha=_slopes_from_json(member(data, "alpha"), count, packed),
        literals=literals,
        beta=rows("beta", len(literals)),
        cuts=cuts,
        cut_weights=rows("cut_weights", len(cuts)) if len(cuts) else np.zeros((0, 0)),
    )


def _alpha_from_json(value: Any) -> Alpha:
    data = fields_of(value, "an entry of alpha")
    index = wholes(member(data, "index"), "index of alpha")
    value = wholes(member(data, "value"), "value of alpha", np.uint8, high=255)
    if len(index) != len(value):
        raise ValueError("index and value of alpha differ in length")
    return Alpha(whole(member(data, "node"), "node"), index, value)


def _beta_from_json(value: Any) -> tuple[int, float]:
    pair = items(value, "an entry of beta")
    if len(pair) != 2:
        raise ValueError("an entry of beta is no pair")
    return whole(pair[0], "a literal of beta"), number(pair[1], "a multiplier")


def _refutation_from_json(value: Any) -> Refutation:
    data = fields_of(value, "a refutation")
    cuts = None
    if "cuts" in data:
        pair = items(data["cuts"], "cuts of a refutation")
        if len(pair) != 2:
            raise ValueError("cuts of a refutation are no pair of lists")
        cuts = wholes(pair[0], "cuts of a refutation"), numbers(pair[1], "multipliers of cuts")
    return Refutation(
        at=whole(member(data, "at"), "at"),
        conjunction=whole(member(data, "conjunction"), "conjunction"),
        weights=tuple(numbers(member(data, "weights"), "weights").tolist()),
        alpha=tuple(_alpha_from_json(a) for a in items(data.get("alpha", []), "alpha")),
        beta=tuple(_beta_from_json(b) for b in items(data.get("beta", []), "beta")),
        core=tuple(wholes(data["core"], "core").tolist()) if "core" in data else None,
        margin=number(member(data, "margin"), "margin", finite=False),
        cuts=cuts,
    )


def _tree_from_json(value: Any, packed: Packed) -> Tree:
    data = fields_of(value, "a tree")
    covers = member(data, "conjunctions")
    node, index, left, right = (wholes(member(data, k), k, low=-1) for k in ("node", "index", "left", "right"))
    if len(index) == len(left) and np.any(index[left >= 0] < 0):
        raise ValueError("a literal has a negative index")
    return Tree(
        node,
        index,
        numbers(member(data, "threshold"), "threshold"),
        left,
        right,
        flags(member(data, "refresh"), "refresh"),
        flags(member(data, "clip"), "clip"),
        tuple(_refutation_from_json(r) for r in items(member(data, "refutations"), "refutations")),
        whole(member(data, "case"), "case"),
        None if covers is None else tuple(wholes(covers, "conjunctions").tolist()),
        tuple(_tightening_from_json(t, packed) for t in items(data.get("tightenings", []), "tightenings")),
        tuple(_cuts_from_json(c, packed) for c in items(data.get("cuts", []), "cuts")),
    )


def to_text(proof: Proof, more: dict[str, Any] | None = None) -> str:
    """The file format as text; `more` are further keys of the object, which no proof is made of."""
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "network": proof.network,
            "property": proof.property,
            "source": proof.source,
            "notes": proof.notes,
            "trees": [_tree_to_json(t) for t in proof.trees],
            **(more or {}),
        },
        separators=(",", ":"),
    )


def from_text(text: str | bytes, arrays: int = LARGEST) -> Proof:
    """Inverse of `to_text`; raises `ProofError` for anything malformed or of another version.

    What comes back has arrays of the right rank, type and length, and whole numbers that fit int32; whether they mean
    something for a network is seen where they are used. All packed arrays together hold at most `arrays` bytes.
    """
    return parsed(text, arrays)[0]


def parsed(text: str | bytes, arrays: int) -> tuple[Proof, dict[str, Any]]:
    """The proof in a text, and the whole object that states it; arguments and errors as for `from_text`."""
    try:
        data = json_value(text)
        if type(data) is not dict or data.get("format") != FORMAT:
            raise ProofError("not a mucg4 proof")
        version = whole(member(data, "version"), "version", high=10**9)
        if version not in READABLE:
            raise ProofError(f"proof format version {version} is not supported (this is {VERSION})")
        packed = Packed(arrays)
        trees = tuple(_tree_from_json(t, packed) for t in items(member(data, "trees"), "trees"))
        network, prop, source = (text_of(member(data, k), k) for k in ("network", "property", "source"))
        notes = shallow(fields_of(member(data, "notes"), "notes"), "notes")
        return Proof(network, prop, trees, source, notes), data
    except (ValueError, OverflowError) as error:
        raise ProofError(f"malformed proof: {error}") from error
    except MemoryError:
        raise ProofError("malformed proof: too large for the memory") from None


def from_bytes(blob: bytes, most: int = LARGEST) -> Proof:
    """The proof in a zlib-compressed text, as stores once held them.

    Raises `ProofError`, also for more than `most` bytes of text or of arrays.
    """
    try:
        text = inflate(blob, most)
    except ValueError as error:
        raise ProofError(f"malformed proof: {error}") from error
    return from_text(text, most)
