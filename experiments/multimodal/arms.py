"""What is trained: one model of everything, one model for each kind of document, and one that sees texts alone."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from zoo.models import GeminiConfig
from zoo.recipes import Recipe, recipe
from zoo.training.optimizer import OptimizerConfig

JOINT, TEXT_ONLY = "joint", "text only"
SINGLES = {
    "speech": ("speech",),
    "picture": ("picture", "statement"),
    "video": ("digit", "pair", "video"),
    "draw": ("draw",),
    "text": ("text",),
}
"""The models of one modality, and the folders that each is trained on. Together these are the joint model's."""
ALL_FOLDERS = tuple(folder for folders in SINGLES.values() for folder in folders)
READ_FOLDERS = tuple(folder for folder in ALL_FOLDERS if folder != "draw")
"""Those that leave something when their media are taken away."""


@dataclass(frozen=True)
class Packing:
    """What a batch of an arm holds."""

    rows: int
    """B, rows of T tokens."""
    patches: int = 0
    """Patches of a row."""
    clips: int = 0
    """Clips of a row."""


@dataclass(frozen=True)
class Workload:
    """Sizes of one invocation."""

    steps: int = 600
    """Of every run."""
    learning_rate: float = 1e-3
    """Peak, of every run."""
    warmup_steps: int = 50
    """Of every run."""
    seeds: int = 3
    """Run i of an arm has seed i."""
    evaluations: int = 4
    """Looks at the test documents during a run, evenly spaced; all but the last at a part of them."""
    part: int = 150
    """Test documents of each kind in those."""
    most_test: int = 1000
    """Most test documents of each kind in the last one."""
    drawings: int = 20
    """Images that are drawn of each digit."""
    embed_dim: int = 128
    """Model width."""
    num_layers: int = 4
    """Decoder layers."""
    encoder_layers: int = 3
    """Layers of each encoder."""
    vocab_size: int = 1024
    """Tokens of the tokenizer."""
    arms: tuple[str, ...] = (JOINT, TEXT_ONLY, *SINGLES)
    """The models."""
    image_codes: int = 256
    """Codes of the tokenizer of images."""
    vq_steps: int = 700
    """Of the tokenizer of images."""
    classifier_steps: int = 600
    """Of the classifier that judges drawings."""
    packings: tuple[tuple[str, Packing], ...] = (
        (JOINT, Packing(23, 112, 2)),
        (TEXT_ONLY, Packing(10)),
        ("speech", Packing(3, clips=9)),
        ("picture", Packing(5, 128)),
        ("video", Packing(9, 192)),
        ("draw", Packing(4)),
        ("text", Packing(2)),
    )
    """Chosen so that a step of a model of one modality has as many of its documents as a step of the joint model, and
    all of them together as many rows."""
    datasets: tuple[tuple[str, int], ...] = ()
    """Fields of `DatasetsConfig` that are not its defaults."""


FULL = Workload()
QUICK = Workload(
    steps=12,
    seeds=1,
    evaluations=2,
    part=16,
    most_test=24,
    drawings=2,
    embed_dim=64,
    num_layers=2,
    encoder_layers=1,
    vocab_size=480,
    arms=(JOINT, "speech"),
    image_codes=64,
    vq_steps=5,
    classifier_steps=30,
    warmup_steps=2,
    packings=(
        (JOINT, Packing(8, 96, 2)),
        (TEXT_ONLY, Packing(4)),
        ("speech", Packing(2, clips=8)),
        ("picture", Packing(3, 144)),
        ("video", Packing(3, 192)),
        ("draw", Packing(2)),
        ("text", Packing(2)),
    ),
    datasets=(("speech_copies", 1), ("picture_copies", 1), ("most", 120), ("videos", 60), ("pairs", 60), ("digits", 60),
              ("drawings", 60), ("texts", 60)),
)  # fmt: skip
WORKLOADS = {"full": FULL, "quick": QUICK}


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    """Which model."""
    seed: int
    """Of the initial weights and of the order of the documents."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(' ', '-')}-seed-{self.seed}"


def runs_of(workload: Workload) -> list[Run]:
    """All runs, seed by seed, so that an early end leaves whole seeds."""
    return [Run(arm, seed) for seed in range(workload.seeds) for arm in workload.arms]


def folders_of(arm: str) -> tuple[str, ...]:
    """The folders of documents that an arm is trained on."""
    return ALL_FOLDERS if arm == JOINT else READ_FOLDERS if arm == TEXT_ONLY else SINGLES[arm]


def data_file(data: Path, arm: str, folder: str) -> Path:
    """Training documents as an arm reads them: `prepare` takes the media away, and writes codes of what is drawn."""
    if arm == TEXT_ONLY:
        return data / TEXT_ONLY.replace(" ", "_") / f"{folder}.jsonl"
    return data / folder / ("codes.jsonl" if folder == "draw" else "train.jsonl")


def model_of(workload: Workload, image_codes: int) -> GeminiConfig:
    """The architecture, the same for all arms."""
    model = recipe("gemini-tiny-multimodal").model
    assert isinstance(model, GeminiConfig)
    tokens = workload.vocab_size + image_codes + 8
    assert model.vision is not None and model.audio is not None
    return dataclasses.replace(
        model,
        vocab_size=-(-tokens // 128) * 128,
        embed_dim=workload.embed_dim,
        num_layers=workload.num_layers,
        vision=dataclasses.replace(model.vision, num_layers=workload.encoder_layers),
        audio=dataclasses.replace(model.audio, num_layers=workload.encoder_layers),
    )


def recipe_of(run: Run, workload: Workload, out: Path, image_codes: int, folder: Path) -> Recipe:
    """A run as `zoo.train` takes it; `out` is where `prepare` has put the documents and the tokenizer."""
    base, packing = recipe("gemini-tiny-multimodal"), dict(workload.packings)[run.arm]
    media = dataclasses.replace(
        base.data.media,
        patches_per_row=packing.patches,
        clips_per_row=packing.clips,
        image_codes=image_codes,
        image_tokenizer=None,
    )
    every = max(1, workload.steps // workload.evaluations)
    return dataclasses.replace(
        base,
        name=f"multimodal, {run.name}",
        model=model_of(workload, image_codes),
        data=dataclasses.replace(
            base.data,
            paths=tuple(str(data_file(out / "data", run.arm, name)) for name in folders_of(run.arm)),
            tokenizer=str(out / "tokenizer"),
            vocab_size=workload.vocab_size,
            batch_size=packing.rows,
            media=media,
            validation_fraction=0,
            seed=run.seed,
        ),
        optimizer=OptimizerConfig(
            learning_rate=workload.learning_rate,
            warmup_steps=workload.warmup_steps,
            schedule="wsd",
            decay_fraction=0.3,
            weight_decay=0.1,
        ),
        loop=dataclasses.replace(
            base.loop,
            steps=workload.steps,
            log_every=max(1, workload.steps // 20),
            evaluate_every=workload.steps,
            checkpoint_every=every,
            keep_last=workload.evaluations + 1,
            checksums=False,
        ),
        run_dir=str(folder),
        seed=run.seed,
        sample_tokens=0,
        tensorboard=False,
    )
