"""What goes into the VNN-LIB solver database: `solvers/ID/VERSION`, as its page on submitting wants it.

The database installs a release by `install.sh` on a fresh machine and then calls nothing but `--name`, `--version` and
`supports`; its permitted answers are written down here once more.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mucg4 import __version__
from mucg4.cli.main import main
from mucg4.read.capabilities import CAPABILITIES

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "solvers" / "mucg4" / __version__
INSTALL, ENTRY = FOLDER / "install.sh", FOLDER / "solver.toml"
THEORIES = {  # those that a query may need, the weakest first
    "hidden-node-theories": ["NH", "H"],
    "multiple-input-output-theories": ["SIO", "MIO"],
    "multiple-network-theories": ["SNET", "MENET", "MINET", "MNET"],
    "multiple-node-comparison-theories": ["SNC", "MNC"],
    "arithmetic-complexity-theories": ["BND", "OUTC", "LIN", "POLY"],
}
PERMITTED = {
    **{name: "|".join(known) for name, known in THEORIES.items()},
    "onnx-opset-versions": "[0-9]+",
    "vnnlib-versions": r"[0-9]+\.[0-9]+",
    "onnx-element-types": "real|float(16|32|64)|bfloat16|u?int(8|16|32|64)|bool",
    "onnx-operators": "[A-Z][A-Za-z0-9]*( (float|u?int)[0-9]+)*",
    "optimised-disjunctive-reasoning": "true|false",
    "serialise-assignments": "true|false",
}
LINES = dict.fromkeys(("onnx-opset-versions", "vnnlib-versions"), 2)
LINES |= dict.fromkeys(("optimised-disjunctive-reasoning", "serialise-assignments"), 1)


def fields(path: Path) -> dict[str, str]:
    """The `key = "value"` lines of a TOML file; everything but these, comments and blank lines is a failure."""
    out = {}
    for line in path.read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            found = re.fullmatch(r'(\w+) = "([^"\\]+)"( #.*)?', line)
            assert found, line
            out[found[1]] = found[2]
    return out


def test_the_entry_has_what_the_database_reads(capsys: pytest.CaptureFixture[str]) -> None:
    entry = fields(ENTRY)
    assert set(entry) <= {"name", "url", "license", "contact"}
    assert entry["url"].startswith("https://")
    with pytest.raises(SystemExit):
        main(["--name"])
    assert capsys.readouterr().out == f"{entry['name']}\n"
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.splitlines()[0] == FOLDER.name


def test_one_folder_for_this_release() -> None:
    assert [p.name for p in FOLDER.parent.iterdir()] == [__version__]
    assert sorted(p.name for p in FOLDER.iterdir()) == ["install.sh", "solver.toml"]


@pytest.mark.parametrize("capability", PERMITTED)
def test_every_question_has_a_permitted_answer(capability: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["supports", f"--{capability}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(re.fullmatch(PERMITTED[capability], line) for line in lines), lines
    assert len(lines) == LINES.get(capability, len(set(lines)))
    if capability in THEORIES:  # whatever contains less than what is answered is answered, too
        assert lines == THEORIES[capability][: len(lines)]
    if capability.endswith("versions"):
        first, last = (tuple(map(int, line.split("."))) for line in lines)
        assert first <= last


def test_nothing_else_is_asked() -> None:
    aliases = {name for name in CAPABILITIES if name.startswith("multiple-input") and name not in PERMITTED}
    assert set(CAPABILITIES) - aliases == set(PERMITTED)


def test_the_script_keeps_the_rules() -> None:
    raw = INSTALL.read_bytes()
    assert raw.startswith(b"#!/usr/bin/env bash\n") and b"\r" not in raw
    assert __version__.encode() in raw and os.access(INSTALL, os.X_OK)


@pytest.mark.parametrize("alone", [False, True])
def test_what_the_script_installs(alone: bool, tmp_path: Path) -> None:
    """The checkout around it, or the release where it stands alone as in the database."""
    script = INSTALL
    if alone:
        script = tmp_path / "solvers" / "mucg4" / __version__ / "install.sh"
        script.parent.mkdir(parents=True)
        shutil.copy2(INSTALL, script)
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("python", "mucg4"):
        (folder / name).write_text(f'#!/bin/sh\necho {name} "$@" >> "{tmp_path}/calls"\n')
        (folder / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([script], env=environment, check=True, stdin=subprocess.DEVNULL, cwd=script.parent)
    install, version = (tmp_path / "calls").read_text().splitlines()
    source = install.split()[-1]
    assert install.startswith("python -m pip install ") and version == "mucg4 --version"
    assert source == f"mucg4=={__version__}" if alone else Path(source).resolve() == ROOT


@pytest.mark.slow
def test_a_fresh_environment_speaks_the_standard(tmp_path: Path) -> None:
    """As the database does it: an empty environment on PATH, then nothing but the executable."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    own = tmp_path / "venv" / "bin"
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {"PATH": f"{own}{os.pathsep}{os.environ['PATH']}", "SOLVER_BIN_DIR": str(own)}
    copy = tmp_path / "checkout"  # pip leaves its build folder beside the sources
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "build", "__pycache__", "bench-out"))
    script = copy / INSTALL.relative_to(ROOT)
    subprocess.run([script], env=environment, check=True, stdin=subprocess.DEVNULL, cwd=script.parent)
    for arguments in (["--name"], ["--version"], *(["supports", f"--{name}"] for name in PERMITTED)):
        done = subprocess.run([own / "mucg4", *arguments], env=environment, check=True, text=True, capture_output=True)
        assert done.stdout.strip() and not done.stderr
