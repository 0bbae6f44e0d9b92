"""Packed rows, and attention under a divided length beside attention of the whole arrays."""

import jax
import jax.numpy as jnp
import numpy as np

from zoo.kernels import dot_product_attention
from zoo.kernels.context_attention import context_attention
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh


def mesh_of(context: int, tensor: int = 1, fsdp: int = 1):
    """A mesh of as many virtual devices as these sizes need."""
    config = MeshConfig(data=1, fsdp=fsdp, context=context, tensor=tensor)
    return make_mesh(config, jax.devices()[: context * tensor * fsdp])


def rows(length: int, *, batch=2, heads=4, kv_heads=2, head_dim=16, packed=True, dtype=jnp.float32, seed=0):
    """(query, key, value), positions, segments: four documents of random lengths, and padding (segment 0) on the right,
    in the second row on the left."""
    rng = np.random.default_rng(seed)
    shapes = ((batch, length, count, head_dim) for count in (heads, kv_heads, kv_heads))
    arrays = tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    if not packed:
        return arrays, jnp.arange(length, dtype=jnp.int32)[None], None
    positions, segments = np.zeros((2, batch, length), np.int32)
    for row in range(batch):
        cuts = np.sort(rng.choice(np.arange(1, length), 4, replace=False))
        bounds = [0, *cuts, length]
        for index, (start, stop) in enumerate(zip(bounds, bounds[1:])):
            positions[row, start:stop] = np.arange(stop - start)
            segments[row, start:stop] = (index + 1 - row % 2) % 5
    return arrays, jnp.asarray(positions), jnp.asarray(segments)


def whole(arrays, positions, segments, *, implementation="reference", **options):
    """Attention of whole arrays."""
    return dot_product_attention(
        *arrays,
        query_positions=positions,
        key_positions=positions,
        query_segment_ids=segments,
        key_segment_ids=segments,
        implementation=implementation,
        **options,
    )


def value_and_gradients(function, arrays):
    """The result, and gradients of a scalar in which every element counts differently; one compiled program."""

    def loss(arrays):
        out = function(arrays)
        weights = 1 + jnp.arange(out.shape[1])[:, None, None] % 7
        return jnp.sin(weights * out.astype(jnp.promote_types(out.dtype, jnp.float32))).sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(arrays)
    return jax.device_get((out, gradients))


def divided(arrays, positions, segments, mesh, *, exchange="auto", **options):
    """`value_and_gradients` of `context_attention` on a mesh."""
    with activation_sharding(mesh, ShardingRules(context_exchange=exchange)):
        return value_and_gradients(
            lambda arrays: context_attention(*arrays, positions=positions, segment_ids=segments, **options), arrays
        )
