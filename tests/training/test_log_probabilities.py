"""Log-probabilities of targets in chunks: values and gradients against float64, in parts, and among devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.training.log_probabilities import chunked_log_probabilities

B, T, V, D = 4, 8, 24, 16


def problem(seed=0):
    """Hidden states, a table, targets, and what the log-probabilities are multiplied with."""
    rng = np.random.default_rng(seed)
    hidden, table = rng.standard_normal((B, T, D)), rng.standard_normal((V, D))
    return hidden, table, rng.integers(0, V, (B, T)), rng.standard_normal((B, T))


def written_out(hidden, table, targets, scale, soft_cap):
    """The log-probabilities, and the gradients of sum(scale * log p), in float64."""
    raw = hidden @ table.T
    logits = raw if soft_cap is None else soft_cap * np.tanh(raw / soft_cap)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    by_logits = scale[..., None] * (np.eye(V)[targets] - np.exp(log_p))
    if soft_cap is not None:
        by_logits = by_logits * (1 - np.tanh(raw / soft_cap) ** 2)
    found = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return found, by_logits @ table, np.einsum("btv,btd->vd", by_logits, hidden)


def computed(hidden, table, targets, scale, **options):
    def objective(hidden, table):
        found = chunked_log_probabilities(hidden, table, targets, **options)
        return jnp.sum(scale * found), found

    gradients, found = jax.jit(jax.grad(objective, (0, 1), has_aux=True))(hidden, table)
    return found, *gradients


@pytest.mark.parametrize(("soft_cap", "chunk"), [(None, None), (3.0, 3)])
def test_values_and_gradients_are_those_of_float64(soft_cap, chunk):
    arrays = problem()
    expected = written_out(*arrays, soft_cap)
    hidden, table, targets, scale = arrays
    hidden, table, scale = (a.astype(np.float32) for a in (hidden, table, scale))
    found = computed(hidden, table, targets.astype(np.int32), scale, soft_cap=soft_cap, chunk_length=chunk)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_devices_that_share_tokens_and_vocabulary_give_the_same():
    hidden, table, targets, scale = problem(1)
    expected = written_out(hidden, table, targets, scale, 5.0)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    rows, words = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec("tensor", "fsdp"))
    hidden, scale, targets = (
        jax.device_put(a, rows) for a in (hidden.astype(np.float32), scale.astype(np.float32), targets)
    )
    table = jax.device_put(table.astype(np.float32), words)
    with activation_sharding(mesh, ShardingRules()):
        found = computed(hidden, table, targets, scale, soft_cap=5.0, chunk_length=4)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)
