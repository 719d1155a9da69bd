"""What the search takes for bounds the checker finds again: symmetric boxes, networks with stable neurons folded."""

from __future__ import annotations

import numpy as np
import pytest
from handmade import one

from mucg4.bound.compute import Compute
from mucg4.bound.objective import Objective
from mucg4.bound.propagate import LARGE, Bounder
from mucg4.check.enclose import Enclosure
from mucg4.model.network import Network, Node
from mucg4.ops.affine import Dense
from mucg4.ops.arrays import DOUBLE, NUMPY
from mucg4.ops.piecewise import RELU
from mucg4.ops.smooth import Sigmoid


def wide(seed: int) -> Network:
    """Neurons that are mostly off, then more than LARGE neurons of a smooth function."""
    rng = np.random.default_rng(seed)
    bias = np.where(rng.random(40) < 0.8, -9.0, 0.5)
    sizes = (3, 40, 40, LARGE + 8, LARGE + 8, 2)
    ops = (
        None,
        Dense(rng.normal(size=(40, 3)), bias),
        RELU,
        Dense(0.3 * rng.normal(size=(LARGE + 8, 40)), 20 * rng.normal(size=LARGE + 8)),
        Sigmoid(),
        Dense(rng.normal(size=(2, LARGE + 8)), rng.normal(size=2)),
    )
    return Network(
        tuple(Node(op, (k - 1,) if k else (), str(k), (n,)) for k, (op, n) in enumerate(zip(ops, sizes, strict=True)))
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_folded_network_gives_no_tighter_bounds_than_the_checker_finds(seed):
    net = wide(seed)
    query = one(net, [-1] * 3, [1] * 3, [({}, {0: -1}, 0, False)])
    box = query.cases[0].box
    bounder, objective = Bounder(net, box.lo, box.hi), Objective(query.cases[0])
    root = bounder.root()
    bounder.refresh(root)
    bounder.tighten_scales(root)
    compute = Compute.of(bounder, objective, NUMPY).folded_on(bounder, root)
    assert compute.fold is not None
    compute.refresh(root)
    enclosure = Enclosure(net)
    far = np.full((1, enclosure.width), np.inf)
    low, up, all_ = -far, far.copy(), np.ones(1, dtype=bool)
    enclosure.sweep((box.lo[None].copy(), box.hi[None].copy()), low, up, all_, all_)
    for k, there in enclosure.slot.items():
        here = bounder.slices[k]
        smooth = any(isinstance(net.nodes[j].op, Sigmoid) for j in net.users[k])
        unstable = smooth | ((low[0, there] < 0) & (up[0, there] > 0))
        assert np.all((low[0, there] >= root.low[0, here] - 1e-9)[unstable])
        assert np.all((up[0, there] <= root.up[0, here] + 1e-9)[unstable])


def test_bounds_that_differ_by_rounding_charges_take_the_same_slope_on_symmetric_boxes():
    for size in (1e-6, 0.2859685421239, 1e6):
        for off in (-1e-8, -1e-10, 0.0, 1e-10, 1e-8):  # far more than any charge of either side
            assert RELU.default_alpha(np.array([-size]), np.array([size * (1 + off)]))[0] == 0
        assert RELU.default_alpha(np.array([-size]), np.array([size * (1 + 4 * DOUBLE.tie)]))[0] == 1
