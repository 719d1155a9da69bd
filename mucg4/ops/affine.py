"""Affine operators: dense maps, sums, index maps, concatenation, reductions. Convolutions are in `conv.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from functools import cached_property
from itertools import accumulate
from math import frexp, prod
from typing import Any

from mucg4.ops.arrays import add_groups, groups, xp, zeros
from mucg4.ops.base import Affine, Array
from mucg4.records import dataclass


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """`y = W x + b` with `weight (m, n)` and `offset (m,)`.

    `offset_magnitude (m,)` is at least |offset|, and the offset is off by at most `2**-52 fan_in offset_magnitude`
    from the real number that it stands for (constants folded in float64); when it is None the offset is exact.
    `roundings` is a number r such that every weight is within `r 2**-53` of itself from what it stands for: it counts
    in `fan_in`, so that whoever charges the rounding of sums and products charges folding with them. `slack (m,)`,
    when given, bounds how far the map is from the one it stands for on the box at hand (`mucg4.bound.folded`).
    """

    weight: Array
    offset: Array
    offset_magnitude: Array | None = None
    slack: Array | None = None
    roundings: int = 0
    kind: str = field(default="Dense", init=False)

    @property
    def fan_in(self) -> int:  # type: ignore[override]
        return int(max(self.weight.shape)) + 1 + self.roundings

    @cached_property
    def abs_weight(self) -> Array:
        return abs(self.weight)

    def linear(self, xs: Sequence[Array]) -> Array:
        return xs[0] @ self.weight.T

    def bias(self) -> Array:
        return self.offset

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        return (a @ self.weight,)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return xs[0] @ self.abs_weight.T

    def bias_magnitude(self) -> Array:
        return abs(self.offset) if self.offset_magnitude is None else self.offset_magnitude

    def known_slack(self) -> Array:
        """`slack`, zeros when it is not given."""
        return zeros(self.offset.shape, self.offset) if self.slack is None else self.slack

    def parameters(self) -> dict[str, Any]:
        return {"weight": self.weight, "offset": self.offset}


@dataclass(frozen=True, eq=False)
class Sum(Affine):
    """`y = sum_i sign_i x_i` (ONNX Add and Sub of two variables); all inputs have the output's size."""

    signs: tuple[float, ...]
    kind: str = field(default="Sum", init=False)

    @property
    def fan_in(self) -> int:  # type: ignore[override]
        return len(self.signs)

    def linear(self, xs: Sequence[Array]) -> Array:
        y = xs[0] * self.signs[0]
        for x, s in zip(xs[1:], self.signs[1:], strict=True):
            y = y + x * s
        return y

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        return tuple(a if s == 1.0 else a * s for s in self.signs)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return sum(x * abs(s) for x, s in zip(xs, self.signs, strict=True))

    def parameters(self) -> dict[str, Any]:
        return {"signs": self.signs}


@dataclass(frozen=True, eq=False)
class Scale(Affine):
    """`y = scale * x + offset`, elementwise (BatchNormalization and constants that could not be merged).

    `offset_magnitude` and `roundings` are as in `Dense`.
    """

    scale: Array
    offset: Array
    offset_magnitude: Array | None = None
    roundings: int = 0
    kind: str = field(default="Scale", init=False)

    @property
    def fan_in(self) -> int:  # type: ignore[override]
        return 2 + self.roundings

    def linear(self, xs: Sequence[Array]) -> Array:
        return xs[0] * self.scale

    def bias(self) -> Array:
        return self.offset

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        return (a * self.scale,)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return xs[0] * abs(self.scale)

    def bias_magnitude(self) -> Array:
        return abs(self.offset) if self.offset_magnitude is None else self.offset_magnitude

    def parameters(self) -> dict[str, Any]:
        return {"scale": self.scale, "offset": self.offset}


@dataclass(frozen=True, eq=False)
class Index(Affine):
    """`y = x[index]`: Transpose, Slice, Gather, Split, Expand. `index (m,)` into an input of size `n`."""

    index: Array
    size: int
    kind: str = field(default="Index", init=False)

    @cached_property
    def fan_in(self) -> int:  # type: ignore[override]
        return int(xp(self.index).bincount(self.index, minlength=1).max())

    @property
    def injective(self) -> bool:
        """True when no input value is used twice."""
        return self.fan_in <= 1

    @cached_property
    def _groups(self) -> tuple[Array, ...]:
        return groups(self.index)

    def linear(self, xs: Sequence[Array]) -> Array:
        return xs[0][:, self.index]

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        out = zeros((a.shape[0], self.size), a)
        if self.injective:
            out[:, self.index] = a
        else:
            add_groups(out, self._groups, a)
        return (out,)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return xs[0][:, self.index]

    def parameters(self) -> dict[str, Any]:
        return {"index": self.index, "size": self.size}


@dataclass(frozen=True, eq=False)
class Concat(Affine):
    """Values of all inputs one after the other (flat); a following `Index` restores axis order."""

    sizes: tuple[int, ...]
    kind: str = field(default="Concat", init=False)
    fan_in = 1

    def linear(self, xs: Sequence[Array]) -> Array:
        return xp(xs[0]).concatenate(tuple(xs), axis=1)

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        ends = tuple(accumulate(self.sizes))
        return tuple(a[:, end - size : end] for size, end in zip(self.sizes, ends, strict=True))

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return xp(xs[0]).concatenate(tuple(xs), axis=1)

    def parameters(self) -> dict[str, Any]:
        return {"sizes": self.sizes}


@dataclass(frozen=True, eq=False)
class Place(Affine):
    """`y[index] = x` inside `offset (m,)`: Pad, and Concat with constants. `index` has no repetition.

    `offset` is zero at `index`.
    """

    index: Array
    offset: Array
    kind: str = field(default="Place", init=False)
    fan_in = 2

    def linear(self, xs: Sequence[Array]) -> Array:
        out = zeros((xs[0].shape[0], len(self.offset)), xs[0])
        out[:, self.index] = xs[0]
        return out

    def bias(self) -> Array:
        return self.offset

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        return (a[:, self.index],)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return self.linear(xs)

    def parameters(self) -> dict[str, Any]:
        return {"index": self.index, "offset": self.offset}


@dataclass(frozen=True, eq=False)
class RowDense(Affine):
    """One dense map on each of `rows` rows: `(rows, n)` -> `(rows, m)` by `weight (m, n)`, without bias.

    This is MatMul of a tensor with several rows by a constant matrix. `roundings` is as in `Dense`.
    """

    weight: Array
    rows: int
    roundings: int = 0
    kind: str = field(default="RowDense", init=False)

    @property
    def fan_in(self) -> int:  # type: ignore[override]
        return int(max(self.weight.shape)) + self.roundings

    def linear(self, xs: Sequence[Array]) -> Array:
        return self._each(xs[0], self.weight.T)

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        return (self._each(a, self.weight),)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return self._each(xs[0], abs(self.weight).T)

    def _each(self, x: Array, matrix: Array) -> Array:
        return (x.reshape(x.shape[0] * self.rows, -1) @ matrix).reshape(x.shape[0], -1)

    def parameters(self) -> dict[str, Any]:
        return {"weight": self.weight, "rows": self.rows}


@dataclass(frozen=True, eq=False)
class Reduce(Affine):
    """`factor` times the sum over some axes of a tensor of shape `shape`: ReduceSum, ReduceMean, global pools."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    factor: float = 1.0
    kind: str = field(default="Reduce", init=False)

    @property
    def fan_in(self) -> int:  # type: ignore[override]
        return prod(self.shape[i] for i in self.axes) + 1

    @property
    def exact(self) -> bool:
        return abs(frexp(self.factor)[0]) == 0.5  # a power of two: other means round 1 / count

    def linear(self, xs: Sequence[Array]) -> Array:
        batch = xs[0].shape[0]
        total = xs[0].reshape(batch, *self.shape)
        if self.axes:
            total = total.sum(axis=tuple(i + 1 for i in self.axes))
        return total.reshape(batch, -1) * self.factor

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        kept = tuple(1 if i in self.axes else n for i, n in enumerate(self.shape))
        spread = xp(a).broadcast_to((a * self.factor).reshape(a.shape[0], *kept), (a.shape[0], *self.shape))
        return (spread.reshape(a.shape[0], -1),)

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return abs(self.linear(xs))

    def parameters(self) -> dict[str, Any]:
        return {"shape": self.shape, "axes": self.axes, "factor": self.factor}
