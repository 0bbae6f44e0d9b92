"""Arms, batches, measures and reports of the study; what is trained is seen in the quick run."""

import json
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from experiments.runs import write_json
from experiments.shared_workspace import __main__ as command
from experiments.shared_workspace import (
    arms,
    bouncing_balls,
    findings,
    material,
    report,
    rolling_out,
    sort_of_clevr,
    study,
    study_pictures,
    triangles,
    writers,
)
from experiments.shared_workspace.arms import Run, arms_named, runs_of
from experiments.shared_workspace.cost import Cost, Costs, LayerSize, ratio, read_costs
from experiments.shared_workspace.result import Result, read_result
from experiments.shared_workspace.sizes import FULL, QUICK, TEST_SEED, rims_of, transformer_of
from zoo.errors import UserError
from zoo.models.workspace_transformer import VARIANTS


def test_arms_have_names_of_their_own_and_the_sweep_is_whole():
    everything = [*arms.STUDY, *arms.UNMARKED, *arms.PIXELS]
    assert len({Run(arm.name, 0).name for arm in everything}) == len(everything)
    swept = {arms.swept_name(slots, top_k) for slots in arms.SWEPT_SLOTS for top_k in arms.SWEPT_WRITERS}
    assert swept - {"TR+SSW", "TR+HSW"} == {arm.name for arm in arms.SWEEP} and len(swept) == 9
    assert [arm.model for arm in arms.MAIN[1:]] == [*VARIANTS, "ISAB"]
    assert arms_named(["main", "TR"]) == list(arms.MAIN)
    with pytest.raises(UserError, match="'TR\\+HWS' is unknown; did you mean 'TR\\+HSW'"):
        arms_named(["TR+HWS"])


def test_runs_go_seed_by_seed_and_what_no_seed_changes_is_done_once():
    found = runs_of(arms_named(["balls"]), (3, 4))
    assert [run.seed for run in found] == [3] * 5 + [4] * 3
    assert Counter(run.arm for run in found)[arms.WALLS] == 1


@pytest.mark.parametrize("arm", [*arms.MAIN[1:], *arms.SWEEP, *arms.TRIANGLES, arms.UNMARKED[4], arms.PIXELS[0]])
def test_transformers_differ_in_how_they_speak_alone(arm):
    config = transformer_of(arm, FULL)
    assert (config.num_layers, config.embed_dim, config.num_heads) == (4, 64, 4)
    assert config.positions == (arm.scene == "pixels")
    if config.communication == "workspace":
        soft = arm.model == "TR+SSW"
        assert (config.workspace.num_slots, config.workspace.top_k) == (arm.slots, None if soft else arm.top_k)
        assert config.workspace.key_dim * config.workspace.num_heads == config.embed_dim
    if config.communication == "induced":
        assert config.num_inducing == arm.slots


def test_digests_know_the_sizes_of_their_own_task():
    other = replace(FULL, ball=replace(FULL.ball, test=7))
    clevr, balls = arms_named(["TR", "balls: none"])
    assert FULL.made_with(clevr) == other.made_with(clevr) != FULL.made_with(arms_named(["STR"])[0])
    assert FULL.made_with(balls) != other.made_with(balls)
    assert [rims_of(arm, FULL).communication for arm in arms.BALLS[2:]] == ["none", "pairwise", "workspace"]


def test_scenes_are_kept_and_read_again(tmp_path):
    size = replace(FULL.clevr, scenes=3, questions_per_kind=2)
    made, again = (material.clevr_of(size, 5, tmp_path) for _ in range(2))
    assert [path.name for path in tmp_path.iterdir()] == ["sort-of-clevr-5-3-2.npz"]
    np.testing.assert_array_equal(made.answers, again.answers)
    np.testing.assert_array_equal(made.descriptions(), again.descriptions())
    np.testing.assert_array_equal(made.pictures(), again.pictures())


def test_marks_say_which_objects_the_question_names():
    data = sort_of_clevr.generate(4, 0, questions_per_kind=3)
    examples = material.clevr_examples(data, pixels=False)
    batch = material.taken(examples, np.arange(36), marked=True)
    assert batch.elements.shape == (36, 6, 11) and batch.questions is not None
    np.testing.assert_array_equal(batch.elements[..., 9], batch.questions[:, :6])
    np.testing.assert_array_equal(batch.elements[..., 10], batch.questions[:, 6:12])
    np.testing.assert_allclose(batch.elements[20, :, 7:9] * 37.5 + 37.5, data.scenes[2].centres, atol=1e-4)
    np.testing.assert_array_equal(batch.answers, data.answers.reshape(-1))
    assert material.taken(examples, np.arange(5)).elements.shape == (5, 6, 9)


def test_a_few_unary_questions_of_a_scene_are_trained_on_and_all_others():
    size = replace(FULL.clevr, questions_per_kind=5, unary_trained=2)
    chosen = material.trained_on(3, size)
    assert len(chosen) == len(set(chosen)) == 3 * 12
    assert Counter((chosen // 5) % 3) == {0: 6, 1: 15, 2: 15} and set(chosen // 15) == {0, 1, 2}


def test_all_examples_are_seen_before_any_is_seen_again():
    found = list(material.orders(10, 4, 6, seed=0))
    assert [len(order) for order in found] == [4] * 6
    flat = np.concatenate(found)
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10)) and (flat[:10] != flat[10:20]).any()
    assert (np.concatenate(list(material.orders(10, 4, 6, seed=1))) != flat).any()


def test_points_are_where_the_picture_has_discs():
    found = triangles.generate(20, 0)
    places = np.rint((material.points(found) + 1) * 32).astype(int)
    assert places.shape == (20, 24, 2)
    for picture, own in zip(found.pictures(), places):
        seen = [(x, y) for x, y in own if 0 <= x < 64 and 0 <= y < 64]
        assert len(seen) > 10 and all(picture[y, x] == 255 for x, y in seen)
    assert material.triangles_of(replace(FULL.triangle, training=QUICK.triangle.training), 0).answers.sum() == 12


def test_measures_of_who_writes_know_the_extremes():
    one, all_alike = np.zeros((4, 3, 5)), np.full((4, 3, 5), 0.2)
    one[..., 2] = 0.3  # not renormalised
    assert writers.effective_writers(one) == pytest.approx(1)
    assert writers.effective_writers(all_alike) == pytest.approx(5)
    assert writers.slot_likeness(one) == writers.slot_likeness(all_alike) == pytest.approx(1)
    apart = np.tile(np.eye(5)[:3], (4, 1, 1))
    assert writers.slot_likeness(apart) == 0 and writers.agreement(apart) == 0 and writers.agreement(one) == 1
    assert np.isnan(writers.slot_likeness(apart[:, :1])) and np.isnan(writers.agreement(apart[:, :1]))
    assert writers.fixedness(apart) == pytest.approx(1)
    changing = np.eye(5)[:, None]  # another writer for each of five inputs
    assert writers.fixedness(changing) == pytest.approx(0)
    assert np.isnan(writers.effective_writers(np.zeros((2, 2, 3))))


def test_roles_are_those_of_the_question():
    two, one = sort_of_clevr.question_vector(2, 0, 3, 1), sort_of_clevr.question_vector(0, 1, 5)
    questions = np.stack([two, one, sort_of_clevr.question_vector(1, 0, 0)])
    np.testing.assert_array_equal(writers.asked_tokens(questions), [[5, 3], [7, -1], [2, -1]])
    weights = np.arange(3 * 1 * 2 * 8, dtype=float).reshape(3, 1, 2, 8)
    found = writers.by_role(weights, questions)
    assert found.shape == (3, 1, 2, 5)
    row = weights[0, 0, 1]
    np.testing.assert_allclose(found[2, 0, 1], [row[0], row[1], row[5], row[3], row[[2, 4, 6, 7]].mean()])
    row = weights[1, 0, 0]
    np.testing.assert_allclose(found[0, 0, 0], [row[0], row[1], row[7], np.nan, row[2:7].mean()])


def test_persistence_is_of_the_strongest_writer_from_step_to_step():
    strongest = np.array([[0, 0, 1, 1, 1]])
    weights = np.eye(3)[strongest][:, :, None]
    assert writers.persistence(weights) == pytest.approx(3 / 4)
    assert writers.persistence(weights, np.array([[False, False, True, True, False]])) == pytest.approx(1 / 2)
    assert np.isnan(writers.persistence(weights, np.zeros((1, 5), bool)))


def test_units_that_move_at_the_same_steps_are_synchronous():
    time = np.random.default_rng(0).normal(size=(3, 9, 1))
    assert writers.synchrony(np.concatenate([time, 2 * time + 1], -1)) == pytest.approx(1)
    assert writers.synchrony(np.concatenate([time, -time], -1)) == pytest.approx(-1)
    assert writers.synchrony(np.concatenate([time, np.ones_like(time)], -1)) == 0


def made_balls(places, velocities, length: int = 20) -> bouncing_balls.Balls:
    shape = np.shape(places)[:2]
    radii, masses, there = np.full(shape, 1.2), np.ones(shape), np.ones(shape, bool)
    found = bouncing_balls.simulate(np.array(places), np.array(velocities), radii, masses, there, length)
    return bouncing_balls.Balls(*found, radii, masses, there, None)


def test_collisions_are_between_balls_and_not_with_walls():
    head_on = made_balls([[[3.0, 5.0], [7.0, 5.0]]], [[[0.2, 0.0], [-0.2, 0.0]]])
    found = writers.collisions(head_on.velocities, head_on.masses)[0]
    # They touch after (4 - 2.4) / 0.4 = 4 frames.
    assert found.sum() == 1 and np.flatnonzero(found)[0] in (4, 5)
    at_walls = made_balls([[[2.0, 2.0], [8.0, 7.0]]], [[[-0.3, 0.0], [0.2, 0.0]]], 10)
    assert (np.diff(at_walls.velocities, axis=1) != 0).any()
    assert not writers.collisions(at_walls.velocities, at_walls.masses).any()


def test_a_lonely_ball_between_walls_is_foretold_and_a_flight_through_them_is_not():
    size = replace(FULL.ball, seen=5, rolled_out=15)
    balls = made_balls([[[3.0, 4.0]], [[5.0, 6.0]]], [[[-0.5, 0.1]], [[0.4, 0.3]]])
    near = rolling_out.squared_distance(rolling_out.flown_on(balls, size, walls=True), balls, size)
    far = rolling_out.squared_distance(rolling_out.flown_on(balls, size, walls=False), balls, size)
    # A wall is met within a frame's way of where it stands.
    assert near.max() < 0.5 and far[-1] > 3 and near[0] == pytest.approx(0, abs=1e-12)
    true = balls.positions[:, 5:] / 5 - 1
    np.testing.assert_allclose(rolling_out.squared_distance(true, balls, size), 0, atol=1e-12)
    figures = rolling_out.named("4", np.array([0.5, np.inf, np.nan]))
    assert figures["4: step 1"] == 0.5 and figures["4: step 2"] == figures["4: step 3"] == 200_000


def made_results() -> list[Result]:
    """Of three seeds, with differences that are known."""
    found = []
    for seed in range(3):
        for number, arm in enumerate([*arms.MAIN, *arms.SWEEP]):
            answers = dict.fromkeys(sort_of_clevr.KINDS, 0.3 + 0.05 * number + 0.01 * seed)
            answers |= {"unary: shape": 0.5}
            if arm.name == "STR":
                answers["ternary"] = 0.3 + 0.4 * (seed == 1)
            pictures = {"who writes": np.full((3, 2, 4, 5), 0.1).tolist()} if arm.name == "TR+HSW" else {}
            curve = ((1, 2.0), (2, 1.0)) if arm.trained else ()
            found.append(Result(Run(arm.name, seed), answers, curve, int(arm.trained), 3.0, 1.0, pictures))
        for arm in arms.BALLS[1 if seed == 0 else 2 :]:
            figures = rolling_out.named("4", np.arange(1, 16.0)) | rolling_out.named("678", np.arange(2, 17.0))
            shown = {"weights": np.full((1, 6, 2, 6), 0.2).tolist(), "collisions": [[0, 0, 1, 0, 0, 0]]}
            pictures = shown if arm.model == "workspace" else {}
            figures |= {"4: synchrony": 0.5}
            found.append(Result(Run(arm.name, seed), figures, ((1, 2.0),), 5, 3.0, 1.0, pictures))
        for arm in arms.TRIANGLES[:2]:
            found.append(Result(Run(arm.name, seed), {"anywhere": 0.8, "hard negatives": 0.5}, ((1, 0.7),), 5))
    return found


def made_costs() -> Costs:
    numbers = (512, 1024, 2048, 4096)
    found = [Cost("pairwise", n, 3e-9 * n**2, 4 * n * n) for n in numbers]
    found += [Cost("soft workspace", n, 2e-6 * n, 100 * n) for n in numbers]
    found += [Cost("hard workspace", n, 4e-6 * n, 100 * n) for n in numbers]
    return Costs(LayerSize(), tuple(found), tuple(found), "0.1")


def test_an_arm_clears_the_question_alone_where_all_seeds_are_surely_above_it():
    results = made_results()
    assert findings.clears(results, "TR", "ternary") and not findings.clears(results, "STR", "ternary")
    assert findings.clears([r for r in results if r.run.seed == 1], "STR", "ternary")
    assert findings.clears(results, "TR", "no such kind") is None
    difference = findings.paired(results, "TR+HC", "TR", "unary")
    assert difference is not None and difference.mean == pytest.approx(0.05) and difference.half < 1e-9


def test_aims_say_what_is_short():
    found = {aim.what: aim for aim in findings.aims(made_results(), made_costs())}
    assert found["Sort-of-CLEVR, unary"].reached and found["seeds of each variant"].reached
    assert not found["Sort-of-CLEVR, ternary"].reached and "not above: STR" in found["Sort-of-CLEVR, ternary"].measured
    faster = found["a layer's result at 4,096 specialists, soft workspace"]
    assert faster.reached and faster.measured == "6.1 x"
    slower = found["a layer's result at 4,096 specialists, hard workspace"]
    assert not slower.reached and slower.measured == "3.1 x"
    assert found["time of a layer's gradient, pairwise"].measured == "n^2.00"
    assert found["memory of a layer's gradient, hard workspace"].reached
    most, times = ratio(made_costs().forward, "soft workspace", field="temporary_bytes")
    assert most == 4096 and times == pytest.approx(163.84)


def test_tables_have_what_there_is_and_nothing_else():
    costs = made_costs()
    told = report.Study("2026-11-26", "command", {"processor": "any"}, "full", made_results(), ["TR-seed-9"], costs)
    tables = dict(report.tables(told))
    answers = {row[0]: row for row in tables["Sort-of-CLEVR: part of right answers"]}
    assert answers["TR"][1:3] == ["3", "0.360 ± 0.025"] and list(answers)[1] == arms.QUESTION_ONLY
    sweep = tables["Sort-of-CLEVR, unary: right answers by slots and writers of a slot"]
    assert [row[0] for row in sweep] == ["slots", "1", "2", "8"] and "-" not in str(sweep[1:])
    assert "Sort-of-CLEVR from pictures: part of right answers" not in tables
    walls = [row for row in tables[next(title for title in tables if "6 to 8" in title)] if row[0] == arms.WALLS]
    assert walls[0][1:4] == ["1", "2.000 (one seed)", "6.000 (one seed)"]
    text = report.write_report(told, ["one.png"])
    assert "Not done yet: TR-seed-9" in text and "![one.png](one.png)" in text and "## What falls short" in text
    assert "inf" not in json.dumps(report.as_json(told)).lower()
    assert report.tables(replace(told, runs=[], costs=None)) == []


@pytest.mark.slow
def test_pictures_are_drawn_of_what_there_is(tmp_path):
    told = report.Study("2026-11-26", "command", {}, "full", made_results(), [], made_costs())
    names = study_pictures.draw_all(told, tmp_path, "x")
    assert len(names) == 8 and all((tmp_path / name).stat().st_size > 5000 for name in names)
    assert study_pictures.draw_all(replace(told, runs=[], costs=None), tmp_path, "y") == []


def test_a_finished_run_is_not_done_again_and_other_settings_are_refused(tmp_path, monkeypatch):
    chosen = (arms.QUESTION_ONLY, arms.WALLS)
    results = tmp_path / "results"
    found = study.study("quick", tmp_path, results, chosen, (), only_report=False, costs=False)
    assert [result.run.arm for result in found.runs] == list(chosen) and not found.missing and found.costs is None
    assert set(found.runs[0].figures) == set(sort_of_clevr.KINDS)
    assert str(tmp_path) not in (results / "question-only-seed-0.json").read_text()
    monkeypatch.setattr(study, "carry_out", lambda *_: pytest.fail("it is there already"))
    again = study.study("quick", tmp_path, results, chosen, (), only_report=False, costs=False)
    assert again == found
    told = study.study("quick", tmp_path, results, (*chosen, "TR"), (), only_report=True, costs=False)
    assert told.missing == ["TR-seed-0"]
    with pytest.raises(UserError, match="question-only-seed-0.json was made with other sizes"):
        study.study("full", tmp_path, results, chosen, (0,), only_report=True, costs=False)
    with pytest.raises(UserError, match="has no result of these arms"):
        study.study("quick", tmp_path, tmp_path / "none", chosen, (), only_report=True, costs=False)
    with pytest.raises(UserError, match="is not below 20000"):
        study.study("quick", tmp_path, results, chosen, (TEST_SEED,), only_report=True, costs=False)


def test_results_and_costs_come_back_as_they_were(tmp_path):
    result, costs = made_results()[6], made_costs()
    write_json({"made_with": "x", **asdict(result)}, tmp_path / "run.json")
    write_json(asdict(costs), tmp_path / "cost.json")
    assert read_result(tmp_path / "run.json") == result and read_costs(tmp_path / "cost.json") == costs


def test_options_that_exclude_each_other_are_refused(monkeypatch):
    for argv, message in (
        (["--seeds", "0,x"], "--seeds: need different whole numbers"),
        (["--cost", "--arms", "TR"], "--cost trains nothing"),
        (["--quick", "--report", "x.md"], "--quick shows that it works"),
    ):
        monkeypatch.setattr("sys.argv", ["experiments.shared_workspace", *argv])
        with pytest.raises(UserError, match=message):
            command.main()
