"""BERT computes what transformers and its equations say, and texts that share a row do not see each other."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.bert_reference import TINY, hidden_states, logits, parameters, randomised
from tests.models.encoder_folders import encoder_folder, run
from zoo.errors import UserError
from zoo.interop import load_huggingface
from zoo.models import Bert, BertConfig, preset
from zoo.nn import Execution
from zoo.nn.dropout import dropped

TOLERANCE = 1e-4
ROWS, LENGTH = 3, 9


@pytest.fixture(scope="module")
def tiny() -> Bert:
    return randomised(TINY)


def inputs(seed=0):
    """(tokens, a mask that leaves out the ends of two rows, token types)."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, TINY.vocab_size, (ROWS, LENGTH), np.int32)
    mask = (np.arange(LENGTH) < np.array([[LENGTH], [LENGTH - 2], [4]])).astype(np.int32)
    return ids, mask, rng.integers(0, TINY.num_token_types, (ROWS, LENGTH), np.int32)


def everywhere(mask):
    """(positions, who sees whom) of rows in which nothing sees what the mask leaves out."""
    return np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH)), np.broadcast_to(
        mask[:, None] > 0, (ROWS, LENGTH, LENGTH)
    )


@pytest.mark.parametrize("name", ["bert-tiny", "bert-mlm-tiny"])
def test_hidden_states_pooled_vectors_and_logits_are_those_of_transformers(name):
    folder, expected = encoder_folder(name)
    model = load_huggingface(folder)
    given = (expected["input_ids"], expected["attention_mask"], expected["token_type_ids"])
    last = run(model, "__call__", *given)
    np.testing.assert_allclose(last, expected["hidden_states"][-1], atol=TOLERANCE)
    np.testing.assert_allclose(run(model, "hidden_states", *given), expected["hidden_states"], atol=TOLERANCE)
    default = run(model, "__call__", expected["input_ids"])
    if model.config.head == "pooler":
        np.testing.assert_allclose(run(model, "pool", last), expected["pooler_output"], atol=TOLERANCE)
        np.testing.assert_allclose(default, expected["last_hidden_state_default_inputs"], atol=TOLERANCE)
    else:
        np.testing.assert_allclose(run(model, "logits", last), expected["logits"], atol=TOLERANCE)
        logits_by_default = run(model, "logits", default)
        np.testing.assert_allclose(logits_by_default, expected["logits_default_inputs"], atol=TOLERANCE)


def test_hidden_states_and_logits_are_those_of_the_equations(tiny):
    ids, mask, types = inputs()
    found = parameters(tiny)
    wanted = hidden_states(found, TINY, ids, types, *everywhere(mask))
    np.testing.assert_allclose(run(tiny, "hidden_states", ids, mask, types), wanted, atol=2e-5)
    np.testing.assert_allclose(run(tiny, "logits", wanted[-1]), logits(found, TINY, wanted[-1]), atol=2e-5)


def test_the_pooler_reads_the_first_token():
    model = randomised(replace(TINY, head="pooler"))
    found, hidden = parameters(model), np.random.default_rng(1).normal(size=(2, 3, TINY.embed_dim))
    wanted = np.tanh(hidden[:, 0] @ found["head/kernel"] + found["head/kernel_bias"])
    np.testing.assert_allclose(run(model, "pool", jnp.asarray(hidden, jnp.float32)), wanted, atol=1e-5)


def test_scanned_layers_and_remat_give_the_same_hidden_states():
    model = randomised(TINY, scan_layers=True, remat_policy="full")
    stacked = parameters(model)
    found = {name: stacked[name] for name in stacked if not name.startswith("layers")}
    for name, value in stacked.items():
        if name.startswith("layers/0/"):
            found |= {f"layers/{i}/{name.removeprefix('layers/0/')}": value[i] for i in range(TINY.num_layers)}
    ids, mask, types = inputs()
    wanted = hidden_states(found, TINY, ids, types, *everywhere(mask))
    np.testing.assert_allclose(run(model, "__call__", ids, mask, types), wanted[-1], atol=2e-5)


def packed():
    """(tokens, positions, segments) of a row with texts of 4 and 3 tokens and padding, and of one with a whole text."""
    ids = np.random.default_rng(2).integers(0, TINY.vocab_size, (2, LENGTH), np.int32)
    positions = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 0], np.arange(LENGTH)], np.int32)
    segments = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0], [1] * LENGTH], np.int32)
    return ids, positions, segments


@functools.partial(jax.jit, static_argnums=0)
def call(graphdef, state, ids, mask, positions, segments):
    return nnx.merge(graphdef, state)(ids, mask, None, positions, segment_ids=segments)


def encode(model, ids, positions, segments, mask=None):
    """The hidden states; compiled once for all tests."""
    return np.asarray(call(*nnx.split(model), ids, np.ones_like(ids) if mask is None else mask, positions, segments))


def test_texts_that_share_a_row_give_what_each_gives_by_itself(tiny):
    ids, positions, segments = packed()
    together, found = encode(tiny, ids, positions, segments), parameters(tiny)
    for row, part in ((0, slice(0, 4)), (0, slice(4, 7)), (1, slice(0, LENGTH))):
        text = ids[row : row + 1, part]
        sees = np.ones((1, text.shape[1], text.shape[1]), bool)
        places = np.arange(text.shape[1])[None]
        alone = hidden_states(found, TINY, text, np.zeros_like(text), places, sees)[-1]
        np.testing.assert_allclose(together[row : row + 1, part], alone, atol=2e-5)


def test_no_text_depends_on_another_one_or_on_padding(tiny):
    ids, positions, segments = packed()
    changed = ids.copy()
    changed[0, 4:] = (changed[0, 4:] + 1) % TINY.vocab_size
    before, after = (encode(tiny, tokens, positions, segments) for tokens in (ids, changed))
    np.testing.assert_array_equal(before[0, :4], after[0, :4])
    assert (np.abs(before - after)[0, 4:].max(axis=-1) > 1e-3).all()


def test_a_mask_and_segments_together_leave_out_what_either_does(tiny):
    ids, positions, segments = packed()
    mask = np.ones_like(ids)
    mask[0, 6:] = 0
    masked, fewer = encode(tiny, ids, positions, segments, mask), np.where(mask > 0, segments, 0)
    np.testing.assert_array_equal(masked[0, :6], encode(tiny, ids, positions, fewer)[0, :6])
    assert np.abs(masked - encode(tiny, ids, positions, segments))[0, 4:6].max() > 1e-3


def test_presets_have_the_published_numbers_of_parameters():
    counts = {name: preset(f"bert-base-{name}").num_parameters() for name in ("uncased", "multilingual-cased")}
    assert counts == {"uncased": 109_514_298, "multilingual-cased": 177_974_523}
    # The released files hold a pooler and the head of the next sentence besides. arXiv 1810.04805, section 3: 110M; the
    # hub's page of bert-base-multilingual-cased: 179M, which are 178M without these two.
    width = 768
    besides = width * width + width + 2 * width + 2
    assert {name: round((count + besides) / 1e6) for name, count in counts.items()} == {
        "uncased": 110,
        "multilingual-cased": 179,
    }
    assert replace(preset("bert-base-uncased"), head="pooler").num_parameters() == 109_482_240


@pytest.mark.parametrize("head", ["pooler", "masked_lm"])
def test_the_number_of_parameters_is_that_of_the_model(head):
    config = replace(TINY, head=head)
    state = nnx.state(nnx.eval_shape(lambda: Bert(config, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == config.num_parameters()


def test_dropout_is_of_training_only_and_the_same_for_the_same_key(tiny):
    ids, _, _ = inputs()
    graphdef, state = nnx.split(tiny)

    @jax.jit
    def call(state, key):
        model = nnx.merge(graphdef, state)
        return model(ids), model(ids, rng=key)

    (plain, first), (_, again), (_, other) = (call(state, jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - plain).max() > 1e-2 and np.abs(first - other).max() > 1e-2


def test_dropout_zeroes_its_share_of_numbers_and_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 4)
    found = np.asarray(jax.jit(functools.partial(dropped, rate=0.25))(jnp.ones((4, 50, 40)), keys=keys))
    assert set(np.unique(found)) == {0.0, np.float32(1 / 0.75)}
    assert np.mean(found == 0) == pytest.approx(0.25, abs=0.02)
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_heads": 5}, "model.embed_dim=12 is not a multiple of num_heads=5"),
        ({"num_layers": 0}, "model.num_layers must be at least 1"),
        ({"num_positions": 0}, "model.num_positions must be at least 1"),
        ({"head": "other"}, "model.head must be 'pooler' or 'masked_lm'"),
        ({"dropout": 1.0}, "model.dropout must be at least 0 and below 1"),
        ({"norm_eps": 0.0}, "model.norm_eps must be positive"),
    ],
)
def test_an_impossible_config_is_refused_by_name(fields, problem):
    with pytest.raises(UserError, match=problem):
        replace(TINY, **fields)


def test_what_the_model_has_not_is_refused(tiny):
    with pytest.raises(ValueError, match="rows of 12 tokens are longer than the position table, num_positions=11"):
        tiny(jnp.zeros((1, 12), jnp.int32))
    with pytest.raises(ValueError, match="head 'masked_lm', not 'pooler'"):
        tiny.pool(jnp.zeros((1, 2, 12)))
    bare = nnx.eval_shape(lambda: Bert(replace(TINY, head="pooler"), execution=Execution(), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="head 'pooler', not 'masked_lm'"):
        bare.output_layer()


def test_the_presets_are_configs_of_berts():
    assert isinstance(preset("bert-tiny"), BertConfig) and preset("bert-tiny").num_parameters() < 2_000_000


def new_positions(width: int, seed: int = 0) -> np.ndarray:
    config = BertConfig(vocab_size=9, embed_dim=width, num_layers=1, num_heads=1, hidden_dim=8, num_positions=40)
    return np.asarray(Bert(config, rngs=nnx.Rngs(seed)).position[...])


@pytest.mark.parametrize("width", [64, 7])
def test_a_new_position_table_is_the_same_for_all_seeds_and_as_large_as_a_random_one(width):
    table = new_positions(width)
    np.testing.assert_array_equal(table, new_positions(width, seed=1))
    # An odd width lacks the last cosine, and the sine that belongs to it is nearly 0.
    pairs = width // 2
    assert np.mean(np.square(table)) == pytest.approx(2 * pairs / width / width, rel=1e-4)


def test_a_new_position_table_says_how_far_apart_two_places_are():
    table = new_positions(64)
    products = table @ table.T
    for apart in (1, 5):
        between = np.diagonal(products, apart)
        np.testing.assert_allclose(between, between[0], atol=1e-5)
        assert between[0] < products[0, 0] - 1e-3
