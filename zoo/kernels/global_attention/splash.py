"""Causal attention on TPU by JAX's splash kernel (`jax.experimental.pallas.ops.tpu.splash_attention`).

The kernel decides by index: query row i sees keys 0..i + S - T of its segment. With ordered positions this is what the
positions say, except for keys that hold no token: these get a segment of their own.
"""

import contextlib
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jaxtyping import Array, Bool, Float

from zoo.kernels.attention.inputs import RESIDUALS, AttentionInputs
from zoo.kernels.attention.visibility import EMPTY_POSITION
from zoo.kernels.platform import target_platform

_LANES = 128
"""Blocks are multiples of this number of rows: the width of a TPU vector register."""

_BLOCK_VALUES = {jnp.dtype(jnp.bfloat16): 2**18, jnp.dtype(jnp.float32): 2**16}
"""Numbers in a block of queries or keys: the most with which every kernel fits the vector memory of v4 to TPU7x.

1024 rows instead of 512 take a tenth (v5p) to a fifth (v6e) fewer instructions per score, read off compiled schedules.
"""

_NO_SEGMENT = -1
"""Segment of keys that no query may see; segments of tokens are not negative."""


def splash_attention(
    inputs: AttentionInputs, *, consecutive_positions: bool = False, interpret: bool | None = None
) -> Float[Array, "b t n h"]:
    """The function of `dot_product_attention`: causal, soft-cap on or off, grouped heads, segments, T <= S.

    Scores and sums are float32. bfloat16 queries are scaled in float32 and rounded once, which is exact when `scale` is
    a power of two. The backward pass is the kernel's unfused one: its memory is linear in T. Nothing is T x S, neither
    on the device nor on the host. Differentiable once, in reverse mode.

    Args:
      inputs: ordered positions. When T = S and there are no segments, every key is taken to hold a token.
      consecutive_positions: a promise on top of the ordered ones: within a segment positions rise by exactly one. A
        sliding window needs it, since the kernel counts indices.
      interpret: whether to run in interpret mode; None = on every back end but TPU.

    Raises:
      NotImplementedError: positions that are not known to be ordered, attention that is not causal, a window without
        `consecutive_positions`, a dtype other than bfloat16 and float32.
    """
    _check(inputs, consecutive_positions)
    queries, keys = inputs.query.shape[1], inputs.key.shape[1]
    most_rows = _BLOCK_VALUES[inputs.query.dtype] // inputs.query.shape[3]
    call = _Call(
        queries=queries,
        keys=keys,
        block_q=_block(queries, most_rows),
        block_kv=_block(keys, most_rows),
        sliding_window=inputs.sliding_window,
        logits_soft_cap=inputs.logits_soft_cap,
        interpret=target_platform() != "tpu" if interpret is None else interpret,
    )
    query = (inputs.query.astype(jnp.float32) * inputs.scale).astype(inputs.query.dtype)
    segments, sees_some = _segments(inputs, call)
    out = _attend(
        call,
        _heads_first(query, call.padded_queries),
        _heads_first(inputs.key, call.padded_keys),
        _heads_first(inputs.value, call.padded_keys),
        segments,
    )
    out = out[:, :, :queries].swapaxes(1, 2)
    return out if sees_some is None else jnp.where(sees_some[:, :, None, None], out, 0)


def _check(inputs: AttentionInputs, consecutive_positions: bool) -> None:
    problem = None
    if inputs.query.dtype not in (jnp.bfloat16, jnp.float32):
        problem = f"{inputs.query.dtype}: only bfloat16 and float32"
    elif not inputs.causal:
        problem = "attention that is not causal"
    elif not inputs.ordered_positions:
        problem = "positions that are not promised to be ordered (ordered_positions)"
    elif inputs.sliding_window is not None and not consecutive_positions:
        problem = "sliding_window with explicit positions: it counts indices, not positions"
    if problem:
        raise NotImplementedError(f"attention implementation 'splash' does not support {problem}")


@dataclass(frozen=True)
class _Call:
    """What the kernel is compiled for."""

    queries: int
    keys: int
    block_q: int
    block_kv: int
    sliding_window: int | None
    logits_soft_cap: float | None
    interpret: bool

    @property
    def padded_queries(self) -> int:
        return -(-self.queries // self.block_q) * self.block_q

    @property
    def padded_keys(self) -> int:
        return -(-self.keys // self.block_kv) * self.block_kv


def _block(length: int, most_rows: int) -> int:
    """Rows per block, a multiple of 128: `length` in equal blocks of at most `most_rows`, and at most 1024, rows."""
    most = min(max(most_rows // _LANES, 1), 8)
    units = -(-length // _LANES)
    units = -(-units // -(-units // most))
    # Above 512 rows the kernel walks a block in two halves, which are multiples of 128 too.
    return (units if units <= 4 else units + units % 2) * _LANES


class _Band(splash.LocalMask):
    """The band of visible indices. Blocks that are wholly visible or hidden are told by their corners.

    The kernel's set-up asks for every block only whether some and whether all of it is visible. An array of one element
    answers that: comparing all T x S indices took 120 s at T = 131072, this takes 2 s.
    """

    def __getitem__(self, block) -> np.ndarray:
        rows, columns = block
        first, last = rows.start + self.offset, rows.stop - 1 + self.offset
        back = self.window_size[0]
        if columns.start > last or (back is not None and columns.stop - 1 < first - back):
            return np.zeros((1, 1), bool)
        if columns.stop - 1 <= first and (back is None or columns.start >= last - back):
            return np.ones((1, 1), bool)
        return super().__getitem__(block)


def _kernel(call: _Call):
    back = None if call.sliding_window is None else call.sliding_window - 1
    band = _Band((call.padded_queries, call.padded_keys), (back, 0), offset=call.keys - call.queries)
    half = call.block_kv if call.block_kv <= 512 else call.block_kv // 2
    blocks = splash.BlockSizes(
        block_q=call.block_q,
        block_kv=call.block_kv,
        block_kv_compute=half,
        block_q_dkv=call.block_q,
        block_kv_dkv=call.block_kv,
        block_kv_dkv_compute=half,
        block_q_dq=call.block_q,
        block_kv_dq=half,
    )
    # One mask serves all heads: the kernel has no index of heads in it.
    return splash.make_splash_mha(
        splash.MultiHeadMask([band]),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=blocks,
        attn_logits_soft_cap=call.logits_soft_cap,
        residual_checkpoint_name=RESIDUALS,
        interpret=call.interpret,
    )


def _segments(inputs: AttentionInputs, call: _Call) -> tuple[splash.SegmentIds | None, Bool[Array, "#b t"] | None]:
    """(segments of padded rows [B, length], which queries see some key); (None, None) where all keys hold tokens."""
    batch, queries, keys = inputs.query.shape[0], call.queries, call.keys
    query_segments, key_segments = inputs.query_segment_ids, inputs.key_segment_ids
    if query_segments is None or key_segments is None:
        if queries == keys:
            return None, None
        query_segments, key_segments = jnp.zeros((1, queries), jnp.int32), jnp.zeros((1, keys), jnp.int32)
    shape = batch, keys
    key_segments = jnp.broadcast_to(key_segments, shape).astype(jnp.int32)
    query_segments = jnp.broadcast_to(query_segments, (batch, queries)).astype(jnp.int32)
    holds_token = jnp.broadcast_to(inputs.key_positions != EMPTY_POSITION, shape)

    # A query sees some key if the last token up to its own index lies in its own segment, a contiguous run.
    index = jnp.arange(keys, dtype=jnp.int32)
    begins = jnp.diff(key_segments, axis=1, prepend=key_segments[:, :1]) != 0
    first_of_segment = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    last_token = jax.lax.cummax(jnp.where(holds_token, index, -1), axis=1)
    sees_some = last_token >= first_of_segment
    if call.sliding_window is not None:
        sees_some &= last_token > index - call.sliding_window
    sees_some = sees_some[:, keys - queries :] & (key_segments[:, keys - queries :] == query_segments)

    key_segments = jnp.where(holds_token, key_segments, _NO_SEGMENT)
    return (
        splash.SegmentIds(
            jnp.pad(query_segments, ((0, 0), (0, call.padded_queries - queries)), mode="edge"),
            jnp.pad(key_segments, ((0, 0), (0, call.padded_keys - keys)), constant_values=_NO_SEGMENT),
        ),
        sees_some,
    )


def _heads_first(x: Float[Array, "b t n h"], length: int) -> Float[Array, "b n padded h"]:
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, length - x.shape[1]), (0, 0)))


# The kernel takes the precision of its products and the width of its indices, which must be 32 bits, from the context.
# Its backward pass is traced after the caller's context has ended: so both passes get theirs here.


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    call: _Call,
    query: Float[Array, "b n t h"],
    key: Float[Array, "b k s h"],
    value: Float[Array, "b k s h"],
    segments: splash.SegmentIds | None,
) -> Float[Array, "b n t h"]:
    with _context(query.dtype):
        return jax.vmap(_kernel(call))(query, key, value, segments)


def _attend_forward(call, query, key, value, segments):
    with _context(query.dtype):
        attend = jax.vmap(_kernel(call))
        return jax.vjp(lambda q, k, v: attend(q, k, v, segments), query, key, value)


def _attend_backward(call, pullback, out_gradient):
    with _context(out_gradient.dtype):
        return *pullback(out_gradient), None


_attend.defvjp(_attend_forward, _attend_backward)


@contextlib.contextmanager
def _context(dtype):
    precision = jax.default_matmul_precision("highest") if dtype == jnp.float32 else contextlib.nullcontext()
    with precision, jax.enable_x64(False):
        yield
