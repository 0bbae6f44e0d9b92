"""Generation after images and recordings: the same tokens as without a cache, alone as in a batch."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.inference.tiny_media import CLIP_TOKENS, CONFIG, WORDS, model, prompt
from zoo.data import Media
from zoo.errors import UserError
from zoo.inference import ImageOutput, Sampling, generate, stack_prompts, token_log_probabilities
from zoo.inference.answers import answer_log_probabilities
from zoo.inference.media_prompts import check_media, media_contents, with_answer
from zoo.inference.model import take_apart
from zoo.inference.prompts import row_keys
from zoo.parallel import MeshConfig, make_mesh

NEW = 12
IMAGES = ImageOutput(WORDS, codes_per_image=3)
PROMPTS = [prompt(0, squares=(2, 1), clips=1), prompt(1, squares=(3,), clips=2, words=5), prompt(2, forced=True)]


def drawn(prompts=PROMPTS, image_output=IMAGES, **options):
    tokens, mask, media = stack_prompts(prompts, patch_multiple=16)
    options = {"max_new_tokens": NEW, "media": media, "image_output": image_output} | options
    return generate(model(), tokens, mask, **options).tolist()


@functools.cache
def greedy():
    return drawn()


def full_logits(prompts):
    """For each prompt the float32 logits of one whole forward pass over it alone, from its first token on."""
    tokens, mask, media = stack_prompts(prompts, patch_multiple=16)
    missing = (mask == 0).sum(1)

    def to_the_left(rows):
        return np.stack([np.roll(row, -count) for row, count in zip(rows, missing, strict=True)])

    slots = {name: to_the_left(getattr(media, name)) for name in ("image_slots", "audio_slots")}
    structure, arrays = take_apart(model())
    run = jax.jit(lambda arrays, tokens, media: structure.restore(arrays)(tokens, media=media))
    logits = run(arrays, to_the_left(tokens), dataclasses.replace(media, **slots))
    return [row[: len(ids[0])] for row, (ids, _) in zip(np.asarray(logits), prompts, strict=True)]


def constrained_argmax(logits, open_image: bool):
    """What greedy decoding takes from each position, by the rules as they are told."""
    found, written = [], 0 if open_image else None
    for row in logits:
        if written is None:
            ids = [*range(WORDS.text_size), WORDS.image_begin]
        else:
            ids = [WORDS.image_end] if written == 3 else range(WORDS.first_code, WORDS.size)
        found.append(max(ids, key=lambda token: row[token]))
        if written is None:
            written = 0 if found[-1] == WORDS.image_begin else None
        else:
            written = None if written == 3 else written + 1
    return found


def test_greedy_tokens_are_those_of_a_full_forward_pass_over_each_prompt_and_its_media():
    logits = full_logits([with_answer(one, row) for one, row in zip(PROMPTS, greedy(), strict=True)])
    for number, (row, of_row) in enumerate(zip(greedy(), logits, strict=True)):
        assert row == constrained_argmax(of_row[-NEW - 1 : -1], open_image=number == 2)
    assert len(np.unique(greedy())) > 8, "a nearly constant sequence would prove little"


@pytest.mark.slow
def test_a_prompt_alone_is_continued_as_in_a_batch():
    options = dict(sampling=Sampling(3.0, top_k=20), seed=5)
    for one, row in zip(PROMPTS, drawn(**options), strict=True):
        assert drawn([one], **options) == [row]


@pytest.mark.slow
def test_devices_that_share_a_prompt_with_media_give_the_tokens_of_one():
    """Five of them: prompts are padded to a multiple of 5, the slots with them."""
    assert max(len(ids[0]) for ids, _ in PROMPTS) % 5
    assert drawn(mesh=make_mesh(MeshConfig(context=5), jax.devices()[:5])) == greedy()


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [Sampling(0.5), Sampling(30.0, top_p=0.9), Sampling(5.0, top_k=3)], ids=str)
def test_the_model_draws_whole_images_and_words_only(sampling):
    for row, opened in zip(drawn(sampling=sampling, max_new_tokens=60), (False, False, True), strict=True):
        left = ([WORDS.image_begin] if opened else []) + row
        while WORDS.image_begin in left:
            at = left.index(WORDS.image_begin)
            image, left = left[at : at + 5], left[:at] + left[at + 5 :]
            assert WORDS.is_code(np.array(image[1:4])).all() and image[4:] in ([], [WORDS.image_end])
        assert max(left, default=0) < WORDS.text_size
    assert max(max(row) for row in drawn(PROMPTS[:2], ImageOutput(WORDS), sampling=sampling)) < WORDS.text_size


@pytest.mark.slow
def test_answers_are_scored_as_by_the_full_forward_pass():
    prompts, answers = PROMPTS, [[5, 6, 7], [8], [WORDS.first_code, WORDS.first_code + 2]]
    scores = answer_log_probabilities(model(), prompts, answers, batch_size=2)
    logits = full_logits([with_answer(*pair) for pair in zip(prompts, answers, strict=True)])
    for score, answer, of_row in zip(scores, answers, logits, strict=True):
        log_p = jax.nn.log_softmax(of_row[-len(answer) - 1 : -1])
        np.testing.assert_allclose(score, sum(log_p[i, token] for i, token in enumerate(answer)), atol=1e-4)


def test_prompts_of_unequal_length_and_media_are_one_batch():
    tokens, mask, media = stack_prompts(PROMPTS, pad_id=9, multiple=8, patch_multiple=8, clip_multiple=3)
    assert tokens.shape == (3, 24) and media.images.patches.shape == (3, 16, 48) and media.audio.mel.shape[:2] == (3, 3)
    for row, (ids, own) in enumerate(PROMPTS):
        start = 24 - ids.shape[1]
        assert tokens[row, start:].tolist() == ids[0].tolist() and (tokens[row, :start] == 9).all()
        assert mask[row].tolist() == [0] * start + [1] * ids.shape[1]
        for name in ("image_slots", "audio_slots"):
            slots = getattr(media, name)[row]
            expected = np.full(ids.shape[1], -1) if own is None else getattr(own, name)[0]
            assert (slots[:start] == -1).all() and slots[start:].tolist() == expected.tolist()
    assert media.images.segment_ids.tolist() == [[1] * 8 + [2] * 4 + [0] * 4, [1] * 12 + [0] * 4, [0] * 16]
    assert media.audio.mask.sum((1, 2)).tolist() == [own.audio.mask.sum() if own else 0 for _, own in PROMPTS]
    assert stack_prompts(PROMPTS[2:])[2] is None


def test_what_is_drawn_depends_on_what_an_image_shows_and_not_on_padding():
    def keys(prompts, **multiples):
        tokens, mask, media = stack_prompts(prompts, **multiples)
        keys = row_keys(0, tokens, mask, media_contents(media, len(mask)))
        return [tuple(key) for key in np.asarray(jax.random.key_data(keys)).tolist()]

    other = prompt(0, squares=(2, 1), clips=1)
    other[1].images.patches[0, 0, 0] += 0.5
    together = keys([*PROMPTS, other], patch_multiple=32, clip_multiple=5)
    assert len(set(together)) == 4
    assert together[:3] == [keys([one])[0] for one in PROMPTS]
    as_text = row_keys(0, PROMPTS[2][0], np.ones_like(PROMPTS[2][0]))
    assert list(together[2]) == np.asarray(jax.random.key_data(as_text))[0].tolist()


def changed(**parts):
    """The media of the first prompt with other parts."""
    media = PROMPTS[0][1]
    return dataclasses.replace(media, **parts)


IMAGE_SLOTS = PROMPTS[0][1].image_slots
AUDIO = PROMPTS[0][1].audio
BAD_MEDIA = {
    "blind": (Media(PROMPTS[0][1].images, None, IMAGE_SLOTS), dict(vision=None), "no image encoder"),
    "deaf": (changed(), dict(audio=None), "no audio encoder"),
    "no slots": (changed(image_slots=None), {}, "image needs both"),
    "other rows": (changed(images=stack_prompts(PROMPTS[:2])[2].images), {}, "image patches of 2 rows for 1 prompts"),
    "other length": (changed(image_slots=IMAGE_SLOTS[:, 1:]), {}, "image_slots .* differ from the tokens'"),
    "no such image": (changed(image_slots=IMAGE_SLOTS + 1), {}, r"must lie in -1 \.\. 2, found 0 \.\. 3"),
    "no such clip": (changed(audio_slots=PROMPTS[0][1].audio_slots + CLIP_TOKENS), {}, "audio_slots must lie in"),
    "patches of another size": (changed(), dict(vision=dataclasses.replace(CONFIG.vision, patch_size=2)), "takes 12"),
    "half a square": (changed(), dict(vision_merge=5), "whole squares of 25 patches"),
    "other bands": (changed(audio=dataclasses.replace(AUDIO, mel=AUDIO.mel[..., 1:])), {}, "of 15 bands, .* takes 16"),
    "other frames": (
        changed(audio=dataclasses.replace(AUDIO, mel=AUDIO.mel[:, :, 1:], mask=AUDIO.mask[:, :, 1:])),
        {},
        "31 frames are not a multiple of 8",
    ),
}


@pytest.mark.parametrize("case", BAD_MEDIA)
def test_media_that_the_model_does_not_read_are_refused(case):
    media, changes, said = BAD_MEDIA[case]
    with pytest.raises(UserError, match=said) as raised:
        check_media(media, dataclasses.replace(CONFIG, **changes), np.ones_like(PROMPTS[0][0]))
    assert "\n" not in str(raised.value)


def test_media_at_padding_are_refused_by_generation_and_scoring_alike():
    tokens, media = PROMPTS[0]
    mask = (np.arange(tokens.shape[1]) > 5)[None].astype(int)
    for use in (functools.partial(generate, max_new_tokens=1), token_log_probabilities):
        with pytest.raises(UserError, match="image_slots stand at padding"):
            use(model(), tokens, mask, media=media)


def test_a_model_of_text_refuses_media(make_model):
    tokens, media = PROMPTS[0]
    with pytest.raises(UserError, match="no image encoder"):
        generate(make_model(), tokens, max_new_tokens=1, media=media)
