"""The recipes of CONTRIBUTING, each followed as it is written; what it promises has to happen."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from effort import effort
from examples import dense, text
from repo.graph import ROOT
from repo.options import settings_without_row, unread_settings

from mucg4.check.walk import check
from mucg4.cli.main import main
from mucg4.errors import UnsupportedError
from mucg4.gate.runtime import Runtime
from mucg4.model.network import Network
from mucg4.model.proof import Proof
from mucg4.model.query import Box, Case, Conjunction, Query
from mucg4.model.verdict import Safe, Statistics
from mucg4.read.case import save_case
from mucg4.read.instance import query_of
from mucg4.read.onnx import read_network
from mucg4.records import dataclass
from mucg4.settings import Settings
from mucg4.verify import verify

QUICK = Settings(workers=1)


# -- an operator ---------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
SHRUNK = [(RNG.normal(size=(6, 2)), RNG.normal(size=6)), (RNG.normal(size=(1, 6)), [0.1])]


def shrinking_query(threshold: float) -> Query:
    """`y >= threshold` behind a soft threshold, ONNX's Shrink with equal factors, which mucg4 is made to forget."""
    net = dense(SHRUNK, "Shrink", lambd=0.5, bias=0.5)
    return query_of(net, text([(-1, 1), (-1, 1)], 1, f"(>= Y_0 {threshold})"))


def largest_output() -> float:
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), axis=-1).reshape(-1, 2)
    (w, b), (v, c) = ((np.asarray(a, dtype=np.float32) for a in layer) for layer in SHRUNK)
    z = grid @ w.T + b
    return float((np.sign(z) * np.maximum(abs(z) - 0.5, 0) @ v.T + c).max())


def add_to_the_reader(patch: pytest.MonkeyPatch) -> None:
    from mucg4.read import functions, onnx, table
    from mucg4.read.constant import number
    from mucg4.read.operators import variable

    def shrink(b, node, values):
        size = number(node.attributes["lambd"])
        x = variable(node, values)
        sides = [b.relu(b.combine(side, size, -1.0)) for side in (x, b.negate(x))]
        return [b.combine(*sides, -1.0)]

    patch.setitem(functions.FUNCTION_HANDLERS, "Shrink", shrink)
    patch.setitem(onnx.ALL_HANDLERS, "Shrink", shrink)
    half = table.Rule("float", lambda v: v == 0.5, "0.5")
    row = table.Row("Shrink", (9, table.NEWEST), (1, 1), table.SINGLE, (), {"lambd": half, "bias": half})
    patch.setitem(table._BY_NAME, "Shrink", (row,))


def add_to_the_checker(patch: pytest.MonkeyPatch) -> None:
    from mucg4.check import reading
    from mucg4.check.moves import given
    from mucg4.check.values import replace

    def meaning(r, node, xs):
        x = given(xs, 0)
        size, zero = r.n.number(node.attributes["lambd"], x), r.n.number(0.0, x)
        sides = [r.n.extremum(r.n.add(side, size, -1), zero, True) for side in (x, replace(x, v=-x.v))]
        return [r.n.add(*sides, -1)]

    patch.setitem(reading.TABLE, "Shrink", (meaning, "lambd bias"))


def test_a_piecewise_linear_operator(monkeypatch):
    from mucg4.check import reading
    from mucg4.read import onnx, table

    for known in (table._BY_NAME, onnx.ALL_HANDLERS, reading.TABLE):
        monkeypatch.delitem(known, "Shrink")
    with pytest.raises(UnsupportedError, match="Shrink"):
        shrinking_query(0.0)
    add_to_the_reader(monkeypatch)
    top = largest_output()
    assert verify(shrinking_query(top - 1e-3), QUICK).word == "sat"
    alone = verify(shrinking_query(top + 1e-2), QUICK)
    assert alone.word == "unsat" and any("Shrink" in part for part in alone.statistics.fallback)
    add_to_the_checker(monkeypatch)
    both = verify(shrinking_query(top + 1e-2), QUICK)
    assert isinstance(both, Safe) and both.checked and not both.statistics.fallback


# -- a splitting heuristic -----------------------------------------------------------------------------------------


def hard_query() -> Query:
    rng = np.random.default_rng(5)
    sizes = (2, 10, 10, 1)
    layers = [(rng.normal(size=(m, n)), rng.normal(size=m)) for n, m in zip(sizes, sizes[1:], strict=False)]
    h = np.stack(np.meshgrid(*[np.linspace(-1, 1, 201)] * 2), axis=-1).reshape(-1, 2)
    for w, b in layers[:-1]:
        h = np.maximum(h @ w.T + b, 0)
    top = float((h @ layers[-1][0].T + layers[-1][1]).max())
    return query_of(dense(layers), text([(-1, 1)] * 2, 1, f"(>= Y_0 {top + 0.2})"))


def widest_input(bounder, regions, *rest):
    from mucg4.search.split import Literals

    lo, hi = np.asarray(regions.lo), np.asarray(regions.hi)
    pick, every = (hi - lo).argmax(axis=1), np.arange(len(lo))
    return Literals(0 * pick.astype(np.int32), pick.astype(np.int32), ((lo + hi) / 2)[every, pick], np.ones(len(pick)))


def first_open_neuron(found, direct):
    from mucg4.ops.arrays import NUMPY
    from mucg4.search.split import Literals, locate

    unstable = found.lines.on(NUMPY).unstable
    node, index = locate(found.reduced.bounder, found.reduced.positions[unstable.argmax(axis=1)])
    node, zero = np.where(unstable.any(axis=1), node, -1), np.zeros(len(unstable))
    return Literals(node.astype(np.int32), index.astype(np.int32), zero, zero + 1.0)


@pytest.mark.parametrize(
    ("way", "place", "heuristic"),
    [
        ("input", "mucg4.search.inputs.split_input", widest_input),
        ("phase", "mucg4.search.phases.strong_branching", first_open_neuron),
    ],
)
def test_a_splitting_heuristic(monkeypatch, way, place, heuristic):
    """A poorer choice than the usual one: the loop takes it, and the verdict stays."""
    asked = []

    def counted(*given):
        asked.append(1)
        return heuristic(*given)

    query, settings = hard_query(), Settings(workers=1, split=way, attack=False)
    before = verify(query, settings)
    monkeypatch.setattr(place, counted)
    after = verify(query, settings)
    assert asked and isinstance(before, Safe) and isinstance(after, Safe) and after.checked
    assert after.statistics.regions != before.statistics.regions > 2


# -- a way of splitting --------------------------------------------------------------------------------------------


def test_a_way_of_splitting():
    """Bounds of input splits, and halves of the widest input: the loop takes it, workers and statistics included."""
    from mucg4.search.inputs import InputWay
    from mucg4.search.parallel import drive
    from mucg4.search.run import Run, new_search, open_case, root_work
    from mucg4.search.split import split_widest
    from mucg4.search.way import Kept

    class WidestWay(InputWay):
        name = "widest"

        def split(self, found):
            widest = split_widest(self.context.bounder, found.work.regions)
            return Kept(found.work, np.flatnonzero(found.alive), found.value, widest)

    query = hard_query()
    run = Run(query, QUICK, effort(), Statistics(), Runtime(query.network))
    state = open_case(run, 0).by(WidestWay)
    search = new_search(run, state, None)
    search.begin(root_work(state, np.ones(1, dtype=bool)))
    assert drive([search], workers=2) is None and not search.is_open and run.statistics.regions > 1
    proof = Proof(query.network.fingerprint, query.property_hash, (search.recorder.tree(),))
    assert check(proof, query).accepted


# -- a reuse rung --------------------------------------------------------------------------------------------------


def test_a_reuse_rung(monkeypatch):
    """What a rung closes of the open regions is in the recorder, and the checker goes on from there."""
    from mucg4.evidence import Established
    from mucg4.reuse import replay
    from mucg4.search.run import Run

    begin = replay.Part.begin

    def single_rows(part):
        begin(part)
        search = part.search
        search.close_single_constraints(search.pending)
        search.forget(np.zeros(len(part.mask), dtype=bool))
        left.append(0 if search.pending is None else len(search.pending.ids))

    query, settings, left = hard_query(), Settings(workers=1, split="input", attack=False), []
    stored = verify(query, settings)
    assert isinstance(stored, Safe)
    box = Box((Fraction(-1, 4),) * 2, (Fraction(1, 4),) * 2)  # where single rows are enough
    query = replace(query, cases=(replace(query.cases[0], box=box),), text="")
    monkeypatch.setattr(replay.Part, "begin", single_rows)
    run = Run(query, settings, effort(), Statistics(), Runtime(query.network))
    (tree,) = stored.proof.trees
    found = replay.replay_all(run, [replace(tree, refutations=(), clip=np.zeros(len(tree), dtype=bool))])
    assert isinstance(found, Established), run.statistics.warnings
    assert left[0] < found.examined.report.failed
    assert found.examined.go_on(found.trees, effort()).accepted


# -- a setting -----------------------------------------------------------------------------------------------------


def test_a_setting(monkeypatch):
    """The option follows; what is still missing is told."""
    from mucg4 import settings as module
    from mucg4.cli import options

    @dataclass(frozen=True)
    class Wider(Settings):
        patience: int = module._option(3, "how often an example is tried", low=0)

    monkeypatch.setattr(options, "Settings", Wider)
    parser = options.make_parser()
    chosen = options.settings_of(parser.parse_args(["verify", "net.onnx", "prop.vnnlib", "--patience", "7"]))
    assert chosen.patience == 7
    assert settings_without_row(Wider) == ["--patience"] and unread_settings(Wider) == ["patience"]


# -- an input format -----------------------------------------------------------------------------------------------


def read_toy(data: bytes, network: Network) -> Query:
    """A format of its own: `{"low": [...], "high": [...], "above": number}` for networks with one output."""
    record = json.loads(data)
    lower, upper = (tuple(map(Fraction, record[key])) for key in ("low", "high"))
    row = {}, {0: Fraction(-1)}, Fraction(record["above"]), False
    return Query((network,), (Case(Box(lower, upper), (Conjunction.build([row], len(lower), 1),)),))


@pytest.mark.parametrize(("above", "word"), [(1.9, "sat"), (2.1, "unsat")])
def test_an_input_format(above, word):
    network = read_network(dense([([[1, 1], [1, -1]], [0, 0]), ([[1, 1]], [0])]))
    query = read_toy(json.dumps({"low": [-1, -1], "high": [1, 1], "above": above}).encode(), network)
    assert verify(query, QUICK).word == word


# -- a failing case ------------------------------------------------------------------------------------------------


def test_a_failing_case(tmp_path, capsys):
    from mucg4.cli.main import main

    layers, prop = [([[1.0, 1.0]], [0.0])], text([(-1, 1)] * 2, 1, "(>= Y_0 2.5)")
    for name, expected in (("right", "unsat"), ("wrong", "sat")):
        save_case(tmp_path / f"{name}.json", layers, prop, kind="example", expected=expected)
    assert main(["case", str(tmp_path / "right.json")]) == 0
    assert main(["case", str(tmp_path / "wrong.json")]) == 1


# -- the README's run by minimal unsat cores -----------------------------------------------------------------------


def test_the_run_by_cores(monkeypatch, tmp_path, capsys):
    """The commands as the README has them, in its folder; the same lines come, but for the figures in them."""
    pytest.importorskip("z3")
    found = re.search(r"<!-- cores-run -->\n```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    monkeypatch.chdir(ROOT / "instances" / "small")
    shares = []
    for block in found.group(1).split("$ mucg4 ")[1:]:
        command, *lines = block.replace("cores.sqlite", str(tmp_path / "cores.sqlite")).splitlines()
        assert main([*command.split(), "--workers", "1"]) == 0
        out, err = capsys.readouterr()
        said = [*err.splitlines(), *out.splitlines()]
        assert [re.sub(r"\d+", "N", line) for line in said] == [re.sub(r"\d+", "N", line) for line in lines]
        shares += [tuple(map(int, re.findall(r"\d+", line))) for line in said if line.startswith("cores")]
    ((held, offered),) = shares
    assert offered / 2 < held <= offered
