"""Local attention on Hopper GPUs (H100, H200) by Mosaic GPU: implementation "mosaic_gpu", for bfloat16 and float16."""

import logging
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.block import NO_MAXIMUM_SOFT_CAP
from zoo.kernels.attention.inputs import AttentionInputs
from zoo.kernels.local_attention.band import Band, BlockRanges, PaddedPositions, key_ranges, pad_positions, query_ranges
from zoo.kernels.local_attention.hopper_backward import key_gradients, key_parts, query_gradient
from zoo.kernels.local_attention.hopper_forward import forward, heads_per_block
from zoo.kernels.local_attention.hopper_pipeline import CONSUMERS
from zoo.kernels.local_attention.hopper_tile import ROWS, Tile
from zoo.kernels.platform import target_platform


@dataclass(frozen=True)
class Blocks:
    """Sizes of one head size: what fits 227 KB of shared memory and 240 registers per thread."""

    keys: int
    """Keys per tile of the forward pass, a multiple of 64."""
    stages: int
    """Blocks of keys, and of values, in shared memory at a time."""
    gradient_keys: int
    """Keys per tile of the queries' gradient, a multiple of 64."""
    gradient_stages: tuple[int, int]
    """Blocks of keys and of values there: only the keys are needed to the end of a step."""
    gradient_queries: int
    """Queries per tile of the gradients of keys and values, a multiple of 64."""
    gradient_query_stages: int
    """Blocks of queries there."""


DEFAULT_BLOCKS = {
    64: Blocks(128, 4, 128, (4, 4), 64, 4),
    128: Blocks(128, 2, 128, (2, 2), 64, 3),
    256: Blocks(64, 2, 64, (2, 1), 64, 2),
}
"""By head size."""

_HOPPERS = ("H100", "H200", "H800", "H20")
"""Parts of the names of GPUs with compute capability 9.0."""

_PADDING = 128
"""Queries and keys are padded to a multiple of this, which all blocks divide."""


def local_attention_hopper(
    inputs: AttentionInputs, *, blocks: Blocks | None = None, interpret: bool | None = None
) -> Float[Array, "b t n h"]:
    """softmax over the visible keys of cap(scale * q . k), times v, as `dot_product_attention` says; differentiable.

    Only blocks of keys that hold a visible pair are read, and only those at an edge of the window or of a segment are
    masked. Two query heads of a group share a thread block. Memory, also of the backward pass, grows with T and S.

    Args:
      blocks: sizes of tiles; None = `DEFAULT_BLOCKS`.
      interpret: run in JAX's interpreter of Mosaic GPU on the CPU, also in float64 (for tests, and slow); None = unless
        the program is for a GPU. For float64 set `jax_enable_x64` globally: the interpreter has its own threads.

    Raises:
      NotImplementedError: dtypes and head sizes that the kernel lacks, and GPUs other than Hopper.
    """
    if interpret is None:
        interpret = target_platform() != "gpu"
    _check(inputs, interpret)
    cap = inputs.logits_soft_cap
    call = _Call(
        tile=Tile(
            columns=0,
            scale=inputs.scale,
            soft_cap=cap,
            causal=inputs.causal,
            sliding_window=inputs.sliding_window,
            running_maximum=cap is None or cap > NO_MAXIMUM_SOFT_CAP or inputs.query.dtype == jnp.float16,
            accumulator=jnp.promote_types(inputs.query.dtype, jnp.float32),
            interpret=interpret,
        ),
        ordered_positions=inputs.ordered_positions,
        blocks=blocks or DEFAULT_BLOCKS[inputs.query.shape[-1]],
    )
    places = inputs.query_positions, inputs.key_positions, inputs.query_segment_ids, inputs.key_segment_ids
    return _attention(inputs.query, inputs.key, inputs.value, places, call)


@dataclass(frozen=True)
class _Call:
    """The static arguments of one call."""

    tile: Tile
    ordered_positions: bool
    blocks: Blocks


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(query, key, value, places, call: _Call):
    return _forward(query, key, value, places, call)[0]


def _forward(query, key, value, places, call):
    blocks = call.blocks
    plan = _plan(query, key, places, call, _queries_per_block(query, key), blocks.keys)
    out, lse = forward(
        replace(call.tile, columns=blocks.keys),
        _padded(query),
        _padded(key),
        _padded(value),
        _stacked(key_ranges(plan.band, plan.positions)),
        plan.query_marks(ROWS),
        plan.key_marks(),
        stages=blocks.stages,
        interpret=_interpreter(call),
    )
    out, lse = out[:, : query.shape[1]], lse[:, :, : query.shape[1]]
    return out, (query, key, value, places, out, lse)


def _backward(call, residuals, out_gradient):
    query, key, value, places, out, lse = residuals
    queries, keys = query.shape[1], key.shape[1]
    blocks, interpret = call.blocks, _interpreter(call)
    of_queries = _plan(query, key, places, call, _queries_per_block(query, key), blocks.gradient_keys)
    of_keys = _plan(query, key, places, call, blocks.gradient_queries, key_parts(key.shape[-1]) * ROWS)

    mean = jnp.einsum("bqnh,bqnh->bnq", out, out_gradient, preferred_element_type=lse.dtype)
    query, key, value, out_gradient = map(_padded, (query, key, value, out_gradient))
    lse, mean = (jnp.pad(x, ((0, 0), (0, 0), (0, query.shape[1] - queries))) for x in (lse, mean))

    def sums(rows):
        return jnp.stack([x.reshape(*x.shape[:2], -1, rows) for x in (lse, mean)], axis=-2)

    key_stages, value_stages = blocks.gradient_stages
    query_change = query_gradient(
        replace(call.tile, columns=blocks.gradient_keys),
        query,
        key,
        value,
        out_gradient,
        sums(ROWS),
        _stacked(key_ranges(of_queries.band, of_queries.positions)),
        of_queries.query_marks(ROWS),
        of_queries.key_marks(),
        key_stages=key_stages,
        value_stages=value_stages,
        interpret=interpret,
    )
    key_change, value_change = key_gradients(
        replace(call.tile, columns=blocks.gradient_queries),
        query,
        key,
        value,
        out_gradient,
        sums(blocks.gradient_queries),
        _stacked(query_ranges(of_keys.band, of_keys.positions)),
        of_keys.query_marks(),
        of_keys.key_marks(ROWS),
        stages=blocks.gradient_query_stages,
        interpret=interpret,
    )
    return query_change[:, :queries], key_change[:, :keys], value_change[:, :keys], None


_attention.defvjp(_forward, _backward)


@dataclass(frozen=True)
class _Plan:
    """The blocks of one kernel, and where their queries and keys stand."""

    band: Band
    positions: PaddedPositions

    def query_marks(self, rows: int | None = None) -> Int[Array, "b i *p m c"]:
        """Position and, where there are any, segment of each query, by blocks; these in parts of `rows` if given."""
        return _marks(self.positions.query_positions, self.positions.query_segment_ids, self.band.block_q, rows)

    def key_marks(self, rows: int | None = None) -> Int[Array, "b j *p m c"]:
        """The same of each key."""
        return _marks(self.positions.key_positions, self.positions.key_segment_ids, self.band.block_k, rows)


def _plan(query, key, places, call: _Call, block_q: int, block_k: int) -> _Plan:
    tile = call.tile
    band = Band(
        queries=query.shape[1],
        keys=key.shape[1],
        block_q=block_q,
        block_k=block_k,
        causal=tile.causal,
        sliding_window=tile.sliding_window,
        ordered=call.ordered_positions,
    )
    query_positions, key_positions, query_segment_ids, key_segment_ids = places
    inputs = AttentionInputs(
        query=query,
        key=key,
        value=key,
        scale=tile.scale,
        causal=tile.causal,
        sliding_window=tile.sliding_window,
        logits_soft_cap=tile.soft_cap,
        query_positions=query_positions,
        key_positions=key_positions,
        query_segment_ids=query_segment_ids,
        key_segment_ids=key_segment_ids,
        ordered_positions=call.ordered_positions,
    )
    return _Plan(band, pad_positions(inputs, band))


def _marks(positions, segment_ids, block, rows):
    both = (positions,) if segment_ids is None else jnp.broadcast_arrays(positions, segment_ids)
    split = (block,) if rows is None else (block // rows, rows)
    return jnp.stack([x.reshape(x.shape[0], -1, *split) for x in both], axis=-2)


def _stacked(ranges: BlockRanges) -> Int[Array, "b n 4"]:
    return jnp.stack([ranges.first, ranges.last, ranges.first_full, ranges.last_full], axis=-1)


def _queries_per_block(query, key) -> int:
    return CONSUMERS * ROWS // heads_per_block(query.shape[2], key.shape[2])


def _padded(x: Float[Array, "b t n h"]) -> Float[Array, "b u n h"]:
    more = -x.shape[1] % _PADDING
    return jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) if more else x


def _check(inputs: AttentionInputs, interpret: bool) -> None:
    head_dim, dtype = inputs.query.shape[-1], inputs.query.dtype
    if head_dim not in DEFAULT_BLOCKS:
        raise NotImplementedError(
            f"attention implementation 'mosaic_gpu' takes head sizes 64, 128 and 256, not {head_dim}"
        )
    if dtype not in (jnp.bfloat16, jnp.float16) and not (interpret and dtype == jnp.float64):
        raise NotImplementedError(f"attention implementation 'mosaic_gpu' takes bfloat16 and float16, not {dtype}")
    if interpret:
        return
    if (device := _other_gpu()) is not None:
        raise NotImplementedError(
            f"attention implementation 'mosaic_gpu' is for Hopper GPUs (H100, H200), not {device}"
        )
    _warn_once()


def _other_gpu() -> str | None:
    """Name of the GPU that the program is for, if that is known and is no Hopper."""
    if (device := getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)) is not None:
        return None if any(name in device.device_kind for name in _HOPPERS) else device.device_kind
    if jax.default_backend() != "gpu" or jax.devices()[0].compute_capability == "9.0":
        return None
    return jax.devices()[0].device_kind


@cache
def _warn_once() -> None:
    logging.getLogger(__name__).warning(
        "attention implementation 'mosaic_gpu' is not verified on hardware, only in jax 0.10's interpreter"
    )


def _interpreter(call: _Call) -> Any:
    if not call.tile.interpret:
        return False
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams(detect_races=True)
    # Before it had a public name; nothing else here needs a private module.
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams(detect_races=True)
