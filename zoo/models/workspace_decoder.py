"""A decoder whose layers speak through a causal shared workspace instead of attention, or in turn with it.

    x = E[token] * sqrt(D)
    for each layer:  x = x + sublayer(norm(x));  x = x + geglu(norm(x))
    logits = [c * tanh](norm(x) . E^T [/ c])

sublayer: `zoo.nn.workspace_causal`, or attention over a window or over all tokens before; `layer_types` is the pattern.
The workspace is that of arXiv 2103.01197; its causal form is ours. Nothing but the order in which tokens write says
where a token stands in a workspace layer. What such a layer keeps for generation, `zoo.nn.workspace_cache`, does not
grow with the length.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.errors import UserError
from zoo.models.decoder import Decoder, LayerContext, check_positive, check_sizes
from zoo.nn import Attention, Execution, GatedFeedForward, RMSNorm
from zoo.nn.workspace import PAPER, Workspace, WorkspaceConfig
from zoo.nn.workspace_cache import cached_exchange, empty_workspace_cache
from zoo.nn.workspace_causal import causal_exchange, causal_flops_per_position
from zoo.parallel import enter_sublayer, own_part
from zoo.training.mfu import decoder_forward_flops_per_token

LAYER_TYPES = ("workspace", "local", "global")


@dataclass(frozen=True, kw_only=True)
class WorkspaceDecoderConfig:
    """Architecture of a decoder with workspace layers."""

    vocab_size: int
    """Rows of the embedding, which is the output head as well."""
    embed_dim: int
    """Model width D."""
    num_layers: int
    """Decoder layers."""
    hidden_dim: int
    """Width of gate and up of the feed-forward, each."""
    workspace: WorkspaceConfig = PAPER
    """The workspace of each workspace layer."""
    chunk_size: int = 16
    """Positions that write to a workspace together; 1 = each by itself, one after the other."""
    layer_types: tuple[str, ...] = ("workspace",)
    """The repeating pattern: layer i is layer_types[i % len], "workspace", "local" or "global"."""
    num_heads: int = 4
    """Query heads of attention layers."""
    num_kv_heads: int = 4
    """Key/value heads of attention layers."""
    head_dim: int = 32
    """Width of one head of attention layers."""
    sliding_window: int = 64
    """Keys that a query of a local layer sees, its own position included."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies of attention layers."""
    norm_eps: float = 1e-6
    """Added to the mean square in every norm."""
    final_logit_soft_cap: float | None = None
    """c of the output logits; None = no cap."""
    max_position_embeddings: int = 8192
    """Context length the model was trained for."""
    bos_token_id: int = 2
    """Token before every document."""
    eos_token_ids: tuple[int, ...] = (1,)
    """Tokens that end a generation."""
    pad_token_id: int = 0
    """Filler, never seen by a real token."""

    def __post_init__(self):
        check_sizes(self, "hidden_dim", "chunk_size", "sliding_window")
        check_positive(self, "final_logit_soft_cap")
        if not self.layer_types or set(self.layer_types) - set(LAYER_TYPES):
            raise UserError(f"model.layer_types must be a sequence of {LAYER_TYPES}, got {self.layer_types}")
        self.workspace.width(self.embed_dim)

    @property
    def pattern_length(self) -> int:
        """Layers of the repeating unit."""
        return len(self.layer_types)

    def kind(self, layer: int) -> str:
        """What a layer has: "workspace", "local" or "global"."""
        return self.layer_types[layer % len(self.layer_types)]

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer; None = none."""
        return self.sliding_window if self.kind(layer) == "local" else None

    def num_parameters(self) -> int:
        """Parameters of the whole model; the embedding counted once (it is tied)."""
        attention = 2 * self.embed_dim * self.head_dim * (self.num_heads + self.num_kv_heads)
        sizes = {"workspace": self.workspace.num_parameters(self.embed_dim), "local": attention, "global": attention}
        sublayers = sum(sizes[self.kind(layer)] for layer in range(self.num_layers))
        rest = self.embed_dim * (2 + 3 * self.hidden_dim)
        return sublayers + self.num_layers * rest + self.embed_dim * (1 + self.vocab_size)

    def num_active_parameters(self) -> int:
        """Parameters that one token passes through: all."""
        return self.num_parameters()

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per token of text; a training step takes three times as many."""
        kinds = [self.kind(layer) for layer in range(self.num_layers)]
        attention = decoder_forward_flops_per_token(
            embed_dim=self.embed_dim,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            hidden_dim=self.hidden_dim,
            vocab_size=self.vocab_size,
            windows=[self.window(layer) for layer, kind in enumerate(kinds) if kind != "workspace"],
            sequence_length=sequence_length,
        )
        chunk = min(self.chunk_size, sequence_length)
        one = causal_flops_per_position(self.workspace, self.embed_dim, chunk) + 6 * self.embed_dim * self.hidden_dim
        return attention + kinds.count("workspace") * one


class WorkspaceDecoderLayer(nnx.Module):
    """A workspace or attention, and a feed-forward, each on normed input and added to it."""

    def __init__(self, config: WorkspaceDecoderConfig, layer: int, *, execution: Execution, rngs: nnx.Rngs):
        def norm():
            return RMSNorm(config.embed_dim, eps=config.norm_eps, execution=execution, rngs=rngs)

        self.has_workspace, self.chunk = config.kind(layer) == "workspace", config.chunk_size
        self.pre_sublayer_norm = norm()
        if self.has_workspace:
            self.workspace = Workspace(config.embed_dim, config.workspace, execution=execution, rngs=rngs)
        else:
            self.attention = Attention(
                config.embed_dim,
                config.num_heads,
                config.num_kv_heads,
                config.head_dim,
                scale=config.head_dim**-0.5,
                sliding_window=config.window(layer),
                logits_soft_cap=None,
                execution=execution,
                rngs=rngs,
            )
        self.pre_ffw_norm = norm()
        self.mlp = GatedFeedForward(config.embed_dim, config.hidden_dim, execution=execution, rngs=rngs)

    def __call__(self, x, context: LayerContext, cache: Any):
        normed = self.pre_sublayer_norm(x)
        if self.has_workspace:
            # All tokens of the row here: the devices of a tensor group have a part each between the sub-layers.
            whole, segments = enter_sublayer(normed), context.segment_ids
            if cache is None:
                read = causal_exchange(self.workspace, whole, chunk=self.chunk, segment_ids=segments)
            else:
                read, cache = cached_exchange(self.workspace, whole, cache, segment_ids=segments)
            x = x + own_part(read, "residual_length", axis=1)
        else:
            attended, cache = self.attention(normed, context.angles, context.positions, context.segment_ids, cache)
            x = x + attended
        with jax.named_scope("mlp"):
            return x + self.mlp(self.pre_ffw_norm(x)), cache, None


class WorkspaceDecoder(Decoder):
    """Tokens to logits; see `Decoder`."""

    config: WorkspaceDecoderConfig

    def make_layer(self, position: int, *, rngs: nnx.Rngs) -> WorkspaceDecoderLayer:
        """The layer at a place of the repeating unit."""
        return WorkspaceDecoderLayer(self.config, position, execution=self.execution, rngs=rngs)

    def init_cache(self, batch_size: int, max_length: int, dtype: jnp.dtype | None = None) -> Any:
        """An empty cache, as `Decoder.init_cache`; that of a workspace layer takes any number of tokens. dtype: of the
        keys and values of attention layers."""
        config = self.config
        lead = (config.num_layers // config.pattern_length,) if self.execution.scan_layers else ()
        caches = super().init_cache(batch_size, max_length, dtype)
        return tuple(
            empty_workspace_cache(batch_size, layer.workspace, config.embed_dim, config.chunk_size, lead)
            if layer.has_workspace
            else cache
            for layer, cache in zip(self.layers, caches, strict=True)
        )


# Minutes on two CPU cores: the width of gemma2-nano, a window for what is near and a workspace for what is far.
WORKSPACE_DECODER_NANO = WorkspaceDecoderConfig(
    vocab_size=4096,
    embed_dim=128,
    num_layers=4,
    hidden_dim=384,
    layer_types=("local", "workspace"),
    max_position_embeddings=256,
)

PRESETS = {"workspace-decoder-nano": WORKSPACE_DECODER_NANO}
