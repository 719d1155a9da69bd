"""The command `store`: look into the proof store. Which file holds it, for `verify` too."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from mucg4.cli.limited import limited, spent
from mucg4.cli.report import entry_line, stored_text
from mucg4.cli.streams import printable, put, say
from mucg4.errors import InputError


def run(args: argparse.Namespace) -> int:
    """List, show, tidy, clear or time; the exit status."""
    if args.action == "scale":
        return limited(args, lambda budget: _time_store(args), spent)
    return limited(args, lambda budget: _look_into_store(args), spent)


def _look_into_store(args: argparse.Namespace) -> int:
    from mucg4.store.store import Store

    path = store_path(args.store)
    if path is None:
        raise InputError("the store is off")
    with Store(path if path.exists() else ":memory:") as store:
        if args.action == "show":
            put(stored_text(*store.show(args.key)))
            return 0
        if args.action == "list":
            put("".join(map(entry_line, store.entries())))
        elif args.action == "gc":
            put(f"{store.gc()} results removed\n")
        else:
            put(f"{store.clear()} results removed\n")
        put(f"{path}: {len(store.entries())} results, {store.used_bytes() / 2**10:.0f} KiB\n")
        for text in store.warnings:
            say(f"mucg4: warning: {printable(text)}")
    return 0


def _time_store(args: argparse.Namespace) -> int:
    """What saving and matching cost in a store of many results, which is in a temporary folder."""
    from tempfile import TemporaryDirectory

    from mucg4.lab.scale import measure

    with TemporaryDirectory(prefix="mucg4-") as folder:
        found = measure(args.results, Path(folder) / "store.sqlite", args.limit << 20)
    put(f"{found.saved} results saved, {found.kept} kept, {found.bytes / 2**20:.1f} MiB of at most {args.limit}\n")
    for name, (median, most) in (("save", found.save), ("reference", found.reference), ("match", found.match)):
        put(f"{name:9}  median {median:6.2f} ms  most {most:6.2f} ms\n")
    return 0


def store_path(text: str | None) -> Path | None:
    """The file named by `--store` or `MUCG4_STORE`, else the default one; None when off."""
    name = text or os.environ.get("MUCG4_STORE") or ""
    if name == "off":
        return None
    from mucg4.store.store import default_path

    return Path(name) if name else default_path()


def open_store(text: str | None) -> Any:
    """The store to use, None when off. Raises `StoreError`."""
    path = store_path(text)
    if path is None:
        return None
    from mucg4.store.store import Store

    return Store(path)
