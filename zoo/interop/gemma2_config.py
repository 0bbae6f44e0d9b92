"""Gemma 2's `config.json` in Hugging Face's two styles, to our `Gemma2Config` and back.

New style (transformers 5): `layer_types`, `rope_parameters`, `dtype`. Old style (4.42 on): `rope_theta`, `torch_dtype`,
`hidden_act`, and no `layer_types`, which means that even layers are local. What is read here and cannot be computed
exactly is refused by name; keys that do not touch the function (`use_cache`, `initializer_range`, ...) are passed over.
"""

from collections.abc import Mapping
from typing import Any

from zoo.errors import UserError
from zoo.interop.config_fields import ConfigFields
from zoo.interop.decoder_fields import (
    MOST_LAYERS,
    check_architecture,
    eos_to_huggingface,
    eos_token_ids,
    head_sizes,
    layer_pattern,
    layer_types_to_huggingface,
    plain_rope_theta,
)
from zoo.models.gemma2 import Gemma2Config

_ACTIVATION = "gelu_pytorch_tanh"


def gemma2_from_huggingface(values: Mapping[str, Any], source: str) -> Gemma2Config:
    """The architecture that a `config.json` describes. `source` is the file's name in messages.

    Raises:
        UserError: a key is missing, has a wrong type or an absurd value, or asks for what is not computed here.
    """
    fields = ConfigFields(values, source, "Gemma 2")
    _refuse_other_functions(fields)
    vocab_size = fields.size("vocab_size")
    heads = head_sizes(fields)
    num_layers = fields.size("num_hidden_layers", largest=MOST_LAYERS)
    return Gemma2Config(
        vocab_size=vocab_size,
        embed_dim=fields.size("hidden_size"),
        num_layers=num_layers,
        **heads,
        hidden_dim=fields.size("intermediate_size"),
        sliding_window=fields.size("sliding_window"),
        query_pre_attn_scalar=fields.positive("query_pre_attn_scalar"),
        attn_logit_soft_cap=fields.positive_or_none("attn_logit_softcapping"),
        final_logit_soft_cap=fields.positive_or_none("final_logit_softcapping"),
        rope_theta=plain_rope_theta(fields),
        norm_eps=fields.positive("rms_norm_eps"),
        layer_types=layer_pattern(fields, num_layers, ("local", "global")),
        pad_token_id=fields.token_id("pad_token_id", 0, vocab_size),
        eos_token_ids=eos_token_ids(fields, vocab_size, 1),
        bos_token_id=fields.token_id("bos_token_id", 2, vocab_size),
        max_position_embeddings=fields.size("max_position_embeddings"),
    )


def gemma2_to_huggingface(config: Gemma2Config, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly and 4.42 on understands: the RoPE base stands in both styles.

    Raises:
        UserError: transformers could not express or would refuse the architecture.
    """
    if config.query_pre_attn_scalar != int(config.query_pre_attn_scalar):
        raise UserError(
            f"query_pre_attn_scalar = {config.query_pre_attn_scalar}: transformers takes whole numbers only"
        )
    if config.embed_dim % config.num_heads:
        raise UserError(
            f"embed_dim = {config.embed_dim} is no multiple of num_heads = {config.num_heads}: transformers refuses it"
        )
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": config.attn_logit_soft_cap,
        "bos_token_id": config.bos_token_id,
        "dtype": dtype,
        "eos_token_id": eos_to_huggingface(config.eos_token_ids),
        "final_logit_softcapping": config.final_logit_soft_cap,
        "head_dim": config.head_dim,
        "hidden_act": _ACTIVATION,
        "hidden_activation": _ACTIVATION,
        "hidden_size": config.embed_dim,
        "initializer_range": 0.02,
        "intermediate_size": config.hidden_dim,
        "layer_types": layer_types_to_huggingface(config.layer_types, config.num_layers),
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "gemma2",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": config.pad_token_id,
        "query_pre_attn_scalar": int(config.query_pre_attn_scalar),
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "sliding_window": config.sliding_window,
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def _refuse_other_functions(fields: ConfigFields) -> None:
    check_architecture(fields, "Gemma2ForCausalLM")
    activations = [
        fields.values[key] for key in ("hidden_activation", "hidden_act") if fields.values.get(key) is not None
    ]
    if not activations:
        fields.required("hidden_activation")
    # Where both are given hidden_activation decides, as in transformers.
    fields.only("hidden_activation" if fields.values.get("hidden_activation") else "hidden_act", [_ACTIVATION], None)
    fields.only("attention_bias", [False], False)
    fields.only("use_bidirectional_attention", [False, None], None)
    fields.only("tie_word_embeddings", [True], True)
