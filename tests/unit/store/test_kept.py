"""What a store keeps between look-ups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from examples import dense, text

from mucg4.lab.compress import compress
from mucg4.read.instance import Model, Property
from mucg4.reuse.relation import relate
from mucg4.settings import Settings
from mucg4.store import kept
from mucg4.store.kept import Kept
from mucg4.store.store import Store
from mucg4.verify import verify

RNG = np.random.default_rng(2)
DATA = dense([(RNG.normal(size=(b, a)), RNG.normal(size=b)) for a, b in ((2, 6), (6, 6), (6, 1))])
PROP = Property(text([(-1, 1), (-1, 1)], 1, "(>= Y_0 1000)"))


def test_values_are_made_once_and_the_oldest_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bytes] = []

    def decode(blob: bytes) -> int:
        made.append(blob)
        return len(blob)

    monkeypatch.setattr(kept, "MOST_BYTES", 10)
    held = Kept()
    assert [held.decoded("x", blob, decode) for blob in (b"aaaa", b"bbb", b"aaaa", b"cccccc", b"aaaa")] == [
        4,
        3,
        4,
        6,
        4,
    ]
    assert made == [b"aaaa", b"bbb", b"cccccc"]  # the first was used last when the third came
    assert held.decoded("x", b"bbb", decode) == 3 and held.decoded("x", b"d" * 11, decode) == 11
    assert made[3:] == [b"bbb", b"d" * 11]
    assert held.decoded("x", b"aaaa", decode) == 4 and made[-1] == b"aaaa"  # what is too large pushes all out

    def fail(blob: bytes) -> int:
        raise ValueError

    with pytest.raises(ValueError):
        held.decoded("x", b"e", fail)
    assert held.decoded("x", b"e", decode) == 1


def test_look_ups_of_one_store_share_what_they_decode(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        verify(Model(DATA).under(PROP), Settings(workers=1), store)
        variant = Model(compress(DATA, "int8"))
        first, second = (store.related(variant.under(PROP))[0] for _ in range(2))
        assert first is not second
        assert first.network is second.network and first.proof is second.proof is not None
        assert relate(first, variant.under(PROP)) is relate(second, variant.under(PROP))
        other = Model(compress(DATA, "prune30"))
        assert relate(first, other.under(PROP)).relation == "pruned-weights"
    with Store(tmp_path / "s.sqlite") as store:
        assert store.related(variant.under(PROP))[0].network is not first.network


def test_a_better_proof_replaces_what_was_kept(tmp_path: Path) -> None:
    query = Model(DATA).under(PROP)
    variant = Model(compress(DATA, "int8")).under(PROP)
    with Store(tmp_path / "s.sqlite") as store, Store(tmp_path / "s.sqlite") as another:
        verify(query, Settings(workers=1), store)
        old = store.related(variant)[0].proof
        another._database.connection.execute("UPDATE results SET evidence = zeroblob(5)")
        assert store.related(variant)[0].proof is None and store.warnings
        another.clear()
        assert store.related(variant) == []
        verify(query, Settings(workers=1), another)
        new = store.related(variant)[0].proof
        assert old is not None and new is not None and len(new.trees) == len(old.trees)
