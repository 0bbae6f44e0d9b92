"""Writing a teacher's cache: `python -m zoo.score --checkpoint TEACHER --top-k-logits K --out DIR -- RECIPE ...`"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from zoo.data import open_corpus, train_batches
from zoo.errors import UserError
from zoo.parallel import MeshConfig, activation_sharding, batch_sharding, make_mesh
from zoo.parallel.rows import to_devices
from zoo.recipes.checks import check_recipe
from zoo.recipes.image_tokens import image_encoder
from zoo.recipes.recipe import Recipe
from zoo.recipes.run import choose_tokenizer
from zoo.recipes.teacher import load_teacher, teacher_config
from zoo.recipes.teacher_cache import CacheLayout, CacheWriter, TeacherCache, stream_identity
from zoo.recipes.weights import abstract_teacher
from zoo.training.teacher import weights_fingerprint
from zoo.training.top_k_distillation import TopK, top_k_of


def cached_recipe(recipe: Recipe, teacher: Path) -> Recipe:
    """The recipe with this teacher, in one process."""
    if recipe.teacher is not None:
        raise UserError("leave out --teacher: --checkpoint is the teacher")
    if recipe.distillation.teacher_cache is not None or recipe.distillation.on_policy:
        raise UserError("leave out --teacher-cache and distillation.on_policy: --checkpoint is the teacher")
    how = dataclasses.replace(recipe.distillation, teacher=str(teacher))
    data = dataclasses.replace(recipe.data, streams=recipe.data.streams or 1)
    return dataclasses.replace(recipe, distillation=how, data=data, mesh=MeshConfig())


def write_cache(
    recipe: Recipe, k: int, folder: Path, on_step: Callable[[float], None] = lambda _steps: None
) -> TeacherCache:
    """Writes what the recipe's teacher says of the first `recipe.loop.steps` batches of its training stream, on one
    device; steps that lie in the folder already are kept. `on_step` is told of steps that are done.

    Raises:
        UserError: the teacher does not fit the recipe, or the folder holds something else.
    """
    mesh = make_mesh(recipe.mesh, jax.devices()[:1])
    check_recipe(dataclasses.replace(recipe, freeze=("*",)), mesh)  # no gradients and moments in memory
    config: Any = teacher_config(recipe)
    if not 1 <= k <= config.vocab_size:
        raise UserError(f"--top-k-logits must lie in 1 .. {config.vocab_size}, the teacher's vocabulary, got {k}")
    corpus = open_corpus(recipe.data)
    tokenizer = choose_tokenizer(recipe, corpus, None)
    batches = train_batches(corpus, tokenizer, recipe.data, encode_image=image_encoder(recipe))
    with contextlib.closing(batches):
        params = load_teacher(recipe, mesh)
        layout = CacheLayout(
            batch_size=recipe.data.batch_size,
            sequence_length=recipe.data.sequence_length,
            k=k,
            vocab_size=config.vocab_size,
            temperature=recipe.distillation.temperature,
            teacher=weights_fingerprint(params),
            stream=stream_identity(batches.get_state()),
        )
        writer = CacheWriter(folder, layout)
        if writer.first_step < recipe.loop.steps <= TeacherCache(folder).steps:
            return TeacherCache(folder)  # all there, the last part not whole
        if writer.position is not None:
            batches.set_state(writer.position)
        on_step(min(writer.first_step, recipe.loop.steps))
        score = _scores(recipe, mesh, k)
        sharding = batch_sharding(mesh, recipe.rules)
        for _ in range(writer.first_step, recipe.loop.steps):
            batch: Any = next(batches)
            with activation_sharding(mesh, recipe.rules):
                kept = jax.device_get(score(params, to_devices(batch, sharding)))
            writer.add(kept, batch, batches.get_state())
            on_step(1)
        writer.finish(batches.get_state())
    return TeacherCache(folder)


def _scores(recipe: Recipe, mesh: Any, k: int) -> Callable[[Any, Any], TopK]:
    abstract = abstract_teacher(recipe, mesh)
    assert abstract is not None

    @jax.jit
    def score(params: Any, batch: Any) -> TopK:
        teacher: Any = nnx.merge(abstract.graphdef, params)
        hidden = teacher.hidden_states(
            batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids, media=batch.media
        )
        return top_k_of(
            hidden,
            teacher.output_embedding(),
            k,
            soft_cap=teacher.config.final_logit_soft_cap,
            temperature=recipe.distillation.temperature,
        )

    return score
