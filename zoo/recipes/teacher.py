"""Runs with a fixed teacher: what does not fit is refused, and a resumed run has the teacher that it began with."""

import dataclasses
import json
from pathlib import Path
from typing import Any, get_args

import jax
from jax.sharding import Mesh

from zoo.data import Tokenizer
from zoo.errors import UserError
from zoo.interop import read_config, source_of
from zoo.models import ClassifierConfig, CoDistilledConfig, DecoderConfig
from zoo.recipes.recipe import Recipe
from zoo.recipes.weights import load_params
from zoo.training.mfu import TRAINING_TO_FORWARD
from zoo.training.run_directory import write_json_atomically
from zoo.training.teacher import DistillationConfig, weights_fingerprint

WEIGHTS = "teacher.json"
"""File of a run directory that says which weights its teacher has."""


def teacher_config(recipe: Recipe) -> Any:
    """The architecture of the fixed teacher, None without one. Raises `UserError` if it is no checkpoint."""
    if recipe.teacher is None:
        return None
    try:
        return read_config(recipe.teacher)
    except UserError as error:
        raise UserError(f"--teacher {error}") from None


def check_teacher(recipe: Recipe) -> None:
    """Raises `UserError` if a teacher is given to a run that can have none, if it is none for this run (no decoder, of
    another vocabulary, of a shorter context, with other encoders), or if there is none and options are given to it."""
    path, how = recipe.teacher, recipe.distillation
    if how.teacher_cache is not None:
        check_cached(recipe)
        return
    if how.top_k is not None:
        raise UserError(f"distillation.top_k={how.top_k} needs a cache: say --teacher-cache DIR")
    if path is None:
        for field in dataclasses.fields(DistillationConfig):
            value = getattr(recipe.distillation, field.name)
            if value != field.default:
                raise UserError(f"distillation.{field.name}={value} needs a teacher: say --teacher CKPT")
        return
    _check_student(recipe, f"--teacher {path}")
    check_on_policy(recipe)
    teacher = teacher_config(recipe)
    if source_of(path) == "quantised":
        raise UserError(f"--teacher {path} has packed weights, which are for inference: give the model they come from")
    if not isinstance(teacher, get_args(DecoderConfig)):
        kind = type(teacher).__name__.removesuffix("Config")
        raise UserError(f"--teacher {path} holds a {kind}, which is no decoder: it says nothing of the next token")
    if teacher.vocab_size != recipe.sequence_model.vocab_size:
        raise UserError(
            f"--teacher {path} has a vocabulary of {teacher.vocab_size} and this run model.vocab_size="
            f"{recipe.sequence_model.vocab_size}: they must be the same"
        )
    if teacher.max_position_embeddings < recipe.data.sequence_length:
        raise UserError(
            f"--teacher {path} reads at most {teacher.max_position_embeddings} tokens, data.sequence_length="
            f"{recipe.data.sequence_length} is longer: shorten it, or choose another teacher"
        )


def _check_student(recipe: Recipe, option: str) -> None:
    kinds = {
        "trains a pair, which has a teacher of its own": isinstance(recipe.model, CoDistilledConfig),
        "trains a tokenizer of images": recipe.trains_images,
        "trains a classifier of images": recipe.classifies,
        "trains a model that guesses masked tokens": recipe.trains_masked,
    }
    for kind, applies in kinds.items():
        if applies:
            raise UserError(f"{option}: {recipe.name} {kind}; a teacher is for decoders, leave it out")


def check_cached(recipe: Recipe) -> None:
    """Raises `UserError` if a run can have no cache of a teacher, or has a teacher besides. Whether the cache is one of
    this run's data, `zoo.recipes.cached_batches.open_cache` finds out."""
    how, option = recipe.distillation, f"--teacher-cache {recipe.distillation.teacher_cache}"
    if how.teacher is not None:
        raise UserError(f"{option} takes the place of --teacher {how.teacher}: leave out one of them")
    if how.on_policy:
        raise UserError(
            f"{option} says nothing of the model's own samples: distillation.on_policy needs --teacher CKPT"
        )
    _check_student(recipe, option)
    if recipe.data.format in ("preference", "prompts"):
        raise UserError(f"{option}: learning from {recipe.data.format} has no teacher; leave it out")


def check_on_policy(recipe: Recipe) -> None:
    """Raises `UserError` if a run with a teacher asks for samples of its own and cannot have them."""
    how, length = recipe.distillation, recipe.data.sequence_length
    for name in ("prompt_tokens", "max_new_tokens"):
        default = getattr(DistillationConfig, name)
        if not how.on_policy and getattr(how, name) != default:
            raise UserError(f"distillation.{name}={getattr(how, name)} needs distillation.on_policy above 0")
    if not how.on_policy:
        return
    if recipe.data.format not in ("text", "chat"):
        raise UserError(f"distillation.on_policy={how.on_policy}: data.format={recipe.data.format} is not sampled")
    if how.hard_label_weight:
        raise UserError(
            f"distillation.hard_label_weight={how.hard_label_weight}: samples of the model have no real labels; leave "
            f"it out, or distillation.on_policy={how.on_policy}"
        )
    if recipe.peft.trains_adapter:
        raise UserError(f"distillation.on_policy={how.on_policy} trains whole models: leave out peft.method")
    if jax.process_count() > 1:
        raise UserError("distillation.on_policy: samples are drawn by one process; several hosts are not supported")
    if how.prompt_tokens + how.max_new_tokens > length:
        raise UserError(
            f"distillation.prompt_tokens={how.prompt_tokens} and max_new_tokens={how.max_new_tokens} do not fit in a "
            f"row of data.sequence_length={length}: shorten them, or raise it"
        )


def check_teacher_tokenizer(recipe: Recipe, tokenizer: Tokenizer, of_teacher: Tokenizer | None) -> None:
    """Raises `UserError` if the teacher was trained with another tokenizer; None: it has none to compare with."""
    if of_teacher is not None and of_teacher.fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"--teacher {recipe.teacher} was trained with another tokenizer (sha256 {of_teacher.fingerprint[:12]}...) "
            f"than this run's (sha256 {tokenizer.fingerprint[:12]}...): they must be the same"
        )


def load_teacher(recipe: Recipe, mesh: Mesh) -> Any:
    """The teacher's parameters, sharded by the recipe's rules; None without a teacher. Raises `UserError` if they
    cannot be read."""
    if recipe.teacher is None:
        return None
    try:
        return load_params(recipe.teacher, recipe, mesh)
    except UserError as error:
        raise UserError(f"--teacher {error}") from None


def check_same_teacher(recipe: Recipe, params: Any, *, new: bool, cached: str | None = None) -> None:
    """Writes down which weights the teacher of a new run has; of one that is resumed, raises `UserError`, on all
    processes alike, if it began with others. `params` is what `load_teacher` gave; `cached` is the fingerprint of the
    weights that a cache was written with."""
    if params is None and cached is None:
        return
    option, source = "--teacher", recipe.teacher
    if cached is not None:
        option, source = "--teacher-cache", recipe.distillation.teacher_cache
    path, found = Path(recipe.run_dir) / WEIGHTS, cached or weights_fingerprint(params)
    if not new and path.is_file():
        try:
            saved = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): it says which weights the run's teacher has") from None
        if saved != found:
            raise UserError(
                f"{option} {source} has other weights (sha256 {found[:12]}...) than when {recipe.run_dir} "
                f"began (sha256 {saved[:12]}...): put those back, or choose another --run-dir"
            )
    elif jax.process_index() == 0:
        write_json_atomically(path, {"path": source, "sha256": found})


def flops_per_token(recipe: Recipe) -> float:
    """Forward floating-point operations per token (of a classifier, per image) of the model, and of the teacher a part
    so that a training step takes `TRAINING_TO_FORWARD` times as many: it is not differentiated."""
    length, teacher = recipe.data.sequence_length, teacher_config(recipe)
    if isinstance(recipe.model, ClassifierConfig):
        return recipe.model.flops_per_image(recipe.data.images.side)
    model = recipe.model.flops_per_token(length)
    if recipe.peft.trains_adapter and recipe.peft.method != "sparse":
        model *= 2 / TRAINING_TO_FORWARD  # forward, and backward to the inputs of products, but not to the weights
    return model if teacher is None else model + teacher.flops_per_token(length) / TRAINING_TO_FORWARD


def describe_teacher(recipe: Recipe) -> str:
    """A line for the beginning of a run, with a line break before it; empty without a teacher."""
    teacher, how = teacher_config(recipe), recipe.distillation
    if not how.learns:
        return ""
    what = f"cached in {how.teacher_cache}" if teacher is None else f"{recipe.teacher}: {teacher.num_parameters():,}"
    text = f"\nteacher    {what}" + ("" if teacher is None else " parameters")
    text += f", Jensen-Shannon, beta {how.beta:g}" if how.kind == "jensen_shannon" else f", {how.kind} KL"
    text += f", {how.on_policy:.0%} of the steps on samples of the model" if how.on_policy else ""
    text += f", temperature {how.temperature:g}" if how.temperature != 1 else ""
    return text + (f", {how.hard_label_weight:.0%} real labels" if how.hard_label_weight else "")
