"""The study, run by run; the tables are of what is there.

Two folders. `out` has scenes and compiled programs, which may be thrown away. `results` has one small JSON for each
finished run, which can be committed: on another machine the study goes on with what is missing. A run takes minutes;
one that is stopped is done anew.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jax

from experiments.kept import check_made_with, write_signed
from experiments.runs import BENCHMARKS, say, write_json
from experiments.shared_workspace import classifiers, cost, rolling_out
from experiments.shared_workspace.arms import QUESTION_ONLY, Arm, Run, arms_named, runs_of
from experiments.shared_workspace.result import Result, read_result
from experiments.shared_workspace.sizes import SIZES, TEST_SEED, Size
from experiments.speed import machine
from zoo.errors import UserError

RESULTS = BENCHMARKS / "shared-workspace"
"""Where results lie that are committed."""
COST = "cost.json"


@dataclass(frozen=True)
class Found:
    """What a study has so far."""

    runs: list[Result]
    """All that are done, of the arms and seeds that were asked for."""
    missing: list[str]
    """Names of those that are not."""
    costs: "cost.Costs | None"
    """Of one layer, where it was measured."""


def study(
    name: str, out: Path, results: Path, arms: Sequence[str], seeds: Sequence[int], *, only_report: bool, costs: bool
) -> Found:
    """Trains and examines what is missing; `costs`: measures one layer instead, whatever is there of it.

    name: of a size. arms: names; none: the size's. seeds: none: the size's. only_report: nothing is run.

    Raises:
      UserError: an unknown arm or seed; results of other settings.
    """
    size = SIZES[name]
    chosen = arms_named(tuple(arms) or size.arms)
    seeds = tuple(seeds) or size.seeds
    if max(seeds) >= TEST_SEED:
        raise UserError(f"--seeds: {max(seeds)} is not below {TEST_SEED}, the seed of the test data")
    runs = runs_of(chosen, seeds)
    by_name = {arm.name: arm for arm in chosen}
    results.mkdir(parents=True, exist_ok=True)
    paths = {run.name: results / f"{run.name}.json" for run in runs}
    for run in runs:
        check_made_with(paths[run.name], size.made_with(by_name[run.arm]), "other sizes or another arm")
    if costs:
        write_json(asdict(measure_costs(name)), results / COST)
    missing = [] if only_report or costs else [run for run in runs if not paths[run.name].is_file()]
    if missing:
        keep_compiled(out / "compiled")
    for number, run in enumerate(missing, start=1):
        say(f"{number} of {len(missing)}: {run.name}")
        arm = by_name[run.arm]
        found_out = carry_out(run, arm, size, out / "data")
        write_signed(asdict(found_out), size.made_with(arm), paths[run.name])
        jax.clear_caches()  # no other arm has its programs
    found = [read_result(path) for path in paths.values() if path.is_file()]
    kept = cost.read_costs(results / COST) if (results / COST).is_file() else None
    if not found and kept is None:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    return Found(found, [run.name for run in runs if not paths[run.name].is_file()], kept)


def carry_out(run: Run, arm: Arm, size: Size, folder: Path) -> Result:
    """One run; `folder` has what data takes long to make."""
    if arm.model == QUESTION_ONLY:
        return classifiers.question_only(run, size, folder)
    if not arm.trained:
        return rolling_out.without_model(run, arm, size)
    return rolling_out.rims(run, arm, size) if arm.task == "balls" else classifiers.classifier(run, arm, size, folder)


def measure_costs(name: str) -> cost.Costs:
    """Of a layer's result and of its gradient."""
    load = machine.load()
    if name == "quick":
        size = cost.LayerSize(embed_dim=32)
        kinds: tuple[cost.Kind, ...] = ("pairwise", "hard workspace")
        parts = [cost.measure((32,), kinds, size=size, training=training, rounds=2) for training in (False, True)]
        return cost.Costs(size, tuple(parts[0]), tuple(parts[1]), load)
    size, parts = cost.LayerSize(), []
    for training, rounds in ((False, 20), (True, 10)):
        say(f"one layer of {cost.SPECIALISTS[0]} to {cost.SPECIALISTS[-1]:,} specialists, "
            f"{'its gradient' if training else 'its result'}, {rounds} rounds")  # fmt: skip
        parts.append(cost.measure(size=size, training=training, rounds=rounds))
    return cost.Costs(size, tuple(parts[0]), tuple(parts[1]), load)


def keep_compiled(folder: Path) -> None:
    """Compiled programs are kept for the runs of other seeds, unless the environment says where."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))
