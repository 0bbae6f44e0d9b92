"""Runs that train a tokenizer of images, and runs that use one."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

import zoo.export
import zoo.train
from tests.data.media_files import write_image
from tests.tiny_run import arguments
from zoo.data import (
    DataConfig,
    MediaConfig,
    MediaVocabulary,
    NoText,
    open_corpus,
    train_batches,
    train_dataset,
    validation_dataset,
)
from zoo.data.images import read_image, scaled, square
from zoo.errors import UserError
from zoo.inference.image_tokens import image_to_codes, load_image_tokenizer
from zoo.interop import save_run
from zoo.models import VqImageConfig, build, preset
from zoo.parallel import MeshConfig, make_mesh
from zoo.recipes import recipe
from zoo.recipes.checks import check_recipe
from zoo.recipes.image_tokens import image_encoder

TINY = VqImageConfig(
    image_size=8, patch_size=4, num_codes=11, code_dim=3, embed_dim=16, num_layers=1, num_heads=2, hidden_dim=24
)
IMAGES = MediaConfig(patch_size=4, merge=1, max_patches=4, patches_per_row=16, image_side=8)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A JSONL file of twelve documents with one image each, some of them to be generated, and one of text."""
    folder = tmp_path_factory.mktemp("documents")
    records = [{"text": "no image here"}]
    for number in range(12):
        write_image(folder / f"{number}.png", height=8 + number, width=12, seed=number)
        image = {"image": f"{number}.png", "output": True} if number % 2 else {"image": f"{number}.png"}
        records.append({"content": [{"text": "Look: "}, image, {"audio": "nowhere.wav"}]})
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory):
    """An export of an untrained tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    graphdef, state = jax.jit(lambda: nnx.split(build(TINY, rngs=nnx.Rngs(0))))()
    save_run(nnx.merge(graphdef, state), folder)
    return folder


def image_run(**media):
    """The recipe with its model and data small, and fields of its media changed."""
    data = DataConfig(
        paths=("x.jsonl",), format="interleaved", packing="first_fit", sequence_length=40, batch_size=2,
        media=dataclasses.replace(IMAGES, **media), validation_fraction=0.3, validation_batches=2,
    )  # fmt: skip
    return dataclasses.replace(recipe("image-vq"), model=TINY, data=data)


def test_a_run_that_fits_its_tokenizer_passes_the_checks(mesh):
    check_recipe(image_run(), mesh)


@pytest.mark.parametrize(
    ("media", "problem"),
    [
        ({"image_side": 12}, "data.media.image_side=12 must be model.image_size=8"),
        ({"patch_size": 2}, "data.media.patch_size=2 must be model.patch_size=4"),
        ({"merge": 2}, "data.media.merge=2 must be 1, one code for each patch"),
        ({"patches_per_row": 18}, "patches_per_row=18 must be a multiple of an image's 4 patches; 16 would be"),
        ({"patches_per_row": 0}, "patches_per_row=0 must be a multiple of an image's 4 patches; 4 would be"),
        ({"clips_per_row": 1}, "clips_per_row=1: a tokenizer of images reads images only"),
    ],
)
def test_images_that_do_not_come_as_the_tokenizer_takes_them_are_refused(mesh, media, problem):
    with pytest.raises(UserError, match=problem):
        check_recipe(image_run(**media), mesh)


def test_what_has_no_meaning_for_a_tokenizer_of_images_is_refused(mesh):
    with pytest.raises(UserError, match="is trained on format 'interleaved'"):
        check_recipe(dataclasses.replace(image_run(), data=DataConfig(paths=("x",))), mesh)
    with pytest.raises(UserError, match="z_loss=0.1 must be 0"):
        check_recipe(dataclasses.replace(image_run(), z_loss=0.1), mesh)
    with pytest.raises(UserError, match="image_side=8 is for training a tokenizer of images"):
        check_recipe(dataclasses.replace(recipe("gemini-tiny-pro"), data=image_run().data), mesh)


def test_rows_hold_whole_square_images_and_nothing_else_of_the_documents(documents):
    config = dataclasses.replace(image_run().data, paths=(str(documents),), validation_fraction=0.0)
    corpus = open_corpus(config)
    assert corpus.num_train_documents == 12
    batches = train_batches(corpus, NoText(), config)
    packed = next(batches).media.images
    batches.close()
    wanted = [square(read_image(documents.with_name(f"{i}.png"), IMAGES), 8) for i in range(12)]
    wanted = {scaled(image).reshape(2, 4, 2, 4, 3).swapaxes(1, 2).tobytes() for image in wanted}
    images, numbers = packed.patches.reshape(-1, 4, 48), packed.segment_ids.reshape(-1, 4)
    assert np.all(numbers == numbers[:, :1])
    assert len(images) == 8 and np.any(numbers)
    assert {image.tobytes() for image in images[numbers[:, 0] > 0]} <= wanted


def with_tokenizer(path, **changes):
    """A Gemini whose documents are to be encoded with the tokenizer at `path`."""
    media = MediaConfig(image_codes=11, patches_per_row=64, patch_size=8, image_tokenizer=str(path))
    fields = {"format": "interleaved", "packing": "first_fit", "sequence_length": 64, "batch_size": 1} | changes
    codes = fields.pop("image_codes", 11)
    data = DataConfig(paths=("x.jsonl",), media=dataclasses.replace(media, image_codes=codes), **fields)
    return dataclasses.replace(recipe("gemini-tiny-pro"), data=data)


def test_images_to_be_generated_get_the_codes_of_the_named_tokenizer_computed_once(
    tokenizer_run, documents, tmp_path, monkeypatch
):
    records = [{"content": [{"image": str(documents.with_name("3.png")), "output": True}]}] * 3
    path = tmp_path / "draw.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    config = dataclasses.replace(with_tokenizer(tokenizer_run).data, paths=(str(path),), validation_fraction=0.99)
    encode = image_encoder(with_tokenizer(tokenizer_run))
    counted = []
    monkeypatch.setattr(
        "zoo.recipes.image_tokens.image_to_codes", lambda *given: counted.append(1) or image_to_codes(*given)
    )
    [batch] = validation_dataset(open_corpus(config), NoText(), config, encode_image=encode)
    pixels = read_image(documents.with_name("3.png"), MediaConfig())
    expected = MediaVocabulary(3, 11).ids_of_codes(image_to_codes(load_image_tokenizer(tokenizer_run), pixels))
    assert np.count_nonzero(batch.segment_ids[0]) and len(counted) == 1
    np.testing.assert_array_equal(batch.tokens[0, 2:6], expected)
    position = iter(train_dataset(open_corpus(config), NoText(), config, encode_image=encode)).get_state()
    encode.fingerprint = "another"
    later = iter(train_dataset(open_corpus(config), NoText(), config, encode_image=encode))
    with pytest.raises(UserError, match=r"changed image tokenizer \([0-9a-f]{16} -> another\)"):
        later.set_state(position)


def test_a_tokenizer_that_does_not_fit_the_run_is_refused(tokenizer_run, tmp_path, mesh):
    for changes, problem in (
        ({"image_codes": 12}, "data.media.image_codes=12 must be the 11 codes of"),
        ({"worker_processes": 1}, "data.worker_processes=1 must be 0 with data.media.image_tokenizer"),
    ):
        with pytest.raises(UserError, match=problem):
            check_recipe(with_image_encoder(with_tokenizer(tokenizer_run, **changes)), mesh)
    run = tmp_path / "run"
    shutil.copytree(tokenizer_run, run)
    described = json.loads((run / "run.json").read_text())
    described["model"] = {"architecture": "siglip"} | dataclasses.asdict(TINY.encoder)
    (run / "run.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="holds a Siglip, no tokenizer of images"):
        check_recipe(with_image_encoder(with_tokenizer(run)), mesh)


def with_image_encoder(found):
    """The recipe with a model that reads the images of its rows."""
    vision = dataclasses.replace(TINY.encoder, patch_size=8)
    return dataclasses.replace(found, model=dataclasses.replace(found.model, vision=vision))


@pytest.mark.slow
def test_a_run_ends_with_pictures_and_a_table_and_its_codes_are_what_another_run_writes(documents, tmp_path, capsys):
    run = tmp_path / "run"
    command = ["image-vq", "--data", str(documents), "--run-dir", str(run), "--steps", "4", "--no-tensorboard"]
    command += ["--data.media.patch-size", "4", "--data.media.patches-per-row", "16", "--data.media.image-side", "8"]
    command += ["--data.sequence-length", "40", "--data.batch-size", "8", "--data.validation-fraction", "0.3"]
    for name, value in dataclasses.asdict(TINY).items():
        command += [f"--model.{name.replace('_', '-')}", str(value)]
    zoo.train.main([*command, "--stop-at-step", "2"])
    assert "same command resumes" in capsys.readouterr().out
    zoo.train.main(command)
    said = capsys.readouterr().out
    assert "resuming after step 2" in said and "8 x 8 pixels, 4 codes of 11" in said
    assert "held-out images" in said and "mean colour of each image" in said and "PSNR (dB)" in said
    assert "bits per byte" not in said and "zoo.generate" not in said and "a sample" not in said
    assert (run / "reconstructions.png").stat().st_size and (run / "loss.png").stat().st_size
    assert not (run / "tokenizer").exists()

    model = load_image_tokenizer(run)
    codes = image_to_codes(model, read_image(documents.with_name("0.png"), MediaConfig()))
    zoo.export.main([str(run), str(tmp_path / "copy"), "--format", "orbax"])
    copy = load_image_tokenizer(tmp_path / "copy")
    np.testing.assert_array_equal(image_to_codes(copy, read_image(documents.with_name("0.png"), MediaConfig())), codes)
    for kind in ("huggingface", "deepmind", "quantised", "gguf"):
        with pytest.raises(UserError):
            zoo.export.main([str(run), str(tmp_path / kind), "--format", kind])

    text = "a cat and a dog sat on the mat and saw the sun set"
    records = [
        {
            "content": [
                {"text": text[i % 9 :]},
                {"image": str(documents.with_name(f"{i % 12}.png")), "output": True},
            ]
        }
        for i in range(60)
    ]
    path = tmp_path / "draw.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    command = arguments(
        path, tmp_path / "drawing", model__vocab_size=340, data__vocab_size=280, steps=2, data__sequence_length=64
    )
    zoo.train.main(
        ["gemini-tiny-pro", *command, "--data.format", "interleaved", "--data.packing", "first_fit",
         "--data.media.image-codes", "11", "--data.media.image-tokenizer", str(run)]
    )  # fmt: skip
    assert "bits per byte" in capsys.readouterr().out


def test_the_recipes_preset_is_small_and_its_data_fit_it(mesh):
    found = recipe("image-vq")
    assert found.model == preset("vq-tiny") and found.model.num_parameters() < 2_000_000
    check_recipe(dataclasses.replace(found, needs_data=False), mesh)
