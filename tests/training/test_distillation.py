"""The chunked distillation loss against dense sums in float64, and what its compiled program holds in memory."""

import re
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.training.distillation import DistillationSums, chunked_distillation
from zoo.training.losses import chunked_cross_entropy

B, T, D, E, V = 3, 10, 8, 12, 50


@dataclass(frozen=True)
class Problem:
    """Hidden states and output heads of a student (width D) and a teacher (width E), targets and weights."""

    student: tuple[jax.Array, jax.Array]
    teacher: tuple[jax.Array, jax.Array]
    targets: jax.Array
    weights: jax.Array

    @classmethod
    def make(cls, seed=0, *, batch_size=B, length=T, vocab_size=V, dtype=jnp.float32, scale=1.0):
        rng = np.random.default_rng(seed)
        weights = rng.uniform(0.1, 2.0, (batch_size, length)) * (rng.uniform(size=(batch_size, length)) > 0.3)

        def head(width):
            hidden = scale * rng.standard_normal((batch_size, length, width))
            return jnp.asarray(hidden, dtype), jnp.asarray(rng.standard_normal((vocab_size, width)), dtype)

        targets = jnp.asarray(rng.integers(0, vocab_size, (batch_size, length)), jnp.int32)
        return cls(head(D), head(E), targets, jnp.asarray(weights, jnp.float32))

    @property
    def heads(self):
        return *self.student, *self.teacher


def log_softmax(logits):
    top = logits.max(-1, keepdims=True)
    return logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))


def dense(problem, *, student_soft_cap, teacher_soft_cap, temperature, hard_label_weight, z_loss, train_teacher):
    """The sums and the gradients of `minimised` by the four heads, written out in float64."""
    w, one_hot = np.asarray(problem.weights, np.float64), np.eye(V)[np.asarray(problem.targets)]
    t, hard = temperature, hard_label_weight

    def logits_of(head, cap):
        hidden, table = (np.asarray(x, np.float64) for x in head)
        raw = np.einsum("btd,vd->btv", hidden, table)
        return (raw, 1.0) if cap is None else (cap * np.tanh(raw / cap), 1 - np.tanh(raw / cap) ** 2)

    def gradients(head, d_logits, d_cap):
        hidden, table = (np.asarray(x, np.float64) for x in head)
        d_raw = w[..., None] * d_logits * d_cap
        return np.einsum("btv,vd->btd", d_raw, table), np.einsum("btv,btd->vd", d_raw, hidden)

    (ls, cap_s), (lt, cap_t) = (
        logits_of(problem.student, student_soft_cap),
        logits_of(problem.teacher, teacher_soft_cap),
    )
    log_ps, log_pt = log_softmax(ls), log_softmax(lt)
    lse_s, lse_t = (ls - log_ps)[..., :1], (lt - log_pt)[..., :1]
    soft_s, soft_t = log_softmax(ls / t), np.exp(log_softmax(lt / t))
    distillation = t**2 * (w * -(soft_t * soft_s).sum(-1)).sum()
    loss_s, loss_t = (-(w * (log_p * one_hot).sum(-1)).sum() for log_p in (log_ps, log_pt))
    z_s, z_t = ((w * z_loss * lse[..., 0] ** 2).sum() for lse in (lse_s, lse_t))
    minimised = (1 - hard) * distillation + hard * loss_s + z_s + (loss_t + z_t if train_teacher else 0)
    d_s = (1 - hard) * t * (np.exp(soft_s) - soft_t) + hard * (np.exp(log_ps) - one_hot)
    d_s += 2 * z_loss * lse_s * np.exp(log_ps)
    d_t = train_teacher * (np.exp(log_pt) * (1 + 2 * z_loss * lse_t) - one_hot)
    sums = (minimised, distillation, loss_s, z_s, loss_t, w.sum())
    return sums, (*gradients(problem.student, d_s, cap_s), *gradients(problem.teacher, d_t, cap_t))


def sums_and_gradients(problem: Problem, **options):
    def objective(*heads):
        sums = chunked_distillation(*heads, problem.targets, problem.weights, **options)
        return sums.minimised, sums

    gradients, sums = jax.jit(jax.grad(objective, argnums=(0, 1, 2, 3), has_aux=True))(*problem.heads)
    return sums, gradients


PLAIN = dict(
    student_soft_cap=None,
    teacher_soft_cap=None,
    temperature=1.0,
    hard_label_weight=0.0,
    z_loss=0.0,
    train_teacher=True,
)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"student_soft_cap": 5.0},
        {"teacher_soft_cap": 3.0, "train_teacher": False},
        {
            "student_soft_cap": 5.0,
            "teacher_soft_cap": 3.0,
            "temperature": 2.5,
            "hard_label_weight": 0.3,
            "z_loss": 1e-2,
        },
        {"temperature": 0.5, "z_loss": 1e-2, "train_teacher": False},
        {"hard_label_weight": 1.0},
    ],
)
@pytest.mark.parametrize("chunk_length", [None, 4])
def test_sums_and_gradients_equal_dense_float64(changes, chunk_length):
    problem, options = Problem.make(), PLAIN | changes
    expected, expected_gradients = dense(problem, **options)
    sums, gradients = sums_and_gradients(problem, **options, chunk_length=chunk_length)
    np.testing.assert_allclose(np.array(sums), expected, rtol=3e-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    plain = chunked_distillation(*problem.heads, problem.targets, problem.weights, **options)
    np.testing.assert_allclose(np.array(plain), np.array(sums), rtol=2e-6)


def test_a_teacher_that_is_certain_of_the_label_gives_the_cross_entropy():
    problem = Problem.make(1)
    certain = 100.0 * jax.nn.one_hot(problem.targets, V)
    problem = replace(problem, teacher=(certain, jnp.eye(V)))
    sums, gradients = sums_and_gradients(problem, train_teacher=False)

    def hard(hidden, table):
        return chunked_cross_entropy(hidden, table, problem.targets, problem.weights).loss

    loss, hard_gradients = jax.value_and_grad(hard, argnums=(0, 1))(*problem.student)
    np.testing.assert_allclose(sums.distillation, loss, rtol=1e-6)
    for found, wanted in zip(gradients, hard_gradients, strict=False):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_student_that_agrees_with_its_teacher_learns_nothing_and_the_teacher_goes_on_learning():
    problem = Problem.make(2)
    problem = replace(problem, teacher=problem.student)
    sums, gradients = sums_and_gradients(problem, train_teacher=True)
    np.testing.assert_allclose(gradients[0], 0, atol=1e-6)
    np.testing.assert_allclose(gradients[1], 0, atol=1e-5)
    alone = jax.grad(lambda *head: chunked_cross_entropy(*head, problem.targets, problem.weights).loss, argnums=(0, 1))
    for found, wanted in zip(gradients[2:], alone(*problem.teacher), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert float(sums.student_loss) == float(sums.teacher_loss)


def test_bfloat16_inputs_are_summed_in_float32():
    problem = Problem.make(3, dtype=jnp.bfloat16)
    expected, expected_gradients = dense(problem, **PLAIN)
    sums, gradients = sums_and_gradients(problem, **PLAIN, chunk_length=1)
    np.testing.assert_allclose(np.array(sums), expected, rtol=1e-5)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert found.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=2**-6 * np.abs(wanted).max())


def test_the_gradient_is_proportional_to_the_cotangent():
    problem = Problem.make(4)

    def objective(hidden, factor):
        sums = chunked_distillation(hidden, *problem.heads[1:], problem.targets, problem.weights, z_loss=1e-2)
        return factor * sums.minimised + 7 * sums.distillation + 7 * sums.teacher_loss

    once, thrice = (jax.grad(objective)(problem.student[0], factor) for factor in (1.0, 3.0))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def compiled_gradient(batch_size: int, length: int, width: int, vocab_size: int, chunk_length, train_teacher=True):
    def objective(heads, targets, weights):
        options = dict(student_soft_cap=30.0, teacher_soft_cap=30.0, z_loss=1e-4, train_teacher=train_teacher)
        return chunked_distillation(*heads, targets, weights, chunk_length=chunk_length, **options).minimised

    hidden, table = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((batch_size, length, width), (vocab_size, width)))
    row = [jax.ShapeDtypeStruct((batch_size, length), dtype) for dtype in (jnp.int32, jnp.float32)]
    return jax.jit(jax.value_and_grad(objective)).lower((hidden, table, hidden, table), *row).compile()


def test_the_logits_of_all_tokens_never_exist_at_once():
    batch_size, length, width, vocab_size, chunk_length = 2, 64, 8, 65_536, 16
    compiled = compiled_gradient(batch_size, length, width, vocab_size, chunk_length)
    sizes = [
        int(np.prod([int(size) for size in shape.split(",")]))
        for shape in re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    ]
    one_chunk = batch_size * chunk_length * vocab_size
    assert max(sizes) == one_chunk
    # Logits and their gradient, of both models, and the soft targets.
    assert compiled.memory_analysis().temp_size_in_bytes < 5.1 * 4 * one_chunk


@pytest.mark.parametrize(("train_teacher", "products"), [(True, 6), (False, 4)])
def test_the_logits_of_each_model_are_computed_once(train_teacher, products):
    batch_size, length, width, vocab_size = 2, 256, 64, 1024
    compiled = compiled_gradient(batch_size, length, width, vocab_size, length, train_teacher)
    one = 2 * batch_size * length * width * vocab_size
    assert products * one <= compiled.cost_analysis()["flops"] < (products + 1) * one


@pytest.mark.parametrize(
    "options", [{"chunk_length": 0}, {"temperature": 0.0}, {"hard_label_weight": 1.5}, {"student_soft_cap": -1.0}]
)
def test_senseless_options_raise(options):
    problem = Problem.make()
    with pytest.raises(ValueError, match=next(iter(options))):
        chunked_distillation(*problem.heads, problem.targets, problem.weights, **options)


def test_models_of_two_vocabularies_are_refused():
    problem = Problem.make()
    student = (problem.student[0], problem.student[1][:-1])
    with pytest.raises(ValueError, match="same vocabulary, not 49 and 50 words"):
        chunked_distillation(*student, *problem.teacher, problem.targets, problem.weights)


# ---- several devices


def loss_and_gradients(*arrays):
    def objective(*heads):
        options = dict(student_soft_cap=30.0, temperature=2.0, hard_label_weight=0.2, z_loss=1e-3, train_teacher=True)
        sums = chunked_distillation(*heads, *arrays[4:], chunk_length=4, **options)
        return sums.minimised, sums

    return jax.grad(objective, argnums=(0, 1, 2, 3), has_aux=True)(*arrays[:4])


def test_sharded_arrays_give_the_same_sums_and_gradients_without_exchanging_the_gradient_in_the_loop():
    problem = Problem.make(7, batch_size=8, length=16, vocab_size=48)
    arrays = (*problem.heads, problem.targets, problem.weights)
    expected = jax.jit(loss_and_gradients)(*arrays)

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    rows, table = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((("data", "fsdp"),), ("tensor", "fsdp")))
    arrays = tuple(map(jax.device_put, arrays, (rows, table, rows, table, rows, rows)))
    with activation_sharding(mesh, ShardingRules()):
        compiled = jax.jit(loss_and_gradients).lower(*arrays).compile()
    found = compiled(*arrays)
    assert isinstance(found[1], DistillationSums)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    loop, entry = compiled.as_text().split("ENTRY")
    assert re.search(r"f32\[[\d,]+\]\S* reduce-scatter\(", entry)
    assert not re.search(rf"\[{48 // 2},(?:{D}|{E})\].* (all-reduce|reduce-scatter)\(", loop)
