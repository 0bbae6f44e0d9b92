"""`python -m zoo.train --teacher CKPT`: a run from its teacher to its end, killed and resumed, and what is refused."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from tests import tiny_run
from tests.tiny_run import arguments, assert_same_run, losses, saved_params
from zoo.data import open_corpus, tokenizer_for
from zoo.errors import run_command
from zoo.interop import save_huggingface, save_run
from zoo.models import build, config_to_dict, preset
from zoo.parallel import make_mesh
from zoo.recipes import DEFAULT, recipe
from zoo.train import main
from zoo.training.metrics import read_metrics
from zoo.training.run_directory import RunInfo, read_run, saved_steps, write_run

TINY = {"model__num_layers": 1, "data__batch_size": 4, "steps": 4, "evaluate_every": 2}
STUDENT = TINY | {
    "distillation__kind": "reverse",
    "distillation__temperature": 2.0,
    "distillation__hard_label_weight": 0.25,
}


@pytest.fixture(scope="module", autouse=True)
def two_devices():
    """Runs take two of the devices, which share the parameters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.make_mesh", lambda config: make_mesh(config, jax.devices()[:2]))
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.write_corpus(tmp_path_factory.mktemp("corpus"))


def tokenizer_of(corpus, vocab_size):
    data = dataclasses.replace(recipe(DEFAULT).data, paths=(str(corpus),), vocab_size=vocab_size)
    return tokenizer_for(open_corpus(data), data)


@pytest.fixture(scope="module")
def wider(corpus):
    """A model wider than the student with random weights, and its tokenizer."""
    sizes = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "hidden_dim": 32, "sliding_window": 8}
    sizes |= {"vocab_size": 320, "embed_dim": 24, "num_layers": 2, "max_position_embeddings": 64}
    model = build(dataclasses.replace(recipe(DEFAULT).model, **sizes), rngs=nnx.Rngs(1))
    return model, tokenizer_of(corpus, 320)


@pytest.fixture(scope="module")
def teacher(wider, tmp_path_factory):
    """That model as a run directory."""
    run = tmp_path_factory.mktemp("teacher") / "run"
    save_run(wider[0], run, tokenizer=wider[1])
    return run


@pytest.fixture(scope="module")
def whole(corpus, teacher, tmp_path_factory):
    """An uninterrupted run with that teacher."""
    run = tmp_path_factory.mktemp("whole") / "run"
    main(arguments(corpus, run, teacher=teacher, **STUDENT))
    return run


@pytest.fixture
def refused(capsys):
    """A function that runs the command, sees it exit with 2, and returns the one line it wrote on standard error."""

    def run(command):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(lambda: main([str(word) for word in command]))
        [line] = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("attention")]
        assert stop.value.code == 2 and line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


def test_a_student_takes_its_teachers_tokenizer_and_keeps_nothing_else_of_it(whole, teacher, wider):
    info = read_run(whole)
    assert info.tokenizer_fingerprint == read_run(teacher).tokenizer_fingerprint
    assert info.config["distillation"]["teacher"] == str(teacher)
    assert all(24 not in value.shape for value in saved_params(whole).values())
    assert 24 in jax.tree.leaves(nnx.state(wider[0]))[0].shape


def test_training_reports_the_teacher_and_validation_the_student_on_real_labels(whole):
    lines = read_metrics(whole / "metrics.jsonl")
    assert all(np.isfinite([line["distillation_loss"], line["teacher_loss"]]).all() for line in lines)
    validations = [line for line in lines if "validation_loss" in line]
    assert len(validations) == 2 and not any("teacher" in name for name in validations[0] if "validation" in name)


def test_a_killed_run_goes_on_bit_for_bit(whole, corpus, teacher, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "4")  # as after a kill in step 4, whose numbers were written down
    main(arguments(corpus, run, teacher=teacher, **STUDENT))
    assert saved_steps(run / "checkpoints") == (2, 4)
    assert_same_run(run, whole)


def test_a_hugging_face_folder_with_the_teachers_weights_gives_the_same_curve(whole, corpus, wider, tmp_path):
    save_huggingface(wider[0], tmp_path / "exported", tokenizer=wider[1])
    main(arguments(corpus, tmp_path / "run", teacher=tmp_path / "exported", stop_at_step=2, **STUDENT))
    assert [line[1:3] for line in losses(tmp_path / "run")] == [line[1:3] for line in losses(whole)[:2]]


def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(refused, corpus, teacher, tmp_path):
    run = tmp_path / "run"

    def line(**changes):
        return refused(arguments(corpus, run, **TINY | {"teacher": teacher} | changes))

    assert "missing: there is no such file or folder" in line(teacher=tmp_path / "missing")
    assert "has a vocabulary of 320 and this run model.vocab_size=384" in line(model__vocab_size=384)
    assert "reads at most 64 tokens" in line(data__sequence_length=96, model__max_position_embeddings=96)
    write_run(RunInfo(tmp_path / "bert", "x", config_to_dict(preset("bert-tiny")), {}, None, None, config={}))
    assert "holds a Bert, which is no decoder" in line(teacher=tmp_path / "bert")
    assert "needs a teacher" in line(teacher=None, distillation__kind="reverse")
    assert "trains a pair" in refused(["gemini-tiny-flash", "--teacher", teacher, "--run-dir", run])
    assert "trains a tokenizer of images" in refused(
        ["image-vq", "--teacher", teacher, "--run-dir", run, "--data", corpus]
    )
    assert "guesses masked tokens" in refused(["bert-tiny-mlm", "--teacher", teacher, "--run-dir", run])
    tokenizer_of(corpus, 300).save(tmp_path / "other")
    assert "was trained with another tokenizer" in line(data__tokenizer=tmp_path / "other")
    assert not run.exists()


def test_a_run_is_not_resumed_with_another_teacher(refused, whole, corpus, teacher, tmp_path):
    line = refused(arguments(corpus, whole, **STUDENT))
    assert "distillation.teacher=" in line and "give the old value to resume it" in line
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "4")
    kept = (run / "teacher.json").read_text()
    assert json.loads(kept)["path"] == str(teacher)
    (run / "teacher.json").write_text(json.dumps({"path": str(teacher), "sha256": "0" * 64}))
    line = refused(arguments(corpus, run, teacher=teacher, **STUDENT))
    assert "has other weights" in line and "choose another --run-dir" in line
    assert saved_steps(run / "checkpoints") == (2,)
