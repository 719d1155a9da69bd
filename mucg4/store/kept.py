"""What was decoded or derived from stored results, for a process that asks a store again and again.

Keys are contents: bytes as they are stored, fingerprints of networks. So nothing kept is ever out of date, whoever
writes to the store.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

MOST = 256  # values that are kept; not measured
MOST_BYTES = 2**26  # of the blobs whose decoded values are kept; not measured
T = TypeVar("T")


class Kept:
    """The last values that were asked for, by their keys. They must not be changed by whoever gets them."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, tuple[Any, int]] = OrderedDict()  # with the bytes of their blobs
        self._bytes = 0

    def of(self, key: Hashable, make: Callable[[], T], size: int = 0) -> T:
        """The value of this key, made where it is not there; what `make` raises is not kept."""
        if key in self._values:
            self._values.move_to_end(key)
            found: T = self._values[key][0]
            return found
        found = make()
        self._values[key] = found, size
        self._bytes += size
        while len(self._values) > MOST or self._bytes > MOST_BYTES:
            self._bytes -= self._values.popitem(last=False)[1][1]
        return found

    def decoded(self, what: str, blob: bytes, decode: Callable[[bytes], T]) -> T:
        """What a blob holds. Raises what `decode` raises."""
        return self.of((what, blob), lambda: decode(blob), len(blob))
