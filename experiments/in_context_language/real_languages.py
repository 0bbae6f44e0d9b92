"""A checkpoint on the real material: Kalamang and Lojban with the prompts of the Gemini 1.5 report (`mtob.py`)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.in_context_language.answers import answer
from experiments.in_context_language.baselines import evaluate
from experiments.in_context_language.materials import Material, load_kalamang, load_lojban
from experiments.in_context_language.mtob import Translator
from experiments.in_context_language.prompts import DIRECTIONS, Direction, Prompt, counter
from experiments.in_context_language.scores import Score, score
from experiments.speed.report import Rows
from zoo.data import Message, Tokenizer, render_chat
from zoo.errors import UserError
from zoo.inference.model import LanguageModel
from zoo.interop import load

MATERIALS: dict[str, Callable[[Path], Material]] = {"kalamang": load_kalamang, "lojban": load_lojban}
SMALL_CONDITIONS = ("-", "W", "S", "Gs", "W+S", "W+S+Gs")
"""Those that are looked up for each sentence: a few thousand tokens. Others of `mtob.CONDITIONS` hold whole books."""
MOST_ANSWER_TOKENS = 96


@dataclass(frozen=True)
class Answered:
    """What the model said under one condition."""

    language: str
    direction: Direction
    condition: str
    """What was told, see `mtob.py`."""
    tokens: float
    """Of a prompt, on average."""
    score: Score
    """Of all answers."""
    answers: tuple[tuple[str, str, str], ...]
    """(source, reference, answer) of every sentence."""


def examine(
    checkpoint: Path,
    material: Material,
    conditions: Sequence[str],
    *,
    sentences: int | None = None,
    budget: int | None = None,
    chat: bool = False,
    say: Callable[[str], None] = print,
) -> list[Answered]:
    """Greedy translations of the test sentences, or of the first so many, in both directions under every condition.

    budget: tokens of a prompt, of which the model's positions less those of an answer are the most and the default.
    Raises `UserError` for a checkpoint without a tokenizer, and for wrong conditions and budgets before any answer."""
    loaded = load(checkpoint)
    model, tokenizer = loaded.decoder, loaded.tokenizer
    if tokenizer is None:
        raise UserError(f"{checkpoint} has no tokenizer: prompts cannot be read")
    most = model.config.max_position_embeddings - MOST_ANSWER_TOKENS
    if most < 1 or (budget is not None and not 1 <= budget <= most):
        raise UserError(f"--budget must lie in 1 .. {most:,} for this model, got {budget}")
    translator = Translator(material, counter(tokenizer))
    prompts = {
        (direction, condition): translator.prompts(condition, direction, (budget or most) - _overhead(tokenizer, chat))
        for direction in DIRECTIONS
        for condition in conditions
    }
    found = []
    for (direction, condition), listed in prompts.items():
        found.append(_answered(model, tokenizer, material, direction, condition, listed[:sentences], chat))
        say(f"{material.language}, {direction}, {condition}: chrF {found[-1].score}")
    return found


def _overhead(tokenizer: Tokenizer, chat: bool) -> int:
    """Tokens of a prompt that are none of its text."""
    return len(render_chat([Message("user", "")], tokenizer)) if chat else 1


def _answered(
    model: LanguageModel,
    tokenizer: Tokenizer,
    material: Material,
    direction: Direction,
    condition: str,
    prompts: Sequence[Prompt],
    chat: bool,
) -> Answered:
    given = answer(model, tokenizer, prompts, chat=chat, max_new_tokens=MOST_ANSWER_TOKENS)
    references = [prompt.reference for prompt in prompts]
    return Answered(
        language=material.language,
        direction=direction,
        condition=condition,
        tokens=sum(len(tokenizer.encode(prompt.text)) for prompt in prompts) / len(prompts),
        score=score(given, references),
        answers=tuple((prompt.source, prompt.reference, text) for prompt, text in zip(prompts, given)),
    )


def rows(found: Sequence[Answered], material: Material, sentences: int | None) -> Rows:
    """The table: conditions, and below them what needs no model, on the same sentences."""
    listed = [["direction", "told", "tokens", "sentences", "chrF", "exact"]]
    for each in found:
        counts = [f"{each.tokens:.0f}", str(each.score.count)]
        listed.append([each.direction, each.condition, *counts, str(each.score), f"{each.score.exact:.0f} %"])
    for direction in DIRECTIONS:
        asked = Material(**vars(material) | {"tests": {direction: material.tests[direction][:sentences]}})
        for name, reached in evaluate(asked, direction=direction).items():
            cells = ["", str(reached.count), str(reached), f"{reached.exact:.0f} %"]
            listed.append([direction, f"no model: {name}", *cells])
    return listed
