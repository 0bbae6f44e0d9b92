"""The documents that a stage of the training reads, and the words of unseen languages that it is tested with.

Besides whole documents (`documents.py`) there are rows of facts (`facts.py`), rules with glosses to be put in order,
and two kinds about words alone. These begin with a word list; then words of it are asked for, some of them twice
(without that the last one could be told from those before):

    recall:  * dog = puma       lines of the list again, or the other way round: * puma = dog
    lookup:  English: dog       as a sentence is asked for, or without its gloss
             Gloss: dog = puma Answer: puma
"""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.in_context_language.book import word_list_text, write_book
from experiments.in_context_language.documents import (
    CONTEXTS,
    Document,
    Task,
    make_document,
    make_query,
    training_record,
)
from experiments.in_context_language.facts import Facts, asked_again, draw_facts, facts_record
from experiments.in_context_language.grammar import Split
from experiments.in_context_language.language import LanguageSize, make_language
from experiments.in_context_language.morphemes import Morpheme
from experiments.in_context_language.prompts import DIRECTIONS, Count, Direction
from experiments.in_context_language.stages import Stage
from zoo.data import Tokenizer

KINDS = ("facts", "recall", "lookup", "order", *CONTEXTS)


def lookup_document(
    seed: int,
    split: Split,
    direction: Direction,
    words: int,
    size: LanguageSize = LanguageSize(),
    task: Task = "gloss",
) -> Document:
    """A word list, and single words to be translated, drawn with replacement."""
    language = make_language(seed, split, size)
    generator = random.Random(f"lookup {split} {seed}")
    drawn = generator.choices(language.words, k=words)
    asked = tuple(make_query(english, [(Morpheme(english, word),)], direction, task) for english, _, word in drawn)
    return Document(language, direction, "word list", (word_list_text(write_book(language, seed)),), (), asked, task)


def order_document(seed: int, split: Split, number: int, size: LanguageSize, longest: int | None) -> Document:
    """The rules, and sentences whose glosses are to be put into the order of the language."""
    return make_document(seed, split, "rules", "from English", 0, number, size, longest=longest, task="order")


def recall_record(document: Document) -> dict[str, Any]:
    """A line of interleaved JSONL: the document of `lookup_document` with words asked for as the list has them. Loss is
    on the translation, and on what follows the first letter of a made-up word: its letters can be looked up as well,
    and where it ends, which a gloss must find within a longer word."""
    parts = [(text, False) for text in document.book]
    into = document.direction == "into English"
    for query in document.queries:
        letters = 1 if into else len(query.source)
        parts += [*asked_again(query.source[:letters], query.source[letters:]), (" =", into)]
        parts.append((f" {query.translation}\n", True))
    return {"content": [{"text": text, "loss": loss} for text, loss in parts], "kind": f"{document.direction}: recall"}


def lesson(stage: Stage, seed: int, count: Count) -> tuple[dict[str, Any], int]:
    """(a line of interleaved JSONL, its tokens): the document of the training language `seed`. One that is too long for
    the stage is made shorter. Raises ValueError for an unknown kind, or if a document cannot be made short enough."""
    generator = random.Random(f"lesson {seed}")
    kind, direction = generator.choice(stage.kinds), generator.choice(DIRECTIONS)
    shots = round(stage.most_shots ** generator.random())
    if kind not in KINDS:
        raise ValueError(f"stage {stage.name!r}: no kind of document is called {kind!r}")
    if kind == "facts":
        return _facts_lesson(stage, seed, count)
    if kind == "order":
        document = order_document(seed, "train", stage.orders_asked, stage.size, stage.longest)
    elif kind in CONTEXTS:
        document = make_document(
            seed,
            "train",
            kind,
            direction,
            shots,
            stage.questions,
            stage.size,
            longest=stage.longest,
            task=stage.task,
        )
    else:
        document = lookup_document(seed, "train", direction, stage.words_asked, stage.size, stage.task)
    while True:
        record = recall_record(document) if kind == "recall" else training_record(document, not stage.glosses)
        tokens = _predictions(record, count)
        if tokens <= stage.sequence_length:
            return record, tokens
        examples, queries = document.examples, document.queries
        if len(examples) > 1:
            examples = examples[: max(1, len(examples) * stage.sequence_length // tokens)]
        elif len(queries) > 1:
            queries = queries[:-1]
        else:
            raise ValueError(f"stage {stage.name!r}: a document of the kind {kind!r} has {tokens} tokens, {seed=}")
        document = replace(document, examples=examples, queries=queries)


def _predictions(record: dict[str, Any], count: Count) -> int:
    """Tokens of a line; <eos> is a target too, and <bos> is none."""
    return sum(count(part["text"]) for part in record["content"]) + 1


def _facts_lesson(stage: Stage, seed: int, count: Count) -> tuple[dict[str, Any], int]:
    facts = draw_facts(seed, "train", stage.facts, stage.words_asked)
    while (tokens := _predictions(facts_record(facts), count)) > stage.sequence_length:
        if len(facts.asked) == 1:
            raise ValueError(f"stage {stage.name!r}: a row of facts has {tokens} tokens, {seed=}")
        facts = Facts(facts.pairs, facts.asked[:-1])
    return facts_record(facts), tokens


def lessons(stage: Stage, tokenizer: Tokenizer, first: int) -> Iterator[dict[str, Any]]:
    """Documents of the languages `first`, `first` + 1 and so on, as many as the stage can read without reading any
    twice."""
    tokens, seed = 0, first
    while tokens < stage.steps * stage.batch_size * stage.sequence_length:
        record, length = lesson(stage, seed, lambda text: len(tokenizer.encode(text)))
        tokens, seed = tokens + length, seed + 1
        yield record


def write_lessons(stage: Stage, tokenizer: Tokenizer, first: int, path: Path) -> None:
    """As a file of lines, whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        for record in lessons(stage, tokenizer, first):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    unfinished.rename(path)
