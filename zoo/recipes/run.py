"""Beginning or resuming a run: its folder, its description, its tokenizer."""

import dataclasses
import logging
import math
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from zoo.data import TOKENIZER_FILES, Corpus, NoText, Tokenizer, load_tokenizer, tokenizer_for
from zoo.errors import UserError
from zoo.interop import read_config, source_of
from zoo.models import RewardModelConfig, config_from_dict, config_to_dict
from zoo.recipes.checks import check_tokenizer
from zoo.recipes.console import say
from zoo.recipes.recipe import Recipe, first_difference, recipe_to_dict
from zoo.recipes.teacher import check_teacher_tokenizer
from zoo.training.run_directory import (
    RunInfo,
    checkpoints_dir,
    is_run_dir,
    read_run,
    saved_steps,
    tokenizer_dir,
    wait_until_seen,
    write_run,
)

logger = logging.getLogger(__name__)


def resolve_model(recipe: Recipe) -> Recipe:
    """The recipe with the architecture of `init_from` where it asks for that (`model_from_init`)."""
    if not recipe.model_from_init or recipe.init_from is None:
        return recipe
    found = read_run(recipe.run_dir).model_dict if is_run_dir(recipe.run_dir) else None
    model: Any = read_config(recipe.init_from) if found is None else config_from_dict(found)
    if recipe.trains_rewards and not isinstance(model, RewardModelConfig):
        model = RewardModelConfig(model)
    return dataclasses.replace(recipe, model=model)


def choose_streams(recipe: Recipe) -> Recipe:
    """The recipe with `data.streams` set: as the run in its folder has it; for a new run the number of processes, or
    the largest part of it that divides the batch."""
    if recipe.data.streams is not None:
        return recipe
    run, processes = Path(recipe.run_dir), jax.process_count()
    streams = math.gcd(recipe.data.batch_size, processes)
    if is_run_dir(run):
        # Before there were streams every process was one, and named its file after their number.
        found = [path.stem.rpartition("-of-")[2] for path in checkpoints_dir(run).glob("*/data/*-of-*.json")]
        streams = read_run(run).config.get("data", {}).get("streams") or (int(found[0]) if found else 1)
        if processes > streams:
            logger.warning(
                "data.streams=%d since the run began, and %d processes now: some of them read the same stream",
                streams,
                processes,
            )
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, streams=streams))


def saved_run(recipe: Recipe) -> RunInfo | None:
    """The run that is already in the recipe's folder and would be resumed, None if there is none.

    Raises:
        UserError: it is a run of another recipe (the first field that differs is named), an export, or the folder holds
            checkpoints but no description of a run.
    """
    run = Path(recipe.run_dir)
    if not is_run_dir(run):
        if saved_steps(checkpoints_dir(run)):
            raise UserError(f"{run} holds checkpoints but no run.json: choose another --run-dir")
        return None
    saved = read_run(run)
    if not saved.config:
        raise UserError(
            f"{run} is an export, not a run that could be resumed: begin another one with --init-from {run}"
        )
    difference = first_difference(saved.config, recipe_to_dict(recipe))
    if difference is not None:
        name, old, new = difference
        raise UserError(
            f"{run} holds a run with {name}={old!r}, and this one has {name}={new!r}: give the old value to resume it, "
            "or another --run-dir to begin a new run (--init-from takes its weights along)"
        )
    if recipe.teacher is not None and "distillation" not in saved.config:  # it is older than that field
        raise UserError(f"{run} holds a run without a teacher: leave out --teacher, or choose another --run-dir")
    cache = recipe.distillation.teacher_cache
    if cache is not None and "teacher_cache" not in saved.config.get("distillation", {}):
        raise UserError(f"{run} holds a run without a cache: leave out --teacher-cache, or choose another --run-dir")
    if recipe.peft.trains_adapter and "peft" not in saved.config:  # as well
        raise UserError(f"{run} holds a run of a whole model: leave out --peft.method, or choose another --run-dir")
    before = saved.config.get("loop", {}).get("steps", recipe.loop.steps)
    done = max(saved.steps, default=0)
    if recipe.loop.steps < min(before, done):
        raise UserError(
            f"{run} has been trained for {done} steps, steps={recipe.loop.steps} is less: choose another --run-dir"
        )
    if before != recipe.loop.steps:
        say(f"steps: {before} -> {recipe.loop.steps}; the learning-rate schedule now ends at step {recipe.loop.steps}")
    return saved


def choose_tokenizer(recipe: Recipe, corpus: Corpus, saved: RunInfo | None) -> Tokenizer:
    """The tokenizer of the run that is resumed; else the one named, that of `init_from`, that of the teacher, or one
    trained on the corpus. A run that reads no text has none to speak of.

    Raises:
        UserError: it does not fit the model, or is not the one that the weights or the teacher were trained with.
    """
    if not recipe.reads_text:
        return NoText()
    run, teacher = Path(recipe.run_dir), recipe.teacher
    of_teacher = None if teacher is None else _tokenizer_of(teacher)
    if saved is not None:
        tokenizer = load_tokenizer(recipe.data.tokenizer or tokenizer_dir(run))
        check_tokenizer(recipe, tokenizer, saved.tokenizer_fingerprint, str(run))
        check_teacher_tokenizer(recipe, tokenizer, of_teacher)
        return tokenizer
    inherited = _tokenizer_of(recipe.init_from) if recipe.init_from else None
    source = recipe.init_from or teacher
    if recipe.data.tokenizer is None and source is not None:
        found = inherited if recipe.init_from else of_teacher
        if found is None:
            raise UserError(f"{source} has no tokenizer: name the one it was trained with (--data.tokenizer)")
        tokenizer = found
    else:
        if recipe.data.tokenizer is None and recipe.sequence_model.vocab_size >= LARGEST_TRAINED_VOCABULARY:
            raise UserError(
                f"{recipe.name} needs a tokenizer for its vocabulary of {recipe.sequence_model.vocab_size}: "
                "--init-from a checkpoint that carries one, or --data.tokenizer PATH"
            )
        tokenizer = tokenizer_for(corpus, recipe.data)
    check_tokenizer(recipe, tokenizer, inherited.fingerprint if inherited else None, str(recipe.init_from))
    check_teacher_tokenizer(recipe, tokenizer, of_teacher)
    return tokenizer


LARGEST_TRAINED_VOCABULARY = 100_000
"""A model with more tokens than this has a published tokenizer; one trained on the fly would be a mistake."""


def _tokenizer_of(checkpoint: str) -> Tokenizer | None:
    if source_of(checkpoint) == "run":
        found = read_run(checkpoint).tokenizer_dir
        return None if found is None else load_tokenizer(found)
    path = Path(checkpoint)
    for folder in (path, path.parent):  # released trees lie in the tokenizer's folder
        if any((folder / name).is_file() for name in TOKENIZER_FILES):
            return load_tokenizer(folder)
    return None


def check_same_data(corpus: Corpus, tokenizer: Tokenizer, saved: RunInfo | None) -> None:
    """Raises `UserError`, on all processes alike, if one of them sees other documents than the first, has another
    tokenizer, or does not see the run that the others resume."""
    if jax.process_count() == 1:
        return
    same_python = "every host needs the same files, the same Python and the same version of the tokenizer's library"
    own = {
        f"the documents: {same_python}": corpus.fingerprint[:32],
        f"the tokenizer: {same_python}": tokenizer.fingerprint[:32],
        "what is in the run directory: all hosts must share it": f"{saved is not None:032}",
    }
    digests = np.stack([np.frombuffer(bytes.fromhex(value), np.uint8) for value in own.values()])
    every = multihost_utils.process_allgather(digests)
    for process, theirs in enumerate(every):
        for name, first, other in zip(own, every[0], theirs, strict=True):
            if not np.array_equal(first, other):
                what, _, right = name.partition(": ")
                raise UserError(f"{what}: not the same on process 0 and on process {process}; {right}")


def how_to_go_on(recipe: Recipe) -> str:
    """What to do after an interruption, and which step will be continued from."""
    steps = saved_steps(checkpoints_dir(recipe.run_dir))
    what_for = f" to continue from the last checkpoint, step {steps[-1]}" if steps else ": nothing was saved yet"
    return f"run the same command again{what_for}"


def describe_run(recipe: Recipe, tokenizer: Tokenizer) -> RunInfo:
    """What `run.json` will say."""
    run = Path(recipe.run_dir)
    return RunInfo(
        path=run,
        recipe=recipe.name,
        model_dict=config_to_dict(recipe.model),
        execution_dict=dataclasses.asdict(recipe.execution),
        tokenizer_fingerprint=tokenizer.fingerprint if recipe.reads_text else None,
        tokenizer_dir=tokenizer_dir(run) if recipe.reads_text else None,
        config=recipe_to_dict(recipe),
    )


def begin_run(info: RunInfo, tokenizer: Tokenizer, *, new: bool) -> None:
    """Writes the tokenizer (of a new run) and then `run.json`: a folder with a `run.json` is complete.

    Raises:
        UserError: another run was begun there in the meantime, or a process does not see what the first one wrote.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("zoo: what was in the run directory is known to all processes")
    if jax.process_index() == 0:
        _write_run(info, tokenizer, new=new)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("zoo: the run directory is written")
        wait_until_seen(info.path / "run.json")


def _write_run(info: RunInfo, tokenizer: Tokenizer, *, new: bool) -> None:
    if new:
        if is_run_dir(info.path):
            raise UserError(f"another process has begun a run in {info.path}: choose another --run-dir")
        folder = tokenizer_dir(info.path)
        unfinished = folder.with_name("tokenizer.unfinished")
        for leftover in (folder, unfinished):
            shutil.rmtree(leftover, ignore_errors=True)
        if info.tokenizer_dir is not None:
            tokenizer.save(unfinished)
            unfinished.rename(folder)
    write_run(info)
