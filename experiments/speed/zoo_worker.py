"""The zoo's side: its training step, its forward pass and its `generate`, as their users call them."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import zoo
from experiments.speed.worker import matmul_rate, peak_bytes, serve, timed
from experiments.speed.workload import Workload
from zoo.data import Batch
from zoo.inference import generate
from zoo.training.losses import next_token_loss
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.state import create_state
from zoo.training.step import jit_train_step, make_train_step


class Trainer:
    """Model and optimizer in training."""

    def __init__(self, model: Any, workload: Any, *, stochastic: bool = False):
        """workload: its shapes and learning rate. stochastic: as for `make_train_step`."""
        config = OptimizerConfig(learning_rate=workload.learning_rate, schedule="constant", clip_norm=None)
        graphdef, params = nnx.split(model, nnx.Param)
        optimizer = make_optimizer(config, 1000, params)
        self.state = create_state(params, optimizer)
        schedule = make_schedule(config, 1000)
        step = make_train_step(graphdef, next_token_loss, optimizer, schedule=schedule, stochastic=stochastic)
        self._batch = next_token_batch(workload.tokens(workload.batch_size, workload.length, model.config.vocab_size))
        self._step = jit_train_step(step, self.state)

    def step(self) -> float:
        """One update; returns the loss before it."""
        self.state, self.metrics = self._step(self.state, self._batch)
        return float(self.metrics["loss"])


def next_token_batch(tokens: np.ndarray) -> Batch:
    """Whole rows of one document each: the last token of a row has no target."""
    weights = np.ones(tokens.shape, np.float32)
    weights[:, -1] = 0
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return Batch(
        tokens=tokens,
        targets=np.roll(tokens, -1, axis=1),
        positions=np.ascontiguousarray(positions),
        segment_ids=np.ones_like(tokens),
        loss_weights=weights,
    )


def product_rate(size: int) -> float:
    """FLOP/s of a large float32 product."""
    left = jax.random.normal(jax.random.key(0), (size, size))
    multiply = jax.jit(lambda x: jnp.matmul(x, x, precision=jax.lax.Precision.HIGHEST))
    return matmul_rate(lambda: multiply(left).block_until_ready(), size)


class Commands:
    """What the parent may ask for; either the trainer or the model is in memory, never both."""

    def __init__(self, folder: Path, workload: Workload):
        self._folder, self._workload = folder, workload
        self._trainer: Trainer | None = None

    def losses(self, steps: int) -> list[float]:
        """Losses of the first steps."""
        self._trainer = Trainer(zoo.load(self._folder).model, self._workload)
        return [self._trainer.step() for _ in range(steps)]

    def train(self) -> dict[str, float]:
        """One timed training step."""
        assert self._trainer
        return timed(self._trainer.step)

    def peak_memory(self) -> int:
        """Largest resident memory so far, in bytes."""
        return peak_bytes()

    def matmul(self, size: int) -> float:
        """Rate of a large float32 product."""
        return product_rate(size)

    def load(self) -> None:
        """Drops the trainer and loads the initial model."""
        self._trainer = None
        self._model = zoo.load(self._folder).model
        graphdef, self._params = nnx.split(self._model)
        self._logits = jax.jit(lambda params, tokens: nnx.merge(graphdef, params)(tokens))

    def logits(self, out: str) -> None:
        """Writes the logits of the training tokens."""
        np.save(out, self._logits(self._params, self._tokens()))

    def forward(self) -> dict[str, float]:
        """One timed forward pass to all logits."""
        return timed(lambda: self._logits(self._params, self._tokens()).block_until_ready())

    def decode(self, batch_size: int, out: str) -> dict[str, float]:
        """Timed prefill and greedy decoding; writes the new tokens."""
        w = self._workload
        prompts = w.tokens(batch_size, w.prompt_length, self._model.config.vocab_size)
        new: list[np.ndarray] = []
        seconds = timed(lambda: new.append(generate(self._model, prompts, max_new_tokens=w.new_tokens)))
        np.save(out, new[0])
        return seconds

    def _tokens(self) -> np.ndarray:
        w = self._workload
        return w.tokens(w.batch_size, w.length, self._model.config.vocab_size)


def main() -> None:
    from experiments.speed.workload import FULL, QUICK

    folder, size = sys.argv[1:]
    commands = Commands(Path(folder), {"full": FULL, "quick": QUICK}[size])
    names = ("losses", "train", "peak_memory", "matmul", "load", "logits", "forward", "decode")
    serve({name: getattr(commands, name) for name in names})


if __name__ == "__main__":
    main()
