"""Times on a GPU or TPU: the experts' grouped products in TFLOP/s, and a sparse training step with its MFU.

    python -m experiments.speed.sparse.hardware                      # on one H100 or H200; some minutes
    JAX_PLATFORMS=cpu python -m experiments.speed.sparse.hardware    # tiny shapes: does it run?

A product's FLOPs are 2 M K N, whatever the load of the groups. Passes take turns, round by round; shown is the median.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments.speed.sparse.workload import SparseWorkload, config_of, model_of
from experiments.speed.zoo_worker import Trainer
from zoo.kernels.grouped_matmul import grouped_matmul
from zoo.nn import Execution
from zoo.training.mfu import model_flops_utilization, peak_flops

AIM_TERAFLOPS = 650.0
"""Of the forward product on an H200, at M = 8192, K = 4096, N = 14336 in 8 groups."""


@dataclass(frozen=True)
class Product:
    """One grouped product, bfloat16."""

    rows: int = 8192
    """Rows M of all groups together."""
    inner: int = 4096
    """K."""
    columns: int = 14_336
    """N."""
    groups: int = 8
    """Matrices."""

    @property
    def flops(self) -> float:
        """2 M K N, as of a dense product of as many rows."""
        return 2.0 * self.rows * self.inner * self.columns


MIXTRAL_LAYERS = SparseWorkload(
    embed_dim=4096,
    num_layers=2,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    hidden_dim=14_336,
    vocab_size=32_000,
    batch_size=8,
    length=4096,
)
"""Two layers of Mixtral 8x7B in their own widths: 3.2 billion parameters, 16 bytes each in training."""


@dataclass(frozen=True)
class Rate:
    """One pass of a product under one load."""

    pass_name: str
    """"forward", "gradient of the rows", "gradient of the matrices", or "dense": one plain product as large."""
    load: str
    """"balanced", or "uneven": half of the rows in the first group, a quarter in the second, ..."""
    seconds: float
    """Median over the rounds."""
    teraflops: float
    """10^12 FLOPs per second."""
    peak: float | None
    """Part of the device's peak, where that is known."""
    error: float | None
    """Greatest difference from the float32 product over the greatest value, in the first rows of every group."""


def group_sizes(product: Product, load: str) -> np.ndarray:
    """Rows of every group, of sum M."""
    shares = np.ones(product.groups) if load == "balanced" else 0.5 ** np.arange(1, product.groups + 1)
    sizes = np.floor(product.rows * shares / shares.sum()).astype(np.int32)
    sizes[0] += product.rows - sizes.sum()
    return sizes


def measure_products(product: Product, rounds: int) -> list[Rate]:
    """All passes under both loads, in turn; forward with its error."""
    keys = jax.random.split(jax.random.key(0), 3)
    lhs = jax.random.normal(keys[0], (product.rows, product.inner), jnp.bfloat16)
    rhs = jax.random.normal(keys[1], (product.groups, product.inner, product.columns), jnp.bfloat16)
    d_out = jax.random.normal(keys[2], (product.rows, product.columns), jnp.bfloat16)
    forward = jax.jit(grouped_matmul)
    d_lhs = jax.jit(lambda x, w, s, g: jax.vjp(lambda x: grouped_matmul(x, w, s), x)[1](g)[0])
    d_rhs = jax.jit(lambda x, w, s, g: jax.vjp(lambda w: grouped_matmul(x, w, s), w)[1](g)[0])
    dense = jax.jit(lambda x, w: jnp.matmul(x, w[0], preferred_element_type=jnp.bfloat16))
    runs: dict[tuple[str, str], Callable] = {("dense", "balanced"): lambda: dense(lhs, rhs)}
    errors = {}
    for load in ("balanced", "uneven"):
        sizes = jnp.asarray(group_sizes(product, load))
        runs["forward", load] = lambda sizes=sizes: forward(lhs, rhs, sizes)
        runs["gradient of the rows", load] = lambda sizes=sizes: d_lhs(lhs, rhs, sizes, d_out)
        runs["gradient of the matrices", load] = lambda sizes=sizes: d_rhs(lhs, rhs, sizes, d_out)
        errors["forward", load] = _error(forward(lhs, rhs, sizes), lhs, rhs, np.asarray(sizes))
    for run in runs.values():
        jax.block_until_ready(run())
    repeats = {name: max(1, min(20, int(20e-3 / max(_seconds(run, 1), 1e-6)))) for name, run in runs.items()}
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(_seconds(run, repeats[name]))
    peak, _ = peak_flops(jax.devices())
    found = []
    for (pass_name, load), times in seconds.items():
        median = statistics.median(times)
        rate = product.flops / median
        error = errors.get((pass_name, load))
        found.append(Rate(pass_name, load, median, rate / 1e12, None if peak is None else rate / peak, error))
    return found


def _error(out: jax.Array, lhs: jax.Array, rhs: jax.Array, sizes: np.ndarray, rows: int = 16) -> float:
    worst = 0.0
    for group, (first, size) in enumerate(zip(np.cumsum(sizes) - sizes, sizes)):
        own = slice(int(first), int(first + min(size, rows)))
        expected = jnp.matmul(
            lhs[own].astype(jnp.float32), rhs[group].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
        if size:
            difference = jnp.abs(out[own].astype(jnp.float32) - expected).max() / jnp.abs(expected).max()
            worst = max(worst, float(difference))
    return worst


def _seconds(run: Callable, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def measure_step(workload: SparseWorkload, rounds: int) -> dict[str, dict[str, float | str | None]]:
    """Training steps of the dense and of the dropless model, one model after the other: both do not fit."""
    peak, of_what = peak_flops(jax.devices())
    found = {}
    for kind in ("dense", "dropless"):
        execution = Execution(compute_dtype="bfloat16", remat_policy="mlp")
        trainer = Trainer(model_of(kind, workload, execution), workload, stochastic=kind != "dense")
        trainer.step(), trainer.step()
        seconds = [_seconds(trainer.step, 1) for _ in range(rounds)]
        tokens = workload.batch_size * workload.length / statistics.median(seconds)
        config = config_of(kind, workload)
        utilization = None
        if peak is not None:
            utilization = model_flops_utilization(config.flops_per_token(workload.length), tokens, peak)
        found[kind] = {
            "parameters": config.num_parameters(),
            "seconds": statistics.median(seconds),
            "tokens_per_second": tokens,
            "mfu": utilization,
            "mfu_is_a_part": of_what,
            "loss": trainer.step(),
        }
        del trainer
        jax.clear_caches()
    return found


def main() -> None:
    """Prints {"device", "products", "step", "aim"} as the last line; an argument is the number of rounds."""
    tiny = jax.default_backend() == "cpu"
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else (1 if tiny else 20)
    product = Product(64, 32, 48, 4) if tiny else Product()
    workload = tiny_workload() if tiny else MIXTRAL_LAYERS
    products = measure_products(product, rounds)
    best = next(r.teraflops for r in products if (r.pass_name, r.load) == ("forward", "balanced"))
    print(
        json.dumps(
            {
                "device": jax.devices()[0].device_kind,
                "rounds": rounds,
                "product": asdict(product),
                "products": [asdict(rate) for rate in products],
                "aim": {"teraflops": AIM_TERAFLOPS, "measured": best, "judged": not tiny},
                "workload": asdict(workload),
                "step": measure_step(workload, rounds),
            }
        )
    )


def tiny_workload() -> SparseWorkload:
    """For a CPU: does the step run?"""
    return replace(
        MIXTRAL_LAYERS,
        embed_dim=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        num_experts=4,
        hidden_dim=16,
        vocab_size=32,
        batch_size=1,
        length=16,
    )


if __name__ == "__main__":
    main()
