"""A whole model computes the same with every attention kernel: training, generation and under a device mesh."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from zoo.inference import Sampling, generate
from zoo.models.gemma2 import Gemma2, Gemma2Config
from zoo.nn import Execution
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, init_sharded, make_mesh

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
    max_position_embeddings=128,
)


def model(implementation: str | None) -> Gemma2:
    """The same parameters with another attention."""
    return Gemma2(CONFIG, execution=Execution(attention_implementation=implementation), rngs=nnx.Rngs(0))


def batch(rows: int, length: int):
    """Tokens, positions and segments of rows with two documents and padding."""
    tokens = jax.random.randint(jax.random.key(1), (rows, length), 1, CONFIG.vocab_size)
    index = jnp.arange(length)
    segments = jnp.where(index < 25, 1, jnp.where(index < length - 3, 2, 0))
    positions = jnp.where(index < 25, index, jnp.where(index < length - 3, index - 25, index - length + 3))
    return tokens, jnp.tile(positions[None], (rows, 1)), jnp.tile(segments[None], (rows, 1))


def loss(graphdef, state, tokens, positions, segments):
    """A scalar that depends on every real token's logits."""
    logits = nnx.merge(graphdef, state)(tokens, positions=positions, segment_ids=segments)
    return (jax.nn.log_softmax(logits)[..., 0] * (segments > 0)).mean()


@functools.cache
def plain_gradient(rows: int, length: int):
    graphdef, state = nnx.split(model("xla"))
    return jax.device_get(jax.jit(jax.value_and_grad(lambda state: loss(graphdef, state, *batch(rows, length))))(state))


# Of each kernel one gradient of the whole model: here, and on a mesh below.
@pytest.mark.parametrize("implementation", ["pallas_tpu", *slow("pallas_gpu")])
def test_the_gradients_of_a_packed_batch_are_those_of_the_plain_path(implementation):
    graphdef, state = nnx.split(model(implementation))
    found = jax.jit(jax.value_and_grad(lambda state: loss(graphdef, state, *batch(4, 50))))(state)
    chex.assert_trees_all_close(jax.device_get(found), plain_gradient(4, 50), rtol=1e-4, atol=1e-6)


# That of the decode kernels alone is in tests/kernels/decode_attention/test_model.py, for both.
@pytest.mark.parametrize("implementation", ["pallas_tpu", *slow("pallas_gpu")])
def test_greedy_generation_past_the_window_is_that_of_the_plain_path(implementation):
    tokens = np.asarray(batch(2, 30)[0])
    mask = np.ones_like(tokens)
    mask[1, :7] = 0

    def continuation(name):
        return generate(
            model(name), tokens, mask, max_new_tokens=12, sampling=Sampling(0.0, None, None), stop_tokens=()
        )

    np.testing.assert_array_equal(continuation(implementation), continuation("xla"))


@pytest.mark.parametrize("implementation", [*slow("pallas_tpu"), "pallas_gpu"])
def test_on_a_mesh_every_device_attends_for_its_own_rows_and_heads(implementation):
    mesh, rules, arrays = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), ShardingRules(), batch(4, 50)
    graphdef, state = init_sharded(lambda: model(implementation), mesh, rules)
    with activation_sharding(mesh, rules):
        compiled = jax.jit(jax.grad(lambda state: loss(graphdef, state, *arrays))).lower(state).compile()
    chex.assert_trees_all_close(jax.device_get(compiled(state)), plain_gradient(4, 50)[1], rtol=1e-3, atol=1e-6)
