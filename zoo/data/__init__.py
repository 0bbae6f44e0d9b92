"""From files to packed batches: sources, tokenizer, packing, the checkpointable iterator, baselines.

`open_corpus` -> `tokenizer_for` -> `train_dataset` / `validation_dataset` -> `Batch` (numpy arrays).
"""

from zoo.data.baselines import Baselines, Unigram, baselines, batch_bytes, unigram
from zoo.data.batch import Batch
from zoo.data.chat import Conversation, Message, render_chat
from zoo.data.config import DataConfig
from zoo.data.corpus import Corpus, open_corpus
from zoo.data.interleaved import Interleaved, Part, parse_interleaved
from zoo.data.iterator import check_documents_fit, epochs_read, train_dataset, validation_dataset
from zoo.data.labelled_config import LabelledImagesConfig
from zoo.data.media import AudioClips, BadMedia, LeftOut, Media, PackedImages
from zoo.data.media_config import MediaConfig
from zoo.data.media_packing import media_shapes
from zoo.data.no_text import NoText
from zoo.data.preferences import Preference, parse_preference, render_answer
from zoo.data.prompted import Prompted, RewardKind, check_reference, computed_reward
from zoo.data.rendering import EncodeImage, load_media_prompt
from zoo.data.sentencepiece_tokenizer import train_tokenizer
from zoo.data.streams import TrainBatches, epochs_begun, train_batches
from zoo.data.task_config import TaskConfig
from zoo.data.tokenizer import Tokenizer
from zoo.data.tokenizer_files import TOKENIZER_FILES, load_tokenizer, tokenizer_for
from zoo.data.vocabulary import MediaVocabulary
from zoo.data.wordpiece_tokenizer import train_wordpiece

__all__ = [
    "TOKENIZER_FILES",
    "AudioClips",
    "BadMedia",
    "Baselines",
    "Batch",
    "Conversation",
    "Corpus",
    "DataConfig",
    "EncodeImage",
    "Interleaved",
    "LabelledImagesConfig",
    "LeftOut",
    "Media",
    "MediaConfig",
    "MediaVocabulary",
    "Message",
    "NoText",
    "PackedImages",
    "Part",
    "Preference",
    "Prompted",
    "RewardKind",
    "TaskConfig",
    "check_documents_fit",
    "check_reference",
    "computed_reward",
    "parse_preference",
    "render_answer",
    "Tokenizer",
    "TrainBatches",
    "Unigram",
    "baselines",
    "batch_bytes",
    "epochs_begun",
    "epochs_read",
    "load_media_prompt",
    "load_tokenizer",
    "media_shapes",
    "open_corpus",
    "parse_interleaved",
    "render_chat",
    "tokenizer_for",
    "train_batches",
    "train_dataset",
    "train_tokenizer",
    "train_wordpiece",
    "unigram",
    "validation_dataset",
]
