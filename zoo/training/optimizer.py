"""AdamW or PSGD Kron with decoupled weight decay, learning-rate schedules, gradient clipping, frozen parameters."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from zoo.errors import UserError, nearest_name
from zoo.training.parameters import flatten_with_names, matching_names, nested_dict
from zoo.training.preconditioning import batched_parameters, scale_by_kron
from zoo.training.spikes import SpikeRule, new_statistics

OptimizerKind = Literal["adamw", "kron"]
Schedule = Literal["cosine", "wsd", "constant"]

SPIKES = "spikes"
"""Key of the statistics in the last element of the optimizer state, where spikes are looked for."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning-rate schedule."""

    kind: OptimizerKind = "adamw"
    """"adamw" (Loshchilov and Hutter, arXiv 1711.05101), or "kron": second-order, the momentum preconditioned by learnt
    Kronecker factors (zoo.training.preconditioning; needs the package rollfast)."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """After the warm-up: "cosine" to the final rate, "wsd" (stable, then decay: warm-up-stable-decay) or "constant"."""
    warmup_steps: int = 0
    """Steps of linear warm-up; the first step already has rate learning_rate / warmup_steps, not 0."""
    final_learning_rate_fraction: float = 0.1
    """The rate at the end of the schedule, as a fraction of the peak (not for "constant")."""
    decay_fraction: float = 0.2
    """The last part of all steps, in which "wsd" decays."""
    b1: float = 0.9
    """Decay of the mean of the gradients."""
    b2: float = 0.95
    """Decay of the mean of the squared gradients ("kron" has none)."""
    eps: float = 1e-8
    """Added to the root of the second moment ("kron" has none)."""
    weight_decay: float = 0.1
    """Every step multiplies the decayed parameters with 1 - rate * weight_decay (as torch.optim.AdamW)."""
    decay_all: bool = False
    """Decay norm scales and biases too; otherwise only matrices and embeddings."""
    clip_norm: float | None = 1.0
    """Gradients whose global norm is larger are scaled down to it; None or 0 is off."""
    accumulation_steps: int = 1
    """Micro-batches that a step's batch is split into; the gradient is that of the whole batch."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of the first moment; "bfloat16" saves 2 bytes per parameter."""
    kron_learning_rate: float = 0.1
    """Step size of the factors of "kron"."""
    kron_lowest_probability: float = 0.03
    """How often "kron" updates its factors after its first few thousand steps; at first it does so every step."""
    skip_spikes: float | None = None
    """Leave out a step whose loss or gradient norm lies so many standard deviations above the running mean, such as 6;
    None is off. See zoo.training.spikes."""
    spike_window: int = 128
    """Steps that the running mean looks back; nothing is left out during the first so many."""
    spike_limit: int = 10
    """More steps left out in a row than this stop the run."""

    def __post_init__(self) -> None:
        if self.schedule not in get_args(Schedule):
            raise UserError(f"schedule {self.schedule!r} is unknown; {nearest_name(self.schedule, get_args(Schedule))}")
        if self.mu_dtype not in ("float32", "bfloat16"):
            raise UserError(f"mu_dtype must be float32 or bfloat16, not {self.mu_dtype!r}")
        if self.kind not in get_args(OptimizerKind):
            raise UserError(f"kind {self.kind!r} is unknown; {nearest_name(self.kind, get_args(OptimizerKind))}")
        own = {"adamw": ("kron_learning_rate", "kron_lowest_probability"), "kron": ("b2", "eps")}[self.kind]
        for field in dataclasses.fields(self):
            if field.name in own and getattr(self, field.name) != field.default:
                raise UserError(f"optimizer.{field.name} has no meaning for optimizer.kind={self.kind}: leave it out")
        for name, low, high in (
            ("learning_rate", 0.0, 10.0),
            ("warmup_steps", 0, 10**9),
            ("final_learning_rate_fraction", 0.0, 1.0),
            ("decay_fraction", 0.0, 1.0),
            ("b1", 0.0, 1 - 1e-9),
            ("b2", 0.0, 1 - 1e-9),
            ("eps", 0.0, 1.0),
            ("weight_decay", 0.0, 10.0),
            ("clip_norm", 0.0, float("inf")),
            ("accumulation_steps", 1, 10**6),
            ("kron_learning_rate", 0.0, 1.0),
            ("kron_lowest_probability", 0.0, 1.0),
            ("skip_spikes", 0.1, 1000.0),
            ("spike_window", 2, 10**6),
            ("spike_limit", 1, 10**6),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # also refuses NaN
                raise UserError(f"{name} must be between {low:g} and {high:g}, not {value}")

    @property
    def spike_rule(self) -> SpikeRule | None:
        """When a step is left out; None for never."""
        return None if self.skip_spikes is None else SpikeRule(self.skip_spikes, self.spike_window)


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """The learning rate of step s = 0, 1, ..., steps - 1 of a run, as a function of an int or int32 array.

    warm-up:  peak * (s + 1) / warmup_steps             for s < warmup_steps
    cosine:   from peak at warmup_steps to final at steps, half a cosine
    wsd:      peak, then over the last decay_fraction * steps from peak to final as 1 - sqrt(progress), which beats a
              linear decay (Hägele et al., arXiv 2405.18392, section 4)
    """
    if steps < 1:
        raise UserError(f"steps must be at least 1, not {steps}")
    peak, final = config.learning_rate, config.final_learning_rate_fraction
    start = config.warmup_steps
    if config.schedule == "wsd":
        start = max(start, steps - round(config.decay_fraction * steps))

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(1.0, (step + 1) / max(1, config.warmup_steps))
        progress = jnp.clip((step - start) / max(1, steps - start), 0.0, 1.0)
        match config.schedule:
            case "cosine":
                remaining = 0.5 * (1 + jnp.cos(jnp.pi * progress))
            case "wsd":
                remaining = 1 - jnp.sqrt(progress)
            case "constant":
                remaining = jnp.ones_like(progress)
        return peak * warmup * (final + (1 - final) * remaining)

    return schedule


def is_decayed(name: str) -> bool:
    """Whether weight decay applies to the parameter called `name`: not to norm scales and biases, nor their changes.

    Decided by name, because the parameters of scanned layers have one axis more.
    """
    return not name.rsplit("/", 1)[-1].endswith(("scale", "bias", "scale_delta", "bias_delta"))


def make_optimizer(
    config: OptimizerConfig, steps: int, params: Any, frozen_patterns: Sequence[str] = ()
) -> optax.GradientTransformationExtraArgs:
    """The optimizer of `config`, for the parameters of a model (nnx.State or nested dictionary; shapes suffice).

    Parameters covered by a pattern (see `zoo.training.parameters.matches`) get update 0, no decay and no optimizer
    state, and do not count for the gradient norm that is clipped. The optimizer state holds nested dictionaries
    of the other parameters with string keys (`{"layers": {"0": ...}}`), whatever type `params` has. With
    `config.skip_spikes` its last element holds what `zoo.training.step` decides by; `update` hands it on.
    Raises UserError for a pattern that matches nothing, when nothing is left to train, and when a package is missing.
    """
    names = list(flatten_with_names(params))
    frozen = matching_names(names, frozen_patterns)
    trained = [name for name in names if name not in frozen]
    if not trained:
        raise UserError(f"--freeze {' '.join(frozen_patterns)} leaves no parameter to train")
    decayed = nested_dict({name: config.decay_all or is_decayed(name) for name in trained})
    schedule = make_schedule(config, steps)
    if config.kind == "kron":
        direction = scale_by_kron(
            b1=config.b1,
            mu_dtype=config.mu_dtype,
            learning_rate=config.kron_learning_rate,
            lowest_probability=config.kron_lowest_probability,
            batched=batched_parameters(params, trained),
        )
        decay = optax.add_decayed_weights(config.weight_decay, decayed)
        chosen = optax.chain(direction, decay, optax.scale_by_learning_rate(schedule))
    else:
        chosen = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
            mu_dtype=config.mu_dtype,
        )
    clipping = [clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
    inner = optax.chain(*clipping, chosen)

    def select(tree: Any) -> dict[str, Any]:
        named = flatten_with_names(tree)
        return nested_dict({name: named[name] for name in trained})

    # Behind the rest, so that no name in a checkpoint depends on whether spikes are looked for.
    watched = 0 if config.skip_spikes is None else 1

    def init(params: Any) -> optax.OptState:
        return inner.init(select(params)) + ({SPIKES: new_statistics()},) * watched

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, optax.OptState]:
        own, statistics = state[: len(state) - watched], state[len(state) - watched :]
        selected, own = inner.update(select(updates), own, select(params), **extra)
        state = own + statistics
        new = flatten_with_names(selected)
        leaves = [
            new[name] if name in new else jnp.zeros_like(leaf) for name, leaf in flatten_with_names(updates).items()
        ]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformationExtraArgs(init, update)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Multiplies the gradients with min(1, max_norm / norm). `update` takes the norm as `grad_norm` where it is known.

    optax.clip_by_global_norm divides every element, which XLA:CPU does in a pass of its own (a third of the update).
    """

    def update(
        updates: Any, state: optax.OptState, params: Any = None, *, grad_norm: Array | None = None, **_: Any
    ) -> tuple[Any, optax.OptState]:
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        factor = jnp.minimum(1.0, max_norm / norm)  # norm 0: inf, and so 1
        return jax.tree.map(lambda gradient: gradient * factor.astype(gradient.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
