"""The repository itself: what importing costs, and habits that rot when nobody looks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from repo.graph import MODULES, ROOT, imports, layer
from repo.options import PAGE, settings_without_row, unread_settings

from mucg4.settings import Settings

LAZY = ("onnx", "onnxruntime", "z3", "scipy", "highspy", "matplotlib", "rich", "sklearn", "psutil", "platformdirs")
LAZY += ("torch", "zstandard")
HEAVY = ("numpy", *LAZY)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_heavy_packages_are_imported_where_they_are_used(module: str) -> None:
    top = {name.split(".")[0] for name in imports(MODULES[module], top_only=True, types_too=False)}
    assert not top & set(LAZY)


@pytest.mark.parametrize("module", ["mucg4", "mucg4.__main__", *(m for m in MODULES if layer(m) == "cli")])
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names() -> None:
    code = """
import mucg4.verify  # must not hide the function of that name
from mucg4 import verify
assert not isinstance(verify, type(mucg4)), verify
for name in mucg4.__all__:
    getattr(mucg4, name)
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_only_the_command_line_prints() -> None:
    for module, path in MODULES.items():
        if module == "mucg4.cli.streams":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "sys.stdout.write", "sys.stderr.write"), module


def test_no_broad_handlers_below_the_command_line() -> None:
    # the command line has the last word; what is stored is a hint, and whatever it breaks may cost no verdict
    boundaries = ("mucg4.cli.main", "mucg4.cli.verify", "mucg4.cli.limited", "mucg4.reuse.guard", "mucg4.store.store")
    for module, path in MODULES.items():
        if module in boundaries:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[-1], ast.Raise):
                assert node.type is not None and ast.unparse(node.type) not in ("Exception", "BaseException"), module


def test_every_setting_is_read() -> None:
    assert not unread_settings(Settings)
    assert len(fields(Settings)) <= 25


FAMILIES = "acas|mnist|cifar|oval21|safenlp|rl_benchmark|cora_|collins|tllverify|dist_shift|metaroom|sri_resnet"
FAMILIES += "|linearizenn|lsnc|cgan"


def code_words(path: Path) -> str:
    """Names and strings of a module without its comments and docstrings."""
    tree = ast.parse(path.read_text())
    described = [n for n in ast.walk(tree) if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    docs = {id(n.body[0].value) for n in described if ast.get_docstring(n) is not None}
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            out.append(node.value)
        out += [str(getattr(node, key)) for key in ("id", "attr", "name", "arg") if hasattr(node, key)]
    return "\n".join(out)


def test_no_benchmark_names_in_the_package() -> None:
    for path in MODULES.values():
        assert not re.search(FAMILIES, code_words(path), re.IGNORECASE), path
    for path in (ROOT / "vnncomp_scripts").iterdir():
        assert not re.search(FAMILIES, path.read_text(), re.IGNORECASE), path


def tracked_text() -> list[Path]:
    kinds = {".py", ".sh", ".md", ".toml", ".csv", ".json", ""}
    skip = {"build", "dist", "bench-out", "__pycache__", "mucg4.egg-info"}
    out = []
    for path in ROOT.iterdir():
        if path.name not in skip and (path.name == ".ci" or not path.name.startswith(".")):
            out += [p for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file()]
    return [p for p in out if p.suffix in kinds and not skip & set(p.relative_to(ROOT).parts)]


def test_no_paths_of_one_machine() -> None:
    absolute = re.compile(r"(^|[^A-Za-z0-9_.~])/(work|home|root|farm|Users|tmp)/[A-Za-z0-9_.-]+", re.MULTILINE)
    for path in tracked_text():
        found = absolute.search(path.read_text(errors="replace"))
        assert not found, f"{path}: {found.group(0)}"


def test_no_package_hosts() -> None:
    hosts = re.compile("pypi" + r"\.org|python" + "hosted|registry" + r"\.npmjs")
    for path in tracked_text():
        assert not hosts.search(path.read_text(errors="replace")), path


def test_instances_are_small() -> None:
    files = [p for p in (ROOT / "instances").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 3 * 2**20


def readme_command(name: str) -> str:
    text = (ROOT / "README.md").read_text()
    found = re.search(rf"<!-- {name} -->\s*```sh\n(.*?)\n```", text, re.DOTALL)
    assert found, f"the README has no {name} block"
    return found.group(1)


@pytest.mark.parametrize("name", ["main-command", "test-command"])
def test_readme_commands_are_one_line(name: str) -> None:
    command = readme_command(name)
    assert "\n" not in command and "-m venv" in command and "pip install" in command


def test_every_setting_has_its_row() -> None:
    assert not settings_without_row(Settings)


def test_every_key_of_the_run_record_is_explained() -> None:
    from mucg4.model.verdict import Statistics

    explained = PAGE.read_text().partition("## The run record")[2]
    assert not [key for key in Statistics().record() if f"`{key}`" not in explained]


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"`((?:mucg4|tests|docs|instances|vnncomp_scripts)/[A-Za-z0-9_/.]*)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    links = [target for target in re.findall(r"\]\(([^)#:]+)\)", text)]
    assert not [target for target in links if not (page.parent / target).exists()]
    assert not [name for name in FILE.findall(text) if not (ROOT / name).exists()]


def test_the_map_names_every_folder() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    folders = {p.parent.name for p in (ROOT / "mucg4").glob("*/__init__.py")}
    assert folders == set(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) - {"tests", "solvers"}


def test_unit_tests_mirror_the_package() -> None:
    """`tests/unit/F/test_M.py`, or `test_M_more.py`, is about `mucg4/F/M.py`."""
    top = ROOT / "tests" / "unit"
    for path in top.rglob("test_*.py"):
        folder = ROOT / "mucg4" / path.parent.relative_to(top)
        modules = [m.stem for m in folder.glob("*.py")]
        name = path.stem.removeprefix("test_")
        assert any(name == m or name.startswith(f"{m}_") for m in modules), f"{path}: no such module in {folder.name}/"


def test_lines_of_pages_can_be_read() -> None:
    for page in PAGES:
        table_or_code = re.compile(r"^\||^ {4}|^\[")
        lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
        assert not [line for line in lines if len(line) > 120 and not table_or_code.match(line)], page.name


def test_ci_runs_the_readme_test_command() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "test-command" in text and "venv" in readme_command("test-command")
