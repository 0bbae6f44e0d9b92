"""Bottleneck adapters behind a sub-layer (Houlsby et al., arXiv 1902.00751; Pfeiffer et al., arXiv 2005.00247).

    y = y + (gelu(norm(y) . down + b) * g) . up        norm(y) = (y - mean) / sqrt(var + eps)

y is what the sub-layer would add to the residual stream. The norm has no scale and bias of its own, which `down` and
`b` contain; there is no bias on the way up, so that a mixture of adapters is one adapter of their widths together, with
the weight of each in its gates g ([M], or [rows, M]). Adapters 0, 1, ... of one sub-layer are stacked: each reads what
the one before gave.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from zoo.nn.lora import gated
from zoo.nn.parameters import project

EPS = 1e-6
"""Added to the variance in the norm."""


def bottleneck_name(depth: int, part: str) -> str:
    """Name of a parameter of the adapter at a depth of the stack: part is down, down_bias, up or gate."""
    return f"bottleneck{depth}_{part}"


def through_bottlenecks(sublayer: nnx.Module, y: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """What leaves a sub-layer, through the adapters that were put there; y itself where there are none."""
    for depth in itertools.count():
        down: Any = getattr(sublayer, bottleneck_name(depth, "down"), None)
        if down is None:
            return y
        bias, up, gate = (getattr(sublayer, bottleneck_name(depth, part)) for part in ("down_bias", "up", "gate"))
        with jax.named_scope("bottleneck"):
            hidden = project("btd,dm->btm", _normed(y), down[...]) + bias[...].astype(y.dtype)
            y = y + project("btm,md->btd", gated(jax.nn.gelu(hidden), gate[...]), up[...])
    raise AssertionError("unreachable")


@jax.checkpoint
def _normed(y: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Keeps y alone for the backward pass."""
    centred = y.astype(jnp.float32)
    centred = centred - jnp.mean(centred, axis=-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + EPS)).astype(y.dtype)
