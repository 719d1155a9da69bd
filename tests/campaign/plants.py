"""Old faults put back one at a time, to show that the campaign finds them.

A plant replaces functions in the running process. Where the same function was imported under its name elsewhere it is
replaced there too. Wrong readings are made by rewriting the model before it is read (`rewrite`), so that they do not
depend on how the reader is built. As defences stand one behind the other many plants end in `unknown`: a plant
counts as found when an instance shows a disagreement or a rejection inside the run (by checker, comparison with
onnxruntime, or missing evidence) that the same instance does not show without it.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from . import rewrite
from .instance import Instance
from .judge import Outcome
from .run import campaign, one

MODULES = (
    "verify",
    "conclude",
    "reuse.lookup",
    "reuse.replay",
    "reuse.reopen",
    "smt.smt",
    "check.walk",
    "gate.runtime",
    "read.instance",
    "store.store",
    "reuse.compact",
)


@dataclass(frozen=True)
class Plant:
    """`text` says what is wrong; `put` replaces functions, raising `LookupError` where they no longer exist.

    `touches`: instances that the fault can change at all; the others are drawn and counted only.
    """

    text: str
    put: Callable[[], None]
    touches: Callable[[Instance], bool] = lambda instance: True


def find(path: str) -> Any:
    """`module.name` or `module.Class.name` of mucg4. Raises `LookupError`."""
    parts = path.split(".")
    for k in range(len(parts) - 1, 0, -1):
        try:
            at: Any = import_module("mucg4." + ".".join(parts[:k]))
        except ModuleNotFoundError:
            continue
        for name in parts[k:]:
            if not hasattr(at, name):
                raise LookupError(f"mucg4.{path} does not exist")
            at = vars(at)[name] if isinstance(at, type) and name in vars(at) else getattr(at, name)
        return at
    raise LookupError(f"mucg4.{path} does not exist")


def everywhere(path: str, change: Callable[[Any], Any]) -> None:
    """Replace a function in every module of mucg4 that holds it; `change` gets the old one."""
    old = find(path)
    new = change(old)
    for module in [m for k, m in sys.modules.items() if k == "mucg4" or k.startswith("mucg4.")]:
        for name in [k for k, v in vars(module).items() if v is old]:
            setattr(module, name, new)


def method(path: str, change: Callable[[Any], Any]) -> None:
    """Replace a method or property of a class."""
    old = find(path)
    owner, _, name = path.rpartition(".")
    new = change(old)
    setattr(find(owner), name, new)
    if hasattr(new, "__set_name__"):
        new.__set_name__(find(owner), name)


def misread(change: rewrite.Rewrite) -> Callable[[], None]:
    """The network of a rewritten model, which claims to come from the bytes that were given."""

    def put() -> None:
        def wrap(old: Any) -> Any:
            def read(data: bytes, *more: Any, **others: Any) -> Any:
                import onnx

                model = onnx.load_from_string(data)
                try:
                    change(model)
                    network = old(model.SerializeToString(), *more, **others)
                except Exception:  # noqa: BLE001 - the fault is not in reach of this model
                    return old(data, *more, **others)
                return replace(network, source_hash=hashlib.sha256(data).hexdigest(), model_bytes=data)

            return read

        everywhere("read.onnx.read_network", wrap)

    return put


def reading(text: str, change: rewrite.Rewrite) -> Plant:
    """A wrong reading; it touches the models that it changes."""

    def touches(instance: Instance) -> bool:
        import onnx

        data = instance.onnx()
        model = onnx.load_from_string(data)
        before = model.SerializeToString(deterministic=True)
        try:
            change(model)
        except Exception:  # noqa: BLE001 - the fault is not in reach of this model
            return False
        return bool(model.SerializeToString(deterministic=True) != before)

    return Plant(text, misread(change), touches)


def stuck_arm() -> None:
    def change(old: Any) -> Any:
        return property(lambda self: old.fget(self) if self.stuck is None else np.ones_like(old.fget(self)))

    method("search.portfolio.Arm.closed", change)


def strictness(strict: bool) -> Callable[[], None]:
    def put() -> None:
        def change(old: Any) -> Any:
            def build(*args: Any) -> Any:  # lists of rows among sizes
                rows = ([(*r[:3], strict) for r in a] if isinstance(a, list) else a for a in args)
                return old.__func__(*rows)

            return staticmethod(build)

        method("model.query.Conjunction.build", change)

    return put


def plain_hull() -> None:
    def end(side: str, away: float) -> property:
        def bound(self: Any) -> Any:
            exact = getattr(self, side)
            out = np.array([float(b) for b in exact])
            off = np.array([v != b for v, b in zip(out.tolist(), exact, strict=True)], dtype=bool)
            return np.where(off, np.nextafter(out, away), out)

        return property(bound)

    method("model.query.Box.lo", lambda old: end("lower", -np.inf))
    method("model.query.Box.hi", lambda old: end("upper", np.inf))


def tight_inputs() -> None:
    def change(old: Any) -> Any:
        def rounding(*args: Any) -> Any:
            made = old(*args)
            return replace(made, error=type(made.error)())

        return rounding

    everywhere("read.rounding.rounding_of", change)


def leaf_accepted() -> None:
    def change(old: Any) -> Any:
        def turn(self: Any, batch: Any) -> Any:
            out = old(self, batch)
            self.checked += len(self.rejected)
            self.rejected.clear()
            return out

        return turn

    method("check.walk._Walk._turn", change)


def lost_region() -> None:
    def change(old: Any) -> Any:
        def push(self: Any, **fields: Any) -> None:
            count = len(fields["value"])
            old(self, **{k: v[: count - 1] if count > 1 else v for k, v in fields.items()})

        return push

    method("search.frontier.Frontier.push", change)


def tolerant_gate() -> None:
    def change(old: Any) -> Any:
        def holds(conj: Any, x: Any, y: Any) -> bool:
            value = conj.x_coeffs @ x.astype(np.float64) + conj.y_coeffs @ y.astype(np.float64) + conj.constants
            return bool(np.all(value <= 1e-4 * (1 + abs(conj.constants))))

        return holds

    everywhere("gate.witness.holds", change)


def wide_gate() -> None:
    def change(old: Any) -> Any:
        def bounds(*args: Any) -> Any:
            lo, hi = old(*args)
            return (lo - 0.01).astype(lo.dtype), (hi + 0.01).astype(hi.dtype)

        return bounds

    everywhere("gate.witness.legal_bounds", change)


def low_line() -> None:
    def change(old: Any) -> Any:
        def enclose(*args: Any) -> Any:
            lines, low, up = old(*args)
            lines.up_offset = lines.up_offset * 0.9
            return lines, low, up

        return enclose

    find("check.curves.enclose")
    everywhere("check.curves.enclose", change)


def lost_disjunct() -> None:
    def change(old: Any) -> Any:
        def cases(*args: Any) -> Any:
            return tuple(replace(c, conjunctions=c.conjunctions[:-1] or c.conjunctions) for c in old(*args))

        return cases

    everywhere("read.normal.to_cases", change)


def near(instance: Instance) -> bool:
    return abs(instance.distance) < 1e-6


def tied(instance: Instance) -> bool:
    return instance.distance == 0


def unsat(instance: Instance) -> bool:
    return instance.truth == "unsat"


PLANTS: dict[str, Plant] = {
    "stuck_arm": Plant("a search that got stuck answers for everything", stuck_arm),
    "clip_limit": reading("Clip at the largest float is no limit", rewrite.clip_limits),
    "same_dilation": reading("automatic padding counts the dilated window", rewrite.same_padding),
    "keep_aspect": reading("keep_aspect_ratio_policy is ignored", rewrite.without("keep_aspect_ratio_policy")),
    "equal_length": reading("Resize leaves axes alone that keep their length", rewrite.equal_lengths),
    "int_division": reading("integer division through floats", rewrite.folded(rewrite.integer_division)),
    "cast_identity": reading("Cast double to float is the identity", rewrite.casts_nothing),
    "fold_uncounted": reading("roundings of folded constants are not counted", rewrite.folded(rewrite.in_float32)),
    "fold_step": reading("steps of computed constants are taken in double", rewrite.step_of_inexact),
    "gemm_alpha": reading("alpha of Gemm, LeakyRelu and others is ignored", rewrite.without("alpha")),
    "pad_count": reading("count_include_pad is ignored", rewrite.without("count_include_pad")),
    "pool_padding": reading("the padding of a MaxPool counts as zero", rewrite.max_pool_zeros),
    "nearest_mode": reading("nearest_mode is ignored", rewrite.without("nearest_mode")),
    "hull_plain": Plant("the box without the rounding of its ends", plain_hull, near),
    "tight_inputs": Plant("constraints over inputs without their rounding", tight_inputs, lambda i: bool(i.always)),
    "strict_gained": Plant("every constraint counts as strict", strictness(True), tied),
    "strict_lost": Plant("no constraint counts as strict", strictness(False), tied),
    "search_charge": Plant(
        "the search charges no rounding", lambda: everywhere("bound.rounding.gamma", _nothing), near
    ),
    "checker_charge": Plant(
        "the checker charges no rounding", lambda: everywhere("check.enclose.gamma", _nothing), unsat
    ),
    "checker_line": Plant("the checker's upper lines lie too low", low_line, unsat),
    "leaf_accepted": Plant("the checker accepts leaves without a refutation", leaf_accepted, unsat),
    "lost_region": Plant("the search loses a child of a split", lost_region),
    "lost_disjunct": Plant("the last disjunct is not read", lost_disjunct, lambda i: len(i.unsafe) > 1),
    "tolerant_gate": Plant("witnesses are replayed with a tolerance", tolerant_gate),
    "wide_gate": Plant("witnesses may lie a little outside the box", wide_gate),
}


def _nothing(old: Any) -> Any:
    return lambda *args, **more: 0.0


FAMILY = {
    "clip_limit": "pieces",
    "same_dilation": "exotic",
    "keep_aspect": "exotic",
    "equal_length": "exotic",
    "nearest_mode": "exotic",
    "int_division": "folded",
    "fold_uncounted": "folded",
    "fold_step": "folded",
    "cast_identity": "casts",
    "pad_count": "pools",
    "pool_padding": "pools",
    "gemm_alpha": "dense",
}  # the family in which a fault shows, to be quick


def plant(name: str) -> None:
    """Put a fault into this process. Raises `LookupError` where the functions it replaces are gone."""
    for module in MODULES:
        try:
            import_module(f"mucg4.{module}")
        except ModuleNotFoundError:
            continue
    PLANTS[name].put()


def applies(name: str) -> str:
    """Empty, or why a plant cannot be put; tried in a process of its own."""
    import multiprocessing as mp

    def attempt(pipe: Any) -> None:
        try:
            plant(name)
            pipe.send("")
        except (LookupError, AttributeError, TypeError, ImportError) as error:
            pipe.send(f"{type(error).__name__}: {error}")

    ours, theirs = mp.Pipe()
    process = mp.get_context("fork").Process(target=attempt, args=(theirs,))
    process.start()
    answer = str(ours.recv()) if ours.poll(60) else "no answer"
    process.join()
    return answer


def hunt(names: list[str], start: int, seconds: float, jobs: int, say: Callable[[str], None], narrow: bool) -> int:
    """Run the campaign with each plant until it is found; a table; 0 when all were found.

    `narrow` keeps to the family of networks in which the fault shows, where it is one.
    """
    rows, missed = [], 0
    for name in names:
        reason = applies(name)
        if reason:
            rows.append(f"{name}: does not apply: {reason}")
            missed += 1
            continue
        new: list[str] = []
        family = FAMILY.get(name) if narrow else None

        def found(out: Outcome, new: list[str] = new, family: str | None = family) -> bool:
            more = out.events
            for _ in range(2 if more else 0):  # what hangs on the clock is not found
                more = more - one(out.seed, family, False).events if more else more
            new[:] = [f"{out.family}, seed {out.seed}: {kind}" for kind in sorted(more)] if more else new
            return bool(more)

        begun = time.monotonic()
        put = partial(plant, name)
        tally = campaign(
            start, seconds, jobs, lambda text: None, None, family, put, found, None, False, PLANTS[name].touches
        )
        after = f"{tally.total} instances, {time.monotonic() - begun:.0f} s"
        missed += not new
        rows.append(f"{name}: found after {after} ({new[0]})" if new else f"{name}: NOT FOUND in {after}")
        say(rows[-1])
    say("\n" + "\n".join(rows))
    return 1 if missed else 0
