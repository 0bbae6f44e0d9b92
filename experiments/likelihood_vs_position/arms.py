"""What is compared: a model with a global layer and one without, and which runs there are."""

import dataclasses
from dataclasses import dataclass

from experiments.likelihood_vs_position.rows import Copies
from experiments.likelihood_vs_position.training import Stage, total_steps
from zoo.models import GeminiConfig
from zoo.training.optimizer import OptimizerConfig

LONG, WINDOW = "local and global", "window only"


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    embed_dim: int = 128
    """Model width."""
    layer_types: tuple[str, ...] = ("local", "local", "local", "global")
    """Of the long model; the control has as many, all of them local."""
    num_heads: int = 4
    """Query heads of 32 dimensions each."""
    num_kv_heads: int = 2
    """Key/value heads."""
    hidden_dim: int = 384
    """Feed-forward width."""
    sliding_window: int = 64
    """W of local layers."""
    vocab_size: int = 1024
    """Tokens; few, so that a name is several of them and what follows its first can be copied."""
    stages: tuple[Stage, ...] = (
        Stage(256, 8, 800, Copies(spans=1, span=64, gap=16, share=0.75)),
        Stage(1024, 2, 700),
        Stage(4096, 1, 200),
    )
    """Rows grow; those of the first stage teach to copy, the others are text as it is."""
    learning_rate: float = 3e-3
    """Peak."""
    length: int = 16_384
    """Tokens of a passage that is measured on."""
    passages: int = 96
    """How many of them, at most."""
    chunk: int = 1024
    """Tokens that are scored at a time."""
    rows_at_once: int = 8
    """Passages that are scored side by side."""
    seeds: int = 3
    """Runs of each arm; run i of both arms reads the same tokens in the same order."""
    draws: int = 1000
    """Resamples of the documents."""
    train_bytes: int = 24_000_000
    """Of the training text, at most."""

    @property
    def trained_length(self) -> int:
        """Tokens of the longest rows in training."""
        return max(stage.length for stage in self.stages)

    @property
    def reach(self) -> int:
        """Tokens, the predicted one's predecessor included, that the control can see through all of its layers."""
        return len(self.layer_types) * (self.sliding_window - 1) + 1

    def setting(self) -> dict[str, object]:
        """What runs of one folder must have in common."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in ("seeds", "draws")}


FULL = Workload()
QUICK = Workload(
    embed_dim=64,
    layer_types=("local", "global"),
    num_heads=2,
    num_kv_heads=1,
    hidden_dim=128,
    sliding_window=16,
    vocab_size=512,
    stages=(Stage(64, 16, 40, Copies(spans=1, span=16, gap=16, share=0.5)), Stage(256, 4, 10)),
    length=1024,
    passages=12,
    chunk=256,
    rows_at_once=4,
    seeds=1,
    draws=200,
    train_bytes=400_000,
)
WORKLOADS = {"full": FULL, "quick": QUICK}


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    """Which model."""
    seed: int
    """Of the initial weights and of the rows."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(' ', '-')}-seed-{self.seed}"


def model_of(arm: str, workload: Workload) -> GeminiConfig:
    """The architecture of an arm. The global layer sees no positions, so that they cannot be unknown to it beyond the
    trained length; without norms on the way out of sub-layers short runs learn faster (docs/decisions.md)."""
    layers = workload.layer_types
    return GeminiConfig(
        vocab_size=workload.vocab_size,
        embed_dim=workload.embed_dim,
        num_layers=len(layers),
        num_heads=workload.num_heads,
        num_kv_heads=workload.num_kv_heads,
        head_dim=32,
        hidden_dim=workload.hidden_dim,
        sliding_window=workload.sliding_window,
        layer_types=layers if arm == LONG else ("local",),
        global_rope=False,
        post_norms=False,
        max_position_embeddings=workload.trained_length,
    )


def optimizer_of(workload: Workload) -> OptimizerConfig:
    """The same for both arms; the rate falls at the end only, since the longest rows come last."""
    warmup = max(1, total_steps(workload.stages) // 16)
    return OptimizerConfig(learning_rate=workload.learning_rate, schedule="wsd", warmup_steps=warmup)


def runs_of(workload: Workload) -> list[Run]:
    """Seed by seed, so that an early end leaves whole seeds."""
    return [Run(arm, seed) for seed in range(workload.seeds) for arm in (LONG, WINDOW)]
