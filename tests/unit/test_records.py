"""`mucg4.records.dataclass` makes the classes that the standard decorator makes."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mucg4.records import dataclass

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = [{"frozen": f, "eq": e, "slots": s} for f in (False, True) for e in (False, True) for s in (False, True)]


def example(decorator: Callable[..., Any], options: dict[str, bool]) -> Any:
    class Example:
        first: int
        second: list[int] = dataclasses.field(default_factory=list)
        third: str = dataclasses.field(default="x", compare=False)
        fourth: float = dataclasses.field(default=1.5, repr=False, kw_only=True)

    return decorator(**options)(Example)


def outcome(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except (TypeError, AttributeError):  # which of them differs with the version of Python
        return "refused"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_as_the_standard_decorator(options: dict[str, bool]) -> None:
    def seen(decorator: Callable[..., Any]) -> list[Any]:
        cls = example(decorator, options)
        a, b, c = cls(1), cls(1, [], "y"), cls(1, [2], fourth=0.0)
        return [
            [dataclasses.asdict(v) for v in (a, b, c)],
            dataclasses.asdict(dataclasses.replace(a, first=2)),
            [(f.name, f.type, f.init, f.compare) for f in dataclasses.fields(cls)],
            [repr(v).rpartition(".")[2] for v in (a, b, c)],
            [a == b, a == c, a == a, a != b, a == 1],
            [outcome(lambda v=v: type(hash(v))) for v in (a, b)],
            outcome(lambda: setattr(a, "first", 3)),
            outcome(lambda: delattr(b, "first")),
            outcome(lambda: setattr(c, "other", 3)),
            outcome(lambda: c.first),
            [outcome(lambda: cls()), outcome(lambda: cls(1, [], "x", 2.0)), outcome(lambda: cls(1, nothing=2))],
            dataclasses.asdict(copy.deepcopy(c)),
            cls.__match_args__,
            dataclasses.is_dataclass(cls),
            cls(1).second is not cls(1).second,
        ]

    assert seen(dataclass) == seen(dataclasses.dataclass)


@dataclass(frozen=True)
class Base:
    number: int
    kind: str = dataclasses.field(default="base", init=False)
    seen: list[int] = dataclasses.field(default_factory=list, init=False, compare=False)

    def __post_init__(self) -> None:
        self.seen.append(self.number)


@dataclass(frozen=True)
class Derived(Base):
    more: int = 0
    kind: str = dataclasses.field(default="derived", init=False)

    def __hash__(self) -> int:
        return 7


@dataclass(frozen=True, slots=True)
class Slots:
    number: int = 1


def test_inheritance_and_own_methods() -> None:
    base, derived = Base(3), Derived(3, 4)
    assert (base.kind, derived.kind, derived.more, derived.seen) == ("base", "derived", 4, [3])
    assert base == Base(3) and hash(base) == hash(Base(3)) and derived == Derived(3, 4) != base
    assert hash(derived) == 7 and Base.__init__ is not Derived.__init__
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'more'"):
        derived.more = 5  # type: ignore[misc]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'number'"):
        Base()  # type: ignore[call-arg]


def test_a_value_that_was_never_constructed_here_is_whole() -> None:
    """Pickled by one process, read by another that has made no value of that class."""
    code = f"""
import pickle, sys, dataclasses
sys.path.insert(0, {str(Path(__file__).parent)!r})
a, b, c = pickle.loads({pickle.dumps((Base(1), Derived(2, 3), Slots(4)))!r})
assert (a.number, b.more, c.number) == (1, 3, 4) and a == a and hash(a) == hash((1, "base", "base")) and a != b
assert hash(c) == hash((4, 4)) and repr(c) == "Slots(number=4)"
for value in (a, b, c):
    try:
        value.number = 5
    except dataclasses.FrozenInstanceError:
        continue
    sys.exit("not frozen")
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
