"""Averages of checkpoints: their numbers against numpy, what is refused, and the command that writes them."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from zoo.data import train_tokenizer
from zoo.errors import UserError
from zoo.export import main
from zoo.interop import load, save_run
from zoo.models import Gemma2Config, build
from zoo.recipes.averaging import load_average, moving_average_weights
from zoo.training.parameters import flatten_with_names

CONFIG = Gemma2Config(
    vocab_size=290,
    embed_dim=8,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=4,
    hidden_dim=16,
    query_pre_attn_scalar=4.0,
    sliding_window=8,
    max_position_embeddings=16,
)
TEXTS = ["a little text to learn a few pieces from", "and another one of other words, for another tokenizer"]


def model_of(seed, config=CONFIG):
    return build(config, rngs=nnx.Rngs(seed))


def params_of(path):
    loaded = load(path, param_dtype="stored")
    return {name: np.asarray(leaf) for name, leaf in flatten_with_names(nnx.state(loaded.model, nnx.Param)).items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three exported runs of one architecture with other weights; the first has a tokenizer."""
    folders = [tmp_path_factory.mktemp("runs") / str(seed) for seed in range(3)]
    for seed, folder in enumerate(folders):
        tokenizer = train_tokenizer([TEXTS[0]] * 30, 280) if seed == 0 else None
        save_run(model_of(seed), folder, tokenizer=tokenizer)
    return folders


@pytest.fixture(scope="module")
def steps(runs, tmp_path_factory):
    """A run directory with the weights of the three runs as its steps 9, 10 and 20."""
    folder = tmp_path_factory.mktemp("steps") / "run"
    save_run(model_of(0), folder, step=9)
    for step, run in ((10, runs[1]), (20, runs[2])):
        shutil.copytree(run / "checkpoints" / "0", folder / "checkpoints" / str(step))
    return folder


def test_the_mean_of_checkpoints_is_that_of_their_numbers_and_has_the_first_ones_tokenizer(runs, tmp_path, capsys):
    main([str(runs[0]), str(tmp_path / "out"), "--average", *map(str, runs[1:]), "--format", "orbax"])
    assert f"from the mean of {runs[0]}, {runs[1]}, {runs[2]}" in capsys.readouterr().out
    found, parts = params_of(tmp_path / "out"), [params_of(run) for run in runs]
    for name, value in found.items():
        np.testing.assert_allclose(value, np.mean([part[name] for part in parts], axis=0), atol=1e-7, err_msg=name)
    assert not np.array_equal(found["embedder/embedding"], parts[0]["embedder/embedding"])
    assert load(tmp_path / "out").tokenizer.fingerprint == load(runs[0]).tokenizer.fingerprint


def test_the_moving_average_goes_over_the_saved_steps_in_the_order_of_their_numbers(steps, runs, tmp_path):
    main([str(steps), str(tmp_path / "out"), "--ema", "0.75", "--format", "orbax"])
    first, second, third = (params_of(run) for run in runs)
    for name, value in params_of(tmp_path / "out").items():
        expected = 0.75 * (0.75 * first[name] + 0.25 * second[name]) + 0.25 * third[name]
        np.testing.assert_allclose(value, expected, atol=1e-7, err_msg=name)


def test_the_weights_of_a_moving_average_sum_to_one_and_without_memory_the_newest_is_left():
    np.testing.assert_allclose(moving_average_weights(3, 0.5), [0.25, 0.25, 0.5])
    assert sum(moving_average_weights(7, 0.9)) == pytest.approx(1)
    assert moving_average_weights(3, 0.0) == [0, 0, 1]


def test_equal_checkpoints_have_themselves_as_their_mean_bit_for_bit_in_the_dtype_they_are_stored_in(runs, tmp_path):
    for name in ("one", "two"):
        save_run(model_of(0), tmp_path / name, dtype="bfloat16")
    state = nnx.state(load_average([tmp_path / "one", tmp_path / "two"]).model, nnx.Param)
    expected = params_of(tmp_path / "one")
    for name, leaf in flatten_with_names(state).items():
        assert leaf.dtype == "bfloat16"
        np.testing.assert_array_equal(np.asarray(leaf), expected[name], err_msg=name)


def refused(first, tmp_path, *options):
    with pytest.raises(UserError) as error:
        main([str(first), str(tmp_path / "out"), "--format", "orbax", *map(str, options)])
    assert not (tmp_path / "out").exists()
    return str(error.value)


def test_a_checkpoint_of_another_shape_or_function_is_named_with_the_field(runs, tmp_path):
    for field, value in (("hidden_dim", 32), ("attn_logit_soft_cap", 7.0)):
        other = tmp_path / field
        save_run(model_of(0, replace(CONFIG, **{field: value})), other)
        words = refused(runs[0], tmp_path, "--average", runs[1], other)
        assert f"{other} is of another model: model.{field} is {value!r} there" in words and str(runs[0]) in words


def test_another_tokenizer_is_refused(runs, tmp_path):
    save_run(model_of(5), tmp_path / "other", tokenizer=train_tokenizer([TEXTS[1]] * 30, 280))
    assert "other has another tokenizer (sha256" in refused(runs[0], tmp_path, "--average", tmp_path / "other")


def test_one_checkpoint_cannot_count_twice(runs, tmp_path):
    step = runs[0] / "checkpoints" / "0"
    assert f"{step} and {runs[0]} are one checkpoint" in refused(runs[0], tmp_path, "--average", runs[1], step)


def test_numbers_that_are_not_finite_are_found(runs, tmp_path):
    model = model_of(6)
    model.embedder.embedding.set_value(model.embedder.embedding.get_value().at[3, 3].set(np.inf))
    save_run(model, tmp_path / "broken")
    assert "broken: embedder/embedding is not finite" in refused(runs[0], tmp_path, "--average", tmp_path / "broken")


def test_options_that_cannot_be_meant_are_refused(runs, steps, tmp_path):
    assert "give one of them" in refused(steps, tmp_path, "--ema", 0.5, "--average", runs[1])
    assert "--ema must be at least 0 and below 1, got 1.0" in refused(steps, tmp_path, "--ema", 1.0)
    assert "has one saved step, 0: an average needs two" in refused(runs[0], tmp_path, "--ema", 0.5)
    assert "is no run directory" in refused(steps / "checkpoints" / "9", tmp_path, "--ema", 0.5)
    assert "there is no such file or folder" in refused(runs[0], tmp_path, "--average", tmp_path / "nothing")
