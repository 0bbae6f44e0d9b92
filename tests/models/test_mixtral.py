"""Mixtral computes what transformers computes, and notices another routing convention."""

import pytest

from tests.marks import slow
from tests.models import sparse_folders as sparse
from zoo.models import config_from_dict, config_to_dict, preset

FOLDERS = ["golden", "mixtral-tiny", "mixtral-tiny-sw"]


@pytest.fixture
def case(request):
    return sparse.folder_and_expected(request, request.param, "mixtral")


@pytest.mark.parametrize("case", FOLDERS, indirect=True)
def test_logits_hidden_states_and_routing_are_those_of_transformers(case):
    folder, expected = case
    sparse.check_values(sparse.load(folder), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["short", "long", "leftpad"])
@pytest.mark.parametrize("case", ["mixtral-tiny", "mixtral-tiny-sw"], indirect=True)
def test_greedy_continuations_are_those_of_transformers(case, kind):
    folder, expected = case
    sparse.check_continuation(sparse.load(folder), expected, kind)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mixtral-tiny", "mixtral-tiny-sw"], indirect=True)
def test_right_padding_changes_no_logit_of_a_real_token(case):
    folder, expected = case
    sparse.check_right_padding(sparse.load(folder), expected)


@pytest.mark.parametrize(
    "execution", slow({"scan_layers": True}, {"attention_implementation": "reference"}, {"remat_policy": "norms"})
)
@pytest.mark.parametrize("case", ["golden"], indirect=True)
def test_however_it_is_computed_the_logits_are_the_same(case, execution):
    folder, expected = case
    assert sparse.difference(sparse.load(folder, **execution), expected) < sparse.TOLERANCE


MISTAKES = {
    "weights are not renormalised": {"experts": {"routing": "softmax_topk"}},
    "weights are doubled": {"experts": {"routing_scale": 2.0}},
    "GeGLU": {"experts": {"activation": "gelu_tanh"}},
    "one expert": {"experts": {"experts_per_token": 1}},
    "a window of one more": {"sliding_window": 6},
    "a window of one less": {"sliding_window": 4},
    "another RoPE base": {"rope_theta": 10_000.0},
}


@pytest.mark.parametrize("mistake", ["weights are not renormalised", *slow(*list(MISTAKES)[1:])])
@pytest.mark.parametrize("case", ["golden"], indirect=True)
def test_the_golden_would_notice_that(case, mistake):
    folder, expected = case
    wrong = sparse.with_config(sparse.load(folder), **MISTAKES[mistake])
    assert sparse.difference(wrong, expected) > 0.02


# arXiv 2401.04088, section 2.2: 47B and 13B; Mistral on 8x22B: 141B and 39B. The totals are to the last digit those of
# keras-hub's preset mixtral_8_7b_en ("params") and of the released safetensors (both looked up on 2026-11-26).
COUNTS = [("mixtral-8x7b", 46_702_792_704, 12_879_925_248), ("mixtral-8x22b", 140_620_634_112, 39_152_031_744)]


@pytest.mark.parametrize(("name", "total", "active"), COUNTS)
def test_parameter_counts_are_the_published_ones(name, total, active):
    config = preset(name)
    assert config.num_parameters() == sparse.count_parameters(config, scan_layers=True) == total
    assert config.num_active_parameters() == active
    # Without attention's pairs a forward pass is two operations per active weight that is multiplied.
    not_multiplied = (2 * config.num_layers + 1) * config.embed_dim + config.vocab_size * config.embed_dim
    pairs = 4 * config.num_heads * config.head_dim * config.num_layers
    assert config.flops_per_token(1) == 2 * (active - not_multiplied) + pairs


@pytest.mark.parametrize("name", [name for name, *_ in COUNTS])
def test_the_config_survives_the_way_through_json(name):
    assert config_from_dict(config_to_dict(preset(name))) == preset(name)
