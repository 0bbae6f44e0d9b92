"""BERT in Hugging Face folders (`BertModel`, `BertForMaskedLM`): config.json and tensors, there and back.

A `BertForMaskedLM` on the hub often holds a pooler and the next-sentence head of its pre-training besides. That class
has neither, so they are left out here as there. Axes: V vocabulary, T positions, S token types, D and E width, N heads,
H width of a head, F feed-forward width. Source: transformers 5.23, models/bert (torch keeps a linear map as [out, in]).
"""

from collections.abc import Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.encoder_fields import head_count
from zoo.interop.layouts import Layout
from zoo.interop.places import Place, whole_table
from zoo.models.bert import BertConfig, Head

_CLASSES: dict[Head, str] = {"pooler": "BertModel", "masked_lm": "BertForMaskedLM"}
"""By our `head`."""
_ACTIVATION = "gelu"
# What a key that is missing from config.json means (`BertConfig`).
_DEFAULTS = {
    "vocab_size": 30_522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_dropout_prob": 0.1,
    "layer_norm_eps": 1e-12,
}


def config_from_huggingface(values: Mapping[str, Any], source: str) -> BertConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields({**_DEFAULTS, **values}, source, "BERT")
    named = values.get("architectures") or [_CLASSES["pooler"]]
    head = next((head for head, name in _CLASSES.items() if named == [name]), None)
    if head is None:
        fields.refuse("architectures", f"is not supported: it must be {' or '.join(_CLASSES.values())}")
    fields.only("auto_map", [None], None)
    fields.only("quantization_config", [None], None)
    fields.only("hidden_act", [_ACTIVATION], _ACTIVATION)
    fields.only("position_embedding_type", ["absolute"], "absolute")
    fields.only("is_decoder", [False], False)
    fields.only("add_cross_attention", [False], False)
    fields.only("tie_word_embeddings", [True], True)
    vocab_size = fields.size("vocab_size")
    return BertConfig(
        vocab_size=vocab_size,
        embed_dim=fields.size("hidden_size"),
        num_layers=fields.size("num_hidden_layers"),
        num_heads=head_count(fields, "num_attention_heads", "hidden_size"),
        hidden_dim=fields.size("intermediate_size"),
        num_positions=fields.size("max_position_embeddings"),
        num_token_types=fields.size("type_vocab_size"),
        head=head,
        dropout=fields.fraction("hidden_dropout_prob"),
        norm_eps=fields.positive("layer_norm_eps"),
        pad_token_id=fields.token_id("pad_token_id", 0, vocab_size),
    )


def config_to_huggingface(config: BertConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly. What stands for a masked token is the tokenizer's affair."""
    return {
        "architectures": [_CLASSES[config.head]],
        "dtype": dtype,
        "hidden_act": _ACTIVATION,
        "hidden_dropout_prob": config.dropout,
        "hidden_size": config.embed_dim,
        "intermediate_size": config.hidden_dim,
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.num_positions,
        "model_type": "bert",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": True,
        "type_vocab_size": config.num_token_types,
        "vocab_size": config.vocab_size,
    }


def axis_sizes(config: BertConfig) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    return {
        "V": config.vocab_size,
        "T": config.num_positions,
        "S": config.num_token_types,
        "D": config.embed_dim,
        "E": config.embed_dim,
        "N": config.num_heads,
        "H": config.embed_dim // config.num_heads,
        "F": config.hidden_dim,
    }


def places(config: BertConfig) -> dict[str, Place]:
    """The place of every parameter, in the order of the forward pass."""
    masked = config.head == "masked_lm"
    table: dict[str, Place] = {}

    def norm(ours: str, theirs: str) -> None:
        table[f"{ours}/scale"] = Place(f"{theirs}.weight", Layout("D -> D"))
        table[f"{ours}/bias"] = Place(f"{theirs}.bias", Layout("D -> D"))

    def linear(ours: str, theirs: str, weight: str, bias: str) -> None:
        table[ours] = Place(f"{theirs}.weight", Layout(weight))
        table[f"{ours}_bias"] = Place(f"{theirs}.bias", Layout(bias))

    base = "bert." if masked else ""
    table["embedder/embedding"] = Place(f"{base}embeddings.word_embeddings.weight", Layout("V D -> V D"))
    table["position"] = Place(f"{base}embeddings.position_embeddings.weight", Layout("T D -> T D"))
    table["token_type"] = Place(f"{base}embeddings.token_type_embeddings.weight", Layout("S D -> S D"))
    norm("embedding_norm", f"{base}embeddings.LayerNorm")
    ours, theirs = "layers/{}/", base + "encoder.layer.{}."
    for name in ("query", "key", "value"):
        linear(f"{ours}attention/{name}", f"{theirs}attention.self.{name}", "(N H) D -> D N H", "(N H) -> N H")
    linear(f"{ours}attention/output", f"{theirs}attention.output.dense", "D (N H) -> N H D", "D -> D")
    norm(f"{ours}attention_norm", f"{theirs}attention.output.LayerNorm")
    linear(f"{ours}mlp/up", f"{theirs}intermediate.dense", "F D -> D F", "F -> F")
    linear(f"{ours}mlp/down", f"{theirs}output.dense", "D F -> F D", "D -> D")
    norm(f"{ours}mlp_norm", f"{theirs}output.LayerNorm")
    head = "cls.predictions.transform.dense" if masked else "pooler.dense"
    linear("head/kernel", head, "E D -> D E", "E -> E")
    if masked:
        norm("head/norm", "cls.predictions.transform.LayerNorm")
        table["head/bias"] = Place("cls.predictions.bias", Layout("V -> V"))
    return whole_table(table, config.num_layers)


BERT = Architecture(
    family="BERT",
    config_type=BertConfig,
    config_from=config_from_huggingface,
    config_to=config_to_huggingface,
    places=places,
    axis_sizes=axis_sizes,
    repeats={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=(r"(bert\.)?embeddings\.position_ids", r"bert\.pooler\..*", r"cls\.seq_relationship\..*"),
    old_endings={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    is_decoder=False,
)
