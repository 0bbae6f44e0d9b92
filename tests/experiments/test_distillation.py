"""The study of distillation says what its runs say, compares what can be compared, and refuses what cannot."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from experiments.distillation import findings, pictures, report
from experiments.distillation.arms import ARMS, DISTILLED, KEPT, SCRATCH, TEACHER, Run, arm_named, runs_of, top
from experiments.distillation.resume import different
from experiments.distillation.sizes import FULL, QUICK, cache_folder, recipe_of, teacher_folder
from experiments.distillation.speed import ratios, speed_rows
from experiments.distillation.speed_worker import CACHED, KINDS, ONLINE, STUDENT
from experiments.distillation.speed_worker import TEACHER as FORWARD
from experiments.distillation.study import check_results, check_tokenizer, reads_cache, study
from experiments.distillation.texts import NOVELS, WIKITEXT, passages, shared_of
from experiments.distillation.worker import HeldOut, Result, curves, read_result
from experiments.runs import write_json
from zoo.errors import UserError


def result(arm: str, width: int, seed: int, nats: float, size=FULL) -> Result:
    """An invented run."""
    run = Run(arm, width, seed)
    tokens = size.tokens_of(run)
    return Result(
        run=run,
        parameters=1000 * width,
        steps=size.steps_of(run),
        tokens=tokens,
        held_out={NOVELS: HeldOut(nats, nats / 2, 100), WIKITEXT: HeldOut(nats + 1, nats, 50)},
        validation=((1, 5.0), (2, nats)),
        training=((2, nats),),
        tail=0.25 if arm.startswith("top") else None,
        sampled=0.0,
        step_seconds=0.1,
        teacher=None if arm in (SCRATCH, TEACHER) else "a" * 64,
        tokenizer="t",
    )


def everything(gain=0.3, spread=0.01) -> list[Result]:
    """All runs of the study; every student with a teacher is better by `gain`."""
    runs = runs_of((), FULL.widths, FULL.seeds)
    nats = {run: 3 - 0.005 * run.width + spread * run.seed for run in runs}
    found = [
        result(run.arm, run.width, run.seed, loss - (gain if arm_named(run.arm).source != "labels" else 0))
        for run, loss in nats.items()
    ]
    return [result(TEACHER, FULL.teacher.width, 0, 2.0), *found]


def test_every_run_has_a_name_of_its_own_and_seeds_come_one_after_the_other():
    runs = runs_of((), FULL.widths, FULL.seeds)
    assert len({run.name for run in runs}) == len(runs)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    main = [run for run in runs if run.arm in (SCRATCH, DISTILLED)]
    assert len(main) == 2 * 3 * 3 and {run.width for run in runs if run.arm == top(8)} == {64}
    assert {run.seed for run in runs if run.arm == "scratch, half rate"} == {0}
    with pytest.raises(UserError, match="distiled"):
        runs_of(("distiled",), FULL.widths, (0,))


def test_arms_of_a_seed_read_the_same_tokens_with_the_same_schedule_and_differ_in_what_they_learn_from(tmp_path):
    recipes = {run: recipe_of(run, FULL, ("text",), tmp_path) for run in runs_of((), (64,), (1,))}
    assert len({str(recipe.data) for recipe in recipes.values()}) == 1
    assert {recipe.optimizer.learning_rate for run, recipe in recipes.items() if "rate" not in run.arm} == {1.2e-2}
    by_arm = {run.arm: recipe for run, recipe in recipes.items()}
    assert by_arm[SCRATCH].distillation.teacher is None and not by_arm[SCRATCH].distillation.learns
    assert by_arm[DISTILLED].teacher == str(teacher_folder(tmp_path, FULL)) and by_arm["half labels"].teacher
    assert by_arm[DISTILLED].distillation.hard_label_weight == 0
    for k in KEPT:
        how = by_arm[top(k)].distillation
        assert (how.top_k, how.teacher, how.teacher_cache) == (k, None, str(cache_folder(tmp_path, 1)))
        assert k <= FULL.kept_words
    half = by_arm["scratch, half tokens"]
    assert half.loop.steps * 2 == FULL.steps and half.optimizer.warmup_steps * 2 <= by_arm[SCRATCH].loop.steps // 8
    teacher = recipe_of(FULL.teacher_run, FULL, ("text",), tmp_path)
    assert teacher.data.seed not in FULL.seeds and teacher.loop.steps > FULL.steps
    how = by_arm["on-policy"].distillation
    assert how.prompt_tokens + how.max_new_tokens <= FULL.sequence_length


def test_a_result_is_of_its_sizes_and_of_its_teacher():
    student, teacher = Run(DISTILLED, 64, 0), FULL.teacher_run
    longer = replace(FULL, teacher_steps=FULL.teacher_steps + 1)
    assert FULL.made_with(student) != longer.made_with(student)
    assert FULL.made_with(teacher) != longer.made_with(teacher)
    scratch = Run(SCRATCH, 64, 0)
    assert FULL.made_with(scratch) == longer.made_with(scratch) != FULL.made_with(student)
    assert FULL.made_with(scratch) == FULL.made_with(replace(scratch, seed=5))
    assert len({FULL.made_with(Run(arm.name, 64, 0)) for arm in ARMS}) == len(ARMS)
    more = replace(FULL, kept_words=128)
    assert FULL.made_with(Run(top(8), 64, 0)) != more.made_with(Run(top(8), 64, 0))


def test_a_result_is_read_as_it_was_written_and_refused_from_another_setting(tmp_path):
    written = result(top(8), 64, 2, 2.5)
    path = tmp_path / "x.json"
    write_json({"made_with": FULL.made_with(written.run), **asdict(written)}, path)
    assert read_result(path) == written
    check_results({written.run: path}, FULL)
    with pytest.raises(UserError, match="was made with other sizes"):
        check_results({written.run: path}, replace(FULL, steps=999))
    with pytest.raises(UserError, match="different tokenizers"):
        check_tokenizer([written, replace(written, tokenizer="other")], tmp_path)


def test_the_cache_of_a_seed_is_kept_for_its_runs_only():
    assert reads_cache(Run(top(1), 64, 2), 2) and not reads_cache(Run(top(1), 64, 2), 1)
    assert not reads_cache(Run(DISTILLED, 64, 2), 2) and not reads_cache(FULL.teacher_run, 0)


def test_the_full_study_needs_the_folder_shared_and_the_quick_one_does_not(monkeypatch, tmp_path):
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("ZOO_SHARED", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="needs the folder"):
        study("full", tmp_path / "out", tmp_path / "results", (), (), False)
    monkeypatch.setenv("ZOO_SHARED", str(tmp_path / "there"))
    with pytest.raises(UserError, match="train.txt.xz"):
        shared_of(FULL)
    assert shared_of(QUICK) is None
    assert study("full", tmp_path / "out", tmp_path / "results", (), (), True) == []


def test_passages_are_spread_over_a_text_and_do_not_overlap():
    rows = passages(np.arange(10, 110), 2, 4, 11)
    assert rows.shape == (4, 11) and (rows[:, 0] == 2).all()
    assert rows[0, 1] == 10 and rows[-1, -1] == 109
    assert len(np.unique(rows[:, 1:])) == 40
    with pytest.raises(UserError, match="too few"):
        passages(np.arange(39), 2, 4, 11)


def test_steps_on_samples_are_left_out_of_the_training_curve():
    lines = [{"step": i, "loss": 9.0 if i % 2 else 1.0, "on_policy": float(i % 2), "seconds": i} for i in range(1, 101)]
    lines[-1]["validation_loss"] = 2.0
    found = curves(Run("on-policy", 64, 0), lines)
    assert found["sampled"] == 0.5 and {loss for _, loss in found["training"]} == {1.0}
    assert found["validation"] == ((100, 2.0),) and found["tail"] is None
    kept = curves(Run(top(1), 64, 0), [{"step": i, "loss": 1.0, "seconds": 1, "teacher_tail": i} for i in (1, 3)])
    assert kept["tail"] == 2.0


def test_a_gap_is_taken_seed_by_seed_over_the_seeds_that_both_have():
    runs = [result(SCRATCH, 64, seed, 3 + seed) for seed in range(3)]
    runs += [result(DISTILLED, 64, seed, 2.5 + seed) for seed in (1, 2, 3)]
    gap = findings.minus(runs, DISTILLED, SCRATCH, 64)
    assert gap.count == 2 and gap.mean == pytest.approx(-0.5) and gap.half == pytest.approx(0)
    assert findings.minus(runs, DISTILLED, SCRATCH, 32) is None


def test_the_aims_ask_for_all_sizes_and_for_two_apart():
    reached = [aim.reached for aim in findings.aims(everything(), {})]
    assert reached == [True, True, True]
    wide = [aim.reached for aim in findings.aims(everything(spread=0.2), {})]
    assert wide == [True, False, True]  # ahead in the mean; the intervals overlap
    assert [aim.reached for aim in findings.aims(everything(gain=-0.1), {})] == [False, False, False]
    runs = [r for r in everything() if (r.run.arm, r.run.width) != (DISTILLED, 32)]
    worse = [*runs, *(result(DISTILLED, 32, seed, 3.5) for seed in range(3))]
    assert [aim.reached for aim in findings.aims(worse, {})] == [False, True, False]


def test_a_better_learning_rate_of_the_baseline_is_found_out():
    runs = [r for r in everything() if r.run.arm != "scratch, double rate"]
    runs += [result("scratch, double rate", width, 0, 1.0) for width in FULL.widths]
    assert findings.best_rate(runs, 64) == (2.0, 1.0)
    assert [aim.reached for aim in findings.aims(runs, {})] == [True, True, False]


def test_budgets_rise_and_end_with_the_whole():
    budgets = findings.budgets_of(everything(), 64)
    whole = FULL.tokens_of(Run(SCRATCH, 64, 0))
    assert [tokens for tokens, *_ in budgets] == [whole // 4, whole // 2, whole]
    assert budgets[-1][1:] == (SCRATCH, DISTILLED)


def test_ratios_of_times_are_taken_within_a_round():
    seconds = {STUDENT: [1.0, 2.0], FORWARD: [1.0, 2.0], ONLINE: [2.1, 4.4], CACHED: [1.0, 2.4]}
    found = ratios(seconds)
    assert found["online"]["median"] == pytest.approx((1.05 + 1.1) / 2)
    assert found["cached"] == pytest.approx({"median": 1.1, "low": 1.0, "high": 1.2})
    speed = {"ratios": {"64": found}, "processor_ratios": {"64": found}, "seconds": {"64": seconds}}
    speed["setting"] = {"repeats": 2}
    assert [aim.reached for aim in findings.aims([], {"speed": speed})] == [True, found["cached"]["median"] <= 1.1]
    assert len({len(row) for row in speed_rows(speed)}) == 1 and speed_rows(speed)[1][1] == "750.0"
    assert set(seconds) == set(KINDS)


def test_arrays_that_differ_in_a_bit_are_named():
    ours = {"a": np.float32([0.0, 1]), "b": np.float32([2]), "c": np.int32([1])}
    theirs = {"a": np.float32([-0.0, 1]), "b": np.float32([2]), "d": np.int32([1])}
    assert different(ours, theirs) == ["a", "c", "d"] and different(ours, dict(ours)) == []
    aim = findings.aims([], {"resume": {"same": False, "arrays": 3}})
    assert [each.reached for each in aim] == [False]


def test_the_report_says_what_falls_short_and_what_is_missing(tmp_path):
    runs = everything(gain=-0.1)
    study = report.Study("2026-01-02", "command", {"processor": "x"}, FULL, runs, ["distilled-64-seed-9"])
    text = report.write_report(study, ["picture.png"])
    assert "Not done yet: distilled-64-seed-9" in text and "distilled minus scratch" in text.split("falls short")[1]
    for _, rows in report.tables(study):
        assert len({len(row) for row in rows}) == 1
    titles = [title for title, _ in report.tables(study)]
    assert len(titles) == 5 and "By token budget" in titles
    other = replace(runs[-20], teacher="b" * 64)
    assert "2 teachers" in report.write_report(replace(study, runs=[*runs, other]), [])
    assert len(json.dumps(report.as_json(study))) < 10_000
    empty = replace(study, runs=[runs[0]])
    assert report.write_report(empty, [])  # a teacher alone is no error


def test_the_part_of_the_gap_is_that_of_the_whole_distribution():
    runs = everything(gain=0.4)
    at_half = {NOVELS: 0.2, WIKITEXT: 0.0}
    half = [
        replace(r, held_out={name: replace(each, nats=each.nats + at_half[name]) for name, each in r.held_out.items()})
        if r.run.arm == top(1)
        else r
        for r in runs
    ]
    rows = {row[0]: row for row in report.ways_rows(half)}
    assert rows[top(1)][6] == "50%" and rows[top(64)][6] == "100%" and rows[DISTILLED][6] == "100%"
    assert rows[SCRATCH][6] == "-" and rows[top(1)][7] == "0.250"


def test_the_picture_is_drawn_of_whatever_is_there(tmp_path):
    for number, runs in enumerate((everything(), [result(SCRATCH, 32, 0, 3.0)])):
        path = tmp_path / f"{number}.png"
        pictures.draw(runs, path)
        assert path.stat().st_size > 1000
