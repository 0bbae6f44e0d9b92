"""The programs whose compiled form is measured: ours, and splash attention as jax ships it, on the same shapes.

Each builder returns (function to compile, its arguments as jax.ShapeDtypeStruct), for `zoo.ahead_of_time.tpu_schedule`.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from zoo.kernels.attention.inputs import check_inputs
from zoo.kernels.decode_attention import decode_attention
from zoo.kernels.global_attention import splash_attention
from zoo.kernels.local_attention.tpu import local_attention_tpu


@dataclass(frozen=True)
class Shape:
    """Heads of a layer."""

    name: str
    """The model that has them."""
    heads: int
    """Query heads N."""
    kv_heads: int
    """Key/value heads K."""
    head_dim: int
    """Size of a head."""


GEMMA2_9B = Shape("9B", 16, 8, 256)
"""Gemma 2 report (arXiv:2408.00118), table 1."""
GEMMA2_27B = Shape("27B", 32, 16, 128)
"""As above."""
GEMMA2_2B = Shape("2B", 8, 4, 256)
"""As above."""
UNGROUPED = Shape("8 heads", 8, 8, 256)
"""Every head reads keys and values of its own."""
SHAPES = {shape.name: shape for shape in (GEMMA2_9B, GEMMA2_27B, GEMMA2_2B, UNGROUPED)}

SOFT_CAP = 50.0
"""Of Gemma 2's attention scores (same report, section 2)."""
WINDOW = 4096
"""Of its local layers (same report, table 1)."""


def local(
    *,
    shape: str,
    length: int,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    backward: bool,
    heads_first: bool = False,
):
    """Our kernel for layers with a window; with `backward` the gradients of query, key and value.

    Arrays are [B, T, N, H], with `heads_first` [B, N, T, H]: as the kernels take them, so that nothing is transposed.
    """
    attention = partial(local_attention_tpu, interpret=False)
    return _layer(attention, SHAPES[shape], length, sliding_window, logits_soft_cap, backward, heads_first)


def global_layer(
    *,
    shape: str,
    length: int,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    backward: bool,
    heads_first: bool = False,
):
    """The kernel that our layers without a window use on TPU: splash attention, with tiles and masks of our choice.

    With a window it serves to measure splash's memory at lengths for which splash's own mask takes minutes to build.
    """
    attention = partial(splash_attention, consecutive_positions=True, interpret=False)
    return _layer(attention, SHAPES[shape], length, sliding_window, logits_soft_cap, backward, heads_first)


def decode(*, shape: str, batch: int, slots: int, sliding_window: int | None, logits_soft_cap: float | None):
    """One token per row against a cache of `slots` keys and values."""
    heads = SHAPES[shape]
    step = partial(
        decode_attention,
        scale=heads.head_dim**-0.5,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        implementation="pallas_tpu",
    )

    def numbers(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def positions(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    kv_heads, head_dim = heads.kv_heads, heads.head_dim
    held = numbers(batch, kv_heads, head_dim, slots), numbers(batch, kv_heads, slots, head_dim), positions(batch, slots)
    own = numbers(batch, kv_heads, head_dim), numbers(batch, kv_heads, head_dim), positions(batch, 1)
    return step, (numbers(batch, heads.heads, head_dim), held, own, positions(batch, 1))


def attention_inputs(query, key, value, sliding_window, logits_soft_cap):
    """The arguments of a causal layer whose positions are 0..T-1, with scale H^-1/2."""
    return check_inputs(
        query,
        key,
        value,
        scale=query.shape[-1] ** -0.5,
        causal=True,
        sliding_window=sliding_window,
        logits_soft_cap=logits_soft_cap,
        query_positions=None,
        key_positions=None,
        query_segment_ids=None,
        key_segment_ids=None,
        ordered_positions=False,
    )


def splash(
    *,
    shape: str,
    length: int,
    sliding_window: int | None,
    logits_soft_cap: float | None,
    backward: bool,
    block: int = 512,
):
    """jax.experimental.pallas.ops.tpu.splash_attention, [N, T, H] queries against [K, T, H] keys and values.

    The backward pass is the unfused one (a kernel for the query's gradient and one for those of keys and values): the
    fused one needs memory that grows with T * T, whatever the window. Building the mask takes seconds for long inputs.
    """
    # The other kernel does not import this, which jax may move.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    heads = SHAPES[shape]
    if sliding_window is None:
        mask = splash_attention_mask.CausalMask((length, length))
    else:
        mask = splash_attention_mask.LocalMask((length, length), (sliding_window - 1, 0), 0)
    kernel = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask([mask] * heads.heads),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=logits_soft_cap,
        block_sizes=splash_attention_kernel.BlockSizes(
            block_q=block,
            block_kv=block,
            block_kv_compute=block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_kv_dkv_compute=block,
            block_q_dq=block,
            block_kv_dq=block,
        ),
    )
    query = jax.ShapeDtypeStruct((heads.heads, length, heads.head_dim), jnp.bfloat16)
    key = jax.ShapeDtypeStruct((heads.kv_heads, length, heads.head_dim), jnp.bfloat16)
    return _gradients(kernel) if backward else kernel, (query, key, key)


def _layer(attention, heads: Shape, length, sliding_window, logits_soft_cap, backward, heads_first):
    def layer(*arrays):
        query, key, value = (x.swapaxes(1, 2) for x in arrays) if heads_first else arrays
        out = attention(attention_inputs(query, key, value, sliding_window, logits_soft_cap))
        return out.swapaxes(1, 2) if heads_first else out

    def argument(count):
        sizes = (1, count, length, heads.head_dim) if heads_first else (1, length, count, heads.head_dim)
        return jax.ShapeDtypeStruct(sizes, jnp.bfloat16)

    query, key = argument(heads.heads), argument(heads.kv_heads)
    return (_gradients(layer) if backward else layer), (query, key, key)


def _gradients(attention):
    return jax.grad(lambda *arrays: attention(*arrays).astype(jnp.float32).sum(), (0, 1, 2))
