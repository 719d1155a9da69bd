"""onnxruntime as a scorer uses it: default options, points one by one; independent of mucg4's own gate."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from .instance import Graph, Instance, Row


class Scorer:
    """A fresh session. Raises whatever onnxruntime raises for a model that it does not load."""

    def __init__(self, graph: Graph, data: bytes | None = None) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        self.graph = graph
        self._session = onnxruntime.InferenceSession(data or graph.onnx(), options, providers=["CPUExecutionProvider"])
        self._name = self._session.get_inputs()[0].name

    def one(self, x: Any) -> np.ndarray:
        """Outputs at one point, flat, in the model's type."""
        point = np.ascontiguousarray(np.asarray(x, dtype=self.graph.dtype).reshape(self.graph.shape))
        return np.asarray(self._session.run(None, {self._name: point})[0]).reshape(-1)

    def many(self, xs: np.ndarray) -> np.ndarray:
        return np.array([self.one(x) for x in xs])


def legal(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    """The box as the scorer compares it: its ends in the model's type."""
    ends = [[np.dtype(instance.graph.dtype).type(float(Fraction(e))) for e in pair] for pair in instance.box]
    both = np.array(ends, dtype=instance.graph.dtype).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def slack(row: Row, x: np.ndarray, y: np.ndarray) -> tuple[Fraction, float]:
    """`(value, size)`: at most zero where the constraint holds exactly; size is the sum of its terms' sizes."""
    xs, ys, bound = row.exact()
    terms = [c * Fraction(float(v[i])) for cs, v in ((xs, x), (ys, y)) for i, c in cs.items()]
    return sum(terms, -bound), float(sum(map(abs, terms), abs(bound)))


def holds(row: Row, x: np.ndarray, y: np.ndarray) -> bool:
    """Exactly; constraints over inputs alone also where they hold in the arithmetic of the input's type."""
    value = slack(row, x, y)[0]
    if value < 0 or (value == 0 and not row.strict):
        return True
    if row.ys:
        return False
    kind = x.dtype.type
    with np.errstate(all="ignore"):
        total = sum((kind(float(Fraction(c))) * x[i] for i, c in row.xs), kind(0))
        bound = kind(float(Fraction(row.bound)))
    return bool(total < bound if row.strict else total <= bound)


def violates(instance: Instance, x: np.ndarray, y: np.ndarray) -> bool:
    """True when x is legal and x, y meet some conjunction."""
    low, high = legal(instance)
    x = np.asarray(x, dtype=instance.graph.dtype).reshape(-1)
    if not (np.all(x >= low) and np.all(x <= high) and np.all(np.isfinite(y))):
        return False
    return any(all(holds(r, x, y) for r in rows) for rows in instance.conjunctions())


def clearly(instance: Instance, x: np.ndarray, y: np.ndarray, margin: float) -> bool:
    """True when some conjunction holds with `margin` times the size of its terms to spare."""
    if not np.all(np.isfinite(y)):
        return False
    return any(all(_clear(r, x, y, margin) for r in rows) for rows in instance.conjunctions())


def _clear(row: Row, x: np.ndarray, y: np.ndarray, margin: float) -> bool:
    """Constraints over inputs alone need no margin: they are evaluated at exactly this x."""
    if not row.ys:
        return holds(row, x, y)
    value, size = slack(row, x, y)
    return float(value) <= -margin * size


def promising(instance: Instance, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(batch,) points that may meet some conjunction, judged in double with a slack."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    some = np.zeros(len(x), dtype=bool)
    with np.errstate(all="ignore"):
        for rows in instance.conjunctions():
            every = np.ones(len(x), dtype=bool)
            for row in rows:
                xs, ys, bound = row.exact()
                terms = [float(c) * v[:, i] for cs, v in ((xs, x), (ys, y)) for i, c in cs.items()]
                size = sum((abs(t) for t in terms), np.full(len(x), abs(float(bound))))
                every &= sum(terms, np.full(len(x), -float(bound))) <= 1e-6 * size
            some |= every
    return some
