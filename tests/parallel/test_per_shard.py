"""Attention that every device computes on its own part equals attention of the whole arrays."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from zoo.kernels import dot_product_attention
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, make_mesh
from zoo.parallel.per_shard import per_shard
from zoo.parallel.sharding import activation_context

QUERY, KEY, TOKENS = (
    ("batch", "length", "heads", None),
    ("batch", "length", "kv_heads", None),
    ("batch", "length"),
)
IN_AXES = (QUERY, KEY, KEY, TOKENS, TOKENS)
MIXED = MeshConfig(data=2, fsdp=2, tensor=2)


def constrain(x, axes):
    """`x` with its sharding pinned by logical axes, inside of a context."""
    context = activation_context.get()
    if context is None:
        return x
    mesh, rules = context
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, rules.spec(axes)))


def attend(query, key, value, positions, segment_ids):
    return dot_product_attention(
        query,
        key,
        value,
        scale=0.3,
        sliding_window=9,
        logits_soft_cap=30.0,
        query_positions=positions,
        key_positions=positions,
        query_segment_ids=segment_ids,
        key_segment_ids=segment_ids,
        implementation="xla",
    )


def attend_per_shard(*arrays):
    return per_shard(attend, IN_AXES, QUERY)(*arrays)


def arrays(batch=4, heads=8, kv_heads=4, length=24, head_dim=8, shared_positions=False, packed=True):
    rng = np.random.default_rng(0)
    qkv = (jnp.asarray(rng.normal(size=(batch, length, n, head_dim)), jnp.float32) for n in (heads, kv_heads, kv_heads))
    positions = jnp.tile(jnp.arange(length, dtype=jnp.int32), (1 if shared_positions else batch, 1))
    cuts = rng.integers(1, length, (batch, 1))
    segments = jnp.asarray(np.arange(length) >= cuts, jnp.int32)
    return *qkv, positions, segments if packed else None


def value_and_gradients(function, qkv_and_tokens):
    def loss(*qkv):
        out = function(*qkv, *qkv_and_tokens[3:])
        return jnp.sin(out).sum(), out

    # A new function for each call: a cached program would not see the context.
    return jax.device_get(jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv_and_tokens[:3]))


@pytest.mark.parametrize(
    ("mesh", "options"),
    [
        (MIXED, {}),
        (MIXED, {"shared_positions": True, "packed": False}),
        (MeshConfig(data=1, fsdp=2, tensor=4), {"kv_heads": 2}),
        (MeshConfig(data=1, fsdp=1, tensor=8), {"kv_heads": 1}),
        (MeshConfig(data=1, fsdp=1, tensor=8), {"heads": 4, "kv_heads": 2}),
        (MeshConfig(data=8, fsdp=1), {"batch": 1}),
        (MeshConfig(data=2, fsdp=4), {"batch": 6}),
    ],
    ids=str,
)
def test_values_and_gradients_equal_those_of_whole_arrays(mesh, options):
    qkv_and_tokens = arrays(**options)
    expected = value_and_gradients(attend, qkv_and_tokens)
    with activation_sharding(make_mesh(mesh), ShardingRules()):
        result = value_and_gradients(attend_per_shard, qkv_and_tokens)
    chex.assert_trees_all_close(result, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "rules",
    [ShardingRules(kv_heads=None), ShardingRules(heads=None), ShardingRules(batch="data", kv_heads="fsdp")],
    ids=["heads only", "kv_heads only", "on two mesh axes"],
)
def test_rules_may_divide_heads_and_kv_heads_differently(rules):
    qkv_and_tokens = arrays(heads=8, kv_heads=4)
    expected = value_and_gradients(attend, qkv_and_tokens)
    with activation_sharding(make_mesh(MIXED), rules):
        result = value_and_gradients(attend_per_shard, qkv_and_tokens)
    chex.assert_trees_all_close(result, expected, atol=2e-6, rtol=1e-5)


def test_each_device_sees_its_part_only():
    seen = []

    def record(query, key, value, positions, segment_ids):
        seen.append((query.shape, key.shape, positions.shape, segment_ids.shape))
        return query

    with activation_sharding(make_mesh(MIXED), ShardingRules()):
        per_shard(record, IN_AXES, QUERY)(*arrays(shared_positions=True))
    with activation_sharding(make_mesh(MeshConfig(fsdp=1, tensor=8)), ShardingRules()):
        per_shard(record, IN_AXES, QUERY)(*arrays())
    assert seen == [
        ((1, 24, 4, 8), (1, 24, 2, 8), (1, 24), (1, 24)),
        ((4, 24, 1, 8), (4, 24, 1, 8), (4, 24), (4, 24)),
    ]


def doubled_on_the_host(x):
    """An operation that XLA, like a kernel on a device, cannot divide."""
    return jax.pure_callback(lambda x: 2 * np.asarray(x), jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def collectives(function, operands) -> list[str]:
    program = jax.jit(function).lower(*operands).compile().as_text()
    return re.findall(r"(all-gather|all-to-all|collective-permute)\S*\(", program)


def test_sharded_operands_are_not_gathered():
    mesh, rules = make_mesh(MIXED), ShardingRules()
    operands = [jax.device_put(x, NamedSharding(mesh, rules.spec(axes))) for x, axes in zip(arrays(), IN_AXES)]

    def attend_and_double(*operands):
        return doubled_on_the_host(attend(*operands))

    with activation_sharding(mesh, rules):
        assert collectives(lambda *x: constrain(attend_and_double(*x), QUERY), operands)
        assert not collectives(lambda *x: constrain(per_shard(attend_and_double, IN_AXES, QUERY)(*x), QUERY), operands)
        gradients = jax.grad(lambda *x: attend_per_shard(*x).sum(), argnums=(0, 1, 2))
        assert not collectives(gradients, operands)


def test_it_works_inside_a_rematerialised_scan():
    qkv_and_tokens = arrays()

    def layers(attend, query, key, value, *tokens):
        def layer(carry, _):
            out = jax.jit(attend)(carry, key, value, *tokens)
            return carry + constrain(out, QUERY), None

        return jax.lax.scan(jax.checkpoint(layer), query, None, length=3)[0]

    expected = value_and_gradients(partial(layers, attend), qkv_and_tokens)
    with activation_sharding(make_mesh(MIXED), ShardingRules()):
        result = value_and_gradients(partial(layers, attend_per_shard), qkv_and_tokens)
    chex.assert_trees_all_close(result, expected, atol=1e-5, rtol=1e-4)


def test_no_context_is_active_inside():
    def constrained(query):
        return constrain(query, QUERY) + 1

    query = arrays()[0]
    with activation_sharding(make_mesh(MIXED), ShardingRules()):
        np.testing.assert_array_equal(per_shard(constrained, (QUERY,), QUERY)(query), query + 1)


def test_outside_of_a_context_it_is_the_function_itself():
    assert per_shard(attend, IN_AXES, QUERY) is attend


def test_what_cannot_be_divided_raises():
    with activation_sharding(make_mesh(MIXED), ShardingRules(batch="data", length="fsdp")):
        with pytest.raises(NotImplementedError, match="divided length"):
            attend_per_shard(*arrays())
    with activation_sharding(make_mesh(MIXED), ShardingRules()):
        with pytest.raises(ValueError, match="sizes 4 and 2 along axis 'batch'"):
            attend_per_shard(arrays()[0], *arrays(batch=2)[1:])
    with activation_sharding(make_mesh(MeshConfig(fsdp=1, tensor=6), jax.devices()[:6]), ShardingRules()):
        with pytest.raises(ValueError, match="2 query heads per device are neither whole groups of 3"):
            attend_per_shard(*arrays(heads=12, kv_heads=4))
