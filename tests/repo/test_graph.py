"""Import directions: no layer imports one above it, the checker stands alone, and people read the code's own graph."""

from __future__ import annotations

import pytest
from repo.graph import arrows, files, layer, levels, render, shown

# What the checker may stand on: no way of searching, bounding or reading is shared with what it checks.
BELOW_THE_CHECKER = {"records", "errors", "limits", "ops", "model"}


def test_no_layers_import_each_other() -> None:
    levels(arrows())


def test_no_import_cycles_between_files() -> None:
    """Late imports count, and imports for annotations alone; the checker's readers of operators are given the object
    that calls them, and may name its type.
    """
    levels(files())
    typed = files(types_too=True)
    levels({m: {n for n in found if layer(n) != "check"} for m, found in typed.items()})


def test_a_cycle_is_noticed() -> None:
    with pytest.raises(ValueError, match="other: a, b$"):
        levels({"a": {"b", "d"}, "b": {"a"}, "c": {"a"}, "d": set()})


def test_the_graph_in_contributing_is_the_code_s() -> None:
    assert shown() == render(arrows()), "python -m tests.repo.graph --write puts it right; is every new arrow wanted?"


def test_the_checker_stands_alone() -> None:
    graph = arrows()
    assert graph["check"] <= BELOW_THE_CHECKER
    for name in BELOW_THE_CHECKER:
        assert graph[name] <= BELOW_THE_CHECKER, name
