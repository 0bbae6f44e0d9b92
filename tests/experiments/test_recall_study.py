"""The study of long-context recall: what is said of its runs, its report, and options that it refuses."""

import dataclasses
import json
import sys

import pytest

from experiments.kept import MADE_WITH
from experiments.long_context_recall import __main__ as command
from experiments.long_context_recall.training import findings, pictures, report, study, worker
from experiments.long_context_recall.training.arms import MAIN, NO_NEEDLES, Run, arm_named
from experiments.long_context_recall.training.examination import Examined, pooled
from experiments.long_context_recall.training.sizes import QUICK_SIZE
from zoo.errors import UserError


def made(arm: str, seed: int, score: float, loss: float = 4.0) -> worker.Result:
    cells = tuple(
        Examined(task, length, depth, (score, 1.0), (0, 3), 16)
        for task in ("needle", findings.SEVERAL)
        for length in (4096, 8192, 16_384)
        for depth in (0.0, 100.0)
    )
    stage = worker.StageResult("8192", 1, 10, 1000, 5.0, ((10, 0.5),), {"unseen words": 0.75})
    return worker.Result(Run(arm, seed), 1_000_000, 8192, (stage,), loss, cells)


def test_recall_is_the_mean_over_seeds_of_what_lies_within_the_lengths():
    runs = [made(MAIN, 0, 1.0), made(MAIN, 1, 0.0)]
    assert findings.recall_of(runs, "needle", [4096, 8192]).mean == 0.75
    assert findings.recall_of(runs, "needle", [4096]).count == 2
    assert findings.recall_of(runs, "needle", [99]) is None
    assert findings.pooled_recall(runs, "needle", [4096]).samples == 8


def test_aims_are_reached_only_where_every_cell_is():
    good = {aim.what: aim.reached for aim in findings.aims([made(MAIN, seed, 1.0) for seed in range(3)])}
    assert all(good.values())
    bad = {aim.what: aim.reached for aim in findings.aims([made(MAIN, 0, 0.9)])}
    assert not bad["needle, up to 8,192 tokens"] and not bad["seeds"] and bad["trained length"]
    assert findings.aims([made("rope 1M", 0, 1.0)]) == []


def test_what_needles_cost_is_paired_by_seed():
    runs = [made(MAIN, 0, 1.0, 4.0), made(MAIN, 1, 1.0, 5.0), made(NO_NEEDLES, 1, 0.0, 4.75)]
    assert findings.cost_of_needles(runs).mean == 0.25 and findings.cost_of_needles(runs).count == 1
    assert findings.cost_of_needles(runs[:2]) is None


def test_samples_of_seeds_are_pooled_cell_by_cell():
    (cells,) = (pooled([made(MAIN, 0, 1.0).examined, made(MAIN, 1, 0.0).examined]),)
    assert len(cells) == 12 and [sample.score for sample in cells[0].samples] == [1.0, 1.0, 0.0, 1.0]


def test_the_report_names_what_is_missing_and_draws_both_pictures(tmp_path):
    runs = [made(MAIN, 0, 1.0), made(NO_NEEDLES, 0, 0.0), made("rope 1M", 0, 0.5)]
    text = report.write_report(
        report.Study("2026-11-26", "c", {"commit": "x"}, "novels", runs, ["main-seed-1"]), ["a.png"]
    )
    assert "Not done yet: main-seed-1." in text and "| main | 1 | 100.0 % (one seed)" in text
    assert "needles cost, paired by seed" in text and arm_named("rope 1M").what in text
    pictures.draw_map(runs, tmp_path / "map.png")
    pictures.draw_lines(runs, tmp_path / "lines.png")
    assert min((tmp_path / name).stat().st_size for name in ("map.png", "lines.png")) > 10_000


def test_a_study_goes_on_from_committed_results_and_refuses_those_of_another_curriculum(tmp_path, capsys, monkeypatch):
    size = dataclasses.replace(QUICK_SIZE, novels=False)
    monkeypatch.setitem(study.SIZES, "quick", size)
    path = tmp_path / "results" / "main-seed-0.json"
    path.parent.mkdir()
    fields = dataclasses.asdict(made(MAIN, 0, 1.0))
    path.write_text(json.dumps({MADE_WITH: size.made_with(MAIN, False), **fields}))
    study.study("quick", tmp_path / "out", path.parent, (MAIN,), (0,), tmp_path / "r.md", True)
    assert "100.0 % (one seed)" in capsys.readouterr().out and "WORKS" not in (tmp_path / "r.md").read_text()
    path.write_text(json.dumps({MADE_WITH: "another", **fields}))
    with pytest.raises(UserError, match="another curriculum"):
        study.study("quick", tmp_path / "out", path.parent, (MAIN,), (0,), None, True)
    with pytest.raises(UserError, match="has no result"):
        study.study("quick", tmp_path / "out", tmp_path / "none", (MAIN,), (0,), None, True)
    with pytest.raises(UserError, match="trained on another machine"):
        study.check_weights(Run("rope 10k, scaled", 0), tmp_path)


def test_options_of_a_checkpoint_do_not_start_a_study(monkeypatch):
    monkeypatch.setattr(command, "study_of", lambda _: pytest.fail("hours of training"))
    monkeypatch.setattr(sys, "argv", ["recall", "--lengths", "1024"])
    with pytest.raises(UserError, match="--checkpoint is missing.*--lengths"):
        command.main()
    monkeypatch.setattr(sys, "argv", ["recall", "--checkpoint", "x", "--arms", "main"])
    with pytest.raises(UserError, match="belong to the study"):
        command.main()
