"""Random VNN-LIB 2.0 queries: nested formulas, polynomials, several networks; and what they mean at a point."""

from __future__ import annotations

import operator
import random
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from math import prod

import numpy as np

from mucg4.model.formula import Apply, Compare, Constant, Formula, ParsedProperty, Term, Variable, decimal
from mucg4.model.network import Network, Node
from mucg4.model.query import Query
from mucg4.ops.affine import Dense
from mucg4.read.joint import joined
from mucg4.read.normal2 import normalise
from mucg4.read.vnnlib2 import ParsedQuery, parse_query

RELATIONS = {
    "<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
SHAPES = {1: ((1,), (1, 1), ()), 2: ((2,), (1, 2), (2, 1)), 3: ((3,), (1, 3))}
LEVELS = ("-1.0", "-0.5", "-0.25", "0.0", "0.25", "0.5", "0.75", "1.0", "2.0")
ROUGH = ("0.1", "-0.3", "0.7", "1.1", "-0.05")


@dataclass(frozen=True)
class Variables:
    """Names of components: `inputs[network]`, `outputs[network]`."""

    inputs: tuple[tuple[str, ...], ...]
    outputs: tuple[tuple[str, ...], ...]

    @property
    def all(self) -> list[str]:
        return [name for side in (self.inputs, self.outputs) for names in side for name in names]


def components(name: str, shape: tuple[int, ...]) -> tuple[str, ...]:
    if not shape:
        return (name,)
    return tuple(f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape))


def random_text(random_: random.Random, rough: float = 0.2, depth: int = 3, polynomial: bool = True) -> str:
    """A query over one or two networks whose inputs lie in [-1, 1]."""
    networks = random_.choice((1, 1, 2))
    lines, inputs, outputs = ["(vnnlib-version <2.0>)"], [], []
    sizes = random_.choice((1, 2, 3)), random_.choice((1, 2))
    for k in range(networks):
        shapes = [random_.choice(SHAPES[size]) for size in sizes]
        texts = ["[" + ",".join(map(str, s)) + "]" for s in shapes]
        lines.append(f"(declare-network n{k} (declare-input X{k} real {texts[0]})")
        lines.append(f"  (declare-output Y{k} real {texts[1]}))")
        inputs.append(components(f"X{k}", shapes[0]))
        outputs.append(components(f"Y{k}", shapes[1]))
    names = Variables(tuple(inputs), tuple(outputs))
    for k, side in enumerate(names.inputs):
        for i, name in enumerate(side):
            if k and random_.random() < 0.6:
                pair = (names.inputs[0][i], name) if random_.random() < 0.5 else (name, names.inputs[0][i])
                lines.append(f"(assert (== {pair[0]} {pair[1]}))")
                continue
            if k and random_.random() < 0.3:
                lines.append(f"(assert (<= {name} {names.inputs[0][i]}))")
            else:
                lines.append(f"(assert (<= {name} {random_.choice(('0.5', '0.75', '1.0'))}))")
            lines.append(f"(assert (>= {name} {random_.choice(('-1.0', '-0.75', '0.0'))}))")
    for _ in range(random_.choice((1, 1, 2, 3))):
        lines.append(f"(assert {random_formula(random_, names.all, depth, rough, polynomial)})")
    return "\n".join(lines) + "\n"


def random_formula(random_: random.Random, names: list[str], depth: int, rough: float, polynomial: bool) -> str:
    if depth and random_.random() < 0.6:
        count = random_.choice((1, 2, 2, 3))
        parts = [random_formula(random_, names, depth - 1, rough, polynomial) for _ in range(count)]
        return f"({random_.choice(('and', 'or'))} {' '.join(parts)})"
    op = random_.choice(("<=", ">=", "<", ">", "<=", ">=", "==", "!="))
    left, right = (random_term(random_, names, 2, rough, polynomial) for _ in range(2))
    return f"({op} {left} {right})"


def random_term(random_: random.Random, names: list[str], depth: int, rough: float, polynomial: bool) -> str:
    if not depth or random_.random() < 0.35:
        if random_.random() < 0.65:
            return random_.choice(names)
        return random_.choice(ROUGH if random_.random() < rough else LEVELS)
    op = random_.choice("+-*" if polynomial else "+-")
    parts = [random_term(random_, names, depth - 1, rough, polynomial) for _ in range(random_.choice((1, 2, 2, 3)))]
    if not polynomial and random_.random() < 0.4:
        return f"(* {random_.choice(LEVELS)} {random_.choice(names)})"
    return f"({op} {' '.join(parts)})"


def as_version_2(prop: ParsedProperty, inputs: tuple[int, ...], outputs: tuple[int, ...], element: str = "real") -> str:
    """The text of a property of version 1.0 in version 2.0; whole numbers get a fraction, as the grammar wants it."""
    names: dict[bool, list[str]] = {True: list(components("X", inputs)), False: list(components("Y", outputs))}

    def text(node: Term | Formula) -> str:
        if isinstance(node, Constant):
            digits = decimal(node.value)
            return digits if "." in digits else digits + ".0"
        if isinstance(node, Variable):
            return names[node.is_input][node.index]
        if isinstance(node, Compare):
            return f"({node.op} {text(node.left)} {text(node.right)})"
        return f"({node.op} {' '.join(map(text, node.args))})"

    lines = ["(vnnlib-version <2.0>)", "(declare-network N"]
    for kind, name, shape in (("input", "X", inputs), ("output", "Y", outputs)):
        lines.append(f"  (declare-{kind} {name} {element} [{','.join(map(str, shape))}])")
    return "\n".join([*lines, ")", *(f"(assert {text(f)})" for f in prop.assertions)]) + "\n"


def query_of(text: str, element_type: str = "float32") -> Query:
    """The query of a text over networks that map everything to 0: its cases are what counts."""
    parsed = parse_query(text)
    declared = parsed.declared
    parts = []
    for k in range(len(declared.networks)):
        n, m = (sum(v.size for v in declared.of(k, side)) for side in (True, False))
        zero = Dense(np.zeros((m, n)), np.zeros(m))
        nodes = (Node(None, (), "x", (n,)), Node(zero, (0,), "y", (m,)))
        parts.append(Network(nodes, source_hash="zero", element_type=element_type))
    normal = normalise(parsed, element_type)
    network, joint = joined(normal.joint(declared, tuple(parts)))
    return Query((network,), normal.cases, text=text, joint=joint)


# --- at a point ------------------------------------------------------------------------------------------------


def value(term: Term, x: list, y: list, number=Fraction):  # type: ignore[no-untyped-def,type-arg]
    """A term in the arithmetic of x and y, arguments from left to right."""
    if isinstance(term, Constant):
        return number(term.value)
    if isinstance(term, Variable):
        return x[term.index] if term.is_input else y[term.index]
    assert isinstance(term, Apply)
    values = [value(a, x, y, number) for a in term.args]
    if term.op == "-" and len(values) == 1:
        return -values[0]
    return reduce({"+": operator.add, "-": operator.sub, "*": operator.mul}[term.op], values)


def true(formula: Formula, x: list, y: list, number=Fraction) -> bool:  # type: ignore[no-untyped-def,type-arg]
    if isinstance(formula, Compare):
        sides = value(formula.left, x, y, number), value(formula.right, x, y, number)
        return bool(RELATIONS[formula.op](*sides))
    return (all if formula.op == "and" else any)(true(f, x, y, number) for f in formula.args)


def unsafe(parsed: ParsedQuery, x: list, y: list, number=Fraction) -> bool:  # type: ignore[no-untyped-def,type-arg]
    """Whether a text calls declared inputs and outputs unsafe."""
    return (
        all(x[i] >= number(b) for i, b in parsed.lower.items())
        and all(x[i] <= number(b) for i, b in parsed.upper.items())
        and all(true(f, x, y, number) for f in parsed.assertions)
    )


def in_cases(query: Query, x: list[Fraction], y: list[Fraction], stated: bool) -> bool:
    """Whether declared inputs and outputs lie in the stated or the proved set of some case.

    What is stated of inputs that equations give is with the assertions.
    """
    joint = query.joint
    assert joint is not None
    linked: dict[int, Fraction] = {}
    for link, v in zip(joint.links, x, strict=True):
        if linked.setdefault(link, v) != v:
            return False
    if stated and joint.derived and not all(true(f, x, y) for f in joint.assertions):
        return False
    u = [linked[i] for i in range(joint.free)]
    full = [*y, *(prod((u[c] if c >= 0 else y[-1 - c] for c in m), start=Fraction(1)) for m in joint.monomials)]
    for d in joint.derived:
        u[d.target] -= sum((Fraction(c) * linked[i] for i, c in d.terms), Fraction(d.constant))
    for case in query.cases:
        if stated:
            inside = all(a <= v <= b for a, v, b in zip(case.box.lower, u, case.box.upper, strict=True))
        else:
            inside = all(Fraction(a) <= v <= Fraction(b) for a, v, b in zip(case.box.lo, u, case.box.hi, strict=True))
        if not inside:
            continue
        for conj in case.conjunctions:
            rows, strict = (conj.exact, conj.stated_strict) if stated else (conj.proved, conj.strict)
            totals = [
                c + sum(v * u[i] for i, v in xs.items()) + sum(v * full[j] for j, v in ys.items()) for xs, ys, c in rows
            ]
            if all(t < 0 if s else t <= 0 for t, s in zip(totals, strict.tolist(), strict=True)):
                return True
    return False


def random_point(random_: random.Random, query: Query, step: float = 0.25) -> tuple[list[Fraction], list[Fraction]]:
    """Declared inputs (equal where they have to be) and outputs on a grid, which meets equations now and then.

    Inputs that equations give are what these say, most of the time.
    """
    joint = query.joint
    assert joint is not None
    u = [Fraction(step) * random_.randint(-4, 4) for _ in range(joint.free)]
    for d in joint.derived:
        if random_.random() < 0.7:
            u[d.target] = sum((Fraction(c) * u[i] for i, c in d.terms), Fraction(d.constant))
    y = [Fraction(step) * random_.randint(-6, 6) for _ in range(joint.declared.count(False))]
    return [u[k] for k in joint.links], y
