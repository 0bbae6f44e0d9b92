"""What is compared: one Gemma 2 model, the same with one choice changed, and at which learning rates."""

import dataclasses
from dataclasses import dataclass

from zoo.errors import UserError, nearest_name
from zoo.models.gemini import GeminiConfig
from zoo.training.optimizer import OptimizerConfig

BASE, MULTI_HEAD, SAME_WIDTHS = "gemma 2", "multi-head", "multi-head, same widths"
WIDE, DEEP = "wide", "deep"
NO_CAPS, PRE_NORMS, GELU = "no soft-caps", "pre-norms only", "gelu"

ARMS = {
    BASE: "grouped-query attention (2 query heads for each key/value head), soft-caps 50 and 30, norms before and "
    "after sub-layers, GeGLU, local and global layers in turn",
    MULTI_HEAD: "a key/value head for each query head; the feed-forward width falls, so that the parameters are equal",
    SAME_WIDTHS: "the same with the feed-forward width of the base: more parameters, as in the report's table 8",
    WIDE: "half the layers, wider",
    DEEP: "twice the layers, narrower",
    NO_CAPS: "no soft-cap of attention or output logits",
    PRE_NORMS: "no norms after sub-layers",
    GELU: "down(gelu(up(x))) instead of GeGLU",
}
"""What is different about each arm."""
SWEPT = (BASE, NO_CAPS, PRE_NORMS)
"""Arms that are trained at all learning rates; the others at the first one only."""


@dataclass(frozen=True)
class Shape:
    """What makes a model wide or deep."""

    num_layers: int
    """Layers, local and global in turn."""
    embed_dim: int
    """Model width."""
    head_dim: int
    """Of each of the heads, whose number stays."""


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    base: Shape = Shape(4, 96, 24)
    """Of the base and of all arms that change something else."""
    wide: Shape = Shape(2, 128, 32)
    """Of the wide arm."""
    deep: Shape = Shape(8, 72, 18)
    """Of the deep arm."""
    num_heads: int = 4
    """Query heads; half as many key/value heads, as in Gemma 2."""
    hidden_dim: int = 288
    """Feed-forward width of the base."""
    vocab_size: int = 1024
    """Tokens."""
    sequence_length: int = 128
    """T."""
    sliding_window: int = 64
    """Keys that a local layer sees in training: half of T, as in Gemma 2."""
    windows: tuple[int, ...] = (64, 32, 16, 8, 128)
    """At inference: W, W/2 and W/4 as in the report's table 10, then W/8, and T, with which local layers are global."""
    batch_size: int = 16
    """B."""
    steps: int = 500
    """Of every run."""
    learning_rates: tuple[float, ...] = (1e-2, 3e-2, 1e-1, 3e-1)
    """Peaks; the first is that of all comparisons but the one of learning rates."""
    probe_every: int = 25
    """Steps between two looks at the largest logits."""
    probe_rows: int = 8
    """Held-out rows that these are taken over."""
    test_rows: int = 256
    """Held-out rows that the loss is taken over."""
    train_bytes: int = 20_000_000
    """Of the text that rows are drawn from."""
    tokenizer_bytes: int = 4_000_000
    """Of the text that the tokenizer is trained on."""
    novels: bool = True
    """False: text that is made here, even where there are novels."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Names."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each arm and rate."""


FULL = Workload()
QUICK = Workload(
    base=Shape(2, 32, 8),
    wide=Shape(2, 36, 8),
    deep=Shape(4, 24, 6),
    hidden_dim=64,
    vocab_size=320,
    sequence_length=32,
    sliding_window=16,
    windows=(16, 8, 4),
    batch_size=4,
    steps=6,
    learning_rates=(1e-2,),
    probe_every=3,
    probe_rows=2,
    test_rows=8,
    train_bytes=60_000,
    tokenizer_bytes=60_000,
    novels=False,
    arms=(BASE, NO_CAPS),
    seeds=(0,),
)
WORKLOADS = {"full": FULL, "quick": QUICK}


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    """Which model."""
    learning_rate: float
    """Peak."""
    seed: int
    """Of the initial weights and of the rows."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(', ', '-').replace(' ', '-')}-lr-{self.learning_rate:g}-seed-{self.seed}"


def runs_of(workload: Workload, arms: tuple[str, ...] = (), seeds: tuple[int, ...] = ()) -> list[Run]:
    """All runs, seed by seed, so that an early end leaves whole seeds; in a seed first those at the first learning
    rate. arms, seeds: none: the workload's. Raises `UserError` for an arm or a seed that there is not."""
    for arm in arms:
        if arm not in ARMS:
            raise UserError(f"--arms: {arm!r} is unknown; {nearest_name(arm, list(ARMS))}")
    for seed in seeds:
        if seed < 0:
            raise UserError(f"--seeds must be 0 or more, got {seed}")
    chosen = [arm for arm in ARMS if arm in (arms or workload.arms)]
    first, *others = workload.learning_rates
    return [
        Run(arm, rate, seed)
        for seed in dict.fromkeys(seeds or workload.seeds)
        for rate in (first, *others)
        for arm in chosen
        if rate == first or arm in SWEPT
    ]


def model_of(arm: str, workload: Workload) -> GeminiConfig:
    """The architecture of an arm: as many parameters as the base has, the embedding included, to the nearest
    feed-forward width; only `SAME_WIDTHS` keeps that of the base instead. With a tied embedding equal parameters are
    equal products: the table is a matrix of the output head."""
    base = _with_shape(workload, workload.base)
    changed = dataclasses.replace(base, **_changes(arm, workload))
    if arm in (BASE, SAME_WIDTHS):
        return changed
    per_width = (3 if changed.gated else 2) * changed.num_layers * changed.embed_dim
    rest = changed.num_parameters() - per_width * changed.hidden_dim
    return dataclasses.replace(changed, hidden_dim=round((base.num_parameters() - rest) / per_width))


def _with_shape(workload: Workload, shape: Shape) -> GeminiConfig:
    return GeminiConfig(
        vocab_size=workload.vocab_size,
        num_heads=workload.num_heads,
        num_kv_heads=workload.num_heads // 2,
        hidden_dim=workload.hidden_dim,
        sliding_window=workload.sliding_window,
        attn_logit_soft_cap=50.0,
        final_logit_soft_cap=30.0,
        max_position_embeddings=workload.sequence_length,
        **dataclasses.asdict(shape),
    )


def _changes(arm: str, workload: Workload) -> dict:
    """Fields of the config in which an arm differs from the base, the feed-forward width apart."""
    changes: dict[str, dict] = {
        BASE: {},
        MULTI_HEAD: {"num_kv_heads": workload.num_heads},
        SAME_WIDTHS: {"num_kv_heads": workload.num_heads},
        WIDE: dataclasses.asdict(workload.wide),
        DEEP: dataclasses.asdict(workload.deep),
        NO_CAPS: {"attn_logit_soft_cap": None, "final_logit_soft_cap": None},
        PRE_NORMS: {"post_norms": False},
        GELU: {"gated": False},
    }
    return changes[arm]


def optimizer_of(workload: Workload) -> OptimizerConfig:
    """AdamW for a peak rate of 1; `training.scaled_by` multiplies its updates with the run's."""
    return OptimizerConfig(learning_rate=1.0, warmup_steps=max(1, workload.steps // 16))
