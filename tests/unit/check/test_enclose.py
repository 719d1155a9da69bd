"""The checker's own bounds: what it leaves out of products and sweeps changes nothing but the work."""

from __future__ import annotations

import numpy as np
import pytest
from handmade import chain, random_layers

from mucg4.check import narrow
from mucg4.check.enclose import Enclosure, Frame
from mucg4.ops.affine import Dense


def swept(enclosure: Enclosure, boxes: np.ndarray, low: np.ndarray, up: np.ndarray, before=None) -> Frame:
    nowhere = np.zeros(len(boxes), dtype=bool)
    frame, empty = enclosure.sweep((boxes - 0.3, boxes + 0.3), low, up, nowhere, nowhere, before)
    assert not empty.any()
    return frame


def random_frame(seed: int = 0, regions: int = 1) -> tuple[Enclosure, np.ndarray, np.ndarray, np.ndarray, Frame]:
    """A network with a third of its neurons off, boxes, and its bounds there after a sweep."""
    random = np.random.default_rng(seed)
    layers = random_layers(seed, (4, 40, 30, 20, 3))
    layers = [(w, b - np.where(random.random(len(b)) < 0.3, 9.0, 0.0)) for w, b in layers]
    enclosure, boxes = Enclosure(chain(layers)), random.uniform(-1, 1, (regions, 4))
    low, up = np.full((regions, enclosure.width), -np.inf), np.full((regions, enclosure.width), np.inf)
    every = np.ones(regions, dtype=bool)
    frame, _ = enclosure.sweep((boxes - 0.3, boxes + 0.3), low, up, every, every)
    return enclosure, boxes, low, up, frame


@pytest.mark.parametrize("cost", [0, 1e9])
@pytest.mark.parametrize("regions", [1, 3])
def test_products_without_zeros_are_the_whole_ones(cost, regions, monkeypatch):
    """Up to components of the argument that are zero on all regions: nothing that meets them counts."""
    monkeypatch.setattr(narrow, "COPY_COST", cost)
    enclosure, *_, frame = random_frame(regions=regions)
    random = np.random.default_rng(1)
    for node in enclosure.nodes:
        if not isinstance(node.op, Dense):
            continue
        a = random.normal(size=(50, node.size)) * (random.random(node.size) < 0.5)
        lines = frame.lines.get(node.inputs[0])
        found = narrow.through(node.op, a, lines)
        counts = np.ones(found.shape[1], dtype=bool)
        if lines is not None:
            counts = (frame.magnitude[node.inputs[0]] != 0).any(axis=0)
            assert not counts.all()
        assert np.allclose(found[:, counts], (a @ node.op.weight)[:, counts], rtol=1e-12)
        assert cost or not np.any(found[:, ~counts])


@pytest.mark.parametrize("regions", [1, 3])
def test_a_sweep_that_goes_on_is_one_from_the_start(regions):
    enclosure, boxes, low, up, frame = random_frame(regions=regions)
    for k, slot in enclosure.slot.items():
        low[:, slot], up[:, slot] = low[:, slot] * 0.9 + up[:, slot] * 0.1, up[:, slot] * 0.9 + low[:, slot] * 0.1
        whole = swept(enclosure, boxes, low.copy(), up.copy())
        frame = swept(enclosure, boxes, low, up, (frame, k))
        for mine, others in zip(frame._lists(), whole._lists(), strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(mine, others, strict=True))
        for j, lines in whole.lines.items():
            for name in ("low", "up", "up_offset", "free"):
                assert np.array_equal(getattr(lines, name), getattr(frame.lines[j], name))
