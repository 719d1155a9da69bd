"""The former place of `mucg4.program`."""

from mucg4.program import simple_multipliers

__all__ = ["simple_multipliers"]
