"""A model whose sequences are divided among devices computes what it computes on one."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from zoo.models.gemma2 import Gemma2, Gemma2Config
from zoo.nn import Execution
from zoo.parallel import (
    MeshConfig,
    ShardingRules,
    activation_sharding,
    batch_sharding,
    init_sharded,
    make_mesh,
)

CONFIG = Gemma2Config(
    vocab_size=64,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=64,
    query_pre_attn_scalar=16,
    sliding_window=20,
)
ROWS, LENGTH = 2, 64
RING, GATHER = ShardingRules(context_exchange="ring"), ShardingRules(context_exchange="gather")


def batch():
    """Tokens, positions and segments of rows with two documents, the first longer than a device's part, and padding."""
    tokens = jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 1, CONFIG.vocab_size)
    index = jnp.arange(LENGTH)
    segments = jnp.where(index < 37, 1, jnp.where(index < LENGTH - 5, 2, 0))
    positions = jnp.where(index < 37, index, jnp.where(index < LENGTH - 5, index - 37, index - LENGTH + 5))
    return tokens, jnp.tile(positions[None], (ROWS, 1)), jnp.tile(segments[None], (ROWS, 1))


def value_and_gradient(graphdef, state, arrays, packed: bool):
    """Of a scalar that depends on every real token's logits."""

    def loss(state, tokens, positions, segments):
        rows = dict(positions=positions, segment_ids=segments) if packed else {}
        logits = nnx.merge(graphdef, state)(tokens, **rows)
        return (jax.nn.log_softmax(logits)[..., 0] * (segments > 0)).mean()

    return jax.device_get(jax.jit(jax.value_and_grad(loss))(state, *arrays))


@pytest.mark.parametrize(
    ("mesh", "rules", "execution", "packed"),
    [
        (MeshConfig(context=4), RING, Execution(scan_layers=True, remat_policy="full"), True),
        pytest.param(MeshConfig(context=4, tensor=2), GATHER, Execution(), False, marks=pytest.mark.slow),
        pytest.param(
            MeshConfig(context=2, tensor=4), replace(RING, kv_heads=None), Execution(), True, marks=pytest.mark.slow
        ),
        pytest.param(MeshConfig(context=8), GATHER, Execution(remat_policy="dots"), True, marks=pytest.mark.slow),
        pytest.param(MeshConfig(context=4), RING, Execution(compute_dtype="bfloat16"), True, marks=pytest.mark.slow),
    ],
    ids=["ring and halo", "gather, with tensor", "key/value heads not divided", "eight devices", "bfloat16"],
)
def test_loss_and_gradient_are_those_of_one_device(mesh, rules, execution, packed):
    def make():
        return Gemma2(CONFIG, execution=execution, rngs=nnx.Rngs(0))

    expected = value_and_gradient(*nnx.split(make()), batch(), packed)
    devices = make_mesh(mesh)
    graphdef, state = init_sharded(make, devices, rules)
    with activation_sharding(devices, rules):
        arrays = jax.device_put(batch(), batch_sharding(devices, rules))
        result = value_and_gradient(graphdef, state, arrays, packed)
    # Gradients of up to 0.5 that were rounded to bfloat16 differ by its last bits.
    chex.assert_trees_all_close(result, expected, atol=1e-5 if execution.compute_dtype == "float32" else 2**-8)
