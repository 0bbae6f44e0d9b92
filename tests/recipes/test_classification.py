"""Runs that train a classifier of images: resumed bit for bit, told in a table, loaded, exported, or refused."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import zoo
import zoo.plan
import zoo.train
from experiments.twin_augmentation.image_files import write_files
from tests.tiny_run import assert_same_run, losses, saved_params
from zoo.errors import UserError
from zoo.interop import save_huggingface
from zoo.models import preset
from zoo.parallel import MeshConfig, make_mesh
from zoo.recipes import recipe
from zoo.recipes.checks import check_recipe
from zoo.recipes.classification import Held, comparison, entropy
from zoo.recipes.losses import is_stochastic
from zoo.recipes.teacher import flops_per_token
from zoo.training.pictures import confusion_picture

CLASSES = ("No finding", "Pneumonia")
SIZES = {
    "model.depths": "1 1",
    "model.widths": "8 12",
    "model.stem-width": "8",
    "data.images.side": 16,
    "data.batch-size": 16,
    "data.validation-fraction": 0.2,
    "data.validation-batches": 8,
    "optimizer.learning-rate": 0.01,
    "optimizer.warmup-steps": 2,
    "steps": 12,
    "log-every": 4,
    "evaluate-every": 6,
    "checkpoint-every": 6,
}


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(), jax.devices()[:2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "made-up"
    write_files(folder, "made-up")
    return folder


@pytest.fixture(scope="module")
def whole(folder, mesh, tmp_path_factory):
    """An uninterrupted run of 12 steps on images that are easy to tell apart, and what it said."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        patch.setattr("zoo.train.make_mesh", lambda _: mesh)
        zoo.train.main(command(folder, run))
    return run, "\n".join(lines)


def command(folder, run, **options):
    sizes = [word for name, value in (SIZES | options).items() for word in (f"--{name}", *str(value).split())]
    return ["image-classes", "--data", str(folder / "train.jsonl"), "--run-dir", str(run), "--no-tensorboard", *sizes]


def test_a_run_learns_and_ends_with_a_table_by_class(whole):
    run, said = whole
    assert "images     16 x 16 x 1, 2 classes" in said and "12 steps of 16 images" in said
    found = losses(run)
    assert found[-1][5] < 0.5 < found[0][1]  # the validation at the end, the loss at the beginning
    table = said[said.index("held-out images") :]
    for line in ("this model", "class frequencies", "balanced", "No finding", "Pneumonia", "zoo.augment"):
        assert line in table
    assert "bits per byte" not in said and "zoo.generate" not in said
    for name in ("loss.png", "confusion.png"):
        with Image.open(run / name) as image:
            assert min(image.size) > 400
    assert not (run / "tokenizer").exists()


def test_a_run_that_was_killed_continues_bit_for_bit(whole, folder, tmp_path, mesh, monkeypatch, capsys):
    monkeypatch.setattr("zoo.train.make_mesh", lambda _: mesh)
    monkeypatch.setattr("zoo.recipes.report.goodput_picture", lambda *_, **__: None)
    monkeypatch.setattr("zoo.recipes.classification.loss_curve", lambda *_, **__: None)
    monkeypatch.setattr("zoo.recipes.classification.confusion_picture", lambda *_, **__: None)
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "12")
    zoo.train.main(command(folder, tmp_path / "run"))
    assert "resuming after step 6" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", whole[0])
    statistics = {name: value for name, value in saved_params(whole[0]).items() if "variance" in name}
    assert statistics and all(not np.allclose(value, 1) for value in statistics.values())


def test_the_network_of_a_run_classifies_exports_and_takes_a_twin_head(whole, folder, tmp_path):
    lines = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    labels = np.array([CLASSES.index(line["label"]) for line in lines])
    pixels = np.stack([np.asarray(Image.open(folder / line["image"]).resize((16, 16))) for line in lines])
    pixels = ((pixels / 255 - 0.5) / 0.25).astype(np.float32)[:, None]
    loaded = zoo.load(whole[0])
    logits = np.asarray(loaded.model(pixels))
    assert (logits.argmax(1) == labels).mean() > 0.9
    with pytest.raises(UserError, match="holds a Resnet, which is no language model"):
        _ = loaded.decoder
    save_huggingface(loaded.model, tmp_path / "exported")
    np.testing.assert_allclose(zoo.load(tmp_path / "exported").model(pixels), logits, atol=1e-5)
    twin = zoo.augment(loaded.model, pixels[:60], labels[:60], pixels[60:90], labels[60:90])
    assert (twin.predictions(pixels[90:]) == labels[90:]).mean() > 0.9


def test_a_run_begins_with_the_weights_of_another(whole, folder, tmp_path, mesh, monkeypatch, capsys):
    monkeypatch.setattr("zoo.train.make_mesh", lambda _: mesh)
    options = {"init-from": whole[0], "steps": 1, "classification.class-weights": "1 4", "freeze": "stem"}
    zoo.train.main(command(folder, tmp_path / "run", **options))
    assert losses(tmp_path / "run")[-1][5] < 0.6
    before, after = saved_params(whole[0]), saved_params(tmp_path / "run")
    same = {name for name in before if np.array_equal(before[name], after[name])}
    assert same == {name for name in before if "stem" in name}


@pytest.mark.parametrize(
    ("name", "part", "fields", "problem"),
    [
        (
            "image-classes",
            "data",
            {"format": "text", "sequence_length": 2},
            "data.format='text' of image-classes must be 'labelled_images'",
        ),
        ("image-classes", "model", {"num_classes": 3}, "model.num_classes=3 must be the 2 of data.images.classes"),
        ("image-classes", "model", {"num_channels": 3}, "model.num_channels=3 must be data.images.channels=1"),
        ("image-classes", "classification", {"class_weights": (1, 2, 3)}, "class_weights has 3 numbers for 2 classes"),
        ("image-classes", "peft", {"method": "lora"}, "peft.method is not for classifiers of images"),
        ("image-classes", "distillation", {"teacher": "x"}, "--teacher x: image-classes trains a classifier of images"),
        ("gemma2-nano", "classification", {"focal_gamma": 2.0}, "classification.* is for classifiers of images"),
        ("bert-tiny-mlm", "data", "labelled", "data.format='labelled_images' of bert-tiny-mlm must be another"),
        ("image-vq", "data", "labelled", "data.format='labelled_images' of image-vq must be another"),
    ],
)
def test_a_model_and_data_that_do_not_belong_together_are_refused(mesh, name, part, fields, problem):
    found = dataclasses.replace(recipe(name), needs_data=False)
    if fields == "labelled":
        changed = dataclasses.replace(found, data=recipe("image-classes").data)
    else:
        changed = dataclasses.replace(found, **{part: dataclasses.replace(getattr(found, part), **fields)})
    with pytest.raises(UserError, match=problem):
        check_recipe(changed, mesh)


def test_images_that_are_too_small_for_the_network_and_too_many_are_refused(mesh):
    found = dataclasses.replace(recipe("image-classes"), needs_data=False)
    check_recipe(found, mesh)
    assert is_stochastic(found) and found.classifies and not found.reads_text
    images = dataclasses.replace(found.data.images, side=8)
    dense = dataclasses.replace(preset("densenet-tiny"), num_classes=2)
    small = dataclasses.replace(found, model=dense, data=dataclasses.replace(found.data, images=images))
    with pytest.raises(UserError, match="data.images.side=8 must be at least 13 for this model"):
        check_recipe(small, mesh)
    images = dataclasses.replace(found.data.images, side=100_000)
    large = dataclasses.replace(found, data=dataclasses.replace(found.data, images=images, batch_size=2**14))
    with pytest.raises(UserError, match=r"training model.depths=1 1 1 .* with data.batch_size=16384 needs at least"):
        check_recipe(large, mesh)


def test_a_plan_is_refused_by_name():
    with pytest.raises(UserError, match="image-classes trains a classifier of images"):
        zoo.plan.main(["image-classes", "--topology", "v5e:2x2"])


@pytest.mark.parametrize(
    ("name", "published"), [("resnet-18", 1.814e9), ("resnet-50", 4.089e9), ("densenet-121", 2.834e9)]
)
def test_operations_are_the_published_multiplications_and_additions(name, published):
    # torchvision's model pages give multiplications with additions as one, for 224 x 224.
    assert preset(name).flops_per_image(224) == pytest.approx(2 * published, rel=0.03)
    found = dataclasses.replace(recipe("image-classes"))
    assert flops_per_token(found) == found.model.flops_per_image(64)


def test_the_table_counts_what_is_recognised_of_each_class():
    labels = np.array([0, 0, 0, 1, 1, 2])
    right = np.array([0, 0, 1, 1, 0, 2])
    log_p = np.log(np.where(np.eye(4)[right] > 0, 0.7, 0.1)).astype(np.float32)
    found = Held(labels, log_p)
    assert found.confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert entropy(labels, 4) == pytest.approx(-sum(p * math.log(p) for p in (1 / 2, 1 / 3, 1 / 6)))
    lines = [line.split() for line in comparison(found, ("a", "b", "c", "d")).splitlines()]
    nats = -(4 * math.log(0.7) + 2 * math.log(0.1)) / 6
    assert lines[1][2:] == [f"{nats:.4f}", "66.67%", f"{(2 / 3 + 1 / 2 + 1) / 3:.2%}"]
    assert lines[2][2:] == [f"{entropy(labels, 4):.4f}", "50.00%", "33.33%"]
    assert lines[5:] == [["a", "3", "66.67%", "66.67%"], ["b", "2", "50.00%", "50.00%"],
                         ["c", "1", "100.00%", "100.00%"], ["d", "0", "-", "-"]]  # fmt: skip


def test_a_confusion_of_many_classes_can_be_drawn(tmp_path):
    counts = np.random.default_rng(0).integers(0, 50, (60, 60))
    confusion_picture(counts, [f"class {n}" for n in range(60)], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as image:
        assert min(image.size) > 1000
