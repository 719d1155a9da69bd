"""Texts of many plain bounds: what is read in runs and in pieces means what is read form by form."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from mucg4.check import plain
from mucg4.check.contained import Comparison
from mucg4.check.property import covers
from mucg4.check.vnnlib import Reader, Refusal
from mucg4.check.vnnlib2 import Reader2, _Comparison2
from mucg4.check.vnnlib2 import covers as covers_declared
from mucg4.errors import InputError
from mucg4.limits.budget import Budget
from mucg4.model.decimals import Decimals, Plain, sides
from mucg4.model.query import Query, hull
from mucg4.read import runs
from mucg4.read.vnnlib import parse_vnnlib, to_cases
from mucg4.read.vnnlib2 import parse_query
from tests import queries
from tests.unit.check.test_property import network
from tests.unit.read.test_vnnlib import told

SHAPE = (2, 3, 7)
COUNT = 42


def quick(monkeypatch: pytest.MonkeyPatch, on: bool = True) -> None:
    """Short cuts in pieces so small that a text has many of them, or none at all."""
    monkeypatch.setattr(runs, "TEXT", 0)
    monkeypatch.setattr(runs, "LEAST", 2)
    monkeypatch.setattr(runs, "PAUSE", 40)
    monkeypatch.setattr(runs, "RUN", 700)
    monkeypatch.setattr(plain, "LARGE", 0 if on else 1 << 40)
    monkeypatch.setattr(plain, "PIECE", 500)


def number(rng: random.Random) -> str:
    """A number in one of the many ways of writing one."""
    value = rng.choice((rng.random(), rng.uniform(-3, 3), rng.uniform(-1e-3, 1e-3), float(np.float32(rng.random()))))
    return rng.choice(
        (
            *(repr(value),) * 6,
            *(f"{value:.{rng.randint(0, 25)}f}",) * 4,
            *("0", "1", "-1.0", "0.5", "-0.0", "+.25", "3.", "1e-3", "-2.5E+2", "7e22"),
            f"{value:.4e}",
            f"{rng.randint(-(10**25), 10**25)}",
            str(np.float32(value)),
        )
    )


def text_of(rng: random.Random, version: int) -> str:
    """Bounds of all inputs in some order, with repeats and odd forms in between; most of it in one plain form."""
    names = [f"X_{i}" for i in range(COUNT)]
    lines = [f"(declare-const {n} Real)" for n in [*names, "Y_0"]]
    if version == 2:
        names = [f"X[{','.join(str(int(k)) for k in np.unravel_index(i, SHAPE))}]" for i in range(COUNT)]
        shape = ",".join(map(str, SHAPE))
        lines = ["(vnnlib-version <2.0>)", f"(declare-network f (declare-input X Real [{shape}])"]
        lines += ["(declare-input Z Real [2]) (declare-output Y Real [1]))"]
        lines += ["(assert (>= Z[0] 0))", "(assert (<= Z[0] 1))", "(assert (>= Z[1] 0))", "(assert (<= Z[1] 1.5))"]
    for name in names if rng.random() < 0.7 else rng.sample(names, COUNT):
        a, b = sorted((number(rng), number(rng)), key=lambda t: Fraction(t))
        lines += [f"(assert (>= {name} {a}))", f"(assert (<= {name} {b}))"]
        if rng.random() < 0.1:
            lines.append(f"(assert ({rng.choice(('<=', '>='))} {name} {rng.choice((a, b, number(rng)))}))")
        if rng.random() < 0.1:
            lines.append(odd(rng, name, a, b, names))
    output = "Y[0]" if version == 2 else "Y_0"
    lines.append(f"(assert (or (<= {output} 0.5) (and (>= {output} 2) (<= {names[0]} 0.25))))")
    lines += [disjunction(rng, [*names, output]) for _ in range(3)]
    return "\n".join(lines) + "\n"


def odd(rng: random.Random, name: str, a: str, b: str, names: list[str]) -> str:
    return rng.choice(
        (
            f"( assert\t( <=  {name}\n {b} ) )  ",
            f"(assert(>= {name} {a})) ; (assert (<= {name} -9))",
            f"; a line (assert (<= {name} -9.0))",
            f"(assert (<= {name} (- 0.5)))" if rng.random() < 0.3 else f"(assert (<= {name} (- -0.5)))",
            f"(assert (>= {b} {name}))",
            f"(assert (< {name} {b}))",
            f"(assert (<= {name} {rng.choice(names)}))",
            f"(assert (and (<= {name} {b}) (>= {name} {a})))",
            f"(assert (<= (* 2.0 {name}) {b}))",
            "",
        )
    )


def disjunction(rng: random.Random, names: list[str]) -> str:
    """Comparisons in conjunctions or alone, most of them of words, with white space and comments here and there."""

    def word() -> str:
        return rng.choice(names) if rng.random() < 0.6 else number(rng)

    def atom() -> str:
        right = word() if rng.random() < 0.98 else f"(+ {word()} 1.0)"
        op = rng.choice(("<=", ">=", "<", ">") if rng.random() < 0.95 else ("==", "!="))
        return f"({op} {rng.choice(names)} {right})"

    def conjunction() -> str:
        gap = rng.choice((" ", "", "\n  ", "\t", " ; (or\n"))
        atoms = gap.join(atom() for _ in range(rng.randint(1, 4)))
        return atom() if rng.random() < 0.2 else f"(and{gap or ' '}{atoms}{gap})"

    return f"(assert (or {' '.join(conjunction() for _ in range(rng.randint(1, 6)))}))"


def damaged(rng: random.Random, text: str) -> str:
    junk = (
        "",
        "(",
        ")",
        " ",
        "0",
        "X_0",
        "Y",
        ";",
        '"',
        "|",
        "-",
        "e9",
        "or",
        "\x1c",
        "\u00a0",
        "]",
        ",",
        "X[0,0,0]",
        " true",
        " Q ",
    )
    for _ in range(rng.randint(0, 2)):
        at = rng.randrange(len(text))
        text = text[:at] + rng.choice(junk) + text[min(len(text), at + rng.randrange(6)) :]
    return text


def ended(rng: random.Random, text: str) -> str:
    """With an exit somewhere, which nothing may follow but what asks nothing."""
    lines = text.splitlines()
    at = rng.choice((rng.randrange(len(lines)), len(lines)))
    return "\n".join([*lines[:at], "(exit)", *lines[at:], rng.choice(("", "(check-sat)"))]) + "\n"


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("version", [1, 2])
def test_runs_mean_the_same(seed: int, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    text = damaged(rng, text_of(rng, version)) if seed % 2 else text_of(rng, version)
    text = ended(rng, text) if seed % 4 == 2 else text
    quick(monkeypatch)
    results = []
    for short_cuts in (True, False):
        try:
            if version == 1:
                prop = parse_vnnlib(text, short_cuts)
                boxes = [
                    (list(c.box.lower), list(c.box.upper), *c.box.stated, c.box.lo, c.box.hi) for c in to_cases(prop)
                ]
                results.append((told(prop), [[list(side) for side in box] for box in boxes]))
            else:
                parsed = parse_query(text, short_cuts)
                results.append((parsed.declared, dict(parsed.lower), dict(parsed.upper), parsed.assertions))
        except InputError as error:
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("version", [1, 2])
def test_nothing_is_asserted_after_the_exit(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By no way of reading, wherever it stands: an assertion that is left out would be one too few."""
    rng = random.Random(version)
    lines = text_of(rng, version).splitlines()
    first = next(k for k, line in enumerate(lines) if "X" in line and line.startswith("(assert"))
    for at in (first - 1, first, len(lines) // 2, len(lines) - 1):
        text = "\n".join([*lines[:at], "(exit)", *lines[at:]]) + "\n"
        for on in (True, False):
            quick(monkeypatch, on)
            with pytest.raises(InputError, match=r"after \(exit\)"):
                parse_vnnlib(text, on) if version == 1 else parse_query(text, on)
            reader = Reader(text, "float32") if version == 1 else Reader2(text, "float32")
            with pytest.raises(Refusal, match="follows the command exit"):
                reader.run(None)
    text = "\n".join([*lines, "(check-sat)", "(exit)", "(get-model)", ""])
    for on in (True, False):
        quick(monkeypatch, on)
        assert (parse_vnnlib(text, on) if version == 1 else parse_query(text, on)).assertions


@pytest.mark.parametrize("element_type", ["float32", "float64"])
@pytest.mark.parametrize("version", [1, 2])
def test_hashes_do_not_depend_on_the_way_of_reading(version: int, element_type: str, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    text = text_of(random.Random(5), version)
    quick(monkeypatch)
    made = []
    for short in (0, 1 << 40):
        monkeypatch.setattr(runs, "TEXT", short)
        if version == 2:
            made.append(queries.query_of(text, element_type))
        else:
            made.append(Query((network(COUNT, 1),), to_cases(parse_vnnlib(text)), text=text))
    assert made[0].property_hash == made[1].property_hash
    check = covers if version == 1 else covers_declared
    for query in made:
        for on in (True, False):
            quick(monkeypatch, on)
            assert check(text, query) is None


@pytest.mark.parametrize("element_type", ["float16", "float32", "float64"])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("version", [1, 2])
def test_pieces_mean_the_same(seed: int, version: int, element_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    text = damaged(rng, text_of(rng, version)) if seed % 2 else text_of(rng, version)
    text = ended(rng, text) if seed % 8 == 2 else text
    query = Query((network(COUNT + 2 * (version == 2), 1),), ())
    found, taken = [], []
    for on in (True, False):
        quick(monkeypatch, on)
        reader = Reader(text, element_type) if version == 1 else Reader2(text, element_type)
        try:
            with np.errstate(all="ignore"):
                reader.run(Budget())
        except (Refusal, OverflowError) as error:
            found.append((type(error), str(error)))
            continue
        taken.append(reader.sides.count)
        comparison = (Comparison if version == 1 else _Comparison2)(reader, query, Budget())
        comparison.common = plain_part(reader)
        ends, open_ = comparison.common_sides()
        found.append((ends.tolist(), open_.tolist(), len(reader.factors), sorted(reader.named)))
        x = (ends[0], ends[1], ends.mean(axis=0))[seed // 2 % 3]
        found[-1] += (reader.denied(np.nan_to_num(x), lambda row: True),)
    assert found[0] == found[1]
    if not seed % 2 and "(exit)" not in text:
        assert taken[0] > 0 == taken[1]


def plain_part(reader: Reader):  # type: ignore[no-untyped-def]
    from mucg4.check.contained import part_of

    return part_of(reader.atoms)


def test_a_wrong_piece_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query of another text is not covered, whichever bound is another one."""
    rng = random.Random(3)
    lines = [f"(declare-const X_{i} Real)" for i in range(COUNT)] + ["(declare-const Y_0 Real)"]
    for i in range(COUNT):
        lines += [f"(assert (>= X_{i} {rng.random() - 2!r}))", f"(assert (<= X_{i} {rng.random() + 1!r}))"]
    lines += ["(assert (<= Y_0 0.5))", ""]
    quick(monkeypatch)
    query = Query((network(COUNT, 1),), to_cases(parse_vnnlib("\n".join(lines))), text="")
    assert covers("\n".join(lines), query) is None
    for k in rng.sample([k for k, line in enumerate(lines) if "(assert (>= X_" in line], 12):
        words = lines[k].split()
        wider = math.nextafter(float(np.float32(words[3].rstrip(")"))) - 1e-7, -math.inf)
        changed = [*lines[:k], f"{' '.join(words[:3])} {wider!r}))", *lines[k + 1 :]]
        assert covers("\n".join(changed), query) is not None


# --- numbers ---------------------------------------------------------------------------------------------------


def test_sides_of_decimals_are_exact() -> None:
    rng = random.Random(0)
    pairs = [
        (rng.randint(-(10 ** rng.randint(1, 18)), 10 ** rng.randint(1, 18)), rng.randint(0, 19)) for _ in range(4000)
    ]
    pairs += [(int(f"{rng.random():.17f}".replace(".", "")), 17) for _ in range(4000)]
    pairs += [(int(float(f"{rng.random():.9f}") * 2**40), 12) for _ in range(200)] + [(5 * 10**17, 18), (0, 3)]
    mantissa, places = (np.array(v, dtype=np.int64) for v in zip(*pairs, strict=True))
    values = [Fraction(m, 10**k) for m, k in pairs]
    near = np.array([float(v) for v in values])
    decimals = Decimals(near, mantissa, places)
    assert list(decimals) == values and decimals[:3] == tuple(values[:3]) and decimals[-1] == values[-1]
    assert decimals.texts() == [str(v) for v in values]
    exact = [(Fraction(d) > v) - (Fraction(d) < v) for d, v in zip(near.tolist(), values, strict=True)]
    assert sides(near, mantissa, places).tolist() == exact
    for sign in (-1, 1):
        for element_type in ("float16", "float32", "float64"):
            assert np.array_equal(hull(decimals, sign, element_type), hull(values, sign, element_type))


@pytest.mark.parametrize("upper", [False, True])
def test_the_tightest_bound_is_kept(upper: bool) -> None:
    rng = random.Random(upper)
    side = Plain(upper)
    stated: dict[int, Fraction] = {}
    for _ in range(60):
        count = rng.randint(1, 12)
        inputs = [rng.randrange(30) for _ in range(count)]
        words = [rng.choice(("0.5", "0.50", "0.1", "0.10000000000000001", "1e-1", number(rng))) for _ in range(count)]
        found = runs.numbers_of(words, Fraction)
        assert found is not None
        some = side if upper else Plain(True), side if not upper else Plain(False)
        runs.put((some[1], some[0]), np.array(inputs), ["<=" if upper else ">="] * count, found)
        for i, w in zip(inputs, words, strict=True):
            value = Fraction(w)
            stated[i] = (min if upper else max)(value, stated.get(i, value))
        if rng.random() < 0.2:
            i, value = rng.randrange(30), Fraction(number(rng))
            side.tighten(i, value)
            stated[i] = (min if upper else max)(value, stated.get(i, value))
    assert dict(side) == stated and len(side) == len(stated)
    assert side.missing(30) == [i for i in range(30) if i not in stated]
    full = side.decimals(30, {i: Fraction(1, 3) for i in side.missing(30)})
    assert list(full) == [stated.get(i, Fraction(1, 3)) for i in range(30)]
    assert full.near.tolist() == [float(v) for v in full]
