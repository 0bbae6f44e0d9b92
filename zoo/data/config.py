"""What to read, how to cut it into batches, and what to hold out."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from zoo.data.labelled_config import LabelledImagesConfig
from zoo.data.media_config import MediaConfig
from zoo.data.task_config import TaskConfig
from zoo.errors import UserError

MAX_SEQUENCE_LENGTH = 2**24
MAX_TOKENS_PER_BATCH = 2**30
Format = Literal["text", "chat", "interleaved", "masked", "preference", "prompts", "labelled_images"]


@dataclass(frozen=True)
class DataConfig:
    """The data of one run. Every field is checked when the config is made; a wrong one raises `UserError`."""

    paths: tuple[str, ...] = ()
    """Files, folders or globs of .txt, .jsonl (each also .gz, .xz, .zst) and .parquet. Empty: the source text of the
    running Python's standard library."""

    weights: tuple[float, ...] = ()
    """One weight for each path: the share of training rows that comes from it. Empty: every document once an epoch."""

    format: Format = "text"
    """text: documents to be continued. chat: JSONL conversations, loss on the model's turns only. interleaved: JSONL
    documents of texts, images, recordings and videos (`zoo/data/interleaved.py` says how they are written). masked:
    documents of which a model like BERT guesses masked tokens. preference: JSONL pairs of answers, of which one is
    preferred (`zoo/data/preferences.py`). prompts: JSONL prompts that the model answers itself
    (`zoo/data/prompted.py`). labelled_images: JSONL images with classes (`zoo/data/labelled_images.py`)."""

    task: TaskConfig = TaskConfig()
    """Documents made by a generator instead of read from `paths`, for the formats chat, preference and prompts."""

    media: MediaConfig = MediaConfig()
    """The media of interleaved documents, and which images are refused."""

    images: LabelledImagesConfig = LabelledImagesConfig()
    """The images of the format labelled_images."""

    text_field: str = "text"
    """The field of a .jsonl object, or the column of a .parquet file, that holds the text."""

    tokenizer: str | None = None
    """A tokenizer.model, tokenizer.json or vocab.txt, or a folder that holds one. None: one is trained on the training
    documents, SentencePiece, or WordPiece for the format masked."""

    vocab_size: int = 4096
    """Number of tokens of the tokenizer that is trained when `tokenizer` is None."""

    sequence_length: int = 256
    """Tokens in a row (T)."""

    batch_size: int = 16
    """Rows in a step (B), over all processes together."""

    packing: Literal["concat", "first_fit", "single"] = "concat"
    """concat: documents laid end to end and cut every T tokens, no padding. first_fit: documents up to T tokens stay
    whole, at the price of some padding; interleaved documents need it, and those with media are never cut; so do
    pairs of answers. single: a row for each document, or each T tokens of it; prompts and images with classes
    need it."""

    shuffle_window_tokens: int = 2**18
    """Packed rows are shuffled within windows of so many tokens, so that a step is not filled by one long document. The
    rows of a window are in memory, with their media."""

    seed: int = 0
    """Seed of the order of documents and rows."""

    validation_fraction: float = 0.05
    """Expected share of the documents that is held out for validation. 0: none."""

    validation_batches: int = 16
    """Most batches that one validation reads."""

    validation_seed: int = 0
    """Seed of the split; apart from `seed`, so that runs that differ in `seed` are validated on the same documents."""

    streams: int | None = None
    """Independent streams of documents that a batch is made of, in equal parts; each is read by the hosts that hold its
    rows. Batches depend on it, not on the number of hosts. None: the number of processes when the run begins."""

    read_threads: int = 2
    """Threads that read and tokenise ahead of the training step."""

    worker_processes: int = 0
    """Processes that prepare batches. 0: threads of this process only (a worker takes seconds to start)."""

    def __post_init__(self):
        # Lists are what JSON and command lines give.
        object.__setattr__(self, "paths", tuple(self.paths))
        object.__setattr__(self, "weights", tuple(self.weights))
        _choice("format", self.format, get_args(Format))
        _choice("packing", self.packing, ("concat", "first_fit", "single"))
        if self.format == "interleaved" and self.packing != "first_fit":
            raise UserError("format 'interleaved' needs packing 'first_fit': a document's media stay in one row")
        for format, packing in (("preference", "first_fit"), ("prompts", "single"), ("labelled_images", "single")):
            if self.format == format and self.packing != packing:
                raise UserError(f"format {format!r} needs packing {packing!r}, not {self.packing!r}")
        if self.task.name != "none":
            if self.paths:
                raise UserError(f"data.task.name={self.task.name} makes its own documents: leave out data.paths")
            if self.format not in ("chat", "preference", "prompts"):
                raise UserError(
                    f"data.task.name={self.task.name} needs format 'chat', 'preference' or 'prompts', "
                    f"not {self.format!r}"
                )
        if self.format == "labelled_images":
            self._check_labelled_images()
        else:
            _whole("sequence_length", self.sequence_length, 2, MAX_SEQUENCE_LENGTH)
        _whole("batch_size", self.batch_size, 1, MAX_TOKENS_PER_BATCH)
        _whole("vocab_size", self.vocab_size, 1, 2**24)
        _whole("shuffle_window_tokens", self.shuffle_window_tokens, 0, MAX_TOKENS_PER_BATCH)
        _whole("seed", self.seed, 0, 2**31 - 1)
        _whole("validation_seed", self.validation_seed, 0, 2**31 - 1)
        _whole("validation_batches", self.validation_batches, 1, 2**31 - 1)
        if self.streams is not None:
            _whole("streams", self.streams, 1, self.batch_size)
            if self.batch_size % self.streams:
                raise UserError(f"batch_size {self.batch_size} is not divisible by streams, {self.streams}")
        _whole("read_threads", self.read_threads, 1, 256)
        _whole("worker_processes", self.worker_processes, 0, 256)
        tokens = self.sequence_length * self.batch_size
        if tokens > MAX_TOKENS_PER_BATCH:
            raise UserError(
                f"batch_size {self.batch_size} x sequence_length {self.sequence_length} is {tokens:,} tokens a step; "
                f"the most is {MAX_TOKENS_PER_BATCH:,}"
            )
        if not (isinstance(self.validation_fraction, int | float) and 0 <= self.validation_fraction < 1):
            raise UserError(f"validation_fraction must be at least 0 and below 1, not {self.validation_fraction!r}")
        self._check_weights()

    def _check_labelled_images(self):
        if self.sequence_length != 1:
            raise UserError(
                f"format 'labelled_images' has an image a row: sequence_length is {self.sequence_length}, not 1"
            )
        if len(self.images.classes) < 2:
            raise UserError("format 'labelled_images' needs images.classes: the names of two or more classes")

    def _check_weights(self):
        if not self.weights:
            return
        if not self.paths:
            raise UserError("weights were given without paths; each weight belongs to one path")
        if len(self.weights) != len(self.paths):
            raise UserError(f"{len(self.weights)} weights for {len(self.paths)} paths; give one weight for each path")
        for path, weight in zip(self.paths, self.weights, strict=True):
            if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
                raise UserError(f"the weight of {path} must be a number of at least 0, not {weight!r}")
        if sum(self.weights) == 0:
            raise UserError("the weights sum to 0; at least one must be positive")


def _choice(name: str, value: str, allowed: tuple[str, ...]):
    if value not in allowed:
        *first, last = map(repr, allowed)
        raise UserError(f"{name} must be {', '.join(first)} or {last}, not {value!r}")


def _whole(name: str, value: int, least: int, most: int):
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name} must be a whole number from {least} to {most:,}, not {value!r}")
