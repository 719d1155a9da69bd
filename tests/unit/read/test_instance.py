"""Instance files: compressed copies, lists, and one clear line for everything that is wrong."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from mucg4.errors import InputError, UnsupportedError
from mucg4.read.instance import network_paths, read_bytes, read_instances, read_query, read_text


def test_exact_path_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"plain")
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"packed", mtime=0))
    assert read_bytes(tmp_path / "a") == b"plain"
    assert read_bytes(tmp_path / "a.gz") == b"packed"
    (tmp_path / "a").unlink()
    assert read_bytes(tmp_path / "a") == b"packed"


def test_name_with_gz_finds_the_unpacked_file(tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"plain")
    assert read_bytes(str(tmp_path / "b.gz")) == b"plain"


def test_multi_member_archive(tmp_path: Path) -> None:
    (tmp_path / "c.gz").write_bytes(gzip.compress(b"one", mtime=0) + gzip.compress(b"two"))
    assert read_bytes(tmp_path / "c") == b"onetwo"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("missing", None, "no such file"),
        ("empty", b"", "the file is empty"),
        ("empty.gz", b"", "the file is empty"),
        ("hollow.gz", gzip.compress(b"", mtime=0), "the file is empty"),
        ("wrong.gz", b"not an archive at all", "damaged gzip file"),
        ("cut.gz", gzip.compress(b"0123456789" * 50, mtime=0)[:-9], "damaged gzip file"),
        ("flipped.gz", gzip.compress(bytes(range(256)) * 9, mtime=0)[:40] + b"\xff" * 60, "damaged gzip file"),
        ("nul\0name", None, "no such file"),
        ("x" * 5000, None, "no such file"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    path = os.path.join(tmp_path, name)
    if content is not None:
        Path(path).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_bytes(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="directory"):
        read_bytes(tmp_path)


def test_binary_file_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"(assert \0\xfe)")
    with pytest.raises(InputError, match="not a text file .byte 8"):
        read_text(tmp_path / "p")


def test_instance_list(tmp_path: Path) -> None:
    pair = "[('f', 'onnx/a.onnx'), ('g', 'onnx/b.onnx')]"
    text = f'onnx,vnnlib,timeout\n\nonnx/a.onnx, vnnlib/p.vnnlib ,60\n"{pair}",vnnlib/q.vnnlib,1.5e2\r\n'
    (tmp_path / "instances.csv").write_text(text)
    rows = read_instances(tmp_path)
    assert rows == read_instances(tmp_path / "instances.csv")
    assert rows[0].onnx == tmp_path / "onnx/a.onnx" and rows[0].vnnlib == tmp_path / "vnnlib/p.vnnlib"
    assert (rows[0].onnx_text, rows[0].vnnlib_text, rows[0].timeout) == ("onnx/a.onnx", "vnnlib/p.vnnlib", 60.0)
    assert rows[1].onnx_text == pair and rows[1].timeout == 150.0
    assert network_paths(str(rows[1].onnx)) == {"f": f"{tmp_path}/onnx/a.onnx", "g": f"{tmp_path}/onnx/b.onnx"}
    with pytest.raises(InputError, match=r"q\.vnnlib: no such file"):
        read_query(rows[1].onnx, rows[1].vnnlib)


def test_absolute_paths_in_a_list(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"{tmp_path}/n.onnx,p.vnnlib,3\n")
    (row,) = read_instances(tmp_path / "list.csv")
    assert row.onnx == tmp_path / "n.onnx" and row.vnnlib == tmp_path / "p.vnnlib"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.onnx,p.vnnlib\n", "line 1: expected the three columns"),
        ("a.onnx,p.vnnlib,5,6\n", "line 1: expected the three columns"),
        ("a.onnx,p.vnnlib,5\nb.onnx,,5\n", "line 2: expected the three columns"),
        ("a.onnx,p.vnnlib,soon\n", "line 1: the timeout 'soon' is not a number"),
        ("a.onnx,p.vnnlib,-1\n", "not a positive number"),
        ("a.onnx,p.vnnlib,nan\n", "not a positive number"),
        ("onnx,vnnlib,timeout\n", "no instances"),
        ('"a.onnx,p.vnnlib,5\n', "line 1"),
        ("\n\n", "no instances"),
    ],
)
def test_bad_lists(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "instances.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        read_instances(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_folder_without_a_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"instances\.csv: no such file"):
        read_instances(tmp_path)


def test_list_of_networks_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a list of"):
        read_query("[('f', 'a.onnx'", tmp_path / "p")


def _network_file(folder: Path, inputs: int = 2, outputs: int = 1) -> Path:
    onnx = pytest.importorskip("onnx")
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((inputs, outputs), dtype=np.float32), "W")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, outputs])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = folder / "n.onnx"
    onnx.save(model, path)
    return path


PROPERTY = (
    "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)"
    "(assert (<= X_0 1))(assert (>= X_0 0))(assert (<= X_1 1))(assert (>= X_1 0))(assert (>= Y_0 3))"
)


def test_query_from_files(tmp_path: Path) -> None:
    network = _network_file(tmp_path)
    (tmp_path / "p.vnnlib.gz").write_bytes(gzip.compress(PROPERTY.encode()))
    query = read_query(network, tmp_path / "p.vnnlib")
    assert query.network.input_size == 2 and len(query.cases) == 1 and len(query.source_hash) == 64
    (tmp_path / "q.vnnlib").write_text(PROPERTY + "\n; a comment")
    other = read_query(str(network), str(tmp_path / "q.vnnlib"))
    assert other.source_hash != query.source_hash and other.property_hash == query.property_hash


@pytest.mark.parametrize(("inputs", "outputs", "words"), [(3, 1, "declares 2 inputs"), (2, 1, "declares 2 outputs")])
def test_property_of_another_network(tmp_path: Path, inputs: int, outputs: int, words: str) -> None:
    network = _network_file(tmp_path, inputs, outputs)
    (tmp_path / "p.vnnlib").write_text(PROPERTY + ("(declare-const Y_1 Real)" if words.endswith("outputs") else ""))
    with pytest.raises(InputError, match=rf"p\.vnnlib: {words}, but the network has"):
        read_query(network, tmp_path / "p.vnnlib")


def test_errors_name_the_file(tmp_path: Path) -> None:
    network = _network_file(tmp_path)
    (tmp_path / "p.vnnlib").write_text("(assert")
    with pytest.raises(InputError, match=r"p\.vnnlib: line 1: "):
        read_query(network, tmp_path / "p.vnnlib")
    (tmp_path / "p.vnnlib").write_text("(vnnlib-version <3.0>)")
    with pytest.raises(UnsupportedError, match=r"p\.vnnlib: line 1: VNN-LIB 3\.0"):
        read_query(network, tmp_path / "p.vnnlib")
    (tmp_path / "p.vnnlib").write_text(PROPERTY)
    (tmp_path / "m.onnx").write_bytes(network.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"m\.onnx: "):
        read_query(tmp_path / "m.onnx", tmp_path / "p.vnnlib")


def test_benchmark_lists(benchmarks: Path) -> None:
    for name, rows in (("test", 5), ("acasxu_2023", 186), ("acasxu_pruned", 81), ("isomorphic_acasxu_2026", 20)):
        instances = read_instances(benchmarks / name)
        assert len(instances) == rows
        assert all(i.vnnlib.is_file() for i in instances)
        assert all(i.onnx.is_file() or i.onnx_text.startswith("[(") for i in instances)


def test_models_and_properties_are_read_once_for_many_queries() -> None:
    from examples import dense, text

    from mucg4.read.instance import Model, Property, query_of

    data = dense([([[1.0, 2.0]], [0.5]), ([[1.0]], [0.0])])
    other = dense([([[1.5, 2.0]], [0.5]), ([[1.0]], [0.0])])
    texts = [text([(-1, 1), (0, 1)], 1, f"(>= Y_0 {k})") for k in (1, 2)]
    models, props = [Model(data, "a"), Model(other, "b")], [Property(t, f"p{k}") for k, t in enumerate(texts)]
    queries = [[m.under(p) for p in props] for m in models]
    for model, row in zip((data, other), queries, strict=True):
        for stated, query in zip(texts, row, strict=True):
            assert query.key == query_of(model, stated).key and query.text == stated
    assert queries[0][0].network is queries[0][1].network is not queries[1][0].network
    assert queries[0][0].cases is queries[1][0].cases is not queries[0][1].cases
    again = query_of(data, texts[0])
    assert again.cases is not queries[0][0].cases  # what the checker reads is its own
    wide = Property(text([(-1, 1)] * 3, 1, "(>= Y_0 1)"), "wide")
    with pytest.raises(InputError, match="wide: declares 3 inputs"):
        models[0].under(wide)
    with pytest.raises(InputError, match="^broken: "):
        models[0].under(Property("(assert", "broken"))
    with pytest.raises(InputError, match="^nonsense: "):
        Model(b"nonsense", "nonsense").under(props[0])
