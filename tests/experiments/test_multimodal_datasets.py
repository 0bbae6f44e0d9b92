"""The multimodal documents: splits share nothing that they must not share, and every document can be read."""

import json

import numpy as np
import pytest

from experiments.multimodal.datasets import BOXES, DatasetsConfig, write_datasets
from experiments.multimodal.digits import PARTS, numbers_of
from experiments.multimodal.documents import STEPS
from experiments.multimodal.sources import synthetic_sources
from zoo.data import DataConfig, MediaConfig, open_corpus
from zoo.data.images import read_image

MEDIA = MediaConfig(patch_size=8, patches_per_row=256, clips_per_row=4, image_codes=8, check="contents")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    return write_datasets(DatasetsConfig(folder, videos=24, pairs=16, digits=16, drawings=16, texts=16, most=30))


def records(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_modality_has_documents_for_training_and_for_testing_that_can_be_read(written):
    folders = ("speech", "picture", "statement", "digit", "video", "pair", "draw", "text")
    both = {f"{folder}/{split}" for folder in folders for split in ("train", "test")}
    assert set(written) == both | {"speech/speaker", "pair/mixed"}
    for path in written.values():
        config = DataConfig(
            paths=(str(path),), format="interleaved", packing="first_fit", media=MEDIA, validation_fraction=0
        )
        corpus = open_corpus(config)
        assert corpus.num_train_documents == len(records(path)) > 0 and len(corpus.left_out) == 0


def test_only_answers_count_and_every_document_says_what_it_is(written):
    for name, path in written.items():
        folder = name.split("/")[0]
        for record in records(path):
            assert record["kind"].split("_")[0] in (folder, name.split("/")[1])
            *_, question, answer = [{}, *record["content"]]
            if folder == "draw":
                assert question["loss"] is False and answer["output"] is True
            elif folder != "text":
                assert question["loss"] is False and set(answer) == {"text"} and answer["text"].startswith(" ")


def test_the_held_out_speaker_and_the_first_recordings_are_not_trained_on(written):
    names = {split: [r["content"][0]["audio"] for r in records(written[f"speech/{split}"])]
             for split in ("train", "test", "speaker")}  # fmt: skip
    speakers = {split: {name.split("_")[1] for name in found} for split, found in names.items()}
    assert len(speakers["speaker"]) == 1 and not speakers["speaker"] & (speakers["train"] | speakers["test"])
    assert {name.split("_")[2] for name in names["test"]} == {"0.wav"}
    assert "0" not in {name.removesuffix(".wav").split("_")[2] for name in names["train"]}


def test_digits_of_tests_of_the_classifier_and_of_training_are_disjoint():
    parts = [set(numbers_of(part, 50)) for part in PARTS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 50


def test_a_pair_names_the_answer_that_the_other_order_has(written):
    for path in (written["pair/test"], written["pair/mixed"]):
        for record in records(path):
            assert record["swapped"] != record["content"][-1]["text"] and record["swapped"].startswith(" ")


def test_statements_are_permuted_by_box_for_training_only():
    sources = synthetic_sources(count=8)
    assert sum(s.held_out for s in sources.statements) == 2
    assert all(s.pixels[:, box].shape == (50, 50, 3) for s in sources.statements for box in BOXES)


def test_moving_digits_move_where_the_answer_says(written):
    path, seen = written["video/train"], 0
    for record in records(path):
        if record["kind"] == "video_motion":
            frames = sorted((path.parent / record["content"][0]["video"]).iterdir())
            first, second = (read_image(frame, MEDIA)[..., 0] for frame in frames[:2])
            down, right = STEPS[record["content"][-1]["text"].strip()]
            moved = np.pad(first, 5)[5 - down : 37 - down, 5 - right : 37 - right]
            # A row or column that was cut off, or comes in, is what the frames need not share.
            np.testing.assert_array_equal(moved[5:-5, 5:-5], second[5:-5, 5:-5])
            seen += 1
    assert seen == 16


def test_drawn_data_depend_on_the_seed_alone():
    one, again, other = (synthetic_sources(seed, count=20) for seed in (0, 0, 1))
    assert all((a.pixels == b.pixels).all() for a, b in zip(one.pictures, again.pictures, strict=True))
    assert any((a.pixels != b.pixels).any() for a, b in zip(one.pictures, other.pictures, strict=True))
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(one.clips, again.clips, strict=True))


def test_the_real_sources_have_the_sizes_that_their_notes_say(shared_dir):
    from experiments.multimodal.sources import real_sources

    sources = real_sources(shared_dir)
    assert (len(sources.clips), len(sources.pictures), len(sources.statements)) == (3000, 3583, 990 + 985 + 989)
    assert len({clip.speaker for clip in sources.clips}) == 6 and sources.digits[0].shape == (10_000, 28, 28)
    assert sum(clip.index < 5 for clip in sources.clips) == 300
    assert min(map(len, sources.texts.values())) > 1000
