"""Refutations of regions: one by one, and many of one tree in arrays.

What a refutation is stands in `mucg4.model.proof`. A tree has thousands of them, so whatever handles all of them
(recorder, checker, store) works on the arrays of `Refutations`; it is also the sequence of its `Refutation`s, which
are made when somebody asks for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cached_property
from typing import Any, overload

import numpy as np

from mucg4.errors import ProofError
from mucg4.ops.arrays import AnyArray, FloatArray, IntArray
from mucg4.records import dataclass

NO_CORE = -1  # among the lengths of cores: none was computed; not measured


@dataclass(frozen=True, eq=False)
class Alpha:
    """Lower slopes of one refutation: where the neurons `index` of the pre-activation node `node` are
    unstable, every two-piece operator that reads them takes `value` in [0, 1].

    Values are multiples of 1/255 so that a proof stays small and reads back exactly.
    """

    node: int
    index: IntArray  # (k,) int32
    value: IntArray  # (k,) uint8, alpha = value / 255


@dataclass(frozen=True, eq=False)
class Refutation:
    """See `mucg4.model.proof`. `beta` are `(literal, multiplier)` pairs; a literal is named by the tree node
    whose region it first restricts (the child created by the split). `cuts` are numbers `(K,)` int32 of cuts and their
    multipliers `(K,)`; None when there are none. `core` lists the tree nodes of the
    literals that are needed; None when it was not computed. `margin` is the lower bound found (informal).
    """

    at: int
    conjunction: int
    weights: tuple[float, ...]
    alpha: tuple[Alpha, ...] = ()
    beta: tuple[tuple[int, float], ...] = ()
    core: tuple[int, ...] | None = None
    margin: float = 0.0
    cuts: tuple[AnyArray, AnyArray] | None = None

    def __post_init__(self) -> None:
        if self.cuts is not None:
            own, values = self.cuts
            check_arrays("a refutation", [(own, "i", 1), (values, "f", np.shape(own))])
            if np.any(own < 0):
                raise ProofError("a refutation has a negative index")


def check_arrays(what: str, arrays: list[tuple[AnyArray, str, tuple[int, ...] | int]]) -> None:
    """Arrays with their kind of number, and their shape or number of axes; raises `ProofError`."""
    for array, kind, shape in arrays:
        if not isinstance(array, np.ndarray) or array.dtype.kind != kind:
            raise ProofError(f"an array of {what} has the wrong type")
        if (array.ndim if isinstance(shape, int) else array.shape) != shape:
            raise ProofError(f"an array of {what} has the wrong shape")


@dataclass(frozen=True, eq=False)
class Refutations(Sequence[Refutation]):
    """R refutations of one tree as flat arrays. A field `..._count (R,)` says how many entries of what follows it
    belong to each refutation, in order; so the parts cannot overlap.

    S groups of slopes, each of one pre-activation node, hold `slope_count (S,)` entries. `core_count` is -1 where no
    core was computed. Types, ranks and lengths are validated here, and that what counts or names places is not
    negative; whether the numbers mean something for a tree and a network is seen where they are used.
    """

    at: IntArray  # (R,) int32
    conjunction: IntArray  # (R,) int32
    margin: FloatArray  # (R,) float64
    weight_count: IntArray  # (R,) int32
    weights: FloatArray  # float64
    group_count: IntArray  # (R,) int32
    slope_node: IntArray  # (S,) int32
    slope_count: IntArray  # (S,) int32
    slope_index: IntArray  # int32
    slope_value: IntArray  # uint8
    beta_count: IntArray  # (R,) int32
    literal: IntArray  # int32
    beta: FloatArray  # float64
    cut_count: IntArray  # (R,) int32
    cut: IntArray  # int32
    multiplier: FloatArray  # float64
    core_count: IntArray  # (R,) int32
    core: IntArray  # int32

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind != kind:
                raise ProofError(f"{name} of refutations has the wrong type")
        count = len(self.at)
        for name in PER_ROW:
            if len(getattr(self, name)) != count:
                raise ProofError(f"{name} of refutations has the wrong length")
        for name in KINDS:
            least = NO_CORE if name == "core_count" else 0
            if KINDS[name] == "i" and np.any(getattr(self, name) < least):
                raise ProofError(f"{name} of refutations holds a negative number")
        for counts, held in HELD.items():
            total = int(np.maximum(getattr(self, counts), 0).sum(dtype=np.int64))
            if any(len(getattr(self, name)) != total for name in held):
                raise ProofError(f"{counts} of refutations does not fit what it counts")
        if self.slope_value.dtype.itemsize > 1 and np.any(self.slope_value > 255):
            raise ProofError("a refutation has a slope that is out of range")

    @staticmethod
    def of(refutations: Sequence[Refutation]) -> Refutations:
        """Single refutations in arrays; itself for what is in arrays. Raises `ProofError` for what fits none."""
        if isinstance(refutations, Refutations):
            return refutations
        slopes = [a for r in refutations for a in r.alpha]
        if any(np.ndim(a.index) != 1 or np.shape(a.index) != np.shape(a.value) for a in slopes):
            raise ProofError("a refutation has slopes that are not one per neuron")
        cuts = [r.cuts for r in refutations if r.cuts is not None]
        pairs = [pair for r in refutations for pair in r.beta]
        return Refutations(
            _integers(r.at for r in refutations),
            _integers(r.conjunction for r in refutations),
            _floats(r.margin for r in refutations),
            _integers(len(r.weights) for r in refutations),
            _floats(w for r in refutations for w in r.weights),
            _integers(len(r.alpha) for r in refutations),
            _integers(a.node for a in slopes),
            _integers(len(a.index) for a in slopes),
            _joined([a.index for a in slopes], np.int32),
            _joined([a.value for a in slopes], np.uint8),
            _integers(len(r.beta) for r in refutations),
            _integers(k for k, _ in pairs),
            _floats(v for _, v in pairs),
            _integers(0 if r.cuts is None else len(r.cuts[0]) for r in refutations),
            _joined([numbers for numbers, _ in cuts], np.int32),
            _joined([values for _, values in cuts], np.float64),
            _integers(NO_CORE if r.core is None else len(r.core) for r in refutations),
            _integers(k for r in refutations for k in r.core or ()),
        )

    @staticmethod
    def plain(
        at: IntArray, conjunction: IntArray, margin: FloatArray, weight_count: IntArray, weights: FloatArray
    ) -> Refutations:
        """Refutations by weights alone, with default slopes."""
        held: dict[str, Any] = {name: np.zeros(0, dtype=TYPES[name]) for names in HELD.values() for name in names}
        counts = {name: np.zeros(len(at), dtype=np.int32) for name in HELD if name in PER_ROW}
        stated = {"at": at, "conjunction": conjunction, "margin": margin, "weight_count": weight_count}
        cores = np.full(len(at), NO_CORE, dtype=np.int32)
        held.update({**counts, **stated, "weights": weights, "core_count": cores})
        return Refutations(**held)

    @staticmethod
    def join(parts: Sequence[Refutations]) -> Refutations:
        """All of them, in order."""
        if len(parts) == 1:  # usual for small trees
            return parts[0]
        return Refutations(*(_joined([getattr(p, f) for p in parts], TYPES[f]) for f in KINDS))

    def without(self, *counts: str) -> Refutations:
        """Without what these fields of counts count."""
        changes: dict[str, AnyArray] = {}
        for name in counts:
            changes[name] = np.full(len(self), NO_CORE if name == "core_count" else 0, dtype=np.int32)
            held = [*HELD[name], *(f for inner in HELD[name] for f in HELD.get(inner, ()))]
            changes.update({f: np.zeros(0, dtype=TYPES[f]) for f in held})
        return replace(self, **changes)

    def take(self, which: IntArray) -> Refutations:
        """The refutations numbered `which (n,)`, in that order."""
        chosen = dict.fromkeys(PER_ROW, np.asarray(which, dtype=np.int64))
        for counts, held in HELD.items():  # groups of slopes come before what they hold
            start, count = self.ends[counts][chosen[counts]], np.maximum(getattr(self, counts)[chosen[counts]], 0)
            first = np.cumsum(count) - count
            chosen.update(dict.fromkeys(held, np.arange(int(count.sum())) + np.repeat(start - first, count)))
        out = object.__new__(Refutations)  # what is valid as a whole is so in parts
        for name in KINDS:
            object.__setattr__(out, name, getattr(self, name)[chosen[name]])
        return out

    def split(self, counts: Sequence[int]) -> list[Refutations]:
        """The first so many, the next so many, ...; raises `ProofError` where that are not all."""
        if min(counts, default=0) < 0 or sum(counts) != len(self):
            raise ProofError("refutations are not as many as the trees have")
        if len(counts) == 1:
            return [self]
        edges = np.r_[0, np.cumsum(counts, dtype=np.int64)]
        cut = {name: edges for name in PER_ROW}
        for counts_of, held in HELD.items():  # groups of slopes come before what they hold
            cut.update(dict.fromkeys(held, self.ends[counts_of][cut[counts_of]]))
        out = []
        for k in range(len(counts)):
            part = object.__new__(Refutations)  # what is valid as a whole is so in parts
            for name in KINDS:
                object.__setattr__(part, name, getattr(self, name)[cut[name][k] : cut[name][k + 1]])
            out.append(part)
        return out

    def __len__(self) -> int:
        return len(self.at)

    @cached_property
    def ends(self) -> dict[str, AnyArray]:
        """`(R + 1,)`, per field of counts: where each refutation's part begins, and the last one's end."""
        return {name: np.r_[0, np.cumsum(np.maximum(getattr(self, name), 0), dtype=np.int64)] for name in HELD}

    @cached_property
    def _all(self) -> tuple[Refutation, ...]:
        return tuple(map(self._one, range(len(self))))

    def _one(self, k: int) -> Refutation:
        ends = self.ends

        def part(counts: str, *names: str) -> list[AnyArray]:
            own = slice(*ends[counts][k : k + 2].tolist())
            return [getattr(self, name)[own] for name in names]

        groups = range(*ends["group_count"][k : k + 2].tolist())
        edges = ends["slope_count"][groups.start : groups.stop + 1].tolist()
        alpha = tuple(
            Alpha(int(self.slope_node[g]), self.slope_index[a:b], self.slope_value[a:b])
            for g, a, b in zip(groups, edges[:-1], edges[1:], strict=True)
        )
        literal, beta = part("beta_count", "literal", "beta")
        cut, multiplier = part("cut_count", "cut", "multiplier")
        return Refutation(
            int(self.at[k]),
            int(self.conjunction[k]),
            tuple(part("weight_count", "weights")[0].tolist()),
            alpha,
            tuple(zip(literal.tolist(), beta.tolist(), strict=True)),
            tuple(part("core_count", "core")[0].tolist()) if self.core_count[k] >= 0 else None,
            float(self.margin[k]),
            (cut, multiplier) if len(cut) else None,
        )

    @overload
    def __getitem__(self, k: int) -> Refutation: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Refutation, ...]: ...
    def __getitem__(self, k: int | slice) -> Refutation | tuple[Refutation, ...]:
        if isinstance(k, slice):
            return self._all[k]
        return self._one(range(len(self))[k])

    def __iter__(self) -> Iterator[Refutation]:
        return iter(self._all)

    def __bool__(self) -> bool:
        return len(self) > 0


KINDS = {f.name: "i" for f in fields(Refutations)}
KINDS.update(margin="f", weights="f", beta="f", multiplier="f", slope_value="u")
TYPES: dict[str, Any] = {name: {"i": np.int32, "f": np.float64, "u": np.uint8}[kind] for name, kind in KINDS.items()}
PER_ROW = ("at", "conjunction", "margin", "weight_count", "group_count", "beta_count", "cut_count", "core_count")
HELD = {  # what each field of counts counts
    "weight_count": ("weights",),
    "group_count": ("slope_node", "slope_count"),
    "slope_count": ("slope_index", "slope_value"),
    "beta_count": ("literal", "beta"),
    "cut_count": ("cut", "multiplier"),
    "core_count": ("core",),
}


def _integers(values: Iterable[int]) -> IntArray:
    """(n,) int32; raises `ProofError` for numbers that no array has places for."""
    try:
        wide = np.fromiter(values, dtype=np.int64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ProofError("a number is too large to name anything") from error
    if np.any(wide != wide.astype(np.int32)):
        raise ProofError("a number is too large to name anything")
    return wide.astype(np.int32)


def _floats(values: Iterable[float]) -> FloatArray:
    """(n,) float64; raises `ProofError` for what is no number."""
    try:
        return np.fromiter(values, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ProofError("a number of a refutation is none") from error


def _joined(parts: Sequence[AnyArray], dtype: Any) -> AnyArray:
    """The arrays one after the other in a type that holds all their numbers; raises `ProofError` where it does not."""
    wide = np.concatenate([np.zeros(0, dtype=dtype), *parts])
    if wide.dtype == dtype:
        return wide
    with np.errstate(all="ignore"):
        found = wide.astype(dtype)
    if not np.array_equal(found, wide, equal_nan=wide.dtype.kind == "f"):
        raise ProofError("a refutation has a slope or an index that is out of range")
    return found
