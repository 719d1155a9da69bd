"""What others may hand in: proofs, cases and archives of any content end in one clear line, bombs in little memory."""

from __future__ import annotations

import base64
import copy
import gzip
import json
import re
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from effort import effort
from examples import dense, query_of, text
from mutants import mutate_json, proof_texts

import mucg4.limits.foreign as foreign
from mucg4.check.walk import check
from mucg4.cli.main import main
from mucg4.errors import BudgetError, InputError, ProofError
from mucg4.lab.case import run_case
from mucg4.limits.budget import Budget
from mucg4.model.proof_file import read_proof
from mucg4.model.proof_text import from_bytes, from_text, to_text
from mucg4.read.case import save_case
from mucg4.read.instance import read_bytes, read_text
from mucg4.settings import Settings
from mucg4.verify import verify

BOX = [(-1.0, 1.0)] * 3


def network() -> bytes:
    random = np.random.default_rng(7)
    sizes = (3, 6, 6, 1)
    return dense(
        [(random.normal(size=(b, a)) / np.sqrt(a), np.zeros(b)) for a, b in zip(sizes, sizes[1:], strict=False)]
    )


@pytest.fixture(scope="module")
def parts() -> tuple[bytes, float, dict[str, Any]]:
    """The network's bytes, a threshold it stays below, and a proof that it does, with slopes, tightenings and cuts."""
    onnx = network()
    values = query_of(onnx, text(BOX, 1, "(>= Y_0 1000)")).network(np.random.default_rng(0).uniform(-1, 1, (20000, 3)))
    top = float(values.max()) + 0.02 * float(np.ptp(values))
    for bound in (top, top + 0.1 * float(np.ptp(values))):
        query = query_of(onnx, text(BOX, 1, f"(>= Y_0 {bound!r})"))
        found = verify(query, Settings(split="phase", workers=1, compact=False), None, effort())
        if found.word == "unsat":
            return onnx, bound, json.loads(to_text(found.proof))
    raise AssertionError("no proof to mutate")


# --- one value at a time ----------------------------------------------------------------------------------------

ODD: list[Any] = [None, True, "1", 1.5, -1, 2**31, 10**400, float("nan"), [], [[1]], {}, {"a": 1}]
PLACES: dict[str, Callable[[dict[str, Any]], list[tuple[Any, Any]]]] = {
    "head": lambda p: [(p, k) for k in ("format", "version", "network", "trees", "source", "notes")],
    "tree": lambda p: [(p["trees"][0], k) for k in p["trees"][0] if k != "conjunctions"],
    "element": lambda p: [(p["trees"][0][k], 0) for k in ("node", "index", "threshold", "left", "right")],
    "refutation": lambda p: [(r, k) for r in p["trees"][0]["refutations"][:1] for k in r if k != "margin"],
    "alpha": lambda p: [(a, k) for a in first(p, "alpha") for k in ("node", "index", "value")],
    "beta": lambda p: [(b, k) for b in first(p, "beta") for k in (0, 1)],
    "tightening": lambda p: [(t, k) for t in p["trees"][0].get("tightenings", [])[:1] for k in t],
    "cuts": lambda p: [(c, k) for c in p["trees"][0].get("cuts", [])[:1] for k in c],
}  # fmt: skip


def first(p: dict[str, Any], name: str) -> list[Any]:
    """The first entry of `name` of any refutation."""
    return [r[name][0] for t in p["trees"] for r in t["refutations"] if r.get(name)][:1]


@pytest.mark.parametrize("place", PLACES)
def test_values_of_the_wrong_type_rank_or_range_are_malformed(parts: Any, place: str) -> None:
    onnx, bound, proof = parts
    query = query_of(onnx, text(BOX, 1, f"(>= Y_0 {bound!r})"))
    assert PLACES[place](proof) or place in ("tightening", "cuts", "beta", "alpha")
    for number in range(len(PLACES[place](proof))):
        for odd in ODD:
            changed = copy.deepcopy(proof)
            holder, key = PLACES[place](changed)[number]
            if type(odd) is type(holder[key]) and odd in ([], {}, -1):
                continue  # legal there
            holder[key] = odd
            try:
                report = check(from_text(json.dumps(changed)), query)
            except ProofError as error:
                assert "\n" not in str(error) and len(str(error)) < 200
            else:  # of the right type, such as another index: then the checker judges it
                assert report.reason or type(odd) in (int, float) or key in ("notes", "core", "source")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"3", b'"mucg4-proof"', b"{", b"\xff\xfe\x00", b"[" * 200_000 + b"]" * 200_000,
        b'{"format":"mucg4-proof","version":[3]}', b'{"format":"mucg4-proof","version":' + b"9" * 5000 + b"}",
        b'{"format":"mucg4-proof","version":3,"trees":' + b"9" * 4000 + b"}",
        b'{"format":"mucg4-proof","version":3,"trees":{}}', b'{"format":"mucg4-proof","version":1e999,"trees":[]}',
    ],
    ids=lambda content: f"{len(content)} bytes",
)  # fmt: skip
def test_other_contents_are_malformed(content: bytes) -> None:
    with pytest.raises(ProofError) as caught:
        from_text(content)
    assert "\n" not in str(caught.value)


def test_deep_notes_are_malformed(parts: Any) -> None:
    for depth in (40, 900, 100_000):
        deep = json.dumps({**parts[2], "notes": 0}).replace(
            '"notes": 0', '"notes": ' + '{"a":' * depth + "1" + "}" * depth
        )
        with pytest.raises(ProofError, match="nested too deeply"):
            from_text(deep)
    assert from_text(json.dumps({**parts[2], "notes": {"a": [1, {"b": None}]}})).notes


@pytest.mark.parametrize("seed", range(3))
def test_mutants_of_a_proof_never_prove_a_false_claim(parts: Any, seed: int) -> None:
    onnx, bound, proof = parts
    true = query_of(onnx, text(BOX, 1, f"(>= Y_0 {bound!r})"))
    x = np.random.default_rng(0).uniform(-1, 1, (20000, 3))
    reached = float(true.network(x).max())
    false = query_of(onnx, text(BOX, 1, f"(>= Y_0 {reached - 0.01!r})"))
    claims = {"true": (true, to_text(from_text(json.dumps(proof))))}
    claims["false"] = false, claims["true"][1].replace(true.property_hash, false.property_hash)
    random, judged = np.random.default_rng(seed), 0
    for name, (query, source) in claims.items():
        for mutant in proof_texts(random, source, 60):
            try:
                found = from_text(mutant)
            except ProofError:
                continue
            report = check(found, query, effort())
            judged += 1
            assert name == "true" or not report.accepted, mutant
    assert judged > 10


# --- sizes ---------------------------------------------------------------------------------------------------------


def bomb(count: int, bits: int = 15) -> bytes:
    """`count` MiB of zeros, packed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, bits)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(count)) + packer.flush()


def test_inflate_is_the_inverse_within_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_STEP", 100)
    monkeypatch.setattr(foreign, "_PIECE", 1 << 10)
    random = np.random.default_rng(0)
    for size in (0, 1, 1023, 1024, 1025, 5000):
        for data in (random.bytes(size), bytes(size)):
            packed, archive = zlib.compress(data), gzip.compress(data, mtime=0)
            assert foreign.inflate(packed, size) == data
            assert foreign.inflate(archive, size, gzip=True) == data
            assert foreign.inflate(archive + archive + bytes(30), 2 * size, gzip=True) == 2 * data
            for broken, is_gzip in ((packed[:-3], False), (archive[:-3], True), (archive + b"x", True)):
                with pytest.raises(ValueError, match="damaged"):
                    foreign.inflate(broken, 10_000, gzip=is_gzip)
            if size:
                for whole, is_gzip in ((packed, False), (archive, True)):
                    with pytest.raises(ValueError, match="more than"):
                        foreign.inflate(whole, size - 1, gzip=is_gzip)


def test_a_frame_holds_what_it_states_within_the_limit_or_is_refused() -> None:
    import zstandard

    random = np.random.default_rng(0)
    unsized = zstandard.ZstdCompressor(write_content_size=False)
    for size in (1, 1024, 70_000):  # of an empty frame nothing is looked at but its size
        for data in (random.bytes(size), bytes(size)):
            frame = foreign.packed(data)
            assert foreign.is_frame(frame) and not foreign.is_frame(zlib.compress(data, 0))
            assert foreign.unpack(frame, size) == foreign.unpack(memoryview(frame), 10 * size) == data
            for broken in (frame[:-1], frame[4:], frame + b"x", b"", unsized.compress(data)):
                with pytest.raises(ValueError, match="damaged"):
                    foreign.unpack(broken, size)
            with pytest.raises(ValueError, match="more than"):
                foreign.unpack(frame, size - 1)
    bomb = foreign.packed(bytes(1 << 27))
    tracemalloc.start()
    with pytest.raises(ValueError, match="more than"):
        foreign.unpack(bomb, 1000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_bomb_takes_little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("mucg4.model.proof_file.LARGEST", 1 << 20)
    monkeypatch.setattr("mucg4.read.instance.LARGEST", 1 << 20)
    packed, archive = bomb(80), bomb(80, 31)
    path = tmp_path / "big.gz"
    path.write_bytes(archive)
    tracemalloc.start()
    for action, kind in (
        (lambda: from_bytes(packed, 1 << 20), ProofError),
        (lambda: read_proof(path), ProofError),
        (lambda: read_bytes(path, 1 << 20), InputError),
    ):
        with pytest.raises(kind, match="more than 1 MiB when decompressed"):
            action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 << 20


def test_packed_arrays_share_one_limit(parts: Any) -> None:
    proof = copy.deepcopy(parts[2])
    big = base64.b64encode(bomb(20)).decode()
    names = ("index", "side", "weights", "literals", "beta")
    row = {"at": 0, "conjunction": 0, "node": 1, "alpha": [], **dict.fromkeys(names, big)}
    for extra in ({"tightenings": [row]}, {"cuts": [{"node": 2, "index": big, "shares": [], "after": 0}]}):
        proof["trees"][0].update(extra)
        with pytest.raises(ProofError, match="when decompressed|larger than"):
            from_text(json.dumps(proof), arrays=1 << 20)


def test_files_beyond_the_limit_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    for read in (read_bytes, read_text):
        with pytest.raises(InputError, match=r"sparse.onnx: larger than"):
            read(path)
    with pytest.raises(ProofError, match="larger than"):
        read_proof(path)


def test_unpacking_ends_with_the_budget(tmp_path: Path) -> None:
    path = tmp_path / "p.json.gz"
    path.write_bytes(bomb(50, 31))
    with pytest.raises(BudgetError, match="timeout"):
        read_proof(path, Budget.seconds(0.0).poll)


def test_a_text_walked_in_steps_is_the_same_value(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    value: Any = {"a": [1, [2.5, "]{"], {"b": None}], "": {}, 'q"': [], "c": [[[[[1]]]]], "trees": [{"x": [{"y": 1}]}]}
    for k in range(300):
        changed = json.dumps(mutate_json(random, value), indent=int(k % 3) or None)
        monkeypatch.setattr(foreign, "_LONG_TEXT", 1 << 24)
        at_once = foreign.json_value(changed)
        broken = changed[: k % len(changed)]
        monkeypatch.setattr(foreign, "_LONG_TEXT", 0)
        assert repr(foreign.json_value(changed)) == repr(at_once)
        if broken.strip() not in ("", "0", "1", "2", "255", "null") and len(broken) < len(changed) - 1:
            try:
                expected = repr(json.loads(broken))
            except ValueError:
                expected = "malformed"
            try:
                found = repr(foreign.json_value(broken))
            except ValueError:
                found = "malformed"
            assert found == expected, broken


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["node", "deep", "gzip", "empty", "bytes"])
def test_check_rejects_in_one_line(parts: Any, fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx, bound, proof = parts
    (tmp_path / "n.onnx").write_bytes(onnx)
    (tmp_path / "p.vnnlib").write_text(text(BOX, 1, f"(>= Y_0 {bound!r})"))
    wrong = copy.deepcopy(proof)
    wrong["trees"][0]["node"] = [[k] for k in wrong["trees"][0]["node"]]
    contents = {
        "node": json.dumps(wrong).encode(),
        "deep": b"[" * 100_000,
        "gzip": gzip.compress(json.dumps(proof).encode())[:-9],
        "empty": b"",
        "bytes": np.random.default_rng(0).bytes(1000),
    }
    (tmp_path / "f.json").write_bytes(contents[fault])
    status = main(["check", *(str(tmp_path / n) for n in ("n.onnx", "p.vnnlib", "f.json")), "--timeout", "60"])
    out, err = capsys.readouterr()
    assert (status, err) == (1, "") and re.fullmatch(r"rejected: malformed proof: .+\n", out)


def case_values(path: Path) -> dict[str, Any]:
    save_case(path, [([[1.0]], [0.0]), ([[1.0]], [0.5])], text([(0, 1)], 1, "(>= Y_0 2.0)"), kind="test")
    return dict(json.loads(path.read_text()))


@pytest.mark.parametrize(
    "change",
    [
        {"layers": "x"}, {"layers": []}, {"layers": [3]}, {"layers": [{"weights": [[1, 2], [3]], "bias": [0, 0]}]},
        {"layers": [{"weights": [], "bias": []}]}, {"layers": [{"weights": [[1e400, "a"]], "bias": [0]}]},
        {"layers": [{"weights": [[1]], "bias": [0]}, {"weights": [[1, 2]], "bias": [0]}]}, {"onnx_base64": "?"},
        {"onnx_base64": 3}, {"vnnlib": None}, {"settings": []}, {"settings": {"workers": "2"}},
        {"settings": {"timeout": True}}, {"expected": "maybe"}, {"seconds": "soon"}, {"seconds": 10**400},
        {"version": "1"},
    ],
    ids=str,
)  # fmt: skip
def test_malformed_cases_are_bad_input(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**case_values(path), **change}))
    with pytest.raises(InputError) as caught:
        run_case(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"\xff\xff", b"[]", b"{}"])
def test_files_that_are_no_case_are_bad_input(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        run_case(path)


def test_a_case_ends_with_its_budget(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    case_values(path)
    budget = Budget()
    budget.interrupted = "interrupted by SIGTERM"
    report = run_case(path, budget)
    assert set(report.findings.values()) <= {"unknown", "timeout"} or not report.findings


def test_shares_of_a_budget_end_with_it() -> None:
    budget = Budget()
    share = budget.share(100).share(50)
    share.poll()
    budget.interrupted = "interrupted by SIGINT"
    with pytest.raises(BudgetError, match="SIGINT"):
        share.poll()
