"""Mutants of what others may hand in: JSON values and bytes, changed in the ways that break readers."""

from __future__ import annotations

import base64
import copy
import json
import zlib
from typing import Any

import numpy as np

ODD_NUMBERS = (0, 1, -1, 2, 255, 256, 2**31 - 1, 2**31, -(2**31), 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, 5e-324)
ODD_VALUES = (None, True, False, "", "1", "x" * 50, [], {}, [[]], [0], [[1, 2], [3, 4]], {"a": 1}, [None], ["1"])
NOT_FINITE = (float("nan"), float("inf"), float("-inf"))


def mutate_json(rng: np.random.Generator, value: Any, most: int = 3) -> Any:
    """A copy of a JSON value with one to `most` changes at random places, long arrays no likelier than short ones."""
    out = [copy.deepcopy(value)]
    for _ in range(int(rng.integers(1, most + 1))):
        holder, key = _place(rng, out)
        _change(rng, holder, key)
    return out[0]


def _place(rng: np.random.Generator, root: list[Any]) -> tuple[Any, Any]:
    """A random member: down from the root, ending at every level with some probability."""
    holder, key = root, 0
    while True:
        value = holder[key]
        if not isinstance(value, (list, dict)) or not value or rng.random() < 0.12:
            return holder, key
        holder = value
        key = list(value)[int(rng.integers(len(value)))] if isinstance(value, dict) else int(rng.integers(len(value)))


def _change(rng: np.random.Generator, holder: Any, key: Any) -> None:
    value = holder[key]
    if rng.random() < 0.6 and _change_within(rng, holder, key):
        return
    kind = int(rng.integers(9))
    if kind == 0:
        del holder[key]
        if not holder and isinstance(holder, list):
            holder.append(None)  # the root stays a value
    elif kind == 1 and isinstance(holder, list):
        holder.insert(int(rng.integers(len(holder) + 1)), copy.deepcopy(value))
    elif kind == 2:
        holder[key] = copy.deepcopy(_one_of(rng, ODD_VALUES))
    elif kind == 3:
        holder[key] = _one_of(rng, NOT_FINITE)
    elif kind == 4:
        holder[key] = [value]
    elif kind == 5 and isinstance(value, list):
        holder[key] = value[: int(rng.integers(len(value) + 1))]
    elif kind == 6:
        for _ in range(int(rng.integers(1, 60))):
            value = [value] if rng.random() < 0.5 else {"a": value}
        holder[key] = value
    else:
        holder[key] = _one_of(rng, (*ODD_NUMBERS, str(value)[:50]))


def _change_within(rng: np.random.Generator, holder: Any, key: Any) -> bool:
    """A change that leaves types and most lengths alone, so that it gets past a parser; False where there is none."""
    value = holder[key]
    if isinstance(value, str):
        holder[key] = _text(rng, value)
    elif type(value) is int and abs(value) < 2**70:
        holder[key] = _one_of(rng, (value + 1, value - 1, 2 * value, -value, 0, int(rng.integers(12))))
    elif type(value) is float:
        steps = (-value, 2 * value, value / 3, value + 1e-9, value + 1.0, np.nextafter(value, np.inf), 0.0, 1e300)
        holder[key] = float(_one_of(rng, steps))
    elif isinstance(holder, list) and len(holder) > 1:
        other = int(rng.integers(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        return False
    return True


def _one_of(rng: np.random.Generator, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _text(rng: np.random.Generator, value: str) -> str:
    """Flipped characters; packed arrays also with other content of another length."""
    try:
        data = zlib.decompress(base64.b64decode(value, validate=True))
    except (ValueError, zlib.error):
        flip = {"0": "1", "1": "0"}
        at = int(rng.integers(max(len(value), 1)))
        return value[:at] + flip.get(value[at : at + 1], "?") + value[at + 1 :]
    odd = rng.random()
    if odd < 0.7 and data:  # as many bytes as before
        changed = bytearray(data)
        changed[int(rng.integers(len(data)))] = _one_of(rng, (0, 1, 127, 128, 255, int(rng.integers(256))))
        data = bytes(changed)
    else:
        data = mutate_bytes(rng, data) if odd < 0.9 else bytes(int(rng.integers(1 << 16)))
    return base64.b64encode(zlib.compress(data)).decode()


def mutate_bytes(rng: np.random.Generator, data: bytes, most: int = 4) -> bytes:
    """Bytes with one to `most` changes: flipped, set, cut out, repeated, put in, or the end cut off."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, most + 1))):
        at, length = int(rng.integers(len(out) + 1)), int(rng.integers(1, 9))
        kind = int(rng.integers(7))
        if kind == 0 and at < len(out):
            out[at] ^= 1 << int(rng.integers(8))
        elif kind == 1 and at < len(out):
            out[at] = _one_of(rng, (0, 1, 127, 128, 255, int(rng.integers(256))))
        elif kind == 2:
            del out[at : at + length]
        elif kind == 3:
            out[at:at] = out[at : at + length]
        elif kind == 4:
            out[at:at] = rng.bytes(length)
        elif kind == 5:
            out[at : at + length] = bytes([int(_one_of(rng, (0, 255)))]) * length
        elif rng.random() < 0.3:
            del out[at:]
    return bytes(out)


def proof_texts(rng: np.random.Generator, text: str, count: int) -> Any:
    """`count` mutants of a proof's text: most as values, some as characters, a few both."""
    value = json.loads(text)
    for _ in range(count):
        odd = rng.random()
        out = json.dumps(mutate_json(rng, value, 1 if odd < 0.6 else 3)).encode() if odd < 0.95 else text.encode()
        yield mutate_bytes(rng, out) if odd > 0.93 else out
