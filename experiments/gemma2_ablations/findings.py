"""What the runs say: differences seed by seed, sensitivity to the learning rate, and the report's claims."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.gemma2_ablations.arms import (
    ARMS,
    BASE,
    DEEP,
    GELU,
    MULTI_HEAD,
    NO_CAPS,
    PRE_NORMS,
    SAME_WIDTHS,
    WIDE,
)
from experiments.gemma2_ablations.worker import Result
from experiments.interval import Interval, interval

SAME = 0.03
"""Nats per token: losses that differ by less are the same here (3 % of perplexity)."""

Claim = Literal["lower", "same", "none"]


def loss_of(run: Result) -> float:
    """The last held-out loss, but no more than that of random weights (as in arXiv 2309.14322, section 2): a run that
    diverged counts as one that has learnt nothing."""
    return run.initial_loss if run.held_out_loss is None else min(run.held_out_loss, run.initial_loss)


def has_learnt(run: Result) -> bool:
    """Whether all steps were finite and the loss is below that of the frequencies of tokens."""
    return run.stopped_at is None and loss_of(run) < run.unigram_loss


def largest(run: Result, of: Literal["attention", "final"]) -> float:
    """The largest logit over training before the soft-cap; infinite if one was not finite."""
    values = [getattr(each, of) for each in run.probes]
    return max(math.inf if value is None else value for value in values)


def rates_of(runs: Sequence[Result]) -> list[float]:
    """All learning rates, ascending."""
    return sorted({run.run.learning_rate for run in runs})


def select(runs: Sequence[Result], arm: str, rate: float) -> dict[int, Result]:
    """Runs of an arm at a learning rate, by seed."""
    return {run.run.seed: run for run in runs if (run.run.arm, run.run.learning_rate) == (arm, rate)}


def by_arm(runs: Sequence[Result], rate: float) -> dict[str, list[Result]]:
    """Those at one learning rate, in the order of `ARMS`."""
    found = {arm: list(select(runs, arm, rate).values()) for arm in ARMS}
    return {arm: own for arm, own in found.items() if own}


def over_seeds(runs: Sequence[Result], value: Callable[[Result], float] = loss_of) -> Interval:
    """Mean and interval."""
    return interval([value(run) for run in runs])


def paired(
    runs: Sequence[Result], arm: str, against: str, rate: float, value: Callable[[Result], float] = loss_of
) -> Interval | None:
    """The value of an arm minus that of another one, seed by seed; None without a seed that both have."""
    own, other = select(runs, arm, rate), select(runs, against, rate)
    seeds = sorted(own.keys() & other.keys())
    return interval([value(own[seed]) - value(other[seed]) for seed in seeds]) if seeds else None


def sensitivities(runs: Sequence[Result], arm: str) -> dict[int, float]:
    """By seed, of seeds that have all learning rates: mean over the rates of (loss - the best of them), "LR
    sensitivity" of arXiv 2309.14322, section 2. 0 means that any rate will do."""
    rates, found = rates_of(runs), {}
    for seed in sorted({run.run.seed for run in runs}):
        own = [select(runs, arm, rate).get(seed) for rate in rates]
        losses = [loss_of(run) for run in own if run is not None]
        if len(losses) == len(rates) > 1:
            found[seed] = sum(losses) / len(losses) - min(losses)
    return found


def paired_sensitivity(runs: Sequence[Result], arm: str, against: str) -> Interval | None:
    """Of an arm minus that of another one, seed by seed."""
    own, other = sensitivities(runs, arm), sensitivities(runs, against)
    seeds = sorted(own.keys() & other.keys())
    return interval([own[seed] - other[seed] for seed in seeds]) if seeds else None


def cost_of_window(runs: Sequence[Result], window: int) -> Interval | None:
    """Loss with another window at inference minus that with the window of training, seed by seed."""
    own = [run.windows for run in runs if window in dict(run.windows)]
    return interval([dict(losses)[window] - losses[0][1] for losses in own]) if own else None


def windows_of(runs: Sequence[Result]) -> list[int]:
    """Windows at inference; the first is that of training."""
    return list(dict.fromkeys(window for run in runs for window, _ in run.windows))


@dataclass(frozen=True)
class Ablation:
    """One line of the table."""

    what: str
    """What is subtracted from what."""
    unit: str
    """Of the difference."""
    paper: str
    """The report's figure."""
    claim: Claim
    """What it says of the difference."""
    measured: Interval | None
    """Ours; None: not measured."""

    @property
    def verdict(self) -> str:
        """Whether the claim is reproduced, by the 95 % interval."""
        return verdict(self.claim, self.measured)


def verdict(claim: Claim, found: Interval | None) -> str:
    """lower: reproduced if the whole interval is below 0. same: if it lies within +-`SAME`. Where the report says
    nothing: which way it goes."""
    if found is None:
        return "not measured"
    if found.count < 2:
        return "one seed: undecided"
    if claim == "same":
        if found.low > -SAME and found.high < SAME:
            return "reproduced"
        return "not reproduced" if found.low >= SAME or found.high <= -SAME else "undecided"
    below, above = found.high < 0, found.low > 0
    if claim == "lower":
        return "reproduced" if below else "not reproduced: the other way" if above else "undecided"
    return "lower" if below else "higher" if above else "cannot be told from none"


NOTHING = "no figure"
NATS = "nats per token"


def ablations(runs: Sequence[Result], rate: float) -> list[Ablation]:
    """The table of ablations; `rate` is the learning rate of all but those of learning rates."""

    def of(what: str, paper: str, claim: Claim, arm: str, against: str) -> Ablation:
        return Ablation(what, NATS, paper, claim, paired(runs, arm, against, rate))

    def logit(what: str, against: str) -> Ablation:
        of_largest = lambda run: math.log(max(largest(run, "attention"), 1e-9))  # noqa: E731
        finite = [run for run in runs if math.isfinite(largest(run, "attention"))]
        return Ablation(what, "log of the ratio", NOTHING, "none", paired(finite, BASE, against, rate, of_largest))

    def sensitivity(what: str, against: str) -> Ablation:
        return Ablation(what, "nats, LR sensitivity", NOTHING, "none", paired_sensitivity(runs, BASE, against))

    found = [
        of("grouped minus multi-head, same widths", "50.8 against 50.3 points (table 8): few changes", "same",
           BASE, SAME_WIDTHS),
        of("grouped minus multi-head, equal parameters", NOTHING, "none", BASE, MULTI_HEAD),
        of("deep minus wide", "52.0 against 50.8 points (table 9)", "lower", DEEP, WIDE),
        of("with minus without soft-caps", NOTHING, "none", BASE, NO_CAPS),
        sensitivity("with minus without soft-caps", NO_CAPS),
        logit("with against without soft-caps: largest attention logit", NO_CAPS),
        of("pre- and post-norms minus pre-norms", NOTHING, "none", BASE, PRE_NORMS),
        sensitivity("pre- and post-norms minus pre-norms", PRE_NORMS),
        logit("pre- and post-norms against pre-norms: largest attention logit", PRE_NORMS),
        of("GeGLU minus GELU", "no figure; better in arXiv 2002.05202", "lower", BASE, GELU),
    ]  # fmt: skip
    trained = windows_of(runs)[:1]
    for divisor, paper in ((2, "perplexity 1.63 against 1.63 (table 10): 0.000"),
                           (4, "perplexity 1.64 against 1.63 (table 10): 0.006")):  # fmt: skip
        cost = cost_of_window(runs, trained[0] // divisor) if trained else None
        found.append(Ablation(f"window W/{divisor} minus W at inference", NATS, paper, "same", cost))
    return found
