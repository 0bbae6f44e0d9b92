"""What a causal workspace keeps between calls: the memory that the present chunk began with, and the chunk's tokens.

Its size does not depend on how many tokens were read. After a first call of any length, tokens are taken one by one.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from zoo.nn.workspace import Workspace
from zoo.nn.workspace_causal import exchange_of_each, run_chunks


@partial(jax.tree_util.register_dataclass, data_fields=["memory", "tokens", "counts", "cursor"], meta_fields=["empty"])
@dataclass(frozen=True)
class WorkspaceCache:
    """Of one layer. Every row is one sequence, padded on the left."""

    memory: Float32[Array, "b m w"]
    """What the present chunk began with."""
    tokens: Float[Array, "b c d"]
    """The chunk's tokens so far, as `Workspace.specialists` gives them; after them, anything."""
    counts: Int[Array, " b"]
    """Tokens read so far, without padding."""
    cursor: Int[Array, ""]
    """Tokens read so far, padding included."""
    empty: bool
    """True until the first call. Static."""

    @property
    def axes(self) -> "WorkspaceCache":
        """The logical axes in place of the arrays."""
        lead: Any = ("layers",) * (self.memory.ndim - 3)
        whole: Any = (*lead, "batch", None, None)
        rows: Any = (*lead, "batch")
        return replace(self, memory=whole, tokens=whole, counts=rows, cursor=lead)


def empty_workspace_cache(
    batch_size: int, workspace: Workspace, embed_dim: int, chunk: int, lead: tuple[int, ...] = ()
) -> WorkspaceCache:
    """A cache without tokens; `lead` = (units,) for scanned layers."""
    memory = workspace.initial_memory(batch_size)
    return WorkspaceCache(
        memory=jnp.broadcast_to(memory, (*lead, *memory.shape)),
        tokens=jnp.zeros((*lead, batch_size, chunk, embed_dim), workspace.dtype),
        counts=jnp.zeros((*lead, batch_size), jnp.int32),
        cursor=jnp.zeros(lead, jnp.int32),
        empty=True,
    )


def cached_exchange(
    workspace: Workspace,
    x: Float[Array, "b n d"],
    cache: WorkspaceCache,
    *,
    segment_ids: Int[Array, "b n"] | None = None,
) -> tuple[Float[Array, "b n d"], WorkspaceCache]:
    """What the next tokens read, as in a `causal_exchange` with all that came before them, and the cache with them.

    segment_ids: 0 = padding, on the left of a row's first token; any other number is the sequence.
    """
    z, length = workspace.specialists(x), x.shape[1]
    real = jnp.ones(x.shape[:2], bool) if segment_ids is None else segment_ids != 0
    if cache.empty:
        read, cache = _first(workspace, z, real, cache)
    elif length == 1:
        cache, read = _next(workspace, cache, (z[:, 0], real[:, 0]))
        read = read[:, None]
    else:
        cache, read = jax.lax.scan(partial(_next, workspace), cache, (z.swapaxes(0, 1), real.swapaxes(0, 1)))
        read = read.swapaxes(0, 1)
    return read, replace(cache, cursor=cache.cursor + length, empty=False)


def _first(workspace: Workspace, z, real, cache: WorkspaceCache):
    chunk = cache.tokens.shape[1]
    chunks = run_chunks(workspace, z, chunk=chunk, segment_ids=real.astype(jnp.int32))
    counts = jnp.sum(real, axis=1).astype(jnp.int32)
    started = counts // chunk
    memory = jnp.take_along_axis(chunks.begins, started[None, :, None, None], axis=0)[0]
    # The chunk's tokens: what lies beyond the row's end is not there yet.
    places = jnp.minimum(chunks.padding[:, None] + started[:, None] * chunk + jnp.arange(chunk), z.shape[1] - 1)
    tokens = jnp.take_along_axis(z, places[..., None], axis=1).astype(cache.tokens.dtype)
    return chunks.read, replace(cache, memory=memory, tokens=tokens, counts=counts)


def _next(workspace: Workspace, cache: WorkspaceCache, token):
    """(cache, what is read [b, d]) of one more token [b, d], and whether it is one."""
    z, real = token
    chunk = cache.tokens.shape[1]
    place = cache.counts % chunk
    slots = jnp.arange(chunk)
    tokens = jnp.where((slots == place[:, None])[..., None], z[:, None].astype(cache.tokens.dtype), cache.tokens)
    visible = (slots <= place[:, None])[:, None]
    memories, read = exchange_of_each(workspace, tokens, visible, z[:, None], cache.memory)
    ends = real & (place == chunk - 1)
    memory = jnp.where(ends[:, None, None], memories[:, 0], cache.memory)
    tokens = jnp.where(real[:, None, None], tokens, cache.tokens)
    return replace(cache, memory=memory, tokens=tokens, counts=cache.counts + real), read[:, 0]
