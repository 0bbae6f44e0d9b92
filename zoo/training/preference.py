"""Losses on pairs of answers, one of which is preferred: DPO, IPO, and the reward model of Bradley and Terry.

    m_k   = R(chosen_k) - R(rejected_k),   R(y) = sum_t log p(y_t) - log p_ref(y_t)      over the tokens of the answer
    DPO   = -(1 - e) log sigmoid(beta m) - e log sigmoid(-beta m)     (arXiv 2305.18290, eq. 7; e > 0: "conservative")
    IPO   = (m - 1 / (2 beta))**2                                     (arXiv 2310.12036, eq. 17)
    Bradley-Terry = -log sigmoid(r(chosen_k) - r(rejected_k))         (arXiv 2203.02155, eq. 1)

With `length_normalised`, R is divided by the number of tokens of its answer (arXiv 2411.15124, section 5.1). The pairs
of a row are its segments 2k - 1 (chosen) and 2k (rejected), see `zoo.data.preferences`. Sums over a pair are running
sums that begin anew with each pair and are read at its last token: no scatter, whose order is not fixed on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from zoo.errors import UserError, nearest_name
from zoo.training.log_probabilities import batch_log_probabilities
from zoo.training.losses import LanguageModel, LossSums
from zoo.training.routing import router_losses

if TYPE_CHECKING:
    from zoo.data import Batch

PreferenceKind = Literal["dpo", "ipo"]


@dataclass(frozen=True)
class PreferenceConfig:
    """How a model learns from pairs of answers; the formulas are those of `zoo.training.preference`."""

    kind: PreferenceKind = "dpo"
    """"dpo" or "ipo"."""
    beta: float = 0.1
    """How much a difference of log-probabilities counts; the strength of the pull towards the reference."""
    label_smoothing: float = 0.0
    """e, the assumed share of pairs whose order is wrong ("dpo" only); below 0.5."""
    length_normalised: bool = False
    """Divide the log-probability of an answer by its number of tokens."""
    chosen_weight: float = 0.0
    """Coefficient of the chosen answers' cross-entropy per token, which is added; DPO alone often lowers their
    probability, only less than that of the rejected ones (arXiv 2404.19733)."""
    reference: str | None = None
    """Checkpoint that stays as it is; None: `init_from`. No part of the training of a reward model."""
    centering: float = 0.0
    """Of a reward model: coefficient of (r(chosen) + r(rejected))**2, which fixes the free constant in r
    (arXiv 2312.09244)."""

    def __post_init__(self):
        if self.kind not in get_args(PreferenceKind):
            raise UserError(f"preference.kind {self.kind!r} is unknown; {nearest_name(self.kind, ('dpo', 'ipo'))}")
        if not 0 < self.beta <= 100:
            raise UserError(f"preference.beta must lie above 0 and be at most 100, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(f"preference.label_smoothing must be at least 0 and below 0.5, got {self.label_smoothing}")
        if self.kind == "ipo" and self.label_smoothing:
            raise UserError("preference.label_smoothing has no meaning for preference.kind=ipo: leave it out")
        for name in ("chosen_weight", "centering"):
            if not 0 <= getattr(self, name) <= 100:
                raise UserError(f"preference.{name} must lie in 0 .. 100, got {getattr(self, name)}")


def preference_loss(
    model: LanguageModel,
    batch: Batch,
    *,
    teacher: Any,
    teacher_graphdef: nnx.GraphDef,
    config: PreferenceConfig,
    chunk_tokens: int | None = None,
    rng: Any = None,
) -> LossSums:
    """The sum of this module's DPO or IPO over the pairs of a batch; `weight` is their number.

    Args:
        model: the policy.
        batch: pairs, as `zoo.data.preferences` lays them.
        teacher: parameters of the reference, which get no gradient. The step hands them on under this name.
        teacher_graphdef: the rest of it.
        config: which loss.
        chunk_tokens, rng: as for `next_token_loss`.

    Metrics, means over pairs: preference_accuracy (m > 0), margin (beta m), chosen_reward and rejected_reward
    (beta R). `auxiliary` has chosen_cross_entropy, times its coefficient, where that is not 0.
    """
    reference = nnx.merge(teacher_graphdef, jax.lax.stop_gradient(teacher))
    with jax.named_scope("reference"):
        fixed, _ = batch_log_probabilities(reference, batch, chunk_tokens=chunk_tokens)
    with jax.named_scope("policy"):
        found, routing = batch_log_probabilities(model, batch, chunk_tokens=chunk_tokens, rng=rng)
    weights, segments = jnp.asarray(batch.loss_weights), jnp.asarray(batch.segment_ids)
    ends = last_of_pair(segments)
    counts = jnp.maximum(pair_totals(weights, segments), 1.0)
    log_ratios = pair_totals(weights * (found - jax.lax.stop_gradient(fixed)), segments)
    if config.length_normalised:
        log_ratios = log_ratios / counts
    rewards = config.beta * log_ratios
    margin = rewards[..., 0] - rewards[..., 1]
    if config.kind == "ipo":
        losses = jnp.square(margin / config.beta - 1 / (2 * config.beta))
    else:
        smoothing = config.label_smoothing
        losses = (1 - smoothing) * jax.nn.softplus(-margin) + smoothing * jax.nn.softplus(margin)
    sums = _sums(losses, margin, ends, {"chosen_reward": rewards[..., 0], "rejected_reward": rewards[..., 1]})
    auxiliary = {}
    if config.chosen_weight:
        chosen = -pair_totals(weights * found, segments)[..., 0] / counts[..., 0]
        auxiliary["chosen_cross_entropy"] = config.chosen_weight * _at(ends, chosen)
    if routing is not None:
        experts: Any = getattr(model.config, "experts", None)
        auxiliary |= router_losses(routing, experts, sums.weight)
    return sums._replace(auxiliary=auxiliary, routing=routing)


class RewardModelLike(Protocol):
    """What the loss asks of a reward model (`zoo.models.RewardModel`)."""

    def __call__(self, tokens: Any, *, positions: Any, segment_ids: Any) -> Any:
        """Tokens [B, T] to float32 [B, T], the reward of what stands in the segment up to each token."""


def reward_model_loss(model: RewardModelLike, batch: Batch, *, config: PreferenceConfig, rng: Any = None) -> LossSums:
    """The sum of this module's Bradley-Terry loss over the pairs of a batch; `weight` is their number. A reward is read
    at the last token of its segment, the <end_of_turn> of the answer.

    Metrics, means over pairs: preference_accuracy, margin, chosen_reward and rejected_reward. `auxiliary` has
    centering, times its coefficient, where that is not 0. `rng` is not used.
    """
    segments = jnp.asarray(batch.segment_ids)
    values = model(batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids)
    rewards = pair_totals(jnp.where(_last_of_run(segments), values, 0.0), segments)
    ends, margin = last_of_pair(segments), rewards[..., 0] - rewards[..., 1]
    parts = {"chosen_reward": rewards[..., 0], "rejected_reward": rewards[..., 1]}
    sums = _sums(jax.nn.softplus(-margin), margin, ends, parts)
    if not config.centering:
        return sums
    return sums._replace(auxiliary={"centering": config.centering * _at(ends, jnp.square(jnp.sum(rewards, axis=-1)))})


def pair_totals(values: Float[Array, "B T"], segment_ids: Int[Array, "B T"]) -> Float[Array, "B T 2"]:
    """Running sums of the values of each token's pair, apart for its chosen and its rejected segment: at the last token
    of a pair (`last_of_pair`) they are the pair's sums."""
    pairs = (segment_ids + 1) // 2
    begins = pairs != jnp.pad(pairs, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    sides = jnp.stack([segment_ids % 2 == 1, segment_ids % 2 == 0], axis=-1)

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return jnp.where(right[1], right[0], left[0] + right[0]), left[1] | right[1]

    given = (jnp.where(sides, values[..., None], 0.0), begins[..., None])
    return jax.lax.associative_scan(combine, given, axis=1)[0]


def last_of_pair(segment_ids: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Where the last token of a pair stands."""
    return _last_of_run((segment_ids + 1) // 2)


def _last_of_run(numbers: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """Where the next token has another number, or there is none; nowhere in padding, which is 0."""
    following = jnp.pad(numbers, ((0, 0), (0, 1)), constant_values=-1)[:, 1:]
    return (numbers != following) & (numbers > 0)


def _at(ends: Bool[Array, "B T"], values: Float[Array, "B T"]) -> Float32[Array, ""]:
    return jnp.sum(jnp.where(ends, values, 0.0))


def _sums(losses: Array, margin: Array, ends: Bool[Array, "B T"], parts: dict[str, Array]) -> LossSums:
    named = {"preference_accuracy": (margin > 0).astype(jnp.float32), "margin": margin, **parts}
    return LossSums(
        loss=_at(ends, losses),
        z_loss=jnp.zeros((), jnp.float32),
        weight=jnp.sum(ends, dtype=jnp.float32),
        metrics={name: jax.lax.stop_gradient(_at(ends, values)) for name, values in named.items()},
    )
