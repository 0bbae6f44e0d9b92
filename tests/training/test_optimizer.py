"""AdamW against its equations, PSGD Kron, schedules at their corners, frozen parameters, senseless settings refused."""

from dataclasses import replace
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zoo.errors import UserError
from zoo.training import preconditioning
from zoo.training.checkpoints import Checkpoints
from zoo.training.optimizer import OptimizerConfig, make_optimizer, make_schedule
from zoo.training.parameters import flatten_with_names, matches, nested_dict
from zoo.training.state import abstract_state, create_state, optimizer_shardings

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
        {"kind": "adam"},
    ],
)
def test_a_senseless_setting_is_refused_by_name(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        OptimizerConfig(**settings)


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(UserError, match="steps"):
        make_schedule(PLAIN, 0)


# ---- PSGD Kron

KRON = OptimizerConfig(kind="kron", learning_rate=0.01, schedule="constant", weight_decay=0.0, clip_norm=None)

needs_rollfast = pytest.mark.skipif(find_spec("rollfast") is None, reason="rollfast is not installed (extra `kron`)")


def quadratic(seed: int = 0):
    """A badly conditioned function of a matrix, sum_ij a_i b_j x_ij**2 / 2 with curvatures from 1 to 10**4."""
    a, b = jnp.geomspace(1, 100, 8), jnp.geomspace(1, 100, 16)
    start = {"w": jnp.asarray(np.random.default_rng(seed).standard_normal((8, 16)), jnp.float32)}
    rotations = [jnp.linalg.qr(jax.random.normal(jax.random.key(n), (n, n)))[0] for n in (8, 16)]

    def loss(params):
        return 0.5 * jnp.sum(a[:, None] * b * (rotations[0] @ params["w"] @ rotations[1]) ** 2)

    return loss, start


@needs_rollfast
def test_kron_goes_down_a_rotated_valley_faster_than_adamw():
    loss, start = quadratic()

    def after(config, steps=300):
        optimizer = make_optimizer(config, steps, start)

        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        params, state = start, optimizer.init(start)
        for _ in range(steps):
            params, state = step(params, state)
        return float(loss(params))

    linear = dict(learning_rate=0.03, schedule="cosine", final_learning_rate_fraction=0.0)
    kron, adamw = after(replace(KRON, **linear)), after(replace(PLAIN, weight_decay=0.0, **linear))
    assert kron < adamw / 10 < float(loss(start)) / 100


@needs_rollfast
def test_kron_decays_and_freezes_what_adamw_does():
    params = make_params()
    nothing = [jax.tree.map(jnp.zeros_like, params)]
    config = replace(KRON, learning_rate=0.1, weight_decay=0.5)
    found, state = train(make_optimizer(config, 1, params, ("embedder",)), params, nothing)
    for name, param in flatten_with_names(params).items():
        decayed = name.endswith("up")
        np.testing.assert_allclose(found[name], param * (0.95 if decayed else 1.0), rtol=1e-6, err_msg=name)
    assert not any("embedder" in name for name in flatten_with_names(state))


@needs_rollfast
def test_kron_keeps_factors_of_rows_and_columns_and_a_diagonal_of_a_vocabulary():
    params = {"embedding": jnp.ones((400, 8)), "up": jnp.ones((16, 16)), "scale": jnp.ones(8)}
    state = flatten_with_names(make_optimizer(KRON, 1, params).init(params))
    shapes = {name.split("Qs_preconditioners/")[1]: a.shape for name, a in state.items() if "Qs_precond" in name}
    assert shapes == {
        "embedding/0": (400,),
        "embedding/1": (8, 8),
        "up/0": (16, 16),
        "up/1": (16, 16),
        "scale/0": (8,),
    }


@needs_rollfast
def test_kron_keeps_factors_of_its_own_for_every_layer_of_a_stack_and_every_expert():
    class Layer(nnx.Module):
        def __init__(self):
            self.up = nnx.Param(jnp.ones((3, 8, 16)), axes=("embed", "mlp"))  # scanned
            self.gate = nnx.Param(jnp.ones((4, 16, 16)), axes=("experts", "expert_embed", "expert_mlp"))
            self.query = nnx.Param(jnp.ones((8, 2, 4)), axes=("embed", "heads", None))

    params = nnx.state(Layer(), nnx.Param)
    state = flatten_with_names(make_optimizer(KRON, 1, params).init(params))
    shapes = {name.split("Qs_preconditioners/")[1]: a.shape for name, a in state.items() if "Qs_precond" in name}
    assert shapes["up/0"] == (3, 8, 8) and shapes["gate/1"] == (4, 16, 16) and shapes["query/2"] == (4, 4)


@needs_rollfast
def test_kron_refuses_experts_in_scanned_layers():
    class Layer(nnx.Module):
        def __init__(self):
            self.gate = nnx.Param(jnp.ones((3, 4, 8, 16)), axes=("experts", "expert_embed", "expert_mlp"))

    with pytest.raises(UserError, match="gate is stacked over layers and over experts.*scan_layers"):
        make_optimizer(KRON, 1, nnx.state(Layer(), nnx.Param))


@needs_rollfast
def test_krons_factors_lie_on_the_devices_of_their_parameter_and_give_the_same_updates():
    mesh = jax.make_mesh((2, 4), ("tensor", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    rng = np.random.default_rng(0)
    params = {"up": jnp.asarray(rng.standard_normal((16, 16)), jnp.float32), "scale": jnp.ones(6)}
    gradients = [jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), p.dtype), params) for _ in range(3)]
    optimizer = make_optimizer(KRON, 3, params)
    expected = train(optimizer, params, gradients)[0]
    placed = {
        "up": jax.device_put(params["up"], NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))),
        "scale": jax.device_put(params["scale"], NamedSharding(mesh, PartitionSpec())),
    }
    shardings = flatten_with_names(optimizer_shardings(optimizer, placed))
    specs = {name.split("Qs_preconditioners/")[1]: s.spec for name, s in shardings.items() if "Qs_precond" in name}
    rows = PartitionSpec(("fsdp", "tensor"))
    assert specs == {"up/0": rows, "up/1": rows, "scale/0": PartitionSpec()}
    state = create_state(placed, optimizer)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, opt_state = update(gradient, state.opt_state, state.params)
        state = replace(state, params=optax.apply_updates(state.params, updates), opt_state=opt_state)
    for name, param in state.params.items():
        np.testing.assert_allclose(param, expected[name], rtol=1e-4, atol=1e-5)


@needs_rollfast
def test_a_run_with_kron_is_resumed_bit_for_bit(tmp_path):
    params, gradients = make_params(), [make_params(seed) for seed in range(1, 5)]
    named = nested_dict(flatten_with_names(params))
    gradients = [nested_dict(flatten_with_names(gradient)) for gradient in gradients]
    optimizer = make_optimizer(KRON, 4, named)
    update = jax.jit(optimizer.update)

    def go_on(state, gradients):
        for gradient in gradients:
            updates, opt_state = update(gradient, state.opt_state, state.params)
            state = replace(state, params=optax.apply_updates(state.params, updates), opt_state=opt_state)
        return state

    half = go_on(create_state(named, optimizer), gradients[:2])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(2, half, data_state={}, meta={"run": {}}, validation_loss=None)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_newest(abstract_state(named, optimizer))
    for a, b in zip(jax.tree.leaves(go_on(half, gradients[2:]).params),
                    jax.tree.leaves(go_on(restored.state, gradients[2:]).params), strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)


def test_kron_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(preconditioning.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="optimizer.kind=kron needs rollfast, .*pip install rollfast"):
        make_optimizer(KRON, 1, make_params())


@pytest.mark.parametrize(
    "settings", [{"kind": "kron", "b2": 0.9}, {"kind": "kron", "eps": 1e-6}, {"kron_learning_rate": 0.2}]
)
def test_a_setting_that_the_optimizer_does_not_have_is_refused(settings):
    with pytest.raises(UserError, match="has no meaning for optimizer.kind"):
        OptimizerConfig(**settings)
