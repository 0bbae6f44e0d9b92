import numpy as np
import pytest

from zoo.data import MediaVocabulary
from zoo.errors import UserError


def test_media_tokens_follow_the_words_in_the_order_of_the_contract_and_codes_come_last():
    words = MediaVocabulary(100, image_codes=32)
    order = [words.image_begin, words.image_end, words.image_soft, words.audio_begin, words.audio_end, words.audio_soft]
    assert order == list(range(100, 106)) and words.first_code == 106 and words.size == 138


def test_codes_and_ids_are_each_others_inverse_and_nothing_else_is_a_code():
    words = MediaVocabulary(100, image_codes=32)
    ids = words.ids_of_codes([0, 31, 7])
    assert ids.tolist() == [106, 137, 113] and words.codes_of_ids(ids).tolist() == [0, 31, 7]
    assert words.is_code(np.array([105, 106, 137, 138])).tolist() == [False, True, True, False]
    with pytest.raises(ValueError):
        words.codes_of_ids(np.array([105]))


@pytest.mark.parametrize("codes", [[-1], [32], [0, 40]])
def test_codes_beyond_the_codebook_are_refused(codes):
    with pytest.raises(UserError, match=r"image codes must lie in 0 \.\. 31"):
        MediaVocabulary(100, image_codes=32).ids_of_codes(codes)
