"""Arms, data sets, figures, differences and the resumable study of relation extraction."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.choosing import seeds_of
from experiments.kept import MADE_WITH
from experiments.relation_extraction import study, tuning
from experiments.relation_extraction.arms import (
    ARMS,
    DEFAULT_ARMS,
    LINEAR,
    NO_FLOW,
    PARE,
    SIZES,
    Run,
    arm_named,
    arms_of,
    runs_of,
)
from experiments.relation_extraction.bags import instances_of
from experiments.relation_extraction.corpus import files_of
from experiments.relation_extraction.datasets import MADE_UP, Dataset, read_dataset, speaks
from experiments.relation_extraction.findings import aims, groups_of, paired
from experiments.relation_extraction.made_up import RELATIONS, made_up
from experiments.relation_extraction.metrics import Curve, Scored
from experiments.relation_extraction.processes import in_processes, shared_out
from experiments.relation_extraction.reader import NA, Relations
from experiments.relation_extraction.report import Part, Study, tables, told, write_report
from experiments.relation_extraction.study_pictures import draw_mean_curves, draw_sizes
from experiments.relation_extraction.worker import (
    RECALLS,
    Job,
    Result,
    carry_out_all,
    figures_of,
    measured,
    precisions,
    read_jobs,
    read_result,
    read_setting,
    write_jobs,
    write_setting,
)
from experiments.runs import write_json
from zoo.errors import UserError


def result(arm: str, seed: int, area: float, several: float = 0.5) -> Result:
    figures = {
        "all": {"AUC": area, "bags": 9.0},
        "sentences: 1": {"AUC": area, "bags": 5.0},
        "sentences: 2+": {"AUC": several, "bags": 4.0},
    }
    return Result(Run(arm, seed), figures, tuple(np.linspace(1, area, 100)), ((1.0, area),), 1, 10, 1.0)


def test_mentions_of_the_made_up_corpus_stand_where_it_says_and_no_pair_is_in_two_parts() -> None:
    corpus = made_up()
    parts = [corpus.train, corpus.val, corpus.test]
    for one in instances_of([bag for part in parts for bag in part]):
        assert all(one.text[mention.start : mention.stop] == mention.name for mention in (one.head, one.tail))
    pairs = [{bag.pair for bag in part} for part in parts]
    assert sum(map(len, pairs)) == len(set.union(*pairs)) == 240
    assert any(len(bag.relations) == 2 for bag in corpus.train)
    assert any(len(bag.languages) == 2 for bag in corpus.test)
    assert {NA} in [bag.relations for bag in corpus.test]


def test_every_default_arm_is_known_and_the_linear_model_runs_once() -> None:
    for names in DEFAULT_ARMS.values():
        assert [arm_named(name).name for name in names] == list(names)
    assert len({Run(arm.name, 0).name for arm in ARMS}) == len(ARMS)
    runs = runs_of((LINEAR, PARE), (3, 4))
    assert runs == [Run(LINEAR, 3), Run(PARE, 3), Run(PARE, 4)]


def test_arms_that_a_corpus_or_an_encoder_is_not_for_are_refused() -> None:
    for names, speaks_, folder, relations, message in (
        (("PAER",), True, False, RELATIONS, "did you mean 'PARE'"),
        (("MNRE",), False, False, RELATIONS, "name their language"),
        (("PARE, own NA",), True, False, Relations(("a", "b")), "class NA"),
        (("PARE, scratch",), True, True, RELATIONS, "--encoder"),
    ):
        with pytest.raises(UserError, match=message):
            arms_of(names, "own", relations, speaks_, folder)
    assert "MNRE" in arms_of((), "bert", RELATIONS, True, True)
    assert "MNRE" not in arms_of((), "bert", RELATIONS, False, True)


def write_corpus(folder: Path, prefix: str) -> None:
    corpus = made_up(pairs=40)
    (folder / f"{prefix}rel2id.json").write_text(json.dumps({name: i for i, name in enumerate(RELATIONS.names)}))
    for name, bags in (("train", corpus.train), ("val", corpus.val), ("test", corpus.test)):
        lines = []
        for one in instances_of(bags):
            h, t = ({"id": m.id, "name": m.name, "pos": [m.start, m.stop]} for m in (one.head, one.tail))
            lines.append({"text": one.text, "h": h, "t": t, "relation": one.relation, "language": one.language})
        (folder / f"{prefix}{name}.txt").write_text("\n".join(map(json.dumps, lines)))


def test_files_may_begin_with_the_name_of_the_corpus_or_be_named_one_by_one(tmp_path: Path) -> None:
    write_corpus(tmp_path, "nyt10m_")
    found = read_dataset(Dataset(str(tmp_path)))
    one_by_one = [str(path) for path in files_of(tmp_path)]
    named = Dataset("files", one_by_one[0], (one_by_one[1],), (one_by_one[2],), (one_by_one[3],))
    assert [bag.pair for bag in read_dataset(named).test] == [bag.pair for bag in found.test]
    assert speaks(found) and found.relations == RELATIONS
    before = Dataset(str(tmp_path)).fingerprint()
    with (tmp_path / "nyt10m_test.txt").open("a") as file:
        file.write("\n")
    assert Dataset(str(tmp_path)).fingerprint() != before
    (tmp_path / "other_train.txt").write_text("")
    with pytest.raises(UserError, match="nyt10m_train.txt and other_train.txt are both there"):
        read_dataset(Dataset(str(tmp_path)))
    with pytest.raises(UserError, match="neither one of gids"):
        read_dataset(Dataset(str(tmp_path / "none")))


def test_the_figures_of_a_group_are_those_of_its_bags_and_a_bag_counts_in_each_of_its_languages() -> None:
    corpus = made_up()
    random = np.random.default_rng(0)
    scores = {bag.pair: random.random(len(RELATIONS)) for bag in corpus.test}

    def scored(bags) -> Scored:
        labels = np.array([[name in bag.relations for name in RELATIONS.names] for bag in bags])
        return Scored(np.array([scores[bag.pair] for bag in bags]), labels, RELATIONS.positive)

    figures, curve = measured(scored, corpus.test)
    several = [bag for bag in corpus.test if len(bag) > 1]
    english = [bag for bag in corpus.test if "en" in bag.languages]
    assert figures["sentences: 2+"] == figures_of(scored(several))
    assert figures["language: en"] == figures_of(scored(english))
    assert (
        figures["all"]["bags"] == len(corpus.test) < figures["language: en"]["bags"] + figures["language: eo"]["bags"]
    )
    assert len(curve) == len(RECALLS)


def test_a_kept_curve_has_the_precision_at_the_first_point_of_at_least_each_recall() -> None:
    found = precisions(Curve(np.array([1.0, 3, 5]), np.array([1.0, 2, 3]), np.array([3.0, 2, 1]), 4.0))
    wanted = {0.01: 1.0, 0.25: 1.0, 0.26: 2 / 3, 0.5: 2 / 3, 0.75: 0.6, 1.0: 0.6}
    assert [found[RECALLS.index(at)] for at in wanted] == pytest.approx(list(wanted.values()), abs=1e-4)


def test_differences_are_paired_by_seed_and_the_linear_model_stands_for_all_seeds() -> None:
    runs = [result(PARE, 0, 0.9), result(PARE, 1, 0.8), result(PARE, 2, 0.7), result(LINEAR, 0, 0.75)]
    runs += [result("attention", 1, 0.6), result("attention", 0, 0.8)]
    versus = paired(runs, PARE, "attention")
    assert versus is not None and (versus.mean, versus.count) == (pytest.approx(0.15), 2)
    linear = paired(runs, PARE, LINEAR)
    assert linear is not None and (linear.mean, linear.count) == (pytest.approx(0.05), 3)
    assert paired(runs, PARE, NO_FLOW) is None


def test_an_aim_is_reached_only_beyond_the_interval_and_the_control_only_within_it() -> None:
    sure = [result(PARE, seed, 0.9 + seed / 1000, 0.8) for seed in range(3)]
    control = [result(NO_FLOW, seed, 0.9 + (2 - seed) / 1000, 0.7 - seed / 1000) for seed in range(3)]
    found = {aim.what.split(",")[0] + str("one" in aim.what): aim.reached for aim in aims([*sure, *control])}
    assert found == {"PARE minus PAREFalse": True, "PARE minus PARETrue": True}
    control = [result(NO_FLOW, seed, 0.8 + seed / 1000, 0.8 + (seed - 1) / 10) for seed in range(3)]
    assert [aim.reached for aim in aims([*sure, *control])] == [False, False]


def plan_of(size: str, folder: Path, arms: tuple[str, ...] = (), seeds: tuple[int, ...] = (0,)) -> study.Plan:
    setting = study.Setting(Dataset(MADE_UP), SIZES[size], novels=False)
    return study.plan_of(setting, folder, folder / "results", arms, seeds)


def test_a_study_goes_on_from_its_results_and_refuses_those_of_other_data(tmp_path: Path) -> None:
    plan = plan_of("quick", tmp_path)
    with pytest.raises(UserError, match="no result of these arms"):
        study.part_of(plan)
    digest = study.made_with(plan.setting, PARE, plan.fingerprint)
    kept = tmp_path / "results" / f"{Run(PARE, 0).name}.json"
    kept.parent.mkdir()
    write_json({MADE_WITH: digest, **asdict(result(PARE, 0, 0.9))}, kept)
    assert read_result(kept) == result(PARE, 0, 0.9)
    plan = plan_of("quick", tmp_path, (LINEAR,))
    study.carry_out([plan], here=True)
    assert study.part_of(plan).runs[0].figures["all"]["AUC"] > 0.8  # the made-up corpus can be learnt
    part = study.part_of(plan_of("quick", tmp_path, seeds=(0, 1)))
    assert [run.run for run in part.runs] == [Run(LINEAR, 0), Run(PARE, 0)]
    assert part.missing == ["attention-seed-0", "attention-seed-1", "PARE-seed-1"]
    with pytest.raises(UserError, match="made with other data"):
        plan_of("own", tmp_path)


def test_encoders_of_all_data_sets_come_first_and_only_where_a_missing_run_needs_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(study, "prepare", lambda setting, corpus, out, *_, **__: done.append(f"encoder {out.name}"))
    monkeypatch.setattr(
        study,
        "in_processes",
        lambda parts, jobs: done.extend(f"{out.name}: {job.run.name}" for out, part in parts for job in part),
    )
    one, other = plan_of("quick", tmp_path / "one", (LINEAR,)), plan_of("quick", tmp_path / "other", (PARE,), (3, 4))
    study.carry_out([one, other], jobs=2)
    assert done == ["encoder other", "one: linear-seed-0", "other: PARE-seed-3", "other: PARE-seed-4"]


def test_an_encoder_that_fails_keeps_others_from_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []

    def fail(setting, corpus, out, *_, **__):
        begun.append(out.name)
        time.sleep(0.2)
        raise UserError("no encoder")

    monkeypatch.setattr(study, "prepare", fail)
    monkeypatch.setattr(study, "in_processes", lambda *_: begun.append("runs"))
    plans = [plan_of("quick", tmp_path / name, (PARE,)) for name in ("one", "two", "three", "four")]
    with pytest.raises(UserError, match="no encoder"):
        study.carry_out(plans)
    assert begun[0] == "one" and "four" not in begun and "runs" not in begun


def test_a_worker_reads_the_setting_that_the_study_wrote(tmp_path: Path) -> None:
    setting = study.Setting(Dataset("files", "r.json", ("a", "b"), ("c",), ("d",)), SIZES["gids"], "folder")
    write_setting(setting, tmp_path)
    assert read_setting(tmp_path) == setting


def jobs_of(*runs: tuple[str, int], folder: Path = Path()) -> list[Job]:
    return [Job(Run(arm, seed), "digest", str(folder / f"{arm}-{seed}.json")) for arm, seed in runs]


def test_processes_share_out_whole_arms_or_seeds_if_there_are_too_few() -> None:
    several = jobs_of((PARE, 0), ("attention", 0), ("average", 0), (PARE, 1), ("attention", 1), ("average", 1))
    arms = [[(job.run.arm, job.run.seed) for job in part] for part in shared_out(several, 2)]
    assert arms == [[(arm, 0), (arm, 1)] for arm in (PARE, "attention", "average")]
    one = jobs_of((PARE, 0), (PARE, 1), (PARE, 2))
    assert [[job.run.seed for job in part] for part in shared_out(one, 2)] == [[0, 2], [1]]
    assert len(shared_out(one, 5)) == 3 and shared_out([], 2) == []


def test_a_worker_writes_each_result_when_it_is_done_and_leaves_those_of_others_alone(tmp_path: Path) -> None:
    class Fake:
        def carry_out(self, run: Run) -> Result:
            if run.seed == 2:
                raise FloatingPointError
            return result(run.arm, run.seed, 0.5)

    jobs = jobs_of((PARE, 0), (PARE, 1), (PARE, 2), folder=tmp_path)
    Path(jobs[0].path).write_text("another command's")
    with pytest.raises(FloatingPointError):
        carry_out_all(jobs, Fake())
    assert Path(jobs[0].path).read_text() == "another command's"
    assert read_result(Path(jobs[1].path)) == result(PARE, 1, 0.5)
    assert json.loads(Path(jobs[1].path).read_text())[MADE_WITH] == "digest"
    write_jobs(jobs, tmp_path / "jobs")
    assert read_jobs(tmp_path / "jobs") == jobs


@pytest.mark.slow
def test_processes_leave_results_where_the_study_reads_them_and_a_failure_names_the_log(tmp_path: Path) -> None:
    plan = plan_of("quick", tmp_path, (LINEAR,))
    study.carry_out([plan], jobs=2)
    assert [one.run for one in study.part_of(plan).runs] == [Run(LINEAR, 0)] and not plan.missing
    with pytest.raises(UserError, match="process 1 ended with exit code .*log"):
        in_processes([(tmp_path, [Job(Run("PAER", 0), "digest", str(tmp_path / "none.json"))])], 2)


def test_an_encoder_serves_other_rates_and_epochs_but_no_other_sizes(tmp_path: Path) -> None:
    setting = study.Setting(Dataset(MADE_UP), SIZES["quick"], novels=False)
    study.write_setting_once(setting, "data", tmp_path)
    study.write_setting_once(replace(setting, size=replace(SIZES["quick"], epochs=9)), "data", tmp_path)
    assert read_setting(tmp_path).size.epochs == 9
    others = [replace(SIZES["quick"], **{name: 9}) for name in ("mlm_steps", "mlm_counted_batches", "embed_dim")]
    for size, data in (*((size, "data") for size in others), (SIZES["quick"], "other")):
        with pytest.raises(UserError, match="encoder of other data, sizes"):
            study.write_setting_once(replace(setting, size=size), data, tmp_path)


def test_tuning_gives_all_arms_the_same_trials_and_no_test_bag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Fake:
        def __init__(self, setting, corpus, out):
            self.size, self.corpus = setting.size, corpus

        def train(self, run: Run):
            seen.append((run.arm, self.size.learning_rate, self.size.head_rate, len(self.corpus.test)))
            return SimpleNamespace(epochs=((1.0, self.size.learning_rate), (0.5, 0.1)), seconds=2.0), 7

    monkeypatch.setattr(tuning, "Runs", Fake)
    arms = ("PARE, scratch", "average, scratch")
    settings = tuning.Tuning(MADE_UP, arms, (0.25, 0.5), (1.0, 5.0), (2,), out=tmp_path, results=tmp_path / "results")
    found = tuning.tune(settings)
    assert seen == [(arm, rate, head, 0) for arm in arms for rate in (0.25, 0.5) for head in (1.0, 5.0)]
    assert [row[2] for row in tuning.rows_of(found)[1:]] == ["0.5", "0.5", "0.25", "0.25"] * 2
    assert tuning.tune(settings) == found and len(seen) == 8  # all is there


@pytest.mark.parametrize("text", ["1,1", "a", "1,,2", "-1"])
def test_wrong_seeds_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--seeds"):
        seeds_of(text, (0,))


def test_two_groups_that_are_the_same_bags_are_shown_once() -> None:
    one = result(PARE, 0, 0.9)
    large = one.figures["sentences: 2+"]
    same = replace(one, figures={"all": large, "sentences: 2+": large, "sentences: 3+": large})
    assert groups_of([same], "sentences: ") == ["sentences: 2+"]
    other = replace(one, figures=same.figures | {"sentences: 3+": large | {"bags": 1.0}})
    assert groups_of([same, other], "sentences: ") == ["sentences: 2+", "sentences: 3+"]


def test_the_report_names_what_is_missing_and_every_table(tmp_path: Path) -> None:
    runs = [replace(result(arm, seed, 0.9), seconds=90.0) for arm in (PARE, NO_FLOW) for seed in (0, 1)]
    part = Part("gids", (3, 2, 1), "an encoder", SIZES["gids"], None, runs, ["PARE-seed-2"])
    text = write_report(Study("2026-01-01", "command", {"cpu": "one"}, [part]), [["a.png"]])
    assert "PARE-seed-2" in text and all(title in text for title, _ in tables(part))
    assert "4 runs of 6 minutes of processor time together." in text
    assert "1,600 steps of 48 x 64 tokens, begun with counts of 1,500 batches, then 800 of rows of 192." in text
    assert "masked tokens" not in told(replace(part, size=SIZES["bert"]))
    assert groups_of(runs, "sentences: ") == ["sentences: 1", "sentences: 2+"]
    for number, draw in enumerate((draw_mean_curves, draw_sizes)):
        draw(runs, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"rates": (1e-3, 0.0)}, "--rates: need numbers above 0, got 0.001 0.0"),
        ({"head_rates": (float("nan"),)}, "--head-rates: need numbers above 0, got nan"),
        ({"epochs": (0,)}, "--epochs: need numbers above 0, got 0"),
        ({"epochs": ()}, "--epochs: need numbers above 0, got none"),
    ],
)
def test_senseless_trials_are_refused_before_anything_is_trained(fields: dict, problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        tuning.Tuning(**fields)
