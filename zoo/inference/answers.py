"""How probable given answers are after given prompts, with or without media: multiple choice without drawing."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from zoo.errors import UserError
from zoo.inference.media_prompts import MediaPrompt, stack_prompts, with_answer
from zoo.inference.model import LanguageModel
from zoo.inference.scoring import token_log_probabilities


def answer_log_probabilities(
    model: LanguageModel,
    prompts: Sequence[MediaPrompt],
    answers: Sequence[Sequence[int]],
    *,
    batch_size: int = 8,
    multiple: int = 1,
    patch_multiple: int = 1,
    clip_multiple: int = 1,
) -> Float[np.ndarray, "n"]:
    """log p(answer | prompt) = sum_t log p(answer_t | prompt, answer_<t) of each pair, natural logarithm, float64.

    Prompts are those of `load_media_prompt`, answers token ids; to choose among several answers give the prompt as
    often. The multiples are those of `stack_prompts`: calls of similar size then share a compiled program.

    Raises:
      UserError: not as many answers as prompts, an answer without tokens; what `token_log_probabilities` refuses.
    """
    if len(prompts) != len(answers):
        raise UserError(f"{len(answers)} answers for {len(prompts)} prompts: give one to each")
    if not all(len(answer) for answer in answers):
        raise UserError("an answer has no tokens: give every answer at least one")
    pairs = [with_answer(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    tokens, mask, media = stack_prompts(
        pairs, model.config.pad_token_id, multiple=multiple, patch_multiple=patch_multiple, clip_multiple=clip_multiple
    )
    scores = token_log_probabilities(model, tokens, mask, batch_size=batch_size, media=media)
    return np.array([row[-len(answer) :].sum(dtype=np.float64) for row, answer in zip(scores, answers, strict=True)])
