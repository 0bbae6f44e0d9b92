"""What one run found, and its JSON."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.kept import read_fields
from experiments.shared_workspace.arms import Run


@dataclass(frozen=True)
class Result:
    """Of a model, or of a baseline, which has figures only."""

    run: Run
    """Which one."""
    figures: dict[str, float]
    """By name; finite numbers."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, mean training loss of the steps since the one before)."""
    parameters: int = 0
    """Of the model."""
    milliseconds: float = 0.0
    """Median of a training step."""
    seconds: float = 0.0
    """Of training."""
    pictures: dict[str, Any] = field(default_factory=dict)
    """Small arrays that are drawn, as lists."""


def read_result(path: Path) -> Result:
    """The inverse of `write_json(asdict(result), path)`."""
    fields = read_fields(path)
    curve = tuple((int(step), float(loss)) for step, loss in fields["curve"])
    return Result(**fields | {"run": Run(**fields["run"]), "curve": curve})
