"""Pairs of networks whose inputs are related by affine equations: verdicts against z3 on the declared variables.

The exact answer knows nothing of substitution: every declared input is a variable, and every equation a constraint.
"""

from __future__ import annotations

import random
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from examples import dense

from mucg4.model.formula import Apply, Compare, Constant, Junction, Variable
from mucg4.read.networks import query_of_models
from mucg4.read.vnnlib2 import ParsedQuery, parse_query
from mucg4.settings import Settings
from mucg4.verify import verify

z3 = pytest.importorskip("z3")
NUMBERS = ("0.5", "0.1", "2.0", "0.3", "-0.7", "1.5")
Layers = list[tuple[np.ndarray, np.ndarray]]


def relation(choose: random.Random, i: int, n: int) -> str:
    """How input i of g follows from inputs of f, and from those of g before it."""
    a, b = choose.choice(NUMBERS), choose.choice(NUMBERS)
    forms = [
        f"(== U[{i}] X[{i}])",
        f"(== U[{i}] (- X[{i}]))",
        f"(== U[{i}] (+ X[{i}] {a}))",
        f"(== (+ (* {a} X[{i}]) {b}) U[{i}])",
        f"(== U[{i}] (+ (* {a} X[{i}]) (* {b} X[{(i + 1) % n}])))",
        f"(and (<= U[{i}] (* {a} X[{i}])) (>= U[{i}] (* {a} X[{i}])))",
        f"(== U[{i}] (+ U[{max(i - 1, 0)}] (* {a} X[{i}])))",
    ]
    return choose.choice(forms if i else forms[:-1])


def related_pair(seed: int) -> tuple[list[Layers], str]:
    """The layers of f and g, and a query text up to the comparison of outputs."""
    rng, choose = np.random.default_rng(seed), random.Random(seed)
    n = choose.choice((1, 2, 3))
    sizes = (n, choose.choice((3, 4)), 1)
    nets = [[(rng.integers(-8, 9, (b, a)) / 8, rng.integers(-8, 9, b) / 8) for a, b in pairwise(sizes)]
            for _ in range(2)]  # fmt: skip
    if choose.random() < 0.5:
        nets[1] = [(w + rng.integers(-2, 3, w.shape) / 16, b) for w, b in nets[0]]
    asserted = [f"(and (>= X[{i}] {choose.choice(('-1.0', '0.0'))}) (<= X[{i}] 1.0))" for i in range(n)]
    asserted += [relation(choose, i, n) for i in range(n)]
    asserted += [f"(<= U[{i}] {choose.choice(('0.9', '0.4'))})" for i in range(n) if choose.random() < 0.3]
    choose.shuffle(asserted)
    text = f"""(vnnlib-version <2.0>)
(declare-network f (declare-input X real [{n}]) (declare-output Y real [1]))
(declare-network g (declare-input U real [{n}]) (declare-output V real [1]))
"""
    return nets, text + "".join(f"(assert {a})\n" for a in asserted)


class Exact:
    """The networks and the text as constraints of z3 over declared variables."""

    def __init__(self, nets: list[Layers], parsed: ParsedQuery) -> None:
        self.x = [z3.Real(f"x{i}") for i in range(parsed.declared.count(True))]
        half = len(self.x) // 2
        self.y = [self.output(layers, self.x[k * half : (k + 1) * half]) for k, layers in enumerate(nets)]
        self.constraints = [self.formula(f) for f in parsed.assertions]
        for side in (parsed.lower, parsed.upper):
            for i, end in side.items():
                self.constraints.append(self.x[i] <= _number(end) if side.upper else self.x[i] >= _number(end))

    def output(self, layers: Layers, values: list) -> object:  # type: ignore[type-arg]
        for k, (weight, bias) in enumerate(layers):
            sums = [sum((_number(w) * v for w, v in zip(row, values, strict=True)), _number(b))
                    for row, b in zip(weight, bias, strict=True)]  # fmt: skip
            values = sums if k == len(layers) - 1 else [z3.If(s > 0, s, 0) for s in sums]
        return values[0]

    def formula(self, node):  # type: ignore[no-untyped-def]
        if isinstance(node, Constant):
            return _number(node.value)
        if isinstance(node, Variable):
            return (self.x if node.is_input else self.y)[node.index]
        if isinstance(node, Junction):
            return (z3.And if node.op == "and" else z3.Or)([self.formula(a) for a in node.args])
        if isinstance(node, Compare):
            left, right = self.formula(node.left), self.formula(node.right)
            return {"<=": left <= right, ">=": left >= right, "==": left == right}[node.op]
        assert isinstance(node, Apply)
        first, *others = [self.formula(a) for a in node.args]
        for other in others:
            first = first + other if node.op == "+" else first - other if node.op == "-" else first * other
        return first if others else -first

    def most(self) -> Fraction | None:
        """The largest difference of the outputs; None where no point meets the constraints."""
        optimum = z3.Optimize()
        optimum.add(self.constraints)
        handle = optimum.maximize(self.y[1] - self.y[0])
        return Fraction(str(optimum.upper(handle))) if str(optimum.check()) == "sat" else None


def _number(value: object) -> object:
    exact = value if isinstance(value, Fraction) else Fraction(float(value))  # type: ignore[arg-type]
    return z3.Q(exact.numerator, exact.denominator)


def compare(seed: int) -> tuple[str, int]:
    """The verdict a little above or below the exact maximum, and how many inputs were substituted."""
    nets, text = related_pair(seed)
    most = Exact(nets, parse_query(text)).most()
    off = random.Random(seed).choice((-0.3, -0.02, 0.02, 0.3))
    level = 0.0 if most is None else round(float(most) + off, 5)
    models = {name: (dense(layers), None) for name, layers in zip("fg", nets, strict=True)}
    query = query_of_models(models, text + f"(assert (>= (- V[0] Y[0]) {level:.5f}))\n")
    word = verify(query, Settings(workers=1, timeout=30.0)).word
    assert word == ("sat" if most is not None and off < 0 else "unsat"), (seed, text)
    assert query.joint is not None
    return word, len(query.joint.derived)


@pytest.mark.parametrize("seed", range(10))
def test_related_pairs(seed: int) -> None:
    compare(seed)


@pytest.mark.slow
def test_related_pairs_at_length() -> None:
    found = [compare(seed) for seed in range(10, 310)]
    words = [word for word, _ in found]
    assert min(words.count("sat"), words.count("unsat")) > 80
    assert sum(count > 0 for _, count in found) > 150
