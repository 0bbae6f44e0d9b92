"""How good translations are: chrF (Popović 2015) by sacrebleu, and exact matches."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.errors import UserError

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """Of one set of translations."""

    count: int
    """Translations."""
    chrf: float
    """Character n-grams up to 6, F2, over all translations together: 0 to 100."""
    low: float
    """95 % bootstrap interval, over sentences, of the mean chrF of a sentence, moved to `chrf`."""
    high: float
    exact: float
    """Percent that equal their reference but for case, punctuation and white space."""

    def __str__(self) -> str:
        return f"{self.chrf:.1f} [{self.low:.1f}, {self.high:.1f}]"


def score(translations: Sequence[str], references: Sequence[str], seed: int = 0) -> Score:
    """Raises `UserError` without sacrebleu, or if the numbers of translations and references differ."""
    if len(translations) != len(references) or not references:
        raise UserError(
            f"{len(translations)} translations for {len(references)} references; there must be one for each"
        )
    metric = _chrf()
    chrf = metric.corpus_score(list(translations), [list(references)]).score
    each = np.array([metric.sentence_score(t, [r]).score for t, r in zip(translations, references)])
    drawn = np.random.default_rng(seed).integers(0, len(each), (RESAMPLES, len(each)))
    low, high = np.quantile(each[drawn].mean(1), (0.025, 0.975)) - each.mean() + chrf
    equal = [normalise(t) == normalise(r) for t, r in zip(translations, references)]
    return Score(len(each), chrf, max(0.0, float(low)), min(100.0, float(high)), 100 * float(np.mean(equal)))


def normalise(text: str) -> str:
    """Lower case, words only."""
    return " ".join(re.findall(r"[\w']+", text.lower()))


def first_line(answer: str) -> str:
    """The translation in a model's answer: its first line that is not empty, without quotation marks around it."""
    line = next((line.strip() for line in answer.splitlines() if line.strip()), "")
    return line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line


def _chrf() -> Any:
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise UserError("chrF needs sacrebleu: pip install '.[evaluation]'") from None
    return CHRF()
