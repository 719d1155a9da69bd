"""The reader against onnxruntime: a slice of `python -m tests.opdiff`, and that every entry of its table is covered."""

from __future__ import annotations

import random

import onnx
import pytest
from opdiff import chains
from opdiff.compare import COVERS, Tally, make, targets

from mucg4.read.table import TABLE


def test_every_operator_of_the_table_has_a_generator():
    assert {row.op for row in TABLE} == set(COVERS)


def test_rows_of_one_operator_do_not_overlap():
    for row in TABLE:
        others = [r for r in TABLE if r.op == row.op and r is not row]
        assert all(r.opsets[1] < row.opsets[0] or row.opsets[1] < r.opsets[0] for r in others), row
        assert row.variable or row.constant, row


@pytest.mark.parametrize("part", range(4))
def test_every_entry_is_compared_with_onnxruntime(part):
    """Each row, on variables and on constants, for each element type: one model that is read and runs, and agrees."""
    tally = Tally()
    for target in targets()[part::4]:
        chance = random.Random(repr((str(target[0]), *target[1:])))
        for _ in range(30):
            tally.judge(make(chance, target), target, chance)
            if tally.compared[target]:
                break
        assert tally.compared[target], f"{target[0]} {target[1:]} was never compared"
    assert not tally.faults, tally.faults[0]


@pytest.mark.parametrize("generator", chains.GENERATORS, ids=lambda g: g.__name__)
def test_chains_agree_with_onnxruntime(generator):
    tally, chance = Tally(), random.Random(generator.__name__)
    for _ in range(25):
        tally.judge(make(chance, None, generator), None, chance)
    assert not tally.faults, tally.faults[0]
    assert tally.counts["compared"] > 10


def test_every_attribute_and_every_stated_value_is_generated():
    for row in TABLE:
        seen: dict[str, set[str]] = {name: set() for name in row.attributes}
        for variable, kinds in ((True, row.variable), (False, row.constant)):
            for k in range(120 if kinds and row.attributes else 0):
                chance = random.Random(f"{row} {variable} {k}")
                model = onnx.load_model_from_string(make(chance, (row, variable, kinds[k % len(kinds)])).data)
                for node in model.graph.node:
                    for a in node.attribute if node.op_type == row.op.rpartition("::")[2] else ():
                        value = onnx.helper.get_attribute_value(a)
                        seen.get(a.name, set()).add(value.decode() if isinstance(value, bytes) else str(value))
        for name, rule in row.attributes.items():
            assert seen[name], f"{row}: attribute {name} is never generated"
            if " | " in rule.text:
                assert set(rule.text.split(" | ")) <= seen[name], f"{row}: {name} {rule.text}, generated {seen[name]}"
