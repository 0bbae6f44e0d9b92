"""One of two processes is killed at random moments: `python -m tests.multi_host.kills FOLDER KILLS`."""

import dataclasses
import json
import random
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests import tiny_run
from zoo.training.metrics import read_metrics
from zoo.training.run_directory import checkpoints_dir, saved_steps

CHECKPOINT_EVERY = 5
OPTIONS = {
    "mesh.fsdp": 4,
    "mesh.tensor": 2,
    "model.num_kv_heads": 2,
    "data.packing": "first_fit",
    "sample_tokens": 0,
    "steps": 150,
    "evaluate_every": 25,
    "checkpoint_every": CHECKPOINT_EVERY,
    "distributed.start_seconds": 40,  # who is killed before they meet is waited for so long
}


@dataclass(frozen=True)
class Kill:
    """What one kill did."""

    victim: int
    """Which process was killed."""
    while_starting: bool
    code: int
    """Exit code of the other process."""
    seconds: float
    """How long the other one went on."""
    line: str
    """The last line that the other one wrote."""
    saved: int
    """The newest checkpoint that was left."""
    steps_lost: int
    """Steps that were written down after it."""


def kill_one_of_two(command: list[str], run: Path, kills: int, seed: int = 0, **environment) -> list[Kill]:
    """Runs a command in two processes, kills one of them `kills` times and starts both again, then lets them end.

    One kill in four comes while they start, the others up to 0.3 s after a step's line."""
    draw = random.Random(seed)
    done: list[Kill] = []
    while len(done) < kills:
        processes = tiny_run.start_several([command] * 2, devices=4, **environment)
        try:
            if starting := draw.random() < 0.25:
                time.sleep(draw.uniform(0.5, 6))
            else:
                for _ in range(draw.randint(2, 14)):
                    next((line for line in processes[0].stdout if line.startswith("step")), None)
                time.sleep(draw.uniform(0, 0.3))
            victim = draw.randrange(2)
            other = processes[1 - victim]
            if any(process.poll() is not None for process in processes):
                raise AssertionError(f"a process ended before it was killed: {tiny_run.finish(processes)}")
            since = time.monotonic()
            processes[victim].send_signal(signal.SIGKILL)
            code, _, errors = tiny_run.finish([other], timeout=120)[0]
            seconds = time.monotonic() - since
            tiny_run.finish(processes[victim : victim + 1])
        finally:
            for process in processes:
                process.kill()
        saved = max(saved_steps(checkpoints_dir(run)), default=0)
        written = max((numbers["step"] for numbers in read_metrics(run / "metrics.jsonl")), default=0)
        last = errors.strip().splitlines()[-1] if errors.strip() else ""
        done.append(Kill(victim, starting, code, seconds, last, saved, max(0, written - saved)))
        print(len(done), json.dumps(dataclasses.asdict(done[-1])), flush=True)
    for code, _, errors in tiny_run.finish(tiny_run.start_several([command] * 2, devices=4, **environment)):
        assert code == 0, errors[-2000:]
    return done


def check(folder: Path, kills: int, **changes) -> list[Kill]:
    """Trains once without and once with kills, and compares the runs, bit for bit."""
    corpus = tiny_run.write_corpus(folder / "corpus")
    options, cache = OPTIONS | changes, tiny_run.own_cache(folder)
    command = tiny_run.arguments(corpus, folder / "whole", **options)
    for code, _, errors in tiny_run.finish(tiny_run.start_several([command] * 2, devices=4, **cache)):
        assert code == 0, errors[-2000:]
    found = kill_one_of_two(tiny_run.arguments(corpus, folder / "run", **options), folder / "run", kills, **cache)
    for kill in found:
        assert kill.code == 75 and kill.seconds < 60, kill
        assert kill.line.startswith("error: ") and "run the same command again" in kill.line, kill
        # One save may still be on its way, and then the one before it is what is left.
        assert kill.steps_lost <= 2 * CHECKPOINT_EVERY, kill
    tiny_run.assert_same_run(folder / "run", folder / "whole")
    return found


if __name__ == "__main__":
    check(Path(sys.argv[1]), int(sys.argv[2]))
    print("every number equals the uninterrupted run's, bit for bit")
