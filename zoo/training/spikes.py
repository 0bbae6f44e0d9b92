"""Loss spikes: a step whose loss or gradient norm stands out from the steps before it is left out.

A step is a spike if, for x its loss or its gradient norm before clipping,

    x > mean + deviations * standard deviation

where mean and variance are exponentially weighted over the steps that were applied (`window` steps back), as
`SkipStepOptimizer` of OLMo-core does with a rolling window; PaLM (arXiv 2204.02311, section 5.1) left out some hundred
batches around each spike by hand. Nothing is a spike during the first `window` steps. Only the upper side counts: a
loss that falls fast is none.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool

Statistics = dict[str, Array]

WATCHED = ("loss", "grad_norm")


@dataclass(frozen=True)
class SpikeRule:
    """When a step is left out."""

    deviations: float
    """Standard deviations above the mean."""
    window: int
    """Steps that mean and variance look back."""


def new_statistics() -> Statistics:
    """Before the first step; all zeros, so that a run may begin to look for spikes at any time."""
    floats = {f"{name}_{what}": jnp.zeros((), jnp.float32) for name in WATCHED for what in ("mean", "variance")}
    return floats | {name: jnp.zeros((), jnp.int32) for name in ("count", "skipped", "skipped_in_a_row")}


def judge(
    rule: SpikeRule, statistics: Statistics, values: dict[str, Array], finite: Bool[Array, ""]
) -> tuple[Bool[Array, ""], Statistics, dict[str, Array]]:
    """(whether this step is a spike, the statistics after it, metrics).

    Args:
        rule: when it is one.
        statistics: after the step before.
        values: loss and grad_norm of this step, float32 scalars.
        finite: False leaves the statistics as they are.

    The metrics: skipped (0 or 1) and skipped_in_a_row (int32); loss_limit and grad_norm_limit, what this step was
    compared with (inf in the first `window` steps).
    """
    warm = statistics["count"] >= rule.window
    limits = {
        name: jnp.where(
            warm, statistics[f"{name}_mean"] + rule.deviations * jnp.sqrt(statistics[f"{name}_variance"]), jnp.inf
        )
        for name in WATCHED
    }
    spike = jnp.any(jnp.stack([values[name] > limits[name] for name in WATCHED])) & finite
    # The first steps get equal weights, so that no zero from the beginning remains in the mean.
    weight = 1.0 / jnp.minimum(statistics["count"] + 1, rule.window).astype(jnp.float32)
    after = {"count": statistics["count"] + 1, "skipped": statistics["skipped"]}
    for name in WATCHED:
        distance = values[name] - statistics[f"{name}_mean"]
        after[f"{name}_mean"] = statistics[f"{name}_mean"] + weight * distance
        after[f"{name}_variance"] = (1 - weight) * (statistics[f"{name}_variance"] + weight * jnp.square(distance))
    after["skipped_in_a_row"] = jnp.zeros((), jnp.int32)
    if_spike = statistics | {name: statistics[name] + 1 for name in ("skipped", "skipped_in_a_row")}
    chosen = {name: jnp.where(spike, if_spike[name], after[name]) for name in statistics}
    new = {name: jnp.where(finite, chosen[name], statistics[name]) for name in statistics}
    metrics = {"skipped": spike.astype(jnp.int32), "skipped_in_a_row": new["skipped_in_a_row"]}
    return spike, new, metrics | {f"{name}_limit": limits[name] for name in WATCHED}
