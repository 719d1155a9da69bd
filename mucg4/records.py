"""`dataclass`, made quickly: the standard decorator compiles up to six methods a class, this one the constructor alone.

About 180 classes are made in a run that a stored proof decides: 51 ms with the standard decorator, a third of its
start. The other methods are the same functions for all classes, and type checkers see the standard decorator: that
nothing is assigned to an instance of a class with `frozen` is checked by them, not when the program runs.
"""

from __future__ import annotations

import dataclasses
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
            out = dataclasses.dataclass(cls, eq=False, repr=False)
            for name, method in methods.items():
                if own.get(name) is None:
                    setattr(out, name, method)
            return out

        return made if cls is None else made(cls)


def _repr(self: Any) -> str:
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, f.name) for f in dataclasses.fields(self) if f.compare)


def _equal(self: Any, other: object) -> bool:
    return _compared(self) == _compared(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))
