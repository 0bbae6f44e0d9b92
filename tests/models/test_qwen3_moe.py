"""Qwen3-MoE computes what transformers computes, in both normalisations, and notices another routing convention."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import slow
from tests.models import sparse_folders as sparse
from zoo.errors import UserError
from zoo.models import config_from_dict, config_to_dict, preset

FOLDERS = ["golden", "qwen3moe-tiny-norm", "qwen3moe-tiny-nonorm"]


@pytest.fixture
def case(request):
    return sparse.folder_and_expected(request, request.param, "qwen3_moe")


@pytest.mark.parametrize("case", FOLDERS, indirect=True)
def test_logits_hidden_states_and_routing_are_those_of_transformers(case):
    folder, expected = case
    sparse.check_values(sparse.load(folder), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["short", "long", "leftpad"])
@pytest.mark.parametrize("case", ["qwen3moe-tiny-norm", "qwen3moe-tiny-nonorm"], indirect=True)
def test_greedy_continuations_are_those_of_transformers(case, kind):
    folder, expected = case
    sparse.check_continuation(sparse.load(folder), expected, kind)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["qwen3moe-tiny-norm", "qwen3moe-tiny-nonorm"], indirect=True)
def test_right_padding_changes_no_logit_of_a_real_token(case):
    folder, expected = case
    sparse.check_right_padding(sparse.load(folder), expected)


@pytest.mark.parametrize(
    ("case", "routing"),
    [
        ("golden", "softmax_topk_renormalised"),
        *slow(("qwen3moe-tiny-norm", "softmax_topk"), ("qwen3moe-tiny-nonorm", "softmax_topk_renormalised")),
    ],
    indirect=["case"],
)
def test_the_other_normalisation_would_be_noticed(case, routing):
    folder, expected = case
    assert sparse.difference(sparse.with_config(sparse.load(folder), experts={"routing": routing}), expected) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("case", ["golden"], indirect=True)
def test_norms_of_queries_and_keys_would_be_missed(case):
    folder, expected = case
    model = sparse.load(folder)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path[-2] in ("query_norm", "key_norm"):
            leaf.set_value(jnp.ones_like(leaf.get_value()))
    assert sparse.difference(model, expected) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("case", ["golden"], indirect=True)
def test_dense_and_sparse_layers_can_be_scanned(case):
    folder, expected = case
    model = sparse.load(folder, scan_layers=True)
    assert model.config.layer_kinds == ("dense", "sparse")
    assert sparse.difference(model, expected) < sparse.TOLERANCE


# Model cards: Qwen3-30B-A3B 30.5B, 3.3B active; Qwen3-235B-A22B 235B, 22B active. The totals are to the last digit
# general.parameter_count of the GGUF file and keras-hub's preset qwen3_moe_235b_a22b_en (looked up on 2026-11-26).
COUNTS = [
    ("qwen3-30b-a3b", 30_532_122_624, 3_353_032_704),
    ("qwen3-235b-a22b", 235_093_634_560, 22_190_763_520),
]


@pytest.mark.parametrize(("name", "total", "active"), COUNTS)
def test_parameter_counts_are_the_published_ones(name, total, active):
    config = preset(name)
    assert config.num_parameters() == sparse.count_parameters(config, scan_layers=True) == total
    assert config.num_active_parameters() == active
    norms = (2 * config.num_layers + 1) * config.embed_dim + 2 * config.num_layers * config.head_dim
    not_multiplied = norms + config.vocab_size * config.embed_dim
    pairs = 4 * config.num_heads * config.head_dim * config.num_layers
    assert config.flops_per_token(1) == 2 * (active - not_multiplied) + pairs
    assert config_from_dict(config_to_dict(config)) == config


def test_a_dense_layer_counts_as_one():
    config = preset("qwen3-30b-a3b")
    values = config_to_dict(config) | {"layer_kinds": ["dense", "sparse"], "num_layers": 4}
    mixed = config_from_dict(values)
    assert mixed.num_parameters() == sparse.count_parameters(mixed)
    assert [mixed.is_sparse(i) for i in range(4)] == [False, True, False, True]
    with pytest.raises(UserError, match="layer_kinds"):
        config_from_dict(values | {"layer_kinds": ["dense"]})
    assert np.isfinite(mixed.flops_per_token(128))
