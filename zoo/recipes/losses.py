"""Which loss a recipe trains with: decided by its model."""

import functools
from typing import Any

from flax import nnx

from zoo.models import CoDistilledConfig
from zoo.recipes.recipe import Recipe
from zoo.training.cached_teacher import cached_teacher_loss
from zoo.training.classification_loss import classification_loss
from zoo.training.image_loss import image_reconstruction_loss
from zoo.training.losses import next_token_loss
from zoo.training.masked_loss import masked_token_loss
from zoo.training.policy_gradient import policy_gradient_loss
from zoo.training.preference import preference_loss, reward_model_loss
from zoo.training.step import LossFunction
from zoo.training.teacher import fixed_teacher_loss, online_distillation_loss


def loss_function(recipe: Recipe, reference: Any = None) -> LossFunction:
    """`loss(model, batch) -> LossSums` of a recipe: what validation reports, and training where no fixed teacher is.
    `reference` is the structure (nnx.GraphDef) of the model that pairs of answers are compared with, whose parameters
    the loss is given as `teacher=`."""
    if recipe.trains_rewards:
        return functools.partial(reward_model_loss, config=recipe.preference)
    if recipe.samples_answers:
        return functools.partial(policy_gradient_loss, chunk_tokens=recipe.loss_chunk_tokens)
    if recipe.data.format == "preference":
        return functools.partial(
            preference_loss,
            teacher_graphdef=reference,
            config=recipe.preference,
            chunk_tokens=recipe.loss_chunk_tokens,
        )
    if recipe.trains_images:
        return image_reconstruction_loss
    if recipe.classifies:
        return functools.partial(classification_loss, config=recipe.classification)
    if recipe.trains_masked:
        return functools.partial(masked_token_loss, z_loss=recipe.z_loss, chunk_tokens=recipe.loss_chunk_tokens)
    loss = online_distillation_loss if isinstance(recipe.model, CoDistilledConfig) else next_token_loss
    return functools.partial(loss, z_loss=recipe.z_loss, chunk_tokens=recipe.loss_chunk_tokens)


def loss_with_teacher(recipe: Recipe, teacher: nnx.GraphDef) -> LossFunction:
    """`loss(model, batch, teacher=parameters) -> LossSums` of a recipe with a fixed teacher."""
    return functools.partial(
        fixed_teacher_loss,
        teacher_graphdef=teacher,
        config=recipe.distillation,
        z_loss=recipe.z_loss,
        chunk_tokens=recipe.loss_chunk_tokens,
    )


def loss_with_cache(recipe: Recipe) -> LossFunction:
    """`loss(model, batch) -> LossSums` of a recipe with a cache; the batches are `ScoredBatch`."""
    return functools.partial(
        cached_teacher_loss,
        config=recipe.distillation,
        z_loss=recipe.z_loss,
        chunk_tokens=recipe.loss_chunk_tokens,
    )


def is_stochastic(recipe: Recipe) -> bool:
    """Whether the loss is called with a key in training, and without one in validation: sparse layers have other
    capacity then, and jitter; a student learns from its teacher in training only; masks are drawn; batch
    normalisation uses the batch's statistics."""
    if recipe.trains_masked or recipe.classifies:
        return True
    return isinstance(recipe.model, CoDistilledConfig) or getattr(recipe.model, "experts", None) is not None


def balancing_bias_rate(recipe: Recipe) -> float:
    """By how much every step moves the selection biases of sparse layers."""
    experts = getattr(recipe.model, "experts", None)
    return 0.0 if experts is None else experts.balancing_bias_rate
