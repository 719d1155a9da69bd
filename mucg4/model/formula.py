"""Syntax tree of a property: what a VNN-LIB text says, before any normal form. All numbers are exact."""

from __future__ import annotations

from dataclasses import field
from fractions import Fraction

from mucg4.model.decimals import Plain
from mucg4.records import dataclass

RELATIONS = ("<=", ">=", "<", ">", "=", "==", "!=")


@dataclass(frozen=True, slots=True)
class Constant:
    """An exact number."""

    value: Fraction


@dataclass(frozen=True, slots=True)
class Variable:
    """One flat (row-major) input or output."""

    name: str
    is_input: bool
    index: int


@dataclass(frozen=True, slots=True)
class Apply:
    """Arithmetic: `op` is `+`, `-` (one argument: negation; more: left associative) or `*`."""

    op: str
    args: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """One atom `left op right` with `op` in `RELATIONS`; `line` tells where it stands (0: not kept)."""

    op: str
    left: Term
    right: Term
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Junction:
    """`and` or `or` of at least one formula."""

    op: str
    args: tuple[Formula, ...]


Term = Constant | Variable | Apply
Formula = Compare | Junction


def inputs_of(node: Term | Formula) -> set[int]:
    """The inputs that a term or a formula speaks of."""
    if isinstance(node, Variable):
        return {node.index} if node.is_input else set()
    if isinstance(node, Compare):
        return inputs_of(node.left) | inputs_of(node.right)
    if isinstance(node, (Apply, Junction)):
        return set().union(*map(inputs_of, node.args))
    return set()


@dataclass(frozen=True)
class ParsedProperty:
    """A property as written: declared sizes, and the formulas that together describe the unsafe set.

    `bounds` are lower and upper bounds of inputs that came in long runs; they are no part of the assertions.
    """

    inputs: int
    outputs: int
    assertions: tuple[Formula, ...]
    version: str = "1.0"
    bounds: tuple[Plain, Plain] | None = None

    def text(self) -> str:
        """VNN-LIB 1.0 text that parses to an equal property; constants must be finite decimals."""
        lines = [f"(declare-const X_{i} Real)" for i in range(self.inputs)]
        lines += [f"(declare-const Y_{i} Real)" for i in range(self.outputs)]
        for op, side in zip((">=", "<="), self.bounds or (), strict=False):
            lines += [f"(assert ({op} X_{i} {decimal(value)}))" for i, value in sorted(side.items())]
        return "\n".join([*lines, *(f"(assert {_text(f)})" for f in self.assertions)]) + "\n"


def decimal(value: Fraction) -> str:
    """The exact decimal text of a number whose denominator divides a power of ten; else `ValueError`."""
    places, rest = 0, value.denominator
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest != 1:
        raise ValueError(f"{value} has no finite decimal form")
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _text(node: Term | Formula) -> str:
    if isinstance(node, Constant):
        return decimal(node.value)
    if isinstance(node, Variable):
        return node.name
    if isinstance(node, Compare):
        return f"({node.op} {_text(node.left)} {_text(node.right)})"
    return f"({node.op} {' '.join(_text(a) for a in node.args)})"
