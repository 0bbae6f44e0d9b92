"""Passages: markers bound to roles, whole sentences up to the limit, an order that is random and repeatable."""

import dataclasses

import numpy as np
import pytest

from experiments.relation_extraction.bags import make_bags
from experiments.relation_extraction.passages import (
    Marks,
    as_rows,
    bag_passage,
    mark,
    passage,
    sentence_order,
    sentence_passages,
    shortened,
)
from experiments.relation_extraction.reader import Instance, Mention
from zoo.errors import UserError

MARKS = Marks(cls=1, sep=2, pad=0, head=(3, 4), tail=(5, 6))


class Letters:
    """One token for each letter: its code point."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text if not letter.isspace()]


def sentence(text: str, head: str, tail: str) -> Instance:
    mentions = [Mention(name, name, text.index(name), text.index(name) + len(name)) for name in (head, tail)]
    return Instance(text, *mentions, "NA", None, "corpus, line 1")


def shown(tokens: list[int]) -> str:
    return "".join(
        {1: "^", 2: "|", 0: "_", 3: "<", 4: ">", 5: "[", 6: "]", 7: "H", 8: "T"}.get(t) or chr(t) for t in tokens
    )


def test_markers_go_with_the_role_and_not_with_the_order() -> None:
    assert shown(mark(sentence("a bc d ef g", "bc", "ef"), Letters(), MARKS).tokens) == "a<bc>d[ef]g"
    swapped = mark(sentence("a bc d ef g", "ef", "bc"), Letters(), MARKS)
    assert shown(swapped.tokens) == "a[bc]d<ef>g"
    assert [shown([swapped.tokens[at]]) for at in swapped.markers] == ["<", "["]


def test_mentions_may_touch_overlap_and_stand_at_the_ends() -> None:
    assert shown(mark(sentence("abcd", "ab", "cd"), Letters(), MARKS).tokens) == "<ab>[cd]"
    assert shown(mark(sentence("abcd", "abc", "bcd"), Letters(), MARKS).tokens) == "<a[bc>d]"
    assert shown(mark(sentence("abcd", "abcd", "c"), Letters(), MARKS).tokens) == "<ab[c]d>"


def test_masked_mentions_are_one_token() -> None:
    masked = dataclasses.replace(MARKS, masked=(7, 8))
    assert shown(mark(sentence("a bc d ef", "ef", "bc"), Letters(), masked).tokens) == "a[T]d<H>"
    assert shown(mark(sentence("bc d ef", "bc", "ef"), Letters(), masked).tokens) == "<H>d[T]"
    with pytest.raises(UserError, match="line 1: head and tail overlap"):
        mark(sentence("abcd", "abc", "bcd"), Letters(), masked)


def test_the_first_sentence_that_does_not_fit_ends_the_passage() -> None:
    marked = [mark(sentence(text, "x", "y"), Letters(), MARKS) for text in ("axy", "a x bbbbbbbb y", "xy")]
    found = passage(marked, 20, MARKS)
    assert shown(found.tokens) == "^a<x>[y]|"
    assert shown(passage(marked, 40, MARKS).tokens) == "^a<x>[y]|a<x>bbbbbbbb[y]|<x>[y]|"
    assert passage(marked, 40, MARKS).spans == [(0, 9), (9, 25), (25, 32)]


@pytest.mark.parametrize("limit", range(7, 22))
def test_a_long_sentence_is_cut_around_its_mentions(limit: int) -> None:
    whole = mark(sentence("abc x defgh y ijklm", "y", "x"), Letters(), MARKS)
    short = shortened(whole, limit, MARKS, "here")
    assert len(short.tokens) == min(limit, len(whole.tokens))
    assert [short.tokens[at] for at in short.markers] == [3, 5]
    text = shown(short.tokens)
    assert "[x]" in text and "<y>" in text
    left, right = text.split("[x]")[0], text.split("<y>")[1]
    assert "abc".endswith(left) and "ijklm".startswith(right)
    assert "defgh" in text or not (left or right)


def test_mentions_that_do_not_fit_are_an_error_with_their_place() -> None:
    with pytest.raises(UserError, match="corpus, line 1: the two mentions alone are longer than 5 tokens"):
        shortened(mark(sentence("abc x y", "x", "y"), Letters(), MARKS), 5, MARKS, "corpus, line 1")


def bag(count: int = 6):
    texts = [f"{chr(ord('a') + number)} x y" for number in range(count)]
    return make_bags([sentence(text, "x", "y") for text in texts])[0]


def test_the_order_is_new_in_each_epoch_and_fixed_in_evaluation() -> None:
    orders = [sentence_order(bag(), 0, epoch).tolist() for epoch in (None, 0, 1, 2)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == sentence_order(bag(), 0).tolist() != sentence_order(bag(), 1).tolist()
    assert orders[1] == sentence_order(bag(), 0, 0).tolist()


def test_sentences_one_by_one_are_those_of_the_passage_in_its_order() -> None:
    whole = bag_passage(bag(), Letters(), MARKS, 100, seed=3, epoch=2)
    alone = sentence_passages(bag(), Letters(), MARKS, 100, 4, seed=3, epoch=2)
    assert len(alone) == 4 and len(whole.spans) == 6
    for one, (start, stop) in zip(alone, whole.spans):
        tokens = whole.tokens[start:stop]
        assert one.tokens == (tokens if start == 0 else [MARKS.cls, *tokens])


def test_rows_number_the_sentences_and_begin_their_positions_anew() -> None:
    two, one = (bag_passage(bag(count), Letters(), MARKS, 100) for count in (2, 1))
    rows = as_rows([two, one], 18, 3, MARKS)
    assert rows.segment_ids[0].tolist() == [1] * 9 + [2] * 8 + [0]
    assert rows.positions[0].tolist() == [*range(9), *range(1, 9), 0]
    assert rows.segment_ids[1].tolist() == [1] * 9 + [0] * 9
    # Of one sentence nothing tells the control from the passage.
    assert rows.positions[1, :9].tolist() == list(range(9))
    np.testing.assert_array_equal(rows.visible, rows.segment_ids > 0)
    assert rows.present.tolist() == [[True, True, False], [True, False, False]]
    for row in range(2):
        for number in np.flatnonzero(rows.present[row]):
            assert rows.tokens[row, rows.markers[row, number]].tolist() == [3, 5]
    with pytest.raises(ValueError, match="room for 16"):
        as_rows([two], 16, 3, MARKS)
