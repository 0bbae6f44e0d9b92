"""The training batches of a run, the same for any number of processes.

A global batch of B rows is made of S independent streams (`data.streams`). Stream s reads every S-th document from the
s-th on, with its own shuffles, and gives the rows [s * B / S, (s + 1) * B / S) of every batch. S belongs to the run,
not to the machines: a process opens the streams whose rows its devices hold, and another number of processes opens the
same streams in other places.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import grain
import jax
import numpy as np

from zoo.data.batch import Batch
from zoo.data.config import DataConfig
from zoo.data.corpus import Corpus
from zoo.data.iterator import epochs_read, train_dataset
from zoo.data.rendering import EncodeImage
from zoo.data.tokenizer import Tokenizer
from zoo.parallel.rows import Rows


def part_name(stream: int, streams: int) -> str:
    """What the position of one stream is called in a checkpoint."""
    return f"stream_{stream}-of-{streams}"


class TrainBatches:
    """An endless iterator of `Batch`es, or of `Rows` of them where not all rows were asked for.

    Its position has one part a stream, by `part_name`. `get_state` gives those that are this process's to save,
    `set_state` needs those of all streams that it reads (`parts`)."""

    def __init__(
        self,
        iterators: Mapping[int, grain.DatasetIterator],
        rows: Sequence[int],
        config: DataConfig,
        saved: Collection[int],
    ):
        self._streams = config.streams or 1
        self._iterators, self._saved = dict(iterators), sorted(saved)
        per_stream = config.batch_size // self._streams
        held = np.concatenate([np.arange(s * per_stream, (s + 1) * per_stream) for s in self._iterators])
        self._numbers, self._total = tuple(rows), config.batch_size
        self._picked = None if len(held) == len(rows) else np.searchsorted(held, np.asarray(rows))

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of a position that `set_state` needs."""
        return tuple(part_name(stream, self._streams) for stream in self._iterators)

    def __iter__(self) -> "TrainBatches":
        return self

    def __next__(self) -> Batch | Rows:
        read = [next(iterator) for iterator in self._iterators.values()]
        batch = read[0] if len(read) == 1 else jax.tree.map(lambda *parts: np.concatenate(parts), *read)
        if self._picked is not None:
            batch = jax.tree.map(lambda array: array[self._picked], batch)
        return batch if len(self._numbers) == self._total else Rows(batch, self._numbers, self._total)

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch, as far as it is this process's to save; JSON."""
        return {part_name(stream, self._streams): self._iterators[stream].get_state() for stream in self._saved}

    def set_state(self, position: Mapping[str, Any]) -> None:
        """Goes to a saved position. Raises `UserError` if it is of other data or settings."""
        for stream, iterator in self._iterators.items():
            iterator.set_state(position[part_name(stream, self._streams)])

    def close(self) -> None:
        """Ends the threads that read ahead."""
        for iterator in self._iterators.values():
            iterator.close()


def train_batches(
    corpus: Corpus,
    tokenizer: Tokenizer,
    config: DataConfig,
    rows: Mapping[int, Sequence[int]] | None = None,
    process: int = 0,
    *,
    encode_image: EncodeImage | None = None,
) -> TrainBatches:
    """The training batches of `config.streams` streams (None: one).

    Args:
        rows: for each process the rows of the global batch that it holds (`zoo.parallel.rows_by_process`); None is one
            process that holds all of them. A stream that several processes read is saved by the first of them.
        process: which of them this is.
        encode_image: gives the codes of images that are to be generated and have none.

    Raises:
        UserError: there are fewer documents than streams.
    """
    streams = config.streams or 1
    per_stream = config.batch_size // streams
    rows = {0: range(config.batch_size)} if rows is None else rows
    readers = {owner: sorted({row // per_stream for row in rows[owner]}) for owner in sorted(rows)}
    earlier = {stream for owner, read in readers.items() if owner < process for stream in read}
    own = readers[process]
    iterators = {
        stream: iter(
            train_dataset(corpus, tokenizer, config, stream=stream, streams=streams, encode_image=encode_image)
        )
        for stream in own
    }
    return TrainBatches(iterators, rows[process], config, [stream for stream in own if stream not in earlier])


def epochs_begun(position: Mapping[str, Any], corpus: Corpus, config: DataConfig) -> float:
    """How often the training documents have been begun, seen from the first stream of a position, so that it does not
    depend on the number of processes; 0 of an empty position."""
    return epochs_read(next(iter(position.values())), corpus, config.streams or 1) if position else 0.0
