"""Policy gradient on a model's own samples, with a baseline from the other samples of the prompt and a KL penalty.

Each of N = P * K sequences, K for each of P prompts, has a reward r and, for each of its sampled tokens, the log-ratio
d_t = log p(y_t) - log p_ref(y_t) to a reference that stays as it is. With every update on fresh samples, the gradient
of

    J = mean_n r_n - beta KL(p || p_ref)

is -1 times that of sum_nt -A_nt log p(y_nt) / N, a cross-entropy with the advantages as weights. Those are

    "reward"   A_t = r - beta sum_{s >= t} d_s - b,   b = mean of (r - beta sum_s d_s) over the K - 1 other samples
    "k2"       A_t = r - b - beta d_t,                b = mean of r over the others
    "k3"       A_t = r - b - beta (1 - exp(-d_t))

The first is REINFORCE with the leave-one-out baseline, RLOO (arXiv 2402.14740), whose KL penalty is a part of the
reward; of that, what was paid before a token does not depend on it and is left out. The other two add the gradient of
an estimator of the KL at each token: d**2 / 2, whose gradient is that of the KL of the token's distribution, or
exp(-d) - 1 + d (arXiv 2402.03300, eq. 4). "k1", "k2", "k3" are Schulman's names (joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from zoo.errors import UserError, nearest_name
from zoo.training.log_probabilities import read_batch
from zoo.training.losses import LanguageModel, LossSums, chunked_cross_entropy
from zoo.training.routing import router_losses

if TYPE_CHECKING:
    from zoo.data import Batch

Penalty = Literal["reward", "k2", "k3"]


@dataclass(frozen=True)
class PolicyGradientConfig:
    """How a model learns from rewards of its own answers; the formulas are those of `zoo.training.policy_gradient`."""

    reward: Literal["exact", "number", "pattern", "model"] = "exact"
    """exact: 1 if the answer is the reference answer, else 0. number: 1 if its last number is. pattern: 1 if all of it
    matches the reference, a regular expression. model: what `reward_model` says. Of the first three, an answer that
    does not end within `max_new_tokens` has 0."""
    reward_model: str | None = None
    """Run of a reward model, for the reward "model"."""
    unfinished_reward: float | None = None
    """With the reward "model", what an answer is worth that does not end within `max_new_tokens`: the reward model has
    seen none, and a policy finds out what it says of them. None: what it says."""
    samples_per_prompt: int = 8
    """K; the rows of a step are data.batch_size * K."""
    max_new_tokens: int = 64
    """Longest answer, its end included."""
    kl_coefficient: float = 0.05
    """beta; with 0 there is no reference."""
    kl_penalty: Penalty = "reward"
    """"reward", "k2" or "k3": where the KL to the reference enters."""
    reference: str | None = None
    """Checkpoint that stays as it is; None: `init_from`."""

    def __post_init__(self):
        kinds = ("exact", "number", "pattern", "model")
        if self.reward not in kinds:
            raise UserError(f"policy.reward {self.reward!r} is unknown; {nearest_name(self.reward, kinds)}")
        if self.kl_penalty not in get_args(Penalty):
            raise UserError(
                f"policy.kl_penalty {self.kl_penalty!r} is unknown; {nearest_name(self.kl_penalty, get_args(Penalty))}"
            )
        if (self.reward == "model") != (self.reward_model is not None):
            raise UserError("policy.reward=model and policy.reward_model=RUN belong together: give both or neither")
        if self.unfinished_reward is not None and self.reward != "model":
            raise UserError(
                f"policy.unfinished_reward={self.unfinished_reward} is for policy.reward=model: with "
                f"{self.reward!r} an answer that does not end has 0; leave it out"
            )
        if self.unfinished_reward is not None and not math.isfinite(self.unfinished_reward):
            raise UserError(f"policy.unfinished_reward must be a finite number, got {self.unfinished_reward}")
        if not 2 <= self.samples_per_prompt <= 4096:
            raise UserError(
                f"policy.samples_per_prompt must lie in 2 .. 4096, got {self.samples_per_prompt}: the baseline of a "
                "sample is the mean of the others"
            )
        if not 1 <= self.max_new_tokens <= 2**20:
            raise UserError(f"policy.max_new_tokens must lie in 1 .. {2**20}, got {self.max_new_tokens}")
        if not 0 <= self.kl_coefficient <= 100:
            raise UserError(f"policy.kl_coefficient must lie in 0 .. 100, got {self.kl_coefficient}")
        if self.reference is not None and not self.kl_coefficient:
            raise UserError("policy.reference has no meaning with policy.kl_coefficient=0: leave it out")


class KLEstimates(NamedTuple):
    """Estimates of KL(p || p_ref) from samples of p; the mean of each is an estimate."""

    k1: Float[Array, "..."]
    """d: unbiased, of either sign."""
    k2: Float[Array, "..."]
    """d**2 / 2: biased, little variance."""
    k3: Float[Array, "..."]
    """exp(-d) - 1 + d: unbiased, never negative."""


def kl_estimates(log_ratios: Float[Array, "..."]) -> KLEstimates:
    """The estimates of log-ratios d = log p - log p_ref of tokens that were drawn from p."""
    return KLEstimates(log_ratios, jnp.square(log_ratios) / 2, jnp.expm1(-log_ratios) + log_ratios)


def token_advantages(
    rewards: Float[Array, "N"],
    log_ratios: Float[Array, "N T"],
    mask: Float[Array, "N T"],
    *,
    samples_per_prompt: int,
    kl_coefficient: float,
    kl_penalty: Penalty = "reward",
) -> Float32[Array, "N T"]:
    """A [N, T] of this module's formulas; 0 where the mask (1 = sampled token) is 0. The samples of a prompt are K
    neighbouring rows."""
    penalties = kl_coefficient * mask * log_ratios
    in_reward = kl_penalty == "reward"
    returns = rewards - jnp.sum(penalties, axis=1) if in_reward else rewards
    groups = returns.reshape(-1, samples_per_prompt)
    others = (jnp.sum(groups, axis=1, keepdims=True) - groups) / (samples_per_prompt - 1)
    advantages = (rewards - others.reshape(-1))[:, None]
    if in_reward:
        advantages = advantages - jnp.cumsum(penalties[:, ::-1], axis=1)[:, ::-1]
    elif kl_penalty == "k2":
        advantages = advantages - penalties
    else:
        advantages = advantages + kl_coefficient * mask * jnp.expm1(-log_ratios)
    return mask * advantages


def policy_gradient_loss(
    model: LanguageModel, batch: Batch, *, chunk_tokens: int | None = None, rng: Any = None
) -> LossSums:
    """sum_nt -A_nt log p(y_nt); `weight` is the number of sequences, so that the gradient per weight is that of -J.

    Args:
        model: the policy that the samples were drawn from.
        batch: a sequence a row; its `loss_weights` are the advantages A.
        chunk_tokens, rng: as for `next_token_loss`.

    The value says little: its gradient counts. How good the samples are stands in the metrics of the step.
    """
    hidden, routing = read_batch(model, batch, rng)
    sums = chunked_cross_entropy(
        hidden,
        model.output_embedding(),
        jnp.asarray(batch.targets),
        jnp.asarray(batch.loss_weights),
        soft_cap=model.config.final_logit_soft_cap,
        chunk_length=None if chunk_tokens is None else max(1, chunk_tokens // hidden.shape[0]),
    )
    rows = jnp.sum(jnp.any(jnp.asarray(batch.segment_ids) > 0, axis=1), dtype=jnp.float32)
    sums = sums._replace(weight=rows)
    if routing is None:
        return sums
    experts: Any = getattr(model.config, "experts", None)
    return sums._replace(auxiliary=router_losses(routing, experts, rows), routing=routing)
