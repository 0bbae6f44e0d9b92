"""The training step of a policy gradient: prompts are answered, answers rewarded, and the model is moved.

    prompts [P] -> K sampled answers each -> rewards [P K] -> log-ratios to the reference, advantages -> one update

Every update has fresh samples of the present model. What is drawn depends on the recipe's seed, the step, the prompt
and the parameters alone, so that a run that was stopped goes on bit for bit.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float32

from zoo.data import Batch, Tokenizer, computed_reward
from zoo.inference import Sampling
from zoo.interop import read_config
from zoo.models import build
from zoo.parallel import batch_sharding
from zoo.parallel.rows import to_devices
from zoo.recipes.answers import Answer, Answers, Question, share_right
from zoo.recipes.post_training import Frozen
from zoo.recipes.program import TrainingProgram
from zoo.recipes.recipe import Recipe
from zoo.training.log_probabilities import batch_log_probabilities
from zoo.training.policy_gradient import kl_estimates, token_advantages
from zoo.training.state import TrainState
from zoo.training.step import split_microbatches


class PolicyGradient:
    """`step(state, batch)` for `zoo.training.loop.run_loop`, and what validates it."""

    def __init__(self, recipe: Recipe, mesh: Mesh, program: TrainingProgram, tokenizer: Tokenizer, frozen: Frozen):
        policy, length = recipe.policy, recipe.data.sequence_length
        config: Any = recipe.model
        self._recipe, self._program, self._tokenizer, self._frozen = recipe, program, tokenizer, frozen
        self._sharding = batch_sharding(mesh, recipe.rules)
        self._rows = recipe.data.batch_size * policy.samples_per_prompt
        self._answers = Answers(
            program.model,
            tokenizer,
            mesh,
            rows=self._rows,
            prompt_length=length - policy.max_new_tokens,
            max_new_tokens=policy.max_new_tokens,
            stop_tokens=config.eos_token_ids,
        )
        self._advantages = jax.jit(self._scored)
        self._values = jax.jit(_reward_reader(recipe)) if policy.reward_model else None

    def step(self, state: TrainState, batch: Any) -> tuple[TrainState, Mapping[str, Any]]:
        """Samples, rewards, moves. Metrics of the samples, means over sequences: reward, kl (the sum of a sequence's
        log-ratios), kl_k3 (the sum of its k3), answer_tokens, finished (share that ended); and, a mean over tokens,
        entropy (-log p of what was drawn)."""
        policy = self._recipe.policy
        questions = questions_of(jax.device_get(batch), self._tokenizer)
        questions = [question for question in questions for _ in range(policy.samples_per_prompt)]
        prompts = [question.ids for question in questions]
        seed = sampling_seed(self._recipe.seed, int(state.step))
        answers = self._answers(state.params, prompts, sampling=Sampling(temperature=1.0), seed=seed)
        rewards = self.rewards(questions, answers)
        rows = sampled_batch(prompts, answers, self._recipe.data.sequence_length, self._tokenizer.pad_id)
        weighted, found = self._advantages(
            state.params, self._frozen.reference, to_devices(rows, self._sharding), rewards
        )
        state, metrics = self._program.step(state, weighted)
        found["finished"] = np.float32(np.mean([answer.finished for answer in answers]))
        return state, {**metrics, **found}

    def evaluate(self, params: Any, questions: Sequence[Question]) -> Mapping[str, float]:
        """Of the most probable answers to the questions: validation_reward, its negative as validation_loss (the best
        checkpoint is the one with the lowest), validation_finished, and validation_accuracy where they have references
        that are texts."""
        if not questions:
            return {}
        answers = self._answers(params, [question.ids for question in questions], sampling=Sampling())
        parts = [
            self.rewards(questions[start : start + self._rows], answers[start : start + self._rows])
            for start in range(0, len(questions), self._rows)
        ]
        reward = float(np.mean(np.concatenate(parts), dtype=np.float64))
        found = {"validation_loss": -reward, "validation_reward": reward}
        if self._recipe.policy.reward != "pattern" and all(question.reference for question in questions):
            found["validation_accuracy"] = share_right(answers, questions)
        return found | {"validation_finished": float(np.mean([answer.finished for answer in answers]))}

    def rewards(self, questions: Sequence[Question], answers: Sequence[Answer]) -> Float32[np.ndarray, " N"]:
        """What each answer is worth, for at most as many as a step has."""
        kind = self._recipe.policy.reward
        if self._values is None:
            pairs = zip(questions, answers, strict=True)
            worth = [a.finished and computed_reward(kind, a.text, q.reference) for q, a in pairs]
            return np.array(worth, np.float32)
        count = len(answers)
        prompts = [question.ids for question in questions] + [questions[-1].ids] * (self._rows - count)
        filled = [*answers, *[answers[-1]] * (self._rows - count)]
        rows = whole_batch(prompts, filled, self._recipe.data.sequence_length, self._tokenizer.pad_id)
        values = self._values(self._frozen.reward_model, to_devices(rows, self._sharding))
        return with_unfinished_reward(np.asarray(values)[:count], answers, self._recipe.policy.unfinished_reward)

    def _scored(
        self, params: Any, reference: Any, batch: Batch, rewards: Float32[Array, "N"]
    ) -> tuple[Batch, dict[str, Array]]:
        """The batch with advantages as its weights, and what the samples were like."""
        policy, mask = self._recipe.policy, jnp.asarray(batch.loss_weights)
        found = self._log_probabilities(nnx.merge(self._program.model.graphdef, params), batch)
        log_ratios = jnp.zeros_like(mask)
        if self._program.reference is not None:
            fixed = nnx.merge(self._program.reference.graphdef, reference)
            log_ratios = mask * (found - self._log_probabilities(fixed, batch))
        advantages = token_advantages(
            rewards,
            log_ratios,
            mask,
            samples_per_prompt=policy.samples_per_prompt,
            kl_coefficient=policy.kl_coefficient,
            kl_penalty=policy.kl_penalty,
        )
        kl, sequences = kl_estimates(log_ratios), len(mask)
        metrics = {
            "reward": jnp.mean(rewards),
            "kl": jnp.sum(kl.k1) / sequences,
            "kl_k3": jnp.sum(kl.k3) / sequences,
            "entropy": -jnp.sum(mask * found) / jnp.sum(mask),
            "answer_tokens": jnp.sum(mask) / sequences,
        }
        return dataclasses.replace(batch, loss_weights=advantages), metrics

    def _log_probabilities(self, model: Any, batch: Batch) -> Float32[Array, "N T"]:
        """log p of the targets, a micro-batch at a time where the update goes by micro-batches."""
        chunk, count = self._recipe.loss_chunk_tokens, self._recipe.optimizer.accumulation_steps
        if count == 1:
            return batch_log_probabilities(model, batch, chunk_tokens=chunk)[0]
        parts = jax.lax.map(
            lambda part: batch_log_probabilities(model, part, chunk_tokens=chunk)[0], split_microbatches(batch, count)
        )
        return jnp.moveaxis(parts, 0, 1).reshape(batch.tokens.shape)


def with_unfinished_reward(
    rewards: Float32[np.ndarray, " N"], answers: Sequence[Answer], unfinished: float | None
) -> Float32[np.ndarray, " N"]:
    """The rewards, `unfinished` in place of those of answers that do not end; None leaves them."""
    if unfinished is None:
        return rewards
    return np.where([answer.finished for answer in answers], rewards, np.float32(unfinished))


def sampling_seed(seed: int, step: int) -> int:
    """The seed of the samples of a step, 31 bits."""
    return int.from_bytes(hashlib.blake2b(f"samples/{seed}/{step}".encode(), digest_size=4).digest(), "little") >> 1


def questions_of(batch: Batch, tokenizer: Tokenizer) -> list[Question]:
    """The prompts of a batch of the format "prompts", and the texts of their references."""
    found = []
    for tokens, segments, weights in zip(batch.tokens, batch.segment_ids, batch.loss_weights, strict=True):
        prompt, reference = tokens[(segments > 0) & (weights == 0)], tokens[weights > 0]
        found.append(Question([int(i) for i in prompt], tokenizer.decode([int(i) for i in reference])))
    return found


def sampled_batch(prompts: Sequence[Sequence[int]], answers: Sequence[Answer], length: int, pad_id: int) -> Batch:
    """Prompts with their answers, one a row of `length`: what is predicted and weighs 1 are the sampled tokens."""
    whole = whole_batch(prompts, answers, length, pad_id)
    tokens, targets = (np.full((len(prompts), length), pad_id, np.int32) for _ in range(2))
    weights = np.zeros(tokens.shape, np.float32)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = [*prompt, *answer.ids]
        tokens[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        weights[row, len(prompt) - 1 : len(ids) - 1] = 1
    real = np.pad(whole.segment_ids[:, 1:], ((0, 0), (0, 1)))  # the last token of a row is a target only
    positions = np.where(real > 0, whole.positions, 0).astype(np.int32)
    return Batch(tokens=tokens, targets=targets, positions=positions, segment_ids=real, loss_weights=weights)


def whole_batch(prompts: Sequence[Sequence[int]], answers: Sequence[Answer], length: int, pad_id: int) -> Batch:
    """Prompts with their answers, one a row of `length`, every token of which is read; there are no targets."""
    tokens = np.full((len(prompts), length), pad_id, np.int32)
    segments, positions = np.zeros_like(tokens), np.zeros_like(tokens)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids = [*prompt, *answer.ids]
        tokens[row, : len(ids)], segments[row, : len(ids)] = ids, 1
        positions[row, : len(ids)] = np.arange(len(ids))
    weights = np.zeros(tokens.shape, np.float32)
    return Batch(tokens=tokens, targets=tokens, positions=positions, segment_ids=segments, loss_weights=weights)


def _reward_reader(recipe: Recipe) -> Callable[[Any, Batch], Array]:
    """`(parameters, rows) -> rewards [N]` of the recipe's reward model, read at the last token of each row."""
    config = read_config(str(recipe.policy.reward_model))
    graphdef = nnx.split(nnx.eval_shape(lambda: build(config, execution=recipe.execution, rngs=nnx.Rngs(0))))[0]

    def read(params: Any, batch: Batch) -> Array:
        segments = jnp.asarray(batch.segment_ids)
        values = nnx.merge(graphdef, params)(batch.tokens, positions=batch.positions, segment_ids=segments)
        last = jnp.sum(segments, axis=1) - 1
        return jnp.take_along_axis(values, last[:, None], axis=1)[:, 0]

    return read
