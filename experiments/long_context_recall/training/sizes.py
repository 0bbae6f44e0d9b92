"""Sizes of the study: what is trained, on which text, and what is asked afterwards."""

from dataclasses import asdict, dataclass, replace

from experiments.kept import digest
from experiments.long_context_recall.training.arms import BASELINE, MAIN, NO_NEEDLES, arm_named, workload_of
from experiments.long_context_recall.training.curriculum import FULL, Stage, Workload
from experiments.long_context_recall.training.examination import Grid, Level

KEY_KINDS = ("needle", "needle-held-out", "needle-made-up", "needle-numbers", "needle-1-of-10")


@dataclass(frozen=True)
class Size:
    """Of one invocation."""

    workload: Workload
    """The recipe's."""
    main: Grid
    """Of the recipe: every kind of key, up to 16 times the trained length."""
    control: Grid
    """Of the model that has seen no needle."""
    others: Grid
    """Of other arms, up to 16 times theirs."""
    novels: bool = True
    """False: text that is made here, even where there are novels."""
    arms: tuple[str, ...] = ()
    """Names; none: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Runs of each arm."""

    def grid_of(self, arm: str) -> Grid:
        """What a run of an arm is asked."""
        return {MAIN: self.main, NO_NEEDLES: self.control}.get(arm, self.others)

    def made_with(self, arm: str, novels: bool) -> str:
        """A digest of everything that a run of an arm comes from, its seed apart."""
        chosen = arm_named(arm)
        trained = chosen if chosen.weights_of is None else arm_named(chosen.weights_of)
        parts = [asdict(workload_of(trained, self.workload)), asdict(chosen), asdict(self.grid_of(arm)), novels]
        return digest(parts)


def _levels(samples: dict[int, tuple[int, int]], tasks: tuple[str, ...] = ()) -> tuple[Level, ...]:
    return tuple(Level(length, depths, count, tasks) for length, (depths, count) in samples.items())


WITHIN = _levels({1024: (11, 2), 2048: (11, 2), 4096: (11, 2), 8192: (11, 3)})
LONG = _levels({16_384: (5, 2), 32_768: (5, 1), 65_536: (5, 1), 131_072: (3, 1)}, ("needle", "needle-made-up"))
FULL_SIZE = Size(
    FULL,
    main=Grid(KEY_KINDS, WITHIN + LONG),
    control=Grid(("needle",), _levels({1024: (5, 1)})),
    others=Grid(
        ("needle", "needle-made-up", "needle-1-of-10"),
        _levels({1024: (5, 2), 2048: (11, 2), 4096: (5, 2), 8192: (5, 2), 16_384: (5, 1), 32_768: (3, 1)}),
    ),
    arms=(MAIN, NO_NEEDLES, BASELINE, "rope 10k", "rope 1M", "rope 10k, scaled", "rope 10k, jumps", "window 16", "1:1",
          "direct"),
)  # fmt: skip
"""The other arms of `arms.ARMS` are there for who asks for them by name."""
QUICK_SIZE = Size(
    replace(
        FULL,
        stages=(
            Stage("facts", "facts", 64, 2, 8, 3, 0, 3, 1e-3, digits=2),
            Stage("short", "document", 256, 2, 64, 2, 2, 3, 1e-3, 0.05, digits=7),
        ),
        num_layers=2,
        layer_types=("local", "global"),
        embed_dim=32,
        num_heads=2,
        num_kv_heads=1,
        hidden_dim=64,
        vocab_size=640,
        train_bytes=60_000,
        tokenizer_bytes=60_000,
        text_passages=2,
        text_length=128,
        test_rows=1,
    ),
    main=Grid(("needle",), _levels({256: (1, 1)}), chunk=256),
    control=Grid(("needle",), _levels({256: (1, 1)}), chunk=256),
    others=Grid(("needle",), _levels({256: (1, 1)}), chunk=256),
    novels=False,
    arms=(MAIN,),
    seeds=(0,),
)
SIZES = {"full": FULL_SIZE, "quick": QUICK_SIZE}
