"""gpt-oss in the public checkpoints: config.json and tensors. Axes as in `zoo.interop.mixtral_names`.

On disk gate and up share one tensor per layer, [E, D, 2F], whose columns alternate: even ones are of gate, odd of up.
The released weights are packed as MXFP4 and refused; copies in bfloat16 or float32 are read.
Source: transformers 5.23, models/gpt_oss.
"""

from collections.abc import Mapping
from typing import Any

from zoo.interop.architecture import Architecture
from zoo.interop.config_fields import ConfigFields
from zoo.interop.decoder_fields import head_sizes, layer_pattern, layer_types_to_huggingface, rope_fields
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
)
from zoo.interop.places import Place, whole_table
from zoo.models.gpt_oss import GptOssConfig, gpt_oss_experts
from zoo.nn.experts import CLIP, SLOPE
from zoo.nn.rope import YarnScaling

_SELF, _MLP = "model.layers.{}.self_attn", "model.layers.{}.mlp"
_GATE_UP, _GATE_UP_BIAS = Layout("E D (F P) -> P E D F"), Layout("E (F P) -> P E F")
HUGGINGFACE = {
    **EMBEDDING,
    **ATTENTION,
    "layers/{}/attention/query_bias": Place(f"{_SELF}.q_proj.bias", Layout("(N H) -> N H")),
    "layers/{}/attention/key_bias": Place(f"{_SELF}.k_proj.bias", Layout("(K H) -> K H")),
    "layers/{}/attention/value_bias": Place(f"{_SELF}.v_proj.bias", Layout("(K H) -> K H")),
    "layers/{}/attention/output_bias": Place(f"{_SELF}.o_proj.bias", Layout("D -> D")),
    "layers/{}/attention/sinks": Place(f"{_SELF}.sinks", Layout("N -> N")),
    "layers/{}/mlp/router/kernel": Place(f"{_MLP}.router.weight", Layout("E D -> D E")),
    "layers/{}/mlp/router/bias": Place(f"{_MLP}.router.bias", Layout("E -> E")),
    "layers/{}/mlp/gate": Place(f"{_MLP}.experts.gate_up_proj", _GATE_UP, slot=0, parts=2),
    "layers/{}/mlp/up": Place(f"{_MLP}.experts.gate_up_proj", _GATE_UP, slot=1, parts=2),
    "layers/{}/mlp/gate_bias": Place(f"{_MLP}.experts.gate_up_proj_bias", _GATE_UP_BIAS, slot=0, parts=2),
    "layers/{}/mlp/up_bias": Place(f"{_MLP}.experts.gate_up_proj_bias", _GATE_UP_BIAS, slot=1, parts=2),
    "layers/{}/mlp/down": Place(f"{_MLP}.experts.down_proj", Layout("E F D -> E F D")),
    "layers/{}/mlp/down_bias": Place(f"{_MLP}.experts.down_proj_bias", Layout("E D -> E D")),
    **END,
}


def gpt_oss_from_huggingface(values: Mapping[str, Any], source: str) -> GptOssConfig:
    """The architecture that a `config.json` describes. Raises `UserError` for what is not computed here."""
    fields = ConfigFields(values, source, "gpt-oss")
    common = common_from_huggingface(fields, "GptOssForCausalLM")
    fields.only("attention_bias", [True], True)
    fields.only("swiglu_alpha", [SLOPE], SLOPE)
    fields.only("swiglu_limit", [CLIP], CLIP)
    num_experts = fields.size("num_local_experts")
    theta, scaling = rope_fields(fields)
    heads: dict[str, Any] = head_sizes(fields)
    return GptOssConfig(
        **common,
        **heads,
        experts=gpt_oss_experts(
            num_experts,
            experts_per_token(fields, num_experts),
            fields.size("intermediate_size"),
            balancing=number(fields, "router_aux_loss_coef", 0.001),
        ),
        sliding_window=fields.size("sliding_window"),
        layer_types=layer_pattern(fields, common["num_layers"], ("local", "global")),
        rope_theta=theta,
        rope_scaling=None if scaling is None else _yarn(scaling),
    )


def _yarn(rope: ConfigFields) -> YarnScaling:
    values = rope.values
    rope.only("rope_type" if "rope_type" in values else "type", ["yarn"], None)
    rope.only("truncate", [True, False], True)
    rope.only("mscale", [None], None)
    rope.only("mscale_all_dim", [None], None)
    return YarnScaling(
        factor=rope.positive("factor"),
        original_max_position_embeddings=rope.size("original_max_position_embeddings"),
        beta_fast=number(rope, "beta_fast", 32.0) or 32.0,
        beta_slow=number(rope, "beta_slow", 1.0) or 1.0,
        truncate=values.get("truncate", True),
        attention_factor=None if values.get("attention_factor") is None else rope.positive("attention_factor"),
    )


def gpt_oss_to_huggingface(config: GptOssConfig, dtype: str) -> dict[str, Any]:
    """A `config.json` that transformers opens strictly."""
    experts = config.experts
    check_experts(
        experts, "gpt-oss", routing="topk_softmax", activation="clipped_swiglu", router_bias=True, expert_bias=True
    )
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        rope |= {
            "beta_fast": scaling.beta_fast,
            "beta_slow": scaling.beta_slow,
            "factor": scaling.factor,
            "original_max_position_embeddings": scaling.original_max_position_embeddings,
            "rope_type": "yarn",
            "truncate": scaling.truncate,
        }
        if scaling.attention_factor is not None:
            rope["attention_factor"] = scaling.attention_factor
    return common_to_huggingface(config, dtype) | {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "intermediate_size": experts.hidden_dim,
        "layer_types": layer_types_to_huggingface(config.layer_types, config.num_layers),
        "model_type": "gpt_oss",
        "num_local_experts": experts.num_experts,
        "rope_parameters": rope,
        "sliding_window": config.sliding_window,
        "swiglu_alpha": SLOPE,
        "swiglu_limit": CLIP,
    }


def gpt_oss_places(config: GptOssConfig) -> dict[str, Place]:
    """The place of every parameter, by our per-layer name."""
    return whole_table(HUGGINGFACE, config.num_layers)


GPT_OSS = Architecture(
    family="gpt-oss",
    config_type=GptOssConfig,
    config_from=gpt_oss_from_huggingface,
    config_to=gpt_oss_to_huggingface,
    places=gpt_oss_places,
    axis_sizes=axis_sizes,
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
