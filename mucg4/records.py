"""`dataclass`, made quickly: the standard decorator compiles up to six methods a class, this one the constructor alone,
and that when the class is first called.

About 170 classes are made in a run that a stored proof decides, and half of them called: 51 ms with the standard
decorator, a third of its start. The other methods are the same functions for all classes, and type checkers see the
standard decorator: that nothing is assigned to an instance of a class with `frozen`, and that no field without
a default comes after one with it, is checked by them, not when the program runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, /, *, eq=True, frozen=False, **options):
        """As `dataclasses.dataclass`, but see the module text."""

        def made(cls):
            if options:
                return dataclasses.dataclass(cls, eq=eq, frozen=frozen, **options)
            own = vars(cls)
            methods = {"__repr__": _repr}
            if eq:
                methods |= {"__eq__": _equal, "__hash__": _hash if frozen else None}
            cls.__doc__ = cls.__doc__ or cls.__name__  # else the signature is looked up for it
            out = dataclasses.dataclass(cls, eq=False, repr=False, init=False)
            methods["__init__"] = _first_call(out)
            for name, method in methods.items():
                if own.get(name) is None:
                    setattr(out, name, method)
            return out

        return made if cls is None else made(cls)


def _first_call(cls: Any) -> Callable[..., None]:
    """Constructor of the data class `cls` until its first call, which compiles the one that takes its place."""

    def __init__(self: Any, *values: Any, **named: Any) -> None:
        made = _constructor(cls)
        if vars(cls)["__init__"] is __init__:
            cls.__init__ = made
        made(self, *values, **named)

    return __init__


def _constructor(cls: type) -> Callable[..., None]:
    """The constructor that the standard decorator would make of the fields of `cls`, of which none is an `InitVar`."""
    given: list[str] = []
    by_name: list[str] = []
    body: list[str] = []
    names: dict[str, Any] = {"_new": dataclasses.MISSING}
    for f in dataclasses.fields(cls):
        names |= {f"_default_{f.name}": f.default, f"_make_{f.name}": f.default_factory}
        made = f.default_factory is not dataclasses.MISSING
        default = " = _new" if made else "" if f.default is dataclasses.MISSING else f" = _default_{f.name}"
        value = f.name if f.init else "_new"
        if f.init:
            (by_name if f.kw_only else given).append(f.name + default)
        if made:
            value = f"_make_{f.name}() if {value} is _new else {value}"
        if f.init or made:
            body.append(f"self.{f.name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    arguments = ", ".join(["self", *given, *(["*", *by_name] if by_name else [])])
    exec(f"def __init__({arguments}):\n " + "\n ".join(body or ["pass"]), names)
    made = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"  # what errors say
    return made  # type: ignore[no-any-return]


def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.compare)


def _equal(self: Any, other: object) -> bool:
    return _compared(self) == _compared(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))
