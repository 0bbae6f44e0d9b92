"""Runs in processes of their own, some at a time."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from experiments.relation_extraction.worker import Job, write_jobs
from experiments.runs import run_in_process, say, single_thread, worker_environment
from zoo.errors import UserError

WORKER = "experiments.relation_extraction.worker"


def shared_out(wanted: Sequence[Job], processes: int) -> list[list[Job]]:
    """The jobs by arm, whose seeds share what is compiled; seed by seed where there are fewer arms than processes."""
    arms = list(dict.fromkeys(job.run.arm for job in wanted))
    if len(arms) >= processes:
        return [[job for job in wanted if job.run.arm == arm] for arm in arms]
    return [part for part in (list(wanted[number::processes]) for number in range(processes)) if part]


def in_processes(parts: Sequence[tuple[Path, Sequence[Job]]], processes: int) -> None:
    """A process for each (folder, jobs), so many at a time. `UserError` if one fails; what has begun ends before that,
    and nothing else begins."""
    names = {f"{out.name} {Path(job.path).stem}": Path(job.path) for out, part in parts for job in part}
    failed = False

    def work(number: int) -> None:
        nonlocal failed
        if failed:
            return
        out, part = parts[number]
        jobs, log = (out / "runs" / f"{os.getpid()}-{number}.{kind}" for kind in ("jobs", "log"))
        write_jobs(part, jobs)
        say(f"{out.name}: {part[0].run.arm}, {len(part)} runs, log in {log}")
        environment = worker_environment(out) | (single_thread() if processes > 1 else {})
        try:
            run_in_process(f"process {number + 1}", WORKER, [str(out), str(jobs)], log, environment)
        except UserError:
            failed = True
            raise

    with ThreadPoolExecutor(processes) as pool:
        futures, waiting = [pool.submit(work, number) for number in range(len(parts))], set(names)
        while waiting and not all(future.done() for future in futures):
            wait(futures, timeout=1)
            for name in sorted(name for name in waiting if names[name].is_file()):
                waiting.remove(name)
                say(f"{len(names) - len(waiting)} of {len(names)}: {name}")
        for future in futures:
            future.result()
