"""What carries a proof, in words: which conjunctions, how many regions, what is split, by how much leaves are closed.

All numbers about margins are measured in the checker's arithmetic on the query; nothing here decides whether the proof
holds (`mucg4 check` does).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction

import numpy as np

from mucg4.check.margins import Gauge, Margins
from mucg4.check.walk import planned
from mucg4.limits.budget import Budget
from mucg4.model.proof import Proof, Tree
from mucg4.model.query import Conjunction, Query
from mucg4.ops.arrays import FloatArray
from mucg4.reuse.survey import QUANTILES, ends

MOST = 5  # names in one list; given: what a reader can take in
MOST_TREES = 12  # trees told one by one; given: the same
LONGEST = 100  # characters of a conjunction; given: the same


def explained(proof: Proof, query: Query, budget: Budget) -> tuple[list[str], list[Margins]]:
    """Lines of text about the proof, and the margins of each tree. Raises `ProofError`, `BudgetError`."""
    gauge = Gauge(query, budget)
    found = [gauge.measure(planned(tree, query)) for tree in proof.trees]
    trees = "1 tree" if len(proof.trees) == 1 else f"{len(proof.trees)} trees"
    visited = sum(m.entered for m in found)
    lines = [f"{trees} with {proof.leaves} leaves; a check bounds {visited} regions."]
    lines += _evidence(proof, found)
    splits: Counter[str] = Counter()
    for tree in proof.trees:
        splits.update(_splits(tree, query))
    if splits:
        lines.append(f"Split most: {_listed(splits.most_common(MOST))}; {len(splits)} in all.")
    order = sorted(range(len(proof.trees)), key=lambda k: -len(proof.trees[k]))
    for k in order[:MOST_TREES]:
        lines += _about(k, proof.trees[k], found[k], query)
    if len(order) > MOST_TREES:
        rest = sum(len(proof.trees[k].leaves) for k in order[MOST_TREES:])
        lines.append(f"{len(order) - MOST_TREES} further trees have {rest} leaves together.")
    return lines, found


def _evidence(proof: Proof, found: list[Margins]) -> list[str]:
    """What closes the regions, over all trees."""
    used = single = 0
    margins: list[FloatArray] = [np.zeros(0)]
    for tree, m in zip(proof.trees, found, strict=True):
        table, holds = tree.table, m.value > 0
        weighted = np.bincount(np.repeat(np.arange(len(table)), table.weight_count), weights=table.weights > 0)
        plain = (weighted == 1) & (table.group_count == 0) & (table.beta_count == 0) & (table.cut_count == 0)
        used, single = used + int(holds.sum()), single + int((plain & holds).sum())
        margins.append(m.value[holds])
    every = np.concatenate(margins)
    lines = [f"{used} refutations close them; {single} of these are one constraint alone, with default slopes."]
    if len(every):
        least, middle, most = np.quantile(every, QUANTILES)
        share = f"{QUANTILES[0]:.0%} of the margins are below {least:.2g}, half below {middle:.2g}"
        lines.append(f"{share}, {QUANTILES[2]:.0%} below {most:.2g}; the least is {every.min():.2g}.")
    open_ = sum(m.lost for m in found)
    if open_:
        lines.append(f"{open_} leaves are not closed by these bounds: closed by a hair, or not at all (see check).")
    rows = sum(len(t.index) for tree in proof.trees for t in tree.tightenings)
    cuts = sum(len(c.index) for tree in proof.trees for c in tree.cuts)
    if rows or cuts:
        lines.append(f"{rows} bounds of neurons are tightened on the unsafe points, with {cuts} cuts.")
    return lines


def _about(number: int, tree: Tree, found: Margins, query: Query) -> list[str]:
    """A tree in a few lines."""
    case = query.cases[tree.case]
    covers = tree.answered(len(case.conjunctions))
    what = f"unsafe set {_text(case.conjunctions[covers[0]])}" if len(covers) == 1 else f"{len(covers)} unsafe sets"
    where = f" of case {tree.case + 1}" if len(query.cases) > 1 else ""
    if len(tree) == 1:
        by = _closing(tree, found, 0)
        return [f"Tree {number + 1}: {what}{where}: the whole box at once, {by}."]
    depth, at_end = tree.depths(), np.flatnonzero(ends(tree, found))
    lines = [f"Tree {number + 1}: {what}{where}: {len(tree.leaves)} leaves, at most {int(depth.max())} splits deep."]
    lifted = at_end[tree.left[at_end] >= 0]
    if len(lifted):
        below = int(tree.leaf_counts()[lifted].sum())
        lines.append(f"  {len(lifted)} refutations at inner nodes stand for {below} of its leaves.")
    largest = at_end[np.argsort(depth[at_end], kind="stable")][:3]
    for k in largest.tolist():
        lines.append(f"  1/{2 ** int(depth[k])} of the tree, {_path(tree, query, k)}: {_closing(tree, found, k)}.")
    if tree.clip.any():
        lines.append(f"  {int(tree.clip.sum())} boxes are cut by the constraints.")
    return lines


def _closing(tree: Tree, found: Margins, k: int) -> str:
    """What closes tree node k."""
    own = np.flatnonzero((tree.table.at == k) & (found.value > 0))
    if not len(own):
        return "its bounds contradict each other" if found.seen[k] and not found.open[k] else "not closed by its bounds"
    table, r = tree.table, int(own[0])
    margin = float(found.value[own].min())
    parts = [f"closed by {margin:.2g}"]
    for count, name in ((table.beta_count[r], "literals"), (table.cut_count[r], "cuts")):
        if count:
            parts.append(f"{int(count)} {name}")
    return " with ".join(parts[:2]) + (f" and {parts[2]}" if len(parts) > 2 else "")


def _splits(tree: Tree, query: Query) -> Counter[str]:
    """How often each input or neuron is split."""
    inner = np.flatnonzero(tree.left >= 0)
    pairs = Counter(zip(tree.node[inner].tolist(), tree.index[inner].tolist(), strict=True))
    return Counter({named(query, node, index): count for (node, index), count in pairs.items()})


def named(query: Query, node: int, index: int) -> str:
    """An input, or a neuron by its layer."""
    if node == 0:
        return f"X_{index}"
    return f"neuron {index} of {layer(query, node)}"


def layer(query: Query, node: int) -> str:
    """A network node by the name of its tensor; numbers are no names."""
    name = query.network.nodes[node].name
    return f"layer {name or node}" if not name or name.isdecimal() else name


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({count} times)" for name, count in counts)


def _path(tree: Tree, query: Query, k: int) -> str:
    """The literals on the way to a tree node."""
    parents, out = tree.parents(), []
    while (p := int(parents[k])) >= 0:
        sign = "<=" if tree.left[p] == k else ">="
        out.append(f"{named(query, int(tree.node[p]), int(tree.index[p]))} {sign} {float(tree.threshold[p]):.4g}")
        k = p
    more = f" and {len(out) - MOST} more" if len(out) > MOST else ""
    return (", ".join(out[::-1][:MOST]) or "everything") + more


def _text(conjunction: Conjunction) -> str:
    """A conjunction as inequalities."""
    rows = [
        f"{_sum(cx, 'X') + _sum(cy, 'Y') or ' 0'}{_signed(c) if c else ''} <= 0".lstrip(" +")
        for cx, cy, c in conjunction.exact
    ]
    text = " and ".join(rows)
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def _sum(coefficients: Mapping[int, Fraction], name: str) -> str:
    out = ""
    for i, v in coefficients.items():
        size = "" if abs(v) == 1 else f"{float(abs(v)):.4g} "
        out += f" {'-' if v < 0 else '+'} {size}{name}_{i}"
    return out


def _signed(c: Fraction) -> str:
    return f" {'-' if c < 0 else '+'} {float(abs(c)):.4g}"
