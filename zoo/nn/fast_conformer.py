"""The conformer block whose attention sees the whole recording (arXiv 2005.08100), as in Fast Conformer."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from zoo.nn.activations import Activation, activated
from zoo.nn.encoder_block import FeedForward
from zoo.nn.execution import Execution
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter, precision_of, project

NORM_EPS = 1e-5
"""Added to the variance in every norm: fixed in the public implementation."""


class RelativeAttention(nnx.Module):
    """score = ((q + u) . k + (q + v) . r(distance)) / sqrt(H), r = Wr . sinusoids(distance) (arXiv 1901.02860)."""

    def __init__(self, embed_dim: int, num_heads: int, *, execution: Execution, rngs: nnx.Rngs):
        head_dim, dtype, init = embed_dim // num_heads, execution.weight_dtype, fan_in_normal(embed_dim)
        shape, axes, zeros = (embed_dim, num_heads, head_dim), ("embed", None, None), jax.nn.initializers.zeros

        def vector():
            return parameter(rngs, shape[1:], (None, None), zeros, dtype)

        self.query, self.query_bias = parameter(rngs, shape, axes, init, dtype), vector()
        self.key, self.key_bias = parameter(rngs, shape, axes, init, dtype), vector()
        self.value, self.value_bias = parameter(rngs, shape, axes, init, dtype), vector()
        self.relative = parameter(rngs, shape, axes, init, dtype)
        self.content_bias, self.position_bias = vector(), vector()
        self.output = parameter(rngs, (num_heads, head_dim, embed_dim), (None, None, "embed"), init, dtype)
        self.output_bias = parameter(rngs, (embed_dim,), ("norm",), zeros, dtype)

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
        """mask: True = a real frame, which others may see."""

        def heads(weight, bias):
            return project("btd,dnh->btnh", x, weight[...]) + bias[...].astype(x.dtype)

        query = heads(self.query, self.query_bias)
        content = query + self.content_bias[...].astype(x.dtype)
        place = query + self.position_bias[...].astype(x.dtype)
        relative = project("ad,dnh->anh", jnp.asarray(_distances(x.shape[1], x.shape[2]), x.dtype), self.relative[...])
        scores = _product("btnh,bsnh->bnts", content, heads(self.key, self.key_bias))
        scores = scores + _shifted(_product("btnh,anh->bnta", place, relative))
        visible = (mask[:, :, None] & mask[:, None])[:, None]
        # The smallest number instead of an infinity: a query without any visible key gets no NaN.
        scores = jnp.where(visible, scores * query.shape[-1] ** -0.5, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(x.dtype)
        out = _product("bnts,bsnh->btnh", weights, heads(self.value, self.value_bias)).astype(x.dtype)
        out = project("btnh,nhd->btd", out, self.output[...]) + self.output_bias[...].astype(x.dtype)
        return checkpoint_name(out, "sublayer_output")


def _product(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32, precision=precision_of(left.dtype))


def _distances(length: int, width: int) -> np.ndarray:
    """float32 [2 length - 1, width]: sine and cosine in turn of the distances length - 1 .. 1 - length."""
    rates = np.float32(1) / np.float32(10_000) ** (np.arange(0, width, 2, dtype=np.float32) / np.float32(width))
    angles = np.arange(length - 1, -length, -1, dtype=np.float32)[:, None] * rates
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(2 * length - 1, width)


def _shifted(scores: Float[Array, "b n t a"]) -> Float[Array, "b n t s"]:
    """Of every query's scores by distance, those by key: key s has distance index s - t + length - 1."""
    *lead, length, distances = scores.shape
    padded = jnp.pad(scores, [(0, 0)] * (len(lead) + 1) + [(1, 0)])
    # In rows that are one longer, reading on with the old length moves each next query's row by one.
    moved = padded.reshape(*lead, distances + 1, length)[..., 1:, :]
    return moved.reshape(*lead, length, distances)[..., :length]


class NormedConvolution(nnx.Module):
    """end(activation(batch_norm(conv(a * sigmoid(b))))) with (a, b) = start(x); conv: each channel by itself, centred.

    batch_norm(x) = (x - mean) / sqrt(variance + eps) * scale + bias with statistics from the checkpoint, which get no
    gradient: what computes them in training is not here.
    """

    def __init__(
        self,
        embed_dim: int,
        kernel: int,
        *,
        activation: Activation,
        biases: bool,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        dtype, init = execution.weight_dtype, fan_in_normal(embed_dim)
        self.activation, self.biases = activation, biases
        zeros, ones = jax.nn.initializers.zeros, jax.nn.initializers.ones

        def vector(initializer=zeros):
            return parameter(rngs, (embed_dim,), ("norm",), initializer, dtype)

        self.start = parameter(rngs, (embed_dim, 2, embed_dim), ("embed", None, None), init, dtype)
        self.kernel = parameter(rngs, (kernel, embed_dim), (None, "norm"), fan_in_normal(kernel), dtype)
        self.mean, self.variance, self.scale, self.bias = vector(), vector(ones), vector(ones), vector()
        self.end = parameter(rngs, (embed_dim, embed_dim), (None, "embed"), init, dtype)
        if biases:
            self.start_bias = parameter(rngs, (2, embed_dim), (None, "norm"), zeros, dtype)
            self.kernel_bias, self.end_bias = vector(), vector()

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
        """mask: True = a real frame; others are zero for their neighbours."""
        both = project("btd,dpe->btpe", x, self.start[...])
        if self.biases:
            both = both + self.start_bias[...].astype(x.dtype)
        gated = both[..., 0, :] * jax.nn.sigmoid(both[..., 1, :])
        convolved = self._convolved(jnp.where(mask[..., None], gated, 0)).astype(jnp.float32)
        mean, variance, scale, bias = (
            p[...].astype(jnp.float32) for p in (self.mean, self.variance, self.scale, self.bias)
        )
        mean, variance = jax.lax.stop_gradient((mean, variance))
        normed = ((convolved - mean) * jax.lax.rsqrt(variance + NORM_EPS) * scale + bias).astype(x.dtype)
        out = project("btd,de->bte", activated(normed, self.activation), self.end[...])
        if self.biases:
            out = out + self.end_bias[...].astype(x.dtype)
        return checkpoint_name(out, "sublayer_output")

    def _convolved(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        side = (self.kernel.shape[0] - 1) // 2
        out = jax.lax.conv_general_dilated(
            x,
            self.kernel[...][:, None].astype(x.dtype),
            (1,),
            ((side, side),),
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=x.shape[-1],
            precision=precision_of(x.dtype),
        )
        return out + self.kernel_bias[...].astype(x.dtype) if self.biases else out


class FastConformerBlock(nnx.Module):
    """norm(x), after x + ffw / 2, x + attention, x + convolution and x + ffw / 2, each on its own norm of x."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        kernel: int,
        *,
        activation: Activation = "silu",
        conv_biases: bool = True,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        def norm():
            return LayerNorm(embed_dim, eps=NORM_EPS, execution=execution, rngs=rngs)

        def feed_forward():
            return FeedForward(embed_dim, hidden_dim, activation=activation, execution=execution, rngs=rngs)

        self.start_norm, self.start_ffw = norm(), feed_forward()
        self.attention_norm = norm()
        self.attention = RelativeAttention(embed_dim, num_heads, execution=execution, rngs=rngs)
        self.convolution_norm = norm()
        self.convolution = NormedConvolution(
            embed_dim, kernel, activation=activation, biases=conv_biases, execution=execution, rngs=rngs
        )
        self.end_norm, self.end_ffw = norm(), feed_forward()
        self.final_norm = norm()

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
        """mask: True = a real frame. Real frames do not depend on what the others hold."""
        x = x + 0.5 * self.start_ffw(self.start_norm(x))
        x = x + self.attention(self.attention_norm(x), mask)
        x = x + self.convolution(self.convolution_norm(x), mask)
        x = x + 0.5 * self.end_ffw(self.end_norm(x))
        return self.final_norm(x)


def fast_conformer_block_parameters(embed_dim: int, hidden_dim: int, kernel: int, *, conv_biases: bool = True) -> int:
    """Parameters of one `FastConformerBlock`, the statistics of its batch norm included."""
    feed_forwards = 2 * (2 * embed_dim * hidden_dim + hidden_dim + embed_dim)
    attention = 5 * embed_dim * embed_dim + 6 * embed_dim
    convolution = 3 * embed_dim * embed_dim + (kernel + 4 + 4 * conv_biases) * embed_dim
    return feed_forwards + attention + convolution + 10 * embed_dim
