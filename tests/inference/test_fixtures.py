"""Optional: models whose logits and greedy continuations a public implementation has computed."""

import numpy as np
import pytest

import zoo
from tests.marks import slow
from zoo.inference import generate, token_logits

FOLDERS = [
    "gemma2-tiny",
    "gemma2-tiny-b",
    "gemma2-nocap",
    "gemma2-train-smooth",
    "gemma2-bf16-sharded",
]


# tests/interop/test_parity.py asks the same of every folder: here it is about the compiled programs of inference.
@pytest.fixture(scope="module", params=[FOLDERS[0], *slow(*FOLDERS[1:])])
def reference(request, shared_dir):
    folder = shared_dir / "fixtures" / request.param
    if not folder.is_dir():
        pytest.skip(f"optional test data: no {folder}")
    with np.load(folder / "expected.npz", allow_pickle=False) as arrays:
        return zoo.load(folder).model, {name: arrays[name] for name in arrays.files}


def test_logits_far_past_the_window_agree(reference):
    model, expected = reference
    logits = token_logits(model, expected["input_ids"])
    assert expected["input_ids"].shape[1] > 2 * model.config.sliding_window
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-4)


def test_right_padding_does_not_change_logits(reference):
    model, expected = reference
    mask = expected["rpad_mask"]
    logits = token_logits(model, expected["rpad_input_ids"], mask)
    np.testing.assert_allclose(logits[mask == 1], expected["logits"][mask == 1], rtol=0, atol=2e-4)


@pytest.mark.parametrize("prompt", [*slow("short", "long"), "leftpad"])
def test_greedy_continuations_are_equal(reference, prompt):
    model, expected = reference
    new = generate(model, expected[f"gen_prompt_{prompt}"], expected.get(f"gen_mask_{prompt}"), max_new_tokens=32)
    np.testing.assert_array_equal(new, expected[f"gen_ids_{prompt}"])
