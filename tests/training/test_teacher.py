"""Learning from a teacher that stays as it is: gradients against float64, memory, and the step that it is given to."""

import re
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from zoo.data import Batch
from zoo.errors import UserError
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.training.distillation import chunked_distillation
from zoo.training.losses import next_token_loss
from zoo.training.state import create_state
from zoo.training.step import jit_train_step, make_train_step
from zoo.training.teacher import DistillationConfig, fixed_teacher_loss, weights_fingerprint

B, T, V = 2, 6, 24

CAPPED = {"student_soft_cap": 4.0, "teacher_soft_cap": 6.0, "temperature": 2.0}
KINDS = pytest.mark.parametrize("kind", ["forward", "reverse", "jensen_shannon"])
BETA = 0.3


def problem(seed=0, batch_size=B, length=T, vocab_size=V):
    """Logits of a student and of a teacher, targets and weights."""
    rng = np.random.default_rng(seed)
    student, teacher = 3 * rng.standard_normal((2, batch_size, length, vocab_size)).astype(np.float32)
    weights = rng.uniform(0.1, 2.0, (batch_size, length)) * (rng.uniform(size=(batch_size, length)) > 0.3)
    targets = rng.integers(0, vocab_size, (batch_size, length)).astype(np.int32)
    return student, teacher, targets, weights.astype(np.float32)


def naive(student, teacher, weights, *, kind, student_soft_cap=None, teacher_soft_cap=None, temperature=1.0):
    """D, written out."""

    def log_probabilities(raw, cap):
        logits = raw if cap is None else cap * jnp.tanh(raw / cap)
        return jax.nn.log_softmax(logits / temperature)

    log_s, log_t = log_probabilities(student, student_soft_cap), log_probabilities(teacher, teacher_soft_cap)
    terms = -jnp.exp(log_t) * log_s if kind == "forward" else jnp.exp(log_s) * (log_s - log_t)
    if kind == "jensen_shannon":
        mixture = jnp.log(BETA * jnp.exp(log_t) + (1 - BETA) * jnp.exp(log_s))
        terms = BETA * jnp.exp(log_t) * (log_t - mixture) + (1 - BETA) * jnp.exp(log_s) * (log_s - mixture)
    return temperature**2 * jnp.sum(weights * jnp.sum(terms, -1))


def closed_form(student, teacher, weights, *, kind, student_soft_cap=None, teacher_soft_cap=None, temperature=1.0):
    """The gradient by the student's logits under the soft-cap, in numpy."""

    def log_probabilities(raw, cap):
        logits = (raw if cap is None else cap * np.tanh(raw / cap)) / temperature
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    log_s, log_t = log_probabilities(student, student_soft_cap), log_probabilities(teacher, teacher_soft_cap)
    gradient = np.exp(log_s) - np.exp(log_t)
    if kind == "reverse":
        kl = (np.exp(log_s) * (log_s - log_t)).sum(-1, keepdims=True)
        gradient = np.exp(log_s) * (log_s - log_t - kl)
    if kind == "jensen_shannon":
        ratio = log_s - np.log(BETA * np.exp(log_t) + (1 - BETA) * np.exp(log_s))
        gradient = (1 - BETA) * np.exp(log_s) * (ratio - (np.exp(log_s) * ratio).sum(-1, keepdims=True))
    if student_soft_cap is not None:
        gradient = gradient * (1 - np.tanh(student / student_soft_cap) ** 2)
    return temperature * weights[..., None] * gradient


def of_logits(student, teacher, targets, weights, **options):
    """D and its gradient by the student's logits: hidden states that are logits, under the identity as output head."""
    head = jnp.eye(student.shape[-1])

    def objective(logits):
        return chunked_distillation(logits, head, teacher, head, targets, weights, beta=BETA, **options).minimised

    return jax.jit(jax.value_and_grad(objective))(student)


@KINDS
@pytest.mark.parametrize("options", [{}, CAPPED], ids=["plain", "capped"])
def test_value_and_gradient_are_those_of_the_written_out_loss_in_float64(kind, options):
    student, teacher, targets, weights = problem()
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array, jnp.float64) for array in (student, teacher, weights)]
        value, gradient = jax.value_and_grad(partial(naive, kind=kind, **options))(*arrays)
        expected = closed_form(*(np.asarray(array) for array in arrays), kind=kind, **options)
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-12)
    found, found_gradient = of_logits(student, teacher, targets, weights, kind=kind, **options)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(found_gradient, expected, rtol=0, atol=3e-6)


@KINDS
def test_chunks_change_nothing(kind):
    arrays = problem(1)
    options = {"kind": kind, "hard_label_weight": 0.25, "z_loss": 1e-3, **CAPPED}
    (whole, gradient), (parts, in_parts) = (of_logits(*arrays, chunk_length=n, **options) for n in (T, 4))
    np.testing.assert_allclose(parts, whole, rtol=1e-6)
    np.testing.assert_allclose(in_parts, gradient, rtol=1e-6, atol=1e-6)


def test_devices_that_share_the_vocabulary_give_the_same_reverse_divergence():
    student, teacher, targets, weights = problem(2, batch_size=4, length=8)
    expected = of_logits(student, teacher, targets, weights, kind="reverse", **CAPPED)
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    head = jax.device_put(jnp.eye(V), NamedSharding(mesh, PartitionSpec("tensor", "fsdp")))
    rows = NamedSharding(mesh, PartitionSpec("fsdp"))
    student, teacher, targets, weights = jax.device_put((student, teacher, targets, weights), rows)

    def objective(logits):
        options = dict(kind="reverse", chunk_length=4, **CAPPED)
        return chunked_distillation(logits, head, teacher, head, targets, weights, **options).minimised

    with activation_sharding(mesh, ShardingRules()):
        found = jax.jit(jax.value_and_grad(objective))(student)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-5)


def test_an_unknown_kind_and_senseless_options_are_refused():
    with pytest.raises(ValueError, match="kind must be one of forward, reverse, jensen_shannon, not 'backward'"):
        of_logits(*problem(), kind="backward")
    with pytest.raises(UserError, match=r"distillation.temperature must lie above 0"):
        DistillationConfig(temperature=0.0)
    with pytest.raises(UserError, match=r"distillation.beta must lie between 0 and 1, got 1"):
        DistillationConfig(beta=1.0)
    with pytest.raises(UserError, match=r"distillation.hard_label_weight must lie in 0 .. 1, got 2"):
        DistillationConfig(hard_label_weight=2)


# ---- the step


class Model(nnx.Module):
    """The hidden state of a token is a row of one table, its logits the products with another."""

    def __init__(self, vocab_size: int, width: int, seed: int):
        self.config = SimpleConfig(5.0)
        rng = np.random.default_rng(seed)
        self.table, self.head = (
            nnx.Param(jnp.asarray(rng.standard_normal((vocab_size, width)), jnp.float32)) for _ in range(2)
        )

    def hidden_states(self, tokens, **_):
        return self.table[...][tokens]

    def output_embedding(self):
        return self.head[...]


@dataclass(frozen=True)
class SimpleConfig:
    final_logit_soft_cap: float | None


def batch_of(batch_size=4, length=T, vocab_size=V, seed=3):
    _, _, targets, weights = problem(seed, batch_size, length, vocab_size)
    tokens = jnp.asarray(np.roll(targets, 1, axis=1))
    ones = jnp.ones_like(tokens)
    return Batch(tokens, jnp.asarray(targets), ones, ones, jnp.asarray(weights))


def setting(config=None, vocab_size=V, chunk_tokens=None, accumulation_steps=1):
    """Step, state and parameters of the teacher; without a config a step that has no teacher."""
    student, params = nnx.split(Model(vocab_size, 8, 0), nnx.Param)
    graphdef, teacher = nnx.split(Model(vocab_size, 12, 1), nnx.Param)
    loss = partial(next_token_loss, chunk_tokens=chunk_tokens)
    if config is not None:
        loss = partial(fixed_teacher_loss, teacher_graphdef=graphdef, config=config, chunk_tokens=chunk_tokens)
    optimizer = optax.sgd(1.0)
    state = create_state(params, optimizer)
    schedule = optax.constant_schedule(1.0)
    step = make_train_step(student, loss, optimizer, schedule=schedule, accumulation_steps=accumulation_steps)
    return SimpleNamespace(plain=step, step=jit_train_step(step, state), state=state, teacher=teacher, model=student)


def test_a_step_moves_the_student_along_the_divergence_and_reports_its_loss_on_real_labels():
    config, batch = DistillationConfig(kind="reverse", hard_label_weight=0.5, temperature=2.0), batch_of()
    made = setting(config)
    before, weight = jax.tree.map(np.asarray, made.state.params), float(batch.loss_weights.sum())
    student, teacher = before["table"][...][batch.tokens], made.teacher["table"][...][batch.tokens]

    def minimised(head):
        heads = (student, head, teacher, made.teacher["head"][...])
        options = dict(kind="reverse", hard_label_weight=0.5, temperature=2.0)
        caps = dict(student_soft_cap=5.0, teacher_soft_cap=5.0)
        sums = chunked_distillation(*heads, batch.targets, batch.loss_weights, **options, **caps)
        return sums.minimised / weight, sums

    gradient, sums = jax.jit(jax.grad(minimised, has_aux=True))(before["head"][...])
    state, metrics = made.step(made.state, batch, made.teacher)
    np.testing.assert_allclose(state.params["head"][...], before["head"][...] - gradient, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], sums.student_loss / weight, rtol=1e-6)
    assert float(metrics["loss"]) != float(metrics["distillation_loss"])
    np.testing.assert_allclose(metrics["distillation_loss"], sums.distillation / weight, rtol=1e-6)
    np.testing.assert_allclose(metrics["teacher_loss"], sums.teacher_loss / weight, rtol=1e-6)


def test_the_teacher_is_neither_consumed_nor_in_the_state_and_accumulation_gives_the_same_step():
    config, batch = DistillationConfig(), batch_of()
    whole, parts = setting(config), setting(config, accumulation_steps=2)
    (state, metrics), (other, _) = (made.step(made.state, batch, made.teacher) for made in (whole, parts))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(whole.teacher))
    assert {leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim == 2} == {(V, 8)}
    assert all(value.ndim == 0 for value in metrics.values())
    for one, two in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_without_a_teacher_the_step_is_the_program_that_it_was():
    made, batch = setting(), batch_of()

    def train_step(state, batch):
        return made.plain(state, batch)

    old = jit_train_step(train_step, made.state).lower(made.state, batch).as_text()
    assert made.step.lower(made.state, batch).as_text() == old


@KINDS
def test_the_logits_of_all_tokens_exist_neither_once_nor_twice_in_a_compiled_step(kind):
    batch_size, length, vocab_size, chunk_tokens = 2, 64, 8192, 32
    made = setting(DistillationConfig(kind=kind), vocab_size, chunk_tokens)
    batch = batch_of(batch_size, length, vocab_size)
    compiled = made.step.lower(made.state, batch, made.teacher).compile()
    sizes = [
        int(np.prod([int(size) for size in shape.split(",")]))
        for shape in re.findall(r"(?:f32|bf16|pred|s32)\[([\d,]+)\]", compiled.as_text())
    ]
    assert max(sizes) == chunk_tokens * vocab_size < batch_size * length * vocab_size
    # Logits of both, their probabilities and the gradient of one chunk; the gradients of both of the student's tables.
    expected = 5.1 * 4 * chunk_tokens * vocab_size + 4 * 4 * 8 * vocab_size
    assert compiled.memory_analysis().temp_size_in_bytes < expected


# ---- which weights


def test_a_fingerprint_of_weights_knows_values_places_and_names_and_does_not_depend_on_the_mesh():
    values = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    params = {"a": jnp.asarray(values), "b": jnp.asarray(values[0], jnp.bfloat16), "c": jnp.float32(2.0)}
    found = weights_fingerprint(params)
    sharding = NamedSharding(make_mesh(MeshConfig()), PartitionSpec("fsdp"))
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    assert found == weights_fingerprint(jax.device_put(params, {"a": sharding, "b": everywhere, "c": everywhere}))
    flipped = values.copy().view(np.uint32)
    flipped[3, 2] ^= 1
    for other in (flipped.view(np.float32), values[::-1], values.T.reshape(8, 6), -values):
        assert weights_fingerprint(params | {"a": jnp.asarray(other)}) != found
    assert weights_fingerprint({"d" if name == "a" else name: leaf for name, leaf in params.items()}) != found
