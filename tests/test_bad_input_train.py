"""Bad input to `zoo.train` gets exit code 2 and one line: what is wrong, where, what would be right."""

import dataclasses
import json
import resource
import shutil

import numpy as np
import pytest

import zoo.train
from tests import tiny_run
from tests.tiny_run import arguments, losses
from zoo.errors import run_command
from zoo.interop import load, save_huggingface
from zoo.recipes import DEFAULT, recipe
from zoo.training.run_directory import saved_steps


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A run of four steps, with checkpoints 2 and 4."""
    run = tmp_path_factory.mktemp("trained") / "run"
    zoo.train.main(arguments(corpus, run, steps=4))
    return run


@pytest.fixture
def refused(capsys):
    """A function that runs the command, sees it exit with 2, and returns the one line it wrote on standard error."""

    def run(command):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: zoo.train.main([str(word) for word in command]))
        [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("attention")]
        assert stop.value.code == 2 and line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


def test_unknown_names_are_answered_with_the_nearest(refused):
    assert "unknown recipe 'gemma2-2'; did you mean 'gemma2-2b'?" in refused(["gemma2-2"])
    assert "unknown option '--stpes'; did you mean '--steps'?" in refused(["--stpes", 3])
    assert "--optimizer.learning-rate" in refused(["--optimizer.lerning-rate", 3])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps must lie in"),
        ({"steps": -7}, "steps must lie in"),
        ({"data__batch_size": -8}, "batch_size"),
        ({"data__batch_size": 0}, "batch_size"),
        ({"data__sequence_length": 10**12}, "sequence_length"),
        ({"data__batch_size": 9}, "data.batch_size=9 is not divisible by the mesh"),
        ({"data__sequence_length": 128}, "data.sequence_length=128 is longer than model.max_position_embeddings=64"),
        ({"data__vocab_size": 999}, "data.vocab_size=999 is larger than model.vocab_size=320"),
        ({"model__num_layers": -1}, "model.num_layers"),
        ({"model__num_layers": 10**9}, "GiB"),
        ({"model__embed_dim": 10**9}, "GiB"),
        ({"model__vocab_size": 10**13}, "GiB"),
        ({"model__num_heads": 3, "model__num_kv_heads": 2}, "multiple"),
        ({"optimizer__learning_rate": -1}, "learning_rate"),
        ({"optimizer__accumulation_steps": 3}, "accumulation_steps=3"),
        ({"mesh__data": 3}, "mesh data=3"),
        ({"mesh__fsdp": 0}, "mesh"),
        ({"freeze": "nothing_like_this"}, "nothing_like_this"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
    ],
)
def test_sizes_that_make_no_sense_are_named_and_nothing_is_written(refused, corpus, tmp_path, changes, words):
    assert words in refused(arguments(corpus, tmp_path / "run", **changes))
    assert not saved_steps(tmp_path / "run" / "checkpoints") and not (tmp_path / "run" / "run.json").exists()


def test_missing_empty_or_unreadable_data_is_named(refused, tmp_path):
    run = tmp_path / "run"
    assert "missing.txt" in refused(arguments(tmp_path / "missing.txt", run))
    (tmp_path / "empty.txt").touch()
    assert "empty.txt" in refused(arguments(tmp_path / "empty.txt", run))
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(arguments(tmp_path / "empty", run))
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    assert "binary.txt" in refused(arguments(tmp_path / "binary.txt", run))
    (tmp_path / "latin.txt").write_bytes("déjà vu\n".encode("latin-1") * 20)
    assert "latin.txt" in refused(arguments(tmp_path / "latin.txt", run))
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": \n')
    line = refused(arguments(tmp_path / "bad.jsonl", run))
    assert "bad.jsonl" in line and "2" in line
    assert "--data needs at least one" in refused(["--data"])


def test_a_run_directory_of_another_configuration_is_refused_with_the_field_and_both_ways_out(refused, corpus, trained):
    line = refused(arguments(corpus, trained, steps=4, optimizer__learning_rate=0.125))
    rate = recipe(DEFAULT).optimizer.learning_rate
    assert f"optimizer.learning_rate={rate}, and this one has optimizer.learning_rate=0.125" in line
    assert "give the old value to resume it" in line and "another --run-dir" in line
    assert "model.embed_dim" in refused(arguments(corpus, trained, steps=4, model__embed_dim=32))
    assert saved_steps(trained / "checkpoints") == (2, 4) and len(losses(trained)) == 4


def test_fewer_steps_than_are_done_are_refused(refused, corpus, trained):
    assert "has been trained for 4 steps" in refused(arguments(corpus, trained, steps=3))


def test_weights_of_another_model_are_refused_with_the_first_field_that_differs(refused, corpus, trained, tmp_path):
    line = refused(arguments(corpus, tmp_path / "run", init_from=trained, model__embed_dim=32))
    assert "is of another model: model.embed_dim is 16 there and 32 in this run" in line
    line = refused(arguments(corpus, tmp_path / "run", init_from=trained, model__vocab_size=640))
    assert "model.vocab_size is 320 there and 640 in this run" in line


@pytest.mark.parametrize("name", ["missing", "empty", "file.txt"])
def test_what_is_no_checkpoint_is_named(refused, corpus, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    assert name in refused(arguments(corpus, tmp_path / "run", init_from=tmp_path / name))


def test_a_truncated_safetensors_file_is_named(refused, corpus, trained, tmp_path):
    loaded = load(trained)
    save_huggingface(loaded.model, tmp_path / "exported", tokenizer=loaded.tokenizer)
    weights = tmp_path / "exported" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors" in refused(arguments(corpus, tmp_path / "run", init_from=tmp_path / "exported"))


def test_a_hugging_face_config_with_an_unknown_feature_is_named(refused, corpus, trained, tmp_path):
    loaded = load(trained)
    save_huggingface(loaded.model, tmp_path / "exported", tokenizer=loaded.tokenizer)
    config = tmp_path / "exported" / "config.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})
    )
    assert "rope" in refused(arguments(corpus, tmp_path / "run", init_from=tmp_path / "exported"))


def test_a_tokenizer_that_the_weights_were_not_trained_with_is_refused(refused, corpus, trained, tmp_path):
    other = tmp_path / "other"
    zoo.train.main(arguments(corpus, other, steps=1, data__vocab_size=300))
    line = refused(arguments(corpus, tmp_path / "run", init_from=trained, data__tokenizer=other / "tokenizer"))
    assert "is not the one that" in line and "leave out data.tokenizer" in line
    sizes = {"model__vocab_size": 304, "data__vocab_size": 300}
    line = refused(arguments(corpus, tmp_path / "run", data__tokenizer=trained / "tokenizer", **sizes))
    assert "the tokenizer has 320 tokens, the model knows model.vocab_size=304" in line


def test_a_large_model_is_not_given_a_tokenizer_made_up_on_the_fly(refused, corpus, tmp_path):
    command = arguments(corpus, tmp_path / "run", model__vocab_size=256_000)
    assert "needs a tokenizer for its vocabulary of 256000: --init-from" in refused(command)


def test_a_run_whose_tokenizer_was_changed_is_refused(refused, corpus, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    model = run / "tokenizer" / "tokenizer.model"
    model.write_bytes(model.read_bytes() + b"\x0a\x00")
    assert "tokenizer" in refused(arguments(corpus, run, steps=4))


def test_a_folder_that_cannot_be_a_run_directory_is_named(refused, corpus, tmp_path):
    (tmp_path / "file").touch()
    assert "file" in refused(arguments(corpus, tmp_path / "file"))


def test_two_processes_do_not_train_into_one_run_directory(refused, corpus, tmp_path):
    with zoo.train.RunLock(tmp_path / "run"):
        assert "another process is training" in refused(arguments(corpus, tmp_path / "run"))


class Poisoned:
    """A data iterator whose batch of number `at` has a weight that is not a number."""

    def __init__(self, batches, at):
        self._batches, self._at, self._number = batches, at, 0

    def __getattr__(self, name):
        return getattr(self._batches, name)

    def __next__(self):
        self._number += 1
        batch = next(self._batches)
        if self._number == self._at:
            return dataclasses.replace(batch, loss_weights=batch.loss_weights * np.float32("nan"))
        return batch


def test_a_nan_loss_names_step_and_batch_and_keeps_the_last_good_checkpoint(
    refused, corpus, trained, tmp_path, monkeypatch
):
    batches = zoo.train.train_batches
    with monkeypatch.context() as patch:
        patch.setattr(zoo.train, "train_batches", lambda *a, **k: Poisoned(batches(*a, **k), 4))
        line = refused(arguments(corpus, tmp_path / "run", steps=4))
    assert "step 4: the loss is nan on batch 4" in line and "step 2, is kept" in line
    assert saved_steps(tmp_path / "run" / "checkpoints") == (2,)
    assert losses(tmp_path / "run") == losses(trained)[:3]
    zoo.train.main(arguments(corpus, tmp_path / "run", steps=4))
    tiny_run.assert_same_run(tmp_path / "run", trained)


def test_a_full_disk_during_a_save_is_one_line_and_the_run_continues_once_there_is_room(corpus, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    # Of arrays, the sizes of files depend on how their parallel writers met; this file is as large in every checkpoint.
    limit = (run / "checkpoints" / "4" / "optimizer" / "_METADATA").stat().st_size // 2
    process = tiny_run.start(arguments(corpus, run, steps=60), JAX_ENABLE_COMPILATION_CACHE="false")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))  # more fails as on a full disk
    _, errors = process.communicate(timeout=600)
    lines = [line for line in errors.splitlines() if not line.startswith("attention")]
    assert len(lines) == 1, errors
    line = lines[0]
    assert process.returncode == 2 and line.startswith("error: the disk is full")
    assert "saved steps that are intact: 2, 4" in line and saved_steps(run / "checkpoints") == (2, 4)
    assert len(losses(run)) < 60  # it did not go on training what could not be saved
    zoo.train.main(arguments(corpus, run, steps=6))
    assert [numbers[0] for numbers in losses(run)] == [1, 2, 3, 4, 5, 6]
