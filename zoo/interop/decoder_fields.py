"""What the config.json files of decoders have in common: RoPE in both styles, layer types, special tokens.

New style (transformers 5): `layer_types`, `rope_parameters`, `dtype`. Old style: `rope_theta`, `rope_scaling`,
`torch_dtype`. Keys that do not touch the function (`use_cache`, `initializer_range`, ...) are passed over.
"""

from collections.abc import Sequence
from typing import Any

from zoo.errors import UserError
from zoo.interop.config_fields import ConfigFields, smallest_pattern

MOST_LAYERS = 10_000
LAYER_TYPES = {"sliding_attention": "local", "full_attention": "global"}


def check_architecture(fields: ConfigFields, name: str) -> None:
    """Refuses what no decoder here computes, and other heads than a language model's."""
    if (fields.values.get("architectures") or [name]) != [name]:
        fields.refuse("architectures", f'is not supported: it must be ["{name}"]')
    fields.only("attention_dropout", [0, None], 0)
    fields.only("auto_map", [None], None)
    fields.only("partial_rotary_factor", [1, None], None)
    quantization = fields.values.get("quantization_config")
    if quantization is not None:
        fields.values = {**fields.values, "quantization_config": _method(quantization)}
        fields.refuse("quantization_config", "is not read: save a copy in bfloat16 with transformers first")


def _method(quantization: Any) -> Any:
    return quantization.get("quant_method", quantization) if isinstance(quantization, dict) else quantization


def head_sizes(fields: ConfigFields, *, default_head_dim: bool = False) -> dict[str, int]:
    """num_heads, num_kv_heads and head_dim; by `default_head_dim` a missing head_dim is hidden_size / num_heads."""
    num_heads, num_kv_heads = fields.size("num_attention_heads"), fields.size("num_key_value_heads")
    if num_heads % num_kv_heads:
        fields.refuse("num_attention_heads", f"is not a multiple of num_key_value_heads = {num_kv_heads}")
    if default_head_dim and fields.values.get("head_dim") is None:
        width = fields.size("hidden_size")
        if width % num_heads:
            fields.refuse(
                "hidden_size", f"is no multiple of num_attention_heads = {num_heads}, and head_dim is missing"
            )
        head_dim = width // num_heads
    else:
        head_dim = fields.size("head_dim")
    if head_dim % 2:
        fields.refuse("head_dim", "is odd: rotary positions need pairs")
    return {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}


def rope_fields(fields: ConfigFields) -> tuple[float, ConfigFields | None]:
    """(base, fields of a scaling or None), from `rope_parameters`, or from `rope_theta` and `rope_scaling`."""
    given = fields.values.get("rope_parameters")
    key = "rope_parameters" if given is not None else "rope_scaling"
    if given is None:
        given = fields.values.get("rope_scaling")
        if given is None:
            return fields.positive("rope_theta"), None
    elif fields.values.get("rope_scaling") not in (None, given):
        fields.refuse("rope_scaling", "is not supported beside rope_parameters")
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        fields.refuse(key, "is not supported: it must be one object with rope_theta and rope_type")
    rope = ConfigFields(given, f"{fields.source}: {key}", fields.family)
    rope.only("partial_rotary_factor", [1, None], None)
    theta = rope.positive("rope_theta") if "rope_theta" in given else fields.positive("rope_theta")
    kind = given.get("rope_type", given.get("type", "default"))
    return theta, None if kind == "default" and not _other_keys(given) else rope


def plain_rope_theta(fields: ConfigFields) -> float:
    """The base of RoPE without any scaling; refuses one."""
    theta, scaling = rope_fields(fields)
    if scaling is None:
        return theta
    scaling.only("rope_type", ["default"], "default")
    scaling.only("type", ["default", None], None)
    for key in _other_keys(scaling.values):
        scaling.refuse(key, "is not supported: only rope_type 'default' with its rope_theta is")
    return theta


def _other_keys(rope: Any) -> list[str]:
    return sorted(set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor"})


def layer_pattern(fields: ConfigFields, num_layers: int, default: Sequence[str]) -> tuple[str, ...]:
    """The repeating pattern of "local" and "global" layers; `default` is what a missing `layer_types` means."""
    types = fields.values.get("layer_types")
    if types is None:
        return tuple(default)[:num_layers]
    if not isinstance(types, list) or len(types) != num_layers:
        fields.refuse("layer_types", f"is not a list with one entry for each of num_hidden_layers = {num_layers}")
    for kind in types:
        if kind not in LAYER_TYPES:
            raise UserError(f"{fields.source}: layer_types holds {kind!r}; supported: {', '.join(LAYER_TYPES)}")
    return smallest_pattern([LAYER_TYPES[kind] for kind in types])


def layer_types_to_huggingface(pattern: Sequence[str], num_layers: int) -> list[str]:
    """One entry per layer in their names."""
    names = {ours: theirs for theirs, ours in LAYER_TYPES.items()}
    return [names[pattern[i % len(pattern)]] for i in range(num_layers)]


def eos_token_ids(fields: ConfigFields, vocab_size: int, default: int | None) -> tuple[int, ...]:
    """The tokens that end a text: none, one or a list."""
    value = fields.values.get("eos_token_id", default)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocab_size for i in ids):
        fields.refuse("eos_token_id", f"is not a token id, or a list of them, below vocab_size = {vocab_size}")
    return tuple(ids)


def eos_to_huggingface(ids: Sequence[int]) -> int | list[int] | None:
    """The shortest form that transformers takes."""
    return ids[0] if len(ids) == 1 else list(ids) or None


def optional_token_id(fields: ConfigFields, key: str, vocab_size: int, default: int | None = None) -> int | None:
    """A token of the vocabulary, or None."""
    if fields.values.get(key, default) is None:
        return None
    return fields.token_id(key, 0 if default is None else default, vocab_size)
