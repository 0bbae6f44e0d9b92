"""Causal attention on NVIDIA GPUs by cuDNN, through `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.platform import target_platform


def cudnn_attention(inputs: AttentionInputs, *, consecutive_positions: bool = False) -> Float[Array, "b t n h"]:
    """The function of `dot_product_attention` for T = S: causal, grouped heads, no soft-cap, no segments.

    cuDNN decides by index, which is right for ordered positions; every key is taken to hold a token. Heads have a size
    that is a multiple of 8, up to 256 (128 before Hopper). Differentiable.

    Args:
      consecutive_positions: a promise on top of the ordered ones: positions rise by exactly one. A sliding window needs
        it, since cuDNN counts indices.

    Raises:
      NotImplementedError: a soft-cap, segments, T != S, positions that are not known to be ordered, attention that is
        not causal, a window without `consecutive_positions`, a dtype other than bfloat16 and float16, another size of
        heads, a back end other than a GPU (cuDNN has no interpret mode).
    """
    _check(inputs, consecutive_positions)
    window = inputs.sliding_window
    return jax.nn.dot_product_attention(
        inputs.query,
        inputs.key,
        inputs.value,
        scale=inputs.scale,
        is_causal=True,
        # jax.nn counts the keys before the query's own.
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def _check(inputs: AttentionInputs, consecutive_positions: bool) -> None:
    queries, head_dim, keys = inputs.query.shape[1], inputs.query.shape[3], inputs.key.shape[1]
    problem = None
    if target_platform() != "gpu":
        problem = f"the back end {target_platform()!r}: it runs on NVIDIA GPUs only"
    elif inputs.query.dtype not in (jnp.bfloat16, jnp.float16):
        problem = f"{inputs.query.dtype}: only bfloat16 and float16"
    elif inputs.logits_soft_cap is not None:
        problem = "logits_soft_cap"
    elif inputs.query_segment_ids is not None:
        problem = "segment ids"
    elif not inputs.causal:
        problem = "attention that is not causal"
    elif queries != keys:
        problem = f"{queries} queries against {keys} keys: only as many as queries"
    elif not inputs.ordered_positions:
        problem = "positions that are not promised to be ordered (ordered_positions)"
    elif inputs.sliding_window is not None and not consecutive_positions:
        problem = "sliding_window with explicit positions: it counts indices, not positions"
    elif head_dim % 8 or head_dim > 256:
        problem = f"heads of size {head_dim}: only multiples of 8 up to 256"
    if problem:
        raise NotImplementedError(f"attention implementation 'cudnn' does not support {problem}")
