"""Interleaved prompts from a file of JSON lines."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data import EncodeImage, MediaConfig, MediaVocabulary, Tokenizer, load_media_prompt
from zoo.data.readers import JsonDocuments
from zoo.data.sources import File, kind_of
from zoo.errors import UserError
from zoo.inference.media_prompts import MediaPrompt, with_answer


@dataclass(frozen=True)
class Record:
    """A prompt of a file."""

    where: str
    """"file:line"."""
    prompt: MediaPrompt
    """Its tokens and media."""
    opens_image: bool
    """Whether it ends in image_begin, so that an image follows."""


class _Records(JsonDocuments):
    accepts = {dict: "object", list: "list"}


def read_records(
    path: Path, tokenizer: Tokenizer, config: MediaConfig, encode_image: EncodeImage | None = None
) -> list[Record]:
    """The prompts of a .jsonl file, each line a document as in training (`zoo.data.interleaved`), its media read.

    A last part {"image": "", "output": true} (or null instead of "") asks for an image: the prompt then ends in
    image_begin. Raises UserError naming file and line for what cannot be used, `BadMedia` where a medium is at fault.
    """
    kind = kind_of(path)
    if kind is None or kind[0] != ".jsonl":
        raise UserError(f"{path}: prompts with media are .jsonl files (also .gz, .xz, .zst)")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    vocabulary = MediaVocabulary(tokenizer.vocab_size, config.image_codes)

    def parse(value: Any, where: str) -> tuple[Any, str]:
        return value, where

    def record(value: Any, where: str) -> Record:
        parts = _parts_of(value, where)
        opens = bool(parts) and _asks_for_image(parts[-1])
        parts = parts[: len(parts) - opens]
        if opens and not config.image_codes:
            raise UserError(f"{where}: asks for an image, and this model writes none (data.media.image_codes is 0)")
        if parts or not opens:
            prompt = load_media_prompt(parts, tokenizer, config, path.parent, where, encode_image)
        else:
            prompt = (np.array([[tokenizer.bos_id]], np.int32), None)
        return Record(where, with_answer(prompt, [vocabulary.image_begin]) if opens else prompt, opens)

    documents = _Records(File(path, path.name, *kind), parse)
    if not len(documents):
        raise UserError(f"{path}: holds no prompt")
    return [record(*documents[number]) for number in range(len(documents))]


def _parts_of(value: Any, where: str) -> Any:
    """The list of parts of a record; anything that has none is passed on as it is, to be refused by the parser."""
    if isinstance(value, list):
        return value
    if isinstance(value.get("content"), list):
        return value["content"]
    if isinstance(value.get("text"), str):
        return [{"text": value["text"]}]
    raise UserError(f'{where}: need a list of parts, such as {{"content": [{{"text": ...}}, {{"image": ...}}]}}')


def _asks_for_image(part: Any) -> bool:
    wanted = isinstance(part, dict) and part.get("output") is True and part.get("image", part) in ("", None)
    return wanted and set(part) <= {"image", "output", "loss"}
