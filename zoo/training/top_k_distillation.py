"""Distillation from what was kept of a teacher's distribution: its K largest probabilities, and what is left.

The outcomes are the K words that were kept, and "any other word", the tail:

    D = t**2 * sum w * d,   P = softmax(logits / t),   P(tail) = 1 - sum of P over the K words, of both models

    forward   d = -sum_k P_T(k) log P_S(k) - P_T(tail) log P_S(tail)
    reverse   d =  sum_k P_S(k) log (P_S(k) / P_T(k)) + P_S(tail) log (P_S(tail) / P_T(tail))
    jensen_shannon   d = b KL(P_T || M) + (1 - b) KL(P_S || M),   M = b P_T + (1 - b) P_S, of the K + 1 outcomes

Their gradients by logits / t are those of `zoo.training.distillation` for a teacher that divides its tail as the
student does, Q(v) = P_T(v) for the K words and P_S(v) * P_T(tail) / P_S(tail) for others: P_S - Q,
P_S(v) * (log P_S(v) - log Q(v) - d), and of Jensen-Shannon the same as there. Nothing is said about how the tail is
divided, and with K = V nothing is left out. A tail that was dropped, with the K words scaled up to 1, would teach the
student to give other words no probability.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from zoo.parallel import divided, enter_sublayer, gather, spmd, sum_over, sum_scatter
from zoo.training.distillation import Kind, check_options, log_mixed, tempered
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

_NOT_KEPT = 1.0  # no log-probability


class TopK(NamedTuple):
    """A teacher's distribution of each next token, at a temperature."""

    log_probabilities: Float[Array, "B T K"]
    """Of the K most likely words; float16 will do, they are normalised again together with the tail."""
    ids: Int[Array, "B T K"]
    """Which words these are."""
    log_tail: Float32[Array, "B T"]
    """Log of the probability of all others together; -inf if there are none."""


class TopKSums(NamedTuple):
    """Sums over the tokens of a batch; gradients pass through `minimised` alone."""

    minimised: Float32[Array, ""]
    """(1 - h) * D + h * L_S + z_S, the last two as in `zoo.training.distillation`."""
    distillation: Float32[Array, ""]
    """D, in nats."""
    student_loss: Float32[Array, ""]
    """L_S: cross-entropy with the real labels, in nats."""
    student_z_loss: Float32[Array, ""]
    """z_S."""
    tail: Float32[Array, ""]
    """Sum of w * P_T(tail)."""
    weight: Float32[Array, ""]
    """Sum of the weights."""


def top_k_of(
    hidden: Float[Array, "B T D"],
    embedding: Float[Array, "V D"],
    k: int,
    *,
    soft_cap: float | None = None,
    temperature: float = 1.0,
    chunk_length: int | None = None,
) -> TopK:
    """The K largest of log softmax(l / temperature), l = c * tanh(h . E^T / c), in float32, and the rest's logsumexp.

    The logits of `chunk_length` positions of a row exist at once (None: as for a loss). On one device.
    """
    batch_size, length, _ = hidden.shape
    vocab_size = embedding.shape[0]
    if not 1 <= k <= vocab_size:
        raise ValueError(f"k must lie in 1 .. {vocab_size}, the size of the vocabulary, not {k}")
    size = chunk_length or default_chunk_length(batch_size, length, vocab_size)
    settings = HeadSettings(soft_cap, 0.0, min(math.ceil(length / size), length), (), ())

    def of_chunk(hidden: Array) -> tuple[Array, Array, Array]:
        logits = float32_product(hidden, embedding, (1, 1))
        if soft_cap is not None:
            logits = soft_cap * jnp.tanh(logits / soft_cap)
        log_probabilities = jax.nn.log_softmax(logits / temperature, axis=-1)
        largest, ids = jax.lax.top_k(log_probabilities, k)
        rows = jnp.arange(len(ids))[:, None]
        tail = jax.nn.logsumexp(log_probabilities.at[rows, ids].set(-jnp.inf), axis=-1)
        return largest, ids, tail

    found = jax.lax.map(of_chunk, split_sequence(settings, hidden))
    return TopK(*(join_sequence(part, batch_size, length) for part in found))


def fewer(kept: TopK, k: int) -> TopK:
    """The same distribution with its `k` largest probabilities only; the others go to the tail."""
    rest = jax.nn.logsumexp(kept.log_probabilities[..., k:].astype(jnp.float32), axis=-1)
    log_tail = kept.log_tail if k == kept.ids.shape[-1] else jnp.logaddexp(kept.log_tail, rest)
    return TopK(kept.log_probabilities[..., :k], kept.ids[..., :k], log_tail)


def chunked_top_k_distillation(
    student_hidden: Float[Array, "B T D"],
    student_embedding: Float[Array, "V D"],
    teacher: TopK,
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    soft_cap: float | None = None,
    kind: Kind = "forward",
    temperature: float = 1.0,
    beta: float = 0.5,
    hard_label_weight: float = 0.0,
    z_loss: float = 0.0,
    chunk_length: int | None = None,
) -> TopKSums:
    """The sums of this module's formula, in float32 whatever the inputs' dtype.

    Args:
        student_hidden: after the final norm; logits are c * tanh(h . E^T / c) with the soft-cap c.
        student_embedding: the output head.
        teacher: taken at the same temperature; gets no gradient. Of the reverse kind its tail must not be 0 (K < V).
        targets: real labels; that of a token of weight 0 may be any number in [0, V).
        weights: of the tokens.
        soft_cap: c, None for none.
        kind: which D.
        temperature: t.
        beta: b.
        hard_label_weight: h, in 0 .. 1.
        z_loss: coefficient of z_S.
        chunk_length: positions of a row that have logits at once; None: as for one model.

    One pass gives sums and all gradients in three matrix products. Traced inside `activation_sharding` it divides
    tokens and vocabulary as `chunked_cross_entropy` does.
    """
    batch_size, length, _ = student_hidden.shape
    if chunk_length is not None and chunk_length < 1:
        raise ValueError(f"chunk_length must be at least 1, not {chunk_length}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be positive or None, not {soft_cap}")
    check_options(kind, temperature, hard_label_weight, beta)
    teacher, weights = jax.lax.stop_gradient((teacher, weights.astype(jnp.float32)))

    def sums(hidden, table, log_probabilities, ids, log_tail, targets, weights):
        hidden = enter_sublayer(hidden)
        rows, positions, _ = hidden.shape
        parts = 1 if chunk_length is None else math.ceil(length / chunk_length)
        if chunk_length is None:
            parts = math.ceil(positions / default_chunk_length(rows, positions, table.shape[0]))
        head = HeadSettings(soft_cap, z_loss, min(parts, positions), divided("vocab"), divided("embed"))
        settings = _Settings(head, kind, beta, temperature, hard_label_weight)
        found = _sums(settings, hidden, table, TopK(log_probabilities, ids, log_tail), targets, weights)
        return tuple(sum_over(value, divided("batch") + divided("length")) for value in found)

    row, hidden, table = ("batch", "length"), ("batch", "residual_length", None), ("vocab", "embed")
    kept = (*row, None)
    sizes = {"batch": batch_size, "length": length, "residual_length": length}
    with jax.named_scope("distillation"):
        minimised, distillation, student_loss, student_z_loss, tail = spmd(
            sums, (hidden, table, kept, kept, row, row, row), ((),) * 5, sizes
        )(student_hidden, student_embedding, *teacher, targets, weights)
    return TopKSums(minimised, distillation, student_loss, student_z_loss, tail, weight=jnp.sum(weights))


class _Settings(NamedTuple):
    head: HeadSettings
    kind: Kind
    beta: float
    temperature: float
    hard_label_weight: float


def _outcomes(settings: _Settings, log_student: Array, teacher: TopK) -> tuple[Array, Array, Array]:
    """Of tokens [N]: d, its gradient [N, V] by logits / t, and P_T(tail)."""
    words, (rows, vocab_size) = settings.head.words, log_student.shape
    kept, ids, log_tail = teacher.log_probabilities.astype(jnp.float32), teacher.ids, teacher.log_tail
    total = jnp.logaddexp(jax.nn.logsumexp(kept, axis=-1), log_tail)
    kept, log_tail = kept - total[:, None], log_tail - total
    if words:  # words of other devices are none of the columns here
        ids = ids - jax.lax.axis_index(words) * vocab_size
        ids = jnp.where((ids >= 0) & (ids < vocab_size), ids, vocab_size)
    log_teacher = jnp.full(log_student.shape, _NOT_KEPT).at[jnp.arange(rows)[:, None], ids].set(kept, mode="drop")
    is_kept = log_teacher != _NOT_KEPT

    rest = jnp.where(is_kept, -jnp.inf, log_student)
    largest = jnp.max(rest, axis=-1)
    largest = jax.lax.pmax(largest, words) if words else largest
    has_rest = largest > -jnp.inf
    largest = jnp.where(has_rest, largest, 0.0)
    student_tail = jnp.log(sum_over(jnp.sum(jnp.exp(rest - largest[:, None]), axis=-1), words)) + largest
    tail_ratio = jnp.where(has_rest, student_tail - log_tail, 0.0)

    student, tail = jnp.exp(log_student), jnp.exp(log_tail)
    if settings.kind == "jensen_shannon":
        beta = settings.beta
        mixture = log_mixed(log_student, jnp.where(is_kept, log_teacher, -jnp.inf), beta)
        mixed_tail = log_mixed(student_tail, log_tail, beta)
        ratio = jnp.where(is_kept, log_student - mixture, jnp.where(has_rest, student_tail - mixed_tail, 0.0)[:, None])
        of_student = sum_over(jnp.sum(student * ratio, axis=-1), words)
        terms = jnp.exp(log_teacher) * (log_teacher - mixture)
        of_teacher = sum_over(jnp.sum(terms, axis=-1, where=is_kept), words)
        of_teacher += jnp.where(has_rest & (tail > 0), tail * (log_tail - mixed_tail), 0.0)
        return (
            beta * of_teacher + (1 - beta) * of_student,
            (1 - beta) * student * (ratio - of_student[:, None]),
            tail,
        )
    if settings.kind == "reverse":
        ratio = jnp.where(is_kept, log_student - log_teacher, tail_ratio[:, None])
        each = sum_over(jnp.sum(student * ratio, axis=-1), words)
        return each, student * (ratio - each[:, None]), tail
    each = sum_over(-jnp.sum(jnp.exp(log_teacher) * log_student, axis=-1, where=is_kept), words)
    each -= jnp.where(has_rest, tail * student_tail, 0.0)
    followed = jnp.exp(jnp.where(is_kept, log_teacher, log_student - tail_ratio[:, None]))
    return each, student - followed, tail


def _chunk(settings: _Settings, hidden: Array, table: Array, teacher: TopK, targets: Array, weights: Array):
    """Of tokens [N] in one chunk: the five sums, and the gradient [N, V] of `minimised` by the matrix product."""
    head, hard, temperature = settings.head, settings.hard_label_weight, settings.temperature
    (loss, z_sum), logits, log_normalizer, own = chunk_losses(head, hidden, table, targets, weights)
    log_student = tempered(head, logits, log_normalizer, temperature)
    each, difference, tail = _outcomes(settings, log_student, teacher)
    distillation = temperature**2 * jnp.sum(weights * each)
    minimised = (1 - hard) * distillation + z_sum + (hard * loss if hard else 0.0)
    gradient = (1 - hard) * temperature * difference
    if hard:
        gradient += hard * (jnp.exp(logits - log_normalizer) - is_target(logits, own))
    if head.z_loss:
        gradient += jnp.exp(logits - log_normalizer) * (2 * head.z_loss * log_normalizer)
    sums = (minimised, distillation, loss, z_sum, jnp.sum(weights * tail))
    return sums, through_cap(head, gradient, logits, weights)


def _chunks(settings: _Settings, *arrays):
    return jax.tree.map(lambda array: split_sequence(settings.head, array), arrays)


def _zeros() -> tuple[Array, ...]:
    return tuple(jnp.zeros((), jnp.float32) for _ in range(5))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(settings: _Settings, hidden: Array, table: Array, teacher: TopK, targets: Array, weights: Array):
    """The five sums without gradients: one matrix product."""
    table = gather(table, settings.head.width, axis=1)

    def body(sums, chunk):
        hidden, *others = chunk
        return added(sums, _chunk(settings, hidden, table, *others)[0]), None

    return jax.lax.scan(body, _zeros(), _chunks(settings, hidden, teacher, targets, weights))[0]


def _sums_forward(settings: _Settings, hidden: Array, table: Array, teacher: TopK, targets: Array, weights: Array):
    """The sums, and as residuals the gradients of `minimised`."""
    batch_size, length, _ = hidden.shape
    whole = gather(table, settings.head.width, axis=1)

    def body(carry, chunk):
        sums, table_gradient = carry
        hidden, *others = chunk
        found, gradient = _chunk(settings, hidden, whole, *others)
        gradient = gradient.astype(hidden.dtype)
        table_gradient += float32_product(gradient, hidden, (0, 0))
        return (added(sums, found), table_gradient), float32_product(gradient, whole, (1, 0)).astype(hidden.dtype)

    (sums, table_gradient), hidden_gradient = jax.lax.scan(
        body,
        (_zeros(), jnp.zeros(whole.shape, jnp.float32)),
        _chunks(settings, hidden, teacher, targets, weights),
    )
    table_gradient = sum_scatter(table_gradient, settings.head.width, axis=1).astype(table.dtype)
    return sums, (join_sequence(hidden_gradient, batch_size, length), table_gradient)


def _sums_backward(settings: _Settings, residuals: tuple[Array, Array], cotangents: tuple[Array, ...]):
    # Devices that share the vocabulary have each one part of what reaches this sum, which they hold in common.
    scale = sum_over(cotangents[0], settings.head.words)
    hidden, table = ((scale * array).astype(array.dtype) for array in residuals)
    return hidden, table, None, None, None


_sums.defvjp(_sums_forward, _sums_backward)
