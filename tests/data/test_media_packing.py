"""Interleaved documents in batches: media stay with their tokens, and what stands where can be told from the arrays."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from tests.data.media_files import write_image, write_records, write_wav
from zoo.data import (
    BadMedia,
    Batch,
    DataConfig,
    LeftOut,
    MediaConfig,
    MediaVocabulary,
    baselines,
    batch_bytes,
    load_media_prompt,
    media_shapes,
    open_corpus,
    train_batches,
    train_dataset,
    validation_dataset,
)
from zoo.data.images import patches_of, read_image, scaled
from zoo.data.iterator import WithLeftOut
from zoo.errors import UserError

MEDIA = MediaConfig(
    patch_size=4,
    merge=2,
    max_patches=16,
    patches_per_row=48,
    clips_per_row=3,
    clip_frames=16,
    audio_reduction=8,
    mel_bins=8,
    video_fps=2,
    image_codes=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Documents of every kind; image i has 8 x 8 (i + 1) pixels, recording i lasts 80 (i + 1) ms."""
    folder = tmp_path_factory.mktemp("interleaved")
    for i in range(4):
        write_image(folder / f"{i}.png", 8, 8 * (i + 1), seed=i)
        write_image(folder / "video" / f"{i}.png", 8, 8, seed=10 + i)
        write_wav(folder / f"{i}.wav", 0.08 * (i + 1), pitch=300 * (i + 1))
    records = []
    for i in range(24):
        records += [
            [{"text": f"picture {i}: ", "loss": False}, {"image": f"{i % 4}.png"}, {"text": " seen"}],
            [{"audio": f"{i % 4}.wav"}, {"text": f"heard {i}"}, {"image": f"{(i + 1) % 4}.png"}],
            {"content": [{"text": f"words alone {i}"}]},
        ]
    records.append([{"video": "video", "fps": 2}, {"text": "moving"}])
    records.append([{"text": "draw"}, {"image": "0.png", "output": True, "codes": [3, 0, 1]}])
    write_records(folder / "data.jsonl", records)
    return folder


@pytest.fixture(scope="module")
def config(folder):
    return DataConfig(
        paths=(str(folder / "data.jsonl"),),
        format="interleaved",
        packing="first_fit",
        media=MEDIA,
        sequence_length=48,
        batch_size=4,
        shuffle_window_tokens=480,
        validation_fraction=0.2,
    )


def one(folder, content, tokenizer, **fields):
    """The batch of a single document."""
    media = MediaConfig(**{**vars(MEDIA), **{k: fields.pop(k) for k in list(fields) if k in vars(MEDIA)}})
    path = write_records(folder / "one.jsonl", [content])
    settings = dict(sequence_length=48, batch_size=1, validation_fraction=0, shuffle_window_tokens=0)
    config = DataConfig(
        paths=(str(path),), format="interleaved", packing="first_fit", media=media, **{**settings, **fields}
    )
    return next(iter(train_dataset(open_corpus(config), tokenizer, config)))


def first_segment(batch):
    real = batch.segment_ids[0] == 1
    return (array[0, real].tolist() for array in (batch.tokens, batch.targets, batch.loss_weights))


def test_a_document_becomes_text_markers_and_placeholders_and_only_text_counts(folder, tokenizer):
    words, text = MediaVocabulary(tokenizer.vocab_size, 4), tokenizer.encode
    batch = one(folder, [{"text": "a"}, {"image": "1.png"}, {"text": "b"}, {"audio": "2.wav"}], tokenizer)
    tokens, targets, weights = first_segment(batch)
    image = [words.image_begin, words.image_soft, words.image_soft, words.image_end]
    audio = [words.audio_begin, *[words.audio_soft] * 3, words.audio_end]
    ids = [tokenizer.bos_id, *text("a"), *image, *text("b"), *audio, tokenizer.eos_id]
    assert tokens == ids[:-1] and targets == ids[1:]
    # the first word after an image is predicted from the image's last token
    expected = [1] * len(text("a")) + [0] * 4 + [1] * len(text("b")) + [0] * 5 + [1]
    assert weights == expected
    slots = batch.media.image_slots[0, : len(tokens)].tolist()
    assert [slot for slot in slots if slot >= 0] == [0, 1]
    assert all((slot >= 0) == (token == words.image_soft) for slot, token in zip(slots, tokens, strict=True))
    slots = batch.media.audio_slots[0, : len(tokens)].tolist()
    assert [slot for slot in slots if slot >= 0] == [0, 1, 2]
    assert batch.media.audio.mask[0].sum(axis=-1).tolist() == [16, 8, 0]


def test_the_end_counts_as_the_last_part_does(folder, tokenizer):
    def weight_of_end(*parts, **fields):
        tokens, targets, weights = first_segment(one(folder, {"content": parts, **fields}, tokenizer))
        return weights[targets.index(tokenizer.eos_id)]

    assert weight_of_end({"text": "a"}) == 1
    assert weight_of_end({"text": "a", "loss": False}) == 0
    assert weight_of_end({"text": "a", "loss": False}, {"text": "b"}) == 1
    assert weight_of_end({"text": "a"}, {"image": "0.png"}, loss=False) == 0


def test_an_image_to_be_generated_is_its_codes_and_all_of_them_count(folder, tokenizer):
    words = MediaVocabulary(tokenizer.vocab_size, 4)
    content = [{"text": "draw", "loss": False}, {"image": "0.png", "output": True, "codes": [3, 0, 1]}]
    tokens, targets, weights = first_segment(one(folder, content, tokenizer))
    first = targets.index(words.image_begin)
    assert targets[first : first + 6] == [words.image_begin, *words.ids_of_codes([3, 0, 1]), words.image_end,
                                          tokenizer.eos_id]  # fmt: skip
    assert weights == [0] * first + [1] * 6


def test_an_encoder_of_images_gives_the_codes_that_are_not_given(folder, config, tokenizer):
    path = write_records(folder / "draw.jsonl", [[{"text": "draw"}, {"image": "1.png", "output": True}]] * 4)
    config = dataclasses.replace(config, paths=(str(path),), batch_size=1)
    corpus = open_corpus(config)
    with pytest.raises(UserError, match='draw.jsonl:.: part 2: an image with "output": true needs "codes", or a token'):
        next(iter(train_dataset(corpus, tokenizer, config)))
    seen = []

    def encode(pixels):
        seen.append(pixels.shape)
        return np.array([2, 2])

    batch = next(train_batches(corpus, tokenizer, config, encode_image=encode))
    words = MediaVocabulary(tokenizer.vocab_size, 4)
    assert seen[0] == (8, 16, 3) and (batch.tokens[0] == words.first_code + 2).sum() >= 2
    assert validation_dataset(corpus, tokenizer, config, encode_image=encode)


def test_a_video_is_its_frames_after_their_time_stamps(folder, tokenizer):
    tokens, targets, weights = first_segment(one(folder, [{"video": "video", "fps": 2}, {"text": "x"}], tokenizer))
    words = MediaVocabulary(tokenizer.vocab_size, 4)
    image = [words.image_begin, words.image_soft, words.image_end]
    frames = [[*tokenizer.encode(stamp), *image] for stamp in ("00:00", "00:00", "00:01", "00:01")]
    assert tokens == [tokenizer.bos_id, *itertools.chain(*frames), *tokenizer.encode("x")]
    assert sum(weights) == len(tokenizer.encode("x")) + 1


def test_every_placeholder_points_at_its_own_image_or_recording(folder, config, tokenizer):
    """Patches and clips are found again through the slots, for every document of every row."""
    images = {}
    for i in range(4):
        patches, centres = patches_of(read_image(folder / f"{i}.png", MEDIA), 4, 2)
        images[i + 1] = (scaled(patches), centres)
    words = MediaVocabulary(tokenizer.vocab_size, 4)
    seen, batches = 0, itertools.islice(train_dataset(open_corpus(config), tokenizer, config), 12)
    for batch, row in itertools.product(batches, range(4)):
        media = batch.media
        assert ((media.image_slots[row] >= 0) == (batch.tokens[row] == words.image_soft)).all()
        assert ((media.audio_slots[row] >= 0) == (batch.tokens[row] == words.audio_soft)).all()
        numbers = media.images.segment_ids[row]
        used = numbers[numbers > 0]
        assert (numbers[len(used) :] == 0).all() and (media.images.patches[row, len(used) :] == 0).all()
        assert set(np.diff(used).tolist()) <= {0, 1} and (not len(used) or used[0] == 1)
        # soft tokens are used once each, in order
        slots = media.image_slots[row][media.image_slots[row] >= 0]
        assert slots.tolist() == list(range(len(used) // 4))
        for number in np.unique(used):
            patches = media.images.patches[row][numbers == number]
            if len(patches) // 4 in images and (patches == images[len(patches) // 4][0]).all():
                np.testing.assert_array_equal(
                    media.images.coordinates[row][numbers == number], images[len(patches) // 4][1]
                )
                seen += 1
        # an image lies in one segment of the tokens, between its markers
        at = np.flatnonzero(media.image_slots[row] >= 0)
        for number in np.unique(used):
            places = at[numbers[4 * media.image_slots[row][at]] == number]
            assert len(set(batch.segment_ids[row][places].tolist())) == 1
            assert (np.diff(places) == 1).all() and batch.tokens[row][places[0] - 1] == words.image_begin
        real = media.audio.mask[row].reshape(3, 2, 8).any(axis=-1).reshape(-1)  # soft tokens with a real frame
        slots = media.audio_slots[row][media.audio_slots[row] >= 0]
        assert slots.tolist() == np.flatnonzero(real).tolist()
    assert seen > 50


def test_batches_have_the_promised_shapes_and_dtypes(config, tokenizer):
    batch = next(train_batches(open_corpus(config), tokenizer, config))
    promised = media_shapes(config)
    assert jax.tree.structure(promised) == jax.tree.structure(batch.media)
    for shape, array in zip(jax.tree.leaves(promised), jax.tree.leaves(batch.media), strict=True):
        assert isinstance(array, np.ndarray) and (shape.shape, shape.dtype) == (array.shape, array.dtype)
    assert abs(batch.media.images.patches).max() <= 1


@pytest.mark.parametrize("off", ["patches_per_row", "clips_per_row"])
def test_a_modality_that_the_run_does_not_take_is_none(folder, config, tokenizer, off):
    path = write_records(folder / "text.jsonl", [[{"text": f"{i} words " * 10}] for i in range(9)])
    config = dataclasses.replace(config, paths=(str(path),), media=dataclasses.replace(MEDIA, **{off: 0}))
    media = next(train_batches(open_corpus(config), tokenizer, config)).media
    assert (media.images is None) == (media.image_slots is None) == (off == "patches_per_row")
    assert (media.audio is None) == (media.audio_slots is None) == (off == "clips_per_row")
    config = dataclasses.replace(config, media=MediaConfig())
    assert next(train_batches(open_corpus(config), tokenizer, config)).media is None and media_shapes(config) is None


def assert_same(a, b):
    for x, y in zip(a, b, strict=True):
        jax.tree.map(np.testing.assert_array_equal, x, y)


def test_an_iterator_restored_from_json_continues_exactly(config, tokenizer):
    corpus = open_corpus(config)
    iterator = train_batches(corpus, tokenizer, config)
    list(itertools.islice(iterator, 5))
    state = json.loads(json.dumps(iterator.get_state()))
    expected = list(itertools.islice(iterator, 4))
    restored = train_batches(corpus, tokenizer, config)
    restored.set_state(state)
    assert_same(itertools.islice(restored, 4), expected)
    other = dataclasses.replace(config, media=dataclasses.replace(MEDIA, max_patches=8))
    with pytest.raises(UserError, match="belongs to other data or settings: changed media"):
        train_batches(corpus, tokenizer, other).set_state(state)


def test_streams_are_parts_of_the_batch_wherever_they_are_read(config, tokenizer):
    config = dataclasses.replace(config, streams=2)
    corpus = open_corpus(config)
    whole = next(train_batches(corpus, tokenizer, config))
    rows = {0: (0, 1), 1: (2, 3)}
    parts = [next(train_batches(corpus, tokenizer, config, rows, process)).batch for process in rows]
    assert_same([jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)], [whole])


def test_validation_is_the_same_each_time_and_text_has_baselines(config, tokenizer):
    corpus = open_corpus(config)
    batches = validation_dataset(corpus, tokenizer, config)
    assert_same(batches, validation_dataset(corpus, tokenizer, dataclasses.replace(config, seed=7)))
    assert batches[0].media.image_slots.shape == (4, 48)
    found = baselines(corpus, tokenizer, batches)
    assert 1 < found.unigram_nats_per_token < 7 and sum(batch_bytes(batch, tokenizer) for batch in batches) > 0


def test_image_codes_are_left_out_of_bytes_and_baselines(folder, tokenizer):
    content = [{"text": "draw"}, {"image": "0.png", "output": True, "codes": [3, 0, 1]}]
    batch = one(folder, content, tokenizer)
    words = int(batch.segment_ids[0].max())
    assert batch_bytes(batch, tokenizer) == words * len("draw")


def test_long_texts_are_cut_but_documents_with_media_are_not(folder, tokenizer):
    batch = one(folder, [{"text": "word " * 100}], tokenizer, sequence_length=16)
    assert (batch.segment_ids == 1).all()
    with pytest.raises(BadMedia, match="one.jsonl:1: a document of .* tokens, data.sequence_length is 16"):
        one(folder, [{"text": "word " * 100}, {"image": "0.png"}], tokenizer, sequence_length=16)
    with pytest.raises(BadMedia, match="one.jsonl:1: a document of 16 patches, data.media.patches_per_row is 12"):
        one(folder, [{"image": "3.png"}], tokenizer, patches_per_row=12)
    with pytest.raises(BadMedia, match="one.jsonl:1: a document of 4 clips, data.media.clips_per_row is 3"):
        one(folder, [{"audio": "3.wav"}, {"audio": "3.wav"}], tokenizer)


def test_bad_media_met_while_training_end_the_run_or_are_left_out_and_counted(folder, config, tokenizer):
    half = write_image(folder / "half.png", 64, 64)
    half.write_bytes(half.read_bytes()[:3000])
    records = [[{"text": f"good {i}"}, {"image": "0.png"}] for i in range(8)] + [[{"image": "half.png"}]] * 3
    path = write_records(folder / "some.jsonl", records)
    config = dataclasses.replace(config, paths=(str(path),), validation_fraction=0, shuffle_window_tokens=0)
    with pytest.raises(BadMedia, match=r"some.jsonl:(9|10|11): .*half.png: a damaged PNG file"):
        list(itertools.islice(train_batches(open_corpus(config), tokenizer, config), 20))
    config = dataclasses.replace(config, media=dataclasses.replace(MEDIA, bad_media="skip"))
    corpus = open_corpus(config)
    batches = list(itertools.islice(train_batches(corpus, tokenizer, config), 20))
    assert len(corpus.left_out) == 3 and all("half.png" in reason for reason in corpus.left_out.reasons.values())
    assert all((batch.media.image_slots >= 0).any() for batch in batches)


def test_a_worker_tells_of_every_record_that_it_leaves_out_once():
    left_out = LeftOut({"a.jsonl:1": "found when files were opened"})
    assemble = WithLeftOut(sum, left_out)
    assert assemble([1, 2]) == (3, [])
    left_out.add("a.jsonl:7", "half.png: damaged")
    left_out.add("a.jsonl:7", "half.png: damaged")
    assert assemble([3]) == (3, [("a.jsonl:7", "half.png: damaged")])
    assert assemble([4]) == (4, [])


@pytest.mark.slow
def test_what_worker_processes_leave_out_is_counted_by_the_process_that_trains(folder, config, tokenizer):
    half = write_image(folder / "half.png", 64, 64)
    half.write_bytes(half.read_bytes()[:3000])
    records = [[{"text": f"good {i}"}, {"image": "0.png"}] for i in range(8)] + [[{"image": "half.png"}]] * 3
    path = write_records(folder / "some.jsonl", records)
    config = dataclasses.replace(config, paths=(str(path),), validation_fraction=0, shuffle_window_tokens=0)
    config = dataclasses.replace(config, media=dataclasses.replace(MEDIA, bad_media="skip"), worker_processes=2)
    corpus = open_corpus(config)
    batches = list(itertools.islice(train_batches(corpus, tokenizer, config), 20))
    assert all(isinstance(batch, Batch) for batch in batches)
    assert len(corpus.left_out) == 3 and all("half.png" in reason for reason in corpus.left_out.reasons.values())


def test_skipping_does_not_go_on_for_ever_where_no_document_is_left(folder, config, tokenizer):
    half = write_image(folder / "half.png", 64, 64)
    half.write_bytes(half.read_bytes()[:3000])
    path = write_records(folder / "none.jsonl", [[{"image": "half.png"}]] * 3)
    media = dataclasses.replace(MEDIA, bad_media="skip")
    config = dataclasses.replace(config, paths=(str(path),), validation_fraction=0, media=media)
    with pytest.raises(UserError, match="no document is left to train on: all have media that cannot be used; .*half"):
        next(train_batches(open_corpus(config), tokenizer, config))


def test_plain_texts_may_lie_beside_documents_with_media(tmp_path, config, tokenizer):
    write_image(tmp_path / "0.png", 8, 8)
    write_records(tmp_path / "a.jsonl", [[{"text": "seen"}, {"image": "0.png"}]] * 4)
    (tmp_path / "b.txt").write_text("only words " * 30)
    config = dataclasses.replace(config, paths=(str(tmp_path),), validation_fraction=0)
    batches = list(itertools.islice(train_batches(open_corpus(config), tokenizer, config), 16))
    words = tokenizer.encode("only words")[-1]
    assert any((batch.tokens == words).any() for batch in batches)
    assert any((batch.media.image_slots >= 0).any() for batch in batches)


@pytest.mark.slow
def test_worker_processes_give_media_and_resume_exactly(config, tokenizer):
    config = dataclasses.replace(config, worker_processes=2)
    corpus = open_corpus(config)
    iterator = train_batches(corpus, tokenizer, config)
    list(itertools.islice(iterator, 5))
    state = json.loads(json.dumps(iterator.get_state()))
    expected = list(itertools.islice(iterator, 4))
    restored = train_batches(corpus, tokenizer, config)
    restored.set_state(state)
    assert_same(itertools.islice(restored, 4), expected)


def test_a_prompt_has_just_the_media_that_it_needs_and_no_end(folder, tokenizer):
    parts = [{"text": "a"}, {"image": "2.png"}, {"audio": "1.wav"}, {"image": "0.png"}, {"text": "b"}]
    tokens, media = load_media_prompt(parts, tokenizer, MEDIA, folder)
    assert tokens.shape[0] == 1 and tokens[0, 0] == tokenizer.bos_id and tokens[0, -1] == tokenizer.encode("b")[-1]
    assert media.images.patches.shape == (1, 16, 48) and media.images.segment_ids[0].tolist() == [1] * 12 + [2] * 4
    assert media.image_slots[media.image_slots >= 0].tolist() == [0, 1, 2, 3]
    assert media.audio.mel.shape == (1, 1, 16, 8) and media.audio_slots[media.audio_slots >= 0].tolist() == [0, 1]
    tokens, media = load_media_prompt([{"text": "a"}], tokenizer, MEDIA)
    assert media is None and tokens.tolist() == [[tokenizer.bos_id, *tokenizer.encode("a")]]
    with pytest.raises(UserError, match="prompt: part 1: .*gone.png: no such file"):
        load_media_prompt([{"image": "gone.png"}], tokenizer, MEDIA, folder)
