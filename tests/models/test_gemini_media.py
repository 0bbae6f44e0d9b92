"""Gemini reads images and audio: soft tokens at their places, on any mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.data import AudioClips, Media, PackedImages
from zoo.errors import UserError
from zoo.models.gemini import Gemini, GeminiConfig
from zoo.models.gemma3n_audio import Gemma3nAudioConfig
from zoo.models.siglip import SiglipConfig
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh

CONFIG = GeminiConfig(
    vocab_size=64,
    embed_dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=48,
    sliding_window=8,
    vision=SiglipConfig(embed_dim=16, num_layers=1, num_heads=2, hidden_dim=32, patch_size=4, image_size=16),
    audio=Gemma3nAudioConfig(
        embed_dim=16, num_layers=1, num_heads=2, num_mel_bins=16, subsampling_channels=(8, 4), reduction_factor=2
    ),
)
BATCH, LENGTH, PATCHES, FRAMES = 4, 16, 12, 32
IMAGE_AT, AUDIO_AT = (3, 4, 5), (9, 10, 11, 12)


@functools.cache
def model():
    return Gemini(CONFIG, rngs=nnx.Rngs(0))


def tokens():
    return jax.random.randint(jax.random.key(1), (BATCH, LENGTH), 3, 60)


def media(*, images=True, audio=True, patch_noise=0.0):
    """Two images of 8 and 4 patches (2 and 1 soft tokens) and one recording of 32 frames (4) in every row."""
    rng = np.random.default_rng(0)
    patches = rng.uniform(-1, 1, (BATCH, PATCHES, 48)).astype(np.float32)
    patches[:, 8:] += patch_noise
    coordinates = rng.uniform(0, 1, (BATCH, PATCHES, 2)).astype(np.float32)
    segments = np.repeat(np.array([[1] * 8 + [2] * 4], np.int32), BATCH, 0)
    mel = rng.normal(size=(BATCH, 1, FRAMES, 16)).astype(np.float32)

    def slots(places):
        found = np.full((BATCH, LENGTH), -1, np.int32)
        found[:, places] = np.arange(len(places))
        return found

    return Media(
        images=PackedImages(patches, coordinates, segments) if images else None,
        audio=AudioClips(mel, np.ones((BATCH, 1, FRAMES), bool)) if audio else None,
        image_slots=slots(IMAGE_AT) if images else None,
        audio_slots=slots(AUDIO_AT) if audio else None,
    )


def hidden(media, of=None):
    graphdef, state = nnx.split(of or model())
    return jax.jit(lambda state, media: nnx.merge(graphdef, state).hidden_states(tokens(), media=media))(state, media)


def test_an_image_changes_what_follows_it_and_nothing_before():
    plain, other = hidden(media()), hidden(media(patch_noise=0.5))
    changed = np.abs(np.asarray(plain - other)).max((0, 2))
    # The second image is soft token 2, at position 5; the first does not attend to it.
    assert changed[:5].max() < 1e-6 and changed[5:].min() > 1e-4


def test_the_word_under_a_soft_token_does_not_matter():
    graphdef, state = nnx.split(model())
    run = jax.jit(lambda ids: nnx.merge(graphdef, state).hidden_states(ids, media=media()))
    np.testing.assert_array_equal(run(tokens()), run(tokens().at[:, list(IMAGE_AT + AUDIO_AT)].set(7)))


def test_media_of_which_no_soft_token_is_used_change_nothing():
    unused = media()
    none = jax.tree.map(lambda slots: np.full_like(slots, -1), (unused.image_slots, unused.audio_slots))
    unused = Media(unused.images, unused.audio, *none)
    np.testing.assert_allclose(hidden(unused), hidden(None), atol=1e-5)


def loss_and_gradient(mesh=None):
    graphdef, state = nnx.split(model())

    def loss(state, media):
        return jnp.square(nnx.merge(graphdef, state).hidden_states(tokens(), media=media)[..., :3]).mean()

    gradient = jax.jit(jax.value_and_grad(loss))
    if mesh is None:
        return gradient(state, media())
    with activation_sharding(mesh, ShardingRules()):
        return gradient(state, media())


def test_a_mesh_gives_the_same_loss_and_gradients_of_the_encoders_too():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    (loss, gradient), (same_loss, same_gradient) = loss_and_gradient(), loss_and_gradient(mesh)
    np.testing.assert_allclose(same_loss, loss, rtol=1e-5)
    for path, leaf in nnx.to_flat_state(gradient):
        other = dict(nnx.to_flat_state(same_gradient))[path]
        scale = np.abs(leaf[...]).max()
        np.testing.assert_allclose(other[...], leaf[...], atol=1e-4 * scale + 1e-8, err_msg=str(path))
        if path[0] in ("vision", "audio") and "layers" in path and path[-1] not in ("bias", "key_bias"):
            assert scale > 0, path


@pytest.mark.parametrize("part", ["image", "audio"])
def test_media_without_an_encoder_are_refused(part):
    deaf_or_blind = dataclasses.replace(CONFIG, **{"audio" if part == "audio" else "vision": None})
    given = media(images=part == "image", audio=part == "audio")
    with pytest.raises(UserError, match=f"no {part} encoder"):
        hidden(given, Gemini(deaf_or_blind, rngs=nnx.Rngs(0)))
