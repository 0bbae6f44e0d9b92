"""From an interleaved document to token ids, weights, and the media that its placeholders stand for.

    text     its words
    image    <image_begin> <image_soft> ... <image_end>          an image to be generated: its codes in between
    audio    <audio_begin> <audio_soft> ... <audio_end>
    video    for each frame its time stamp "MM:SS" as text, then as an image

Each text is tokenised by itself, so that where a prompt ends its answer begins with a token of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from zoo.data.audio import clips_of, read_audio
from zoo.data.images import patches_of, read_image, resized, scaled, square
from zoo.data.interleaved import Interleaved, Part, parse_interleaved
from zoo.data.log_mel import HOP, SAMPLE_RATE
from zoo.data.media import AudioClips, BadMedia, Media, PackedImages
from zoo.data.media_config import MediaConfig
from zoo.data.tokenizer import Tokenizer
from zoo.data.video import read_video, time_stamp
from zoo.data.vocabulary import MediaVocabulary
from zoo.errors import UserError

EncodeImage = Callable[[UInt8[np.ndarray, "h w 3"]], Int32[np.ndarray, " codes"]]
"""The codes of an image that is to be generated; the image has the size of its file."""


@dataclass(frozen=True)
class Rendered:
    """A document as arrays. Slots and image numbers are those within the document."""

    ids: Int32[np.ndarray, " n"]
    """Tokens, <bos> first and <eos> last (a prompt has no <eos>)."""
    weights: Int32[np.ndarray, " n"]
    """1 where predicting the token counts."""
    image_slots: Int32[np.ndarray, " n"]
    """Soft token of the images at this position; -1 = none."""
    audio_slots: Int32[np.ndarray, " n"]
    """Soft token of the recordings at this position; -1 = none."""
    patches: UInt8[np.ndarray, "patches pixels"]
    """Of all images."""
    coordinates: Float32[np.ndarray, "patches 2"]
    """Centres of the patches."""
    images: Int32[np.ndarray, " patches"]
    """Number of the image of each patch, from 1."""
    mel: Float32[np.ndarray, "clips frames bins"]
    """Of all recordings."""
    mask: Bool[np.ndarray, "clips frames"]
    """True where a frame is real."""


def render(
    document: Interleaved | str,
    tokenizer: Tokenizer,
    config: MediaConfig,
    encode_image: EncodeImage | None = None,
    *,
    eos: bool = True,
) -> Rendered:
    """Reads the document's media and lays it out. Raises `BadMedia`, naming the record, for what cannot be used, and
    `UserError` for an image to be generated that has neither codes nor an encoder."""
    if isinstance(document, str):
        document = Interleaved((Part("text", text=document),))
    builder = _Builder(tokenizer, config, encode_image)
    builder.add([tokenizer.bos_id], 0)
    for number, part in enumerate(document.parts, 1):
        try:
            builder.part(part)
        except BadMedia as error:
            raise BadMedia(f"{document.where}: {error}") from None
        except UserError as error:
            raise UserError(f"{document.where}: part {number}: {error}") from None
    if eos:
        last = document.parts[-1]
        builder.add([tokenizer.eos_id], last.loss if last.kind == "text" or last.output else document.loss)
    return builder.rendered()


def render_text(document: Interleaved | str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """(ids, weights) of the document's texts alone, with <bos> and <eos>; its media are not read."""
    if isinstance(document, str):
        document = Interleaved((Part("text", text=document),))
    texts = [part for part in document.parts if part.kind == "text"]
    rendered = render(Interleaved(tuple(texts) or (Part("text"),), document.loss), tokenizer, MediaConfig())
    return rendered.ids.tolist(), rendered.weights.tolist()


def load_media_prompt(
    parts: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    config: MediaConfig,
    folder: str | Path = ".",
    where: str = "prompt",
    encode_image: EncodeImage | None = None,
) -> tuple[Int32[np.ndarray, "1 length"], Media | None]:
    """A prompt of {"text": ...}, {"image": ...}, {"audio": ...} and {"video": ...} as (tokens, media), <bos> first.

    Paths are relative to `folder`. There are just as many patches and clips as the prompt needs, be it more than a row
    of training holds; media is None for a prompt of texts. Raises `UserError` naming `where`."""
    document = parse_interleaved(list(parts), where, Path(folder), config, "text")
    if document is None:
        raise UserError(f"{where}: an empty prompt")
    rendered = render(document, tokenizer, config, encode_image, eos=False)
    images = audio = None
    if len(rendered.patches):
        images = PackedImages(scaled(rendered.patches[None]), rendered.coordinates[None], rendered.images[None])
    if len(rendered.mel):
        audio = AudioClips(rendered.mel[None], rendered.mask[None])
    slots = (
        None if images is None else rendered.image_slots[None],
        None if audio is None else rendered.audio_slots[None],
    )
    media = None if images is None and audio is None else Media(images, audio, *slots)
    return rendered.ids[None], media


def check_contents(document: Interleaved, config: MediaConfig) -> None:
    """Decodes the document's media and forgets them. Raises `BadMedia` naming the record."""
    for part in document.parts:
        try:
            if part.output and part.codes is None:
                read_image(part.path, config)
            elif part.kind == "audio":
                _clips(part, config)
            elif part.kind in ("image", "video") and not part.output:
                list(_images(part, config))
        except BadMedia as error:
            raise BadMedia(f"{document.where}: {error}") from None


def _images(part: Part, config: MediaConfig) -> Iterator[tuple[str, np.ndarray]]:
    """(time stamp or "", pixels at the size that the budget gives them) of an image or of the frames of a video."""
    shown: Any = [(None, read_image(part.path, config))] if part.kind == "image" else None
    budget = config.max_patches if part.kind == "image" else config.video_max_patches or config.max_patches
    for seconds, pixels in shown or read_video(part.path, config, part.fps):
        try:
            if config.image_side:
                yield "", square(pixels, config.image_side)
            else:
                yield "" if seconds is None else time_stamp(seconds), resized(pixels, config, budget)
        except BadMedia as error:
            raise BadMedia(f"{part.path}: {error}") from None


def _clips(part: Part, config: MediaConfig) -> tuple[np.ndarray, np.ndarray]:
    longest = config.clips_per_row * config.clip_frames * HOP / SAMPLE_RATE
    return clips_of(read_audio(part.path, longest), config)


@dataclass
class _Builder:
    tokenizer: Tokenizer
    config: MediaConfig
    encode_image: EncodeImage | None
    ids: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)
    slots: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"image": [], "audio": []})
    patches: list[np.ndarray] = field(default_factory=list)
    coordinates: list[np.ndarray] = field(default_factory=list)
    clips: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    next_slot: int = 0

    def __post_init__(self):
        self.vocabulary = MediaVocabulary(self.tokenizer.vocab_size, self.config.image_codes)

    def add(self, ids: Any, weight: bool | int, kind: str = "", slots: Any = None) -> None:
        """Appends tokens; `slots` of `kind` stand at them."""
        self.ids.append(np.asarray(ids, np.int32))
        self.weights.append(np.full(len(ids), int(weight), np.int32))
        for name, found in self.slots.items():
            found.append(np.asarray(slots, np.int32) if name == kind else np.full(len(ids), -1, np.int32))

    def part(self, part: Part) -> None:
        """Appends a part."""
        if part.kind == "text":
            self.add(self.tokenizer.encode(part.text), part.loss)
        elif part.output:
            self.output_image(part)
        elif part.kind == "audio":
            self.audio(*_clips(part, self.config))
        else:
            for stamp, pixels in _images(part, self.config):
                if stamp:
                    self.add(self.tokenizer.encode(stamp), 0)
                self.image(pixels)

    def image(self, pixels: np.ndarray) -> None:
        """Appends an image that is read as soft tokens."""
        patches, coordinates = patches_of(pixels, self.config.patch_size, self.config.merge)
        self.patches.append(patches)
        self.coordinates.append(coordinates)
        count = len(patches) // self.config.merge**2
        words = self.vocabulary
        self.add([words.image_begin], 0)
        self.add([words.image_soft] * count, 0, "image", self.next_slot + np.arange(count))
        self.add([words.image_end], 0)
        self.next_slot += count

    def output_image(self, part: Part) -> None:
        """Appends the codes of an image that is to be generated."""
        codes: Any = part.codes
        if codes is None:
            if self.encode_image is None:
                raise UserError('an image with "output": true needs "codes", or a tokenizer of images')
            codes = self.encode_image(read_image(part.path, self.config))
        words = self.vocabulary
        self.add([words.image_begin, *words.ids_of_codes(codes), words.image_end], part.loss)

    def audio(self, mel: np.ndarray, mask: np.ndarray) -> None:
        """Appends a recording."""
        config, words = self.config, self.vocabulary
        first = config.clip_tokens * sum(len(clip) for clip, _ in self.clips)
        count = -(-int(mask.sum()) // config.audio_reduction)
        self.clips.append((mel, mask))
        self.add([words.audio_begin], 0)
        self.add([words.audio_soft] * count, 0, "audio", first + np.arange(count))
        self.add([words.audio_end], 0)

    def rendered(self) -> Rendered:
        """All that was appended."""
        config = self.config
        numbers = [np.full(len(patches), number, np.int32) for number, patches in enumerate(self.patches, 1)]
        mel, mask = ([clip[i] for clip in self.clips] for i in range(2))
        return Rendered(
            ids=np.concatenate(self.ids),
            weights=np.concatenate(self.weights),
            image_slots=np.concatenate(self.slots["image"]),
            audio_slots=np.concatenate(self.slots["audio"]),
            patches=np.concatenate([np.zeros((0, config.patch_dim), np.uint8), *self.patches]),
            coordinates=np.concatenate([np.zeros((0, 2), np.float32), *self.coordinates]),
            images=np.concatenate([np.zeros(0, np.int32), *numbers]),
            mel=np.concatenate([np.zeros((0, config.clip_frames, config.mel_bins), np.float32), *mel]),
            mask=np.concatenate([np.zeros((0, config.clip_frames), bool), *mask]),
        )
