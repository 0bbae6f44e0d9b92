"""Tile sizes of the Triton kernels of local attention."""

import re
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

MAX_HEAD_DIM = 256
"""Largest head whose accumulators fit the registers of eight warps."""

Pass = Literal[
    "forward", "forward_with_maximum", "query_gradient", "key_gradient", "value_gradient", "key_value_gradient"
]
"""The kernels. Gradients of keys and values come from one kernel or from two, whichever have a tile.

A forward pass that takes the running maximum (see `takes_maximum`) has a tile of its own where registers are short.
"""


@dataclass(frozen=True)
class Tile:
    """What one program of the grid works on, and the warps that do it."""

    rows: int
    """Query rows (query heads of a group x queries); a power of two, at least 16."""
    block_k: int
    """Keys; a power of two, at least 16."""
    num_warps: int
    """Warps of 32 threads."""
    num_stages: int
    """Tiles in flight: the loads of num_stages - 1 later tiles overlap the arithmetic of this one."""


Tiles = dict[tuple[Pass, int, int], Tile]
"""By kernel, head size and bytes per element."""

# Found by compiling for A100, H200 and B200 (tests/ahead_of_time/test_gpu.py): the largest tiles that ptxas fits into
# registers without a spill, with and without a cap and segments. No tile was timed on a GPU.
# * wgmma works on 64 rows per four warps; with 64 rows and eight warps Triton computes the scores twice. Hence 128 rows
#   (keys, in the gradients of the keys) go with eight warps, 64 rows with four.
# * With one stage, loads pass through registers, and everything spills: there are always two.
# * At head size 256 the accumulators of both gradients of the keys would need all registers of 64 x 8 warps: splitting
#   them costs 8 matrix products instead of 7, spilling or doubled scores cost more.
_FLOAT32: Tiles = {
    ("forward", 64, 4): Tile(32, 32, 4, 2),
    ("forward", 128, 4): Tile(32, 16, 4, 2),
    ("forward", 256, 4): Tile(16, 16, 4, 2),
    ("query_gradient", 64, 4): Tile(32, 32, 4, 2),
    ("query_gradient", 128, 4): Tile(32, 16, 8, 2),
    ("query_gradient", 256, 4): Tile(16, 16, 8, 2),
    ("key_value_gradient", 64, 4): Tile(32, 32, 4, 2),
    ("key_value_gradient", 128, 4): Tile(16, 16, 4, 2),
    ("key_gradient", 256, 4): Tile(16, 16, 8, 2),
    ("value_gradient", 256, 4): Tile(16, 16, 8, 2),
}

HOPPER_TILES: Tiles = {
    ("forward", 64, 2): Tile(128, 64, 4, 3),
    ("forward", 128, 2): Tile(128, 128, 8, 2),
    ("forward", 256, 2): Tile(128, 64, 8, 2),
    ("forward_with_maximum", 256, 2): Tile(128, 32, 8, 2),
    ("query_gradient", 64, 2): Tile(64, 64, 4, 2),
    ("query_gradient", 128, 2): Tile(128, 64, 8, 2),
    ("query_gradient", 256, 2): Tile(128, 32, 8, 2),
    ("key_value_gradient", 64, 2): Tile(64, 128, 8, 2),
    ("key_value_gradient", 128, 2): Tile(32, 128, 8, 2),
    ("key_gradient", 256, 2): Tile(32, 128, 8, 2),
    ("value_gradient", 256, 2): Tile(64, 128, 8, 2),
    **_FLOAT32,
}
"""For Hopper: 227 KB of shared memory, and wgmma."""

BLACKWELL_TILES: Tiles = HOPPER_TILES | {("value_gradient", 256, 2): Tile(32, 128, 8, 2)}
"""For data-centre GPUs from Blackwell on; between its tensor memory and the arithmetic, more goes through registers."""

PORTABLE_TILES: Tiles = {
    ("forward", 64, 2): Tile(128, 32, 4, 3),
    ("forward", 128, 2): Tile(128, 64, 8, 2),
    ("forward", 256, 2): Tile(64, 32, 8, 2),
    ("query_gradient", 64, 2): Tile(64, 64, 4, 2),
    ("query_gradient", 128, 2): Tile(64, 64, 8, 2),
    ("query_gradient", 256, 2): Tile(32, 32, 8, 2),
    ("key_value_gradient", 64, 2): Tile(32, 64, 4, 2),
    ("key_value_gradient", 128, 2): Tile(64, 64, 8, 2),
    ("key_gradient", 256, 2): Tile(32, 32, 8, 2),
    ("value_gradient", 256, 2): Tile(32, 64, 8, 2),
    **_FLOAT32,
}
"""For every other GPU from Ampere on; within the 99 KB of shared memory that the smallest of them have."""

_HOPPER = re.compile(r"\b(H20|H100|H200|H800|GH200)\b")
_BLACKWELL = re.compile(r"\b(B100|B200|B300|GB200|GB300)\b")


def target_tiles() -> Tiles:
    """The tiles for the device in use: the abstract one while compiling ahead of time, else the first GPU."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    if device is None and jax.default_backend() == "gpu":
        device = jax.devices()[0]
    kind = "" if device is None else device.device_kind
    if _BLACKWELL.search(kind):
        return BLACKWELL_TILES
    return HOPPER_TILES if _HOPPER.search(kind) else PORTABLE_TILES


def has_tile(direction: Pass, head_dim: int, dtype) -> bool:
    """Whether this kernel is used for heads of this size."""
    return _key(direction, head_dim, dtype) in target_tiles()


def default_tile(direction: Pass, head_dim: int, dtype) -> Tile:
    """The tile for heads of this size; smaller heads take that of 64, and float64 (interpreted) that of float32."""
    return target_tiles()[_key(direction, head_dim, dtype)]


def _key(direction: Pass, head_dim: int, dtype) -> tuple[Pass, int, int]:
    return direction, max(head_dim, 64), min(jnp.dtype(dtype).itemsize, 4)


def compiler_params(tile: Tile) -> plgpu.CompilerParams:
    """What Triton is told about a tile."""
    return plgpu.CompilerParams(num_warps=tile.num_warps, num_stages=tile.num_stages)
