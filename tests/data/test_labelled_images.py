"""Images with classes: what is read, how training changes them, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests.data.media_files import write_image
from zoo.data import DataConfig, LabelledImagesConfig, NoText, media_shapes, open_corpus, train_batches
from zoo.data import validation_dataset as held_out_batches
from zoo.data.labelled_images import model_pixels
from zoo.errors import UserError

IMAGES = LabelledImagesConfig(
    classes=("cat", "dog"), side=8, mean=(0, 0, 0), std=(1, 1, 1), crop=1, elongation=1, mirror=False
)
LINE = {"image": "0.png", "label": "dog"}


def config_of(path, images=IMAGES, **fields):
    return DataConfig(paths=(str(path),), format="labelled_images", packing="single", sequence_length=1, batch_size=4,
                      images=images, **fields)  # fmt: skip


def write(folder, lines):
    path = folder / "images.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


@pytest.fixture
def twenty(tmp_path):
    """Images of one grey level each, 10 times their number, with the classes in turn."""
    for number in range(20):
        Image.fromarray(np.full((12, 10, 3), 10 * number, np.uint8)).save(tmp_path / f"{number}.png")
    return write(tmp_path, [{"image": f"{n}.png", "label": ("cat", "dog")[n % 2]} for n in range(20)])


def numbers_of(batch):
    return np.round(np.asarray(batch.media.pixel_values).mean((1, 2, 3)) * 25.5).astype(int)


def test_a_row_is_an_image_and_its_class_and_every_image_comes_once_an_epoch(twenty):
    config = config_of(twenty, validation_fraction=0)
    corpus = open_corpus(config)
    assert "20 documents (20 for training" in corpus.description
    batches = train_batches(corpus, NoText(), config)
    epochs = [[next(batches) for _ in range(5)] for _ in range(2)]
    batches.close()
    for epoch in epochs:
        numbers = np.concatenate([numbers_of(batch) for batch in epoch])
        assert sorted(numbers) == list(range(20))
        assert [int(t) for batch in epoch for t in batch.targets[:, 0]] == [n % 2 for n in numbers]
    assert [list(numbers_of(b)) for b in epochs[0]] != [list(numbers_of(b)) for b in epochs[1]]
    batch = epochs[0][0]
    assert batch.tokens.shape == (4, 1) and (batch.segment_ids == 1).all() and (batch.loss_weights == 1).all()
    wanted = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), media_shapes(config))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), batch.media) == wanted


def test_training_images_are_changed_anew_in_each_epoch_and_the_same_after_a_restart(tmp_path):
    for number in range(8):
        write_image(tmp_path / f"{number}.png", 16, 16, seed=number)
    path = write(tmp_path, [{"image": f"{n}.png", "label": "cat"} for n in range(8)])
    images = dataclasses.replace(IMAGES, crop=0.3, mirror=True, contrast=0.2, brightness=0.2)
    config = config_of(path, images, validation_fraction=0)
    corpus = open_corpus(config)
    batches = train_batches(corpus, NoText(), config)
    seen = []
    for step in range(6):
        if step == 3:
            position = json.loads(json.dumps(batches.get_state()))
        seen.append(next(batches).media.pixel_values)
    batches.close()
    again = train_batches(corpus, NoText(), config)
    again.set_state(position)
    for batch in seen[3:]:
        np.testing.assert_array_equal(next(again).media.pixel_values, batch)
    again.close()
    flat = np.concatenate(seen).reshape(24, -1)
    assert len(np.unique(flat, axis=0)) == 24  # three epochs, no image twice the same
    changed = config_of(path, dataclasses.replace(images, contrast=0.3), validation_fraction=0)
    other = train_batches(corpus, NoText(), changed)
    with pytest.raises(UserError, match="the saved data position belongs to other data or settings: changed images"):
        other.set_state(position)
    other.close()


def test_held_out_images_are_the_squares_in_their_middles_and_padding_weighs_nothing(twenty):
    config = config_of(twenty, dataclasses.replace(IMAGES, brightness=0.5), validation_fraction=0.3)
    batches = held_out_batches(open_corpus(config), NoText(), config)
    count = sum(int(batch.loss_weights.sum()) for batch in batches)
    assert count % 4 and count == int(sum((batch.segment_ids > 0).sum() for batch in batches))
    for batch in batches:
        real = batch.loss_weights[:, 0] > 0
        assert (batch.targets[real, 0] == numbers_of(batch)[real] % 2).all()
        assert not np.asarray(batch.media.pixel_values)[~real].any()


def test_the_pixels_of_a_model_are_scaled_by_channel_cut_mirrored_and_grey():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
    config = dataclasses.replace(IMAGES, side=20, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    middle = pixels[:, 5:25].transpose(2, 0, 1) / 255
    expected = (middle - np.array([0.1, 0.2, 0.3])[:, None, None]) / np.array([0.5, 1.0, 2.0])[:, None, None]
    np.testing.assert_allclose(model_pixels(pixels, config), expected, atol=1e-6)
    grey = dataclasses.replace(IMAGES, side=20, channels=1, mean=(0.0,), std=(1.0,))
    np.testing.assert_allclose(model_pixels(pixels, grey)[0], np.tensordot([0.299, 0.587, 0.114], middle, 1), atol=1e-6)

    # All of a square image, mirrored or not.
    square = pixels[:, :20]
    mirrored = dataclasses.replace(IMAGES, side=20, mirror=True)
    found = [model_pixels(square, mirrored, np.random.default_rng(seed)) for seed in range(8)]
    as_it_is = model_pixels(square, mirrored)
    same = [np.allclose(one, as_it_is, atol=1e-6) for one in found]
    assert all(s or np.allclose(one, as_it_is[..., ::-1], atol=1e-6) for s, one in zip(same, found))
    assert 0 < sum(same) < 8


def test_what_is_cut_out_has_the_area_and_the_sides_that_the_config_says():
    # Red rises from left to right and green from top to bottom: edges tell what was cut out.
    ramp = np.linspace(0, 255, 128).round().astype(np.uint8)
    pixels = np.zeros((128, 128, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[None], ramp[:, None]
    config = dataclasses.replace(IMAGES, side=64, crop=0.25, elongation=2.0)
    areas, ratios = [], []
    for seed in range(300):
        red, green, _ = model_pixels(pixels, config, np.random.default_rng(seed))
        wide, high = np.ptp(red.mean(0)) * 64 / 63, np.ptp(green.mean(1)) * 64 / 63
        areas.append(wide * high)
        ratios.append(wide / high)
    assert 0.22 < min(areas) < 0.35 and 0.9 < max(areas) < 1.02
    assert 0.45 < min(ratios) < 0.65 and 1.5 < max(ratios) < 2.2


def test_contrast_keeps_the_mean_and_brightness_moves_it():
    pixels = np.random.default_rng(0).integers(60, 200, (16, 16, 3), np.uint8)
    plain = model_pixels(pixels, IMAGES)
    contrast = dataclasses.replace(IMAGES, contrast=0.5)
    brightness = dataclasses.replace(IMAGES, brightness=0.3)
    factors, shifts = [], []
    for seed in range(50):
        changed = model_pixels(pixels, contrast, np.random.default_rng(seed))
        assert changed.mean() == pytest.approx(plain.mean(), abs=1e-5)
        factors.append(changed.std() / plain.std())
        moved = model_pixels(pixels, brightness, np.random.default_rng(seed)) - plain
        assert moved.std() < 1e-5
        shifts.append(moved.mean())
    assert 0.5 <= min(factors) < 0.7 and 1.3 < max(factors) <= 1.5
    assert -0.3 <= min(shifts) < -0.2 and 0.2 < max(shifts) <= 0.3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"label": "cat"}, "images.jsonl:1: no field 'image'"),
        ({"image": "0.png"}, "images.jsonl:1: no field 'label'"),
        (LINE | {"label": 1}, "images.jsonl:1: 'label' must be a string, not 1"),
        (LINE | {"label": "dgo"}, "images.jsonl:1: label 'dgo'; .*dog"),
        (LINE | {"image": "missing.png"}, "images.jsonl:1: .*missing.png: no such file"),
        (LINE | {"image": "images.jsonl"}, "images.jsonl:1: .*unknown extension for image"),
        ([LINE], "images.jsonl:1: expected a JSON object"),
    ],
)
def test_wrong_lines_are_refused_by_file_and_line(tmp_path, line, problem):
    write_image(tmp_path / "0.png")
    with pytest.raises(UserError, match=problem):
        open_corpus(config_of(write(tmp_path, [line])))


def test_damaged_images_end_the_run_or_are_left_out_and_counted(tmp_path):
    for number in range(8):
        write_image(tmp_path / f"{number}.png", seed=number)
    damaged = tmp_path / "3.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    path = write(tmp_path, [{"image": f"{n}.png", "label": "cat"} for n in range(8)])
    stop = config_of(path, validation_fraction=0)
    batches = train_batches(open_corpus(stop), NoText(), stop)
    with pytest.raises(UserError, match="images.jsonl:4: .*3.png: a damaged PNG file"):
        for _ in range(4):
            next(batches)
    batches.close()
    skip = dataclasses.replace(stop, media=dataclasses.replace(stop.media, bad_media="skip"))
    corpus = open_corpus(skip)
    batches = train_batches(corpus, NoText(), skip)
    for _ in range(4):
        assert (next(batches).loss_weights == 1).all()
    batches.close()
    assert list(corpus.left_out.reasons) == [f"{path}:4"]
    first = dataclasses.replace(stop, media=dataclasses.replace(stop.media, check="contents"))
    with pytest.raises(UserError, match="3.png: a damaged PNG file"):
        open_corpus(first)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"classes": ("a", "b", "a")}, "images.classes names 'a' more than once"),
        ({"classes": ("a",)}, "needs images.classes: the names of two or more"),
        ({"channels": 2}, "images.channels=2 1 or 3"),
        ({"channels": 1}, "images.mean has 3 numbers, one for each of 1 channels"),
        ({"std": (1, 0, 1)}, "images.std=.* must be above 0"),
        ({"crop": 0.0}, "images.crop=0.0"),
        ({"elongation": 0.5}, "images.elongation=0.5"),
        ({"contrast": 1.0}, "images.contrast=1.0"),
    ],
)
def test_wrong_settings_are_refused(fields, problem):
    with pytest.raises(UserError, match=problem):
        config_of("x", dataclasses.replace(IMAGES, **fields))


def test_rows_of_one_image_need_a_length_of_one_and_no_packing():
    with pytest.raises(UserError, match="sequence_length is 256, not 1"):
        DataConfig(format="labelled_images", packing="single", images=IMAGES)
    with pytest.raises(UserError, match="format 'labelled_images' needs packing 'single', not 'concat'"):
        DataConfig(format="labelled_images", sequence_length=1, images=IMAGES)
    with pytest.raises(UserError, match="needs paths of .jsonl images with classes"):
        open_corpus(dataclasses.replace(config_of("x"), paths=()))
