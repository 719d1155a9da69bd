"""A check that is taken up again accepts nothing that a check from the start would not."""

from __future__ import annotations

import sys
from dataclasses import replace
from fractions import Fraction as F

import numpy as np
import pytest

from mucg4.check.walk import check
from mucg4.evidence import Examined
from mucg4.limits.budget import Budget
from mucg4.model.network import Network, Node
from mucg4.model.proof import single_leaf
from mucg4.model.refutations import Refutation
from mucg4.ops.affine import Dense
from mucg4.ops.bilinear import PRODUCT
from unit.check.test_walk import BY_ALPHA, BY_BETA, absolute, proof_of, query_of


@pytest.mark.parametrize("tree", [BY_BETA, BY_ALPHA])
def test_all_conjunctions_are_more_than_those_the_tree_answered_for(tree):
    """The second conjunction, which holds at 0, was never examined."""
    query = query_of(absolute(), [-1], [1], [({0: F(-1)}, {0: F(1)}, F(1, 5))], [({}, {0: F(1)}, F(-1, 2))])
    first = [replace(tree, conjunctions=(0,)), replace(single_leaf(), conjunctions=(1,))]
    examined = Examined(query, first, Budget())
    report = examined.go_on([replace(tree, conjunctions=None)], Budget())
    assert not report.accepted and not check(report.proof, query).accepted


def test_what_was_rejected_is_never_merely_late():
    query = query_of(absolute(), [-1], [1], [({}, {0: F(1)}, F(-1, 2))])
    tree = replace(BY_BETA, conjunctions=None)
    examined = Examined(query, [tree], Budget())
    assert examined.report.failed
    report = examined.go_on([tree], Budget.seconds(0))
    assert not report.late and not report.accepted


@pytest.mark.parametrize("workers", [1, 2])
def test_the_order_of_trees_does_not_matter_where_numbers_are_multiplied(workers, monkeypatch):
    """y = x * x on [-1, 1]: lines of products are better where bounds are derived anew, which every root does."""
    monkeypatch.setattr(sys.modules["mucg4.check.walk"], "LEAST_SHARED", 0)
    one, zero = np.array([[1.0]]), np.zeros(1)
    nodes = [
        Node(None, (), "x", (1,)),
        Node(Dense(one, zero), (0,), "a", (1,)),
        Node(Dense(one, zero), (0,), "b", (1,)),
        Node(PRODUCT, (1, 2), "p", (1,)),
        Node(Dense(one, zero), (3,), "y", (1,)),
    ]
    query = query_of(Network(tuple(nodes)), [-1], [1], [({}, {0: F(1)}, F(1, 2))], [({}, {0: F(1)}, F(2))])
    trees = [replace(single_leaf([Refutation(0, k, (1.0,))]), conjunctions=(k,)) for k in range(2)]
    for order in (trees, trees[::-1]):
        assert check(proof_of(query, *order), query, Budget(), workers=workers).accepted
    examined = Examined(query, [trees[0], replace(trees[1], refutations=())], Budget())
    report = examined.go_on(trees[::-1], Budget())
    assert report.accepted and check(report.proof, query).accepted
