"""GGUF files for on-device runtimes (llama.cpp and what is built on it): Gemma 2, and Gemini models of the same block.

Metadata and names are those of llama.cpp's converter (conversion/gemma.py, gguf-py's constants): norms are stored as
1 + scale in float32, matrices as [out, in]. Packed weights become blocks of 32 without a change of any number: Q4_0 (a
float16 scale, then 16 bytes; byte j holds elements j and j + 16) or Q8_0 (a float16 scale, then 32 int8).
"""

import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from zoo.data import Tokenizer
from zoo.data.sentencepiece_tokenizer import SentencePieceTokenizer
from zoo.data.tokenizer import END_OF_TURN, START_OF_TURN
from zoo.errors import UserError
from zoo.interop.new_folder import new_folder
from zoo.interop.parameters import OnTensor
from zoo.interop.quantised import Packing, Value, packed_values
from zoo.models.gemini import GeminiConfig
from zoo.models.gemma2 import Gemma2Config
from zoo.nn.packed import PackedWeight

FILE = "model.gguf"

_BLOCK = 32
_LAYERS_OF_27B = 46
"""By this number of layers llama.cpp (src/models/gemma2.cpp) knows the 27B model, whose scale of the scores differs."""

_NAMES = {
    "embedder/embedding": "token_embd.weight",
    "final_norm/scale": "output_norm.weight",
    "pre_attention_norm/scale": "attn_norm.weight",
    "attention/query": "attn_q.weight",
    "attention/key": "attn_k.weight",
    "attention/value": "attn_v.weight",
    "attention/output": "attn_output.weight",
    "post_attention_norm/scale": "post_attention_norm.weight",
    "pre_ffw_norm/scale": "ffn_norm.weight",
    "mlp/gate": "ffn_gate.weight",
    "mlp/up": "ffn_up.weight",
    "mlp/down": "ffn_down.weight",
    "post_ffw_norm/scale": "post_ffw_norm.weight",
}
_UNUSED_SCORE = -10_000.0
_UNUSED, _CONTROL = 5, 3
"""Token types, which SentencePiece and GGUF number alike."""


def save_gguf(
    model: Any,
    folder: str | Path,
    packing: Packing | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    dtype: str | None = None,
    name: str = "model",
    overwrite: bool = False,
    on_tensor: OnTensor | None = None,
) -> Path:
    """Writes `folder`/model.gguf and returns it.

    Args:
        model: a Gemma 2, or a dense text-only Gemini with its block; packed or not.
        folder: must not exist or be empty; with `overwrite` it may hold an earlier export.
        packing: how to pack the weights; None = as they are. What is packed already stays as it is.
        tokenizer: SentencePiece; without one the file has no vocabulary and takes token ids.
        dtype: of matrices that are not packed: "float32", "bfloat16" or None for that of the model.
        name: the model's name in the metadata.
        overwrite: replace an earlier export.
        on_tensor: progress.

    Raises:
        UserError: an architecture, a packing or a tokenizer that the format or llama.cpp does not have; the package
            `gguf` is missing.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF needs the package gguf: install the extra, pip install 'jax-flax-zoo[gguf]'") from None
    config = model.config
    _check_architecture(config)
    vocabulary = None if tokenizer is None else _vocabulary(tokenizer, config.vocab_size)
    values = dict(sorted(packed_values(model, packing, on_tensor), key=lambda item: _order(item[0])))
    kinds = {ours: _kind(ours, value, dtype) for ours, value in values.items()}
    with new_folder(Path(folder), num_bytes=sum(v.nbytes for v in values.values()), overwrite=overwrite) as temporary:
        writer = gguf.GGUFWriter(str(temporary / FILE), "gemma2")
        writer.add_type("model")
        writer.add_name(name)
        _add_architecture(writer, config, _file_type(gguf, set(kinds.values())))
        _add_tokenizer(writer, config, vocabulary, tokenizer)
        for ours, value in values.items():
            kind, shape = gguf.GGMLQuantizationType[kinds[ours]], _rows_and_columns(ours, value.shape)
            block, size = gguf.GGML_QUANT_SIZES[kind]
            # This class takes a shape in elements for any dtype but uint8.
            writer.add_tensor_info(_name(ours), shape, np.dtype(np.float32), math.prod(shape) // block * size, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for ours, value in values.items():
            writer.write_tensor_data(_data(ours, value, kinds[ours]))
        writer.close()
    return Path(folder) / FILE


def to_blocks(weight: PackedWeight) -> UInt8[np.ndarray, "o bytes"]:
    """The rows of a packed weight as Q4_0 or Q8_0 blocks. Raises `UserError` for other groups or scales than GGUF's."""
    packed, scales = np.asarray(weight.packed), np.asarray(weight.scales)
    if weight.group != _BLOCK or scales.dtype != np.float16:
        raise UserError(f"GGUF has groups of 32 with float16 scales, not of {weight.group} with {scales.dtype} scales")
    rows = len(packed)
    head = scales.reshape(rows, -1, 1).view(np.uint8)
    if weight.bits == 8:
        return np.concatenate([head, packed.view(np.uint8).reshape(rows, -1, _BLOCK)], axis=-1).reshape(rows, -1)
    codes = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(rows, -1, 2, _BLOCK // 2)
    return np.concatenate([head, codes[:, :, 0] | codes[:, :, 1] << 4], axis=-1).reshape(rows, -1)


def _name(ours: str) -> str:
    layer = re.match(r"layers/(\d+)/(.*)", ours)
    return f"blk.{layer[1]}.{_NAMES[layer[2]]}" if layer else _NAMES[ours]


def _order(ours: str) -> tuple[int, str]:
    """The embedding, the layers, the last norm: whichever layout the model keeps its layers in."""
    layer = re.match(r"layers/(\d+)/", ours)
    if layer:
        return int(layer[1]), ours
    return (-1 if ours.startswith("embedder/") else sys.maxsize), ours


def _kind(ours: str, value: Value, dtype: str | None) -> str:
    """Name of a tensor's type in gguf.GGMLQuantizationType."""
    if isinstance(value, PackedWeight):
        return f"Q{value.bits}_0"
    return "BF16" if (dtype or value.dtype.name) == "bfloat16" and not ours.endswith("/scale") else "F32"


def _rows_and_columns(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in the file: [out, in] of a matrix."""
    if len(shape) == 1 or ours.startswith("embedder/"):
        return shape
    split = 2 if ours.endswith("attention/output") else 1
    return math.prod(shape[split:]), math.prod(shape[:split])


def _data(ours: str, value: Value, kind: str) -> np.ndarray:
    """What the file holds: float32 values, or bytes."""
    if isinstance(value, PackedWeight):
        return to_blocks(value)
    if ours.endswith("/scale"):
        return value.astype(np.float32) + 1
    rows, columns = _rows_and_columns(ours, value.shape)
    matrix = value if ours.startswith("embedder/") else value.reshape(columns, rows).T
    if kind == "BF16":
        return np.ascontiguousarray(matrix, jnp.bfloat16).view(np.uint8)
    return np.ascontiguousarray(matrix, np.float32)


def _check_architecture(config: Any) -> None:
    """Refuses what llama.cpp's gemma2 does not compute."""
    if not isinstance(config, Gemma2Config | GeminiConfig):
        kind = type(config).__name__.removesuffix("Config")
        raise UserError(f"a {kind} is not written as GGUF: Gemma 2 and Gemini models with its block are")
    heads_per_width = config.embed_dim // config.num_heads
    scale_of = heads_per_width if config.num_layers == _LAYERS_OF_27B else config.head_dim
    conditions = {
        "layer_types = (local, global)": config.layer_types == ("local", "global"),
        "an attn_logit_soft_cap": config.attn_logit_soft_cap is not None,
        "a final_logit_soft_cap": config.final_logit_soft_cap is not None,
        f"scores divided by sqrt({scale_of})": getattr(config, "query_pre_attn_scalar", config.head_dim) == scale_of,
    }
    if isinstance(config, GeminiConfig):
        conditions |= {
            "block = serial": config.block == "serial",
            "post_norms": config.post_norms,
            "gated": config.gated,
            "global_rope": config.global_rope,
            "one rope_theta for all layers": config.global_rope_theta in (None, config.rope_theta),
            "no global_rope_scaling": config.global_rope_scaling is None,
            "no experts": config.experts is None,
            "no encoders of images or audio": config.vision is None and config.audio is None,
        }
    lacking = [name for name, holds in conditions.items() if not holds]
    if lacking:
        raise UserError(f"GGUF's gemma2 has {lacking[0]}; this model differs, so it cannot be written as GGUF")


def _add_architecture(writer: Any, config: Any, file_type: int) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.embed_dim)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.hidden_dim)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_attn_logit_softcapping(config.attn_logit_soft_cap)
    writer.add_final_logit_softcapping(config.final_logit_soft_cap)
    writer.add_sliding_window(config.sliding_window)
    writer.add_vocab_size(config.vocab_size)
    writer.add_quantization_version(2)
    writer.add_file_type(file_type)


def _file_type(gguf: Any, kinds: set[str]) -> int:
    """What most of the file is, as gguf.LlamaFileType numbers it."""
    names = {"Q4_0": "MOSTLY_Q4_0", "Q8_0": "MOSTLY_Q8_0", "BF16": "MOSTLY_BF16"}
    return int(gguf.LlamaFileType[next((names[kind] for kind in names if kind in kinds), "ALL_F32")])


@dataclass(frozen=True)
class _Vocabulary:
    """What a runtime needs of a SentencePiece model."""

    pieces: list[bytes]
    """By id."""
    scores: list[float]
    """Log-probability, or minus the rank of a merge."""
    types: list[int]
    """1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
    space_prefix: bool
    """Whether a space is put before a text."""


def _vocabulary(tokenizer: Tokenizer, vocab_size: int) -> _Vocabulary:
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError("GGUF needs a SentencePiece tokenizer (tokenizer.model); this checkpoint has a tokenizer.json")
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.serialized)  # type: ignore[attr-defined]
    turns = {START_OF_TURN, END_OF_TURN}
    pieces = [piece.piece.encode() for piece in proto.pieces]
    scores = [piece.score for piece in proto.pieces]
    # A runtime finds control tokens in prompts only where it is told to, user-defined ones in any text.
    types = [_CONTROL if piece.piece in turns else piece.type for piece in proto.pieces]
    fillers = range(len(pieces), vocab_size)
    pieces += [f"[PAD{i}]".encode() for i in fillers]
    scores += [_UNUSED_SCORE for _ in fillers]
    types += [_UNUSED for _ in fillers]
    return _Vocabulary(pieces, scores, types, proto.normalizer_spec.add_dummy_prefix)


def _add_tokenizer(writer: Any, config: Any, vocabulary: _Vocabulary | None, tokenizer: Tokenizer | None) -> None:
    if vocabulary is None or tokenizer is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary.pieces)
    writer.add_token_scores(vocabulary.scores)
    writer.add_token_types(vocabulary.types)
    add_ids: dict[Callable[[int], None], int | None] = {
        writer.add_bos_token_id: config.bos_token_id,
        writer.add_eos_token_id: config.eos_token_ids[0] if config.eos_token_ids else tokenizer.eos_id,
        writer.add_unk_token_id: tokenizer.id_of("<unk>"),
        writer.add_pad_token_id: config.pad_token_id,
        writer.add_eot_token_id: tokenizer.id_of(END_OF_TURN),
    }
    for add, number in add_ids.items():
        if number is not None:
            add(number)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(vocabulary.space_prefix)
