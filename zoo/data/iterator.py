"""The training stream, whose position can be saved to the batch, and the fixed validation batches."""

import dataclasses
import functools
import hashlib
import itertools
import weakref
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from zoo.data.batch import Batch
from zoo.data.config import DataConfig
from zoo.data.corpus import Corpus, DocumentView
from zoo.data.labelled_images import LabelledRows, make_labelled_batch
from zoo.data.media import LeftOut
from zoo.data.media_packing import MediaPredictions, make_media_batch, media_lengths, packing_bins
from zoo.data.packing import make_batch, packed_rows, predictions_of
from zoo.data.preferences import make_preference_batch, pair_predictions
from zoo.data.prompted import prompted_tokens
from zoo.data.rendering import EncodeImage
from zoo.data.tokenizer import Tokenizer
from zoo.errors import UserError

READ_AHEAD_DOCUMENTS = 16
READ_AHEAD_BATCHES = 2
BYTES_PER_TOKEN = 4  # roughly; of text


def train_dataset(
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: DataConfig,
    *,
    stream: int = 0,
    streams: int = 1,
    encode_image: EncodeImage | None = None,
) -> grain.IterDataset:
    """One of the streams that make a batch; `iter()` of it yields a `Batch` of numpy arrays [batch_size / streams,
    sequence_length], without end.

    Documents are shuffled anew each epoch, tokenised, packed, and the rows shuffled within a window. With weights, each
    source is packed by itself and the rows are drawn in proportion. Several streams each read every streams-th
    document. The same config and seed give the same batches. encode_image: gives the codes of images that are to be
    generated and have none.

    The iterator's `get_state()` is a small dict that JSON can hold; after `set_state` an iterator made with the same
    arguments continues exactly. It goes into a checkpoint with `grain.checkpoint.CheckpointSave(iterator)`. A state of
    other data or other settings raises `UserError`."""
    if not 0 <= stream < streams:
        raise ValueError(f"stream {stream} of {streams}")
    if config.batch_size % streams:
        raise UserError(f"batch_size {config.batch_size} is not divisible by the number of streams, {streams}")
    rows_per_stream = config.batch_size // streams
    sources = [
        _rows_of_source(source.train, number, corpus.left_out, tokenizer, config, stream, streams, encode_image)
        for number, source in enumerate(corpus.sources)
    ]
    rows = sources[0]
    if len(sources) > 1:
        rows = grain.IterDataset.mix(sources, [source.weight for source in corpus.sources])
    # A longer window than about an epoch would only make a small corpus slow to start.
    window_tokens = min(config.shuffle_window_tokens, corpus.train_bytes // (BYTES_PER_TOKEN * streams))
    # Images come one a row, in an order that is shuffled already.
    window = 0 if config.format == "labelled_images" else window_tokens // config.sequence_length
    if window > 1:
        seed = _seed(config.seed, "window", stream)
        rows = grain.experimental.WindowShuffleIterDataset(rows, window_size=window, seed=seed)
    assemble = _assemble(config, rows_per_stream, tokenizer)
    batches = rows.batch(rows_per_stream, drop_remainder=True, batch_fn=assemble)
    if config.worker_processes:
        # Workers parse absl's flags, which are not those of this command line. (Grain depends on absl.)
        from absl import flags

        flags.FLAGS.mark_as_parsed()
        batches = rows.batch(rows_per_stream, drop_remainder=True, batch_fn=WithLeftOut(assemble, corpus.left_out))
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=config.worker_processes))
    else:
        batches = grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=READ_AHEAD_BATCHES)
    identity = _identity(corpus, tokenizer, config, stream, streams, encode_image)
    return _Positioned(batches, identity, tokenizer.bos_id, corpus.left_out)


def validation_dataset(
    corpus: Corpus, tokenizer: Tokenizer, config: DataConfig, *, encode_image: EncodeImage | None = None
) -> list[Batch]:
    """At most `validation_batches` batches of the held-out documents, the same each time; [] if none are held out.

    Documents come in the order of their hashes, whatever the weights of their sources. Rows are filled up with
    padding, so that no token is dropped but those beyond the limit."""
    views = [source.validation for source in corpus.sources if len(source.validation)]
    if not views:
        return []
    documents = grain.MapDataset.concatenate([grain.MapDataset.source(view) for view in views])
    documents = documents.map(_to_predictions(corpus.left_out, len(documents), tokenizer, config, encode_image))
    # No threads: what is read ahead beyond the limit would be for nothing.
    documents = documents.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    rows = iter(_packed(documents, config, seed=None))
    assemble = _assemble(config, config.batch_size, tokenizer)
    batches: list[Batch] = []
    while len(batches) < config.validation_batches:
        taken = list(itertools.islice(rows, config.batch_size))
        if not taken:
            break
        batches.append(assemble(taken))
    return batches


def epochs_read(state: dict[str, Any], corpus: Corpus, streams: int = 1) -> float:
    """How many times the training documents have been begun, from the state of one stream of them: exact to the batch
    where it is the only one, and as seen from this stream where there are several."""
    return state["documents"] * streams / corpus.num_train_documents


_WHOLE: dict[str, Callable[..., dict[str, np.ndarray]]] = {"preference": pair_predictions, "prompts": prompted_tokens}
"""Formats whose documents are never cut, and what makes rows of them."""


def check_documents_fit(corpus: Corpus, tokenizer: Tokenizer, config: DataConfig) -> None:
    """Raises `UserError`, naming file and line, if a document of a format whose documents are never cut does not fit a
    row. All of them are tokenised for this: better a minute at the beginning than an error in the middle."""
    if config.format not in _WHOLE:
        return
    for source in corpus.sources:
        for view in (source.train, source.validation):
            for number in range(len(view)):
                _WHOLE[config.format](view[number], tokenizer, config.sequence_length)


def _to_predictions(left_out: LeftOut, count: int, tokenizer, config: DataConfig, encode_image: EncodeImage | None):
    if config.format == "labelled_images":
        return LabelledRows(config, left_out, count)
    if config.format == "interleaved":
        return MediaPredictions(tokenizer, config, left_out, count, encode_image)
    if config.format in _WHOLE:
        return functools.partial(_WHOLE[config.format], tokenizer=tokenizer, length=config.sequence_length)
    return functools.partial(predictions_of(config.format), tokenizer=tokenizer)


def _packed(documents: grain.IterDataset, config: DataConfig, seed: int | None) -> grain.IterDataset:
    if config.format == "labelled_images":
        return documents
    if config.format != "interleaved":
        return packed_rows(documents, config.packing, config.sequence_length, seed)
    others, bins = media_lengths(config.media), packing_bins(config.media)
    return packed_rows(documents, config.packing, config.sequence_length, seed, others=others, bins=bins)


def _assemble(config: DataConfig, batch_size: int, tokenizer: Tokenizer):
    if config.format == "interleaved":
        return functools.partial(make_media_batch, batch_size=batch_size, pad_id=tokenizer.pad_id, config=config.media)
    if config.format == "labelled_images":
        return functools.partial(
            make_labelled_batch, batch_size=batch_size, token=tokenizer.bos_id, pad_id=tokenizer.pad_id
        )
    make = make_preference_batch if config.format == "preference" else make_batch
    return functools.partial(make, batch_size=batch_size, pad_id=tokenizer.pad_id)


def _rows_of_source(
    view: DocumentView, number: int, left_out: LeftOut, tokenizer, config: DataConfig, stream: int, streams: int, encode
):
    if len(view) < streams:
        documents = "document" if len(view) == 1 else "documents"
        raise UserError(
            f"{len(view)} training {documents} cannot be shared out to {streams} streams (data.streams sets how many)"
        )
    seed = _seed(config.seed, "documents", number)
    documents = grain.MapDataset.source(view)[stream::streams].seed(seed).shuffle().repeat()
    to_row = _to_predictions(left_out, len(view), tokenizer, config, encode)
    # Random maps draw anew for each element and epoch.
    documents = documents.random_map(to_row) if config.format == "labelled_images" else documents.map(to_row)
    options = grain.ReadOptions(num_threads=config.read_threads, prefetch_buffer_size=READ_AHEAD_DOCUMENTS)
    return _packed(documents.to_iter_dataset(options), config, seed)


def _seed(*parts: Any) -> int:
    """An independent 31-bit seed for each use, so that no two shuffles run in step."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


def _identity(
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: DataConfig,
    stream: int,
    streams: int,
    encode_image: EncodeImage | None,
) -> dict[str, Any]:
    """What must be the same for a position to mean the same batches."""
    media = {"media": dataclasses.asdict(config.media)} if config.format == "interleaved" else {}
    if config.format == "labelled_images":
        media["images"] = _plain(dataclasses.asdict(config.images))
    if fingerprint := getattr(encode_image, "fingerprint", None):
        media["image tokenizer"] = fingerprint
    return media | {
        "documents": corpus.fingerprint,
        "tokenizer": tokenizer.fingerprint,
        "format": config.format,
        "packing": config.packing,
        "sequence_length": config.sequence_length,
        "batch_size": config.batch_size,
        "shuffle_window_tokens": config.shuffle_window_tokens,
        "seed": config.seed,
        "worker_processes": config.worker_processes,
        "stream": f"{stream} of {streams}",
    }


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


class WithLeftOut:
    """In a worker process: a batch, and the records (where, reason) that were left out since the one before it."""

    def __init__(self, assemble: Any, left_out: LeftOut):
        self._assemble, self._left_out, self._told = assemble, left_out, len(left_out)

    def __call__(self, rows: Any) -> tuple[Batch, list[tuple[str, str]]]:
        new = list(self._left_out.reasons.items())[self._told :]
        self._told += len(new)
        return self._assemble(rows), new


class _Positioned(grain.IterDataset):
    """Adds to the state what data it belongs to and how many documents have been begun, and counts what worker
    processes left out."""

    def __init__(self, parent: grain.IterDataset, identity: dict[str, Any], bos_id: int, left_out: LeftOut):
        super().__init__(parent)
        self._identity = identity
        self._bos_id = bos_id
        self._left_out = left_out

    def __iter__(self) -> grain.DatasetIterator:
        return _PositionedIterator(self._parent.__iter__(), self._identity, self._bos_id, self._left_out)


class _PositionedIterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, identity: dict[str, Any], bos_id: int, left_out: LeftOut):
        super().__init__(parent)
        self._identity = identity
        self._bos_id = bos_id
        self._left_out = left_out
        self._documents = 0
        weakref.finalize(self, _close_once, parent)

    def __next__(self) -> Batch:
        batch = next(self._parent)
        if isinstance(batch, tuple):
            batch, left_out = batch
            for where, reason in left_out:
                self._left_out.add(where, reason)
        begun = (batch.segment_ids > 0) & (batch.positions == 0) & (batch.tokens == self._bos_id)
        self._documents += int(np.count_nonzero(begun)) // (2 if self._identity["format"] == "preference" else 1)
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"parent": self._parent.get_state(), "documents": self._documents, "identity": self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        saved = dict(state["identity"])
        if "process" in saved:  # a process was a stream, before there were streams
            saved["stream"] = saved.pop("process")
        changed = [f"{key} ({saved.get(key)} -> {now})" for key, now in self._identity.items() if saved.get(key) != now]
        if changed:
            raise UserError(f"the saved data position belongs to other data or settings: changed {', '.join(changed)}")
        self._parent.set_state(state["parent"])
        self._documents = state["documents"]


def _close_once(iterator: grain.DatasetIterator) -> None:
    """Stops the read-ahead threads at the latest when the interpreter begins to exit.

    Grain 0.2.18 closes its thread prefetch again when it is collected, which fails loudly once modules are torn
    down."""
    iterator.close()
    iterator.close = lambda: None
