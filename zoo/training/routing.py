"""What training does with the routers of sparse layers: their losses, what is reported of them, balancing by a bias."""

import re
from collections.abc import Iterable, Mapping
from typing import Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float32

from zoo.nn.router import RouterStatistics, load_balancing_loss, router_z_loss

SELECTION_BIAS = "router/selection_bias"
"""End of the names of the biases that the load is balanced by; no gradient reaches them."""


class RouterLosses(Protocol):
    """What the losses read from the configuration of sparse layers."""

    @property
    def load_balancing_coefficient(self) -> float: ...
    @property
    def router_z_coefficient(self) -> float: ...


def router_losses(
    statistics: RouterStatistics, config: RouterLosses, weight: Float32[Array, ""]
) -> dict[str, Float32[Array, ""]]:
    """Sums for `LossSums.auxiliary`: weight * coefficient * (mean over the sparse layers of their loss).

    The mean, not the sum, as in t5x (contrib/moe/models.py), where the coefficients of Switch and ST-MoE are used.
    `weight` is the batch's sum of loss weights, by which the train step divides: the losses are means over all tokens
    that are no padding, whatever those weigh. Micro-batches have a load of their own each, and their losses are
    averaged by weight.
    """
    return {
        "load_balancing_loss": weight * config.load_balancing_coefficient * jnp.mean(load_balancing_loss(statistics)),
        "router_z_loss": weight * config.router_z_coefficient * jnp.mean(router_z_loss(statistics)),
    }


def router_metrics(statistics: RouterStatistics) -> dict[str, Array]:
    """What is reported of a batch's statistics [layers, ...]:

    router_load            [layers, E] part of a layer's choices that each expert got, of sum 1
    router_largest_load    the largest of them times E: 1 = balanced, E = all to one expert
    router_entropy         mean over layers and tokens, in nats; log E = undecided
    router_dropped         part of all choices that found no room
    """
    choices = jnp.maximum(jnp.sum(statistics.assigned, axis=-1), 1.0)
    load = statistics.assigned / choices[..., None]
    tokens = jnp.maximum(jnp.sum(statistics.tokens), 1.0)
    return {
        "router_load": load,
        "router_largest_load": jnp.max(load) * load.shape[-1],
        "router_entropy": jnp.sum(statistics.entropy) / tokens,
        "router_dropped": jnp.sum(statistics.dropped) / jnp.sum(choices),
    }


def selection_biases(names: Iterable[str]) -> list[str]:
    """The names of selection biases among those of parameters, in the order of their layers."""
    found = [name for name in names if name == SELECTION_BIAS or name.endswith("/" + SELECTION_BIAS)]
    return sorted(found, key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


def balanced_biases(
    biases: Mapping[str, Float32[Array, "..."]], assigned: Float32[Array, "layers E"], rate: float
) -> dict[str, Float32[Array, "..."]]:
    """bias + rate * sign(mean load - load) of every expert (Wang et al., arXiv 2408.15664; DeepSeek-V3, section 2.1.2).

    `biases` are those of all sparse layers, in order: of one layer [E], or of scanned layers [units, E]; then unit u of
    bias i is layer u * len(biases) + i.
    """
    step = rate * jnp.sign(jnp.mean(assigned, axis=-1, keepdims=True) - assigned)
    count = len(biases)
    return {
        name: bias + (step[index] if bias.ndim == 1 else step[index::count]).astype(bias.dtype)
        for index, (name, bias) in enumerate(biases.items())
    }
