"""Training of one stage, and how well its rows are answered."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from experiments.long_context_recall.haystacks import Haystack
from experiments.long_context_recall.training.curriculum import Stage, Workload, model_of, optimizer_of
from experiments.long_context_recall.training.documents import Rows, Wording, batch_of, draw_rows
from experiments.long_context_recall.training.keys import KeyKind
from experiments.matching import begin_queries_like_keys
from experiments.runs import say
from experiments.updates import scale_updates
from zoo.data import Batch
from zoo.models import build
from zoo.training.losses import next_token_loss
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.state import create_state
from zoo.training.step import jit_train_step, make_train_step

SAID_EVERY = 50
"""Steps between two lines of progress."""
EMBEDDING = "embedder/embedding"
"""Name of the embedding among the parameters."""


@dataclass(frozen=True)
class Trained:
    """One attempt at a stage."""

    model: Any
    """With its weights."""
    losses: tuple[tuple[int, float], ...]
    """(step, mean loss of the steps since the one before, in nats per unit of weight)."""
    seconds: float
    """Of all steps, the first left out, which compiles."""
    tokens: int
    """Read, without padding."""


class Steps:
    """The steps of one attempt at a stage, said as they go, and what they were like."""

    def __init__(self, stage: str, count: int, said_every: int = SAID_EVERY):
        self.stage, self.count, self.said_every = stage, count, said_every
        self.losses: list[tuple[int, float]] = []
        """(step, mean loss of the steps since the one before)."""
        self.seconds = 0.0
        """Of all steps, the first left out, which compiles."""
        self.tokens = 0
        """Read, without padding."""

    def run(self, step: Callable[[Any, Batch], tuple[Any, Any]], state: Any, draw: Callable[[], Batch]) -> Any:
        """The state after all steps. Raises FloatingPointError if a loss or its gradient is not finite."""
        losses, began = list[float](), time.perf_counter()
        for number in range(1, self.count + 1):
            batch = draw()
            state, metrics = step(state, batch)
            if not metrics["finite"]:
                raise FloatingPointError(f"stage {self.stage}, step {number}: the loss or its gradient is not finite")
            losses.append(float(metrics["loss"]))
            self.tokens += int(np.asarray(batch.segment_ids).sum())
            if number == 1:
                began = time.perf_counter()
            self.seconds = time.perf_counter() - began
            if number % self.said_every == 0 or number == self.count:
                self.losses.append((number, float(np.mean(losses[self.losses[-1][0] if self.losses else 0 :]))))
                each = self.seconds / max(number - 1, 1)
                say(f"{self.stage}: step {number}/{self.count}  loss {self.losses[-1][1]:.4f}  {each:.3f} s a step, "
                    f"{each * (self.count - number):.0f} s to go")  # fmt: skip
        return state


def new_model(workload: Workload, seed: int) -> Any:
    """Random weights; queries of global layers are begun like their keys (`Workload.query_like_key`)."""
    model = build(model_of(workload, workload.stages[0].window), rngs=nnx.Rngs(seed))
    begin_queries_like_keys(model, workload.query_like_key)
    return model


def with_window(model: Any, workload: Workload, window: int) -> Any:
    """The same weights in a model whose local layers have another window."""
    config = model_of(workload, window)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))), nnx.Param)
    return nnx.merge(graphdef, nnx.state(model, nnx.Param))


def train_stage(model: Any, workload: Workload, stage: Stage, draw: Callable[[], Rows], seed: int, pad: int) -> Trained:
    """One attempt. The model's weights are used up."""
    model = with_window(model, workload, stage.window)
    graphdef, params = nnx.split(model, nnx.Param)
    config = optimizer_of(stage)
    slower_embedding = scale_updates(workload.embedding_rate, EMBEDDING.__eq__)
    optimizer = optax.chain(make_optimizer(config, stage.steps, params), slower_embedding)
    state = create_state(params, optimizer, seed=seed)
    step = make_train_step(graphdef, next_token_loss, optimizer, schedule=make_schedule(config, stage.steps))
    run = jit_train_step(step, state)
    steps = Steps(stage.name, stage.steps)
    state = steps.run(run, state, lambda: batch_of(draw(), pad))
    return Trained(nnx.merge(graphdef, state.params), tuple(steps.losses), steps.seconds, steps.tokens)


@dataclass(frozen=True)
class Answered:
    """How questions were answered."""

    right: int
    """All digits, each the likeliest after those before it: what greedy writing gives."""
    first: int
    """The first digit."""
    questions: int
    """How many."""

    @property
    def recall(self) -> float:
        """Part that is right."""
        return self.right / max(self.questions, 1)


@partial(jax.jit, static_argnums=0)
def _likeliest(graphdef: Any, params: Any, batch: Any) -> jax.Array:
    model = nnx.merge(graphdef, params)
    logits = model(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids)
    return logits.argmax(-1)


def answered(
    model: Any, words: Wording, hay: Haystack, stage: Stage, kinds: Sequence[KeyKind], batches: int, seed: int
) -> Answered:
    """Rows of a stage with keys of other kinds; positions rise by one."""
    graphdef, params = nnx.split(model, nnx.Param)
    random, counts = np.random.default_rng([seed, 2]), np.zeros(3, int)
    for _ in range(batches):
        rows = draw_rows(words, hay, replace(stage, reach=0), random, kinds)
        found = np.asarray(_likeliest(graphdef, params, batch_of(rows, words.tokenizer.pad_id)))
        counts += count_right(rows, found)
    right, first, questions = counts.tolist()
    return Answered(right, first, questions)


def count_right(rows: Rows, found: np.ndarray) -> np.ndarray:
    """(all digits right, first digit right, questions), given the likeliest token after each one that was read."""
    right = first = questions = 0
    for tokens, answers, likeliest in zip(rows.tokens, rows.answers, found, strict=True):
        for question in range(1, int(answers.max()) + 1):
            where = np.flatnonzero(answers == question)
            if len(where):
                same = likeliest[where - 1] == tokens[where]
                right, first, questions = right + same.all(), first + same[0], questions + 1
    return np.array([right, first, questions])
