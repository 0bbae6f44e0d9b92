"""What a trained model can do: words and sentences of unseen languages, with what is told of them and without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from experiments.in_context_language.answers import answer
from experiments.in_context_language.facts import FactsConfig, draw_facts, facts_prompts
from experiments.in_context_language.language import Vocabulary
from experiments.in_context_language.lessons import lookup_document
from experiments.in_context_language.prompts import DIRECTIONS, Direction, Prompt, encode_prompt
from experiments.in_context_language.scores import Score, score
from experiments.in_context_language.stages import Workload
from experiments.in_context_language.synthetic import CONTEXTS, Document, make_document, make_prompts
from zoo.data import Tokenizer
from zoo.inference.model import LanguageModel

Book = Literal["right", "another language's"]
FACTS = "facts"
"""Name of what is found in rows of facts."""
MOST_ANSWER_TOKENS = 96
"""The longest of 500 reference translations has 80."""
ROWS = 16
"""Prompts that are answered together."""
SHOWN = 2
"""Answers of each setting that are kept."""
STRANGERS = 1_000_000
"""Language i is told with the book of language i + STRANGERS."""


@dataclass(frozen=True)
class Setting:
    """What is told, and what is asked."""

    context: str
    """One of CONTEXTS."""
    direction: Direction
    shots: int
    """Example sentences, if the context has any; else 0."""
    book: Book = "right"
    """Whether what is told is about the language that is asked for."""


@dataclass(frozen=True)
class Measured:
    """What the model answered in a setting."""

    setting: Setting
    """Which one."""
    score: Score
    """Of all answers."""
    tokens: float
    """Of a prompt, on average."""
    examples: tuple[tuple[str, str, str], ...]
    """(source, reference, answer) of the first prompts."""


def settings_of(workload: Workload) -> list[Setting]:
    """Of an evaluation: the ablation, the books of other languages, the many-shot curve."""
    found = []
    for direction in DIRECTIONS:
        for context in workload.contexts:
            shots = _curve(workload) if context == "sentences" else [_shots(context, workload)]
            found += [Setting(context, direction, number) for number in shots]
        for context in workload.wrong_books:
            found.append(Setting(context, direction, _shots(context, workload), "another language's"))
    return found


def _shots(context: str, workload: Workload) -> int:
    return workload.test_shots if "sentences" in CONTEXTS[context] else 0


def _curve(workload: Workload) -> list[int]:
    """The numbers of sentences of the curve, that of the ablation among them."""
    return sorted({*workload.shots, workload.test_shots})


def documents_of(setting: Setting, languages: int, questions: int) -> list[Document]:
    """The same questions in every context and number of shots, in both directions."""

    def make(seed: int) -> Document:
        return make_document(seed, "test", setting.context, setting.direction, setting.shots, questions)

    documents = [make(seed) for seed in range(languages)]
    if setting.book == "right":
        return documents
    return [with_book_of(document, make(seed + STRANGERS)) for seed, document in enumerate(documents)]


def with_book_of(document: Document, other: Document) -> Document:
    """The document with all that is told taken from another language, under the name of its own."""
    name, own = other.language.name, document.language.name
    return replace(document, book=tuple(text.replace(name, own) for text in other.book), examples=other.examples)


def measure(model: LanguageModel, tokenizer: Tokenizer, setting: Setting, languages: int, questions: int) -> Measured:
    """Greedy answers in one setting, scored."""
    prompts = [p for document in documents_of(setting, languages, questions) for p in make_prompts(document)]
    given = _ask(model, tokenizer, prompts)
    shown = zip(prompts[:SHOWN], given)
    return Measured(
        setting=setting,
        score=score(given, [prompt.reference for prompt in prompts]),
        tokens=float(np.mean([len(encode_prompt(prompt, tokenizer)) for prompt in prompts])),
        examples=tuple((prompt.source, prompt.reference, text) for prompt, text in shown),
    )


def words_found(
    model: LanguageModel, tokenizer: Tokenizer, size: Vocabulary, languages: int, words: int = 2
) -> dict[Direction, float]:
    """The part of words of unseen languages, each asked for after the list that has it, that is translated exactly."""
    prompts: dict[Direction, list[Prompt]] = {
        direction: [
            prompt
            for seed in range(languages)
            for prompt in make_prompts(lookup_document(seed, "test", direction, words, size))
        ]
        for direction in DIRECTIONS
    }
    found = {}
    for direction, asked in prompts.items():
        given = _ask(model, tokenizer, asked)
        found[direction] = float(np.mean([text == prompt.reference for text, prompt in zip(given, asked)]))
    return found


def facts_found(model: LanguageModel, tokenizer: Tokenizer, config: FactsConfig, rows: int, asked: int = 4) -> float:
    """The part of facts of unseen rows that are told exactly when they come again."""
    prompts = [p for seed in range(rows) for p in facts_prompts(draw_facts(seed, "test", config, asked))]
    given = _ask(model, tokenizer, prompts)
    return float(np.mean([text == prompt.reference for text, prompt in zip(given, prompts)]))


def _ask(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[str]:
    return answer(model, tokenizer, prompts, max_new_tokens=MOST_ANSWER_TOKENS, batch_size=ROWS)
