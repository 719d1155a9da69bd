"""What users bring beside the competition's own files: other texts, other ways to store a model."""

from __future__ import annotations

import gzip
import random
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest

from mucg4.__main__ import main
from mucg4.check.confirm import confirm
from mucg4.check.property import covers, denies
from mucg4.errors import InputError
from mucg4.gate.agreement import agreement
from mucg4.gate.runtime import Runtime
from mucg4.gate.witness import holds
from mucg4.model.query import Query
from mucg4.read.instance import query_of, read_query, read_text
from tests.handmade import model_bytes

PLAIN = model_bytes([(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.zeros(3))])  # y = (x0, x1, x0 + x1)
NAMES = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
BOX = NAMES + "".join(f"(assert (>= X_{i} -4))(assert (<= X_{i} 4))" for i in range(2)) + "\n"


# --- texts of properties ---------------------------------------------------------------------------------------


class Words:
    """Random formulas as nested tuples; `value` says whether one holds, by plain recursion on what was written."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def formula(self, depth: int) -> object:
        pick = self.chance.choice
        if depth == 0 or self.chance.random() < 0.25:
            if self.chance.random() < 0.1:
                return pick(("true", "false"))
            op = pick(("<=", ">=", "<", ">", "=", "!=", "distinct", "<=", "<"))
            count = 2 if op == "!=" else pick((2, 2, 3))
            return (op, *(self.term() for _ in range(count)))
        op = pick(("and", "or", "not", "=>", "xor", "ite"))
        count = {"not": 1, "xor": 2, "ite": 3}.get(op, pick((1, 2, 3)) if op != "=>" else pick((2, 3)))
        return (op, *(self.formula(depth - 1) for _ in range(count)))

    def term(self) -> object:
        pick = self.chance.choice
        name = pick(("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
        number = pick(("1", "-2", "0.5", "(/ 1 2)", "(/ -3 4)", "(- 1)", "(/ 6.0 4 3)", "0"))
        return pick((name, name, number, ("*", number, name), ("/", name, "4"), ("+", name, number)))


def written(part: object) -> str:
    return part if isinstance(part, str) else "(" + " ".join(map(written, part)) + ")"  # type: ignore[arg-type]


def number_of(term: object, point: dict[str, Fraction]) -> Fraction:
    if isinstance(term, str):
        if term in point:
            return point[term]
        if not term.startswith("("):
            return Fraction(term)
        term = tuple(term[1:-1].split())
    op, *rest = term  # type: ignore[misc]
    values = [number_of(t, point) for t in rest]
    total = values[0] if len(values) > 1 else -values[0]
    for v in values[1:]:
        total = {"+": total + v, "*": total * v, "/": total / v if v else total}[op]
    return total


def value(part: object, point: dict[str, Fraction]) -> bool:
    if isinstance(part, str):
        return part == "true"
    op, *rest = part  # type: ignore[misc]
    if op in ("and", "or", "not", "=>", "xor", "ite"):
        v = [value(p, point) for p in rest]
        return {
            "and": all(v),
            "or": any(v),
            "not": not v[0],
            "=>": not all(v[:-1]) or v[-1],
            "xor": v[0] != v[-1],
            "ite": v[1 % len(v)] if v[0] else v[-1],
        }[op]
    t = [number_of(p, point) for p in rest]
    if op in ("distinct", "!="):
        return len(set(t)) == len(t)
    test = {"<=": Fraction.__le__, ">=": Fraction.__ge__, "<": Fraction.__lt__, ">": Fraction.__gt__}
    return all(a == b if op == "=" else test[op](a, b) for a, b in zip(t, t[1:], strict=False))


def unsafe(query: Query, x: np.ndarray, y: np.ndarray) -> bool:
    """Whether some conjunction of the cases, as stated, holds at a point."""
    return any(
        bool(np.all((case.box.lo <= x) & (x <= case.box.hi))) and any(holds(c, x, y) for c in case.conjunctions)
        for case in query.cases
    )


@pytest.mark.parametrize("seed", range(60))
def test_logic_means_what_it_says_to_both_readers(seed: int) -> None:
    words, points = Words(seed), np.random.default_rng(seed)
    tree = words.formula(3)
    text = BOX + f"(assert {written(tree)})"
    query = query_of(PLAIN, text)
    assert covers(text, query) is None
    for _ in range(40):
        x = points.integers(-8, 9, 2).astype(np.float32) / 2
        x = np.clip(x, -4, 4)
        y = np.array([x[0], x[1], x[0] + x[1]], dtype=np.float32)
        point = {f"X_{i}": Fraction(float(v)) for i, v in enumerate(x)}
        point |= {f"Y_{i}": Fraction(float(v)) for i, v in enumerate(y)}
        right = value(tree, point)
        assert unsafe(query, x, y) == right, text
        assert not right or denies(text, "float32", x, y) is None, text


def test_a_case_is_missed_when_a_negation_is_read_as_nothing() -> None:
    right = BOX + "(assert (not (=> (>= X_0 1) (>= Y_0 2))))"
    wrong = BOX + "(assert (and (>= X_0 1) (<= Y_0 1)))"
    assert covers(right, query_of(PLAIN, right)) is None
    assert covers(right, query_of(PLAIN, wrong)) is not None


@pytest.mark.parametrize(
    "trailer",
    [
        "(check-sat)(get-model)(exit)",
        "(check-sat)\n(get-value (X_0 X_1 (+ X_0 1)))\n(exit)\n; the end\n",
        '(set-option :produce-models true)(check-sat)(get-info :reason-unknown)(echo "(assert false)")',
        "(check-sat)(get-unsat-core)(get-proof)(exit)(check-sat)",
        "(exit)",
    ],
)
def test_what_is_said_to_a_solver_changes_nothing(trailer: str) -> None:
    text = BOX + "(assert (>= Y_0 0.5))"
    query, other = query_of(PLAIN, text), query_of(PLAIN, text + trailer)
    assert other.property_hash == query.property_hash and covers(text + trailer, query) is None


def test_nothing_is_asserted_after_the_exit() -> None:
    text = BOX + "(assert (>= Y_0 0.5))(exit)"
    for more in ("(assert (>= Y_1 9))", "(assert (>= X_0 1))", "(declare-const Y_3 Real)"):
        with pytest.raises(InputError, match=r"line 2: .* after \(exit\)"):
            query_of(PLAIN, text + more)
        assert covers(text + more, query_of(PLAIN, text)) == "something follows the command exit"


def test_outputs_that_are_not_declared_are_not_asked_about() -> None:
    for names in ("", "(declare-const Y_1 Real)", "(declare-const Y_2 Real)"):
        box = BOX.replace("(declare-const Y_0 Real)(declare-const Y_1 Real)(declare-const Y_2 Real)", names)
        text = box + (f"(assert (>= {names[15:18]} 7))" if names else "(assert (<= X_0 X_1))")
        query = query_of(PLAIN, text)
        assert query.cases[0].conjunctions[0].y_coeffs.shape[1] in (1, 3) and covers(text, query) is None
    with pytest.raises(InputError, match="Y_0 is not declared"):
        query_of(PLAIN, text + "(assert (<= Y_0 1))")
    with pytest.raises(InputError, match="declares 5 outputs, but the network has 3"):
        query_of(PLAIN, BOX + "(declare-const Y_4 Real)")


@pytest.mark.parametrize("comment", ["Grad \xdd f\xfcr", "\xe9t\xe9 \x80\x81\xff", "\xc3"])
def test_comments_may_be_in_any_encoding(tmp_path: Path, comment: str) -> None:
    (tmp_path / "p.vnnlib").write_bytes(f"; {comment}\n{BOX}(assert (>= Y_0 0)) ;{comment}".encode("latin-1"))
    query = query_of(PLAIN, read_text(tmp_path / "p.vnnlib"))
    assert query.property_hash == query_of(PLAIN, BOX + "(assert (>= Y_0 0))").property_hash
    (tmp_path / "q.vnnlib").write_bytes(f"{BOX}(assert (>= Y_0 {comment}))".encode("latin-1"))
    with pytest.raises(InputError):
        query_of(PLAIN, read_text(tmp_path / "q.vnnlib"))


# --- files -----------------------------------------------------------------------------------------------------


def layers(seed: int = 0, sizes: tuple[int, ...] = (2, 8, 3)) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(m, n)), rng.normal(size=m)) for n, m in zip(sizes, sizes[1:], strict=False)]


def scattered(data: bytes, folder: Path, names: list[str], gap: int = 0, length: bool = True) -> bytes:
    """The model with its initialisers in other files, in turn; what is in these goes to `folder`."""
    model = onnx.load_model_from_string(data)
    files: dict[str, bytes] = dict.fromkeys(names, b"")
    for i, tensor in enumerate(model.graph.initializer):
        name = names[i % len(names)]
        start = len(files[name]) + gap
        files[name] += b"\7" * gap + tensor.raw_data
        for key, v in (("location", name), ("offset", start), ("length", len(tensor.raw_data))):
            if key != "length" or length:
                tensor.external_data.add(key=key, value=str(v))
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.ClearField("raw_data")
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return model.SerializeToString()


def stored_in(folder: Path, data: bytes, text: str = BOX + "(assert (>= Y_0 1))") -> tuple[Path, Path]:
    (folder / "n.onnx").write_bytes(data)
    (folder / "p.vnnlib").write_text(text)
    return folder / "n.onnx", folder / "p.vnnlib"


@pytest.mark.parametrize(
    ("names", "gap", "length"),
    [(["n.onnx.data"], 0, True), (["a", "weights/deep/b", "c d"], 64, True), (["a", "b", "c", "d"], 16, False)],
)
def test_weights_in_other_files_are_read(tmp_path: Path, names: list[str], gap: int, length: bool) -> None:
    inside = model_bytes(layers())
    query = read_query(*stored_in(tmp_path, scattered(inside, tmp_path, names, gap, length)))
    same = query_of(inside, query.text)
    assert query.network.fingerprint == same.network.fingerprint and query.key == same.key
    x = np.array([0.3, -1.5])
    assert np.array_equal(Runtime(query.network).single(x), Runtime(same.network).single(x))
    assert agreement(query).problem is None and confirm(query.network.model_bytes, query.network).problem is None
    (tmp_path / names[0]).write_bytes(b"\0" * 4096)  # what was read is what counts
    assert np.array_equal(Runtime(query.network).single(x), Runtime(same.network).single(x))
    other = read_query(tmp_path / "n.onnx", tmp_path / "p.vnnlib")
    assert other.network.source_hash != query.network.source_hash


def test_onnxruntime_puts_the_parts_together_by_itself(tmp_path: Path) -> None:
    query = read_query(*stored_in(tmp_path, scattered(model_bytes(layers()), tmp_path, ["w"])))
    original = query.network.original
    assert original is not None
    content = bytearray(original.files[0][1])
    content[:4] = np.float32(0.25).tobytes()
    network = replace(query.network, original=replace(original, files=(("w", bytes(content)),)))
    assert "disagrees with onnxruntime" in (agreement(replace(query, networks=(network,))).problem or "")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("missing.data", "'missing.data': .*missing.data: no such file"),
        ("../outside", "outside the model's folder"),
        ("sub/../../outside", "outside the model's folder"),
        ("/etc/hostname", "outside the model's folder"),
        ("C:\\weights", "outside the model's folder"),
        ("link", "a link to outside the model's folder"),
        ("link/again", "a link to outside the model's folder|no such file"),
        ("short", "'short' has 5 bytes, but byte .* is asked for"),
        ("", "does not say in which"),
        (".", "directory"),
        ("empty", "the file is empty"),
    ],
)
def test_other_files_stay_in_the_models_folder(tmp_path: Path, location: str, words: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(b"\0" * 4096)
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "short").write_bytes(b"12345")
    (folder / "empty").write_bytes(b"")
    model = onnx.load_model_from_string(scattered(model_bytes(layers()), tmp_path / "elsewhere", ["w"]))
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = location
    with pytest.raises(InputError, match=f"^{folder}/n.onnx: tensor 'w0'.*({words})"):
        read_query(*stored_in(folder, model.SerializeToString()))


@pytest.mark.parametrize(("key", "value"), [("offset", "-4"), ("offset", "1e3"), ("length", "9" * 30), ("length", "3")])
def test_places_in_other_files_are_checked(tmp_path: Path, key: str, value: str) -> None:
    model = onnx.load_model_from_string(scattered(model_bytes(layers()), tmp_path, ["w"]))
    next(e for e in model.graph.initializer[0].external_data if e.key == key).value = value
    with pytest.raises(InputError, match="tensor 'w0'"):
        read_query(*stored_in(tmp_path, model.SerializeToString()))


@pytest.mark.parametrize("name", ["n.onnx", "n.onnx.gz", "n.bin"])
@pytest.mark.parametrize("packed", [True, False])
def test_archives_are_known_by_their_content(tmp_path: Path, name: str, packed: bool) -> None:
    if name.endswith(".gz") and not packed:
        return
    (tmp_path / name).write_bytes(gzip.compress(PLAIN) if packed else PLAIN)
    (tmp_path / "p").write_bytes(gzip.compress((BOX + "(assert (>= Y_0 1))").encode()))
    assert read_query(tmp_path / name, tmp_path / "p").network.fingerprint == query_of(PLAIN, BOX).network.fingerprint


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["p.vnnlib", "n.onnx"], "p.vnnlib: this is a property; the network comes first"),
        (["n.onnx", "p.vnnlib", "--timeout", "5s"], "--timeout: not a number (without a unit): 5s"),
        (["n.onnx", "none.vnnlib"], "none.vnnlib: no such file"),
        (["none.onnx", "p.vnnlib"], "none.onnx: no such file"),
        (["n.onnx", "n.onnx"], "n.onnx: not a text file"),
        (["p.vnnlib", "p.vnnlib"], "p.vnnlib: the network file is not ONNX"),
        (["zero.onnx", "p.vnnlib", "--timeout", "20"], "zero.onnx: the model's input shape [0, 2] holds no values"),
    ],
)
def test_every_message_names_its_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    stored_in(tmp_path, PLAIN)
    (tmp_path / "zero.onnx").write_bytes(model_bytes(layers(), dims=[0, 2]))
    with suppress(SystemExit):
        assert main(["verify", *arguments, "--store", "off"]) == 2
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
