"""Integers that depend on the network's input: what a cast makes, and how large they may become.

Integers are held as the numbers they are, and arithmetic on them is that of real numbers as long as it does not leave
the type, where it would wrap around. So a cast from floating-point numbers is known for numbers up to `LARGEST` only
(`mucg4.ops.steps.Trunc`: on boxes that hold others nothing is known), and the size of everything computed from there
is followed; what might leave the type is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from mucg4.ops.steps import Trunc
from mucg4.read.build import Builder, Value, Variable
from mucg4.read.movement import MOVERS
from mucg4.read.protobuf import BOOL, DOUBLE, FLOAT, TYPES, OnnxNode

# of what is cast to integers of 32 and more bits: sums of some still fit float32, which holds all integers up to 2**24;
# not measured
LARGEST = 2**20
WHOLE = 2**53  # beyond it doubles do not hold all integers; given
HELD = {FLOAT: 2**24, DOUBLE: WHOLE}  # up to which a floating-point type holds all integers
# integer types -> the least and the largest that a value depending on the input may be
RANGES: dict[int, tuple[int, int]] = {
    kind: (max(int(np.iinfo(TYPES[kind][0]).min), -WHOLE), min(int(np.iinfo(TYPES[kind][0]).max), WHOLE))
    for kind in (2, 3, 4, 5, 6, 7, 12, 13)
}


def truncation(b: Builder, x: Variable, kind: int) -> Variable:
    """A cast of floating-point numbers to an integer type."""
    least, most = RANGES[kind]
    return b.node(Trunc(float(max(least, -LARGEST)), float(min(most, LARGEST))), [x], x.shape)


def largest(node: OnnxNode, kinds: tuple[int, int], sizes: Sequence[int], first: Value | None, out: Variable) -> int:
    """How large integers of an operator's output may be, given that for its inputs, as sizes.

    `kinds` are the element types of the first input and of the output. Raises `UnsupportedError` where the type may not
    hold them.
    """
    least, most = RANGES[kinds[1]]
    room = max(most, -least)  # the least one may be one further from zero, and only stays where it is
    if node.op == "Cast":
        signed = kinds[0] in RANGES and RANGES[kinds[0]][0] < 0
        size = sizes[0] if kinds[0] in (BOOL, *RANGES) else min(room, LARGEST)
        if signed and (not least or size > most):
            raise node.unsupported(f"a cast of integers to element type {kinds[1]}, which may not hold them")
    elif node.op == "Where":
        size = max(sizes[1:])
    elif node.op == "Concat":
        size = max(sizes)
    elif node.op in MOVERS or node.op in ("Sign", "ReduceMax", "ReduceMin"):
        size = sizes[0]
    else:
        size, room = _computed(node, sizes, first, out), most
    if size > room or (not least and node.op in ("Sub", "Neg")):
        raise node.unsupported(f"integers of element type {kinds[1]} that may leave it")
    return size


def _computed(node: OnnxNode, sizes: Sequence[int], first: Value | None, out: Variable) -> int:
    if node.op in ("Add", "Sub"):
        return sum(sizes)
    if node.op == "Mul":
        return prod(sizes)
    if node.op == "ReduceSum" and first is not None:
        return sizes[0] * max(1, prod(first.shape) // max(1, out.size))
    if node.op in ("Max", "Min", "Neg", "Abs"):
        return max(sizes)
    raise node.unsupported("on integers that depend on the network's input")
