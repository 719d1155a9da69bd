"""Affine operators: dense maps, sums, index maps, concatenation. Convolutions are in `conv.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mucg4.ops.base import Affine, Array


@dataclass(frozen=True, eq=False)
class Dense(Affine):
    """`y = W x + b` with `weight (m, n)` and `offset (m,)`, both float64.

    `offset_magnitude (m,)` is at least |offset| and includes the terms folded into it (for example
    `|W| |c|` when a constant `c` was subtracted from the input): the rounding place multiplies it
    with the unit roundoff, so a fold done in float64 stays sound.
    """

    weight: Array
    offset: Array
    offset_magnitude: Array | None = None
    kind: str = field(default="Dense", init=False)

    @property
    def fan_in(self) -> int:  # type: ignore[override]
        return self.weight.shape[1] + 1

    @cached_property
    def abs_weight(self) -> Array:
        return np.abs(self.weight)

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
    """`y = scale * x + offset`, elementwise (BatchNormalization and constants that could not be merged)."""

    scale: Array
    offset: Array
    offset_magnitude: Array | None = None
    kind: str = field(default="Scale", init=False)
    fan_in = 2

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
    fan_in = 1

    @cached_property
    def injective(self) -> bool:
        return len(np.unique(self.index)) == len(self.index)

    def linear(self, xs: Sequence[Array]) -> Array:
        return xs[0][:, self.index]

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        out = np.zeros((a.shape[0], self.size), dtype=a.dtype)
        if self.injective:
            out[:, self.index] = a
        else:
            np.add.at(out.T, self.index, a.T)
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
        return np.concatenate(xs, axis=1)

    def adjoint(self, a: Array) -> tuple[Array, ...]:
        cuts = np.cumsum(self.sizes)[:-1]
        return tuple(np.split(a, cuts, axis=1))

    def magnitude(self, xs: Sequence[Array]) -> Array:
        return np.concatenate(xs, axis=1)

    def parameters(self) -> dict[str, Any]:
        return {"sizes": self.sizes}
