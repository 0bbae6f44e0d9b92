"""Long texts to hide things in, tokenised once, and where things are hidden in them.

A text is tokenised sentence by sentence, each with the space before it, so that every end of a sentence is a place
between two tokens. Haystacks are cut and needles are inserted there as arrays of ids; a needle, " " and a sentence, is
tokenised as it reads inside of running text. What comes out is the tokenisation of the resulting text, without
tokenising that: sentences end where a space follows (not a line break), and no common tokenizer has tokens that reach
over the beginning of a word.
"""

import lzma
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32

from experiments.long_context_recall.words import made_up_text
from experiments.shared_folder import LONG_NOVELS
from zoo.data import Tokenizer
from zoo.errors import UserError

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""The noise of RULER and InfiniteBench."""
# Not after a title or an initial; closing quotes belong to the sentence; what follows is a space, no line break, and no
# lower-case letter, as in "No!" he said.
SENTENCE_END = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\b[A-Z])[.!?]+[\"'’”´»)]*(?= [^\sa-z])")
ANCHOR = "¤"
"""A character that no token joins with what follows."""


@dataclass(frozen=True, eq=False)
class Haystack:
    """A tokenised text."""

    name: str
    """Where it comes from."""
    paragraphs: tuple[str, ...]
    """The text."""
    ids: Int32[np.ndarray, " n"]
    """All of its tokens."""
    ends: Int[np.ndarray, " sentences"]
    """Number of tokens up to the end of each sentence, ascending; the last is n."""


def novels(shared: Path) -> tuple[str, ...]:
    """The paragraphs of the long novels. Raises `UserError` if they are not there."""
    if not (shared / LONG_NOVELS).is_file():
        raise UserError(f"{shared / LONG_NOVELS}: no such file: name a folder that has it, or use the text made here")
    text = re.sub(r"<\|book [^|]*\|>\n", "", lzma.decompress((shared / LONG_NOVELS).read_bytes()).decode())
    return tuple(" ".join(part.split()) for part in text.split("\n\n") if part.strip())


def haystack(tokenizer: Tokenizer, shared: Path | None = None, seed: int = 0, characters: int = 400_000) -> Haystack:
    """The novels of the folder `shared`; without one, `characters` of text made here."""
    if shared is not None:
        return tokenised("novels", novels(shared), tokenizer)
    return tokenised(f"made up, seed {seed}", tuple(made_up_text(seed, characters)), tokenizer)


def tokenised(name: str, paragraphs: tuple[str, ...], tokenizer: Tokenizer) -> Haystack:
    """Tokenises paragraphs, which are joined by an empty line, sentence by sentence."""
    text = "\n\n".join(paragraphs)
    cuts = [0, *(found.end() for found in SENTENCE_END.finditer(text)), len(text)]
    pieces = [
        running_ids(tokenizer, text[start:end]) for start, end in zip(cuts, cuts[1:], strict=False) if end > start
    ]
    if not pieces:
        raise UserError(f"{name}: no text to hide anything in")
    return Haystack(name, paragraphs, np.concatenate(pieces), np.cumsum([len(piece) for piece in pieces]))


def running_ids(tokenizer: Tokenizer, text: str) -> Int32[np.ndarray, " n"]:
    """The ids of `text` inside of a text, where no tokenizer puts a space of its own before it."""
    before = _anchor(tokenizer)
    ids = tokenizer.encode(ANCHOR + text)
    if ids[: len(before)] != before:
        raise UserError(
            f"this tokenizer has tokens that join {ANCHOR!r} and {text[:10]!r}: pieces cannot be put together"
        )
    return np.array(ids[len(before) :], np.int32)


@lru_cache(maxsize=8)
def _anchor(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode(ANCHOR)


def cut(hay: Haystack, length: int, sentence: int = 0) -> tuple[Int32[np.ndarray, " length"], Int[np.ndarray, " m"]]:
    """`length` tokens from the beginning of a sentence on, the text repeated if it is too short, and the ends of
    sentences within them (of the last, which is cut, none)."""
    total, count = len(hay.ids), len(hay.ends)
    start = 0 if sentence % count == 0 else int(hay.ends[sentence % count - 1])
    rounds = -(-(start + length) // total)
    ids = hay.ids[start : start + length] if rounds <= 1 else np.tile(hay.ids, rounds)[start : start + length]
    ends = hay.ends if rounds <= 1 else (np.arange(rounds)[:, None] * total + hay.ends).reshape(-1)
    ends = ends - start
    return ids, ends[np.searchsorted(ends, 0, "right") : np.searchsorted(ends, length, "left")]


def insertion_point(ends: Int[np.ndarray, " m"], length: int, depth: float) -> int:
    """Where a needle goes: int(length * depth / 100), moved back to the end of a sentence, or to the beginning if there
    is none; at depth 100 after everything, be the last sentence cut or not (gkamradt's needle in a haystack)."""
    if not 0 <= depth <= 100:
        raise UserError(f"depth must lie in 0 .. 100, got {depth}")
    if depth == 100:
        return length
    before = int(np.searchsorted(ends, int(length * depth / 100), "right"))
    return int(ends[before - 1]) if before else 0


def sentence_gaps(ends: Int[np.ndarray, " m"], length: int) -> Int[np.ndarray, " gaps"]:
    """All places where a sentence can go: the beginning, the ends of sentences, the end."""
    return np.unique(np.concatenate([[0], ends, [length]]))


def insert(ids: Int32[np.ndarray, " n"], needles: list[tuple[int, Int32[np.ndarray, " m"]]]) -> Int32[np.ndarray, " k"]:
    """`ids` with each needle before the token of its number; several at one place stay in order."""
    parts, done = [], 0
    for place, needle in sorted(needles, key=lambda pair: pair[0]):
        parts += [ids[done:place], needle]
        done = place
    return np.concatenate([*parts, ids[done:]]).astype(np.int32)
