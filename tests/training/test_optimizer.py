"""AdamW against its equations, schedules at their corners, frozen parameters, refusal of senseless settings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from zoo.errors import UserError
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.parameters import flatten_with_names, matches

PLAIN = OptimizerConfig(learning_rate=0.1, schedule="constant", b2=0.99, weight_decay=0.5, clip_norm=None)


def make_params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    shapes = {
        "embedder": {"embedding": (5, 3)},
        "layers": {0: {"norm": {"scale": (3,)}, "mlp": {"up": (3, 4), "bias": (4,)}}, 1: {"mlp": {"up": (3, 4)}}},
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def train(optimizer: optax.GradientTransformation, params, gradients: list):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return flatten_with_names(params), state


def reference_adamw(param, gradients, rates, *, b1, b2, eps, decay):
    """The order of operations of torch.optim.AdamW, in float64."""
    p, m, v = np.asarray(param, np.float64), 0.0, 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates), start=1):
        g = np.asarray(g, np.float64)
        p = p * (1 - rate * decay)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return p


@pytest.mark.parametrize("decay_all", [False, True])
def test_updates_are_those_of_decoupled_adamw_and_norms_and_biases_are_not_decayed(decay_all):
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=3, weight_decay=0.5, eps=1e-3, clip_norm=0, decay_all=decay_all
    )
    params, gradients = make_params(), [make_params(seed) for seed in range(1, 6)]
    found, _ = train(make_optimizer(config, 5, params), params, gradients)
    rates = [float(make_schedule(config, 5)(step)) for step in range(5)]
    for name, param in flatten_with_names(params).items():
        decay = 0.5 if decay_all or name.endswith(("up", "embedding")) else 0.0
        expected = reference_adamw(
            param, [flatten_with_names(g)[name] for g in gradients], rates, b1=0.9, b2=0.95, eps=1e-3, decay=decay
        )
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)


def test_torch_computes_the_same():
    torch = pytest.importorskip("torch", reason="torch is not installed (it comes with the extra `verify`)")
    params, gradients = make_params(), [make_params(seed) for seed in range(1, 8)]
    found, _ = train(make_optimizer(PLAIN, 7, params), params, gradients)
    ours = torch.nn.Parameter(torch.tensor(np.asarray(params["embedder"]["embedding"])))
    adamw = torch.optim.AdamW([ours], lr=0.1, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.5)
    for gradient in gradients:
        ours.grad = torch.tensor(np.asarray(gradient["embedder"]["embedding"]))
        adamw.step()
    np.testing.assert_allclose(found["embedder/embedding"], ours.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped_by_their_global_norm():
    params, gradient = make_params(), make_params(1)
    norm = float(optax.tree.norm(gradient))
    small = jax.tree.map(lambda g: g * (0.5 / norm), gradient)
    config = OptimizerConfig(
        schedule="constant", clip_norm=0.5, eps=1.0
    )  # a large eps lets the size of a gradient matter
    clipped, _ = train(make_optimizer(config, 1, params), params, [gradient])
    already_small, _ = train(make_optimizer(config, 1, params), params, [small])
    for name in clipped:
        np.testing.assert_allclose(clipped[name], already_small[name], rtol=1e-6)


def test_the_first_moment_can_be_kept_in_bfloat16():
    params = make_params()
    config = OptimizerConfig(mu_dtype="bfloat16")
    _, state = train(make_optimizer(config, 2, params), params, [make_params(1), make_params(2)])
    named = flatten_with_names(state)
    assert {leaf.dtype for name, leaf in named.items() if "/mu/" in name} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for name, leaf in named.items() if "/nu/" in name} == {jnp.dtype(jnp.float32)}


# ---- schedules


def rates(steps: int, **settings) -> np.ndarray:
    config = OptimizerConfig(learning_rate=1.0, **settings)
    return np.array([make_schedule(config, steps)(step) for step in range(steps)])


def test_cosine_warms_up_from_above_zero_and_falls_to_the_final_fraction():
    found = rates(100, warmup_steps=10, final_learning_rate_fraction=0.1)
    np.testing.assert_allclose(found[:10], np.arange(1, 11) / 10, rtol=1e-6)
    assert found[10] == 1.0
    np.testing.assert_allclose(found[55], 0.55, rtol=1e-6)
    assert 0.1 < found[-1] < 0.101
    assert (np.diff(found[10:]) < 0).all()


def test_wsd_is_stable_until_its_decay():
    found = rates(100, schedule="wsd", warmup_steps=10, decay_fraction=0.2, final_learning_rate_fraction=0.0)
    np.testing.assert_allclose(found[9:81], 1.0)
    np.testing.assert_allclose(found[80:], 1 - np.sqrt(np.arange(20) / 20), atol=1e-6)


def test_constant_stays_at_the_peak():
    assert (rates(5, schedule="constant") == 1.0).all()


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_run_shorter_than_its_warm_up_ends_within_it(schedule):
    np.testing.assert_allclose(rates(3, schedule=schedule, warmup_steps=10), [0.1, 0.2, 0.3], rtol=1e-6)


# ---- freezing


def test_frozen_parameters_keep_their_values_and_have_no_optimizer_state():
    params, gradients = make_params(), [make_params(1), make_params(2)]
    optimizer = make_optimizer(PLAIN, 2, params, frozen_patterns=("embedder.*", "layers/0/mlp"))
    found, state = train(optimizer, params, gradients)
    before = flatten_with_names(params)
    changed = {name for name in found if (found[name] != before[name]).any()}
    assert changed == {"layers/0/norm/scale", "layers/1/mlp/up"}
    moments = {name.split("/mu/")[1] for name in flatten_with_names(state) if "/mu/" in name}
    assert moments == changed


def test_clipping_does_not_count_the_gradients_of_frozen_parameters():
    params, gradient = make_params(), make_params(1)
    huge = {**gradient, "embedder": {"embedding": 1e6 * gradient["embedder"]["embedding"]}}
    config = OptimizerConfig(schedule="constant", clip_norm=1.0, eps=1.0)
    optimizer = make_optimizer(config, 1, params, frozen_patterns=("embedder",))
    for name, value in train(optimizer, params, [huge])[0].items():
        np.testing.assert_array_equal(value, train(optimizer, params, [gradient])[0][name])


def test_an_optimizer_of_a_flax_model_has_state_with_plain_string_keys():
    class Layer(nnx.Module):
        def __init__(self):
            self.weight = nnx.Param(jnp.ones((2, 2)))

    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([Layer(), Layer()])

    _, params = nnx.split(Model(), nnx.Param)
    state = make_optimizer(PLAIN, 1, params).init(params)
    (adam,) = [part for part in jax.tree.leaves(state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu")]
    assert adam.mu.keys() == {"layers"} and adam.mu["layers"].keys() == {"0", "1"}
    assert isinstance(adam.mu["layers"]["0"]["weight"], jax.Array)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("embedder.*", "embedder/embedding", True),
        ("embedder", "embedder/embedding", True),
        ("embed", "embedder/embedding", False),
        ("layers/0/*", "layers/0/mlp/up", True),
        ("layers/0", "layers/0/mlp/up", True),
        ("layers/1", "layers/10/mlp/up", False),
        ("layers/[01]/*", "layers/1/mlp/up", True),
        ("*norm/scale", "layers/3/pre_attention_norm/scale", True),
        ("*", "final_norm/scale", True),
        ("re:layers/(0|2)/.*", "layers/2/mlp/up", True),
        ("re:layers/(0|2)/.*", "layers/1/mlp/up", False),
    ],
)
def test_which_parameters_a_pattern_covers(pattern, name, expected):
    assert matches(pattern, name) is expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("embeder", "matches no parameter.*embedder/embedding"),
        ("re:(", "not a regular expression"),
        ("*", "leaves no parameter to train"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(pattern, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(PLAIN, 1, make_params(), frozen_patterns=(pattern,))


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": -1e-3},
        {"learning_rate": float("nan")},
        {"learning_rate": 1e6},
        {"schedule": "cosin"},
        {"warmup_steps": -1},
        {"final_learning_rate_fraction": 1.5},
        {"decay_fraction": -0.1},
        {"b1": 1.0},
        {"b2": -0.5},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"clip_norm": -1.0},
        {"accumulation_steps": 0},
        {"mu_dtype": "float16"},
    ],
)
def test_a_senseless_setting_is_refused_by_name(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        OptimizerConfig(**settings)


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(UserError, match="steps"):
        make_schedule(PLAIN, 0)
