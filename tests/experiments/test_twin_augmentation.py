"""Twin augmentation: patients stay on one side, metrics are their definitions, bad images are refused by name."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.twin_augmentation.controls import (
    best_threshold,
    class_weights,
    focal_loss,
    prior_corrected,
    weighted_cross_entropy,
)
from experiments.twin_augmentation.imbalance import RATIOS, imbalanced
from experiments.twin_augmentation.logistic import balanced_weights, fit_logistic
from experiments.twin_augmentation.metrics import (
    balanced_accuracy,
    expected_calibration_error,
    pr_auc,
    roc_auc,
    sensitivity_at_specificity,
)
from experiments.twin_augmentation.reader import (
    NIH_HANNOVER,
    Rays,
    read_folder,
    read_hannover,
    read_nih_hannover,
    read_pneumonia,
    read_ray,
    split_by_patient,
)
from experiments.twin_augmentation.source_leak import border, brightness, leaks, measured, middle, table
from zoo.errors import UserError

SIDE = 32


def gradient_image(height=48, width=40) -> np.ndarray:
    """Grey from 0 to 255, left to right and top to bottom."""
    down, across = np.meshgrid(np.linspace(0, 127, height), np.linspace(0, 128, width), indexing="ij")
    return (down + across).astype(np.uint8)


def patients_of(count, seed):
    """Up to six images each, some with both labels."""
    rng = np.random.default_rng(seed)
    patients = np.array([f"p{i}" for i in rng.integers(0, max(1, count // 3), count)])
    often = {name: rng.choice([0.0, 0.5, 1.0]) for name in np.unique(patients)}
    return patients, np.array([rng.random() < often[name] for name in patients])


def save(array, path, **options):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow (extra media)")
    image.fromarray(array).save(path, **options)


# Reading


@pytest.mark.parametrize("name", ["grey.png", "grey.jpg", "grey.bmp", "grey.tif"])
def test_an_image_becomes_its_middle_square_in_grey(tmp_path, name):
    grey = gradient_image()
    save(grey, tmp_path / name)
    found = read_ray(tmp_path / name, SIDE)
    assert found.shape == (SIDE, SIDE) and found.dtype == np.uint8
    wanted = grey[4:44].astype(float).reshape(40, 40)
    assert abs(found.mean() - wanted.mean()) < 1.5 and abs(int(found[0, 0]) - wanted[0, 0]) < 8


def test_16_bits_colour_and_transparency_give_the_same_grey(tmp_path):
    grey = gradient_image(SIDE, SIDE)
    save(grey.astype(np.uint16) * 257, tmp_path / "16.png")
    save(np.repeat(grey[..., None], 3, -1), tmp_path / "rgb.png")
    save(np.dstack([grey, grey, grey, np.full_like(grey, 255)]), tmp_path / "rgba.png")
    for name in ("16.png", "rgb.png", "rgba.png"):
        np.testing.assert_array_equal(read_ray(tmp_path / name, SIDE), grey, err_msg=name)
    save(np.dstack([grey, grey, grey, np.where(grey > 100, 255, 0).astype(np.uint8)]), tmp_path / "clear.png")
    np.testing.assert_array_equal(read_ray(tmp_path / "clear.png", SIDE), np.where(grey > 100, grey, 255))


def bad_files(folder):
    """File name -> what must be said of it."""
    grey = gradient_image()
    save(grey[:20], folder / "small.png")
    save(gradient_image(200, 40), folder / "long.png")
    save(np.full((64, 64), 90, np.uint8), folder / "blank.png")
    save(grey.astype(np.uint16) * 16, folder / "12.png")
    save(grey.astype(np.float32), folder / "float.tif")
    data = io.BytesIO()
    save(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), data, format="PNG")
    (folder / "cut.png").write_bytes(data.getvalue()[:1500])
    (folder / "text.png").write_text("no image")
    (folder / "scan.dcm").write_bytes(b"DICM")
    return {
        "small.png": "fewer than",
        "long.png": "at most 2 times",
        "blank.png": "1 grey levels",
        "12.png": "12-bit values",
        "float.tif": "floating-point",
        "cut.png": "damaged",
        "text.png": "not a PNG",
        "scan.dcm": "files are read",
        "none.png": "no such file",
    }


def test_bad_images_are_refused_in_one_line_with_their_name(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(UserError) as refused:
            read_ray(tmp_path / name, SIDE)
        said = str(refused.value)
        assert said.startswith(str(tmp_path / name)) and message in said and "\n" not in said, said


def test_a_folder_is_read_by_its_table_and_a_wrong_table_is_refused(tmp_path):
    for name in ("a.png", "b.png"):
        save(gradient_image(), tmp_path / name)
    tables = {
        "file,label,source,patient\na.png,ill,here,p1\nb.png,well,there,p2\n": None,
        "file,label,source\na.png,ill,here\n": "line 2: no patient",
        "file,label,source,patient\n../a.png,ill,here,p1\n": "outside",
        "file,label,source,patient\nc.png,ill,here,p1\n": "c.png: no such file",
        "file,label,source,patient\n": "lists no image",
    }
    with pytest.raises(UserError, match="no such file; it lists"):
        read_folder(tmp_path, SIDE)
    for text, message in tables.items():
        (tmp_path / "metadata.csv").write_text(text)
        if message is None:
            rays = read_folder(tmp_path, SIDE)
            assert len(rays) == 2 and rays.where(rays.labels == "ill").files.tolist() == ["a.png"]
            assert rays.sources.tolist() == ["here", "there"] and rays.patients.tolist() == ["p1", "p2"]
        else:
            with pytest.raises(UserError, match=message):
                read_folder(tmp_path, SIDE)


def test_damaged_collections_are_refused_with_their_name(tmp_path):
    path = tmp_path / NIH_HANNOVER
    with pytest.raises(UserError, match="no such file; set ZOO_SHARED"):
        read_nih_hannover(tmp_path)
    path.parent.mkdir(parents=True)
    names, images = np.array(["a", "b"]), np.zeros((2, 4, 4), np.uint8)
    arrays = dict(x=images, y=names, source=names, patient=names, fname=names)
    for wrong, message in [
        (arrays | dict(x=images[:, :3]), r"uint8 \[2, 3, 4\]"),
        (arrays | dict(x=images.astype(float)), "float64"),
        (arrays | dict(y=names[:1]), r"2 images, labels \[1\]"),
        ({"x": images}, "arrays x, y"),
    ]:
        np.savez(path, **wrong)
        with pytest.raises(UserError, match=message) as refused:
            read_nih_hannover(tmp_path)
        assert str(path) in str(refused.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        read_nih_hannover(tmp_path)


def test_the_real_collections_are_what_their_sources_say(shared_dir):
    if not (shared_dir / NIH_HANNOVER).is_file():
        pytest.skip(f"optional test data: no file {NIH_HANNOVER}")
    rays = read_nih_hannover(shared_dir)
    assert rays.images.shape == (1243, 64, 64)
    names, counts = np.unique(rays.labels, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist())) == {"COVID-19": 243, "No finding": 500, "Pneumonia": 500}
    assert ((rays.labels == "COVID-19") == (rays.sources == "Hannover-MHH")).all()
    larger = read_hannover(shared_dir)
    assert larger.images.shape == (243, 128, 128) and set(larger.files) == set(rays.files[rays.labels == "COVID-19"])
    parts = read_pneumonia(shared_dir)
    assert {name: len(part) for name, part in parts.items()} == {"train": 2428, "val": 270, "test": 468}
    assert all((part.labels == "Pneumonia").mean() == 0.5 for part in parts.values())


# Splits and subsets


@given(count=st.integers(10, 120), seed=st.integers(0, 999))
def test_a_split_keeps_every_patient_whole_and_loses_no_image(count, seed):
    patients, positive = patients_of(count, seed)
    parts = split_by_patient(patients, positive.astype(str), (0.6, 0.2, 0.2), seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    held = [set(patients[part]) for part in parts]
    assert not (held[0] & held[1] or held[0] & held[2] or held[1] & held[2])
    again = split_by_patient(patients, positive.astype(str), (0.6, 0.2, 0.2), seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again))


def test_a_split_has_its_share_of_the_patients_of_each_class_and_depends_on_the_seed():
    patients = np.array([f"p{i}" for i in range(100)])
    labels = np.array(["rare"] * 10 + ["common"] * 90)
    parts = split_by_patient(patients, labels, (0.6, 0.2, 0.2), 0)
    assert [np.sum(labels[part] == "rare") for part in parts] == [6, 2, 2]
    assert [np.sum(labels[part] == "common") for part in parts] == [54, 18, 18]
    assert not np.array_equal(parts[0], split_by_patient(patients, labels, (0.6, 0.2, 0.2), 1)[0])
    with pytest.raises(ValueError, match="sum 1"):
        split_by_patient(patients, labels, (0.6, 0.2), 0)


@given(count=st.integers(60, 400), seed=st.integers(0, 999))
def test_subsets_have_their_ratio_are_nested_and_take_patients_one_by_one(count, seed):
    patients, positive = patients_of(count, seed)
    negatives, previous = int(np.sum(~positive)), None
    for ratio in RATIOS:
        wanted = min(int(positive.sum()), negatives // ratio)
        if wanted < 1:
            with pytest.raises(UserError, match=f"1:{ratio} "):
                imbalanced(positive, patients, ratio, seed, fewest=1)
            continue
        chosen = imbalanced(positive, patients, ratio, seed, fewest=1)
        assert len(np.unique(chosen)) == len(chosen) and (np.diff(chosen) > 0).all()
        kept = chosen[positive[chosen]]
        left = len(chosen) - len(kept)
        assert len(kept) == wanted and 0 <= left - wanted * ratio < ratio
        cut = [
            name for name in set(patients[kept]) if np.sum(patients[kept] == name) < np.sum(positive[patients == name])
        ]
        assert len(cut) <= 1
        assert previous is None or set(kept) <= previous
        previous = set(kept)


# Metrics, by brute force

MIXED = st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=25).filter(
    lambda rows: 0 < sum(label for label, _ in rows) < len(rows)
)


@given(rows=MIXED)
def test_curves_are_their_definitions(rows):
    positive, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float)
    ours, theirs = scores[positive], scores[~positive]
    pairs = [(a > b) + (a == b) / 2 for a in ours for b in theirs]
    np.testing.assert_allclose(roc_auc(positive, scores), np.mean(pairs))

    precision, previous = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        recall = np.mean(ours >= threshold)
        precision += (recall - previous) * np.mean(positive[scores >= threshold])
        previous = recall
    np.testing.assert_allclose(pr_auc(positive, scores), precision)

    for specificity in (0.0, 0.5, 0.9, 1.0):
        reached = [np.mean(ours >= t) for t in set(scores.tolist()) if np.mean(theirs < t) >= specificity]
        found = sensitivity_at_specificity(positive, scores, specificity)
        np.testing.assert_allclose(found, max(reached, default=0))


@given(seed=st.integers(0, 999))
def test_balanced_accuracy_and_calibration_error_are_their_definitions(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 40)
    probabilities = rng.dirichlet(np.ones(3) * 0.5, 40)
    predictions = probabilities.argmax(1)
    recalls = [np.mean([p == c for p, y in zip(predictions, labels) if y == c]) for c in set(labels.tolist())]
    np.testing.assert_allclose(balanced_accuracy(labels, predictions), np.mean(recalls))

    error = 0.0
    for low in range(10):
        inside = [i for i in range(40) if low / 10 < probabilities[i].max() <= (low + 1) / 10]
        if inside:
            confidence = np.mean([probabilities[i].max() for i in inside])
            error += len(inside) / 40 * abs(np.mean([predictions[i] == labels[i] for i in inside]) - confidence)
    np.testing.assert_allclose(expected_calibration_error(labels, probabilities, bins=10), error, atol=1e-12)


def test_saying_the_common_class_always_is_worth_nothing():
    labels = np.array([0] * 98 + [1] * 2)
    assert balanced_accuracy(labels, np.zeros(100, int)) == 0.5
    assert roc_auc(labels == 1, np.zeros(100)) == 0.5
    np.testing.assert_allclose(pr_auc(labels == 1, np.zeros(100)), 0.02)
    assert sensitivity_at_specificity(labels == 1, np.zeros(100)) == 0
    for metric in (roc_auc, pr_auc, sensitivity_at_specificity):
        with pytest.raises(ValueError, match="both"):
            metric(np.zeros(3, bool), np.zeros(3))


# Controls


def test_corrected_logits_are_the_posterior_of_the_other_prior():
    rng = np.random.default_rng(0)
    likelihood, old, new = rng.random((20, 3)), np.array([0.9, 0.07, 0.03]), np.array([0.2, 0.3, 0.5])
    posterior = likelihood * new / (likelihood * new).sum(1, keepdims=True)
    logits = np.log(likelihood * old) + 3
    corrected = np.exp(prior_corrected(logits, old, new))
    np.testing.assert_allclose(corrected / corrected.sum(1, keepdims=True), posterior)
    np.testing.assert_array_equal(prior_corrected(logits, old).argmax(1), likelihood.argmax(1))
    with pytest.raises(ValueError, match="training prior"):
        prior_corrected(logits, np.array([1.0, 0.0, 0.0]))


@given(rows=MIXED)
def test_the_best_threshold_has_the_best_balanced_accuracy(rows):
    positive, scores = np.array([r[0] for r in rows]), np.array([r[1] for r in rows], float)
    reached = [balanced_accuracy(positive, scores > t) for t in np.arange(-4.5, 5)]
    np.testing.assert_allclose(balanced_accuracy(positive, scores > best_threshold(positive, scores)), max(reached))


def test_losses_are_their_equations():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(9, 3)).astype(np.float32), np.array([0, 0, 0, 0, 0, 0, 1, 1, 2])
    weights = class_weights(labels)
    np.testing.assert_allclose(weights, [0.5, 1.5, 3])
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = p[np.arange(9), labels]
    losses = jax.jit(
        lambda x: (
            weighted_cross_entropy(x, labels),
            weighted_cross_entropy(x, labels, weights),
            focal_loss(x, labels, 2.0),
            focal_loss(x, labels, 0.5, weights),
            jax.grad(lambda x: focal_loss(x, labels, 0.5))(x.at[0, 0].set(200.0)),
        )
    )(jnp.asarray(logits))
    plain = -np.log(p)
    each = weights[labels]
    wanted = [plain, each * plain, (1 - p) ** 2 * plain, each * (1 - p) ** 0.5 * plain]
    np.testing.assert_allclose(losses[:4], [np.mean(x) for x in wanted], rtol=1e-5)
    assert np.isfinite(losses[4]).all()


def test_logistic_regression_is_at_its_optimum_and_rebalanced_it_is_that_of_repeated_rows():
    rng = np.random.default_rng(2)
    labels = np.array([0] * 40 + [1] * 10)
    rows = (rng.normal(size=(50, 3)) + 0.7 * labels[:, None]) * [1, 50, 0.1]
    weights = balanced_weights(labels)
    assert weights[labels == 0].sum() == pytest.approx(weights[labels == 1].sum()) == pytest.approx(25)
    fit = fit_logistic(rows, labels, penalty=0.1, weights=weights)

    x = (rows - fit.mean) / fit.scale
    p = np.exp(fit.logits(rows))
    error = weights[:, None] * (p / p.sum(1, keepdims=True) - np.eye(2)[labels]) / 50
    np.testing.assert_allclose(x.T @ error + 0.1 * fit.weights, 0, atol=1e-6)
    np.testing.assert_allclose(error.sum(0), 0, atol=1e-6)

    repeated = np.concatenate([np.arange(40), np.repeat(np.arange(40, 50), 4)])
    again = fit_logistic(x[repeated], labels[repeated], penalty=1e-9)
    fit = fit_logistic(x, labels, penalty=1e-9, weights=weights)
    np.testing.assert_allclose(again.logits(x), fit.logits(x), atol=1e-2)


# The leak


def made_rays(mark: int, seed=0) -> Rays:
    """Noise; the images of one source have `mark` added to their first column of pixels."""
    rng = np.random.default_rng(seed)
    patients = np.array([f"p{i // 2}" for i in range(120)])
    hannover = np.arange(120) // 2 % 3 == 0
    images = rng.integers(0, 100, (120, 40, 40)).astype(np.uint8)
    images[hannover, :, 0] += np.uint8(mark)
    sources = np.where(hannover, "Hannover-MHH", "NIH")
    labels = np.where(hannover, "COVID-19", np.where(rng.random(120) < 0.5, "Pneumonia", "No finding"))
    return Rays(images, labels, sources, patients, patients)


def test_a_mark_on_the_border_is_found_there_and_nowhere_else():
    rays = made_rays(60)
    hannover = rays.sources == "Hannover-MHH"
    found = measured("", "", rays, hannover, lambda images: border(images, 1), seeds=2)
    assert found.numbers == 4 * 39 and found.auc.mean > 0.95 and found.accuracy.mean > 0.85
    for look in (lambda images: middle(images, 8), lambda images: border(images, 1)):
        nothing = measured("", "", made_rays(0), hannover, look, seeds=2)
        assert 0.2 < nothing.auc.mean < 0.8
    shuffled = measured("", "", rays, hannover, lambda images: border(images, 1), seeds=2, shuffled=True)
    assert shuffled.auc.mean < 0.8
    assert brightness(rays.images).shape == (120, 2)


def test_the_table_has_every_question(monkeypatch):
    monkeypatch.setattr("experiments.twin_augmentation.source_leak.PENALTIES", (0.1,))
    found = leaks(made_rays(60), seeds=2)
    assert len(table(found).splitlines()) == 2 + len(found) == 11
    assert {leak.question.split(":")[0] for leak in found} == {"NIH or Hannover?", "shuffled", "NIH"}
    with pytest.raises(ValueError, match="border of 20"):
        border(np.zeros((1, 40, 40)), 20)
