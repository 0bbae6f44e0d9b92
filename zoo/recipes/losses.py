"""Which loss a recipe trains with: decided by its model."""

import functools

from zoo.recipes.recipe import Recipe
from zoo.training.losses import next_token_loss
from zoo.training.step import LossFunction


def loss_function(recipe: Recipe) -> LossFunction:
    """`loss(model, batch) -> LossSums` of a recipe."""
    return functools.partial(next_token_loss, z_loss=recipe.z_loss, chunk_tokens=recipe.loss_chunk_tokens)
