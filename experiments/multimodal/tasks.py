"""What is measured of a model on the test documents: numbers by name, "speech/test/accuracy" and so on.

    speech      accuracy among the ten words: the official test split, and the speaker who was not heard
    statement   accuracy, true or false
    digit       accuracy among the ten words
    video       accuracy: which of two digits came first or last, and which way one moves
    pair        accuracy with both orders of the two images; a pair follows if both answers are right
    mixed       the same for a spoken and a written digit, of which no model has seen a pair
    picture     nats per token of the caption; accuracy among ten captions by likelihood
    draw        nats per code of real digits
    text        nats per token

Each also with the media of another document ("shuffled") and with grey images and silence ("blank"); of requests to
draw, the digit's name is another one's. A model of texts alone gets the same documents without their media.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.multimodal import rows
from experiments.multimodal.documents import STEPS, WORDS, read_records
from zoo.data import DataConfig, Tokenizer

CHOICES = {
    "speech": WORDS,
    "digit": WORDS,
    "pair": WORDS,
    "mixed": WORDS,
    "video_order": WORDS,
    "video_motion": tuple(STEPS),
    "statement": ("true", "false"),
}
"""The possible answers to each kind of question."""
ANSWERED = {"speech/test": "speech", "speech/speaker": "speech", "statement/test": "statement", "digit/test": "digit",
            "video/test": "video", "pair/test": "pair", "pair/mixed": "pair"}  # fmt: skip
"""Test documents with such questions, and the folder whose answers have been learnt."""
CAPTIONS = 10
"""Captions that the right one is to be found among."""
RIGHT, SHUFFLED, BLANK = "", "/shuffled", "/blank"


@dataclass(frozen=True)
class HeldOut:
    """Test documents, and how they are laid out."""

    data: Path
    """The folder with a folder for each kind."""
    tokenizer: Tokenizer
    """Of all models."""
    config: DataConfig
    """Of the data of any arm, with room for the media of one document."""
    most: int
    """Most documents of each kind."""

    def records(self, name: str) -> list[dict[str, Any]]:
        """The first documents of "speech/test" and the like."""
        return read_records(self.data / f"{name}.jsonl")[: self.most]


def measure(model: Any, tests: HeldOut, folders: Sequence[str], *, sees: bool, last: bool) -> dict[str, float]:
    """All numbers of a model that was trained on `folders`. `sees`: whether it has learnt from media at all; `last`:
    also those with wrong media, and choices of captions."""
    found: dict[str, float] = {}
    for folder in folders:
        MEASURES[folder](found, _Judge(model, tests, sees, last))
    return found


def majority(tests: HeldOut) -> dict[str, float]:
    """The accuracy of always giving the training documents' most frequent answer."""
    found = {}
    for name, train in ANSWERED.items():
        learnt: dict[str, Counter] = {}
        for record in read_records(tests.data / train / "train.jsonl"):
            learnt.setdefault(record["kind"], Counter())[record["content"][-1]["text"]] += 1
        by_kind: dict[str, list[str]] = {}
        for record in tests.records(name):
            by_kind.setdefault(record["kind"], []).append(record["content"][-1]["text"])
        for kind, answers in by_kind.items():
            usual = learnt["pair" if kind == "mixed" else kind].most_common(1)[0][0]
            found[_name(name, kind)] = answers.count(usual) / len(answers)
    return found


@dataclass(frozen=True)
class _Judge:
    model: Any
    tests: HeldOut
    sees: bool
    last: bool

    def score(self, records: Sequence[dict[str, Any]], folder: str, *, blank: bool = False) -> rows.Scores:
        given = records if self.sees else [rows.without_media(record) for record in records]
        tests = self.tests
        return rows.scores(self.model, given, tests.data / folder, tests.tokenizer, tests.config, blank=blank)

    def conditions(self, records: list[dict[str, Any]], folder: str) -> dict[str, rows.Scores]:
        """With the right media; of a model that sees, at the end also with wrong ones."""
        found = {RIGHT: self.score(records, folder)}
        if self.sees and self.last:
            other = [records[i] for i in rows.strangers(len(records))]
            exchanged = [rows.with_media_of(record, theirs) for record, theirs in zip(records, other, strict=True)]
            found[SHUFFLED] = self.score(exchanged, folder)
            found[BLANK] = self.score(records, folder, blank=True)
        return found

    def answers(self, scores: rows.Scores, kind: str) -> list[str]:
        words = CHOICES[kind]
        return rows.chosen(scores.answers, rows.choices(self.tests.tokenizer, words), words)


def _questions(found: dict[str, float], judge: _Judge, folder: str, splits: Sequence[str] = ("test",)) -> None:
    for split in splits:
        name = f"{folder}/{split}"
        by_kind: dict[str, list[dict[str, Any]]] = {}
        for record in judge.tests.records(name):
            by_kind.setdefault(record["kind"], []).append(record)
        for kind, records in by_kind.items():
            for condition, scores in judge.conditions(records, folder).items():
                right = [given == _answer(record) for given, record in
                         zip(judge.answers(scores, kind), records, strict=True)]  # fmt: skip
                found[f"{_name(name, kind)}/accuracy{condition}"] = float(np.mean(right))


def _pairs(found: dict[str, float], judge: _Judge) -> None:
    for split, kind in (("test", "pair"), ("mixed", "mixed")):
        if not judge.sees or (split == "mixed" and not judge.last):
            continue
        records, name = judge.tests.records(f"pair/{split}"), f"pair/{split}"
        as_is = judge.answers(judge.score(records, "pair"), kind)
        swapped = judge.answers(judge.score([rows.with_media_swapped(r) for r in records], "pair"), kind)
        right = np.array([given == _answer(record) for given, record in zip(as_is, records, strict=True)])
        other = np.array([f" {given}" == record["swapped"] for given, record in zip(swapped, records, strict=True)])
        found |= {
            f"{name}/accuracy": float(right.mean()),
            f"{name}/accuracy/swapped": float(other.mean()),
            f"{name}/follows": float((right & other).mean()),
            f"{name}/same answer": float(np.mean([a == b for a, b in zip(as_is, swapped, strict=True)])),
        }


def _pair_questions(found: dict[str, float], judge: _Judge) -> None:
    _questions(found, judge, "pair")
    _pairs(found, judge)


def _pictures(found: dict[str, float], judge: _Judge) -> None:
    records = judge.tests.records("picture/test")
    for condition, scores in judge.conditions(records, "picture").items():
        found[f"picture/test/nats{condition}"] = scores.nats
    if judge.last:
        found["picture/test/choice"] = _caption_choice(judge, records)


def _caption_choice(judge: _Judge, records: list[dict[str, Any]]) -> float:
    """How often the right caption is the likeliest, per token, of ten that differ."""
    captions = sorted({record["content"][-1]["text"] for record in records})
    count = min(CAPTIONS, len(captions))
    candidates = []
    for number, record in enumerate(records):
        right = record["content"][-1]["text"]
        others = np.random.default_rng([0, number]).permutation([c for c in captions if c != right])[: count - 1]
        candidates += [{**record, "content": [*record["content"][:-1], {"text": str(caption)}]}
                       for caption in (right, *others)]  # fmt: skip
    scores = judge.score(candidates, "picture")
    return float(np.mean(np.argmin((scores.losses / scores.counts).reshape(-1, count), axis=1) == 0))


def _drawings(found: dict[str, float], judge: _Judge) -> None:
    records = read_records(judge.tests.data / "draw" / "test-codes.jsonl")[: judge.tests.most]
    found["draw/test/nats"] = judge.score(records, "draw").nats
    if judge.last:
        other = [records[i] for i in rows.strangers(len(records))]
        exchanged = [{**record, "content": [theirs["content"][0], record["content"][1]]}
                     for record, theirs in zip(records, other, strict=True)]  # fmt: skip
        found[f"draw/test/nats{SHUFFLED}"] = judge.score(exchanged, "draw").nats


def _texts(found: dict[str, float], judge: _Judge) -> None:
    found["text/test/nats"] = judge.score(judge.tests.records("text/test"), "text").nats


MEASURES: dict[str, Callable[[dict[str, float], _Judge], None]] = {
    "speech": lambda found, judge: _questions(found, judge, "speech", ("test", "speaker")),
    "picture": _pictures,
    "statement": lambda found, judge: _questions(found, judge, "statement"),
    "digit": lambda found, judge: _questions(found, judge, "digit"),
    "video": lambda found, judge: _questions(found, judge, "video"),
    "pair": _pair_questions,
    "draw": _drawings,
    "text": _texts,
}


def _name(name: str, kind: str) -> str:
    """ "video/test" has two kinds of questions, which are told apart."""
    return name.replace("video", kind, 1) if kind.startswith("video") else name


def _answer(record: dict[str, Any]) -> str:
    return record["content"][-1]["text"].strip()
