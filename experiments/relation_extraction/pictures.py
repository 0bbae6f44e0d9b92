"""Precision over recall, a line for each model."""

from collections.abc import Mapping
from pathlib import Path

from experiments.plotting import pyplot
from experiments.relation_extraction.metrics import Curve, area


def draw_curves(curves: Mapping[str, Curve], path: Path, title: str = "") -> None:
    """Writes the picture; the legend gives the area under each."""
    figure, axis = pyplot().subplots(figsize=(5.5, 4.2), layout="constrained")
    for name, curve in curves.items():
        axis.plot(curve.recall, curve.precision, lw=1.2, label=f"{name}: {area(curve):.3f}")
    axis.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02), title=title)
    axis.legend(fontsize=8, title="area", title_fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
