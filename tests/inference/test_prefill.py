"""A prompt that is read in chunks leaves what a prompt that is read in one piece leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

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


INT8_TOLERANCE = 0.1
"""Of logits, in their standard deviations: keys and values are off by up to 1/254 of the largest of their head."""


def test_logits_from_a_cache_in_8_bits_are_close_in_one_piece_and_in_chunks(model):
    batch = left_pad(prompts(29, 21))
    exact = prefill_in_chunks(model, *batch, chunk=12, room=4)
    chunked, whole = (prefill_in_chunks(model, *batch, chunk=n, room=4, cache_dtype="int8") for n in (12, 36))
    assert {layer.key.dtype for layer in chunked.cache} == {jnp.dtype(jnp.int8)}
    np.testing.assert_allclose(whole.logits, exact.logits, atol=2e-5)  # a first piece sees its own tokens as they are
    assert 1e-4 < np.abs(chunked.logits - exact.logits).max() < INT8_TOLERANCE * np.std(exact.logits)
    # Keys and values of the first layer come from the tokens alone: they are the same but for a step in a tie.
    one, other = (read.cache[0] for read in (chunked, whole))
    np.testing.assert_array_equal(one.in_order()[2], other.in_order()[2])
    for x, y, scale in zip(one.in_order()[:2], other.in_order()[:2], one.scales, strict=True):
        np.testing.assert_allclose(x, y, atol=1.01 * float(scale.max()))
    for layer, floating in zip(chunked.cache, exact.cache, strict=True):
        for near, wide in zip(layer.by_slot()[:2], floating.by_slot()[:2], strict=True):
            assert 0 < np.abs(near - wide).max() < 0.05 * np.abs(wide).max()


def test_decoding_from_a_cache_in_8_bits_is_close_to_the_full_forward_pass(model, full_logits):
    (prompt,), (answer,) = prompts(21), prompts(7, seed=1)
    read = prefill_in_chunks(model, [prompt], chunk=12, room=8, cache_dtype="int8")
    (scored,) = continuation_log_probabilities(model, read, [answer])
    logits = full_logits(model, [*prompt, *answer])[len(prompt) - 1 : -1].astype(np.float64)
    near = INT8_TOLERANCE * logits.std()
    whole = (np.take_along_axis(logits, np.array(answer)[:, None], 1)[:, 0] - np.log(np.exp(logits).sum(1))).sum()
    assert abs(scored - whole) < near * len(answer)
    drawn = generate_after(model, read, max_new_tokens=8)[0]
    logits = full_logits(model, [*prompt, *drawn.tolist()])[len(prompt) - 1 : -1]
    assert (logits.max(1) - logits[np.arange(8), drawn] < 2 * near).all()  # greedy, but for near ties


def test_a_cache_in_8_bits_that_the_named_kernel_cannot_decode_from_is_refused(make_model):
    model = make_model(execution=Execution(attention_implementation="pallas_gpu"))
    with pytest.raises(UserError, match="int8 cannot be decoded from by pallas_gpu"):
        generate(model, [[1, 2, 3]], max_new_tokens=2, cache_dtype="int8")


@pytest.mark.slow
def test_devices_that_share_the_slots_of_a_cache_in_8_bits_draw_what_one_draws(model):
    tokens, _ = left_pad(prompts(29))
    one = generate(model, tokens, max_new_tokens=6, cache_dtype="int8")
    mesh = make_mesh(MeshConfig(context=8))
    np.testing.assert_array_equal(generate(model, tokens, max_new_tokens=6, cache_dtype="int8", mesh=mesh), one)


def test_what_cannot_be_read_in_chunks_is_refused(model):
    with pytest.raises(UserError, match="prefill_chunk must be at least 1 token, got 0"):
        generate(model, [[1, 2, 3]], max_new_tokens=1, prefill_chunk=0)
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
