"""The sparse contest from start to report; the settings are those of `python -m experiments.speed --contest sparse`."""

import datetime
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from experiments.speed import machine, peers
from experiments.speed.report import as_text
from experiments.speed.sparse.contest import CONTESTANTS, Contestant, run_sparse_contest, sparse_aims, start
from experiments.speed.sparse.report import SizeResults, SparseResults, draw_sparse, sparse_tables, write_sparse_report
from experiments.speed.sparse.workload import MEASURED, SIZES
from experiments.speed.worker import Worker


def run_sparse(settings, described: dict[str, str], run_json: Callable, say: Callable[[str], None]) -> None:
    """Measures and writes. settings: the command's; described: `machine.describe`; run_json: JSON of a module."""
    missing = peers.missing_packages()
    if missing:
        say(f"{', '.join(missing)} not installed: the zoo is measured alone")
    alone = settings.quick or missing
    taking_part = [
        c for c in CONTESTANTS if c.kind is not None or not (alone or (c.mode == "compiled" and not settings.compiled))
    ]
    sizes = [
        run_size(size, taking_part, settings, run_json, say) for size in (("quick",) if settings.quick else MEASURED)
    ]
    results = SparseResults(
        date=datetime.date.today().isoformat(),
        command=" ".join(["python -m experiments.speed", *sys.argv[1:]]),
        machine=described | {"load after the run": machine.load()},
        missing=missing,
        sizes=sizes,
    )
    publish(results, settings)


def run_size(
    size: str, taking_part: list[Contestant], settings, run_json: Callable, say: Callable[[str], None]
) -> SizeResults:
    """One comparison, in processes of its own."""
    workload = SIZES[size]
    workload = replace(workload, rounds=settings.rounds or workload.rounds)
    say(workload.title)
    workers: dict[str, Worker] = {}
    with tempfile.TemporaryDirectory(prefix="speed-") as scratch_name:
        scratch = Path(scratch_name)
        folder = scratch / "model"
        facts = run_json("experiments.speed.sparse.workload", [size, str(folder)])
        try:
            for contestant in taking_part:
                workers[contestant.name] = start(contestant, folder, size, settings.threads, scratch)
            contest, routing = run_sparse_contest(workers, workload, say)
        finally:
            for worker in workers.values():
                worker.close()
    aims = [] if size == "quick" else sparse_aims(contest)  # so small that products are not what takes the time
    return SizeResults(workload, facts, contest, routing, aims)


def publish(results: SparseResults, settings) -> None:
    """Tables on the terminal, results.json and the picture in the output folder, and the report if asked for."""
    for size in results.sizes:
        for title, rows in sparse_tables(size):
            print(f"\n{size.workload.title}: {title}\n{as_text(rows)}")
    folder = settings.report.parent if settings.report else settings.out
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / f"{settings.report.stem if settings.report else 'sparse'}.png"
    draw_sparse(results.sizes, picture)
    written = [settings.out / "sparse.json", picture]
    written[0].write_text(json.dumps(asdict(results), indent=1, default=str) + "\n")
    if settings.report:
        settings.report.write_text(write_sparse_report(results, picture.name))
        written.append(settings.report)
    print("\nwrote", ", ".join(map(str, written)))
