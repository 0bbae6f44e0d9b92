"""SigLIP's vision tower (arXiv 2303.15343): a ViT whose patches see each other in both directions.

    x = patches . kernel + b + position
    x = x + attention(norm(x));  x = x + mlp(norm(x))      each layer; norms with scale and bias
    hidden = norm(x)
    pooled = y + mlp(norm(y)), y = attention(probe -> hidden)    where there is a head

It is the image encoder of PaliGemma and Gemma 3, which read `hidden`. Images of any size and aspect ratio are packed
into rows (NaViT, arXiv 2307.06304) by `Siglip.encode_patches`: a patch sees its own image only, and the learned
position table is interpolated at its place. Source of names and details: transformers 5.23, models/siglip.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.errors import UserError
from zoo.nn import Execution, build_layers, run_layers
from zoo.nn.encoder_block import EncoderAttention, EncoderBlock, FeedForward, encoder_block_parameters
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter
from zoo.nn.patches import PatchEmbedding, patchified


@dataclass(frozen=True)
class SiglipConfig:
    """Architecture of a SigLIP vision tower."""

    embed_dim: int
    """Model width D."""
    num_layers: int
    """Encoder layers."""
    num_heads: int
    """Attention heads; each has width D / num_heads."""
    hidden_dim: int
    """Feed-forward width F."""
    patch_size: int
    """Side of a patch in pixels."""
    image_size: int
    """Side of the square images of training in pixels; its whole patches are the grid of the position table."""
    num_channels: int = 3
    """Colours of a pixel."""
    use_head: bool = False
    """Whether there is a head that pools the patches of an image by attention."""
    norm_eps: float = 1e-6
    """Added to the variance in every norm."""

    def __post_init__(self):
        for name in ("embed_dim", "num_layers", "num_heads", "hidden_dim", "patch_size", "num_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"vision.{name} must be at least 1, got {getattr(self, name)}")
        if self.embed_dim % self.num_heads:
            raise UserError(f"vision.embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if self.image_size < self.patch_size:
            raise UserError(f"vision.image_size={self.image_size} is less than patch_size={self.patch_size}")
        if not self.norm_eps > 0:
            raise UserError(f"vision.norm_eps must be positive, got {self.norm_eps}")

    @property
    def grid(self) -> int:
        """Rows and columns of the position table."""
        return self.image_size // self.patch_size

    @property
    def patch_dim(self) -> int:
        """Numbers in a patch."""
        return self.patch_size * self.patch_size * self.num_channels

    def num_parameters(self) -> int:
        """Parameters of the whole tower, the head included."""
        width = self.embed_dim
        layer = encoder_block_parameters(width, self.hidden_dim)
        embedding = (self.patch_dim + 1 + self.grid * self.grid) * width
        # The head is a layer with one norm instead of two, and the probe.
        head = layer - 2 * width + width if self.use_head else 0
        return embedding + self.num_layers * layer + 2 * width + head


class AttentionPooling(nnx.Module):
    """y + mlp(norm(y)) with y = attention(probe -> hidden): one vector for each image."""

    def __init__(self, config: SiglipConfig, *, execution: Execution, rngs: nnx.Rngs):
        width = config.embed_dim
        self.probe = parameter(rngs, (width,), ("norm",), fan_in_normal(width), execution.weight_dtype)
        self.attention = EncoderAttention(width, config.num_heads, execution=execution, rngs=rngs)
        self.mlp_norm = LayerNorm(width, eps=config.norm_eps, execution=execution, rngs=rngs)
        self.mlp = FeedForward(width, config.hidden_dim, activation="gelu_tanh", execution=execution, rngs=rngs)

    def __call__(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        probe = jnp.broadcast_to(self.probe[...].astype(hidden.dtype), (len(hidden), 1, hidden.shape[-1]))
        pooled = self.attention(probe, keys=hidden)
        return (pooled + self.mlp(self.mlp_norm(pooled)))[:, 0]


class Siglip(nnx.Module):
    """Images to one vector for each patch, and one for each image where there is a head."""

    def __init__(self, config: SiglipConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        self.embedding = PatchEmbedding(
            config.patch_size, config.num_channels, config.embed_dim, config.grid, execution=execution, rngs=rngs
        )
        self.layers = build_layers(
            lambda _, rngs: EncoderBlock(
                config.embed_dim,
                config.num_heads,
                config.hidden_dim,
                activation="gelu_tanh",
                norm_eps=config.norm_eps,
                execution=execution,
                rngs=rngs,
            ),
            config.num_layers,
            1,
            execution=execution,
            rngs=rngs,
        )
        self.final_norm = LayerNorm(config.embed_dim, eps=config.norm_eps, execution=execution, rngs=rngs)
        if config.use_head:
            self.head = AttentionPooling(config, execution=execution, rngs=rngs)

    def __call__(self, pixel_values: Float[Array, "b c h w"]) -> Float[Array, "b t d"]:
        """The patches of images, row by row, after the final norm, in the compute dtype.

        pixel_values: pixels in -1..1 of images [B, C, H, W] of one size, as in the public implementation. Of a size
        other than that of training, positions are interpolated. ValueError when it is smaller than a patch.
        """
        patches, coordinates = self._patches(pixel_values)
        return self.encode_patches(patches, coordinates, None)

    def encode_patches(
        self,
        patches: Float[Array, "b t p"],
        coordinates: Float[Array, "b t 2"],
        segment_ids: Int[Array, "b t"] | None,
    ) -> Float[Array, "b t d"]:
        """Patches of several images in each row, after the final norm, in the compute dtype.

        Args:
          patches: pixels in -1..1, in the order (row, column, channel) within a patch: patch_size^2 * channels numbers.
          coordinates: (row, column) of the patch's centre as fractions 0..1 of its image's height and width.
          segment_ids: number of the patch's image in its row; a patch sees the patches of its own image. 0 = padding,
            whose results mean nothing. None: a row is one image.
        """
        if patches.shape[-1] != self.config.patch_dim:
            raise ValueError(f"patches need {self.config.patch_dim} numbers each, got {patches.shape}")
        hidden, _ = self._run(patches, coordinates, segment_ids, keep=False)
        return self.final_norm(hidden)

    def hidden_states(self, pixel_values: Float[Array, "b c h w"]) -> Float[Array, "n b t d"]:
        """The embedded patches and the result of each layer, before the final norm: num_layers + 1 of them."""
        patches, coordinates = self._patches(pixel_values)
        return self._run(patches, coordinates, None, keep=True)[1]

    def pool(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b d"]:
        """One vector for each image out of what the call gives. ValueError without a head."""
        if not self.config.use_head:
            raise ValueError("this SigLIP tower has no head to pool with: config.use_head is false")
        with jax.named_scope("head"):
            return self.head(hidden)

    def _patches(self, pixel_values):
        _, channels, *sides = pixel_values.shape
        if channels != self.config.num_channels or min(sides) < self.config.patch_size:
            raise ValueError(
                f"pixel_values need {self.config.num_channels} channels and sides of at least "
                f"{self.config.patch_size} pixels [B, C, H, W], got {pixel_values.shape}"
            )
        return patchified(pixel_values, self.config.patch_size)

    def _run(self, patches, coordinates, segment_ids, *, keep: bool):
        """(residual stream after the last layer, all of them or None)."""
        with jax.named_scope("embed"):
            embedded = self.embedding(patches, coordinates)

        def apply(layer, x, cache, _):
            x = layer(x, segment_ids)
            return x, cache, x if keep else None

        hidden, _, states = run_layers(self.layers, embedded, apply, None, self.execution)
        return hidden, jnp.concatenate([embedded[None], states]) if keep else None


# The shape-optimised tower "So400m" (arXiv 2305.13035): google/siglip-so400m-patch14-224 has a head, and so has -384.
SIGLIP_SO400M_224 = SiglipConfig(
    embed_dim=1152, num_layers=27, num_heads=16, hidden_dim=4304, patch_size=14, image_size=224, use_head=True
)
SIGLIP_BASE_224 = SiglipConfig(
    embed_dim=768, num_layers=12, num_heads=12, hidden_dim=3072, patch_size=16, image_size=224, use_head=True
)

PRESETS = {
    "siglip-base-patch16-224": SIGLIP_BASE_224,
    "siglip-so400m-patch14-224": SIGLIP_SO400M_224,
    "siglip-so400m-patch14-384": replace(SIGLIP_SO400M_224, image_size=384),
    # Without the head, as the language models have it.
    "paligemma-vision": replace(SIGLIP_SO400M_224, use_head=False),
    "gemma3-vision": replace(SIGLIP_SO400M_224, image_size=896, use_head=False),
}
