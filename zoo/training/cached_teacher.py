"""The loss of a model that learns from a cache of a teacher (`zoo.training.top_k_distillation`)."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from zoo.data import Batch
from zoo.training.losses import LanguageModel, LossSums
from zoo.training.routing import router_losses
from zoo.training.teacher import DistillationConfig
from zoo.training.top_k_distillation import TopK, chunked_top_k_distillation, fewer


@dataclass(frozen=True)
class ScoredBatch(Batch):
    """Packed rows with what a teacher says of their next tokens."""

    teacher: Any = None
    """`TopK` with arrays [B, T, ...], always there."""


jax.tree_util.register_dataclass(
    ScoredBatch,
    data_fields=["tokens", "targets", "positions", "segment_ids", "loss_weights", "media", "teacher"],
    meta_fields=[],
)


def with_teacher(batch: Batch, teacher: TopK) -> ScoredBatch:
    """The batch with what a teacher says of its rows."""
    return ScoredBatch(**vars(batch), teacher=teacher)


def cached_teacher_loss(
    model: LanguageModel,
    batch: ScoredBatch,
    *,
    config: DistillationConfig,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
    rng: Any = None,
) -> LossSums:
    """The loss of a model that learns from a cache, for training; in validation it has `next_token_loss`.

    As of `fixed_teacher_loss` the value of `loss` is the model's cross-entropy with real labels and its gradient that
    of `TopKSums.minimised`. Metrics: `distillation_loss`, and `teacher_tail`, the probability that the teacher gives to
    words which are not kept.

    config: kind, temperature, the weight of real labels, and of how many words (`top_k`). z_loss, chunk_tokens, rng: as
    for `next_token_loss`.
    """
    inputs = {"positions": batch.positions, "segment_ids": batch.segment_ids, "media": batch.media}
    experts: Any = getattr(model.config, "experts", None)
    with jax.named_scope("student"):
        if experts is None:
            hidden, routing = model.hidden_states(batch.tokens, **inputs), None
        else:
            sparse: Any = model
            hidden, routing = sparse.hidden_and_routing(batch.tokens, **inputs, rng=rng)
    sums = chunked_top_k_distillation(
        hidden,
        model.output_embedding(),
        batch.teacher if config.top_k is None else fewer(batch.teacher, config.top_k),
        jnp.asarray(batch.targets),
        jnp.asarray(batch.loss_weights),
        soft_cap=model.config.final_logit_soft_cap,
        kind=config.kind,
        temperature=config.temperature,
        beta=config.beta,
        hard_label_weight=config.hard_label_weight,
        z_loss=z_loss,
        chunk_length=None if chunk_tokens is None else max(1, chunk_tokens // hidden.shape[0]),
    )
    values = jax.lax.stop_gradient(sums)
    found = LossSums(
        loss=values.student_loss + (sums.minimised - values.minimised),  # value and gradient are two things
        z_loss=values.student_z_loss,
        weight=values.weight,
        metrics={"distillation_loss": values.distillation, "teacher_tail": values.tail},
    )
    if routing is None:
        return found
    return found._replace(auxiliary=router_losses(routing, experts, found.weight), routing=routing)
