"""The witness gate: a witness counts only when onnxruntime reproduces it with zero tolerance.

onnxruntime runs as a scorer runs it (CPU, default session options, the model's own element type, one point at a
time), with 1 and with 12 threads, since sums in another order differ in their last bits; both have to agree to it.

* input bounds: the element-type value of x is compared with the element-type value of the bound (for
  float32 models float32(x) against float32(bound), interface section 2.4);
* output and mixed constraints: must hold on the replayed outputs in exact rational arithmetic on the
  stated numbers, and in double, and in the element type's own arithmetic, summed one term after the
  other and as positive against negative terms; strict ones strictly.

Anything that is not finite fails, and so do inputs that are not whole where the file takes integers. Another machine's
onnxruntime may round otherwise, so of several candidates that hold the one with the largest margin is taken, and one
that holds by a hair is moved inward if that is easy.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mucg4.gate.gradient import gradient
from mucg4.gate.runtime import Runtime
from mucg4.gate.runtimes import runtime_of
from mucg4.model.network import LARGEST_WHOLE, Network
from mucg4.model.query import Box, Case, Conjunction, Query, Witness
from mucg4.ops.arrays import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from mucg4.model.joint import Joint

REPLAYS = 64  # most candidates of one batch that are handed to onnxruntime, best first; not measured
SCREEN = 1e-4  # relative slack of the float64 screening; generous against float32 rounding; not measured
# margins below so many units in the last place of the largest term may be a matter of rounding; not measured
HAIR = 64.0
COMPARED = 8  # candidates looked at after one that holds by a hair; not measured
EASY = 200_000  # neurons of a network that is evaluated at a few points more without a second thought; not measured
NUDGES = 3  # gradients taken to move such a one inward; not measured
STEPS = 2.0 ** -np.arange(1, 24, 2)  # tried along each, as shares of the box


class Held(NamedTuple):
    """A candidate that holds: how far (exactly, over the worst constraint), and whether that may be rounding."""

    margin: Fraction
    hair: bool
    conjunction: Conjunction
    witness: Witness


def legal_bounds(box: Box, element_type: str = "float32") -> tuple[FloatArray, FloatArray]:
    """The stated bounds rounded to the element type: what a replayed input is compared with."""
    with np.errstate(over="ignore"):
        lo, hi = (b.astype(element_type) for b in box.stated)
        return lo, hi


def snap(box: Box, x: FloatArray, element_type: str = "float32") -> FloatArray:
    """Candidates `(..., n)` of any float type as element-type values inside the legal box."""
    lo, hi = legal_bounds(box, element_type)
    with np.errstate(over="ignore"):
        return np.asarray(np.clip(np.asarray(x).astype(element_type), lo, hi))


def whole(network: Network, x: FloatArray) -> FloatArray:
    """The nearest points that the file's inputs can hold: of whole numbers, none too large for float32, or x itself."""
    if not network.integers:
        return x
    return np.asarray(np.clip(np.rint(x), -LARGEST_WHOLE, LARGEST_WHOLE), dtype=x.dtype)


def replay_witness(query: Query, x: FloatArray, runtime: Runtime | None = None, ranked: bool = False) -> Witness | None:
    """The best of the candidates `x` (`(n,)` or `(batch, n)`) that onnxruntime confirms, or None.

    A batch is screened in float64 with the canonical network first, and the candidates with most margin
    are replayed first; a single point `(n,)`, and a `ranked` batch (best first), is always replayed where it lies
    in some box. See the module text for what "confirms" means. Raises `InputError` when onnxruntime cannot run
    the model.
    """
    network = query.network
    with np.errstate(over="ignore", invalid="ignore"):
        points = whole(network, np.asarray(x).reshape(-1, network.input_size).astype(network.element_type))
    points = _settled(query, points[np.all(np.isfinite(points), axis=1)])
    inside = _inside(query.cases, points, network.element_type)
    points, inside = points[inside.any(axis=1)], inside[inside.any(axis=1)]
    if not len(points):
        return None
    runtime = runtime_of(query) if runtime is None else runtime
    order = np.arange(len(points)) if ranked or np.ndim(x) == 1 else _ranked(query, points, inside)
    try:
        best = _best(query, points[order], inside[order], runtime)
        if best is not None and best.hair and network.size <= EASY:
            best = _nudged(query, best, runtime)
    finally:
        runtime.rest()
    return None if best is None else best.witness


def _settled(query: Query, points: FloatArray) -> FloatArray:
    """Points `(N, n)` moved onto the equations of a query's inputs, where it has some."""
    if query.joint is None:
        return points
    from mucg4.gate.relations import Relations

    relations = Relations.of(query.joint)
    return points if relations is None else relations.settled(points)


def _best(query: Query, points: FloatArray, inside: BoolArray, runtime: Runtime) -> Held | None:
    """The first that holds, or the one with most margin of it and some more when that may be rounding."""
    best: Held | None = None
    tried = 0
    for x, here in zip(points, inside, strict=True):
        held = _held(query, x, here, runtime)
        if held is not None and (best is None or held.margin > best.margin):
            best = held
        tried += best is not None
        if best is not None and (not best.hair or tried > COMPARED):
            break
    return best


def _held(query: Query, x: FloatArray, inside: BoolArray, runtime: Runtime) -> Held | None:
    """A candidate in the cases marked `inside`, confirmed with one thread and with many."""
    if not np.array_equal(whole(query.network, x), x):
        return None
    y = runtime.single(x[None])[0]
    if query.joint is not None:
        return _held_as_declared(query, query.joint, x, inside, y, runtime)
    conjunctions = [conj for j in np.flatnonzero(inside) for conj in query.cases[j].conjunctions]
    holding = [conj for conj in conjunctions if holds(conj, x, y)]
    if not holding:
        return None
    z = runtime.threaded(x[None])[0]
    sure = [(min(margin(conj, x, y), margin(conj, x, z)), conj) for conj in holding if holds(conj, x, z)]
    if not sure:
        return None
    most, conj = max(sure, key=lambda pair: pair[0])
    speaks = any(cx or cy for cx, cy, _ in conj.exact)  # otherwise it holds anywhere
    return Held(most, speaks and most <= _hair(conj, x, y), conj, Witness(x.copy(), y))


def _held_as_declared(
    query: Query, joint: Joint, x: FloatArray, inside: BoolArray, y: FloatArray, runtime: Runtime
) -> Held | None:
    """As `_held`, by the assertions of a 2.0 text. The conjunction is the one that is nearest to holding."""
    from mucg4.gate.joint import satisfied

    count = joint.declared.count(False)
    declared = joint.declared_inputs(x[None])[0]
    held = satisfied(joint.assertions, declared, y[:count])
    if held is None:
        return None
    many = satisfied(joint.assertions, declared, runtime.threaded(x[None])[0][:count])
    if many is None:
        return None
    points = x[None].astype(np.float64), y[None].astype(np.float64)
    with np.errstate(all="ignore"):
        conj = min(
            (conj for j in np.flatnonzero(inside) for conj in query.cases[j].conjunctions),
            key=lambda conj: float(_values(conj, *points).max()),
        )
    most = min(held, many)
    speaks = any(cy for _, cy, _ in conj.exact)
    return Held(most, speaks and most <= _hair(conj, x, y), conj, Witness(x.copy(), y, (declared, y[:count])))


def _inside(cases: Sequence[Case], points: FloatArray, element_type: str) -> BoolArray:
    """(points, cases) membership in the legal boxes."""
    out = np.zeros((len(points), len(cases)), dtype=bool)
    for j, case in enumerate(cases):
        lo, hi = legal_bounds(case.box, element_type)
        out[:, j] = np.all((points >= lo) & (points <= hi), axis=1)
    return out


def _ranked(query: Query, points: FloatArray, inside: BoolArray) -> IntArray:
    """Positions of the candidates that may hold, most margin first, at most `REPLAYS`."""
    xs = points.astype(np.float64)
    best = np.full(len(xs), np.inf)
    with np.errstate(all="ignore"):
        ys = query.network(xs)
        for j, case in enumerate(query.cases):
            here = np.flatnonzero(inside[:, j])
            for conj in case.conjunctions if len(here) else ():
                x, y = xs[here], ys[here]
                value = x @ conj.x_coeffs.T + y @ conj.y_coeffs.T + conj.constants
                size = abs(x) @ abs(conj.x_coeffs).T + abs(y) @ abs(conj.y_coeffs).T + abs(conj.constants)
                promising = np.all(value <= SCREEN * size, axis=1)
                worst = value.max(axis=1, initial=-np.inf)
                best[here] = np.where(promising, np.minimum(best[here], worst), best[here])
    order = np.argsort(best, kind="stable")
    return order[best[order] < np.inf][:REPLAYS]


# --- constraints -----------------------------------------------------------------------------------------------


def holds(conj: Conjunction, x: FloatArray, y: FloatArray) -> bool:
    """True when all stated constraints hold at x, y (element-type values) in exact, double and element-type numbers."""
    return bool(np.all(np.isfinite(y))) and all(
        _holds_in_double(row, bool(strict), x, y)
        and _holds_exactly(row, bool(strict), x, y)
        and _holds_rounded(row, bool(strict), x, y)
        for row, strict in zip(conj.exact, conj.stated_strict, strict=True)
    )


def margin(conj: Conjunction, x: FloatArray, y: FloatArray) -> Fraction:
    """By how much the worst constraint holds, exactly."""
    return min((-_value(row, x, y) for row in conj.exact), default=Fraction(0))


Row = tuple[dict[int, Fraction], dict[int, Fraction], Fraction]


def _value(row: Row, x: FloatArray, y: FloatArray) -> Fraction:
    total = row[2]
    for coeffs, values in ((row[0], x), (row[1], y)):
        for i, c in coeffs.items():
            total += c * Fraction(float(values[i]))
    return total


def _holds_in_double(row: Row, strict: bool, x: FloatArray, y: FloatArray) -> bool:
    total = sum(float(c) * float(v[i]) for cs, v in ((row[0], x), (row[1], y)) for i, c in cs.items())
    total += float(row[2])
    return total < 0 if strict else total <= 0


def _holds_exactly(row: Row, strict: bool, x: FloatArray, y: FloatArray) -> bool:
    total = _value(row, x, y)
    return total < 0 if strict else total <= 0


def _holds_rounded(row: Row, strict: bool, x: FloatArray, y: FloatArray) -> bool:
    """In the element type's arithmetic: the stated order of summation is not known here, so two are asked."""
    kind = y.dtype.type
    with np.errstate(all="ignore"):
        terms = [kind(float(c)) * kind(v[i]) for cs, v in ((row[0], x), (row[1], y)) for i, c in cs.items()]
        terms.append(kind(float(row[2])))
        total, plus, minus = kind(0), kind(0), kind(0)
        for t in terms:
            total = total + t
            plus, minus = (plus + t, minus) if t > 0 else (plus, minus - t)
    if not np.all(np.isfinite([total, plus, minus])):
        return False
    return bool(total < 0 and plus < minus) if strict else bool(total <= 0 and plus <= minus)


# --- margin ----------------------------------------------------------------------------------------------------


def _hair(conj: Conjunction, x: FloatArray, y: FloatArray) -> float:
    """Margins up to this may be rounding: some units in the last place of the largest term of a constraint.

    All outputs count as terms: those that a constraint does not name tell how large the numbers behind them are.
    """
    with np.errstate(over="ignore"):
        largest = max(
            float(abs(conj.constants).max(initial=0.0)),
            float((abs(conj.y_coeffs).max(axis=1, initial=0.0)).max(initial=0.0)) * float(abs(y).max(initial=0.0)),
            float((abs(conj.x_coeffs) * abs(x)).max(initial=0.0)) if conj.mixed else 0.0,
        )
    return HAIR * float(np.finfo(y.dtype).eps) * largest


def _nudged(query: Query, held: Held, runtime: Runtime) -> Held:
    """A neighbour with more margin, or the candidate itself.

    The gradient of the worst constraint tells where; steps of several lengths along its sign are judged by the
    network in float64, and the best one by onnxruntime.
    """
    network, conj = query.network, held.conjunction
    for _ in range(NUDGES):
        x = held.witness.x.astype(np.float64)[None]
        inside = _inside(query.cases, held.witness.x[None], network.element_type)[0]
        case = next(query.cases[j] for j in np.flatnonzero(inside) if conj in query.cases[j].conjunctions)
        with np.errstate(all="ignore"):
            worst = int(_values(conj, x, network(x))[0].argmax())
            slope = gradient(network, network.values(x), conj.y_coeffs[worst : worst + 1]) + conj.x_coeffs[worst]
            step = np.sign(slope) * (case.box.hi - case.box.lo)
            points = snap(case.box, x - STEPS[:, None] * step, network.element_type)
            level = _values(conj, points.astype(np.float64), network(points.astype(np.float64))).max(axis=1)
        found = None
        if not np.all(np.isnan(level)):
            best = points[int(np.nanargmin(level))]
            found = _held(query, _settled(query, best[None])[0], inside, runtime)
        if found is None or found.margin <= held.margin:
            return held
        held, conj = found, found.conjunction
        if not held.hair:
            return held
    return held


def _values(conj: Conjunction, x: FloatArray, y: FloatArray) -> FloatArray:
    """(N, m) constraint values at `x (N, n)`, `y (N, outputs)` in float64."""
    out: FloatArray = x @ conj.x_coeffs.T + y @ conj.y_coeffs.T + conj.constants
    return out
