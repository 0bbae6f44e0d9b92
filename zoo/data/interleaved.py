"""Interleaved documents: JSON lines whose parts are texts, images, recordings and videos, in any order.

    {"content": [{"text": "What is this?", "loss": false}, {"image": "a.png"}, {"text": "A cat."}], "kind": "caption"}

A line may also be the list of parts itself, or {"text": ...} for a text alone; {"content": ...} is the form that is
written here. Paths are relative to the .jsonl file. A part is one of

    {"text": "..."}
    {"image": "a.png"}                       read as soft tokens
    {"image": "a.png", "output": true}       to be generated: written as codes, which are given ("codes": [...]) or come
                                             from the pipeline's `encode_image`
    {"audio": "b.wav"}
    {"video": "c.mp4"}                       frames, each after its time stamp; sound is left out
    {"video": "frames/", "fps": 5}           a folder of images, 1 a second unless "fps" says otherwise

"loss" says of a text or an output image whether its prediction counts, on a document for all parts that do not say so
themselves (true). What is read as soft tokens, its markers and time stamps never counts. Other fields of a document are
passed over; "kind" is kept for evaluation. Where only images are read (`MediaConfig.image_side`), texts and recordings
are passed over unread, and images to be generated are like any other.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from zoo.data.decoders import AUDIO_FORMATS, VIDEO_FORMATS
from zoo.data.images import FORMATS as IMAGE_FORMATS
from zoo.data.media import BadMedia
from zoo.data.media_config import MediaConfig
from zoo.data.readers import JsonDocuments, check_unicode
from zoo.data.sources import File
from zoo.data.video import frame_files
from zoo.errors import UserError, nearest_name

Kind = Literal["text", "image", "audio", "video"]
EXTENSIONS: dict[str, Any] = {"image": IMAGE_FORMATS, "audio": AUDIO_FORMATS, "video": VIDEO_FORMATS}
FIELDS: dict[str, set[str]] = {
    "text": {"loss"},
    "image": {"loss", "output", "codes"},
    "audio": set(),
    "video": {"fps"},
}


@dataclass(frozen=True)
class Part:
    """A piece of a document."""

    kind: Kind
    """What it is."""
    text: str = ""
    """The text of a text."""
    path: Path = Path()
    """The file of anything else; for a video perhaps a folder."""
    loss: bool = True
    """Whether predicting it counts; only for what is predicted."""
    output: bool = False
    """An image to be generated."""
    codes: tuple[int, ...] | None = None
    """The codes of an image to be generated, if they are given."""
    fps: float = 1.0
    """Frames a second of a folder of frames."""


@dataclass(frozen=True)
class Interleaved:
    """A document."""

    parts: tuple[Part, ...]
    """In the order in which they are read."""
    loss: bool = True
    """Whether the end of the document counts if it ends in media; the default of its parts."""
    kind: str = ""
    """What the document says it is, for evaluation."""
    where: str = ""
    """The record: "file:line"."""

    @property
    def has_media(self) -> bool:
        """Whether there is anything but text."""
        return any(part.kind != "text" for part in self.parts)


def text_of_document(document: Interleaved) -> str:
    """Its texts, one after the other."""
    return "".join(part.text for part in document.parts)


def parse_interleaved(value: Any, where: str, folder: Path, config: MediaConfig, text_field: str) -> Interleaved | None:
    """Checks a document, its files as far as that is cheap (existence, extension, size); None if it is empty.

    Raises `BadMedia` for files, `UserError` for anything else, both naming `where`."""
    record = {"content": value} if isinstance(value, list) else value
    if "content" not in record and isinstance(record.get(text_field), str):
        record = {**record, "content": [{"text": record[text_field]}]}
    if "content" not in record:
        raise UserError(f"{where}: no field 'content'; {nearest_name('content', record)}")
    if not isinstance(record["content"], list):
        raise UserError(f'{where}: \'content\' must be a list of parts such as {{"text": ...}} and {{"image": ...}}')
    loss, kind = record.get("loss", True), record.get("kind", "")
    if not isinstance(loss, bool) or not isinstance(kind, str):
        raise UserError(f"{where}: 'loss' must be true or false and 'kind' a string")
    parts = [
        _part(part, f"{where}: part {number}", folder, loss, config)
        for number, part in enumerate(record["content"], 1)
        if not (config.image_side and isinstance(part, Mapping) and ("text" in part or "audio" in part))
    ]
    parts = [part for part in parts if part.kind != "text" or part.text]
    if all(part.kind == "text" and not part.text.strip() for part in parts):
        return None
    return Interleaved(tuple(parts), loss, kind, where)


def _part(value: Any, at: str, folder: Path, loss: bool, config: MediaConfig) -> Part:
    kinds = [kind for kind in get_args(Kind) if isinstance(value, Mapping) and kind in value]
    if len(kinds) != 1:
        found = f"; {nearest_name(next(iter(value)), get_args(Kind))}" if isinstance(value, Mapping) and value else ""
        raise UserError(f"{at} must be an object with one of text, image, audio and video{found}")
    kind = kinds[0]
    if unknown := set(value) - FIELDS[kind] - {kind}:
        name = sorted(unknown)[0]
        raise UserError(f"{at}: {kind} has no field {name!r}; {nearest_name(name, FIELDS[kind] | {kind})}")
    content = value[kind]
    if not isinstance(content, str):
        raise UserError(f"{at}: {kind!r} must be a string")
    check_unicode(content, at)
    for name in ("loss", "output"):
        if not isinstance(value.get(name, False), bool):
            raise UserError(f"{at}: {name!r} must be true or false")
    loss = value.get("loss", loss)
    if kind == "text":
        return Part("text", text=content, loss=loss)
    output, path = value.get("output", False) and not config.image_side, folder / content
    _check_wanted(kind, output, at, config)
    if kind == "image" and not value.get("output", False) and ("codes" in value or "loss" in value):
        raise UserError(f"{at}: 'codes' and 'loss' belong to images with \"output\": true")
    codes = _codes(value["codes"], at, config) if output and "codes" in value else None
    if codes is None:  # else the file is for people only
        check_file(kind, path, at)
    return Part(kind, path=path, loss=loss, output=output, codes=codes, fps=_fps(value.get("fps", 1), at))


def _check_wanted(kind: str, output: bool, at: str, config: MediaConfig) -> None:
    needed = "image_codes" if output else "clips_per_row" if kind == "audio" else "patches_per_row"
    if getattr(config, needed) == 0:
        what = "an image to be generated" if output else f"{'an' if kind in ('image', 'audio') else 'a'} {kind}"
        raise UserError(f"{at}: {what}, but data.media.{needed} is 0: this run takes none")


def _codes(value: Any, at: str, config: MediaConfig) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(code) is int for code in value):
        raise UserError(f"{at}: 'codes' must be a list of whole numbers")
    if not 0 <= min(value) <= max(value) < config.image_codes:
        raise UserError(f"{at}: codes {min(value)} .. {max(value)}, data.media.image_codes is {config.image_codes}")
    return tuple(value)


def _fps(value: Any, at: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000:
        raise UserError(f"{at}: 'fps' must be a number above 0 and at most 1000, not {value!r}")
    return float(value)


def check_file(kind: str, path: Path, at: str) -> None:
    """Raises `BadMedia` if a file is missing, empty, or of an extension that its kind does not have."""
    known = EXTENSIONS[kind]
    if kind == "video" and path.is_dir():
        if not frame_files(path):
            raise BadMedia(f"{at}: {path}: a video without frames: no {', '.join(IMAGE_FORMATS)} file in this folder")
        return
    if not path.is_file():
        raise BadMedia(f"{at}: {path}: no such file")
    if path.suffix.lower() not in known:
        raise BadMedia(f"{at}: {path}: unknown extension for {kind}; known are {', '.join(known)}")
    if path.stat().st_size == 0:
        raise BadMedia(f"{at}: {path}: an empty file")


class InterleavedDocuments(JsonDocuments):
    """The documents of a .jsonl file. Records whose media cannot be used are left out where the config says so."""

    accepts = {dict: "object", list: "list"}

    def __init__(self, file: File, config: MediaConfig, text_field: str, check: Any):
        """check: called with each document while the file is opened; may raise `BadMedia`."""
        self.bad: dict[str, str] = {}
        """What is wrong with the records that were left out, by "file:line"."""
        self._config, self._text_field, self._check = config, text_field, check
        self._digest: Any = hashlib.blake2b(digest_size=16)
        super().__init__(file, self._parse_while_opening)
        self._parse = self._parse_record
        self.num_skipped -= len(self.bad)
        self.media_digest = self._digest.hexdigest()
        """Of the names and sizes of all media files."""
        self._digest = None  # which processes cannot hand to each other

    def _parse_record(self, value: Any, where: str) -> Interleaved | None:
        return parse_interleaved(value, where, self.file.path.parent, self._config, self._text_field)

    def _parse_while_opening(self, value: Any, where: str) -> Interleaved | None:
        try:
            document = self._parse_record(value, where)
            if document is not None:
                self._check(document)
        except BadMedia as error:
            if self._config.bad_media == "stop":
                raise
            self.bad[where] = str(error)
            return None
        if document is not None:
            self._digest.update(repr([_name_and_sizes(part.path) for part in media_files(document)]).encode())
        return document


def media_files(document: Interleaved) -> Sequence[Part]:
    """The parts whose files are read."""
    return [part for part in document.parts if part.kind != "text" and part.codes is None]


def _name_and_sizes(path: Path) -> Any:
    if path.is_dir():
        return path.name, [(file.name, file.stat().st_size) for file in frame_files(path)]
    return path.name, path.stat().st_size
