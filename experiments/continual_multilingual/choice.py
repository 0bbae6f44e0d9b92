"""Learning rates and strengths of penalties, chosen on development rows of updated languages alone.

With seed 0 and the first updates of the family: the rate with the largest mean gain on the updated languages; of the
penalties the strongest that keeps `Size.kept_gain` of full fine-tuning's gain (the weakest, if none does). A score of
an updated language cannot tell how well others are kept: it would always choose the weakest penalty.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.continual_multilingual.arms import EWC, FULL, L2_SP, RATE_OF, Arm, arm_named
from experiments.continual_multilingual.sizes import Size
from experiments.continual_multilingual.updates import Session
from experiments.kept import read_fields, write_signed
from experiments.runs import say

SEED = 0


@dataclass(frozen=True)
class Choice:
    """What was tried and taken."""

    rates: dict[str, float]
    """By what trains."""
    pulls: dict[str, float]
    """By arm with a penalty."""
    tried: tuple[tuple[str, float, float], ...]
    """(arm, rate or strength, mean gain on development rows of the updated languages)."""
    seconds: float
    """Processor time of the choice, stage 0 included where it was not there."""

    def of(self, arm: Arm) -> tuple[float, float]:
        """(rate, strength of the penalty)."""
        return self.rates[arm.kind], self.pulls.get(arm.name, 0.0)


def best_rate(gains: Mapping[float, float]) -> float:
    """That of the largest gain; the lowest of equals."""
    return min(gains, key=lambda rate: (-gains[rate], rate))


def strongest_pull(gains: Mapping[float, float], free: float, kept: float) -> float:
    """The strongest that keeps the part `kept` of the gain without a penalty; the weakest, if none does."""
    enough = [pull for pull, gain in gains.items() if gain >= kept * free]
    return max(enough) if enough else min(gains)


def choose(session: Session, size: Size, folder: Path, path: Path, digest: str) -> Choice:
    """Tries all, or reads what was chosen before. The JSON is the choice's, with a digest of the settings."""
    if path.is_file():
        return read_choice(path)
    began = time.process_time()
    session.begin(SEED, folder)
    updates = range(min(size.choice_subsets, len(session.family.subsets)))
    tried: list[tuple[str, float, float]] = []

    def gain(arm: Arm, rate: float, pull: float) -> float:
        found = [session.update(arm, number, rate, pull, measured=False) for number in updates]
        return round(statistics.fmean(one.dev_after - one.dev_before for one in found), 5)

    rates: dict[str, float] = {}
    for kind, name in RATE_OF.items():
        gains = {rate: gain(arm_named(name), rate, 0.0) for rate in size.rates[kind]}
        tried += [(name, rate, found) for rate, found in gains.items()]
        rates[kind] = best_rate(gains)
        say(f"{session.family.name}: {name}: rate {rates[kind]:g} of {told(gains)}")
    free = max(found for name, _, found in tried if name == FULL)
    pulls: dict[str, float] = {}
    for name in (L2_SP, EWC):
        gains = {pull: gain(arm_named(name), rates["full"], pull) for pull in size.pulls}
        tried += [(name, pull, found) for pull, found in gains.items()]
        pulls[name] = strongest_pull(gains, free, size.kept_gain)
        say(f"{session.family.name}: {name}: strength {pulls[name]:g} of {told(gains)}")
    choice = Choice(rates, pulls, tuple(tried), round(time.process_time() - began, 1))
    write_signed(asdict(choice), digest, path)
    return choice


def told(gains: Mapping[float, float]) -> str:
    """For a line of progress."""
    return ", ".join(f"{value:g}: {100 * gain:+.1f}" for value, gain in gains.items())


def read_choice(path: Path) -> Choice:
    """From JSON."""
    fields = read_fields(path)
    tried: Sequence = fields["tried"]
    told = tuple((str(n), float(v), float(g)) for n, v, g in tried)
    return Choice(fields["rates"], fields["pulls"], told, fields["seconds"])
