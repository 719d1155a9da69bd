"""`--checkpoint`: signals and time limits leave a file that the next run goes on from; decided runs remove it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from handmade import clauses, formula_layers, model_bytes

from .test_main import Call, call, prop, refused  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[3]
VARIABLES = 10


def hard() -> None:
    """A network and a property that take minutes."""
    layers = formula_layers([clauses(0, VARIABLES, 80)], VARIABLES)
    Path("hard.onnx").write_bytes(model_bytes([(np.float32(w), np.float32(b)) for w, b in layers]))
    box = [f"({sign} X_{k} {end})" for k in range(VARIABLES) for sign, end in ((">=", 0), ("<=", 1))]
    Path("hard.vnnlib").write_text(prop(*box, "(<= Y_0 0.1)", inputs=VARIABLES))


HARD = ["hard.onnx", "hard.vnnlib"]
RUN = ["verify", *HARD, "--split", "phase", "--workers", "1", "--checkpoint", "run.ck"]


def test_a_signal_and_a_time_limit_leave_a_checkpoint(call: Call) -> None:  # noqa: F811
    hard()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mucg4", *RUN, "--verbose", "--json", "run.json"]
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True) as child:
        assert child.stderr is not None and child.stdout is not None
        while not re.match("open: (?!100)", child.stderr.readline()):
            assert child.poll() is None
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "unknown\n")
    assert "mucg4: interrupted by SIGTERM; open: " in err and "--checkpoint run.ck goes on from here" in err
    first = json.loads(Path("run.json").read_text())
    assert first["reason"] == "interrupted by SIGTERM" and 0 < first["open_share"] < 1
    status, out, _ = call("check", *HARD, "run.ck")
    assert status == 1 and out.startswith("rejected: incomplete: ")

    status, out, err = call(*RUN, "--verbose", "--timeout", "2", "--json", "run.json")
    second = json.loads(Path("run.json").read_text())
    assert (status, out) == (0, "timeout\n") and "going on from run.ck" in err
    assert 0 < second["open_share"] <= 1 and second["resumed_seconds"] > 0
    assert all(case["bound"] is None or case["bound"] < 0 for case in second["open_cases"])
    assert call("check", *HARD, "run.ck")[1].startswith("rejected: incomplete: ")
    refused(call("verify", "net.onnx", "unsat.vnnlib", "--checkpoint", "run.ck"), "checkpoint of another network")
    assert call("recertify", "net.onnx", "unsat.vnnlib", "--from", "run.ck")[:2][1].startswith("unsat\n")


def test_a_decided_run_leaves_none(call: Call) -> None:  # noqa: F811
    for word in ("sat", "unsat"):
        run = ["verify", "net.onnx", f"{word}.vnnlib", "--checkpoint", f"{word}.ck", "--json", "run.json"]
        status, out, err = call(*run)
        assert (status, out.split("\n")[0], err) == (0, word, "") and not Path(f"{word}.ck").exists()
        record = json.loads(Path("run.json").read_text())
        assert (record["open_share"], record["open_cases"], record["resumed_seconds"]) == (0.0, [], None)


def test_bad_input(call: Call) -> None:  # noqa: F811
    Path("no.ck").write_text("{}")
    start = ["verify", "net.onnx", "unsat.vnnlib", "--checkpoint"]
    refused(call(*start, "no.ck"), "no.ck is no checkpoint")
    refused(call(*start, "none/a.ck"), "there is no folder none")
    assert Path("no.ck").read_text() == "{}"
