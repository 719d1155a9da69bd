"""The checker's own enclosures of elementwise operators: image of an interval, one line on either side.

A slope is a number that may be chosen freely; here it is a float taken as exact. What has to be right
is the offset: for a slope s the lower line is `s z + min (f(z) - s z)`, the minimum over [l, u] taken
outward, and likewise above. So nothing an operator proposes is believed: `Sigmoid` and `Tanh` are
asked for slopes only.

* Two pieces (`max(left z, right z)`): f minus a line is convex, its largest value is at an end, and any
  slope in [left, right] is a lower line through zero, whatever the sign of z. So a proof's slopes may serve neurons
  that are stable by a hair, too: a search that saw one as unstable may rest on them, where the steeper line's row may
  be worse further back. Beyond a hair they are not what a proof can mean.
* S-shaped (`Sigmoid`, `Tanh`: convex left of 0, concave right of it): on the concave part f - s z is
  smallest at an end; on the convex part it lies above its tangent at ANY point p, whose smallest value
  is at an end. With p near the zero of f' - s that costs next to nothing, and p itself may be inexact.
  The upper line is the lower one of the mirrored function, `f(-z) = f(0) + f(0) - f(z)`.
* Waves (`Sin`, `Cos`: `sin(z + phase)`): f - s z has its local minima where `z + phase = 2 pi k - arccos s`, where it
  is `-sqrt(1 - s^2) - s z`; that is monotone in k, so the first and the last k inside [l, u] suffice, with the two
  ends. A k that is slightly outside does no harm. The upper line is the lower one of `sin(z + phase + pi) = -f`.
* `Square`: the smallest value of `z^2 - s z` on [l, u] is at its point nearest to s / 2, the largest at an end.
* `Exp` and `Reciprocal` (where the box has one sign; otherwise nothing is known): f is convex, or concave left of 0.
  Its largest distance above a line is at an end. It lies above its tangent at ANY point p, and what the tangent falls
  below the line is smallest at an end.
* Steps: `Sign` is constant left and right of 0, so f - s z has its extremes at the ends and on either side of 0, for
  any slope. `Floor` and `Round` take the slopes 0 (the values at the ends) and 1 (`-1 <= floor(z) - z <= 0`,
  `|round(z) - z| <= 1/2`, sharper where f is constant). `Trunc` is the floor right of 0 and minus that of -z left of
  it, so `-1 <= trunc(z) - z` where z may be positive and `trunc(z) - z <= 1` where it may be negative, otherwise 0;
  nothing is known where the box leaves the range in which it is the integer part.
* Functions of convex, concave and straight pieces (`SHAPES`): where a piece is not convex f - s z is smallest at an
  end. A convex piece lies above its tangent at ANY point p, as above; p comes from a bisection. The upper line is the
  lower one of -f.
* `Product`: `x y - s x - t y` is linear in each variable alone: its extremes over a box are at corners. Where x and y
  have linear bounds over the input (`together`): with u = x - t, w = y - s it is `u w - s t`, and `4 u w` is
  `(r u + w / r)^2 - (r u - w / r)^2` for any r > 0, so each square bounds one side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Any

import numpy as np

from mucg4.ops.base import Array, Nonlinear
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

S_SHAPED = ("Sigmoid", "Tanh")
PHASE = {"Sin": 0.0, "Cos": np.pi / 2}
STEPS: dict[str, Any] = {"Floor": (np.floor, -1.0, 0.0), "Round": (np.round, -0.5, 0.5)}  # f, and the range of f(z) - z
ONE_INPUT = (*S_SHAPED, *PHASE, *STEPS, "Trunc", "Sign", "Square", "Reciprocal", "Exp")
FAR = 1e6  # beyond it a wave is only known to be in [-1, 1]; not measured
# absolute error of one evaluation of f or f' (|f| <= 1); not measured, libm's known errors are a few 2**-53
LIBM = 2.0**-47
TURN = 2 * np.pi
STEP = 2.0**-52  # generous relative error of one operation; given: 2**-53 is the format's
TINY = 1e-150  # dominates underflow; given: the format's is 1e-308
# share of a box by which a two-piece function's argument keeps away from 0 and is still free; not measured
HAIR = 2.0**-10
# of a piece, to find where its tangent has a given slope; given: the digits of a double, lines lose the last one
HALVINGS = 52


@dataclass(eq=False)
class Lines:
    """Lines per region and neuron, all `(B, n)`; an offset of None is zero.

    `free` marks where the lower slope may be replaced by any slope in `reach`. `steep` is at least the size of any
    slope that may occur: one number, or one per neuron `(B, n)`. `other` are the lower and upper slopes for the second
    input, where there is one.
    """

    low: Array
    up: Array
    up_offset: Array
    low_offset: Array | None
    free: Array
    reach: tuple[float, float]
    steep: float | Array
    other: tuple[Array, Array] | None = None
    span: Array = field(init=False)  # up - low, rounded
    flags: tuple[Array, Array] | None = field(default=None, init=False)  # of `mucg4.check.narrow`

    def __post_init__(self) -> None:
        self.span = self.up - self.low

    def one(self, region: int) -> Lines:
        """The lines of one region."""
        own = slice(region, region + 1)
        low_offset = None if self.low_offset is None else self.low_offset[own]
        low, up, offset, free = self.low[own], self.up[own], self.up_offset[own], self.free[own]
        steep = self.steep[own] if isinstance(self.steep, np.ndarray) else self.steep
        other = None if self.other is None else (self.other[0][own], self.other[1][own])
        return Lines(low, up, offset, low_offset, free, self.reach, steep, other)

    def put(self, region: int, lines: Lines) -> None:
        """Replace the lines of one region by those of a batch of one."""
        self.flags = None
        for name in ("low", "up", "up_offset", "low_offset", "free", "span"):
            values = getattr(self, name)
            if values is not None:
                values[region] = getattr(lines, name)[0]
        if isinstance(self.steep, np.ndarray):
            assert isinstance(lines.steep, np.ndarray)
            self.steep[region] = lines.steep[0]
        if self.other is not None:
            assert lines.other is not None
            for mine, new in zip(self.other, lines.other, strict=True):
                mine[region] = new[0]


@dataclass(eq=False)
class Ends:
    """A node's hull `lo, hi (B, n)` and lines over the input v: `below . v + base <= z <= above . v + top`.

    `below, above (B, n, d)`, the others `(B, n)`.
    """

    lo: Array
    hi: Array
    below: Array
    base: Array
    above: Array
    top: Array

    def mirrored(self) -> Ends:
        """Those of -z."""
        return Ends(-self.hi, -self.lo, -self.above, -self.top, -self.below, -self.base)


def knows(op: Nonlinear, inputs: int) -> bool:
    """True when `enclose` has a rule for the operator with so many inputs."""
    if isinstance(op, TwoPiece):
        return inputs == 1
    if op.kind == "Elu" and not getattr(op, "alpha", 0.0) > 0:
        return False
    return (op.kind in (*ONE_INPUT, *SHAPES) and inputs == 1) or (op.kind == "Product" and inputs == 2)


def enclose(op: Any, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Lines, Array, Array]:
    """Lines on the box `[lo, hi]` (one pair per input) and the image's lower and upper ends, all `(B, n)`, outward."""
    if isinstance(op, TwoPiece):
        return _two_piece(op, lo[0], hi[0])
    if op.kind == "Product":
        return _product(op, lo, hi)
    rules: dict[str, Any] = {"Square": _square, "Reciprocal": _reciprocal, "Exp": _exponential, "Sign": _sign}
    for kinds, shared in ((PHASE, _wave), (S_SHAPED, _s_shaped), ((*STEPS, "Trunc"), _stairs), (SHAPES, _pieces)):
        rules.update(dict.fromkeys(kinds, shared))
    lines: tuple[Lines, Array, Array] = rules[op.kind](op, lo[0], hi[0])
    return lines


def _steepest(*slopes: Array) -> Array:
    """(B, n) the largest size of any of the slopes."""
    return np.maximum.reduce([abs(s) for s in slopes])


def _no(lo: Array) -> tuple[Array, tuple[float, float]]:
    """No neuron of a smooth function takes other slopes."""
    return np.zeros(lo.shape, dtype=bool), (0.0, 0.0)


def _proposed(op: Nonlinear, lo: Sequence[Array], hi: Sequence[Array]) -> list[Array]:
    """The operator's slopes, lower then upper for each input; 0 where they are not finite."""
    r = op.relax(list(lo), list(hi))
    pairs = zip(r.lower_slopes, r.upper_slopes, strict=True)
    return [np.where(np.isfinite(s), s, 0.0) for pair in pairs for s in pair]


def _wave(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    low, up = (np.clip(s, -1.0, 1.0) for s in _proposed(op, [lo], [hi]))
    known = (lo > -FAR) & (hi < FAR)
    low, up = np.where(known, low, 0.0), np.where(known, up, 0.0)
    phase, flat = PHASE[op.kind], np.zeros(lo.shape)
    low_offset, up_offset = _wave_lowest(phase, low, lo, hi), -_wave_lowest(phase + np.pi, -up, lo, hi)
    lines = Lines(low, up, up_offset, low_offset, *_no(lo), 1.0)
    flo, fhi = _wave_lowest(phase, flat, lo, hi), -_wave_lowest(phase + np.pi, flat, lo, hi)
    return lines, np.maximum(flo, -1.0), np.minimum(fhi, 1.0)


def _wave_lowest(phase: float, s: Array, lo: Array, hi: Array) -> Array:
    """A float below `min over [lo, hi] of sin(z + phase) - s z` for slopes s in [-1, 1]; s = 0 on far boxes."""
    with np.errstate(invalid="ignore", over="ignore"):
        known = (lo > -FAR) & (hi < FAR)
        a, b = np.where(known, lo, 0.0), np.where(known, hi, 0.0)
        far = np.maximum(abs(a), abs(b)) + 16.0
        base = -np.arccos(s) - phase
        first, last = np.ceil((a - base) / TURN - 1e-9), np.floor((b - base) / TURN + 1e-9)
        value = np.minimum(np.sin(a + phase) - s * a, np.sin(b + phase) - s * b)
        bottom = -np.sqrt((1 - s) * (1 + s))
        for k in (first, last):
            value = np.where(first <= last, np.minimum(value, bottom - s * (base + TURN * k)), value)
    value = value - (4 * LIBM + 16 * STEP * far)
    return np.where(known, value, -1.0)


def _square(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    low, up = _proposed(op, [lo], [hi])
    with np.errstate(invalid="ignore", over="ignore"):
        nearest = np.clip(low / 2, lo, hi)
        size = np.maximum(lo * lo, hi * hi)
        slack = 8 * STEP * (size + np.maximum(abs(low), abs(up)) * np.maximum(abs(lo), abs(hi))) + TINY
        low_offset = nearest * (nearest - low) - slack
        up_offset = np.maximum(lo * (lo - up), hi * (hi - up)) + slack
    # an end that overflowed: the image is unbounded above, below it the square is not negative
    low_offset = np.where(np.isfinite(low_offset), low_offset, -np.inf)
    up_offset = np.where(np.isfinite(up_offset), up_offset, np.inf)
    lines = Lines(low, up, up_offset, low_offset, *_no(lo), _steepest(low, up))
    inside = (lo <= 0) & (hi >= 0)
    with np.errstate(over="ignore"):
        flo = np.where(inside, 0.0, np.minimum(lo * lo, hi * hi))
    return lines, np.clip(flo * (1 - 4 * STEP) - TINY, 0.0, 1e300), size * (1 + 4 * STEP) + TINY


def _reciprocal(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    """On negative boxes by the mirrored function, 1 / -z = -(1 / z)."""
    left = hi < 0
    known = ((lo > 1e-100) | (hi < -1e-100)) & np.isfinite(lo) & np.isfinite(hi)
    a, b = (np.where(known, np.where(left, *pair), 1.0) for pair in ((-hi, lo), (-lo, hi)))
    s = [np.where(known, x, 0.0) for x in _proposed(op, [lo], [hi])]
    low, up = np.where(left, s[1], s[0]), np.where(left, s[0], s[1])  # of the mirrored function
    with np.errstate(all="ignore"):
        touch = np.sqrt(1 / np.maximum(-low, 1e-200))
        below, above = _convex_offsets(lambda z: 1 / z, lambda z: -1 / (z * z), touch, low, up, a, b)
        first, last = 1 / b * (1 - 4 * STEP), 1 / a * (1 + 4 * STEP)
    low_offset = np.where(known, np.where(left, -above, below), -np.inf)
    up_offset = np.where(known, np.where(left, -below, above), np.inf)
    flo = np.where(known, np.where(left, -last, first), -np.inf)
    fhi = np.where(known, np.where(left, -first, last), np.inf)
    return Lines(s[0], s[1], up_offset, low_offset, *_no(lo), _steepest(*s)), flo, fhi


def _exponential(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    known = (lo > -600) & (hi < 600)
    a, b = np.where(known, lo, 0.0), np.where(known, hi, 0.0)
    low, up = (np.where(known, s, 0.0) for s in _proposed(op, [lo], [hi]))
    with np.errstate(all="ignore"):
        touch = np.log(np.maximum(low, 1e-300))
        below, above = _convex_offsets(np.exp, np.exp, touch, low, up, a, b)
        first, last = np.exp(lo) * (1 - LIBM) - TINY, np.exp(hi) * (1 + LIBM) + TINY
    lines = Lines(low, up, np.where(known, above, last), np.where(known, below, 0.0), *_no(lo), _steepest(low, up))
    return lines, np.clip(first, 0.0, 1e300), last  # never infinite: the value itself is not


def _convex_offsets(
    f: Any, slope_at: Any, touch: Array, low: Array, up: Array, lo: Array, hi: Array
) -> tuple[Array, Array]:
    """Floats below `f(z) - low z` and above `f(z) - up z` on [lo, hi], for convex f > 0 with |f'| largest at an end.

    f and f' may be off by a relative LIBM.
    """
    p = np.clip(np.where(np.isnan(touch), lo, touch), lo, hi)
    tangent, far = slope_at(p), np.maximum(abs(lo), abs(hi))
    rise = tangent - low
    drop = np.maximum(np.maximum(rise * (p - lo), -rise * (hi - p)), 0)
    ends = np.maximum(f(lo), f(hi))
    below = f(p) - low * p - drop
    below = below - (2 * LIBM * (ends + abs(tangent) * (hi - lo)) + 16 * STEP * (abs(low) * far + drop) + TINY)
    above = np.maximum(f(lo) - up * lo, f(hi) - up * hi)
    return below, above + (2 * LIBM * ends + 16 * STEP * abs(up) * far + TINY)


def _sign(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    known = np.isfinite(lo) & np.isfinite(hi)
    low, up = (np.where(known, s, 0.0) for s in _proposed(op, [lo], [hi]))
    a, b = np.where(known, lo, -1.0), np.where(known, hi, 1.0)
    around = ((-1.0, (a < 0) & (b >= 0)), (0.0, (a <= 0) & (b >= 0)), (1.0, (a <= 0) & (b > 0)))
    offsets = []
    for s, side in ((low, 1.0), (up, -1.0)):
        least = np.minimum(side * (np.sign(a) - s * a), side * (np.sign(b) - s * b))
        for value, there in around:
            least = np.where(there, np.minimum(least, side * value), least)
        offsets.append(side * (least - (8 * STEP * (1 + abs(s) * np.maximum(abs(a), abs(b))) + TINY)))
    return Lines(low, up, offsets[1], offsets[0], *_no(lo), _steepest(low, up)), np.sign(lo), np.sign(hi)


def _stairs(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    known = np.isfinite(lo) & np.isfinite(hi)
    if op.kind == "Trunc":
        f, behind, ahead = np.trunc, np.where(hi > 0, -1.0, 0.0), np.where(lo < 0, 1.0, 0.0)
        known &= (lo > op.least - 1) & (hi < op.most + 1)  # type: ignore[attr-defined]
        first, last = np.where(known, f(lo), -np.inf), np.where(known, f(hi), np.inf)
    else:
        f, behind, ahead = STEPS[op.kind]
        first, last = f(lo), f(hi)
    low, up = (np.where(known & (s > 0.5), 1.0, 0.0) for s in _proposed(op, [lo], [hi]))
    with np.errstate(invalid="ignore"):
        same = first == last
        slack = 4 * STEP * (abs(lo) + abs(hi)) + TINY
        below = np.where(same, np.maximum(behind, last - hi - slack), behind)
        above = np.where(same, np.minimum(ahead, first - lo + slack), ahead)
    low_offset, up_offset = np.where(low == 0, first, below), np.where(up == 0, last, above)
    return Lines(low, up, up_offset, low_offset, *_no(lo), _steepest(low, up)), first, last


@dataclass(frozen=True)
class Shape:
    """f, f' on the curved pieces, and the pieces: `edges` between them and, for each, 1 convex, -1 concave, 0 straight.

    f and f' are off by a relative LIBM and an absolute `LIBM * noise`. All values lie in [least, most], those of finite
    arguments from `start` on are finite.
    """

    f: Any
    slope_at: Any
    edges: tuple[float, ...]
    bends: tuple[int, ...]
    least: float = -np.inf
    most: float = np.inf
    noise: float = 0.0
    start: float = -1e100


def _normal(z: Array) -> Array:
    """The normal distribution function."""
    from scipy.special import erfc

    return 0.5 * erfc(-z / np.sqrt(2.0))


def _erf(z: Array) -> Array:
    from scipy.special import erf

    return erf(z)


def _logistic(z: Array) -> Array:
    e = np.exp(-abs(z))
    return np.where(z >= 0, 1.0, e) / (1.0 + e)


def _tanh_gate(z: Array) -> tuple[Array, Array]:
    """The gate of Gelu by tanh, `(1 + tanh v) / 2 = logistic(2 v)`, and its derivative."""
    z = np.clip(z, -100.0, 100.0)  # beyond, it is 0 or 1 to all digits
    v = np.sqrt(8 / np.pi) * (z + 0.044715 * z**3)
    return _logistic(v), _logistic(v) * _logistic(-v) * np.sqrt(8 / np.pi) * (1 + 3 * 0.044715 * z * z)


def _mish_gate(z: Array) -> tuple[Array, Array]:
    """tanh(log(1 + exp z)) and its derivative, in powers of exp -|z|."""
    e, right = np.exp(-abs(z)), z >= 0
    top, bottom = np.where(right, 1 + 2 * e, e * e + 2 * e), np.where(right, 1 + 2 * e + 2 * e * e, e * e + 2 * e + 2)
    return top / bottom, np.where(right, e, 1.0) * 4 * e * (1 + e) / bottom**2


def _gated(gate: Any, left: float, right: float) -> Shape:
    """z times a gate: convex between two points."""

    def slope_at(z: Array) -> Array:
        value, slope = gate(z)
        return value + z * slope

    return Shape(lambda z: z * gate(z)[0], slope_at, (left, right), (-1, 1, -1), -0.31, noise=1.0)


def _odd(f: Any, slope_at: Any, limit: float) -> Shape:
    return Shape(f, slope_at, (0.0,), (1, -1), -limit, limit, noise=1.0)


SHAPES = {
    "Log": Shape(np.log, lambda z: 1 / z, (), (-1,), start=1e-100),
    "Sqrt": Shape(np.sqrt, lambda z: 0.5 / np.sqrt(z), (), (-1,), 0.0, start=0.0),
    "Softplus": Shape(lambda z: np.maximum(z, 0.0) + np.log1p(np.exp(-abs(z))), _logistic, (), (1,), 0.0),
    "Erf": _odd(_erf, lambda z: 2 / np.sqrt(np.pi) * np.exp(-z * z), 1.0),
    "Softsign": _odd(lambda z: z / (1 + abs(z)), lambda z: 1 / (1 + abs(z)) ** 2, 1.0),
    "Atan": _odd(np.arctan, lambda z: 1 / (1 + z * z), 1.5707963267948968),
    "HardSwish": Shape(
        lambda z: np.where(z > 3, z, np.where(z < -3, 0.0, z * (z + 3) / 6)),
        lambda z: (2 * z + 3) / 6,
        (-3.0, 3.0),
        (0, 1, 0),
        -0.376,
        noise=1.0,
    ),
    "Gelu": _gated(lambda z: (_normal(z), np.exp(-z * z / 2) / np.sqrt(2 * np.pi)), -np.sqrt(2.0), np.sqrt(2.0)),
    "GeluTanh": _gated(_tanh_gate, -1.4185040087908285, 1.4185040087908285),
    "Silu": _gated(lambda z: (_logistic(z), _logistic(z) * _logistic(-z)), -2.399357280515468, 2.399357280515468),
    "Mish": _gated(_mish_gate, -2.2563763963607935, 1.4905711794854284),
    "Elu": Shape(np.expm1, np.exp, (0.0,), (1, 0)),  # of alpha 1; see `_shape`
}


def _shape(op: Any) -> Shape:
    if op.kind != "Elu":
        return SHAPES[op.kind]
    alpha = float(op.alpha)
    return Shape(
        lambda z: np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0))),
        lambda z: alpha * np.exp(np.minimum(z, 0.0)),
        (0.0,),
        (1, 0),
        -alpha * (1 + 4 * STEP),
    )


def _pieces(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    shape = _shape(op)
    known = (lo >= shape.start) & (lo <= hi) & (hi <= 1e100)
    a, b = np.where(known, lo, 1.0), np.where(known, hi, 1.0)
    low, up = (np.where(known, s, 0.0) for s in _proposed(op, [lo], [hi]))
    flat = np.zeros(lo.shape)
    with np.errstate(all="ignore"):
        under, over = _piece_lowest(shape, 1, low, a, b), -_piece_lowest(shape, -1, -up, a, b)
        first, last = _piece_lowest(shape, 1, flat, a, b), -_piece_lowest(shape, -1, flat, a, b)
    first, last = np.maximum(first, shape.least), np.minimum(last, shape.most)
    # what is not known may not even be defined
    first, last = np.where(known, first, -np.inf), np.where(known, last, np.inf)
    under, over = np.where(known, under, -np.inf), np.where(known, over, np.inf)
    return Lines(low, up, over, under, *_no(lo), _steepest(low, up)), first, last


def _piece_lowest(shape: Shape, side: int, s: Array, lo: Array, hi: Array) -> Array:
    """A float below `min over [lo, hi] of side * f(z) - s z` (side 1 or -1); -inf where something overflows."""

    def at(z: Array) -> Array:
        f, line = shape.f(z), s * z
        return side * f - line - (2 * LIBM * (abs(f) + shape.noise) + 8 * STEP * (abs(f) + abs(line)) + TINY)

    corners = [lo, *(np.clip(e, lo, hi) for e in shape.edges), hi]
    best = np.minimum.reduce([at(z) for z in corners])
    for a, b, bend in zip(corners[:-1], corners[1:], shape.bends, strict=True):
        if bend * side <= 0:
            continue
        near, far = a, b
        for _ in range(HALVINGS):
            p = near + (far - near) / 2
            rising = side * shape.slope_at(p) >= s
            near, far = np.where(rising, near, p), np.where(rising, p, far)
        p = near + (far - near) / 2
        tangent = shape.slope_at(p)
        rise = side * tangent - s
        drop = np.maximum(np.maximum(rise * (p - a), -rise * (b - p)), 0)
        wrong = (2 * LIBM * (abs(tangent) + shape.noise) + 8 * STEP * abs(s)) * (b - a) + 8 * STEP * drop
        best = np.where(a < b, np.minimum(best, at(p) - drop - wrong), best)
    return np.where(np.isnan(best), -np.inf, best)


def _product(op: Nonlinear, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Lines, Array, Array]:
    low, up, other_low, other_up = _proposed(op, lo, hi)
    low_offset, up_offset = _corners(low, other_low, lo, hi)[0], _corners(up, other_up, lo, hi)[1]
    zero = np.zeros(low.shape)
    flo, fhi = _corners(zero, zero, lo, hi)
    steep = _steepest(low, up)
    return Lines(low, up, up_offset, low_offset, *_no(low), steep, (other_low, other_up)), flo, fhi


def _corners(s: Array, t: Array, lo: Sequence[Array], hi: Sequence[Array]) -> tuple[Array, Array]:
    """Floats around all `x y - s x - t y` on the box; infinite where something is."""
    x = np.stack([lo[0], lo[0], hi[0], hi[0]])
    y = np.stack([lo[1], hi[1], lo[1], hi[1]])
    with np.errstate(invalid="ignore", over="ignore"):
        g = x * (y - s) - t * y
        size = abs(x) * (abs(y) + abs(s)) + abs(t * y)
        slack = 8 * STEP * size.max(axis=0) + TINY
        low, high = g.min(axis=0) - slack, g.max(axis=0) + slack
    return np.where(np.isfinite(low), low, -np.inf), np.where(np.isfinite(high), high, np.inf)


def together(lines: Lines, where: Array, box: tuple[Array, Array], x: Ends, y: Ends) -> None:
    """Better offsets of a product's lines in the regions `where (B,)`, in place; `box` `(B, d)` pair of the input."""
    assert lines.other is not None and lines.low_offset is not None
    with np.errstate(all="ignore"):
        r = np.sqrt((y.hi - y.lo) / (x.hi - x.lo))
        fine = np.isfinite(r) & (r > 0) & where[:, None]
        r = np.where(fine, r, 1.0)
        for offset, s, t, side in (
            (lines.low_offset, lines.low, lines.other[0], -1),
            (lines.up_offset, lines.up, lines.other[1], 1),
        ):
            w, centre = y if side > 0 else y.mirrored(), r * t + side * s / r
            most = _most(box, r, x.above, x.top, w.above, w.top, -centre)
            least = -_most(box, r, -x.below, -x.base, -w.below, -w.base, centre)
            square = np.maximum(abs(most), abs(least)) ** 2 / 4
            found = -s * t + side * square
            found = found + side * (32 * STEP * (abs(s * t) + square) + TINY)
            better = fine & np.isfinite(found) & (side * found < side * offset)
            offset[better] = found[better]


def _most(box: tuple[Array, Array], r: Array, *parts: Array) -> Array:
    """Floats above `r (a . v + c) + (b . v + d) / r + e` for all v in the box."""
    a, c, b, d, e = parts
    big, small = a * r[..., None], b / r[..., None]
    centre, radius = (box[0] + box[1]) / 2, (box[1] - box[0]) / 2 * (1 + 4 * STEP)
    far = abs(centre) + radius
    value = np.einsum("bnd,bd->bn", big + small, centre) + np.einsum("bnd,bd->bn", abs(big + small), radius)
    size = np.einsum("bnd,bd->bn", abs(big) + abs(small), far) + abs(r * c) + abs(d / r) + abs(e)
    return value + (r * c + d / r + e) + ((box[0].shape[1] + 32) * STEP * size + TINY)


def _two_piece(op: TwoPiece, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    left, right = op.left, op.right
    unstable = (lo < 0) & (hi > 0)
    stable = np.where(lo >= 0, right, left)
    width = np.where(unstable, hi - lo, 1.0)
    chord = np.where(unstable, left + (right - left) * (hi / width), stable)
    chord = np.minimum(np.maximum(chord, left), right)
    offset = np.maximum((left - chord) * lo, (right - chord) * hi)  # f - chord at the ends, two roundings
    offset = np.where(unstable, offset * (1 + 4 * STEP) + TINY, 0.0)
    low = np.where(unstable, np.where(op.default_alpha(lo, hi).astype(bool), right, left), stable)
    first, last = np.maximum(left * lo, right * lo), np.maximum(left * hi, right * hi)
    flo = np.minimum(np.where(unstable, np.minimum(first, 0.0), first), last)
    fhi = np.maximum(first, last)
    if (left, right) != (0.0, 1.0):
        tiny = np.where((lo == 0) & (hi == 0), 0.0, TINY)  # the image of 0 is exactly 0
        flo, fhi = flo - (abs(flo) * 2 * STEP + tiny), fhi + (abs(fhi) * 2 * STEP + tiny)
    steep = max(abs(op.left), abs(op.right))
    with np.errstate(over="ignore"):
        free = unstable | ((lo > 0) & (lo < HAIR * hi)) | ((hi < 0) & (hi > HAIR * lo))
    return Lines(low, chord, offset, None, free, (op.left, op.right), steep), flo, fhi


def _s_shaped(op: Nonlinear, lo: Array, hi: Array) -> tuple[Lines, Array, Array]:
    relaxation = op.relax([lo], [hi])
    low, up = (np.clip(s[0], 0.0, 1.0) for s in (relaxation.lower_slopes, relaxation.upper_slopes))
    f, slope_at, inverse = _functions(op.kind)
    low_offset = _lowest(f, slope_at, inverse, low, lo, hi)
    centre = 2 * f(np.zeros(1))[0]  # 0 or 1, exact
    up_offset = centre - _lowest(f, slope_at, inverse, up, -hi, -lo)
    up_offset = up_offset + 4 * STEP * abs(up_offset)
    lines = Lines(low, up, up_offset, low_offset, np.zeros(lo.shape, dtype=bool), (0.0, 0.0), 1.0)
    least = centre - 1.0  # the range is [0, 1] or [-1, 1]
    return lines, np.maximum(f(lo) - LIBM, least), np.minimum(f(hi) + LIBM, 1.0)


def _functions(kind: str) -> tuple[Any, Any, Any]:
    """f, f' and a nonnegative solution c of f'(c) = s for `0 < s <= f'(0)` (any c is sound)."""

    def sigmoid(x: Array) -> Array:
        e = np.exp(-abs(x))
        return np.where(x >= 0, 1.0, e) / (1.0 + e)

    if kind == "Sigmoid":
        return (
            sigmoid,
            lambda x: sigmoid(x) * sigmoid(-x),
            lambda s: 2 * np.arctanh(np.sqrt(np.clip(1 - 4 * s, 0.0, 1 - STEP))),
        )
    return (
        np.tanh,
        lambda x: (1 - np.tanh(x)) * (1 + np.tanh(x)),
        lambda s: np.arctanh(np.sqrt(np.clip(1 - s, 0.0, 1 - STEP))),
    )


def _lowest(f: Any, slope_at: Any, inverse: Any, s: Array, lo: Array, hi: Array) -> Array:
    """A float below `min over [lo, hi] of f(z) - s z` for slopes s in [0, 1]; see the module text."""
    with np.errstate(invalid="ignore", over="ignore"):
        bend = np.minimum(hi, 0)
        p = np.clip(-inverse(s), lo, np.maximum(lo, bend))
        rise = slope_at(p) - s
        at_p = f(p) - s * p
        reach = np.maximum(p - lo, bend - p)  # the tangent's drop inside [lo, bend]
        drop = np.maximum(np.maximum(rise * (p - lo), -rise * (bend - p)), 0) + LIBM * reach
        ends = np.minimum(f(np.maximum(lo, 0)) - s * np.maximum(lo, 0), f(hi) - s * hi)
        value = np.where(lo < 0, at_p - drop, ends)
        value = np.where(hi > 0, np.minimum(value, ends), value)
        size = 2 + abs(s) * np.maximum(abs(lo), abs(hi)) + drop
    return value - (2 * LIBM + 8 * STEP * size)
