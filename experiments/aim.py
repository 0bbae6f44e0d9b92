"""A goal that an experiment was set, beside what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Aim:
    """One goal."""

    what: str
    """What is compared."""
    aim: str
    """The goal, in words."""
    measured: str
    """The result, in the same unit."""
    reached: bool
    """Whether the result is at least as good as the goal."""
