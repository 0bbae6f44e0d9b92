"""Training of one stage, with the encoders or on their kept soft tokens, and how well rows are answered."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.long_context_recall.media_training.curriculum import Stage, optimizer_of
from experiments.long_context_recall.media_training.material import Bank
from experiments.long_context_recall.media_training.rows import Layout, bank_of, batch_of, draw_picks
from experiments.long_context_recall.training.trainer import Steps, Trained
from zoo.data import Batch
from zoo.models.gemini import Gemini
from zoo.nn import place_soft_tokens
from zoo.training.losses import next_token_loss
from zoo.training.optimizer import make_optimizer, make_schedule
from zoo.training.state import create_state
from zoo.training.step import jit_train_step, make_train_step

SAID_EVERY = 25
"""Steps between two lines of progress."""
ENCODED = 64
"""Items that are encoded at a time."""
ENCODERS = ("vision", "vision_projector", "audio", "audio_projector")
"""Modules that make soft tokens."""

SoftBanks = tuple[np.ndarray, np.ndarray]
"""Soft tokens of (plain, needles), each float32 [items, U, tokens, D]."""


class Reader(Gemini):
    """The decoder of a Gemini, which is given soft tokens (`SoftRows`) in place of media."""

    def embed(self, tokens: Any, media: Any) -> Any:
        """Words and, at their places, the soft tokens."""
        x = self.embedder.encode(tokens)
        return x if media is None else place_soft_tokens(x, media.soft, media.slots)


def reader_of(model: Gemini) -> Reader:
    """The same decoder weights, without encoders."""
    config = replace(model.config, vision=None, audio=None)
    made = nnx.eval_shape(lambda: Reader(config, execution=model.execution, rngs=nnx.Rngs(0)))
    graphdef, wanted = nnx.split(made, nnx.Param)
    own = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
    return nnx.merge(graphdef, nnx.from_flat_state([(path, own[path]) for path, _ in nnx.to_flat_state(wanted)]))


def soft_bank(model: Gemini, bank: Bank, coordinates: np.ndarray | None) -> np.ndarray:
    """float32 soft tokens [items, U, tokens, D] of a bank, as `Gemini.embed` makes them."""
    encode = _encode_images if bank.real is None else _encode_clips
    graphdef, params = nnx.split(model, nnx.Param)
    items, units = bank.values.shape[:2]
    values = bank.values.reshape(items * units, *bank.values.shape[2:])
    other = coordinates if bank.real is None else bank.real.reshape(items * units, -1)
    found = []
    for start in range(0, len(values), ENCODED):
        part = values[start : start + ENCODED]
        missing = ENCODED - len(part)
        padded = np.pad(part, ((0, missing), *[(0, 0)] * (part.ndim - 1)))
        if bank.real is None:
            beside = np.broadcast_to(other, (ENCODED, *other.shape))  # type: ignore[union-attr,arg-type]
        else:
            beside = np.pad(other[start : start + ENCODED], ((0, missing), (0, 0)))  # type: ignore[index]
        found.append(np.asarray(encode(graphdef, params, padded, beside))[: len(part)])
    soft = np.concatenate(found)
    return soft.reshape(items, units, *soft.shape[1:])


@partial(jax.jit, static_argnums=0)
def _encode_images(graphdef: Any, params: Any, patches: jax.Array, coordinates: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, params)
    pixels = patches.astype(jnp.float32) / 127.5 - 1
    return model.vision_projector(model.vision.encode_patches(pixels, coordinates, None))


@partial(jax.jit, static_argnums=0)
def _encode_clips(graphdef: Any, params: Any, mel: jax.Array, real: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, params)
    encoded, _ = model.audio.encode_clips(mel.astype(jnp.float32)[:, None], real[:, None])
    return model.audio_projector(encoded[:, 0])


def soft_banks(model: Gemini, layout: Layout, stage: Stage) -> SoftBanks:
    """Of everything that the rows of a stage are made of."""
    material = layout.material
    plain, needles = (
        soft_bank(model, bank, material.coordinates) for bank in (material.plain, bank_of(material, stage))
    )
    return plain, needles


def train_stage(model: Gemini, layout: Layout, stage: Stage, random: np.random.Generator, seed: int) -> Trained:
    """One attempt. The model's weights are used up."""
    soft = None if stage.encoders else soft_banks(model, layout, stage)
    learner = model if stage.encoders else reader_of(model)
    resting = None if stage.encoders else encoder_params(model)
    graphdef, params = nnx.split(learner, nnx.Param)
    config = optimizer_of(stage)
    optimizer = make_optimizer(config, stage.steps, params)
    state = create_state(params, optimizer, seed=seed)
    step = make_train_step(graphdef, next_token_loss, optimizer, schedule=make_schedule(config, stage.steps))
    run = jit_train_step(step, state)
    steps = Steps(stage.name, stage.steps, SAID_EVERY)
    state = steps.run(run, state, lambda: batch_of(layout, stage, draw_picks(layout, stage, random), soft, random))
    trained = state.params if resting is None else joined(state.params, resting)
    whole = nnx.split(nnx.eval_shape(lambda: Gemini(model.config, execution=model.execution, rngs=nnx.Rngs(0))))[0]
    return Trained(nnx.merge(whole, trained), tuple(steps.losses), steps.seconds, steps.tokens)


def encoder_params(model: Gemini) -> Any:
    """What `reader_of` leaves out."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return nnx.from_flat_state([(path, leaf) for path, leaf in state if path[0] in ENCODERS])


def joined(decoder: Any, encoders: Any) -> Any:
    """All parameters."""
    return nnx.from_flat_state([*nnx.to_flat_state(decoder), *nnx.to_flat_state(encoders)])


@partial(jax.jit, static_argnums=0)
def _right(graphdef: Any, params: Any, batch: Batch) -> jax.Array:
    """Which rows have every token of their answer as the likeliest."""
    model = nnx.merge(graphdef, params)
    logits = model(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids, media=batch.media)
    return ((logits.argmax(-1) == batch.targets) | (batch.loss_weights == 0)).all(axis=1)


def recall(model: Gemini, layout: Layout, stage: Stage, rows: int, seed: int) -> float:
    """Part of at least `rows` rows of a stage whose answer would be written: all of it is the likeliest."""
    soft = None if stage.encoders else soft_banks(model, layout, stage)
    graphdef, params = nnx.split(model if stage.encoders else reader_of(model), nnx.Param)
    random, found = np.random.default_rng([seed, 2]), list[float]()
    while len(found) < rows:
        batch = batch_of(layout, stage, draw_picks(layout, stage, random), soft)
        found.extend(np.asarray(_right(graphdef, params, batch), np.float64).tolist())
    return float(np.mean(found))
