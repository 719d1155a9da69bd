"""The options of every command. Those of `verify` and `bench` come from the settings record."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from mucg4 import __version__
from mucg4.cli.streams import say
from mucg4.settings import Settings

STORE_HELP = "SQLite file of stored proofs, or off (default: MUCG4_STORE, else a file in the user's cache folder)"
OWN_TO_BENCH = ("timeout", "memory")  # settings that `bench` gives its children row by row


class _Parser(argparse.ArgumentParser):
    """A parser that gets its options when it is used: a run uses one command of six."""

    def __init__(self, *, fill: Callable[[_Parser], None] | None = None, **named: Any) -> None:
        super().__init__(formatter_class=_formatter, **named)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._fill is not None:
            self._fill(self)
            self._fill = None
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        say(f"mucg4: error: {message}")
        sys.exit(2)


def _formatter(prog: str) -> argparse.HelpFormatter:
    """The usual one. The standard library asks `shutil` for the width, which loads three compression libraries."""
    try:
        columns = int(os.environ.get("COLUMNS", "")) or os.get_terminal_size().columns
    except (ValueError, OSError):  # no number, no terminal
        columns = 0
    return argparse.HelpFormatter(prog, width=(columns or 80) - 2)


def _amount(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number (without a unit): {text}") from None
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"not a number from 0 up: {text}")
    return value


def _whole(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings among the options. Raises `InputError`."""
    return Settings(**{f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)})


def _add_settings(parser: argparse.ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """One option per field of `Settings`."""
    group = parser.add_argument_group("settings")
    for f in fields(Settings):
        if f.name in skip:
            continue
        name, text = "--" + f.name.replace("_", "-"), f.metadata["help"].replace("%", "%%")
        if isinstance(f.default, bool):
            text += f" (default: {'on' if f.default else 'off'})"
            group.add_argument(name, action=argparse.BooleanOptionalAction, default=f.default, help=text)
        elif f.metadata["choices"]:
            text += f" (default: {f.default or 'none'})"
            choices = [c for c in f.metadata["choices"] if c]
            group.add_argument(name, choices=choices, default=f.default, help=text)
        else:
            text += "" if f.default is None else f" (default: {f.default})"
            kind = type(f.default) if f.default is not None else _amount
            group.add_argument(name, type=kind, default=f.default, help=text, metavar=f.metadata["unit"])


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    """`[NAME=]N,N,...`: the shape of an input of the network."""
    name, _, sizes = text.rpartition("=")
    try:
        shape = tuple(int(n) for n in sizes.strip("[]() ").replace("x", ",").split(",") if n.strip())
    except ValueError:
        shape = (0,)
    if min(shape, default=1) < 1:
        raise argparse.ArgumentTypeError(f"not a shape like 1,3,32,32 or NAME=1,3,32,32: {text}")
    return name, shape


NETWORK_HELP = """ONNX file; .gz is accepted. For a VNN-LIB 2.0 query of several networks all of them, with their names:
"[('f', 'a.onnx'), ('g', 'b.onnx')]\""""


def _add_shape(p: argparse.ArgumentParser) -> None:
    text = "shape of an input whose sizes the network leaves open; once for each such input"
    p.add_argument("--shape", type=_shape, action="append", default=[], metavar="[NAME=]N,N,...", help=text)


def _add_limits(p: argparse.ArgumentParser) -> None:
    """Time and memory of a command other than `verify`, whose settings hold them."""
    p.add_argument("--timeout", type=_amount, metavar="S", help="give up after S seconds")
    text = "memory of the command in GiB (default: 80 % of what is free)".replace("%", "%%")
    p.add_argument("--memory", type=_amount, metavar="GiB", help=text)


def _add_files(p: argparse.ArgumentParser) -> None:
    """What a run writes besides its answer."""
    p.add_argument("--json", type=Path, metavar="FILE", help="write the run record")
    p.add_argument("--proof", type=Path, metavar="FILE", help="write the proof of an unsat verdict; .gz compresses it")
    text = "put the network and the property into the --proof file too, so that recertify needs nothing else"
    p.add_argument("--proof-network", action="store_true", help=text)
    text = """go on from this file where it exists; write it now and then, and when the run ends undecided; remove it
    when the run has decided"""
    p.add_argument("--checkpoint", type=Path, metavar="FILE", help=text)
    p.add_argument("--verbose", "-v", action="store_true", help="progress on stderr")


def _add_verify(p: argparse.ArgumentParser) -> None:
    p.add_argument("paths", nargs="+", metavar="NET PROP", help="ONNX file and VNN-LIB file; .gz is accepted")
    text = "the model of a declared network, with a VNN-LIB 2.0 query as the only path; once for each"
    p.add_argument("--network", action="append", metavar="NAME=NET", help=text)
    text = "write the values of a sat answer to a 2.0 query as ONNX tensors into this folder, instead of printing them"
    p.add_argument("--serialise-assignments", type=Path, metavar="DIR", help=text)
    _add_shape(p)
    p.add_argument("--store", metavar="PATH|off", help=STORE_HELP)
    _add_files(p)
    p.add_argument("--result", type=Path, metavar="FILE", help="write the competition's result file")
    p.add_argument("--started", type=float, metavar="EPOCH", help="moment the timeout counts from (seconds)")
    p.add_argument("--headroom", type=_amount, default=0.0, metavar="S", help="leave S seconds before the timeout")
    p.add_argument("--caller", type=int, metavar="PID", help="end without a word when this process ends")
    _add_settings(p)


def _add_bench(p: argparse.ArgumentParser) -> None:
    text = """folder with instances.csv, or the list itself; may be missing with --compare, and be several with
    --reuse-report"""
    p.add_argument("sources", type=Path, nargs="*", metavar="DIR|CSV", help=text)
    text = """where results go (default: bench-out/<name of the folder>, without one bench-out/compare, for the report
    on reuse bench-out/reuse)"""
    p.add_argument("--out", type=Path, metavar="DIR", help=text)
    p.add_argument("--store", default=None, metavar="PATH|off|fresh", help=STORE_HELP + "; fresh: a new one in --out")
    p.add_argument("--with-scratch", action="store_true", help="run each row also with the store off, and compare")
    text = "run the list with both engines, each with a fresh store and from scratch, and compare what they reuse"
    p.add_argument("--engines", action="store_true", help=text)
    p.add_argument("--rows", metavar="A:B", help="only these rows of the list (Python slice)")
    p.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    p.add_argument("--first-per-network", type=int, metavar="N", help="only the first N rows of each network")
    p.add_argument("--timeout-cap", type=_amount, metavar="S", help="cut longer timeouts to S seconds")
    text = "memory limit of a row (default: as for verify, divided by --jobs)"
    p.add_argument("--memory", type=_amount, metavar="GiB", help=text)
    text = "rows run at the same time, sharing the cores (default: 1)"
    p.add_argument("--jobs", type=int, default=1, metavar="N", help=text)
    text = "re-check proofs with the independent checker; S: only of rows that took under S seconds"
    p.add_argument("--check", type=_amount, nargs="?", const=float("inf"), metavar="S", help=text)
    _add_compare(p)
    _add_reuse_report(p)
    text = "continue an interrupted run in --out (default: on)"
    p.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True, help=text)
    _add_settings(p, skip=OWN_TO_BENCH)


def _add_compare(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("comparison with other tools, from result files only")
    text = """result files: the official layout, results of mucg4 bench, or a list with a header. With DIR: compared
    with this run after it, on its rows and timeouts. Without: with each other, nothing is run; the first is the one
    the others are held against. NAME names the tool (default: the file's name, for results.csv its folder's)"""
    group.add_argument("--compare", nargs="+", metavar="[NAME=]FILE", help=text)
    text = """without DIR: benchmark folders, or folders of such, whose instances.csv and expected.csv give the timeouts
    and known answers"""
    group.add_argument("--benchmarks", nargs="+", type=Path, metavar="DIR", help=text)
    text = "draw pictures of the comparison; needs matplotlib (default: on)"
    group.add_argument("--plots", action=argparse.BooleanOptionalAction, default=True, help=text)


def _add_reuse_report(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("report on reuse: what stored proofs gain on compressed variants")
    text = """solve the parents of the lists' variants into an empty store (--store PATH: they are in that one), run
    every variant with a copy of it and from scratch, and report. --rows, --limit and --first-per-network choose among
    the variants' rows. What is a variant say manifest.csv (onnx,parent,method), else names like parent~method.onnx"""
    group.add_argument("--reuse-report", action="store_true", help=text)
    text = "how often each row runs both ways (default: 1); medians over these count"
    group.add_argument("--pairs", type=_whole, default=1, metavar="N", help=text)
    text = "seconds for each row of a parent (default: as the list says)"
    group.add_argument("--parents-timeout", type=_amount, metavar="S", help=text)
    text = "compact the parents' proofs, S seconds each, as `mucg4 store compact --effort S`"
    group.add_argument("--compact-effort", type=_amount, metavar="S", help=text)
    text = """run each row also with less reuse (structure only, + duals, + ascent), from proofs that are not compacted;
    those of the report are (--compact-effort, default here: 60); N: only in the first N pairs"""
    group.add_argument("--ablation", type=_whole, nargs="?", default=0, const=sys.maxsize, metavar="N", help=text)
    text = "let the variants of a pair share one store, so that later ones borrow from earlier ones"
    group.add_argument("--accumulate", action="store_true", help=text)
    text = "bands of the seconds from scratch in which rows are counted (default: %(default)s)"
    group.add_argument("--bands", default="6:,2:6,2:,1:,0:", metavar="A:B,A:,...", help=text)
    text = "methods to be counted together, over all lists; once for each such line"
    group.add_argument("--group", action="append", metavar="METHOD,METHOD,...", help=text)


def _add_store(p: argparse.ArgumentParser) -> None:
    p.add_argument("--store", metavar="PATH", help=STORE_HELP)
    _add_limits(p)
    actions = p.add_subparsers(dest="action", required=True, metavar="list|show|compact|gc|clear|scale")
    actions.add_parser("list", help="one line per stored result")
    show = actions.add_parser("show", help="all about one stored result")
    show.add_argument("key", help="its key or the start of it")
    text = "make a stored proof hold on more compressed variants, in fewer steps"
    compact = actions.add_parser("compact", help=text)
    _add_instance(compact)
    text = "seconds to spend (default: 60); of a --timeout 40 %% are kept for the check"
    compact.add_argument("--effort", type=_amount, default=60.0, metavar="S", help=text)
    actions.add_parser("gc", help="evict down to the size limit and give the file's free pages back")
    actions.add_parser("clear", help="forget everything")
    scale = actions.add_parser("scale", help="fill a store of its own with made-up results and time it (CPU)")
    scale.add_argument("results", type=_whole, help="how many results, 10000 for example")
    scale.add_argument(
        "--limit", type=_whole, default=512, metavar="MIB", help="size of that store (default: %(default)s)"
    )


def _add_instance(p: argparse.ArgumentParser) -> None:
    p.add_argument("onnx", metavar="NET", help=NETWORK_HELP)
    p.add_argument("vnnlib", metavar="PROP", help="VNN-LIB file; .gz is accepted")
    _add_shape(p)


def _add_check(p: argparse.ArgumentParser) -> None:
    _add_instance(p)
    p.add_argument("proof", type=Path, metavar="PROOF")
    _add_limits(p)
    p.add_argument("--exact", action="store_true", help="integer arithmetic throughout: small ReLU networks, slower")


def _add_explain(p: argparse.ArgumentParser) -> None:
    _add_instance(p)
    p.add_argument("--store", metavar="PATH", help=STORE_HELP)
    p.add_argument("--proof", type=Path, metavar="FILE", help="a proof file instead of the stored proof")
    text = "draw how the leaves cover the box, as PNG, SVG or PDF by the name's ending; needs matplotlib"
    p.add_argument("--plot", type=Path, metavar="FILE", help=text)
    _add_limits(p)


def _add_case(p: argparse.ArgumentParser) -> None:
    p.add_argument("files", type=Path, nargs="+", metavar="FILE")
    _add_limits(p)


def _add_compress(p: argparse.ArgumentParser) -> None:
    p.add_argument("network", type=Path, metavar="NET")
    p.add_argument(
        "--method", required=True, help="fp16, bf16, int8, int6, qdq8, prune30, neurons10, tune3, permute, ..."
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    _add_limits(p)


def _add_recertify(p: argparse.ArgumentParser) -> None:
    p.description = """Verify a variant of a network with proofs that were made elsewhere: verify without a store. What
    the proofs say is re-established on the variant and checked, only what stays open is searched; a variant for which
    they are of no use is verified from scratch. Prints the verdict as verify does, then what was reused."""
    p.epilog = """example: mucg4 verify net.onnx p.vnnlib --proof p.json.gz --proof-network, once; then for each
    release: mucg4 recertify net-int8.onnx p.vnnlib --from p.json.gz --require unsat --timeout 60"""
    # one by one: argparse cannot print the help of a positional that has a name for each of its values
    p.add_argument("paths", action="append", metavar="VARIANT", help="ONNX file; .gz is accepted")
    p.add_argument("paths", action="append", metavar="PROP", help="VNN-LIB file; .gz is accepted")
    text = "a proof file that verify wrote (--proof), or a folder of such; once for each"
    p.add_argument("--from", dest="sources", type=Path, action="append", required=True, metavar="FILE|DIR", help=text)
    text = """the network that a proof is about, where the proof file does not hold it (--proof-network); once for each.
    Without it neurons are taken by their places, which suits variants of the same structure"""
    p.add_argument("--parent", action="append", default=[], metavar="NET", help=text)
    text = "exit with status 1 unless this is the verdict"
    p.add_argument("--require", choices=("unsat", "sat"), help=text)
    _add_shape(p)
    _add_files(p)
    _add_settings(p)
    p.set_defaults(network=None, serialise_assignments=None, store=None, result=None)
    p.set_defaults(started=None, headroom=0.0, caller=None)


def _add_sweep(p: argparse.ArgumentParser) -> None:
    p.description = """Make variants of a network by compression methods and verify all of them under each property,
    from one store: the network itself first, then every family of methods from mild to hard. Prints a row per run and,
    per property, how far each family is proved."""
    p.epilog = """example: mucg4 sweep net.onnx prop_*.vnnlib --methods fp16,int8,int6,int4,prune10..60,neurons5..20
    --timeout 60 --csv sweep.csv --plot sweep.png"""
    p.add_argument("network", metavar="NET", help="ONNX file")
    p.add_argument("properties", nargs="+", metavar="PROP", help="VNN-LIB file")
    text = """what to make, a list like fp16,int8,prune10..60: fp16 bf16 qdq8 intN (N bits per tensor) pruneN neuronsN
    zeroedN (N percent) tuneN (noise of 1e-N) permute reserialise; A..B counts in steps of the family (prune 10, neurons
    and zeroed 5, int 2, tune 1), A..B/S in steps of S"""
    p.add_argument("--methods", required=True, metavar="LIST", help=text)
    text = """leave out the harder methods of a family after N in a row that are not proved; their rows say `not run`
    (default: 0, run all)"""
    p.add_argument("--stop-after", type=int, default=0, metavar="N", help=text)
    text = "processes that take rows in turns, sharing the cores (default: 0, one per usable core)"
    p.add_argument("--jobs", type=int, default=0, metavar="N", help=text)
    p.add_argument("--csv", type=Path, metavar="FILE", help="write every row as soon as it is done")
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw verdicts and frontiers (.png, .svg or .pdf)")
    text = STORE_HELP + "; fresh: an empty one in memory"
    p.add_argument("--store", default=None, metavar="PATH|off|fresh", help=text)
    p.add_argument("--timeout", type=_amount, metavar="S", help="seconds for each row; none: no limit")
    text = "memory of the whole command in GiB (default: 80 % of what is free)".replace("%", "%%")
    p.add_argument("--memory", type=_amount, metavar="GiB", help=text)
    _add_shape(p)
    p.add_argument("--verbose", "-v", action="store_true", help="progress of each run on stderr")
    _add_settings(p, skip=OWN_TO_BENCH)


def _add_supports(p: argparse.ArgumentParser) -> None:
    from mucg4.read.capabilities import CAPABILITIES

    group = p.add_mutually_exclusive_group(required=True)
    for name in CAPABILITIES:
        group.add_argument(f"--{name}", dest="capability", action="store_const", const=name)


COMMANDS = {
    "verify": (_add_verify, "decide one property of one network"),
    "supports": (_add_supports, "say what is supported, in the words of the VNN-LIB standard"),
    "recertify": (_add_recertify, "verify a variant with proofs from files, without a store"),
    "check": (_add_check, "re-check a proof independently: exit 0 accepted, 1 rejected"),
    "bench": (_add_bench, "run a benchmark folder, one child process per instance; compare tools"),
    "store": (_add_store, "look into the proof store"),
    "explain": (_add_explain, "say in words what carries a proof, and draw it"),
    "case": (_add_case, "replay saved failing cases: exit 0 fixed, 1 still failing"),
    "compress": (_add_compress, "make a compressed variant of a network"),
    "sweep": (_add_sweep, "how far a network can be compressed: many variants under many properties"),
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `command` of what it gives is the name of the command."""
    parser = _Parser(prog="mucg4", description="Neural-network verifier that reuses proofs across compressed networks.")
    parser.add_argument("--name", action="version", version="mucg4", help="print the name")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for name, (fill, text) in COMMANDS.items():
        commands.add_parser(name, help=text, fill=fill)
    return parser
