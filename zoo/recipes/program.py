"""The programs of a recipe, from shapes and shardings alone: `zoo.train` runs them, `zoo.plan` looks at them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from zoo.data import Batch, media_shapes
from zoo.parallel import batch_sharding, rows_only
from zoo.parallel.compiler_options import compiler_options
from zoo.recipes.adapters import AdapterProgram, adapter_loss, adapter_program, validation_loss
from zoo.recipes.cached_batches import cached_shapes
from zoo.recipes.losses import (
    balancing_bias_rate,
    is_stochastic,
    loss_function,
    loss_with_cache,
    loss_with_teacher,
)
from zoo.recipes.recipe import Recipe
from zoo.recipes.weights import AbstractModel, abstract_checkpoint, abstract_model, abstract_teacher
from zoo.training.classification_loss import kept_statistics
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.parameters import flatten_with_names
from zoo.training.routing import selection_biases
from zoo.training.state import TrainState, abstract_state
from zoo.training.step import LossFunction, jit_train_step, make_train_step


@dataclass(frozen=True)
class TrainingProgram:
    """One training step of a recipe on a mesh; `step` is traced inside `activation_sharding(mesh, recipe.rules)`."""

    model: AbstractModel
    """Structure, shapes and shardings of the model."""
    optimizer: optax.GradientTransformation
    """Of the recipe."""
    loss: LossFunction
    """`loss(model, batch) -> LossSums` of a validation."""
    step: Callable[..., Any]
    """Jitted `(state, batch) -> (state, metrics)`; it consumes the state. With a fixed teacher, and on pairs of answers
    with the reference, `(state, batch, teacher)`, the last of which are that model's parameters."""
    state: TrainState
    """Shapes and shardings of the state."""
    batch: Batch
    """Shapes and shardings of a batch."""
    teacher: AbstractModel | None
    """Structure, shapes and shardings of the fixed teacher, None without one."""
    adapter: AdapterProgram | None = None
    """Of a run that trains an adapter: then `model` and `state` hold its parameters, `loss` takes (those, `Fixed`) and
    the last argument of `step` is a `Fixed`."""
    reference: AbstractModel | None = None
    """The same of the model that this one is held near to in post-training."""


def training_program(recipe: Recipe, mesh: Mesh) -> TrainingProgram:
    """What the recipe trains with on this mesh. Nothing is allocated or compiled."""
    adapter = adapter_program(recipe, mesh)
    model = abstract_model(recipe, mesh) if adapter is None else AbstractModel(None, adapter.params)
    names = list(flatten_with_names(model.params))
    statistics = kept_statistics(names) if recipe.classifies else []
    not_optimized = (*recipe.freeze, *selection_biases(names), *statistics)
    optimizer = make_optimizer(recipe.optimizer, recipe.loop.steps, model.params, not_optimized)
    teacher = abstract_teacher(recipe, mesh)
    reference = abstract_checkpoint(recipe.reference, "the reference", recipe, mesh)
    loss = loss_function(recipe, None if reference is None else reference.graphdef)
    trained = loss if teacher is None else loss_with_teacher(recipe, teacher.graphdef)
    if recipe.distillation.teacher_cache is not None:
        trained = loss_with_cache(recipe)
    if adapter is not None:
        stochastic, has_teacher = is_stochastic(recipe), teacher is not None
        trained = adapter_loss(adapter, trained, stochastic=stochastic, has_teacher=has_teacher)
        loss = validation_loss(adapter, loss)
    step = make_train_step(
        model.graphdef,
        trained,
        optimizer,
        schedule=make_schedule(recipe.optimizer, recipe.loop.steps),
        accumulation_steps=recipe.optimizer.accumulation_steps,
        frozen_patterns=recipe.freeze,
        kept_of_inputs=statistics,
        stochastic=is_stochastic(recipe) or recipe.peft.dropout > 0,
        spike_rule=recipe.optimizer.spike_rule,
        balancing_bias_rate=balancing_bias_rate(recipe),
    )
    state = abstract_state(model.params, optimizer)
    device = mesh.devices.flat[0]
    options = compiler_options(device.platform, device.device_kind) if mesh.size > 1 else None
    jitted = jit_train_step(step, state, options)
    shapes = abstract_batch(recipe, mesh)
    return TrainingProgram(model, optimizer, loss, jitted, state, shapes, teacher, adapter, reference)


def abstract_batch(recipe: Recipe, mesh: Mesh) -> Batch:
    """Shapes and shardings of the recipe's global batch [B, T]."""
    rows = recipe.data.batch_size * (recipe.policy.samples_per_prompt if recipe.samples_answers else 1)
    shape, sharding = (rows, recipe.data.sequence_length), batch_sharding(mesh, recipe.rules)
    ids: Any = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding)
    weights: Any = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    whole_rows = rows_only(sharding)
    media = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole_rows), media_shapes(recipe.data)
    )
    batch = Batch(tokens=ids, targets=ids, positions=ids, segment_ids=ids, loss_weights=weights, media=media)
    return cached_shapes(recipe, batch)
