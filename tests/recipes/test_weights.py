"""Which checkpoints a run may begin from."""

import dataclasses

import pytest

from zoo.errors import UserError
from zoo.models import config_to_dict
from zoo.recipes import recipe
from zoo.recipes.weights import TRAINING_OF_EXPERTS, check_init_from
from zoo.training.run_directory import RunInfo, write_run


@pytest.fixture
def new(tmp_path):
    """A sparse model's run that begins from a run of the same model."""
    found = recipe("gemini-tiny-pro")
    write_run(RunInfo(tmp_path / "old", "x", config_to_dict(found.model), {}, None, None, config={}))
    return dataclasses.replace(found, init_from=str(tmp_path / "old"))


def with_experts(new, **changes):
    """The run with other fields of its experts."""
    experts = dataclasses.replace(new.model.experts, **changes)
    return dataclasses.replace(new, model=dataclasses.replace(new.model, experts=experts))


def test_fine_tuning_may_change_how_experts_are_trained(new):
    changes = {"load_balancing_coefficient": 0.5, "router_z_coefficient": 0.0, "jitter": 0.1}
    changes |= {"dispatch": "capacity", "capacity_factor": 2.0, "eval_capacity_factor": 3.0}
    assert set(changes) < set(TRAINING_OF_EXPERTS)
    check_init_from(with_experts(new, **changes))


@pytest.mark.parametrize(
    "changes",
    [{"experts_per_token": 1}, {"routing_scale": 2.0}, {"routing": "topk_softmax"}, {"balancing_bias_rate": 0.1}],
    ids=str,
)
def test_another_function_of_the_parameters_or_other_parameters_are_refused_by_name(new, changes):
    (name,) = changes
    with pytest.raises(UserError, match=rf"is of another model: model.experts.{name} is .* there and .* in this run"):
        check_init_from(with_experts(new, **changes))


def test_the_rate_of_a_selection_bias_may_change_where_there_is_one(new, tmp_path):
    before = with_experts(new, balancing_bias_rate=0.001)
    write_run(RunInfo(tmp_path / "biased", "x", config_to_dict(before.model), {}, None, None, config={}))
    after = with_experts(new, balancing_bias_rate=0.01)
    check_init_from(dataclasses.replace(after, init_from=str(tmp_path / "biased")))


def test_a_dense_model_is_no_beginning_for_a_sparse_one(new, tmp_path):
    dense = dataclasses.replace(new.model, experts=None)
    write_run(RunInfo(tmp_path / "dense", "x", config_to_dict(dense), {}, None, None, config={}))
    with pytest.raises(UserError, match="model.experts is None there"):
        check_init_from(dataclasses.replace(new, init_from=str(tmp_path / "dense")))
