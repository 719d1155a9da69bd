"""A few seconds of the campaign, and that its tools see what they are there to see."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from campaign import exact, mutants
from campaign.exact import Cell, Regions, UnknownTruth, regions, value_at
from campaign.families import EXACT, FAMILIES, Net
from campaign.instance import Instance, Row, decimal, hull
from campaign.judge import Outcome, false_claim, judge, query_of
from campaign.plants import PLANTS, applies
from campaign.properties import NoInstance, make
from campaign.run import one
from campaign.scorer import Scorer, violates
from campaign.shrink import keep, shrink

from mucg4.lab.case import run_case

EACH = 1  # instances per family
START = 2000


def instances(family: str, count: int) -> list[Instance]:
    out: list[Instance] = []
    seed = START
    while len(out) < count:
        seed += 1
        try:
            out.append(make(seed, family))
        except NoInstance:
            continue
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_few_instances(family: str) -> None:
    for instance in instances(family, EACH):
        out = judge(instance)
        assert not out.problems, f"python -m tests.campaign --one {instance.seed} --family {family}: {out.problems}"


def test_two_functions_in_a_row_are_checked() -> None:
    net = Net((1, 2))
    v = net.Gemm("x", net.const([[1.0, -1.0], [1.0, 1.0], [0.5, 0.3]]), net.const([0.1, 0.2, 0.3]), transB=1)
    v = net.Relu(net.LeakyRelu(v, alpha=0.1))
    net.Gemm(v, net.const([[1.0, -1.0, 0.5]]), net.const([-0.1]), transB=1)
    row = Row((), ((0, "-1"),), "-2.4")
    instance = Instance("pieces", 0, net.graph(), (("-1", "1"),) * 2, ((row,),))
    out = judge(replace(instance, truth=exact.answer(instance)[0]))
    assert not out.problems and out.counts["proofs checked"]


# -- exact answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", EXACT)
def test_exact_answers_agree_with_points_of_a_grid(family: str) -> None:
    """No grid point is outside the extrema, and the function on a cell is the function of the graph."""
    for instance in instances(family, 4):
        try:
            cells = regions(instance.graph, hull(instance))
        except UnknownTruth:
            continue
        row = replace(instance.unsafe[0][0], bound="0")
        most, least, where = cells.extremum(row)
        steps = [[a + (b - a) * Fraction(k, 4) for k in range(5 if a < b else 1)] for a, b in hull(instance)]
        for x in list(product(*steps))[::7]:
            y = value_at(instance.graph, list(x))
            xs, ys, _ = row.exact()
            value = sum(c * x[i] for i, c in xs.items()) + sum(c * y[j] for j, c in ys.items())
            assert least <= value <= most
        at = cells.point(where)
        y = value_at(instance.graph, at)
        xs, ys, _ = row.exact()
        assert least == sum(c * at[i] for i, c in xs.items()) + sum(c * y[j] for j, c in ys.items())


def test_cells_are_cut_exactly() -> None:
    cube = Cell.box([(Fraction(0), Fraction(1))] * 3)
    corner = np.array([Fraction(1)] * 3 + [-Fraction(1, 2)], dtype=object)
    tetrahedron = cube.cut(corner)
    assert tetrahedron is not None and len(tetrahedron.vertices) == 4
    rest = cube.cut(-corner)
    assert rest is not None and len(rest.vertices) == 10
    assert tetrahedron.cut(np.array([-Fraction(1)] * 3 + [Fraction(1)], dtype=object)) is None
    touching = np.array([-Fraction(1)] * 3 + [Fraction(1, 2)], dtype=object)
    assert tetrahedron.meets([(touching, False)]) is not None
    assert tetrahedron.meets([(touching, True)]) is None


def test_decimals_are_exact_or_rounded() -> None:
    assert decimal(Fraction(1, 8)) == "0.125" and decimal(Fraction(-3)) == "-3.0"
    for value in (Fraction(1, 3), Fraction(-(10**9), 7), Fraction(1, 10**12) / 3):
        assert abs(Fraction(decimal(value, 20)) - value) < abs(value) / 10**18


def test_ties_are_decided_by_strictness() -> None:
    instance = instances("dense", 1)[0]
    cells: Regions = regions(instance.graph, hull(instance))
    row = replace(instance.unsafe[0][0], bound="0")
    _, least, _ = cells.extremum(row)
    for strict, answer in ((False, "sat"), (True, "unsat")):
        tied = replace(instance, unsafe=((replace(row, bound=decimal(least), strict=strict),),), always=())
        if Fraction(tied.unsafe[0][0].bound) == least:
            assert exact.answer(tied)[0] == answer


# -- the tools themselves ----------------------------------------------------------------------------------------------


def test_the_scorer_is_strict_about_outputs_and_lets_inputs_round() -> None:
    instance = instances("dense", 1)[0]
    x = np.array([float(np.float32(float(Fraction(a)))) for a, _ in instance.box], dtype=np.float32)
    y = Scorer(instance.graph).one(x)
    rows = [(Row((), ((0, "1"),), decimal(Fraction(float(y[0])) + d)), d >= 0) for d in (-Fraction(1, 10**20), 0, 1)]
    for row, right in rows:
        assert violates(replace(instance, unsafe=((row,),), always=()), x, y) == right


def test_instances_repeat() -> None:
    for seed in range(START, START + 10):
        try:
            first, second = make(seed), make(seed)
        except NoInstance:
            continue
        assert first.onnx() == second.onnx() and first.vnnlib() == second.vnnlib() and first.truth == second.truth


def test_a_false_claim_is_sat_and_its_proof_rejected() -> None:
    seen = 0
    for family in ("dense", "residual"):
        for instance in instances(family, 8):
            if instance.truth == "unsat":
                false = false_claim(replace(instance, unsafe=instance.unsafe[:1]), np.random.default_rng(0))
                seen += false is not None and exact.answer(false)[0] == "sat"
    assert seen


@pytest.mark.parametrize("name", PLANTS)
def test_plants_apply(name: str) -> None:
    assert applies(name) == ""


def test_a_wrong_answer_is_shrunk_and_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from campaign import judge as module

    monkeypatch.setattr(module, "check", lambda *args, **more: SimpleNamespace(accepted=False, reason="no"))
    instance = next(i for i in instances("dense", 40) if i.truth == "unsat" and i.distance > 1e-3)
    out = judge(instance, full=False)
    assert "proof rejected" in out.kinds
    small = shrink(instance, lambda i: "proof rejected" in judge(i, full=False).kinds, 2.0)
    assert sum(map(np.size, small.graph.tensors.values())) <= sum(map(np.size, instance.graph.tensors.values()))
    path = keep(small, judge(small, full=False), tmp_path)
    monkeypatch.undo()
    assert run_case(path).ok


def test_one_answers_for_a_seed() -> None:
    out = one(START)
    assert isinstance(out, Outcome) and out.seed == START


# -- mutants -----------------------------------------------------------------------------------------------------------


def test_mutants_of_proofs() -> None:
    claims = mutants.claims(2, 0)
    assert len({len(c.proof["trees"][0]["node"]) > 1 for c in claims}) == 2
    total = mutants.proof_block(claims, range(30))
    assert not mutants.bad(total), total
    assert total["true claim: accepted"] and total["true claim: rejected"] and total["true claim: malformed"]


def test_what_a_legal_end_is() -> None:
    assert mutants.legal(0, "unknown\n", "").startswith("status 0")
    assert mutants.legal(2, "", "mucg4: error: no\n").startswith("status 2")
    for status, out, err in ((0, "", ""), (3, "unknown", "x"), (-11, "", ""), (2, "", "a\nmucg4: error: b\n")):
        assert mutants.legal(status, out, err).startswith("ILLEGAL")


@pytest.mark.parametrize("kind", ["onnx", "vnnlib"])
def test_mutants_can_be_made(kind: str) -> None:
    seen: Counter[bool] = Counter()
    for k, (onnx, vnnlib) in enumerate(mutants.bases(0, 3) * 10):
        rng = np.random.default_rng(k)
        made = mutants.mutate_onnx(onnx, rng) if kind == "onnx" else mutants.mutate_vnnlib(vnnlib, rng)
        seen[made != (onnx if kind == "onnx" else vnnlib.encode())] += 1
        query_of(onnx, vnnlib)
    assert seen[True] > 25
