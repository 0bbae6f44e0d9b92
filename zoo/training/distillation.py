"""Distillation: a student learns the distribution of a teacher, both heads in the same chunks of the sequence.

    minimised = (1 - h) * D + h * L_S + z_S [+ L_T + z_T]
    D   = t**2 * sum w * sum_v -P_T(v) log P_S(v),    P = softmax(logits / t)    (with t = 1: Gemma 2, arXiv 2408.00118)
    or    t**2 * sum w * sum_v P_S(v) (log P_S(v) - log P_T(v)), the reverse KL    (MiniLLM, arXiv 2306.08543)
    or    t**2 * sum w * (b KL(P_T || M) + (1 - b) KL(P_S || M)),  M = b P_T + (1 - b) P_S    (GKD, arXiv 2306.13649)
    L   = sum w * -log P(target) at t = 1, on real labels;    z = sum w * coefficient * logsumexp(logits)**2

Nothing of D reaches the teacher. The part in brackets trains it in the same pass: then the student follows a teacher
that learns from the same batch ("online distilled": Gemini 1.5, arXiv 2403.05530). The logits of both, two [B, T, V]
arrays, exist for one chunk of positions at a time, as in `zoo.training.losses`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from zoo.parallel import divided, enter_sublayer, gather, spmd, sum_over, sum_scatter
from zoo.training.losses import default_chunk_length
from zoo.training.output_head import (
    HeadSettings,
    added,
    chunk_losses,
    float32_product,
    is_target,
    join_sequence,
    split_sequence,
    through_cap,
)

Kind = Literal["forward", "reverse", "jensen_shannon"]
"""Which D is minimised: cross-entropy with the teacher's distribution, whose gradient is that of KL(P_T || P_S);
KL(P_S || P_T); or the generalised Jensen-Shannon divergence."""


class DistillationSums(NamedTuple):
    """Sums over the tokens of a batch; gradients pass through `minimised` alone."""

    minimised: Float32[Array, ""]
    """What gradients are taken of; the formula is above."""
    distillation: Float32[Array, ""]
    """D, in nats; of the forward kind with the teacher's own entropy, which has no gradient."""
    student_loss: Float32[Array, ""]
    """L_S: the student's cross-entropy with the real labels, in nats."""
    student_z_loss: Float32[Array, ""]
    """z_S."""
    teacher_loss: Float32[Array, ""]
    """L_T, in nats, whether it is minimised or not."""
    weight: Float32[Array, ""]
    """Sum of the weights."""


def chunked_distillation(
    student_hidden: Float[Array, "B T D"],
    student_embedding: Float[Array, "V D"],
    teacher_hidden: Float[Array, "B T E"],
    teacher_embedding: Float[Array, "V E"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    student_soft_cap: float | None = None,
    teacher_soft_cap: float | None = None,
    kind: Kind = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    hard_label_weight: float = 0.0,
    z_loss: float = 0.0,
    train_teacher: bool = False,
    chunk_length: int | None = None,
) -> DistillationSums:
    """The sums of this module's formula, in float32 whatever the inputs' dtype.

    Args:
        student_hidden: after the final norm; logits are c * tanh(h . E^T / c) with the soft-cap c of each side.
        student_embedding: the student's output head; both models have the same vocabulary.
        teacher_hidden: of the same tokens.
        teacher_embedding: the teacher's output head.
        targets: real labels; that of a token of weight 0 may be any number in [0, V).
        weights: of the tokens.
        student_soft_cap: c of the student, None for none.
        teacher_soft_cap: c of the teacher, None for none.
        kind: which D. By the student's logits under the soft-cap the gradients of "forward" and "reverse" are
            t * w * (P_S - P_T) and t * w * P_S * (log P_S - log P_T - KL(P_S || P_T)); of "jensen_shannon"
            t * w * (1 - b) * P_S * (log P_S - log M - KL(P_S || M)).
        temperature: t; with its square gradients have the size that they have at 1 (Hinton et al., arXiv 1503.02531).
        beta: b of the Jensen-Shannon divergence, the teacher's part of M, between 0 and 1.
        hard_label_weight: h, in 0 .. 1.
        z_loss: coefficient of both z.
        train_teacher: whether L_T + z_T is minimised as well; otherwise the teacher's arrays get no gradient.
        chunk_length: positions of a row that have logits at once; None: about as many bytes as for one model.

    One pass gives sums and all gradients: three matrix products for a model that is trained, one for one that is not.
    Traced inside `activation_sharding` it divides tokens and vocabulary as `chunked_cross_entropy` does.
    """
    batch_size, length, _ = student_hidden.shape
    if student_embedding.shape[0] != teacher_embedding.shape[0]:
        words = f"{student_embedding.shape[0]} and {teacher_embedding.shape[0]} words"
        raise ValueError(f"student and teacher must have the same vocabulary, not {words}")
    if chunk_length is not None and chunk_length < 1:
        raise ValueError(f"chunk_length must be at least 1, not {chunk_length}")
    for name, soft_cap in (("student_soft_cap", student_soft_cap), ("teacher_soft_cap", teacher_soft_cap)):
        if soft_cap is not None and not soft_cap > 0:
            raise ValueError(f"{name} must be positive or None, not {soft_cap}")
    check_options(kind, temperature, hard_label_weight, beta)
    if not train_teacher:
        teacher_hidden, teacher_embedding = jax.lax.stop_gradient((teacher_hidden, teacher_embedding))
    weights = jax.lax.stop_gradient(weights.astype(jnp.float32))

    def sums(student_hidden, student_embedding, teacher_hidden, teacher_embedding, targets, weights):
        student_hidden, teacher_hidden = enter_sublayer(student_hidden), enter_sublayer(teacher_hidden)
        rows, positions, _ = student_hidden.shape
        parts = 1 if chunk_length is None else math.ceil(length / chunk_length)
        if chunk_length is None:  # the logits of two models
            parts = math.ceil(positions / default_chunk_length(2 * rows, positions, student_embedding.shape[0]))
        axes = (min(parts, positions), divided("vocab"), divided("embed"))
        settings = _Distillation(
            HeadSettings(student_soft_cap, z_loss, *axes),
            HeadSettings(teacher_soft_cap, z_loss, *axes),
            kind,
            beta,
            temperature,
            hard_label_weight,
            train_teacher,
        )
        heads = (student_hidden, student_embedding, teacher_hidden, teacher_embedding)
        tokens_of = divided("batch") + divided("length")
        return tuple(sum_over(value, tokens_of) for value in _sums(settings, heads, targets, weights))

    row, hidden, table = ("batch", "length"), ("batch", "residual_length", None), ("vocab", "embed")
    sizes = {"batch": batch_size, "length": length, "residual_length": length}
    with jax.named_scope("distillation"):
        minimised, distillation, student_loss, student_z_loss, teacher_loss = spmd(
            sums, (hidden, table, hidden, table, row, row), ((),) * 5, sizes
        )(student_hidden, student_embedding, teacher_hidden, teacher_embedding, targets, weights)
    return DistillationSums(
        minimised, distillation, student_loss, student_z_loss, teacher_loss, weight=jnp.sum(weights)
    )


def check_options(kind: Kind, temperature: float, hard_label_weight: float, beta: float = 0.5) -> None:
    """Raises ValueError for an unknown kind, a temperature that is not above 0, a weight outside of 0 .. 1, or a beta
    that is not between 0 and 1."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if not 0 <= hard_label_weight <= 1:
        raise ValueError(f"hard_label_weight must lie in 0 .. 1, not {hard_label_weight}")
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie between 0 and 1, not {beta}")


class _Distillation(NamedTuple):
    student: HeadSettings
    teacher: HeadSettings
    kind: Kind
    beta: float
    temperature: float
    hard_label_weight: float
    train_teacher: bool


_Heads = tuple[Array, Array, Array, Array]
"""Hidden states and table of the student, then of the teacher."""


def tempered(settings: HeadSettings, logits: Array, log_normalizer: Array, temperature: float) -> Array:
    """log softmax(logits / temperature); `log_normalizer` is that of temperature 1."""
    if temperature == 1:
        return logits - log_normalizer
    logits = logits / temperature
    largest = jnp.max(logits, axis=-1, keepdims=True)
    if settings.words:
        largest = jax.lax.pmax(largest, settings.words)
    total = sum_over(jnp.sum(jnp.exp(logits - largest), axis=-1, keepdims=True), settings.words)
    return logits - largest - jnp.log(total)


def log_mixed(log_student: Array, log_teacher: Array, beta: float) -> Array:
    """log M, M = beta * P_T + (1 - beta) * P_S."""
    return jnp.logaddexp(math.log(beta) + log_teacher, math.log1p(-beta) + log_student)


def _divergence(settings: _Distillation, log_student: Array, log_teacher: Array) -> tuple[Array, Callable[[], Array]]:
    """D [N] of distributions [N, V], without weights and t**2; and what gives its gradient [N, V] by the logits / t."""
    words = settings.student.words
    if settings.kind == "jensen_shannon":
        beta, log_mixture = settings.beta, log_mixed(log_student, log_teacher, settings.beta)
        ratio = log_student - log_mixture
        of_student = sum_over(jnp.sum(jnp.exp(log_student) * ratio, axis=-1), words)
        of_teacher = sum_over(jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_mixture), axis=-1), words)
        each = beta * of_teacher + (1 - beta) * of_student
        return each, lambda: (1 - beta) * jnp.exp(log_student) * (ratio - of_student[:, None])
    if settings.kind == "reverse":
        ratio = log_student - log_teacher
        kl = sum_over(jnp.sum(jnp.exp(log_student) * ratio, axis=-1), words)
        return kl, lambda: jnp.exp(log_student) * (ratio - kl[:, None])
    soft_targets = jnp.exp(log_teacher)
    each = sum_over(-jnp.sum(soft_targets * log_student, axis=-1), words)
    return each, lambda: jnp.exp(log_student) - soft_targets


def _chunk(settings: _Distillation, heads: _Heads, targets: Array, weights: Array):
    """Of tokens [N] in one chunk: the five sums, and the gradients [N, V] of `minimised` by the matrix products of the
    student and of the teacher (None where it is not trained)."""
    (loss_s, z_s), logits_s, normalizer_s, own = chunk_losses(settings.student, *heads[:2], targets, weights)
    (loss_t, z_t), logits_t, normalizer_t, _ = chunk_losses(settings.teacher, *heads[2:], targets, weights)
    hard, temperature = settings.hard_label_weight, settings.temperature
    log_student = tempered(settings.student, logits_s, normalizer_s, temperature)
    log_teacher = tempered(settings.teacher, logits_t, normalizer_t, temperature)
    each, gradient = _divergence(settings, log_student, log_teacher)
    distillation = temperature**2 * jnp.sum(weights * each)
    minimised = (1 - hard) * distillation + z_s + (hard * loss_s if hard else 0.0)
    gradient_s = (1 - hard) * temperature * gradient()
    if hard:
        gradient_s += hard * (jnp.exp(logits_s - normalizer_s) - is_target(logits_s, own))
    if settings.student.z_loss:
        gradient_s += jnp.exp(logits_s - normalizer_s) * (2 * settings.student.z_loss * normalizer_s)
    gradient_t = None
    if settings.train_teacher:
        minimised += loss_t + z_t
        scale = 1 + 2 * settings.teacher.z_loss * normalizer_t
        gradient_t = jnp.exp(logits_t - normalizer_t) * scale - is_target(logits_t, own)
        gradient_t = through_cap(settings.teacher, gradient_t, logits_t, weights)
    gradients = (through_cap(settings.student, gradient_s, logits_s, weights), gradient_t)
    return (minimised, distillation, loss_s, z_s, loss_t), gradients


def _whole(settings: _Distillation, heads: _Heads) -> _Heads:
    """With the tables' width gathered."""
    tables = (gather(table, settings.student.width, axis=1) for table in heads[1::2])
    return heads[0], next(tables), heads[2], next(tables)


_ZEROS = (0.0,) * 5


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(settings: _Distillation, heads: _Heads, targets: Array, weights: Array):
    """The five sums without gradients: one matrix product for each model."""
    hidden_s, table_s, hidden_t, table_t = _whole(settings, heads)

    def body(sums, chunk):
        hidden_s, hidden_t, targets, weights = chunk
        found, _ = _chunk(settings, (hidden_s, table_s, hidden_t, table_t), targets, weights)
        return added(sums, found), None

    chunks = [split_sequence(settings.student, array) for array in (hidden_s, hidden_t, targets, weights)]
    return jax.lax.scan(body, tuple(map(jnp.float32, _ZEROS)), chunks)[0]


def _sums_forward(settings: _Distillation, heads: _Heads, targets: Array, weights: Array):
    """The sums, and as residuals the gradients of `minimised` by the heads that are trained."""
    hidden_s, table_s, hidden_t, table_t = _whole(settings, heads)
    batch_size, length, _ = hidden_s.shape

    def gradients_of(gradient: Array, hidden: Array, table: Array, table_gradient: Array) -> tuple[Array, Array]:
        gradient = gradient.astype(hidden.dtype)
        table_gradient = table_gradient + float32_product(gradient, hidden, (0, 0))
        return float32_product(gradient, table, (1, 0)).astype(hidden.dtype), table_gradient

    def body(carry, chunk):
        sums, table_gradient_s, table_gradient_t = carry
        hidden_s, hidden_t, targets, weights = chunk
        found, (gradient_s, gradient_t) = _chunk(settings, (hidden_s, table_s, hidden_t, table_t), targets, weights)
        hidden_gradient_s, table_gradient_s = gradients_of(gradient_s, hidden_s, table_s, table_gradient_s)
        hidden_gradient_t = None
        if gradient_t is not None:
            hidden_gradient_t, table_gradient_t = gradients_of(gradient_t, hidden_t, table_t, table_gradient_t)
        return (added(sums, found), table_gradient_s, table_gradient_t), (hidden_gradient_s, hidden_gradient_t)

    zeros = (
        tuple(map(jnp.float32, _ZEROS)),
        jnp.zeros(table_s.shape, jnp.float32),
        jnp.zeros(table_t.shape, jnp.float32) if settings.train_teacher else None,
    )
    chunks = [split_sequence(settings.student, array) for array in (hidden_s, hidden_t, targets, weights)]
    (sums, *table_gradients), hidden_gradients = jax.lax.scan(body, zeros, chunks)
    table_gradients = [
        None if total is None else sum_scatter(total, settings.student.width, axis=1).astype(table.dtype)
        for total, table in zip(table_gradients, (table_s, table_t), strict=True)
    ]
    joined = [None if chunk is None else join_sequence(chunk, batch_size, length) for chunk in hidden_gradients]
    return sums, (joined[0], table_gradients[0], joined[1], table_gradients[1])


def _sums_backward(settings: _Distillation, residuals: tuple[Array | None, ...], cotangents: tuple[Array, ...]):
    # Devices that share the vocabulary have each one part of what reaches this sum, which they hold in common.
    scale = sum_over(cotangents[0], settings.student.words)
    heads = tuple(None if array is None else (scale * array).astype(array.dtype) for array in residuals)
    return heads, None, None


_sums.defvjp(_sums_forward, _sums_backward)
