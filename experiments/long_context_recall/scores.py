"""One function per metric: (sample, what the model wrote) -> 0 .. 1; and the rank of an answer by its likelihood."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
from jaxtyping import Float

from experiments.long_context_recall.samples import Sample

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
"""The labels of BABILong's qa1 - qa3."""
SPLIT_AT = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))


def string_match_all(sample: Sample, output: str) -> float:
    """Share of the references that the output contains, in any case (RULER)."""
    return sum(reference.lower() in output.lower() for reference in sample.references) / len(sample.references)


def string_match_part(sample: Sample, output: str) -> float:
    """Whether the output contains any of the references, in any case (RULER's questions and answers)."""
    return float(any(reference.lower() in output.lower() for reference in sample.references))


def first_number(sample: Sample, output: str) -> float:
    """Whether the first run of digits is the reference (InfiniteBench's pass key and number string)."""
    found = re.search(r"[0-9]+", output)
    return float(found is not None and found.group() == sample.references[0])


def word_match(sample: Sample, output: str) -> float:
    """Whether the reference is among the words of the output, punctuation being space (InfiniteBench's key-value)."""
    return float(sample.references[0] in output.translate(SPLIT_AT).split())


def exact_span(sample: Sample, output: str) -> float:
    """Whether the output begins with the reference as whole words; case, punctuation and white space do not count."""
    words, wanted = _plain(output), _plain(sample.references[0])
    return float(words[: len(wanted)] == wanted)


def numbers_found(sample: Sample, output: str) -> float:
    """Recall of several needles: share of the references among the numbers of the output, each number used once."""
    written, wanted = Counter(re.findall(r"[0-9]+", output)), Counter(sample.references)
    return sum((written & wanted).values()) / len(sample.references)


def mrcr(sample: Sample, output: str) -> float:
    """0 unless the output begins with the first reference, a random string; else the ratio of what follows and the
    second by difflib.SequenceMatcher with its defaults (OpenAI's MRCR)."""
    prefix, reference = sample.references
    written = output.lstrip()
    if not written.startswith(prefix):
        return 0.0
    return float(SequenceMatcher(None, written.removeprefix(prefix), reference).ratio())


def babilong(sample: Sample, output: str) -> float:
    """Whether the reference is the only place that the first sentence names, those of the question left out."""
    said = re.split(r"\.|<context>|<example>|question", output.lower())[0]
    named = {place for place in PLACES if place in said and place not in sample.question.lower()}
    return float(named == {sample.references[0]})


METRICS = {
    function.__name__: function
    for function in (
        string_match_all, string_match_part, first_number, word_match, exact_span, numbers_found, mrcr, babilong,
    )
}  # fmt: skip


def score(sample: Sample, output: str) -> float:
    """The sample's own metric."""
    return METRICS[sample.metric](sample, output)


def likelihood_rank(sample: Sample, log_likelihoods: Sequence[float] | Float[np.ndarray, " candidates"]) -> int:
    """How many candidates are at least as likely as the right answer (0 = it is ahead of all), given the log-likelihood
    of each candidate after the prompt. A tie counts against it."""
    right = sample.candidates.index(sample.answer)
    values = np.asarray(log_likelihoods, np.float64)
    if values.shape != (len(sample.candidates),):
        raise ValueError(f"{len(sample.candidates)} candidates, log-likelihoods of shape {values.shape}")
    return int((values >= values[right]).sum()) - 1


def _plain(text: str) -> list[str]:
    return text.lower().translate(str.maketrans("", "", string.punctuation)).split()
