"""What is compared: one decoder with four patterns of local and global layers, and which runs there are."""

import dataclasses
from dataclasses import dataclass

from experiments.likelihood_vs_position.rows import Copies
from experiments.likelihood_vs_position.training import Stage, total_steps
from zoo.models import Gemma2Config
from zoo.training.optimizer import OptimizerConfig

ALL_GLOBAL, INTERLEAVED, SPARSE, ALL_LOCAL = "all global", "1:1", "5:1", "all local"
"""Local layers for each global one; 1:1 is Gemma 2's, 5:1 that of Gemma 3."""

PATTERNS: dict[str, tuple[str, ...]] = {
    ALL_GLOBAL: ("global",),
    INTERLEAVED: ("local", "global"),
    SPARSE: ("local",) * 5 + ("global",),
    ALL_LOCAL: ("local",),
}


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    embed_dim: int = 96
    """Model width."""
    num_layers: int = 6
    """Layers, so that 5:1 has one global layer."""
    num_heads: int = 3
    """Query heads of 32 dimensions each."""
    num_kv_heads: int = 1
    """Key/value heads."""
    hidden_dim: int = 256
    """Feed-forward width."""
    sliding_window: int = 32
    """W of local layers."""
    vocab_size: int = 512
    """Tokens."""
    stages: tuple[Stage, ...] = (
        Stage(128, 16, 600, Copies(spans=1, span=32, gap=16)),
        Stage(512, 4, 700, Copies(spans=4, span=32, gap=192)),
    )
    """Rows of training. The first stage teaches to copy at all; copies of the last one lie beyond the reach of all
    local layers together."""
    learning_rate: float = 4e-3
    """Peak."""
    rows: int = 96
    """Rows that are measured on; of the last stage's length, with its copies."""
    rows_at_once: int = 16
    """Rows that are scored side by side."""
    windows: tuple[int, ...] = (32, 16, 8, 4)
    """Windows of local layers at inference; the first one is that of training."""
    seeds: int = 3
    """Runs of each arm; run i of every arm reads the same tokens in the same order."""
    train_bytes: int = 24_000_000
    """Of the training text, at most."""
    cache_lengths: tuple[int, ...] = (512, 8192, 32_768)
    """Tokens of the caches whose size is compared."""
    step_shape: tuple[int, int] = (1, 2048)
    """B and T of the timed training step."""
    decode_context: int = 8192
    """Tokens in the cache of the timed decode steps."""
    decode_tokens: int = 64
    """Tokens that are written after them."""
    rounds: int = 7
    """Of the timing, all arms in turn in each."""

    @property
    def trained_length(self) -> int:
        """T of the last stage."""
        return self.stages[-1].length

    @property
    def copies(self) -> Copies:
        """Those that are measured: of the last stage."""
        copies = self.stages[-1].copies
        assert copies is not None
        return copies

    @property
    def reach(self) -> int:
        """Tokens that the all-local model sees through all of its layers."""
        return self.num_layers * (self.sliding_window - 1) + 1

    def setting(self) -> dict[str, object]:
        """What runs of one folder must have in common."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "seeds"}


FULL = Workload()
QUICK = Workload(
    embed_dim=64,
    num_layers=2,
    num_heads=2,
    hidden_dim=128,
    sliding_window=8,
    stages=(Stage(64, 8, 40, Copies(spans=2, span=12, gap=16)),),
    rows=32,
    windows=(8, 4),
    seeds=1,
    train_bytes=400_000,
    cache_lengths=(64, 1024),
    step_shape=(8, 64),
    decode_context=512,
    decode_tokens=8,
    rounds=2,
)
WORKLOADS = {"full": FULL, "quick": QUICK}


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    """Which pattern."""
    seed: int
    """Of the initial weights and of the rows."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(' ', '-').replace(':', '-to-')}-seed-{self.seed}"


def arms_of(workload: Workload) -> list[str]:
    """The patterns that differ from each other with so many layers."""
    return [arm for arm, pattern in PATTERNS.items() if len(pattern) <= workload.num_layers]


def model_of(arm: str, workload: Workload) -> Gemma2Config:
    """The architecture of an arm: Gemma 2's but for the pattern. All have the same parameters."""
    return Gemma2Config(
        vocab_size=workload.vocab_size,
        embed_dim=workload.embed_dim,
        num_layers=workload.num_layers,
        num_heads=workload.num_heads,
        num_kv_heads=workload.num_kv_heads,
        head_dim=32,
        hidden_dim=workload.hidden_dim,
        query_pre_attn_scalar=32,
        sliding_window=workload.sliding_window,
        layer_types=PATTERNS[arm],
        max_position_embeddings=workload.trained_length,
    )


def optimizer_of(workload: Workload) -> OptimizerConfig:
    """The same for all arms; the rate falls at the end only, since the longest rows come last."""
    warmup = max(1, total_steps(workload.stages) // 16)
    return OptimizerConfig(learning_rate=workload.learning_rate, schedule="wsd", warmup_steps=warmup)


def runs_of(workload: Workload) -> list[Run]:
    """Seed by seed, so that an early end leaves whole seeds."""
    return [Run(arm, seed) for seed in range(workload.seeds) for arm in arms_of(workload)]
