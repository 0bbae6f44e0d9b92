"""Sparse mixture of experts: every token goes through k of E feed-forward networks, chosen by a router.

y = sum_{e in chosen(x)} w_e(x) * down_e(act(gate_e(x)) * up_e(x))  [+ shared(x)]
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int32, Key

from zoo.errors import UserError, nearest_name
from zoo.kernels.grouped_matmul import grouped_matmul
from zoo.nn.activations import activated
from zoo.nn.bottleneck import through_bottlenecks
from zoo.nn.execution import Execution
from zoo.nn.expert_dispatch import Dispatch, collect, sort_all, sort_with_capacity, spread, spread_weights
from zoo.nn.expert_exchange import Exchange, plan_exchange, send, send_back
from zoo.nn.feed_forward import GatedFeedForward
from zoo.nn.lora import LoraWeight, gated
from zoo.nn.packed import PackedWeight, packed_expert_products
from zoo.nn.parameters import fan_in_normal, parameter, precision_of
from zoo.nn.router import Router, RouterStatistics, RoutingConvention, count
from zoo.parallel import divided, enter_sublayer, leave_sublayer

ExpertActivation = Literal["gelu_tanh", "silu", "clipped_swiglu"]

CLIP, SLOPE = 7.0, 1.702
"""Of "clipped_swiglu" (openai/gpt-oss, torch/model.py: swiglu)."""


@dataclass(frozen=True)
class ExpertsConfig:
    """One sparse layer. Gemini 1.5's report says "sparse mixture-of-experts" and no number of it."""

    num_experts: int
    """Experts E of a layer. Not published; 8 as in Mixtral, 64 as in GLaM, 128 as in Gemma 4."""
    experts_per_token: int
    """Experts k that a token goes through. Not published; 2 as in GShard, GLaM and Mixtral."""
    hidden_dim: int
    """Width F of gate and up of one expert, each. Not published."""
    routing: RoutingConvention = "softmax_topk_renormalised"
    """How scores become choices and weights (`zoo.nn.router.choose`). Not published; as in Mixtral."""
    routing_scale: float = 1.0
    """Factor of all weights. Not published; 1 as in Mixtral (DeepSeek-V3: 2.5)."""
    activation: ExpertActivation = "gelu_tanh"
    """act(g) * u of an expert: "gelu_tanh" gelu(g) * u (GeGLU), "silu" silu(g) * u (SwiGLU: Mixtral), "clipped_swiglu"
    g * sigmoid(1.702 g) * (u + 1), g at most 7 and u in -7 .. 7 (gpt-oss). Not published; GeGLU as in Gemma."""
    router_bias: bool = False
    """A bias of the router's scores. Not published; none as in Mixtral (gpt-oss has one)."""
    expert_bias: bool = False
    """Biases of gate, up and down. Not published; none as in Mixtral (gpt-oss has them)."""
    shared_hidden_dim: int = 0
    """Width of an expert that every token goes through besides; 0 = none. It has no biases, and is SwiGLU where the
    others are "clipped_swiglu". Not published; none as in Mixtral."""
    dispatch: Literal["dropless", "capacity"] = "dropless"
    """Every choice is computed, or as many per expert as there is room for: of fixed shape, with the same work on every
    device. Not published; dropless as in Mixtral, capacity as in GShard and Switch."""
    capacity_factor: float = 1.25
    """Room in training, in multiples of what a balanced load needs. Not published; 1.25 as in ST-MoE."""
    eval_capacity_factor: float = 2.0
    """Room at other times. Not published; 2 as in ST-MoE."""
    exchange_capacity_factor: float | None = None
    """Of "dropless" in training, on devices that share the experts: rows that a device takes in at most, in multiples
    of what a balanced load gives; what is more is dropped, and counted as such. None = room for all rows of all
    devices, so that nothing ever is, for memory that grows with their number. Not published; none as in Mixtral."""
    load_balancing_coefficient: float = 0.01
    """Of `load_balancing_loss`, averaged over the layers. Not published; 0.01 as in Switch, ST-MoE (Mixtral: .02)."""
    router_z_coefficient: float = 0.001
    """Of `router_z_loss`, averaged over the layers. Not published; 0.001 as in ST-MoE."""
    jitter: float = 0.0
    """In training the router's input is multiplied with noise in 1 - jitter .. 1 + jitter. Not published; none as in
    Mixtral (Switch: 0.01)."""
    balancing_bias_rate: float = 0.0
    """After every step this much is added to the selection bias of experts with less than the mean load, and taken from
    others (DeepSeek-V3: 0.001); 0 = no such bias. Not published; none as in Mixtral."""

    def __post_init__(self):
        for name, low in (("num_experts", 1), ("experts_per_token", 1), ("hidden_dim", 1), ("shared_hidden_dim", 0)):
            if getattr(self, name) < low:
                raise UserError(f"model.experts.{name} must be at least {low}, got {getattr(self, name)}")
        if self.experts_per_token > self.num_experts:
            raise UserError(
                f"model.experts.experts_per_token={self.experts_per_token} is more than num_experts={self.num_experts}"
            )
        for name, known in (
            ("routing", get_args(RoutingConvention)),
            ("activation", get_args(ExpertActivation)),
            ("dispatch", ("dropless", "capacity")),
        ):
            if getattr(self, name) not in known:
                value = getattr(self, name)
                raise UserError(f"model.experts.{name} {value!r} is unknown; {nearest_name(value, known)}")
        for name, low, high in (
            ("routing_scale", 1e-6, 1e6),
            ("capacity_factor", 1e-3, 1e6),
            ("eval_capacity_factor", 1e-3, 1e6),
            ("load_balancing_coefficient", 0.0, 1e3),
            ("router_z_coefficient", 0.0, 1e3),
            ("jitter", 0.0, 0.99),
            ("balancing_bias_rate", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:  # also refuses NaN
                raise UserError(f"model.experts.{name} must be between {low:g} and {high:g}, got {getattr(self, name)}")
        factor = self.exchange_capacity_factor
        if factor is not None and not 1 <= factor <= 1e6:
            raise UserError(f"model.experts.exchange_capacity_factor must be none or between 1 and 1e6, got {factor}")
        if factor is not None and self.dispatch == "capacity":
            raise UserError("model.experts.exchange_capacity_factor is for dispatch 'dropless'; use capacity_factor")

    @property
    def has_selection_bias(self) -> bool:
        """Whether choices are made by scores plus a bias that no gradient reaches."""
        return self.routing == "sigmoid_topk" or self.balancing_bias_rate > 0

    @property
    def active_hidden_dim(self) -> int:
        """Feed-forward width that one token uses."""
        return self.experts_per_token * self.hidden_dim + self.shared_hidden_dim

    def num_parameters(self, embed_dim: int) -> int:
        """Parameters of one sparse layer."""
        return self._parameters(embed_dim, self.num_experts)

    def num_active_parameters(self, embed_dim: int) -> int:
        """Parameters of one sparse layer that one token uses, the router's included."""
        return self._parameters(embed_dim, self.experts_per_token)

    def _parameters(self, embed_dim: int, experts: int) -> int:
        biases = 2 * self.hidden_dim + embed_dim if self.expert_bias else 0
        router = self.num_experts * (embed_dim + self.router_bias + self.has_selection_bias)
        shared = 3 * embed_dim * self.shared_hidden_dim
        return experts * (3 * embed_dim * self.hidden_dim + biases) + router + shared

    def flops_per_token(self, embed_dim: int) -> int:
        """Forward floating-point operations per token of one sparse layer: 6 D (k F + shared) + 2 D E."""
        return 6 * embed_dim * self.active_hidden_dim + 2 * embed_dim * self.num_experts


class SparseFeedForward(nnx.Module):
    """A router, its experts and, if there is one, the expert that all tokens share."""

    def __init__(self, embed_dim: int, config: ExpertsConfig, *, execution: Execution, rngs: nnx.Rngs):
        experts, hidden, dtype = config.num_experts, config.hidden_dim, execution.weight_dtype
        self.config = config
        self.router = Router(
            embed_dim,
            experts,
            config.experts_per_token,
            config.routing,
            bias=config.router_bias,
            selection_bias=config.has_selection_bias,
            scale=config.routing_scale,
            jitter=config.jitter,
            execution=execution,
            rngs=rngs,
        )
        into, out = ("experts", "expert_embed", "expert_mlp"), ("experts", "expert_mlp_in", None)
        self.gate = parameter(rngs, (experts, embed_dim, hidden), into, fan_in_normal(embed_dim), dtype)
        self.up = parameter(rngs, (experts, embed_dim, hidden), into, fan_in_normal(embed_dim), dtype)
        self.down = parameter(rngs, (experts, hidden, embed_dim), out, fan_in_normal(hidden), dtype)
        if config.expert_bias:
            zeros = jax.nn.initializers.zeros
            self.gate_bias = parameter(rngs, (experts, hidden), ("experts", "expert_mlp"), zeros, dtype)
            self.up_bias = parameter(rngs, (experts, hidden), ("experts", "expert_mlp"), zeros, dtype)
            self.down_bias = parameter(rngs, (experts, embed_dim), ("experts", None), zeros, dtype)
        if config.shared_hidden_dim:
            self.shared = GatedFeedForward(
                embed_dim,
                config.shared_hidden_dim,
                activation="silu" if config.activation == "clipped_swiglu" else config.activation,
                execution=execution,
                rngs=rngs,
            )

    def __call__(
        self,
        x: Float[Array, "b t d"],
        token_mask: Bool[Array, "b t"] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b t d"], RouterStatistics]:
        """The layer's output, and the sums of its router over this device's tokens.

        token_mask: tokens that are no padding (None: all); the experts' output of others is zero. rng: given in
        training only, where it turns on the jitter, the capacity of training and the bound of the exchange.

        Inside of `spmd` the tokens that a tensor group has in common come in and go out in parts, as for
        `GatedFeedForward`.
        """
        shared = self.shared(x) if self.config.shared_hidden_dim else 0.0
        x = enter_sublayer(x)
        with jax.named_scope("router"):
            routing = self.router(x, rng)
        with jax.named_scope("dispatch"):
            dispatch = self._dispatch(routing.chosen, token_mask, rng is not None)
            weights = spread_weights(routing.weights.reshape(dispatch.place.shape), dispatch)
        tokens = x.reshape(-1, x.shape[-1])
        axes, exchange, dropped = divided("experts"), None, dispatch.dropped
        if axes and dispatch.group_sizes is not None:
            exchange = plan_exchange(dispatch, axes, None if rng is None else self.config.exchange_capacity_factor)
            dropped = dropped + exchange.dropped
        statistics = count(routing, token_mask, dropped)
        biases = (self.gate_bias[...], self.up_bias[...], self.down_bias[...]) if self.config.expert_bias else None
        gate, up = _gate_and_up(axes, tokens, dispatch, exchange, self.gate[...], self.up[...], biases)
        gate, up = checkpoint_name(gate, "gate"), checkpoint_name(up, "up")
        parts = math.prod(jax.lax.axis_size(axis) for axis in divided("expert_mlp"))
        static = (axes, self.config.activation, parts)
        rows = _down(static, gate, up, weights, dispatch, exchange, self.down[...], biases)
        with jax.named_scope("combine"):
            y = collect(rows, dispatch.source, dispatch.place, dispatch.complete)
        y = leave_sublayer(y.reshape(x.shape), "expert_mlp") + shared
        return through_bottlenecks(self, y), statistics

    def _dispatch(self, chosen: Int32[Array, "b t k"], mask: Bool[Array, "b t"] | None, training: bool) -> Dispatch:
        config = self.config
        if config.dispatch == "dropless":
            flat = None if mask is None else mask.reshape(-1)
            return sort_all(chosen.reshape(-1, chosen.shape[-1]), flat, config.num_experts)
        factor = config.capacity_factor if training else config.eval_capacity_factor
        return sort_with_capacity(chosen, mask, config.num_experts, factor)


def _to_experts(
    rows: Float[Array, "R d"], dispatch: Dispatch, exchange: Exchange | None, axes: tuple[str, ...]
) -> Array:
    """Rows on the devices of their experts: [rows, d] sorted by expert, or [E / P, rows, d] where all have as many."""
    if exchange is not None:
        return checkpoint_name(send(rows, exchange), "expert_rows")
    if dispatch.group_sizes is not None:
        return rows
    rows = rows.reshape(dispatch.num_experts, -1, rows.shape[1])
    if not axes:
        return rows
    return checkpoint_name(jax.lax.all_to_all(rows, axes, split_axis=0, concat_axis=1, tiled=True), "expert_rows")


def _from_experts(rows: Array, dispatch: Dispatch, exchange: Exchange | None, axes: tuple[str, ...]) -> Array:
    """The way back of `_to_experts`: [R, d]."""
    if exchange is not None:
        return send_back(rows, exchange, len(dispatch.source))
    if dispatch.group_sizes is None and axes:
        rows = jax.lax.all_to_all(rows, axes, split_axis=1, concat_axis=0, tiled=True)
    return rows.reshape(-1, rows.shape[-1])


def _product(
    rows: Array, weight: Float[Array, "e i o"] | PackedWeight | LoraWeight, sizes: Int32[Array, "e"] | None
) -> Array:
    """Rows times the matrix of their expert."""
    if isinstance(weight, LoraWeight):
        if weight.gate.ndim > 1:
            raise ValueError("rows of a batch cannot have adapters of their own in experts, whose tokens are mixed")
        low = gated(_product(weight.inputs(rows), weight.a, sizes), weight.gate)
        return _product(rows, weight.weight, sizes) + _product(low, weight.b, sizes)
    if isinstance(weight, PackedWeight):
        return packed_expert_products(rows, weight, sizes, precision=precision_of(rows.dtype))
    if sizes is not None:
        return grouped_matmul(rows, weight, sizes)
    return jnp.einsum("eri,eio->ero", rows, weight.astype(rows.dtype), precision=precision_of(rows.dtype))


def _of_expert(bias: Float[Array, "e o"], rows: Array, sizes: Int32[Array, "e"] | None) -> Array:
    """The bias of every row's expert. A product with zeros and ones, as its gradient is one, too, and no scatter."""
    if sizes is None:
        return bias[:, None].astype(rows.dtype)
    ends = jnp.cumsum(sizes)
    number = jnp.arange(len(rows))[:, None]
    belongs = ((number >= ends - sizes) & (number < ends)).astype(rows.dtype)
    return jnp.einsum("re,eo->ro", belongs, bias.astype(rows.dtype), precision=precision_of(rows.dtype))


def _activated(name: ExpertActivation, gate: Array, up: Array) -> Array:
    if name != "clipped_swiglu":
        return activated(gate, name) * up
    gate, up = jnp.minimum(gate, CLIP), jnp.clip(up, -CLIP, CLIP)
    return gate * jax.nn.sigmoid(SLOPE * gate) * (up + 1)


# Kept for the backward pass are gate and up, as in a dense layer, and not the k-fold tokens nor what the activation
# function gives. Tokens that came from other devices are kept: to send them again takes longer than to read them.
_checkpoint = functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names("expert_rows"), static_argnums=0
)


@_checkpoint
def _gate_and_up(axes, tokens, dispatch, exchange, gate, up, biases):
    with jax.named_scope("dispatch"):
        rows = spread(tokens, dispatch.source, dispatch.place, dispatch.complete)
        rows = _to_experts(rows, dispatch, exchange, axes)
    with jax.named_scope("experts"):
        sizes = dispatch.group_sizes if exchange is None else exchange.own_sizes
        gate, up = _product(rows, gate, sizes), _product(rows, up, sizes)
        if biases is not None:
            gate, up = gate + _of_expert(biases[0], rows, sizes), up + _of_expert(biases[1], rows, sizes)
        return gate, up


@_checkpoint
def _down(static, gate, up, weights, dispatch, exchange, down, biases):
    axes, activation, parts = static
    with jax.named_scope("dispatch"):
        weights = _to_experts(weights[:, None], dispatch, exchange, axes)
    with jax.named_scope("experts"):
        sizes = dispatch.group_sizes if exchange is None else exchange.own_sizes
        # Weighted before the product with `down`, not behind it: so the backward pass does not need that product.
        hidden = (_activated(activation, gate, up) * weights).astype(gate.dtype)
        rows = _product(hidden, down, sizes)
        if biases is not None:
            # Devices that divide the width of the experts add up their rows.
            rows = rows + (_of_expert(biases[2], rows, sizes) * weights / parts).astype(rows.dtype)
    with jax.named_scope("combine"):
        return _from_experts(rows, dispatch, exchange, axes)
