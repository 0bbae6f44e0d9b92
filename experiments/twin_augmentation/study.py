"""The study: each arm and seed in a process of its own, two at a time; the tables are of what is there.

Two folders. `out` has logs and compiled programs, which may be thrown away. `results` has one small JSON for each
finished run, which can be committed: on another machine the study goes on with what is missing.
"""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from experiments.kept import check_made_with, digest, write_signed
from experiments.runs import BENCHMARKS, run_in_process, say, single_thread, worker_environment
from experiments.shared_folder import default_shared
from experiments.twin_augmentation.arms import SIZES, Run, arm_named, runs_of
from experiments.twin_augmentation.reader import read_nih_hannover
from experiments.twin_augmentation.source_leak import leaks
from experiments.twin_augmentation.tasks import fingerprint
from experiments.twin_augmentation.worker import Result, fill, read_result
from zoo.errors import UserError

RESULTS = BENCHMARKS / "twin-augmentation"
"""Where results lie that are committed."""
OTHERS = "other settings or data"
"""What results may be of that are refused."""
WORKER = "experiments.twin_augmentation.worker"
LEAK = "source-leak.json"


def study(
    name: str, out: Path, results: Path, arms: Sequence[str], seeds: Sequence[int], *, only: bool, jobs: int
) -> tuple[list[Result], list[str], list[dict]]:
    """(results, names of the runs that are missing, rows of the source leak) after doing what was missing.

    name: of a size; "quick" runs in this process. arms: names; none: the size's. only: train nothing. jobs: processes
    at once, of one thread each.

    Raises:
      UserError: an unknown arm; no data; results of other settings or data; a run failed.
    """
    size = SIZES[name]
    runs = runs_of(tuple(arms) or size.arms, tuple(seeds))
    made_with = {arm: size.made_with(arm_named(arm), fingerprint(arm_named(arm))) for arm in {run.arm for run in runs}}
    results.mkdir(parents=True, exist_ok=True)
    paths = {run.name: results / f"{run.name}.json" for run in runs}
    for run in runs:
        check_made_with(paths[run.name], made_with[run.arm], OTHERS)
    missing = [] if only else [run for run in runs if not paths[run.name].is_file()]
    if name == "quick":
        for run in missing:
            fill(run, size, {}, made_with[run.arm], results)
    else:
        in_processes(name, missing, made_with, out, results, jobs)
    leak = source_leak(results / LEAK, size.leak_seeds, only=only) if size.leak_seeds else []
    found = [read_result(path) for path in paths.values() if path.is_file()]
    if not found:
        raise UserError(f"{results} has no result of these arms and seeds: leave --only-report out")
    return found, [run.name for run in runs if not paths[run.name].is_file()], leak


def in_processes(
    name: str, missing: Sequence[Run], made_with: dict[str, str], out: Path, results: Path, jobs: int
) -> None:
    """A process for each arm and seed, `jobs` of them at a time, in the order of the runs."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in missing:
        groups.setdefault((run.arm, run.seed), []).append(run)
    (out / "runs").mkdir(parents=True, exist_ok=True)
    environment = worker_environment(out) | single_thread()
    numbered = list(enumerate(groups.items(), start=1))
    failed = threading.Event()

    def carry_out(one) -> None:
        if failed.is_set():
            return
        number, ((arm, seed), own) = one
        title = f"{arm}, seed {seed}"
        say(f"{number} of {len(numbered)}: {title}")
        arguments = [name, arm, str(seed), made_with[arm], str(results), *(str(run.ratio) for run in own)]
        log = out / "runs" / f"{Run(arm, 0, seed).name}.log"
        try:
            run_in_process(title, WORKER, arguments, log, environment)
        except BaseException:
            failed.set()  # here: this thread would take the next one before the main thread hears of it
            raise

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(carry_out, one) for one in numbered]
        try:
            for future in futures:
                future.result()
        except BaseException:
            failed.set()  # what runs ends by itself; nothing else begins
            raise


def source_leak(path: Path, seeds: int, *, only: bool) -> list[dict]:
    """The rows of `source_leak.leaks`, kept in a file as the runs are; none if it is not there and `only`."""
    made_with = digest([seeds, "source leak"])
    check_made_with(path, made_with, OTHERS)
    if path.is_file():
        return json.loads(path.read_text())["rows"]
    shared = default_shared()
    if only or shared is None:
        return []
    say("source leak")
    rows = [asdict(leak) for leak in leaks(read_nih_hannover(shared), seeds)]
    write_signed({"rows": rows}, made_with, path)
    return rows
