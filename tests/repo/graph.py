"""Who imports whom, layer by layer, read from the code; `CONTRIBUTING.md` shows it and a test compares.

    python -m tests.repo.graph            # the graph of the code
    python -m tests.repo.graph --write    # puts it into CONTRIBUTING.md

A layer is a folder of `mucg4` or a file beside them. An arrow is any import, inside functions too; what is imported for
annotations alone (under `TYPE_CHECKING`) is none, and neither are the public names that `mucg4/__init__.py` loads by
name when they are asked for.
"""

from __future__ import annotations

import ast
import re
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mucg4"
MODULES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in PACKAGE.rglob("*.py")
}
PAGE = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"(<!-- imports: [^\n]* -->\n```\n)(.*?)(```\n)", re.DOTALL)


def layer(module: str) -> str:
    """`mucg4.read.onnx` -> `read`; the package itself is `mucg4`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "mucg4"


@cache
def imports(path: Path, top_only: bool = False, types_too: bool = True) -> frozenset[str]:
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
    return frozenset(out)


def arrows() -> dict[str, set[str]]:
    """Layer -> the other layers it imports."""
    out: dict[str, set[str]] = {layer(m): set() for m in MODULES}
    for module, path in MODULES.items():
        found = {layer(name) for name in imports(path, types_too=False) if name.split(".")[0] == "mucg4"}
        out[layer(module)] |= found - {layer(module)}
    return out


def files(types_too: bool = False) -> dict[str, set[str]]:
    """Module -> the other modules it imports, by the same rules; for annotations alone where `types_too`."""
    return {m: {n for n in imports(path, types_too=types_too) if n in MODULES} - {m} for m, path in MODULES.items()}


def levels(graph: dict[str, set[str]]) -> list[list[str]]:
    """Names by the longest way down; raises `ValueError` for cycles, naming what is in one or between two."""
    left, out, done = dict(graph), [], set()
    while left:
        free = sorted(name for name, below in left.items() if below <= done)
        if not free:
            raise ValueError(f"import each other: {', '.join(sorted(_imported_in(left)))}")
        out.append(free)
        done.update(free)
        for name in free:
            del left[name]
    return out


def _imported_in(graph: dict[str, set[str]]) -> set[str]:
    """What is left when names that no other name imports are taken away, again and again."""
    names = set(graph)
    while (kept := names & set().union(*(graph[name] for name in names))) != names:
        names = kept
    return names


def render(graph: dict[str, set[str]]) -> str:
    """One line per layer, a layer below all that import it; its imports in the same order."""
    order = [name for level in levels(graph) for name in level]
    width = max(len(name) for name in order)
    lines = [f"{name:{width}} : {' '.join(n for n in order if n in graph[name])}" for name in order]
    return "".join(line.rstrip(" :") + "\n" for line in lines)


def shown() -> str:
    """The graph as the page shows it."""
    found = BLOCK.search(PAGE.read_text())
    if found is None:
        raise ValueError(f"{PAGE.name} has no block for the import graph")
    return found.group(2)


if __name__ == "__main__":
    text = render(arrows())
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(BLOCK.sub(lambda found: found.group(1) + text + found.group(3), PAGE.read_text()))
    else:
        print(text, end="")
