"""Runs with a fixed teacher: what does not fit is refused before anything is allocated, and what the step is given."""

import dataclasses

import jax
import pytest

import zoo.plan
from zoo.data import NoText
from zoo.errors import UserError
from zoo.models import config_to_dict, preset
from zoo.parallel import MeshConfig, make_mesh
from zoo.recipes import DEFAULT, recipe
from zoo.recipes.checks import check_recipe, least_bytes
from zoo.recipes.command_line import parse_recipe
from zoo.recipes.program import training_program
from zoo.recipes.recipe import Recipe
from zoo.recipes.run import saved_run
from zoo.recipes.teacher import (
    check_same_teacher,
    check_teacher,
    check_teacher_tokenizer,
    describe_teacher,
    flops_per_token,
)
from zoo.training.parameters import flatten_with_names
from zoo.training.run_directory import RunInfo, write_run
from zoo.training.teacher import DistillationConfig


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(fsdp=4), jax.devices()[:4])


@pytest.fixture
def described(tmp_path):
    """A function that writes the description of a trained model, without its weights, and returns its folder."""

    def write(config, name="teacher"):
        write_run(RunInfo(tmp_path / name, "x", config_to_dict(config), {}, None, None, config={}))
        return str(tmp_path / name)

    return write


def with_teacher(path, name=DEFAULT, **options) -> Recipe:
    return dataclasses.replace(recipe(name), distillation=DistillationConfig(path, **options))


def like_the_student(**changes):
    return dataclasses.replace(recipe(DEFAULT).model, **changes)


def test_the_command_line_names_the_teacher_and_its_options():
    words = ["--teacher", "some/run", "--distillation.kind", "reverse", "--distillation.temperature", "2"]
    parsed = parse_recipe(recipe(DEFAULT), words, prog="x")
    assert parsed.distillation == DistillationConfig("some/run", "reverse", 2.0, 0.0)
    assert parsed.teacher == "some/run" and recipe(DEFAULT).teacher is None
    with pytest.raises(UserError, match="distillation.teacher is given 2 times"):
        parse_recipe(recipe(DEFAULT), ["--teacher", "a", "--distillation.teacher", "b"], prog="x")


def test_a_wider_teacher_is_an_argument_of_the_step_sharded_like_the_model_and_no_part_of_the_state(described, mesh):
    path = described(like_the_student(embed_dim=192))
    program, alone = (training_program(run, mesh) for run in (with_teacher(path), recipe(DEFAULT)))
    assert alone.teacher is None
    assert flatten_with_names(program.state).keys() == flatten_with_names(alone.state).keys()
    table = program.teacher.params["embedder"]["embedding"].get_value()
    assert table.shape == (4096, 192) and table.sharding.shard_shape(table.shape) == (4096, 48)
    student = program.state.params["embedder"]["embedding"].get_value()
    assert table.sharding.spec == student.sharding.spec


def test_a_teacher_counts_in_memory_arithmetic_and_the_opening(described, mesh):
    config = like_the_student(embed_dim=192)
    run, alone = (
        with_teacher(described(config), kind="reverse", temperature=2.0, hard_label_weight=0.25),
        recipe(DEFAULT),
    )
    assert least_bytes(run, mesh) - least_bytes(alone, mesh) == 4 * config.num_parameters()
    more = 3 * (flops_per_token(run) - alone.model.flops_per_token(256))  # a step is three forward passes of the model
    assert more == pytest.approx(config.flops_per_token(256)) and flops_per_token(alone) == alone.model.flops_per_token(
        256
    )
    line = describe_teacher(run)
    assert f"{config.num_parameters():,} parameters, reverse KL, temperature 2, 25% real labels" in line
    assert describe_teacher(alone) == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vocab_size": 5000}, "has a vocabulary of 5000 and this run model.vocab_size=4096: they must be the same"),
        ({"max_position_embeddings": 128}, "reads at most 128 tokens, data.sequence_length=256 is longer"),
    ],
    ids=["vocabulary", "context"],
)
def test_a_teacher_of_other_sizes_is_refused(described, mesh, changes, words):
    with pytest.raises(UserError, match=f"^--teacher .*teacher {words}"):
        check_recipe(with_teacher(described(like_the_student(**changes))), mesh)


@pytest.mark.parametrize("name", ["bert-tiny", "vq-tiny"])
def test_a_teacher_that_is_no_decoder_is_refused(described, mesh, name):
    with pytest.raises(UserError, match=r"^--teacher .* holds a \w+, which is no decoder"):
        check_recipe(with_teacher(described(preset(name))), mesh)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gemini-tiny-flash", "trains a pair, which has a teacher of its own"),
        ("image-vq", "trains a tokenizer of images"),
        ("bert-tiny-mlm", "trains a model that guesses masked tokens"),
    ],
)
def test_recipes_that_can_have_no_teacher_refuse_one(described, name, words):
    with pytest.raises(UserError, match=f"^--teacher .*: {name} {words}; a teacher is for decoders, leave it out"):
        check_teacher(with_teacher(described(like_the_student()), name))


def test_a_path_without_a_checkpoint_and_packed_weights_are_refused(tmp_path, monkeypatch, described):
    with pytest.raises(UserError, match=r"^--teacher .*missing: there is no such file or folder"):
        check_teacher(with_teacher(str(tmp_path / "missing")))
    with pytest.raises(UserError, match=r"^--teacher .* holds no checkpoint"):
        check_teacher(with_teacher(str(tmp_path)))
    monkeypatch.setattr("zoo.recipes.teacher.source_of", lambda path: "quantised")
    with pytest.raises(UserError, match=r"^--teacher .* has packed weights"):
        check_teacher(with_teacher(described(like_the_student())))


def test_a_teacher_without_the_encoders_that_the_documents_need_is_refused(described, mesh):
    student = recipe("gemini-tiny-multimodal")
    path = described(dataclasses.replace(student.model, vision=None, audio=None))
    run = dataclasses.replace(student, distillation=DistillationConfig(path), needs_data=False)
    with pytest.raises(UserError, match=r"^--teacher .*: .* the model has no image encoder"):
        check_recipe(run, make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize("options", [{"kind": "reverse"}, {"temperature": 2.0}, {"hard_label_weight": 0.5}], ids=str)
def test_options_of_a_teacher_that_is_not_there_are_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=rf"distillation.{name}=.* needs a teacher: say --teacher CKPT"):
        check_teacher(with_teacher(None, **options))


def test_a_teacher_with_another_tokenizer_is_refused():
    run = with_teacher("runs/t")
    check_teacher_tokenizer(run, NoText(), NoText())
    check_teacher_tokenizer(run, NoText(), None)

    class Other(NoText):
        fingerprint = "ab" * 32

    with pytest.raises(UserError, match=r"runs/t was trained with another tokenizer \(sha256 abababababab"):
        check_teacher_tokenizer(run, NoText(), Other())


def test_a_resumed_run_must_have_the_weights_that_its_teacher_had(tmp_path):
    run = dataclasses.replace(with_teacher("runs/t"), run_dir=str(tmp_path / "run"))
    params = {"w": jax.numpy.arange(4.0)}
    check_same_teacher(run, params, new=True)
    check_same_teacher(run, params, new=False)
    with pytest.raises(UserError, match=r"runs/t has other weights .* than when .*run began"):
        check_same_teacher(run, {"w": jax.numpy.arange(1.0, 5.0)}, new=False)
    check_same_teacher(run, {"w": jax.numpy.arange(1.0, 5.0)}, new=True)
    (tmp_path / "run" / "teacher.json").write_text("{")
    with pytest.raises(UserError, match=r"teacher.json cannot be read"):
        check_same_teacher(run, params, new=False)


def test_a_run_that_is_older_than_teachers_cannot_be_given_one(tmp_path):
    old = {"model": config_to_dict(recipe(DEFAULT).model)}
    write_run(RunInfo(tmp_path / "run", DEFAULT, old["model"], {}, None, None, config={"seed": 0}))
    run = dataclasses.replace(with_teacher("runs/t"), run_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="holds a run without a teacher: leave out --teacher"):
        saved_run(run)


def test_a_plan_refuses_a_teacher():
    with pytest.raises(UserError, match="--teacher runs/t: plans are made without a teacher; leave it out"):
        zoo.plan.main([DEFAULT, "--topology", "v5e:2x2", "--teacher", "runs/t"])
