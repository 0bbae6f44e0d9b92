"""A prompt with media that is read in chunks leaves what a prompt that is read in one piece leaves."""

import jax
import numpy as np
import pytest

from tests.inference import tiny_media
from zoo.errors import UserError
from zoo.inference import continuation_log_probabilities, generate, prefill_in_chunks, stack_prompts
from zoo.inference.answers import answer_log_probabilities
from zoo.inference.media_chunks import media_in_chunks
from zoo.inference.media_prompts import padded_media

PROMPTS = (
    tiny_media.prompt(0, squares=(4, 1, 6), clips=2),
    tiny_media.prompt(1, squares=(2,), words=2),
    tiny_media.prompt(2, clips=3, words=5),
)


@pytest.mark.parametrize("chunk", [5, pytest.param(16, marks=pytest.mark.slow)])
def test_chunks_leave_what_one_piece_leaves(chunk):
    model = tiny_media.model()
    tokens, mask, media = stack_prompts(PROMPTS)
    whole = generate(model, tokens, mask, max_new_tokens=4, media=media)
    np.testing.assert_array_equal(
        generate(model, tokens, mask, max_new_tokens=4, media=media, prefill_chunk=chunk), whole
    )
    answers = [[5, 6], [7], [8, 9, 10]]
    tokens, mask, media = stack_prompts(PROMPTS[:1])
    read = prefill_in_chunks(model, tokens, mask, chunk=chunk, room=4, media=media)
    found = continuation_log_probabilities(model, read, answers)
    np.testing.assert_allclose(found, answer_log_probabilities(model, PROMPTS[:1] * 3, answers), atol=1e-4)
    without = prefill_in_chunks(model, tokens, mask, chunk=chunk, room=4)
    assert np.abs(np.asarray(without.logits) - np.asarray(read.logits)).max() > 1e-2


def test_a_chunk_holds_only_what_stands_in_it():
    tokens, _, media = stack_prompts(PROMPTS)
    chunk = 8
    missing = -tokens.shape[1] % chunk
    parts = media_in_chunks(padded_media(media, missing), tiny_media.CONFIG, chunk)
    assert len(parts) == (tokens.shape[1] + missing) // chunk
    shapes = {str(jax.tree.map(np.shape, part)) for part in parts}
    assert len(shapes) == 1
    # Images of 4, 1 and 6 squares with a marker before and after each: no eight tokens meet more than 6 + 1 squares.
    assert parts[0].images.patches.shape[1] // 4 < 11 and parts[0].audio.mel.shape[1] <= 3
    slots = np.pad(media.image_slots, ((0, 0), (missing, 0)), constant_values=-1)
    for number, part in enumerate(parts):
        before = slots[:, number * chunk : (number + 1) * chunk]
        np.testing.assert_array_equal(before >= 0, part.image_slots >= 0)
        for row, column in np.argwhere(before >= 0):
            old, new = 4 * before[row, column], 4 * part.image_slots[row, column]
            np.testing.assert_array_equal(
                media.images.patches[row, old : old + 4], part.images.patches[row, new : new + 4]
            )
    assert media_in_chunks(None, tiny_media.CONFIG, chunk) is None


def test_media_that_do_not_fit_the_tokens_are_refused():
    tokens, mask, media = stack_prompts(PROMPTS)
    with pytest.raises(UserError, match="media: image_slots"):
        prefill_in_chunks(tiny_media.model(), tokens[:, 1:], mask[:, 1:], chunk=8, media=media)
