"""The store filled with made-up results: they are distinct, found again, and the size holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mucg4.cli.main import main
from mucg4.lab.scale import COPIES, PROPERTIES, made_up, measure, proof_for
from mucg4.store.store import Store


def test_made_up_queries_are_distinct_and_families_share_properties() -> None:
    queries = list(made_up(np.random.default_rng(0), 2 * COPIES * PROPERTIES))
    assert len({q.key for q in queries}) == len(queries)
    assert len({q.property_hash for q in queries}) == 2 * PROPERTIES
    assert len({q.network.fingerprint for q in queries}) == 2 * COPIES


def test_a_made_up_proof_is_stored_and_found(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    (query,) = made_up(random, 1)
    with Store(tmp_path / "s") as store:
        assert store.save(query, "unsat", proof=proof_for(query, random))
        (found,) = store.related(query)
        assert found.proof is not None and store.warnings == []


def test_the_store_stays_within_its_size(tmp_path: Path) -> None:
    found = measure(120, tmp_path / "s", 1 << 20)
    assert found.saved == 120 and 10 < found.kept < 120 and found.bytes <= 1 << 20
    assert min(*found.save, *found.match) > 0


def test_the_command_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["store", "scale", "20", "--limit", "1"]) == 0
    text = capsys.readouterr().out
    assert "20 results saved, 20 kept" in text and "match" in text
    for text in ("0", "many"):
        with pytest.raises(SystemExit):
            main(["store", "scale", text])
