"""Ties: strict constraints that equality refutes, and thresholds a hair away from the exact extremum.

The exact answers come from rational arithmetic on tiny networks, not from the tool: the extremum of a piecewise linear
function over a box is attained at a vertex of its pieces.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from examples import dense, model, query_of, text

from mucg4.check.exactly import exactly_equal
from mucg4.check.ties import ExactNetwork
from mucg4.check.walk import check
from mucg4.errors import BudgetError, StuckError
from mucg4.gate.runtime import Runtime
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof
from mucg4.model.query import Witness
from mucg4.model.verdict import Statistics
from mucg4.search.portfolio import solve
from mucg4.search.run import Run
from mucg4.settings import Settings

WORK = 1_500_000


class Limited(Budget):
    """A budget of work, so that a search that does not end repeats exactly."""

    def poll(self, work=0):
        super().poll(work + 200)
        if self.work > WORK:
            raise BudgetError("timeout")


def decimal(value):
    """A rational whose denominator divides a power of ten, written out."""
    digits = 0
    while value.denominator != 1 and (value * 10**digits).denominator != 1:
        digits += 1
    whole = abs(value.numerator) * 10**digits // value.denominator
    padded = str(whole).rjust(digits + 1, "0")
    return ("-" if value < 0 else "") + (padded[:-digits] + "." + padded[-digits:] if digits else padded)


def run_layers(layers, x):
    """The exact output at a point."""
    for k, (w, b) in enumerate(layers):
        x = [
            sum((Fraction(a) * v for a, v in zip(row, x, strict=True)), Fraction(c))
            for row, c in zip(w, b, strict=True)
        ]
        x = x if k + 1 == len(layers) else [max(v, Fraction(0)) for v in x]
    return x[0]


def exact_maximum(layers, box):
    """The largest output of one hidden layer over a box of one or two inputs."""
    lines = [([Fraction(a) for a in row], Fraction(c)) for row, c in zip(*layers[0], strict=True)]
    for i in range(len(box)):
        unit = [Fraction(int(i == j)) for j in range(len(box))]
        lines += [(unit, -Fraction(end)) for end in box[i]]
    points = list(product(*([Fraction(a), Fraction(b)] for a, b in box)))
    for chosen in combinations(lines, len(box)):
        if len(box) == 1:
            (w,), c = chosen[0]
            points += [(-c / w,)] if w else []
        else:
            (p, c), (q, d) = chosen
            det = p[0] * q[1] - p[1] * q[0]
            points += [((p[1] * d - q[1] * c) / det, (q[0] * c - p[0] * d) / det)] if det else []
    inside = [x for x in points if all(Fraction(a) <= v <= Fraction(b) for v, (a, b) in zip(x, box, strict=True))]
    return max(run_layers(layers, x) for x in inside)


def random_layers(rng, inputs):
    """Weights in eighths, without ones: so that every number is a stored one."""
    width = int(rng.integers(1, 5))
    shapes = [(width, inputs), (1, width)]
    return [(rng.integers(-12, 13, s) / 8, rng.integers(-12, 13, s[0]) / 8) for s in shapes]


def answer(query, split="auto"):
    """Trees, a witness, or None; raw search results, not yet checked."""
    run = Run(query, Settings(split=split, workers=1), Limited(), Statistics(), Runtime(query.network))
    try:
        with np.errstate(all="ignore"):
            return solve(run)
    except (BudgetError, StuckError):
        return None


def accepted(query, trees):
    proof = Proof(query.network.fingerprint, query.property_hash, tuple(trees), query.network.source_hash)
    return check(proof, query)


@pytest.mark.parametrize("split", ["input", "phase"])
@pytest.mark.parametrize("seed", range(12))
def test_near_ties(seed, split):
    """What the search closes, the checker accepts; nothing is answered wrongly at any distance."""
    rng = np.random.default_rng([seed, 12])
    inputs = int(rng.integers(1, 3))
    layers, box = random_layers(rng, inputs), [(-1, 1), ("-0.5", "0.75")][:inputs]
    largest = exact_maximum(layers, box)
    onnx = dense(layers)
    for exponent in rng.choice(np.arange(1, 16), 3, replace=False).tolist():
        for side in (1, -1):
            scale = max(Fraction(int(abs(largest) * 1024), 1024), Fraction(1, 8))
            threshold = Fraction(round(largest * 10**30), 10**30) + side * scale / 10**exponent
            query = query_of(onnx, text(box, 1, f"(>= Y_0 {decimal(threshold)})"))
            found = answer(query, split)
            if isinstance(found, list):
                assert largest < threshold
                report = accepted(query, found)
                assert report.accepted, (exponent, side, report.reason)
            elif isinstance(found, Witness):
                assert largest >= threshold or exponent > 6  # onnxruntime rounds to float32
            elif exponent <= 6:
                assert largest >= threshold or exponent > 5


@pytest.mark.parametrize("split", ["input", "phase"])
@pytest.mark.parametrize("seed", range(8))
def test_strict_at_the_maximum(seed, split):
    """`y > max` has no point, `y >= max` has one; bounds of neither may be confused."""
    rng = np.random.default_rng([seed, 13])
    inputs = int(rng.integers(1, 3))
    layers, box = random_layers(rng, inputs), [(-1, 1), ("-0.5", "0.75")][:inputs]
    largest = exact_maximum(layers, box)
    if largest * 10**40 != int(largest * 10**40):
        pytest.skip("no decimal number")
    onnx = dense(layers)
    strict = query_of(onnx, text(box, 1, f"(> Y_0 {decimal(largest)})"))
    found = answer(strict, split)
    if isinstance(found, list):
        assert accepted(strict, found).accepted
    assert not isinstance(found, Witness)
    weak = query_of(onnx, text(box, 1, f"(>= Y_0 {decimal(largest)})"))
    assert not isinstance(answer(weak, split), list)


LINEAR = dense([([[1, 0], [-1, 0], [0, 1], [0, -1]], [0, 0, 0, 0]), ([[1, -1, 0, 0], [0, 0, 1, -1]], [0, 0])])
RECTIFIED = dense([([[0.75], [-0.5]], [0.25, 0.5]), ([[-0.5, -0.75]], [0])])
SQUARE = [(-1, 1), (-1, 1)]

CLOSED = [
    (LINEAR, SQUARE, 2, ["(> Y_0 1.0)"]),
    (LINEAR, [(-1, 1), None], 2, ["(>= X_1 -1)", "(< X_1 1)", "(>= Y_1 1)"]),
    (LINEAR, SQUARE, 2, ["(!= Y_0 X_0)"]),
    (LINEAR, SQUARE, 2, ["(> Y_0 X_0)", "(<= Y_1 X_1)"]),
    (LINEAR, SQUARE, 2, ["(> (+ Y_0 Y_1) 2)"]),
    (RECTIFIED, [(-1, 1)], 1, ["(> Y_0 0)"]),
]
OPEN = [
    (LINEAR, SQUARE, 2, ["(>= Y_0 1.0)"]),
    (LINEAR, SQUARE, 2, ["(>= Y_0 X_0)", "(> Y_1 0.99)"]),
    (LINEAR, SQUARE, 2, ["(>= Y_0 1)", "(< Y_1 1)"]),  # the strict one has no weight in any refutation
    (RECTIFIED, [(-1, 1)], 1, ["(>= Y_0 -0.5)"]),
]


@pytest.mark.parametrize("engine", ["bab", "smt"])
@pytest.mark.parametrize("case", CLOSED)
def test_equality_refutes_strict_constraints(case, engine):
    if engine == "smt":
        pytest.importorskip("z3")
    onnx, box, outputs, asserts = case
    query = query_of(onnx, text(box, outputs, *asserts))
    if engine == "smt":
        from mucg4.smt.smt import solve_smt

        found = solve_smt(query, Limited())
    else:
        found = answer(query)
    assert isinstance(found, list) and accepted(query, found).accepted


@pytest.mark.parametrize("case", OPEN)
def test_equality_refutes_nothing_else(case):
    onnx, box, outputs, asserts = case
    assert not isinstance(answer(query_of(onnx, text(box, outputs, *asserts))), list)


def test_the_checker_asks_for_a_strict_weight():
    """The very proof of `y > 1` is rejected for `y >= 1`, and for a network of computed numbers."""
    strict, weak = (query_of(LINEAR, text(SQUARE, 2, f"({op} Y_0 1.0)")) for op in (">", ">="))
    found = answer(strict)
    assert isinstance(found, list) and accepted(strict, found).accepted
    assert not accepted(weak, found).accepted


def curve(*nodes, inputs=2, outputs=2):
    """Functions of the inputs: nodes `(op, inputs, output, attributes)`."""
    tensors = {"t": [2.0], "c": [0.1], "o": [1.0]}
    return model(
        [(op, names, out, attributes or None) for op, names, out, attributes in nodes], tensors, inputs, outputs
    )


FAR = [(-1000, 1000), (-1000, 1000)]
ENDS = [  # a function, what its image excludes, and the same asked without strictness or a little inside
    (curve(("Softmax", "x", "y", {"axis": 1})), ("(or (< Y_0 0) (> Y_1 1))", "(> (- Y_0 Y_1) 2)"), "(>= Y_0 1)"),
    (curve(("Sigmoid", "x", "y", {})), ("(< Y_0 0)", "(> (+ Y_0 Y_1) 2)"), "(<= Y_0 0)"),
    (curve(("Tanh", "x", "h", {}), ("Mul", "h t", "y", {})), ("(> Y_0 2)", "(< Y_1 -2)"), "(> Y_0 1.999)"),
    (curve(("Tanh", "x", "h", {}), ("Relu", "h", "y", {})), ("(< Y_0 0)",), "(<= Y_0 0)"),
    (curve(("Softmax", "x", "s", {"axis": 1}), ("Sub", "o s", "y", {})), ("(< Y_0 0)", "(> Y_0 1)"), "(< Y_0 0.001)"),
]


@pytest.mark.parametrize("onnx, beyond, inside", ENDS)
def test_images_refute_what_lies_beyond_them(onnx, beyond, inside):
    for stated in beyond:
        query = query_of(onnx, text(FAR, 2, stated))
        found = answer(query)
        assert isinstance(found, list) and accepted(query, found).accepted
        weaker = query_of(onnx, text(FAR, 2, inside))
        assert not isinstance(answer(weaker), list) and not accepted(weaker, found).accepted


def test_images_count_only_where_nothing_was_rounded():
    """`0.1 + 0.1 s(x)` of a bias that is no double: its end is not the decimal that is stated."""
    onnx = curve(("Sigmoid", "x", "h", {}), ("Mul", "h c", "m", {}), ("Add", "m c", "y", {}))
    assert ExactNetwork.of(query_of(onnx, text(FAR, 2, "(> Y_0 9)")).network) is not None
    assert not isinstance(answer(query_of(onnx, text(FAR, 2, "(> Y_0 0.2)"))), list)
    products = [("Mul", "h c", "m", {}), ("Mul", "m c", "n", {}), ("Mul", "n c", "y", {})]
    chain = curve(("Sigmoid", "x", "h", {}), *products)
    assert ExactNetwork.of(query_of(chain, text(FAR, 2, "(> Y_0 9)")).network) is None


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Sigmoid", "Tanh", "Exp", "Softplus", "Sqrt"])
def test_functions_without_rational_values_are_compared_by_their_names(op):
    attributes = {"axis": 1} if op.endswith("max") else {}
    nodes = [("Mul", "x t", "m", {}), (op, "m", "h", attributes), ("Mul", "h t", "y", {})]
    network = query_of(curve(*nodes), text(FAR, 2, "(> Y_0 9)")).network
    assert exactly_equal(curve(*nodes), network) is None
    for k, other in ((0, ("Mul", "x c", "m", {})), (1, ("Cos", "m", "h", {})), (2, ("Mul", "h c", "y", {}))):
        assert exactly_equal(curve(*nodes[:k], other, *nodes[k + 1 :]), network) is not None


@pytest.mark.parametrize("second", [0.5, 1.0, -0.75])
def test_ties_are_decided_on_the_stored_network(second):
    query = query_of(dense([([[0.75]], [0.25]), ([[second]], [-0.125])]), text([(-1, 1)], 1, "(> Y_0 9)"))
    assert ExactNetwork.of(query.network) is not None


def test_ties_are_decided_only_where_nothing_was_rounded():
    """A sum of biases that loses a digit and a mean make other functions, a product that fits a double does not."""
    chains = [
        ([("Add", "x a", "y", None), ("Add", "y b", "z", None), ("Relu", "z", "h", None)], 1, False),
        ([("Mul", "x c", "y", None), ("Mul", "y c", "z", None), ("Relu", "z", "h", None)], 1, True),
        ([("ReduceMean", "x", "y", {"axes": [1], "keepdims": 1}), ("Relu", "y", "h", None)], 3, False),
    ]
    for nodes, inputs, same in chains:
        onnx = model(nodes, {"a": [1.0], "b": [2.0**-60], "c": [0.3]}, inputs, 1)
        query = query_of(onnx, text([(-1, 0)] * inputs, 1, "(> Y_0 1)"))
        assert (ExactNetwork.of(query.network) is not None) is same
