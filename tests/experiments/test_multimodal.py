"""The multimodal experiment: equal shares, wrong media, swapped media, and what is said of its numbers."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.multimodal import arms, findings, rows
from experiments.multimodal.datasets import DatasetsConfig, write_datasets
from experiments.multimodal.documents import WORDS, read_records
from experiments.multimodal.tasks import HeldOut, majority
from experiments.multimodal.worker import Result, read_result, write_result
from zoo.data import DataConfig, open_corpus, tokenizer_for
from zoo.data.log_mel import USM_SILENCE
from zoo.recipes import recipe


def result(arm: str, seed: int, accuracy: float, **more: float) -> Result:
    """An invented run."""
    measured = {"speech/test/accuracy": accuracy, **more}
    return Result(arms.Run(arm, seed), measured, ((1, measured),), ((1, 2.0),), 8.0, 100.0, 1.0, 1000)


def runs(joint=(0.9, 0.91, 0.89), single=(0.8, 0.8, 0.8), blind=(0.1, 0.1, 0.1)) -> list[Result]:
    """Three seeds of three arms."""
    pairs = ((arms.JOINT, joint), ("speech", single), (arms.TEXT_ONLY, blind))
    return [result(arm, seed, value) for arm, values in pairs for seed, value in enumerate(values)]


@pytest.fixture(scope="module")
def tests(tmp_path_factory) -> HeldOut:
    folder = tmp_path_factory.mktemp("multimodal")
    write_datasets(
        DatasetsConfig(folder, videos=12, pairs=12, digits=12, drawings=8, texts=8, most=12, speech_copies=1)
    )
    base = recipe("gemini-tiny-multimodal").data
    config = DataConfig(
        paths=tuple(str(folder / name / "train.jsonl") for name in ("speech", "pair", "video", "text")),
        format="interleaved",
        packing="first_fit",
        vocab_size=350,
        sequence_length=128,
        media=dataclasses.replace(base.media, patches_per_row=256),
    )
    return HeldOut(folder, tokenizer_for(open_corpus(config), config), config, 12)


@pytest.mark.parametrize("workload", [arms.FULL, arms.QUICK])
def test_models_of_one_modality_are_trained_on_what_the_joint_model_is_and_on_nothing_twice(workload):
    folders = [folder for arm in arms.SINGLES for folder in arms.folders_of(arm)]
    assert sorted(folders) == sorted(arms.folders_of(arms.JOINT)) and len(set(folders)) == len(folders)
    assert {run.arm for run in arms.runs_of(workload)} <= set(dict(workload.packings))


def test_in_the_full_run_all_models_of_one_modality_together_have_the_joint_models_rows():
    packings = dict(arms.FULL.packings)
    assert sum(packings[arm].rows for arm in arms.SINGLES) == packings[arms.JOINT].rows


def test_run_i_of_every_arm_has_its_seed_and_the_same_model(tmp_path):
    recipes = [arms.recipe_of(run, arms.FULL, tmp_path, 256, tmp_path) for run in arms.runs_of(arms.FULL)]
    assert len({str(found.model) for found in recipes}) == 1
    assert [found.seed for found in recipes] == [found.data.seed for found in recipes]
    assert recipes[0].model == recipe("gemini-tiny-multimodal").model


def test_each_document_gets_the_media_of_another_one():
    for count in (2, 3, 10):
        other = rows.strangers(count)
        assert sorted(other) == list(range(count)) and not (other == np.arange(count)).any()


def test_swapping_and_taking_away_media_leave_the_question():
    record = {"content": [{"image": "a.png"}, {"audio": "b.wav"}, {"text": "?"}, {"text": " one"}], "kind": "mixed"}
    assert rows.with_media_swapped(record)["content"][:2] == [{"audio": "b.wav"}, {"image": "a.png"}]
    assert rows.without_media(record)["content"] == record["content"][2:]
    other = {"content": [{"image": "c.png"}, {"audio": "d.wav"}, {"text": "!"}, {"text": " two"}]}
    given = rows.with_media_of(record, other)["content"]
    assert given == [*other["content"][:2], *record["content"][2:]]


def test_test_documents_keep_their_media_and_blank_ones_show_nothing(tests):
    for name in ("speech/test", "video/test", "pair/mixed"):
        records = tests.records(name)
        batch, real = next(rows.batches(records, tests.data / name.split("/")[0], tests.tokenizer, tests.config))
        blank, _ = next(
            rows.batches(records, tests.data / name.split("/")[0], tests.tokenizer, tests.config, blank=True)
        )
        assert real == len(records) and batch.tokens.shape[0] == 32
        assert (batch.loss_weights[:real].sum(axis=1) == [_answer_tokens(tests, r) for r in records]).all()
        assert (batch.tokens == blank.tokens).all()
        if "speech" in name:
            assert batch.media.images is None and (blank.media.audio.mel[:real][batch.media.audio.mask[:real]]
                                                   == np.float32(USM_SILENCE)).all()  # fmt: skip
        else:
            shown = batch.media.images.segment_ids > 0
            assert np.ptp(blank.media.images.patches[shown]) == 0 < np.ptp(batch.media.images.patches[shown])


def _answer_tokens(tests: HeldOut, record: dict) -> int:
    return len(tests.tokenizer.encode(record["content"][-1]["text"])) + 1  # and the end


def test_few_sizes_of_batches_are_compiled():
    assert [rows._rounded(count, 16) for count in (0, 1, 16, 17, 64, 65)] == [0, 16, 16, 32, 64, 128]


def test_answers_that_begin_alike_are_refused(tests):
    assert len(rows.choices(tests.tokenizer, ("one", "up"))) == 2
    with pytest.raises(ValueError, match="begin with the same token"):
        rows.choices(tests.tokenizer, ("one", "one"))


def test_the_most_frequent_answer_is_that_of_training_documents(tests):
    found = majority(tests)
    train = [r["content"][-1]["text"] for r in read_records(tests.data / "speech" / "train.jsonl")]
    usual = max(dict.fromkeys(train), key=train.count)
    test = [r["content"][-1]["text"] for r in tests.records("speech/test")]
    assert found["speech/test"] == pytest.approx(test.count(usual) / len(test))
    assert {"video_order/test", "video_motion/test", "pair/mixed", "statement/test"} <= set(found)


def test_the_joint_model_must_beat_the_best_of_its_baselines():
    assert findings.aims(runs(), {"speech/test": 0.2})[0].reached
    assert not findings.aims(runs(), {"speech/test": 0.92})[0].reached
    assert not findings.aims(runs(joint=(0.9, 0.2, 0.5)), {"speech/test": 0.2})[0].reached
    assert not findings.aims(runs(blind=(0.95, 0.9, 0.92)), {"speech/test": 0.2})[0].reached


def test_one_seed_reaches_no_aim():
    alone = [each for each in runs() if each.run.seed == 0]
    assert not any(aim.reached for aim in findings.aims(alone, {"speech/test": 0.2}))


def test_differences_are_taken_seed_by_seed():
    found = findings.paired(runs(joint=(0.9, 0.8, 0.7), single=(0.8, 0.7, 0.6)), findings.METRICS[0])
    assert found.mean == pytest.approx(0.1) and found.half == pytest.approx(0, abs=1e-9)


def test_what_is_drawn_is_counted_by_digit():
    drawn = tuple(digit if digit != 3 else 8 for digit in range(10) for _ in range(2))
    one = dataclasses.replace(result(arms.JOINT, 0, 0.5), drawn=drawn)
    assert findings.drawn_of_each([one, one]) == [1.0] * 3 + [0.0] + [1.0] * 6


def test_a_result_comes_back_from_its_file(tmp_path):
    one = dataclasses.replace(result(arms.JOINT, 1, 0.5), examples=({"folder": "speech/test"},), drawn=(1, 2))
    write_result(one, tmp_path / "run.json")
    assert read_result(tmp_path / "run.json") == one and not list(tmp_path.glob("*.unfinished"))
    assert json.loads((tmp_path / "run.json").read_text())["run"]["arm"] == arms.JOINT


@pytest.mark.slow
def test_the_classifier_learns_drawn_digits_and_comes_back_from_its_file(tmp_path):
    from experiments.multimodal.classifier import classify, load_classifier, save_classifier, train_classifier
    from experiments.multimodal.digits import on_canvas
    from experiments.multimodal.sources import synthetic_sources

    images, labels = synthetic_sources().digits
    model = train_classifier(images[:100], labels[:100], 60)
    shown = np.stack([on_canvas(image) for image in images[100:]])
    save_classifier(model, tmp_path / "classifier.npz")
    found = classify(load_classifier(tmp_path / "classifier.npz"), shown)
    assert (found == classify(model, shown)).all() and np.mean(found == labels[100:]) > 0.9
    assert len(WORDS) == 10
