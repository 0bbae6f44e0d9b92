"""Does a run with a teacher that was killed go on bit for bit? At the study's sizes, with a teacher of random weights.

One run is left alone; another is killed (SIGKILL) after a checkpoint and started again. Compared are all arrays of the
last checkpoints, parameters and optimizer, and the losses of all steps.
"""

import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx

from experiments.distillation.arms import DISTILLED, Run
from experiments.distillation.sizes import SIZES, Size, model_of, recipe_of
from experiments.distillation.texts import prepare, read_prepared, shared_of, training_paths
from experiments.runs import REPOSITORY, say, worker_environment
from zoo import train
from zoo.errors import UserError, run_command
from zoo.interop import save_run
from zoo.models import build
from zoo.recipes import Recipe
from zoo.training.metrics import last_step, read_metrics
from zoo.training.run_directory import checkpoints_dir, saved_steps
from zoo.training.teacher import DistillationConfig

STEPS, SAVED_EVERY = 24, 8


def check_resume(name: str, out: Path, date: str) -> dict[str, Any]:
    """JSON: whether all bits are the same, and what was compared. name: of a size. Raises `UserError` if a run fails,
    or ended before it could be killed."""
    size = SIZES[name]
    folder = out / "resume"
    for run in ("whole", "killed"):
        if (folder / run).exists():
            raise UserError(f"{folder / run} is there from an earlier check: remove it")
    folder.mkdir(parents=True, exist_ok=True)
    prepare(out, size, shared_of(size))
    teacher = folder / "teacher"
    if not teacher.exists():
        config = model_of(size.teacher, size.vocab_size, size.sequence_length)
        save_run(build(config, rngs=nnx.Rngs(0)), teacher, tokenizer=read_prepared(out)[0])
    say("a run that is left alone")
    finish(start(name, out, "whole"))
    say("a run that is killed")
    process = start(name, out, "killed")
    try:
        wait_for_steps(process, folder / "killed")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    killed_at, saved = last_step(folder / "killed" / "metrics.jsonl"), saved_steps(checkpoints_dir(folder / "killed"))
    say(f"killed after step {killed_at}, with checkpoints of {', '.join(map(str, saved))}; it goes on")
    finish(start(name, out, "killed"))
    whole, again = (state_of(folder / run) for run in ("whole", "killed"))
    losses = [[line["loss"] for line in read_metrics(folder / run / "metrics.jsonl")] for run in ("whole", "killed")]
    return {
        "date": date,
        "steps": STEPS,
        "killed_after_step": killed_at,
        "resumed_from_step": saved[-1],
        "arrays": len(whole),
        "different": different(whole, again),
        "same_losses": losses[0] == losses[1] and len(losses[0]) == STEPS,
        "same": not different(whole, again) and losses[0] == losses[1] and len(losses[0]) == STEPS,
    }


def recipe_for(size: Size, out: Path, run: str) -> Recipe:
    """A short run of the middle student with the teacher online."""
    student = Run(DISTILLED, size.widths[len(size.widths) // 2], 0)
    recipe = recipe_of(student, size, training_paths(out, shared_of(size)), out)
    loop = replace(recipe.loop, steps=STEPS, evaluate_every=STEPS, checkpoint_every=SAVED_EVERY, log_every=1)
    how = DistillationConfig(teacher=str(out / "resume" / "teacher"))
    return replace(recipe, run_dir=str(out / "resume" / run), loop=loop, distillation=how)


def start(name: str, out: Path, run: str) -> subprocess.Popen:
    """The run in a process of its own, its output in a log."""
    command = [sys.executable, "-m", "experiments.distillation.resume", name, str(out), run]
    with open(out / "resume" / f"{run}.log", "a") as log:
        return subprocess.Popen(
            command, cwd=REPOSITORY, env=worker_environment(out.absolute()), stdout=log, stderr=subprocess.STDOUT
        )


def finish(process: subprocess.Popen) -> None:
    """Raises `UserError` if it fails."""
    if process.wait():
        raise UserError(f"the run ended with exit code {process.returncode}: its log in the folder resume says why")


def wait_for_steps(process: subprocess.Popen, run: Path) -> None:
    """Until steps after a checkpoint are written down. Raises `UserError` if it ends first."""
    while True:
        saved = saved_steps(checkpoints_dir(run))
        if saved and saved[-1] < last_step(run / "metrics.jsonl") < STEPS:
            return
        if process.poll() is not None:
            raise UserError(f"the run ended with exit code {process.returncode} before it could be killed")
        time.sleep(0.01)


def state_of(run: Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, by name."""
    found = dict[str, np.ndarray]()
    for item in ("params", "optimizer"):
        folder = checkpoints_dir(run).absolute() / str(STEPS) / item
        with ocp.PyTreeCheckpointer() as checkpointer, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            tree = checkpointer.metadata(folder).item_metadata.tree
            as_numpy = jax.tree.map(lambda _leaf: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = checkpointer.restore(folder, restore_args=as_numpy)
        found |= {
            f"{item}{jax.tree_util.keystr(path)}": np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(restored)
        }
    return found


def different(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[str]:
    """Names of arrays whose bits are not the same, or that one of the two does not have."""
    return sorted(
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours
        or name not in theirs
        or ours[name].dtype != theirs[name].dtype
        or ours[name].shape != theirs[name].shape
        or ours[name].tobytes() != theirs[name].tobytes()
    )


def main() -> None:
    """Arguments: the size, the folder, the run's name."""
    name, out, run = sys.argv[1:]
    train.train(recipe_for(SIZES[name], Path(out), run), time.time())


if __name__ == "__main__":
    run_command(main)
