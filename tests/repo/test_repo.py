"""The repository itself: import directions, what importing costs, and habits that rot when nobody looks."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mucg4"
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}
LAZY = ("onnx", "onnxruntime", "z3", "scipy", "highspy", "matplotlib", "rich", "sklearn", "psutil", "platformdirs")
LAZY += ("torch",)
HEAVY = ("numpy", *LAZY)

# Who may import whom at all (inside functions too): a layer may import itself and the layers named here.
BASE = {"mucg4", "errors", "settings", "limits"}
MODEL = BASE | {"ops", "model"}
MAY_IMPORT = {
    "mucg4": set(),
    "errors": set(),
    "settings": {"mucg4", "errors"},
    "limits": {"mucg4", "errors"},
    "files": BASE,
    "ops": BASE,
    "model": BASE | {"ops"},
    "check": MODEL,
    "gate": MODEL,
    "read": MODEL,
    "bound": MODEL,
    "smt": MODEL | {"check", "read", "gate"},
    "search": MODEL | {"check", "bound", "gate", "smt"},
    "store": MODEL,
    "reuse": MODEL | {"bound", "gate", "search", "store"},
    "evidence": MODEL | {"check", "read"},
    "precision": MODEL | {"check", "read", "gate", "search"},
    "lab": None,  # runs the pipeline
    "conclude": None,  # the end of the pipeline
    "verify": None,  # the pipeline: every stage
    "bench": BASE | {"files", "read"},
    "cli": None,  # everything
    "__main__": {"cli"},
}
# The checker shares no reasoning code with what it checks.
CHECKER = tuple(m for m in MODULES if m.startswith("mucg4.check."))


def layer(module: str) -> str:
    """`mucg4.read.onnx` -> `read`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "mucg4"


def imports(path: Path, top_only: bool = False, types_too: bool = True) -> set[str]:
    """Modules that a file imports, `from a import b` as `a.b` where that is a module."""
    tree = ast.parse(path.read_text())
    skip = set()
    for node in ast.walk(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not types_too
        if typing_only or (top_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))):
            skip.update(id(inner) for inner in ast.walk(node))
    out = set()
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            out.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                out.add(full if full in MODULES else node.module)
    return out


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_point_left_only(module: str) -> None:
    own = layer(module)
    if module == "mucg4" or MAY_IMPORT[own] is None:
        return  # the public names are loaded lazily
    allowed = MAY_IMPORT[own] | {own}
    wrong = sorted(m for m in imports(MODULES[module]) if m.startswith("mucg4") and layer(m) not in allowed)
    assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("module", CHECKER)
def test_the_checker_stands_alone(module: str) -> None:
    allowed = {"mucg4", "errors", "limits", "model", "ops"}
    own = {m for m in imports(MODULES[module]) if m.startswith("mucg4") and m not in CHECKER}
    assert not sorted(m for m in own if layer(m) not in allowed)


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
    from dataclasses import fields

    from mucg4.settings import Settings

    names = {f.name for f in fields(Settings)} - {"timeout", "engine"}
    text = "\n".join(p.read_text() for m, p in MODULES.items() if m != "mucg4.settings" and layer(m) != "cli")
    assert not sorted(n for n in names if not re.search(rf"\.{n}\b", text))
    assert len(names) <= 25


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


def test_readme_lists_every_option() -> None:
    from dataclasses import fields

    from mucg4.settings import Settings

    text = (ROOT / "README.md").read_text()
    for f in fields(Settings):
        flag = f"--{f.name.replace('_', '-')}"
        rows = [line for line in text.splitlines() if line.startswith(f"| `{flag}`")]
        assert rows and f.metadata["help"] in rows[0].replace("\\|", "|"), flag


def test_ci_runs_the_readme_test_command() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    assert "test-command" in text and "venv" in readme_command("test-command")
