"""Which runtime a query needs; several networks are loaded where there are several.

Queries that follow each other on the same networks may share what onnxruntime has loaded.
"""

from __future__ import annotations

from mucg4.gate.runtime import Runtime
from mucg4.model.query import Query


def runtime_of(query: Query, dequantised: str = "default") -> Runtime:
    """What runs the query's network, or the networks that it is made of; `dequantised` is as in `Settings`."""
    if query.joint is None or query.joint.plain:
        return Runtime(query.network, dequantised)
    from mucg4.gate.joint import JointRuntime

    return JointRuntime(query, dequantised)


class Runtimes:
    """Runtimes for queries that follow each other; those of the same network share their sessions."""

    def __init__(self, dequantised: str = "default") -> None:
        self.dequantised = dequantised
        self._kept: dict[int, Runtime] = {}  # by the network's identity: the runtime keeps it alive

    def of(self, query: Query) -> Runtime:
        """What runs the query's networks, loaded already where a query before had the same one."""
        if query.joint is not None and not query.joint.plain:
            return runtime_of(query, self.dequantised)
        key = id(query.network)
        kept = self._kept.get(key)
        self._kept[key] = runtime_of(query, self.dequantised) if kept is None else kept.again()
        return self._kept[key]
