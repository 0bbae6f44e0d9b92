"""Validation is one mean over all tokens of all batches, and over all bytes that they stand for."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.data import Batch
from zoo.training.evaluation import make_evaluation
from zoo.training.losses import LossSums

MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
SHARDING = NamedSharding(MESH, P("data"))


class Constant(nnx.Module):
    """Gives every token the loss `value`."""

    def __init__(self, value):
        self.value = nnx.Param(jnp.float32(value))


def loss(model, batch):
    weight = jnp.sum(batch.loss_weights)
    return LossSums(model.value[...] * jnp.sum(batch.loss_weights * batch.targets), jnp.zeros(()), weight)


def batch(targets, weights):
    targets = np.array(targets, np.int32)
    return Batch(targets, targets, targets, np.ones_like(targets), np.array(weights, np.float32))


BATCHES = [batch([[1, 2], [3, 4]], [[1, 1], [1, 0]]), batch([[5, 9], [1, 1]], [[1, 1], [0, 0]])]


def evaluation(batches, token_bytes=None):
    graphdef, params = nnx.split(Constant(2.0), nnx.Param)
    return make_evaluation(graphdef, loss, batches, SHARDING, token_bytes)(params)


def test_the_mean_is_over_tokens_not_over_batches():
    assert evaluation(BATCHES)["validation_loss"] == pytest.approx(2 * (1 + 2 + 3 + 5 + 9) / 5)


def test_bits_per_byte_divide_by_the_bytes_of_the_weighted_targets():
    num_bytes = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0], np.int32)
    found = evaluation(BATCHES, num_bytes)["validation_bits_per_byte"]
    assert found == pytest.approx(2 * 20 / math.log(2) / (1 + 2 + 3 + 5 + 0))


def test_a_target_beyond_the_tokenizer_stands_for_no_bytes():
    found = evaluation(BATCHES, np.arange(6, dtype=np.int32))["validation_bits_per_byte"]
    assert found == pytest.approx(2 * 20 / math.log(2) / 11)


def test_without_a_tokenizer_there_are_no_bits_per_byte():
    assert evaluation(BATCHES).keys() == {"validation_loss"}


def test_without_batches_there_is_nothing():
    assert evaluation([]) == {}
