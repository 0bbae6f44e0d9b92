"""The study: each run is trained and measured in a process of its own; the tables are of what is there.

Two folders. `out` has what may be thrown away: tokenizer, the teacher's weights, caches, checkpoints, logs. `results`
has one small JSON for each finished run, which can be committed: on another machine the study goes on with what is
missing. If a missing run needs the teacher and its weights are not in `out`, it is trained again.
"""

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.distillation.arms import TEACHER, Run, arm_named, runs_of
from experiments.distillation.sizes import SIZES, Size, cache_folder, teacher_folder
from experiments.distillation.texts import NOVELS, prepare, shared_of
from experiments.distillation.worker import Result, fill, read_result
from experiments.kept import check_made_with, sign
from experiments.runs import BENCHMARKS, run_in_process, say, worker_environment
from zoo.errors import UserError
from zoo.training.run_directory import checkpoints_dir, saved_steps

RESULTS = BENCHMARKS / "distillation"
"""Where results lie that are committed."""
WORKER = "experiments.distillation.worker"


def study(name: str, out: Path, results: Path, arms: Sequence[str], seeds: Sequence[int], only: bool) -> list[Result]:
    """Trains and measures what is missing, run by run, and gives all that is there.

    name: of a size. arms: names; none: the size's. seeds: none: the size's. only: train nothing.

    Raises:
      UserError: an unknown arm; results of another setting or tokenizer; no folder `shared`; a run failed.
    """
    size = SIZES[name]
    runs = [size.teacher_run, *runs_of(tuple(arms) or size.arms, size.widths, tuple(seeds) or size.seeds)]
    results.mkdir(parents=True, exist_ok=True)
    paths = {run: results / f"{run.name}.json" for run in runs}
    check_results(paths, size)
    missing = [] if only else [run for run in runs if not paths[run].is_file()]
    if missing:
        (out / "runs").mkdir(parents=True, exist_ok=True)
        prepare(out, size, shared_of(size))
    for number, run in enumerate(missing, start=1):
        say(f"{number} of {len(missing)}: {run.name}")
        if run.arm != TEACHER and arm_named(run.arm).source != "labels":
            restore_teacher(name, out, paths[size.teacher_run])
        carry_out_run(run, name, out, paths[run])
        say(f"{run.name}: {read_result(paths[run]).held_out[NOVELS].nats:.4f} nats per token of held-out novels")
        if not any(reads_cache(later, run.seed) for later in missing[number:]):
            shutil.rmtree(cache_folder(out, run.seed), ignore_errors=True)  # hundreds of megabytes
    found = [read_result(path) for path in paths.values() if path.is_file()]
    check_tokenizer(found, results)
    return found


def reads_cache(run: Run, seed: int) -> bool:
    """Whether a run is still going to read the cache of a seed."""
    return run.seed == seed and run.arm != TEACHER and arm_named(run.arm).source == "cache"


def check_results(paths: dict[Run, Path], size: Size) -> None:
    """Raises `UserError` if a result is of other sizes, text or teacher."""
    for run, path in paths.items():
        check_made_with(path, size.made_with(run), "other sizes, another text or another teacher")


def check_tokenizer(found: Sequence[Result], results: Path) -> None:
    """Raises `UserError` if losses of different tokenizers, which cannot be compared, lie together."""
    by_tokenizer: dict[str, str] = {}
    for result in found:
        by_tokenizer.setdefault(result.tokenizer, result.run.name)
    if len(by_tokenizer) > 1:
        names = " and ".join(by_tokenizer.values())
        raise UserError(f"{results}: {names} have different tokenizers: remove the results of one of them")


def restore_teacher(name: str, out: Path, path: Path) -> None:
    """Trains the teacher again from its seed where its result is there and its weights are not. The result stays: the
    students' results say by a fingerprint whose they are."""
    size = SIZES[name]
    if size.teacher_steps in saved_steps(checkpoints_dir(teacher_folder(out, size))):
        return
    before = read_result(path)
    say(f"the teacher's weights are not in {out}: it is trained again from its seed, {before.steps:,} steps")
    again = out / "runs" / "teacher-again.json"
    carry_out_run(size.teacher_run, name, out, again)
    old, new = (result.held_out[NOVELS].nats for result in (before, read_result(again)))
    say(f"teacher: {new:.4f} nats per token of held-out novels, {old:.4f} in its result")


def carry_out_run(run: Run, name: str, out: Path, path: Path) -> None:
    """One run, its output in a log in `out`: in a process of its own, or in this one at the quick size."""
    size, log = SIZES[name], out / "runs" / f"{run.name}.log"
    unsigned = out / "runs" / f"{run.name}.json"
    if size.in_process:
        with open(log, "a") as file, contextlib.redirect_stdout(file):
            fill(run, size, out, unsigned)
    else:
        arguments = [name, run.arm, str(run.width), str(run.seed), str(out), str(unsigned)]
        run_in_process(run.name, WORKER, arguments, log, worker_environment(out))
    sign(unsigned, size.made_with(run), path)
