"""Sort-of-CLEVR with unary, binary and ternary questions, from scratch: scenes, pictures, questions and answers.

A scene has six objects, one of each colour, squares or circles, on a white picture of 75 x 75 pixels. Rules and numbers
are those of the generator of github.com/anirudh9119/shared_workspace (itself after kimhc6028/relational-networks):

    unary    is it a square or a circle? | is it in the left half? | is it in the upper half?
    binary   shape of the nearest other object | of the furthest | how many others have its shape
    ternary  how many others are in the box whose corners are the two objects | is another one within 12 pixels, up or
             down, of the line through them | how many others make an obtuse triangle with them

Unlike there: any colour may be asked for (there, ternary questions leave out yellow); what has no answer is not asked
(two nearest objects of different shape, a line straight up); and answers are balanced, unless `balanced=False`: of the
objects that a question could be about, some have the answer that was given least often so far, and one of them is
taken. Counts that no object of a scene has cannot be asked for there, so that large ones stay rare.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import permutations
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8

SIZE, HALF, PATCH = 75, 5, 15
"""Pixels along a side of a picture, from an object's centre to its edge, and along a side of a patch."""
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "orange": (255, 156, 0),
    "grey": (128, 128, 128),
    "yellow": (255, 255, 0),
}
OBJECTS = len(COLOURS)
LEAST_DISTANCE, LINE_DISTANCE = 10, 12
"""Pixels between two centres, and from a line."""
ANSWERS = ("yes", "no", "square", "circle", "0", "1", "2", "3", "4", "5")
YES, NO, SQUARE, CIRCLE, ZERO = range(5)
KINDS = ("unary", "binary", "ternary")
SUBKINDS = (
    ("shape", "left half", "upper half"),
    ("shape of the nearest", "shape of the furthest", "others of its shape"),
    ("others in the box", "another near the line", "obtuse triangles"),
)
QUESTION_DIM = 2 * OBJECTS + len(KINDS) + 3
"""Numbers of a question: colour, second colour, kind, which of the kind's three."""
OBJECT_DIM = OBJECTS + 3
"""Numbers of an object's description."""


class Scene(NamedTuple):
    """Objects in the order of `COLOURS`."""

    centres: Int[np.ndarray, "6 2"]
    """Column and row of the centre's pixel."""
    circles: Bool[np.ndarray, "6"]
    """Circles; the others are squares."""


@dataclass(frozen=True)
class SortOfClevr:
    """Scenes and their questions, as many of each kind."""

    scenes: list[Scene]
    """One for each picture."""
    questions: UInt8[np.ndarray, "n 3 q 18"]
    """Zeros and ones, by kind; see `question_vector`."""
    answers: Int[np.ndarray, "n 3 q"]
    """Numbers of `ANSWERS`."""

    def pictures(self) -> UInt8[np.ndarray, "n 75 75 3"]:
        """All scenes, drawn."""
        return np.stack([draw(scene) for scene in self.scenes])

    def descriptions(self) -> Float32[np.ndarray, "n 6 9"]:
        """All scenes, described: see `describe`."""
        return np.stack([describe(scene) for scene in self.scenes])


def make_scene(random: np.random.Generator) -> Scene:
    """Centres uniform on the pixels 5 to 69, thrown again where two are less than 10 apart; shapes at odds of one."""
    while True:
        centres = random.integers(HALF, SIZE - HALF, (OBJECTS, 2))
        distances = _squared_distances(centres)
        np.fill_diagonal(distances, LEAST_DISTANCE**2)
        if distances.min() >= LEAST_DISTANCE**2:
            return Scene(centres, random.random(OBJECTS) < 0.5)


def draw(scene: Scene) -> UInt8[np.ndarray, "75 75 3"]:
    """Squares of 11 x 11 pixels and circles of radius 5; where two overlap, the later colour is seen."""
    picture = np.full((SIZE, SIZE, 3), 255, np.uint8)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for (column, row), circle, colour in zip(scene.centres, scene.circles, COLOURS.values(), strict=True):
        across, down = np.abs(columns - column), np.abs(rows - row)
        inside = across**2 + down**2 <= HALF**2 if circle else np.maximum(across, down) <= HALF
        picture[inside] = colour
    return picture


def patches(pictures: UInt8[np.ndarray, "n 75 75 3"]) -> Float32[np.ndarray, "n 25 675"]:
    """25 patches of 15 x 15 pixels in 0..1, row by row."""
    count = SIZE // PATCH
    split = pictures.reshape(len(pictures), count, PATCH, count, PATCH, 3).swapaxes(2, 3)
    return (split.reshape(len(pictures), count * count, -1) / 255).astype(np.float32)


def describe(scene: Scene) -> Float32[np.ndarray, "6 9"]:
    """For each object its colour (one of six), whether it is a circle, and column and row as fractions of the side."""
    return np.concatenate([np.eye(OBJECTS), scene.circles[:, None], scene.centres / SIZE], 1).astype(np.float32)


def question_vector(kind: int, subkind: int, first: int, second: int | None = None) -> UInt8[np.ndarray, "18"]:
    """Ones at the first colour, 6 + the second one, 12 + the kind and 15 + which of its three."""
    vector = np.zeros(QUESTION_DIM, np.uint8)
    vector[[first, 2 * OBJECTS + kind, 2 * OBJECTS + len(KINDS) + subkind]] = 1
    if second is not None:
        vector[OBJECTS + second] = 1
    return vector


def answer(scene: Scene, kind: int, subkind: int, first: int, second: int | None = None) -> int | None:
    """The number of the answer in `ANSWERS`; None = the question has none."""
    if kind == 0:
        return _unary(scene, subkind, first)
    if kind == 1:
        return _binary(scene, subkind, first)
    assert second is not None and second != first
    return _ternary(scene, subkind, first, second)


def _unary(scene: Scene, subkind: int, asked: int) -> int:
    if subkind == 0:
        return _shape(scene, asked)
    return YES if scene.centres[asked, subkind - 1] < SIZE / 2 else NO


def _binary(scene: Scene, subkind: int, asked: int) -> int | None:
    others = np.delete(np.arange(OBJECTS), asked)
    if subkind == 2:
        return ZERO + int((scene.circles[others] == scene.circles[asked]).sum())
    distances = _squared_distances(scene.centres)[asked, others]
    extreme = distances.min() if subkind == 0 else distances.max()
    shapes = {_shape(scene, other) for other in others[distances == extreme]}
    return shapes.pop() if len(shapes) == 1 else None


def _ternary(scene: Scene, subkind: int, first: int, second: int) -> int | None:
    a, b = scene.centres[first], scene.centres[second]
    others = scene.centres[np.delete(np.arange(OBJECTS), [first, second])]
    if subkind == 0:
        inside = (np.minimum(a, b) <= others) & (others <= np.maximum(a, b))
        return ZERO + int(inside.all(axis=1).sum())
    # Twice the area of the triangle; 0 = on the line.
    areas = (others[:, 1] - a[1]) * (b[0] - a[0]) - (b[1] - a[1]) * (others[:, 0] - a[0])
    if subkind == 1:
        if a[0] == b[0]:
            return None
        return YES if (np.abs(areas) <= LINE_DISTANCE * abs(b[0] - a[0])).any() else NO
    sides = np.stack([np.full(len(others), ((a - b) ** 2).sum()), *(((others - p) ** 2).sum(1) for p in (a, b))])
    obtuse = 2 * sides.max(axis=0) >= sides.sum(axis=0)
    return ZERO + int((obtuse & (areas != 0)).sum())


def make_questions(
    scene: Scene, kind: int, count: int, given: Counter, balanced: bool, random: np.random.Generator
) -> list[tuple[np.ndarray, int]]:
    """`count` questions of one kind about a scene, with their answers. `given`: how often each (kind, subkind, answer)
    was given so far; updated."""
    subjects = [(i, None) for i in range(OBJECTS)] if kind < 2 else list(permutations(range(OBJECTS), 2))
    tables: list[dict[int, list]] = []
    for subkind in range(3):
        table: dict[int, list] = {}
        for subject in subjects:
            right = answer(scene, kind, subkind, *subject)
            if right is not None:
                table.setdefault(right, []).append(subject)
        tables.append(dict(sorted(table.items())))
    found: list[tuple[np.ndarray, int]] = []
    while len(found) < count:
        subkind = int(random.integers(3))
        by_answer = tables[subkind]
        if not by_answer:
            continue
        if balanced:
            fewest = min(given[kind, subkind, right] for right in by_answer)
            right = int(random.choice([right for right in by_answer if given[kind, subkind, right] == fewest]))
        else:
            sizes = np.array([len(subjects) for subjects in by_answer.values()])
            right = int(random.choice(list(by_answer), p=sizes / sizes.sum()))
        given[kind, subkind, right] += 1
        subject = by_answer[right][random.integers(len(by_answer[right]))]
        found.append((question_vector(kind, subkind, *subject), right))
    return found


def generate(count: int, seed: int, *, questions_per_kind: int = 10, balanced: bool = True) -> SortOfClevr:
    """`count` scenes with that many questions of each kind. The same seed gives the same; of a larger `count`, the
    first ones are the same."""
    scenes, vectors, answers = [], [], []
    given: Counter = Counter()
    for number in range(count):
        random = np.random.default_rng([seed, number])
        scene = make_scene(random)
        asked = [make_questions(scene, kind, questions_per_kind, given, balanced, random) for kind in range(3)]
        scenes.append(scene)
        vectors.append([[vector for vector, _ in of_kind] for of_kind in asked])
        answers.append([[right for _, right in of_kind] for of_kind in asked])
    return SortOfClevr(scenes, np.array(vectors, np.uint8), np.array(answers))


def question_only_accuracy(train: SortOfClevr, test: SortOfClevr) -> dict[str, float]:
    """By kind, the accuracy of the answer that was most frequent in training for each question: what can be known
    without looking."""
    counts: dict[bytes, Counter] = {}
    for vector, right in zip(train.questions.reshape(-1, QUESTION_DIM), train.answers.reshape(-1)):
        counts.setdefault(vector.tobytes(), Counter())[int(right)] += 1
    frequent = Counter(train.answers.reshape(-1).tolist()).most_common(1)[0][0]
    guesses = np.array(
        [
            max(counts[key].items(), key=lambda item: (item[1], -item[0]))[0]
            if (key := v.tobytes()) in counts
            else frequent
            for v in test.questions.reshape(-1, QUESTION_DIM)
        ]
    ).reshape(test.answers.shape)
    return {kind: float((guesses[:, i] == test.answers[:, i]).mean()) for i, kind in enumerate(KINDS)}


def question_text(vector: UInt8[np.ndarray, "18"]) -> str:
    """A question in words."""
    names, kind = list(COLOURS), int(vector[12:15].argmax())
    first = names[int(vector[:6].argmax())]
    second = f" and {names[int(vector[6:12].argmax())]}" if vector[6:12].any() else ""
    return f"{first}{second}: {SUBKINDS[kind][int(vector[15:].argmax())]}?"


def _shape(scene: Scene, asked: int) -> int:
    return CIRCLE if scene.circles[asked] else SQUARE


def _squared_distances(centres: Int[np.ndarray, "n 2"]) -> Int[np.ndarray, "n n"]:
    return ((centres[:, None] - centres[None]) ** 2).sum(-1)
