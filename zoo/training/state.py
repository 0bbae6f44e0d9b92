"""What a training run carries from step to step, and where its parts live on the devices."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Int32, Key, UInt32

from zoo.training.parameters import flatten_with_names, path_name


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a checkpoint must hold of a run, the position in the data apart."""

    step: Int32[Array, ""]
    """Steps that were done; one that was left out as a spike counts."""
    tokens: UInt32[Array, "2"]
    """Tokens trained on, high * 2**32 + low: float32 would lose count at 2**24, int32 at 2**31 (see `tokens_seen`)."""
    params: Any
    """nnx.State of nnx.Param."""
    opt_state: optax.OptState
    """Nested dictionaries with string keys inside optax's named tuples."""
    rng: Key[Array, ""]
    """Root of the run's randomness; never changes: step s uses fold_in(rng, s)."""


def create_state(params: Any, optimizer: optax.GradientTransformation, *, seed: int = 0) -> TrainState:
    """The state before the first step. Optimizer moments are born with the sharding of their parameters, the rest is
    replicated over the same devices. `params` is used as it is, not copied: it is gone when the state is donated."""
    # Pinned to where they are already: with arrays that may be moved the step would compile twice.
    params = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, params))
    opt_state = jax.jit(optimizer.init, out_shardings=optimizer_shardings(optimizer, params))(params)
    step, tokens, rng = jax.jit(lambda: _counters(seed), out_shardings=_replicated(params))()
    return TrainState(step=step, tokens=tokens, params=params, opt_state=opt_state, rng=rng)


def abstract_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The shapes, dtypes and shardings of `create_state(params, optimizer)`, without allocating: what to restore into.

    `params` holds arrays or ShapeDtypeStructs with shardings.
    """

    def abstract(leaf: Any, sharding: Sharding) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    step, tokens, rng = jax.eval_shape(lambda: _counters(0))
    replicated = _replicated(params)
    return TrainState(
        step=abstract(step, replicated),
        tokens=abstract(tokens, replicated),
        params=jax.tree.map(lambda leaf: abstract(leaf, leaf.sharding), params),
        opt_state=jax.tree.map(
            abstract, jax.eval_shape(optimizer.init, params), optimizer_shardings(optimizer, params)
        ),
        rng=abstract(rng, replicated),
    )


def optimizer_shardings(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """A sharding for every array of the optimizer state: that of the parameter whose path its own path ends with and
    whose shape it has. A factor of a preconditioner, [..., n, n] under a parameter's path and a number, has its rows
    divided among the devices that the parameter is divided among. The rest (counters, diagonals) is replicated."""
    named = flatten_with_names(params)
    replicated = _replicated(params)

    def sharding(key_path: Any, leaf: jax.ShapeDtypeStruct) -> Sharding:
        parts = path_name(key_path).split("/")
        for first in range(len(parts)):
            param = named.get("/".join(parts[first:]))
            if param is not None and param.shape == leaf.shape:
                return param.sharding
            of = named.get("/".join(parts[first:-1]))
            if of is not None and len(leaf.shape) >= 2:
                return _rows_divided(leaf.shape, of.sharding) or replicated
        return replicated

    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(optimizer.init, params))


def _rows_divided(shape: tuple[int, ...], like: Sharding) -> Sharding | None:
    """The last but one axis over all mesh axes of another sharding; None if they do not divide it."""
    if not isinstance(like, NamedSharding):
        return None
    axes = [axis for part in like.spec for axis in ((part,) if isinstance(part, str) else part or ())]
    if shape[-2] % math.prod(like.mesh.shape[axis] for axis in axes):
        return None
    return NamedSharding(like.mesh, PartitionSpec(*(None,) * (len(shape) - 2), tuple(axes) or None))


def tokens_seen(state: TrainState) -> int:
    """The exact number of tokens trained on."""
    high, low = (int(word) for word in jax.device_get(state.tokens))
    return high * 2**32 + low


def add_tokens(tokens: UInt32[Array, "2"], count: Int32[Array, ""]) -> UInt32[Array, "2"]:
    """`tokens + count` in two 32-bit words; count is not negative."""
    high, low = tokens
    new_low = low + count.astype(jnp.uint32)
    return jnp.stack([high + (new_low < low).astype(jnp.uint32), new_low])


def _counters(seed: int) -> tuple[Array, Array, Array]:
    return jnp.zeros((), jnp.int32), jnp.zeros(2, jnp.uint32), jax.random.key(seed)


def _replicated(params: Any) -> Sharding:
    sharding = jax.tree.leaves(params)[0].sharding
    if isinstance(sharding, NamedSharding):
        return NamedSharding(sharding.mesh, PartitionSpec())
    return sharding
