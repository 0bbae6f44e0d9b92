"""Runs that learn from a cache of a teacher: what does not fit is refused, and each batch gets what was said of it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zoo.data import TrainBatches
from zoo.errors import UserError
from zoo.parallel.rows import Rows
from zoo.recipes.recipe import Recipe
from zoo.recipes.teacher_cache import CacheLayout, TeacherCache, stream_identity
from zoo.training.cached_teacher import with_teacher
from zoo.training.top_k_distillation import TopK


class CachedBatches:
    """The training batches of a run (`ScoredBatch`), each with what the teacher says of it.

    The cache's address of a batch is the number of its step. A run reads one batch a step, also where a spike is left
    out, so that the state's step says where a resumed one goes on; the checksums of the rows hold it to that.
    """

    def __init__(self, batches: TrainBatches, cache: TeacherCache, first_step: int):
        self._batches, self._cache, self._step = batches, cache, first_step

    def __next__(self) -> Any:
        batch, step = next(self._batches), self._step
        self._step += 1
        if isinstance(batch, Rows):
            rows: Any = batch.batch
            kept = self._cache.read(step, rows, batch.numbers)
            return Rows(with_teacher(rows, kept), batch.numbers, batch.total)
        return with_teacher(batch, self._cache.read(step, batch))

    def get_state(self) -> Mapping[str, Any]:
        """The position of the batches; the cache has none of its own."""
        return self._batches.get_state()


def open_cache(recipe: Recipe, batches: TrainBatches) -> TeacherCache | None:
    """The cache of a recipe, None without one. Raises `UserError` if it is none, or of another stream (data, tokenizer,
    seed, batch size, ...), vocabulary or temperature, or holds fewer words or steps than the run asks for."""
    how = recipe.distillation
    if how.teacher_cache is None:
        return None
    try:
        cache = TeacherCache(how.teacher_cache)
        wanted = CacheLayout(
            batch_size=recipe.data.batch_size,
            sequence_length=recipe.data.sequence_length,
            k=cache.layout.k,
            vocab_size=recipe.sequence_model.vocab_size,
            temperature=how.temperature,
            teacher=cache.layout.teacher,
            stream=stream_identity(batches.get_state()),
        )
        cache.check(wanted, recipe.loop.last_step)
    except UserError as error:
        raise UserError(f"--teacher-cache {error}") from None
    if how.top_k is not None and how.top_k > cache.layout.k:
        raise UserError(
            f"--teacher-cache {how.teacher_cache} holds {cache.layout.k} words of each distribution, "
            f"distillation.top_k={how.top_k} is more"
        )
    return cache


def cached_batches(batches: TrainBatches, cache: TeacherCache | None, first_step: int) -> Any:
    """The batches from `first_step` on, with what the cache says of them; without one, as they are."""
    return batches if cache is None else CachedBatches(batches, cache, first_step)


def cached_shapes(recipe: Recipe, batch: Any) -> Any:
    """Shapes and shardings of a batch [B, T] with those of the recipe's cache, where it has one."""
    if recipe.distillation.teacher_cache is None:
        return batch
    k, tokens = TeacherCache(recipe.distillation.teacher_cache).layout.k, batch.tokens
    like = [((*tokens.shape, k), jnp.float16), ((*tokens.shape, k), jnp.int32), (tokens.shape, jnp.float32)]
    kept: list[Any] = [jax.ShapeDtypeStruct(shape, dtype, sharding=tokens.sharding) for shape, dtype in like]
    return with_teacher(batch, TopK(*kept))
