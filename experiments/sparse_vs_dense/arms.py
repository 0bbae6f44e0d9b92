"""What is compared: models of equal active FLOPs, one recipe for all of them, and which runs there are."""

import dataclasses
from dataclasses import dataclass

from zoo.data import DataConfig
from zoo.models.gemini import GeminiConfig
from zoo.nn import Execution, ExpertsConfig
from zoo.recipes import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig

DENSE, SPARSE = "dense", "sparse"
NO_BALANCING, NO_Z_LOSS, CAPACITY = "no balancing loss", "no z-loss", "capacity"

CHANGES: dict[str, dict] = {
    SPARSE: {},
    NO_BALANCING: {"load_balancing_coefficient": 0.0},
    NO_Z_LOSS: {"router_z_coefficient": 0.0},
    # Room for every token in validation: what is dropped there would depend on the other rows of the batch.
    CAPACITY: {"dispatch": "capacity", "capacity_factor": 1.25, "eval_capacity_factor": 4.0},
}
"""How the sparse arms differ from the dropless model with both losses."""


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    embed_dim: int = 96
    """Model width."""
    num_layers: int = 4
    """Layers, local and global in turn; all of them are sparse in a sparse model."""
    hidden_dim: int = 384
    """Feed-forward width of the dense model; an expert has half of it, and a token goes through two."""
    num_heads: int = 3
    """Query heads of 32 dimensions each, one key/value head."""
    vocab_size: int = 512
    """Tokens."""
    sequence_length: int = 128
    """T."""
    batch_size: int = 16
    """B."""
    steps: int = 2000
    """Of every run."""
    sweep_steps: int = 400
    """Of the runs that choose the learning rate."""
    learning_rates: tuple[float, ...] = (6e-3, 1.2e-2, 2.4e-2)
    """Tried for the dense and for the sparse model."""
    evaluations: int = 5
    """Validations of a run, evenly spaced."""
    validation_batches: int = 16
    """Batches of held-out text in each of them."""
    seeds: tuple[tuple[str, int], ...] = ((DENSE, 3), (SPARSE, 3), (NO_BALANCING, 1), (NO_Z_LOSS, 1), (CAPACITY, 1))
    """How many runs each arm has; run i of every arm reads the same tokens in the same order."""


FULL = Workload()
QUICK = Workload(
    embed_dim=64,
    num_layers=2,
    hidden_dim=128,
    num_heads=2,
    vocab_size=1024,
    sequence_length=128,
    batch_size=4,
    steps=20,
    sweep_steps=10,
    learning_rates=(1e-2,),
    evaluations=2,
    validation_batches=2,
    seeds=((DENSE, 1), (SPARSE, 1), (CAPACITY, 1)),
)


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    """Which model."""
    seed: int
    """Of the initial weights and of the order of the data."""
    learning_rate: float
    """Peak."""
    steps: int
    """Length, which the schedule is stretched over."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(' ', '-')}-{self.steps}-steps-lr-{self.learning_rate:g}-seed-{self.seed}"


def model_of(arm: str, workload: Workload) -> GeminiConfig:
    """The architecture of an arm: all are the same but for the feed-forward layers."""
    dense = GeminiConfig(
        vocab_size=workload.vocab_size,
        embed_dim=workload.embed_dim,
        num_layers=workload.num_layers,
        num_heads=workload.num_heads,
        head_dim=32,
        hidden_dim=workload.hidden_dim,
        sliding_window=64,
        max_position_embeddings=workload.sequence_length,
    )
    if arm == DENSE:
        return dense
    experts = ExpertsConfig(num_experts=8, experts_per_token=2, hidden_dim=workload.hidden_dim // 2, **CHANGES[arm])
    return dataclasses.replace(dense, experts=experts)


def recipe_of(run: Run, workload: Workload, data: tuple[str, ...], tokenizer: str | None, folder: str) -> Recipe:
    """A run as `zoo.train` takes it."""
    every = max(1, run.steps // workload.evaluations)
    return Recipe(
        name=f"sparse-vs-dense, {run.name}",
        needs_data=False,
        model=model_of(run.arm, workload),
        execution=Execution(),
        data=DataConfig(
            paths=data,
            tokenizer=tokenizer,
            vocab_size=workload.vocab_size,
            sequence_length=workload.sequence_length,
            batch_size=workload.batch_size,
            shuffle_window_tokens=2**22,
            validation_batches=workload.validation_batches,
            seed=run.seed,
        ),
        optimizer=OptimizerConfig(learning_rate=run.learning_rate, warmup_steps=max(1, run.steps // 16)),
        loop=LoopConfig(
            steps=run.steps,
            log_every=max(1, run.steps // 20),
            evaluate_every=every,
            checkpoint_every=every,
            keep_last=1,
            checksums=False,
        ),
        run_dir=folder,
        seed=run.seed,
        sample_tokens=0,
        tensorboard=False,
    )


def sweep(workload: Workload) -> list[Run]:
    """The runs that choose the learning rates, of seed 0; none where there is nothing to choose."""
    rates = workload.learning_rates
    return [Run(arm, 0, rate, workload.sweep_steps) for arm in (DENSE, SPARSE) for rate in rates if len(rates) > 1]


def comparison(workload: Workload, rates: dict[str, float]) -> list[Run]:
    """The runs that are compared, seed by seed, so that an early end leaves whole seeds. `rates` has those of the dense
    and of the sparse model; all sparse arms use the latter."""
    most = max(count for _, count in workload.seeds)
    return [
        Run(arm, seed, rates[DENSE if arm == DENSE else SPARSE], workload.steps)
        for seed in range(most)
        for arm, count in workload.seeds
        if seed < count
    ]
