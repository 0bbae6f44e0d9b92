"""On-policy distillation: a part of the steps learns from continuations that the model samples itself (generalised
knowledge distillation, algorithm 1 of arXiv 2306.13649).

    with probability lambda:  rows = prompts of the batch, each continued by a sample of the model at temperature 1
    else:                     rows = the batch
    one step down D(P_T, P_S) of the rows' tokens, of a prompt's continuation only; no gradient through the sampling

Whether a step samples, and what it draws, depends on the recipe's seed, the step, the prompts and the parameters alone,
so that a run that was stopped goes on bit for bit.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from zoo.data import Batch, Tokenizer
from zoo.inference import Sampling
from zoo.parallel import batch_sharding
from zoo.parallel.rows import to_devices
from zoo.recipes.answers import Answers
from zoo.recipes.program import TrainingProgram
from zoo.recipes.recipe import Recipe
from zoo.recipes.rollouts import sampled_batch, sampling_seed
from zoo.training.state import TrainState


class OnPolicyDistillation:
    """`step(state, batch)` for `zoo.training.loop.run_loop`."""

    def __init__(
        self,
        recipe: Recipe,
        mesh: Mesh,
        program: TrainingProgram,
        tokenizer: Tokenizer,
        step: Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]],
    ):
        """`step` learns from the teacher on the rows that it is given."""
        how, config = recipe.distillation, recipe.model
        self._recipe, self._tokenizer, self._step = recipe, tokenizer, step
        self._sharding = batch_sharding(mesh, recipe.rules)
        stops: Any = getattr(config, "eos_token_ids", ())
        self._answers = Answers(
            program.model,
            tokenizer,
            mesh,
            rows=recipe.data.batch_size,
            prompt_length=how.prompt_tokens,
            max_new_tokens=how.max_new_tokens,
            stop_tokens=stops,
        )

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Mapping[str, Any]]:
        """Samples or not, and learns. Metric: on_policy, 1 in a step that sampled. Its `loss`, the cross-entropy with
        the tokens of the rows, is then that of the samples, and not of real text."""
        recipe, number = self._recipe, int(state.step)
        sampled = samples_at(recipe.seed, number, recipe.distillation.on_policy)
        if sampled:
            prompts = prompts_of(jax.device_get(batch), recipe.distillation.prompt_tokens, recipe.data.format)
            seed = sampling_seed(recipe.seed, number)
            answers = self._answers(state.params, prompts, sampling=Sampling(temperature=1.0), seed=seed)
            rows = sampled_batch(prompts, answers, recipe.data.sequence_length, self._tokenizer.pad_id)
            batch = to_devices(rows, self._sharding)
        state, metrics = self._step(state, batch)
        return state, {**metrics, "on_policy": np.float32(sampled)}


def samples_at(seed: int, step: int, part: float) -> bool:
    """Whether a step samples: independent draws, true with probability `part`."""
    digest = hashlib.blake2b(f"on-policy/{seed}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") < part * 2**64


def prompts_of(batch: Batch, most: int, data_format: str = "text") -> list[list[int]]:
    """What the model continues, of each row (numpy) at most `most` tokens.

    text: of the row's first `most` tokens those of the last document among them. chat: the first conversation up to
    where the model's first turn begins, or the last `most` tokens of that."""
    found = []
    for tokens, segments, weights in zip(batch.tokens, batch.segment_ids, batch.loss_weights, strict=True):
        end = min(most, max(1, int(np.count_nonzero(segments))))
        if data_format == "chat" and weights.any():
            end = int(np.argmax(weights > 0)) + 1  # its target is the first token of the turn
        first = max(0, end - most)
        own = segments[first:end] == segments[end - 1]
        found.append([int(token) for token in tokens[first:end][own]])
    return found
