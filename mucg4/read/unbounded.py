"""Properties that leave inputs without bounds: any value will do where nothing reads them.

Else there may be witnesses in larger and larger boxes, but no proof: the cases are a part of what is asked.
"""

from __future__ import annotations

from fractions import Fraction

from mucg4.model.formula import ParsedProperty
from mucg4.model.network import Network
from mucg4.model.query import Case
from mucg4.read.normal import UnboundedError, open_inputs, to_cases

SPANS = (Fraction(1), Fraction(100), Fraction(10_000))  # how far inputs without bounds are looked at; not measured
MOST_OPEN = 1000  # inputs without bounds that are looked at one by one; not measured


def open_cases(prop: ParsedProperty, network: Network, what: str) -> tuple[tuple[Case, ...], str]:
    """Cases, and why they are not all that is asked, "" where they are; `what` names an input without a bound."""
    asked = open_inputs(prop, network.element_type)[:MOST_OPEN]
    ignored = frozenset(asked if not network.reads(asked) else [i for i in asked if not network.reads([i])])
    try:
        return to_cases(prop, network.element_type, ignored), ""
    except UnboundedError:
        every = [to_cases(prop, network.element_type, ignored, span) for span in SPANS]
        cases = tuple(case for some in every for case in some)
        return cases, f"{what}: no unsafe point was found with such inputs between -{SPANS[-1]} and {SPANS[-1]}"
