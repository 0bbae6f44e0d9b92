"""What is compared: kinds of weights of one trained model, and how that model is trained."""

import dataclasses
from dataclasses import dataclass

from zoo.data import DataConfig
from zoo.interop import Packing
from zoo.models.gemini import GEMINI_NANO_1, GeminiConfig
from zoo.nn import Execution
from zoo.recipes import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

FLOAT32, BFLOAT16, INT8, INT4 = "float32", "bfloat16", "int8", "int4"
INT4_OTHER_GROUPS = {64: "int4, groups of 64", 128: "int4, groups of 128"}
EMBEDDING_INT8, NO_SEARCH = "int4, embedding int8", "int4, no search"

PACKINGS = {
    INT8: Packing(8),
    INT4: Packing(4),
    **{name: Packing(4, group=group) for group, name in INT4_OTHER_GROUPS.items()},
    EMBEDDING_INT8: Packing(4, embedding_bits=8),
    NO_SEARCH: Packing(4, search=False),
}
"""Groups of 32 where nothing else is said."""

EXECUTION = Execution(compute_dtype="float32", param_dtype="float32", scan_layers=False)
"""All kinds compute in float32, so that they differ in their weights and in nothing else."""


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    seeds: int = 3
    """Models, each with its own initial weights and order of the data."""
    embed_dim: int = 128
    """Model width; as all that a product contracts a multiple of the largest group."""
    num_layers: int = 4
    """Local and global in turn."""
    hidden_dim: int = 512
    """Feed-forward width."""
    vocab_size: int = 4096
    """Tokens."""
    sequence_length: int = 256
    """T, in training and in scoring."""
    batch_size: int = 4
    """B."""
    steps: int = 300
    """Of training."""
    scored_bytes: int = 120_000
    """Held-out text that is scored."""
    kinds: tuple[str, ...] = tuple(PACKINGS)
    """Packed kinds of weights; float32 and bfloat16 are always there."""
    speed_layers: int = 8
    """Layers of the model whose generation is timed."""
    speed_embed_dim: int = 512
    """Its width; the feed-forward layers have four times as much."""
    speed_rounds: int = 5
    """Interleaved rounds of generation."""
    speed_tokens: int = 48
    """New tokens of each."""
    planned: tuple[str, ...] = ("gemini-nano-1", "gemini-nano-2")
    """Presets whose decode program is compiled from shapes, without weights."""


FULL = Workload()
QUICK = Workload(
    seeds=1,
    num_layers=2,
    hidden_dim=128,
    vocab_size=1024,
    sequence_length=128,
    steps=20,
    scored_bytes=8_000,
    kinds=(INT8, INT4),
    speed_layers=2,
    speed_embed_dim=128,
    speed_rounds=2,
    speed_tokens=32,
    planned=(),
)


def model_of(workload: Workload) -> GeminiConfig:
    """Gemini Nano's block with fewer and narrower layers."""
    return dataclasses.replace(
        GEMINI_NANO_1,
        vocab_size=workload.vocab_size,
        embed_dim=workload.embed_dim,
        num_layers=workload.num_layers,
        num_heads=4,
        head_dim=32,
        hidden_dim=workload.hidden_dim,
        sliding_window=64,
        max_position_embeddings=workload.sequence_length,
    )


def recipe_of(seed: int, workload: Workload, tokenizer: str | None, folder: str) -> Recipe:
    """One model's training as `zoo.train` takes it, on the source text of Python's standard library."""
    return Recipe(
        name=f"quantisation, seed {seed}",
        needs_data=False,
        model=model_of(workload),
        execution=EXECUTION,
        data=DataConfig(
            tokenizer=tokenizer,
            vocab_size=workload.vocab_size,
            sequence_length=workload.sequence_length,
            batch_size=workload.batch_size,
            shuffle_window_tokens=2**22,
            validation_batches=8,
            seed=seed,
        ),
        optimizer=OptimizerConfig(learning_rate=1.2e-2, warmup_steps=max(1, workload.steps // 16), weight_decay=0.1),
        loop=LoopConfig(
            steps=workload.steps,
            log_every=max(1, workload.steps // 10),
            evaluate_every=workload.steps,
            checkpoint_every=workload.steps,
            keep_last=1,
            checksums=False,
        ),
        run_dir=folder,
        seed=seed,
        sample_tokens=0,
        tensorboard=False,
    )
