"""A tokenizer of images: a square image to n codes of a vocabulary, and back (ViT-VQGAN, arXiv 2110.04627).

    patches -> ViT -> to_code -> on the unit sphere -> nearest entry of the codebook        n = (S / p)^2 codes
    entries -> from_code + position -> ViT -> pixels of the patches

Both transformers are SigLIP's (`zoo.models.siglip`). They are trained on the squared error of pixels and the losses of
the quantiser (`zoo.nn.vector_quantiser`). The paper's further losses are left out: the perceptual one (LPIPS, logits of
another network), the logit-laplace one, and the adversarial one (a discriminator): reconstructions are blurred where
those would invent texture. Gemini's tokenizer is not published: its report (arXiv 2312.11805, section 2) says that
images are written as discrete tokens, as in DALL-E and Parti, and Parti's tokenizer is a ViT-VQGAN.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, Int32

from zoo.errors import UserError
from zoo.models.siglip import Siglip, SiglipConfig
from zoo.nn import Execution, build_layers, gathered_outside_layers, run_layers
from zoo.nn.encoder_block import EncoderBlock, encoder_block_parameters
from zoo.nn.layer_norm import LayerNorm
from zoo.nn.parameters import fan_in_normal, parameter, project
from zoo.nn.patches import interpolated, patchified
from zoo.nn.vector_quantiser import Quantised, VectorQuantiser
from zoo.parallel import spmd, state_axes


@dataclass(frozen=True)
class VqImageConfig:
    """Architecture of an image tokenizer."""

    image_size: int
    """Side S of its square images in pixels."""
    patch_size: int
    """Side p of a patch in pixels; each patch becomes one code."""
    num_codes: int
    """Entries K of the codebook."""
    code_dim: int
    """Width of an entry; few, so that many entries are used; 32 in ViT-VQGAN."""
    embed_dim: int
    """Width of both transformers."""
    num_layers: int
    """Layers of each of them."""
    num_heads: int
    """Attention heads."""
    hidden_dim: int
    """Feed-forward width."""
    commitment: float = 0.25
    """Coefficient of the commitment loss."""
    norm_eps: float = 1e-6
    """Added to the variance in every norm."""

    def __post_init__(self):
        for name in ("image_size", "patch_size", "code_dim", "embed_dim", "num_layers", "num_heads", "hidden_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} must be at least 1, got {getattr(self, name)}")
        if self.num_codes < 2:
            raise UserError(f"model.num_codes must be at least 2, got {self.num_codes}")
        if self.image_size % self.patch_size:
            raise UserError(f"model.image_size={self.image_size} is not a multiple of patch_size={self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise UserError(f"model.embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}")
        if not self.commitment >= 0:
            raise UserError(f"model.commitment must be at least 0, got {self.commitment}")
        if not self.norm_eps > 0:
            raise UserError(f"model.norm_eps must be positive, got {self.norm_eps}")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def codes_per_image(self) -> int:
        """Codes n of an image, row by row."""
        return self.grid**2

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch."""
        return 3 * self.patch_size**2

    @property
    def encoder(self) -> SiglipConfig:
        """The encoder's part."""
        return SiglipConfig(
            embed_dim=self.embed_dim,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            hidden_dim=self.hidden_dim,
            patch_size=self.patch_size,
            image_size=self.image_size,
            norm_eps=self.norm_eps,
        )

    @property
    def vocab_size(self) -> int:
        """The codes are its vocabulary."""
        return self.num_codes

    @property
    def max_position_embeddings(self) -> int:
        """Codes of its one size of images."""
        return self.codes_per_image

    def num_parameters(self) -> int:
        """Parameters of encoder, codebook and decoder."""
        width, code = self.embed_dim, self.code_dim
        quantiser = width * code + code + self.num_codes * code
        embedding, head = (code + 1 + self.codes_per_image) * width, (width + 1) * self.patch_dim
        layers = self.num_layers * encoder_block_parameters(width, self.hidden_dim) + 2 * width
        return self.encoder.num_parameters() + quantiser + embedding + layers + head

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward floating-point operations per code, there and back; a training step takes three times as many. They
        do not depend on what else is in a row."""
        width = self.embed_dim
        layer = 4 * width * width + 2 * width * self.hidden_dim + 2 * self.codes_per_image * width
        ends = 2 * self.patch_dim * width + 2 * width * self.code_dim + self.num_codes * self.code_dim
        return 2.0 * (2 * self.num_layers * layer + ends)


class Reconstruction(NamedTuple):
    """What training sees."""

    patches: Float32[Array, "b t p"]
    """Pixels out of the codes, about -1..1."""
    quantised: Quantised
    """Codes and the quantiser's losses."""


class PatchDecoder(nnx.Module):
    """Entries of the codebook to pixels."""

    def __init__(self, config: VqImageConfig, *, execution: Execution, rngs: nnx.Rngs):
        width, dtype, zeros = config.embed_dim, execution.weight_dtype, jax.nn.initializers.zeros
        self.grid, self.execution = config.grid, execution
        init = fan_in_normal(config.code_dim)
        self.from_code = parameter(rngs, (config.code_dim, width), (None, "embed"), init, dtype)
        self.from_code_bias = parameter(rngs, (width,), ("norm",), zeros, dtype)
        shape = (config.codes_per_image, width)
        self.position = parameter(rngs, shape, (None, "embed"), fan_in_normal(width), dtype)
        self.layers = build_layers(
            lambda _, rngs: EncoderBlock(
                width,
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
        self.final_norm = LayerNorm(width, eps=config.norm_eps, execution=execution, rngs=rngs)
        self.to_pixels = parameter(rngs, (width, config.patch_dim), ("embed", None), fan_in_normal(width), dtype)
        self.to_pixels_bias = parameter(rngs, (config.patch_dim,), ("norm",), zeros, dtype)

    def __call__(
        self,
        vectors: Float[Array, "b t c"],
        coordinates: Float[Array, "#b t 2"],
        segment_ids: Int[Array, "b t"] | None,
    ) -> Float32[Array, "b t p"]:
        dtype = self.execution.dtype
        x = project("btc,cd->btd", vectors.astype(dtype), self.from_code[...]) + self.from_code_bias[...].astype(dtype)
        x = x + interpolated(self.position[...], self.grid, coordinates).astype(dtype)

        def apply(layer, x, cache, _):
            return layer(x, segment_ids), cache, None

        x, *_ = run_layers(self.layers, x, apply, None, self.execution)
        pixels = project("btd,dp->btp", self.final_norm(x), self.to_pixels[...])
        return pixels.astype(jnp.float32) + self.to_pixels_bias[...].astype(jnp.float32)


class VqImage(nnx.Module):
    """Square images to codes and back. Called with images, it gives what is left of them after that."""

    def __init__(self, config: VqImageConfig, *, execution: Execution | None = None, rngs: nnx.Rngs):
        execution = execution or Execution()
        self.config, self.execution = config, execution
        width, code = config.embed_dim, config.code_dim
        self.encoder = Siglip(config.encoder, execution=execution, rngs=rngs)
        self.to_code = parameter(rngs, (width, code), (None, None), fan_in_normal(width), execution.weight_dtype)
        zeros = jax.nn.initializers.zeros
        self.to_code_bias = parameter(rngs, (code,), (None,), zeros, execution.weight_dtype)
        self.quantiser = VectorQuantiser(config.num_codes, code, execution=execution, rngs=rngs)
        self.decoder = PatchDecoder(config, execution=execution, rngs=rngs)

    def __call__(self, pixels: Float[Array, "b s s 3"]) -> Float32[Array, "b s s 3"]:
        """The reconstructions of images with pixels in -1..1."""
        return self.decode_codes(self.encode_codes(pixels))

    def encode_codes(self, pixels: Float[Array, "b s s 3"]) -> Int32[Array, "b n"]:
        """The codes of images [B, S, S, 3] with pixels in -1..1, row by row. ValueError for another size."""
        size = self.config.image_size
        if pixels.shape[1:] != (size, size, 3):
            raise ValueError(f"images must be [B, {size}, {size}, 3], got {pixels.shape}")
        patches, coordinates = patchified(jnp.moveaxis(pixels, -1, 1), self.config.patch_size)
        return self.quantiser.codes(self.features(patches, coordinates, None))

    def decode_codes(self, codes: Int[Array, "b n"]) -> Float32[Array, "b s s 3"]:
        """Images with pixels in -1..1 out of their codes, which must lie in 0 .. K - 1. ValueError for another number
        of them."""
        config = self.config
        if codes.ndim != 2 or codes.shape[1] != config.codes_per_image:
            raise ValueError(f"an image has {config.codes_per_image} codes [B, n], got {codes.shape}")
        patches = self.pixels(self.quantiser.vectors(codes), centres(config.grid), None)
        return jnp.clip(unpatchified(patches, config.grid), -1, 1)

    def reconstruct(
        self,
        patches: Float[Array, "b t p"],
        coordinates: Float[Array, "#b t 2"] | None,
        segment_ids: Int[Array, "b t"] | None,
        weights: Float[Array, "b t"],
    ) -> Reconstruction:
        """There and back, with what training needs.

        Args:
          patches: pixels in -1..1, in the order (row, column, channel) within a patch.
          coordinates: (row, column) of a patch's centre as fractions 0..1; None: each row is one image, row by row.
          segment_ids: number of a patch's image in its row; a patch sees those of its own image. 0 = padding. None: a
            row is one image.
          weights: how much each patch counts for the quantiser; 0 for padding.
        """
        coordinates = centres(self.config.grid) if coordinates is None else coordinates
        quantised = self.quantiser(self.features(patches, coordinates, segment_ids), weights)
        return Reconstruction(self.pixels(quantised.vectors, coordinates, segment_ids), quantised)

    def features(self, patches, coordinates, segment_ids) -> Float[Array, "b t c"]:
        """What the quantiser reads; arguments as of `reconstruct`."""

        def encode(encoder, *arrays):
            return encoder.encode_patches(*arrays)

        with jax.named_scope("encoder"):
            encoded = _by_rows(encode, self.encoder, self.execution, patches, coordinates, segment_ids)
        features = project("btd,dc->btc", encoded, self.to_code[...]).astype(jnp.float32)
        return features + self.to_code_bias[...].astype(jnp.float32)

    def pixels(self, vectors, coordinates, segment_ids) -> Float32[Array, "b t p"]:
        """Patches out of entries of the codebook; arguments as of `reconstruct`."""

        def decode(decoder, *arrays):
            return decoder(*arrays)

        with jax.named_scope("decoder"):
            return _by_rows(decode, self.decoder, self.execution, vectors, coordinates, segment_ids)


def _by_rows(function: Any, module: nnx.Module, execution: Execution, x, coordinates, segment_ids) -> Any:
    """`function(module, x, coordinates, segment_ids)`, every device of a mesh with its own rows and the whole module.

    The quantiser stays outside: which codes nobody has is a question to all rows."""
    graphdef, state = nnx.split(module)

    def run(state, *arrays):
        return function(gathered_outside_layers(nnx.merge(graphdef, state), execution), *arrays)

    rows = ("batch", None, None)
    in_axes = (
        state_axes(state),
        rows,
        (None, None, None) if len(coordinates) == 1 else rows,
        None if segment_ids is None else ("batch", None),
    )
    return spmd(run, in_axes, rows, {"batch": len(x)})(state, x, coordinates, segment_ids)


def centres(grid: int) -> Float32[Array, "1 n 2"]:
    """Centres of the patches of a square image, row by row, as fractions of its sides."""
    places = (jnp.arange(grid, dtype=jnp.float32) + 0.5) / grid
    return jnp.stack(jnp.meshgrid(places, places, indexing="ij"), axis=-1).reshape(1, grid * grid, 2)


def unpatchified(patches: Float[Array, "b n p"], grid: int) -> Float[Array, "b s s 3"]:
    """Images out of their patches, which come row by row with pixels in the order (row, column, channel)."""
    side = round((patches.shape[-1] // 3) ** 0.5)
    split = patches.reshape(-1, grid, grid, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return split.reshape(-1, grid * side, grid * side, 3)


# Minutes on two CPU cores.
VQ_TINY = VqImageConfig(
    image_size=32,
    patch_size=4,
    num_codes=256,
    code_dim=8,
    embed_dim=128,
    num_layers=2,
    num_heads=4,
    hidden_dim=512,
)
# Of the size that ViT-VQGAN calls Small, encoder and decoder alike.
VQ_SMALL = VqImageConfig(
    image_size=256,
    patch_size=8,
    num_codes=8192,
    code_dim=32,
    embed_dim=512,
    num_layers=8,
    num_heads=8,
    hidden_dim=2048,
)

PRESETS = {"vq-tiny": VQ_TINY, "vit-vqgan-small-256": VQ_SMALL}
