"""Bytes that somebody else wrote: decompression with a limit, and JSON values that are what they should be.

Everything here raises `ValueError` with one clear line; callers make it their own error (`InputError`, `ProofError`,
`StoreError`). Nothing is converted on the way: a text is no number, `true` is no 1 and 1.5 is no index.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import zlib
from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MOST_INDEX = 2**31 - 1  # what int32 holds; given
# levels of free-form values; nothing that recurses over them comes near the interpreter's limit; not measured
DEEPEST = 32
_LONG_TEXT = 1 << 24  # characters of JSON above which the text is walked in steps; not measured
_LEVELS = 4  # of such a walk: those of the refutations of a proof; given
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_ALWAYS, _RATIO = 1 << 25, 100  # bytes that any blob may hold, and per byte of it; not measured
_STEP = 1 << 20  # bytes of input decompressed between two polls; not measured
_PIECE = 1 << 24  # bytes of output at a time; not measured


def size_text(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 2**30:g} GiB" if count >= 2**30 else f"{count / 2**20:g} MiB"


def inflate(data: bytes, most: int, gzip: bool = False, poll: Callable[[], None] | None = None) -> bytes:
    """The content of a zlib stream, or of all members of a gzip file; at most `most` bytes.

    No more than `most` bytes and one piece are ever held. `poll` is called now and then and may raise.
    """
    kind = "gzip file" if gzip else "compressed data"
    stream = zlib.decompressobj(31 if gzip else 15)
    try:
        if len(data) < _PIECE >> 8 and not gzip:  # small ones in one go
            found = stream.decompress(data, most + 1)
            return _whole(found, stream.eof, most, kind)
        out, total, ended = [], 0, False
        for start in range(0, len(data), _STEP):
            if total > most:
                break
            rest: bytes = data[start : start + _STEP]
            piece = b""
            while rest or len(piece) == _PIECE:
                if poll is not None:
                    poll()
                if ended:
                    if not gzip or not rest.strip(b"\0"):  # padding of archives
                        break
                    stream, ended = zlib.decompressobj(31), False
                piece = stream.decompress(rest, _PIECE)
                total += len(piece)
                out.append(piece)
                if total > most:
                    break
                ended = stream.eof
                rest = stream.unused_data if ended else stream.unconsumed_tail
        return _whole(b"".join(out), ended, most, kind)
    except zlib.error as error:
        raise ValueError(f"damaged {kind} ({error})") from None


def _whole(found: bytes, ended: bool, most: int, kind: str) -> bytes:
    if len(found) > most:
        raise ValueError(f"more than {size_text(most)} when decompressed")
    if not ended:
        raise ValueError(f"damaged {kind} (it ends early)")
    return found


def unpack(data: bytes | memoryview, most: int) -> bytes:
    """The content of one zstandard frame that states its size; at most `most` bytes, and no more are ever held."""
    import zstandard

    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= most:  # what a frame states is allocated at once
            raise ValueError(f"more than {size_text(most)} when decompressed, or damaged compressed data")
        return bytes(zstandard.ZstdDecompressor().decompress(data, max_output_size=size, allow_extra_data=False))
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged compressed data ({error})") from None


def packed(data: bytes, level: int = 1) -> bytes:
    """A zstandard frame of the data; inverse of `unpack`."""
    import zstandard

    return bytes(zstandard.ZstdCompressor(level=level).compress(data))


def is_frame(data: bytes) -> bool:
    """True for bytes that start as a zstandard frame does, which no zlib stream can."""
    return data[:4] == b"\x28\xb5\x2f\xfd"


def plausible(blob: bytes, most: int) -> int:
    """How much a packed blob may hold: at most `most`, and no more than what is packed honestly ever does."""
    return min(most, _ALWAYS + _RATIO * len(blob))


def read_limited(path: str | os.PathLike[str], most: int) -> bytes:
    """The content of a file of at most `most` bytes; raises `OSError` too."""
    with open(path, "rb") as file:
        # The stated size spares reading what is too large; devices state none, so that the reading is limited too.
        if os.fstat(file.fileno()).st_size > most or len(data := file.read(most + 1)) > most:
            raise ValueError(f"larger than {size_text(most)}")
    return data


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text."""
    try:
        if len(text) <= _LONG_TEXT:
            return json.loads(text)
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        value, end = _stepwise(text, _past_space(text, 0), _LEVELS)
        if _past_space(text, end) != len(text):
            raise ValueError("not JSON: something follows the value")
        return value
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from None
    except (StopIteration, IndexError):
        raise ValueError("not JSON: it ends early") from None


def _past_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _stepwise(text: str, at: int, levels: int) -> tuple[Any, int]:
    """The value that starts at `at`, and where it ends. The uppermost `levels` of containers are walked in steps.

    The decoder holds the interpreter lock until it is done; a watching thread has to have its turn in between.
    """
    if levels == 0 or text[at] not in "[{":
        return _DECODER.raw_decode(text, at)
    is_object = text[at] == "{"
    close, held = "}" if is_object else "]", []
    at = _past_space(text, at + 1)
    if text[at] == close:
        return {} if is_object else [], at + 1
    if not is_object and text[at] not in "[{":  # a flat list of numbers or texts is one step
        return _DECODER.raw_decode(text, text.rindex("[", 0, at))
    while True:
        name = None
        if is_object:
            name, at = _DECODER.raw_decode(text, at)
            at = _past_space(text, at)
            if type(name) is not str or text[at] != ":":
                raise ValueError("not JSON: a name is missing")
            at = _past_space(text, at + 1)
        value, at = _stepwise(text, at, levels - 1)
        held.append((name, value))
        at = _past_space(text, at)
        if text[at] == close:
            return dict(held) if is_object else [v for _, v in held], at + 1
        if text[at] != ",":
            raise ValueError("not JSON: a comma is missing")
        at = _past_space(text, at + 1)


def shallow(value: Any, what: str) -> Any:
    """A free-form value of at most DEEPEST levels."""
    level = [value]
    for _ in range(DEEPEST):
        held = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list))]
        level = [v for values in held for v in values]
        if not level:
            return value
    raise ValueError(f"{what} nested too deeply")


def fields_of(value: Any, what: str) -> dict[str, Any]:
    """A JSON object."""
    if type(value) is not dict:
        raise ValueError(f"{what} is no object")
    return value


def items(value: Any, what: str) -> list[Any]:
    """A JSON array."""
    if type(value) is not list:
        raise ValueError(f"{what} is no list")
    return value


def member(value: dict[str, Any], name: str) -> Any:
    """A member that has to be there."""
    try:
        return value[name]
    except KeyError:
        raise ValueError(f"{name} is missing") from None


def text_of(value: Any, what: str) -> str:
    """A JSON string."""
    if type(value) is not str:
        raise ValueError(f"{what} is no text")
    return value


def whole(value: Any, what: str, low: int = 0, high: int = MOST_INDEX) -> int:
    """A whole number in a range; neither a truth value nor a number with a point."""
    if type(value) is not int:
        raise ValueError(f"{what} is no whole number")
    if not low <= value <= high:
        raise ValueError(f"{what} is not from {low} to {high}")
    return value


def number(value: Any, what: str, finite: bool = True) -> float:
    """A number, as a double."""
    if type(value) is not float and type(value) is not int:
        raise ValueError(f"{what} is no number")
    try:
        found = float(value)
    except OverflowError:
        raise ValueError(f"{what} is too large") from None
    if finite and not isfinite(found):
        raise ValueError(f"{what} is not finite")
    return found


def wholes(value: Any, what: str, dtype: Any = np.int32, low: int = 0, high: int = MOST_INDEX) -> Array:
    """`(n,)` whole numbers in a range."""
    if type(value) is not list or not set(map(type, value)) <= {int}:
        raise ValueError(f"{what} is no list of whole numbers")
    if value and not (min(value) >= low and max(value) <= high):
        raise ValueError(f"{what} holds a number that is not from {low} to {high}")
    return np.array(value, dtype=dtype)


def numbers(value: Any, what: str) -> Array:
    """`(n,)` float64, finite or not."""
    if type(value) is not list or not set(map(type, value)) <= {int, float}:
        raise ValueError(f"{what} is no list of numbers")
    try:
        return np.array(value, dtype=np.float64)
    except OverflowError:
        raise ValueError(f"{what} holds a number that is too large") from None


def flags(value: Any, what: str) -> Array:
    """`(n,)` bool, from a text of 0 and 1."""
    if type(value) is not str or not set(value) <= {"0", "1"}:
        raise ValueError(f"{what} is no text of 0 and 1")
    return np.asarray(np.frombuffer(value.encode(), dtype=np.uint8) == ord("1"))


class Packed:
    """Unpacks the arrays of one file: base64 of zlib-compressed little-endian bytes, `most` bytes of them in all."""

    def __init__(self, most: int) -> None:
        self.most = self.left = most

    def array(self, value: Any, dtype: str, what: str, count: int | None = None) -> Array:
        """`(n,)` in the machine's byte order; n must be `count` where that is given."""
        if type(value) is not str:
            raise ValueError(f"{what} is no text")
        size = np.dtype(dtype).itemsize
        expected = self.left if count is None else count * size
        try:
            blob = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError(f"{what} is not base64") from None
        if expected > self.left:
            raise ValueError(f"its packed arrays are larger than {size_text(self.most)}")
        try:
            data = inflate(blob, expected)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        if len(data) % size or (count is not None and len(data) != expected):
            raise ValueError(f"{what} has the wrong length")
        self.left -= len(data)
        return np.frombuffer(data, dtype).astype(np.dtype(dtype).newbyteorder("="))
