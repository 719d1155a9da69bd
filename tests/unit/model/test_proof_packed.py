"""The packed form of proofs: it reads back exactly, and nothing that is malformed gets through."""

from __future__ import annotations

import json
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from campaign.mutants import STRANGE, pick
from campaign.packed import closed, mutate_packed, opened

from mucg4.errors import ProofError
from mucg4.model.proof import Alpha, Cuts, Proof, Refutation, Tightening, Tree, keep_cuts, single_leaf
from mucg4.model.proof_packed import from_packed, head_of, is_packed, to_packed, unpacked_bytes
from mucg4.model.proof_text import from_text, to_text
from mucg4.model.refutations import NO_CORE, Refutations
from mucg4.store.related import stored_proof

INT = np.int32


def slopes(rng, shape=()):
    return Alpha(
        int(rng.integers(1, 5)),
        rng.integers(0, 9, size=3).astype(INT),
        rng.integers(0, 256, size=(*shape, 3)).astype(np.uint8),
    )


def refutation(rng, at):
    cuts = (rng.integers(0, 4, size=2).astype(INT), rng.random(2)) if rng.random() < 0.5 else None
    return Refutation(
        at,
        int(rng.integers(2)),
        tuple(rng.random(int(rng.integers(1, 4))).tolist()),
        tuple(slopes(rng) for _ in range(int(rng.integers(3)))),
        tuple((int(k), float(v)) for k, v in zip(rng.integers(1, 5, size=2), rng.random(2), strict=True)),
        (None, (), (1, 2))[int(rng.integers(3))],
        float(rng.normal()),
        cuts,
    )


def tightening(rng, at):
    rows, literals, cuts = (int(v) for v in rng.integers(1, 4, size=3))
    return Tightening(
        at, 0, 2, rng.integers(0, 9, size=rows).astype(INT), rng.choice([-1, 1], size=rows).astype(np.int8),
        rng.random((rows, 2)), tuple(slopes(rng, (rows,)) for _ in range(int(rng.integers(3)))),
        rng.integers(1, 5, size=literals).astype(INT), rng.random((rows, literals)),
        rng.integers(0, 4, size=cuts).astype(INT), rng.random((rows, cuts)),
    )  # fmt: skip


def tree(rng, splits):
    n = 2 * splits + 1
    inner = np.arange(n) < splits
    left = np.where(inner, 2 * np.arange(n) + 1, -1).astype(INT)
    flags = rng.random(n) < 0.5, rng.random(n) < 0.5
    found = tuple(refutation(rng, k) for k in range(n) if rng.random() < 0.8)
    node, index = (np.where(inner, v, -1).astype(INT) for v in (1, 3))
    return Tree(
        node, index, rng.normal(size=n), left, np.where(inner, left + 1, -1).astype(INT), *flags, found,
        int(rng.integers(3)), (0,) if splits % 2 else None,
        tuple(tightening(rng, k) for k in range(n) if rng.random() < 0.3),
        tuple(Cuts(3, rng.integers(0, 9, size=2).astype(INT), (slopes(rng, (2,)),), k) for k in range(splits % 3)),
    )  # fmt: skip


def proof(seed):
    rng = np.random.default_rng(seed)
    return Proof("n", "p", tuple(tree(rng, k) for k in range(seed % 5)), "s", {"a": [1, {"b": None}]})


@pytest.mark.parametrize("seed", range(10))
def test_a_proof_reads_back_exactly(seed):
    made = proof(seed)
    for level in (None, 0, 1):
        back = from_packed(to_packed(made, level))
        assert to_text(back) == to_text(made)
        assert to_packed(back) == to_packed(made)
        for one, other in zip(made.trees, back.trees, strict=True):
            assert one.node.dtype == other.node.dtype and other.refresh.dtype == bool
            assert not any(a.flags.writeable for a in (other.node, other.clip, other.table.weights))
    assert to_text(from_packed(to_packed(from_text(to_text(made)), 1))) == to_text(made)


def test_doubles_that_no_narrower_type_holds_are_kept():
    odd = (0.1, 1e-320, 1e300, float("nan"))
    made = Proof("n", "p", (single_leaf([Refutation(0, 0, odd, margin=float("inf"))]),))
    for level in (None, 1):
        (back,) = from_packed(to_packed(made, level)).trees[0].refutations
        np.testing.assert_array_equal(back.weights, odd)
        assert back.margin == float("inf")


def test_the_head_is_read_without_unpacking():
    blob = to_packed(proof(4), 1)
    head = head_of(blob[: len(blob) - 5])  # the body is damaged
    assert (head.network, head.property, head.source, head.leaves) == ("n", "p", "s", proof(4).leaves)
    assert unpacked_bytes(blob) == len(to_packed(proof(4))) - head_of(to_packed(proof(4))).start
    with pytest.raises(ProofError, match="damaged"):
        from_packed(blob[: len(blob) - 5])


def test_old_stores_are_read():
    made = proof(3)
    old = zlib.compress(to_text(made).encode(), 6)
    assert not is_packed(old) and is_packed(to_packed(made))
    head, columns = opened(to_packed(made, 1))
    zlibbed = closed({**head, "packing": "zlib"}, columns)
    assert head["packing"] == "zstd"
    for blob in (old, zlibbed, to_packed(made, 1), to_packed(made)):
        assert to_text(stored_proof(blob)) == to_text(made)


@pytest.mark.parametrize("seed", range(300))
def test_mutants_are_proofs_or_malformed(seed):
    rng = np.random.default_rng(seed)
    mutant = mutate_packed(to_packed(proof(seed % 5), (None, 1)[seed % 2]), rng, lambda rng: pick(rng, STRANGE))
    try:
        back = from_packed(mutant)
    except ProofError as error:
        assert "\n" not in str(error)
        return
    assert from_packed(to_packed(back)).leaves == back.leaves
    try:
        from_text(to_text(back))  # what is valid in one form is so in the other
    except ProofError as error:
        assert "finite" in str(error)


def changed(edit, restate=True):
    head, columns = opened(to_packed(proof(3), 1))
    edit(head, columns)
    return closed(head, columns, restate)


@pytest.mark.parametrize(
    ("edit", "restate", "message"),
    [
        (lambda h, c: h.update(format="x"), True, "not a packed"),
        (lambda h, c: h.update(version=2), True, "version 2 is not supported"),
        (lambda h, c: h.update(packing="zip"), True, "packed in an unknown way"),
        (lambda h, c: h.update(leaves=99), True, "number of leaves"),
        (lambda h, c: h.update(size=h["size"] + 1), False, "do not fit its size"),
        (lambda h, c: c.update({"tree.nodes": c["tree.nodes"] - 1}), True, "differ in length"),
        (lambda h, c: c.update({"tree.refutations": -c["tree.refutations"]}), True, "negative number"),
        (lambda h, c: c.update({"refutation.beta_count": c["refutation.beta_count"] + 1}), True, "does not fit"),
        (lambda h, c: c.update({"refutation.at": -1 - c["refutation.at"]}), True, "negative number"),
        (lambda h, c: c.update({"node.refresh": c["node.refresh"] + 1}), True, "neither 0 nor 1"),
        (lambda h, c: c.update({"node.left": c["node.left"] - 1}), True, "out of range"),
        (lambda h, c: c.update({"node.left": c["node.left"][1:]}), True, "differ in length"),
        (lambda h, c: c.update({"node.left": c["node.left"].astype("<f4")}), True, "another type"),
        (lambda h, c: c.update({"node.left": c["node.left"].astype("<i8")}), True, "another type"),
        (lambda h, c: c.update({"row.side": np.append(c["row.side"], c["row.side"])}), True, "too many entries"),
        (lambda h, c: c.update({"slope.count": c["slope.count"] + 5}), True, "too few entries"),
        (lambda h, c: c.update({"nonsense": np.zeros(1)}), True, "unknown column"),
        (lambda h, c: h["columns"].update({"node.left": ["i4", 2**70]}), False, "not from 0 to"),
        (lambda h, c: h["columns"].update({"node.left": ["i4", 2**31 - 1]}), False, "when unpacked"),
        (lambda h, c: h["columns"].update({"node.left": 3}), False, "no list"),
    ],
)
def test_what_does_not_fit_is_refused(edit, restate, message):
    with pytest.raises(ProofError, match=message):
        from_packed(changed(edit, restate))


@pytest.mark.parametrize("blob", [b"", b"mp1\n", b"mp1\n\xff\xff\xff\x7f{}", b"mp1\n\x02\0\0\0{}", b"x" * 100])
def test_bytes_that_are_no_proof(blob):
    with pytest.raises(ProofError):
        from_packed(blob)


def test_a_bomb_takes_little_memory():
    bombs = [
        changed(lambda h, c: c.update({"refutation.weights": np.zeros(2**22)})),
        changed(lambda h, c: c.update({"refutation.core": np.zeros(2**22)}), restate=False),
    ]
    tracemalloc.start()
    for bomb in bombs:
        with pytest.raises(ProofError, match="more than"):
            from_packed(bomb, 1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_a_deep_or_long_head_is_refused():
    deep = json.loads('{"a":' * 900 + "1" + "}" * 900)
    with pytest.raises(ProofError, match="too deeply"):
        from_packed(changed(lambda h, c: h.update(notes=deep)))
    with pytest.raises(ProofError, match="longer than it may be"):
        from_packed(b"mp1\n" + (2**24).to_bytes(4, "little") + b" " * 2**24)


# --- the arrays ------------------------------------------------------------------------------------------------


def test_refutations_are_a_sequence_of_single_ones():
    rng = np.random.default_rng(1)
    single = tuple(refutation(rng, k) for k in range(7))
    table = Refutations.of(single)
    assert (
        Refutations.of(table) is table and len(table) == 7 and len(Refutations.of(())) == 0 and not Refutations.of(())
    )
    assert [r.at for r in table] == list(range(7)) and table[-1].at == 6 and [r.at for r in table[2:4]] == [2, 3]
    with pytest.raises(IndexError):
        table[7]
    for one, other in zip(single, table, strict=True):
        assert (one.weights, one.beta, one.core, one.margin) == (other.weights, other.beta, other.core, other.margin)
        assert [a.node for a in one.alpha] == [a.node for a in other.alpha]
        assert (one.cuts is None) == (other.cuts is None)
    again = Refutations.of(tuple(table))
    assert all(np.array_equal(getattr(again, f), getattr(table, f)) for f in vars(again) if f[0] != "_" and f != "ends")


def test_parts_join_to_the_whole():
    rng = np.random.default_rng(2)
    table = Refutations.of([refutation(rng, k) for k in range(9)])
    parts = table.split([2, 0, 6, 1])
    assert [len(p) for p in parts] == [2, 0, 6, 1]
    back = Refutations.join(parts)
    assert to_text(Proof("", "", (one_tree(back),))) == to_text(Proof("", "", (one_tree(table),)))
    for counts in ([9, 1], [10, -1], []):
        with pytest.raises(ProofError, match="as many"):
            table.split(counts)
    bare = table.without("group_count", "core_count", "beta_count", "cut_count")
    assert all(r.alpha == () and r.core is None and r.beta == () and r.cuts is None for r in bare)
    assert np.all(bare.core_count == NO_CORE) and [r.weights for r in bare] == [r.weights for r in table]


def one_tree(table):
    made = tree(np.random.default_rng(0), 8)
    return replace(made, refutations=table)


@pytest.mark.parametrize(
    "bad",
    [
        Refutation(0, 0, (1.0,), beta=((2**40, 1.0),)),
        Refutation(0, 2**31, (1.0,)),
        Refutation(0, -1, (1.0,)),
        Refutation(0, 0, (10**400,)),
        Refutation(0, 0, (1.0,), (Alpha(1, np.zeros(2, dtype=INT), np.zeros(3, dtype=np.uint8)),)),
        Refutation(0, 0, (1.0,), (Alpha(1, np.zeros((1, 2), dtype=INT), np.zeros((1, 2), dtype=np.uint8)),)),
        Refutation(0, 0, (1.0,), (Alpha(1, np.array([2**40]), np.zeros(1, dtype=np.uint8)),)),
        Refutation(0, 0, (1.0,), (Alpha(1, np.zeros(1, dtype=INT), np.array([300])),)),
    ],
)
def test_what_fits_in_no_arrays_is_a_proof_error(bad):
    with pytest.raises(ProofError):
        to_packed(Proof("", "", (single_leaf([bad]),)))


def test_cuts_that_are_left_out_are_renumbered():
    rng = np.random.default_rng(5)
    made = replace(tree(rng, 4), conjunctions=(0,))
    keep = np.array([False, True])
    kept = keep_cuts(replace(made, cuts=made.cuts[:1]), keep)
    for one, other in zip(made.refutations, kept.refutations, strict=True):
        stay = [] if one.cuts is None else [v for c, v in zip(*one.cuts, strict=True) if c == 1]
        assert (other.cuts is None) == (not stay)
        if stay:
            assert other.cuts[0].tolist() == [0] * len(stay) and other.cuts[1].tolist() == stay
