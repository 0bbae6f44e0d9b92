"""The shared workspace for decoders: a position reads only what it and positions before it wrote.

A row is cut into chunks of c positions. With M the memory that a chunk begins with, position t of it

    writes   with all positions of the chunk up to itself, in the competition of `zoo.nn.workspace` for the slots of M
    updates  M to a memory of its own, M_t, with the gates' mean over the same positions
    reads    M_t

and the next chunk begins with the memory of the chunk's last position. With c = 1 it is a recurrence, in which every
position writes by itself and competes with nobody; with c = the length there is one exchange, and the last position
reads what it would in `Workspace`. Memory persists along the row; the next layer begins with an empty one again (what
a position of the layer below holds is n_m vectors, which would have to be passed on position by position).

Cost of n positions: c * n * n_m numbers of scores, n * n_m slots that pass through the gates (and the MLP), linear in
n; n / c steps that have to be taken one after the other. For the backward pass n / c memories are kept, and the chunks
computed again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from zoo.nn.competition import competition, per_head_scores
from zoo.nn.parameters import precision_of
from zoo.nn.workspace import Workspace, WorkspaceConfig
from zoo.parallel import divided


def causal_exchange(
    workspace: Workspace, x: Float[Array, "b n d"], *, chunk: int, segment_ids: Int[Array, "b n"] | None = None
) -> Float[Array, "b n d"]:
    """What every position reads.

    Chunks are those of the row, the first one beginning with the first token that is no padding. What is read in a
    later run therefore depends on where the run begins, but for c = 1.

    Args:
      chunk: c.
      segment_ids: contiguous runs, 0 = padding, whose results mean nothing. Each begins with an empty memory and sees
        itself only. None: a row is one.

    Raises:
      NotImplementedError: devices share the tokens of a row.
    """
    return run_chunks(workspace, workspace.specialists(x), chunk=chunk, segment_ids=segment_ids).read


class Chunks(NamedTuple):
    """Results of the chunks of a row."""

    read: Float[Array, "b n d"]
    """What every position reads."""
    begins: Float32[Array, "chunks b m w"]
    """The memory that each chunk begins with, and the one after the last."""
    padding: Int[Array, " b"]
    """Tokens before the first chunk."""


def run_chunks(
    workspace: Workspace, z: Float[Array, "b n d"], *, chunk: int, segment_ids: Int[Array, "b n"] | None
) -> Chunks:
    """`causal_exchange` of what `Workspace.specialists` gives; its `begins` are of use where a row is one run."""
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if divided("length"):
        raise NotImplementedError("a causal workspace goes through a row in order: devices cannot share its tokens")
    batch, length, width = z.shape
    count, missing = -(-length // chunk), -length % chunk
    padding, segments, last = jnp.zeros(batch, jnp.int32), None, None
    if segment_ids is not None:
        padding = jnp.argmax(segment_ids != 0, axis=1).astype(jnp.int32)
        rolled = _rolled(segment_ids, padding)
        z, last = _rolled(z, padding), rolled[:, 0]
        segments = jnp.pad(rolled, ((0, 0), (0, missing)), mode="edge").reshape(batch, count, chunk).swapaxes(0, 1)
    z = jnp.pad(z, ((0, 0), (0, missing), (0, 0))).reshape(batch, count, chunk, width).swapaxes(0, 1)
    empty = workspace.initial_memory(batch)

    @jax.checkpoint
    def step(held, part):
        memory, last = held
        z, segments = part
        visible, new = jnp.tril(jnp.ones((1, chunk, chunk), bool)), None
        if segments is not None:
            visible = visible & (segments[:, :, None] == segments[:, None, :])
            new = segments != last[:, None]
        memories, read = exchange_of_each(workspace, z, visible, z, memory, new)
        return (memories[:, -1], None if segments is None else segments[:, -1]), (read, memory)

    with jax.named_scope("causal_workspace"):
        (end, _), (read, begins) = jax.lax.scan(step, (empty, last), (z, segments))
    read = read.swapaxes(0, 1).reshape(batch, -1, width)[:, :length]
    read = read if segment_ids is None else _rolled(read, -padding)
    return Chunks(read, jnp.concatenate([begins, end[None]]), padding)


def exchange_of_each(
    workspace: Workspace,
    writers: Float[Array, "b s d"],
    visible: Bool[Array, "#b q s"],
    readers: Float[Array, "b q d"],
    memory: Float[Array, "b m w"],
    new: Bool[Array, "b q"] | None = None,
) -> tuple[Float32[Array, "b q m w"], Float[Array, "b q d"]]:
    """(memory of each reader, what it reads): an exchange for each, with the writers that it sees.

    All begin with `memory`, those that are `new` with the empty one.
    """
    config, (batch, queries, width) = workspace.config, readers.shape
    keys, values = workspace.writing.keys(writers), workspace.writing.values(writers)

    def scores_of(memory):
        query = workspace.writing.queries(memory.astype(readers.dtype))
        return per_head_scores(query, keys, config.scaled).swapaxes(1, 2)[:, :, :, None]  # [b, m, h, 1, s]

    scores, begins = scores_of(memory), memory[:, None]
    if new is not None:
        empty = workspace.initial_memory(batch)
        scores = jnp.where(new[:, None, None, :, None], scores_of(empty), scores)
        begins = jnp.where(new[..., None, None], empty[:, None], begins)
    weights = competition(
        scores, visible[:, None, None], config.top_k, config.renormalised, config.losers_gradient
    )  # [b, m, h, q, s]
    weights = jnp.broadcast_to(weights, (*weights.shape[:3], queries, writers.shape[1])).astype(readers.dtype)
    attended = jnp.einsum("bmhqs,bshv->bqmhv", weights, values, precision=precision_of(readers.dtype))
    shares = visible / jnp.sum(visible, axis=-1, keepdims=True)
    means = jnp.matmul(shares.astype(jnp.float32), workspace.gate_terms(writers), precision=jax.lax.Precision.HIGHEST)

    def by_reader(x):
        """Every reader becomes a row of its own, with a memory of its own."""
        return jnp.broadcast_to(x, (batch, queries, *x.shape[2:])).reshape(batch * queries, *x.shape[2:])

    attended = workspace.whole_heads(attended)
    memories = workspace.updated(by_reader(begins), by_reader(attended), by_reader(means))
    read = workspace.read(readers.reshape(batch * queries, 1, width), memories)
    return memories.reshape(batch, queries, *memory.shape[1:]), read.reshape(readers.shape)


def _rolled(x: Array, shift: Int[Array, " b"]) -> Array:
    """Every row, from its entry `shift` on; what was before comes last."""
    places = (jnp.arange(x.shape[1]) + shift[:, None]) % x.shape[1]
    return jnp.take_along_axis(x, places.reshape(*places.shape, *(1,) * (x.ndim - 2)), axis=1)


def causal_flops_per_position(config: WorkspaceConfig, embed_dim: int, chunk: int) -> float:
    """Forward floating-point operations of `causal_exchange` for one position; a product of matrices counts twice its
    multiplications."""
    width, slots, keys = config.width(embed_dim), config.num_slots, config.num_heads * config.key_dim
    own = embed_dim * (2 * keys + width) + (embed_dim**2 if config.input_projection else 0)
    # Queries are of a chunk's first memory; of the writers, a position sees half of its chunk.
    writing = slots * (keys + (chunk + 1) / 2 * width + width * keys / chunk)
    gates = (embed_dim * width if config.gates == "shared" else 2 * embed_dim * width) + 2 * slots * width**2
    mlp = slots * config.mlp_layers * width**2
    reading = slots * (width + 1) * (keys + embed_dim)
    return 2.0 * (own + writing + gates + mlp + reading)
