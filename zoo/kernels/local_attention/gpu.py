"""Local attention on GPUs in Triton-Pallas, for Ampere and later: the portable kernel, forward and backward."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from zoo.kernels.attention.inputs import RESIDUALS, AttentionInputs
from zoo.kernels.local_attention.gpu_backward import backward
from zoo.kernels.local_attention.gpu_common import LOG2_E, Options
from zoo.kernels.local_attention.gpu_forward import forward
from zoo.kernels.local_attention.gpu_tiles import MAX_HEAD_DIM
from zoo.kernels.platform import target_platform

_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def local_attention_gpu(
    inputs: AttentionInputs,
    *,
    block_q: int | None = None,
    block_k: int | None = None,
    interpret: bool | None = None,
) -> Float[Array, "b t n h"]:
    """softmax over the visible keys of cap(scale * q . k), times v, as `dot_product_attention` says; differentiable.

    Only the blocks of keys that hold a visible pair are read: those of the window, within the query's segments. The
    query heads of a group are rows of one tile. Memory, also of the backward pass, grows with T and S. Scores and sums
    are float32; products take operands of the inputs' dtype (bfloat16, float16, float32; interpreted also float64).

    Args:
      block_q, block_k: queries (of each head) and keys per tile; None = as in `gpu_tiles`. The rows of a tile, block_q
        times the heads of a group, are rounded up to a power of two; block_k must be one.
      interpret: run the kernels as plain JAX; None = unless the program is for a GPU.

    Raises:
      NotImplementedError: head sizes other than 16, 32, 64, 128 and 256; dtypes other than those above.
      ValueError: block sizes that are no power of two.
    """
    options = _options(inputs, block_q, block_k, interpret)
    places = inputs.query_positions, inputs.key_positions, inputs.query_segment_ids, inputs.key_segment_ids
    return _attention(inputs.query, inputs.key, inputs.value, places, options)


def part_forward(inputs: AttentionInputs) -> tuple[Float[Array, "b t n h"], Float[Array, "b t n"]]:
    """(out, lse) for keys that are a part of what the queries see: lse is the natural logarithm of the sum of
    exp(score), +inf for a query that sees none of them."""
    out, lse = forward(inputs, _options(inputs))
    return out, lse / LOG2_E


def part_backward(
    inputs: AttentionInputs,
    lse: Float[Array, "b t n"],
    delta: Float[Array, "b t n"],
    out_gradient: Float[Array, "b t n h"],
) -> tuple[Float[Array, "b t n h"], Float[Array, "b s k h"], Float[Array, "b s k h"]]:
    """(dq, dk, dv) for such keys, given lse and delta = sum(out * out_gradient) of all of them."""
    return backward(inputs, _options(inputs), lse * LOG2_E, delta, out_gradient)


def _options(
    inputs: AttentionInputs, block_q: int | None = None, block_k: int | None = None, interpret: bool | None = None
) -> Options:
    """The static arguments of the kernels, checked."""
    if interpret is None:
        interpret = target_platform() != "gpu"
    head_dim, dtype = inputs.query.shape[-1], inputs.query.dtype
    if not 16 <= head_dim <= MAX_HEAD_DIM or head_dim & (head_dim - 1):
        raise NotImplementedError(
            f"attention implementation 'pallas_gpu' takes head sizes 16, 32, 64, 128 and 256, not {head_dim}"
        )
    if dtype not in (_DTYPES if not interpret else (*_DTYPES, jnp.float64)):
        raise NotImplementedError(
            f"attention implementation 'pallas_gpu' takes bfloat16, float16 and float32, not {dtype}"
        )
    if block_q is not None and block_q < 1:
        raise ValueError(f"block_q must be at least 1, got {block_q}")
    if block_k is not None and (block_k < 16 or block_k & (block_k - 1)):
        raise ValueError(f"block_k must be a power of two, at least 16, got {block_k}")
    return Options(
        scale=inputs.scale,
        causal=inputs.causal,
        sliding_window=inputs.sliding_window,
        logits_soft_cap=inputs.logits_soft_cap,
        ordered_positions=inputs.ordered_positions,
        block_q=block_q,
        block_k=block_k,
        interpret=interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(query, key, value, places, options: Options):
    return forward(_inputs(query, key, value, places, options), options)[0]


def _forward(query, key, value, places, options):
    out, lse = forward(_inputs(query, key, value, places, options), options)
    out, lse = checkpoint_name(out, RESIDUALS), checkpoint_name(lse, RESIDUALS)
    return out, (query, key, value, places, out, lse)


def _backward(options, residuals, out_gradient):
    query, key, value, places, out, lse = residuals
    mean = (out.astype(lse.dtype) * out_gradient.astype(lse.dtype)).sum(-1)
    gradients = backward(_inputs(query, key, value, places, options), options, lse, mean, out_gradient)
    return *gradients, None


_attention.defvjp(_forward, _backward)


def _inputs(query, key, value, places, options: Options) -> AttentionInputs:
    query_positions, key_positions, query_segment_ids, key_segment_ids = places
    return AttentionInputs(
        query=query,
        key=key,
        value=value,
        scale=options.scale,
        causal=options.causal,
        sliding_window=options.sliding_window,
        logits_soft_cap=options.logits_soft_cap,
        query_positions=query_positions,
        key_positions=key_positions,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        ordered_positions=options.ordered_positions,
    )
