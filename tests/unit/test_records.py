"""What classes of `mucg4.records` do that the standard decorator's do."""

from __future__ import annotations

import dataclasses
import pickle
from typing import ClassVar

import pytest

from mucg4.records import dataclass


@dataclass(frozen=True)
class Point:
    """Compared by its fields, but for one."""

    x: int
    y: float = 0.5
    note: str = dataclasses.field(default="", compare=False, repr=False)


@dataclass(frozen=True)
class Other(Point):
    """Equal to no Point."""


@dataclass(frozen=True, eq=False)
class Thing:
    """Equal to itself alone."""

    x: int


@dataclass
class Changing:
    """Has no hash."""

    x: int


@dataclass(frozen=True)
class Own:
    """With methods of its own."""

    x: int

    def __eq__(self, other: object) -> bool:
        return True

    def __repr__(self) -> str:
        return "mine"


def test_equality_and_hashes_are_those_of_the_fields_or_of_the_instance() -> None:
    assert Point(1) == Point(1, note="other") and hash(Point(1)) == hash(Point(1, note="other"))
    assert Point(1) != Point(2) and Point(1) != Other(1) and Point(1) != (1, 0.5)
    assert Thing(1) != Thing(1) and len({Thing(1), Thing(1)}) == 2
    assert Changing(1) == Changing(1)
    with pytest.raises(TypeError, match="unhashable"):
        hash(Changing(1))
    assert Own(1) == Own(2) and repr(Own(1)) == "mine"


def test_the_rest_of_the_standard_library_takes_them_for_its_own() -> None:
    assert repr(Point(1, note="hidden")) == "Point(x=1, y=0.5)"
    assert dataclasses.replace(Point(1), x=2) == Point(2)
    assert dataclasses.asdict(Other(3)) == {"x": 3, "y": 0.5, "note": ""}
    assert pickle.loads(pickle.dumps(Other(3))) == Other(3)
    with pytest.raises(TypeError, match="missing"):
        Point()  # type: ignore[call-arg]


@dataclass(frozen=True)
class Varied:
    """Fields of every kind."""

    x: int
    named: int = dataclasses.field(kw_only=True)
    made: list[int] = dataclasses.field(default_factory=list)
    fixed: str = dataclasses.field(default="fixed", init=False)
    own: list[int] = dataclasses.field(default_factory=list, init=False)
    seen: ClassVar[int] = 0

    def __post_init__(self) -> None:
        self.own.append(self.x)


@dataclass(frozen=True)
class Below(Varied):
    """Calls the constructor above its own."""

    y: int = 1

    def __init__(self, x: int) -> None:
        super().__init__(x, named=7)


def test_constructors_are_those_of_the_standard_decorator() -> None:
    assert (Below(2).named, Below(2).y, Below(2).own) == (7, 1, [2])
    for _ in range(2):  # the first call compiles what the second uses
        first, second = Varied(1, named=2), Varied(1, [3], named=2)
        assert (first.x, first.named, first.made, first.fixed, first.own) == (1, 2, [], "fixed", [1])
        assert second.made == [3] and first.made is not Varied(1, named=2).made
    for wrong in ((1, 2, 3, 4), ()):
        with pytest.raises(TypeError, match="argument"):
            Varied(*wrong, named=2)
    with pytest.raises(TypeError, match="named"):
        Varied(1)  # type: ignore[call-arg]
