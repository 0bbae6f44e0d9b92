"""The rows of a step: where needles stand among other units, the tokens of that, and its media or their soft tokens."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32, Int, Int32

from experiments.long_context_recall.media_training.augmentation import heard_otherwise
from experiments.long_context_recall.media_training.curriculum import Stage, Workload
from experiments.long_context_recall.media_training.material import Bank, Material
from zoo.data import AudioClips, Batch, Media, PackedImages, Tokenizer
from zoo.data.images import scaled
from zoo.data.video import time_stamp
from zoo.data.vocabulary import MediaVocabulary

ROUNDED = 32
"""Rows are padded to a multiple of so many tokens."""


@dataclass(frozen=True, eq=False)
class Picks:
    """Which items stand in the rows of a step."""

    plain: Int[np.ndarray, "B units"]
    """Of the plain bank; what stands at a needle's place is not used."""
    needle: Int[np.ndarray, " B"]
    """Of the bank of needles."""
    place: Int[np.ndarray, " B"]
    """The first unit of the needle."""
    cut: Int[np.ndarray, " B"]
    """Soft tokens that a recording's last clip has too few of."""


@dataclass(frozen=True, eq=False)
class SoftRows:
    """Soft tokens of rows, which no encoder has to make."""

    soft: Float32[Array | np.ndarray, "B tokens D"]
    """Of all units of a row."""
    slots: Int32[Array | np.ndarray, "B T"]
    """Which of them stands at a position; -1 = none."""


jax.tree_util.register_dataclass(SoftRows, data_fields=["soft", "slots"], meta_fields=[])


@dataclass(frozen=True, eq=False)
class Layout:
    """From picks to tokens."""

    tokenizer: Tokenizer
    """Of the model."""
    workload: Workload
    """Its task and media."""
    material: Material
    """Question and answers."""

    @property
    def unit_tokens(self) -> int:
        """Soft tokens of a unit."""
        media = self.workload.media
        return media.max_patches // media.merge**2 if self.workload.task == "video" else media.clip_tokens

    def prompt(self, units: int, soft: int, question: str) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
        """(ids, slots) of a prompt of so many units, the last of which ends with soft token `soft - 1` of the row; as
        `zoo.data.load_media_prompt` has them."""
        return _prompt(self.tokenizer, self.workload.task, self.unit_tokens, units, soft, question)

    def length(self, stage: Stage) -> int:
        """T of the rows of a stage."""
        bank = bank_of(self.material, stage)
        units = stage.units or bank.values.shape[1]
        longest = max(len(self.answer(word)) for word in bank.words)
        most = len(self.prompt(units, units * self.unit_tokens, bank.question)[0]) + longest - 1
        return -(-most // ROUNDED) * ROUNDED

    def answer(self, word: str) -> Int32[np.ndarray, " n"]:
        """Ids of an answer, <eos> included."""
        ids = self.tokenizer.encode(f" {word}")
        return np.asarray([*ids, self.tokenizer.eos_id], np.int32)


@lru_cache(maxsize=64)
def _prompt(tokenizer: Tokenizer, task: str, unit_tokens: int, units: int, soft: int, question: str) -> Any:
    words = MediaVocabulary(tokenizer.vocab_size, 0)
    ids, slots = [tokenizer.bos_id], [-1]

    def add(found: Any, own: Any = None) -> None:
        ids.extend(found)
        slots.extend([-1] * len(found) if own is None else own)

    if task == "video":
        for unit in range(units):
            add(tokenizer.encode(time_stamp(unit)))
            add([words.image_begin])
            add([words.image_soft] * unit_tokens, range(unit * unit_tokens, (unit + 1) * unit_tokens))
            add([words.image_end])
    else:
        add([words.audio_begin])
        add([words.audio_soft] * soft, range(soft))
        add([words.audio_end])
    add(tokenizer.encode(f"\n{question}"))
    return np.asarray(ids, np.int32), np.asarray(slots, np.int32)


def bank_of(material: Material, stage: Stage) -> Bank:
    """The needles of a stage."""
    return material.hidden if stage.units else material.alone


def draw_picks(layout: Layout, stage: Stage, random: np.random.Generator) -> Picks:
    """Places of needles, and the rest, evenly."""
    bank, rows = bank_of(layout.material, stage), stage.batch_size
    own = bank.values.shape[1]
    units = stage.units or own
    items = np.flatnonzero(bank.answers < (len(bank.words) if stage.words is None else stage.words))
    needle, place = random.choice(items, size=rows), random.integers(units - own + 1, size=rows)
    plain = random.integers(len(layout.material.plain.answers), size=(rows, units))
    cut = np.zeros(rows, np.int64)
    if bank.real is not None:
        reduction = layout.workload.media.audio_reduction
        if stage.units:
            cut = np.where(place + own < units, random.integers(layout.unit_tokens, size=rows), 0)
        else:
            cut = layout.unit_tokens - -(-bank.real[needle].sum((1, 2)) // reduction)
    return Picks(plain, needle, place, cut)


def gathered(plain: Any, needles: Any, picks: Picks) -> np.ndarray:
    """[B, units, ...]: what the picks say of plain [items, 1, ...] and needles [items, U, ...]."""
    found, rows, own = plain[picks.plain, 0], np.arange(len(picks.needle))[:, None], needles.shape[1]
    found[rows, picks.place[:, None] + np.arange(own)] = needles[picks.needle]
    return found


def batch_of(
    layout: Layout,
    stage: Stage,
    picks: Picks,
    soft: tuple[np.ndarray, np.ndarray] | None = None,
    random: np.random.Generator | None = None,
) -> Batch:
    """A batch of one document a row, whose answers alone count. soft: soft tokens of (plain, needles), each
    [items, U, unit_tokens, D], in place of media. random: recordings are heard otherwise (`augmentation.py`)."""
    bank = bank_of(layout.material, stage)
    rows, units = picks.plain.shape
    shape = (rows, layout.length(stage))
    tokens, targets = np.full((2, *shape), layout.tokenizer.pad_id, np.int32)
    weights, slots, real = np.zeros(shape, np.float32), np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    for row, (item, cut) in enumerate(zip(picks.needle, picks.cut, strict=True)):
        prompt, own = layout.prompt(units, int(units * layout.unit_tokens - cut), bank.question)
        answer = layout.answer(bank.words[bank.answers[item]])
        ids, at = np.concatenate([prompt, answer]), len(prompt)
        tokens[row, : len(ids) - 1], targets[row, : len(ids) - 1] = ids[:-1], ids[1:]
        weights[row, at - 1 : len(ids) - 1], slots[row, :at], real[row, : len(ids) - 1] = 1, own, 1
    positions = np.arange(shape[1], dtype=np.int32) * real
    shown: Any
    if soft is not None:
        shown = SoftRows(gathered(*soft, picks).reshape(rows, -1, soft[0].shape[-1]), slots)
    else:
        values = gathered(layout.material.plain.values, bank.values, picks)
        if bank.real is None:
            count = values.shape[2]
            numbers = np.repeat(np.arange(1, units + 1, dtype=np.int32), count)
            images = PackedImages(
                scaled(values.reshape(rows, units * count, -1)),
                np.tile(layout.material.coordinates, (rows, units, 1)),  # type: ignore[arg-type]
                np.tile(numbers, (rows, 1)),
            )
            shown = Media(images=images, image_slots=slots)
        else:
            heard = gathered(layout.material.plain.real, bank.real, picks)
            mel = values.astype(np.float32)
            if random is not None:
                mel = heard_otherwise(mel, heard, random)
            shown = Media(audio=AudioClips(mel, heard), audio_slots=slots)
    return Batch(tokens, targets, positions, real, weights, shown)
