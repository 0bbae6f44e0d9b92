"""The step, the validation and the report of runs in post-training: pairs, rewards, and generated tasks."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from zoo.data import Batch, Corpus, Tokenizer
from zoo.inference import Sampling
from zoo.parallel import batch_sharding
from zoo.recipes.answers import answers_of, held_out_questions, share_right
from zoo.recipes.post_training import Frozen
from zoo.recipes.program import TrainingProgram
from zoo.recipes.recipe import Recipe
from zoo.recipes.rollouts import PolicyGradient
from zoo.training.curves import draw_curves
from zoo.training.evaluation import make_evaluation
from zoo.training.run_directory import checkpoints_dir, saved_steps, write_json_atomically

BEFORE = "before.json"
"""File of a run directory with the validation of the model that it began with."""

Evaluate = Callable[[Any], Mapping[str, float]]


def step_and_evaluation(
    recipe: Recipe,
    mesh: Mesh,
    program: TrainingProgram,
    corpus: Corpus,
    tokenizer: Tokenizer,
    held_out: Sequence[Batch],
    frozen: Frozen,
) -> tuple[Callable[..., Any], Evaluate]:
    """(step, evaluate) for `run_loop`. Where the right answers are known, validation answers held-out prompts with the
    most probable tokens; validation_accuracy is the share of them that are right."""
    questions = held_out_questions(corpus, tokenizer)
    if recipe.samples_answers:
        gradient = PolicyGradient(recipe, mesh, program, tokenizer, frozen)
        return gradient.step, lambda params: gradient.evaluate(params, questions)
    step: Callable[..., Any] = program.step
    if frozen.reference is not None:
        step = functools.partial(program.step, teacher=frozen.reference)
    sharding = batch_sharding(mesh, recipe.rules)
    losses = make_evaluation(program.model.graphdef, program.loss, held_out, sharding, teacher=frozen.reference)
    if recipe.data.task.name == "none" or recipe.trains_rewards or not questions:
        return step, losses
    answers = answers_of(recipe, program.model, tokenizer, mesh, questions)

    def evaluate(params: Any) -> Mapping[str, float]:
        said = answers(params, [question.ids for question in questions], sampling=Sampling())
        return {**losses(params), "validation_accuracy": share_right(said, questions)}

    return step, evaluate


def write_before(recipe: Recipe, validation: Mapping[str, float]) -> None:
    """Keeps the validation of the model that a run begins with."""
    if jax.process_index() == 0:
        write_json_atomically(Path(recipe.run_dir) / BEFORE, validation)


def answer_report(recipe: Recipe, validation: Mapping[str, float]) -> str:
    """A table of the validation before and after training, the curves drawn, and what to do next."""
    run = Path(recipe.run_dir)
    path = run / BEFORE
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    lines = [f"{'on held-out documents':<30}{'before':>12}{'after':>12}"]
    for name, value in validation.items():
        if name == "validation_loss" and recipe.samples_answers:
            continue  # the reward again
        earlier = f"{before[name]:.4f}" if name in before else "-"
        lines.append(f"{name.removeprefix('validation_').replace('_', ' '):<30}{earlier:>12}{value:>12.4f}")
    if not validation:
        lines = ["no validation: no document was held out"]
    if jax.process_index() == 0:
        draw_curves(run / "metrics.jsonl", run / "loss.png", PANELS[_mode(recipe)], title=recipe.name)
    drawn = f"the curves are in {run / 'loss.png'}, every step in {run / 'metrics.jsonl'}"
    return "\n".join([*lines, drawn, "", what_next(recipe)])


PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "conversations": {"nats per token": ("loss",), "share of right answers": ("accuracy",)},
    "preference": {
        "loss per pair": ("loss",),
        "share of pairs in order": ("preference_accuracy",),
        "beta log-ratio": ("chosen_reward", "rejected_reward"),
        "share of right answers": ("accuracy",),
    },
    "rewards": {
        "loss per pair": ("loss",),
        "share of pairs in order": ("preference_accuracy",),
        "reward": ("chosen_reward", "rejected_reward"),
    },
    "policy": {
        "reward": ("reward",),
        "share of right answers": ("accuracy",),
        "KL to the reference, nats per answer": ("kl", "kl_k3"),
        "entropy, nats per token": ("entropy",),
    },
}
"""What is drawn in each mode: the metrics of every panel, each with its validation where there is one."""


def _mode(recipe: Recipe) -> str:
    if recipe.samples_answers:
        return "policy"
    if recipe.data.format == "preference":
        return "rewards" if recipe.trains_rewards else "preference"
    return "conversations"


def what_next(recipe: Recipe) -> str:
    """Commands that go on from a finished run."""
    run = recipe.run_dir
    # At its end a run on a generated task may have nothing left to learn: the oldest of its checkpoints has.
    begin = f"{run}/checkpoints/{min(saved_steps(checkpoints_dir(run)), default='')}"
    commands = {
        "conversations": [
            f"python -m zoo.train arithmetic-dpo --init-from {begin}",
            f"python -m zoo.train arithmetic-reward --init-from {begin}",
            f"python -m zoo.train arithmetic-rl --init-from {begin}",
        ],
        "rewards": [
            f"python -m zoo.train arithmetic-rl --init-from SFT_RUN --policy.reward model --policy.reward-model {run}"
        ],
    }
    generate = [f"python -m zoo.generate --checkpoint {run} --chat --prompt '37+45='"]
    own = commands.get(_mode(recipe), generate)
    if recipe.data.task.name == "none" and not recipe.trains_rewards:
        own = [f"python -m zoo.generate --checkpoint {run} --chat"]
    return "\n".join(["what to do next:", *(f"  {command}" for command in own)])
