"""Mixtral in the public checkpoints: config.json and tensors. Parts of it are Qwen3-MoE's and gpt-oss's, too.

Axes: V vocabulary, D width, N query heads, K key/value heads, H width of a head, E experts, F width of an expert.
Source: transformers 5.23, models/mixtral (torch keeps a linear map as [out, in]).
"""

from collections.abc import Mapping
from typing import Any

from zoo.errors import UserError
from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.decoder_fields import (
    MOST_LAYERS,
    check_architecture,
    eos_to_huggingface,
    eos_token_ids,
    head_sizes,
    optional_token_id,
    plain_rope_theta,
)
from zoo.interop.layouts import Layout
from zoo.interop.places import Place, whole_table
from zoo.models.mixtral import MixtralConfig, mixtral_experts
from zoo.nn.experts import ExpertsConfig

EMBEDDING = {"embedder/embedding": Place("model.embed_tokens.weight", Layout("V D -> V D"))}
ATTENTION = {
    "layers/{}/pre_attention_norm/scale": Place("model.layers.{}.input_layernorm.weight", Layout("D -> D")),
    "layers/{}/attention/query": Place("model.layers.{}.self_attn.q_proj.weight", Layout("(N H) D -> D N H")),
    "layers/{}/attention/key": Place("model.layers.{}.self_attn.k_proj.weight", Layout("(K H) D -> D K H")),
    "layers/{}/attention/value": Place("model.layers.{}.self_attn.v_proj.weight", Layout("(K H) D -> D K H")),
    "layers/{}/attention/output": Place("model.layers.{}.self_attn.o_proj.weight", Layout("D (N H) -> N H D")),
    "layers/{}/pre_ffw_norm/scale": Place("model.layers.{}.post_attention_layernorm.weight", Layout("D -> D")),
}
END = {
    "final_norm/scale": Place("model.norm.weight", Layout("D -> D")),
    "embedder/head": Place("lm_head.weight", Layout("V D -> V D")),
}
_EXPERTS = "model.layers.{}.block_sparse_moe"
HUGGINGFACE = {
    **EMBEDDING,
    **ATTENTION,
    "layers/{}/mlp/router/kernel": Place(f"{_EXPERTS}.gate.weight", Layout("E D -> D E")),
    "layers/{}/mlp/gate": Place(_EXPERTS + ".experts.{expert}.w1.weight", Layout("F D -> D F")),
    "layers/{}/mlp/up": Place(_EXPERTS + ".experts.{expert}.w3.weight", Layout("F D -> D F")),
    "layers/{}/mlp/down": Place(_EXPERTS + ".experts.{expert}.w2.weight", Layout("D F -> F D")),
    **END,
}


def axis_sizes(config: Any) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    return {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "E": config.experts.num_experts,
        "F": config.experts.hidden_dim,
    }


def common_from_huggingface(fields: ConfigFields, architecture: str) -> dict[str, Any]:
    """The fields that the sparse decoders share; refuses what none of them computes."""
    check_architecture(fields, architecture)
    fields.only("hidden_act", ["silu"], "silu")
    fields.only("tie_word_embeddings", [False], False)
    vocab_size = fields.size("vocab_size")
    return {
        "vocab_size": vocab_size,
        "embed_dim": fields.size("hidden_size"),
        "num_layers": fields.size("num_hidden_layers", largest=MOST_LAYERS),
        "norm_eps": fields.positive("rms_norm_eps"),
        "max_position_embeddings": fields.size("max_position_embeddings"),
        "bos_token_id": optional_token_id(fields, "bos_token_id", vocab_size),
        "eos_token_ids": eos_token_ids(fields, vocab_size, None),
        "pad_token_id": optional_token_id(fields, "pad_token_id", vocab_size) or 0,
    }


def common_to_huggingface(config: Any, dtype: str) -> dict[str, Any]:
    """The keys that the sparse decoders share."""
    experts = config.experts
    return {
        "attention_dropout": 0.0,
        "bos_token_id": config.bos_token_id,
        "dtype": dtype,
        "eos_token_id": eos_to_huggingface(config.eos_token_ids),
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.embed_dim,
        "initializer_range": 0.02,
        "max_position_embeddings": config.max_position_embeddings,
        "num_attention_heads": config.num_heads,
        "num_experts_per_tok": experts.experts_per_token,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "output_router_logits": False,
        "pad_token_id": config.pad_token_id or None,
        "rms_norm_eps": config.norm_eps,
        "router_aux_loss_coef": experts.load_balancing_coefficient,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }


def experts_per_token(fields: ConfigFields, num_experts: int) -> int:
    """Experts of a token, at most all."""
    chosen = fields.size("num_experts_per_tok")
    if chosen > num_experts:
        fields.refuse("num_experts_per_tok", f"is more than the {num_experts} experts there are")
    return chosen


def number(fields: ConfigFields, key: str, default: float) -> float:
    """A number of at least zero; a missing key means `default`."""
    value = fields.values.get(key)
    if value is None or value == 0:
        return default if value is None else 0.0
    return fields.positive(key)


def optional_window(fields: ConfigFields) -> int | None:
    """The keys that a query sees; None = all."""
    return None if fields.values.get("sliding_window") is None else fields.size("sliding_window")


def check_experts(experts: ExpertsConfig, family: str, **wanted: Any) -> None:
    """Raises `UserError` for experts that transformers' model of this family does not compute."""
    for name, value in {"routing_scale": 1.0, "shared_hidden_dim": 0, "has_selection_bias": False, **wanted}.items():
        accepted = value if isinstance(value, tuple) else (value,)
        if getattr(experts, name) not in accepted:
            have = getattr(experts, name)
            raise UserError(f"model.experts.{name} = {have!r}: {family} in transformers has {accepted[0]!r} only")


def mixtral_from_huggingface(values: Mapping[str, Any], source: str) -> MixtralConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields(values, source, "Mixtral")
    common = common_from_huggingface(fields, "MixtralForCausalLM")
    num_experts = fields.size("num_local_experts")
    heads: dict[str, Any] = head_sizes(fields, default_head_dim=True)
    return MixtralConfig(
        **common,
        **heads,
        experts=mixtral_experts(
            num_experts,
            experts_per_token(fields, num_experts),
            fields.size("intermediate_size"),
            balancing=number(fields, "router_aux_loss_coef", 0.001),
            jitter=number(fields, "router_jitter_noise", 0.0),
        ),
        sliding_window=optional_window(fields),
        rope_theta=plain_rope_theta(fields),
    )


def mixtral_to_huggingface(config: MixtralConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers 5 opens strictly; the RoPE base stands in the older style, too."""
    experts = config.experts
    check_experts(
        experts, "Mixtral", routing="softmax_topk_renormalised", activation="silu", router_bias=False, expert_bias=False
    )
    return common_to_huggingface(config, dtype) | {
        "architectures": ["MixtralForCausalLM"],
        "intermediate_size": experts.hidden_dim,
        "model_type": "mixtral",
        "num_local_experts": experts.num_experts,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "router_jitter_noise": experts.jitter,
        "sliding_window": config.sliding_window,
    }


def mixtral_places(config: MixtralConfig) -> dict[str, Place]:
    """The place of every parameter, by our per-layer name."""
    return whole_table(HUGGINGFACE, config.num_layers)


MIXTRAL = Architecture(
    family="Mixtral",
    config_type=MixtralConfig,
    config_from=mixtral_from_huggingface,
    config_to=mixtral_to_huggingface,
    places=mixtral_places,
    axis_sizes=axis_sizes,
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
