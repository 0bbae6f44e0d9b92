"""The study of twin augmentation: runs, images of a run, heads, figures and reports; no training."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from flax import nnx

from experiments.kept import check_made_with
from experiments.runs import write_json
from experiments.twin_augmentation import pictures, report
from experiments.twin_augmentation.arms import ARMS, CHILDREN, COVID, MADE_UP, NIH, SIZES, Run, arm_named, runs_of
from experiments.twin_augmentation.backbones import (
    augmented,
    epochs,
    features_of,
    new_backbone,
    saliency,
    with_statistics,
)
from experiments.twin_augmentation.findings import GAINS, aims, border_saliency, cells, gain, source_share
from experiments.twin_augmentation.heads import (
    HEADS,
    LOGISTIC,
    PRIOR,
    SOFTMAX,
    THRESHOLD,
    TWIN,
    TWIN_CHOSEN,
    TWIN_THRESHOLD,
    feature_heads,
    softmax_heads,
)
from experiments.twin_augmentation.metrics import balanced_accuracy, roc_auc
from experiments.twin_augmentation.reader import Rays
from experiments.twin_augmentation.study import OTHERS, in_processes, study
from experiments.twin_augmentation.tasks import Part, border_only, resized, task_of
from experiments.twin_augmentation.worker import RATES, Result, coarse, confusion, curve, measured, read_result
from zoo.errors import UserError
from zoo.nn.convolution import BatchNorm
from zoo.nn.execution import Execution

# Runs


def test_runs_go_seed_by_seed_and_names_are_file_names():
    runs = runs_of(SIZES["full"].arms, (0, 1))
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    assert len({run.name for run in runs}) == len(runs) == 2 * (8 * 3 + 2)
    assert not any(set(run.name) & set(" ,:/") for run in runs)
    with pytest.raises(UserError, match="did you mean 'nih resnet'"):
        runs_of(("nih resnt",), (0,))
    assert {arm.collection for arm in map(arm_named, SIZES["quick"].arms)} == {MADE_UP}


def test_a_result_of_other_settings_or_data_is_refused(tmp_path):
    size, arm = SIZES["full"], arm_named("nih resnet")
    mine = size.made_with(arm, "data")
    assert mine == size.made_with(replace(arm, ratios=(2,)), "data")
    others = [
        size.made_with(arm, "other"),
        size.made_with(arm_named("nih vit"), "data"),
        replace(size, learning_rate=1.0).made_with(arm, "data"),
        replace(size, steps=((NIH, 1),)).made_with(arm, "data"),
    ]
    assert len({mine, *others}) == 5
    path = tmp_path / "run.json"
    write_json({"made_with": mine}, path)
    check_made_with(path, mine, OTHERS)
    with pytest.raises(UserError, match="other settings or data"):
        check_made_with(path, others[0], OTHERS)


def test_a_process_does_what_is_missing_of_an_arm_and_seed_and_a_failure_ends_the_study(tmp_path, monkeypatch):
    runs = [Run(arm, ratio, seed) for seed in (0, 1) for arm in ("nih vit", "nih pixels") for ratio in (2, 14)][1:]
    started = []

    def record(title, module, arguments, log, environment):
        started.append((title, arguments))
        assert "multi_thread_eigen=false" in environment["XLA_FLAGS"] and log.parent.is_dir()

    monkeypatch.setattr("experiments.twin_augmentation.study.run_in_process", record)
    digests = {"nih vit": "a", "nih pixels": "b"}
    in_processes("full", runs, digests, tmp_path / "out", tmp_path, 1)
    assert [title for title, _ in started] == [
        "nih vit, seed 0", "nih pixels, seed 0", "nih vit, seed 1", "nih pixels, seed 1"]  # fmt: skip
    assert started[0][1] == ["full", "nih vit", "0", "a", str(tmp_path), "14"]
    assert started[3][1] == ["full", "nih pixels", "1", "b", str(tmp_path), "2", "14"]

    def fail(title, *_):
        started.append(title)
        raise UserError(f"{title} ended")

    started.clear()
    monkeypatch.setattr("experiments.twin_augmentation.study.run_in_process", fail)
    with pytest.raises(UserError, match="nih vit, seed 0 ended"):
        in_processes("full", runs, digests, tmp_path / "out", tmp_path, 1)
    assert len(started) == 1


# Images of a run


def rays(count, seed, labels, side):
    """Two images of each patient; labels of patients."""
    rng = np.random.default_rng(seed)
    patients = np.arange(count) // 2
    named = np.array(labels)[patients % len(labels)]
    images = rng.integers(0, 256, (count, side, side)).astype(np.uint8)
    names = np.array([f"{seed}-{i}" for i in range(count)])
    sources = np.where(named == "COVID-19", "Hannover-MHH", "NIH")
    return Rays(images, named, sources, np.array([f"{seed}-p{i}" for i in patients]), names)


@pytest.fixture(scope="module")
def collections():
    classes = ["Pneumonia", "No finding"]
    children = {name: rays(n, i, classes, 28) for i, (name, n) in enumerate([("train", 60), ("val", 20), ("test", 20)])}
    return {NIH: {"all": rays(240, 9, [*classes, "No finding", "COVID-19"], 64)}, CHILDREN: children}


def same(part: Part, whole: Rays) -> list[str]:
    """Patients of a part, found by their images."""
    values = resized(whole.images.astype(np.float32) / 127.5 - 1, part.images.shape[1])
    places = [int(np.flatnonzero((values == image).all(axis=(1, 2)))[0]) for image in part.images]
    return whole.patients[places].tolist()


@pytest.mark.parametrize("name", ["nih resnet", "covid resnet"])
def test_patients_of_training_choosing_and_test_are_others_and_training_is_imbalanced(name, collections):
    arm, whole = arm_named(name), collections[NIH]["all"]
    task = task_of(Run(name, 2, 0), arm, collections)
    held = [set(same(part, whole)) for part in (task.train, task.held_out, task.test)]
    assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    negatives, positives = np.bincount(task.train.labels)
    assert positives == negatives // 2
    assert len(np.unique(task.held_out.labels)) == 2 and task.test.images.shape[1:] == (64, 64)
    assert task.foreign.images.shape == (20, 64, 64)
    assert task.foreign.labels.any() == (arm.collection == NIH)
    other = task_of(Run(name, 2, 1), arm, collections)
    assert not np.array_equal(task.test.images, other.test.images)
    assert task.train.images.min() >= -1 and task.train.images.max() <= 1


def test_children_have_the_published_split_and_nih_is_their_other_source(collections):
    task = task_of(Run("children vit", 2, 0), arm_named("children vit"), collections)
    assert len(task.held_out) == len(task.test) == 20 and len(task.train) == 45
    assert task.foreign.images.shape[1:] == (28, 28) and len(np.unique(task.foreign.labels)) == 2


def test_the_border_has_no_lung(collections):
    arm = arm_named("covid resnet, border")
    task = task_of(Run(arm.name, 2, 0), arm, collections)
    for part in (task.train, task.held_out, task.test, task.foreign):
        assert not part.images[:, 8:56, 8:56].any() and part.images[:, :8].any() and part.images[:, :, 56:].any()
    image = np.ones((1, 28, 28), np.float32)
    assert border_only(image).sum() == 28 * 28 - 20 * 20 and image.all()


def test_augmented_images_are_moved_and_mirrored_copies():
    rng = np.random.default_rng(0)
    image = np.tile(np.linspace(-0.5, 0.5, 64, dtype=np.float32), (64, 1))
    found = augmented(np.stack([image] * 200), 3, rng)
    slopes = found[:, 32, 40] - found[:, 32, 24]
    assert 60 < np.sum(slopes < 0) < 140
    contrast = np.abs(slopes) / (image[32, 40] - image[32, 24])
    assert contrast.min() >= 0.89 and contrast.max() <= 1.11 and contrast.std() > 0.03
    middle = found[:, 32, 31:33].mean(axis=1)
    assert np.abs(middle).max() < 0.1 + 1.1 * 4 / 64 and middle.std() > 0.03
    np.testing.assert_array_equal(found, augmented(np.stack([image] * 200), 3, np.random.default_rng(0)))


def test_steps_are_shuffled_epochs():
    found = np.concatenate(epochs(10, 4, 5, np.random.default_rng(0)))
    assert len(found) == 20 and set(found[:10]) == set(found[10:]) == set(range(10))


def test_statistics_come_from_the_batch_and_weights_from_the_optimizer():
    one, other = (nnx.state(BatchNorm(2, execution=Execution(), rngs=nnx.Rngs(0)), nnx.Param) for _ in range(2))
    other = nnx.from_flat_state([(path, leaf.replace(leaf[...] + 1)) for path, leaf in nnx.to_flat_state(other)])
    merged = dict(nnx.to_flat_state(with_statistics(one, other)))
    values = {path[-1]: float(leaf[0]) for path, leaf in merged.items()}
    assert values == {"scale": 1, "bias": 0, "mean": 1, "variance": 2}


@pytest.mark.slow
def test_a_vit_gives_features_and_a_saliency_that_sums_to_one():
    model = new_backbone("vit", 16, 0)
    images = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    features = features_of(model, images)
    assert features.shape == (3, 64)
    np.testing.assert_allclose(features_of(model, images[1:2]), features[1:2], atol=1e-5)
    found = saliency(model, images)
    assert found.shape == (16, 16) and found.min() > 0
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-4)
    with pytest.raises(ValueError, match="no network"):
        new_backbone("pixels", 16, 0)


# Heads


def clouds(negatives, positives, seed):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [negatives, positives])
    return (rng.normal(size=(len(labels), 4)) + 1.5 * labels[:, None]).astype(np.float32), labels


@pytest.mark.slow
def test_heads_on_frozen_features_find_a_rare_class_and_choose_on_held_out_rows():
    rows, labels = clouds(140, 10, 0)
    held, test = clouds(40, 40, 1), clouds(60, 60, 2)
    size = replace(SIZES["quick"], margins=(1.0,), penalties=(0.01, 1e6), centres=30)
    judges, chosen = feature_heads(rows, labels, held[0], held[1], size, 0)
    assert set(judges) == {head for head in HEADS if head not in (SOFTMAX, PRIOR, THRESHOLD, "weighted", "focal")}
    for name, judge in judges.items():
        said = judge(test[0])
        assert roc_auc(test[1] == 1, said.scores) > 0.93, name
        assert balanced_accuracy(test[1], said.decisions) > 0.8, name
        np.testing.assert_allclose(said.probabilities.sum(axis=1), 1)
    assert set(chosen) == set(judges) - {TWIN, TWIN_THRESHOLD}
    held_said = judges[TWIN_THRESHOLD](held[0])
    assert balanced_accuracy(held[1], held_said.decisions) >= balanced_accuracy(
        held[1], judges[TWIN](held[0]).decisions
    )


def test_shifts_of_a_softmax_keep_its_order_and_move_its_threshold():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 50)
    logits = np.stack([np.full(100, 2.0), 1.5 * labels + rng.normal(0, 0.3, 100)], axis=1)
    judges = softmax_heads(logits, labels, np.array([0.9, 0.1]))
    plain, prior, cut = (judges[name](logits) for name in (SOFTMAX, PRIOR, THRESHOLD))
    np.testing.assert_array_equal(plain.scores, prior.scores)
    np.testing.assert_array_equal(plain.scores, cut.scores)
    assert balanced_accuracy(labels, plain.decisions) < 0.6
    np.testing.assert_array_equal(prior.decisions, plain.scores > -np.log(9))
    assert balanced_accuracy(labels, cut.decisions) > 0.95


# Figures


def test_figures_are_of_both_classes_or_the_part_that_is_called_positive():
    logits = np.array([[0, -2], [0, -1], [0, 1], [0, -1], [0, 2], [0, 3]], float)
    labels = np.array([0, 0, 0, 1, 1, 1])
    images = np.zeros((6, 2, 2), np.float32)
    judge = softmax_heads(logits, labels, np.array([0.5, 0.5]))[SOFTMAX]
    found = measured(Part(images, labels), judge(logits))
    assert found["sensitivity"] == pytest.approx(2 / 3) and found["specificity"] == pytest.approx(2 / 3)
    assert found["ROC-AUC"] == pytest.approx(7.5 / 9)
    assert measured(Part(images, np.zeros(6, int)), judge(logits)) == {"called positive": 0.5}
    assert confusion(labels, judge(logits).decisions) == [2, 1, 1, 2]
    curves = curve(labels == 1, judge(logits).scores)
    assert len(curves) == len(RATES) and curves[0] == pytest.approx(0.6667) and curves[-1] == 1


def test_a_coarse_map_keeps_the_sum():
    for side in (64, 28, 32):
        values = np.random.default_rng(0).random((side, side))
        assert coarse(values).shape == (16, 16)
        np.testing.assert_allclose(coarse(values).sum(), values.sum())


def result(arm, ratio, seed, **accuracies):
    """A result whose heads have these balanced accuracies, and ROC-AUCs 0.1 above."""
    heads = {name.replace("_", ", "): value for name, value in accuracies.items()}
    rest = {"sensitivity at 95 %": 0.5, "PR-AUC": 0.5, "ECE": 0.1, "sensitivity": 0.5, "specificity": 0.5}
    figures = {name: {"balanced accuracy": v, "ROC-AUC": v + 0.1, **rest} for name, v in heads.items()}
    flat = np.full((16, 16), 1 / 256).tolist()
    return Result(
        Run(arm, ratio, seed),
        {name: [10, 5] for name in ("train", "held out", "test", "foreign")},
        figures,
        {name: {"called positive": 0.25} for name in heads} if "covid" in arm else figures,
        {name: [5, 5, 2, 3] for name in heads},
        {name: [i / 20 for i in range(21)] for name in heads},
        {LOGISTIC: "penalty 1"},
        {"training": 1.0, "heads": 2.0},
        flat,
    )


@pytest.fixture
def results():
    found = []
    for seed in (0, 1, 2):
        found.append(result("nih resnet", 14, seed, softmax=0.5 + seed / 10, softmax_prior=0.7, twin=0.6 + seed / 10))
        found.append(result("covid resnet", 4, seed, softmax=0.8, twin=0.8))
        found.append(result("covid resnet, border", 4, seed, softmax=0.6, twin=0.6))
    return found


def test_differences_are_paired_by_seed(results):
    (cell,) = cells(results, NIH)
    found = gain(cell, TWIN, SOFTMAX, "balanced accuracy")
    assert found is not None and found.mean == pytest.approx(0.1) and found.half == pytest.approx(0, abs=1e-9)
    assert gain(cell, TWIN_CHOSEN, THRESHOLD, "balanced accuracy") is None
    reached = {aim.what: aim.reached for aim in aims(results)}
    assert reached == {
        "nih resnet, 1:14: twin minus softmax, balanced accuracy": True,
        "nih resnet, 1:14: twin minus softmax, prior, balanced accuracy": False,
    }


def test_the_share_of_the_source_is_what_the_border_reaches_above_chance(results):
    shares = source_share(results)
    assert shares is not None
    whole, border, share = shares
    assert whole.mean == pytest.approx(0.9) and border.mean == pytest.approx(0.7)
    assert share.mean == pytest.approx(0.5)
    assert source_share([run for run in results if run.run.arm != "covid resnet"]) is None
    assert border_saliency(results[0]) == pytest.approx(7 / 16)
    assert border_saliency(replace(results[0], saliency=[])) is None


def test_the_report_has_every_table_and_no_path_and_says_it_is_no_device(results, tmp_path):
    leak = [{"question": "q", "seen": "border", "numbers": 1, "accuracy": {"mean": 0.9, "half": 0.1, "count": 5},
             "auc": {"mean": 0.95, "half": 0.1, "count": 5}}]  # fmt: skip
    found = report.Study("2026-01-01", "python -m x", {"cores": "2"}, results, ["nih vit"], leak)
    names = pictures.draw_all([run for run in results if run.run.arm == "nih resnet"], "study", tmp_path)
    assert len(names) == 4 and all((tmp_path / name).stat().st_size > 1000 for name in names)
    text = report.write_report(found, names)
    assert report.NO_DEVICE in text and "Not done yet: nih vit." in text and str(tmp_path) not in text
    titles = [title for title, _ in report.tables(found)]
    assert titles[0] == "What the twin head adds: nih" and "What of it is the source" in titles
    assert "0.950 ± 0.100" in text and "+0.100 ± 0.000" in text
    header = report.gain_rows(results, NIH)[0]
    assert len(header) == 3 + len(GAINS)
    assert {len(row) for row in report.gain_rows(results, NIH)} == {len(header)}
    assert json.dumps(report.as_json(found))
    assert COVID in {arm.collection for arm in ARMS}


def test_results_come_back_from_their_files_and_without_any_a_report_is_refused(results, tmp_path):
    write_json({"made_with": "x", **asdict(results[0])}, tmp_path / "run.json")
    assert read_result(tmp_path / "run.json") == results[0]
    with pytest.raises(UserError, match="no result of these arms and seeds"):
        study("quick", tmp_path, tmp_path / "none", (), (0,), only=True, jobs=1)
