"""A training run so small that a test can afford several: its command line, and what it left behind."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from zoo.training.metrics import read_metrics
from zoo.training.run_directory import read_run

REPOSITORY = Path(__file__).resolve().parent.parent

SIZES = {
    "--model.vocab-size": 320,
    "--model.embed-dim": 16,
    "--model.num-layers": 2,
    "--model.num-heads": 2,
    "--model.num-kv-heads": 1,
    "--model.head-dim": 8,
    "--model.hidden-dim": 32,
    "--model.sliding-window": 8,
    "--model.max-position-embeddings": 64,
    "--data.vocab-size": 320,
    "--data.sequence-length": 32,
    "--data.batch-size": 8,
    "--data.validation-fraction": 0.2,
    "--data.validation-batches": 2,
    "--steps": 6,
    "--log-every": 1,
    "--evaluate-every": 3,
    "--checkpoint-every": 2,
    "--sample-tokens": 0,  # prefill and decode are two more programs to compile
}
WORDS = ("def", "class", "return", "the", "of", "and", "model", "token", "layer", "attention", "loss", "step", "state")


def write_corpus(folder: Path, documents: int = 60) -> Path:
    """A folder of text files whose words are drawn at random, the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    for number in range(documents):
        lines = [" ".join(draw.choices(WORDS, k=draw.randint(3, 9))) for _ in range(draw.randint(3, 12))]
        (folder / f"{number:03}.txt").write_text("\n".join(lines))
    return folder


def arguments(data: Path, run: Path, **changes) -> list[str]:
    """The command line of the tiny run; `changes` are options with `__` for `.` (`data__seed=4`), None drops one."""
    options = dict(SIZES) | {"--data": data, "--run-dir": run}
    for name, value in changes.items():
        options["--" + name.replace("__", ".").replace("_", "-")] = value
    return [str(word) for name, value in options.items() if value is not None for word in (name, value)] + [
        "--no-tensorboard"
    ]


def start(command: list[str], *, devices: int = 1, **environment) -> subprocess.Popen:
    """Starts `python -m zoo.train` with so many virtual CPU devices."""
    name = "--xla_force_host_platform_device_count"
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if not flag.startswith(name)]
    return subprocess.Popen(
        [sys.executable, "-m", "zoo.train", *command],
        cwd=REPOSITORY,
        env=os.environ | {"XLA_FLAGS": " ".join([*flags, f"{name}={devices}"]), "PYTHONUNBUFFERED": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_command(command: list[str], *, devices: int = 1, **environment) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `python -m zoo.train`."""
    process = start(command, devices=devices, **environment)
    output, errors = process.communicate(timeout=600)
    return process.returncode, output, errors


def start_several(commands: Sequence[list[str]], *, devices: int, **environment) -> list[subprocess.Popen]:
    """Starts the processes of one run, with so many virtual CPU devices each."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    options = ["--distributed.coordinator-address", address, "--distributed.num-processes", str(len(commands))]
    return [
        start([*command, *options, "--distributed.process-id", str(index)], devices=devices, **environment)
        for index, command in enumerate(commands)
    ]


def finish(processes: list[subprocess.Popen], timeout: float = 600) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each; whatever happens, none of them is left running."""
    try:
        return [
            (process.returncode, *pipes) for process in processes for pipes in [process.communicate(timeout=timeout)]
        ]
    finally:
        for process in processes:
            process.kill()


def losses(run: Path) -> list[tuple]:
    """What metrics.jsonl says of each step that does not depend on the clock."""
    names = ("step", "loss", "grad_norm", "learning_rate", "tokens", "validation_loss", "epoch")
    return [tuple(numbers.get(name) for name in names) for numbers in read_metrics(run / "metrics.jsonl")]


def saved_params(run: Path) -> dict[str, np.ndarray]:
    """The parameters of the newest checkpoint, by name, read without any of the project's code but the listing."""
    import orbax.checkpoint as ocp

    folder = run.absolute() / "checkpoints" / str(read_run(run).steps[-1]) / "params"
    with ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        tree = checkpointer.metadata(folder).item_metadata.tree
        as_numpy = jax.tree.map(lambda _leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        restored = checkpointer.restore(folder, restore_args=as_numpy)  # the devices that saved it may not be here
    return {
        jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
    }


def assert_same_run(run: Path, other: Path) -> None:
    """Both runs wrote the same numbers for every step and ended with the same parameters, bit for bit."""
    assert losses(run) == losses(other)
    params, expected = saved_params(run), saved_params(other)
    assert params.keys() == expected.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def own_cache(folder: Path) -> dict[str, str]:
    """jax does not write its compile cache atomically: what will be killed gets one of its own, filled before."""
    return {"JAX_COMPILATION_CACHE_DIR": str(folder / "compile_cache")}


def kill_until_done(command: list[str], run: Path, kills: int, seed: int = 0, **environment) -> dict[str, int]:
    """Runs the command, kills it with SIGKILL `kills` times at random moments, and lets it end.

    One kill in four comes while the process starts; the others come up to 0.3 s after a step's line, so that with a
    checkpoint every other step most of them meet a save. Returns how often each happened.
    """
    draw = random.Random(seed)
    counts = {"kills": 0, "while starting": 0, "while saving": 0, "ended before the kill": 0}
    while counts["kills"] < kills:
        process = start(command, **environment)
        try:
            if draw.random() < 0.25:
                wait_for(process, draw.uniform(0, 8))
                counts["while starting"] += process.poll() is None
            else:
                for _ in range(draw.randint(1, 4)):
                    next((line for line in process.stdout if line.startswith("step")), None)
                wait_for(process, draw.uniform(0, 0.3))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                counts["kills"] += 1
            else:
                counts["ended before the kill"] += 1
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
        if process.returncode not in (0, -signal.SIGKILL):
            raise AssertionError(f"the run ended with {process.returncode}: {errors[-2000:]}")
        counts["while saving"] += any((run / "checkpoints").glob("*orbax-checkpoint-tmp*"))
        if process.returncode == 0:
            break
    code, _, errors = run_command(command, **environment)
    assert code == 0, errors[-2000:]
    return counts


def wait_for(process: subprocess.Popen, seconds: float) -> None:
    """Waits, at most until the process ends."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        pass


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    corpus = write_corpus(folder / "corpus")
    sizes, cache = {"steps": 12 * number, "evaluate_every": 25}, own_cache(folder)
    assert run_command(arguments(corpus, folder / "whole", **sizes), **cache)[0] == 0
    print(
        json.dumps(kill_until_done(arguments(corpus, folder / "killed", **sizes), folder / "killed", number, **cache))
    )
    assert_same_run(folder / "killed", folder / "whole")
    print("every number equals the uninterrupted run's, bit for bit")
