"""Complete runs: model, data, optimizer and mesh in one value, each with its cost and expected result.

`recipe("gemma2-nano")`; one module a recipe, whose docstring says what it costs, what comes out and the exact command.
"""

import sys

from zoo.errors import UserError, nearest_name
from zoo.recipes import (
    arithmetic_dpo,
    arithmetic_reward,
    arithmetic_rl,
    arithmetic_sft,
    bert_tiny_mlm,
    gemini_flash_like_v4_4096,
    gemini_pro_like_v4_4096,
    gemini_tiny_flash,
    gemini_tiny_multimodal,
    gemini_tiny_pro,
    gemma2_2b,
    gemma2_2b_sft,
    gemma2_2b_v5e_512,
    gemma2_9b,
    gemma2_9b_v4_4096,
    gemma2_27b,
    gemma2_27b_v5p_6144,
    gemma2_nano,
    gemma2_nano_lora,
    image_classes,
    image_vq,
)
from zoo.recipes.recipe import Recipe, first_difference, recipe_to_dict

__all__ = ["DEFAULT", "Recipe", "description", "first_difference", "recipe", "recipe_to_dict", "recipes"]

DEFAULT = "gemma2-nano"

_MODULES = (
    gemma2_nano,
    gemma2_2b,
    gemma2_9b,
    gemma2_27b,
    gemma2_2b_sft,
    gemma2_2b_v5e_512,
    gemma2_9b_v4_4096,
    gemma2_27b_v5p_6144,
    gemini_tiny_pro,
    gemini_tiny_flash,
    gemini_tiny_multimodal,
    image_vq,
    image_classes,
    bert_tiny_mlm,
    arithmetic_sft,
    arithmetic_dpo,
    arithmetic_reward,
    arithmetic_rl,
    gemini_pro_like_v4_4096,
    gemini_flash_like_v4_4096,
    gemma2_nano_lora,
)


def recipes() -> dict[str, Recipe]:
    """All recipes, by name."""
    return {module.RECIPE.name: module.RECIPE for module in _MODULES}


def recipe(name: str) -> Recipe:
    """The recipe of that name; UserError with the nearest name otherwise."""
    if name not in recipes():
        raise UserError(f"unknown recipe {name!r}; {nearest_name(name, recipes())}")
    return recipes()[name]


def description(name: str) -> str:
    """Cost, expected result and command of a recipe: its module's docstring."""
    return sys.modules[f"{__name__}.{name.replace('-', '_')}"].__doc__ or ""
