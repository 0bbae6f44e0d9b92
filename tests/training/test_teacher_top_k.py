"""The top-k distillation loss against its formula in float64 and the loss of the whole vocabulary, and its memory."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.training.distillation import chunked_distillation
from zoo.training.losses import chunked_cross_entropy
from zoo.training.top_k_distillation import TopK, chunked_top_k_distillation, fewer, top_k_of

B, T, D, E, V, K = 2, 6, 8, 12, 48, 5
MIXED = {"soft_cap": 5.0, "temperature": 1.7, "hard_label_weight": 0.3, "z_loss": 1e-2}


def make(seed=0, batch_size=B, length=T):
    """Student's hidden states and head, teacher's, targets, weights."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    student, teacher = ((normal(batch_size, length, width), normal(V, width)) for width in (D, E))
    targets = jnp.asarray(rng.integers(0, V, (batch_size, length)), jnp.int32)
    weights = rng.uniform(0.1, 2.0, (batch_size, length)) * (rng.uniform(size=(batch_size, length)) > 0.3)
    return student, teacher, targets, jnp.asarray(weights, jnp.float32)


def sums_and_gradients(student, kept, targets, weights, **options):
    def objective(*head):
        sums = chunked_top_k_distillation(*head, kept, targets, weights, **options)
        return sums.minimised, sums

    gradients, sums = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(*student)
    return sums, gradients


def written_out(student, kept, targets, weights, *, soft_cap, kind, temperature, hard_label_weight, z_loss):
    """`minimised` of the module's formula, with P_S(tail) as 1 - sum, to be differentiated by jax."""
    hidden, table = student
    logits = jnp.einsum("btd,vd->btv", hidden, table)
    logits = logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)
    chosen = jnp.take_along_axis(jax.nn.softmax(logits / temperature, axis=-1), kept.ids, axis=-1)
    ours = jnp.concatenate([chosen, 1 - chosen.sum(-1, keepdims=True)], axis=-1)
    theirs = jnp.concatenate([jnp.exp(kept.log_probabilities), jnp.exp(kept.log_tail)[..., None]], axis=-1)
    each = -theirs * jnp.log(ours) if kind == "forward" else ours * jnp.log(ours / theirs)
    if kind == "jensen_shannon":
        mixture = 0.5 * (theirs + ours)
        each = 0.5 * (theirs * jnp.log(theirs / mixture) + ours * jnp.log(ours / mixture))
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    hard = log_normalizer - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    soft = temperature**2 * each.sum(-1)
    return jnp.sum(weights * ((1 - hard_label_weight) * soft + hard_label_weight * hard + z_loss * log_normalizer**2))


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
def test_sum_and_gradients_equal_the_formula_in_float64(kind):
    student, teacher, targets, weights = make()
    kept = top_k_of(*teacher, K, temperature=MIXED["temperature"])
    sums, gradients = sums_and_gradients(student, kept, targets, weights, kind=kind, chunk_length=4, **MIXED)
    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda x: jnp.asarray(np.asarray(x), jnp.float64 if x.dtype == jnp.float32 else None),
            (student, kept, targets, weights),
        )
        expected, wanted = jax.value_and_grad(lambda head: written_out(head, *exact[1:], kind=kind, **MIXED))(exact[0])
        assert expected.dtype == jnp.float64
        np.testing.assert_allclose(sums.minimised, expected, rtol=2e-6)
        for found, exactly in zip(gradients, wanted, strict=True):
            np.testing.assert_allclose(found, exactly, atol=3e-5)


@pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
def test_with_the_whole_vocabulary_kept_it_is_the_loss_of_the_whole_vocabulary(kind):
    student, teacher, targets, weights = make(1)
    options = {name: value for name, value in MIXED.items() if name != "soft_cap"} | {"kind": kind}
    kept = top_k_of(*teacher, V, soft_cap=3.0, temperature=MIXED["temperature"])
    sums, gradients = sums_and_gradients(student, kept, targets, weights, soft_cap=5.0, **options)

    def online(*head):
        return chunked_distillation(
            *head, *teacher, targets, weights, student_soft_cap=5.0, teacher_soft_cap=3.0, **options
        ).minimised

    expected, wanted = jax.jit(jax.value_and_grad(online, argnums=(0, 1)))(*student)
    np.testing.assert_allclose(sums.minimised, expected, rtol=1e-5)
    assert float(sums.tail) == 0
    for found, exactly in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, exactly, atol=1e-5)


def test_a_teacher_that_is_certain_of_the_label_gives_the_cross_entropy():
    student, _, targets, weights = make(2)
    certain = TopK(jnp.zeros((B, T, 1)), targets[..., None], jnp.full((B, T), -jnp.inf))
    sums, gradients = sums_and_gradients(student, certain, targets, weights)
    hard = jax.value_and_grad(lambda *head: chunked_cross_entropy(*head, targets, weights).loss, argnums=(0, 1))
    loss, wanted = hard(*student)
    np.testing.assert_allclose([sums.minimised, sums.student_loss], loss, rtol=1e-6)
    for found, exactly in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, exactly, atol=1e-5)


def test_chunks_change_nothing():
    student, teacher, targets, weights = make(3)
    kept = top_k_of(*teacher, K)
    whole, chunked = (sums_and_gradients(student, kept, targets, weights, chunk_length=c, **MIXED) for c in (T, 4))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(chunked), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


def test_a_student_that_agrees_on_the_words_that_were_kept_learns_nothing_about_the_others():
    student, _, targets, weights = make(4)
    kept = top_k_of(*student, K)
    for kind in ("forward", "reverse"):
        _, gradients = sums_and_gradients(student, kept, targets, weights, kind=kind)
        for gradient in gradients:
            np.testing.assert_allclose(gradient, 0, atol=2e-5)


def test_what_is_kept_are_the_largest_probabilities_and_the_rest_sums_to_one():
    _, (hidden, table), _, _ = make(5)
    logits = 3.0 * np.tanh(np.einsum("btd,vd->btv", *map(np.float64, (hidden, table))) / 3.0) / 2.0
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kept = top_k_of(hidden, table, K, soft_cap=3.0, temperature=2.0, chunk_length=4)
    assert kept.ids.dtype == jnp.int32
    np.testing.assert_allclose(np.exp(kept.log_probabilities), -np.sort(-probabilities)[..., :K], rtol=1e-5)
    np.testing.assert_allclose(
        np.exp(kept.log_probabilities), np.take_along_axis(probabilities, np.asarray(kept.ids), -1), rtol=1e-5
    )
    np.testing.assert_allclose(np.exp(kept.log_probabilities).sum(-1) + np.exp(kept.log_tail), 1, rtol=1e-5)
    with pytest.raises(ValueError, match="k must lie in 1 .. 48"):
        top_k_of(hidden, table, V + 1)


def test_half_precision_is_enough_to_keep():
    student, teacher, targets, weights = make(6)
    kept = top_k_of(*teacher, K)
    half = kept._replace(log_probabilities=kept.log_probabilities.astype(jnp.float16))
    exact, rounded = (sums_and_gradients(student, k, targets, weights)[0].minimised for k in (kept, half))
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=1e-3)


def test_sharded_arrays_give_the_same_sums_and_gradients():
    student, teacher, targets, weights = make(7, batch_size=8, length=8)
    kept = top_k_of(*teacher, K, temperature=MIXED["temperature"])
    expected = sums_and_gradients(student, kept, targets, weights, **MIXED)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows, table = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((("data", "fsdp"),), ("tensor", "fsdp")))
    student = tuple(map(jax.device_put, student, (rows, table)))
    kept, targets, weights = jax.device_put((kept, targets, weights), rows)
    with activation_sharding(mesh, ShardingRules()):
        found = sums_and_gradients(student, kept, targets, weights, **MIXED)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_the_compiled_gradient_holds_one_chunk_of_logits_at_a_time():
    batch_size, length, width, words, chunk_length = 2, 64, 8, 65_536, 16

    def objective(hidden, table, kept, targets, weights):
        options = dict(soft_cap=30.0, z_loss=1e-4, chunk_length=chunk_length)
        return chunked_top_k_distillation(hidden, table, kept, targets, weights, **options).minimised

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    row = (batch_size, length)
    kept = TopK(shape(*row, K, dtype=jnp.float16), shape(*row, K, dtype=jnp.int32), shape(*row))
    arguments = (shape(*row, width), shape(words, width), kept, shape(*row, dtype=jnp.int32), shape(*row))
    compiled = jax.jit(jax.value_and_grad(objective, argnums=(0, 1))).lower(*arguments).compile()
    sizes = [
        int(np.prod([int(size) for size in found.split(",")]))
        for found in re.findall(r"(?:f32|f16|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    ]
    assert max(sizes) == batch_size * chunk_length * words


def test_fewer_words_of_what_was_kept_are_those_that_would_have_been_kept():
    _, teacher, _, _ = make(4)
    found, expected = fewer(top_k_of(*teacher, 9), 4), top_k_of(*teacher, 4)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_allclose(found.log_tail, expected.log_tail, rtol=1e-5)
    np.testing.assert_array_equal(fewer(expected, 4).log_tail, expected.log_tail)
