"""Which row of the experts' input each choice of a token becomes: sorted by expert, all or as many as have room.

A *choice* is a pair (token, one of its k experts), numbered token * k + rank. A *row* is a place in the experts' input.
`Dispatch` has both directions, so that what moves tokens is a gather forward and backward: a scatter with additions,
which is what differentiation makes of a gather, is slow on CPU and TPU.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32

from zoo.parallel import divided

SMALLEST_CAPACITY = 4
"""Rows that every expert has at least (google/flaxformer, moe/moe_layers.py, min_expert_capacity)."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["source", "place", "group_sizes", "dropped"],
    meta_fields=["num_experts", "complete"],
)
@dataclass(frozen=True)
class Dispatch:
    """Rows of the experts' input and where they come from."""

    source: Int32[Array, "R"]
    """Choice of every row; N * k = none, the row is empty."""
    place: Int32[Array, "N k"]
    """Row of every choice; R = none, there was no room."""
    group_sizes: Int32[Array, "E"] | None
    """Rows of every expert, one expert after the other; what is left at the end belongs to none. None: every expert has
    the same number of rows."""
    dropped: Float32[Array, ""]
    """Choices of tokens that are no padding, and that got no row."""
    num_experts: int
    complete: bool
    """Whether every row has a choice and every choice a row."""


def sort_all(chosen: Int32[Array, "N k"], mask: Bool[Array, "N"] | None, num_experts: int) -> Dispatch:
    """A row for every choice. Those of padding come last and belong to no expert: they cost nothing and give zero."""
    ids = chosen if mask is None else jnp.where(mask[:, None], chosen, num_experts)
    order = _order(ids.reshape(-1))
    sizes = _count(ids.reshape(-1), num_experts)
    return Dispatch(order, _inverse(order).reshape(chosen.shape), sizes, jnp.zeros((), jnp.float32), num_experts, True)


def expert_capacity(tokens: int, num_experts: int, experts_per_token: int, factor: float) -> int:
    """max(round(factor * tokens * k / E), 4), but no more than there are tokens.

    As in flaxformer (moe/routing.py), whose formula has no k: its capacity factors for top-2 are twice these.
    """
    capacity = max(round(factor * tokens * experts_per_token / num_experts), SMALLEST_CAPACITY)
    return min(capacity, tokens)


def sort_with_capacity(
    chosen: Int32[Array, "b t k"], mask: Bool[Array, "b t"] | None, num_experts: int, factor: float
) -> Dispatch:
    """The same number of rows for every expert, [E, b, C]: C for each sequence of the batch, whatever the mesh.

    A sequence's first choices come before its second ones, and of equal rank the earlier tokens first. Choices that
    find no room are dropped, their weight is not given to others: the token goes on in the residual stream. Where
    devices share the tokens of a sequence, they tell each other how many choices they have, so that those are dropped
    that one device would drop.
    """
    rows, length, ranks = chosen.shape
    axes = divided("length")
    devices = int(np.prod([jax.lax.axis_size(axis) for axis in axes], dtype=int))
    capacity = expert_capacity(length * devices, num_experts, ranks, factor)
    ids = chosen if mask is None else jnp.where(mask[..., None], chosen, num_experts)
    ids = ids.swapaxes(1, 2)
    counts = jnp.sum(ids[..., None] == jnp.arange(num_experts), axis=2, dtype=jnp.int32)  # [b, k, E]
    before, total = jnp.zeros_like(counts), counts
    if axes:
        every = jax.lax.all_gather(counts, axes)
        earlier = jnp.arange(devices) < jax.lax.axis_index(axes)
        before, total = jnp.sum(every * earlier[:, None, None, None], axis=0), jnp.sum(every, axis=0)
    # What stands before this device's choices of a rank: all of earlier ranks, and of its own those of earlier devices.
    offset = before + _exclusive_sum(total, axis=1)
    kept = jnp.sum(jnp.clip(capacity - offset, 0, counts), axis=1)  # [b, E]

    order = jax.vmap(_order)(ids.reshape(rows, -1))  # [b, k t]
    start = _exclusive_sum(jnp.sum(counts, axis=1), axis=1)
    own = min(capacity, length)
    slot = jnp.arange(own)
    index = jnp.take_along_axis(order, jnp.minimum(start[..., None] + slot, order.shape[1] - 1).reshape(rows, -1), 1)
    rank, token = jnp.divmod(index.reshape(rows, num_experts, own), length)
    choice = (jnp.arange(rows)[:, None, None] * length + token) * ranks + rank
    source = jnp.where(slot < kept[..., None], choice, chosen.size).swapaxes(0, 1).reshape(-1)

    within = jax.vmap(_inverse)(order).reshape(ids.shape)
    safe = jnp.minimum(ids, num_experts - 1)
    row = jnp.arange(rows)[:, None, None]
    within = within - start[row, safe]
    has_row = (within < kept[row, safe]) & (ids < num_experts)
    place = jnp.where(has_row, (safe * rows + row) * own + within, len(source))
    dropped = jnp.sum(counts) - jnp.sum(kept)
    place = place.swapaxes(1, 2).reshape(-1, ranks)
    return Dispatch(source, place, None, dropped.astype(jnp.float32), num_experts, complete=False)


def _order(ids: Int32[Array, "M"]) -> Int32[Array, "M"]:
    return jnp.argsort(ids, stable=True).astype(jnp.int32)


def _inverse(order: Int32[Array, "M"]) -> Int32[Array, "M"]:
    numbers = jnp.arange(len(order), dtype=jnp.int32)
    return jnp.zeros_like(order).at[order].set(numbers, unique_indices=True, mode="promise_in_bounds")


def _count(ids: Int32[Array, "M"], num_experts: int) -> Int32[Array, "E"]:
    return jnp.sum(ids[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)


def _exclusive_sum(x: Int32[Array, "..."], axis: int) -> Int32[Array, "..."]:
    return jnp.cumsum(x, axis=axis, dtype=x.dtype) - x


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def spread(
    x: Float[Array, "N d"], source: Int32[Array, "R"], place: Int32[Array, "N k"], complete: bool
) -> Float[Array, "R d"]:
    """The token of every row, zero for empty rows; backward, `collect`."""
    return take_rows(x, source // place.shape[1], complete)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def collect(
    rows: Float[Array, "R d"], source: Int32[Array, "R"], place: Int32[Array, "N k"], complete: bool
) -> Float[Array, "N d"]:
    """The sum of every token's k rows, added in float32; backward, `spread`."""
    parts = [take_rows(rows, place[:, rank], complete).astype(jnp.float32) for rank in range(place.shape[1])]
    return functools.reduce(jnp.add, parts).astype(rows.dtype)


def take_rows(x: Float[Array, "N ..."], index: Int32[Array, "R"], complete: bool) -> Float[Array, "R ..."]:
    """x[index]; where not all are `complete`, an index of N gives zero."""
    mode = "promise_in_bounds" if complete else "fill"
    return x.at[index].get(mode=mode, fill_value=None if complete else 0)


def _forward(function):
    def run(x, source, place, complete):
        return function(x, source, place, complete), (source, place)

    return run


def _backward(transpose):
    def run(complete, saved, gradient):
        source, place = saved
        nothing = [np.zeros(index.shape, jax.dtypes.float0) for index in saved]
        return transpose(gradient, source, place, complete), *nothing

    return run


spread.defvjp(_forward(spread), _backward(collect))
collect.defvjp(_forward(collect), _backward(spread))


def spread_weights(weights: Float32[Array, "N k"], dispatch: Dispatch) -> Float32[Array, "R"]:
    """The weight of every row, zero for empty rows."""
    flat = weights.reshape(-1, 1)
    return spread(flat, dispatch.source, dispatch.place.reshape(-1, 1), dispatch.complete)[:, 0]
