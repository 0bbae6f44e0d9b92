import jax
import numpy as np
import pytest

from zoo.errors import UserError
from zoo.inference.prompts import check_mask, check_tokens, left_pad, positions_of, row_keys


def test_prompts_of_unequal_length_end_together():
    tokens, mask = left_pad([[5, 6, 7], [8]])
    assert tokens.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert tokens.dtype == mask.dtype == np.int32


def test_the_padded_length_is_a_multiple():
    tokens, mask = left_pad([[5, 6, 7]], pad_id=9, multiple=4)
    assert tokens.tolist() == [[9, 5, 6, 7]]
    assert mask.tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_an_empty_prompt_is_refused(prompts):
    with pytest.raises(UserError, match="no tokens"):
        left_pad(prompts)


def test_positions_count_from_the_first_real_token():
    mask = np.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    assert positions_of(mask).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        (np.zeros((2, 3), np.float32), "dtype float32"),
        (np.zeros(3, np.int32), r"shape \[batch, length\].*got \[3\]"),
        (np.zeros((1, 0), np.int32), r"got \[1, 0\]"),
        (np.array([[0, 1], [2, 10]]), r"id 10 at \[1, 1\].*0 \.\. 9"),
        (np.array([[0, -1]]), r"id -1 at \[0, 1\]"),
        (np.array([["a"]]), "dtype"),
        (np.array([[2**40]]), "outside the vocabulary"),
    ],
)
def test_arrays_that_are_no_tokens_are_refused(tokens, said):
    with pytest.raises(UserError, match=said):
        check_tokens(tokens, 10)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16, np.int8])
def test_any_integer_dtype_is_taken(dtype):
    assert check_tokens(np.array([[1, 2]], dtype), 10).dtype == np.int32


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ([[1, 1]], r"shape \[1, 2\] differs"),
        ([[1, 1, 1], [0, 0, 0]], "row 1 has no token"),
        ([[1, 1, 1], [1, 0, 1]], "row 1 has padding between"),
        ([[1, 1, 1], [1, 1, 0]], "row 1 ends with padding"),
        ([[1, 1, 1], [2, 2, 2]], "1 for a token and 0 for padding"),
        ([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], "dtype float64"),
    ],
)
def test_masks_that_are_no_left_padding_are_refused(mask, said):
    with pytest.raises(UserError, match=said):
        check_mask(np.asarray(mask), np.zeros((2, 3), np.int32), left=True)


def test_right_padding_is_taken_where_it_has_a_meaning():
    mask = [[1, 1, 0], [1, 1, 1]]
    assert check_mask(np.array(mask, bool), np.zeros((2, 3), np.int32)).tolist() == mask


def key_data(*arguments) -> list:
    return [tuple(row) for row in np.asarray(jax.random.key_data(row_keys(*arguments))).tolist()]


def test_a_prompts_key_depends_neither_on_its_batch_nor_on_its_padding():
    tokens, mask = left_pad([[5, 6], [7, 8, 9]])
    (alone,) = key_data(0, *left_pad([[5, 6]]))
    assert key_data(0, tokens, mask)[0] == alone
    assert key_data(0, tokens[::-1], mask[::-1])[1] == alone


def test_equal_prompts_different_prompts_and_other_seeds_have_different_keys():
    keys = key_data(0, *left_pad([[5, 6], [5, 6], [5, 6], [6, 5]])) + key_data(1, *left_pad([[5, 6]]))
    assert len(set(keys)) == 5
