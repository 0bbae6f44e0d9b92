"""Packed models: what they compute, what they weigh, what comes back from disk."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.errors import UserError
from zoo.inference import generate
from zoo.interop import Packing, packed_bytes, packed_model, save_quantised
from zoo.models.gemini import Gemini, GeminiConfig
from zoo.nn import ExpertsConfig
from zoo.nn.packed import PackedWeight, unpack

CONFIG = GeminiConfig(
    vocab_size=96, embed_dim=64, num_layers=2, num_heads=4, head_dim=32, hidden_dim=96, sliding_window=8
)


@functools.cache
def model():
    return Gemini(CONFIG, rngs=nnx.Rngs(0))


def weights(of):
    """Every array or packed weight of a model."""
    state = nnx.to_flat_state(nnx.state(of))
    return {path: leaf.get_value() for path, leaf in state}


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 1 / 7), (8, 1 / 127)])
def test_a_packed_weight_is_within_a_step_of_the_original(bits, tolerance):
    original, packed = weights(model()), weights(packed_model(model(), Packing(bits=bits)))
    found = [(path, value) for path, value in packed.items() if isinstance(value, PackedWeight)]
    assert len(found) == 1 + 2 * 7
    for path, value in found:
        error = np.abs(np.asarray(unpack(value, np.float32)) - np.asarray(original[path]))
        assert error.max() <= 1.01 * tolerance * np.abs(original[path]).max(), path
        assert error.max() > 0, path


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_model_computes_what_its_unpacked_weights_compute(bits):
    packed = packed_model(model(), Packing(bits=bits))
    graphdef, state = nnx.split(model())
    values = weights(packed)
    unpacked = [
        (path, leaf.replace(unpack(values[path], np.float32) if isinstance(values[path], PackedWeight) else leaf[...]))
        for path, leaf in nnx.to_flat_state(state)
    ]
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 3, 96)
    expected = nnx.merge(graphdef, nnx.from_flat_state(unpacked))(tokens)
    np.testing.assert_allclose(packed(tokens), expected, atol=2e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_gives_back_every_bit_and_has_the_size_of_the_formula(bits, tmp_path):
    packing = Packing(bits=bits)
    packed = packed_model(model(), packing)
    save_quantised(model(), tmp_path / "packed", packing=packing)
    loaded = zoo.load(tmp_path / "packed")
    for path, value in weights(loaded.model).items():
        jax.tree.map(np.testing.assert_array_equal, value, weights(packed)[path])
    size = sum(value.nbytes for value in weights(loaded.model).values())
    assert size == packed_bytes(CONFIG, packing)
    prompt = np.array([[2, 5, 6, 7]])
    np.testing.assert_array_equal(
        generate(loaded.model, prompt, max_new_tokens=8), generate(packed, prompt, max_new_tokens=8)
    )


def test_experts_are_not_packed_and_say_so():
    sparse = dataclasses.replace(CONFIG, experts=ExpertsConfig(num_experts=4, experts_per_token=1, hidden_dim=32))
    with pytest.raises(UserError, match="experts are not packed"):
        packed_model(Gemini(sparse, rngs=nnx.Rngs(0)), Packing())
