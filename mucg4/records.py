"""`dataclass` for a program that ends in half a second: the constructor is compiled when the first value is made.

The standard decorator compiles up to six functions for every class as its module is loaded. That was 50 of the 400 ms
of processor time of a small run, most of it for classes the run never used (CPython 3.11, some 130 classes). Here only
`__init__` is compiled, at the first call; the other methods are the same functions for all classes. Everything in the
standard module that looks at fields (`fields`, `replace`, `asdict`, `is_dataclass`) works as ever.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, FrozenInstanceError
from operator import attrgetter
from typing import TYPE_CHECKING, Any

ABSENT: Any = object()  # stands for an argument that was not given


def _constructor(cls: type, frozen: bool) -> Callable[..., None]:
    """`__init__` as the standard decorator would write it."""
    scope: dict[str, Any] = {"_absent_": ABSENT, "_put_": object.__setattr__}
    plain: list[str] = ["self"]
    named: list[str] = []  # by keyword only
    body: list[str] = []
    for f in dataclasses.fields(cls):
        value, default = f.name, ""
        if f.default_factory is not MISSING:
            scope[f"_make_{f.name}"] = f.default_factory
            value = f"_make_{f.name}()" + (f" if {f.name} is _absent_ else {f.name}" if f.init else "")
            default = "=_absent_"
        elif f.default is not MISSING:
            scope[f"_default_{f.name}"] = f.default
            default = f"=_default_{f.name}"
        if f.init:
            (named if f.kw_only else plain).append(f.name + default)
        elif f.default_factory is MISSING:
            continue  # the class holds the default, or `__post_init__` sets it
        body.append(f"_put_(self, {f.name!r}, {value})" if frozen else f"self.{f.name} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    arguments = ", ".join([*plain, *(["*", *named] if named else [])])
    exec(f"def __init__({arguments}):\n  " + "\n  ".join(body or ["pass"]), scope)
    made: Callable[..., None] = scope["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


def _set_refused(self: Any, name: str, value: Any) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _delete_refused(self: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _text(self: Any) -> str:
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({shown})"


def _state(self: Any) -> list[Any]:
    return [getattr(self, f.name) for f in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:
    for f, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, f.name, value)


def _comparisons(cls: type, frozen: bool) -> dict[str, Any]:
    names = [f.name for f in dataclasses.fields(cls) if f.compare]
    # one name alone would give its value, no tuple; no name at all nothing
    key = attrgetter(*names, names[-1]) if names else lambda self: ()

    def __eq__(self: Any, other: Any) -> bool:
        return key(self) == key(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(key(self))

    return {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}


if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(cls=None, /, *, eq=True, frozen=False, slots=False):
        """The standard decorator with these options, see the module text."""

        def made(cls: type) -> type:
            own = set(vars(cls))
            if cls.__doc__ is None:
                cls.__doc__ = cls.__name__  # the standard one writes the signature here, which takes long
            cls = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)(cls)

            def __init__(self: Any, *arguments: Any, **named: Any) -> None:
                cls.__init__ = _constructor(cls, frozen)
                cls.__init__(self, *arguments, **named)

            methods = {"__init__": __init__, "__repr__": _text}
            if eq:
                methods |= _comparisons(cls, frozen)
            if frozen:
                methods |= {"__setattr__": _set_refused, "__delattr__": _delete_refused}
            if frozen and slots:
                methods |= {"__getstate__": _state, "__setstate__": _set_state}
            for name, method in methods.items():
                if name not in own or (name == "__hash__" and "__eq__" in own and cls.__hash__ is None):
                    setattr(cls, name, method)
            return cls

        return made if cls is None else made(cls)
