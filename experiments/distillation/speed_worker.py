"""python -m experiments.distillation.speed_worker: one of four programs of the study's sizes, timed on command."""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.distillation.sizes import SIZES, ModelSize, Size, model_of
from experiments.speed.worker import serve, timed
from experiments.speed.zoo_worker import next_token_batch
from zoo.models import build
from zoo.training.cached_teacher import cached_teacher_loss, with_teacher
from zoo.training.losses import next_token_loss
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.state import create_state
from zoo.training.step import LossFunction, jit_train_step, make_train_step
from zoo.training.teacher import DistillationConfig, fixed_teacher_loss
from zoo.training.top_k_distillation import top_k_of

STUDENT, TEACHER, ONLINE, CACHED = "student's step", "teacher's forward pass", "online step", "step from a cache"
KINDS = (STUDENT, TEACHER, ONLINE, CACHED)


class Programs:
    """One kind of program, for each student that is asked for; random weights and tokens, which do not change times."""

    def __init__(self, kind: str, size: Size):
        self._kind, self._size = kind, size
        self._runs: dict[int, Callable[[], Any]] = {}
        rng = np.random.default_rng(0)
        shape = (size.batch_size, size.sequence_length)
        self._batch = next_token_batch(rng.integers(3, size.vocab_size, shape, dtype=np.int32))

    def run(self, width: int, repeats: int) -> dict[str, float]:
        """Seconds of so many repetitions, one after the other; compiles before the first."""
        width = self._size.teacher.width if self._kind == TEACHER else width  # one program, whoever the student is
        if width not in self._runs:
            self._runs[width] = self._made(width)
            jax.block_until_ready(self._runs[width]())
        return timed(lambda: jax.block_until_ready([self._runs[width]() for _ in range(repeats)]))

    def _made(self, width: int) -> Callable[[], Any]:
        if self._kind == TEACHER:
            return forward(self._model(self._size.teacher), self._batch)
        (student,) = (model for model in self._size.students if model.width == width)
        if self._kind == STUDENT:
            return training(self._model(student), next_token_loss, self._batch)
        teacher, how = self._model(self._size.teacher), DistillationConfig()
        if self._kind == ONLINE:
            graphdef, params = nnx.split(teacher, nnx.Param)
            loss = partial(fixed_teacher_loss, teacher_graphdef=graphdef, config=how)
            return training(self._model(student), loss, self._batch, params)
        kept = top_k_of(teacher.hidden_states(self._batch.tokens), teacher.output_embedding(), self._size.kept_words)
        half = kept._replace(log_probabilities=kept.log_probabilities.astype(jnp.float16))  # as a cache has them
        batch = with_teacher(self._batch, jax.device_get(half))
        return training(self._model(student), partial(cached_teacher_loss, config=how), batch)

    def _model(self, size: ModelSize) -> Any:
        return build(model_of(size, self._size.vocab_size, self._size.sequence_length), rngs=nnx.Rngs(size.width))


def forward(model: Any, batch: Any) -> Callable[[], Any]:
    """A function that gives the logits of a batch."""
    graphdef, params = nnx.split(model, nnx.Param)

    @jax.jit
    def logits(params: Any, batch: Any) -> jax.Array:
        guide = nnx.merge(graphdef, params)
        return guide(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids)

    return lambda: logits(params, batch)


def training(model: Any, loss: LossFunction, batch: Any, teacher: Any = None) -> Callable[[], Any]:
    """A function that takes one more training step and gives its loss."""
    graphdef, params = nnx.split(model, nnx.Param)
    config = OptimizerConfig(schedule="constant")
    optimizer = make_optimizer(config, 1, params)
    state = create_state(params, optimizer)
    step = jit_train_step(make_train_step(graphdef, loss, optimizer, schedule=make_schedule(config, 1)), state)

    def run() -> Any:
        nonlocal state
        state, metrics = step(state, batch) if teacher is None else step(state, batch, teacher)
        return metrics["loss"]

    return run


def main() -> None:
    """Arguments: the size and the number of the kind."""
    size, kind = sys.argv[1:]
    serve({"run": Programs(KINDS[int(kind)], SIZES[size]).run})


if __name__ == "__main__":
    main()
