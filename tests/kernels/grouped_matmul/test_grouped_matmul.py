"""Every implementation of the grouped product against sums in float64, forward and backward."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.marks import all_but
from zoo.kernels.grouped_matmul import cpu, dispatch, grouped_matmul
from zoo.kernels.grouped_matmul.gpu import Tile, gpu_outer, gpu_product
from zoo.kernels.grouped_matmul.schedule import block_steps, tile_steps, with_rest
from zoo.kernels.grouped_matmul.tpu import tpu_outer, tpu_product

IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu", "pallas_gpu")

SIZES = {
    "uneven": (70, [3, 41, 20, 6]),
    "empty groups and rows of none": (70, [0, 33, 0, 0, 20, 0]),
    "all rows in one": (70, [0, 70, 0]),
    "no rows in any": (37, [0, 0, 0]),
    "one row each": (5, [1, 1, 1, 1, 1]),
    "no rows at all": (0, [0, 0]),
    "whole tiles": (384, [128, 0, 256]),
    "one past a tile": (390, [129, 127, 1, 128]),
}


def expected(lhs, rhs, d_out, sizes):
    """(out, d_lhs, d_rhs) in float64, group by group."""
    lhs, rhs, d_out = (np.asarray(x, np.float64) for x in (lhs, rhs, d_out))
    out, d_lhs, d_rhs = np.zeros((len(lhs), rhs.shape[2])), np.zeros_like(lhs), np.zeros_like(rhs)
    first = 0
    for group, size in enumerate(sizes):
        rows = slice(first, first + size)
        out[rows], d_lhs[rows] = lhs[rows] @ rhs[group], d_out[rows] @ rhs[group].T
        d_rhs[group] = lhs[rows].T @ d_out[rows]
        first += size
    return out, d_lhs, d_rhs


def arrays(num_rows, groups, k=24, n=40, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in ((num_rows, k), (groups, k, n), (num_rows, n))]


@functools.partial(jax.jit, static_argnums=4)
def run(lhs, rhs, d_out, sizes, implementation):
    out, pull = jax.vjp(lambda lhs, rhs: grouped_matmul(lhs, rhs, sizes, implementation=implementation), lhs, rhs)
    return out, *pull(d_out)


def assert_equal(found, wanted, tolerance):
    for name, one, other in zip(("out", "d_lhs", "d_rhs"), found, wanted, strict=True):
        bound = tolerance * max(np.abs(other).max(initial=0), 1)
        np.testing.assert_allclose(np.asarray(one, np.float64), other, rtol=0, atol=bound, err_msg=name)


ORDINARY = [
    ("uneven", "xla"),
    ("one past a tile", "xla"),
    *((case, name) for case in ("empty groups and rows of none",) for name in IMPLEMENTATIONS),
    ("one past a tile", "pallas_tpu"),
]


@pytest.mark.parametrize(
    ("case", "implementation"), all_but(ORDINARY, [(case, name) for case in SIZES for name in IMPLEMENTATIONS])
)
def test_products_and_gradients_equal_sums_in_float64(case, implementation):
    num_rows, sizes = SIZES[case]
    lhs, rhs, d_out = arrays(num_rows, len(sizes))
    found = run(lhs, rhs, d_out, jnp.array(sizes, jnp.int32), implementation)
    assert [x.dtype for x in found] == [jnp.float32] * 3
    assert_equal(found, expected(lhs, rhs, d_out, sizes), 2e-6)


@pytest.mark.parametrize("implementation", ["xla", *[pytest.param(x, marks=pytest.mark.slow) for x in IMPLEMENTATIONS]])
def test_bfloat16_is_summed_in_float32(implementation):
    sizes = [300, 0, 210]
    lhs, rhs, d_out = arrays(520, 3, dtype=jnp.bfloat16)
    found = run(lhs, rhs, d_out, jnp.array(sizes, jnp.int32), implementation)
    assert [x.dtype for x in found] == [jnp.bfloat16] * 3
    # Half a unit of bfloat16's last place, and nothing of 300 additions.
    assert_equal(found, expected(lhs, rhs, d_out, sizes), 2.0**-8)


@pytest.mark.parametrize("implementation", ["xla", *[pytest.param(x, marks=pytest.mark.slow) for x in IMPLEMENTATIONS]])
def test_rows_of_no_group_may_hold_anything_and_get_zeros(implementation):
    sizes, held = [11, 0, 20], 31
    lhs, rhs, d_out = arrays(64, 3)
    dirty = [x.at[held:].set(jnp.nan) for x in (lhs, d_out)]
    found = run(dirty[0], rhs, dirty[1], jnp.array(sizes, jnp.int32), implementation)
    assert_equal(found, expected(lhs, rhs, d_out, sizes), 2e-6)
    assert not np.asarray(found[0][held:]).any() and not np.asarray(found[1][held:]).any()
    assert not np.asarray(found[2][1]).any()


def test_the_many_sizes_of_blocks_for_large_matrices_cover_every_row_once(monkeypatch):
    monkeypatch.setattr(cpu, "LARGE", 1)
    sizes = [1500, 0, 31, 447, 70]
    lhs, rhs, d_out = arrays(2100, 5, 8, 16)
    products = jax.jit(
        lambda lhs, rhs, d_out, sizes: (
            cpu.cpu_product(lhs, rhs, sizes),
            cpu.cpu_product(d_out, rhs, sizes, transposed=True),
            cpu.cpu_outer(lhs, d_out, sizes),
        )
    )
    assert_equal(products(lhs, rhs, d_out, jnp.array(sizes, jnp.int32)), expected(lhs, rhs, d_out, sizes), 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_random_group_sizes_in_one_program(implementation):
    rng = np.random.default_rng(1)
    lhs, rhs, d_out = arrays(200, 7)
    for _ in range(20):
        weights = rng.dirichlet(np.full(8, rng.choice([0.1, 1.0, 10.0])))
        sizes = rng.multinomial(200, weights)[:7]
        found = run(lhs, rhs, d_out, jnp.array(sizes, jnp.int32), implementation)
        assert_equal(found, expected(lhs, rhs, d_out, sizes), 2e-6)


def with_tiles(product, outer, lhs, rhs, d_out, sizes):
    group_sizes = jnp.array(sizes, jnp.int32)
    found = product(lhs, rhs, group_sizes), product(d_out, rhs, group_sizes, transposed=True)
    assert_equal((*found, outer(lhs, d_out, group_sizes)), expected(lhs, rhs, d_out, sizes), 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(136, 260), (256, 128), (24, 40)])
@pytest.mark.parametrize("sizes", [[100, 1, 0, 60], [0, 0, 128, 52]])
def test_tiles_of_every_side_that_do_and_do_not_fit(sides, sizes):
    lhs, rhs, d_out = arrays(190, 4, *sides)
    for tiles in ((128, 128, 128), (16, 128, 256)):
        options = {"tiles": tiles, "interpret": True}
        with_tiles(functools.partial(tpu_product, **options), functools.partial(tpu_outer, **options),
                   lhs, rhs, d_out, sizes)  # fmt: skip
    for tile in (Tile(16, 32, 16, 4, 2), Tile(64, 16, 64, 4, 2)):
        options = {"tile": tile, "interpret": True}
        with_tiles(functools.partial(gpu_product, **options), functools.partial(gpu_outer, **options),
                   lhs, rhs, d_out, sizes)  # fmt: skip


def test_it_runs_in_scanned_and_rematerialised_layers_on_several_devices():
    sizes = jnp.array([[5, 0, 11], [16, 0, 0]], jnp.int32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    lhs, _, _ = arrays(32, 3, 8, 8)
    weights = jnp.stack([arrays(1, 3, 8, 8, seed=seed)[1] for seed in range(2)])
    spec = jax.sharding.PartitionSpec

    def local(x, weights, sizes):
        layer = jax.checkpoint(lambda x, w: (jnp.tanh(grouped_matmul(x, w, sizes[0])), None))
        return jax.lax.scan(layer, x, weights)[0]

    def total(x, weights, product):
        return jnp.sum(product(x, weights) ** 2)

    def divided(x, weights):
        specs = spec("data"), spec(), spec("data")
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=spec("data"), check_vma=False)(
            x, weights, sizes
        )

    def whole(x, weights):
        halves = [local(part, weights, own[None]) for part, own in zip(x.reshape(2, 16, 8), sizes)]
        return jnp.concatenate(halves)

    found, wanted = (
        jax.jit(jax.grad(lambda x, w, f=f: total(x, w, f), (0, 1)))(lhs, weights) for f in (divided, whole)
    )
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_steps_visit_every_row_of_every_group_once():
    rng = np.random.default_rng(0)
    for _ in range(8):
        num_rows, size = int(rng.integers(1, 90)), int(rng.choice([8, 16, 32]))
        sizes = rng.multinomial(num_rows, rng.dirichlet(np.full(6, 0.5)))[:5]
        full = with_rest(jnp.array(sizes, jnp.int32), num_rows)
        owner = np.repeat(np.arange(6), np.asarray(full))
        for steps, scale in (
            (tile_steps(full, num_rows, size, empty=False), size),
            (block_steps(full, num_rows, size), 1),
        ):
            visited = np.full(num_rows, -1)
            assert int(steps.used) <= len(steps.group)
            for step in range(int(steps.used)):
                group, first = int(steps.group[step]), int(steps.block[step]) * scale
                rows = np.arange(max(first, int(steps.first[group])), min(first + size, int(steps.end[group])))
                assert len(rows) and (visited[rows] == -1).all()
                visited[rows] = group
            np.testing.assert_array_equal(visited, owner)


def test_the_choice_is_logged_once(caplog):
    dispatch._load.cache_clear()
    lhs, rhs, _ = arrays(4, 1)
    with caplog.at_level(logging.INFO, logger="zoo.kernels.grouped_matmul.dispatch"):
        for _ in range(2):
            grouped_matmul(lhs, rhs, jnp.array([4], jnp.int32))
    assert [record.getMessage() for record in caplog.records] == ["grouped matmul implementation: xla"]


def test_what_does_not_fit_is_refused():
    lhs, rhs, _ = arrays(4, 2)
    sizes = jnp.array([2, 2], jnp.int32)
    with pytest.raises(ValueError, match="unknown grouped matmul implementation 'cuda'; known: reference, xla"):
        grouped_matmul(lhs, rhs, sizes, implementation="cuda")
    with pytest.raises(ValueError, match=r"got \(4, 24\), \(2, 40, 24\) and \(2,\)"):
        grouped_matmul(lhs, rhs.swapaxes(1, 2), sizes)
    for product in (tpu_product, gpu_product):
        with pytest.raises(NotImplementedError, match="not int8"):
            product(lhs.astype(jnp.int8), rhs.astype(jnp.int8), sizes)
