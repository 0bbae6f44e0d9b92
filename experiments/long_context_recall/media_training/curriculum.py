"""What a model of media is trained on, stage by stage, as data.

First a frame alone is read, or some recordings are written down; then one is hidden among others, and encoders learn
with the decoder. After that the encoders rest: their soft tokens are kept, and the decoder alone goes on to longer and
longer rows.
"""

from dataclasses import dataclass
from typing import Literal

from experiments.long_context_recall.audio import AudioHaystack
from experiments.long_context_recall.video import VideoHaystack
from zoo.data import MediaConfig
from zoo.models import GeminiConfig
from zoo.models.gemma3n_audio import Gemma3nAudioConfig
from zoo.models.siglip import SiglipConfig
from zoo.training.optimizer import OptimizerConfig

Task = Literal["video", "audio-keyword"]
"""Names of media tasks (`grid.MEDIA_TASKS`)."""


@dataclass(frozen=True)
class Stage:
    """A part of a run whose rows are of one kind."""

    name: str
    """Of its folder."""
    units: int
    """Frames, or clips, of a row; 0: one frame with a word, or one clip to be written down."""
    batch_size: int
    """B, rows in a step."""
    steps: int
    """Of one attempt."""
    learning_rate: float
    """Peak; each attempt has a schedule of its own, from a warm-up down to a twentieth."""
    words: int | None = None
    """Only so many of the answers are asked for; None: all."""
    encoders: bool = True
    """Whether encoders are trained, too; else their soft tokens are made once."""
    gate: float = 0.0
    """Part of validation rows whose answer should be right at the end."""
    attempts: int = 1
    """How often the stage is done, each time from where it ended before, until `gate` is reached. The run goes on after
    the last one in any case."""
    test_rows: int = 256
    """Validation rows that are answered after each attempt."""


@dataclass(frozen=True)
class Workload:
    """Sizes of one run."""

    task: Task
    """What is learnt."""
    stages: tuple[Stage, ...]
    """In their order."""
    media: MediaConfig
    """How media become tokens."""
    items: int = 3000
    """Needles of the training material, each on a frame or among recordings of its own."""
    plain: int = 1500
    """Other frames or clips of the training material."""
    test_items: int = 300
    """Of each in the validation material."""
    embed_dim: int = 128
    """Model width."""
    layer_types: tuple[str, ...] = ("local", "global")
    """All layers; global ones see no positions."""
    window: int = 64
    """Of local layers."""
    encoder_dim: int = 96
    """Width of the encoder."""
    encoder_layers: int = 3
    """Its layers."""
    vocab_size: int = 640
    """Tokens of the tokenizer."""
    video: VideoHaystack = VideoHaystack()
    """Overlay and words; the task's own."""
    audio: AudioHaystack = AudioHaystack()
    """Keywords and pauses; the task's own."""


def model_of(workload: Workload, words: int, length: int) -> GeminiConfig:
    """The architecture. words: ids of the vocabulary with its media tokens; length: of the longest row."""
    dim, layers, media = workload.encoder_dim, workload.encoder_layers, workload.media
    vision = audio = None
    if workload.task == "video":
        vision = SiglipConfig(dim, layers, dim // 32, 2 * dim, media.patch_size, 8 * media.patch_size)
    else:
        factor = media.audio_reduction // 4  # the convolutions have made four frames one
        audio = Gemma3nAudioConfig(
            dim, layers, dim // 32, media.mel_bins, chunk_size=media.clip_frames // 4, reduction_factor=factor,
            subsampling_channels=(16, 16),
        )  # fmt: skip
    return GeminiConfig(
        vocab_size=-(-words // 64) * 64,
        embed_dim=workload.embed_dim,
        num_layers=len(workload.layer_types),
        num_heads=workload.embed_dim // 32,
        num_kv_heads=max(1, workload.embed_dim // 64),
        head_dim=32,
        hidden_dim=3 * workload.embed_dim,
        sliding_window=workload.window,
        layer_types=workload.layer_types,
        post_norms=False,  # with them a short run does not begin to hear (`GEMINI_TINY_MULTIMODAL`)
        global_rope=False,
        vision=vision,
        vision_merge=media.merge,
        audio=audio,
        max_position_embeddings=length,
    )


def optimizer_of(stage: Stage) -> OptimizerConfig:
    """AdamW."""
    return OptimizerConfig(
        learning_rate=stage.learning_rate,
        warmup_steps=min(50, stage.steps // 5),
        schedule="cosine",
        final_learning_rate_fraction=0.05,
        b2=0.98,
        weight_decay=0.05,
    )


# A frame of 72 x 128 pixels becomes 2 x 4 squares of 32: eight soft tokens, fifteen with its time stamp and markers.
FRAMES = MediaConfig(patch_size=16, merge=2, max_patches=32, patches_per_row=32, video_frames=1)
VIDEO = Workload(
    "video",
    (
        Stage("8-words", 0, 32, 300, 1e-3, words=8, gate=0.95, attempts=3),
        Stage("alone", 0, 32, 600, 1e-3, gate=0.97, attempts=3),
        Stage("4-frames", 4, 16, 150, 1e-3, gate=0.95, attempts=3),
        Stage("16-frames", 16, 8, 150, 1e-3, gate=0.95, attempts=2),
        Stage("64-frames", 64, 4, 150, 5e-4, encoders=False, gate=0.97, attempts=2),
        Stage("256-frames", 256, 2, 100, 3e-4, encoders=False, gate=0.97, attempts=2, test_rows=96),
        Stage("547-frames", 547, 1, 100, 3e-4, encoders=False, gate=0.98, attempts=2, test_rows=64),
    ),
    FRAMES,
)
# A clip is 1.92 seconds of a recording, twelve soft tokens.
CLIPS = MediaConfig(clips_per_row=1, clip_frames=192, audio_reduction=16)
AUDIO = Workload(
    "audio-keyword",
    (
        Stage("one-word", 0, 24, 250, 1e-3, words=10),
        # Here words are learnt, several in a clip; later rows teach one each, at twice the cost of a step and more.
        Stage("alone", 0, 24, 1500, 1e-3, gate=0.97, attempts=2),
        Stage("2-clips", 2, 16, 400, 5e-4, gate=0.98, attempts=2),
        Stage("8-clips", 8, 8, 400, 5e-4, encoders=False, gate=0.97, attempts=2),
        Stage("64-clips", 64, 4, 400, 5e-4, encoders=False, gate=0.95, attempts=2),
        Stage("256-clips", 256, 2, 120, 3e-4, encoders=False, gate=0.95, attempts=2, test_rows=96),
        Stage("684-clips", 684, 1, 100, 3e-4, encoders=False, gate=0.97, attempts=2, test_rows=64),
    ),
    CLIPS,
    items=2500,
)
