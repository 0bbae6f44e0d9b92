"""python -m experiments.relation_extraction.leakage: what makes a benchmark look easy, measured with the linear model.

DiS-ReX's central points (arXiv 2104.08655), on a corpus of several languages:

1. Without negative examples. The same scores, bags of `NA` left out of the test; and a model trained without them.
2. Without pairs of several relations, in the same two ways; and without both, as RELX-Distant is.
3. When sentences are divided without looking at pairs: half of the sentences of test pairs are tested, by a model that
   has learned from the other half, and by one that has as many sentences of other pairs instead.
4. When pairs leak between languages, on RELX, whose sentences are the same in five languages: for each fifth of the
   pairs and each language a model that has never seen the test pairs, and one that has seen them in other languages, as
   happens where each language is divided by itself. Both train on about as many sentences and have the same test.

Intervals are 95 % of bootstrap samples of the test bags, for one trained model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from experiments.relation_extraction.bags import Bag, instances_of, make_bags
from experiments.relation_extraction.corpus import Corpus, default_data, read_corpus
from experiments.relation_extraction.linear import LinearModel, train
from experiments.relation_extraction.metrics import Scored, bootstrap, bootstrap_difference, micro_f1
from experiments.relation_extraction.reader import NA, Instance, Relations
from experiments.relation_extraction.relx import read_relx
from experiments.relation_extraction.splits import by_language, by_pair, by_sentence, divided, uniform
from zoo.command_line import parse_command
from zoo.errors import run_command

PENALTY = 0.1
"""Of every model here: set beforehand, the same under all conditions."""
LANGUAGES = ("en", "de", "es", "fr", "tr")
"""Of RELX."""


def has_relation(bags: Sequence[Bag]) -> Bool[np.ndarray, "bags"]:
    """Whether a bag has any relation but `NA`."""
    return np.array([bool(bag.relations - {NA}) for bag in bags])


def at_most_one(bags: Sequence[Bag]) -> Bool[np.ndarray, "bags"]:
    """Whether a bag has no more than one relation, `NA` not counted."""
    return np.array([len(bag.relations - {NA}) < 2 for bag in bags])


CONDITIONS: dict[str, Callable[[Sequence[Bag]], Bool[np.ndarray, "bags"]]] = {
    "without NA": has_relation,
    "without several relations": at_most_one,
    "without both": lambda bags: has_relation(bags) & at_most_one(bags),
}
"""Which bags an easier benchmark has, by its name."""


def model_of(bags: Sequence[Bag], relations: Relations, least_of_mentions: int | None = None) -> LinearModel:
    """The linear model with the penalty of this page."""
    return train(bags, relations, penalties=(PENALTY,), least_of_mentions=least_of_mentions)


def easier(corpus: Corpus) -> dict[str, Scored]:
    """Scores of points 1 and 2, by name."""
    whole = model_of(corpus.train, corpus.relations).scored(corpus.test)
    found = {"as it is": whole}
    for name, condition in CONDITIONS.items():
        found[f"{name}, in the test"] = whole.where(condition(corpus.test))
        kept = [bag for bag, keep in zip(corpus.train, condition(corpus.train)) if keep]
        tested = [bag for bag, keep in zip(corpus.test, condition(corpus.test)) if keep]
        found[f"{name}, in training too"] = model_of(kept, corpus.relations).scored(tested)
    return found


def across_sentences(corpus: Corpus, seed: int = 0) -> tuple[Scored, Scored]:
    """Point 3: (scores of the model that has the other half of a test pair's sentences, of the one that has not).

    Of all the corpus' sentences, those of a fifth of the pairs are halved by a hash of the sentence. Pairs all of whose
    sentences fell into one half are left out: of the others, bags of one half are the test and the other half leaks.
    """
    parts = divided(instances_of([*corpus.train, *corpus.val, *corpus.test]), (0.8, 0.0, 0.2), by_pair, seed)
    halves = divided(parts["test"], (0.5, 0.0, 0.5), by_sentence, seed)
    in_both = {by_pair(one) for one in halves["train"]} & {by_pair(one) for one in halves["test"]}
    leaks, tested = ([one for one in halves[half] if by_pair(one) in in_both] for half in ("train", "test"))
    if not leaks or len(leaks) >= len(parts["train"]):
        raise ValueError(f"{corpus.name}: {len(leaks)} sentences can leak, beside {len(parts['train'])} of other pairs")
    others = sorted(parts["train"], key=lambda one: uniform(by_sentence(one), seed))
    # A pair is one bag of training: names that need five, as elsewhere, could not be remembered.
    leaking = model_of(make_bags([*others[: -len(leaks)], *leaks]), corpus.relations, least_of_mentions=1)
    clean = model_of(make_bags(others), corpus.relations, least_of_mentions=1)
    test = make_bags(tested)
    return leaking.scored(test), clean.scored(test)


def across_languages(
    instances: Sequence[Instance], relations: Relations, folds: int = 5, seed: int = 0
) -> dict[str, tuple[Scored, Scored]]:
    """Point 4, for each language: (scores of models that saw the pair in other languages, of models that did not).

    A pair's fold depends on the pair alone. The leaking model has from each other language, instead of the pairs of the
    other folds, as many that a hash of pair and language picks, as a division of that language by itself would.
    """
    fold_of = {by_pair(one): int(folds * uniform(by_pair(one), seed)) for one in instances}
    found: dict[str, tuple[list[Scored], list[Scored]]] = {}
    for fold in range(folds):
        seen = [one for one in instances if fold_of[by_pair(one)] != fold]
        clean = model_of(make_bags(seen, across_languages=False), relations)
        elsewhere = [one for one in instances if uniform(by_language(one), seed + 1 + fold) < 1 - 1 / folds]
        for language in sorted({str(one.language) for one in instances}):
            test = [one for one in instances if fold_of[by_pair(one)] == fold and one.language == language]
            own = [one for one in seen if one.language == language]
            leaking = model_of(
                make_bags([*own, *(one for one in elsewhere if one.language != language)], across_languages=False),
                relations,
            )
            pair = found.setdefault(language, ([], []))
            for scores, model in zip(pair, (leaking, clean)):
                scores.append(model.scored(make_bags(test)))
    return {language: (_joined(leaking), _joined(clean)) for language, (leaking, clean) in found.items()}


def _joined(parts: Sequence[Scored]) -> Scored:
    scores, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("scores", "labels"))
    return Scored(scores, labels, parts[0].positive)


def table(found: dict[str, Scored]) -> str:
    """Markdown: area and micro F1 of each."""
    lines = ["| | test bags | AUC | micro F1 |", "|---|---|---|---|"]
    for name, scored in found.items():
        f1 = bootstrap(scored, micro_f1)
        lines.append(f"| {name} | {len(scored):,} | {bootstrap(scored)} | {f1} |")
    return "\n".join(lines)


def leaks_table(found: dict[str, tuple[Scored, Scored]], seen: str) -> str:
    """Markdown: areas with and without the leak, and their paired difference; `seen` says where pairs were seen."""
    lines = [f"| | test bags | seen in {seen} | never seen | difference |", "|---|---|---|---|---|"]
    for language, (leaking, clean) in found.items():
        cells = [str(bootstrap(leaking)), str(bootstrap(clean)), str(bootstrap_difference(leaking, clean))]
        lines.append(f"| {language} | {len(clean)} | {' | '.join(cells)} |")
    return "\n".join(lines)


@dataclass(frozen=True)
class Leakage:
    """Trains linear models under each condition and prints their figures."""

    data: Path | None = None
    """Folder of a corpus (rel2id.json; train, val, test as .jsonl); default IndoRE of the folder `shared`."""
    relx: Path | None = None
    """Folder with RELX_en.txt and so on; default the one of the folder `shared`."""


def main() -> None:
    settings = parse_command(Leakage, "experiments.relation_extraction.leakage")
    folder = settings.relx or default_data() / "relx_sample"
    instances = [one for name in LANGUAGES for one in read_relx(folder / f"RELX_{name}.txt", name)]
    relations = Relations((NA, *sorted({one.relation for one in instances} - {NA})))
    print(f"RELX\n\n{leaks_table(across_languages(instances, relations), 'other languages')}", flush=True)
    corpus = read_corpus(settings.data or default_data() / "indore_dsre")
    print(f"\n{corpus.name}\n\n{table(easier(corpus))}", flush=True)
    print(f"\n{leaks_table({'pairs of several sentences': across_sentences(corpus)}, 'other sentences')}", flush=True)


if __name__ == "__main__":
    run_command(main)
