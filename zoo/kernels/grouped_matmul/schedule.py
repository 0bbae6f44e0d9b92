"""Which rows a step of a grouped kernel works on, from group sizes that are known only when the program runs."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int32


class Steps(NamedTuple):
    """Steps in the order of their rows. Only the first `used` are work: the arrays are as long as the worst case."""

    group: Int32[Array, " s"]
    """Group of the step."""
    block: Int32[Array, " s"]
    """`tile_steps`: number of the tile; `block_steps`: first row of the block."""
    first: Int32[Array, " groups"]
    """First row of every group."""
    end: Int32[Array, " groups"]
    """Row behind the last of every group."""
    used: Int32[Array, ""]
    """Steps that are work."""


def with_rest(group_sizes: Int32[Array, " g"], num_rows: int) -> Int32[Array, " g+1"]:
    """Group sizes with one more group: the rows that belong to none."""
    return jnp.append(group_sizes, num_rows - group_sizes.sum()).astype(jnp.int32)


def tile_steps(sizes: Int32[Array, " g"], num_rows: int, tile: int, *, empty: bool) -> Steps:
    """One step for every tile of `tile` rows and every group that has rows in it: at most tiles + groups - 1.

    empty: a group without rows gets a step too, so that a kernel can write its zeros.
    """
    sizes = sizes.astype(jnp.int32)
    end = jnp.cumsum(sizes, dtype=jnp.int32)
    first = end - sizes
    held = jnp.where(sizes > 0, (end - 1) // tile - first // tile + 1, int(empty))
    tiles = max(-(-num_rows // tile), 1)
    group, within, count = _spread(held, tiles + len(sizes) * (1 + empty) - 1)
    block = jnp.minimum(first[group] // tile + within, tiles - 1).astype(jnp.int32)
    return Steps(group, block, first, end, count)


def block_steps(sizes: Int32[Array, " g"], num_rows: int, block: int) -> Steps:
    """One step for every `block` rows of a group; blocks start where their group starts, and only a group's last one
    is not full: at most num_rows // block + groups."""
    sizes = sizes.astype(jnp.int32)
    end = jnp.cumsum(sizes, dtype=jnp.int32)
    first = end - sizes
    group, within, count = _spread(-(-sizes // block), num_rows // block + len(sizes))
    return Steps(group, (first[group] + within * block).astype(jnp.int32), first, end, count)


def _spread(held: Int32[Array, " g"], length: int) -> tuple[Array, Array, Array]:
    """(group, number within the group, count) of `length` steps, of which every group holds some."""
    end = jnp.cumsum(held, dtype=jnp.int32)
    step = jnp.arange(length, dtype=jnp.int32)
    group = jnp.minimum((end[None] <= step[:, None]).sum(1, dtype=jnp.int32), len(held) - 1)
    return group, step - (end - held)[group], end[-1]
