"""The set of open regions: a pool of slots in large arrays, popped in batches."""

from __future__ import annotations

from typing import Any

import numpy as np

from mucg4.ops.base import Array

LARGE_BYTES = 1 << 28  # beyond, growing by doubling would hold too much memory that is never used; not measured


class Frontier:
    """Named arrays with one slot per open region; grows by doubling while small, slots are reused.

    `value` must be among the fields; `pop` returns the slots with the smallest values first (best
    first) until more than `limit` regions are open, then the newest ones (depth first).
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.arrays: dict[str, Array] = {}
        self.free = np.empty(0, dtype=np.int64)
        self.used = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.used)

    def push(self, **fields: Array) -> None:
        """Add regions; all fields have the same first axis."""
        count = len(fields["value"])
        if not count:
            return
        if not self.arrays:
            self.arrays = {f: np.empty((0, *a.shape[1:]), dtype=a.dtype) for f, a in fields.items()}
        if len(self.free) < count:
            size = len(self.arrays["value"])
            bytes_ = sum(a.nbytes for a in self.arrays.values())
            more = max(count, size if bytes_ < LARGE_BYTES else size // 4)
            for f, a in self.arrays.items():
                self.arrays[f] = np.concatenate([a, np.empty((more, *a.shape[1:]), dtype=a.dtype)])
            self.free = np.concatenate([self.free, np.arange(size, size + more)])
        slots, self.free = self.free[:count], self.free[count:]
        for f, a in fields.items():
            self.arrays[f][slots] = a
        self.used = np.concatenate([self.used, slots])

    def pop(self, count: int) -> dict[str, Any]:
        """Remove and return up to `count` regions as copies of their fields."""
        if len(self.used) <= count:
            chosen = np.arange(len(self.used))
        elif len(self.used) > self.limit:
            chosen = np.arange(len(self.used) - count, len(self.used))
        else:
            chosen = np.argpartition(self.arrays["value"][self.used], count - 1)[:count]
        slots = self.used[chosen]
        keep = np.ones(len(self.used), dtype=bool)
        keep[chosen] = False
        self.used = self.used[keep]
        self.free = np.concatenate([self.free, slots])
        return {f: a[slots] for f, a in self.arrays.items()}

    def content(self, fields: tuple[str, ...] = ()) -> dict[str, Array]:
        """All open regions as copies of their fields (these or all), in order."""
        return {f: a[self.used] for f, a in self.arrays.items() if not fields or f in fields}

    def replace(self, content: dict[str, Array]) -> None:
        """Hold these regions instead."""
        self.arrays, self.free, self.used = {}, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        if content:
            self.push(**content)

    def deal(self, parts: int) -> list[dict[str, Array]]:
        """The open regions dealt out like cards, lowest values first; together the parts hold all of them."""
        order = self.used[np.argsort(self.arrays["value"][self.used], kind="stable")]
        return [{f: a[order[k::parts]] for f, a in self.arrays.items()} for k in range(parts)]

    def lowest(self) -> float:
        """Smallest value among open regions, nan when none is open."""
        return float(self.arrays["value"][self.used].min()) if len(self.used) else float("nan")
