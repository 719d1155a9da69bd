"""What is said about settings, and whether anything reads them."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from .graph import MODULES, ROOT, layer

PAGE = ROOT / "docs" / "options.md"


def settings_without_row(record: Any) -> list[str]:
    """The options whose help text does not stand in their row of the page."""
    rows = PAGE.read_text().splitlines()
    missing = []
    for f in fields(record):
        flag = f"--{f.name.replace('_', '-')}"
        own = [row.replace("\\|", "|") for row in rows if row.startswith(f"| `{flag}`")]
        if not own or f.metadata["help"] not in own[0]:
            missing.append(flag)
    return missing


def unread_settings(record: Any) -> list[str]:
    """The settings that no code below the command line reads."""
    text = "\n".join(p.read_text() for m, p in MODULES.items() if m != "mucg4.settings" and layer(m) != "cli")
    return [f.name for f in fields(record) if not re.search(rf"settings\.{f.name}\b", text)]
