"""Tools side by side: which rows of their result files are the same instance, competition points, and time figures.

Points are those of the competition of 2026: +10 for a right answer, -150 for a wrong one, 0 for none; an answer after
the timeout is none. An instance is known to be sat when the known answer says so or somebody's witness was replayed;
then every unsat is wrong. Where sat and unsat meet and nothing is known, the rule for sat without a witness applies:
sat is wrong. Result files do not tell whether the other witnesses are valid: an undisputed sat counts as right.
A benchmark's score is 100 x own points / best tool's points, at least 0; the total is the sum over benchmarks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field

from mucg4.bench.claims import DECIDED, Entry, Parts, Results, category_key, parts_of, same_name
from mucg4.bench.table import geometric_mean
from mucg4.records import dataclass

RIGHT, WRONG = 10, -150  # points of VNN-COMP 2026; given
LEAST = 0.001  # seconds; shorter times count as this much in means and pictures; not measured


@dataclass(frozen=True)
class Claim:
    """What one tool says about one instance.

    `verdict` is `timeout` for an answer after the limit, which then is `late`. `seconds` is nan when not told.
    """

    verdict: str
    seconds: float
    late: str = ""
    witness: bool = False


@dataclass
class Line:
    """One instance and the claims about it, by tool. `answer`: the known one, else empty. `limit`: seconds."""

    category: str
    onnx: str
    vnnlib: str
    limit: float = math.nan
    answer: str = ""
    claims: dict[str, Claim] = field(default_factory=dict)

    def tools(self, verdict: str) -> list[str]:
        return [tool for tool, claim in self.claims.items() if claim.verdict == verdict]

    @property
    def truth(self) -> str:
        """The answer that is known: the stated one, or sat when a witness was replayed; else empty."""
        return self.answer or ("sat" if any(c.witness for c in self.claims.values()) else "")

    @property
    def open_conflict(self) -> bool:
        """Sat and unsat are claimed, and nothing tells which is right."""
        return not self.truth and bool(self.tools("sat")) and bool(self.tools("unsat"))

    def points(self, tool: str, witnessed: bool = False) -> int:
        """The tool's points; `witnessed`: as if the witnesses of an open conflict were valid."""
        if not self.is_decided(tool):
            return 0
        truth = self.truth
        if self.open_conflict:
            truth = "sat" if witnessed else "unsat"
        return RIGHT if truth in ("", self.claims[tool].verdict) else WRONG

    def is_decided(self, tool: str) -> bool:
        """True when the tool claims sat or unsat in time."""
        return tool in self.claims and self.claims[tool].verdict in DECIDED

    def solved(self, tool: str) -> bool:
        return self.points(tool) > 0

    def cost(self, tool: str) -> float:
        """Seconds for a right answer (the limit where they are not told), the limit for anything else."""
        claim = self.claims.get(tool)
        if claim is None or not self.solved(tool) or math.isnan(claim.seconds):
            return max(self.limit, LEAST)
        return max(claim.seconds, LEAST)

    def fastest(self) -> str:
        """The tool with the least time for a right answer; empty when there is none."""
        return min((tool for tool in self.claims if self.solved(tool)), key=self.cost, default="")

    def alone(self) -> str:
        """The only tool of several that solved it; else empty."""
        solvers = [tool for tool in self.claims if self.solved(tool)]
        return solvers[0] if len(solvers) == 1 and len(self.claims) > 1 else ""

    def remark(self, tools: Sequence[str]) -> str:
        """What is worth a look on this row; `tools`: all that are compared."""
        out = []
        if self.open_conflict:
            out.append("DISAGREE")
        wrong = [tool for tool in tools if self.points(tool) < 0]
        if self.truth and wrong:
            out.append("WRONG " + ", ".join(wrong))
        if self.answer and any(c.witness for c in self.claims.values()) and self.answer != "sat":
            out.append("witness against the known answer")
        if self.alone():
            out.append(f"only {self.alone()}")
        late = [tool for tool in tools if tool in self.claims and self.claims[tool].late]
        if late:
            out.append("late " + ", ".join(late))
        return "; ".join(out)


@dataclass(frozen=True)
class Figures:
    """One tool's numbers over some lines; times in seconds, of the lines it has. See `figures`."""

    tool: str
    rows: int
    sat: int
    unsat: int
    wrong: int
    median: float
    mean: float
    par2: float
    points: int

    @property
    def solved(self) -> int:
        return self.sat + self.unsat


@dataclass(frozen=True)
class Comparison:
    """Tools in the order given (the first is the one the others are held against) and all instances.

    `notes` are lines about what could not be used or had to be assumed.
    """

    tools: tuple[str, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    @property
    def categories(self) -> list[str]:
        return list(dict.fromkeys(line.category for line in self.lines))

    def of(self, category: str) -> list[Line]:
        return [line for line in self.lines if line.category == category]

    def common(self, lines: Iterable[Line]) -> list[Line]:
        """Those that all tools with any of them have."""
        lines = list(lines)
        present = {tool for line in lines for tool in line.claims}
        return [line for line in lines if present <= set(line.claims)]


VIRTUAL = "virtual best"


def figures(lines: Sequence[Line], tool: str) -> Figures:
    """Counts, median, geometric mean (unsolved counts as the limit), PAR2 (unsolved counts as twice the limit)."""
    own = [line for line in lines if tool in line.claims]
    return _figures(tool, [(line, tool if line.solved(tool) else "") for line in own], own, tool)


def virtual_best(lines: Sequence[Line]) -> Figures:
    """The figures of a tool that takes the fastest right answer of each line."""
    return _figures(VIRTUAL, [(line, line.fastest()) for line in lines], [], "")


def _figures(name: str, solvers: list[tuple[Line, str]], own: list[Line], tool: str) -> Figures:
    """`solvers`: each line with the tool that solved it, or empty; points are those of `tool` on `own`."""
    costs = [line.cost(by) for line, by in solvers]
    par2 = [line.cost(by) if by else 2 * line.limit for line, by in solvers]
    words = [line.claims[by].verdict for line, by in solvers if by]
    points = [line.points(tool) for line in own]
    return Figures(
        name,
        len(solvers),
        words.count("sat"),
        words.count("unsat"),
        sum(p < 0 for p in points),
        statistics.median(costs) if costs else math.nan,
        geometric_mean(costs),
        statistics.fmean(par2) if par2 else math.nan,
        sum(points) if own else RIGHT * len(words),
    )


def scores(lines: Sequence[Line], tools: Sequence[str], witnessed: bool = False) -> dict[str, float]:
    """The benchmark score of each tool over the lines of one benchmark."""
    points = {tool: sum(line.points(tool, witnessed) for line in lines) for tool in tools}
    best = max(points.values(), default=0)
    return {tool: max(0.0, 100 * p / best) if best > 0 else 0.0 for tool, p in points.items()}


# --- which rows are the same -----------------------------------------------------------------------------------

Identity = tuple[str, Parts, Parts]  # benchmark, network files, property file


def compare(results: Sequence[Results], reference: Sequence[Entry] = (), only: bool = False) -> Comparison:
    """Put the results side by side.

    `reference`: limits and known answers of instances. `only`: leave out what is not in it. Rows are the same instance
    when their benchmarks have the same name (or one tells no year), and their files the same stems in the same folders
    as far as both tell folders; the k-th row of an instance in one file meets the k-th in another.
    """
    sources = [list(reference), *[list(r.entries) for r in results]]
    keys = _benchmark_keys(sources)
    groups = _groups([entry for source in sources for entry in source], keys)
    notes = [note for r in results for note in r.notes]
    drafts: dict[tuple[int, int], _Draft] = {}
    for entry, key in _numbered(sources[0], groups, keys):
        drafts[key] = _Draft(Line(entry.category, entry.onnx, entry.vnnlib, entry.limit, entry.answer))
    for r, source in zip(results, sources[1:], strict=True):
        left_out = twice = 0
        for entry, key in _numbered(source, groups, keys):
            if only and key not in drafts:
                left_out += 1
                continue
            draft = drafts.setdefault(key, _Draft(Line(entry.category, entry.onnx, entry.vnnlib)))
            draft.entries[r.tool] = entry
            twice += key[1] == 2
        if twice:
            notes.append(f"{r.tool}: {twice} instances have several rows, compared in order")
        if left_out:
            notes.append(f"{r.tool}: {left_out} rows are not among those that were run, left out")
    kept = [draft for draft in drafts.values() if draft.entries]
    names: dict[str, str] = {}
    for draft in kept:
        line = draft.line
        line.category = names.setdefault(keys[line.category], line.category)
        if math.isnan(line.limit):
            told = (entry.limit for entry in draft.entries.values())
            line.limit = min((limit for limit in told if not math.isnan(limit)), default=math.nan)
    notes += _guess_limits(kept)
    for draft in kept:
        draft.line.claims = {tool: _claim(entry, draft.line.limit) for tool, entry in draft.entries.items()}
    order = list(names.values())
    lines = sorted((draft.line for draft in kept), key=lambda line: order.index(line.category))
    tools = tuple(r.tool for r in results)
    return Comparison(tools, tuple(lines), tuple(notes + _missing(lines, tools) + _other_editions(lines)))


@dataclass
class _Draft:
    """A line in the making, with what the files say about it, by tool."""

    line: Line
    entries: dict[str, Entry] = field(default_factory=dict)


def _numbered(
    source: list[Entry], groups: dict[Identity, int], keys: dict[str, str]
) -> Iterator[tuple[Entry, tuple[int, int]]]:
    """Each entry with its instance's number and how often that has come in this source."""
    seen: dict[int, int] = {}
    for entry in source:
        group = groups[_identity(entry, keys)]
        seen[group] = seen.get(group, 0) + 1
        yield entry, (group, seen[group])


def _benchmark_keys(sources: list[list[Entry]]) -> dict[str, str]:
    """Name of a benchmark -> what equals for the same one.

    A name without a year is the one with a year; where several years occur all are different benchmarks.
    """
    every = {entry.category for source in sources for entry in source}
    years: dict[str, set[str]] = {}
    for name in every:
        key, year = category_key(name)
        years.setdefault(key, set()).update([year] if year else [])
    keys = {name: category_key(name) for name in every}
    return {name: key if len(years[key]) < 2 else f"{key}_{year}" for name, (key, year) in keys.items()}


def _identity(entry: Entry, keys: dict[str, str]) -> Identity:
    return keys[entry.category], parts_of(entry.onnx, entry.category), parts_of(entry.vnnlib, entry.category)


def _groups(entries: list[Entry], keys: dict[str, str]) -> dict[Identity, int]:
    """Identity -> number of the instance it names.

    A name that tells fewer folders joins the one name that tells more; where several fit it stays alone.
    """
    buckets: dict[tuple[str, ...], list[Identity]] = {}
    for identity in dict.fromkeys(_identity(entry, keys) for entry in entries):
        category, onnx, vnnlib = identity
        bucket = (category, *[x[-1] for x in onnx], "", *[x[-1] for x in vnnlib])
        buckets.setdefault(bucket, []).append(identity)
    out: dict[Identity, int] = {}
    heads: list[Identity] = []
    for members in buckets.values():
        start = len(heads)
        for one in sorted(members, key=lambda m: -sum(len(x) for x in m[1] + m[2])):
            fits = [k for k in range(start, len(heads)) if _same(heads[k], one)]
            if len(fits) == 1:
                out[one] = fits[0]
            else:
                out[one] = len(heads)
                heads.append(one)
    return out


def _same(a: Identity, b: Identity) -> bool:
    return same_name(a[1], b[1]) and same_name(a[2], b[2])


def _claim(entry: Entry, limit: float) -> Claim:
    late = entry.verdict in DECIDED and entry.seconds > limit
    return Claim(
        "timeout" if late else entry.verdict,
        entry.seconds,
        entry.verdict if late else "",
        entry.witness and not late,
    )


def _guess_limits(drafts: list[_Draft]) -> list[str]:
    """Give lines without a limit the longest time seen in their benchmark; returns notes that say so."""
    per: dict[str, list[_Draft]] = {}
    for draft in drafts:
        per.setdefault(draft.line.category, []).append(draft)
    notes = []
    for category, members in per.items():
        unknown = [draft.line for draft in members if math.isnan(draft.line.limit)]
        times = [entry.seconds for draft in members for entry in draft.entries.values()]
        stand_in = max([t for t in times if not math.isnan(t)], default=LEAST)
        for line in unknown:
            line.limit = max(stand_in, LEAST)
        if unknown:
            count = "all" if len(unknown) == len(members) else str(len(unknown))
            notes.append(
                f"{category or 'no category'}: the timeouts of {count} rows are not known; the longest time seen,"
                f" {stand_in:.1f} s, stands in"
            )
    return notes


def _missing(lines: list[Line], tools: Sequence[str]) -> list[str]:
    """Notes about tools that have no row of some benchmarks, or nothing at all."""
    per: dict[str, list[str]] = {}
    for category in dict.fromkeys(line.category for line in lines):
        rows = [line for line in lines if line.category == category]
        absent = ", ".join(tool for tool in tools if not any(tool in line.claims for line in rows))
        per.setdefault(absent, []).append(category or "no category")
    return [f"no rows of {absent} in {', '.join(categories)}" for absent, categories in per.items() if absent]


def _other_editions(lines: list[Line]) -> list[str]:
    """Notes about benchmarks where all tools agree against the known answer: names may be alike and files not."""
    odd: dict[str, int] = {}
    for line in lines:
        claims = [c.verdict for c in line.claims.values() if c.verdict in DECIDED]
        if line.answer and len(claims) > 1 and line.answer not in claims:
            odd[line.category] = odd.get(line.category, 0) + 1
    return [
        f"{category}: on {count} rows several tools agree against the known answer; result files name instances"
        " but do not hold them, theirs may be of another edition of the benchmark"
        for category, count in odd.items()
    ]
