"""Qwen3-MoE in the public checkpoints: config.json and tensors. Axes as in `zoo.interop.mixtral_names`; G = width of a
dense layer. Source: transformers 5.23, models/qwen3_moe."""

from collections.abc import Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields, smallest_pattern
from zoo.interop.decoder_fields import head_sizes, plain_rope_theta
from zoo.interop.layouts import Layout
from zoo.interop.mixtral_names import (
    ATTENTION,
    EMBEDDING,
    END,
    axis_sizes,
    check_experts,
    common_from_huggingface,
    common_to_huggingface,
    experts_per_token,
    number,
    optional_window,
)
from zoo.interop.places import Place, per_layer
from zoo.models.qwen3_moe import Qwen3MoeConfig
from zoo.nn.experts import ExpertsConfig
from zoo.nn.router import RoutingConvention

_LAYER = {
    **ATTENTION,
    "layers/{}/attention/query_norm/scale": Place("model.layers.{}.self_attn.q_norm.weight", Layout("H -> H")),
    "layers/{}/attention/key_norm/scale": Place("model.layers.{}.self_attn.k_norm.weight", Layout("H -> H")),
}
_MLP = "model.layers.{}.mlp"
_SPARSE = {
    "layers/{}/mlp/router/kernel": Place(f"{_MLP}.gate.weight", Layout("E D -> D E")),
    "layers/{}/mlp/gate": Place(_MLP + ".experts.{expert}.gate_proj.weight", Layout("F D -> D F")),
    "layers/{}/mlp/up": Place(_MLP + ".experts.{expert}.up_proj.weight", Layout("F D -> D F")),
    "layers/{}/mlp/down": Place(_MLP + ".experts.{expert}.down_proj.weight", Layout("D F -> F D")),
}
_DENSE = {
    "layers/{}/mlp/gate": Place(f"{_MLP}.gate_proj.weight", Layout("G D -> D G")),
    "layers/{}/mlp/up": Place(f"{_MLP}.up_proj.weight", Layout("G D -> D G")),
    "layers/{}/mlp/down": Place(f"{_MLP}.down_proj.weight", Layout("D G -> G D")),
}
_ROUTING: dict[bool, RoutingConvention] = {True: "softmax_topk_renormalised", False: "softmax_topk"}


def qwen3_moe_from_huggingface(values: Mapping[str, Any], source: str) -> Qwen3MoeConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields(values, source, "Qwen3-MoE")
    common = common_from_huggingface(fields, "Qwen3MoeForCausalLM")
    fields.only("attention_bias", [False], False)
    fields.only("norm_topk_prob", [True, False], False)
    fields.only("use_sliding_window", [True, False], False)
    # transformers 5 calls it num_local_experts, earlier ones and the released files num_experts.
    num_experts = fields.size("num_local_experts" if "num_local_experts" in values else "num_experts")
    heads: dict[str, Any] = head_sizes(fields, default_head_dim=True)
    return Qwen3MoeConfig(
        **common,
        **heads,
        hidden_dim=fields.size("intermediate_size"),
        experts=ExpertsConfig(
            num_experts,
            experts_per_token(fields, num_experts),
            fields.size("moe_intermediate_size"),
            routing=_ROUTING[bool(values.get("norm_topk_prob", False))],
            activation="silu",
            load_balancing_coefficient=number(fields, "router_aux_loss_coef", 0.001),
            router_z_coefficient=0.0,
        ),
        layer_kinds=_layer_kinds(fields, common["num_layers"]),
        sliding_window=optional_window(fields) if values.get("use_sliding_window") else None,
        rope_theta=plain_rope_theta(fields),
    )


def _layer_kinds(fields: ConfigFields, num_layers: int) -> tuple[str, ...]:
    dense = fields.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(i, int) and 0 <= i < num_layers for i in dense):
        fields.refuse("mlp_only_layers", f"is not a list of layers below num_hidden_layers = {num_layers}")
    step = fields.size("decoder_sparse_step") if "decoder_sparse_step" in fields.values else 1
    kinds = ["dense" if i in dense or (i + 1) % step else "sparse" for i in range(num_layers)]
    if "sparse" not in kinds:
        fields.refuse("decoder_sparse_step", "leaves no sparse layer: this is a dense model")
    return smallest_pattern(kinds)


def qwen3_moe_to_huggingface(config: Qwen3MoeConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers opens strictly; RoPE base and number of experts stand in both styles."""
    experts = config.experts
    check_experts(
        experts,
        "Qwen3-MoE",
        routing=("softmax_topk_renormalised", "softmax_topk"),
        activation="silu",
        router_bias=False,
        expert_bias=False,
    )
    return common_to_huggingface(config, dtype) | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "intermediate_size": config.hidden_dim,
        "mlp_only_layers": [layer for layer in range(config.num_layers) if not config.is_sparse(layer)],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": experts.hidden_dim,
        "norm_topk_prob": experts.routing == "softmax_topk_renormalised",
        "num_experts": experts.num_experts,
        "num_local_experts": experts.num_experts,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "rope_theta": config.rope_theta,
        "sliding_window": config.sliding_window,
        "use_sliding_window": config.sliding_window is not None,
    }


def qwen3_moe_places(config: Qwen3MoeConfig) -> dict[str, Place]:
    """The place of every parameter, by our per-layer name."""
    places = dict(EMBEDDING)
    for layer in range(config.num_layers):
        places |= per_layer({**_LAYER, **(_SPARSE if config.is_sparse(layer) else _DENSE)}, layer)
    return places | END


def _axis_sizes(config: Qwen3MoeConfig) -> dict[str, int]:
    return axis_sizes(config) | {"G": config.hidden_dim}


QWEN3_MOE = Architecture(
    family="Qwen3-MoE",
    config_type=Qwen3MoeConfig,
    config_from=qwen3_moe_from_huggingface,
    config_to=qwen3_moe_to_huggingface,
    places=qwen3_moe_places,
    axis_sizes=_axis_sizes,
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
