"""Sizes of the study of media: what is trained, and what is asked afterwards."""

from dataclasses import asdict, dataclass, replace

from experiments.kept import digest
from experiments.long_context_recall.media_training.curriculum import AUDIO, VIDEO, Stage, Workload
from experiments.long_context_recall.training.examination import Grid, Level
from zoo.errors import UserError, nearest_name


@dataclass(frozen=True)
class MediaArm:
    """A model and its examination."""

    workload: Workload
    """Of the model."""
    grid: Grid
    """What it is asked."""


@dataclass(frozen=True)
class MediaSize:
    """Of one invocation."""

    arms: dict[str, MediaArm]
    """By name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each arm."""
    real: bool = True
    """False: media that are made here, even where there are real ones."""

    def arm(self, name: str) -> MediaArm:
        """Raises `UserError` for an unknown one."""
        if name not in self.arms:
            raise UserError(f"--media: {name!r} is unknown; {nearest_name(name, list(self.arms))}")
        return self.arms[name]

    def made_with(self, name: str, real: bool) -> str:
        """A digest of everything that a run of an arm comes from, its seed apart: not of the other task's haystack."""
        fields = asdict(self.arm(name))
        workload = fields["workload"]
        del workload["audio" if workload["task"] == "video" else "video"]
        return digest([fields, real])


def _levels(samples: dict[int, tuple[int, int]]) -> tuple[Level, ...]:
    return tuple(Level(length, depths, count) for length, (depths, count) in samples.items())


FULL_MEDIA = MediaSize(
    {
        "video": MediaArm(
            VIDEO,
            Grid(
                ("video",), _levels({16: (11, 3), 64: (11, 3), 128: (11, 3), 256: (11, 3), 547: (11, 3), 1094: (5, 1)})
            ),
        ),
        "audio": MediaArm(
            AUDIO,
            Grid(
                ("audio-keyword",),
                _levels({16: (11, 3), 64: (11, 3), 256: (11, 3), 896: (11, 3), 1792: (11, 3), 3584: (5, 1)}),
            ),
        ),
    }
)
QUICK_VIDEO = replace(
    VIDEO,
    stages=(Stage("alone", 0, 2, 2, 1e-3, test_rows=2), Stage("2-frames", 2, 2, 2, 1e-3, encoders=False, test_rows=2)),
    items=8,
    plain=8,
    test_items=4,
    embed_dim=64,
    encoder_dim=32,
    encoder_layers=1,
)
QUICK_MEDIA = MediaSize(
    {"video": MediaArm(QUICK_VIDEO, Grid(("video",), _levels({4: (1, 1)}), chunk=64))}, seeds=(0,), real=False
)
MEDIA_SIZES = {"full": FULL_MEDIA, "quick": QUICK_MEDIA}
