"""Global layers under a divided length: keys and values travel around the devices while each attends to what it holds.

The tokens of a device are spread first: of n devices, device c gets tokens c, c + n, c + 2n, ... (Striped Attention,
arXiv 2311.09431). Then what a device may see of any other is a causal triangle, and every step of the ring is equal
work everywhere; with tokens in one piece, the last device would do all of it and the first nearly nothing.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.block import NO_KEY
from zoo.kernels.attention.inputs import RESIDUALS, AttentionInputs
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.context_attention.halo import MeshAxis
from zoo.kernels.context_attention.parts import merge, part_backward, part_forward

Places = tuple[Int[Array, "#b n t"], Int[Array, "#b n t"] | None]
"""Positions and segments of the tokens of every device."""


def ring_attention(
    query: Float[Array, "b t n h"],
    key: Float[Array, "b t k h"],
    value: Float[Array, "b t k h"],
    positions: Int[Array, "#b all"],
    segment_ids: Int[Array, "#b all"] | None,
    *,
    axis: MeshAxis,
    devices: int,
    scale: float,
    logits_soft_cap: float | None,
    implementation: str | None,
) -> Float[Array, "b t n h"]:
    """Causal attention of a device's own queries, to be called inside of `jax.shard_map`.

    Two all-to-alls spread the tokens and bring the result back. Between them n - 1 permutes of (k, v) forward, and
    backward n of (k, v) and n of their float32 gradients; the permute of the next step does not depend on the work of
    this one. Memory grows with t. Raises NotImplementedError for implementations without parts.
    """
    ring = Ring(axis, devices, key.shape[2], scale, logits_soft_cap, implementation)
    spread = checkpoint_name(ring.spread(jnp.concatenate([query, key, value], axis=2)), RESIDUALS)
    own, key_value = spread[:, :, : query.shape[2]], spread[:, :, query.shape[2] :]
    segments = None if segment_ids is None else ring.spread_all(segment_ids, -1)
    out = _attend(ring, own, key_value, (ring.spread_all(positions, EMPTY_POSITION), segments))
    return ring.bring_back(out, query.shape[1])


@dataclass(frozen=True)
class Ring:
    """The static side of one call."""

    axis: MeshAxis
    devices: int
    kv_heads: int
    scale: float
    logits_soft_cap: float | None
    implementation: str | None

    def spread(self, x: Float[Array, "b t n h"]) -> Float[Array, "b s n h"]:
        """This device's stripe of the whole; each device's tokens are padded to a multiple of the devices first."""
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % self.devices), (0, 0), (0, 0)))
        x = x.reshape(x.shape[0], -1, self.devices, *x.shape[2:])
        return jax.lax.all_to_all(x, self.axis, split_axis=2, concat_axis=1, tiled=True)[:, :, 0]

    def bring_back(self, x: Float[Array, "b s n h"], tokens: int) -> Float[Array, "b t n h"]:
        """The inverse."""
        x = jax.lax.all_to_all(x[:, :, None], self.axis, split_axis=1, concat_axis=2, tiled=True)
        return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :tokens]

    def spread_all(self, x: Int[Array, "#b all"], missing: int) -> Int[Array, "#b n s"]:
        """The stripes of all devices of an array that every device has whole."""
        x = x.reshape(x.shape[0], self.devices, -1)
        x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % self.devices)), constant_values=missing)
        x = x.reshape(x.shape[0], self.devices, -1, self.devices)
        return x.transpose(0, 3, 1, 2).reshape(x.shape[0], self.devices, -1)

    def pass_on(self, x: Array) -> Array:
        """Every device's array goes to the device on its right."""
        return jax.lax.ppermute(x, self.axis, [(one, (one + 1) % self.devices) for one in range(self.devices)])

    def inputs(self, query: Array, key_value: Array, places: Places, step: int | Array) -> AttentionInputs:
        """What this device attends to in a step: the keys of the device that is `step` to the left."""
        index = jax.lax.axis_index(self.axis)
        origin = (index - step) % self.devices

        def of(x, device):
            return None if x is None else jax.lax.dynamic_index_in_dim(x, device, axis=1, keepdims=False)

        positions, segments = places
        return AttentionInputs(
            query=query,
            key=key_value[:, :, : self.kv_heads],
            value=key_value[:, :, self.kv_heads :],
            scale=self.scale,
            causal=True,
            sliding_window=None,
            logits_soft_cap=self.logits_soft_cap,
            query_positions=of(positions, index),
            key_positions=of(positions, origin),
            query_segment_ids=of(segments, index),
            key_segment_ids=of(segments, origin),
            # Token i * n + c sees no token j * n + o with j > i, whichever devices c and o are.
            ordered_positions=True,
        )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(ring: Ring, query: Float[Array, "b s n h"], key_value: Float[Array, "b s 2k h"], places: Places):
    return _forward(ring, query, key_value, places)[0]


def _forward(ring: Ring, query, key_value, places: Places):
    def attend(key_value, step):
        return part_forward(ring.inputs(query, key_value, places, step), ring.implementation)

    def visit(carry, step):
        held, found = carry
        following = ring.pass_on(held)
        return (following, merge(found, attend(held, step))), None

    accumulator = jnp.promote_types(query.dtype, jnp.float32)
    nothing = jnp.zeros(query.shape, accumulator), jnp.full(query.shape[:3], NO_KEY, accumulator)
    steps = jnp.arange(ring.devices - 1, dtype=jnp.int32)
    (held, found), _ = jax.lax.scan(visit, (key_value, nothing), steps)
    out, lse = merge(found, attend(held, ring.devices - 1))
    out, lse = checkpoint_name(out.astype(query.dtype), RESIDUALS), checkpoint_name(lse, RESIDUALS)
    return out, (query, key_value, places, out, lse)


def _backward(ring: Ring, residuals, out_gradient):
    query, key_value, places, out, lse = residuals
    delta = (out_gradient.astype(lse.dtype) * out.astype(lse.dtype)).sum(-1)

    def gradients(key_value, step):
        inputs = ring.inputs(query, key_value, places, step)
        dq, dk, dv = part_backward(inputs, lse, delta, out_gradient, ring.implementation)
        return dq, jnp.concatenate([dk, dv], axis=2)

    def visit(carry, step):
        held, of_held, of_query = carry
        # The gradients are those of the keys that were here in the step before; they meet again on the next device.
        following, brought = ring.pass_on(held), ring.pass_on(of_held)
        more_of_query, more = gradients(held, step)
        return (following, brought + more, of_query + more_of_query), None

    held = ring.pass_on(key_value)
    of_query, of_held = gradients(key_value, 0)
    # The last pass sends the keys home, which nobody needs: in the loop XLA hides every permute behind a kernel, while
    # a last step outside of it left the gradients' permute bare (v5p, 27B layers).
    steps = jnp.arange(1, ring.devices, dtype=jnp.int32)
    (_, of_held, of_query), _ = jax.lax.scan(visit, (held, of_held, of_query), steps)
    return of_query.astype(query.dtype), ring.pass_on(of_held).astype(key_value.dtype), None


_attend.defvjp(_forward, _backward)
