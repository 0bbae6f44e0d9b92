"""Which cells of a grid run in the ordinary suite: at least one of every kind; `-m slow` runs the rest."""

from typing import Any

import pytest


def slow(*cells: Any) -> list[Any]:
    """Cells of `pytest.mark.parametrize` that only `-m slow` runs."""
    return [pytest.param(*(cell if isinstance(cell, tuple) else (cell,)), marks=pytest.mark.slow) for cell in cells]


def all_but(ordinary: list[Any], cells: list[Any]) -> list[Any]:
    """All `cells` in their order; those that are not `ordinary` are slow. Every ordinary one must be a cell."""
    missing = [cell for cell in ordinary if cell not in cells]
    assert not missing, f"no cells of the grid: {missing}"
    return [cell if cell in ordinary else slow(cell)[0] for cell in cells]
