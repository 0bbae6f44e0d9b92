"""Vectors to entries of a codebook and back, with the losses that train both (VQ-VAE, arXiv 1711.00937).

Features and codes lie on the unit sphere and have few dimensions (ViT-VQGAN, arXiv 2110.04627):

    z = f / |f|,  e_k = c_k / |c_k|
    code = argmax_k z . e_k                    the nearest one, since |z - e_k|^2 = 2 - 2 z . e_k
    q = z + stop_gradient(e_code - z)          straight through: the decoder's gradient goes to z as it is
    codebook   = |stop_gradient(z) - e_code|^2
    commitment = |z - stop_gradient(e_code)|^2
    revival    = |e_k - stop_gradient(z_k)|^2  for each code k that no feature of the batch has; z_k is the nearest to
                                               it of the features whose own code is further away than on average

A codebook collapses when codes that lose once are never moved again. Revival moves exactly these, towards where
features are badly served (drawn to the nearest feature of all, they crowd around the commonest one, such as that of
blank paper, and split it). It is a gradient like any other, so that the training step needs no state beside the
parameters (codes that are re-initialised or averaged would; for the same end arXiv 2307.15139 moves unused codes to
features of the batch). How evenly codes are used is their perplexity, exp(-sum_k p_k log p_k): at most the number of
codes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from zoo.nn.execution import Execution
from zoo.nn.parameters import parameter

CODEBOOK_LENGTH = 0.1
"""Length of an entry's parameters at the beginning. Only their direction is read, so that an optimizer whose steps have
a given length (AdamW) turns short ones by more: an unused code gets to where features are within tens of steps."""


class Quantised(NamedTuple):
    """Features as codes, and sums over the features, each times its weight."""

    codes: Int32[Array, "b t"]
    """Nearest entries of the codebook; of equally near ones the first."""
    vectors: Float32[Array, "b t c"]
    """Those entries, of length 1; their gradient goes to the features."""
    codebook_loss: Float32[Array, ""]
    commitment_loss: Float32[Array, ""]
    revival_loss: Float32[Array, ""]
    """The mean over all codes, those in use counted as 0, times the sum of the weights."""
    counts: Float32[Array, " k"]
    """Weight of the features that have each code; no gradient."""


class VectorQuantiser(nnx.Module):
    """A codebook [num_codes, code_dim]. The [features, num_codes] products exist whole, in float32."""

    def __init__(self, num_codes: int, code_dim: int, *, execution: Execution, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(CODEBOOK_LENGTH / code_dim**0.5)
        self.codebook = parameter(rngs, (num_codes, code_dim), (None, None), init, execution.weight_dtype)

    def __call__(self, features: Float[Array, "b t c"], weights: Float[Array, "b t"]) -> Quantised:
        """Features of weight 0 are padding: they get a code, and count for nothing."""
        z, table = on_sphere(features), on_sphere(self.codebook[...])
        scores = self._scores(z, table)
        codes = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        chosen = jnp.take(table, codes, axis=0)
        weights = jax.lax.stop_gradient(weights.astype(jnp.float32))
        counts = jnp.zeros(len(table), jnp.float32).at[codes].add(weights)

        cosine = jnp.max(scores, axis=-1)
        badly_served = (weights > 0) & (cosine * jnp.sum(weights) <= jnp.sum(weights * cosine))
        flat, candidates = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]), badly_served.reshape(-1, 1)
        nearest = jnp.argmax(jnp.where(candidates, scores.reshape(len(flat), -1), -jnp.inf), axis=0)
        distances = squared_distance(table, jnp.take(flat, nearest, axis=0))
        revival = jnp.mean(jnp.where(counts > 0, 0, distances)) * jnp.sum(weights)
        return Quantised(
            codes=codes,
            vectors=straight_through(z, chosen),
            codebook_loss=jnp.sum(weights * squared_distance(jax.lax.stop_gradient(z), chosen)),
            commitment_loss=jnp.sum(weights * squared_distance(z, jax.lax.stop_gradient(chosen))),
            revival_loss=revival,
            counts=counts,
        )

    def codes(self, features: Float[Array, "b t c"]) -> Int32[Array, "b t"]:
        """The nearest codes alone."""
        return jnp.argmax(self._scores(on_sphere(features), on_sphere(self.codebook[...])), axis=-1).astype(jnp.int32)

    def vectors(self, codes: Int32[Array, "b t"]) -> Float32[Array, "b t c"]:
        """The entries of the codebook, of length 1."""
        return jnp.take(on_sphere(self.codebook[...]), codes, axis=0)

    def _scores(self, z, table):
        """Cosines, as constants: a choice has no gradient."""
        z, table = jax.lax.stop_gradient((z, table))
        return jnp.einsum("btc,kc->btk", z, table, precision=jax.lax.Precision.HIGHEST)


def on_sphere(x: Float[Array, "... c"]) -> Float32[Array, "... c"]:
    """x / |x| in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def squared_distance(a: Float[Array, "... c"], b: Float[Array, "... c"]) -> Float[Array, "..."]:
    """|a - b|^2."""
    return jnp.sum(jnp.square(a - b), axis=-1)


def straight_through(z: Float[Array, "... c"], chosen: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """The value of `chosen` with the gradient of z."""
    return z + jax.lax.stop_gradient(chosen - z)


def perplexity(counts: Float[Array, " k"]) -> Float32[Array, ""]:
    """exp of the entropy of the frequencies counts / sum: 1 if one code is used, k if all are used alike; 1 of none."""
    share = counts / jnp.maximum(jnp.sum(counts), 1e-30)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-30)), 0)))
