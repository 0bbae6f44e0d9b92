"""Makes the committed goldens of the media encoders and of the log-mel front ends out of transformers.

    python tests/goldens/make_encoder_goldens.py      # tests/goldens/encoders/

Nothing of zoo is used here, so that a mistake in zoo cannot reach what it is compared with. All in float32 on CPU. The
files in the repository were made with transformers 5.24 and torch 2.13.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Gemma3nAudioConfig,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.gemma3n.feature_extraction_gemma3n import Gemma3nAudioFeatureExtractor
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nAudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

FOLDER = Path(__file__).parent / "encoders"
# A grid of three: no power of two, and 14 pixels leave two over.
SIGLIP = {
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 14,
    "patch_size": 4,
}
# A look-ahead, which the released encoder has not, and a last chunk that is not full.
GEMMA3N = {
    "hidden_size": 8,
    "input_feat_size": 10,
    "conf_num_hidden_layers": 2,
    "conf_num_attention_heads": 2,
    "conf_attention_chunk_size": 4,
    "conf_attention_context_left": 3,
    "conf_attention_context_right": 2,
    "conf_attention_logit_cap": 5.0,
    "conf_conv_kernel_size": 3,
    "conf_reduction_factor": 2,
    "sscp_conv_channel_size": [4, 3],
}
WHISPER = {
    "d_model": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "num_mel_bins": 6,
    "max_source_positions": 10,
}
# An even number of frames, twice odd on the way.
PARAKEET = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_mel_bins": 8,
    "conv_kernel_size": 3,
    "subsampling_factor": 4,
    "subsampling_conv_channels": 3,
}
WAV2VEC2 = {
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "conv_depthwise_kernel_size": 3,
    "conv_dim": [4, 6],
    "conv_kernel": [5, 3],
    "conv_stride": [4, 2],
    "feat_extract_norm": "layer",
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
}
PRESETS = {
    "siglip-base-patch16-224": (SiglipVisionModel, SiglipVisionConfig()),
    "siglip-so400m-patch14-224": (SiglipVisionModel, "so400m", 224, True),
    "siglip-so400m-patch14-384": (SiglipVisionModel, "so400m", 384, True),
    "paligemma-vision": (SiglipVisionModel, "so400m", 224, False),
    "gemma3-vision": (SiglipVisionModel, "so400m", 896, False),
    "gemma3n-audio": (Gemma3nAudioEncoder, Gemma3nAudioConfig()),
    "whisper-tiny-encoder": (WhisperEncoder, "whisper", 384, 4, 6, 80),
    "whisper-base-encoder": (WhisperEncoder, "whisper", 512, 6, 8, 80),
    "whisper-small-encoder": (WhisperEncoder, "whisper", 768, 12, 12, 80),
    "whisper-medium-encoder": (WhisperEncoder, "whisper", 1024, 24, 16, 80),
    "whisper-large-v3-encoder": (WhisperEncoder, "whisper", 1280, 32, 20, 128),
}


def randomised(model, keep: tuple[str, ...] = ()):
    """The model with random parameters, biases and norms too, but those called `keep`."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in keep:
                noise = torch.randn(parameter.shape) * 0.3
                parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape) + 0.5)
    return model.float().eval()


def write(name: str, model, **arrays) -> None:
    """The model's folder, with inputs and results beside it."""
    model.save_pretrained(FOLDER / name)
    arrays = {key: value.numpy() if torch.is_tensor(value) else value for key, value in arrays.items()}
    np.savez_compressed(FOLDER / name / "expected.npz", **arrays)


def make_siglip() -> None:
    """Pooled and unpooled results for images whose sides are no multiple of the patch."""
    model = randomised(SiglipVisionModel._from_config(SiglipVisionConfig(**SIGLIP), attn_implementation="eager"))
    pixels = torch.randn(2, 3, 14, 14)
    with torch.no_grad():
        out = model(pixels, output_hidden_states=True)
    write(
        "siglip",
        model,
        pixel_values=pixels,
        last_hidden_state=out.last_hidden_state,
        hidden_states=torch.stack(out.hidden_states),
        pooler_output=out.pooler_output,
    )


def make_gemma3n() -> None:
    """Two recordings, the second with 13 padded frames at its end and a gap of padding, after which it goes on."""
    model = randomised(Gemma3nAudioEncoder(Gemma3nAudioConfig(**GEMMA3N)))
    mel, padding = torch.randn(2, 43, 10), torch.zeros(2, 43, dtype=torch.bool)
    padding[1, 30:] = True
    padding[1, 12:17] = True
    with torch.no_grad():
        out = model(mel, padding)
    write(
        "gemma3n_audio",
        model,
        audio_mel=mel,
        audio_mel_mask=padding,
        last_hidden_state=out.last_hidden_state,
        output_mask=out.audio_mel_mask,
    )


def make_whisper() -> None:
    """The positions are those that a new encoder has."""
    model = WhisperEncoder._from_config(WhisperConfig(**WHISPER), attn_implementation="eager")
    model = randomised(model, keep=("embed_positions.weight",))
    features = torch.randn(2, 6, 20)
    with torch.no_grad():
        out = model(features, output_hidden_states=True)
    write(
        "whisper",
        model,
        input_features=features,
        last_hidden_state=out.last_hidden_state,
        hidden_states=torch.stack(out.hidden_states),
    )


def make_parakeet() -> None:
    """Two recordings, the second with 15 padded frames at its end; batch norms with statistics of their own."""
    model = ParakeetEncoder._from_config(ParakeetEncoderConfig(**PARAKEET), attn_implementation="eager")
    model = randomised(model)
    features, mask = torch.randn(2, 38, 8), torch.ones(2, 38, dtype=torch.int64)
    mask[1, 23:] = 0
    with torch.no_grad():
        out = model(features, output_hidden_states=True)
        masked = model(features, attention_mask=mask)
    write(
        "parakeet",
        model,
        input_features=features,
        last_hidden_state=out.last_hidden_state,
        hidden_states=torch.stack(out.hidden_states),
        attention_mask=mask,
        last_hidden_state_masked=masked.last_hidden_state,
        output_mask=masked.attention_mask,
    )


def make_wav2vec2() -> None:
    """No vector of masked frames and no biases in front, unlike the larger test data."""
    config = Wav2Vec2ConformerConfig(**WAV2VEC2)
    model = randomised(Wav2Vec2ConformerModel._from_config(config, attn_implementation="eager"))
    samples = torch.randn(2, 90)
    with torch.no_grad():
        out = model(samples, output_hidden_states=True)
    write(
        "wav2vec2_conformer",
        model,
        input_values=samples,
        last_hidden_state=out.last_hidden_state,
        hidden_states=torch.stack(out.hidden_states),
        extract_features=out.extract_features,
    )


def make_log_mel() -> None:
    """A rising tone with noise, then silence, then noise; as 16-bit samples, which both sides divide by 32,768."""
    rng = np.random.default_rng(0)
    time = np.arange(6000) / 16_000
    tone = 0.3 * np.sin(2 * np.pi * (200 + 4000 * time) * time) + 0.01 * rng.standard_normal(6000)
    tone[3000:4500] = 0
    samples = np.round(tone * 32_767).astype(np.int16)
    waveform = samples / 32_768
    usm = Gemma3nAudioFeatureExtractor()
    silence = np.zeros(2 * usm.frame_length)
    padded = np.concatenate([waveform, silence])[None]
    real = np.arange(padded.shape[1]) < len(waveform)
    features, mask = usm._extract_spectrogram(padded, real)
    arrays = {"samples": samples, "usm": features[mask].astype(np.float32)}
    for bins in (80, 128):
        whisper = WhisperFeatureExtractor(feature_size=bins, chunk_length=1)
        full = np.pad(waveform, (0, whisper.n_samples - len(waveform)))
        # Every eighth frame is enough, and the loudest feature of all enters every one.
        arrays[f"whisper_{bins}"] = whisper._np_extract_fbank_features(full[None], "cpu")[0][:, ::8].astype(np.float32)
    np.savez_compressed(FOLDER / "log_mel.npz", **arrays)


def count_parameters() -> None:
    """Of the presets, by transformers, without allocating them."""
    counts = {}
    for name, (kind, config, *sizes) in PRESETS.items():
        if config == "so400m":
            config = SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                patch_size=14,
                image_size=sizes[0],
                vision_use_head=sizes[1],
            )
        elif config == "whisper":
            width, layers, heads, bins = sizes
            config = WhisperConfig(
                d_model=width,
                encoder_layers=layers,
                encoder_attention_heads=heads,
                encoder_ffn_dim=4 * width,
                num_mel_bins=bins,
            )
        with torch.device("meta"):
            model = kind(config)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    (FOLDER / "num_parameters.json").write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    make_siglip()
    make_gemma3n()
    make_whisper()
    make_parakeet()
    make_wav2vec2()
    make_log_mel()
    count_parameters()
