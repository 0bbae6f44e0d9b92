"""Gemma 2's `config.json` in Hugging Face's two styles, to our `Gemma2Config` and back.

New style (transformers 5): `layer_types`, `rope_parameters`, `dtype`. Old style (4.42 on): `rope_theta`, `torch_dtype`,
`hidden_act`, and no `layer_types`, which means that even layers are local. What is read here and cannot be computed
exactly is refused by name; keys that do not touch the function (`use_cache`, `initializer_range`, ...) are passed over.
"""

from collections.abc import Mapping
from typing import Any

from zoo.errors import UserError
from zoo.interop.config_fields import ConfigFields, smallest_pattern
from zoo.models.gemma2 import Gemma2Config

MODEL_TYPES = ("gemma2",)
_ACTIVATION = "gelu_pytorch_tanh"
_LAYER_TYPES = {"sliding_attention": "local", "full_attention": "global"}
_MOST_LAYERS = 10_000


def config_from_huggingface(values: Mapping[str, Any], source: str = "config.json") -> Gemma2Config:
    """The architecture that a `config.json` describes. `source` is the file's name in messages.

    Raises:
        UserError: a key is missing, has a wrong type or an absurd value, or asks for what is not computed here.
    """
    if values.get("model_type") not in MODEL_TYPES:
        supported = ", ".join(MODEL_TYPES)
        raise UserError(f"{source}: model_type {values.get('model_type')!r} is not supported (supported: {supported})")
    fields = ConfigFields(values, source, "Gemma 2")
    _refuse_other_functions(fields)
    vocab_size = fields.size("vocab_size")
    num_heads, num_kv_heads = fields.size("num_attention_heads"), fields.size("num_key_value_heads")
    if num_heads % num_kv_heads:
        fields.refuse("num_attention_heads", f"is not a multiple of num_key_value_heads = {num_kv_heads}")
    if fields.size("head_dim") % 2:
        fields.refuse("head_dim", "is odd: rotary positions need pairs")
    num_layers = fields.size("num_hidden_layers", largest=_MOST_LAYERS)
    return Gemma2Config(
        vocab_size=vocab_size,
        embed_dim=fields.size("hidden_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=fields.size("head_dim"),
        hidden_dim=fields.size("intermediate_size"),
        sliding_window=fields.size("sliding_window"),
        query_pre_attn_scalar=fields.positive("query_pre_attn_scalar"),
        attn_logit_soft_cap=fields.positive_or_none("attn_logit_softcapping"),
        final_logit_soft_cap=fields.positive_or_none("final_logit_softcapping"),
        rope_theta=_rope_theta(fields),
        norm_eps=fields.positive("rms_norm_eps"),
        layer_types=_layer_pattern(fields, num_layers),
        pad_token_id=fields.token_id("pad_token_id", 0, vocab_size),
        eos_token_ids=_eos_token_ids(fields, vocab_size),
        bos_token_id=fields.token_id("bos_token_id", 2, vocab_size),
        max_position_embeddings=fields.size("max_position_embeddings"),
    )


def config_to_huggingface(config: Gemma2Config, dtype: str) -> dict[str, Any]:
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
    names = {ours: theirs for theirs, ours in _LAYER_TYPES.items()}
    eos = list(config.eos_token_ids)
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": config.attn_logit_soft_cap,
        "bos_token_id": config.bos_token_id,
        "dtype": dtype,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "final_logit_softcapping": config.final_logit_soft_cap,
        "head_dim": config.head_dim,
        "hidden_act": _ACTIVATION,
        "hidden_activation": _ACTIVATION,
        "hidden_size": config.embed_dim,
        "initializer_range": 0.02,
        "intermediate_size": config.hidden_dim,
        "layer_types": [names[config.layer_types[i % len(config.layer_types)]] for i in range(config.num_layers)],
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
    architectures = fields.values.get("architectures") or ["Gemma2ForCausalLM"]
    if architectures != ["Gemma2ForCausalLM"]:
        fields.refuse("architectures", 'is not supported: it must be ["Gemma2ForCausalLM"]')
    activations = [
        fields.values[key] for key in ("hidden_activation", "hidden_act") if fields.values.get(key) is not None
    ]
    if not activations:
        fields.required("hidden_activation")
    # Where both are given hidden_activation decides, as in transformers.
    fields.only("hidden_activation" if fields.values.get("hidden_activation") else "hidden_act", [_ACTIVATION], None)
    fields.only("attention_bias", [False], False)
    fields.only("attention_dropout", [0, None], 0)
    fields.only("use_bidirectional_attention", [False, None], None)
    fields.only("tie_word_embeddings", [True], True)
    fields.only("quantization_config", [None], None)
    fields.only("rope_scaling", [None], None)
    fields.only("partial_rotary_factor", [1, None], None)
    fields.only("auto_map", [None], None)


def _rope_theta(fields: ConfigFields) -> float:
    if fields.values.get("rope_parameters") is None:
        return fields.positive("rope_theta")
    given = fields.values["rope_parameters"]
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        fields.refuse("rope_parameters", "is not supported: it must be one object with rope_theta and rope_type")
    rope = ConfigFields(given, f"{fields.source}: rope_parameters", fields.family)
    rope.only("rope_type", ["default"], "default")
    rope.only("type", ["default", None], None)
    rope.only("partial_rotary_factor", [1, None], None)
    for key in sorted(set(given) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"}):
        rope.refuse(key, "is not supported: only rope_type 'default' with its rope_theta is")
    return rope.positive("rope_theta") if "rope_theta" in given else fields.positive("rope_theta")


def _layer_pattern(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    types = fields.values.get("layer_types")
    if types is None:
        return ("local", "global")[:num_layers]
    if not isinstance(types, list) or len(types) != num_layers:
        fields.refuse("layer_types", f"is not a list with one entry for each of num_hidden_layers = {num_layers}")
    for kind in types:
        if kind not in _LAYER_TYPES:
            raise UserError(f"{fields.source}: layer_types holds {kind!r}; supported: {', '.join(_LAYER_TYPES)}")
    return smallest_pattern([_LAYER_TYPES[kind] for kind in types])


def _eos_token_ids(fields: ConfigFields, vocab_size: int) -> tuple[int, ...]:
    value = fields.values.get("eos_token_id", 1)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size for i in ids):
        fields.refuse("eos_token_id", f"is not a token id, or a list of them, below vocab_size = {vocab_size}")
    return tuple(ids)
