"""The router of a sparse layer: which experts a token goes to, with which weights, and what is counted. All float32."""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int32, Key

from zoo.nn.execution import Execution
from zoo.nn.parameters import parameter
from zoo.parallel import divided

RoutingConvention = Literal["softmax_topk", "softmax_topk_renormalised", "topk_softmax", "sigmoid_topk"]

KERNEL_DEVIATION = 0.02
"""Initial standard deviation of the kernel: not published; as in flaxformer (google/flaxformer, moe/routing.py)."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["logits", "probabilities", "chosen", "weights"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Routing:
    """What the router decides for tokens [...]."""

    logits: Float32[Array, "... E"]
    """Inputs times the kernel, with the bias."""
    probabilities: Float32[Array, "... E"]
    """Non-negative and of sum 1: softmax of the logits, or sigmoids divided by their sum."""
    chosen: Int32[Array, "... k"]
    """Experts by falling score; of equal scores the lowest number first."""
    weights: Float32[Array, "... k"]
    """What the outputs of these experts are multiplied with."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["assigned", "probability", "z", "entropy", "dropped", "tokens"],
    meta_fields=[],
)
@dataclass(frozen=True)
class RouterStatistics:
    """Sums over tokens that are no padding, so that those of devices can be added. Several layers: a leading axis."""

    assigned: Float32[Array, "E"]
    """Tokens that chose each expert, those included that it had no room for; has no gradient."""
    probability: Float32[Array, "E"]
    """Sum of the probabilities."""
    z: Float32[Array, ""]
    """Sum of logsumexp(logits)**2."""
    entropy: Float32[Array, ""]
    """Sum of -sum_e p_e log p_e, in nats."""
    dropped: Float32[Array, ""]
    """Choices, of k per token, that an expert had no room for."""
    tokens: Float32[Array, ""]
    """Number of tokens."""


def choose(
    logits: Float32[Array, "... E"],
    experts_per_token: int,
    convention: RoutingConvention,
    *,
    selection_bias: Float32[Array, "E"] | None = None,
    scale: float = 1.0,
) -> Routing:
    """Experts and weights of tokens with these router logits.

        softmax_topk                p = softmax(logits); the k largest p, weights p (Switch, arXiv 2101.03961;
                                    flaxformer; Qwen3-MoE without norm_topk_prob)
        softmax_topk_renormalised   the same, weights p / (sum of the k) (Mixtral, arXiv 2401.04088; Qwen3-MoE)
        topk_softmax                the k largest logits, weights softmax over these k (gpt-oss)
        sigmoid_topk                s = sigmoid(logits); the k largest s, weights s / (sum of the k) (DeepSeek-V3, arXiv
                                    2412.19437, section 2.1.2)

    The second and the third are the same function, in another order of rounding. `selection_bias` is added to what the
    choice is made by, and to nothing else; `scale` multiplies all weights (routed_scaling_factor of DeepSeek-V3).
    """
    logits = logits.astype(jnp.float32)
    sigmoid = convention == "sigmoid_topk"
    scores = jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits, axis=-1)
    selected_by = logits if convention == "topk_softmax" else scores
    if selection_bias is not None:
        selected_by = selected_by + selection_bias.astype(jnp.float32)
    # top_k puts the lowest index first among equals.
    chosen = jax.lax.top_k(jax.lax.stop_gradient(selected_by), experts_per_token)[1].astype(jnp.int32)
    # A comparison and a sum, not a gather: the gradient of a gather is a scatter.
    is_chosen = chosen[..., None] == jnp.arange(logits.shape[-1], dtype=jnp.int32)
    weights = jnp.sum(jnp.where(is_chosen, (logits if convention == "topk_softmax" else scores)[..., None, :], 0.0), -1)
    match convention:
        case "topk_softmax":
            weights = jax.nn.softmax(weights, axis=-1)
        case "softmax_topk_renormalised":
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        case "sigmoid_topk":
            weights = weights / (jnp.sum(weights, axis=-1, keepdims=True) + 1e-20)
    probabilities = scores / (jnp.sum(scores, axis=-1, keepdims=True) + 1e-20) if sigmoid else scores
    return Routing(logits, probabilities, chosen, weights * scale)


def count(
    routing: Routing, token_mask: Bool[Array, "..."] | None, dropped: Float32[Array, ""] | None = None
) -> RouterStatistics:
    """The sums of `RouterStatistics` over the tokens that the mask has (None: all)."""
    experts = routing.logits.shape[-1]
    real = jnp.ones(routing.logits.shape[:-1], jnp.float32) if token_mask is None else token_mask.astype(jnp.float32)
    real = real.reshape(-1)
    probabilities = routing.probabilities.reshape(-1, experts)
    # log 0 = -inf times p = 0: such an expert counts nothing.
    log_probabilities = jnp.log(jnp.maximum(probabilities, 1e-30))
    is_chosen = routing.chosen.reshape(len(real), -1, 1) == jnp.arange(experts, dtype=jnp.int32)
    log_normalizer = jax.nn.logsumexp(routing.logits.reshape(-1, experts), axis=-1)
    return RouterStatistics(
        assigned=jax.lax.stop_gradient(jnp.sum(jnp.where(is_chosen, real[:, None, None], 0.0), axis=(0, 1))),
        probability=jnp.sum(probabilities * real[:, None], axis=0),
        z=jnp.sum(jnp.square(log_normalizer) * real),
        entropy=jax.lax.stop_gradient(-jnp.sum(probabilities * log_probabilities * real[:, None])),
        dropped=jnp.zeros((), jnp.float32) if dropped is None else jax.lax.stop_gradient(dropped),
        tokens=jnp.sum(real),
    )


def load_balancing_loss(statistics: RouterStatistics) -> Float32[Array, "..."]:
    """E * sum_e f_e P_e of each layer: f_e the part of the tokens that chose expert e, P_e the mean of its probability.

    It is k when the load is balanced, and k * E at worst (k = 1). This is the loss of flaxformer (moe/routing.py, with
    k = 1 that of Switch, arXiv 2101.03961, equations 4-6) and of Mixtral and Qwen3-MoE in transformers, except that
    those take f and P over the tokens of all layers together, where one layer's load can balance another's.
    """
    tokens = jnp.maximum(statistics.tokens, 1.0)[..., None]
    fraction, probability = statistics.assigned / tokens, statistics.probability / tokens
    return statistics.assigned.shape[-1] * jnp.sum(fraction * probability, axis=-1)


def router_z_loss(statistics: RouterStatistics) -> Float32[Array, "..."]:
    """mean_t logsumexp_e(logits)**2 of each layer (ST-MoE, arXiv 2202.08906, equation 5)."""
    return statistics.z / jnp.maximum(statistics.tokens, 1.0)


def jittered(x: Float[Array, "b t d"], amount: float, rng: Key[Array, ""]) -> Float[Array, "b t d"]:
    """x * U[1 - amount, 1 + amount], drawn for every element (Switch, arXiv 2101.03961, section 2.4).

    A token's noise depends on its place in the whole batch, so that it is the same on every mesh.
    """
    rows, length, width = x.shape
    first_row = jax.lax.axis_index(divided("batch")) * rows if divided("batch") else 0
    first = jax.lax.axis_index(divided("length")) * length if divided("length") else 0

    def row(number):
        key = jax.random.fold_in(rng, number)
        return jax.vmap(lambda token: _noise(jax.random.fold_in(key, token), width, amount))(first + jnp.arange(length))

    return x * jax.vmap(row)(first_row + jnp.arange(rows)).astype(x.dtype)


def _noise(key: Key[Array, ""], width: int, amount: float) -> Float32[Array, "d"]:
    return jax.random.uniform(key, (width,), jnp.float32, 1 - amount, 1 + amount)


class Router(nnx.Module):
    """Scores x . kernel + bias in float32, and the choice by them; kept whole and unrounded on every device."""

    def __init__(
        self,
        embed_dim: int,
        num_experts: int,
        experts_per_token: int,
        convention: RoutingConvention,
        *,
        bias: bool = False,
        selection_bias: bool = False,
        scale: float = 1.0,
        jitter: float = 0.0,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        dtype, zeros = execution.weight_dtype, jax.nn.initializers.zeros
        initializer = jax.nn.initializers.normal(KERNEL_DEVIATION)
        self.kernel = parameter(rngs, (embed_dim, num_experts), (None, None), initializer, dtype)
        self.bias = parameter(rngs, (num_experts,), (None,), zeros, dtype) if bias else None
        # Not in the dtype of the weights: steps of 1e-3 are lost in bfloat16.
        self.selection_bias = parameter(rngs, (num_experts,), (None,), zeros, jnp.float32) if selection_bias else None
        self.experts_per_token, self.convention = experts_per_token, convention
        self.scale, self.jitter = scale, jitter

    def logits(self, x: Float[Array, "... d"]) -> Float32[Array, "... E"]:
        """Scores of the experts."""
        scores = jnp.einsum(
            "...d,de->...e",
            x.astype(jnp.float32),
            self.kernel[...].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        return scores if self.bias is None else scores + self.bias[...].astype(jnp.float32)

    def __call__(self, x: Float[Array, "b t d"], rng: Key[Array, ""] | None = None) -> Routing:
        """The choice for tokens; `rng` is given in training only, where it turns on the jitter."""
        x = x.astype(jnp.float32)
        if rng is not None and self.jitter:
            x = jittered(x, self.jitter, rng)
        selection = None if self.selection_bias is None else jax.lax.stop_gradient(self.selection_bias[...])
        return choose(
            self.logits(x), self.experts_per_token, self.convention, selection_bias=selection, scale=self.scale
        )
