"""Training of a network on bags, the choice of its epoch on val, and scores."""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from experiments.relation_extraction.arms import Size
from experiments.relation_extraction.inputs import Bags, Batch, Layout, grouped
from experiments.relation_extraction.metrics import Scored, area, curve_of
from experiments.relation_extraction.neural import FROZEN, Network, loss_sums
from experiments.relation_extraction.reader import Relations
from experiments.runs import say
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.parameters import flatten_with_names
from zoo.training.state import create_state
from zoo.training.step import jit_train_step, make_train_step


@dataclass(frozen=True)
class Trained:
    """A network as it was after its best epoch."""

    params: Any
    """Its weights."""
    scores: "Scores"
    """Scores bags with such weights."""
    epochs: tuple[tuple[float, float], ...]
    """(mean training loss in nats per bag, area on val) of every epoch."""
    best: int
    """Number of the epoch whose area is the largest, from 1; the earliest of several."""
    seconds: float
    """Of everything, compilation included."""

    def scored(self, bags: Bags) -> Scored:
        """The bags in their order, their sentences in the order of the seed."""
        return self.scores(self.params, bags)


class Scores:
    """Scores bags with a network's weights, which may change; compiles once for each shape."""

    def __init__(self, graphdef: Any, layout: Layout, relations: Relations, seed: int):
        self._layout, self._relations, self._seed = layout, relations, seed
        self._run = jax.jit(lambda params, batch: nnx.merge(graphdef, params).scores(batch))

    def __call__(self, params: Any, bags: Bags) -> Scored:
        """The bags in their order."""
        scores: Float[np.ndarray, "bags relations"] = np.zeros(bags.labels.shape, np.float64)
        examples, count = bags.examples(True, self._relations), bags.size.batch_bags
        for chosen in grouped(bags, examples, self._layout, count, None):
            batch = bags.batch(chosen, self._layout, count, seed=self._seed, epoch=None)
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


def train(network: Network, layout: Layout, train: Bags, val: Bags, relations: Relations, seed: int) -> Trained:
    """Trains for `Size.epochs` epochs; uses up the network's weights. FloatingPointError if a loss is not finite."""
    began = time.perf_counter()
    size = train.size
    graphdef, params = nnx.split(network, nnx.Param)
    examples = train.examples(layout.passages, relations)
    per_epoch = sum(1 for _ in grouped(train, examples, layout, size.batch_bags, None))
    steps = size.epochs * per_epoch
    config = optimizer_of(size, steps)
    names = flatten_with_names(params)
    frozen = FROZEN if any(name.startswith(f"{FROZEN[0]}/") for name in names) else ()
    optimizer = make_optimizer(config, steps, params, frozen)
    state = create_state(params, optimizer, seed=seed)
    step = make_train_step(
        graphdef,
        loss_sums,
        optimizer,
        schedule=make_schedule(config, steps),
        frozen_patterns=frozen,
        stochastic=True,
        count_tokens=lambda batch: jnp.count_nonzero(batch.segment_ids).astype(jnp.int32),
    )
    run, scores = jit_train_step(step, state), Scores(graphdef, layout, relations, seed)
    found: list[tuple[float, float]] = []
    best, kept = 0, None
    for epoch in range(size.epochs):
        losses, weights = list[Any](), list[Any]()
        for batch in batches_of(train, examples, layout, seed, epoch):
            state, metrics = run(state, batch)
            losses.append(metrics["loss"])
            weights.append(metrics["weight"])
        loss = float(np.average(jax.device_get(losses), weights=jax.device_get(weights)))
        if not np.isfinite(loss):
            raise FloatingPointError(f"epoch {epoch + 1}: a loss is not finite")
        found.append((loss, area(curve_of(scores(state.params, val)))))
        if kept is None or found[-1][1] > found[best][1]:
            best, kept = epoch, jax.device_get(state.params)
        seconds = time.perf_counter() - began
        say(f"epoch {epoch + 1}/{size.epochs}: {loss:.4f} nats per bag, area on val {found[-1][1]:.4f}, "
            f"{seconds:.0f} s, {seconds / (epoch + 1) * (size.epochs - epoch - 1):.0f} s to go")  # fmt: skip
    return Trained(kept, scores, tuple(found), best + 1, time.perf_counter() - began)


def batches_of(bags: Bags, examples: list[tuple[int, int]], layout: Layout, seed: int, epoch: int) -> Any:
    """The batches of an epoch, sentences and bags in an order of its own."""
    random = np.random.default_rng([seed, 3, epoch])
    for chosen in grouped(bags, examples, layout, bags.size.batch_bags, random):
        batch: Batch = bags.batch(chosen, layout, bags.size.batch_bags, seed=seed, epoch=epoch)
        yield batch
