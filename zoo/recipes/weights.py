"""The parameters that a run begins with: restored, taken from another checkpoint, or random."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from zoo.errors import UserError
from zoo.interop import load, read_config
from zoo.models import RewardModelConfig, build, config_to_dict
from zoo.nn import ExpertsConfig
from zoo.parallel import init_sharded, state_shardings
from zoo.recipes.recipe import Recipe
from zoo.training.checkpoints import Checkpoints
from zoo.training.state import TrainState, abstract_state, create_state


@dataclass(frozen=True)
class AbstractModel:
    """A model without its numbers."""

    graphdef: Any
    """Everything but the parameters; None of an adapter's parameters alone."""
    params: nnx.State
    """`jax.ShapeDtypeStruct`s with shardings."""


def make_model(recipe: Recipe) -> nnx.Module:
    """The recipe's model with random values."""
    return build(recipe.model, execution=recipe.execution, rngs=nnx.Rngs(recipe.seed))


def abstract_model(recipe: Recipe, mesh: Mesh) -> AbstractModel:
    """The model's structure, shapes and shardings; nothing is allocated."""
    return _abstract(lambda: make_model(recipe), recipe, mesh)


def abstract_teacher(recipe: Recipe, mesh: Mesh) -> AbstractModel | None:
    """The same of the fixed teacher, computed and sharded as the model; None without one."""
    return abstract_checkpoint(recipe.teacher, "--teacher", recipe, mesh)


def abstract_checkpoint(path: str | None, option: str, recipe: Recipe, mesh: Mesh) -> AbstractModel | None:
    """The same of a checkpoint that an option names, computed and sharded as the model; None without one."""
    if path is None:
        return None
    config = read_config(path)
    try:
        return _abstract(lambda: build(config, execution=recipe.execution, rngs=nnx.Rngs(0)), recipe, mesh)
    except UserError as error:
        raise UserError(f"{option} {path}: {error}") from None


def _abstract(make: Callable[[], nnx.Module], recipe: Recipe, mesh: Mesh) -> AbstractModel:
    graphdef, params = nnx.split(nnx.eval_shape(make), nnx.Param)
    shardings = state_shardings(params, mesh, recipe.rules)
    placed = jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), params, shardings)
    return AbstractModel(graphdef, placed)


def restore_or_begin(
    recipe: Recipe,
    mesh: Mesh,
    model: AbstractModel,
    optimizer: optax.GradientTransformation,
    checkpoints: Checkpoints,
    parts: Sequence[str],
    begin: Callable[[], nnx.State] | None = None,
) -> tuple[TrainState, dict[str, Any] | None]:
    """The newest saved state and these parts of its data position, or the state before the first step and None.
    `begin` gives the parameters of a run that begins otherwise than with the whole model."""
    restored = checkpoints.restore_newest(abstract_state(model.params, optimizer), parts)
    if restored is not None:
        return restored.state, restored.data_state
    if begin is not None:
        params = begin()
    elif recipe.init_from is not None:
        params = load_params(recipe.init_from, recipe, mesh)
        if recipe.trains_rewards and "decoder" not in params:
            params = with_new_head(params, model)
    else:
        params = init_sharded(lambda: make_model(recipe), mesh, recipe.rules)[1]
    return create_state(params, optimizer, seed=recipe.seed), None


def with_new_head(decoder: nnx.State, model: AbstractModel) -> nnx.State:
    """The parameters of a reward model that reads with this decoder: its vector is zero, as in a new one."""
    flat = [(("decoder", *path), leaf) for path, leaf in nnx.to_flat_state(decoder)]
    head: Any = model.params["head"]
    wanted = head.get_value()
    zeros = jax.device_put(jnp.zeros(wanted.shape, wanted.dtype), wanted.sharding)
    return nnx.from_flat_state([*flat, (("head",), head.replace(zeros))])


def load_params(checkpoint: str, recipe: Recipe, mesh: Mesh) -> nnx.State:
    """The parameters of a checkpoint, sharded. Raises `UserError` if there is none or it is damaged."""
    loaded = load(checkpoint, execution=recipe.execution, mesh=mesh, rules=recipe.rules, merge=True)
    return nnx.state(loaded.model, nnx.Param)


def check_init_from(recipe: Recipe) -> None:
    """Raises `UserError` if `recipe.init_from` is no checkpoint, or one of another model, naming the first field that
    differs. Token ids, the context length and how experts are trained do not make it another model: fine-tuning
    changes them."""
    if recipe.init_from is None:
        if recipe.peft.trains_adapter:
            raise UserError(f"peft.method={recipe.peft.method} trains beside a model that stays: say --init-from CKPT")
        return
    source, model = read_config(recipe.init_from), recipe.model
    if isinstance(model, RewardModelConfig) and not isinstance(source, RewardModelConfig):
        model = model.decoder
    saved, wanted = config_to_dict(source), config_to_dict(model)
    found = model_difference(saved, wanted)
    if found is not None:
        name, there, here = found
        raise UserError(
            f"{recipe.init_from} is of another model: {name} is {there!r} there and {here!r} in "
            "this run; --model-from-init takes the checkpoint's architecture"
        )


NOT_THE_FUNCTION = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_ids",
    "mask_token_id",
    "max_position_embeddings",
    "dropout",
)
"""Fields of a model that its numbers do not depend on, but for dropout in training."""

TRAINING_OF_EXPERTS = (
    "dispatch",
    "capacity_factor",
    "eval_capacity_factor",
    "exchange_capacity_factor",
    "load_balancing_coefficient",
    "router_z_coefficient",
    "jitter",
    "balancing_bias_rate",
)
"""Fields of `ExpertsConfig` that say how experts are trained and how much room they have."""


def model_difference(saved: Any, wanted: Any, name: str = "model") -> tuple[str, Any, Any] | None:
    """(field, its value in `saved`, in `wanted`) of the first field of two models' dictionaries that makes them
    different functions of the same parameters, or functions of different ones; None if there is none."""
    if not isinstance(saved, dict) or not isinstance(wanted, dict):
        return None if saved == wanted else (name, saved, wanted)
    passed_over = NOT_THE_FUNCTION
    if name.endswith(".experts"):
        passed_over = TRAINING_OF_EXPERTS
        there, here = (ExpertsConfig(**experts).has_selection_bias for experts in (saved, wanted))
        if there != here:  # the bias is a parameter, which one of them lacks
            field = "balancing_bias_rate"
            return f"{name}.{field}", saved.get(field), wanted.get(field)
    for field, value in wanted.items():
        if field not in passed_over:
            found = model_difference(saved.get(field), value, f"{name}.{field}")
            if found is not None:
                return found
    return None
