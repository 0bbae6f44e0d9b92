"""What the Hugging Face folders of media encoders have in common."""

from zoo.interop.config_fields import ConfigFields
from zoo.interop.layouts import Layout
from zoo.interop.places import Place


def check_encoder(fields: ConfigFields, name: str) -> None:
    """Refuses other classes than the bare encoder `name`, and what no encoder here computes."""
    if (fields.values.get("architectures") or [name]) != [name]:
        fields.refuse("architectures", f'is not supported: it must be ["{name}"]')
    fields.only("auto_map", [None], None)
    fields.only("quantization_config", [None], None)


def head_count(fields: ConfigFields, key: str, width_key: str) -> int:
    """The attention heads, among which the width must be divided evenly."""
    heads, width = fields.size(key), fields.size(width_key)
    if width % heads:
        fields.refuse(key, f"does not divide {width_key} = {width}")
    return heads


def block_places(
    prefix: str, *, norms: tuple[str, str], feed_forward: str = "", key_bias: bool = True
) -> dict[str, Place]:
    """Templates of an `EncoderBlock`, as SigLIP and Whisper keep it.

    Axes: D width, N heads, H width of a head, F feed-forward width. `norms` are the names of the norms before attention
    and before the feed-forward, whose own names begin with `feed_forward`.
    """
    table: dict[str, Place] = {}

    def norm(ours: str, theirs: str) -> None:
        table[f"layers/{{}}/{ours}/scale"] = Place(f"{prefix}{theirs}.weight", Layout("D -> D"))
        table[f"layers/{{}}/{ours}/bias"] = Place(f"{prefix}{theirs}.bias", Layout("D -> D"))

    def linear(ours: str, theirs: str, weight: str, bias: str | None) -> None:
        table[f"layers/{{}}/{ours}"] = Place(f"{prefix}{theirs}.weight", Layout(weight))
        if bias is not None:
            table[f"layers/{{}}/{ours}_bias"] = Place(f"{prefix}{theirs}.bias", Layout(bias))

    norm("attention_norm", norms[0])
    for name in ("query", "key", "value"):
        bias = "(N H) -> N H" if key_bias or name != "key" else None
        linear(f"attention/{name}", f"self_attn.{name[0]}_proj", "(N H) D -> D N H", bias)
    linear("attention/output", "self_attn.out_proj", "D (N H) -> N H D", "D -> D")
    norm("mlp_norm", norms[1])
    linear("mlp/up", f"{feed_forward}fc1", "F D -> D F", "F -> F")
    linear("mlp/down", f"{feed_forward}fc2", "D F -> F D", "D -> D")
    return table
