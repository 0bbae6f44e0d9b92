"""The programs of generation, prefill and a call of decode (`BLOCK` steps), from shapes and shardings alone.

The batch is the recipe's data.batch_size, the context its data.sequence_length: prefill reads prompts of that length,
decode goes on with a cache that holds as many. Parameters have the compute dtype, as `zoo.generate` loads them, and
lie by `zoo.inference.generation.INFERENCE_RULES`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from zoo.inference.generation import BLOCK, INFERENCE_RULES, Last, Structure, _programs
from zoo.inference.sampling import Sampling
from zoo.parallel import ShardingRules
from zoo.parallel.sharding import activation_context
from zoo.planning.model import one_decoder
from zoo.recipes import Recipe
from zoo.recipes.weights import abstract_model

RULES = INFERENCE_RULES
"""What lies on which mesh axis."""


def inference_recipe(recipe: Recipe) -> Recipe:
    """The recipe with parameters as inference holds them."""
    execution = dataclasses.replace(recipe.execution, param_dtype=recipe.execution.compute_dtype, remat_policy="none")
    return dataclasses.replace(recipe, execution=execution, rules=RULES)


def generation_program(recipe: Recipe, mesh: Mesh, program: str) -> tuple[Any, tuple, dict[str, Any], dict[str, Any]]:
    """(jitted function, arguments, keywords, parts of the arguments by name); inside of `activation_sharding`."""
    model = abstract_model(recipe, mesh)
    arrays, treedef = jax.tree.flatten(model.params)
    structure = Structure(model.graphdef, treedef)
    programs = _programs(structure, Sampling(), 0, activation_context.get())
    batch, length = recipe.data.batch_size, recipe.data.sequence_length

    def struct(shape: tuple[int, ...], dtype: Any, axes: tuple[str | None, ...]) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding(shape, axes, mesh, recipe.rules))

    keys = struct((batch,), jax.random.key(0).dtype, ("batch",))
    stops = struct((1,), jnp.int32, (None,))
    if program == "prefill":
        rows = struct((batch, length), jnp.int32, ("batch", "length"))
        arguments: tuple = (arrays, rows, rows, None, keys, stops)
        return programs.prefill, arguments, {"cache_length": length}, {"parameters": model.params}
    empty = jax.eval_shape(lambda: structure.restore(arrays).init_cache(batch, length))
    cache = tuple(
        jax.tree.map(
            lambda leaf, axes: struct(leaf.shape, leaf.dtype, axes),
            dataclasses.replace(layer, empty=False),
            dataclasses.replace(layer.axes, empty=False),
        )
        for layer in empty
    )
    scalar = struct((), jnp.int32, ())
    row = struct((batch,), jnp.int32, ("batch",))
    last = Last(row, row, scalar, struct((batch,), jnp.bool_, ("batch",)))
    arguments = (arrays, cache, last, keys, stops, scalar)
    return programs.decode, arguments, {}, {"parameters": model.params, "cache": cache}


def generation_work(recipe: Recipe, program: str, devices: int) -> tuple[int, float]:
    """(tokens of a call on all devices, useful FLOPs on one device).

    Prefill: all tokens of the prompts without the output head, which only the last one needs. Decode: `BLOCK` tokens
    per row, whose attention sees the window or the whole context.
    """
    model, batch, length = one_decoder(recipe.sequence_model), recipe.data.batch_size, recipe.data.sequence_length
    head = 2 * model.embed_dim * model.vocab_size
    if program == "prefill":
        forward = model.flops_per_token(length) - head
        return batch * length, (forward * length + head) * batch / devices
    # Projections and feed-forward are what a token of a sequence of one token costs, but for its one pair per layer.
    per_pair = 4 * model.num_heads * model.head_dim
    dense = model.flops_per_token(1) - model.num_layers * per_pair
    seen = sum(min(model.window(layer) or length, length) for layer in range(model.num_layers))
    return batch * BLOCK, (dense + per_pair * seen) * batch * BLOCK / devices


def _sharding(shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, rules: ShardingRules) -> NamedSharding:
    """By the rules; an axis that its devices do not divide is whole, as in `zoo.parallel.spmd`."""

    def divides(size: int, name: str | None) -> bool:
        devices = 1 if name is None else math.prod(mesh.shape[axis] for axis in rules.mesh_axes(name))
        return size % devices == 0

    kept = tuple(name if divides(size, name) else None for size, name in zip(shape, axes, strict=True))
    return NamedSharding(mesh, rules.spec(kept))
