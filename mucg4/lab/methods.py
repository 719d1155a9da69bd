"""Lists of compression methods as a user writes them: ranges, families, and the order from mild to hard.

`fp16,int8,prune10..60,neurons5..20` is a list; a range counts in the steps of its family, or in a stated step
(`prune10..30/5`). Methods that vary one thing are a family with an order: what holds at a hard level is expected to
hold at a milder one, which nothing here takes for granted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal

from mucg4.errors import InputError
from mucg4.lab.compress import edits_of
from mucg4.records import dataclass

MOST = 500  # methods of one list; given
_RANGE = re.compile(r"([a-z]+)([0-9]+(?:\.[0-9]+)?)\.\.([0-9]+(?:\.[0-9]+)?)(?:/([0-9]+(?:\.[0-9]+)?))?")
_RATED = re.compile(r"([a-z]+?)([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Family:
    """Methods `prefixN` that vary one thing: in which steps a range counts, and whether more of it is harder."""

    name: str
    step: str
    falls: bool  # a smaller N is harder


RATED = {
    "int": Family("width", "2", True),
    "prune": Family("prune", "10", False),
    "neurons": Family("neurons", "5", False),
    "zeroed": Family("zeroed", "5", False),
    "tune": Family("tune", "1", True),
}
# family and level of methods without a number; the last number orders methods of the same level
PLAIN = {"fp16": ("width", 16.0, 0), "bf16": ("width", 16.0, 1), "qdq8": ("width", 8.0, 0)}
ROUNDED = 1  # place of intN in its level: one scale per tensor loses more than one per channel; given


@dataclass(frozen=True)
class Method:
    """One method: its name as `compress` takes it, its family (`""`: none), and its place there, harder is larger."""

    name: str
    family: str = ""
    hardness: tuple[float, float] = (0.0, 0.0)

    @staticmethod
    def of(name: str) -> Method:
        """The method of this name; several joined by `+` have no family. Raises `InputError` for an unknown one."""
        edits_of(name)
        if name in PLAIN:
            family, level, place = PLAIN[name]
            return Method(name, family, (-level, place))
        m = _RATED.fullmatch(name)
        if m is None or m[1] not in RATED:
            return Method(name)
        kind, level = RATED[m[1]], float(m[2])
        return Method(name, kind.name, (-level if kind.falls else level, ROUNDED))


def methods_of(texts: Iterable[str]) -> list[Method]:
    """The methods in lists, each once: families as they first appear, each from its mildest to its hardest.

    Raises `InputError` for what is no method or no range.
    """
    names: list[str] = []
    for part in (p for text in texts for p in re.split(r"[\s,]+", text) if p):
        names += _spread(part)
    if not names:
        raise InputError("no methods: a list like fp16,int8,prune10..60 is needed")
    if len(names) > MOST:
        raise InputError(f"{len(names)} methods are too many (at most {MOST})")
    found = [Method.of(name) for name in dict.fromkeys(names)]
    families: dict[str, list[Method]] = {}
    for m in found:
        families.setdefault(m.family or m.name, []).append(m)
    return [m for family in families.values() for m in sorted(family, key=lambda m: m.hardness)]


def _spread(part: str) -> list[str]:
    """The names in one entry of a list."""
    if ".." not in part:
        return [part]
    m = _RANGE.fullmatch(part)
    if m is None or m[1] not in RATED:
        raise InputError(f"no range of methods: {part!r}; ranges are like {', '.join(f'{k}5..20' for k in RATED)}")
    first, last, step = Decimal(m[2]), Decimal(m[3]), Decimal(m[4] or RATED[m[1]].step)
    if not step or abs(last - first) / step > MOST:
        raise InputError(f"no range of methods: {part!r} has too many steps")
    count = int(abs(last - first) / step)
    way = step if last >= first else -step
    return [f"{m[1]}{_plain(first + k * way)}" for k in range(count + 1)]


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
