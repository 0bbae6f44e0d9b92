"""`zoo.train` with a chip that computes wrongly once: `python -m tests.multi_host.broken_chip PROCESS CALL ARGUMENTS`

On process PROCESS the CALL-th computation of a step turns over one bit of one parameter on the last local device.
"""

import dataclasses
import sys
from typing import Any

import jax
import numpy as np
from flax import nnx

from zoo.errors import run_command
from zoo.recipes import program
from zoo.train import main


def flip_one_bit(params: nnx.State) -> nnx.State:
    """The parameters with one bit of the first array turned over, on the last device of this process."""
    leaves, structure = jax.tree.flatten(params)
    shards = [np.array(shard.data) for shard in leaves[0].addressable_shards]
    shards[-1].view(np.uint32).reshape(-1)[0] ^= 1
    placed = [jax.device_put(data, shard.device) for data, shard in zip(shards, leaves[0].addressable_shards)]
    leaves[0] = jax.make_array_from_single_device_arrays(leaves[0].shape, leaves[0].sharding, placed)
    return jax.tree.unflatten(structure, leaves)


def break_step(process: int, call: int) -> None:
    """Puts the broken step in place of the one that `zoo.train` compiles."""
    compiled, calls = program.jit_train_step, []

    def jit_train_step(*arguments: Any, **options: Any) -> Any:
        step = compiled(*arguments, **options)

        def broken(state: Any, batch: Any) -> Any:
            calls.append(1)
            state, metrics = step(state, batch)
            if jax.process_index() == process and len(calls) == call:
                state = dataclasses.replace(state, params=flip_one_bit(state.params))
            return state, metrics

        return broken

    program.jit_train_step = jit_train_step


if __name__ == "__main__":
    break_step(int(sys.argv[1]), int(sys.argv[2]))
    run_command(lambda: main(sys.argv[3:]))
