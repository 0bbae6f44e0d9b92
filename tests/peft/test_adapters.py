"""What adapters compute: against numpy, merged and not, mixed, stacked, on scanned layers and in other models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.peft.small import BITFIT, BOTTLENECK, LORA, PREFIX, TOKENS, logits, random_adapter, sparse_model
from zoo.errors import UserError
from zoo.inference import generate
from zoo.interop import Packing, packed_model
from zoo.models import build, preset
from zoo.nn.lora import LoraWeight
from zoo.nn.parameters import project
from zoo.peft import PeftConfig, adapted_model, base_fingerprint, first_parameters, merged, put_together, with_adapters
from zoo.peft.declare import declare
from zoo.peft.mixture import variables


def close(found, wanted):
    return np.linalg.norm(found - wanted) < 1e-6 * np.linalg.norm(wanted)


def test_a_low_rank_product_is_the_papers_formula_in_float64():
    draw = np.random.default_rng(0)
    x, w = draw.normal(size=(2, 3, 4, 5)), draw.normal(size=(4, 5, 6))
    a, b, gate = draw.normal(size=(4, 5, 2)), draw.normal(size=(2, 6)), np.array([0.5, -2.0])
    changed = w + np.einsum("nhr,r,rd->nhd", a, gate, b)
    weight = LoraWeight(*(jnp.asarray(v, jnp.float32) for v in (w, a, b, gate)), None, 0.0)
    found = project("btnh,nhd->btd", jnp.asarray(x, jnp.float32), weight)
    np.testing.assert_allclose(found, np.einsum("btnh,nhd->btd", x, changed), rtol=2e-5, atol=2e-5)


def test_alpha_over_rank_and_over_its_root():
    assert PeftConfig("lora", rank=4, alpha=6.0).scale == 1.5
    assert PeftConfig("lora", rank=4, alpha=6.0, rslora=True).scale == 3.0


@pytest.mark.parametrize("config", [LORA, BOTTLENECK, BITFIT], ids=lambda config: config.method)
def test_before_training_the_model_is_its_base_bit_for_bit(config, base):
    adapted = adapted_model(nnx.merge(*nnx.split(base)), config)
    params, buffers = first_parameters(adapted, seed=3)
    model = put_together(adapted, params, nnx.state(base, nnx.Param), buffers)
    np.testing.assert_array_equal(logits(model), logits(base))


@pytest.mark.parametrize("config", [LORA, BITFIT], ids=lambda config: config.method)
def test_merged_equals_unmerged(config, base):
    adapter = random_adapter(base, config)
    beside = logits(with_adapters(base, [adapter], [0.5]))
    assert close(logits(merged(base, [adapter], [0.5])), beside)
    assert np.abs(beside - logits(base)).max() > 0.1


@pytest.mark.parametrize("config", [LORA, BOTTLENECK, PREFIX, BITFIT], ids=lambda config: config.method)
def test_scanned_layers_give_the_same(config, base, scanned):
    adapter = random_adapter(base, config)
    wanted = logits(with_adapters(base, [adapter]))
    np.testing.assert_allclose(logits(with_adapters(scanned, [adapter])), wanted, atol=2e-5)


def test_first_values_do_not_depend_on_the_layout(base, scanned):
    flat, deep = (first_parameters(adapted_model(build_again(model), LORA), 1)[0] for model in (base, scanned))
    one, both = flat["layers"][3]["attention"]["query_lora_a"], deep["layers"][1]["attention"]["query_lora_a"]
    np.testing.assert_array_equal(both[1], one[...])
    assert np.abs(both[0] - both[1]).max() > 0 and 0.15 < np.std(one[...]) < 0.35  # 1 / sqrt(16)


def build_again(model):
    return nnx.merge(*nnx.split(model))


def bottleneck_by_hand(y, values, name):
    down, bias, up = (values[f"{name}/bottleneck0_{part}"].astype(np.float64) for part in ("down", "down_bias", "up"))
    centred = y - y.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    hidden = normed @ down + bias
    gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return y + gelu @ up


def test_a_bottleneck_is_behind_its_sublayer(base):
    adapter = random_adapter(base, BOTTLENECK)
    model = with_adapters(base, [adapter])
    x = np.random.default_rng(1).normal(size=(1, 4, 16)).astype(np.float32)
    wanted = bottleneck_by_hand(np.asarray(base.layers[1].mlp(x), np.float64), adapter.values, "layers/1/mlp")
    np.testing.assert_allclose(model.layers[1].mlp(x), wanted, atol=1e-4)
    pfeiffer = dataclasses.replace(BOTTLENECK, placement="pfeiffer")
    assert {one.path[-2] for one in declare(base, pfeiffer)} == {"mlp"}
    assert {one.path[-2] for one in declare(base, BOTTLENECK)} == {"mlp", "attention"}


def test_stacked_bottlenecks_read_one_after_the_other(base):
    first, second = (random_adapter(base, BOTTLENECK, seed) for seed in (0, 1))
    model = with_adapters(base, [first, second], stack=True)
    x = np.random.default_rng(1).normal(size=(1, 4, 16)).astype(np.float32)
    y = np.asarray(base.layers[2].mlp(x), np.float64)
    for adapter in (first, second):
        y = bottleneck_by_hand(y, adapter.values, "layers/2/mlp")
    np.testing.assert_allclose(model.layers[2].mlp(x), y, atol=2e-4)
    assert np.abs(logits(model) - logits(with_adapters(base, [first, second]))).max() > 1e-3


def test_a_mixture_is_the_weighted_sum_of_changes(base):
    one, two = random_adapter(base, LORA, 0), random_adapter(base, dataclasses.replace(LORA, target=("query", "up")), 1)
    found = logits(with_adapters(base, [one, two], [0.75, -0.5]))
    assert close(found, logits(merged(base, [one, two], [0.75, -0.5])))
    assert close(logits(with_adapters(base, [one, two], [1.0, 0.0])), logits(with_adapters(base, [one])))


@pytest.mark.parametrize("config", [LORA, BOTTLENECK, PREFIX], ids=lambda config: config.method)
def test_rows_of_a_batch_have_adapters_of_their_own_in_one_program(config, base):
    adapters = [random_adapter(base, config, seed) for seed in (0, 1)]
    mixed = logits(with_adapters(base, adapters, [np.array([1.0, 0.0]), np.array([0.0, 1.0])]))
    for row, adapter in enumerate(adapters):
        np.testing.assert_allclose(mixed[row], logits(with_adapters(base, [adapter]))[row], atol=2e-5)


def test_other_weights_compile_nothing_anew(base):
    adapters = [random_adapter(base, config, seed) for seed, config in enumerate((LORA, BOTTLENECK, PREFIX))]
    traces = []

    @jax.jit
    def run(state):
        traces.append(1)
        return nnx.merge(graphdef, state)(TOKENS)

    graphdef, state = nnx.split(with_adapters(base, adapters, [1.0, 1.0, 1.0]))
    other, changed = nnx.split(with_adapters(base, adapters, [0.5, 0.1, 0.0]))
    assert other == graphdef
    assert np.abs(run(state) - run(changed)).max() > 1e-3 and len(traces) == 1


def test_generation_with_a_prefix_draws_what_whole_passes_choose(base):
    model = with_adapters(base, [random_adapter(base, PREFIX, scale=1.0), random_adapter(base, LORA)])
    drawn = generate(model, TOKENS, max_new_tokens=8)
    sequence = np.concatenate([TOKENS, drawn], axis=1)
    chosen = logits(model, sequence)[:, TOKENS.shape[1] - 1 : -1].argmax(-1)
    np.testing.assert_array_equal(drawn, chosen)
    in_chunks = generate(model, TOKENS, max_new_tokens=8, prefill_chunk=5)
    np.testing.assert_array_equal(in_chunks, drawn)


SPARSE = [pytest.param(name, marks=pytest.mark.slow) for name in ("mixtral-8x7b", "qwen3-30b-a3b", "gpt-oss-20b")]
"""They differ in routing; what an adapter changes is in all of them the same."""


@pytest.mark.parametrize("name", [*SPARSE, "gemini-tiny-pro"])
def test_experts_have_low_rank_changes_of_their_own(name):
    model = sparse_model(name)
    config = PeftConfig("lora", rank=2, target=("query", "gate", "up", "down"))
    adapter = random_adapter(model, config, scale=0.2)
    found, before = logits(with_adapters(model, [adapter])), logits(model)
    assert np.abs(found - before).max() > 1e-2
    np.testing.assert_allclose(found, logits(merged(model, [adapter])), atol=1e-4)
    experts = next(one for one in declare(model, config) if one.path[-2:] == ("mlp", "down_lora_a"))
    assert experts.shape[0] == model.config.experts.num_experts
    for other in (BOTTLENECK, PREFIX):
        assert np.abs(logits(with_adapters(model, [random_adapter(model, other)])) - before).max() > 1e-3
    with pytest.raises(ValueError, match="rows of a batch cannot have adapters of their own in experts"):
        with_adapters(model, [adapter], [np.ones(2)])(TOKENS)


def test_every_encoder_takes_what_its_sublayers_take():
    sizes = dict(vocab_size=48, embed_dim=16, num_layers=2, num_heads=2, hidden_dim=24, num_positions=16)
    model = build(dataclasses.replace(preset("bert-tiny"), **sizes), rngs=nnx.Rngs(0))
    before = logits(model)
    for config in (LORA, BOTTLENECK, PREFIX, PeftConfig("bitfit")):
        config = dataclasses.replace(config, target=("query", "down")) if config.method == "lora" else config
        adapter = random_adapter(model, config)
        found = logits(with_adapters(model, [adapter]))
        assert np.abs(found - before).max() > 1e-2
        if config.method in ("lora", "bitfit"):
            np.testing.assert_allclose(found, logits(merged(model, [adapter])), atol=2e-5)
    names = {one.path[-1] for one in declare(model, PeftConfig("bitfit"))}
    assert "query_bias_delta" in names and not any("scale" in name for name in names)


def test_images_and_packed_weights_take_low_rank_changes(base):
    siglip = build(preset("gemini-tiny-multimodal").vision, rngs=nnx.Rngs(0))
    adapter = random_adapter(siglip, PeftConfig("lora", target=("query", "up")))
    image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    found = with_adapters(siglip, [adapter])(image)
    np.testing.assert_allclose(found, merged(siglip, [adapter])(image), atol=1e-4)
    assert np.abs(found - siglip(image)).max() > 1e-2
    packed = packed_model(base, Packing(bits=8, group=8))
    adapter = random_adapter(base, LORA)
    assert np.abs(logits(with_adapters(packed, [adapter])) - logits(with_adapters(base, [adapter]))).max() < 0.2
    with pytest.raises(UserError, match="changes weights that are packed"):
        merged(packed, [adapter])


def test_dropout_zeroes_inputs_of_a_in_training_only(base):
    config = dataclasses.replace(LORA, dropout=0.5)
    training = adapted_model(build_again(base), config, training=True)
    params, buffers = first_parameters(training, 0)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    run = jax.jit(lambda key: put_together(training, params, nnx.state(base, nnx.Param), buffers, key)(TOKENS))
    one, again, other = (run(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-2
    weight = LoraWeight(
        jnp.zeros((4, 4)), jnp.eye(4), jnp.eye(4), jnp.ones(4), jax.random.key_data(jax.random.key(0)), 0.25
    )
    kept = np.asarray(project("btd,de->bte", jnp.ones((1, 2000, 4)), weight))
    np.testing.assert_allclose(np.unique(kept), [0, 4 / 3], rtol=1e-6)
    assert abs((kept == 0).mean() - 0.25) < 0.02


def test_what_cannot_be_is_refused(base, scanned):
    with pytest.raises(UserError, match="names no matrix of a layer; this model has query, key, value, output, gate"):
        declare(base, PeftConfig("lora", target=("q_proj",)))
    with pytest.raises(UserError, match="set execution.scan_layers to false"):
        declare(scanned, PeftConfig("lora", target=("layers/1/attention/query",)))
    assert len(declare(base, PeftConfig("lora", target=("layers/1/attention/query",)))) == 3
    with pytest.raises(UserError, match="no biases; --peft.norm-scales"):
        declare(base, PeftConfig("bitfit"))
    with pytest.raises(UserError, match="peft.rank=4 has no meaning for peft.method=prefix"):
        PeftConfig("prefix", rank=4)
    with pytest.raises(UserError, match="peft.method 'loar' is unknown; did you mean 'lora'"):
        PeftConfig("loar")
    with pytest.raises(UserError, match="cannot be merged"):
        merged(base, [random_adapter(base, PREFIX)])
    with pytest.raises(UserError, match="1 weights are given for 2 adapters"):
        with_adapters(base, [random_adapter(base, LORA)] * 2, [1.0])
    with pytest.raises(UserError, match="rows of a batch cannot have bitfit adapters"):
        with_adapters(base, [random_adapter(base, BITFIT)], [np.ones(2)])


def test_the_fingerprint_of_a_base_is_of_its_values_alone(base, scanned):
    found = base_fingerprint(base)
    assert base_fingerprint(scanned) == found
    graphdef, state = nnx.split(base)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), state)
    assert base_fingerprint(nnx.merge(graphdef, rounded)) == found
    moved = jax.tree.map(lambda leaf: -leaf, state)
    assert base_fingerprint(nnx.merge(graphdef, moved)) != found


def test_variables_of_an_adapter_are_its_values(base):
    adapter = random_adapter(base, LORA)
    found = variables(declare(base, LORA), adapter.values)
    query = found["layers", 2, "attention", "query_lora_b"]
    np.testing.assert_array_equal(query[...], adapter.values["layers/2/attention/query_lora_b"])
    assert query.get_metadata("axes") == (None, "heads", "head_dim")
