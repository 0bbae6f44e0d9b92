"""Local self-attention with learned relative positions, chunk by chunk."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from zoo.nn.execution import Execution
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project
from zoo.nn.sinusoids import sinusoids


class LocalRelativeAttention(nnx.Module):
    """Each frame attends to `left` - 1 frames before it, to itself and to `right` after it.

        score = cap(q . (k + r(distance)));   q = scale * softplus(per_dim_scale) * Wq x,  r = Wr . sinusoids(distance)

    with cap(s) = c * tanh(s / c) and scale = 1 / (sqrt(H) softplus(0)). Computed in chunks of queries, each with the
    stretch of keys that it can see: time and memory grow with the length, not with its square.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        chunk: int,
        left: int,
        right: int,
        soft_cap: float,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim={embed_dim} is not a multiple of num_heads={num_heads}")
        self.chunk, self.past, self.future, self.soft_cap = chunk, max(left - 1, 0), right, soft_cap
        head_dim, dtype, init = embed_dim // num_heads, execution.weight_dtype, fan_in_normal(embed_dim)
        shape, axes = (embed_dim, num_heads, head_dim), ("embed", None, None)
        self.query = parameter(rngs, shape, axes, init, dtype)
        self.key = parameter(rngs, shape, axes, init, dtype)
        self.value = parameter(rngs, shape, axes, init, dtype)
        self.relative = parameter(rngs, shape, axes, init, dtype)
        self.per_dim_scale = parameter(rngs, (head_dim,), ("norm",), jax.nn.initializers.zeros, dtype)
        self.output = parameter(rngs, (num_heads, head_dim, embed_dim), (None, None, "embed"), init, dtype)

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
        """mask: True = a real frame, which others may see."""
        length, head_dim = x.shape[1], self.query.shape[-1]
        scale = head_dim**-0.5 / np.log(2) * jax.nn.softplus(self.per_dim_scale[...].astype(jnp.float32))
        query = project("btd,dnh->btnh", x, self.query[...]) * scale.astype(x.dtype)
        key = self._contexts(project("btd,dnh->btnh", x, self.key[...]))
        value = self._contexts(project("btd,dnh->btnh", x, self.value[...]))
        query = _blocks(query, self.chunk)
        scores = self._product("buwnh,bucnh->bnuwc", query, key) + self._position_scores(query, key.shape[2])
        scores = self.soft_cap * jnp.tanh(scores / self.soft_cap)
        visible = self._band(key.shape[2]) & self._contexts(mask)[:, None, :, None]
        # The smallest number instead of an infinity: a query without any visible key gets no NaN.
        weights = jax.nn.softmax(jnp.where(visible, scores, jnp.finfo(jnp.float32).min), axis=-1).astype(x.dtype)
        out = self._product("bnuwc,bucnh->buwnh", weights, value).astype(x.dtype)
        out = out.reshape(len(x), -1, *out.shape[3:])[:, :length]
        return checkpoint_name(project("btnh,nhd->btd", out, self.output[...]), "sublayer_output")

    def _contexts(self, x: Array) -> Array:
        """[b, t, ...] -> [b, chunks, past + chunk + future, ...]: the frames that a chunk's queries can see."""
        width, chunks = self.past + self.chunk + self.future, -(-x.shape[1] // self.chunk)
        pieces = -(-width // self.chunk)
        x = jnp.pad(x, [(0, 0), (self.past, pieces * self.chunk)] + [(0, 0)] * (x.ndim - 2))
        x = x[:, : (chunks + pieces - 1) * self.chunk]
        blocks = x.reshape(len(x), -1, self.chunk, *x.shape[2:])
        return jnp.concatenate([blocks[:, i : i + chunks] for i in range(pieces)], axis=2)[:, :, :width]

    def _band(self, width: int) -> Bool[Array, "w c"]:
        """Which keys of its chunk's context a query can see: those from `past` before it to `future` after it."""
        offset = jnp.arange(width)[None] - jnp.arange(self.chunk)[:, None]
        return (offset >= 0) & (offset <= self.past + self.future)

    def _position_scores(self, query: Float[Array, "b u w n h"], width: int) -> Float[Array, "b n u w c"]:
        """q . r(distance) for every pair of a query and a key of its context; outside of the band they mean nothing."""
        distances = np.arange(self.past, -self.future - 1, -1, dtype=np.float32)
        signal = sinusoids(distances, self.query.shape[0])
        relative = project("ad,dnh->anh", jnp.asarray(signal, query.dtype), self.relative[...])
        by_distance = self._product("buwnh,anh->bnuwa", query, relative)
        # Key c stands at distance index c - w of query w. In rows that are one longer than the context, reading on with
        # the context's length moves each next query's row by one.
        *lead, _, count = by_distance.shape
        padded = jnp.pad(by_distance, [(0, 0)] * 4 + [(0, width + 1 - count)])
        flat = padded.reshape(*lead, self.chunk * (width + 1))
        return flat[..., : self.chunk * width].reshape(*lead, self.chunk, width)

    @staticmethod
    def _product(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
        return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32, precision=precision_of(left.dtype))


def _blocks(x: Array, size: int) -> Array:
    """[b, t, ...] -> [b, blocks, size, ...] with zeros at the end."""
    missing = -x.shape[1] % size
    x = jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(len(x), -1, size, *x.shape[2:])
