"""Logits and greedy continuations are those of public implementations; each classical mistake would be noticed."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.marks import all_but
from zoo.inference import Sampling, generate
from zoo.interop import load_huggingface
from zoo.models import Gemma2, Gemma2Config, build
from zoo.nn import Execution

TOLERANCE = 2e-4
FOLDERS = ("golden", "gemma2-tiny", "gemma2-tiny-b", "gemma2-nocap", "gemma2-bf16-sharded", "gemma2-train-smooth")


@pytest.fixture(params=FOLDERS)
def case(request, golden_dir) -> tuple[Path, dict[str, np.ndarray]]:
    """(model folder, its expected.npz) of the golden or of a shared fixture."""
    if request.param == "golden":
        folder = golden_dir
    else:
        folder = request.getfixturevalue("shared_dir") / "fixtures" / request.param
    if not folder.is_dir():
        pytest.skip(f"optional test data: no {folder}")
    with np.load(folder / "expected.npz", allow_pickle=False) as expected:
        return folder, dict(expected)


def logits_of(model: Gemma2, tokens: np.ndarray, **arguments) -> np.ndarray:
    graphdef, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state: nnx.merge(graphdef, state)(jnp.asarray(tokens), **arguments))(state))


def test_logits_are_those_of_transformers(case):
    folder, expected = case
    model = load_huggingface(folder)
    assert expected["input_ids"].shape[1] > model.config.sliding_window
    np.testing.assert_allclose(logits_of(model, expected["input_ids"]), expected["logits"], atol=TOLERANCE)


@pytest.mark.parametrize("execution", [Execution(attention_implementation="reference"), Execution(scan_layers=True)])
def test_however_it_is_computed_the_logits_are_those_of_transformers(golden_dir, execution):
    with np.load(golden_dir / "expected.npz", allow_pickle=False) as expected:
        model = load_huggingface(golden_dir, execution=execution)
        np.testing.assert_allclose(logits_of(model, expected["input_ids"]), expected["logits"], atol=TOLERANCE)


def test_hidden_states_after_the_final_norm_are_those_of_transformers(golden_dir):
    with np.load(golden_dir / "expected.npz", allow_pickle=False) as expected:
        hidden = jax.jit(load_huggingface(golden_dir).hidden_states)(jnp.asarray(expected["input_ids"]))
        np.testing.assert_allclose(hidden, expected["hidden_states_last"], atol=TOLERANCE)


def test_logits_are_those_of_deepminds_own_modules(golden_dir):
    with np.load(golden_dir / "expected.npz", allow_pickle=False) as file:
        tokens = file["input_ids"]
    logits = logits_of(load_huggingface(golden_dir), tokens)
    with np.load(golden_dir / "expected_deepmind.npz", allow_pickle=False) as expected:
        assert sorted(expected.files) == ["transpose_gating=false", "transpose_gating=true"]
        for name in expected.files:
            np.testing.assert_allclose(logits, expected[name], atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize(
    ("case", "length"),
    all_but(
        [("golden", "short"), *itertools.product(FOLDERS, ("long", "leftpad"))],
        list(itertools.product(FOLDERS, ("short", "long", "leftpad"))),
    ),
    indirect=["case"],
)
def test_greedy_continuations_are_those_of_transformers(case, length):
    folder, expected = case
    prompt = expected[f"gen_prompt_{length}"]
    mask = expected.get(f"gen_mask_{length}")
    wanted = expected[f"gen_ids_{length}"]
    model = load_huggingface(folder)
    new = generate(model, prompt, mask, max_new_tokens=wanted.shape[1], sampling=Sampling(temperature=0.0))
    np.testing.assert_array_equal(new, wanted)


@pytest.mark.parametrize("case", FOLDERS[1:], indirect=True)
def test_right_padding_changes_no_logit_of_a_real_token(case):
    folder, expected = case
    mask = expected["rpad_mask"].astype(np.int32)
    logits = logits_of(load_huggingface(folder), expected["rpad_input_ids"], segment_ids=jnp.asarray(mask))
    np.testing.assert_allclose(logits[mask == 1], expected["logits"][mask == 1], atol=TOLERANCE)


# What public implementations once got wrong; each must move the golden's logits by far more than the tolerance.
MISTAKES = {
    "the window is one key too wide (FlashAttention 2 in transformers until 2025)": {"sliding_window": 7},
    "the window is one key too narrow": {"sliding_window": 5},
    "no window at all (Levanter; vLLM at first)": {"layer_types": ("global",)},
    "odd layers are local (transformers 4.42.0 to 4.42.3)": {"layer_types": ("global", "local")},
    "no soft-cap on the attention scores (transformers 4.42.0 to 4.42.2)": {"attn_logit_soft_cap": None},
    "no soft-cap on the logits": {"final_logit_soft_cap": None},
    "the query is scaled by the head size in 27B (MaxText)": {"query_pre_attn_scalar": 12.0},
    "the query is not scaled down (google-deepmind/gemma until July 2024)": {"query_pre_attn_scalar": 8.0**-2},
    "another RoPE base": {"rope_theta": 5_000.0},
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_golden_would_notice_that(golden_dir, mistake):
    right = load_huggingface(golden_dir)
    with np.load(golden_dir / "expected.npz", allow_pickle=False) as expected:
        wrong = with_config(right, replace(right.config, **MISTAKES[mistake]))
        difference = np.abs(logits_of(wrong, expected["input_ids"]) - expected["logits"]).max()
    assert difference > 0.1


def with_config(model: Gemma2, config: Gemma2Config) -> Gemma2:
    """The same weights under another configuration."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, nnx.state(model))


def test_the_golden_would_notice_a_norm_that_multiplies_with_w_instead_of_1_plus_w(golden_dir):
    model = load_huggingface(golden_dir)
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        if path[-1] == "scale":
            leaf.set_value(leaf.get_value() - 1)
    with np.load(golden_dir / "expected.npz", allow_pickle=False) as expected:
        assert np.abs(logits_of(model, expected["input_ids"]) - expected["logits"]).max() > 0.1


def test_the_golden_was_made_by_the_versions_that_its_script_names(golden_dir):
    assert json.loads((golden_dir / "config.json").read_text())["transformers_version"].startswith("5.")
    script = (golden_dir.parent / "make_goldens.py").read_text()
    assert "import zoo" not in script
    assert "from zoo" not in script
