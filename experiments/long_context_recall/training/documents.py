"""Rows of training, made on the fly: needles in a text and questions about them, with a weight for every token.

Three forms. "facts" is the shortest thing that needs matching: keys with their numbers, and the same keys again,

    <bos> KEY number 4711 KEY number 0815 ...  KEY number 4711 KEY number 4711 KEY number 0815 ...

"questions" has Gemini's words (`needles`) without any text: needles one after the other, and questions that break off
anywhere between the key and the number, so that the way from the one to the other is short for some and whole for
others. "document" is what the tests ask: a context of running text with needles at ends of
sentences, then questions. Keys are asked for with replacement: without it the last question is answered by elimination.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32

from experiments.long_context_recall.haystacks import Haystack, cut, insert, running_ids, sentence_gaps
from experiments.long_context_recall.needles import AFTER, BEFORE, NEEDLE, QUESTION, draw_value
from experiments.long_context_recall.training.curriculum import Stage
from experiments.long_context_recall.training.keys import Key, KeyKind, Keys
from zoo.data import Batch, Tokenizer

Ids = Int32[np.ndarray, " n"]
BARE = " number"
"""Between key and number of a fact."""
JUMPS = 4
"""Of a row whose positions are spread."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of T + 1 tokens."""

    tokens: Int32[np.ndarray, "B T1"]
    """Token ids."""
    weights: Float32[np.ndarray, "B T1"]
    """What predicting each token counts; the first is never predicted."""
    answers: Int32[np.ndarray, "B T1"]
    """i + 1 where a token is a digit of the answer to question i, else 0."""
    jumps: Int32[np.ndarray, "B T1"] | None = None
    """Positions that are left out before each token; None: none anywhere."""


@dataclass(frozen=True, eq=False)
class Wording:
    """The fixed parts of all documents as token ids of one tokenizer."""

    tokenizer: Tokenizer
    """Of the model."""
    keys: Keys
    """Its keys."""
    bare: Ids
    """Of a fact, between key and number."""
    head: Ids
    """<bos> and what stands before the context."""
    needle: tuple[Ids, Ids, Ids]
    """Before the key, between key and number, after the number."""
    first: Ids
    """From the end of the context up to the key of the first question; tokens may reach over a line break."""
    next: Ids
    """From the end of an answer up to the key of the next question; its first token ends a line."""
    follows: Ids
    """From the key of a question up to the number."""

    def value(self, digits: int, random: np.random.Generator) -> Ids:
        """A number: perhaps a token for the space, then one for each digit."""
        return running_ids(self.tokenizer, f" {draw_value(digits, random)}")


def wording(tokenizer: Tokenizer) -> Wording:
    """Of the needle, the question and the prompt of the task `needle`."""
    ids = lambda text: running_ids(tokenizer, text)  # noqa: E731
    before, between = NEEDLE.split(" {key}")
    between, after = between.split(" {value}")
    asked, follows = QUESTION.split(" {key}")
    close, after_question = AFTER.split("{question}")
    return Wording(
        tokenizer,
        Keys(tokenizer),
        bare=ids(BARE),
        head=np.concatenate([[tokenizer.bos_id], ids(BEFORE)]).astype(np.int32),
        needle=(ids(f" {before}"), ids(between), ids(after)),
        first=ids(close + asked),
        next=ids(f"\n{asked}"),
        follows=ids(follows + after_question),
    )


def draw_rows(
    words: Wording, hay: Haystack, stage: Stage, random: np.random.Generator, kinds: Sequence[KeyKind] | None = None
) -> Rows:
    """The rows of one step; `kinds` of keys other than the stage's, for tests."""
    kinds = stage.keys if kinds is None else kinds
    make = {"facts": facts, "questions": questions, "document": document}[stage.form]
    rows = [make(words, hay, stage, kinds, random) for _ in range(stage.batch_size)]
    tokens, weights, answers = (np.stack(parts) for parts in zip(*rows, strict=True))
    jumps = draw_jumps(stage, random) if stage.reach else None
    return Rows(tokens, weights, answers, jumps)


def draw_jumps(stage: Stage, random: np.random.Generator) -> Int32[np.ndarray, "B T1"]:
    """Positions left out before tokens, so that the last one is drawn evenly from T .. `reach` (as PoSE, arXiv
    2309.10400, with more pieces): distances of a long row are seen in a short one."""
    jumps = np.zeros((stage.batch_size, stage.length + 1), np.int32)
    for row in jumps:
        total = int(random.integers(max(stage.reach - stage.length, 0) + 1))
        cuts = np.sort(random.integers(0, total + 1, JUMPS - 1))
        sizes = np.diff(np.concatenate([[0], cuts, [total]]))
        np.add.at(row, random.integers(1, stage.length + 1, JUMPS), sizes)
    return jumps


Row = tuple[Ids, Float32[np.ndarray, " n"], Ids]
"""Tokens, weights, answers."""


class _Line:
    """A row while it is written."""

    def __init__(self, stage: Stage, lm_weight: float):
        self.stage, self.lm_weight, self.parts = stage, lm_weight, list[Row]()

    def add(self, ids: Ids | Key, weight: float | None = None) -> None:
        """Tokens with one weight, default that of the language model."""
        tokens = np.asarray(ids, np.int32)
        weights = np.full(len(tokens), self.lm_weight if weight is None else weight, np.float32)
        self.parts.append((tokens, weights, np.zeros(len(tokens), np.int32)))

    @property
    def length(self) -> int:
        """Tokens so far."""
        return sum(len(tokens) for tokens, _, _ in self.parts)

    def asked_key(self, key: Key) -> None:
        """A key that stands in the row already; its first token cannot be foretold."""
        self.add(key, 0.0)
        self.parts[-1][1][1:] = self.stage.key_weight

    def after_answer(self, ids: Ids) -> None:
        """What follows an answer: that the line ends is learnt, or a model goes on writing digits."""
        self.add(ids, 0.0)
        self.parts[-1][1][0] = 1.0

    def answer(self, value: Ids, digits: int, question: int) -> None:
        """A number whose digits count."""
        self.add(value)
        _, weights, answers = self.parts[-1]
        weights[-digits:], answers[-digits:] = 1.0, question + 1
        weights[-digits] = self.stage.first_weight

    def row(self, pad: int) -> Row:
        """Exactly T + 1 tokens: cut, or padded with weight 0. An answer that is cut is no answer."""
        tokens, weights, answers = (np.concatenate(parts) for parts in zip(*self.parts, strict=True))
        wanted, length = self.stage.length + 1, len(tokens)
        if length > wanted:
            open_ = answers[wanted - 1] if answers[wanted - 1] == answers[wanted] else 0
            tokens, weights, answers = tokens[:wanted], weights[:wanted], answers[:wanted]
            if open_:
                answers = np.where(answers == open_, 0, answers).astype(np.int32)
        fill = wanted - len(tokens)
        return (
            np.concatenate([tokens, np.full(fill, pad, np.int32)]),
            np.concatenate([weights, np.zeros(fill, np.float32)]),
            np.concatenate([answers, np.zeros(fill, np.int32)]),
        )


def facts(words: Wording, _: Haystack, stage: Stage, kinds: Sequence[KeyKind], random: np.random.Generator) -> Row:
    """Facts, then the same ones again, with replacement, up to the end of the row; only repeated ones count."""
    keys, values = _drawn(words, stage, kinds, random)
    line = _Line(stage, 0.0)
    line.add((words.tokenizer.bos_id,))
    for key, value in zip(keys, values, strict=True):
        line.add(np.concatenate([key, words.bare, value]).astype(np.int32))
    question = 0
    while line.length <= stage.length:
        which = random.integers(len(keys))
        line.asked_key(keys[which])
        line.add(words.bare)
        line.answer(values[which], stage.digits, question)
        question += 1
    return line.row(words.tokenizer.pad_id)


def questions(words: Wording, _: Haystack, stage: Stage, kinds: Sequence[KeyKind], random: np.random.Generator) -> Row:
    """Needles without text, then questions, with replacement, up to the end of the row. Between key and number of a
    question stand as many tokens of its wording as are drawn, evenly: one to all."""
    keys, values = _drawn(words, stage, kinds, random)
    line = _Line(stage, 0.0)
    line.add((words.tokenizer.bos_id,))
    for needle in _needles(words, keys, values):
        line.add(needle)
    question = 0
    while line.length <= stage.length:
        which = random.integers(len(keys))
        line.after_answer(words.next) if question else line.add(words.next)
        line.asked_key(keys[which])
        line.add(words.follows[: random.integers(1, len(words.follows) + 1)])
        line.answer(values[which], stage.digits, question)
        question += 1
    return line.row(words.tokenizer.pad_id)


def _drawn(
    words: Wording, stage: Stage, kinds: Sequence[KeyKind], random: np.random.Generator
) -> tuple[list[Key], list[Ids]]:
    """Different keys and their numbers."""
    keys = words.keys.distinct(kinds, stage.needles, random)
    return keys, [words.value(stage.digits, random) for _ in keys]


def _needles(words: Wording, keys: Sequence[Key], values: Sequence[Ids]) -> list[Ids]:
    before, between, after = words.needle
    return [np.concatenate([before, key, between, value, after]).astype(np.int32)
            for key, value in zip(keys, values, strict=True)]  # fmt: skip


def document(words: Wording, hay: Haystack, stage: Stage, kinds: Sequence[KeyKind], random: np.random.Generator) -> Row:
    """A context of running text with needles between its sentences, and questions at the end; without needles, text.

    Needles do not count as language: their numbers cannot be foretold. There are fewer questions where the row has no
    room for all of them; `ValueError` if it has none for one."""
    line, room = _Line(stage, stage.lm_weight), stage.length + 1
    sentence = int(random.integers(2**31))
    if not stage.needles:
        line.add((words.tokenizer.bos_id,), 0.0)
        line.add(cut(hay, room - 1, sentence)[0])
        return line.row(words.tokenizer.pad_id)
    keys, values = _drawn(words, stage, kinds, random)
    needles = _needles(words, keys, values)
    room -= len(words.head) + sum(map(len, needles)) + 1  # the end of the last line
    asked: list[int] = []
    for which in random.integers(len(keys), size=stage.questions).tolist():
        opening = words.next if asked else words.first
        needed = len(opening) + len(keys[which]) + len(words.follows) + len(values[which])
        if needed > room:
            break
        asked.append(which)
        room -= needed
    if not asked:
        raise ValueError(f"stage {stage.name}: {stage.length} tokens have no room for a question")
    line.add(words.head, 0.0)
    _add_context(line, hay, room, sentence, needles, random)
    for question, which in enumerate(asked):
        line.after_answer(words.next) if question else line.add(words.first, 0.0)
        line.asked_key(keys[which])
        line.add(words.follows, 0.0)
        line.answer(values[which], stage.digits, question)
    line.after_answer(words.next[:1])
    return line.row(words.tokenizer.pad_id)


def _add_context(line: _Line, hay: Haystack, room: int, sentence: int, needles: list[Ids], random) -> None:
    """Text of `room` tokens with the needles at gaps of sentences, evenly drawn; they may meet."""
    text, ends = cut(hay, room, sentence) if room else (np.empty(0, np.int32), np.empty(0, np.int64))
    gaps = sentence_gaps(ends, room)
    # The gap before a place that is drawn evenly: where sentences are long there are no fewer needles.
    places = gaps[np.searchsorted(gaps, random.integers(0, room + 1, len(needles)), "right") - 1].tolist()
    inserted = [(place, needle) for place, needle in zip(places, needles, strict=True)]
    marks = insert(np.ones(room, np.int32), [(place, np.zeros(len(needle), np.int32)) for place, needle in inserted])
    line.add(insert(text, inserted))
    line.parts[-1][1][:] *= marks


def batch_of(rows: Rows, pad: int) -> Batch:
    """All tokens but the last are read, all but the first predicted; a row is one segment and what is padded."""
    tokens = np.ascontiguousarray(rows.tokens[:, :-1])
    real = tokens != pad
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    if rows.jumps is not None:
        positions = positions + np.cumsum(rows.jumps[:, :-1], axis=1, dtype=np.int32)
    return Batch(
        tokens=tokens,
        targets=np.ascontiguousarray(rows.tokens[:, 1:]),
        positions=np.where(real, positions, 0).astype(np.int32),
        segment_ids=real.astype(np.int32),
        loss_weights=np.where(real, rows.weights[:, 1:], 0).astype(np.float32),
    )
