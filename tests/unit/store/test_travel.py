"""Proofs from files lent to a run: which network each is about, and what happens to what does not fit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from examples import text

from mucg4.errors import InputError, ProofError
from mucg4.lab.compress import compress
from mucg4.model.proof_file import read_proof, write_proof
from mucg4.model.proof_text import to_text
from mucg4.model.verdict import Safe, Verdict
from mucg4.read.case import layers_to_onnx
from mucg4.read.instance import Model, Property, query_of
from mucg4.settings import Settings
from mucg4.store.travel import Lent, enclosed, lend
from mucg4.verify import verify

RNG = np.random.default_rng(8)
SIZES = (2, 10, 10, 1)
LAYERS = [(RNG.normal(size=(b, a)), RNG.normal(size=b) / 4) for a, b in zip(SIZES, SIZES[1:], strict=False)]
DATA = layers_to_onnx(LAYERS)
QUICK = Settings(workers=1)


def prop(size: float = 1.0) -> str:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 101)] * 2), axis=-1).reshape(-1, 2)
    network = query_of(DATA, text([(-1, 1), (-1, 1)], 1, "(>= Y_0 100)")).network
    top = float(network(grid).max())
    return text([(-size, size), (-size, size)], 1, f"(>= Y_0 {top + 0.2})")


PROP = prop()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `alone.json.gz`, and `whole.json` that holds the network."""
    folder = tmp_path_factory.mktemp("proofs")
    query = query_of(DATA, PROP)
    found = verify(query, QUICK)
    assert isinstance(found, Safe)
    write_proof(found.proof, folder / "alone.json.gz")
    write_proof(found.proof, folder / "whole.json", enclosed(query))
    return folder


def certified(variant: bytes, sources: list[Path], *parents: bytes, under: str = PROP) -> tuple[Verdict, Lent]:
    query = query_of(variant, under)
    lent = lend(query, sources, [Model(p) for p in parents])
    return verify(query, QUICK, lent.store), lent


@pytest.mark.parametrize("method", ["int8", "prune10", "neurons10", "permute"])
def test_a_variant_uses_the_proof_once_the_network_is_known(made: Path, method: str) -> None:
    variant = compress(DATA, method)
    shares = []
    for found, lent in (
        certified(variant, [made / "whole.json"]),
        certified(variant, [made / "alone.json.gz"], compress(DATA, "prune50"), DATA),
    ):
        assert isinstance(found, Safe) and found.checked and not lent.placed and not lent.store.warnings
        assert lent.files[found.statistics.related_proof or ""].parent == made
        assert found.statistics.relation in ("quantised", "pruned-weights", "pruned-neurons", "permuted")
        shares.append(found.statistics.reused_share)
    assert shares[0] == shares[1] > 0.5


def test_without_the_network_neurons_keep_their_places(made: Path) -> None:
    found, lent = certified(compress(DATA, "fp16"), [made / "alone.json.gz"])
    assert isinstance(found, Safe) and found.statistics.reused_share > 0.5
    assert lent.placed == set(lent.files) and "by their places" in lent.store.warnings[0]
    for method in ("neurons20", "permute"):  # wrong or missing neurons cost time, never soundness
        found, lent = certified(compress(DATA, method), [made / "alone.json.gz"])
        assert isinstance(found, Safe) and found.checked


def test_a_proof_proves_nothing_by_itself(made: Path) -> None:
    worse = layers_to_onnx([*LAYERS[:-1], (LAYERS[-1][0], LAYERS[-1][1] + 1.0)])
    for sources in ([made / "whole.json"], [made / "alone.json.gz"]):
        found, _ = certified(worse, sources)
        assert found.word == "sat"


def test_a_folder_is_searched_for_proofs(made: Path, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text("{}")
    (tmp_path / "broken.json.gz").write_bytes(gzip.compress(b"{")[:-4])
    (tmp_path / "net.onnx").write_bytes(DATA)
    with pytest.raises(InputError, match="no proofs"):
        lend(query_of(DATA, PROP), [tmp_path])
    (tmp_path / "p.json").write_bytes((made / "whole.json").read_bytes())
    found, lent = certified(compress(DATA, "int8"), [tmp_path])
    assert list(lent.files.values()) == [tmp_path / "p.json"] and found.statistics.reused_share > 0.5


def test_another_property_needs_its_text(made: Path) -> None:
    smaller = prop(0.5)
    found, lent = certified(compress(DATA, "int8"), [made / "alone.json.gz"], DATA, under=smaller)
    assert isinstance(found, Safe) and not lent.files and "another property" in lent.store.warnings[0]
    found, lent = certified(DATA, [made / "whole.json"], under=smaller)
    assert isinstance(found, Safe) and lent.files and found.statistics.relation == "other-box"
    assert found.statistics.stored_leaves


def test_damaged_and_false_files(made: Path, tmp_path: Path) -> None:
    query = query_of(DATA, PROP)
    whole = json.loads((made / "whole.json").read_text())
    for damage in ({"network": "?"}, {"network": "AAAA"}, {"property": 3}, [], {"network": 5}):
        path = tmp_path / "damaged.json"
        path.write_text(json.dumps({**whole, "parent": damage}))
        with pytest.raises(ProofError):
            lend(query, [path])
    other = query_of(compress(DATA, "int4"), PROP)
    path.write_text(to_text(read_proof(made / "alone.json.gz"), enclosed(other)))  # another network than the proof's
    variant = query_of(compress(DATA, "int8"), PROP)
    lent = lend(variant, [path])
    assert not lent.files and "something else" in lent.store.warnings[0]
    with pytest.raises(OSError):
        lend(query, [tmp_path / "none.json"])


def test_the_checker_reads_a_file_with_its_network(made: Path) -> None:
    proof = read_proof(made / "whole.json")
    assert to_text(proof) == to_text(read_proof(made / "alone.json.gz"))
    assert Property(PROP).of(query_of(DATA, PROP).network).property_hash == proof.property
