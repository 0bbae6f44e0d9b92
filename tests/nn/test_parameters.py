import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zoo.nn.parameters import fan_in_normal, parameter, project


@pytest.mark.parametrize(
    ("equation", "inputs", "weight"),
    [
        ("btd,df->btf", (2, 3, 8), (8, 5)),
        ("btd,dnh->btnh", (2, 3, 8), (8, 4, 2)),
        ("btnh,nhd->btd", (2, 3, 4, 2), (4, 2, 8)),
    ],
)
def test_project_is_the_einsum_of_its_equation(equation, inputs, weight):
    x, w = jax.random.normal(jax.random.key(0), inputs), jax.random.normal(jax.random.key(1), weight)
    np.testing.assert_allclose(project(equation, x, w), jnp.einsum(equation, x, w), atol=1e-5)


def test_project_refuses_an_equation_it_cannot_flatten():
    with pytest.raises(ValueError, match="contracted"):
        project("btd,fd->btf", jnp.ones((2, 3, 8)), jnp.ones((5, 8)))


def test_project_keeps_the_activation_dtype():
    assert (
        project("btd,df->btf", jnp.ones((1, 1, 8), jnp.bfloat16), jnp.ones((8, 4), jnp.float32)).dtype == jnp.bfloat16
    )


def test_fan_in_normal_gives_unit_variance_products():
    weight = fan_in_normal(1024)(jax.random.key(0), (1024, 256), jnp.float32)
    product = jax.random.normal(jax.random.key(1), (64, 1024)) @ weight
    assert abs(float(product.std()) - 1) < 0.05


def test_a_parameter_carries_one_axis_name_per_dimension():
    rngs = nnx.Rngs(0)
    assert parameter(rngs, (4, 2), ("embed", "mlp"), fan_in_normal(4), jnp.float32).get_metadata("axes") == (
        "embed",
        "mlp",
    )
    with pytest.raises(ValueError, match="differ in length"):
        parameter(rngs, (4, 2), ("embed",), fan_in_normal(4), jnp.float32)
