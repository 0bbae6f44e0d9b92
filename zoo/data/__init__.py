"""From files to packed batches: sources, tokenizer, packing, the checkpointable iterator, baselines.

`open_corpus` -> `tokenizer_for` -> `train_dataset` / `validation_dataset` -> `Batch` (numpy arrays).
"""

from zoo.data.baselines import Baselines, baselines, batch_bytes
from zoo.data.batch import Batch
from zoo.data.chat import Conversation, Message, render_chat
from zoo.data.config import DataConfig
from zoo.data.corpus import Corpus, open_corpus
from zoo.data.iterator import epochs_read, train_dataset, validation_dataset
from zoo.data.sentencepiece_tokenizer import train_tokenizer
from zoo.data.streams import TrainBatches, epochs_begun, train_batches
from zoo.data.tokenizer import Tokenizer
from zoo.data.tokenizer_files import load_tokenizer, tokenizer_for

__all__ = [
    "Baselines",
    "Batch",
    "Conversation",
    "Corpus",
    "DataConfig",
    "Message",
    "Tokenizer",
    "TrainBatches",
    "baselines",
    "batch_bytes",
    "epochs_begun",
    "epochs_read",
    "load_tokenizer",
    "open_corpus",
    "render_chat",
    "tokenizer_for",
    "train_batches",
    "train_dataset",
    "train_tokenizer",
    "validation_dataset",
]
