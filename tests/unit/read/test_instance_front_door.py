"""What users bring beside the competition's own files: other texts, other ways to store a model."""

from __future__ import annotations

import gzip
import random
import re
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest

from mucg4.check.confirm import confirm
from mucg4.check.property import covers, denies
from mucg4.check.reading import Reading
from mucg4.check.vnnlib2 import denies as denies_products
from mucg4.cli.main import main
from mucg4.errors import InputError
from mucg4.gate.agreement import agreement
from mucg4.gate.joint import satisfied
from mucg4.gate.runtime import Runtime
from mucg4.gate.witness import holds
from mucg4.model.query import Box, Query
from mucg4.read.instance import query_of, read_query, read_text
from mucg4.read.onnx import read_network
from mucg4.settings import Settings
from mucg4.verify import verify
from tests.graphs import B, F, answer, built, fused, node, property_of, read_twice, weights
from tests.handmade import model_bytes

PLAIN = model_bytes([(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), np.zeros(3))])  # y = (x0, x1, x0 + x1)
NAMES = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
BOX = NAMES + "".join(f"(assert (>= X_{i} -4))(assert (<= X_{i} 4))" for i in range(2)) + "\n"


# --- texts of properties ---------------------------------------------------------------------------------------


class Words:
    """Random formulas as nested tuples; `value` says whether one holds, by plain recursion on what was written."""

    def __init__(self, seed: int, products: bool = False) -> None:
        self.chance, self.products = random.Random(seed), products

    def formula(self, depth: int) -> object:
        pick = self.chance.choice
        if depth == 0 or self.chance.random() < 0.25:
            if self.chance.random() < 0.1:
                return pick(("true", "false"))
            op = pick(("<=", ">=", "<", ">", "=", "!=", "distinct", "<=", "<"))
            count = 2 if op == "!=" else pick((2, 2, 3))
            return (op, *(self.term() for _ in range(count)))
        op = pick(("and", "or", "not", "=>", "xor", "ite", "iff", "differ"))
        count = {"not": 1, "xor": 2, "ite": 3, "iff": 2, "differ": 2}.get(op)
        count = count or (pick((1, 2, 3)) if op != "=>" else pick((2, 3)))
        deeper = depth - 1 if op not in ("iff", "differ") else 0  # each part is written out twice
        return (op, *(self.formula(deeper) for _ in range(count)))

    def term(self) -> object:
        pick = self.chance.choice
        name = pick(("X_0", "X_1", "Y_0", "Y_1", "Y_2"))
        number = pick(("1", "-2", "0.5", "(/ 1 2)", "(/ -3 4)", "(- 1)", "(/ 6.0 4 3)", "0"))
        if self.products and self.chance.random() < 0.5:
            return ("*", *(pick(("X_0", "X_1", "Y_1", "(- 1)", ("+", "Y_2", "1"))) for _ in range(pick((2, 2, 3)))))
        return pick((name, name, number, ("*", number, name), ("/", name, "4"), ("+", name, number)))


def written(part: object) -> str:
    if isinstance(part, tuple) and part[0] in ("iff", "differ"):  # of formulas
        part = ("=" if part[0] == "iff" else "distinct", *part[1:])
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
    if op in ("and", "or", "not", "=>", "xor", "ite", "iff", "differ"):
        v = [value(p, point) for p in rest]
        return {
            "and": all(v),
            "or": any(v),
            "not": not v[0],
            "=>": not all(v[:-1]) or v[-1],
            "xor": v[0] != v[-1],
            "iff": len(set(v)) == 1,
            "differ": v[0] != v[-1],
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


@pytest.mark.parametrize("seed", range(40))
def test_products_of_variables_mean_what_they_say(seed: int) -> None:
    words, points = Words(seed, products=True), np.random.default_rng(seed)
    tree = ("and", ("<=", ("*", "X_0", "Y_1"), "3.5"), words.formula(2))
    text = BOX + f"(assert {written(tree)})"
    query = query_of(PLAIN, text)
    joint = query.joint
    assert joint is not None and joint.version1 and covers(text, query) is None
    for x in points.integers(-8, 9, (40, 2)).astype(np.float32) / 2:
        y = np.array([x[0], x[1], x[0] + x[1]], dtype=np.float32)
        names = zip(("X_0", "X_1", "Y_0", "Y_1", "Y_2"), (*x, *y), strict=True)
        right = value(tree, {name: Fraction(float(v)) for name, v in names})
        if joint.links == (0, 1):  # else an equation of inputs is no assertion any more
            assert (satisfied(joint.assertions, x, y) is not None) == (right and bool(np.all(abs(x) <= 4))), text
        assert not right or denies_products(text, "float32", x, y) is None, text


@pytest.mark.parametrize(
    ("formula", "word"),
    [
        ("(>= (* Y_0 Y_1) 15)", "sat"),
        ("(>= (* Y_0 Y_1) 16.5)", "unsat"),
        ("(and (= X_0 X_1) (< (* Y_0 X_1) -0.1))", "unsat"),
        ("(or (<= (* X_0 X_0 X_0) -70) (and (> (* X_0 Y_2) 19) (= (* X_0 X_1) 0.25)))", "unsat"),
        ("(<= (+ (* X_0 X_0) (* -1 X_0 X_1) (* Y_1 Y_1)) -0.5)", "unsat"),
        ("(not (< (- (* Y_2 Y_2) (* X_0 X_1)) 47))", "sat"),
    ],
)
def test_products_of_variables_are_decided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], formula: str, word: str
) -> None:
    files = [str(p) for p in stored_in(tmp_path, PLAIN, BOX + f"(assert {formula})")]
    proof = str(tmp_path / "proof.json")
    assert main(["verify", *files, "--store", "off", "--timeout", "60", "--proof", proof]) == 0
    said = capsys.readouterr().out.split()
    assert said[0] == word
    if said[0] == "sat":
        assert said[1] == "((X_0" and "(Y_2" in said  # in the grammar of version 1.0
    if said[0] == "unsat":
        assert main(["check", *files, proof]) == 0 and "both files read twice" in capsys.readouterr().out


def test_products_that_the_query_lacks_are_missed() -> None:
    text = BOX + "(assert (>= (* Y_0 Y_1) 15))"
    query, other = query_of(PLAIN, text), BOX + "(assert (>= (* Y_0 Y_2) 15))"
    assert covers(other, query) is not None and covers(text, query_of(PLAIN, other)) is not None
    assert covers(BOX.replace("4", "5") + "(assert (>= (* Y_0 Y_1) 15))", query) is not None
    assert covers(BOX + "(assert (>= (* Y_0 Y_1) 14))", query) is not None


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
        ("sub\\w", "a backslash in its name"),
        ("short/", "name of a directory"),
        ("short/.", "name of a directory"),
        ("packed", "a link to outside the model's folder"),
    ],
)
def test_other_files_stay_in_the_models_folder(tmp_path: Path, location: str, words: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "outside").write_bytes(b"\0" * 4096)
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "packed.gz").symlink_to(tmp_path / "outside")
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


def test_weights_that_start_as_an_archive_are_taken_as_they_are(tmp_path: Path) -> None:
    data, numbers = scattered(model_bytes(layers()), tmp_path, ["w"], gap=64), (tmp_path / "w").read_bytes()
    archive = gzip.compress(b"", mtime=0).ljust(64, b"\7")
    for content in (archive + numbers[64:], archive[:2] + numbers[2:]):
        (tmp_path / "w").write_bytes(content)
        query = read_query(*stored_in(tmp_path, data))
        original = query.network.original
        assert original is not None and dict(original.files) == {"w": content}
        assert agreement(query).problem is None
    (tmp_path / "w").unlink()
    (tmp_path / "w.gz").write_bytes(gzip.compress(numbers))  # packed with the model
    query = read_query(*stored_in(tmp_path, data))
    assert query.network.original is not None and dict(query.network.original.files) == {"w": numbers}


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


# --- models ----------------------------------------------------------------------------------------------------


def test_outputs_behind_the_numbers_are_left_out() -> None:
    nodes = [
        node("MatMul", "x w", "s"),
        node("Softmax", "s", "y"),
        node("ArgMax", "y", "label", axis=1),
        node("Greater", "y k", "t"),
    ]
    constants = {"w": weights(4, 3), "k": np.float32(0.5)}
    model = onnx.load_model_from_string(built(nodes, {"x": [1, 4]}, "y label t", constants))
    for i, kind in ((1, onnx.TensorProto.INT64), (2, B)):
        model.graph.output[i].type.tensor_type.elem_type = kind
    query = read_twice(model.SerializeToString())
    assert query.network.output_size == 3 and answer(query, "(assert (>= Y_1 1.01))") == "unsat"
    assert answer(query, "(assert (>= Y_1 0.4))") == "sat"
    with pytest.raises(InputError, match="declares 4 outputs, but the network has 3"):
        query_of(model.SerializeToString(), property_of(4, 4))
    model.graph.output.insert(0, model.graph.output.pop(1))  # in front of the numbers it would be Y_0
    with pytest.raises(InputError, match="ArgMax"):
        query_of(model.SerializeToString(), property_of(4, 3))


@pytest.mark.parametrize("op", ["QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "com.microsoft.QGemm"])
def test_activations_in_few_bits_are_refused_by_that_name(op: str) -> None:
    domain, _, name = op.rpartition(".")
    data = built([node(name, "x s", "y", domain=domain)], {"x": [1, 2]}, "y", {"s": np.float32(0.5)})
    with pytest.raises(InputError, match=f"{name}.*activations in few bits are not read so far"):
        read_network(data)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        ({"a": [1, 2], "b": [1, 3]}, "y"),
        ({"b": [1, 2], "a": ["N", 3]}, "y z"),
        ({"a": [2], "b": [3], "e": []}, "z y q"),
        ({"a": [1, 2], "b": [1, 3]}, "y c"),
    ],
)
def test_several_inputs_and_outputs_stand_one_behind_the_other(inputs: dict[str, list[object]], outputs: str) -> None:
    first, second, *third = inputs
    sizes = [int(np.prod([d if isinstance(d, int) else 1 for d in s])) for s in inputs.values()]
    nodes = [
        node("MatMul", f"{first} v", "p"),
        node("MatMul", f"{second} w", "r"),
        node("Add", "p r", "s"),
        node("Relu", "s", "y"),
        node("Mul", f"y {third[0] if third else 'half'}", "z"),
        node("Neg", "r", "q"),
        node("Identity", "half", "c"),
    ]
    nodes = [n for n in nodes if n.output[0] != "q" or "q" in outputs]
    data = built(
        nodes, inputs, outputs, {"v": weights(sizes[0], 4), "w": weights(sizes[1], 4, seed=1), "half": np.float32(0.5)}
    )
    query = read_twice(data)
    assert query.network.input_size == sum(sizes)
    assert [name for name, _ in query.network.inputs] == list(inputs)
    x = np.random.default_rng(5).normal(size=(4, sum(sizes)))
    assert np.allclose(Runtime(query.network).single(x), query.network(x), atol=1e-5)
    assert np.allclose(Runtime(query.network).outputs(x), query.network(x), atol=1e-5)
    assert answer(query, "(assert (>= Y_1 0.001))") == "sat"
    last = query.network.output_size - 1
    assert answer(query, f"(assert (or (<= Y_{last} -100) (>= Y_{last} 100)))") == "unsat"


def test_outputs_that_are_constants_are_outputs_too() -> None:
    data = built([node("Add", "k k", "y"), node("Neg", "k", "z")], {"x": [1, 2]}, "y z", {"k": weights(1, 3)})
    query = read_twice(data)
    assert query.network.output_size == 6 and answer(query, "(assert (>= Y_0 50))") == "unsat"


@pytest.mark.parametrize("kind", [onnx.TensorProto.FLOAT, onnx.TensorProto.INT64, onnx.TensorProto.BOOL])
def test_an_input_that_nothing_reads(kind: int) -> None:
    proto = onnx.load_model_from_string(model_bytes(layers()))
    proto.graph.input.insert(0, onnx.helper.make_tensor_value_info("unread", kind, [1, 3]))
    data = proto.SerializeToString()
    assert read_twice(data).network.input_size == 2
    if kind == F:
        query = query_of(data, property_of(5, 3, "(assert (>= Y_0 -50))"))
        assert [n for n, _ in query.network.inputs] == ["unread", "x"] and confirm(data, query.network).fallback == ()
        assert verify(query, Settings(timeout=20.0)).word == "sat"
    with pytest.raises(InputError, match="declares 4 inputs, but the network has 2"):
        query_of(data, property_of(4, 3))


def test_a_second_reading_wants_the_inputs_that_are_read() -> None:
    data = built([node("Sub", "a b", "y")], {"a": [1, 2], "b": [1, 2]}, "y")
    network = read_network(data)
    assert confirm(data, network).problem is None and confirm(data, network).fallback == ()
    for inputs in ((("b", (1, 2)), ("a", (1, 2))), (("a", (1, 4)),), (("a", (1, 1)), ("b", (1, 3))), (("a", (1, 2)),)):
        found = confirm(data, replace(network, inputs=inputs))
        assert found.problem or found.fallback


def sparse(name: str, dense: np.ndarray, flat: bool) -> onnx.SparseTensorProto:
    places = np.flatnonzero(dense) if flat else np.argwhere(dense)
    values = onnx.numpy_helper.from_array(dense[dense != 0], name)
    return onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(places, ""), dense.shape)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 1), (4, 8)])
def test_sparse_initialisers(flat: bool, shape: tuple[int, int]) -> None:
    dense = weights(*shape) * (weights(*shape, seed=3) > 0)
    nodes = [node("MatMul", "x w", "a"), node("Add", "a k", "y")]
    data = built(nodes, {"x": [1, 4]}, "y", {"k": weights(shape[1])}, sparse=[sparse("w", dense, flat)])
    query = read_twice(data)
    whole = built(nodes, {"x": [1, 4]}, "y", {"k": weights(shape[1]), "w": dense})
    assert query.network.fingerprint == read_network(whole).fingerprint


@pytest.mark.parametrize("change", ["outside", "twice", "short", "kind"])
def test_sparse_initialisers_that_are_none(change: str) -> None:
    dense = np.array([[1.0, 0, 2.0], [0, 3.0, 0]], dtype=np.float32)
    tensor = sparse("w", dense, True)
    places = {"outside": [0, 2, 6], "twice": [0, 2, 2], "short": [0, 2], "kind": [0.0, 2.0, 4.0]}[change]
    tensor.indices.CopyFrom(onnx.numpy_helper.from_array(np.array(places), ""))
    data = built([node("MatMul", "x w", "y")], {"x": [1, 2]}, "y", sparse=[tensor])
    with pytest.raises(InputError, match="'w'"):
        read_network(data)


def function(name: str, inputs: str, outputs: str, nodes: list[onnx.NodeProto], **more: object) -> onnx.FunctionProto:
    sets = [onnx.helper.make_opsetid("", more.get("opset", 17)), onnx.helper.make_opsetid("local", 1)]
    return onnx.helper.make_function(
        "local",
        name,
        inputs.split(),
        outputs.split(),
        nodes,
        sets,
        more.get("attributes", []),
        more.get("defaults", []),
    )


def referring(proto: onnx.NodeProto, kind: int, **names: str) -> onnx.NodeProto:
    """The node with attributes that its function's call gives."""
    for name, reference in names.items():
        proto.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=reference, type=kind))
    return proto


def test_functions_stand_where_they_are_called() -> None:
    bent = referring(node("LeakyRelu", "t", "r"), onnx.AttributeProto.FLOAT, alpha="slope")
    block = function(
        "Block", "a w k", "r", [node("MatMul", "a w", "m"), node("Add", "m k", "t"), bent], attributes=["slope"]
    )
    twice = function(
        "Twice",
        "a w k",
        "r a2",
        [
            node("Block", "a w k", "t", domain="local", slope=0.25),
            referring(node("Block", "t w k", "r", domain="local"), onnx.AttributeProto.FLOAT, slope="bend"),
            node("Identity", "a", "a2"),
        ],
        defaults=[onnx.helper.make_attribute("bend", 0.5)],
    )
    nodes = [
        node("Twice", "x w k", "t u", domain="local"),
        node("Twice", "t w k", "m -", domain="local", bend=0.75),
        node("Add", "m u", "y"),
    ]
    nodes[1].output[1] = ""
    constants = {"w": weights(3, 3), "k": weights(3, seed=2)}
    query = read_twice(built(nodes, {"x": [1, 3]}, "y", constants, functions=[block, twice]))

    def bend(v: np.ndarray, s: float) -> np.ndarray:
        return np.where(v > 0, v, s * v)

    x = np.random.default_rng(0).normal(size=(5, 3))
    w, k = constants["w"].astype(float), constants["k"].astype(float)
    t = bend(bend(x @ w + k, 0.25) @ w + k, 0.5)
    right = bend(bend(t @ w + k, 0.25) @ w + k, 0.75) + x
    assert np.allclose(query.network(x), right) and answer(query, "(assert (>= Y_0 0.01))") == "sat"


def test_a_function_has_its_own_operator_set() -> None:
    old = function("Old", "a", "r", [node("Softmax", "a", "s"), node("ReduceSum", "s", "r", axes=[1])], opset=11)
    both = function("Both", "a -", "p q", [node("Relu", "a", "p"), node("Neg", "p", "q")])
    both.input[1] = "b"
    nodes = [
        node("Old", "x", "t", domain="local"),
        node("Both", "t", "v w", domain="local"),
        node("Sub", "v w", "y"),
    ]
    data = built(nodes, {"x": [1, 3]}, "y", functions=[old, both])
    network = read_network(data)  # onnxruntime refuses: it inlines old functions into the newer model as they are
    assert np.allclose(network(np.zeros((1, 3))), 2.0) and confirm(data, network).problem is None


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ([function("F", "a", "r", [node("F", "a", "r", domain="local")])], "call each other"),
        ([function("F", "a", "r", [node("Relu", "b", "r")])], "is not defined before it"),
        ([function("F", "", "r", [node("Relu", "a", "r")])], "more inputs or outputs than its function"),
        ([function("F", "a", "r", [node("Relu", "a", "r")])] * 2, "two functions are called 'F'"),
    ],
)
def test_functions_that_are_none(functions: list[onnx.FunctionProto], words: str) -> None:
    data = built([node("F", "x", "y", domain="local")], {"x": [1, 3]}, "y", functions=functions)
    with pytest.raises(InputError, match=words):
        read_network(data)
    with pytest.raises(InputError):
        Reading(data, 10**6).run(np.zeros((1, 3)), lambda name, value: value)


def test_functions_do_not_multiply_without_end() -> None:
    chain = [function("F0", "a", "r", [node("Relu", "a", "r")])]
    for i in range(1, 25):
        twice = [node(f"F{i - 1}", "a", "t", domain="local"), node(f"F{i - 1}", "t", "r", domain="local")]
        chain.append(function(f"F{i}", "a", "r", twice))
    data = built([node("F24", "x", "y", domain="local")], {"x": [1, 3]}, "y", functions=chain)
    with pytest.raises(InputError, match="nodes in functions"):
        read_network(data)
    with pytest.raises(InputError, match="nodes in functions"):
        Reading(data, 10**6)


def branch(name: str, nodes: list[onnx.NodeProto], outputs: str, **constants: np.ndarray) -> onnx.GraphProto:
    ends = [onnx.helper.make_tensor_value_info(n, F, None) for n in outputs.split()]
    return onnx.helper.make_graph(
        nodes, name, [], ends, [onnx.numpy_helper.from_array(v, n) for n, v in constants.items()]
    )


@pytest.mark.parametrize("taken", [True, False])
@pytest.mark.parametrize("how", ["stored", "shape", "computed"])
def test_the_branch_that_is_decided_is_read(taken: bool, how: str) -> None:
    unknown = [node("Nothing", "x", "odd", domain="local"), node("Identity", "odd", "r2"), node("Neg", "x", "q2")]
    known = [node("MatMul", "x v", "m1"), node("Relu", "m1", "r1"), node("Add", "r1 k", "q1")]
    branches = (branch("a", known, "r1 q1", v=weights(2, 2)), branch("b", unknown, "r2 q2"))
    then, other = branches if taken else branches[::-1]
    test = {
        "stored": [],
        "shape": [
            node("Shape", "h", "s"),
            node("Gather", "s one", "g"),
            node("Equal", f"g {'two' if taken else 'one'}", "c"),
        ],
        "computed": [node("Less", "one two", "l"), node("Not" if not taken else "Identity", "l", "c")],
    }[how]
    nodes = [node("Gemm", "x w k", "h"), *test, node("If", "c", "r q", then_branch=then, else_branch=other)]
    nodes.append(node("Sub", "r q", "y"))
    constants = {"w": weights(2, 2), "k": weights(2), "one": np.int64(1), "two": np.int64(2)}
    if how == "stored":
        constants["c"] = np.array(taken)
    data = built(nodes, {"x": [1, 2]}, "y r", constants)
    query = query_of(data, property_of(2, 4, "(assert (<= Y_2 -0.1))"))
    x = np.random.default_rng(0).normal(size=(4, 2))
    m = np.maximum(x @ weights(2, 2).astype(float), 0)
    assert np.allclose(query.network(x), np.concatenate([-weights(2) + 0 * m, m], axis=1))
    found = confirm(data, query.network)
    assert found.problem is None and found.fallback == ()


def test_branches_run_in_onnxruntime_and_nest() -> None:
    deep = branch("d", [node("Mul", "t k", "z")], "z")
    flat = branch("f", [node("Neg", "x", "n")], "n")
    inner = [node("Relu", "x", "t"), node("If", "c", "i", then_branch=deep, else_branch=flat), node("Add", "i x", "o")]
    nodes = [
        node(
            "If", "c", "r", then_branch=branch("g", inner, "o"), else_branch=branch("h", [node("Abs", "x", "t")], "t")
        ),
        node(
            "If",
            "d",
            "u",
            then_branch=branch("g2", [node("Sub", "x r", "t")], "t"),
            else_branch=branch("h2", [node("Identity", "r", "t")], "t"),
        ),
        node("MatMul", "u w", "y"),
    ]
    constants = {"c": np.array([True]), "d": np.array(False), "k": weights(3), "w": weights(3, 2)}
    query = read_twice(built(nodes, {"x": [1, 3]}, "y", constants))
    x = np.random.default_rng(0).normal(size=(5, 3))
    right = (np.maximum(x, 0) * weights(3) + x) @ weights(3, 2).astype(float)
    assert np.allclose(query.network(x), right) and answer(query, "(assert (>= Y_0 100))") == "unsat"


def test_a_branch_within_a_function() -> None:
    inside = branch("a", [node("Mul", "t t", "m"), node("Add", "m b", "o")], "o")
    body = [
        node("Relu", "a", "t"),
        node("If", "c", "s", then_branch=inside, else_branch=branch("b", [node("Neg", "a", "o")], "o")),
        node("Sub", "s t", "r"),
    ]
    nodes = [node("F", "x k c", "m", domain="local"), node("F", "m k d", "y", domain="local")]
    constants = {"k": weights(3), "c": np.array(True), "d": np.array(False)}
    query = read_twice(built(nodes, {"x": [1, 3]}, "y", constants, functions=[function("F", "a b c", "r", body)]))
    x = np.random.default_rng(0).normal(size=(5, 3))
    m = np.maximum(x, 0) ** 2 + weights(3) - np.maximum(x, 0)
    assert np.allclose(query.network(x), -m - np.maximum(m, 0))


def test_an_undecided_branch_is_refused() -> None:
    choice = {"then_branch": branch("a", [], "x"), "else_branch": branch("b", [node("Neg", "x", "t")], "t")}
    data = built([node("Cast", "x", "c", to=B), node("If", "c", "y", **choice)], {"x": [1]}, "y")
    with pytest.raises(InputError, match=r"operator (Cast|If)"):
        read_network(data)


@pytest.mark.parametrize(
    ("dims", "count", "shape"),
    [
        (["N", 1, "h", "w"], 16, (1, 1, 4, 4)),
        ([None, 1, None, None], 36, (1, 1, 6, 6)),
        (["N", 1, 4, "w"], 20, (1, 1, 4, 5)),
        (["N", 1, "h", "h"], 25, (1, 1, 5, 5)),
        ([1, 1, "N", 5], 20, (1, 1, 4, 5)),
        (["N", 1, "N", 5], 5, None),
        (["N", 1, "h", "w"], 17, None),
        (["N", 1, 3, "w"], 20, None),
    ],
)
def test_open_sizes_come_from_the_number_of_inputs(
    dims: list[object], count: int, shape: tuple[int, ...] | None
) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "p"),
        node("Flatten", "p", "y"),
    ]
    data = built(nodes, {"x": dims}, "y", {"w": weights(2, 1, 3, 3)})
    if shape is None:
        with pytest.raises(InputError):
            query_of(data, property_of(count, 2))
        return
    query = query_of(data, property_of(count, 2))
    assert query.network.inputs == (("x", shape),) and confirm(data, query.network).fallback == ()
    assert agreement(query).problem is None
    assert bool(query.network.note) == (dims[2] != dims[3] and shape[2] == shape[3]) or dims[2] is None


def test_shapes_that_the_user_states() -> None:
    nodes = [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "p"), node("Flatten", "p", "y")]
    data = built(nodes, {"x": ["N", 1, "h", "w"]}, "y", {"w": weights(2, 1, 3, 3)})
    query = query_of(data, property_of(20, 2), shapes={"": (1, 1, 4, 5)})
    assert query.network.inputs == (("x", (1, 1, 4, 5)),) and confirm(data, query.network).fallback == ()
    assert query_of(data, property_of(20, 2), shapes={"x": (1, 1, 5, 4)}).network.inputs[0][1] == (1, 1, 5, 4)
    for wrong, words in (
        ({"": (1, 2, 4, 5)}, "is declared as"),
        ({"z": (1, 1, 4, 5)}, "no input 'z'"),
        ({"": (20,)}, "is declared as"),
    ):
        with pytest.raises(InputError, match=words):
            query_of(data, property_of(20, 2), shapes=wrong)
    with pytest.raises(InputError, match="declares 20 inputs, but the network has 36"):
        query_of(data, property_of(20, 2), shapes={"": (1, 1, 6, 6)})


def test_shapes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("Conv", "x w", "c"), node("GlobalAveragePool", "c", "p"), node("Flatten", "p", "y")]
    data = built(nodes, {"x": ["N", 1, "h", "w"]}, "y", {"w": weights(2, 1, 3, 3)})
    paths = [str(p) for p in stored_in(tmp_path, data, property_of(16, 2, "(assert (>= Y_0 99))"))]
    proof = str(tmp_path / "proof.json")
    for given in ([], ["--shape", "1,1,4,4"], ["--shape", "x=1x1x4x4"]):
        assert main(["verify", *paths, "--store", "off", "--timeout", "20", "--proof", proof, *given]) == 0
        said = capsys.readouterr()
        assert said.out == "unsat\n" and ("'x' as [1, 1, 4, 4]" in said.err) == (not given)
        assert main(["check", *paths, proof, *given]) == 0 and "both files read twice" in capsys.readouterr().out
    for given, words in (
        ("1,1,2,8", "onnxruntime cannot|window|kernel|does not"),
        ("1,one", "not a shape like 1,3,32,32"),
    ):
        with suppress(SystemExit):
            assert main(["verify", *paths, "--store", "off", "--shape", given]) == 2
        assert re.search(words, capsys.readouterr().err)


def test_an_input_without_a_shape() -> None:
    data = built([node("MatMul", "x w", "h"), node("Relu", "h", "y")], {"x": None}, "y", {"w": weights(5, 3)})
    query = query_of(data, property_of(5, 3))
    assert query.network.inputs == (("x", (1, 5)),) and agreement(query).problem is None
    assert confirm(data, query.network).problem is None and not confirm(data, query.network).fallback
    assert query_of(data, property_of(10, 6), shapes={"x": (2, 5)}).network.output_size == 6
    image = built([node("GlobalAveragePool", "x", "y")], {"x": None}, "y")
    with pytest.raises(InputError):
        query_of(image, property_of(12, 3))
    assert query_of(image, property_of(12, 3), shapes={"": (1, 3, 2, 2)}).network.input_size == 12


# --- inputs without bounds -------------------------------------------------------------------------------------

IDLE = [(np.array([[1.0, 0.0, 0.5], [2.0, 0.0, -1.0]]), np.zeros(2)), (np.array([[1.0, -1.0]]), np.zeros(1))]  # not X_1
OPEN = "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "X_2", "Y_0"))
SIDES = "(assert (>= X_0 -1))(assert (<= X_0 1))(assert (>= X_2 -1))(assert (<= X_2 1))"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (SIDES + "(assert (>= Y_0 50))", "unsat"),
        (SIDES + "(assert (>= X_1 7))(assert (>= Y_0 50))", "unsat"),
        (SIDES + "(assert (< X_1 7))(assert (>= Y_0 50))", "unsat"),
        (SIDES + "(assert (> X_1 7))(assert (>= Y_0 0.25))", "sat"),
        (SIDES + "(assert (< X_1 -5))(assert (> -3 X_1))(assert (>= Y_0 0.25))", "sat"),
        (SIDES + "(assert (or (and (> X_1 2) (>= Y_0 50)) (and (< X_1 1) (<= Y_0 -50))))", "unsat"),
        (SIDES + "(assert (< (* 3 X_1) 7))(assert (>= Y_0 50))", "unknown"),  # evaluated with rounding
        (SIDES + "(assert (or (and (<= X_1 7) (>= Y_0 50)) (and (>= X_1 9) (<= Y_0 -50))))", "unsat"),
        (SIDES + "(assert (>= Y_0 0.25))", "sat"),
        (SIDES + "(assert (>= X_1 X_0))(assert (>= Y_0 50))", "unknown"),
        (SIDES + "(assert (<= (+ X_1 X_0) 50))(assert (>= Y_0 0.25))", "sat"),
        (SIDES.replace("(assert (<= X_2 1))", "") + "(assert (>= Y_0 0.25))", "sat"),
        (SIDES.replace("(assert (<= X_2 1))", "") + "(assert (>= Y_0 1e7))", "unknown"),
        ("(assert (>= Y_0 70))", "sat"),
        ("(assert (>= Y_0 1e9))", "unknown"),
    ],
)
def test_inputs_without_bounds(text: str, word: str) -> None:
    query = query_of(model_bytes(IDLE), OPEN + text)
    verdict = verify(query, Settings(timeout=20.0))
    assert verdict.word == word
    if word == "unknown":
        assert "has no " in verdict.reason and bool(query.limited)
    if word == "unsat":
        assert covers(query.text, query) is None
        reading = query_of(model_bytes([(w + 0.01, k) for w, k in IDLE]), OPEN + SIDES + "(assert (>= Y_0 50))")
        assert covers(reading.text, reading) is not None
        inside = query_of(model_bytes(IDLE), OPEN + "(assert (>= X_1 0))(assert (<= X_1 -0.5))" + text)
        assert covers(query.text, replace(query, cases=inside.cases)) is not None
        network = replace(
            query.network, nodes=query_of(model_bytes([(w + 0.01, k) for w, k in IDLE]), query.text).network.nodes
        )
        assert covers(query.text, replace(query, networks=(network,))) is not None


def test_what_an_output_depends_on() -> None:
    nodes = [
        node("Split", "x", "a b c", axis=1, num_outputs=3),
        node("Mul", "a zero", "z"),
        node("Exp", "b", "e"),
        node("Add", "z e", "y"),
    ]
    network = read_network(built(nodes, {"x": [1, 3]}, "y", {"zero": np.zeros((1, 1), np.float32)}, opset=18))
    assert [network.reads([i]) for i in range(3)] == [False, True, False] and not network.reads([0, 2])
    conv = read_network(
        built([node("Conv", "x w", "y")], {"x": [1, 1, 4, 4]}, "y", {"w": np.array([[[[0, 1.0], [0, 0]]]], np.float32)})
    )
    assert [i for i in range(16) if not conv.reads([i])] == [0, 4, 8, 12, 13, 14, 15]


# --- inputs of integers ----------------------------------------------------------------------------------------


def counted(kind: int, dims: list[object], target: int = F) -> bytes:
    """`y = relu(x w)` of integers."""
    nodes = [node("Cast", "x", "f", to=target), node("MatMul", "f w", "g"), node("Relu", "g", "y")]
    model = onnx.load_model_from_string(built(nodes, {"x": dims}, "y", {"w": np.float32([[1, -1], [2, 0.5]])}))
    model.graph.input[0].type.tensor_type.elem_type = kind
    return model.SerializeToString()


def counts(more: str, low: str = "0", high: str = "5") -> str:
    sides = "".join(f"(assert (>= X_{i} {low}))(assert (<= X_{i} {high}))" for i in range(2))
    return "".join(f"(declare-const {n} Real)" for n in ("X_0", "X_1", "Y_0", "Y_1")) + sides + f"(assert {more})"


@pytest.mark.parametrize(("kind", "dims"), [(7, [1, 2]), (6, ["N", 2]), (7, [2])])
def test_inputs_of_integers(kind: int, dims: list[object]) -> None:
    data = counted(kind, dims)
    query = query_of(data, counts("(>= Y_0 14)"))
    assert query.network.integers == ("int64" if kind == 7 else "int32")
    assert agreement(query).problem is None and confirm(data, query.network) == replace(
        confirm(data, query.network), problem=None, fallback=()
    )
    for formula, low, high, word in (
        ("(>= Y_0 14)", "0", "5", "sat"),
        ("(>= Y_0 14.5)", "0.2", "5.4", "sat"),  # only at (5, 5)
        ("(>= Y_0 15.5)", "0", "5", "unsat"),
        ("(and (>= Y_0 14.2) (<= Y_0 14.8))", "0", "5", "unknown"),  # at real numbers, but at no integers
    ):
        found = verify(query_of(data, counts(formula, low, high)), Settings(timeout=4.0))
        assert found.word == word or (word == "unknown" and found.word == "timeout")
        if word == "sat":
            assert np.array_equal(found.witness.x, np.rint(found.witness.x))


def test_integers_that_the_model_rounds_or_casts_otherwise_are_refused() -> None:
    data = counted(7, [1, 2])
    with pytest.raises(InputError, match="beyond 16777216"):
        query_of(data, counts("(>= Y_0 14)", high="16777218"))
    for other in (counted(7, [1, 2], 11), counted(13, [1, 2])):
        with pytest.raises(InputError, match="element type (11|13)"):
            read_network(other)
    query = query_of(data, counts("(>= Y_0 14)"))
    real = replace(query.network, integers="")
    assert confirm(data, real).problem is not None and covers(query.text, query) is None
    far = Box((Fraction(0),) * 2, (Fraction(2**25),) * 2)
    loose = replace(query, cases=tuple(replace(case, box=far) for case in query.cases))
    assert covers(query.text, loose) == "whole numbers that float32 does not have"


# --- operators made of others ----------------------------------------------------------------------------------

ONE = {"x": [1, 6]}
TWO = {"x": [2, 3]}
IMAGE = {"x": [1, 4, 4, 4]}
PLACES, QUARTER = np.array([[0, 1, 2], [3, 2, 0]]), {"k": np.float32(0.25)}
SOLID = {"x": [1, 2, 3, 3, 3]}
STEPS = {"x": [3, 1, 2]}
COMPOSED = {
    "layer": ([node("LayerNormalization", "x s b", "y", axis=-1)], ONE, {"s": weights(6), "b": weights(6, seed=1)}, 17),
    "rms": ([node("RMSNormalization", "x s", "y", epsilon=1e-3)], ONE, {"s": weights(6)}, 23),
    "instance": ([node("InstanceNormalization", "x s b", "y")], IMAGE, {"s": weights(4), "b": weights(4)}, 17),
    "group": ([node("GroupNormalization", "x s b", "y", num_groups=2)], IMAGE, {"s": weights(4), "b": weights(4)}, 21),
    "lp1": ([node("Add", "x s", "t"), node("LpNormalization", "t", "y", p=1)], ONE, {"s": weights(6) + 3}, 17),
    "lp2": ([node("Add", "x s", "t"), node("LpNormalization", "t", "y")], ONE, {"s": weights(6) + 3}, 17),
    "l1": ([node("ReduceL1", "x", "y", axes=[1])], ONE, {}, 17),
    "l2": ([node("ReduceL2", "x a", "y", keepdims=0)], TWO, {"a": np.array([1])}, 18),
    "squares": ([node("ReduceSumSquare", "x", "y", axes=[0])], TWO, {}, 17),
    "logsumexp": ([node("ReduceLogSumExp", "x", "y", axes=[-1])], TWO, {}, 17),
    "product": ([node("ReduceProd", "x", "y", axes=[1])], TWO, {}, 17),
    "mean": ([node("Neg", "x", "t"), node("Mean", "x t s", "y")], ONE, {"s": weights(6)}, 13),
    "einsum": ([node("Einsum", "x w", "y", equation="bi,ij->bj")], ONE, {"w": weights(6, 2)}, 13),
    "einsum2": ([node("Einsum", "x x", "y", equation="bi,bj->ij")], TWO, {}, 13),
    "trilu": ([node("Trilu", "x k", "y", upper=0)], TWO, {"k": np.array(0)}, 14),
    "running": ([node("CumSum", "x a", "y", reverse=1)], ONE, {"a": np.array(1)}, 14),
    "points": ([node("GatherND", "x i", "y")], TWO, {"i": np.array([[0, 1], [1, -1]])}, 13),
    "elements": ([node("GatherElements", "x i", "y", axis=1)], TWO, {"i": np.array([[2, 0], [-1, 1]])}, 13),
    "scatter": ([node("ScatterND", "x i u", "y")], TWO, {"i": np.array([[1, 2]]), "u": weights(1)}, 16),
    "scatter2": ([node("ScatterElements", "d i x", "y")], TWO, {"d": weights(4, 3), "i": PLACES}, 16),
    "shrink": ([node("Shrink", "x", "y", lambd=0.25, bias=0.25)], ONE, {}, 13),
    "tan": ([node("Tan", "x", "y")], ONE, {}, 13),
    "prelu": ([node("PRelu", "x s", "y")], IMAGE, {"s": weights(4, 1, 1)}, 16),
    "bilinear": ([node("Resize", "x - s", "y", mode="linear")], IMAGE, {"s": np.float32([1, 1, 2, 2])}, 18),
    "aligned": (
        [node("Resize", "x - - s", "y", mode="linear", coordinate_transformation_mode="align_corners")],
        IMAGE, {"s": np.array([1, 4, 7, 10])}, 18,
    ),
    "wrap": ([node("Pad", "x p", "y", mode="wrap")], IMAGE, {"p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}, 19),
    "ceil": ([node("MaxPool", "x", "y", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], IMAGE, {}, 13),
    "ceil2": (
        [node("AveragePool", "x", "y", kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1, count_include_pad=1)],
        IMAGE, {}, 19,
    ),
    "volume": ([node("Conv", "x w", "y", group=2, pads=[1, 0, 0, 0, 1, 0])], SOLID, {"w": weights(2, 1, 2, 2, 2)}, 13),
    "volume2": ([node("ConvTranspose", "x w", "y", strides=[2, 1, 1])], SOLID, {"w": weights(2, 2, 2, 2, 2)}, 13),
    "stack": ([node("MatMul", "x w", "y")], {"x": [2, 2, 3]}, {"w": weights(2, 3, 2)}, 13),
    "stack2": ([node("MatMul", "w x", "y")], {"x": [3, 2]}, {"w": weights(2, 4, 3)}, 13),
    "softmax": ([node("Softmax", "x", "y", axis=1)], {"x": [1, 2, 2]}, {}, 12),
    "batch": ([node("Conv", "x w", "h"), node("Relu", "h", "y")], {"x": [2, 1, 3, 3]}, {"w": weights(2, 1, 2, 2)}, 13),
    "greater": ([node("Greater", "x k", "c"), node("Cast", "c", "f", to=F), node("Mul", "f x", "y")], ONE, QUARTER, 13),
    "where": ([node("LessOrEqual", "x k", "c"), node("Where", "c x k", "y")], ONE, QUARTER, 13),
    "lstm": (
        [node("LSTM", "x w r b", "y", hidden_size=2, direction="bidirectional")], STEPS,
        {"w": weights(2, 8, 2), "r": weights(2, 8, 2), "b": weights(2, 16)}, 14,
    ),
    "lstm2": (
        [node("LSTM", "x w r - - h c", "- - y", hidden_size=2)], STEPS,
        {"w": weights(1, 8, 2), "r": weights(1, 8, 2), "h": weights(1, 1, 2), "c": weights(1, 1, 2)}, 13,
    ),
    "gru": (
        [node("GRU", "x w r b", "t y", hidden_size=2, linear_before_reset=1)], STEPS,
        {"w": weights(1, 6, 2), "r": weights(1, 6, 2), "b": weights(1, 12)}, 14,
    ),
    "gru2": (
        [node("GRU", "x w r", "y", hidden_size=2)], STEPS, {"w": weights(1, 6, 2), "r": weights(1, 6, 2)}, 14,
    ),
    "rnn": (
        [node("RNN", "x w r", "y", hidden_size=2, activations=["Relu"], direction="reverse")], STEPS,
        {"w": weights(1, 2, 2), "r": weights(1, 2, 2)}, 14,
    ),
    "fusedgemm": (
        [fused("FusedGemm", "x w b", "y", activation="LeakyRelu", activation_alpha=0.25, transB=1)], ONE,
        {"w": weights(3, 6), "b": weights(3)}, 13,
    ),
    "fusedconv": (
        [fused("FusedConv", "x w b x", "y", activation="Clip", activation_params=[-1.0, 2.0], pads=[1, 1, 1, 1])],
        IMAGE, {"w": weights(4, 4, 3, 3), "b": weights(4)}, 13,
    ),
    "fusedmatmul": ([fused("FusedMatMul", "x w", "y", alpha=0.5, transB=1)], TWO, {"w": weights(4, 3)}, 13),
    "gelu": ([fused("Gelu", "x", "y")], ONE, {}, 13),
    "biasgelu": ([fused("BiasGelu", "x b", "y")], ONE, {"b": weights(6)}, 13),
    "fastgelu": ([fused("FastGelu", "x b", "y")], ONE, {"b": weights(6)}, 13),
    "quickgelu": ([fused("QuickGelu", "x", "y", alpha=1.5)], ONE, {}, 13),
    "skip": (
        [node("Neg", "x", "t"), fused("SkipLayerNormalization", "x t g b c", "s - - y", epsilon=1e-3)],
        {"x": [1, 2, 3]}, {"g": weights(3), "b": weights(3), "c": weights(3)}, 13,
    ),
    "skip2": (
        [fused("SkipSimplifiedLayerNormalization", "x k g", "y", epsilon=1e-3)], {"x": [1, 2, 3]},
        {"g": weights(3), "k": weights(1, 2, 3)}, 13,
    ),
    "mask": ([node("Where", "c x k", "y")], ONE, {"c": weights(1, 6) > 0, "k": np.float32(-2)}, 13),
}  # fmt: skip


@pytest.mark.parametrize("name", COMPOSED)
def test_operators_made_of_others_are_read_twice_and_decided(name: str) -> None:
    """Behind an affine map as in a network; a threshold that random points reach, and one above all of them."""
    nodes, inputs, constants, opset = COMPOSED[name]
    (shape,) = inputs.values()
    around = [node("Mul", "in half", "x"), *nodes]
    data = built(around, {"in": shape}, "y", {**constants, "half": np.float32(0.5)}, opset)
    query = read_twice(data)
    n = query.network.input_size
    y = query.network(np.random.default_rng(0).uniform(-1, 1, (500, n)))[:, 0]
    low, high = float(y.min()), float(y.max())
    assert answer(query, f"(assert (>= Y_0 {low + 0.5 * (high - low):.6f}))") == "sat"
    assert answer(query, f"(assert (>= Y_0 {high + 30 * (high - low) + 1000:.6f}))") == "unsat"


@pytest.mark.parametrize(
    "first",
    [node("Add", "x x", "f"), node("Identity", "x", "f"), node("Gather", "w x", "f"), node("Cast", "x", "f", to=7)],
)
def test_inputs_of_integers_are_cast_to_float32_before_anything_else(first: onnx.NodeProto) -> None:
    """Integers further on are followed by their size, which nobody knows of an input when the model is read."""
    nodes = [first, node("Cast", "f", "y", to=F)]
    model = onnx.load_model_from_string(built(nodes, {"x": [1, 2]}, "y", {"w": np.float32([1, 2])}))
    model.graph.input[0].type.tensor_type.elem_type = 7
    with pytest.raises(InputError, match="inputs of integers"):
        read_network(model.SerializeToString())


def test_inputs_of_integers_and_integers_further_on() -> None:
    nodes = [
        node("Cast", "x", "f", to=F),
        node("Mul", "f w", "g"),
        node("Cast", "g", "i", to=7),
        node("Add", "i i", "j"),
    ]
    graph = built([*nodes, node("Cast", "j", "y", to=F)], {"x": [1, 2]}, "y", {"w": np.float32([0.7, -1.3])})
    model = onnx.load_model_from_string(graph)
    model.graph.input[0].type.tensor_type.elem_type = 7
    data = model.SerializeToString()
    for formula, word in (("(>= Y_0 5.9)", "sat"), ("(>= Y_0 6.1)", "unsat")):  # twice the integer part of 3.5
        query = query_of(data, counts(formula))
        assert agreement(query).problem is None and confirm(data, query.network).fallback == ()
        assert verify(query, Settings(timeout=20.0)).word == word
