"""How interleaved documents are written, and what is refused while the corpus is opened."""

import json

import numpy as np
import pytest

from tests.data.media_files import RATE, write_float_wav, write_image, write_records, write_video, write_wav
from zoo.data import BadMedia, DataConfig, MediaConfig, open_corpus, parse_interleaved
from zoo.errors import UserError

MEDIA = MediaConfig(patch_size=4, patches_per_row=64, max_patches=64, clips_per_row=2, image_codes=8)


def parse(value, folder, **fields):
    return parse_interleaved(value, "a.jsonl:3", folder, MediaConfig(**{**vars(MEDIA), **fields}), "text")


def open_(path, **fields):
    media = MediaConfig(**{**vars(MEDIA), **fields})
    return open_corpus(DataConfig(paths=(str(path),), format="interleaved", packing="first_fit", media=media))


def test_a_document_is_its_parts_in_order_with_their_paths_beside_the_file(tmp_path):
    image, sound = write_image(tmp_path / "images" / "a.png"), write_wav(tmp_path / "b.wav")
    write_image(tmp_path / "c" / "0.png")
    parts = [{"text": "x"}, {"image": "images/a.png"}, {"audio": "b.wav"}, {"video": "c", "fps": 5}, {"text": ""}]
    document = parse({"content": parts, "kind": "test"}, tmp_path)
    assert [part.kind for part in document.parts] == ["text", "image", "audio", "video"]
    assert [part.path for part in document.parts[1:]] == [image, sound, tmp_path / "c"]
    assert document.parts[3].fps == 5 and document.kind == "test" and document.where == "a.jsonl:3"
    assert parse(parts, tmp_path).parts == document.parts
    assert parse({"text": "only"}, tmp_path).parts[0].text == "only"


def test_losses_are_said_by_the_part_else_by_the_document(tmp_path):
    parts = [{"text": "a"}, {"text": "b", "loss": True}, {"text": "c", "loss": False}]
    assert [part.loss for part in parse({"content": parts}, tmp_path).parts] == [True, True, False]
    assert [part.loss for part in parse({"content": parts, "loss": False}, tmp_path).parts] == [False, True, False]


@pytest.mark.parametrize("value", [[], [{"text": ""}], [{"text": " \n"}], {"content": []}])
def test_documents_without_anything_in_them_are_empty(tmp_path, value):
    assert parse(value, tmp_path) is None


@pytest.mark.parametrize(
    "value, message",
    [
        ({"contents": []}, "no field 'content'; did you mean 'contents'"),
        ({"content": "text"}, "'content' must be a list of parts"),
        ([{"txt": "a"}], "part 1 must be an object with one of text, image, audio and video; did you mean 'text'"),
        ([{"text": "a"}, "b"], "part 2 must be an object"),
        ([{"text": "a", "image": "b.png"}], "part 1 must be an object with one of"),
        ([{"text": 3}], "part 1: 'text' must be a string"),
        ([{"text": "a", "los": False}], "part 1: text has no field 'los'; did you mean 'loss'"),
        ([{"text": "a", "loss": 0}], "part 1: 'loss' must be true or false"),
        ([{"video": "v", "fps": 0}], "part 1: .*no such file"),
        ([{"image": "a.png", "codes": [1]}], "'codes' and 'loss' belong to images with \"output\": true"),
        ([{"image": "a.png", "output": True, "codes": [1, 8]}], r"codes 1 \.\. 8, data.media.image_codes is 8"),
        ([{"image": "a.png", "output": True, "codes": []}], "'codes' must be a list of whole numbers"),
    ],
)
def test_what_is_no_document_is_refused_with_the_record(tmp_path, value, message):
    with pytest.raises(UserError, match=f"a.jsonl:3: {message}|a.jsonl:3: part 1: {message}"):
        parse(value, tmp_path)


@pytest.mark.parametrize(
    "part, fields, option",
    [
        ({"image": "a.png"}, {"patches_per_row": 0}, "patches_per_row"),
        ({"video": "a.mp4"}, {"patches_per_row": 0}, "patches_per_row"),
        ({"audio": "a.wav"}, {"clips_per_row": 0}, "clips_per_row"),
        ({"image": "a.png", "output": True}, {"image_codes": 0}, "image_codes"),
    ],
)
def test_media_that_the_run_does_not_take_are_refused_even_where_bad_ones_are_skipped(tmp_path, part, fields, option):
    with pytest.raises(UserError, match=f"data.media.{option} is 0") as error:
        parse([part], tmp_path, bad_media="skip", **fields)
    assert not isinstance(error.value, BadMedia)


BAD = {
    "missing file": ({"image": "gone.png"}, "gone.png: no such file"),
    "unknown extension": ({"image": "a.wav"}, "a.wav: unknown extension for image; known are .png"),
    "wrong contents": ({"image": "lie.png"}, "lie.png: not a PNG file but JPEG"),
    "0-byte wav": ({"audio": "empty.wav"}, "empty.wav: an empty file"),
    "no samples": ({"audio": "silent.wav"}, "silent.wav: no samples in this file"),
    "1x1 image": ({"image": "dot.png"}, "dot.png: 1 x 1 pixels"),
    "20,000-pixel image": ({"image": "wide.png"}, "wide.png: 20,000 x 8 pixels"),
    "NaN samples": ({"audio": "nan.wav"}, "nan.wav: 10 samples are not finite"),
    "video without frames": ({"video": "none"}, "none: a video without frames"),
    "truncated image": ({"image": "half.png"}, "half.png: a damaged PNG file"),
    "truncated video": ({"video": "half.mp4"}, "half.mp4: a damaged .mp4 file"),
    "too long": ({"audio": "long.wav"}, "long.wav: 3.0 seconds of audio, a row holds 1.92"),
    "bad frame in a folder": ({"video": "frames"}, "0.png: 1 x 1 pixels"),
}


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_image(folder / "a.png")
    write_wav(folder / "a.wav")
    write_image(folder / "lie.jpg").rename(folder / "lie.png")
    (folder / "empty.wav").write_bytes(b"")
    write_wav(folder / "silent.wav", 0)
    write_image(folder / "dot.png", 1, 1)
    write_image(folder / "wide.png", 8, 20_000)
    write_float_wav(folder / "nan.wav", np.where(np.arange(RATE // 4) < 10, np.nan, 0))
    (folder / "none").mkdir()
    (folder / "half.png").write_bytes(write_image(folder / "b.png", 64, 64).read_bytes()[:5000])
    video = write_video(folder / "b.mp4", np.zeros((5, 16, 16, 3), np.uint8), 5).read_bytes()
    (folder / "half.mp4").write_bytes(video[: len(video) // 2])
    write_wav(folder / "long.wav", 3)
    write_image(folder / "frames" / "0.png", 1, 1)
    return folder


@pytest.mark.parametrize("name", BAD)
def test_bad_media_are_refused_with_file_and_record(bad_folder, name):
    part, message = BAD[name]
    path = write_records(bad_folder / "data.jsonl", [[{"text": "good"}], {"content": [{"text": "x"}, part]}])
    with pytest.raises(BadMedia, match=f"data.jsonl:2: .*{message}") as error:
        open_(path, check="contents")
    assert "\n" not in str(error.value)


def test_bad_media_are_skipped_and_counted_where_the_config_says_so(bad_folder):
    records = [[{"text": "x"}, part] for part, _ in BAD.values()]
    good = [[{"text": "x"}, {"image": "a.png"}], [{"audio": "a.wav"}], [{"text": "y"}]]
    corpus = open_(write_records(bad_folder / "data.jsonl", [*records, *good]), check="contents", bad_media="skip")
    assert corpus.num_train_documents + corpus.num_validation_documents == len(good)
    assert len(corpus.left_out) == len(BAD)
    for (where, reason), (_, message) in zip(corpus.left_out.reasons.items(), BAD.values(), strict=True):
        assert where.endswith(f"data.jsonl:{list(corpus.left_out.reasons).index(where) + 1}") and message in reason
    assert f"{len(BAD)} left out for bad media (the first: {bad_folder}" in corpus.description


def test_only_files_are_looked_at_unless_contents_are_asked_for(bad_folder):
    records = [[{"image": "half.png"}], [{"text": "x"}], [{"image": "gone.png"}], [{"text": "y"}]]
    path = write_records(bad_folder / "data.jsonl", records)
    with pytest.raises(BadMedia, match="data.jsonl:3: part 1: .*gone.png: no such file"):
        open_(path)
    assert len(open_(path, bad_media="skip").left_out) == 1
    assert len(open_(path, bad_media="skip", check="contents").left_out) == 2


def test_data_of_bad_media_only_are_refused_with_the_first_reason(bad_folder):
    path = write_records(bad_folder / "data.jsonl", [[{"image": "gone.png"}], [{"image": "dot.png"}]])
    with pytest.raises(UserError, match="no document that is not empty; 2 left out for bad media .*gone.png: no such"):
        open_(path, bad_media="skip", check="contents")


def test_the_fingerprint_follows_the_names_and_sizes_of_media(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b" / "0.png")
    path = write_records(tmp_path / "data.jsonl", [[{"image": "a.png"}, {"video": "b"}], [{"text": "x"}]])
    before = open_(path).fingerprint
    assert open_(path).fingerprint == before
    write_image(tmp_path / "b" / "0.png", 20, 20)
    changed = open_(path).fingerprint
    assert changed != before
    write_image(tmp_path / "b" / "1.png", 20, 20)
    assert open_(path).fingerprint not in (before, changed)


def test_a_tokenizer_is_trained_on_the_texts_alone(tmp_path):
    write_image(tmp_path / "a.png")
    path = write_records(tmp_path / "data.jsonl", [[{"text": "one "}, {"image": "a.png"}, {"text": "two"}]] * 3)
    assert set(open_(path).train_texts()) == {"one two"}


def test_interleaved_documents_need_first_fit_and_paths(tmp_path):
    with pytest.raises(UserError, match="format 'interleaved' needs packing 'first_fit'"):
        DataConfig(format="interleaved")
    with pytest.raises(UserError, match="format 'interleaved' needs paths of .jsonl documents"):
        open_corpus(DataConfig(format="interleaved", packing="first_fit"))


def test_a_line_that_is_neither_object_nor_list_is_refused(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps("text") + "\n")
    with pytest.raises(UserError, match="data.jsonl:1: expected a JSON object or list on each line, found a string"):
        open_(tmp_path / "data.jsonl")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"patch_size": 0}, "media.patch_size must be a whole number of at least 1"),
        ({"max_patches": 255}, "media.max_patches=255 must be a multiple of merge x merge = 4"),
        ({"clip_frames": 50}, "media.clip_frames=50 must be a multiple of audio_reduction=16"),
        ({"video_fps": 0}, "media.video_fps must be above 0"),
        ({"bad_media": "ignore"}, "media.bad_media must be 'stop' or 'skip', not 'ignore'"),
    ],
)
def test_wrong_settings_of_media_are_refused(fields, message):
    with pytest.raises(UserError, match=message):
        MediaConfig(**fields)
