"""What the loop says when a run cannot go on: step, numbers, what is kept, and what to try."""

import math
from collections.abc import Mapping
from pathlib import Path


def last_kept(steps: tuple[int, ...]) -> str:
    """Which of the saved steps a run would go on from."""
    return f"the last good checkpoint, step {steps[-1]}, is kept" if steps else "no checkpoint was saved before it"


def not_finite(step: int, numbers: Mapping[str, float], run: Path, steps: tuple[int, ...]) -> str:
    """A loss or gradient that is not finite."""
    what = (
        f"loss is {numbers['loss']}"
        if not math.isfinite(numbers["loss"])
        else f"gradient norm is {numbers['grad_norm']}"
    )
    return (
        f"step {step}: the {what} on batch {step} of the data; {last_kept(steps)}; try a smaller "
        f"optimizer.learning_rate, or look at that batch (run {run})"
    )


def too_many_spikes(step: int, numbers: Mapping[str, float], run: Path, steps: tuple[int, ...]) -> str:
    """More steps in a row left out as spikes than allowed."""
    values = " and ".join(
        f"{name} {numbers[key]:.4g} (limit {numbers[key + '_limit']:.4g})"
        for name, key in (("loss", "loss"), ("gradient norm", "grad_norm"))
    )
    return (
        f"step {step}: {numbers['skipped_in_a_row']} steps in a row were left out as loss spikes, the last one with "
        f"{values}; {last_kept(steps)}; raise optimizer.skip_spikes, lower optimizer.learning_rate, or look at these "
        f"batches (run {run})"
    )
