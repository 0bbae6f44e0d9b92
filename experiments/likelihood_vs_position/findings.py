"""What the runs say: curves by position, their power laws, and what is gained beyond the window's reach."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.likelihood_vs_position.arms import LONG, WINDOW
from experiments.likelihood_vs_position.fit import PowerLaw, Spread, fit_power_law, fit_spread, spread
from experiments.likelihood_vs_position.worker import Result

FIRST_FITTED = 64
"""Laws are fitted from this position on: before it the mean is that of few tokens."""
LEAST_LENGTH = 2 * FIRST_FITTED
"""Laws are fitted up to this position at least: to an octave."""
CUMULATIVE, BY_POSITION = "cumulative", "by position"
ENOUGH_R2 = 0.95

Curves = Float[np.ndarray, "documents n"]
Bucket = tuple[int, int]
"""Tokens after the first `start` and up to `stop`."""


def by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in the order of their seeds."""
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.run.seed):
        found.setdefault(result.run.arm, []).append(result)
    return found


def pooled(results: Sequence[Result]) -> Curves:
    """Sums of the first x tokens, [passages, positions]: the mean over seeds."""
    return np.mean([np.array(result.sums) for result in results], axis=0)


def cumulative(results: Sequence[Result]) -> Curves:
    """Mean negative log-likelihood of the first x tokens: what Gemini 1.5's report plots."""
    return pooled(results) / np.array(results[0].positions)


def in_bucket(results: Sequence[Result], bucket: Bucket) -> Float[np.ndarray, " documents"]:
    """Mean negative log-likelihood of a bucket's tokens in each passage; its ends are 0 or positions of the runs."""
    positions, sums = results[0].positions, pooled(results)
    start, stop = bucket
    before = sums[:, positions.index(start)] if start else 0.0
    return (sums[:, positions.index(stop)] - before) / (stop - start)


def buckets(positions: Sequence[int]) -> list[Bucket]:
    """From one position to the next, all tokens in exactly one."""
    return list(zip((0, *positions[:-1]), positions, strict=True))


def octaves(positions: Sequence[int]) -> list[Bucket]:
    """As `buckets`, from one power of two to the next; the first one ends at `FIRST_FITTED`."""
    length = positions[-1]
    return buckets([x for x in positions if FIRST_FITTED <= x < length and x & (x - 1) == 0] + [length])


def near_and_far(positions: Sequence[int], reach: int) -> tuple[Bucket, Bucket] | None:
    """The first octave that begins beyond the control's reach, and the last one; None if they are not two."""
    beyond = [bucket for bucket in octaves(positions) if bucket[0] >= reach]
    return (beyond[0], beyond[-1]) if len(beyond) > 1 else None


@dataclass(frozen=True)
class Fit:
    """A power law of one arm."""

    arm: str
    """Which model."""
    of: str
    """CUMULATIVE or BY_POSITION."""
    up_to: int
    """The last position that is fitted."""
    law: PowerLaw
    """Of the mean over passages and seeds."""
    spreads: dict[str, Spread]
    """Of "a", "b", "c" and "r2", over resampled passages."""
    exponent: Interval
    """b over seeds, of the laws of single seeds."""


def points(results: Sequence[Result], of: str, up_to: int) -> tuple[np.ndarray, Curves]:
    """x and, for each passage, what is fitted: a bucket is at the geometric middle of its ends."""
    positions = results[0].positions
    if of == CUMULATIVE:
        kept = [i for i, x in enumerate(positions) if FIRST_FITTED <= x <= up_to]
        return np.array(positions, float)[kept], cumulative(results)[:, kept]
    pairs = [pair for pair in buckets(positions) if pair[0] >= FIRST_FITTED and pair[1] <= up_to]
    return np.sqrt([a * b for a, b in pairs]), np.stack([in_bucket(results, pair) for pair in pairs], axis=1)


def fits(results: Sequence[Result], trained_length: int, draws: int) -> list[Fit]:
    """Of every arm: the cumulative mean up to the trained length (if that is an octave) and up to the end, and the
    buckets up to the end."""
    length = results[0].positions[-1]
    wanted = dict.fromkeys([(CUMULATIVE, min(trained_length, length)), (CUMULATIVE, length), (BY_POSITION, length)])
    wanted = [(of, up_to) for of, up_to in wanted if up_to >= LEAST_LENGTH]
    found = []
    for arm, runs in by_arm(results).items():
        for of, up_to in wanted:
            law, spreads = fit_spread(*points(runs, of, up_to), draws)
            singles = [points([run], of, up_to) for run in runs]
            exponents = [fit_power_law(x, curves.mean(0)).b for x, curves in singles]
            found.append(Fit(arm, of, up_to, law, spreads, interval(exponents)))
    return found


def change(results: Sequence[Result], near: Bucket, far: Bucket, draws: int) -> Spread:
    """Nats per token of the far bucket minus those of the near one."""
    return spread(in_bucket(results, far) - in_bucket(results, near), draws)


def gain(results: Sequence[Result], bucket: Bucket, draws: int) -> Spread | None:
    """Nats per token that the long model is better by than the control, on the same tokens; None without both."""
    found = by_arm(results)
    if LONG not in found or WINDOW not in found:
        return None
    return spread(in_bucket(found[WINDOW], bucket) - in_bucket(found[LONG], bucket), draws)


def aims(results: Sequence[Result], found: Sequence[Fit], reach: int | None, draws: int) -> list[Aim]:
    """The goals that this experiment was set, as far as their arms took part; of a checkpoint only the law's."""
    arms, length = by_arm(results), results[0].positions[-1]
    listed = []
    for fit in found:
        if fit.of == CUMULATIVE and fit.up_to == length and fit.arm != WINDOW:
            what, r2 = f"R2 of the power law, {fit.arm}, {length} tokens", fit.law.r2
            falls = fit.law.a > 0
            measured = f"{r2:.4f}" + ("" if falls else ", but it rises")
            listed.append(Aim(what, f">= {ENOUGH_R2}, falling", measured, r2 >= ENOUGH_R2 and falls))
    pair = None if reach is None else near_and_far(results[0].positions, reach)
    if pair is None or LONG not in arms or WINDOW not in arms:
        return listed
    where = f"tokens {pair[1][0]} to {pair[1][1]} against {pair[0][0]} to {pair[0][1]}"
    long, window = (change(arms[arm], *pair, draws) for arm in (LONG, WINDOW))
    more = spread(np.subtract(*(in_bucket(arms[WINDOW], b) - in_bucket(arms[LONG], b) for b in pair[::-1])), draws)
    listed.append(Aim(f"{LONG}: nats per token, {where}", "interval below 0", str(long), long.high < 0))
    listed.append(Aim(f"{WINDOW}: the same", "0 in the interval", str(window), window.low <= 0 <= window.high))
    listed.append(Aim(f"gain over {WINDOW}: the same", "interval above 0", str(more), more.low > 0))
    return listed
