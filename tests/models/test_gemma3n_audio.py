"""Gemma 3n's audio encoder computes what transformers does, and clips are heard each by itself."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.models.encoder_folders import GOLDENS, assert_export_repeats, encoder_folder, run
from zoo.errors import UserError
from zoo.interop import load_huggingface
from zoo.interop.architectures import config_from_huggingface
from zoo.models import build, config_from_dict, config_to_dict, preset
from zoo.models.gemma3n_audio import Gemma3nAudio, Gemma3nAudioConfig
from zoo.nn import Execution
from zoo.nn.relative_attention import LocalRelativeAttention
from zoo.nn.subsampling import cumulative_norm

TOLERANCE = 2e-4
FOLDERS = ("gemma3n_audio", "gemma3n-audio-tiny")
TINY = Gemma3nAudioConfig(
    embed_dim=8,
    num_layers=2,
    num_heads=2,
    num_mel_bins=10,
    chunk_size=4,
    left_context=5,
    subsampling_channels=(4, 3),
    reduction_factor=2,
)


@pytest.fixture(scope="module")
def tiny() -> Gemma3nAudio:
    return build(TINY, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", FOLDERS)
def test_hidden_states_and_mask_are_those_of_transformers(name):
    folder, expected = encoder_folder(name)
    mel, padding = expected["audio_mel"], expected["audio_mel_mask"]
    assert padding.any() and not padding.all()
    model = load_huggingface(folder)
    last = run(model, "__call__", mel, padding)
    np.testing.assert_allclose(last, expected["last_hidden_state"], atol=TOLERANCE)
    np.testing.assert_array_equal(model.output_mask(jnp.asarray(padding)), expected["output_mask"])
    assert (np.asarray(last)[expected["output_mask"]] == 0).all()


@pytest.mark.slow
def test_every_layers_result_is_that_of_transformers():
    folder, expected = encoder_folder("gemma3n-audio-tiny")
    mel, padding = expected["audio_mel"], expected["audio_mel_mask"]
    states = run(load_huggingface(folder), "hidden_states", mel, padding)
    np.testing.assert_allclose(states[0], expected["subsampled"], atol=TOLERANCE)
    np.testing.assert_allclose(states[1:], expected["block_outputs"], atol=TOLERANCE)


def test_scanned_and_recomputed_the_hidden_states_are_those_of_transformers():
    folder, expected = encoder_folder("gemma3n_audio")
    model = load_huggingface(folder, execution=Execution(scan_layers=True, remat_policy="full"))
    last = run(model, "__call__", expected["audio_mel"], expected["audio_mel_mask"])
    np.testing.assert_allclose(last, expected["last_hidden_state"], atol=TOLERANCE)


@pytest.mark.parametrize("scan", [False, True])
def test_an_export_repeats_every_tensor(scan, tmp_path):
    folder, _ = encoder_folder("gemma3n_audio")
    model = load_huggingface(folder, execution=Execution(scan_layers=scan))
    assert_export_repeats(model, folder, tmp_path / "copy")


def test_the_preset_has_as_many_parameters_as_in_transformers():
    counts = json.loads((GOLDENS / "num_parameters.json").read_text())
    assert preset("gemma3n-audio").num_parameters() == counts["gemma3n-audio"]


def test_the_number_of_parameters_is_that_of_the_model():
    state = nnx.state(nnx.eval_shape(lambda: Gemma3nAudio(TINY, rngs=nnx.Rngs(0))))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == TINY.num_parameters()


def test_a_config_survives_the_way_through_json():
    assert config_from_dict(json.loads(json.dumps(config_to_dict(TINY)))) == TINY


@pytest.mark.parametrize(("left", "right"), [(1, 0), (3, 2), (9, 1)])
def test_a_frame_sees_its_window_and_no_more(left, right):
    attention = LocalRelativeAttention(
        8, 2, chunk=4, left=left, right=right, soft_cap=50.0, execution=Execution(), rngs=nnx.Rngs(0)
    )
    frames = 11
    x = jax.random.normal(jax.random.key(0), (1, frames, 8))
    mask = jnp.ones((1, frames), bool).at[0, 6].set(False)
    changes = jax.jit(jax.jacobian(lambda x: attention(x, mask)[0]))(x)[:, :, 0]
    seen = np.abs(changes).max(axis=(1, 3)) > 0
    queries, keys = np.indices((frames, frames))
    window = (keys > queries - left) & (keys <= queries + right) & (keys != 6)
    # A frame changes its own query, too; what a masked frame sees means nothing.
    others = (queries != keys) & (queries != 6)
    np.testing.assert_array_equal(seen & others, window & others)


def test_the_chunk_size_changes_no_result():
    x, mask = jax.random.normal(jax.random.key(0), (2, 13, 8)), jnp.ones((2, 13), bool)

    def attended(chunk):
        options = dict(left=6, right=1, soft_cap=5.0, execution=Execution(), rngs=nnx.Rngs(0))
        return jax.jit(LocalRelativeAttention(8, 2, chunk=chunk, **options))(x, mask)

    np.testing.assert_allclose(attended(3), attended(16), atol=1e-5)


def test_cumulative_norm_uses_what_came_up_to_its_time():
    x = np.random.default_rng(0).normal(size=(1, 4, 3, 2)) + 5
    means = [x[0, : t + 1].mean() for t in range(4)]
    deviations = [np.mean([np.square(x[0, s] - means[s]).mean() for s in range(t + 1)]) for t in range(4)]
    wanted = [(x[0, t] - means[t]) / np.sqrt(deviations[t] + 1e-3) * [1.0, 2.0] for t in range(4)]
    normed = cumulative_norm(jnp.asarray(x, jnp.float32), jnp.array([1.0, 2.0]), 1e-3)
    np.testing.assert_allclose(normed[0], wanted, atol=1e-4)


def clips():
    """(mel, mask) of two rows of three clips of 24 frames with 24, 9 and no real frames."""
    mel = np.random.default_rng(0).normal(size=(2, 3, 24, 10)).astype(np.float32)
    real = np.arange(24) < np.array([24, 9, 0])[:, None]
    return mel, np.broadcast_to(real, (2, 3, 24))


def test_clips_are_heard_each_by_itself_and_padding_is_silence(tiny):
    (mel, mask), model = clips(), tiny
    hidden, kept = run(model, "encode_clips", mel, mask)
    assert hidden.shape == (2, 3, 3, 8)
    # One vector for every 8 frames that have begun.
    np.testing.assert_array_equal(kept.sum(-1), [[3, 2, 0]] * 2)
    assert (np.asarray(hidden)[~np.asarray(kept)] == 0).all()
    other = np.where(mask[..., None], mel, 1e3)
    other[:, 0] += 1
    again, _ = run(model, "encode_clips", other, mask)
    np.testing.assert_array_equal(again[:, 1:], hidden[:, 1:])
    assert np.abs(again[:, 0] - hidden[:, 0]).max() > 1e-3


def test_gradients_are_finite_also_for_a_clip_without_a_real_frame(tiny):
    (mel, mask), (graphdef, state) = clips(), nnx.split(tiny)

    def loss(state):
        hidden, _ = nnx.merge(graphdef, state).encode_clips(mel, mask)
        return jnp.square(hidden[:, :, :, 0]).sum()

    for path, gradient in nnx.to_flat_state(jax.jit(jax.grad(loss))(state)):
        assert np.isfinite(gradient[...]).all() and np.abs(gradient[...]).max() > 0, path


def test_clips_whose_length_is_no_multiple_of_the_reduction_are_refused(tiny):
    (mel, mask), model = clips(), tiny
    with pytest.raises(ValueError, match="not a multiple of 8 frames"):
        model.encode_clips(mel[:, :, :-1], mask[:, :, :-1])
    with pytest.raises(ValueError, match=r"must be \[B, F, 10\]"):
        model(mel[:, 0, :, :-1], mask[:, 0])


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("num_heads", 3, "multiple of num_heads=3"),
        ("right_context", -1, "right_context must not be negative"),
        ("subsampling_kernel", (3,), "subsampling_kernel must be two numbers"),
        ("clip", 0.0, "clip must be positive"),
    ],
)
def test_an_impossible_config_is_refused_by_name(field, value, problem):
    with pytest.raises(UserError, match=problem):
        replace(TINY, **{field: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sscp_conv_kernel_size", [[3, 3], [5, 5]]),
        ("sscp_conv_channel_size", [4]),
        ("conf_attention_context_right", -1),
        ("conf_num_attention_heads", 3),
        ("hidden_size", 9),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused_by_key(key, value):
    values = json.loads((GOLDENS / "gemma3n_audio" / "config.json").read_text())
    with pytest.raises(UserError, match=key):
        config_from_huggingface(values | {key: value})
