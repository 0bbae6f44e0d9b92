"""What pictures of several experiments begin with."""

from typing import Any


def pyplot() -> Any:
    """matplotlib.pyplot without a window system."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def side_by_side(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """(figure, its axes): `count` of them side by side, each so many inches wide and high."""
    drawn, axes = pyplot().subplots(1, count, figsize=(width * count, height), squeeze=False, layout="constrained")
    return drawn, list(axes[0])
