"""What is compared: transformers on two tasks, recurrent modules on a third, and what needs no training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zoo.errors import UserError, nearest_name
from zoo.models.workspace_transformer import VARIANTS

Task = Literal["sort-of-clevr", "triangles", "balls"]
QUESTION_ONLY = "question only"
FLIES_ON, WALLS = "balls: fly on", "balls: walls only"
SLOTS, WRITERS = 8, 5
"""n_m and k of the variants, those of the public code."""
SWEPT_SLOTS, SWEPT_WRITERS = (1, 2, 8), (1, 5, None)
"""None: all write to a slot, which is soft competition."""


@dataclass(frozen=True)
class Arm:
    """One way to answer a task."""

    name: str
    """In tables and file names."""
    task: Task
    """What is trained and examined on."""
    model: str
    """A variant of `workspace_transformer`, a communication of `rims`, or the name of what needs no training."""
    slots: int = SLOTS
    """Slots, or inducing points; of `rims` the preset's."""
    top_k: int = WRITERS
    """Writers of a slot in hard competition, weights that a query of STR keeps."""
    trained: bool = True
    """False: a baseline."""
    once: bool = False
    """The same for all seeds: done for the first one only."""
    scene: Literal["marked", "described", "pixels"] = "marked"
    """Sort-of-CLEVR: descriptions of the objects that say as well which ones the question names, without that, or
    patches of the picture."""
    rate: float = 1.0
    """Times the task's learning rate."""
    norms_first: bool = False
    """ISAB with norms before attention and feed-forward, as the other variants have them."""

    @property
    def label(self) -> str:
        """The name without the task, for pictures of one."""
        return self.name.rpartition(": ")[2]


def _sweep() -> list[Arm]:
    """All slots and writers but those that TR+SSW and TR+HSW have already."""
    found = []
    for slots in SWEPT_SLOTS:
        for top_k in SWEPT_WRITERS:
            if slots == SLOTS and top_k in (WRITERS, None):
                continue
            if top_k is None:
                found.append(Arm(swept_name(slots, top_k), "sort-of-clevr", "TR+SSW", slots=slots))
            else:
                found.append(Arm(swept_name(slots, top_k), "sort-of-clevr", "TR+HSW", slots=slots, top_k=top_k))
    return found


def swept_name(slots: int, top_k: int | None) -> str:
    """The arm with so many slots and writers."""
    variant = "TR+SSW" if top_k is None else "TR+HSW"
    if slots == SLOTS and top_k in (WRITERS, None):
        return variant
    return f"{variant}, {slots} slot{'s' * (slots > 1)}" + ("" if top_k is None else f", k {top_k}")


ISAB = "ISAB"


def _variants(task: Task, prefix: str = "", **fields: Any) -> tuple[Arm, ...]:
    """The six variants, and ISAB once more: as published, with norms after its sums, it stays at chance at the others'
    learning rate, and learns little at a quarter of it; with norms first it is trained as the others are."""
    found = [Arm(f"{prefix}{name}", task, name, rate=0.25 if name == ISAB else 1.0, **fields) for name in VARIANTS]
    return (*found, Arm(f"{prefix}{ISAB}, norms first", task, ISAB, norms_first=True, **fields))


MAIN = (Arm(QUESTION_ONLY, "sort-of-clevr", QUESTION_ONLY, trained=False), *_variants("sort-of-clevr"))
SWEEP = tuple(_sweep())
TRIANGLES = _variants("triangles", "triangles: ")
BALLS = (
    Arm(FLIES_ON, "balls", FLIES_ON, trained=False, once=True),
    Arm(WALLS, "balls", WALLS, trained=False, once=True),
    *(Arm(f"balls: {name}", "balls", name) for name in ("none", "pairwise", "workspace")),
)
UNMARKED = _variants("sort-of-clevr", "unmarked: ", scene="described")
PIXELS = _variants("sort-of-clevr", "pixels: ", scene="pixels")
STUDY = (*MAIN, *TRIANGLES, *BALLS, *SWEEP)
"""In the order in which a seed does them. `UNMARKED` and `PIXELS` are done where they are named."""
GROUPS = {
    "main": MAIN,
    "sweep": SWEEP,
    "triangles": TRIANGLES,
    "balls": BALLS,
    "unmarked": UNMARKED,
    "pixels": PIXELS,
}
"""Names of several arms."""


def arms_named(names: Sequence[str]) -> list[Arm]:
    """Arms and groups of arms by name, each once; none: those of the study. Raises `UserError` for an unknown one."""
    known, found = {arm.name: arm for arm in (*STUDY, *UNMARKED, *PIXELS)}, list[Arm]()
    for name in names:
        if name not in known and name not in GROUPS:
            raise UserError(f"--arms: {name!r} is unknown; {nearest_name(name, [*GROUPS, *known])}")
        found += GROUPS.get(name, ()) or (known[name],)
    return list(dict.fromkeys(found)) or list(STUDY)


@dataclass(frozen=True)
class Run:
    """One model, or one baseline."""

    arm: str
    """Name of its arm."""
    seed: int
    """Of the initial weights and of the data that it is trained on."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(': ', '-').replace(', ', '-').replace(' ', '-').replace('+', '-')}-seed-{self.seed}"


def runs_of(arms: Sequence[Arm], seeds: Sequence[int]) -> list[Run]:
    """All runs, seed by seed, so that an early end leaves whole seeds."""
    return [Run(arm.name, seed) for seed in seeds for arm in arms if not arm.once or seed == seeds[0]]
