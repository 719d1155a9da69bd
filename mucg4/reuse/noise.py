"""What compression does to weights, tried on a network's own: copies on which a proof that is to be reused should hold.

The copies are hints: they say which leaves deserve more work. What holds on a variant is decided on the variant.
A noise changes the weights of affine operators as the network was read; biases stay, as quantisers and pruners leave
them alone. Fine-tuning and rounding look alike: relative noise of a size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from mucg4.model.network import Network, Node
from mucg4.ops.affine import Dense, RowDense
from mucg4.ops.arrays import FloatArray
from mucg4.ops.conv import Conv, ConvTranspose
from mucg4.ops.piecewise import TwoPiece
from mucg4.records import dataclass

WEIGHTED = (Dense, RowDense, Conv, ConvTranspose)  # operators with a `weight` that is learned


@dataclass(frozen=True)
class Noise:
    """A row of the table: `change(network, random)` gives the nodes of the copy."""

    name: str
    change: Callable[[Network, np.random.Generator], list[Node]]
    means: str


def _each(change: Callable[[FloatArray, np.random.Generator], FloatArray]) -> Callable[..., list[Node]]:
    """Nodes with every weight array changed on its own."""

    def changed(network: Network, random: np.random.Generator) -> list[Node]:
        return [
            replace(node, op=replace(node.op, weight=change(node.op.weight, random)))
            if isinstance(node.op, WEIGHTED)
            else node
            for node in network.nodes
        ]

    return changed


def significant(weights: FloatArray, bits: int) -> FloatArray:
    """Weights rounded to so many significant bits: 11 as float16 has, 8 as bfloat16 has."""
    mantissa, exponent = np.frexp(weights)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits))


def on_grid(weights: FloatArray, levels: int, axis: int | None = None) -> FloatArray:
    """Weights on a symmetric grid of `levels` steps on each side: one for the tensor, or for each index of an axis."""
    others = None if axis is None else tuple(k for k in range(weights.ndim) if k != axis)
    step = np.abs(weights).max(axis=others, keepdims=True, initial=0.0) / levels
    step = np.where(step > 0, step, 1.0)
    found: FloatArray = np.rint(weights / step) * step
    return found


def pruned(weights: FloatArray, share: float) -> FloatArray:
    """The smallest weights set to zero."""
    out: FloatArray = weights.copy()
    out.reshape(-1)[np.argsort(np.abs(out), axis=None, kind="stable")[: round(share * out.size)]] = 0.0
    return out


def narrowed(network: Network, share: float) -> list[Node]:
    """The weakest hidden neurons of each dense layer read by one dense layer no longer read (as if they were gone)."""
    nodes = list(network.nodes)
    for k in network.nonlinear:
        users = network.users[k]
        before, after = nodes[nodes[k].inputs[0]], nodes[users[0]] if len(users) == 1 else nodes[0]
        if not (isinstance(nodes[k].op, TwoPiece) and isinstance(before.op, Dense) and isinstance(after.op, Dense)):
            continue
        strength = np.linalg.norm(before.op.weight, axis=1) * np.linalg.norm(after.op.weight, axis=0)
        weight = after.op.weight.copy()
        weight[:, np.argsort(strength, kind="stable")[: round(share * len(strength))]] = 0.0
        nodes[users[0]] = replace(after, op=replace(after.op, weight=weight))
    return nodes


NOISES = (
    Noise("fp16", _each(lambda w, _: significant(w, 11)), "11 significant bits"),
    Noise("bf16", _each(lambda w, _: significant(w, 8)), "8 significant bits"),
    Noise("tuned", _each(lambda w, random: w * (1 + 1e-3 * random.standard_normal(w.shape))), "relative noise of 1e-3"),
    Noise("int8", _each(lambda w, _: on_grid(w, 127)), "255 levels for each tensor"),
    Noise("channel8", _each(lambda w, _: on_grid(w, 127, 0)), "255 levels for each output channel"),
    Noise("pruned", _each(lambda w, _: pruned(w, 0.1)), "the smallest 10 % of the weights are zero"),
    Noise("narrowed", lambda network, _: narrowed(network, 0.05), "the weakest 5 % of the hidden neurons are gone"),
)


def noisy(network: Network, noise: Noise, seed: int = 0) -> Network | None:
    """A copy of the network with the noise; None where it changes nothing."""
    nodes = noise.change(network, np.random.default_rng(seed))
    if all(
        a.op is b.op or np.array_equal(a.op.weight, b.op.weight)  # type: ignore[union-attr]
        for a, b in zip(nodes, network.nodes, strict=True)
    ):
        return None
    return Network(tuple(nodes), element_type=network.element_type)
