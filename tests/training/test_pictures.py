"""The loss curve and the account of time are PNGs, also of odd runs; smoothing follows a falling curve."""

import json
import struct

import numpy as np
import pytest

from zoo.training.goodput import CAUSES
from zoo.training.pictures import COLOURS, goodput_picture, loss_curve, smoothed


def write_run(path, losses, validation=()):
    rows = [{"step": i + 1, "loss": loss, "learning_rate": 1e-3, "tokens": 10 * i} for i, loss in enumerate(losses)]
    for step, loss in validation:
        rows[step - 1]["validation_loss"] = loss
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("losses", [[8.0], [8.0, 7.0, 6.5], list(np.linspace(8, 2, 300)), [5.0, 5.0, 5.0]])
@pytest.mark.parametrize("validation", [[], [(1, 7.5)]])
def test_a_run_of_any_length_becomes_a_png(tmp_path, losses, validation):
    png = tmp_path / "loss.png"
    run = write_run(tmp_path / "metrics.jsonl", losses, validation)
    assert loss_curve(run, png, baselines={"token frequencies": 6.3}, title="a run")
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", header[16:24]) == (1350, 825)


@pytest.mark.parametrize("text", [None, "", '{"step": 1, "lo'])
def test_without_a_step_there_is_no_picture(tmp_path, text):
    run = tmp_path / "metrics.jsonl"
    if text is not None:
        run.write_text(text)
    assert not loss_curve(run, tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_smoothing_does_not_lag_behind_a_falling_curve():
    values = np.linspace(10, 2, 600)
    np.testing.assert_allclose(smoothed(values)[:-10], values[:-10], atol=1e-9)


def test_smoothing_takes_out_noise_and_skips_what_is_not_finite():
    noise = np.random.default_rng(0).standard_normal(1000)
    noise[500] = np.nan
    assert np.nanstd(smoothed(noise)[100:]) < 0.3
    assert np.isfinite(smoothed(noise)[1:]).all()


def starts(number: int) -> list[dict]:
    """Starts of an hour each, with ten minutes between them."""
    causes = {cause: 400.0 for cause in CAUSES if cause != "down"}
    return [{"began": 4200.0 * i, "ended": 4200.0 * i + 3200, "seconds": causes} for i in range(number)]


@pytest.mark.parametrize("number", [1, 2, 40])
def test_the_time_of_a_run_becomes_a_png(tmp_path, number):
    assert goodput_picture(starts(number), tmp_path / "goodput.png", title="a run")
    assert (tmp_path / "goodput.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_time_there_is_no_picture(tmp_path):
    assert not goodput_picture([], tmp_path / "goodput.png")
    assert not goodput_picture([{"began": 5.0, "ended": 5.0, "seconds": {}}], tmp_path / "goodput.png")
    assert not (tmp_path / "goodput.png").exists()


def test_every_cause_has_a_colour():
    assert COLOURS.keys() == CAUSES.keys()
