"""The arms: how a student learns from the same tokens. And which runs there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.choosing import choose

TEACHER, SCRATCH, DISTILLED = "teacher", "scratch", "distilled"
ON_POLICY, HALF_LABELS = "on-policy", "half labels"


@dataclass(frozen=True)
class Arm:
    """One way to train a student."""

    name: str
    """In tables and file names."""
    what: str
    """How it learns."""
    source: Literal["labels", "teacher", "cache"] = "labels"
    """What it learns from: real labels alone, the teacher's forward pass in every step, or a cache of it."""
    distillation: tuple[tuple[str, Any], ...] = ()
    """Fields of `zoo.training.teacher.DistillationConfig` that are not the default."""
    every_width: bool = False
    """Whether all students are trained so, or the middle one alone."""
    budget: float = 1.0
    """Part of the steps, and so of the tokens; the learning-rate schedule is stretched over them."""
    rate: float = 1.0
    """The learning rate is multiplied by it."""
    first_seed_only: bool = False
    """Whether one run is enough."""


KEPT = (1, 8, 64)
"""K of the sweep over caches; K = V is the arm `DISTILLED`."""
BUDGETS = {"quarter": 0.25, "half": 0.5}
"""Parts of the tokens; the whole is in the arms `SCRATCH` and `DISTILLED`."""
RATES = {"half rate": 0.5, "double rate": 2.0}
"""Is the baseline's learning rate a good one?"""


def top(k: int) -> str:
    """Name of the arm with the K largest probabilities."""
    return f"top {k}"


def at_budget(arm: str, budget: str) -> str:
    """Name of an arm with fewer tokens."""
    return f"{arm}, {budget} tokens"


def at_rate(rate: str) -> str:
    """Name of the baseline with another learning rate."""
    return f"{SCRATCH}, {rate}"


def _of_budget(name: str, part: float) -> tuple[Arm, Arm]:
    what = f"on {part:g} of the tokens, with a schedule of its own"
    return (
        Arm(at_budget(SCRATCH, name), f"{SCRATCH} {what}", budget=part),
        Arm(at_budget(DISTILLED, name), f"{DISTILLED} {what}", "teacher", budget=part),
    )


ARMS = (
    Arm(SCRATCH, "real labels alone", every_width=True),
    Arm(DISTILLED, "the teacher's whole distribution of every token, computed in the step; no labels", "teacher",
        every_width=True),
    *(Arm(top(k), f"offline: a cache of the teacher's {k} largest probabilities and what is left", "cache",
          (("top_k", k),)) for k in KEPT),
    Arm(HALF_LABELS, "half of the loss is of the teacher's distribution, half of real labels", "teacher",
        (("hard_label_weight", 0.5),)),
    Arm(ON_POLICY, "half of the steps on the student's own continuations of 32 tokens, in place of real text",
        "teacher", (("on_policy", 0.5), ("prompt_tokens", 32), ("max_new_tokens", 96))),
    *(arm for name, part in BUDGETS.items() for arm in _of_budget(name, part)),
    *(Arm(at_rate(name), f"{SCRATCH} with {factor:g} times its learning rate", every_width=True, rate=factor,
          first_seed_only=True) for name, factor in RATES.items()),
)  # fmt: skip


def arm_named(name: str) -> Arm:
    """Raises `UserError` for an unknown one."""
    return choose(name, {arm.name: arm for arm in ARMS})


@dataclass(frozen=True)
class Run:
    """One training run."""

    arm: str
    """Name of its arm, or `TEACHER`."""
    width: int
    """Of the model."""
    seed: int
    """Of the initial weights and of the order of the data."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(', ', '-').replace(' ', '-')}-{self.width}-seed-{self.seed}"


def runs_of(names: Sequence[str], widths: Sequence[int], seeds: Sequence[int]) -> list[Run]:
    """The students' runs, seed by seed, so that an early end leaves whole seeds. names: of arms; none: all. widths: of
    all students, rising. An arm of one run has the first of the seeds. Raises `UserError` for an unknown arm."""
    chosen = [arm_named(name) for name in names] or list(ARMS)
    middle = [widths[len(widths) // 2]]
    return [
        Run(arm.name, width, seed)
        for number, seed in enumerate(seeds)
        for arm in chosen
        for width in (widths if arm.every_width else middle)
        if number == 0 or not arm.first_seed_only
    ]
