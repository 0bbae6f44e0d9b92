"""Data to train and to examine on, made ahead as arrays; those that take long are kept in a folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int, UInt8

from experiments.shared_workspace import bouncing_balls, sort_of_clevr, triangles
from experiments.shared_workspace.sizes import TEST_SEED, Ball, Clevr, Triangle

TEST_678 = TEST_SEED + 1
"""Seed of the test sequences with more balls."""


class Examples(NamedTuple):
    """Sets of elements, with questions or without, and right answers. Of a data set, or of a batch."""

    elements: Float32[np.ndarray, "n e i"]
    """What there is to see; of a data set, of each scene."""
    questions: UInt8[np.ndarray, "n q"] | None
    """What is asked."""
    answers: Int[np.ndarray, " n"]
    """Numbers of classes."""


def clevr_of(size: Clevr, seed: int, folder: Path) -> sort_of_clevr.SortOfClevr:
    """The training scenes of a seed, or with `TEST_SEED` those of the test; made once, then read from the folder."""
    count = size.test_scenes if seed == TEST_SEED else size.scenes
    kept = folder / f"sort-of-clevr-{seed}-{count}-{size.questions_per_kind}.npz"
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as file:
            scenes = [sort_of_clevr.Scene(*scene) for scene in zip(file["centres"], file["circles"])]
            return sort_of_clevr.SortOfClevr(scenes, file["questions"], file["answers"])
    made = sort_of_clevr.generate(count, seed, questions_per_kind=size.questions_per_kind)
    folder.mkdir(parents=True, exist_ok=True)
    # The file is whole or not there: two studies may share the folder.
    unfinished = kept.with_suffix(".unfinished.npz")
    np.savez_compressed(
        unfinished,
        centres=np.stack([scene.centres for scene in made.scenes]),
        circles=np.stack([scene.circles for scene in made.scenes]),
        questions=made.questions,
        answers=made.answers,
    )
    unfinished.rename(kept)
    return made


def clevr_examples(data: sort_of_clevr.SortOfClevr, *, pixels: bool) -> Examples:
    """Questions and answers in the order scene, kind, question; elements by scene: patches, or descriptions with column
    and row in -1..1."""
    if pixels:
        elements = sort_of_clevr.patches(data.pictures())
    else:
        elements = data.descriptions()
        elements[..., -2:] = 2 * elements[..., -2:] - 1
    questions = data.questions.reshape(-1, sort_of_clevr.QUESTION_DIM)
    return Examples(elements, questions, data.answers.reshape(-1))


def trained_on(scenes: int, size: Clevr) -> Int[np.ndarray, " n"]:
    """Numbers of the questions that are trained on: of each scene the first few unary ones, and all others."""
    per_kind = size.questions_per_kind
    numbers = np.arange(scenes * 3 * per_kind).reshape(scenes, 3 * per_kind)
    return np.delete(numbers, np.arange(size.unary_trained, per_kind), axis=1).reshape(-1)


def taken(data: Examples, chosen: Int[np.ndarray, " b"], *, marked: bool = False) -> Examples:
    """The batch of some of a data set's questions, or of its sets where there are none. `marked`: two more numbers of
    each object, whether the question names it as the first and as the second one."""
    if data.questions is None:
        return Examples(data.elements[chosen], None, data.answers[chosen])
    scene = chosen // (len(data.answers) // len(data.elements))
    elements, questions = data.elements[scene], data.questions[chosen]
    if marked:
        objects = sort_of_clevr.OBJECTS
        named = questions[:, : 2 * objects].reshape(-1, 2, objects).swapaxes(1, 2)
        elements = np.concatenate([elements, named.astype(np.float32)], axis=2)
    return Examples(elements, questions, data.answers[chosen])


def orders(count: int, batch_size: int, steps: int, seed: int) -> Iterator[Int[np.ndarray, " b"]]:
    """What each of `steps` batches has of `count` examples: all once in random order, then again in another one."""
    random, left = np.random.default_rng([seed, 2]), np.zeros(0, np.int64)
    for _ in range(steps):
        while len(left) < batch_size:
            left = np.concatenate([left, random.permutation(count)])
        chosen, left = left[:batch_size], left[batch_size:]
        yield chosen


def points(found: triangles.Triangles) -> Float32[np.ndarray, "n 24 2"]:
    """The centres of the discs that a picture shows, as (column, row) in -1..1."""
    centres = np.rint(found.vertices[:, :, None] + found.offsets).reshape(len(found.labels), -1, 2)
    return (centres / (triangles.SIZE / 2) - 1).astype(np.float32)


def triangle_examples(count: int, seed: int, *, hard: bool = False) -> Examples:
    """Half of them equilateral; the others anywhere, or all of them hard."""
    found = triangles.generate(count, seed, hard_share=float(hard))
    return Examples(points(found), None, found.labels)


def triangles_of(size: Triangle, seed: int) -> Examples:
    """As many as are trained on."""
    return triangle_examples(size.training.steps * size.training.batch_size, seed)


def balls_of(size: Ball, seed: int) -> Float32[np.ndarray, "n t 4 4"]:
    """States of the training sequences, 4 balls each."""
    return bouncing_balls.generate("4", size.sequences, size.length, seed).states()


def test_balls(size: Ball, kind: bouncing_balls.Kind) -> bouncing_balls.Balls:
    """The frames that are given and those that are to be found."""
    seed = TEST_678 if kind == "678" else TEST_SEED
    return bouncing_balls.generate(kind, size.test, size.seen + size.rolled_out, seed)
