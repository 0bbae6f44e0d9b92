"""The documents that a stage of the training reads, and the words of unseen languages that it is tested with.

Besides whole documents (`synthetic.py`) there are rows of facts (`facts.py`) and two kinds about words alone. These
begin with a word list; then words of it are asked for, some of them twice (without that the last one could be told from
those before):

    recall:  * dog = puma       lines of the list again, or the other way round: * puma = dog
    lookup:  English: dog       as a sentence is asked for
             Poba: puma
"""

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.in_context_language.book import word_list_text, write_book
from experiments.in_context_language.facts import Facts, asked_again, draw_facts, facts_record
from experiments.in_context_language.grammar import Split
from experiments.in_context_language.language import Vocabulary, make_language
from experiments.in_context_language.prompts import DIRECTIONS, Count, Direction
from experiments.in_context_language.stages import Stage
from experiments.in_context_language.synthetic import CONTEXTS, Document, make_document, training_record
from zoo.data import Tokenizer

KINDS = ("facts", "recall", "lookup", *CONTEXTS)


def lookup_document(
    seed: int, split: Split, direction: Direction, words: int, size: Vocabulary = Vocabulary()
) -> Document:
    """A word list, and single words to be translated, drawn with replacement."""
    language = make_language(seed, split, size)
    generator = random.Random(f"lookup {split} {seed}")
    pairs = [(english, word) for english, _, word in generator.choices(language.words, k=words)]
    asked = tuple(pair if direction == "from English" else pair[::-1] for pair in pairs)
    return Document(language, direction, "word list", (word_list_text(write_book(language, seed)),), (), asked)


def recall_record(document: Document) -> dict[str, Any]:
    """A line of interleaved JSONL: the document of `lookup_document` with words asked for as the list has them. Loss is
    on the translation and on the letters of a made-up word after the first, which can be looked up as well."""
    parts = [(text, False) for text in document.book]
    for source, translation in document.queries:
        letters = 1 if document.direction == "into English" else len(source)
        parts += [*asked_again(source[:letters], source[letters:]), (" =", False), (f" {translation}\n", True)]
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
    if kind in CONTEXTS:
        document = make_document(seed, "train", kind, direction, shots, stage.questions, stage.vocabulary)
    else:
        document = lookup_document(seed, "train", direction, stage.words_asked, stage.vocabulary)
    while True:
        record = recall_record(document) if kind == "recall" else training_record(document)
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
