"""The numbers at the tops of modules, and what is said about where they come from.

    python -m tests.repo.constants [measured|chosen|given]

A comment beside or right above such a number says what it means and one of three words:
*measured* (by what: the figure stands there or in the text of the module), *not measured* (chosen, nobody knows better:
to be measured before it is relied on or changed), or *given* (it follows from a format, an arithmetic or a contract).
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

from .graph import MODULES

SAID = r"(?:^|[#;.(] ?){}\b"  # such a word begins a comment or a clause of it
WORDS = {"chosen": "not measured", "measured": "measured", "given": "given"}
NUMBERS = ("float", "int", "Fraction", "np.float32", "np.float64")


class Constant(NamedTuple):
    module: str
    name: str
    line: int
    text: str  # the source
    comment: str

    @property
    def kind(self) -> str:
        """`chosen`, `measured`, `given`, or empty where the comment does not say."""
        return next((kind for kind, word in WORDS.items() if re.search(SAID.format(word), self.comment)), "")


def is_number(value: ast.expr) -> bool:
    """A number, arithmetic of numbers and names, or a tuple of such; at least one number is written out."""
    if isinstance(value, ast.Constant):
        return isinstance(value.value, (int, float)) and not isinstance(value.value, bool)
    if isinstance(value, ast.UnaryOp):
        return is_number(value.operand)
    if isinstance(value, ast.BinOp):
        sides = [value.left, value.right]
        return any(map(is_number, sides)) and all(isinstance(s, ast.Name) or is_number(s) for s in sides)
    if isinstance(value, (ast.Tuple, ast.List)):
        return bool(value.elts) and all(map(is_number, value.elts))
    if isinstance(value, ast.Call):
        return ast.unparse(value.func) in NUMBERS and ast.unparse(value) not in ("Fraction(0)", "Fraction(1)")
    return False


def names_of(node: ast.stmt) -> list[str]:
    """The names in capitals that a statement gives numbers to."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    value = getattr(node, "value", None)
    if value is None or not is_number(value):
        return []
    parts = [p for t in targets for p in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [p.id for p in parts if isinstance(p, ast.Name) and p.id.strip("_").isupper()]


def comments(source: str) -> dict[int, str]:
    """Line -> comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}


def constants_of(module: str, path: Path) -> list[Constant]:
    source = path.read_text()
    said, lines, out = comments(source), source.splitlines(), []
    for node in ast.parse(source).body:
        for name in names_of(node):
            last = node.end_lineno or node.lineno
            own = [said[k] for k in range(node.lineno, last + 1) if k in said]
            above = node.lineno - 1
            while above and lines[above - 1].startswith("#"):
                own.insert(0, said[above])
                above -= 1
            out.append(Constant(module, name, node.lineno, lines[node.lineno - 1], " ".join(own)))
    return out


def constants() -> list[Constant]:
    return [c for module, path in sorted(MODULES.items()) for c in constants_of(module, path)]


if __name__ == "__main__":
    wanted = sys.argv[1:]
    shown = [c for c in constants() if not wanted or (c.kind or "unsaid") in wanted]
    for c in shown:
        print(f"{c.kind or 'unsaid':9} {c.module}:{c.line} {c.text}")
    print(f"{len(shown)} of {len(constants())}")
