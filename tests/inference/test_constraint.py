"""Images are drawn whole: after image_begin so many codes and image_end, and nothing else is drawn but words."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import slow
from zoo.data import MediaVocabulary
from zoo.errors import UserError
from zoo.inference import ImageOutput, Sampling, left_pad, sample
from zoo.inference.constraint import advance, allowed, constrain, first_state

WORDS = MediaVocabulary(text_size=7, image_codes=5)
IMAGES = ImageOutput(WORDS, codes_per_image=3)
V = 20  # ids 18 and 19 are nothing
STEPS = 200
LETTERS = {**dict.fromkeys(range(7), "w"), 7: "(", 8: ")", **dict.fromkeys(range(13, 18), "c")}


@functools.cache
def program(sampling: Sampling, output: ImageOutput):
    """(bonus of each id) -> 200 tokens of 8 rows from random logits and that."""

    @jax.jit
    def run(bonus):
        def step(state, step):
            logits, keys = step
            tokens = sample(constrain(output, state, logits + bonus), keys, sampling)
            return advance(output, state, tokens), tokens

        logits = 4 * jax.random.normal(jax.random.key(0), (STEPS, 8, V))
        keys = jax.random.split(jax.random.key(1), (STEPS, 8))
        state = jnp.full(8, -1, jnp.int32) if output.codes_per_image else None
        return jax.lax.scan(step, state, (logits, keys))[1].T

    return run


def drawn(sampling: Sampling, output: ImageOutput, favoured: int | None = None) -> list[str]:
    """The tokens as words w, codes c, image_begin and image_end ( and ), all else !; one id may be all but certain."""
    tokens = program(sampling, output)(np.where(np.arange(V) == favoured, 1e4, 0.0))
    return ["".join(LETTERS.get(token, "!") for token in row) for row in np.asarray(tokens).tolist()]


SAMPLINGS = [Sampling(1.0, top_k=4), *slow(Sampling(), Sampling(50.0), Sampling(1e-6, top_p=0.5))]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_images_have_exactly_their_codes_and_all_else_is_words(sampling):
    rows = drawn(sampling, IMAGES)
    # What is left is an image that the last step cut off.
    assert all(re.fullmatch(r"w*(\(c{0,3})?", row.replace("(ccc)", "")) for row in rows), rows
    assert sum(row.count("(ccc)") for row in rows) > 8


@pytest.mark.parametrize("favoured", [8, 9, 15, 19])
def test_a_token_that_may_not_come_is_not_drawn_however_probable_it_is(favoured):
    """image_end, the placeholder of soft tokens, a code, an id that is nothing."""
    for row in drawn(Sampling(1.0, top_k=4), IMAGES, favoured):
        assert re.fullmatch(r"w*(\(c{0,3})?", row.replace("(ccc)", "")), row
    for row in drawn(Sampling(50.0), ImageOutput(WORDS), favoured):
        assert set(row) == {"w"}


def test_what_may_come_next_in_every_state():
    states = np.array([-1, 0, 2, 3])
    table = ["".join("01"[int(yes)] for yes in row) for row in np.asarray(allowed(IMAGES, states, V))]
    inside = "0" * 13 + "1" * 5 + "00"
    assert table == ["1" * 8 + "0" * 12, inside, inside, "0" * 8 + "1" + "0" * 11]


@pytest.mark.parametrize(
    ("prompt", "state"),
    [([3, 4], -1), ([3, 7], 0), ([7, 13, 14], 2), ([7, 13, 14, 15], 3), ([7, 9, 9, 8, 3], -1), ([7, 9, 8, 3, 7], 0)],
    ids=str,
)
def test_a_prompt_says_how_many_codes_its_open_image_has(prompt, state):
    tokens, mask = left_pad([[7, *prompt], prompt])
    mask[0, 0] = 0  # an image_begin that is padding
    assert first_state(IMAGES, tokens, mask, V).tolist() == [state, state]


@pytest.mark.parametrize(
    ("output", "prompt", "vocab_size", "said"),
    [
        (IMAGES, [7, 13, 13, 13, 13], V, "prompt 1 ends in an open image"),
        (IMAGES, [7, 13, 3], V, "prompt 1 ends in an open image"),
        (ImageOutput(WORDS), [3, 7], V, "no images are written"),
        (IMAGES, [3], 17, "are 18 tokens, the model has 17"),
    ],
    ids=str,
)
def test_prompts_that_cannot_be_continued_are_refused(output, prompt, vocab_size, said):
    with pytest.raises(UserError, match=said):
        first_state(output, np.array([prompt]), np.ones((1, len(prompt)), int), vocab_size)


def test_images_need_codes_in_the_vocabulary():
    with pytest.raises(UserError, match="no image codes"):
        ImageOutput(MediaVocabulary(7), codes_per_image=3)
    with pytest.raises(UserError, match="at least 0"):
        ImageOutput(WORDS, codes_per_image=-1)
