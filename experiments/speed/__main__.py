"""python -m experiments.speed: the zoo against transformers on this CPU, and a local layer at growing lengths.

With --contest sparse: experts against a dense model and transformers' Mixtral.
"""

import datetime
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.speed import aims, machine, peers, pictures, report
from experiments.speed.contest import Contest, run_contest
from experiments.speed.worker import REPOSITORY
from experiments.speed.workload import FULL, QUICK, Workload
from zoo.command_line import parse_command
from zoo.errors import UserError, run_command


@dataclass(frozen=True)
class Speed:
    """Measures speed on this CPU: training, forward pass, decoding, memory, one local layer at growing lengths; or
    training with experts."""

    contest: Literal["gemma2", "sparse"] = "gemma2"
    """Which models: Gemma 2 against transformers' Gemma 2, or 8 experts against dense and transformers' Mixtral."""
    quick: bool = False
    """A minute: small sizes, the zoo alone."""
    out: Path = Path("runs/speed")
    """Folder for results.json and the pictures."""
    report: Path | None = None
    """Also writes the dated report (Markdown) to this file, with the pictures beside it."""
    threads: int = 2
    """Cores that everything is restricted to."""
    compiled: bool = True
    """Of the sparse contest: with torch.compile, which takes minutes to compile."""
    rounds: int | None = None
    """Interleaved rounds; default 5 (with --quick 3), sparse 12 (with --quick 4)."""

    def __post_init__(self):
        if self.threads < 1:
            raise UserError(f"threads must be at least 1, got {self.threads}")
        if self.rounds is not None and self.rounds < 1:
            raise UserError(f"rounds must be at least 1, got {self.rounds}")


def main() -> None:
    settings = parse_command(Speed, "experiments.speed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the workers are ended too
    cores = peers.pin_to_cores(settings.threads)
    described = machine.describe(cores)
    say(f"{described['processor']}, {described['cores']} cores, load {described['load before the run']}")
    settings.out.mkdir(parents=True, exist_ok=True)
    if settings.contest == "sparse":
        from experiments.speed.sparse.run import run_sparse  # brings jax with it, which Gemma 2's contest keeps out

        run_sparse(settings, described, run_json, say)
    else:
        run_gemma2(settings, described, cores)


def run_gemma2(settings: Speed, described: dict[str, str], cores: list[int]) -> None:
    """The contest of Gemma 2, and the local layer."""
    size = "quick" if settings.quick else "full"
    workload = QUICK if settings.quick else FULL
    rounds = settings.rounds or workload.rounds
    workload = Workload(**{**workload.__dict__, "rounds": rounds})
    missing = peers.missing_packages()
    taking_part = [peer for peer in peers.PEERS if peer.mode is None or (not settings.quick and not missing)]
    if missing:
        say(f"{', '.join(missing)} not installed: the zoo is measured alone")

    with tempfile.TemporaryDirectory(prefix="speed-") as scratch_name:
        scratch = Path(scratch_name)
        say("local attention layer")
        local = run_json("experiments.speed.local_attention", [*map(str, workload.local_lengths), str(workload.rounds)])
        contest, facts = compare(taking_part, workload, size, settings.threads, scratch)
        weights = int(facts["weight_bytes"])
        say("memory bandwidth")
        read = machine.read_bandwidth(len(cores), weights)
        copy = machine.copy_bandwidth(len(cores), weights)

    lengths = [aims.LengthResult(**result) for result in local]
    results = report.Results(
        date=datetime.date.today().isoformat(),
        command=" ".join(["python -m experiments.speed", *sys.argv[1:]]),
        machine=described,
        workload=workload,
        parameters=weights // 4,
        training_flops=facts["training_flops"],
        read_bytes_per_second=read,
        copy_bytes_per_second=copy,
        contest=contest,
        missing=missing,
        local=lengths,
        aims=aims.contest_aims(contest) + aims.local_aims(lengths),
    )
    publish(results, settings)


def compare(
    taking_part: list[peers.Peer], workload: Workload, size: str, threads: int, scratch: Path
) -> tuple[Contest, dict[str, float]]:
    """Runs the contest in processes of their own; also returns the bytes of the weights and a training step's FLOPs."""
    folder = scratch / "model"
    facts = run_json("experiments.speed.workload", [workload.preset, str(folder), str(workload.length)])
    facts["training_flops"] = 3 * facts["flops_per_token"] * workload.batch_size * workload.length
    workers = {}
    try:
        for peer in taking_part:
            workers[peer.name] = peers.start(peer, folder, size, threads, scratch)
        return run_contest(workers, workload, scratch, say), facts
    finally:
        for worker in workers.values():
            worker.close()


def run_json(module: str, arguments: list[str]):
    """What `python -m module` prints, as JSON: jax must not keep threads or memory in this process."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        env=peers.cpu_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def publish(results: report.Results, settings: Speed) -> None:
    """Tables on the terminal, results.json and pictures in the output folder, and the report if asked for."""
    for title, rows in report.tables(results):
        print(f"\n{title}\n{report.as_text(rows)}")
    stem = settings.report.stem if settings.report else "speed"
    folder = settings.report.parent if settings.report else settings.out
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{stem}-contest.png", f"{stem}-local.png"]
    pictures.draw_contest(results.contest, folder / names[0])
    pictures.draw_local(results.local, folder / names[1])
    (settings.out / "results.json").write_text(json.dumps(report.as_json(results), indent=1, default=str) + "\n")
    written = [settings.out / "results.json", *(folder / name for name in names)]
    if settings.report:
        settings.report.write_text(report.write_report(results, names))
        written.append(settings.report)
    print("\nwrote", ", ".join(map(str, written)))


def say(text: str) -> None:
    """A line of progress."""
    print(f"[{datetime.datetime.now():%H:%M:%S}] {text}", flush=True)


if __name__ == "__main__":
    run_command(main)
