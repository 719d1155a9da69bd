"""onnxruntime as the judge of concrete values: the witness gate, and the agreement test before `unsat`.

Gate. A witness counts only when onnxruntime (CPU, default session options, the model's own element
type, one point at a time, as a scorer does it) reproduces it with zero tolerance:

* input bounds: the element-type value of x is compared with the element-type value of the bound (for
  float32 models float32(x) against float32(bound), interface section 2.4);
* output and mixed constraints: must hold on the replayed outputs in exact rational arithmetic on the
  stated numbers, and in double, and in the element type's own arithmetic, summed one term after the
  other and as positive against negative terms; strict ones strictly.

Anything that is not finite fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import prod
from typing import Any

import numpy as np

from mucg4.errors import InputError, UnsupportedError
from mucg4.model.network import Network, Node
from mucg4.model.query import Box, Case, Conjunction, Query, Witness
from mucg4.ops.base import Affine, Array, Nonlinear
from mucg4.ops.piecewise import TwoPiece

ELEMENTS: dict[str, Any] = {"tensor(float)": np.dtype(np.float32), "tensor(double)": np.dtype(np.float64)}
REPLAYS = 64  # most candidates of one batch that are handed to onnxruntime, best first
SCREEN = 1e-4  # relative slack of the float64 screening; generous against float32 rounding
NOISE_TRIALS = 2  # per point, in the estimate of how far rounding carries
NOISE_FACTOR = 8.0
PROBED_CASES = 3  # cases whose boxes `agreement` samples


class Runtime:
    """One network in onnxruntime; the session is made on first use. Not thread-safe.

    Raises `InputError` (one line) when onnxruntime cannot load or run the model, `UnsupportedError` when
    the model has several inputs or outputs or an element type other than float32 and float64.

    With default options (a scorer's) onnxruntime may run the product with a dequantised weight in 8-bit
    activations, which is another function than the model's operators state; `stated=True` forbids that.
    """

    def __init__(self, network: Network, stated: bool = False) -> None:
        self.network = network
        self.stated = stated
        self.dtype = np.dtype(network.element_type)
        self._session: Any = None
        self._shape: tuple[int, ...] = ()
        self._batched = False
        self._names = ("", "")

    def outputs(self, x: Array) -> Array:
        """Outputs `(batch, m)` at `x (batch, n)`, in the model's element type.

        Points run one by one, or together when the model's first dimension is dynamic; a batched run may
        differ from a single one in the last bits, so the gate uses `single`.
        """
        points = self._cast(x)
        session = self._open()
        if self._batched and len(points) > 1:
            try:
                y = session.run([self._names[1]], {self._names[0]: points.reshape(len(points), *self._shape[1:])})[0]
            except _failures():  # the model is not written for batches after all
                self._batched = False
            else:
                if np.size(y) == len(points) * self.network.output_size:
                    return np.asarray(y).reshape(len(points), -1)
                self._batched = False
        return self.single(points)

    def single(self, x: Array) -> Array:
        """As `outputs`, but every point in a run of its own, exactly as a scorer replays it."""
        points, session = self._cast(x), self._open()
        out = np.empty((len(points), self.network.output_size), dtype=self.dtype)
        for i, point in enumerate(points):
            try:
                y = session.run([self._names[1]], {self._names[0]: point.reshape(self._shape)})[0]
            except _failures() as error:
                raise InputError(f"onnxruntime cannot run the model: {_first_line(error)}") from error
            if np.size(y) != out.shape[1]:
                raise InputError(f"onnxruntime returns {np.size(y)} values, but the network has {out.shape[1]} outputs")
            out[i] = np.asarray(y).reshape(-1)
        return out

    def _cast(self, x: Array) -> Array:
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(np.asarray(x), dtype=self.dtype).reshape(-1, self.network.input_size)

    def _open(self) -> Any:
        if self._session is None:
            if not self.network.model_bytes:
                raise InputError("the network has no ONNX bytes to run")
            import onnxruntime

            onnxruntime.set_default_logger_severity(4)
            options = onnxruntime.SessionOptions()  # optimisations stay at their default: a scorer's are
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            options.log_severity_level = 4
            if self.stated:
                options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
            try:
                session = onnxruntime.InferenceSession(
                    self.network.model_bytes, options, providers=["CPUExecutionProvider"]
                )
            except _failures() as error:
                raise InputError(f"onnxruntime cannot load the model: {_first_line(error)}") from error
            self._inspect(session.get_inputs(), session.get_outputs())
            self._session = session
        return self._session

    def _inspect(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
        if len(inputs) != 1 or len(outputs) != 1:
            raise UnsupportedError(f"the model has {len(inputs)} inputs and {len(outputs)} outputs, not one each")
        kinds = inputs[0].type, outputs[0].type
        dtype = ELEMENTS.get(kinds[0])
        if dtype is None or kinds[0] != kinds[1]:
            raise UnsupportedError(f"the model maps {kinds[0]} to {kinds[1]}; only float and double are supported")
        if dtype != self.dtype:
            raise InputError(f"the model's input is {dtype.name}, but it was read as {self.dtype.name}")
        dims = list(inputs[0].shape)
        self._shape = tuple(d if isinstance(d, int) and d > 0 else 1 for d in dims)
        if prod(self._shape) != self.network.input_size:
            raise InputError(f"the model's input shape {dims} does not hold {self.network.input_size} values")
        self._batched = len(dims) > 1 and not isinstance(dims[0], int)
        self._names = (inputs[0].name, outputs[0].name)


def _failures() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: its own types have no common base below Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:197] + "..."


# --- the witness gate ------------------------------------------------------------------------------------------


def legal_bounds(box: Box, element_type: str = "float32") -> tuple[Array, Array]:
    """The stated bounds rounded to the element type: what a replayed input is compared with."""
    with np.errstate(over="ignore"):
        return tuple(b.astype(element_type) for b in box.stated)  # type: ignore[return-value]


def snap(box: Box, x: Array, element_type: str = "float32") -> Array:
    """Candidates `(..., n)` of any float type as element-type values inside the legal box."""
    lo, hi = legal_bounds(box, element_type)
    with np.errstate(over="ignore"):
        return np.clip(np.asarray(x).astype(element_type), lo, hi)


def replay_witness(query: Query, x: Array, runtime: Runtime | None = None) -> Witness | None:
    """The first of the candidates `x` (`(n,)` or `(batch, n)`) that onnxruntime confirms, or None.

    A batch is screened in float64 with the canonical network first, and the candidates with most margin
    are replayed first; a single point `(n,)` is always replayed when it lies in some box. See the module
    text for what "confirms" means. Raises `InputError` when onnxruntime cannot run the model.
    """
    network = query.network
    batch = np.ndim(x) > 1
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.asarray(x).reshape(-1, network.input_size).astype(network.element_type)
    points = points[np.all(np.isfinite(points), axis=1)]
    inside = _inside(query.cases, points, network.element_type)
    points, inside = points[inside.any(axis=1)], inside[inside.any(axis=1)]
    if not len(points):
        return None
    runtime = Runtime(network) if runtime is None else runtime
    for k in _ranked(query, points, inside) if batch else range(1):
        y = runtime.single(points[k : k + 1])[0]
        if np.all(np.isfinite(y)) and any(
            holds(conj, points[k], y) for j in np.flatnonzero(inside[k]) for conj in query.cases[j].conjunctions
        ):
            return Witness(points[k].copy(), y)
    return None


def _inside(cases: Sequence[Case], points: Array, element_type: str) -> Array:
    """(points, cases) membership in the legal boxes."""
    out = np.zeros((len(points), len(cases)), dtype=bool)
    for j, case in enumerate(cases):
        lo, hi = legal_bounds(case.box, element_type)
        out[:, j] = np.all((points >= lo) & (points <= hi), axis=1)
    return out


def _ranked(query: Query, points: Array, inside: Array) -> Array:
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


def holds(conj: Conjunction, x: Array, y: Array) -> bool:
    """True when all stated constraints hold at x, y (element-type values) in exact, double and element-type numbers."""
    return all(
        _holds_in_double(row, bool(strict), x, y)
        and _holds_exactly(row, bool(strict), x, y)
        and _holds_rounded(row, bool(strict), x, y)
        for row, strict in zip(conj.exact, conj.stated_strict, strict=True)
    )


Row = tuple[dict[int, Fraction], dict[int, Fraction], Fraction]


def _holds_in_double(row: Row, strict: bool, x: Array, y: Array) -> bool:
    total = sum(float(c) * float(v[i]) for cs, v in ((row[0], x), (row[1], y)) for i, c in cs.items())
    total += float(row[2])
    return total < 0 if strict else total <= 0


def _holds_exactly(row: Row, strict: bool, x: Array, y: Array) -> bool:
    total = row[2]
    for coeffs, values in ((row[0], x), (row[1], y)):
        for i, c in coeffs.items():
            total += c * Fraction(float(values[i]))
    return total < 0 if strict else total <= 0


def _holds_rounded(row: Row, strict: bool, x: Array, y: Array) -> bool:
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


# --- agreement before unsat ------------------------------------------------------------------------------------


def agreement(query: Query, runtime: Runtime | None = None, points: int = 4, seed: int = 0) -> str | None:
    """None when the canonical network agrees with onnxruntime on a few points of the query's boxes.

    Compared are the centre, two opposite corners and `points` random points of the first boxes. The
    allowed difference is a rounding estimate at the model's precision (see `rounding_allowance`),
    so a mismatch is a reader's or runtime's fault; the text returned names output and values. A model that
    differs under default options is compared once more with the products as its operators state them.
    """
    network = query.network
    x = _probes(query.cases, points, seed, network.element_type)
    if not len(x):
        return None
    problem = _disagreement(network, x, Runtime(network) if runtime is None else runtime)
    return problem and _disagreement(network, x, Runtime(network, stated=True))


def _disagreement(network: Network, x: Array, runtime: Runtime) -> str | None:
    """The first output that differs by more than rounding at the points `x`, as text; None when all agree."""
    try:
        theirs = runtime.single(x).astype(np.float64)
    except InputError as error:
        return str(error)
    with np.errstate(all="ignore"):
        values = network.values(x.astype(np.float64))
        allowed = rounding_allowance(network, values)
        bad = ~(abs(values[-1] - theirs) <= allowed)
    if not np.any(bad):
        return None
    k, j = np.argwhere(bad)[0].tolist()
    ours, other = float(values[-1][k, j]), float(theirs[k, j])
    return (
        f"output {j} disagrees with onnxruntime at a point of the box: "
        f"{ours!r} here, {other!r} there, allowed difference {float(allowed[k, j]):.3g}"
    )


def _probes(cases: Sequence[Case], points: int, seed: int, element_type: str) -> Array:
    """(count, n) centre, low and high corner and random points of the first nonempty boxes, as element-type values."""
    random, out = np.random.default_rng(seed), []
    for case in [c for c in cases if not c.box.empty][:PROBED_CASES]:
        lo, hi = case.box.lo, case.box.hi
        share = random.random((points + 3, case.box.size))
        share[:3] = np.array([0.5, 0.0, 1.0])[:, None]
        out.append(snap(case.box, lo + share * (hi - lo), element_type))
    return np.concatenate(out) if out else np.zeros((0, 0))


def rounding_allowance(network: Network, values: Sequence[Array], seed: int = 0) -> Array:
    """(batch, m) how far a run at the model's own precision may be off from the float64 `values` of all nodes.

    With unit roundoff u of the element type an affine node is off by at most `gamma_n (|W| |h| + |b|)` (Higham,
    Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1), an elementwise node by a few units in the
    last place. Carrying these to the output by `|W| e` is rigorous, but for deep networks so pessimistic that no
    mistake would show. So the local bounds are also injected as noise of random sign (Monte Carlo arithmetic,
    Parker 1997) and the largest deviation over points and trials is taken `NOISE_FACTOR` times; since n roundings
    are injected at their worst case and really grow like sqrt(n), that is still far above what runs show. The
    smaller of the two counts, with room for affine nodes that were composed while reading.
    """
    unit = float(np.finfo(network.element_type).eps) / 2
    random = np.random.default_rng(seed)
    errors: list[Array] = [np.zeros_like(values[0])]
    noisy: list[Array] = [np.tile(values[0], (NOISE_TRIALS, 1))]
    for k, node in enumerate(network.nodes[1:], 1):
        es, hs = [errors[i] for i in node.inputs], [values[i] for i in node.inputs]
        local, carried = _local_error(node, hs, es, values[k], unit)
        errors.append(local + carried)
        sign = random.choice([-1.0, 1.0], size=(NOISE_TRIALS * len(local), local.shape[1]))
        assert node.op is not None
        noisy.append(node.op.apply([noisy[i] for i in node.inputs]) + sign * np.tile(local, (NOISE_TRIALS, 1)))
    deviation = abs(noisy[-1] - np.tile(values[-1], (NOISE_TRIALS, 1))).max(axis=0, initial=0.0)
    allowed = np.fmin(4 * errors[-1], NOISE_FACTOR * deviation)  # the former may have overflowed
    return allowed + 16 * unit * abs(values[-1]) + unit * 1e-3


def _local_error(node: Node, hs: Sequence[Array], es: Sequence[Array], y: Array, unit: float) -> tuple[Array, Array]:
    """(batch, size) the error a node makes itself at inputs hs, and what the errors es of its inputs become."""
    op = node.op
    if isinstance(op, Affine):
        size, b = op.magnitude([abs(h) for h in hs]), op.bias_magnitude()
        n = (op.fan_in + 2) * unit
        return n / max(1.0 - n, 0.5) * (size if b is None else size + b), op.magnitude(es)
    if isinstance(op, Nonlinear):
        pairs = list(zip(hs, es, strict=True))
        lo, hi = op.interval([h - e for h, e in pairs], [h + e for h, e in pairs])
        floor = 0.0 if isinstance(op, TwoPiece) else 8 * unit  # libraries approximate to an absolute error
        return 4 * unit * abs(y) + floor, np.maximum(hi - y, y - lo)
    raise UnsupportedError(f"operator {getattr(op, 'kind', op)} (node {node.name!r}) has no rounding rule")
