"""`zoo.train` as a part of an experiment. (Apart from `runs.py`, whose commands start processes and need no JAX.)"""

import sys
import time
from pathlib import Path

from zoo import train
from zoo.errors import TRY_AGAIN
from zoo.recipes import Recipe
from zoo.training.metrics import last_step


def train_to_the_end(recipe: Recipe) -> None:
    """The run of a recipe, in this process, from where it is. Raises SystemExit(75) if it was asked to stop before its
    last step, by Ctrl-C or by the machine: the same again goes on, and nobody takes what is there for a result."""
    train.train(recipe, time.time())
    if last_step(Path(recipe.run_dir) / "metrics.jsonl") < recipe.loop.steps:
        sys.exit(TRY_AGAIN)
