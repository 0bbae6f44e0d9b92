"""Examples as rows of ids, for each family, with vocabularies of the stage-0 examples alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.continual_multilingual import edits
from experiments.continual_multilingual.corpora import Corpus, Example, Split
from experiments.continual_multilingual.sizes import Family, Size
from zoo.data.wordpiece_tokenizer import CLS, train_wordpiece
from zoo.errors import UserError

NO_LABEL = -1
"""Of a place that nothing is asked of."""


@dataclass(frozen=True)
class Rows:
    """Examples of one or several languages."""

    tokens: Int[np.ndarray, "n t"]
    """Ids; 0 = padding."""
    labels: Int[np.ndarray, "n ..."]
    """Of each place [N, T]; classification: of each row [N]. NO_LABEL where nothing is asked."""
    language: Int[np.ndarray, "n"]
    """Number of the language."""
    forms: Int[np.ndarray, "n u"] | None = None
    """transduction: the whole forms."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, index: Int[np.ndarray, "m"]) -> "Rows":
        """Some rows."""
        forms = None if self.forms is None else self.forms[index]
        return Rows(self.tokens[index], self.labels[index], self.language[index], forms)

    def of(self, languages: list[int]) -> "Rows":
        """Those of some languages."""
        return self.take(np.flatnonzero(np.isin(self.language, languages)))


def joined(first: Rows, second: Rows) -> Rows:
    """One after the other."""
    forms = None if first.forms is None or second.forms is None else np.concatenate([first.forms, second.forms])
    parts = {n: np.concatenate([getattr(first, n), getattr(second, n)]) for n in ("tokens", "labels", "language")}
    return Rows(**parts, forms=forms)


class Coder(Protocol):
    """Encodes the examples of a family."""

    vocab_size: int
    outputs: int

    def row(self, example: Example) -> tuple[list[int], list[int], list[int] | None]:
        """(ids, labels, form)."""
        ...


class TagCoder:
    """Words as WordPieces; the first piece of a word has its tag. What does not fit into a row is cut off, by words."""

    def __init__(self, stage0: Split, family: Family, size: Size):
        texts = [example[0] for examples in stage0.values() for example in examples]
        self._tokenizer, self._length = train_wordpiece(texts, size.vocab_size), family.length
        self.vocab_size = self._tokenizer.vocab_size
        tags = {tag for examples in stage0.values() for example in examples for tag in example[1].split(" ")}
        self._tags = {tag: number for number, tag in enumerate(sorted(tags))}
        self.outputs, self._pieces = len(self._tags), dict[str, list[int]]()

    def row(self, example: Example) -> tuple[list[int], list[int], None]:
        """(pieces, tags at first pieces). A tag that stage 0 does not have is not asked for."""
        tokens, labels = list[int](), list[int]()
        for word, tag in zip(example[0].split(" "), example[1].split(" "), strict=True):
            if word not in self._pieces:
                self._pieces[word] = self._tokenizer.encode(word)
            pieces = self._pieces[word]
            if len(tokens) + len(pieces) > self._length:
                break
            tokens += pieces
            labels += [self._tags.get(tag, NO_LABEL) if at == 0 else NO_LABEL for at in range(len(pieces))]
        return tokens, labels, None


class TextCoder:
    """[CLS] and the first WordPieces of a text; one label."""

    LABELS = ("negative", "neutral", "positive")

    def __init__(self, stage0: Split, family: Family, size: Size):
        texts = [example[1] for examples in stage0.values() for example in examples]
        self._tokenizer, self._length = train_wordpiece(texts, size.vocab_size), family.length
        self.vocab_size, self.outputs = self._tokenizer.vocab_size, len(self.LABELS)
        self._first = self._tokenizer.id_of(CLS) or 0

    def row(self, example: Example) -> tuple[list[int], list[int], None]:
        """(pieces, [the label])."""
        if example[0] not in self.LABELS:
            raise UserError(f"a text has the label {example[0]!r}; need one of {', '.join(self.LABELS)}")
        tokens = [self._first, *self._tokenizer.encode(example[1])]
        return tokens[: self._length], [self.LABELS.index(example[0])], None


class EditCoder:
    """Features, slots and characters; see `edits`. Characters and features that stage 0 lacks are unknown ones."""

    def __init__(self, stage0: Split, family: Family, size: Size):
        examples = [example for own in stage0.values() for example in own]
        characters = sorted({one for lemma, form, _ in examples for one in lemma + form})
        self._characters = {one: edits.FIRST_CHARACTER + number for number, one in enumerate(characters)}
        self.outputs = edits.FIRST_CHARACTER + len(characters)
        features = sorted({one for _, _, own in examples for one in own.split(";")})
        self._features = {one: self.outputs + number for number, one in enumerate(features)}
        self.vocab_size, self._length = self.outputs + len(features) + 1, family.length

    def row(self, example: Example) -> tuple[list[int], list[int], list[int]]:
        """(ids, labels of the places, form). No labels where no edit writes the form, or the row is too long."""
        lemma, form = ([self._characters.get(c, edits.UNKNOWN) for c in text] for text in example[:2])
        features = [self._features.get(one, self.vocab_size - 1) for one in example[2].split(";")]
        room = self._length - len(features) - edits.PREFIX - edits.SUFFIX
        if room < 1:
            raise UserError(f"{len(features)} features leave no room for a lemma in rows of {self._length}")
        labels = edits.edit_labels(lemma, form) if len(lemma) <= room else None
        lemma = lemma[:room]
        before, behind = (
            range(first, first + count)
            for first, count in ((edits.PREFIX_SLOT, edits.PREFIX), (edits.SUFFIX_SLOT, edits.SUFFIX))
        )
        tokens = [*features, *before, *lemma, *behind]
        places = [NO_LABEL] * (len(tokens) - len(features)) if labels is None else labels
        return tokens, [*[NO_LABEL] * len(features), *places], form


CODERS: Mapping[str, type] = {"tagging": TagCoder, "classification": TextCoder, "transduction": EditCoder}


@dataclass(frozen=True)
class Encoded:
    """A corpus in rows."""

    stage0: Rows
    new: Rows
    dev: Rows
    test: Rows
    vocab_size: int
    """Of what is read."""
    outputs: int
    """Classes to choose from."""
    covered: float
    """Part of the test rows whose answer the model is able to give."""


def encoded(family: Family, size: Size, corpus: Corpus) -> Encoded:
    """All splits; vocabularies are those of stage 0. Of the training splits, rows without any label are left out."""
    coder = CODERS[family.name](corpus.stage0, family, size)
    parts = {name: _rows(family, coder, getattr(corpus, name)) for name in ("stage0", "new", "dev", "test")}
    possible = _has_label(parts["test"])
    for name in ("stage0", "new"):
        parts[name] = parts[name].take(np.flatnonzero(_has_label(parts[name])))
    return Encoded(**parts, vocab_size=coder.vocab_size, outputs=coder.outputs, covered=float(possible.mean()))


def _has_label(rows: Rows) -> Bool[np.ndarray, "n"]:
    return (rows.labels.reshape(len(rows), -1) != NO_LABEL).any(1)


def _rows(family: Family, coder: Coder, split: Split) -> Rows:
    made = [(number, *coder.row(one)) for number, own in enumerate(split.values()) for one in own]
    length = family.length
    tokens = np.zeros((len(made), length), np.int32)
    one_label = family.name == "classification"
    labels = np.full((len(made),) if one_label else (len(made), length), NO_LABEL, np.int32)
    forms = np.zeros((len(made), length), np.int32) if family.name == "transduction" else None
    for at, (_, ids, own, form) in enumerate(made):
        tokens[at, : len(ids)] = ids
        if one_label:
            labels[at] = own[0]
        else:
            labels[at, : len(own)] = own
        if forms is not None and form is not None:
            # What is longer than a row is a form that no row writes: so is one that fills the row.
            forms[at, : len(form[:length])] = form[:length]
    return Rows(tokens, labels, np.array([one[0] for one in made], np.int32), forms)


def counts(family: Family, rows: Rows, predicted: Int[np.ndarray, "n ..."], outputs: int) -> Float[np.ndarray, "n 2"]:
    """(right, asked) of each row: tags of words, a label, or a whole form. outputs: classes of the model."""
    if family.name == "transduction":
        assert rows.forms is not None
        places = (rows.tokens > 0) & (rows.tokens < outputs)  # features have larger ids
        labels = np.where(places, predicted, edits.EMPTY)
        right = (edits.written(rows.tokens, labels) == rows.forms).all(1)
        return np.stack([right, np.ones(len(rows))], axis=1).astype(np.float64)
    asked = (rows.labels != NO_LABEL).reshape(len(rows), -1)
    right = (predicted == rows.labels).reshape(len(rows), -1) & asked
    return np.stack([right.sum(1), asked.sum(1)], axis=1).astype(np.float64)
