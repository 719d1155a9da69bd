"""mucg4: neural-network verification with proof reuse across compressed networks.

The public names below are loaded when they are first used, so that `import mucg4` costs nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mucg4.check.walk import check
    from mucg4.errors import Mucg4Error
    from mucg4.limits.budget import Budget
    from mucg4.model.network import Network
    from mucg4.model.proof import Proof
    from mucg4.model.query import Query, Witness
    from mucg4.model.verdict import Safe, Unknown, Unsafe, Verdict
    from mucg4.read.instance import read_query as read_instance
    from mucg4.settings import Settings
    from mucg4.store.store import Store
    from mucg4.verify import replay, verify

_PUBLIC = {
    "Budget": ("mucg4.limits.budget", "Budget"),
    "Mucg4Error": ("mucg4.errors", "Mucg4Error"),
    "Network": ("mucg4.model.network", "Network"),
    "Proof": ("mucg4.model.proof", "Proof"),
    "Query": ("mucg4.model.query", "Query"),
    "Safe": ("mucg4.model.verdict", "Safe"),
    "Settings": ("mucg4.settings", "Settings"),
    "Store": ("mucg4.store.store", "Store"),
    "Unknown": ("mucg4.model.verdict", "Unknown"),
    "Unsafe": ("mucg4.model.verdict", "Unsafe"),
    "Verdict": ("mucg4.model.verdict", "Verdict"),
    "Witness": ("mucg4.model.query", "Witness"),
    "check": ("mucg4.check.walk", "check"),
    "read_instance": ("mucg4.read.instance", "read_query"),
    "replay": ("mucg4.verify", "replay"),
    "verify": ("mucg4.verify", "verify"),
}

__all__ = [
    "Budget",
    "Mucg4Error",
    "Network",
    "Proof",
    "Query",
    "Safe",
    "Settings",
    "Store",
    "Unknown",
    "Unsafe",
    "Verdict",
    "Witness",
    "__version__",
    "check",
    "read_instance",
    "replay",
    "verify",
]


class _Package(types.ModuleType):
    """`import mucg4.verify` would bind that submodule over the public function of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
