"""Documents and prompts of made-up languages: `python -m experiments.in_context_language.synthetic FOLDER`.

A document is a book, or parts of it, example sentences, and sentences to be translated:

    A grammar of Poba ...   Words of Poba ...   Sentences: English: ... Poba: ...   Translate: English: ... Poba: ...

tokenizer/ has English words whole and spells the made-up ones letter by letter (`spelling.py`). train.jsonl holds
documents for `zoo.train` (data.format=interleaved data.packing=first_fit): each with another language and other parts,
so that no part can be relied on, and with loss on translations only. test.jsonl holds the prompts of unseen languages,
a line for each.
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

from experiments.in_context_language.book import grammar_text, word_list_text, write_book
from experiments.in_context_language.english import ENGLISH, draw_sentence, write
from experiments.in_context_language.grammar import Split
from experiments.in_context_language.language import Language, Vocabulary, make_language
from experiments.in_context_language.materials import Entry, Material, Pair
from experiments.in_context_language.prompts import DIRECTIONS, Count, Direction, Prompt, Section, cut_sections
from experiments.in_context_language.rules import RULES
from experiments.in_context_language.speech import speak
from experiments.in_context_language.spelling import make_tokenizer
from zoo.command_line import parse_command
from zoo.errors import UserError, nearest_name, run_command

CONTEXTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "rules": ("rules",),
    "grammar": ("grammar",),
    "word list": ("words",),
    "sentences": ("sentences",),
    "rules + word list": ("rules", "words"),
    "word list + sentences": ("words", "sentences"),
    "grammar + word list": ("grammar", "words"),
    "all": ("grammar", "words", "sentences"),
}
"""What is told. `rules` is the grammar without its worked examples; rules and word list are all that one needs."""

SHOTS = tuple(2**power for power in range(9))
"""Sentences of the many-shot curve, which is that of the context "sentences"."""


@dataclass(frozen=True)
class Document:
    """A language, what is told of it, and sentences to be translated that are in nothing that is told."""

    language: Language
    direction: Direction
    context: str
    """One of CONTEXTS."""
    book: tuple[str, ...]
    """Its parts: the grammar, the word list, or nothing."""
    examples: tuple[tuple[str, str], ...]
    """(source, translation)"""
    queries: tuple[tuple[str, str], ...]
    """(source, translation)"""


def make_document(
    seed: int,
    split: Split,
    context: str,
    direction: Direction,
    shots: int = 32,
    queries: int = 4,
    size: Vocabulary = Vocabulary(),
) -> Document:
    """The document of the language `seed`. Its queries and its book are the same in every context and direction, and of
    two numbers of shots the greater has the sentences of the smaller."""
    if context not in CONTEXTS:
        raise UserError(f"unknown context {context!r}; {nearest_name(context, CONTEXTS)}")
    language, parts = make_language(seed, split, size), CONTEXTS[context]
    book = write_book(language, seed)
    taken = {english for english, _ in book.examples}
    generator = random.Random(f"sentences {split} {seed}")
    asked = _draw_pairs(generator, language, queries, taken)
    told = _draw_pairs(generator, language, shots if "sentences" in parts else 0, taken)
    texts = {"rules": grammar_text(book, False), "grammar": grammar_text(book), "words": word_list_text(book)}
    return Document(
        language,
        direction,
        context,
        tuple(text for part, text in texts.items() if part in parts),
        tuple(pair if direction == "from English" else pair[::-1] for pair in told),
        tuple(pair if direction == "from English" else pair[::-1] for pair in asked),
    )


def material_of(document: Document) -> Material:
    """The word list and the sentences as the baselines without a model read them."""
    into = document.direction == "into English"
    examples, queries = (
        tuple(Pair(*(pair if into else pair[::-1])) for pair in pairs)
        for pairs in (document.examples, document.queries)
    )
    entries = tuple(Entry(word, english) for english, _, word in document.language.words)
    name = document.language.name
    return Material(name, f"A grammar of {name}", entries, examples, (), (), {document.direction: queries})


def make_prompts(document: Document, budget: int | None = None, count: Count | None = None) -> list[Prompt]:
    """A prompt for each query, the same tokens as in a training document up to the answer.

    With a `budget` of tokens there are as many example sentences as fit into it; the book is never cut, so that it
    stays enough: `UserError` if it alone is too long."""
    prompts = []
    for source, translation in document.queries:
        question = _ask(source, document)
        sections = [Section(text, ()) for text in document.book]
        if document.examples:
            examples = tuple(_ask(pair[0], document) + _answer(pair[1]) for pair in document.examples)
            sections.append(Section(_sentences_head(document), examples))
        sections += [Section(HEAD, ()), Section(question, ())]
        if budget is not None and count is not None:
            sections = list(cut_sections(sections, budget, count))
        pieces = tuple(piece for section in sections[:-1] for piece in section.pieces)
        prompts.append(Prompt(document.context, pieces, question, source, translation))
    return prompts


def training_record(document: Document, loss_on_examples: bool = True) -> dict[str, Any]:
    """A line of interleaved JSONL, with loss on the translations of the queries, and on those of the example sentences,
    each of which can be worked out from what stands before it as far as that goes."""
    parts = [(text, False) for text in document.book]
    if document.examples:
        parts.append((_sentences_head(document), False))
    for pair in document.examples:
        parts += [(_ask(pair[0], document), False), (_answer(pair[1]), loss_on_examples)]
    parts.append((HEAD, False))
    for pair in document.queries:
        parts += [(_ask(pair[0], document), False), (_answer(pair[1]), True)]
    content = [{"text": text, "loss": loss} for text, loss in parts]
    return {"content": content, "kind": f"{document.direction}: {document.context}"}


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
    vocabulary: Vocabulary = Vocabulary()
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
        document = make_document(seed, "train", context, direction, shots, config.queries, config.vocabulary)
        yield training_record(document, config.loss_on_examples)


def test_prompts(config: SyntheticConfig) -> Iterator[dict[str, Any]]:
    """Prompts as objects, with the language's seed, the direction and the number of shots."""
    settings = [(context, config.most_shots) for context in CONTEXTS if context != "sentences"]
    settings += [("sentences", shots) for shots in SHOTS if shots <= config.most_test_shots]
    for seed in range(config.test_languages):
        for (context, shots), direction in product(settings, DIRECTIONS):
            document = make_document(seed, "test", context, direction, shots, config.queries, config.vocabulary)
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
    yield from ("A grammar of", "Words of", "Sentences of", HEAD)
    yield '  For example, "the" is "the".'
    yield string.ascii_lowercase[0] + " " + " ".join(string.ascii_letters)


FORM = r"\{\w+\}"
"""What a wording has in place of a made-up word."""

HEAD = "Translate\n"
"""Before the queries."""


def _sentences_head(document: Document) -> str:
    return f"Sentences of {document.language.name}\n"


def _ask(source: str, document: Document) -> str:
    names = ("English", document.language.name)
    first, second = names if document.direction == "from English" else names[::-1]
    return f"{first}: {source}\n{second}:"


def _answer(translation: str) -> str:
    # The space belongs to the answer: pieces of a tokenizer begin with it.
    return f" {translation}\n"


def _draw_pairs(generator: random.Random, language: Language, number: int, taken: set[str]) -> list[tuple[str, str]]:
    """(English, translation) of new sentences, which are taken from then on."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < number:
        sentence = draw_sentence(generator, language.vocabulary)
        if (english := write(sentence)) not in taken:
            taken.add(english)
            pairs.append((english, speak(sentence, language)))
    return pairs


def main() -> None:
    """The command."""
    written = write_synthetic(parse_command(SyntheticConfig, "experiments.in_context_language.synthetic"))
    print("wrote", ", ".join(map(str, written.values())))


if __name__ == "__main__":
    run_command(main)
