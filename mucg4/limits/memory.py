"""How much memory a process and its descendants hold, and how much this machine can give, read from /proc.

The control groups that bound a container count too: the kernel ends a process that outgrows them like one that outgrows
the machine. Where the system does not tell (no /proc), nothing is known and no limit holds.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

SHARE = 0.8  # of what is free at start, for a run without a stated limit; not measured
SOFT = 0.95  # of the limit: loops end here, so that they still say what they know; not measured
PAGE = os.sysconf("SC_PAGE_SIZE")
# bytes per second a process may grow; the nearer the limit, the sooner one looks again; not measured
GROWTH = 4 * 2**30
PACE = (0.05, 0.5)  # seconds between two looks, at least and at most; not measured

_GIVEN_UP = re.compile("bad_?alloc|bad allocation|out of memory|failed to allocate|cannot allocate", re.IGNORECASE)


def limit_bytes(gib: float | None) -> float:
    """The limit of this run in bytes: `gib`, or what is held now and a share of what is free."""
    return gib * 2**30 if gib is not None else family_bytes(os.getpid()) + SHARE * free_bytes()


def pace(room: float) -> float:
    """Seconds until the next look when `room` bytes are left."""
    return min(max(room / GROWTH, PACE[0]), PACE[1])


def reached(limit: float) -> str:
    """The reason of a run that ends at its limit."""
    return f"memory limit of {limit / 2**30:.2f} GiB reached"


def is_exhaustion(error: BaseException) -> bool:
    """True for a failed allocation: Python's own error, or what native libraries make of it."""
    return isinstance(error, MemoryError) or bool(_GIVEN_UP.search(str(error)))


def family_bytes(pid: int, exact_above: float = float("inf"), root: Path = Path("/")) -> int:
    """Resident bytes of a process and its descendants; 0 when it is gone.

    Pages that a forked process shares with its parent count twice at first. Where that sum is above `exact_above` and
    there are descendants, shared pages are divided among those who share them; this costs more.
    """
    family = [pid, *descendants(pid, root)]
    total = sum(_resident(p, root) for p in family)
    if total > exact_above and len(family) > 1:
        return sum(_proportional(p, root) for p in family)
    return total


def _resident(pid: int, root: Path) -> int:
    try:
        return int((root / f"proc/{pid}/statm").read_bytes().split()[1]) * PAGE
    except (OSError, IndexError, ValueError):
        return 0


def _proportional(pid: int, root: Path) -> int:
    try:
        found = re.search(rb"^Pss:\s+(\d+) kB", (root / f"proc/{pid}/smaps_rollup").read_bytes(), re.MULTILINE)
    except OSError:
        found = None
    return int(found.group(1)) * 1024 if found else _resident(pid, root)


def descendants(pid: int, root: Path = Path("/")) -> list[int]:
    """The living descendants of a process."""
    found: list[int] = []
    table: dict[int, list[int]] | None = None
    parents = [pid]
    while parents:
        parent = parents.pop()
        children = _listed(parent, root)
        if children is None:  # not every kernel keeps these lists
            table = _all_children(root) if table is None else table
            children = table.get(parent, [])
        new = [c for c in children if c not in found]
        found += new
        parents += new
    return found


def _listed(pid: int, root: Path) -> list[int] | None:
    try:
        tasks = os.listdir(root / f"proc/{pid}/task")
        lists = [(root / f"proc/{pid}/task/{task}/children").read_bytes() for task in tasks]
    except OSError:
        return None
    return [int(child) for text in lists for child in text.split()]


def _all_children(root: Path) -> dict[int, list[int]]:
    """Process -> its children, from a look at every process."""
    out: dict[int, list[int]] = {}
    for name in os.listdir(root / "proc") if (root / "proc").is_dir() else ():
        if name.isdigit():
            try:
                fields = (root / f"proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                out.setdefault(int(fields[1]), []).append(int(name))
            except (OSError, IndexError, ValueError):
                continue  # it ended meanwhile
    return out


def free_bytes(root: Path = Path("/")) -> float:
    """Bytes that can still be used here; infinity when the system does not tell."""
    try:
        found = re.search(rb"^MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_bytes(), re.MULTILINE)
    except OSError:
        found = None
    machine = int(found.group(1)) * 1024.0 if found else float("inf")
    return max(min(machine, _group_room(root)), 0.0)


def _group_room(root: Path) -> float:
    """Bytes that the control groups of this process (both versions) still leave; infinity without a limit."""
    room = float("inf")
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return room
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers == "":
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        folder = top / path.strip("/")
        for place in (folder, *folder.parents):
            if not place.is_relative_to(top):
                break
            room = min(room, _room_of(place, *names))
    return room


def _room_of(place: Path, limit: str, used: str, cache: str) -> float:
    """What one control group leaves; the part of the file cache that goes first is not in use."""
    try:
        bound, taken = float((place / limit).read_text()), float((place / used).read_text())
    except (OSError, ValueError):  # no such group here, or the word `max`
        return float("inf")
    try:
        found = re.search(rf"^{cache} (\d+)$", (place / "memory.stat").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return bound - taken + (float(found.group(1)) if found else 0.0)
