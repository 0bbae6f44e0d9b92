"""Step times: a student's step, the teacher's forward pass, a step with both, and a step from a cache, interleaved.

Each is a process of its own (`experiments.speed.worker`); all take turns in every round, and ratios are taken within a
round. The study's sizes, random weights and tokens.
"""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.distillation.sizes import SIZES
from experiments.distillation.speed_worker import CACHED, KINDS, ONLINE, STUDENT, TEACHER
from experiments.runs import say
from experiments.speed import machine, peers
from experiments.speed.contest import Measurement, measure
from experiments.speed.report import Rows
from experiments.speed.sparse.contest import median_interval
from experiments.speed.worker import Worker

REPEATS = 4
"""Steps that are timed together."""


def measure_speed(name: str, out: Path, rounds: int, date: str) -> dict[str, Any]:
    """JSON: seconds of every round by student and program, and the two ratios with their medians. name: of a size."""
    size, cores = SIZES[name], peers.pin_to_cores(2)
    described = machine.describe(cores)  # before this command puts a load on it
    (out / "speed").mkdir(parents=True, exist_ok=True)
    workers = dict[str, Worker]()
    measured = dict[int, Measurement]()
    try:
        for number, kind in enumerate(KINDS):
            log = out / "speed" / f"{number}.log"
            arguments = [name, str(number)]
            workers[kind] = Worker(
                kind, "experiments.distillation.speed_worker", arguments, peers.cpu_environment(), log
            )
        for width in size.widths:
            given = {kind: {"width": width, "repeats": REPEATS} for kind in KINDS}
            tokens = REPEATS * size.batch_size * size.sequence_length
            measured[width] = measure(workers, f"student of width {width}", tokens, rounds, say, "run", given)
    finally:
        for worker in workers.values():
            worker.close()
    return {
        "date": date,
        "machine": described,
        "setting": {
            "teacher": asdict(size.teacher), **size.data_settings(), "kept_words": size.kept_words, "repeats": REPEATS
        },
        "seconds": {str(width): each.seconds for width, each in measured.items()},
        "processor_seconds": {str(width): each.processor_seconds for width, each in measured.items()},
        "ratios": {str(width): ratios(each.seconds) for width, each in measured.items()},
        "processor_ratios": {str(width): ratios(each.processor_seconds) for width, each in measured.items()},
    }  # fmt: skip


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Of each round: online / (student + teacher), and cached / student; their median and its 95 % interval."""
    rounds = list(zip(*(seconds[kind] for kind in KINDS), strict=True))
    by_kind = [dict(zip(KINDS, each, strict=True)) for each in rounds]
    found = {}
    for name, of in (
        ("online", lambda t: t[ONLINE] / (t[STUDENT] + t[TEACHER])),
        ("cached", lambda t: t[CACHED] / t[STUDENT]),
    ):
        values = [of(times) for times in by_kind]
        low, high = median_interval(values)
        found[name] = {"median": statistics.median(values), "low": low, "high": high}
    return found


def speed_rows(speed: dict[str, Any]) -> Rows:
    """A table: milliseconds of a step (median), the ratios on the clock, and those of processor time."""
    rows = [["width", *(f"{kind}, ms" for kind in KINDS), "online / sum", "cache / student's", "processor time: online",
             "cache"]]  # fmt: skip
    for width, seconds in speed["seconds"].items():
        times = [f"{1e3 * statistics.median(seconds[kind]) / speed['setting']['repeats']:.1f}" for kind in KINDS]
        said = [
            f"{each['median']:.2f}x ({each['low']:.2f} .. {each['high']:.2f})"
            for of in ("ratios", "processor_ratios")
            for each in (speed[of][width]["online"], speed[of][width]["cached"])
        ]
        rows.append([width, *times, *said])
    return rows
