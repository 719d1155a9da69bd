"""The one frozen settings record. Command line options are made from it; docs/options.md is compared with it."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any

from mucg4.errors import InputError
from mucg4.records import dataclass


def _option(default: Any, text: str, choices: tuple[str, ...] = (), low: float | None = None, unit: str = "N") -> Any:
    return field(default=default, metadata={"help": text, "choices": choices, "low": low, "unit": unit})


@dataclass(frozen=True)
class Settings:
    """Options of one run; the help texts say what each does. What none below the command line reads fails a test."""

    timeout: float | None = _option(None, "seconds for the whole run; none: no limit", low=0.0, unit="S")
    memory: float | None = _option(
        None,
        "memory of the whole run in GiB, its child processes included; none: 80 % of what is free",
        low=0.0,
        unit="GiB",
    )
    engine: str = _option(
        "bab",
        "bab: branch and bound; smt: minimal unsat cores in exact arithmetic, for small ReLU networks",
        ("bab", "smt"),
    )
    device: str = _option(
        "",
        "PyTorch device that computes bounds, in one process; none: NumPy, in --workers processes",
        ("", "cpu", "cuda"),
    )
    seed: int = _option(0, "seed of the attack's random points", low=0)
    workers: int = _option(0, "processes that search; 0: one per usable core", low=0)
    batch: int = _option(0, "regions bounded together; 0 chooses by network size", low=0)
    split: str = _option(
        "auto",
        "what is split: inputs (and dominant neurons), ReLU phases, or chosen by features, the other where that stalls",
        ("auto", "input", "phase"),
    )
    attack: bool = _option(True, "look for a witness before and during the search; off: only unsat can be concluded")
    reuse: bool = _option(True, "use proofs of related networks found in the store")
    reuse_upto: str = _option(
        "ascent",
        "for measurements, how much of a related proof is used: structure: its regions, as the start of a new search; "
        "duals: its evidence too, where the checker accepts it; ascent: all",
        ("structure", "duals", "ascent"),
    )
    compact: bool = _option(True, "make a proof smaller and its margins wider after the verdict, before it is stored")
    arithmetic: str = _option(
        "real",
        "what unsat has to hold for: real arithmetic on the stored weights, or float32 executions (float64 ones of a "
        "float64 model) as well",
        ("real", "float32"),
    )
    dequantised: str = _option(
        "default",
        "how the network is deployed, where onnxruntime may multiply by weights behind DequantizeLinear in 8-bit "
        "activations: default: it does, so that no unsat is claimed where that shows; float32: it does not "
        "(session.qdq_matmulnbits_accuracy_level 1), in this run neither",
        ("default", "float32"),
    )
    unchecked: bool = _option(
        True,
        "when time ends before the independent checker does, and nothing it saw failed, still answer unsat (the run "
        "record says so); off: timeout",
    )
    proof_bytes: int = _option(
        32 * 2**20, "largest stored proof; larger ones lose tightenings, cuts and slopes, then cores", low=0
    )

    def __post_init__(self) -> None:
        for f in fields(self):
            value, meta = getattr(self, f.name), f.metadata
            if meta["choices"] and value not in meta["choices"]:
                raise InputError(f"{f.name} must be one of {', '.join(meta['choices'])}, not {value!r}")
            if meta["low"] is not None and value is not None and not value >= meta["low"]:
                raise InputError(f"{f.name} must be at least {meta['low']}, not {value!r}")
