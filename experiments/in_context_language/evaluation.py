"""What a trained model can do: words and sentences of unseen languages, with what is told of them and without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from experiments.in_context_language.answers import answer
from experiments.in_context_language.documents import CONTEXTS, Document, Task, make_document, make_prompts
from experiments.in_context_language.facts import draw_facts, facts_prompts
from experiments.in_context_language.glosses import translation_in
from experiments.in_context_language.lessons import lookup_document, order_document
from experiments.in_context_language.prompts import DIRECTIONS, Direction, Prompt, encode_prompt
from experiments.in_context_language.scores import Score, score
from experiments.in_context_language.stages import Stage, Workload
from zoo.data import Tokenizer
from zoo.inference.model import LanguageModel

Book = Literal["right", "another language's"]
FACTS, RULES = "facts", "rules"
"""Names of what is found in rows of facts, and of the rules that answers begin with."""
ASKED, ASKED_FACTS = 2, 4
"""Words or sentences of each language, and facts of each row, of the test at the end of a stage."""
BOOK_IS_ENOUGH = "rules + word list"
"""The context in which sentences are asked for at the end of a stage."""
MOST_ANSWER_TOKENS = 288
"""The longest answer that was measured has 267, rules and gloss included; of a plain language 141."""
ROWS = 32
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


def documents_of(setting: Setting, workload: Workload) -> list[Document]:
    """The same questions in every context and number of shots, in both directions."""
    asked, last = workload.test_questions, workload.stages[-1]

    def make(seed: int) -> Document:
        return make_document(
            seed, "test", setting.context, setting.direction, setting.shots, asked, last.size, task=last.task
        )

    documents = [make(seed) for seed in range(workload.test_languages)]
    if setting.book == "right":
        return documents
    return [with_book_of(document, make(seed + STRANGERS)) for seed, document in enumerate(documents)]


def with_book_of(document: Document, other: Document) -> Document:
    """The document with all that is told taken from another language, under the name of its own."""
    name, own = other.language.name, document.language.name
    return replace(document, book=tuple(text.replace(name, own) for text in other.book), examples=other.examples)


def measure(model: LanguageModel, tokenizer: Tokenizer, setting: Setting, workload: Workload) -> Measured:
    """Greedy answers in one setting, scored: translations alone, without what is glossed before them."""
    prompts = [prompt for document in documents_of(setting, workload) for prompt in make_prompts(document)]
    given = _answers(model, tokenizer, prompts)
    shown = zip(prompts[:SHOWN], given)
    return Measured(
        setting=setting,
        score=score(_translations(given, workload.stages[-1].task), [prompt.reference for prompt in prompts]),
        tokens=float(np.mean([len(encode_prompt(prompt, tokenizer)) for prompt in prompts])),
        examples=tuple((prompt.source, prompt.reference, text) for prompt, text in shown),
    )


def find_unseen(model: LanguageModel, tokenizer: Tokenizer, stage: Stage, number: int) -> dict[str, float]:
    """The part that is exact of what a stage is tested with, by direction, or of its facts or rules: of `number`
    rows, or of `number` unseen languages in each direction."""
    if stage.tested == FACTS:
        rows = (draw_facts(seed, "test", stage.facts, ASKED_FACTS) for seed in range(number))
        return {FACTS: _exact(model, tokenizer, [prompt for row in rows for prompt in facts_prompts(row)], "translate")}
    if stage.tested == RULES:
        documents = [_test_document(stage, seed, "from English") for seed in range(number)]
        given = _answers(model, tokenizer, [prompt for document in documents for prompt in make_prompts(document)])
        right = [query.rules.strip() for document in documents for query in document.queries]
        return {RULES: float(np.mean([text.startswith(rules) for text, rules in zip(given, right, strict=True)]))}
    reached = {}
    for direction in DIRECTIONS[:1] if stage.tested == "order" else DIRECTIONS:
        documents = [_test_document(stage, seed, direction) for seed in range(number)]
        prompts = [prompt for document in documents for prompt in make_prompts(document)]
        reached[str(direction)] = _exact(model, tokenizer, prompts, documents[0].task)
    return reached


def _test_document(stage: Stage, seed: int, direction: Direction) -> Document:
    """An unseen language: its words after its word list, or sentences of the stage's length after its rules, whose
    glosses are asked for, or after rules and words."""
    if stage.tested == "words":
        return lookup_document(seed, "test", direction, ASKED, stage.size, stage.task)
    if stage.tested in (RULES, "order"):
        return order_document(seed, "test", ASKED, stage.size, stage.longest)
    return make_document(
        seed, "test", BOOK_IS_ENOUGH, direction, 0, ASKED, stage.size, longest=stage.longest, task=stage.task
    )


def _exact(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Prompt], task: Task) -> float:
    given = _translations(_answers(model, tokenizer, prompts), task)
    return float(np.mean([text == prompt.reference for text, prompt in zip(given, prompts, strict=True)]))


def _translations(given: Sequence[str], task: Task) -> list[str]:
    return [text if task == "translate" else translation_in(text) for text in given]


def _answers(model: LanguageModel, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[str]:
    return answer(model, tokenizer, prompts, max_new_tokens=MOST_ANSWER_TOKENS, batch_size=ROWS)
