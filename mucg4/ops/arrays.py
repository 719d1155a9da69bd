"""One text for two libraries and two precisions: what NumPy arrays and PyTorch tensors do not share.

Numeric code takes its functions from `xp(a)`, the library `a` belongs to, and gets arrays of the dtype and
device of its inputs. Most functions are spelled alike in both (`where`, `maximum`, `concatenate(..., axis=)`,
methods with `axis=`); the others have one helper each here. Rules that keep float32 inputs float32 and
tensors on their device: new arrays are made "like" another one, and a Python number meets an array, never
another number (`choose` picks between two numbers).

A `Backend` says in which library, precision and device arrays live; it alone converts between them.
PyTorch is imported only when a backend with a device is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

import numpy as np

from mucg4.errors import InputError
from mucg4.records import dataclass

Array: TypeAlias = Any
"""An array of either library, NumPy's or PyTorch's, of any dtype: what code takes that runs on both. PyTorch need not
be installed, so the type checker cannot know its arrays. Code for NumPy alone says which numbers it takes."""
FloatArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.floating[Any]]]  # float64 where nothing else is said
IntArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.integer[Any]]]
BoolArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[np.bool_]]
AnyArray: TypeAlias = np.ndarray[tuple[Any, ...], np.dtype[Any]]  # of numbers of several kinds, or of objects
A = TypeVar("A", bound=AnyArray)

DEVICE_CHUNK = 256  # a GPU takes so many times more elements at once than a core's cache; not measured


class Precision(NamedTuple):
    """What error bounds need to know about a floating-point type; subnormal numbers may count as zero.

    `unit`: unit roundoff. `least`: above the underflow error of one elementary function. `tiny`: above the
    underflow errors of 1e17 operations together. `floor`: squares of numbers below it may underflow even if
    1e7 of them are added. `huge`: close to the largest number. `narrow`: relative width below which a
    difference is mostly rounding. `tie`: relative difference that counts as none; charges for rounding in search and
    checker stay far below it, else symmetric boxes tip to different slopes.
    """

    unit: float
    least: float
    tiny: float
    floor: float
    huge: float
    narrow: float
    tie: float


DOUBLE = Precision(2.0**-53, 1e-300, 1e-290, 1e-150, 1e300, 1e-9, 2.0**-20)
SINGLE = Precision(2.0**-24, 1e-36, 1e-20, 1e-15, 1e38, 1e-4, 2.0**-12)
SMALLEST = 2.0**-126  # smallest normal float32; given


def precision(a: Array) -> Precision:
    """The precision of an array's dtype."""
    return SINGLE if a.dtype.itemsize == 4 else DOUBLE


def xp(a: Array) -> Any:
    """The library an array belongs to: the module numpy or torch."""
    return np if isinstance(a, (np.ndarray, np.generic)) else import_module("torch")


@dataclass(frozen=True)
class Backend:
    """Where arrays live: "float64" or "float32", in NumPy (`device` None) or on a PyTorch device ("cpu", "cuda").

    Raises `InputError` when PyTorch or the device is missing. Making a backend with a device switches reduced
    precision (TF32) off in PyTorch: error bounds assume IEEE products.
    """

    dtype: str = "float64"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("float64", "float32"):
            raise InputError(f"numbers must be float64 or float32, not {self.dtype!r}")
        if self.device is not None:
            _start_torch(self.device)

    @property
    def precision(self) -> Precision:
        return SINGLE if self.dtype == "float32" else DOUBLE

    @cached_property
    def _type(self) -> Any:
        return np.dtype(self.dtype) if self.device is None else getattr(import_module("torch"), self.dtype)

    def place(self, values: Array) -> Array:
        """The same values in this library on this device, dtype kept (indices, masks)."""
        if self.device is None:
            return np.asarray(values.cpu() if _is_tensor(values) else values)
        values = values if _is_tensor(values) else np.require(values, requirements=["C", "W"])
        return import_module("torch").as_tensor(values, device=self.device)

    def array(self, values: Array) -> Array:
        """Floating-point numbers of this precision, rounded to nearest."""
        return as_type(self.place(values), self._type)

    def below(self, values: Array) -> Array:
        """`array`, rounded down."""
        return self._outward(values, -np.inf)

    def above(self, values: Array) -> Array:
        """`array`, rounded up."""
        return self._outward(values, np.inf)

    def _outward(self, values: Array, side: float) -> Array:
        exact = self.place(values)
        with np.errstate(over="ignore"):
            near = as_type(exact, self._type)
        inside = as_type(near, exact.dtype) > exact if side < 0 else as_type(near, exact.dtype) < exact
        return xp(near).where(inside, xp(near).nextafter(near, full(near.shape, side, near)), near)

    def parameter(self, values: Array) -> Array:
        """Numbers of an operator: nearest, but what is not zero stays so and a normal number; integers are kept.

        The change is at most one unit roundoff of the result, plus `SMALLEST` where the stored number is
        below that: `mucg4.bound.rounding` charges both.
        """
        placed = self.place(values)
        if not (placed.dtype.kind == "f" if isinstance(placed, np.ndarray) else placed.is_floating_point()):
            return placed
        with np.errstate(over="ignore", under="ignore"):
            near = as_type(placed, self._type)
        if self.dtype == "float32" and near.dtype != placed.dtype:
            small = (abs(placed) < SMALLEST) & (placed != 0)
            if small.any():
                near = xp(near).where(small, as_type(xp(near).sign(placed), self._type) * SMALLEST, near)
        return near


NUMPY = Backend()


def backend_of(a: Array) -> Backend:
    """The backend an array of floating-point numbers lives in."""
    if isinstance(a, np.ndarray):
        return Backend(a.dtype.name)
    return Backend(str(a.dtype).removeprefix("torch."), str(a.device))


def _is_tensor(a: Any) -> bool:
    return hasattr(a, "new_full")


def _start_torch(device: str) -> None:
    try:
        torch = import_module("torch")
    except ImportError:
        raise InputError(f"device {device} needs PyTorch: pip install mucg4[torch]") from None
    if device != "cpu" and not torch.cuda.is_available():
        raise InputError(f"device {device}: PyTorch finds no usable GPU")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


# -- making arrays -------------------------------------------------------------------------------------------------


def full(shape: int | Sequence[int], value: float, like: Array) -> Array:
    """A constant array of the dtype and device of `like`."""
    if isinstance(like, np.ndarray):
        return np.full(shape, value, dtype=like.dtype)
    return like.new_full((shape,) if isinstance(shape, int) else tuple(shape), value)


def zeros(shape: int | Sequence[int], like: Array) -> Array:
    if isinstance(like, np.ndarray):
        return np.zeros(shape, dtype=like.dtype)
    return like.new_zeros(shape)


def empty(shape: int | Sequence[int], like: Array) -> Array:
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype=like.dtype)
    return like.new_empty(shape)


def arange(count: int, like: Array) -> Array:
    """0, 1, ..., count - 1 for indexing, on the device of `like`."""
    if isinstance(like, np.ndarray):
        return np.arange(count)
    return xp(like).arange(count, device=like.device)


def unit_rows(index: Array, size: int, like: Array) -> Array:
    """`(len(index), size)`: row r is 1 at `index[r]` and 0 elsewhere."""
    out = zeros((len(index), size), like)
    out[arange(len(index), like), index] = 1.0
    return out


# -- what is spelled differently -----------------------------------------------------------------------------------


def as_type(a: Array, dtype: Any) -> Array:
    """The array in another dtype; itself when it has that already."""
    return a.astype(dtype, copy=False) if isinstance(a, np.ndarray) else a.to(dtype)


def choose(mask: Array, yes: float, no: float, like: Array) -> Array:
    """`yes` where the mask is true, else `no`, in the dtype of `like`."""
    if isinstance(like, np.ndarray):
        return np.where(mask, like.dtype.type(yes), like.dtype.type(no))
    return xp(like).where(mask, like.new_full((), yes), like.new_full((), no))


def at_least(a: Array, bound: float) -> Array:
    """`max(a, bound)` for a number `bound`; nan stays nan."""
    return np.maximum(a, bound) if isinstance(a, (np.ndarray, np.generic)) else a.clamp(min=bound)


def at_most(a: Array, bound: float) -> Array:
    """`min(a, bound)` for a number `bound`; nan stays nan."""
    return np.minimum(a, bound) if isinstance(a, (np.ndarray, np.generic)) else a.clamp(max=bound)


def erf(a: Array) -> Array:
    """The error function, within a few units in the last place."""
    return import_module("scipy.special").erf(a) if isinstance(a, (np.ndarray, np.generic)) else xp(a).erf(a)


def erfc(a: Array) -> Array:
    """`1 - erf(a)`, to full relative precision up to that of the argument."""
    return import_module("scipy.special").erfc(a) if isinstance(a, (np.ndarray, np.generic)) else xp(a).erfc(a)


def largest_size(a: Array) -> Array:
    """`(rows, n)` -> `(rows, 1)` largest absolute value of each row, 0 where n is 0."""
    if isinstance(a, np.ndarray):
        return abs(a).max(axis=1, keepdims=True, initial=0.0)
    return abs(a).amax(1, keepdim=True) if a.shape[1] else a.new_zeros((len(a), 1))


def nonzero(mask: Array) -> tuple[Array, ...]:
    """Indices of the true entries, one array per axis, row-major."""
    return np.nonzero(mask) if isinstance(mask, np.ndarray) else mask.nonzero(as_tuple=True)


def row_dots(a: Array, b: Array) -> Array:
    """`(rows, n)` times `(rows, n)` -> `(rows,)` sums of products."""
    return np.einsum("ij,ij->i", a, b) if isinstance(a, np.ndarray) else (a * b).sum(1)


def batched_product(a: Array, b: Array, out: Array) -> None:
    """`out = a @ b` for stacks of matrices."""
    xp(a).matmul(a, b, out=out)


def distinct(values: A) -> A:
    """The different numbers `(n,)` in an array, ascending.

    `np.unique` does the same, but loads NumPy's masked arrays to do it, which takes longer than most small runs search.
    """
    ordered = np.sort(values, axis=None)
    return cast(A, ordered[_starts(ordered)])


def distinct_places(values: A) -> tuple[A, IntArray, IntArray]:
    """The different numbers in `values (n,)`, ascending, where each stands first, and which of them each entry is.

    One nan differs from another. Why not `np.unique` says `distinct`.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = _starts(ordered)
    which = np.empty(len(order), dtype=np.int64)
    which[order] = np.cumsum(first) - 1
    return cast(A, ordered[first]), order[first], which


def _starts(ordered: AnyArray) -> BoolArray:
    """(n,) where a run of equal entries begins."""
    first = np.ones(len(ordered), dtype=bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return first


def median(values: FloatArray) -> FloatArray:
    """The median along the last axis, nan where a value is nan: `np.median` without masked arrays, see `distinct`."""
    ordered = np.sort(values, axis=-1)
    n = ordered.shape[-1]
    middle: FloatArray = (ordered[..., (n - 1) // 2] + ordered[..., n // 2]) / 2
    return np.where(np.isnan(ordered[..., -1]), np.nan, middle)


def groups(index: Array) -> tuple[Array, ...]:
    """What `add_groups` needs to know of an index with repetitions."""
    if not isinstance(index, np.ndarray):
        return (index,)
    order = np.argsort(index, kind="stable")
    used, starts, _ = distinct_places(index[order])
    return order, starts, used


def add_groups(out: Array, known: tuple[Array, ...], a: Array) -> None:
    """`out[:, index[j]] += a[:, j]` in place for `out` zero, with `known = groups(index)`."""
    if isinstance(a, np.ndarray):
        order, starts, used = known
        out[:, used] = np.add.reduceat(a[:, order], starts, axis=1)
    else:
        out.index_add_(1, known[0], a)


def largest_of_runs(a: Array, starts: Array) -> Array:
    """`(B, M)` -> `(B, K)`: the largest entry of each run of columns; run k is `starts[k] : starts[k + 1]`."""
    if isinstance(a, np.ndarray):
        return np.maximum.reduceat(a, starts[:-1], axis=1)
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    where = xp(a).as_tensor(owner, device=a.device).expand(len(a), -1)
    return full((len(a), len(starts) - 1), -np.inf, a).scatter_reduce(1, where, a, "amax", include_self=False)


def windows(image: Array, shape: tuple[int, ...], axes: tuple[int, ...], steps: tuple[int, ...]) -> Array:
    """A read-only view of `shape` whose axis i moves `steps[i]` places along axis `axes[i]` of `image`."""
    if isinstance(image, np.ndarray):
        strides = tuple(image.strides[i] * s for i, s in zip(axes, steps, strict=True))
        return np.lib.stride_tricks.as_strided(image, shape, strides, writeable=False)
    return image.as_strided(shape, tuple(image.stride(i) * s for i, s in zip(axes, steps, strict=True)))


def chunk(elements: int, like: Array) -> int:
    """How many float64 elements to handle together when `elements` of them suit one core."""
    return elements if isinstance(like, np.ndarray) or like.device.type == "cpu" else DEVICE_CHUNK * elements
