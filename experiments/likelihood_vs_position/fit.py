"""The power law L(x) = a x^b + c by least squares, and intervals by resampling documents."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

STEEPEST, FLATTEST = -3.0, -0.01
"""Exponents between which is searched; at FLATTEST the law is all but a logarithm."""
GRID, ZOOMS = 121, 4
"""Exponents tried at once; how often the interval between the best one's neighbours is searched again."""


@dataclass(frozen=True)
class PowerLaw:
    """L(x) = a x^b + c."""

    a: float
    """Scale; above 0 where L falls."""
    b: float
    """Exponent, below 0."""
    c: float
    """What L goes to."""
    r2: float
    """1 - sum of squared residuals / sum of squared differences from the mean; 0 where L is constant."""

    @property
    def at_bound(self) -> bool:
        """Whether no best exponent lies inside of the searched range."""
        return not STEEPEST * 0.999 < self.b < FLATTEST * 1.001

    def __call__(self, x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        return self.a * np.asarray(x, np.float64) ** self.b + self.c


@dataclass(frozen=True)
class Spread:
    """A number and its 95 % interval over resampled documents."""

    value: float
    """Of all documents."""
    low: float
    """2.5 % quantile of the resamples."""
    high: float
    """97.5 % quantile."""

    def __str__(self) -> str:
        return f"{self.value:.4f} ({self.low:.4f} .. {self.high:.4f})"


def fit_power_law(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> PowerLaw:
    """The law with the least sum of (y - L(x))^2, all points weighted alike.

    For a given b the best a and c are those of a straight line through (x^b, y); b is searched on a grid that is
    narrowed round its best point. Raises ValueError for fewer than 4 points or an x below 1.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 4 or x.min() < 1:
        raise ValueError(
            f"a power law needs at least 4 points from x = 1 on, got {len(x)} from {x.min(initial=np.inf):g} on"
        )
    total = float(np.sum((y - y.mean()) ** 2))
    low, high = np.log(-FLATTEST), np.log(-STEEPEST)
    for _ in range(ZOOMS):
        exponents = -np.exp(np.linspace(low, high, GRID))
        powers = x ** exponents[:, None]
        centred = powers - powers.mean(1, keepdims=True)
        slopes = centred @ (y - y.mean()) / np.sum(centred**2, 1)
        left = total - slopes**2 * np.sum(centred**2, 1)
        best = int(np.argmin(left))
        around = np.log(-exponents[[max(best - 1, 0), min(best + 1, GRID - 1)]])
        low, high = float(around.min()), float(around.max())
    a, b = float(slopes[best]), float(exponents[best])
    residual = float(np.sum((y - y.mean() - a * centred[best]) ** 2))
    return PowerLaw(a, b, float(y.mean() - a * powers[best].mean()), 1 - residual / total if total > 0 else 0.0)


def resampled(documents: int, draws: int, seed: int = 0) -> np.ndarray:
    """int [draws, documents]: numbers of documents, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, documents, (draws, documents))


def spread(
    values: Float[np.ndarray, "documents ..."], draws: int, of: Callable[[np.ndarray], float] = float, seed: int = 0
) -> Spread:
    """`of` the mean over documents, with its interval: the same of resampled documents."""
    found = [of(values[chosen].mean(0)) for chosen in resampled(len(values), draws, seed)]
    low, high = np.quantile(found, (0.025, 0.975))
    return Spread(of(values.mean(0)), float(low), float(high))


def fit_spread(
    x: Float[np.ndarray, " n"], curves: Float[np.ndarray, "documents n"], draws: int, seed: int = 0
) -> tuple[PowerLaw, dict[str, Spread]]:
    """The law of the mean curve, and the spread of "a", "b", "c" and "r2" over resampled documents."""
    law = fit_power_law(x, curves.mean(0))
    laws = [fit_power_law(x, curves[chosen].mean(0)) for chosen in resampled(len(curves), draws, seed)]
    found = {}
    for name in ("a", "b", "c", "r2"):
        low, high = np.quantile([getattr(each, name) for each in laws], (0.025, 0.975))
        found[name] = Spread(getattr(law, name), float(low), float(high))
    return law, found
