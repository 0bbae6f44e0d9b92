"""The arms: ways to update a model of all languages with new data of a few."""

from dataclasses import dataclass
from typing import Literal

from experiments.choosing import choose

Kind = Literal["full", "head", "bitfit", "lora", "bottleneck"]
Sharing = Literal["all", "own", "distance", "random"]

FULL, HEAD, BITFIT, ADAPTER, LORA = "full", "head", "bitfit", "adapter", "lora"
L2_SP, EWC, OWN = "l2-sp", "ewc", "own-deltas"
LAFT, LAFT_RANDOM = "laft", "laft-random"
WIDTH, WIDTH_RANDOM = "laft-width", "laft-width-random"
REPLAY, JOINT = "replay", "joint"
RATE_OF: dict[Kind, str] = {"full": FULL, "head": HEAD, "bitfit": BITFIT, "lora": LORA, "bottleneck": OWN}
"""The arm on which the learning rate of everything that trains the same parameters is chosen."""


@dataclass(frozen=True)
class Arm:
    """One way to update."""

    name: str
    """In tables and file names."""
    what: str
    """In words."""
    kind: Kind
    """What trains: all parameters, the output layer, biases, low-rank changes of attention, bottlenecks."""
    sharing: Sharing = "all"
    """bottleneck: which languages read which delta."""
    width_by: Literal["", "distance", "random"] = ""
    """bottleneck: what decides on the width of the one shared delta."""
    penalty: Literal["", "flat", "fisher"] = ""
    """full: importance of each parameter in the pull to its value before the update."""
    data: Literal["new", "replay", "joint"] = "new"
    """new: the updated languages' new data. replay: half of each batch is stage-0 data of all languages. joint: the
    union of both, for more steps. The last two break the rule that there is no old data: upper bounds."""
    curve: bool = False
    """Whether it is measured at parts of its change as well, for comparisons at equal loss."""


ARMS = (
    Arm(FULL, "full fine-tuning: every parameter", "full", curve=True),
    Arm(HEAD, "the output layer alone", "head"),
    Arm(BITFIT, "BitFit: biases, those of the output layer too", "bitfit"),
    Arm(ADAPTER, "one shared bottleneck adapter in each layer", "bottleneck", curve=True),
    Arm(LORA, "shared LoRA of query and value", "lora"),
    Arm(L2_SP, "full with a pull to the weights before, the same for all", "full", penalty="flat"),
    Arm(EWC, "full with a pull in proportion to the Fisher information of stage 0", "full", penalty="fisher"),
    Arm(OWN, "language-specific deltas: each updated language has its own, no other language reads it", "bottleneck",
        sharing="own"),
    Arm(LAFT, "LAFT-URIEL, first reading: language-specific deltas, shared in proportion to exp(-distance / tau)",
        "bottleneck", sharing="distance", curve=True),
    Arm(LAFT_RANDOM, "control: the same with the languages of the distances permuted", "bottleneck", sharing="random",
        curve=True),
    Arm(WIDTH, "LAFT-URIEL, second reading: one shared delta, narrower the farther the other languages are",
        "bottleneck", width_by="distance", curve=True),
    Arm(WIDTH_RANDOM, "control: the same with the languages of the distances permuted", "bottleneck",
        width_by="random", curve=True),
    Arm(REPLAY, "upper bound: full, half of each batch is old data of all languages", "full", data="replay"),
    Arm(JOINT, "upper bound: full, on all old and new data, three times the steps", "full", data="joint"),
)  # fmt: skip


def arm_named(name: str) -> Arm:
    """Raises `UserError` for an unknown one."""
    return choose(name, {arm.name: arm for arm in ARMS})


@dataclass(frozen=True)
class Run:
    """All updates of one arm from one stage-0 model."""

    arm: str
    """Its name."""
    seed: int
    """Of the stage-0 model and of the updates."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm}-seed-{self.seed}"


def runs_of(arms: tuple[str, ...], seeds: tuple[int, ...]) -> list[Run]:
    """Seed by seed, arms in the order of the table; no names: all. Raises `UserError` for an unknown arm."""
    asked = {arm_named(name).name for name in arms}
    return [Run(arm.name, seed) for seed in seeds for arm in ARMS if not asked or arm.name in asked]
