"""Operators of the canonical network: what they compute, and the facts bounds are made from.

Every value is flat: a batch of tensors is an array `(batch, size)`, row-major as in ONNX.
Two kinds exist.

* `Affine`: exactly `sum_i W_i x_i + b`. It offers the forward map, the adjoint map (used by backward
  bounds and gradients) and a magnitude map (used for rounding and interval bounds).
* `Nonlinear`: elementwise over one or more inputs of equal size. It offers the value, the interval
  image, and a linear relaxation on a box.

Nothing here knows about regions, search or proofs. An operator the reader does not know is an
`UnsupportedError` at load time.
"""

from mucg4.ops.base import Affine, Nonlinear, Op, Relaxation

__all__ = ["Affine", "Nonlinear", "Op", "Relaxation"]
