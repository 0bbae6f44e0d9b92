"""Small models, a Gemma 2 with grouped queries, local and global layers among them, and adapters with random values."""

import dataclasses
import functools

import jax
import numpy as np
from flax import nnx

from zoo.models import build, preset
from zoo.peft import Adapter, PeftConfig
from zoo.peft.declare import declare

CONFIG = dataclasses.replace(
    preset("gemma2-nano"),
    vocab_size=48,
    embed_dim=16,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    hidden_dim=24,
    sliding_window=6,
    max_position_embeddings=32,
)
TOKENS = np.random.default_rng(5).integers(0, 48, (2, 12)).astype(np.int32)

LORA = PeftConfig("lora", rank=3, alpha=6.0, target=("query", "output", "mlp/gate", "down"))
BOTTLENECK = PeftConfig("bottleneck", bottleneck_dim=5, placement="houlsby")
PREFIX = PeftConfig("prefix", prefix_length=3)
BITFIT = PeftConfig("bitfit", norm_scales=True)


@functools.partial(jax.jit, static_argnums=0)
def _computed(graphdef, state, tokens):
    return nnx.merge(graphdef, state)(tokens)


def logits(model, tokens=TOKENS):
    """The model's result, compiled once for each structure."""
    return np.asarray(_computed(*nnx.split(model), tokens))


def random_adapter(model, config, seed=0, scale=0.3):
    """An adapter none of whose values is zero."""
    draw = np.random.default_rng(seed)
    values = {
        name: (scale * draw.normal(size=one.shape)).astype(np.float32)
        for one in declare(model, config)
        if not one.buffer
        for name in one.names
    }
    return Adapter(config, values, f"adapter {seed}")


@functools.cache
def sparse_model(name):
    """A preset with experts in a size for tests."""
    config = preset(name)
    experts = dataclasses.replace(config.experts, num_experts=4, experts_per_token=2, hidden_dim=12)
    sizes = dict(vocab_size=48, embed_dim=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
    return build(dataclasses.replace(config, experts=experts, **sizes), rngs=nnx.Rngs(0))
