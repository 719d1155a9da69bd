"""How a new network comes from an old one: the relation in one word, details, and the neuron map.

Decided from the weights alone, by the first rule that holds: equal; no fitting shapes; equal after reordering, or
after putting opposite pairs together, or after scaling neurons; neurons removed; neurons zeroed, then single weights
zeroed, and the rest kept; weights rounded to a grid or a short float type; neurons, then weights zeroed and the rest
moved; weights moved a little; unrelated. Only reports and the order of work depend on it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np

from mucg4.model.network import Network
from mucg4.model.query import Query
from mucg4.ops.arrays import AnyArray, BoolArray, FloatArray, IntArray, median
from mucg4.records import dataclass
from mucg4.relate.align import Alignment, UnitMap, by_position, from_units, match_units
from mucg4.relate.layers import Form, balanced, form_of, tensors_of
from mucg4.reuse.grid import largest_of, scheme_of, square_sum
from mucg4.reuse.translate import translate
from mucg4.store.related import Related

__all__ = ["Alignment", "Match", "match", "relate", "relation_of", "translate"]

FAR = 0.5  # relative distance of the median layer beyond which networks count as unrelated; not measured
ROUNDING = 5e-7  # relative difference of two float32 serialisations of one network; not measured
ZERO_RATE = 0.005  # share of newly zero weights that counts as pruning; not measured
REST_MOVED = 0.3  # relative distance of the other weights up to which zeros count as pruning; not measured


@dataclass(frozen=True, eq=False)
class Match:
    """`relation` is one of `mucg4.model.verdict.RELATIONS`; `alignment` is None for unrelated networks."""

    relation: str
    detail: str = ""
    alignment: Alignment | None = None


@dataclass(frozen=True, eq=False)
class _Pair:
    """One tensor of both networks, entries facing each other; `live` marks entries between live units.

    `size` is that of the weights beside which a bias stands: what rounding makes of a bias is relative to it, too.
    """

    old: FloatArray
    new: FloatArray
    is_bias: bool
    live: BoolArray | None = None
    size: float = 0.0

    @cached_property
    def gap(self) -> FloatArray:
        return np.asarray(self.new - self.old)

    @cached_property
    def squares(self) -> tuple[float, float]:
        """Sums of squares of the gap and of the old entries."""
        return square_sum(self.gap), square_sum(self.old)

    @cached_property
    def live_squares(self) -> tuple[float, float]:
        """The same over the entries between live units."""
        if self.live is None:
            return self.squares
        return square_sum(self.gap * self.live), square_sum(self.old * self.live)

    @cached_property
    def fresh(self) -> BoolArray:
        """The entries that are newly zero."""
        return np.asarray((self.new == 0) & (self.old != 0))

    @cached_property
    def equal(self) -> bool:
        """True when rounding explains all differences."""
        if not self.old.size:
            return True
        largest = max(largest_of(self.old), self.size)
        slack = largest if self.is_bias else 0.1 * largest  # sums of terms may cancel
        if largest_of(self.gap) > ROUNDING * (largest + slack) or (not self.is_bias and self.fresh.any()):
            return False
        return bool(np.all(abs(self.gap) <= ROUNDING * (abs(self.old) + slack)))


@dataclass(frozen=True)
class _Units:
    """Counts over the hidden units of all layers."""

    total: int = 0
    removed: int = 0
    added: int = 0
    moved: int = 0
    zeroed: int = 0


def match(old: Network, new: Network) -> Match:
    """Relation and neuron map of two networks; a heuristic, see the module text."""
    if old.fingerprint == new.fingerprint:
        word = "identical" if old.source_hash == new.source_hash else "re-serialised"
        return Match(word, "", by_position(old, new))
    if (old.input_size, old.output_size) != (new.input_size, new.output_size):
        return Match("unrelated", "other input or output size")
    return _match_forms(old, new) or _match_tensors(old, new)


def relate(related: Related, query: Query) -> Match:
    """The relation of a query to a stored result, the property included, with the neuron map.

    On the same network (`identical` or `re-serialised`) another property is `other-box` when only the
    box differs, else `other-property`.
    """
    network = query.network
    if related.fingerprint == network.fingerprint:
        word = "identical" if network.source_hash in related.sources else "re-serialised"
        found = Match(word, "", by_position(network, network))
    elif related.network is None:
        return Match("unrelated", "the stored network cannot be read")
    else:
        old, pair = related.network, ("match", related.fingerprint, network.fingerprint)
        found = related.kept.of(pair, lambda: match(old, network))
    if found.relation in ("identical", "re-serialised") and related.property_hash != query.property_hash:
        word = "other-box" if related.same_unsafe else "other-property"
        return replace(found, relation=word, detail=f"box {related.box_relation}")
    return found


def relation_of(related: Related, query: Query) -> str:
    """The word of `relate`."""
    return relate(related, query).relation


# --- from layers to facing tensors ---------------------------------------------------------------------------------


def _match_forms(old: Network, new: Network) -> Match | None:
    """By units of layers; None where the layered form does not exist or does not fit."""
    ours, theirs = form_of(old), form_of(new)
    if ours is None or theirs is None:
        return None
    found = _match_units(old, ours, theirs)
    if found is None or found.relation != "unrelated":
        return found
    (ours, before), (theirs, after) = balanced(old, ours), balanced(new, theirs)
    again = _match_units(old, ours, theirs, (before, after))
    if again is None or again.relation == "unrelated":
        return found
    return replace(again, detail=_join(again.detail, "neurons scaled"))


def _match_units(
    old: Network, ours: Form, theirs: Form, sizes: tuple[list[FloatArray], list[FloatArray]] | None = None
) -> Match | None:
    """`sizes`: by what units of each layer were divided in either form, see `balanced`."""
    maps = match_units(ours, theirs)
    if maps is None:
        return None
    relation, detail = _classify(_face(ours, theirs, maps), _count(ours, theirs, maps))
    if ours.pairs != theirs.pairs and relation != "unrelated":
        split = f"{abs(ours.pairs - theirs.pairs)} opposite pairs"
        same = relation in ("re-serialised", "permuted")
        place = "neurons permuted" if relation == "permuted" else ""
        relation, detail = ("split-neurons", _join(split, place)) if same else (relation, _join(detail, split))
    scales = None
    if sizes is not None:
        pairs = zip(*sizes, maps, strict=True)
        scales = [np.where(m.new >= 0, there[m.new] / here, 1.0) for here, there, m in pairs]
    alignment = None if relation == "unrelated" else from_units(old, ours, theirs, maps, scales)
    return Match(relation, detail, alignment)


def _match_tensors(old: Network, new: Network) -> Match:
    """By parameter arrays in graph order; neurons keep their places."""
    alignment = by_position(old, new)
    ours, theirs = tensors_of(old), tensors_of(new)
    shapes = [[(is_bias, t.shape) for is_bias, t in side] for side in (ours, theirs)]
    if alignment is None or shapes[0] != shapes[1]:
        return Match("unrelated", "other architecture")
    pairs = [_Pair(a, b, is_bias) for (is_bias, a), (_, b) in zip(ours, theirs, strict=True)]
    relation, detail = _classify(pairs, _Units())
    return Match(relation, detail, None if relation == "unrelated" else alignment)


def _face(ours: Form, theirs: Form, maps: list[UnitMap]) -> list[_Pair]:
    """Weights and biases of all layers on the units that both networks have, in the old order."""
    out = []
    for a, b, units in zip(ours.layers, theirs.layers, maps, strict=True):
        source = maps[a.reads] if a.reads >= 0 else None
        columns = np.arange(a.weight.shape[1]) if source is None else source.new
        at, there, lives = units.new >= 0, columns >= 0, _lives(units)
        alive = np.ones(len(columns), dtype=bool) if source is None else _lives(source)
        old = _take(_take(a.weight, np.flatnonzero(at), 0), np.flatnonzero(there), 1)
        new = _take(_take(b.weight, units.new[at], 0), columns[there], 1)
        live = lives[at][:, None] & alive[there][None, :]
        out.append(_Pair(old, new, False, None if live.all() else np.broadcast_to(live[:, :, None], old.shape)))
        out.append(_Pair(a.bias[lives], b.bias[units.new[lives]], True, size=largest_of(old)))
    return out


def _lives(units: UnitMap) -> BoolArray:
    return (units.new >= 0) & (units.sign >= 0) & ~units.unread


def _take(array: AnyArray, index: IntArray, axis: int) -> AnyArray:
    """`np.take` that copies nothing when everything stays in place."""
    whole = len(index) == array.shape[axis] and np.array_equal(index, np.arange(len(index)))
    return array if whole else np.take(array, index, axis=axis)


def _count(ours: Form, theirs: Form, maps: list[UnitMap]) -> _Units:
    total = removed = added = moved = zeroed = 0
    for number, (a, b, units) in enumerate(zip(ours.layers, theirs.layers, maps, strict=True)):
        if number == ours.last or a.tied >= 0:
            continue
        there = units.new[units.new >= 0]
        total += a.units
        removed += a.units - len(there)
        added += b.units - len(there)
        moved += int(np.count_nonzero(np.diff(there) < 0))
        had = a.weight.reshape(a.units, -1).any(axis=1)
        zeroed += int(np.count_nonzero(had & ((units.sign < 0) | units.unread)))
    return _Units(total, removed, added, moved, zeroed)


# --- from tensors to a word ----------------------------------------------------------------------------------------


def _classify(pairs: list[_Pair], units: _Units) -> tuple[str, str]:
    """The first rule that holds, see the module text."""
    place = "neurons permuted" if units.moved else ""
    if all(p.equal for p in pairs) and not units.removed and not units.added:
        return ("permuted", "") if units.moved else ("re-serialised", "equal up to rounding")
    weights = [p for p in pairs if not p.is_bias]
    distance = _median([p.live_squares for p in weights])
    if units.removed or units.added:
        if distance > FAR:
            return "unrelated", f"distance {distance:.2g}"
        count = f"{units.removed} of {units.total} removed" if units.removed else f"{units.added} neurons more"
        return "pruned-neurons", _join(count, place, _moved(distance))
    zeroed = ""
    if units.zeroed and distance <= FAR and _zeros_lie_in_dead_units(weights):
        zeroed = f"{units.zeroed} of {units.total} zeroed"
    if zeroed and distance <= ROUNDING:
        return "pruned-neurons", _join(zeroed, place)
    zeros, rest, level = _zero_rates(weights)
    if zeros > ZERO_RATE and rest <= ROUNDING:
        return "pruned-weights", _join(f"zero rate {level:.2f}", place)
    scheme = scheme_of([(p.old, p.new) for p in weights])
    if scheme is not None:
        return "quantised", _join(scheme, place)
    if zeroed:
        return "pruned-neurons", _join(zeroed, place, _moved(distance))
    if zeros > ZERO_RATE and rest <= REST_MOVED:
        return "pruned-weights", _join(f"zero rate {level:.2f}", place, _moved(rest))
    return _classify_distance(weights, place)


def _classify_distance(weights: list[_Pair], place: str) -> tuple[str, str]:
    distance = _distance(weights)
    if distance <= FAR:
        return "fine-tuned", _join(f"distance {distance:.2g}", place)
    coarser = scheme_of([(p.new, p.old) for p in weights])
    if coarser is not None and not place:
        return "fine-tuned", _join(f"distance {distance:.2g}", f"the stored network is {coarser}")
    return "unrelated", f"distance {distance:.2g}"


def _join(*parts: str) -> str:
    return ", ".join(p for p in parts if p)


def _moved(distance: float) -> str:
    return f"the rest moved by {distance:.1g}" if distance > ROUNDING else ""


def _distance(pairs: list[_Pair]) -> float:
    """Relative distance of the median layer; layers that were zero do not count."""
    return _median([p.squares for p in pairs])


def _median(squares: list[tuple[float, float]]) -> float:
    found = [np.sqrt(max(gap, 0.0) / norm) for gap, norm in squares if norm > 0]
    return float(median(np.array(found))) if found else 0.0


def _zero_rates(weights: list[_Pair]) -> tuple[float, float, float]:
    """Share of newly zero weights, relative distance of the weights that are not, share of zero weights."""
    count = sum(p.old.size for p in weights)
    lost = [square_sum(p.old[p.fresh]) for p in weights]  # there the gap is the old entry
    rest = _median([(p.squares[0] - own, p.squares[1] - own) for p, own in zip(weights, lost, strict=True)])
    zero = sum(p.new.size - int(np.count_nonzero(p.new)) for p in weights)
    return sum(int(np.count_nonzero(p.fresh)) for p in weights) / max(count, 1), rest, zero / max(count, 1)


def _zeros_lie_in_dead_units(weights: list[_Pair]) -> bool:
    """True when dead units, not single small weights, explain the new zeros."""
    fresh = dead = 0
    for p in weights:
        fresh += int(np.count_nonzero(p.fresh))
        if p.live is not None:
            dead += int(np.count_nonzero(p.fresh & ~p.live))
    return fresh > 0 and dead >= 0.8 * fresh
