"""A Gemini with random weights that reads images and audio and writes images of 3 codes, and prompts for it."""

import functools

import numpy as np
from flax import nnx

from zoo.data import AudioClips, Media, MediaVocabulary, PackedImages
from zoo.models.gemini import Gemini, GeminiConfig
from zoo.models.gemma3n_audio import Gemma3nAudioConfig
from zoo.models.siglip import SiglipConfig

WORDS = MediaVocabulary(text_size=40, image_codes=8)

CONFIG = GeminiConfig(
    vocab_size=60,  # ids 54 .. 59 are nothing
    embed_dim=32,
    num_layers=2,
    num_heads=2,
    head_dim=16,
    hidden_dim=48,
    sliding_window=8,
    max_position_embeddings=128,
    vision=SiglipConfig(embed_dim=16, num_layers=1, num_heads=2, hidden_dim=32, patch_size=4, image_size=16),
    audio=Gemma3nAudioConfig(
        embed_dim=16, num_layers=1, num_heads=2, num_mel_bins=16, subsampling_channels=(8, 4), reduction_factor=2
    ),
)
FRAMES = 32
CLIP_TOKENS = FRAMES // CONFIG.audio.reduction


@functools.cache
def model(seed: int = 0) -> Gemini:
    """Built once. Its layers say more than its embedding does: greedy tokens would repeat each other otherwise."""
    built = Gemini(CONFIG, rngs=nnx.Rngs(seed))
    for layer in built.layers:
        for norm in (layer.post_attention_norm, layer.post_ffw_norm):
            norm.scale[...] += 3.0
    return built


def prompt(seed: int, *, squares: tuple[int, ...] = (), clips: int = 0, words: int = 3, forced: bool = False):
    """(tokens, media) as `load_media_prompt` gives them: words, images of so many squares, a recording, words; forced:
    image_begin at the end."""
    rng = np.random.default_rng(seed)
    pieces = [(rng.integers(3, 40, words), "")]
    for count in squares:
        pieces += [([WORDS.image_begin], ""), ([WORDS.image_soft] * count, "image"), ([WORDS.image_end], "")]
    if clips:
        count = clips * CLIP_TOKENS - 1  # the last frames are padding
        pieces += [([WORDS.audio_begin], ""), ([WORDS.audio_soft] * count, "audio"), ([WORDS.audio_end], "")]
    pieces.append((rng.integers(3, 40, words), ""))
    pieces += [([WORDS.image_begin], "")] * forced
    tokens = np.concatenate([ids for ids, _ in pieces]).astype(np.int32)[None]
    kinds = np.concatenate([[kind] * len(ids) for ids, kind in pieces])

    def slots(kind):
        return np.where(kinds == kind, np.cumsum(kinds == kind) - 1, -1).astype(np.int32)[None]

    images = audio = None
    if squares:
        patches = 4 * sum(squares)
        images = PackedImages(
            rng.uniform(-1, 1, (1, patches, 48)).astype(np.float32),
            rng.uniform(0, 1, (1, patches, 2)).astype(np.float32),
            np.repeat(np.arange(1, len(squares) + 1), [4 * count for count in squares]).astype(np.int32)[None],
        )
    if clips:
        mask = np.arange(clips * FRAMES).reshape(1, clips, FRAMES) < clips * FRAMES - CONFIG.audio.reduction
        audio = AudioClips(rng.normal(size=(1, clips, FRAMES, 16)).astype(np.float32), mask)
    if images is None and audio is None:
        return tokens, None
    return tokens, Media(images, audio, slots("image") if squares else None, slots("audio") if clips else None)
