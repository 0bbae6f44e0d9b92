"""The skeleton of the Hopper kernels: one warpgroup fills rings of blocks in shared memory, two others empty them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

CONSUMERS = 2
"""Warpgroups that compute."""
_CONSUMER_REGISTERS, _PRODUCER_REGISTERS = 240, 24
"""Registers per thread; (2 * 240 + 24) * 128 threads fit the 65,536 of a multiprocessor."""


@dataclass(frozen=True)
class Ring:
    """Slots of shared memory that hold the blocks of consecutive steps; inside a kernel its fields are references."""

    slots: Any
    """[stages, *block]."""
    filled: Any
    """Barriers, one per slot: the copy into it has arrived."""
    freed: Any
    """Barriers, one per slot: both consumers have read it."""

    def wait(self, step):
        """The block of this step, once it has arrived."""
        plgpu.barrier_wait(self.filled.at[self._slot(step)])
        return self.slots.at[self._slot(step)]

    def free(self, step):
        """A consumer's last word about the block of this step."""
        plgpu.barrier_arrive(self.freed.at[self._slot(step)])

    def fill(self, step, steps, source):
        """Of the producer: step 0, 1, ... steps + stages - 1, in order."""
        stages = self.slots.shape[0]

        @pl.when((step >= stages) & (step < steps + stages))
        def _wait():
            plgpu.barrier_wait(self.freed.at[self._slot(step)])

        @pl.when(step < steps)
        def _copy():
            plgpu.copy_gmem_to_smem(source, self.slots.at[self._slot(step)], self.filled.at[self._slot(step)])

    def _slot(self, step):
        stages = self.slots.shape[0]
        return jax.lax.rem(step, jnp.int32(stages)) if stages > 1 else afresh(0)


jax.tree_util.register_dataclass(Ring, ["slots", "filled", "freed"], [])


def matrices(count: int, rows: int, columns: int, dtype, interpret: bool):
    """Shared memory for `count` operands of wgmma, in the layout that it reads without bank conflicts."""
    transforms = () if interpret else (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, rows, columns), dtype, transforms=transforms)


def ring(slots) -> Ring:
    """A ring of `slots`, with its barriers, to be allocated."""
    stages = slots.shape[0]
    return Ring(slots, plgpu.Barrier(num_barriers=stages), plgpu.Barrier(num_arrivals=CONSUMERS, num_barriers=stages))


def run(
    thread_block: Callable[..., None],
    operands: Sequence[jax.Array],
    results: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[Any],
    grid: tuple[int, int, int],
    interpret: Any,
    name: str,
) -> Any:
    """Runs `thread_block(*operands, *results, *scratch)`, all references, over a grid of (heads, blocks, batch)."""

    def entry(*refs):
        pl.run_scoped(partial(thread_block, *refs), *scratch, collective_axes="warpgroup")

    return plgpu.kernel(
        entry,
        out_type=tuple(results),
        grid=grid,
        grid_names=("heads", "block", "batch"),
        num_threads=CONSUMERS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane),
        kernel_name=name,
        interpret=interpret,
    )(*operands)


def program() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(heads, block, batch, warpgroup) of the running program."""
    head, block, row, warpgroup = map(jax.lax.axis_index, ("heads", "block", "batch", "warpgroup"))
    return head, block, row, warpgroup


def consumer(warpgroup, body: Callable[[], None], only: int | None = None) -> None:
    """Runs `body` on both consumers, or on number `only`."""

    @pl.when(warpgroup < CONSUMERS if only is None else warpgroup == only)
    def _():
        plgpu.set_max_registers(_CONSUMER_REGISTERS, action="increase")
        body()


def producer(
    warpgroup,
    rings: Sequence[Ring],
    steps,
    sources: Callable[[Any], Sequence[Any]],
    start: Callable[[], None] = lambda: None,
) -> None:
    """After `start()`, fills the rings with the blocks `sources(step)` of all steps.

    The last rounds copy nothing: they see every block freed before the thread block ends.
    """

    @pl.when(warpgroup == CONSUMERS)
    def _():
        plgpu.set_max_registers(_PRODUCER_REGISTERS, action="decrease")
        start()

        @pl.loop(0, steps + max(each.slots.shape[0] for each in rings))
        def _(step):
            for each, source in zip(rings, sources(step), strict=True):
                each.fill(step, steps, source)


def afresh(index):
    """The same index to shared memory, but the compiler cannot move what depends on it out of a loop.

    It would: the addresses of the 16 slices of one operand of a wgmma take 32 registers then, and others are spilled.
    """
    return jax.lax.optimization_barrier(jnp.int32(index))


def own(ref, row):
    """Index of a sequence in an array that all sequences may share."""
    return row if ref.shape[0] > 1 else 0


def block_range(ranges, row, block):
    """(first, number of blocks to visit, function of a block: does it need a mask) from [B or 1, blocks, 4]."""
    first, last, first_full, last_full = (ranges[own(ranges, row), block, i] for i in range(4))
    return first, last - first + 1, lambda other: (other < first_full) | (other > last_full)
