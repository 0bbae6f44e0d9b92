"""Losses of a model that has a teacher: one that stays as it is (Gemma 2, arXiv 2408.00118), or one that
is trained on the same batch (Gemini 1.5, arXiv 2403.05530)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt32

from zoo.errors import UserError
from zoo.training.distillation import Kind, chunked_distillation
from zoo.training.losses import LanguageModel, LossSums, next_token_loss
from zoo.training.parameters import flatten_with_names
from zoo.training.routing import router_losses

if TYPE_CHECKING:
    from zoo.data import Batch


@dataclass(frozen=True)
class DistillationConfig:
    """A fixed teacher, and how a model learns from it; the formulas are those of `zoo.training.distillation`."""

    teacher: str | None = None
    """Model to learn from: a run directory, one of its checkpoints, or a Hugging Face folder; `--teacher` is short for
    it. None: real labels only, or a cache."""
    kind: Kind = "forward"
    """"forward", cross-entropy with the teacher's distribution, "reverse", KL(student || teacher), or
    "jensen_shannon"."""
    temperature: float = 1.0
    """Both distributions are softmax(logits / temperature)."""
    hard_label_weight: float = 0.0
    """Part of the loss that is cross-entropy with real labels."""
    beta: float = 0.5
    """Of "jensen_shannon": the teacher's part of the mixture, between 0 and 1."""
    teacher_cache: str | None = None
    """What a teacher says of this run's batches, written by `zoo.score --top-k-logits`; `--teacher-cache` is short for
    it. Takes the place of `teacher`."""
    top_k: int | None = None
    """Words of a cache's distributions that are used, the most likely ones; None: all that it holds."""
    on_policy: float = 0.0
    """Part of the steps that learn from continuations which the model samples itself (GKD's lambda, 0 .. 1)."""
    prompt_tokens: int = 16
    """Most tokens of a batch's row that the model continues in such a step."""
    max_new_tokens: int = 48
    """Most tokens that it samples after them."""

    @property
    def learns(self) -> bool:
        """Whether there is a teacher, or a cache of one."""
        return self.teacher is not None or self.teacher_cache is not None

    def __post_init__(self):
        if not 0 < self.temperature <= 100:
            raise UserError(f"distillation.temperature must lie above 0 and be at most 100, got {self.temperature}")
        if not 0 <= self.hard_label_weight <= 1:
            raise UserError(f"distillation.hard_label_weight must lie in 0 .. 1, got {self.hard_label_weight}")
        if not 0 < self.beta < 1:
            raise UserError(f"distillation.beta must lie between 0 and 1, got {self.beta}")
        if self.beta != 0.5 and self.kind != "jensen_shannon":
            raise UserError(f"distillation.beta={self.beta} needs distillation.kind=jensen_shannon, got {self.kind}")
        if not 0 <= self.on_policy <= 1:
            raise UserError(f"distillation.on_policy must lie in 0 .. 1, got {self.on_policy}")
        for name in ("top_k", "prompt_tokens", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"distillation.{name} must be at least 1, got {value}")


def fixed_teacher_loss(
    model: LanguageModel,
    batch: Batch,
    *,
    teacher: Any,
    teacher_graphdef: nnx.GraphDef,
    config: DistillationConfig,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
    rng: Any = None,
) -> LossSums:
    """The loss of a model that learns from a fixed teacher, for training; in validation it has `next_token_loss`.

    Args:
        model: learns.
        batch: both models read it; it is there once.
        teacher: parameters of the teacher, which get no gradient; its sparse layers work as outside of training.
        teacher_graphdef: the rest of it.
        config: temperature and so on.
        z_loss, chunk_tokens, rng: as for `next_token_loss`.

    The value of `loss` is the model's cross-entropy with real labels, so that its curve can be compared with that of a
    run without a teacher; its gradient is that of `DistillationSums.minimised`. Metrics: `distillation_loss` and
    `teacher_loss`, the teacher's cross-entropy with real labels.
    """
    guide = nnx.merge(teacher_graphdef, jax.lax.stop_gradient(teacher))
    inputs = {"positions": batch.positions, "segment_ids": batch.segment_ids, "media": batch.media}
    experts: Any = getattr(model.config, "experts", None)
    with jax.named_scope("teacher"):
        teacher_hidden = guide.hidden_states(batch.tokens, **inputs)
    with jax.named_scope("student"):
        if experts is None:
            hidden, routing = model.hidden_states(batch.tokens, **inputs), None
        else:
            sparse: Any = model
            hidden, routing = sparse.hidden_and_routing(batch.tokens, **inputs, rng=rng)
    sums = distilled(
        model,
        hidden,
        guide,
        teacher_hidden,
        batch,
        kind=config.kind,
        beta=config.beta,
        temperature=config.temperature,
        hard_label_weight=config.hard_label_weight,
        z_loss=z_loss,
        chunk_tokens=chunk_tokens,
    )
    if routing is None:
        return sums
    return sums._replace(auxiliary=router_losses(routing, experts, sums.weight), routing=routing)


class Pair(Protocol):
    """What `online_distillation_loss` asks of a model: a teacher and a student, and how they go together."""

    @property
    def config(self) -> Any:
        """With `temperature` and `hard_label_weight`."""

    @property
    def teacher(self) -> Any:
        """A language model as for `next_token_loss`."""

    @property
    def student(self) -> Any:
        """The same; dense."""


def online_distillation_loss(
    model: Pair, batch: Batch, *, z_loss: float = 0.0, chunk_tokens: int | None = None, rng: Any = None
) -> LossSums:
    """Teacher and student trained on one batch; without `rng` (validation), the student's loss on real labels.

    The value of `loss` is always the student's cross-entropy with real labels, so that curves can be compared with
    those of a model that has no teacher. In training its gradient is that of `DistillationSums.minimised`, and
    `auxiliary` has the losses of the teacher's routers. Metrics: `teacher_loss`, and in training `distillation_loss`.

    `z_loss` and `chunk_tokens` as for `next_token_loss`.
    """
    if rng is None:
        options: Any = {"z_loss": z_loss, "chunk_tokens": chunk_tokens}
        teacher_loss = next_token_loss(model.teacher, batch, **options).loss
        return next_token_loss(model.student, batch, **options)._replace(metrics={"teacher_loss": teacher_loss})
    student, teacher = model.student, model.teacher
    inputs = {"positions": batch.positions, "segment_ids": batch.segment_ids, "media": batch.media}
    experts: Any = getattr(teacher.config, "experts", None)
    with jax.named_scope("teacher"):
        if experts is None:
            teacher_hidden, routing = teacher.hidden_states(batch.tokens, **inputs), None
        else:
            teacher_hidden, routing = teacher.hidden_and_routing(batch.tokens, **inputs, rng=rng)
    with jax.named_scope("student"):
        student_hidden = student.hidden_states(batch.tokens, **inputs)
    sums = distilled(
        student,
        student_hidden,
        teacher,
        teacher_hidden,
        batch,
        temperature=model.config.temperature,
        hard_label_weight=model.config.hard_label_weight,
        z_loss=z_loss,
        train_teacher=True,
        chunk_tokens=chunk_tokens,
    )
    if routing is None:
        return sums
    return sums._replace(auxiliary=router_losses(routing, experts, sums.weight), routing=routing)


def distilled(
    student: LanguageModel,
    student_hidden: Float[Array, "B T D"],
    teacher: LanguageModel,
    teacher_hidden: Float[Array, "B T E"],
    batch: Batch,
    *,
    chunk_tokens: int | None,
    **options: Any,
) -> LossSums:
    """`chunked_distillation` of two models' hidden states of a batch as a loss: the value of `loss` is the student's
    cross-entropy with real labels, its gradient that of `minimised`. Metrics: `teacher_loss`, `distillation_loss`.

    chunk_tokens: as for `next_token_loss`. options: those of `chunked_distillation`, but for soft-caps and chunks.
    """
    sums = chunked_distillation(
        student_hidden,
        student.output_embedding(),
        teacher_hidden,
        teacher.output_embedding(),
        jnp.asarray(batch.targets),
        jnp.asarray(batch.loss_weights),
        student_soft_cap=student.config.final_logit_soft_cap,
        teacher_soft_cap=teacher.config.final_logit_soft_cap,
        chunk_length=None if chunk_tokens is None else max(1, chunk_tokens // student_hidden.shape[0]),
        **options,
    )
    values = jax.lax.stop_gradient(sums)
    return LossSums(
        loss=values.student_loss + (sums.minimised - values.minimised),  # value and gradient are two things
        z_loss=values.student_z_loss,
        weight=values.weight,
        metrics={"teacher_loss": values.teacher_loss, "distillation_loss": values.distillation},
    )


def weights_fingerprint(params: Any) -> str:
    """SHA-256 over names, shapes and dtypes of parameters and, of each, the sum of a hash of every value's bits and its
    place (modulo 2**32, hence the same on any mesh). Against accidents, not against an adversary."""
    named = flatten_with_names(params)
    leaves = list(named.values())
    where = leaves[0].sharding
    everywhere = NamedSharding(where.mesh, PartitionSpec()) if isinstance(where, NamedSharding) else where
    sums = np.asarray(jax.jit(bit_sums, out_shardings=everywhere)(leaves))
    shapes = [f"{name} {leaf.dtype}{leaf.shape}" for name, leaf in named.items()]
    return hashlib.sha256("\n".join(shapes).encode() + sums.astype("<u4").tobytes()).hexdigest()


def bit_sums(leaves: list[Array]) -> UInt32[Array, "leaves"]:
    def one(leaf: Array) -> Array:
        unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, unsigned).astype(jnp.uint32)
        place = jnp.zeros(leaf.shape, jnp.uint32)
        for axis in range(leaf.ndim):
            place = place * jnp.uint32(1_000_003) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        mixed = bits + jnp.uint32(0x9E3779B9) * place
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's finalizer
            mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(factor)
        return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)

    return jnp.stack([one(leaf) for leaf in leaves])
