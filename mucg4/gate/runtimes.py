"""Which runtime a query needs; several networks are loaded where there are several."""

from __future__ import annotations

from mucg4.gate.runtime import Runtime
from mucg4.model.query import Query


def runtime_of(query: Query) -> Runtime:
    """What runs the query's network, or the networks that it is made of."""
    if query.joint is None or query.joint.plain:
        return Runtime(query.network)
    from mucg4.gate.joint import JointRuntime

    return JointRuntime(query)
