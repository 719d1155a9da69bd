"""The answer of a run of `verify`: result file, stdout and run record, each written once by whoever is first."""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mucg4 import __version__
from mucg4.cli.report import answer_text
from mucg4.cli.streams import put
from mucg4.files import json_text, write_atomic, write_result


class Answer:
    """Writes the answer once: result file, then stdout, then the run record. Safe against the watch thread."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.result: Path | None = args.result
        self.json: Path | None = args.json
        self.start: float = args.start
        self.standard = bool(args.network)  # the words of the VNN-LIB standard
        self.facts = {"onnx": args.paths[0], "vnnlib": args.paths[-1], "timeout": args.timeout}
        self.failures: list[str] = []
        self.standing: Any = None  # once there is one: how far the run has come
        self._lock = threading.Lock()
        self._word: str | None = None
        self._recorded = False

    def announce(self, word: str, assignment: str = "") -> None:
        """Result file and stdout, with the witness as text; only the first call counts."""
        with self._lock:
            if self._word is not None:
                return
            self._word = word
            if self.result is not None:
                self.write(write_result, self.result, answer_text(word, assignment))
            put(answer_text("timed-out" if self.standard and word == "timeout" else word, assignment))

    def record(self, content: dict[str, Any]) -> None:
        """The run record; only the first call counts."""
        with self._lock:
            if self._recorded or self.json is None:
                return
            self._recorded = True
            content = {**content, **self.facts, "wall": time.monotonic() - self.start}
            self.write(write_atomic, self.json, json_text(content, indent=1) + "\n")

    def last_word(self, reason: str) -> int:
        """The answer of a run that has to leave now; an answer already announced stands. Returns the exit status."""
        self.announce("timeout" if reason == "timeout" else "unknown")
        known = {} if self.standing is None else self.standing.latest
        self.record({"mucg4": __version__, "verdict": self._word, "reason": reason, **known})
        return 0

    def write(self, write: Callable[[Path, str], None], path: Path, text: str) -> None:
        try:
            write(path, text)
        except OSError as error:
            self.failures.append(f"cannot write {path}: {error.strerror or error}")
