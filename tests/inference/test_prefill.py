"""A prompt that is read in chunks leaves what a prompt that is read in one piece leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

from zoo.data import Media
from zoo.errors import UserError
from zoo.inference import (
    Sampling,
    continuation_log_probabilities,
    generate,
    generate_after,
    left_pad,
    prefill_in_chunks,
    token_log_probabilities,
)
from zoo.inference import prefill as prefill_module
from zoo.inference.model import take_apart
from zoo.nn import Execution
from zoo.parallel import MeshConfig, make_mesh

WINDOW = 8  # of the fixture `model`


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 96, length).tolist() for length in lengths]


def check_chunks(model, full_logits, chunk: int, lengths: tuple[int, ...], new: int = 0):
    """The logits after the prompts are those of the full forward pass, and so are those of decoding after them."""
    rows = prompts(*lengths)
    prefilled = prefill_in_chunks(model, *left_pad(rows), chunk=chunk, room=new)
    whole = np.stack([full_logits(model, row)[-1] for row in rows])
    np.testing.assert_allclose(prefilled.logits, whole, atol=2e-5)
    if new:
        drawn = generate_after(model, prefilled, max_new_tokens=new + 1)
        for row, tokens in zip(rows, drawn, strict=True):
            logits = full_logits(model, [*row, *tokens.tolist()])
            np.testing.assert_array_equal(logits[len(row) - 1 : -1].argmax(-1), tokens)


@pytest.mark.slow
def test_a_chunk_smaller_than_the_window_sees_the_window_before_it(model, full_logits):
    check_chunks(model, full_logits, 6, (15,))


def test_rows_that_are_padding_for_whole_chunks_are_read_as_they_are_alone(model, full_logits):
    check_chunks(model, full_logits, 12, (29, 3, 12, 13), new=4)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [1, 5, 8, 12])
@pytest.mark.parametrize("scanned", [False, True])
def test_chunks_of_any_size_in_either_layout(make_model, full_logits, chunk, scanned):
    model = make_model(execution=Execution(scan_layers=scanned), num_layers=4)
    for length in (WINDOW - 1, WINDOW, WINDOW + 1, chunk, chunk + 1, 2 * chunk + 3):
        check_chunks(model, full_logits, chunk, (length,), new=WINDOW + 2)
    check_chunks(model, full_logits, chunk, (29, 3, 12, 13), new=WINDOW + 2)


@pytest.mark.slow
def test_the_reference_attention_reads_chunks_too(make_model, full_logits):
    check_chunks(make_model(execution=Execution(attention_implementation="reference")), full_logits, 6, (15,), new=3)


@pytest.mark.slow
def test_all_chunks_share_two_programs_and_report_their_progress(model):
    tokens, _ = left_pad(prompts(39))
    seen = []
    programs = prefill_module._programs(take_apart(model)[0], None)
    before = programs.first._cache_size(), programs.next._cache_size()
    read = prefill_in_chunks(model, tokens, chunk=8, on_chunk=lambda done, total: seen.append((done, total)))
    assert (programs.first._cache_size(), programs.next._cache_size()) == (before[0] + 1, before[1] + 1)
    assert seen == [(8, 40), (16, 40), (24, 40), (32, 40), (40, 40)]
    assert [layer.slots for layer in read.cache] == [WINDOW, 40, WINDOW]


@pytest.mark.slow
def test_generation_after_chunks_draws_what_it_draws_after_one_piece(model):
    batch = left_pad(prompts(20, 15))
    options = {"max_new_tokens": 6, "sampling": Sampling(temperature=1.0), "stop_tokens": (5,), "seed": 3}
    in_chunks = generate(model, *batch, prefill_chunk=12, **options)
    np.testing.assert_array_equal(in_chunks, generate(model, *batch, **options))


def test_answers_are_scored_from_the_cache_as_in_a_pass_over_prompt_and_answer(model):
    (prompt,), answers = prompts(21), prompts(1, 3, 7, seed=1)
    read = prefill_in_chunks(model, [prompt], chunk=6)  # less than a window
    scores = continuation_log_probabilities(model, read, answers)
    rows = [[*prompt, *answer] for answer in answers]
    whole = token_log_probabilities(model, *left_pad(rows))
    np.testing.assert_allclose(
        scores, [row[-len(answer) :].sum() for row, answer in zip(whole, answers, strict=True)], atol=5e-5
    )
    again = continuation_log_probabilities(model, read, answers)  # the cache is still that of the prompt
    np.testing.assert_array_equal(scores, again)


@pytest.mark.slow
def test_a_bfloat16_cache_is_half_as_large_and_changes_the_logits_a_little(model):
    tokens, _ = left_pad(prompts(20))
    exact = prefill_in_chunks(model, tokens, chunk=12)
    rounded = prefill_in_chunks(model, tokens, chunk=12, cache_dtype=jnp.bfloat16)
    assert {layer.key.dtype for layer in rounded.cache} == {jnp.dtype(jnp.bfloat16)}
    difference = np.abs(np.asarray(exact.logits) - np.asarray(rounded.logits)).max()
    assert 0 < difference < 0.05


def test_what_cannot_be_read_in_chunks_is_refused(model):
    with pytest.raises(UserError, match="prefill_chunk must be at least 1 token, got 0"):
        generate(model, [[1, 2, 3]], max_new_tokens=1, prefill_chunk=0)
    with pytest.raises(UserError, match="media are read in one piece"):
        generate(model, [[1, 2, 3]], max_new_tokens=1, prefill_chunk=2, media=Media())
    with pytest.raises(UserError, match="devices that share a sequence read it in one piece"):
        mesh = make_mesh(MeshConfig(fsdp=4, context=2))
        generate(model, [[1, 2, 3]], max_new_tokens=1, prefill_chunk=2, mesh=mesh)
    read = prefill_in_chunks(model, [[1, 2, 3]], chunk=12)
    with pytest.raises(UserError, match="1 .. 1, got 2"):
        generate_after(model, read, max_new_tokens=2)
    for answers in ([], [[4], []]):
        with pytest.raises(UserError, match="no tokens"):
            continuation_log_probabilities(model, read, answers)
    with pytest.raises(UserError, match="answer 0: id 96"):
        continuation_log_probabilities(model, read, [[96]])
