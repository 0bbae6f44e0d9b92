"""Sizes of the study, and each of its runs as `zoo.train` takes it."""

from dataclasses import asdict, dataclass
from pathlib import Path

from experiments.distillation.arms import DISTILLED, SCRATCH, TEACHER, Arm, Run, arm_named, top
from experiments.kept import digest
from zoo.data import DataConfig
from zoo.models.gemma2 import Gemma2Config
from zoo.recipes import Recipe
from zoo.training.loop import LoopConfig
from zoo.training.optimizer import OptimizerConfig
from zoo.training.teacher import DistillationConfig

HEAD_DIM = 32
TEACHER_DATA_SEED = 1_000
"""The teacher reads in an order that no student has."""
VALIDATIONS = 8
"""Of a run, evenly spaced."""


@dataclass(frozen=True)
class ModelSize:
    """One Gemma 2; heads of 32, feed-forward 4 times the width."""

    width: int
    """Of the residual stream."""
    layers: int
    """Local and global in turn."""
    kv_heads: int
    """Key/value heads."""
    learning_rate: float
    """Peak."""
    head_dim: int = HEAD_DIM
    """Of one head; as many heads as fit in the width."""


@dataclass(frozen=True)
class Size:
    """Of one invocation."""

    teacher: ModelSize
    """Trained first, once."""
    students: tuple[ModelSize, ...]
    """Rising."""
    teacher_steps: int
    """Of the teacher."""
    steps: int
    """Of a student with the whole budget."""
    vocab_size: int = 1024
    """Tokens."""
    sequence_length: int = 128
    """T."""
    batch_size: int = 8
    """B, of all runs."""
    shuffle_window_tokens: int = 2**21
    """Rows are shuffled within so many tokens."""
    kept_words: int = 64
    """K of the cache."""
    validation_batches: int = 16
    """Of each validation on the way."""
    test_rows: int = 512
    """Rows of the novels that are measured on after the last step; half as many of WikiText-2."""
    novels: bool = True
    """False: text that is made here, even where there are novels."""
    in_process: bool = False
    """Whether runs share one process: a new one takes seconds to start."""
    arms: tuple[str, ...] = ()
    """Names; none: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each arm."""

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the students."""
        return tuple(student.width for student in self.students)

    @property
    def teacher_run(self) -> Run:
        """The run that comes first."""
        return Run(TEACHER, self.teacher.width, 0)

    def steps_of(self, run: Run) -> int:
        """How long a run is."""
        return self.teacher_steps if run.arm == TEACHER else round(self.steps * arm_named(run.arm).budget)

    def tokens_of(self, run: Run) -> int:
        """That a run reads."""
        return self.steps_of(run) * self.batch_size * self.sequence_length

    def model_size(self, run: Run) -> ModelSize:
        """Of the model that a run trains."""
        if run.arm == TEACHER:
            return self.teacher
        (found,) = (student for student in self.students if student.width == run.width)
        return found

    def made_with(self, run: Run) -> str:
        """A digest of everything that a run comes from, its seed apart; a student's has what its teacher comes from."""
        parts = [asdict(self.model_size(run)), self.steps_of(run), self.data_settings(), self.novels]
        if run.arm != TEACHER:
            arm = arm_named(run.arm)
            parts.append([arm.source, arm.distillation, arm.rate])
            if arm.source != "labels":
                parts.append([asdict(self.teacher), self.teacher_steps])
            if arm.source == "cache":
                parts.append(self.kept_words)
        return digest(parts)

    def data_settings(self) -> dict[str, int]:
        """Of the text that runs read and are measured on; all runs of a folder have them in common."""
        names = ("vocab_size", "sequence_length", "batch_size", "shuffle_window_tokens", "validation_batches")
        return {name: getattr(self, name) for name in (*names, "test_rows")}


FULL = Size(
    teacher=ModelSize(160, 6, 1, 6e-3),
    students=(ModelSize(32, 4, 1, 1.6e-2), ModelSize(64, 4, 1, 1.2e-2), ModelSize(96, 4, 1, 1e-2)),
    teacher_steps=5600,
    steps=1000,
)
QUICK = Size(
    teacher=ModelSize(32, 1, 1, 1e-2, head_dim=16),
    students=(ModelSize(16, 1, 1, 1e-2, head_dim=8),),
    teacher_steps=16,
    steps=8,
    vocab_size=512,
    batch_size=2,
    shuffle_window_tokens=2**14,
    kept_words=8,
    validation_batches=1,
    test_rows=4,
    novels=False,
    in_process=True,
    arms=(SCRATCH, DISTILLED, top(8)),
    seeds=(0,),
)
SIZES = {"full": FULL, "quick": QUICK}


def model_of(size: ModelSize, vocab_size: int, length: int) -> Gemma2Config:
    """The architecture."""
    return Gemma2Config(
        vocab_size=vocab_size,
        embed_dim=size.width,
        num_layers=size.layers,
        num_heads=size.width // size.head_dim,
        num_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        hidden_dim=4 * size.width,
        query_pre_attn_scalar=size.head_dim,
        sliding_window=length // 2,
        max_position_embeddings=length,
    )


def teacher_folder(out: Path, size: Size) -> Path:
    """The teacher's run directory."""
    return out / "runs" / size.teacher_run.name


def cache_folder(out: Path, seed: int) -> Path:
    """What the teacher says of the tokens that runs of a seed read."""
    return out / "caches" / f"seed-{seed}"


def distillation_of(arm: Arm, size: Size, out: Path, seed: int) -> DistillationConfig:
    """How an arm learns from the teacher that lies in `out`."""
    options = dict(arm.distillation)
    if arm.source == "teacher":
        options["teacher"] = str(teacher_folder(out, size))
    elif arm.source == "cache":
        options["teacher_cache"] = str(cache_folder(out, seed))
    return DistillationConfig(**options)


def data_of(size: Size, paths: tuple[str, ...], seed: int, tokenizer: str | None) -> DataConfig:
    """What a run reads: documents and rows in the order of the seed. Held out are the same documents for all runs."""
    return DataConfig(
        paths=paths,
        tokenizer=tokenizer,
        vocab_size=size.vocab_size,
        sequence_length=size.sequence_length,
        batch_size=size.batch_size,
        shuffle_window_tokens=size.shuffle_window_tokens,
        validation_batches=size.validation_batches,
        seed=seed,
        read_threads=1,
    )


def recipe_of(run: Run, size: Size, paths: tuple[str, ...], out: Path) -> Recipe:
    """A run as `zoo.train` takes it; text and tokenizer lie in `out`."""
    is_teacher = run.arm == TEACHER
    model, steps = size.model_size(run), size.steps_of(run)
    rate = 1.0 if is_teacher else arm_named(run.arm).rate
    every = max(1, steps // VALIDATIONS)
    return Recipe(
        name=f"distillation, {run.name}",
        needs_data=False,
        model=model_of(model, size.vocab_size, size.sequence_length),
        data=data_of(size, paths, TEACHER_DATA_SEED if is_teacher else run.seed, str(out / "tokenizer")),
        distillation=DistillationConfig() if is_teacher else distillation_of(arm_named(run.arm), size, out, run.seed),
        optimizer=OptimizerConfig(learning_rate=rate * model.learning_rate, warmup_steps=max(1, steps // 16)),
        loop=LoopConfig(
            steps=steps,
            log_every=max(1, steps // 20),
            evaluate_every=every,
            checkpoint_every=2 * every,
            keep_last=1,
            checksums=False,
        ),
        run_dir=str(out / "runs" / run.name),
        seed=run.seed,
        sample_tokens=0,
        tensorboard=False,
    )
