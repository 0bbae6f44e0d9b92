"""One run on Sort-of-CLEVR or on triangles."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int

from experiments.shared_workspace import material, sort_of_clevr, writers
from experiments.shared_workspace.arms import Arm, Run
from experiments.shared_workspace.material import Examples
from experiments.shared_workspace.result import Result
from experiments.shared_workspace.sizes import TEST_SEED, Size, transformer_of
from experiments.shared_workspace.trainer import answer_loss, train
from zoo.models.workspace_transformer import WorkspaceTransformer

ROWS = 1000
"""Examples that go through a model at a time."""
LOOKED_AT = 100
"""Scenes of the test whose writers are looked at."""


def question_only(run: Run, size: Size, folder: Path) -> Result:
    """What the training answers of each question say about those of the test: no model, and no look at the scene."""
    train, test = (material.clevr_of(size.clevr, seed, folder) for seed in (run.seed, TEST_SEED))
    return Result(run, sort_of_clevr.question_only_accuracy(train, test))


def classifier(run: Run, arm: Arm, size: Size, folder: Path) -> Result:
    """Trains a variant and counts its right answers."""
    config, clevr = transformer_of(arm, size), arm.task == "sort-of-clevr"
    pixels, marked = arm.scene == "pixels", clevr and arm.scene == "marked"
    model = WorkspaceTransformer(config, rngs=nnx.Rngs(run.seed))
    if clevr:
        data = material.clevr_examples(material.clevr_of(size.clevr, run.seed, folder), pixels=pixels)
        chosen = material.trained_on(len(data.elements), size.clevr)
    else:
        data = material.triangles_of(size.triangle, run.seed)
        chosen = np.arange(len(data.answers))
    training = size.training_of(arm)
    orders = material.orders(len(chosen), training.batch_size, training.steps, run.seed)
    batches = (material.taken(data, chosen[order], marked=marked) for order in orders)
    trained = train(run.name, model, answer_loss, batches, training, run.seed)
    figures: dict[str, float] = {}
    pictures: dict[str, Any] = {}
    if clevr:
        test = material.clevr_examples(material.clevr_of(size.clevr, TEST_SEED, folder), pixels=pixels)
        (found,) = answers_of(trained.model, [test], marked=marked)
        figures = by_kind(found == test.answers, test.questions)
        if config.communication == "workspace" and not pixels:
            more, pictures = specialisation(trained.model, test, marked=marked)
            figures |= more
    else:
        tests = [material.triangle_examples(size.triangle.test, TEST_SEED, hard=hard) for hard in (False, True)]
        for name, test, found in zip(("anywhere", "hard negatives"), tests, answers_of(trained.model, tests)):
            right = found == test.answers
            figures[name] = float(right.mean())
            for label, word in enumerate(("equilateral", "other")):
                figures[f"{name}: {word}"] = float(right[test.answers == label].mean())
    return Result(run, figures, trained.curve, config.num_parameters(), trained.milliseconds, trained.seconds, pictures)


def answers_of(model: Any, data_sets: Sequence[Examples], *, marked: bool = False) -> list[Int[np.ndarray, " n"]]:
    """The likeliest answers to each data set."""
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, elements, questions: nnx.merge(graphdef, params)(elements, questions).argmax(-1))

    def answers(data: Examples) -> Int[np.ndarray, " n"]:
        count = len(data.answers)
        rows = (np.arange(start, min(start + ROWS, count)) for start in range(0, count, ROWS))
        batches = (material.taken(data, chosen, marked=marked) for chosen in rows)
        return np.concatenate([np.asarray(run(params, batch.elements, batch.questions)) for batch in batches])

    return [answers(data) for data in data_sets]


def by_kind(right: np.ndarray, questions: np.ndarray | None) -> dict[str, float]:
    """Part of right answers, by kind ("unary") and by which of its three ("unary: shape")."""
    assert questions is not None
    kinds, subkinds = questions[:, 12:15].argmax(1), questions[:, 15:].argmax(1)
    found = {name: float(right[kinds == kind].mean()) for kind, name in enumerate(sort_of_clevr.KINDS)}
    for kind, name in enumerate(sort_of_clevr.KINDS):
        for subkind, what in enumerate(sort_of_clevr.SUBKINDS[kind]):
            if (chosen := (kinds == kind) & (subkinds == subkind)).any():
                found[f"{name}: {what}"] = float(right[chosen].mean())
    return found


def specialisation(model: Any, test: Examples, *, marked: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """(figures, pictures) of who writes: `writers`' measures over all layers, and weights by kind, layer, slot and
    role, heads together."""
    per_scene = len(test.answers) // len(test.elements)
    batch = material.taken(test, np.arange(min(LOOKED_AT, len(test.elements)) * per_scene), marked=marked)
    assert batch.questions is not None
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, e, q: nnx.merge(graphdef, params).who_writes(e, q))
    parts = []
    for start in range(0, len(batch.answers), ROWS):
        part = slice(start, start + ROWS)
        parts.append(np.asarray(run(params, batch.elements[part], batch.questions[part])))
    weights = np.concatenate(parts, axis=1).swapaxes(0, 1)  # examples first: [n, l, h, m, t]
    figures = {
        "effective writers": writers.effective_writers(weights),
        "slot likeness": writers.slot_likeness(weights),
        "fixedness": writers.fixedness(weights),
    }
    roles = writers.by_role(weights.mean(2), batch.questions)
    for number, kind in enumerate(sort_of_clevr.KINDS):
        last = roles[number, -1].mean(0)
        for role in (2, 3, 4):
            figures[f"last layer, {kind}: {writers.ROLES[role]}"] = float(last[role])
    shown = {"who writes": np.where(np.isnan(roles), 0, roles).round(4).tolist()}
    return {name: value for name, value in figures.items() if np.isfinite(value)}, shown
