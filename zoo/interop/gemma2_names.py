"""Where each parameter of Gemma 2 lies in the public checkpoints, and in which layout.

Axes: V vocabulary, D width, N query heads, K key/value heads, H width of a head, F feed-forward width.
Sources: transformers 5.23, models/gemma2/modeling_gemma2.py (torch keeps a linear map as [out, in]);
google-deepmind/gemma 3.3, gm/nn/_modules.py and gm/ckpts/_compat.py.
"""

import re
from collections.abc import Mapping

from zoo.interop.layouts import Layout
from zoo.interop.places import Place, whole_table
from zoo.models.gemma2 import Gemma2Config

PADDED_ROWS = frozenset({256_000, 256_128})
"""Gemma's tokenizer has 256,000 pieces; google-deepmind/gemma pads the embedding to 256,128 rows."""


def axis_sizes(config: Gemma2Config) -> dict[str, int]:
    """Sizes of the axes that layouts name."""
    return {
        "V": config.vocab_size,
        "D": config.embed_dim,
        "N": config.num_heads,
        "K": config.num_kv_heads,
        "H": config.head_dim,
        "F": config.hidden_dim,
    }


def parameter_names(config: Gemma2Config) -> list[str]:
    """All our per-layer names, in the order of the forward pass."""
    return list(huggingface_places(config))


def place(table: Mapping[str, Place], name: str) -> tuple[str, Place]:
    """(name of the stored tensor, its place) of one of our parameters."""
    layer = re.match(r"layers/(\d+)/", name)
    entry = table[re.sub(r"^layers/\d+/", "layers/{}/", name)]
    return entry.name.format(layer.group(1) if layer else ""), entry


HUGGINGFACE = {
    "embedder/embedding": Place("model.embed_tokens.weight", Layout("V D -> V D")),
    "layers/{}/pre_attention_norm/scale": Place("model.layers.{}.input_layernorm.weight", Layout("D -> D")),
    "layers/{}/attention/query": Place("model.layers.{}.self_attn.q_proj.weight", Layout("(N H) D -> D N H")),
    "layers/{}/attention/key": Place("model.layers.{}.self_attn.k_proj.weight", Layout("(K H) D -> D K H")),
    "layers/{}/attention/value": Place("model.layers.{}.self_attn.v_proj.weight", Layout("(K H) D -> D K H")),
    "layers/{}/attention/output": Place("model.layers.{}.self_attn.o_proj.weight", Layout("D (N H) -> N H D")),
    "layers/{}/post_attention_norm/scale": Place("model.layers.{}.post_attention_layernorm.weight", Layout("D -> D")),
    "layers/{}/pre_ffw_norm/scale": Place("model.layers.{}.pre_feedforward_layernorm.weight", Layout("D -> D")),
    "layers/{}/mlp/gate": Place("model.layers.{}.mlp.gate_proj.weight", Layout("F D -> D F")),
    "layers/{}/mlp/up": Place("model.layers.{}.mlp.up_proj.weight", Layout("F D -> D F")),
    "layers/{}/mlp/down": Place("model.layers.{}.mlp.down_proj.weight", Layout("D F -> F D")),
    "layers/{}/post_ffw_norm/scale": Place("model.layers.{}.post_feedforward_layernorm.weight", Layout("D -> D")),
    "final_norm/scale": Place("model.norm.weight", Layout("D -> D")),
}
HUGGINGFACE_HEAD = "lm_head.weight"


def huggingface_places(config: Gemma2Config) -> dict[str, Place]:
    """The place of every parameter, by our per-layer name, in the order of the forward pass."""
    return whole_table(HUGGINGFACE, config.num_layers)


def deepmind_places(config: Gemma2Config, *, transpose_gating: bool) -> dict[str, Place]:
    """The google-deepmind/gemma tree. `transpose_gating`: gate and up lie as (F, D), in the released 9B and 27B.

    A model with as many key/value heads as query heads keeps all three projections in one array.
    """
    gating = Layout("P F D -> P D F" if transpose_gating else "P D F -> P D F")
    joined = config.num_heads == config.num_kv_heads
    kv_name, kv_parts = ("layer_{}/attn/qkv_einsum/w", 3) if joined else ("layer_{}/attn/kv_einsum/w", 2)
    key_value = Layout("P K D H -> P D K H")
    return {
        "embedder/embedding": Place("embedder/input_embedding", Layout("V D -> V D")),
        "layers/{}/pre_attention_norm/scale": Place("layer_{}/pre_attention_norm/scale", Layout("D -> D")),
        "layers/{}/attention/query": Place(kv_name, Layout("P N D H -> P D N H"), slot=0, parts=3)
        if joined
        else Place("layer_{}/attn/q_einsum/w", Layout("N D H -> D N H")),
        "layers/{}/attention/key": Place(kv_name, key_value, slot=kv_parts - 2, parts=kv_parts),
        "layers/{}/attention/value": Place(kv_name, key_value, slot=kv_parts - 1, parts=kv_parts),
        "layers/{}/attention/output": Place("layer_{}/attn/attn_vec_einsum/w", Layout("N H D -> N H D")),
        "layers/{}/post_attention_norm/scale": Place("layer_{}/post_attention_norm/scale", Layout("D -> D")),
        "layers/{}/pre_ffw_norm/scale": Place("layer_{}/pre_ffw_norm/scale", Layout("D -> D")),
        "layers/{}/mlp/gate": Place("layer_{}/mlp/gating_einsum/w", gating, slot=0, parts=2),
        "layers/{}/mlp/up": Place("layer_{}/mlp/gating_einsum/w", gating, slot=1, parts=2),
        "layers/{}/mlp/down": Place("layer_{}/mlp/linear/w", Layout("F D -> F D")),
        "layers/{}/post_ffw_norm/scale": Place("layer_{}/post_ffw_norm/scale", Layout("D -> D")),
        "final_norm/scale": Place("final_norm/scale", Layout("D -> D")),
    }
