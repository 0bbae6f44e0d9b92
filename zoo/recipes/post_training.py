"""Runs on pairs of answers and on rewards: what does not fit is refused, and which weights a run is held near to.

A run has one of these modes, decided by its data and its model:

    data.format preference, a decoder        DPO or IPO (`zoo.training.preference`)
    data.format preference, a reward model   Bradley-Terry
    data.format prompts, a decoder           policy gradient (`zoo.training.policy_gradient`)
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import jax
from jax.sharding import Mesh

from zoo.data import Corpus, Tokenizer, check_documents_fit, check_reference
from zoo.errors import UserError
from zoo.interop import read_config, source_of
from zoo.models import CoDistilledConfig, DecoderConfig, RewardModelConfig
from zoo.recipes.answers import prompt_ids
from zoo.recipes.recipe import Recipe
from zoo.recipes.weights import load_params
from zoo.training.mfu import TRAINING_TO_FORWARD
from zoo.training.run_directory import read_run, write_json_atomically
from zoo.training.teacher import weights_fingerprint

WEIGHTS = "reference.json"
"""File of a run directory that says which weights its reference and its reward model have."""


def check_post_training(recipe: Recipe) -> None:
    """Raises `UserError` for options that have no meaning in the recipe's mode, a model that has none, and for a
    reference or a reward model that is missing or does not fit."""
    format, model, name = recipe.data.format, recipe.model, recipe.name
    if recipe.trains_rewards and format != "preference":
        raise UserError(f"data.format={format!r} of {name} must be 'preference': its model is a reward model")
    if format not in ("preference", "prompts"):
        _check_unused(recipe, "preference", "data.format=preference")
        _check_unused(recipe, "policy", "data.format=prompts")
        return
    kind = type(model).__name__.removesuffix("Config")
    if not recipe.trains_rewards and (
        not isinstance(model, get_args(DecoderConfig)) or isinstance(model, CoDistilledConfig)
    ):
        raise UserError(f"data.format={format!r}: {name} trains a {kind}; answers are given by one decoder")
    if recipe.teacher is not None:
        raise UserError(f"--teacher {recipe.teacher}: learning from {format} has no teacher; leave it out")
    if recipe.peft.trains_adapter:
        raise UserError(f"peft.method={recipe.peft.method}: learning from {format} trains whole models; leave it out")
    if recipe.z_loss:
        raise UserError(f"z_loss={recipe.z_loss} has no meaning for data.format={format}: leave it out")
    if recipe.trains_rewards:
        _check_unused(recipe, "preference", "a model that answers", but=("centering",))
        _check_unused(recipe, "policy", "data.format=prompts")
        if recipe.loss_chunk_tokens is not None:
            raise UserError("loss_chunk_tokens has no meaning for a reward model, which has no logits: leave it out")
        return
    if format == "preference":
        _check_unused(recipe, "policy", "data.format=prompts")
        if recipe.preference.centering:
            raise UserError(f"preference.centering={recipe.preference.centering} is for reward models: leave it out")
    else:
        _check_unused(recipe, "preference", "data.format=preference")
        _check_policy(recipe)
    if recipe.reference is not None:
        _check_model(recipe, "the reference", recipe.reference)
    elif format == "preference" or recipe.policy.kl_coefficient:
        raise UserError(f"{name} is held near to a reference: say --init-from CKPT, the model to begin with")


def _check_unused(recipe: Recipe, part: str, needs: str, but: tuple[str, ...] = ()) -> None:
    config = getattr(recipe, part)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in but and value != field.default:
            raise UserError(f"{part}.{field.name}={value} needs {needs}: leave it out")


def _check_policy(recipe: Recipe) -> None:
    policy, length = recipe.policy, recipe.data.sequence_length
    if jax.process_count() > 1:
        raise UserError("data.format=prompts: answers are sampled by one process; several hosts are not supported")
    if policy.max_new_tokens >= length:
        raise UserError(
            f"policy.max_new_tokens={policy.max_new_tokens} leaves no room for a prompt in a row of "
            f"data.sequence_length={length}: shorten the first or raise the second"
        )
    if policy.reward_model is not None:
        option = "policy.reward_model"
        found = _read(option, policy.reward_model)
        if not isinstance(found, RewardModelConfig):
            kind = type(found).__name__.removesuffix("Config")
            raise UserError(f"{option} {policy.reward_model} holds a {kind}, no reward model")
        _check_sizes(recipe, option, policy.reward_model, found)


def _read(option: str, path: str) -> Any:
    try:
        return read_config(path)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None


def _check_model(recipe: Recipe, option: str, path: str) -> None:
    config = _read(option, path)
    if source_of(path) == "quantised":
        raise UserError(f"{option} {path} has packed weights, which are for inference: give the model they come from")
    if not isinstance(config, get_args(DecoderConfig)):
        kind = type(config).__name__.removesuffix("Config")
        raise UserError(f"{option} {path} holds a {kind}, which is no decoder")
    _check_sizes(recipe, option, path, config)


def _check_sizes(recipe: Recipe, option: str, path: str, config: Any) -> None:
    if config.vocab_size != recipe.sequence_model.vocab_size:
        raise UserError(
            f"{option} {path} has a vocabulary of {config.vocab_size} and this run model.vocab_size="
            f"{recipe.sequence_model.vocab_size}: they must be the same"
        )
    if config.max_position_embeddings < recipe.data.sequence_length:
        raise UserError(
            f"{option} {path} reads at most {config.max_position_embeddings} tokens, data.sequence_length="
            f"{recipe.data.sequence_length} is longer: shorten it"
        )


def check_post_training_data(recipe: Recipe, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Raises `UserError` for a document that does not fit a row or whose reference answer says nothing, by file and
    line, and for a reference or a reward model that was trained with another tokenizer."""
    check_documents_fit(corpus, tokenizer, recipe.data)
    for option, path in (("the reference", recipe.reference), ("policy.reward_model", recipe.policy.reward_model)):
        found = None if path is None or source_of(path) != "run" else read_run(path).tokenizer_fingerprint
        if found is not None and found != tokenizer.fingerprint:
            raise UserError(
                f"{option} {path} was trained with another tokenizer (sha256 {found[:12]}...) than this run's "
                f"(sha256 {tokenizer.fingerprint[:12]}...): they must be the same"
            )
    if not recipe.samples_answers:
        return
    room = recipe.data.sequence_length - recipe.policy.max_new_tokens
    for source in corpus.sources:
        for view in (source.train, source.validation):
            for document in (view[number] for number in range(len(view))):
                check_reference(document, recipe.policy.reward)
                count = len(prompt_ids(document, tokenizer))
                if count > room:
                    raise UserError(
                        f"{document.where}: the prompt has {count} tokens, and data.sequence_length="
                        f"{recipe.data.sequence_length} less policy.max_new_tokens={recipe.policy.max_new_tokens} "
                        f"leaves room for {room}: shorten it, or raise the first"
                    )


def frozen_configs(recipe: Recipe) -> list[Any]:
    """The architectures of what a run holds in memory besides its model: reference and reward model."""
    paths = (recipe.reference, recipe.policy.reward_model)
    return [read_config(path) for path in paths if path is not None]


@dataclasses.dataclass(frozen=True)
class Frozen:
    """Parameters that stay as they are, sharded by the recipe's rules; None where there are none."""

    reference: Any = None
    """Of the model that this one is held near to."""
    reward_model: Any = None
    """Of the model that says what answers are worth."""


def load_frozen(recipe: Recipe, mesh: Mesh) -> Frozen:
    """Reference and reward model of a recipe. Raises `UserError` if they cannot be read."""

    def loaded(option: str, path: str | None) -> Any:
        if path is None:
            return None
        try:
            return load_params(path, recipe, mesh)
        except UserError as error:
            raise UserError(f"{option} {error}") from None

    return Frozen(loaded("the reference", recipe.reference), loaded("policy.reward_model", recipe.policy.reward_model))


def check_same_frozen(recipe: Recipe, frozen: Frozen, *, new: bool) -> None:
    """Writes down which weights reference and reward model of a new run have; of one that is resumed, raises
    `UserError`, on all processes alike, if it began with others."""
    parts = {name: value for name, value in vars(frozen).items() if value is not None}
    if not parts:
        return
    path, found = Path(recipe.run_dir) / WEIGHTS, {name: weights_fingerprint(value) for name, value in parts.items()}
    if new or not path.is_file():
        if jax.process_index() == 0:
            write_json_atomically(path, found)
        return
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        differs = [name for name, value in found.items() if saved[name] != value]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): it says which weights the run is held near to") from None
    if differs:
        what = differs[0].replace("_", " ")
        named = recipe.reference if differs[0] == "reference" else recipe.policy.reward_model
        raise UserError(
            f"the {what} {named} has other weights (sha256 {found[differs[0]][:12]}...) than when {recipe.run_dir} "
            f"began (sha256 {saved[differs[0]][:12]}...): put those back, or choose another --run-dir"
        )


def frozen_flops_per_token(recipe: Recipe) -> float:
    """What reference and reward model, and the scoring of samples, add to the forward operations per token of a step
    that takes `TRAINING_TO_FORWARD` times as many: they are not differentiated. Sampling is not counted."""
    length = recipe.data.sequence_length
    forward = sum(config.flops_per_token(length) for config in frozen_configs(recipe))
    if recipe.samples_answers:
        forward += recipe.sequence_model.flops_per_token(length)
    return forward / TRAINING_TO_FORWARD


def describe_frozen(recipe: Recipe) -> str:
    """Lines for the beginning of a run, each with a line break before it; empty where there is nothing to say."""
    text = ""
    if recipe.data.format == "preference" and not recipe.trains_rewards:
        how = recipe.preference
        text += f"\nreference  {recipe.reference}: {how.kind}, beta {how.beta:g}"
    if recipe.samples_answers:
        policy = recipe.policy
        near = f"beta {policy.kl_coefficient:g} ({policy.kl_penalty})" if recipe.reference else "none"
        text += f"\nreference  {recipe.reference or 'none'}: KL penalty {near}"
        reward = policy.reward_model if policy.reward == "model" else policy.reward
        text += f"\nreward     {reward}; {policy.samples_per_prompt} answers to each prompt"
    return text
