"""Lists of methods: ranges, families, and the order from mild to hard."""

from __future__ import annotations

import pytest

from mucg4.errors import InputError
from mucg4.lab.methods import methods_of


def names(*texts: str) -> str:
    return " ".join(m.name for m in methods_of(texts))


def test_ranges_count_in_the_steps_of_their_family() -> None:
    assert names("prune10..60") == "prune10 prune20 prune30 prune40 prune50 prune60"
    assert names("neurons5..20") == "neurons5 neurons10 neurons15 neurons20"
    assert names("int8..4") == "int8 int6 int4"
    assert names("prune2.5..10/2.5") == "prune2.5 prune5 prune7.5 prune10"
    assert names("prune10..19") == "prune10"


def test_families_go_from_mild_to_hard_in_the_order_they_are_named() -> None:
    assert names("prune30,int4,permute,bf16,qdq8,int8,prune10,fp16,tune2,tune4,int6") == (
        "prune10 prune30 fp16 bf16 qdq8 int8 int6 int4 permute tune4 tune2"
    )
    assert names("prune10+int8,int4,int8") == "prune10+int8 int8 int4"
    assert [m.family for m in methods_of(["prune10+int8,int8"])] == ["", "width"]
    assert names("fp16 fp16,prune10..20", "prune20") == "fp16 prune10 prune20"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "int7x",
        "prune10..",
        "..",
        "prune10..200",
        "prune1..60/0",
        "prune1..9/0.001",
        "int8+",
        "int8+x",
        "fp16..8",
        "no1..2",
    ],
)
def test_what_is_no_list_is_bad_input(text: str) -> None:
    with pytest.raises(InputError) as caught:
        methods_of([text])
    assert "\n" not in str(caught.value)
