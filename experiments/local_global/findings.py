"""What the runs say: differences seed by seed, the price of a smaller window, ratios of time, and the goals."""

import math
import statistics
from collections.abc import Callable, Sequence

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.local_global.arms import ALL_GLOBAL, ALL_LOCAL, INTERLEAVED, PATTERNS
from experiments.local_global.copying import Copying
from experiments.local_global.costs import Costs
from experiments.local_global.worker import Result

TOLERATED = 0.02
"""Nats per token, and part of the copies, that count as equal."""
PAPER_WINDOWS = ((2, 1.006), (4, 1.012))
"""(divisor of the window, relative perplexity): Gemma 2's 1.63, 1.63 and 1.64 (arXiv 2408.00118, table 10), at the
upper ends of what these round."""


def by_arm(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in the order of their seeds."""
    ordered = sorted(results, key=lambda result: result.run.seed)
    found = {arm: [result for result in ordered if result.run.arm == arm] for arm in PATTERNS}
    return {arm: runs for arm, runs in found.items() if runs}


def over_seeds(results: Sequence[Result], of: Callable[[Copying], float]) -> Interval:
    """The mean of a number over the runs of one arm, with the window of training."""
    return interval([of(result.copying) for result in results])


def paired(results: Sequence[Result], arm: str, against: str, of: Callable[[Copying], float]) -> Interval | None:
    """The difference of a number, seed by seed: both arms read the same tokens in the same order."""
    found = by_arm(results)
    ours, theirs = ({r.run.seed: of(r.copying) for r in found.get(name, [])} for name in (arm, against))
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return interval(differences) if differences else None


def relative_perplexity(results: Sequence[Result], window: str) -> Interval:
    """exp of what the text costs more with this window than with that of training, of the runs of one arm."""
    return interval([math.exp(result.windows[window].text - result.copying.text) for result in results])


def ratios(seconds: dict[str, tuple[float, ...]], arm: str) -> list[float]:
    """Of each round: the time of an arm / that of the all-global model."""
    return [ours / theirs for ours, theirs in zip(seconds[arm], seconds[ALL_GLOBAL], strict=True)]


def cache_part(costs: Costs, arm: str, length: int) -> float:
    """Bytes of keys and values / those of the all-global model."""
    sizes = {each.arm: each.arrays for each in costs.caches if each.length == length}
    return sizes[arm] / sizes[ALL_GLOBAL]


def aims(results: Sequence[Result], costs: Costs) -> list[Aim]:
    """The goals that this experiment was set."""
    arms = by_arm(results)
    listed = []
    recall = paired(results, INTERLEAVED, ALL_GLOBAL, lambda c: c.recall)
    text = paired(results, INTERLEAVED, ALL_GLOBAL, lambda c: c.text)
    assert recall is not None and text is not None
    what = f"{INTERLEAVED} minus {ALL_GLOBAL}"
    listed.append(Aim(f"recall of copies, {what}", f">= -{TOLERATED}", f"{recall}", recall.low >= -TOLERATED))
    listed.append(Aim(f"nats per token of text, {what}", f"<= {TOLERATED}", f"{text}", text.high <= TOLERATED))
    copied = over_seeds(arms[INTERLEAVED], lambda c: c.recall - c.guessed)
    aim = "interval above 0"
    listed.append(Aim(f"recall of copies beyond guessing, {INTERLEAVED}", aim, f"{copied}", copied.low > 0))
    unseen = over_seeds(arms[ALL_LOCAL], lambda c: c.recall - c.guessed)
    what = f"recall of copies beyond guessing, {ALL_LOCAL}"
    listed.append(Aim(what, f"<= {TOLERATED}", f"{unseen}", unseen.high <= TOLERATED))
    equal = all(each.formula == each.arrays for each in costs.caches)
    listed.append(Aim("bytes of keys and values", "the formula's", "equal" if equal else "different", equal))
    longest = max(each.length for each in costs.caches)
    part = cache_part(costs, INTERLEAVED, longest)
    what = f"cache of {longest:,} tokens, {INTERLEAVED} / {ALL_GLOBAL}"
    listed.append(Aim(what, "<= 0.51", f"{part:.3f}", part <= 0.51))
    for what, seconds in (("training step", costs.times.step), ("decode step", costs.times.decode)):
        ratio = statistics.median(ratios(seconds, INTERLEAVED))
        listed.append(Aim(f"time of a {what}, {INTERLEAVED} / {ALL_GLOBAL}", "< 1", f"{ratio:.3f}", ratio < 1))
    return listed + _window_aims(arms[INTERLEAVED])


def _window_aims(results: Sequence[Result]) -> list[Aim]:
    trained, *others = map(int, results[0].windows)
    listed = []
    for divisor, most in PAPER_WINDOWS:
        if trained // divisor in others:
            found = relative_perplexity(results, str(trained // divisor))
            what = f"relative perplexity of text, {INTERLEAVED}, window / {divisor} at inference"
            listed.append(Aim(what, f"<= {most} (Gemma 2 9B)", f"{found}", found.mean <= most))
    return listed
