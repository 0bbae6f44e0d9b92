"""Models of video and speech: parts, material, rows as the pipeline has them, kept soft tokens, a tiny study."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from experiments.kept import check_made_with
from experiments.long_context_recall.audio import AudioHaystack, digit_in_a_stream
from experiments.long_context_recall.media import media_sources, part_of
from experiments.long_context_recall.media_training import augmentation, report, rows, study, trainer, worker
from experiments.long_context_recall.media_training.curriculum import AUDIO, VIDEO, Stage
from experiments.long_context_recall.media_training.examination import MediaExamined
from experiments.long_context_recall.media_training.material import WHAT_IS_SAID, make_material
from experiments.long_context_recall.media_training.sizes import FULL_MEDIA, MEDIA_SIZES, QUICK_VIDEO
from experiments.long_context_recall.training.arms import Run
from experiments.long_context_recall.training.examination import Examined
from experiments.long_context_recall.video import VideoHaystack, word_in_a_video
from experiments.runs import BENCHMARKS
from zoo.data import load_media_prompt, load_tokenizer
from zoo.errors import UserError
from zoo.interop import load

HIDDEN = Stage("hidden", 3, 4, 1, 1e-3)
ALONE = Stage("alone", 0, 4, 1, 1e-3)
TINY_AUDIO = dataclasses.replace(
    AUDIO, stages=(ALONE,), items=10, plain=6, embed_dim=64, encoder_dim=32, encoder_layers=1
)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory):
    """Of both tasks, from what is drawn and sounded."""
    found = {}
    for workload in (QUICK_VIDEO, TINY_AUDIO):
        folder = tmp_path_factory.mktemp("media") / "tokenizer"
        worker.make_tokenizer(workload, folder)
        found[workload.task] = worker.layout_of(Run("a", 0), workload, load_tokenizer(folder), None, "train")
    return found


def test_no_recording_and_no_frame_is_in_two_parts():
    parts = {name: media_sources(None, name) for name in ("train", "validation", "test")}
    for name, sources in parts.items():
        assert len(sources.frames) and {part_of(clip) for clip in sources.clips} == {name}
        assert {clip.digit for clip in sources.clips} == set(range(10))
    assert sum(len(sources.frames) for sources in parts.values()) == 64
    kept = np.concatenate([sources.frames for sources in parts.values()]).reshape(64, -1)
    assert len(np.unique(kept, axis=0)) == 64


def test_rows_of_frames_are_what_the_pipeline_reads_from_the_task(layouts, tmp_path):
    layout, sources = layouts["video"], media_sources(None)
    made = make_material(layout.workload, sources, 200, 40, 0, vary=False)
    layout = dataclasses.replace(layout, material=made)
    sample = word_in_a_video(VideoHaystack(frames=3), "video", 0, sources.frames, tmp_path, 1, depth=50)
    media = dataclasses.replace(layout.workload.media, video_frames=3)
    tokens, shown = load_media_prompt(sample.parts, layout.tokenizer, media, tmp_path)
    ids, slots = layout.prompt(3, 24, made.hidden.question)
    np.testing.assert_array_equal(tokens[0], ids)
    np.testing.assert_array_equal(shown.image_slots[0], slots)
    number = made.hidden.words.index(sample.references[0])
    needles = np.flatnonzero(made.hidden.answers == number)
    picks = rows.Picks(np.zeros((1, 3), int), needles[:1], np.array([1]), np.zeros(1, int))
    batch = rows.batch_of(layout, dataclasses.replace(HIDDEN, batch_size=1), picks)
    np.testing.assert_array_equal(batch.media.images.coordinates, shown.images.coordinates)
    np.testing.assert_array_equal(batch.media.images.segment_ids, shown.images.segment_ids)
    # The overlay is the same on any frame: where all needles of this word agree, so does the task's frame.
    own = made.hidden.values[needles, 0].astype(int)
    same = (own == own[0]).all(0)
    pixels = np.asarray((shown.images.patches[0, 32:64] + 1) * 127.5).round()
    assert same.mean() > 0.2 and (pixels[same] == own[0][same]).all()
    assert batch.loss_weights.sum() == len(layout.answer(sample.references[0]))
    asked = batch.targets[batch.loss_weights > 0]
    np.testing.assert_array_equal(asked, layout.answer(sample.references[0]))


def test_streams_are_what_the_pipeline_reads_from_the_task(layouts, tmp_path):
    layout = layouts["audio-keyword"]
    clips = media_sources(None).clips
    sample = digit_in_a_stream(AudioHaystack(recordings=12), "audio-keyword", 0, clips, tmp_path, 1, depth=50)
    media = dataclasses.replace(layout.workload.media, clips_per_row=1000)
    tokens, heard = load_media_prompt(sample.parts, layout.tokenizer, media, tmp_path)
    soft = int((heard.audio_slots >= 0).sum())
    units = heard.audio.mel.shape[1]
    assert units > 2 and layout.unit_tokens * (units - 1) < soft <= layout.unit_tokens * units
    ids, slots = layout.prompt(units, soft, layout.material.hidden.question)
    np.testing.assert_array_equal(tokens[0], ids)
    np.testing.assert_array_equal(heard.audio_slots[0], slots)
    # In a row all but the last clip are whole, and a keyword stands where the picks say.
    picks = rows.draw_picks(layout, HIDDEN, np.random.default_rng(0))
    batch = rows.batch_of(layout, HIDDEN, picks)
    material = layout.material
    for row, (item, place) in enumerate(zip(picks.needle, picks.place, strict=True)):
        own = np.asarray(batch.media.audio.mel[row, place : place + 2])
        np.testing.assert_array_equal(own, material.hidden.values[item].astype(np.float32))
        assert (batch.media.audio_slots[row] >= 0).sum() == 3 * layout.unit_tokens - picks.cut[row]
    assert material.hidden.real.all() and material.plain.real.all() and not material.alone.real.all()
    assert set(material.plain.answers) == {-1} and set(material.hidden.answers) == set(range(5))
    alone = material.alone
    assert {len(alone.words[answer].split()) for answer in alone.answers} >= {1, 2} and alone.question == WHAT_IS_SAID
    longer = alone.real.sum((1, 2)) > 120
    assert any(len(alone.words[a].split()) > 1 for a, long in zip(alone.answers, longer, strict=True) if long)


def test_noise_covers_what_is_softer_and_is_another_one_for_every_clip():
    random = np.random.default_rng(0)
    mel = np.full((2, 3, 50, 128), -11.5, np.float32)
    mel[:, :, 20:30] = 4.0  # far louder than any noise
    heard = augmentation.with_noise(mel, random)
    assert heard.dtype == np.float32 and heard.shape == mel.shape
    loud, soft = heard[:, :, 20:30] - mel[:, :, 20:30], heard[:, :, :20]
    assert np.abs(loud).max() < augmentation.TILT + augmentation.GAIN + 0.01 and np.ptp(loud, axis=2).max() < 0.01
    levels = soft.mean((2, 3))
    assert soft.mean() > -10.5 and np.unique(levels.round(3)).size == 6 and levels.std() > 0.3


def test_bent_clips_hold_the_same_between_the_same_ends():
    random = np.random.default_rng(0)
    frames, bands = np.meshgrid(np.arange(40.0), np.arange(30.0), indexing="ij")
    mel = np.broadcast_to(np.stack([frames, bands])[:, None], (2, 5, 40, 30)).astype(np.float32)
    real = np.ones((2, 5, 40), bool)
    real[:, 0, 25:] = False
    heard = augmentation.bent(mel, real, random)
    assert heard.dtype == np.float32 and heard.shape == mel.shape
    at_frame, at_band = heard[0, :, :, 3], heard[1, :, 7]
    for at, same in ((at_frame[0], [0, 24, *range(25, 40)]), (at_frame[1:], [0, 39]), (at_band, [0, 29])):
        np.testing.assert_allclose(at[..., same], np.broadcast_to(same, at[..., same].shape), atol=1e-4)
        assert (np.diff(at) > 0).all()
    most = np.abs(at_frame[1:] - np.arange(40)).max(1)
    assert 0.5 < most.max() <= augmentation.BENT_FRAMES * 39 and np.unique(most.round(3)).size == 4


@pytest.mark.parametrize("task", ["video", pytest.param("audio-keyword", marks=pytest.mark.slow)])
def test_kept_soft_tokens_give_what_the_encoders_give(layouts, task):
    layout = layouts[task]
    model = worker.new_model(layout, 0)
    picks = rows.draw_picks(layout, HIDDEN, np.random.default_rng(1))
    with_media = rows.batch_of(layout, HIDDEN, picks)
    with_soft = rows.batch_of(layout, HIDDEN, picks, trainer.soft_banks(model, layout, HIDDEN))
    logits = [
        np.asarray(m(b.tokens, positions=b.positions, segment_ids=b.segment_ids, media=b.media))
        for m, b in ((model, with_media), (trainer.reader_of(model), with_soft))
    ]
    real = with_media.segment_ids > 0
    np.testing.assert_allclose(logits[0][real], logits[1][real], atol=2e-4)
    other = rows.batch_of(layout, HIDDEN, dataclasses.replace(picks, needle=(picks.needle + 1) % 4))
    real &= other.segment_ids > 0  # answers have different lengths
    told = dict(positions=other.positions, segment_ids=other.segment_ids, media=other.media)
    changed = np.asarray(model(other.tokens, **told))
    assert np.abs(changed - logits[0])[real].max() > 1e-2


def test_resting_encoders_do_not_change_and_the_decoder_does(layouts):
    layout = layouts["video"]
    model = worker.new_model(layout, 0)
    before = {"/".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    resting = dataclasses.replace(HIDDEN, steps=2, encoders=False)
    trained = trainer.train_stage(model, layout, resting, np.random.default_rng(0), 0).model
    after = {"/".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(nnx.state(trained, nnx.Param))}
    assert set(before) == set(after)
    same = {name for name in before if (before[name] == after[name]).all()}
    assert same == {name for name in before if name.split("/")[0] in trainer.ENCODERS}


@pytest.mark.slow  # --quick of the experiment has it, too
def test_a_tiny_study_is_kept_and_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "run_in_process", _in_this_process)
    study.study("quick", tmp_path / "out", tmp_path / "results", (), (), tmp_path / "r.md", False)
    path = tmp_path / "results" / "video-seed-0.json"
    found = worker.read_result(path)
    assert [stage.stage for stage in found.stages] == ["alone", "2-frames"]
    assert found.examined[0].cell.length == 4 and found.examined[0].tokens > 60
    (checkpoint,) = (tmp_path / "out" / "runs" / "video-seed-0").glob("2-frames-1")
    assert load(checkpoint).media_config == QUICK_VIDEO.media
    text = (tmp_path / "r.md").read_text()
    assert "video" in text and (tmp_path / "r-video.png").is_file() and report.WORKS in text
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {study.DIGEST: "another"}))
    with pytest.raises(UserError, match="another curriculum"):
        study.study("quick", tmp_path / "out", path.parent, (), (), None, True)
    with pytest.raises(UserError, match="unknown"):
        study.study("quick", tmp_path / "out", path.parent, ("vidoe",), (), None, True)


def _in_this_process(name, module, arguments, log, environment):
    size, arm, seed, out, path = arguments
    result = worker.carry_out(Run(arm, int(seed)), MEDIA_SIZES[size], worker.Path(out) / "runs" / name)
    worker.write_json(dataclasses.asdict(result), worker.Path(path))


def test_a_result_is_signed_with_its_own_haystack_and_not_with_the_other_tasks():
    arm = FULL_MEDIA.arm("video")
    audio = dataclasses.replace(arm.workload.audio, keywords=(5, 6, 7, 8, 9))
    video = dataclasses.replace(arm.workload.video, text_size=13)

    def signed(**changed):
        other = dataclasses.replace(arm, workload=dataclasses.replace(arm.workload, **changed))
        return dataclasses.replace(FULL_MEDIA, arms={"video": other}).made_with("video", True)

    assert signed(audio=audio) == signed() != signed(video=video)


def test_committed_results_are_of_the_settings_that_are_here():
    kept = sorted((BENCHMARKS / "long-context-recall-media").glob("*-seed-*.json"))
    assert kept
    for path in kept:
        check_made_with(path, FULL_MEDIA.made_with(path.name.split("-seed-")[0], True), "other settings")


def test_aims_are_of_the_lengths_that_were_trained():
    def run(seed: int, right: float) -> worker.Result:
        cells = [
            MediaExamined(Examined("video", length, depth, (score, 1.0), (0, 0), 16), tokens, 1.0)
            for length, tokens, score in ((16, 250, 1.0), (547, 8213, right), (1094, 16_418, 0.0))
            for depth in (0.0, 100.0)
        ]
        return worker.Result(Run("video", seed), 1, 8224, (), tuple(cells))

    runs = [run(0, 1.0), run(1, 0.0), run(2, 1.0)]
    recall, length, seeds = report.aims(runs)
    assert not recall.reached and recall.measured.startswith("91.7") and length.reached and seeds.reached
    assert report.aims([run(seed, 1.0) for seed in range(3)])[0].reached
    assert report.recall_rows(runs)[3][4].startswith("50.0")  # beyond the trained length
    assert VIDEO.stages[-1].units == 547
