"""Sizes of models, data and training."""

from dataclasses import asdict, dataclass, replace

from experiments.kept import digest
from experiments.shared_workspace import sort_of_clevr
from experiments.shared_workspace.arms import Arm
from zoo.models.rims import BOUNCING_BALLS, RimsConfig
from zoo.models.workspace_transformer import WorkspaceTransformerConfig, variant
from zoo.nn.workspace import PUBLIC_CODE
from zoo.training.optimizer import OptimizerConfig

NUMBERS = {
    "described": sort_of_clevr.OBJECT_DIM,
    "marked": sort_of_clevr.OBJECT_DIM + 2,
    "pixels": 3 * sort_of_clevr.PATCH**2,
}
"""Of an element of a scene."""
TEST_SEED = 20_000
"""Of all test data, the same for all runs; seeds of runs are below it."""


@dataclass(frozen=True)
class Training:
    """How a task's models are trained."""

    steps: int
    """Of every run."""
    batch_size: int
    """Questions, triangles or sequences of a step."""
    learning_rate: float
    """Peak, after a warm-up of a twentieth of the steps; it falls to 0 over the last 3 tenths."""

    @property
    def optimizer(self) -> OptimizerConfig:
        """AdamW, the same for all models."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            warmup_steps=max(1, self.steps // 20),
            schedule="wsd",
            decay_fraction=0.3,
            final_learning_rate_fraction=0.0,
            b2=0.98,
            weight_decay=0.01,
        )


@dataclass(frozen=True)
class Transformer:
    """Of all variants; on both tasks."""

    embed_dim: int = 64
    """Width."""
    num_layers: int = 4
    """Layers, shared or not."""
    num_heads: int = 4
    """Heads; keys have width embed_dim / num_heads in the workspace, too."""
    hidden_dim: int = 128
    """Feed-forward width."""


@dataclass(frozen=True)
class Clevr:
    """Sort-of-CLEVR."""

    training: Training
    """Of each variant."""
    scenes: int
    """To train on, a data set for each seed."""
    test_scenes: int
    """To examine on."""
    questions_per_kind: int = 10
    """For each scene."""
    unary_trained: int = 4
    """Unary questions of a scene that are trained on: they are learnt long before the others."""
    model: Transformer = Transformer()
    """Of all variants."""


@dataclass(frozen=True)
class Triangle:
    """Triangles."""

    training: Training
    """Of each variant; every triangle is seen once."""
    test: int
    """Triangles to examine on, of each kind."""
    model: Transformer = Transformer()
    """Of all variants."""


@dataclass(frozen=True)
class Ball:
    """Bouncing balls."""

    training: Training
    """Of each communication."""
    sequences: int
    """To train on, a data set for each seed."""
    test: int
    """Sequences to examine on, of each kind."""
    length: int = 21
    """Frames of a sequence in training."""
    seen: int = 10
    """Frames that are given before a roll-out."""
    rolled_out: int = 15
    """Frames of a roll-out."""
    model: RimsConfig = BOUNCING_BALLS
    """Of all communications."""


@dataclass(frozen=True)
class Size:
    """Of one invocation."""

    clevr: Clevr
    """Sort-of-CLEVR."""
    triangle: Triangle
    """Triangles."""
    ball: Ball
    """Bouncing balls."""
    arms: tuple[str, ...] = ()
    """Names; none: those of the study."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each arm."""

    def of(self, arm: Arm) -> Clevr | Triangle | Ball:
        """Sizes of an arm's task."""
        return {"sort-of-clevr": self.clevr, "triangles": self.triangle, "balls": self.ball}[arm.task]  # type: ignore[return-value]

    def made_with(self, arm: Arm) -> str:
        """A digest of everything that a run of an arm comes from, its seed apart."""
        fields = asdict(arm)
        for name, usual in (("rate", 1), ("norms_first", False)):
            if fields[name] == usual:
                del fields[name]  # results that are older than the field count
        return digest([asdict(self.of(arm)), fields])

    def training_of(self, arm: Arm) -> Training:
        """How an arm is trained."""
        training = self.of(arm).training
        return replace(training, learning_rate=arm.rate * training.learning_rate)


def transformer_of(arm: Arm, size: Size) -> WorkspaceTransformerConfig:
    """The config of a variant on its task.

    Descriptions and points are sets: nothing tells tokens where they stand, as nothing but the picture's patches needs.
    """
    clevr = arm.task == "sort-of-clevr"
    model = size.clevr.model if clevr else size.triangle.model
    workspace = replace(
        PUBLIC_CODE,
        num_slots=arm.slots,
        num_heads=model.num_heads,
        key_dim=model.embed_dim // model.num_heads,
        mlp_layers=4 if clevr else 1,
    )
    config = WorkspaceTransformerConfig(
        input_dim=NUMBERS[arm.scene] if clevr else 2,
        num_classes=len(sort_of_clevr.ANSWERS) if clevr else 2,
        question_dim=sort_of_clevr.QUESTION_DIM if clevr else 0,
        positions=arm.scene == "pixels",
        embed_dim=model.embed_dim,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        hidden_dim=model.hidden_dim,
        workspace=workspace,
    )
    return replace(variant(config, arm.model, top_k=arm.top_k), norms_first=arm.norms_first)


def rims_of(arm: Arm, size: Size) -> RimsConfig:
    """The config of a communication."""
    return replace(size.ball.model, communication=arm.model)  # type: ignore[arg-type]


FULL = Size(
    clevr=Clevr(Training(4000, 64, 2e-3), scenes=11_000, test_scenes=300),
    triangle=Triangle(Training(1000, 32, 2e-3), test=4000),
    ball=Ball(Training(2000, 32, 1e-3), sequences=4000, test=500),
)
_TINY = Transformer(embed_dim=16, num_layers=1, num_heads=2, hidden_dim=16)
QUICK = Size(
    clevr=Clevr(Training(3, 8, 1e-3), scenes=4, test_scenes=3, questions_per_kind=2, unary_trained=1, model=_TINY),
    triangle=Triangle(Training(3, 8, 1e-3), test=20, model=_TINY),
    ball=Ball(
        Training(3, 4, 1e-3),
        sequences=8,
        test=4,
        length=6,
        seen=3,
        rolled_out=4,
        model=replace(BOUNCING_BALLS, hidden_dim=16, mlp_dim=16),
    ),
    arms=("question only", "TR+HSW", "balls: walls only", "balls: workspace"),
    seeds=(0,),
)
SIZES = {"full": FULL, "quick": QUICK}
