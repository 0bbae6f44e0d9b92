"""Recipes: found by name, described, and resumable with what changes no number."""

import dataclasses
import json

import jax
import pytest

from zoo.errors import UserError
from zoo.models import presets
from zoo.parallel import MeshConfig, make_mesh
from zoo.recipes import DEFAULT, description, first_difference, recipe, recipe_to_dict, recipes
from zoo.recipes.checks import check_recipe, least_bytes
from zoo.recipes.recipe import MAY_CHANGE_ON_RESUME


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


def changed(name, **fields):
    """The default recipe with fields of one of its parts changed."""
    default = recipe(DEFAULT)
    return dataclasses.replace(default, **{name: dataclasses.replace(getattr(default, name), **fields)})


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_says_what_it_costs_what_comes_out_and_the_exact_command(name):
    text = description(name)
    command = "python -m zoo.train" + ("" if name == DEFAULT else f" {name}")
    assert f"    {command}" in text and "Cost:" in text and "Expected result:" in text
    assert recipe(name).run_dir == f"runs/{name}"


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_fits_the_model_it_trains(name):
    found = recipe(name)
    assert found.model in presets().values()
    assert found.trains_images or found.classifies or found.data.sequence_length <= found.model.max_position_embeddings
    assert json.loads(json.dumps(recipe_to_dict(found))) == recipe_to_dict(found)


def test_an_unknown_recipe_is_answered_with_the_nearest_name():
    with pytest.raises(UserError, match=r"unknown recipe 'gemma-nano'; did you mean 'gemma2-nano'\?"):
        recipe("gemma-nano")


def test_equal_recipes_do_not_differ():
    assert first_difference(recipe_to_dict(recipe(DEFAULT)), recipe_to_dict(recipe(DEFAULT))) is None


@pytest.mark.parametrize(
    ("part", "fields", "name"),
    [
        ("model", {"embed_dim": 64}, "model.embed_dim"),
        ("optimizer", {"learning_rate": 0.5}, "optimizer.learning_rate"),
        ("data", {"paths": ("a.txt",)}, "data.paths"),
        ("execution", {"scan_layers": True}, "execution.scan_layers"),
    ],
)
def test_the_first_field_that_changes_the_numbers_is_named(part, fields, name):
    found = first_difference(recipe_to_dict(recipe(DEFAULT)), recipe_to_dict(changed(part, **fields)))
    assert found[0] == name


def test_fields_that_change_no_number_may_change_when_a_run_is_resumed():
    other = dataclasses.replace(changed("loop", log_every=7, keep_last=9), run_dir="elsewhere", mesh=MeshConfig(data=2))
    assert first_difference(recipe_to_dict(recipe(DEFAULT)), recipe_to_dict(other)) is None


def test_every_field_that_may_change_is_a_field():
    known = recipe_to_dict(recipe(DEFAULT))
    for name in MAY_CHANGE_ON_RESUME:
        node = known
        for part in name.split("."):
            node = node[part]


def test_a_field_that_is_younger_than_the_run_does_not_keep_it_from_being_resumed():
    saved = recipe_to_dict(recipe(DEFAULT))
    del saved["z_loss"]
    assert first_difference(saved, recipe_to_dict(recipe(DEFAULT))) is None


@pytest.mark.parametrize("name", [name for name in recipes() if recipe(name).needs_data])
def test_a_recipe_without_text_of_its_own_asks_for_it(name, mesh):
    with pytest.raises(UserError, match=f"{name} has no data of its own to train on: say --data"):
        check_recipe(recipe(name), mesh)


def test_a_batch_that_the_mesh_does_not_divide_is_named_with_the_nearest_size(mesh):
    with pytest.raises(UserError, match=r"data.batch_size=12 is not divisible by the mesh \(fsdp=8\); 16 would be"):
        check_recipe(changed("data", batch_size=12), mesh)
    with pytest.raises(UserError, match=r"batch_size=8 .*accumulation_steps=3; 24 would be"):
        check_recipe(changed("optimizer", accumulation_steps=3), mesh)


def test_a_row_longer_than_the_models_context_is_named(mesh):
    with pytest.raises(UserError, match="data.sequence_length=512 is longer than model.max_position_embeddings=256"):
        check_recipe(changed("data", sequence_length=512), mesh)


def test_a_tokenizer_larger_than_the_models_vocabulary_is_named(mesh):
    with pytest.raises(UserError, match="data.vocab_size=9000 is larger than model.vocab_size=4096"):
        check_recipe(changed("data", vocab_size=9000), mesh)


@pytest.mark.parametrize(
    "fields", [{"num_layers": 10**9}, {"embed_dim": 10**9}, {"vocab_size": 10**12}, {"hidden_dim": 10**10}]
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(mesh, fields):
    with pytest.raises(
        UserError, match=f"model.*{next(iter(fields)) if 'hidden_dim' not in fields else 'parameters'}.*GiB"
    ):
        check_recipe(changed("model", **fields), mesh)


def test_the_memory_that_is_certainly_needed_counts_weights_gradients_moments_and_layer_inputs(mesh):
    found = recipe(DEFAULT)
    tokens = found.data.batch_size * found.data.sequence_length
    inputs = 4 * tokens * found.model.embed_dim * found.model.num_layers
    assert least_bytes(found, mesh) == 16 * found.model.num_parameters() + inputs


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seed": -1}, "seed must lie in"),
        ({"z_loss": -0.5}, "z_loss must lie in"),
        ({"loss_chunk_tokens": 0}, "loss_chunk_tokens must be at least 1"),
        ({"sample_tokens": -3}, "sample_tokens must lie in"),
        ({"run_dir": "gs://bucket/run"}, "run_dir must be a folder"),
        ({"model_from_init": True}, "model_from_init needs init_from"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(recipe(DEFAULT), **fields)


def test_eight_devices_are_there_for_these_tests():
    assert jax.device_count() == 8
