"""Training of a network on bags, the choice of its epoch on val, and scores."""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Float

from experiments.relation_extraction.arms import Size
from experiments.relation_extraction.inputs import Bags, Batch, Layout, grouped
from experiments.relation_extraction.metrics import Scored, area, curve_of
from experiments.relation_extraction.neural import FROZEN, Network, loss_sums
from experiments.relation_extraction.reader import Relations
from experiments.runs import say
from experiments.updates import scale_updates
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.parameters import flatten_with_names
from zoo.training.state import abstract_state, create_state
from zoo.training.step import jit_train_step, make_train_step

ENCODER = "encoder/"
"""What names of an encoder's parameters begin with."""


@dataclass(frozen=True)
class Trained:
    """A network as it was after its best epoch."""

    params: Any
    """Its weights."""
    scores: "Scores"
    """Scores bags with such weights."""
    seed: int
    """Of the order of the sentences in what is scored."""
    epochs: tuple[tuple[float, float], ...]
    """(mean training loss in nats per bag, area on val) of every epoch."""
    best: int
    """Number of the epoch whose area is the largest, from 1; the earliest of several."""
    seconds: float
    """Processor time of everything, of compilation where it is an arm's first run in this process."""

    def scored(self, bags: Bags) -> Scored:
        """The bags in their order, their sentences in the order of the seed."""
        return self.scores(self.params, bags, self.seed)


class Scores:
    """Scores bags with a network's weights, which may change; compiles once for each shape."""

    def __init__(self, graphdef: Any, layout: Layout, relations: Relations):
        self._layout, self._relations = layout, relations
        self._run = jax.jit(lambda params, batch: nnx.merge(graphdef, params).scores(batch))

    def __call__(self, params: Any, bags: Bags, seed: int) -> Scored:
        """The bags in their order, their sentences in that of the seed."""
        scores: Float[np.ndarray, "bags relations"] = np.zeros(bags.labels.shape, np.float64)
        examples, count = bags.examples(True, self._relations), bags.size.batch_bags
        for chosen in grouped(bags, examples, self._layout, count, None):
            batch = bags.batch(chosen, self._layout, count, seed=seed, epoch=None)
            found = np.asarray(self._run(params, batch))
            scores[[index for index, _ in chosen]] = found[: len(chosen)]
        return Scored(scores, bags.labels, self._relations.positive)


def optimizer_of(size: Size, steps: int) -> OptimizerConfig:
    """AdamW with BERT's second decay, a linear warm-up, then a cosine to 0."""
    return OptimizerConfig(
        learning_rate=size.learning_rate,
        warmup_steps=max(1, round(size.warmup_share * steps)),
        final_learning_rate_fraction=0.0,
        b2=0.999,
        weight_decay=size.weight_decay,
    )


def is_of_the_head(name: str) -> bool:
    """Whether a parameter stands on the encoder."""
    return not name.startswith(ENCODER)


class Training:
    """An arm's training on the same bags with any seed: the seeds share the compiled programs, which take longer to
    compile than an epoch of a small corpus takes to train."""

    def __init__(self, layout: Layout, train: Bags, val: Bags, relations: Relations):
        self._layout, self._train, self._val, self._relations = layout, train, val, relations
        self._examples = train.examples(layout.passages, relations)
        self._programs: Any = None

    def __call__(self, network: Network, seed: int) -> Trained:
        """Trains for `Size.epochs` epochs; uses up the network's weights. FloatingPointError: a loss is not finite."""
        began = time.process_time()
        size = self._train.size
        graphdef, params = nnx.split(network, nnx.Param)
        if self._programs is None:
            self._programs = self._built(graphdef, params)
        optimizer, run, scores = self._programs
        state = create_state(params, optimizer, seed=seed)
        found: list[tuple[float, float]] = []
        best, kept = 0, None
        for epoch in range(size.epochs):
            losses, weights = list[Any](), list[Any]()
            for batch in batches_of(self._train, self._examples, self._layout, seed, epoch):
                state, metrics = run(state, batch)
                losses.append(metrics["loss"])
                weights.append(metrics["weight"])
            loss = float(np.average(jax.device_get(losses), weights=jax.device_get(weights)))
            if not np.isfinite(loss):
                raise FloatingPointError(f"epoch {epoch + 1}: a loss is not finite")
            found.append((loss, area(curve_of(scores(state.params, self._val, seed)))))
            if kept is None or found[-1][1] > found[best][1]:
                best, kept = epoch, jax.device_get(state.params)
            seconds = time.process_time() - began
            say(f"epoch {epoch + 1}/{size.epochs}: {loss:.4f} nats per bag, area on val {found[-1][1]:.4f}, "
                f"{seconds:.0f} s of processor time")  # fmt: skip
        return Trained(kept, scores, seed, tuple(found), best + 1, time.process_time() - began)

    def _built(self, graphdef: Any, params: Any) -> tuple[Any, Any, Scores]:
        """(optimizer, compiled step, scores), which depend on shapes alone."""
        size = self._train.size
        per_epoch = sum(1 for _ in grouped(self._train, self._examples, self._layout, size.batch_bags, None))
        steps = size.epochs * per_epoch
        config = optimizer_of(size, steps)
        frozen = FROZEN if any(name.startswith(f"{FROZEN[0]}/") for name in flatten_with_names(params)) else ()
        faster_head = scale_updates(size.head_rate, is_of_the_head)
        optimizer = optax.chain(make_optimizer(config, steps, params, frozen), faster_head)
        step = make_train_step(
            graphdef,
            loss_sums,
            optimizer,
            schedule=make_schedule(config, steps),
            frozen_patterns=frozen,
            stochastic=True,
            count_tokens=lambda batch: jnp.count_nonzero(batch.segment_ids).astype(jnp.int32),
        )
        run = jit_train_step(step, abstract_state(params, optimizer))
        return optimizer, run, Scores(graphdef, self._layout, self._relations)


def batches_of(bags: Bags, examples: list[tuple[int, int]], layout: Layout, seed: int, epoch: int) -> Any:
    """The batches of an epoch, sentences and bags in an order of its own."""
    random = np.random.default_rng([seed, 3, epoch])
    for chosen in grouped(bags, examples, layout, bags.size.batch_bags, random):
        batch: Batch = bags.batch(chosen, layout, bags.size.batch_bags, seed=seed, epoch=epoch)
        yield batch
