"""Packed models: what they compute, what they weigh, what comes back from disk."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.errors import UserError
from zoo.inference import generate, token_logits
from zoo.interop import Packing, packed_bytes, packed_model, save_quantised
from zoo.interop.parameters import abstract_model
from zoo.interop.quantised import packed_structure
from zoo.models import build
from zoo.models.gemini import Gemini, GeminiConfig
from zoo.models.mixtral import MixtralConfig, mixtral_experts
from zoo.models.siglip import SiglipConfig
from zoo.nn import Execution, ExpertsConfig
from zoo.nn.packed import PackedWeight, unpack

CONFIG = GeminiConfig(
    vocab_size=96, embed_dim=64, num_layers=2, num_heads=4, head_dim=32, hidden_dim=96, sliding_window=8
)


@functools.cache
def model():
    return Gemini(CONFIG, rngs=nnx.Rngs(0))


@functools.cache
def packed_of(bits):
    return packed_model(model(), Packing(bits=bits))


def weights(of):
    """Every array or packed weight of a model."""
    state = nnx.to_flat_state(nnx.state(of))
    return {path: leaf.get_value() for path, leaf in state}


def unpacked(original, packed):
    """The original with the numbers that the packed weights stand for."""
    graphdef, state = nnx.split(original)
    values = weights(packed)
    replaced = [
        (path, leaf.replace(unpack(values[path], np.float32) if isinstance(values[path], PackedWeight) else leaf[...]))
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graphdef, nnx.from_flat_state(replaced))


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 1 / 7), (8, 1 / 127)])
def test_a_packed_weight_is_within_a_step_of_the_original(bits, tolerance):
    original, packed = weights(model()), weights(packed_of(bits))
    found = [(path, value) for path, value in packed.items() if isinstance(value, PackedWeight)]
    assert len(found) == 1 + 2 * 7
    for path, value in found:
        error = np.abs(np.asarray(unpack(value, np.float32)) - np.asarray(original[path]))
        assert error.max() <= 1.01 * tolerance * np.abs(original[path]).max(), path
        assert error.max() > 0, path


@pytest.mark.parametrize("bits", [4, 8])
def test_a_packed_model_computes_what_its_unpacked_weights_compute(bits):
    packed = packed_of(bits)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 3, 96)
    expected = jax.jit(unpacked(model(), packed))(tokens)
    np.testing.assert_allclose(jax.jit(packed)(tokens), expected, atol=2e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_gives_back_every_bit_and_has_the_size_of_the_formula(bits, tmp_path):
    packing = Packing(bits=bits)
    packed = packed_of(bits)
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


MIXED = dataclasses.replace(CONFIG, experts=ExpertsConfig(4, 2, 64, shared_hidden_dim=32), experts_every=2)
MIXTRAL = MixtralConfig(
    vocab_size=96,
    embed_dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    experts=mixtral_experts(4, 2, 32),
)


def test_packed_experts_come_back_and_compute_what_their_unpacked_weights_compute(tmp_path):
    sparse = build(MIXED, rngs=nnx.Rngs(0))
    save_quantised(sparse, tmp_path / "packed")
    packed = zoo.load(tmp_path / "packed").model
    assert isinstance(packed.layers[1].mlp.up[...], PackedWeight)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 3, 96)
    np.testing.assert_allclose(token_logits(packed, tokens), token_logits(unpacked(sparse, packed), tokens), atol=2e-4)


@pytest.mark.parametrize("config", [CONFIG, MIXED, MIXTRAL], ids=["dense", "every other layer sparse", "Mixtral"])
def test_the_formula_counts_every_parameter_and_all_matrices_are_packed(config):
    packing, size, others = Packing(4, embedding_bits=8), 0, set()
    for path, leaf in nnx.to_flat_state(abstract_model(config, Execution())[1]):
        structure = packed_structure("/".join(map(str, path)), leaf.shape, packing)
        parts = [leaf.get_value()] if structure is None else [structure.packed, structure.scales]
        size += sum(part.size * part.dtype.itemsize for part in parts)
        others |= set() if structure else {path[-2]}
        assert structure is None or structure.shape == leaf.shape
    assert size == packed_bytes(config, packing)
    assert all("norm" in name or name == "router" for name in others)


def test_what_is_no_decoder_is_not_packed_and_says_so():
    with pytest.raises(UserError, match="a Siglip are not packed"):
        packed_bytes(SiglipConfig(image_size=28, patch_size=14, embed_dim=64, num_layers=1, num_heads=2, hidden_dim=64))
