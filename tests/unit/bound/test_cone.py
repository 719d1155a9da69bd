"""Rows of neurons of images carried in cones are those of the whole network."""

from __future__ import annotations

import numpy as np
import pytest

from mucg4.bound.cone import Images
from mucg4.bound.propagate import Bounder, Regions
from mucg4.model.network import Network, Node
from mucg4.ops.affine import Dense, Scale, Sum
from mucg4.ops.arrays import Backend
from mucg4.ops.conv import Conv, Window
from mucg4.ops.piecewise import TwoPiece
from mucg4.ops.smooth import Sigmoid


def images(seed: int) -> Network:
    """A residual network of images: strides, uneven padding, dilations, groups, a scale, a smooth layer."""
    rng = np.random.default_rng(seed)
    nodes = [Node(None, (), "x", (2, 11, 9))]

    def add(op, inputs, shape):
        nodes.append(Node(op, inputs, "", shape))
        return len(nodes) - 1

    def conv(i, shape, out, kernel, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1):
        window = Window(*shape, kernel, strides, pads, dilations, group)
        weight = rng.normal(size=(out, shape[0] // group, *kernel)) / np.sqrt(shape[0] * kernel[0] * kernel[1])
        return add(Conv(window, weight, rng.normal(size=out * window.positions)), (i,), (out, *window.out))

    def bend(i, op):
        return add(op, (i,), nodes[i].shape)

    a = bend(conv(0, (2, 11, 9), 4, (3, 3), pads=(1, 1, 1, 1)), TwoPiece(0.0, 1.0))
    b = bend(conv(a, (4, 11, 9), 6, (3, 2), (2, 1), (1, 0, 2, 1), group=2), TwoPiece(0.1, 1.0))
    shape = nodes[b].shape
    c = bend(conv(b, shape, 6, (3, 3), (1, 1), (2, 2, 2, 2), (2, 2)), Sigmoid())
    d = conv(c, shape, 6, (3, 3), pads=(1, 1, 1, 1))
    e = add(Scale(rng.normal(size=nodes[d].size), rng.normal(size=nodes[d].size)), (d,), shape)
    f = bend(add(Sum((1.0, -1.0)), (e, b), shape), TwoPiece(0.0, 1.0))
    g = bend(conv(f, shape, 3, (3, 3), (2, 2), (1, 1, 0, 0)), TwoPiece(0.0, 1.0))
    add(Dense(rng.normal(size=(3, nodes[g].size)), np.zeros(3)), (g,), (3,))
    return Network(tuple(nodes))


def bounders(seed, monkeypatch, batch=2):
    """Two bounders of one network with refreshed regions: one that takes cones, one that does not."""
    net = images(seed)
    rng = np.random.default_rng(seed)
    middle = rng.uniform(-1, 1, size=net.input_size)
    out = []
    for cones in (True, False):
        bounder = Bounder(net, middle - 0.1, middle + 0.1)
        if cones:
            monkeypatch.setattr("mucg4.bound.cone.BUILD_COST", 1.0)
        else:
            monkeypatch.setattr(bounder.images, "tiling", lambda *_: None)
        regions = bounder.root().take(np.zeros(batch, dtype=np.int64))
        regions.hi[1:, ::3] = regions.lo[1:, ::3] + 0.02
        out.append((bounder, regions, bounder.refresh(regions, keep_rows=True)))
    return out


@pytest.mark.parametrize("seed", range(3))
def test_cones_and_whole_rows_give_the_same_bounds(seed, monkeypatch):
    (one, inside, found), (other, whole, wanted) = bounders(seed, monkeypatch)
    assert any(one.images.tiling(k, np.array([0]), 2) is not None for k in one.pre)
    assert np.allclose(inside.low, whole.low, atol=1e-12) and np.allclose(inside.up, whole.up, atol=1e-12)
    assert not np.array_equal(other.root().low, whole.low[:1])
    assert found.rows.keys() == wanted.rows.keys()
    for k, rows in found.rows.items():
        for field in ("below", "above", "base", "top"):
            assert np.allclose(getattr(rows, field), getattr(wanted.rows[k], field), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_bounds_hold_and_threads_change_nothing(seed, monkeypatch):
    (bounder, regions, _), _ = bounders(seed, monkeypatch)
    rng = np.random.default_rng(seed)
    for r in range(2):
        values = bounder.network.values(rng.uniform(regions.lo[r], regions.hi[r], size=(500, len(regions.lo[r]))))
        for k in bounder.pre:
            low, up = bounder.pre_bounds(regions, k)
            assert np.all(values[k] >= low[r] - 1e-9) and np.all(values[k] <= up[r] + 1e-9)
    monkeypatch.setattr("mucg4.bound.propagate.THREADED", 0.0)
    again = Bounder(bounder.network, bounder.lo, bounder.hi)
    again.threads = 3
    same = Regions(regions.lo, regions.hi, *(np.repeat(a, 2, axis=0) for a in (again.root().low, again.root().up)))
    again.refresh(same)
    assert np.array_equal(same.low, regions.low) and np.array_equal(same.up, regions.up)


def test_a_cone_computes_its_part_of_the_network():
    net = images(7)
    made = Images(net)
    values = net.values(np.random.default_rng(0).normal(size=(4, net.input_size)))
    for k in sorted(made.shapes)[1:]:
        _, height, width = made.shapes[k]
        for rect in ((0, 0, 1, 1), (height - 1, width - 2, height, width), (1, 0, 3, width), (0, 0, height, width)):
            cone = made.cone(k, rect)
            assert np.allclose(Network(cone.nodes)(values[0][:, cone.at[0]]), values[k][:, cone.at[-1]])
    assert len(net.nodes) - 1 not in made.shapes  # the dense end is no image


def test_windows_in_the_padding_alone_are_no_images():
    window = Window(1, 4, 4, (1, 1), pads=(1, 1, 1, 1))
    op = Conv(window, np.ones((1, 1, 1, 1)))
    net = Network((Node(None, (), "x", (1, 4, 4)), Node(op, (0,), "", (1, 6, 6))))
    assert set(Images(net).shapes) == {0}


def test_cones_on_another_backend(monkeypatch):
    pytest.importorskip("torch")
    (bounder, regions, _), _ = bounders(2, monkeypatch)
    backend = Backend("float64", "cpu")
    there = Bounder(bounder.network.cast(backend), bounder.lo, bounder.hi)
    same = Regions(regions.lo, regions.hi, *(np.repeat(a, 2, axis=0) for a in (bounder.root().low, bounder.root().up)))
    placed = same.on(backend)
    there.refresh(placed)
    assert np.allclose(placed.low.numpy(), regions.low, atol=1e-9)
    assert np.allclose(placed.up.numpy(), regions.up, atol=1e-9)
