"""What is compared, on what, and how large: collections of images, backbones, sizes and runs."""

from dataclasses import asdict, dataclass
from typing import Literal

from experiments.choosing import choose
from experiments.kept import digest
from experiments.twin_augmentation.imbalance import RATIOS

Backbone = Literal["pixels", "resnet", "densenet", "vit"]
View = Literal["whole", "border"]
NIH, CHILDREN, COVID, MADE_UP = "nih", "children", "covid", "made-up"
COLLECTIONS = {
    NIH: "NIH ChestX-ray8, 64 x 64: pneumonia or no finding, split by patient",
    CHILDREN: "PneumoniaMNIST, 28 x 28: pneumonia or normal, children, the published split",
    COVID: "Hannover's COVID-19 against all of NIH, 64 x 64: class and source are the same",
    MADE_UP: "made-up images",
}
SIDES = {NIH: 64, CHILDREN: 28, COVID: 64, MADE_UP: 32}
"""Pixels of a side of a collection's images."""


@dataclass(frozen=True)
class Arm:
    """A backbone, trained on one collection at several ratios; all heads are fitted on its features."""

    name: str
    """In tables and file names."""
    collection: str
    """Of `COLLECTIONS`."""
    backbone: Backbone
    """pixels: no network, 16 x 16 grey values; the others are trained on the collection's images."""
    view: View = "whole"
    """border: all but the outer 8 of 64 pixels is blank, in training and in the test."""
    ratios: tuple[int, ...] = RATIOS
    """Negatives for each positive in training."""


NATURAL = (4,)
"""About the ratio of the covid collection."""
ARMS = (
    *(Arm(f"nih {backbone}", NIH, backbone) for backbone in ("pixels", "resnet", "densenet", "vit")),
    *(Arm(f"children {backbone}", CHILDREN, backbone) for backbone in ("pixels", "resnet", "densenet", "vit")),
    Arm("covid resnet", COVID, "resnet", ratios=NATURAL),
    Arm("covid resnet, border", COVID, "resnet", view="border", ratios=NATURAL),
    Arm("made-up pixels", MADE_UP, "pixels", ratios=(2,)),
    Arm("made-up resnet", MADE_UP, "resnet", ratios=(2,)),
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Of one invocation."""

    arms: tuple[str, ...]
    """Names."""
    steps: tuple[tuple[str, int], ...]
    """Of training, by collection: as many for every ratio and loss."""
    batch: int = 32
    """Images in a step."""
    learning_rate: float = 1e-3
    """Peak of AdamW's, after a tenth of the steps; then a cosine to 0."""
    weight_decay: float = 1e-2
    """Of all parameters."""
    gamma: float = 2.0
    """Of the focal loss."""
    shift: int = 3
    """Augmentation: images are moved by up to so many 64ths of a side, mirrored, and made brighter or darker."""
    margins: tuple[float, ...] = (0.3, 1.0, 3.0)
    """Weights C that held-out patients choose from."""
    penalties: tuple[float, ...] = (0.03, 0.3, 3.0)
    """Of logistic regressions, linear twin SVMs (ridge) and twin heads (decay), as well."""
    centres: int = 300
    """Of the kernel twin SVM, at most."""
    leak_seeds: int = 5
    """Splits of the source-leak measurement; 0: none."""

    def steps_of(self, arm: Arm) -> int:
        """Of one training."""
        return dict(self.steps)[arm.collection]

    def made_with(self, arm: Arm, fingerprint: str) -> str:
        """A digest of everything that a run of an arm comes from, ratio and seed apart. `fingerprint`: of its data."""
        chosen = {name: value for name, value in asdict(self).items() if name not in ("arms", "steps", "leak_seeds")}
        return digest([asdict(arm) | {"ratios": None}, self.steps_of(arm), chosen, fingerprint])


SIZES = {
    "full": Size(
        arms=tuple(arm.name for arm in ARMS if arm.collection != MADE_UP),
        steps=((NIH, 300), (CHILDREN, 400), (COVID, 300)),
    ),
    "quick": Size(
        arms=tuple(arm.name for arm in ARMS if arm.collection == MADE_UP),
        steps=((MADE_UP, 12),),
        batch=16,
        margins=(1.0,),
        penalties=(1e-1,),
        centres=20,
        leak_seeds=0,
    ),
}


def arm_named(name: str) -> Arm:
    """Raises `UserError` for an unknown one."""
    return choose(name, {arm.name: arm for arm in ARMS})


@dataclass(frozen=True)
class Run:
    """One backbone on one subset, with all heads."""

    arm: str
    """Name of its arm."""
    ratio: int
    """Negatives for each positive in training."""
    seed: int
    """Of the split, the subset, the initial weights, orders and augmentation."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(', ', '-').replace(' ', '-')}-1-{self.ratio}-seed-{self.seed}"


def runs_of(names: tuple[str, ...], seeds: tuple[int, ...]) -> list[Run]:
    """All runs, seed by seed, so that an early end leaves whole seeds. Raises `UserError` for an unknown arm."""
    arms = [arm_named(name) for name in names]
    return [Run(arm.name, ratio, seed) for seed in seeds for arm in arms for ratio in arm.ratios]
