"""Validation: the loss per token and, comparable between tokenizers, the bits per byte of text."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Int

from zoo.parallel.rows import to_devices
from zoo.training.step import LossFunction, make_eval_step


def make_evaluation(
    graphdef: nnx.GraphDef | None,
    loss_fn: LossFunction,
    batches: Iterable[Any],
    sharding: NamedSharding,
    token_bytes: Int[np.ndarray, "vocab"] | None = None,
    teacher: Any = None,
) -> Callable[[Any], Mapping[str, float]]:
    """A function from parameters to

        validation_loss            sum of weight * cross-entropy / sum of weight, in nats per token
        validation_bits_per_byte   the same sum in bits / bytes of text that the weighted targets stand for
        validation_NAME            of every metric of the loss (`LossSums.metrics`): sum / sum of weight

    over all `batches` (numpy, kept on the host). Without batches it gives an empty mapping; without `token_bytes`, the
    number of bytes that each token stands for, no bits per byte. `teacher` is given to the loss, if it is not None.
    """
    batches = list(batches)
    eval_step = make_eval_step(graphdef, loss_fn)
    lengths = jnp.asarray([0] if token_bytes is None else token_bytes, jnp.float32)

    @jax.jit
    def count_bytes(batch: Any) -> Array:
        # The vocabulary of the model may be larger than the tokenizer's; such a target stands for no text.
        bytes_of = lengths.at[batch.targets].get(mode="fill", fill_value=0)
        return jnp.sum(jnp.where(batch.loss_weights > 0, bytes_of, 0))

    def evaluate(params: Any) -> Mapping[str, float]:
        sums, metrics = [0.0, 0.0, 0.0], dict[str, float]()
        for rows in batches:
            batch = to_devices(rows, sharding)
            result = eval_step(params, batch) if teacher is None else eval_step(params, batch, teacher)
            numbers = (result.loss, result.weight, count_bytes(batch))
            sums = [total + float(number) for total, number in zip(sums, numbers, strict=True)]
            for name, value in result.metrics.items():
                metrics[name] = metrics.get(name, 0.0) + float(value)
        loss, weight, num_bytes = sums
        found = {}
        if weight:
            found["validation_loss"] = loss / weight
            found |= {f"validation_{name}": total / weight for name, total in metrics.items()}
        if num_bytes:
            found["validation_bits_per_byte"] = loss / math.log(2) / num_bytes
        return found

    return evaluate
