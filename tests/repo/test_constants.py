"""Numbers at the tops of modules say what they mean and where they come from; see `constants.py`."""

from __future__ import annotations

from repo.constants import constants, constants_of


def test_every_number_says_where_it_comes_from() -> None:
    silent = [f"{c.module}:{c.line} {c.name}" for c in constants() if not c.kind]
    assert not silent, "say what it means and: measured (by what), not measured, or given"


def test_what_counts(tmp_path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "# what it means; not measured\nA, B = 1, -2.0\nC = 3  # seconds; measured: 2 and 4 are slower\n"
        "D = (1.0, -2.0)  # a given slope\nE: int = 1 << 4  # given\nf = 5\nG = 'text'\nH = A * 2\n"
    )
    kinds = {c.name: c.kind for c in constants_of("module", path)}
    assert kinds == {"A": "chosen", "B": "chosen", "C": "measured", "D": "", "E": "given", "H": ""}
