"""The loss curve: it is a PNG, also of odd runs; its smoothing follows a falling curve."""

import json
import struct

import numpy as np
import pytest

from zoo.training.pictures import loss_curve, smoothed


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
