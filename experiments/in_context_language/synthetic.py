"""Documents and prompts of made-up languages as files: `python -m experiments.in_context_language.synthetic FOLDER`.

tokenizer/ has English words whole and spells the made-up ones letter by letter (`spelling.py`). train.jsonl holds
documents (`documents.py`) for `zoo.train` (data.format=interleaved data.packing=first_fit): each with another language
and other parts, so that no part can be relied on, and with loss on answers only. test.jsonl holds the prompts of unseen
languages, a line for each.
"""

import json
import random
import re
import string
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import tyro

from experiments.in_context_language import glosses
from experiments.in_context_language.documents import CONTEXTS, HEAD, make_document, make_prompts, training_record
from experiments.in_context_language.english import ENGLISH, draw_sentence, write
from experiments.in_context_language.language import LanguageSize
from experiments.in_context_language.morphemes import GRAMMATICAL
from experiments.in_context_language.prompts import DIRECTIONS
from experiments.in_context_language.rules import RULES
from experiments.in_context_language.spelling import make_tokenizer
from zoo.command_line import parse_command
from zoo.errors import run_command

SHOTS = tuple(2**power for power in range(9))
"""Sentences of the many-shot curve, which is that of the context "sentences"."""


@dataclass(frozen=True)
class SyntheticConfig:
    """What is written."""

    folder: tyro.conf.Positional[Path]
    """Where to."""
    train_documents: int = 20_000
    """One language each."""
    test_languages: int = 50
    """Unseen ones; every context, number of shots and direction is tried with each."""
    most_shots: int = 32
    """Most example sentences of a training document, and of a test prompt whose context is not "sentences"."""
    most_test_shots: int = 256
    """Where the many-shot curve ends."""
    queries: int = 4
    """Sentences to be translated, of a document."""
    contexts: tuple[str, ...] = tuple(CONTEXTS)
    """What training documents hold, drawn evenly; a curriculum begins with fewer. The test has all of them."""
    loss_on_examples: bool = True
    """Whether the translations of example sentences count in training."""
    glosses: bool = True
    """Whether what is asked is glossed before it is translated."""
    size: LanguageSize = LanguageSize()
    """Words of a language."""
    seed: int = 0
    """Of what each training document holds; language i is that of seed + i."""


def write_synthetic(config: SyntheticConfig) -> dict[str, Path]:
    """Writes the tokenizer, train.jsonl and test.jsonl, and returns where the files are."""
    config.folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(english_texts()).save(config.folder / "tokenizer")
    paths = {split: config.folder / f"{split}.jsonl" for split in ("train", "test")}
    for split, lines in (("train", train_records(config)), ("test", test_prompts(config))):
        with open(paths[split], "w", encoding="utf-8") as file:
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return paths


def train_records(config: SyntheticConfig) -> Iterator[dict[str, Any]]:
    """Documents of the config's contexts and of both directions, drawn evenly; numbers of example sentences evenly on a
    log scale."""
    generator = random.Random(config.seed)
    for number in range(config.train_documents):
        context, direction = generator.choice(config.contexts), generator.choice(DIRECTIONS)
        shots = round(config.most_shots ** generator.random())
        seed = config.seed + number
        sizes = (shots, config.queries, config.size)
        document = make_document(
            seed, "train", context, direction, *sizes, task="gloss" if config.glosses else "translate"
        )
        yield training_record(document, config.loss_on_examples)


def test_prompts(config: SyntheticConfig) -> Iterator[dict[str, Any]]:
    """Prompts as objects, with the language's seed, the direction and the number of shots."""
    settings = [(context, config.most_shots) for context in CONTEXTS if context != "sentences"]
    settings += [("sentences", shots) for shots in SHOTS if shots <= config.most_test_shots]
    for seed in range(config.test_languages):
        for (context, shots), direction in product(settings, DIRECTIONS):
            sizes = (shots, config.queries, config.size)
            document = make_document(
                seed, "test", context, direction, *sizes, task="gloss" if config.glosses else "translate"
            )
            told = {"language": seed, "direction": direction, "shots": len(document.examples)}
            yield from ({**told, **asdict(prompt)} for prompt in make_prompts(document))


def english_texts(seed: int = 0) -> Iterator[str]:
    """What documents are made of but for the made-up words, each text a line: every form of every English word, every
    wording of a rule, headings and letters."""
    generator = random.Random(f"tokenizer {seed}")
    for _ in range(3000):
        yield f"English: {write(draw_sentence(generator, ENGLISH))}"
    for rule in RULES:
        for _, wordings in rule.statements:
            yield from (f"- {re.sub(FORM, ' ', wording)}" for wording in wordings)
    yield from (f"* {word} =" for words in ENGLISH.values() for word in words)
    yield from ("A grammar of", "Words of", "Sentences of", HEAD, glosses.HEAD + glosses.MARKER, glosses.ORDER_HEAD)
    yield from (f"{glosses.HEAD} {name} =" for name in GRAMMATICAL)
    yield '  For example, "the" is "the".'
    yield string.ascii_lowercase[0] + " " + " ".join(string.ascii_letters)


FORM = r"\{\w+\}"
"""What a wording has in place of a made-up word."""


def main() -> None:
    """The command."""
    written = write_synthetic(parse_command(SyntheticConfig, "experiments.in_context_language.synthetic"))
    print("wrote", ", ".join(map(str, written.values())))


if __name__ == "__main__":
    run_command(main)
