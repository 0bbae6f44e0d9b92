"""The arms of the study: the recipe; its first stages, up to 2,048 tokens; and these with one thing changed."""

from dataclasses import dataclass, replace
from typing import Any

from experiments.choosing import choose
from experiments.long_context_recall.training.curriculum import Stage, Workload
from zoo.errors import UserError

MAIN, NO_NEEDLES, BASELINE = "main", "no needles", "short"
COMPARED_LENGTH = 2048
"""Techniques are compared at this trained length: its stages take half of the recipe's time, and what matters beyond
the trained length shows from there on."""
REACH = 16
"""Lengths beyond the trained one are examined up to so many times it, and positions are spread as far."""


@dataclass(frozen=True)
class Arm:
    """One way to train and to examine a model."""

    name: str
    """In tables and file names."""
    what: str
    """What is different from the recipe."""
    workload: tuple[tuple[str, Any], ...] = ()
    """Fields of `Workload` that are."""
    window: int | None = None
    """Most window of any stage."""
    direct: bool = False
    """All steps at the last stage's length, from random weights."""
    jumps: bool = False
    """Positions of documents are spread over `REACH` times the trained length."""
    needles: bool = True
    """False: the same text without needles or questions, in rows of the same lengths, as many steps."""
    weights_of: str | None = None
    """Arm whose trained weights are examined; nothing is trained."""
    examined: tuple[tuple[str, Any], ...] = ()
    """Fields of the model's config that are changed before it is examined."""


def ntk_base(base: float, scale: float, head_dim: int = 32) -> float:
    """The base whose slowest frequency is divided by `scale` and whose fastest stays, base * scale^(d / (d - 2)):
    "NTK-aware" scaling (YaRN, arXiv 2309.00071, section 3.1)."""
    return base * scale ** (head_dim / (head_dim - 2))


ROPE_10K, ROPE_1M = (("global_rope", True),), (("global_rope", True), ("rope_theta", 1e6))
ARMS = (
    Arm(MAIN, "the recipe: global layers see no positions, window 64, one global layer in three, grown by stages"),
    Arm(NO_NEEDLES, "the same text, steps and lengths without needles: what needles cost the language model",
        needles=False),
    Arm(BASELINE, f"the recipe up to {COMPARED_LENGTH:,} tokens: what all arms below are compared with"),
    Arm("rope 10k", "global layers rotate, base 10,000", workload=ROPE_10K),
    Arm("rope 1M", "global layers rotate, base 1,000,000", workload=ROPE_1M),
    Arm("rope 10k, scaled",
        f"as rope 10k; global layers are examined with the base that divides their slowest frequency by {REACH}",
        weights_of="rope 10k", examined=(("global_rope_theta", ntk_base(10_000.0, REACH)),)),
    Arm("rope 10k, jumps", f"as rope 10k; positions of documents jump, up to {REACH} times the trained length",
        workload=ROPE_10K, jumps=True),
    Arm("jumps", "positions of documents jump: local layers alone see it", jumps=True),
    Arm("window 32", "local layers see 32 tokens", window=32),
    Arm("window 16", "local layers see 16 tokens", window=16),
    Arm("1:1", "four layers, local and global in turn",
        workload=(("layer_types", ("local", "global")), ("num_layers", 4))),
    Arm("3:1", "four layers, the last one global: as many parameters as 1:1",
        workload=(("layer_types", ("local", "local", "local", "global")), ("num_layers", 4))),
    Arm("direct", "all tokens of the stages are spent on rows of the last length", direct=True),
)  # fmt: skip


def arm_named(name: str) -> Arm:
    """Raises `UserError` for an unknown one."""
    return choose(name, {arm.name: arm for arm in ARMS})


def workload_of(arm: Arm, workload: Workload) -> Workload:
    """The workload of an arm, given that of the recipe. All but the recipe and its control end with the stage of
    `COMPARED_LENGTH` tokens. Raises `ValueError` for one that trains nothing."""
    if arm.weights_of is not None:
        raise ValueError(f"{arm.name} is examined with the weights of {arm.weights_of}: it trains nothing")
    changed = replace(workload, **dict(arm.workload))
    stages = changed.stages
    if arm.name not in (MAIN, NO_NEEDLES):  # by name: a field of `Arm` would make results that are there strangers
        stages = tuple(stage for stage in stages if stage.length <= COMPARED_LENGTH)
        changed = replace(changed, stages=stages)
    if arm.direct:
        stages = (_direct(stages),)
    if arm.window is not None:
        stages = tuple(replace(stage, window=min(stage.window, arm.window)) for stage in stages)
    if arm.jumps:
        reach = REACH * changed.trained_length
        stages = tuple(replace(stage, reach=reach) if stage.form == "document" else stage for stage in stages)
    if not arm.needles:
        stages = tuple(_without_needles(stage) for stage in stages)
    return replace(changed, stages=stages)


def _direct(stages: tuple[Stage, ...]) -> Stage:
    """As many tokens as one attempt at all stages has, all of the last one's kind."""
    last = stages[-1]
    tokens = sum(stage.steps * stage.batch_size * stage.length for stage in stages)
    return replace(last, name=f"direct {last.name}", steps=-(-tokens // (last.batch_size * last.length)))


def _without_needles(stage: Stage) -> Stage:
    """Text of the same rows and steps; a stage of facts, which has no text, becomes one of text."""
    return replace(stage, form="document", needles=0, questions=0, lm_weight=1.0, gate=0.0, attempts=1)


@dataclass(frozen=True)
class Run:
    """One model."""

    arm: str
    """Name of its arm."""
    seed: int
    """Of the initial weights and of everything that is drawn."""

    @property
    def name(self) -> str:
        """File name."""
        return f"{self.arm.replace(', ', '-').replace(' ', '-').replace(':', '-')}-seed-{self.seed}"


def runs_of(arms: tuple[str, ...], seeds: tuple[int, ...]) -> list[Run]:
    """All runs, seed by seed, so that an early end leaves whole seeds; an arm without weights of its own comes after
    all others. Raises `UserError` for an unknown arm, or one whose weights nothing trains."""
    chosen = [arm_named(name) for name in arms] or list(ARMS)
    names = [arm.name for arm in chosen]
    for arm in chosen:
        if arm.weights_of is not None and arm.weights_of not in names:
            raise UserError(f"--arms: {arm.name!r} takes the weights of {arm.weights_of!r}: name that one, too")
    ordered = sorted(chosen, key=lambda arm: arm.weights_of is not None)
    return [Run(arm.name, seed) for seed in seeds for arm in ordered]
