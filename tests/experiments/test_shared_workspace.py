"""The generators keep their rules: answers are recomputed by other means, physics is checked by its laws."""

from collections import Counter
from functools import cache
from itertools import combinations

import numpy as np
import pytest

from experiments.shared_workspace import bouncing_balls, sort_of_clevr, triangles
from experiments.shared_workspace.cost import Cost, LayerSize, exponent, measure, plot
from experiments.shared_workspace.pictures import bouncing_balls_page, sort_of_clevr_page, triangles_page
from experiments.shared_workspace.sort_of_clevr import ANSWERS, COLOURS, KINDS, SUBKINDS


@cache
def clevr(balanced: bool = True, count: int = 60) -> sort_of_clevr.SortOfClevr:
    return sort_of_clevr.generate(count, 1, balanced=balanced)


def asked(vector: np.ndarray) -> tuple[int, int, int, int | None]:
    """(kind, which of its three, first colour, second colour or None)."""
    parts = [np.flatnonzero(part).tolist() for part in np.split(vector, [6, 12, 15])]
    assert [len(part) for part in parts] == [1, 1 if parts[2] == [2] else 0, 1, 1]
    return parts[2][0], parts[3][0], parts[0][0], parts[1][0] if parts[1] else None


def recomputed(description: np.ndarray, vector: np.ndarray) -> str:
    """The answer in words, in floating point, out of what a model is given of a scene."""
    kind, subkind, a, b = asked(vector)
    places = [(75 * float(o[7]), 75 * float(o[8])) for o in description]
    shapes = ["circle" if o[6] else "square" for o in description]
    others = [i for i in range(6) if i not in (a, b)]

    def away(i, j):
        return np.hypot(places[i][0] - places[j][0], places[i][1] - places[j][1])

    if kind == 0:
        return shapes[a] if subkind == 0 else "yes" if places[a][subkind - 1] < 37.5 else "no"
    if kind == 1:
        if subkind == 2:
            return str(sum(shapes[i] == shapes[a] for i in others))
        return shapes[sorted(others, key=lambda i: away(a, i))[0 if subkind == 0 else -1]]
    (ax, ay), (bx, by) = places[a], places[b]
    if subkind == 0:
        near = 1e-3
        return str(
            sum(
                min(ax, bx) - near <= x <= max(ax, bx) + near and min(ay, by) - near <= y <= max(ay, by) + near
                for x, y in (places[i] for i in others)
            )
        )
    if subkind == 1:
        slope = (by - ay) / (bx - ax)
        return "yes" if any(abs(y - ay - slope * (x - ax)) <= 12.001 for x, y in (places[i] for i in others)) else "no"
    count = 0
    for i in others:
        angles = []
        for one, two, three in ((a, b, i), (b, i, a), (i, a, b)):
            first, second = (np.subtract(places[other], places[one]) for other in (two, three))
            cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
            angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        count += 89.99 <= max(angles) < 179.9
    return str(count)


def test_answers_are_what_the_descriptions_say():
    data = clevr()
    for description, vectors, answers in zip(data.descriptions(), data.questions, data.answers):
        for vector, right in zip(vectors.reshape(-1, 18), answers.reshape(-1)):
            assert recomputed(description, vector) == ANSWERS[right], sort_of_clevr.question_text(vector)


def test_objects_keep_their_distance_and_are_drawn_where_they_are():
    for scene, picture in list(zip(clevr().scenes, clevr().pictures()))[:50]:
        assert scene.centres.min() >= 5 and scene.centres.max() <= 69
        assert min(np.linalg.norm(a - b) for a, b in combinations(scene.centres, 2)) >= 10
        for place, circle, colour in zip(scene.centres, scene.circles, COLOURS.values()):
            gaps = np.abs(scene.centres - place).max(1)
            if sorted(gaps)[1] > 10:
                rows, columns = np.nonzero((picture == colour).all(-1))
                assert len(rows) == (81 if circle else 121)
                assert (columns.mean(), rows.mean()) == tuple(place)
    shapes = np.concatenate([scene.circles for scene in clevr().scenes])
    assert abs(shapes.mean() - 0.5) < 0.05


def shares(data: sort_of_clevr.SortOfClevr) -> dict[tuple[int, int], dict[str, float]]:
    """By kind and which of its three: how often each answer is right."""
    counts: dict[tuple[int, int], Counter] = {}
    for vector, right in zip(data.questions.reshape(-1, 18), data.answers.reshape(-1)):
        counts.setdefault(asked(vector)[:2], Counter())[ANSWERS[right]] += 1
    return {key: {word: n / found.total() for word, n in found.items()} for key, found in counts.items()}


def test_answers_are_balanced_as_far_as_scenes_allow():
    found, plain = shares(clevr()), shares(clevr(balanced=False))
    assert found.keys() == plain.keys() == {(kind, sub) for kind in range(3) for sub in range(3)}
    for kind, sub in found:
        two = set(found[kind, sub]) in ({"yes", "no"}, {"square", "circle"})
        assert max(found[kind, sub].values()) < (0.53 if two else 0.36), SUBKINDS[kind][sub]
    assert max(plain[2, 0].values()) > 0.5


def test_what_can_be_known_without_looking_is_less_with_balanced_answers():
    tests = (sort_of_clevr.generate(25, 2, balanced=balanced) for balanced in (True, False))
    balanced, plain = (sort_of_clevr.question_only_accuracy(clevr(b), test) for b, test in zip((True, False), tests))
    assert list(balanced) == list(KINDS)
    assert 0.4 < balanced["unary"] < 0.6
    assert balanced["ternary"] < plain["ternary"]


def test_the_same_seed_gives_the_same_scenes_and_a_longer_run_begins_with_them():
    short, again = sort_of_clevr.generate(5, 3), sort_of_clevr.generate(8, 3)
    np.testing.assert_array_equal(short.questions, again.questions[:5])
    np.testing.assert_array_equal(short.answers, again.answers[:5])
    assert (sort_of_clevr.generate(5, 4).questions != short.questions).any()


def test_patches_are_the_pictures_in_parts():
    pictures = clevr().pictures()[:2]
    parts = sort_of_clevr.patches(pictures)
    assert parts.shape == (2, 25, 675)
    np.testing.assert_allclose(parts[1, 7].reshape(15, 15, 3) * 255, pictures[1, 15:30, 30:45], atol=1e-4)
    parts = triangles.patches(triangles.generate(2, 0).pictures())
    assert parts.shape == (2, 256, 16)
    np.testing.assert_array_equal(
        parts[1, 17].reshape(4, 4) * 255, triangles.generate(2, 0).pictures()[1, 4:8, 4:8].astype(np.float32)
    )


def test_questions_without_an_answer_are_none():
    place = [[30, 30], [30, 50], [50, 30], [10, 10], [60, 60], [30, 10]]
    scene = sort_of_clevr.Scene(np.array(place), np.array([True, True, False, True, False, False]))
    assert sort_of_clevr.answer(scene, 1, 0, 0) is None  # 1, 2 and 5 are equally near, of both shapes
    assert sort_of_clevr.answer(scene, 2, 1, 0, 1) is None  # straight up
    assert ANSWERS[sort_of_clevr.answer(scene, 2, 0, 0, 4)] == "2"  # on its edges
    assert ANSWERS[sort_of_clevr.answer(scene, 2, 0, 3, 4)] == "4"
    # 0 lies on the line through 3 and 4, which makes no triangle; 1, 2 and 5 see the two at an obtuse angle.
    assert ANSWERS[sort_of_clevr.answer(scene, 2, 2, 3, 4)] == "3"


@pytest.mark.parametrize("hard_share", [0.0, 1.0])
def test_triangles_are_what_their_labels_say(hard_share):
    found = triangles.generate(400, 0, hard_share=hard_share)
    assert (found.labels == triangles.EQUILATERAL).sum() == 200
    sides = np.linalg.norm(found.vertices - np.roll(found.vertices, 1, axis=1), axis=-1)
    equal = found.labels == triangles.EQUILATERAL
    assert sides[equal].min() >= 14.5 and (np.ptp(sides[equal], axis=1) < 1.7).all()
    ratio = np.sort(sides)[:, 2] / np.maximum(np.sort(sides)[:, 0], 1e-9)
    assert (ratio[equal] < 1.1).all() and (ratio[~equal] >= 1.1).all()
    assert (ratio[~equal] <= 1.25).all() if hard_share else (ratio[~equal] > 1.25).mean() > 0.8
    assert found.vertices.min() >= 1 and found.vertices.max() <= 62


def test_hard_negatives_are_as_large_as_equilateral_triangles():
    found = triangles.generate(4000, 1, hard_share=1.0)
    sides = np.linalg.norm(found.vertices - np.roll(found.vertices, 1, axis=1), axis=-1).mean(1)
    equal = found.labels == triangles.EQUILATERAL
    assert abs(sides[equal].mean() - sides[~equal].mean()) < 1.5


def test_clusters_are_symmetric_and_drawn_around_their_vertices():
    found = triangles.generate(60, 2)
    np.testing.assert_allclose(found.offsets.sum(2), 0, atol=1e-12)
    assert np.abs(found.offsets).max() <= 1
    pictures = found.pictures()
    assert set(np.unique(pictures)) == {0, 255}
    rows, columns = np.mgrid[:64, :64]
    for vertices, picture in zip(found.vertices, pictures):
        near = np.min([np.maximum(np.abs(columns - x), np.abs(rows - y)) for x, y in vertices], axis=0)
        assert (picture[near > 3] == 0).all()
        assert all(picture[y, x] == 255 for x, y in vertices)


@cache
def balls(kind: str) -> bouncing_balls.Balls:
    return bouncing_balls.generate(kind, 20, 51, 0)


@pytest.mark.parametrize("kind", bouncing_balls.KINDS)
def test_balls_stay_in_the_box_and_keep_their_energy(kind):
    found = balls(kind)
    number = found.present.sum(1)
    assert set(number) == {"4": {4}, "678": {6, 7, 8}, "curtain": {3}}[kind]
    assert (found.radii[~found.present] == 0).all()
    if kind == "678":
        assert len(np.unique(found.masses[found.present])) > 100
    else:
        assert (found.radii == 1.2).all() and (found.masses == 1).all()
    energy = (found.masses[:, None] * (found.velocities**2).sum(-1)).sum(-1)
    np.testing.assert_allclose(energy, energy[:, :1].repeat(51, 1), rtol=1e-9)
    if kind != "678":
        np.testing.assert_allclose(np.sqrt(energy), 0.5, rtol=1e-9)
    reach = found.radii[:, None, :, None]
    places = found.positions
    # Into a wall as far as a ball goes in one step.
    assert (places >= reach - 0.5)[found.present[:, None].repeat(51, 1)].all()
    assert (places <= 10 - reach + 0.5)[found.present[:, None].repeat(51, 1)].all()
    np.testing.assert_array_equal(balls(kind).positions, bouncing_balls.generate(kind, 20, 51, 0).positions)


def test_balls_begin_apart_and_bounce_off_walls_and_each_other():
    found = bouncing_balls.generate("678", 40, 51, 1)
    for places, radii, present in zip(found.positions[:, 0], found.radii, found.present):
        for i, j in combinations(np.flatnonzero(present), 2):
            assert np.linalg.norm(places[i] - places[j]) > radii[i] + radii[j]
    changed = np.abs(np.diff(found.velocities, axis=1)) > 1e-12
    at_wall = changed.any(-1).sum(-1) == 1
    between_two = changed.any(-1).sum(-1) == 2
    assert at_wall.sum() > 50 and between_two.sum() > 50


def test_a_collision_keeps_momentum_and_energy_and_balls_that_part_are_left_alone():
    random = np.random.default_rng(0)
    places, speeds = random.normal(size=(200, 2, 2)), random.normal(size=(200, 2, 2))
    masses, radii, both = random.uniform(0.3, 2, (200, 2)), np.full((200, 2), 5.0), np.ones((200, 2), bool)
    after = bouncing_balls.collide(places, speeds, radii, masses, both, 1, 0)
    np.testing.assert_allclose((masses[..., None] * after).sum(1), (masses[..., None] * speeds).sum(1), atol=1e-12)
    energy = [(masses * (v**2).sum(-1)).sum(-1) for v in (speeds, after)]
    np.testing.assert_allclose(energy[1], energy[0], rtol=1e-12)
    towards = ((places[:, 1] - places[:, 0]) * (speeds[:, 1] - speeds[:, 0])).sum(-1) < 0
    moved = (after != speeds).any((1, 2))
    np.testing.assert_array_equal(moved, towards)
    again = bouncing_balls.collide(places, after, radii, masses, both, 1, 0)
    np.testing.assert_array_equal(again, after)
    apart = bouncing_balls.collide(places, speeds, np.zeros((200, 2)), masses, both, 1, 0)
    np.testing.assert_array_equal(apart, speeds)


def test_equal_balls_that_meet_head_on_exchange_their_velocities():
    places, speeds = np.array([[[1.0, 1.0], [3.0, 1.0]]]), np.array([[[0.2, 0.1], [-0.3, 0.0]]])
    ones = np.ones((1, 2))
    after = bouncing_balls.collide(places, speeds, 1.1 * ones, ones, ones.astype(bool), 0, 1)
    np.testing.assert_allclose(after, [[[-0.3, 0.1], [0.2, 0.0]]], atol=1e-12)


def test_frames_show_the_balls_and_the_curtain_hides_them():
    plain, covered = balls("4"), balls("curtain")
    frames = plain.frames(32)
    assert frames.shape == (20, 51, 32, 32) and frames.min() >= 0 and frames.max() <= 1
    x, y = np.clip((plain.positions[3, 7, 2] * 3.2).astype(int), 0, 31)
    assert frames[3, 7, y, x] > 0.9
    # Each of four balls covers pi r^2 of the box, a little of which may be beyond a wall or behind another one.
    assert frames[:, 0].mean() == pytest.approx(4 * np.pi * 1.2**2 / 100, rel=0.12)
    behind = covered.frames(50)
    for number, (left, top) in enumerate(covered.curtains):
        columns, rows = (int(np.ceil(edge * 5)) for edge in (left, top))
        assert (behind[number, :, rows : rows + 19, columns : columns + 19] == 0).all()
    states, hidden = covered.states(), covered.hidden()
    assert 0.05 < hidden.mean() < 0.35
    assert (states[hidden] == 0).all() and (np.abs(states[~hidden]).max(-1) > 0).all()
    inside = (covered.positions >= covered.curtains[:, None, None]) & (
        covered.positions < covered.curtains[:, None, None] + 4
    )
    np.testing.assert_array_equal(hidden, inside.all(-1))


def test_states_are_scaled_places_and_velocities_and_zeros_for_balls_that_are_not_there():
    found = balls("678")
    states = found.states()
    assert states.shape == (20, 51, 8, 4) and (states[~found.present[:, None].repeat(51, 1)] == 0).all()
    place = found.positions[2, 5, 0] / 5 - 1, found.velocities[2, 5, 0] / 0.5
    np.testing.assert_allclose(states[2, 5, 0], np.concatenate(place), rtol=1e-6)
    with pytest.raises(ValueError, match="kind must be one of"):
        bouncing_balls.generate("5", 1, 1, 0)


def test_example_pages_are_drawn(tmp_path):
    sort_of_clevr_page(tmp_path / "clevr.png", scenes=2)
    triangles_page(tmp_path / "triangles.png", each=2)
    bouncing_balls_page(tmp_path / "balls.png", frames=2)
    for page in tmp_path.iterdir():
        assert page.read_bytes().startswith(b"\x89PNG") and page.stat().st_size > 5000
    assert len(list(tmp_path.iterdir())) == 3


def test_the_exponent_of_a_power_law_is_found():
    costs = [Cost("pairwise", n, 3e-9 * n**2, 4 * n * n) for n in (32, 256, 512, 1024)]
    costs += [Cost("soft workspace", n, 2e-6 * n, 100 * n) for n in (32, 256, 512, 1024)]
    costs[0] = Cost("pairwise", 32, 1.0, 1)
    assert exponent(costs, "pairwise") == pytest.approx(2)
    assert exponent(costs, "soft workspace", field="temporary_bytes") == pytest.approx(1)
    with pytest.raises(ValueError, match="needs two numbers of specialists"):
        exponent(costs[:2], "pairwise")


@pytest.mark.slow
def test_costs_are_plotted(tmp_path):
    plot([Cost("pairwise", n, 3e-9 * n**2, 4 * n * n) for n in (32, 64)], tmp_path / "cost.png")
    assert (tmp_path / "cost.png").stat().st_size > 5000


def test_layers_are_measured_side_by_side():
    size = LayerSize(embed_dim=8, num_heads=2, num_slots=2, top_k=3)
    kinds = ("pairwise", "hard workspace")
    found = measure([6], kinds, size=size, rounds=2)
    assert [cost.kind for cost in found] == list(kinds)
    assert all(cost.seconds > 0 and cost.specialists == 6 for cost in found)
