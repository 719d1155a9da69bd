"""The packed form of proofs taken apart and put together again, and mutants of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

MAGIC = b"mp1\n"
Rng = np.random.Generator
Columns = dict[str, Any]
WHOLES = (0, 1, -1, 2, 3, 127, 255, 32767, 2**31 - 1, -(2**31))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"))
CODES = ("f8", "f4", "i4", "i2", "i1", "u1", "i8", "O8", "U9", "b1", "x", "")

_PACK: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "zlib": lambda body: zlib.compress(body, 1),
    "zstd": lambda body: zstandard.ZstdCompressor().compress(body),
}
_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "zlib": zlib.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
}


def opened(blob: bytes) -> tuple[dict[str, Any], Columns]:
    """Head and columns that are not empty, in the order of the body."""
    start = 8 + int.from_bytes(blob[4:8], "little")
    head, body = json.loads(blob[8:start]), blob[start:]
    body = _UNPACK[head["packing"]](body)
    columns, at = {}, 0
    for name, (code, count) in head["columns"].items():
        columns[name] = np.frombuffer(body, "<" + code, count, at).copy()
        at += columns[name].nbytes
    assert at == len(body)
    return head, columns


def closed(head: dict[str, Any], columns: Columns, restate: bool = True) -> bytes:
    """The inverse; `restate`: the head says what the columns are, whatever it said before."""
    body = b"".join(c.tobytes() for c in columns.values())
    if restate:
        stated = {name: [c.dtype.str[1:], len(c)] for name, c in columns.items()}
        head = {**head, "size": len(body), "columns": stated}
    text = json.dumps(head).encode()
    text += b" " * (-(8 + len(text)) % 8)
    packed = _PACK.get(str(head.get("packing")), bytes)(body)
    return b"".join([MAGIC, len(text).to_bytes(4, "little"), text, packed])


def mutate_packed(blob: bytes, rng: Rng, strange: Callable[[Rng], Any]) -> bytes:
    """One or two changes: of the columns' numbers and lengths, of what the head states, of bytes.

    `strange` makes JSON values of the wrong kind.
    """
    head, columns = opened(blob)
    restate = True
    for _ in range(int(rng.integers(1, 3))):
        kind = rng.random()
        if kind < 0.85:
            _mutate_columns(columns, rng)
        elif kind < 0.95:
            restate &= not _mutate_head(head, columns, rng, strange)
        else:
            head["packing"] = str(rng.choice([name for name in _PACK if name != head["packing"]]))
    out = bytearray(closed(head, columns, restate))
    if rng.random() < 0.15:
        for _ in range(int(rng.integers(1, 4))):
            k = int(rng.integers(len(out)))
            out[k] = int(rng.integers(256))
        out = out[: int(rng.integers(len(out)))] if rng.random() < 0.2 else out
    return bytes(out)


def _pick(rng: Rng, items: Any) -> Any:
    return items[int(rng.integers(len(items)))]


def _mutate_columns(columns: Columns, rng: Rng) -> None:
    """One change of the numbers, in place."""
    name = _pick(rng, [n for n, c in columns.items() if len(c)] or [""])
    if not name:
        return
    column, kind = columns[name], int(rng.integers(14))
    k, j = (int(v) for v in rng.integers(len(column), size=2))
    counts = [n for n, c in columns.items() if n.endswith(("count", "rows", "nodes")) and len(c) > 1]
    with np.errstate(all="ignore"):
        if kind <= 3 or kind > 8:
            column[k] = _changed(column[k], column, rng)
        elif kind == 4:
            column[[k, j]] = column[[j, k]]
        elif kind == 5:
            columns[name] = np.delete(column, k) if rng.random() < 0.5 else np.insert(column, k, column[j])
        elif kind == 6:
            other = _pick(rng, [n for n, c in columns.items() if c.dtype == column.dtype])
            columns[name], columns[other] = columns[other], column
        elif kind == 7 and counts:
            owner = columns[_pick(rng, counts)]
            a, b = (int(v) for v in rng.integers(len(owner), size=2))
            owner[a] += 1
            owner[b] -= 1
        else:
            columns[name] = column[::-1].copy()


def _changed(value: Any, column: Any, rng: Rng) -> Any:
    """Another number of the column's type."""
    if column.dtype.kind == "f":
        near = (value * (1 + 1e-9), value * 2, value / 2, -value, value + 0.1)
        return _pick(rng, (*FLOATS, *near, *near))
    near = (int(value) + 1, int(value) - 1, int(_pick(rng, column)), int(_pick(rng, column)), int(rng.integers(8)))
    return np.array(_pick(rng, (*WHOLES, *near, *near)), dtype=np.int64).astype(column.dtype)


def _mutate_head(head: dict[str, Any], columns: Columns, rng: Rng, strange: Callable[[Rng], Any]) -> bool:
    """One change of what the head says, in place; True when it is about the columns."""
    stated = {n: [c.dtype.str[1:], len(c)] for n, c in columns.items()}
    head.update(columns=stated, size=sum(c.nbytes for c in columns.values()))
    key = _pick(rng, list(head))
    if key != "columns" or not stated or rng.random() < 0.2:
        head[key] = strange(rng)
        return key in ("columns", "size")
    entry = stated[_pick(rng, list(stated))]
    kind = int(rng.integers(4))
    if kind == 0:
        entry[0] = _pick(rng, CODES)
    elif kind == 1:
        entry[1] = int(_pick(rng, (entry[1] + 1, entry[1] - 1, -1, 2**31 - 1, 2**62, 2**70)))
    elif kind == 2:
        entry[int(rng.integers(2))] = strange(rng)
    else:
        stated[_pick(rng, ("nonsense", *columns))] = stated.pop(_pick(rng, list(stated)))
    return True
