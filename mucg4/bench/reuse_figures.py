"""What reuse gains, from records: rows run with the store and from scratch, pair by pair, and figures over groups.

Factor: seconds from scratch over seconds with the store, the median over the pairs of a row, the geometric mean over
rows. It is taken over rows whose answer is the same in all runs of both ways; a row that one way decides less often
than the other is lost or gained, and named. Leaves of one row count alike, rows by the seconds of their runs from
scratch: records say nothing of the work below single leaves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from mucg4.bench.results import Record
from mucg4.bench.table import DECIDED, geometric_mean
from mucg4.errors import InputError
from mucg4.records import dataclass

# a factor of the seconds from scratch, and seconds besides: what nearly every row with the store may take, and what
# none should exceed; given
WITHIN, BEYOND = (1.1, 0.1), (1.25, 0.2)
CLOSING = ("checked", "near", "cores")  # rungs that close a stored leaf with neither search nor ascent


@dataclass(frozen=True)
class Line:
    """One variant row. `runs[mode]` holds its records, one per pair, in order; stages may have but the first.

    `method` and `parent` are how the network was made and what its parent's row came to, empty where that was not run.
    """

    category: str
    onnx: str
    vnnlib: str
    method: str
    parent: str
    runs: dict[str, tuple[Record, ...]]

    def wall(self, mode: str) -> float:
        """Median seconds of the whole process."""
        return median(float(r["wall"]) for r in self.runs[mode])

    def verdict(self, mode: str) -> str:
        """The verdict of all runs; the different ones joined where they are not the same."""
        return "/".join(dict.fromkeys(r["verdict"] for r in self.runs[mode]))

    def is_decided(self, mode: str) -> bool:
        """True when all runs came to the same answer."""
        return self.verdict(mode) in DECIDED

    def factor(self, mode: str) -> float:
        """Seconds from scratch over those of the mode, the median over the pairs."""
        pairs = zip(self.runs["scratch"], self.runs[mode], strict=False)
        return median(float(s["wall"]) / max(float(r["wall"]), 1e-9) for s, r in pairs)

    @property
    def is_lost(self) -> bool:
        """True when some pair was decided from scratch alone."""
        pairs = zip(self.runs["scratch"], self.runs["store"], strict=True)
        return any(s["verdict"] in DECIDED and r["verdict"] not in DECIDED for s, r in pairs)

    @property
    def is_gained(self) -> bool:
        """True when every run with the store decided it, and some run from scratch did not."""
        return self.is_decided("store") and not all(r["verdict"] in DECIDED for r in self.runs["scratch"])

    @property
    def differs(self) -> bool:
        """True when sat and unsat were claimed, in whatever run, be it too late."""
        claims = {r.get("claimed", r["verdict"]) for records in self.runs.values() for r in records}
        return claims >= set(DECIDED)

    @property
    def is_comparable(self) -> bool:
        """True when both ways decided it, in all runs."""
        return self.is_decided("scratch") and self.is_decided("store")

    def keeps(self, bound: tuple[float, float]) -> bool:
        """True when the store lost nothing and cost at most a factor of the seconds from scratch, plus some."""
        factor, more = bound
        return not self.is_lost and self.wall("store") <= factor * self.wall("scratch") + more

    def closed(self, rungs: Sequence[str]) -> float | None:
        """The share of the stored leaves that these rungs closed, None where no stored proof was used."""
        record = self.runs["store"][0]
        stored = record.get("stored_leaves", 0)
        return sum(record["rungs"].get(rung, 0) for rung in rungs) / stored if stored else None

    @property
    def is_checked(self) -> bool:
        """True when the checker accepted a proof in every run of both ways."""
        return all(r.get("checker") == "accepted" for mode in ("store", "scratch") for r in self.runs[mode])


@dataclass(frozen=True)
class Band:
    """Rows whose runs from scratch take at least `low` and less than `high` seconds."""

    low: float
    high: float = math.inf

    @property
    def name(self) -> str:
        if self.high == math.inf:
            return f">= {self.low:g} s" if self.low else "all"
        return f"{self.low:g}-{self.high:g} s" if self.low else f"< {self.high:g} s"

    def holds(self, line: Line) -> bool:
        return self.low <= line.wall("scratch") < self.high


def read_bands(text: str) -> tuple[Band, ...]:
    """`A:B,A:,...` in seconds. Raises `InputError`."""
    out = []
    for part in text.split(","):
        low, colon, high = part.partition(":")
        try:
            band = Band(float(low or 0), float(high or math.inf))
        except ValueError:
            colon = ""
        if not colon or not 0 <= band.low < band.high:
            raise InputError(f"--bands wants A:B,A:B,... with A below B (seconds; either may be missing), not {text!r}")
        out.append(band)
    return tuple(out)


@dataclass(frozen=True)
class Group:
    """Rows that are counted together; the name of the list and of the methods, and the band."""

    category: str
    method: str
    band: str
    lines: tuple[Line, ...]


def groups_of(lines: Sequence[Line], bands: Sequence[Band], together: Sequence[Sequence[str]] = ()) -> list[Group]:
    """Per list each method and all of them, then over all lists the methods named `together` and all; none is empty."""
    categories = list(dict.fromkeys(line.category for line in lines))
    sets: list[tuple[str, str, list[Line]]] = []
    for category in categories:
        own = [line for line in lines if line.category == category]
        methods = list(dict.fromkeys(line.method for line in own))
        sets += [(category, method, [line for line in own if line.method == method]) for method in methods]
        sets.append((category, "all", own))
    sets += [("all", ", ".join(names), [line for line in lines if line.method in names]) for names in together]
    if len(categories) > 1:
        sets.append(("all", "all", list(lines)))
    found = [
        Group(category, method, band.name, tuple(line for line in own if band.holds(line)))
        for category, method, own in sets
        for band in bands
    ]
    return [group for group in found if group.lines]


@dataclass(frozen=True)
class Figures:
    """Numbers of a group of rows that scratch decides; nan where there is nothing to count.

    `rows`: all of them, `borrowed`: those with a stored proof. `factor`, `worst`: over the `compared` ones. `within`:
    the share within WITHIN, `beyond`: those above BEYOND or lost. `closed`, `ascent`: shares of the stored leaves.
    """

    rows: int
    borrowed: int
    compared: int
    factor: float
    worst: float
    within: float
    beyond: int
    lost: int
    differing: int
    closed: float
    ascent: float
    checked: int


def figures(lines: Sequence[Line]) -> Figures:
    """See `Figures`."""
    compared = [line for line in lines if line.is_comparable]
    factors = [line.factor("store") for line in compared]
    return Figures(
        rows=len(lines),
        borrowed=sum(line.closed(()) is not None for line in lines),
        compared=len(compared),
        factor=geometric_mean(factors),
        worst=min(factors, default=math.nan),
        within=sum(line.keeps(WITHIN) for line in lines) / len(lines) if lines else math.nan,
        beyond=sum(not line.keeps(BEYOND) for line in lines),
        lost=sum(line.is_lost for line in lines),
        differing=sum(line.differs for line in lines),
        closed=weighted(lines, CLOSING),
        ascent=weighted(lines, ("ascent",)),
        checked=sum(line.is_checked for line in lines),
    )


def weighted(lines: Sequence[Line], rungs: Sequence[str]) -> float:
    """Share of the stored leaves that the rungs closed, rows weighted by their seconds from scratch; nan of none."""
    shares = [(line.wall("scratch"), share) for line in lines for share in [line.closed(rungs)] if share is not None]
    total = sum(weight for weight, _ in shares)
    return sum(weight * share for weight, share in shares) / total if total else math.nan
