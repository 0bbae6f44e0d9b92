"""Stage 0 and the updates of one family and seed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from experiments.continual_multilingual import languages as distance
from experiments.continual_multilingual.arms import Arm
from experiments.continual_multilingual.corpora import Corpus
from experiments.continual_multilingual.network import fisher_information, network_of
from experiments.continual_multilingual.rows import Encoded, Rows, joined
from experiments.continual_multilingual.sizes import Family, Size
from experiments.continual_multilingual.trainables import between
from experiments.continual_multilingual.trainer import (
    Plan,
    Programs,
    Trained,
    Weights,
    batches,
    by_language,
    half_and_half,
    start,
    train,
)
from experiments.runs import say, write_json
from zoo.errors import UserError
from zoo.training.parameters import flatten_with_names

FISHER_ROWS = 16
"""Rows whose gradients are in memory at once."""
WHOLE = "1"
"""Name of the whole change among strengths."""


@dataclass(frozen=True)
class Stage0:
    """What training on all languages came to."""

    judged: tuple[float, ...]
    """Mean over languages on development rows, at every check."""
    step: int
    """Of the weights that are kept."""
    loss: float
    """Mean of the last steps, nats."""
    seconds: float
    """Of everything."""
    parameters: int
    """Of the model."""


@dataclass(frozen=True)
class Update:
    """What one update did."""

    updated: tuple[str, ...]
    """Languages with new data."""
    rate: float
    """Learning rate."""
    pull: float
    """Strength of the penalty; 0 where there is none."""
    step: int
    """Of the weights that are kept."""
    trained: int
    """Numbers that trained."""
    dev_before: float
    """Mean over the updated languages, development rows."""
    dev_after: float
    """The same after the update."""
    after: dict[str, tuple[float, ...]]
    """Strength ("1": the whole change) -> score of each language on test rows, in the family's order."""
    errors: tuple[float, ...]
    """Standard errors of the whole change of each language, from the test rows, paired."""
    seconds: float
    """Of training, compilation included."""


def paired_error(before: Float[np.ndarray, "n 2"], after: Float[np.ndarray, "n 2"]) -> float:
    """Standard error of the difference of two shares sum(right) / sum(asked) of the same rows, a ratio's:

    sqrt(sum_i (d_i - D a_i)^2) / sum(a),     d_i = difference of right, a_i = asked, D = sum(d) / sum(a)
    """
    difference, asked = after[:, 0] - before[:, 0], after[:, 1]
    mean = difference.sum() / asked.sum()
    return float(np.sqrt(np.square(difference - mean * asked).sum()) / asked.sum())


class Session:
    """One family: data, programs, and the stage-0 model of one seed at a time."""

    def __init__(self, family: Family, size: Size, corpus: Corpus, data: Encoded):
        self.family, self.size, self.data = family, size, data
        self.distances = corpus.distances
        network = network_of(family, size, data.vocab_size, data.outputs, 0)
        self.programs = Programs(family, size, network, data.outputs)
        self.seed: int | None = None
        self.stage0: Stage0 | None = None

    def begin(self, seed: int, folder: Path) -> Stage0:
        """The stage-0 model of a seed: read from `folder`, or trained and kept there. Raises `UserError` if what is
        there is another model."""
        if self.seed == seed and self.stage0 is not None:
            return self.stage0
        network = network_of(self.family, self.size, self.data.vocab_size, self.data.outputs, seed)
        graphdef, base = nnx.split(network)
        names, structure = list(flatten_with_names(base)), jax.tree.structure(base)
        weights, told = folder / f"stage0-seed-{seed}.npz", folder / f"stage0-seed-{seed}.json"
        if weights.is_file() and told.is_file():
            with np.load(weights, allow_pickle=False) as file:
                arrays = [jnp.asarray(file[name]) for name in names if name in file]
            if [one.shape for one in arrays] != [leaf.shape for leaf in jax.tree.leaves(base)]:
                raise UserError(f"{weights.name} is another model: remove it, or give another --out")
            fields = json.loads(told.read_text())
            found = Stage0(**fields | {"judged": tuple(fields["judged"])})
            base = jax.tree.unflatten(structure, arrays)
        else:
            rows = self.data.stage0
            plan = Plan(
                rows,
                batches(len(rows), self.size.batch_size, seed),
                self.family.stage0_steps,
                self.family.stage0_rate,
                seed,
                self.size.stage0_checks,
                lambda weights: self.programs.share(weights, self.data.dev),
            )
            done = train(self.programs, start(self.programs, "full", base, seed), plan)
            base = done.weights.trained
            parameters = sum(leaf.size for leaf in jax.tree.leaves(base))
            found = Stage0(done.judged, done.step, done.loss, done.seconds, parameters)
            values = [np.asarray(leaf) for leaf in jax.tree.leaves(base)]
            np.savez(weights, allow_pickle=False, **dict(zip(names, values, strict=True)))
            write_json(asdict(found), told)
        self.seed, self.stage0, self.base, self.graphdef = seed, found, base, graphdef
        self.before = self.programs.counts(self._whole(base), self.data.test)
        self._fisher: Any = None
        self._kept: dict[Any, Trained] = {}
        shown = ", ".join(f"{one:.3f}" for one in found.judged)
        say(f"{self.family.name}, seed {seed}: stage 0 on development rows {shown} ({found.seconds:.0f} s)")
        return found

    def _whole(self, params: nnx.State) -> Weights:
        return Weights("full", params, None, nnx.State({}))

    def scores_before(self) -> dict[str, float]:
        """Of each language, on test rows."""
        return self._scores(self.before)

    def _scores(self, counts: Float[np.ndarray, "n 2"]) -> dict[str, float]:
        found = by_language(counts, self.data.test.language)
        return {name: round(found[number], 5) for number, name in enumerate(self.family.languages)}

    def gates(self, arm: Arm, updated: Sequence[int], control: int) -> Float[np.ndarray, "l r"] | None:
        """Of each language's bottleneck slots; None for arms without. control: seed of permuted distances."""
        if arm.kind != "bottleneck":
            return None
        size, count, slots = self.size, len(self.family.languages), 2 * self.size.width
        by_chance = "random" in (arm.sharing, arm.width_by)
        table = distance.permuted(self.distances, control) if by_chance else self.distances
        if arm.width_by:
            return distance.first_slots(count, distance.width_of(table, updated, size.widths), slots)
        if arm.sharing == "all":
            return distance.first_slots(count, size.width, slots)
        if arm.sharing == "own":
            weights = (np.arange(count)[:, None] == np.array(updated)[None]).astype(np.float64)
        else:
            weights = distance.shares(table, updated, size.least_share)
        return distance.slot_gates(weights, size.width, slots)

    def update(self, arm: Arm, number: int, rate: float, pull: float, *, measured: bool = True) -> Update:
        """Update `number` of the family with an arm. `begin` comes first. measured: also on test rows; a choice of
        rates does not look at them."""
        assert self.seed is not None
        names = self.family.subsets[number]
        updated = [self.family.languages.index(name) for name in names]
        gates = self.gates(arm, updated, 1000 * self.seed + number)
        weights = start(self.programs, arm.kind, self.base, self.seed, gates)
        dev = self.data.dev.of(updated)
        # Arms whose updated languages read the same slots train the same delta.
        same = None if gates is None else gates[updated].tobytes()
        key = (arm.kind, arm.data, arm.penalty, pull, number, rate, same)
        if key not in self._kept:
            rows, order, steps = self._rows(arm, updated, number)
            plan = Plan(
                rows, order, steps, rate, 1000 * self.seed + number, self.size.checks,
                lambda weights: self.programs.share(weights, dev), self._importance(arm), pull,
            )  # fmt: skip
            done = train(self.programs, weights, plan)
            if gates is None:
                self._kept = {}  # whole models are large, and no other arm trains the same
            self._kept[key] = done
        done = self._kept[key]
        weights = Weights(arm.kind, done.weights.trained, weights.base, weights.buffers, gates)
        after, errors = self._measured(arm, weights) if measured else ({}, ())
        return Update(
            updated=names,
            rate=rate,
            pull=pull,
            step=done.step,
            trained=trained_numbers(weights),
            dev_before=round(self.programs.share(self._whole(self.base), dev), 5),
            dev_after=round(max(done.judged), 5),
            after=after,
            errors=errors,
            seconds=round(done.seconds, 2),
        )

    def _rows(self, arm: Arm, updated: list[int], number: int) -> tuple[Rows, Iterator, int]:
        """(rows, order, steps) of an arm's training."""
        size, new, seed = self.size, self.data.new.of(updated), 1000 * (self.seed or 0) + number
        if arm.data == "new":
            return new, batches(len(new), size.batch_size, seed), size.steps
        rows = joined(new, self.data.stage0)
        if arm.data == "joint":
            return rows, batches(len(rows), size.batch_size, seed), size.joint_factor * size.steps
        half = size.batch_size // 2
        order = half_and_half(batches(len(new), half, seed), batches(len(self.data.stage0), half, seed + 1), len(new))
        return rows, order, size.steps

    def _importance(self, arm: Arm) -> Any:
        if not arm.penalty:
            return None
        if arm.penalty == "flat":
            return jax.tree.map(jnp.ones_like, self.base)
        if self._fisher is None:
            chosen = np.random.default_rng(self.seed).permutation(len(self.data.stage0))[: self.size.fisher_rows]
            rows = self.data.stage0.take(chosen)
            self._fisher = fisher_information(self.graphdef, self.base, rows.tokens, rows.labels, FISHER_ROWS)
        return self._fisher

    def _measured(self, arm: Arm, weights: Weights) -> tuple[dict[str, tuple[float, ...]], tuple[float, ...]]:
        counts = self.programs.counts(weights, self.data.test)
        found = {WHOLE: tuple(self._scores(counts).values())}
        for strength in self.size.strengths if arm.curve else ():
            part = self.programs.counts(weakened(weights, strength), self.data.test)
            found[f"{strength:g}"] = tuple(self._scores(part).values())
        language = self.data.test.language
        errors = [
            round(paired_error(self.before[language == one], counts[language == one]), 5)
            for one in range(len(self.family.languages))
        ]
        return found, tuple(errors)


def weakened(weights: Weights, strength: float) -> Weights:
    """A part of the change: of a whole model the weights between, of a bottleneck its gates times `strength`."""
    if weights.gates is not None:
        gates = (strength * weights.gates).astype(np.float32)
        return Weights(weights.kind, weights.trained, weights.base, weights.buffers, gates)
    if weights.kind != "full":
        raise ValueError(f"{weights.kind} has no parts here")
    return Weights("full", between(weights.base, weights.trained, strength), weights.base, weights.buffers)


def trained_numbers(weights: Weights) -> int:
    """How many trained; of a bottleneck those of the slots that any language reads."""
    total = sum(leaf.size for leaf in jax.tree.leaves(weights.trained))
    if weights.gates is None:
        return total
    slots = weights.gates.shape[1]
    return total * int((weights.gates > 0).any(0).sum()) // slots
