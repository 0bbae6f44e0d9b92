"""Encoders of text with their tokenizer and markers: our own small BERT, or one of a folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flax import nnx

from experiments.relation_extraction.arms import Size
from experiments.relation_extraction.passages import Marks
from zoo.data import Tokenizer
from zoo.data.wordpiece_tokenizer import CLS, MASK, PAD, SEP, UNUSED
from zoo.errors import UserError
from zoo.interop import load
from zoo.models import BertConfig, build
from zoo.models.bert import Bert

MARKERS = UNUSED[:4]
"""[unused1] .. [unused4]: before and after the head, before and after the tail."""


def marks_of(tokenizer: Tokenizer, where: str) -> Marks:
    """The ids of BERT's own tokens and of the markers. `UserError` if the vocabulary, that of `where`, lacks one."""

    def number(name: str) -> int:
        found = tokenizer.id_of(name)
        if found is None:
            raise UserError(f"{where}: its vocabulary has no {name}; a BERT's has it, with {MARKERS[0]} and so on")
        return found

    head, tail = [number(name) for name in MARKERS[:2]], [number(name) for name in MARKERS[2:]]
    return Marks(number(CLS), number(SEP), number(PAD), (head[0], head[1]), (tail[0], tail[1]))


def small_bert(size: Size, tokenizer: Tokenizer) -> BertConfig:
    """The architecture of our own encoders."""
    return BertConfig(
        vocab_size=tokenizer.vocab_size,
        embed_dim=size.embed_dim,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        hidden_dim=size.hidden_dim,
        num_positions=size.passage_tokens,
        dropout=size.dropout,
        mask_token_id=tokenizer.id_of(MASK) or 0,
    )


def from_scratch(size: Size, tokenizer: Tokenizer, seed: int) -> Bert:
    """Random weights."""
    return build(small_bert(size, tokenizer), rngs=nnx.Rngs(seed))


def from_folder(path: Path, size: Size) -> Bert:
    """The weights of a run or a Hugging Face folder, with the size's dropout."""
    model = load(path).model
    config = replace(model.config, dropout=size.dropout)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Bert(config, execution=model.execution, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, nnx.state(model))


@dataclass(frozen=True)
class Folder:
    """What --encoder names."""

    tokenizer: Tokenizer
    """Its own."""
    parameters: int
    """Of the encoder."""


def check_folder(path: Path, size: Size) -> Folder:
    """Opens a folder before anything is trained.

    Raises:
      UserError: it cannot be loaded, is no BERT, has no tokenizer, lacks markers, or has too few positions.
    """
    loaded = load(path)
    model: Any = loaded.model
    if not isinstance(model, Bert):
        raise UserError(f"--encoder {path} holds a {type(model).__name__}; need a BERT (model_type bert)")
    if loaded.tokenizer is None:
        raise UserError(f"--encoder {path} has no tokenizer: need its vocab.txt or tokenizer.json")
    marks_of(loaded.tokenizer, f"--encoder {path}")
    if model.config.num_positions < size.passage_tokens:
        room = model.config.num_positions
        raise UserError(f"--encoder {path} has {room} positions; passages have {size.passage_tokens} tokens")
    return Folder(loaded.tokenizer, model.config.num_parameters())
