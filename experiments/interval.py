"""Means over seeds with their intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

STUDENT_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Two-sided 95 % quantile of Student's t by the number of runs (one more than its degrees of freedom)."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % interval."""

    mean: float
    """Of all seeds."""
    half: float
    """Half of the interval's width, t * s / sqrt(n); infinite for one seed."""
    count: int
    """Seeds."""

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half

    def __str__(self) -> str:
        if self.count == 1:
            return f"{self.mean:.4f} (one seed)"
        return f"{self.mean:.4f} ± {self.half:.4f}"


def interval(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of the mean; with more seeds than the table has, its last quantile (a little wide)."""
    count = len(values)
    if count < 2:
        return Interval(values[0], math.inf, count)
    t = STUDENT_T.get(count, STUDENT_T[max(STUDENT_T)])
    return Interval(statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(count), count)
