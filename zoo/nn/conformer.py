"""The conformer block of USM-style audio encoders (arXiv 2303.01037, 2005.08100), as in Gemma 3n."""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from zoo.nn.execution import Execution
from zoo.nn.norm import RMSNorm
from zoo.nn.parameters import fan_in_normal, parameter, project
from zoo.nn.relative_attention import LocalRelativeAttention

FFW_FACTOR = 4
"""Width of a feed-forward, in widths of the model."""
NORM_EPS = 1e-6
"""Added to the mean square in the norms around attention and feed-forward: fixed in the public implementation."""


def _norm(embed_dim: int, eps: float, execution: Execution, rngs: nnx.Rngs) -> RMSNorm:
    return RMSNorm(embed_dim, eps=eps, zero_centred=False, execution=execution, rngs=rngs)


class ConformerFeedForward(nnx.Module):
    """x + weight * norm(down(silu(up(norm(x))))): half a step where weight is 1/2."""

    def __init__(
        self, embed_dim: int, hidden_dim: int, *, weight: float, clip: float, execution: Execution, rngs: nnx.Rngs
    ):
        dtype = execution.weight_dtype
        self.weight, self.clip = weight, clip
        self.pre_norm = _norm(embed_dim, NORM_EPS, execution, rngs)
        self.up = parameter(rngs, (embed_dim, hidden_dim), ("embed", None), fan_in_normal(embed_dim), dtype)
        self.down = parameter(rngs, (hidden_dim, embed_dim), (None, "embed"), fan_in_normal(hidden_dim), dtype)
        self.post_norm = _norm(embed_dim, NORM_EPS, execution, rngs)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        normed = self.pre_norm(jnp.clip(x, -self.clip, self.clip))
        up = checkpoint_name(project("btd,df->btf", normed, self.up[...]), "up")
        down = checkpoint_name(project("btf,fd->btd", jax.nn.silu(up), self.down[...]), "sublayer_output")
        return x + self.weight * self.post_norm(jnp.clip(down, -self.clip, self.clip))


class LightConvolution(nnx.Module):
    """x + end(silu(norm(conv(a * sigmoid(b))))) with (a, b) = start(norm(x)); conv: each channel by itself, causal."""

    def __init__(
        self, embed_dim: int, kernel: int, *, clip: float, norm_eps: float, execution: Execution, rngs: nnx.Rngs
    ):
        dtype, init = execution.weight_dtype, fan_in_normal(embed_dim)
        self.clip = clip
        self.pre_norm = _norm(embed_dim, norm_eps, execution, rngs)
        self.start = parameter(rngs, (embed_dim, 2, embed_dim), ("embed", None, None), init, dtype)
        self.kernel = parameter(rngs, (kernel, embed_dim), (None, "norm"), fan_in_normal(kernel), dtype)
        self.conv_norm = _norm(embed_dim, norm_eps, execution, rngs)
        self.end = parameter(rngs, (embed_dim, embed_dim), (None, "embed"), init, dtype)

    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        both = checkpoint_name(project("btd,dpe->btpe", self.pre_norm(x), self.start[...]), "up")
        convolved = _causal_depthwise(both[..., 0, :] * jax.nn.sigmoid(both[..., 1, :]), self.kernel[...])
        normed = self.conv_norm(jnp.clip(convolved, -self.clip, self.clip))
        return x + checkpoint_name(project("btd,de->bte", jax.nn.silu(normed), self.end[...]), "sublayer_output")


def _causal_depthwise(x: Float[Array, "b t d"], kernel: Float[Array, "k d"]) -> Float[Array, "b t d"]:
    """sum_i kernel[i] * x[t + i - (K - 1)]: for a kernel of five, sums of shifted arrays fuse into one pass."""
    size, length = len(kernel), x.shape[1]
    padded = jnp.pad(x, ((0, 0), (size - 1, 0), (0, 0)))
    weights = kernel.astype(x.dtype)
    terms = [padded[:, i : i + length] * weights[i] for i in range(size)]
    return functools.reduce(operator.add, terms)


class ConformerBlock(nnx.Module):
    """norm(ffw(convolution(mask * (attention(ffw(x))))))."""

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        chunk: int,
        left: int,
        right: int,
        soft_cap: float,
        kernel: int,
        residual_weight: float,
        clip: float,
        norm_eps: float,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        def feed_forward():
            return ConformerFeedForward(
                embed_dim, FFW_FACTOR * embed_dim, weight=residual_weight, clip=clip, execution=execution, rngs=rngs
            )

        self.clip = clip
        self.start_ffw = feed_forward()
        self.pre_attention_norm = _norm(embed_dim, NORM_EPS, execution, rngs)
        self.attention = LocalRelativeAttention(
            embed_dim,
            num_heads,
            chunk=chunk,
            left=left,
            right=right,
            soft_cap=soft_cap,
            execution=execution,
            rngs=rngs,
        )
        self.post_attention_norm = _norm(embed_dim, NORM_EPS, execution, rngs)
        self.convolution = LightConvolution(
            embed_dim, kernel, clip=clip, norm_eps=norm_eps, execution=execution, rngs=rngs
        )
        self.end_ffw = feed_forward()
        self.final_norm = _norm(embed_dim, NORM_EPS, execution, rngs)

    def __call__(self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"]) -> Float[Array, "b t d"]:
        """mask: True = a real frame. Real frames do not depend on what the others hold."""
        with jax.named_scope("mlp"):
            x = self.start_ffw(x)
        with jax.named_scope("local_attention"):
            attended = self.attention(self.pre_attention_norm(self._clipped(x)), mask)
            x = x + self.post_attention_norm(self._clipped(attended))
        with jax.named_scope("convolution"):
            x = self.convolution(x * mask[..., None].astype(x.dtype))
        with jax.named_scope("mlp"):
            return self.final_norm(self._clipped(self.end_ffw(x)))

    def _clipped(self, x):
        return jnp.clip(x, -self.clip, self.clip)


def conformer_block_parameters(embed_dim: int, num_heads: int, kernel: int) -> int:
    """Parameters of one `ConformerBlock`: feed-forwards, attention, convolution and nine norms."""
    square = embed_dim * embed_dim
    feed_forwards = 2 * 2 * FFW_FACTOR * square
    attention = 5 * square + embed_dim // num_heads
    convolution = 3 * square + kernel * embed_dim
    return feed_forwards + attention + convolution + 9 * embed_dim
