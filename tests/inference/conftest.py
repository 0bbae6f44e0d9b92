"""Small models with random weights, large enough to have windows, groups and both layouts."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from zoo.inference.model import take_apart
from zoo.models import Gemma2Config, build
from zoo.nn import Execution

LENGTH = 64

CONFIG = Gemma2Config(
    vocab_size=96,
    embed_dim=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=64,
    query_pre_attn_scalar=16.0,
    sliding_window=8,
    max_position_embeddings=128,
)


@pytest.fixture(scope="session")
def make_model():
    """A model with random weights: `make_model(seed=0, execution=None, **changes of the configuration)`."""

    def make(seed: int = 0, execution: Execution | None = None, **changes):
        return build(dataclasses.replace(CONFIG, **changes), execution=execution, rngs=nnx.Rngs(seed))

    return make


@pytest.fixture(scope="session")
def model(make_model):
    """Three layers: local (window 8), global, local; 96 tokens."""
    return make_model()


@pytest.fixture(scope="session")
def full_logits():
    """`full_logits(model, row)`: float32 logits [len(row), V] of one whole forward pass over the row alone.

    All calls have one shape: what follows a row does not change its logits.
    """
    programs = {}

    def forward(model, row: list[int]) -> np.ndarray:
        structure, arrays = take_apart(model)
        if structure not in programs:
            programs[structure] = jax.jit(lambda arrays, tokens: structure.restore(arrays)(tokens))
        tokens = np.zeros((1, LENGTH), np.int32)
        tokens[0, : len(row)] = row
        return np.asarray(programs[structure](arrays, tokens))[0, : len(row)]

    return forward
