"""Answers of a model to prompts, in training: sampled, or the most probable ones to prompts that were held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from zoo.data import Corpus, Preference, Prompted, Tokenizer, render_chat
from zoo.data.chat import turn_tokens
from zoo.inference import Sampling, generate
from zoo.inference.generation import INFERENCE_RULES
from zoo.inference.prompts import left_pad
from zoo.parallel import state_shardings
from zoo.recipes.recipe import Recipe
from zoo.recipes.weights import AbstractModel

MOST_QUESTIONS = 512
"""Held-out prompts that one validation answers."""


class Answer(NamedTuple):
    """What a model said."""

    ids: list[int]
    """New tokens, the one that ended the turn included."""
    text: str
    """Their text."""
    finished: bool
    """Whether the turn was ended."""


@dataclass(frozen=True)
class Question:
    """A prompt, and what is right."""

    ids: list[int]
    """The prompt in the template, up to where the model's turn begins."""
    reference: str
    """The right answer; empty if there is none."""


def prompt_ids(document: Any, tokenizer: Tokenizer) -> list[int]:
    """The prompt of a document in the template, up to where the model's (last) turn begins."""
    turns = document.prompt if isinstance(document, Preference | Prompted) else document[:-1]
    return render_chat(turns, tokenizer)


def reference_answer(document: Any) -> str:
    """The answer that a document holds to be right; empty if it holds none."""
    if isinstance(document, Preference):
        return document.chosen
    return document.answer if isinstance(document, Prompted) else document[-1].content


def held_out_questions(corpus: Corpus, tokenizer: Tokenizer, most: int = MOST_QUESTIONS) -> list[Question]:
    """The first held-out documents as questions, the same each time."""
    documents = (source.validation[number] for source in corpus.sources for number in range(len(source.validation)))
    return [
        Question(prompt_ids(document, tokenizer), reference_answer(document))
        for document, _ in zip(documents, range(most), strict=False)
    ]


class Answers:
    """Answers of a model whose parameters change: compiled once, for a fixed number of prompts of a fixed length.

    On a mesh the parameters are laid out for generation first (`INFERENCE_RULES`: whole but for what tensor groups
    divide), once for all tokens of a call.
    """

    def __init__(
        self,
        model: AbstractModel,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        rows: int,
        prompt_length: int,
        max_new_tokens: int,
        stop_tokens: Sequence[int] = (),
    ):
        self._graphdef, self._tokenizer, self._mesh = model.graphdef, tokenizer, mesh
        self._rows, self._prompt_length, self._max_new_tokens = rows, prompt_length, max_new_tokens
        self._stops = tuple(sorted({*stop_tokens, tokenizer.eos_id, turn_tokens(tokenizer)[1]}))
        self._shardings = state_shardings(model.params, mesh, INFERENCE_RULES) if mesh.size > 1 else None

    def __call__(
        self, params: Any, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seed: int = 0
    ) -> list[Answer]:
        """An answer to each prompt; a prompt that comes n times in a group of `rows` has n different samples."""
        if self._shardings is not None:
            params = jax.device_put(params, self._shardings)
        model = nnx.merge(self._graphdef, params)
        found: list[Answer] = []
        for start in range(0, len(prompts), self._rows):
            group = list(prompts[start : start + self._rows])
            filled = group + [group[-1]] * (self._rows - len(group))
            tokens, mask = left_pad(filled, self._tokenizer.pad_id, self._prompt_length)
            new = generate(
                model,
                tokens,
                mask,
                max_new_tokens=self._max_new_tokens,
                sampling=sampling,
                stop_tokens=self._stops,
                seed=seed,
                pad_id=self._tokenizer.pad_id,
                mesh=self._mesh,
            )
            found += [self._answer(row) for row in new[: len(group)]]
        return found

    def _answer(self, row: np.ndarray) -> Answer:
        ends = np.flatnonzero(np.isin(row, self._stops))
        ids = [int(token) for token in (row[: ends[0] + 1] if len(ends) else row)]
        said = ids[:-1] if len(ends) else ids
        return Answer(ids, self._tokenizer.decode(said), bool(len(ends)))


def answers_of(recipe: Recipe, model: AbstractModel, tokenizer: Tokenizer, mesh: Mesh, questions: list[Question]):
    """What answers the questions of a recipe that does not sample in training: room for the longest right answer and
    two tokens more, as many rows at a time as the batch has, times eight."""
    config: Any = recipe.model
    longest = max(len(tokenizer.encode(question.reference)) for question in questions)
    return Answers(
        model,
        tokenizer,
        mesh,
        rows=min(8 * recipe.data.batch_size, len(questions)),
        prompt_length=max(len(question.ids) for question in questions),
        max_new_tokens=longest + 2,
        stop_tokens=config.eos_token_ids,
    )


def share_right(answers: Sequence[Answer], questions: Sequence[Question]) -> float:
    """Share of the answers that are ended and are, white space at their ends apart, the right ones."""
    right = [a.finished and a.text.strip() == q.reference.strip() for a, q in zip(answers, questions, strict=True)]
    return float(np.mean(right))
