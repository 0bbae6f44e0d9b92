"""What is wrong with a recipe on these devices, found before anything is allocated."""

import dataclasses
import math
import os
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from zoo.data import MediaVocabulary, Tokenizer
from zoo.errors import UserError
from zoo.models import ClassifierConfig
from zoo.recipes.adapters import check_adapter_run
from zoo.recipes.classification import check_classification
from zoo.recipes.image_tokens import check_image_run, check_image_tokenizer
from zoo.recipes.masked_tokens import check_mask_token, check_masked_run
from zoo.recipes.post_training import check_post_training, frozen_configs
from zoo.recipes.recipe import Recipe
from zoo.recipes.teacher import check_teacher, teacher_config


def check_recipe(recipe: Recipe, mesh: Mesh) -> None:
    """Raises `UserError` for sizes that do not fit each other, the mesh, or any memory there is."""
    data, model, accumulation = recipe.data, recipe.model, recipe.optimizer.accumulation_steps
    if recipe.needs_data and not data.paths:
        raise UserError(f"{recipe.name} has no data of its own to train on: say --data PATH ...")
    axes = [name for name in recipe.rules.mesh_axes("batch") if mesh.shape[name] > 1]
    shards = math.prod(mesh.shape[name] for name in axes)
    if data.batch_size % (shards * accumulation):
        split = f"mesh ({' x '.join(f'{name}={mesh.shape[name]}' for name in axes)})"
        split += f" times optimizer.accumulation_steps={accumulation}" if accumulation > 1 else ""
        nearest = max(1, round(data.batch_size / (shards * accumulation))) * shards * accumulation
        raise UserError(f"data.batch_size={data.batch_size} is not divisible by the {split}; {nearest} would be")
    parts = math.prod(mesh.shape[name] for name in recipe.rules.mesh_axes("length"))
    if data.sequence_length % parts:
        raise UserError(
            f"data.sequence_length={data.sequence_length} is not divisible by the mesh's context={parts}; "
            f"{max(1, round(data.sequence_length / parts)) * parts} would be"
        )
    if parts > 1 and recipe.peft.method == "prefix":
        raise UserError(
            f"peft.method=prefix is not supported where devices share the tokens of a sequence (context={parts}): "
            "set mesh.context to 1, or choose another method"
        )
    check_classification(recipe)
    if recipe.trains_images:
        check_image_run(recipe)
    elif recipe.reads_text:
        check_tokens(recipe)
    check_media(recipe)
    check_image_tokenizer(recipe)
    check_teacher(recipe)
    check_adapter_run(recipe)
    check_post_training(recipe)
    if recipe.teacher is not None:
        try:
            check_media(dataclasses.replace(recipe, model=teacher_config(recipe)))
        except UserError as error:
            raise UserError(f"--teacher {recipe.teacher}: {error}") from None
    needed, available = least_bytes(recipe, mesh), memory_bytes(mesh)
    if available is not None and needed > available:
        raise UserError(
            f"training {_sizes(recipe)} ({model.num_parameters():,} parameters) with data.batch_size={data.batch_size}"
            f"{'' if recipe.classifies else f' x data.sequence_length={data.sequence_length}'}"
            f"{'' if recipe.teacher is None else f' and the teacher {recipe.teacher}'} needs at least "
            f"{_gib(needed)} GiB, the {mesh.size} device(s) have {_gib(available)} GiB; "
            "choose smaller sizes, more devices, or optimizer.accumulation_steps"
        )


def check_tokens(recipe: Recipe) -> None:
    """Raises `UserError` if the rows of tokens do not fit the model."""
    data, model = recipe.data, recipe.sequence_model
    check_masked_run(recipe)
    if data.sequence_length > model.max_position_embeddings:
        raise UserError(
            f"data.sequence_length={data.sequence_length} is longer than model.max_position_embeddings="
            f"{model.max_position_embeddings}; shorten the first or raise the second"
        )
    trains_tokenizer = data.tokenizer is None and recipe.init_from is None and recipe.teacher is None
    if trains_tokenizer and data.vocab_size > model.vocab_size:
        raise UserError(
            f"data.vocab_size={data.vocab_size} is larger than model.vocab_size={model.vocab_size}: "
            "the tokenizer would have tokens that the model does not know"
        )


def check_media(recipe: Recipe) -> None:
    """Raises `UserError` if the data's media are not cut as the model's encoders take them."""
    media, model = recipe.data.media, recipe.model
    if recipe.data.format != "interleaved" or recipe.trains_images:
        return
    if media.image_side:
        raise UserError(f"data.media.image_side={media.image_side} is for training a tokenizer of images: leave it out")
    vision: Any = getattr(model, "vision", None)
    audio: Any = getattr(model, "audio", None)
    if media.patches_per_row and vision is None:
        raise UserError("data.media.patches_per_row is above 0 and the model has no image encoder (model.vision)")
    if media.clips_per_row and audio is None:
        raise UserError("data.media.clips_per_row is above 0 and the model has no audio encoder (model.audio)")
    pairs: list[tuple[str, int, str, int]] = []
    if media.patches_per_row:
        pairs += [("patch_size", media.patch_size, "vision.patch_size", vision.patch_size)]
        pairs += [("merge", media.merge, "vision_merge", getattr(model, "vision_merge", media.merge))]
    if media.clips_per_row:
        pairs += [("mel_bins", media.mel_bins, "audio.num_mel_bins", audio.num_mel_bins)]
        pairs += [("audio_reduction", media.audio_reduction, "audio.reduction", audio.reduction)]
    for ours, value, theirs, wanted in pairs:
        if value != wanted:
            raise UserError(f"data.media.{ours}={value} must be the model's {theirs}, {wanted}")


def check_tokenizer(recipe: Recipe, tokenizer: Tokenizer, expected: str | None, source: str) -> None:
    """Raises `UserError` if the tokenizer has more tokens than the model, or another fingerprint than `expected`, that
    of the tokenizer that `source` was trained with."""
    if tokenizer.vocab_size > recipe.sequence_model.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model knows model.vocab_size="
            f"{recipe.sequence_model.vocab_size}: use the model's own tokenizer, or raise model.vocab_size"
        )
    if recipe.data.format == "interleaved":
        vocabulary = MediaVocabulary(tokenizer.vocab_size, recipe.data.media.image_codes)
        if vocabulary.size > recipe.sequence_model.vocab_size:
            raise UserError(
                f"the tokenizer's {tokenizer.vocab_size} tokens, the media tokens and data.media.image_codes="
                f"{vocabulary.image_codes} make {vocabulary.size}, the model knows model.vocab_size="
                f"{recipe.sequence_model.vocab_size}: raise it, or lower data.vocab_size"
            )
    check_mask_token(recipe, tokenizer)
    if expected is not None and tokenizer.fingerprint != expected:
        raise UserError(
            f"the tokenizer (sha256 {tokenizer.fingerprint[:12]}...) is not the one that {source} was trained with "
            f"(sha256 {expected[:12]}...): leave out data.tokenizer to use that one"
        )


def least_bytes(recipe: Recipe, mesh: Mesh) -> int:
    """Bytes that training takes on all devices together if nothing else is stored: parameters, gradients, two moments
    (only the parameters if some of them are frozen), those of a fixed teacher, and one layer input per layer of the
    micro-batch; of a classifier its images."""
    weights = jnp.dtype(recipe.execution.param_dtype).itemsize
    copies = mesh.shape["replica"] * mesh.shape["data"]
    trained = (
        0
        if recipe.freeze or recipe.peft.trains_adapter
        else 2 * weights + jnp.dtype(recipe.optimizer.mu_dtype).itemsize
    )
    state = recipe.model.num_parameters() * (weights + trained)
    teacher = teacher_config(recipe)
    if teacher is not None:
        state += teacher.num_parameters() * weights
    state += sum(config.num_parameters() for config in frozen_configs(recipe)) * weights
    rows = recipe.data.batch_size // recipe.optimizer.accumulation_steps
    if isinstance(recipe.model, ClassifierConfig):
        numbers = recipe.data.images.channels * recipe.data.images.side**2
    else:
        numbers = recipe.data.sequence_length * recipe.model.embed_dim * recipe.model.num_layers
    return state * copies + rows * numbers * jnp.dtype(recipe.execution.compute_dtype).itemsize


def _sizes(recipe: Recipe) -> str:
    """What makes a model large, as its options are called."""
    model = recipe.model
    if isinstance(model, ClassifierConfig):
        return f"model.depths={' '.join(map(str, model.depths))}"
    return (
        f"model.num_layers={model.num_layers}, model.embed_dim={model.embed_dim}, model.vocab_size={model.vocab_size}"
    )


def memory_bytes(mesh: Mesh) -> int | None:
    """Memory of all devices of a mesh together, None where it cannot be known."""
    device: Any = mesh.devices.flat[0]
    if device.platform == "cpu":  # virtual devices share the memory of their host
        hosts = len({device.process_index for device in mesh.devices.flat})
        try:
            return hosts * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError, AttributeError):
            return None
    if device.process_index != jax.process_index():
        return None
    try:
        limit = (device.memory_stats() or {}).get("bytes_limit")
    except jax.errors.JaxRuntimeError:  # a device that is only described, see zoo.ahead_of_time
        return None
    return None if limit is None else limit * mesh.size


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f}"
