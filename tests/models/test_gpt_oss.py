"""gpt-oss computes what transformers computes, and notices another routing convention, window, sink or rotation."""

import jax.numpy as jnp
import pytest
from flax import nnx

from tests.marks import slow
from tests.models import sparse_folders as sparse
from zoo.models import config_from_dict, config_to_dict, preset


@pytest.fixture
def case(request):
    return sparse.folder_and_expected(request, request.param, "gpt_oss")


@pytest.mark.parametrize("case", ["golden", "gptoss-tiny"], indirect=True)
def test_logits_hidden_states_and_routing_are_those_of_transformers(case):
    folder, expected = case
    sparse.check_values(sparse.load(folder), expected)


@pytest.mark.parametrize(
    ("case", "kind"),
    [("golden", "leftpad"), *slow(*(("gptoss-tiny", kind) for kind in ("short", "long", "leftpad")))],
    indirect=["case"],
)
def test_greedy_continuations_are_those_of_transformers(case, kind):
    folder, expected = case
    sparse.check_continuation(sparse.load(folder), expected, kind)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gptoss-tiny"], indirect=True)
def test_right_padding_changes_no_logit_of_a_real_token(case):
    folder, expected = case
    sparse.check_right_padding(sparse.load(folder), expected)


@pytest.mark.parametrize("execution", slow({"scan_layers": True}, {"attention_implementation": "reference"}))
@pytest.mark.parametrize("case", ["golden"], indirect=True)
def test_however_it_is_computed_the_values_are_the_same(case, execution):
    folder, expected = case
    model = sparse.load(folder, **execution)
    assert sparse.difference(model, expected) < sparse.TOLERANCE
    sparse.check_continuation(model, expected, "leftpad")


MISTAKES = {
    "weights are not renormalised": {"experts": {"routing": "softmax_topk"}},
    "experts without the clip and slope": {"experts": {"activation": "silu"}},
    "a window of one more": {"sliding_window": 6},
    "a window of one less": {"sliding_window": 4},
    "odd layers are local": {"layer_types": ("global", "local")},
    "no YaRN": {"rope_scaling": None},
}


@pytest.mark.parametrize("mistake", ["weights are not renormalised", *slow(*list(MISTAKES)[1:])])
@pytest.mark.parametrize("case", ["golden"], indirect=True)
def test_the_golden_would_notice_that(case, mistake):
    folder, expected = case
    wrong = sparse.with_config(sparse.load(folder), **MISTAKES[mistake])
    assert sparse.difference(wrong, expected) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sinks", "query_bias", "key_bias", "value_bias", "output_bias", "down_bias", "bias"])
@pytest.mark.parametrize("case", ["golden"], indirect=True)
def test_a_vector_that_is_left_out_would_be_noticed(case, name):
    folder, expected = case
    model = sparse.load(folder)
    without = -1e4 if name == "sinks" else 0.0
    changed = 0
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path[-1] == name:
            leaf.set_value(jnp.full_like(leaf.get_value(), without))
            changed += 1
    assert changed == 2
    assert sparse.difference(model, expected) > 1e-2


# arXiv 2508.10925, table 1: 20.91B and 116.83B; 3.61B and 5.13B active, the embedding not counted there. The totals are
# to the last digit general.parameter_count of the released GGUF files (looked up on 2026-11-26).
COUNTS = [
    ("gpt-oss-20b", 20_914_757_184, 4_187_440_704, 3.61),
    ("gpt-oss-120b", 116_829_156_672, 5_711_982_912, 5.13),
]


@pytest.mark.parametrize(("name", "total", "active", "billions"), COUNTS)
def test_parameter_counts_are_the_published_ones(name, total, active, billions):
    config = preset(name)
    assert config.num_parameters() == sparse.count_parameters(config, scan_layers=True) == total
    assert config.num_active_parameters() == active
    assert round((active - config.vocab_size * config.embed_dim) / 1e9, 2) == billions
    assert config_from_dict(config_to_dict(config)) == config
    assert config.rope_scaling.magnitude == pytest.approx(1.3465735902799727)
