"""A teacher and a student in one training step: who learns from what, and what is reported."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.data import Batch
from zoo.errors import UserError
from zoo.models import build, config_from_dict, config_to_dict, preset
from zoo.models.co_distilled import CoDistilledConfig
from zoo.models.gemini import GeminiConfig
from zoo.nn import ExpertsConfig
from zoo.training.losses import next_token_loss
from zoo.training.teacher import online_distillation_loss

TINY = dict(vocab_size=32, embed_dim=8, num_layers=2, num_heads=2, head_dim=4, hidden_dim=16, sliding_window=4)
TEACHER = GeminiConfig(**TINY, experts=ExpertsConfig(num_experts=4, experts_per_token=2, hidden_dim=8))
STUDENT = GeminiConfig(**TINY, block="parallel", post_norms=False)
CONFIG = CoDistilledConfig(teacher=TEACHER, student=STUDENT)


@pytest.fixture(scope="module")
def model():
    return build(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def batch():
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 1, 32)
    rows = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32), (2, 8))
    return Batch(tokens[:, :-1], tokens[:, 1:], rows, jnp.ones_like(rows), jnp.ones((2, 8)))


def test_outside_of_training_the_loss_is_the_students_on_real_labels_and_the_teachers_stands_beside_it(model, batch):
    sums, student, teacher = nnx.jit(
        lambda model, batch: (
            online_distillation_loss(model, batch),
            next_token_loss(model.student, batch),
            next_token_loss(model.teacher, batch),
        )
    )(model, batch)
    np.testing.assert_allclose(sums.loss, student.loss, rtol=1e-6)
    np.testing.assert_allclose(sums.metrics["teacher_loss"], teacher.loss, rtol=1e-6)
    assert abs(float(student.loss - teacher.loss)) > 0.1
    assert not sums.auxiliary


def test_the_teacher_learns_as_if_it_were_alone_and_the_student_from_it(model, batch):
    graphdef, params = nnx.split(model, nnx.Param)

    @jax.jit
    def train(params, batch):
        def minimised(params):
            sums = online_distillation_loss(nnx.merge(graphdef, params), batch, rng=jax.random.key(1))
            return sum(sums.auxiliary.values(), sums.loss + sums.z_loss), sums

        return jax.value_and_grad(minimised, has_aux=True)(params)

    @jax.jit
    def alone(teacher, batch):
        graph, params = nnx.split(teacher, nnx.Param)

        def minimised(params):
            sums = next_token_loss(nnx.merge(graph, params), batch, rng=jax.random.key(1))
            return sum(sums.auxiliary.values(), sums.loss + sums.z_loss)

        return jax.grad(minimised)(params)

    (_, sums), gradients = train(params, batch)
    for found, wanted in zip(
        jax.tree.leaves(gradients["teacher"]), jax.tree.leaves(alone(model.teacher, batch)), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    student = jax.jit(lambda batch: next_token_loss(model.student, batch).loss)(batch)
    np.testing.assert_allclose(sums.loss, student, rtol=1e-5)
    assert set(sums.auxiliary) == {"load_balancing_loss", "router_z_loss"} and sums.routing.assigned.shape == (2, 4)
    # The labels do not reach the student: with others its gradient is the same.
    others = replace(batch, targets=(batch.targets + 1) % 32)
    for a, b in zip(
        jax.tree.leaves(train(params, others)[1]["student"]), jax.tree.leaves(gradients["student"]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_called_the_pair_is_its_student(model, batch):
    one, other = jax.jit(lambda ids: (model(ids), model.student(ids)))(batch.tokens)
    np.testing.assert_array_equal(one, other)
    assert model.config.num_parameters() == TEACHER.num_parameters() + STUDENT.num_parameters()


def test_a_pair_survives_json_and_the_preset_is_one():
    assert config_from_dict(config_to_dict(CONFIG)) == CONFIG
    assert isinstance(preset("gemini-tiny-flash"), CoDistilledConfig)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": replace(STUDENT, vocab_size=33)}, "student.vocab_size must be that of the teacher, 32; got 33"),
        ({"student": TEACHER}, "student.experts must be none"),
        ({"temperature": 0.0}, "temperature must lie above 0"),
        ({"hard_label_weight": 2.0}, "hard_label_weight must lie in 0 .. 1"),
    ],
)
def test_two_models_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **changes)
