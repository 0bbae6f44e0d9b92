"""Times on a GPU: our kernels against cuDNN, tokamax and blocked XLA, with the error of each against float64 beside it.

    python -m experiments.attention_kernels.hardware            # on a GPU; about half an hour for everything
    JAX_PLATFORMS=cpu python -m experiments.attention_kernels.hardware   # tiny shapes in interpret mode: does it run?

All implementations of a row take turns, round by round; shown is the median. A pass that lasts less than 5 ms is called
several times in a row. A backward pass is timed alone: the residuals of the forward pass are its inputs.
"""

import dataclasses
import importlib
import importlib.util
import inspect
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.attention_kernels.subjects import GEMMA2_9B, GEMMA2_27B, SOFT_CAP, WINDOW, Shape, attention_inputs
from zoo.ahead_of_time.gpu import TARGETS
from zoo.kernels.attention.xla import xla_attention
from zoo.kernels.local_attention.gpu import local_attention_gpu
from zoo.kernels.local_attention.hopper import local_attention_hopper

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

ZOO_KERNELS = ("zoo triton", "zoo mosaic")
"""The contestants that are ours."""


@dataclass(frozen=True)
class Setting:
    """One row of the table: a layer and a pass."""

    shape: Shape
    """Heads."""
    length: int
    """Tokens T; B = 1."""
    sliding_window: int
    """Window W."""
    logits_soft_cap: float | None
    """Soft-cap of the scores."""
    backward: bool
    """Which pass."""

    @property
    def flops(self) -> float:
        """4 H (backward 10 H) per head and visible pair; P = W T - W (W - 1) / 2 pairs."""
        window = min(self.sliding_window, self.length)
        pairs = window * self.length - window * (window - 1) // 2
        return (10 if self.backward else 4) * self.shape.head_dim * self.shape.heads * pairs


@dataclass(frozen=True)
class Time:
    """One implementation in one setting."""

    shape: str
    """Heads, by the model's name."""
    length: int
    """Tokens T."""
    sliding_window: int
    """Window W."""
    logits_soft_cap: float | None
    """Soft-cap of the scores."""
    backward: bool
    """Which pass."""
    implementation: str
    """Who."""
    seconds: float | None
    """Median over the rounds; None when it failed."""
    teraflops: float | None
    """10^12 useful FLOPs per second."""
    peak: float | None
    """Part of the device's peak, where that is known."""
    error: float | None
    """Greatest difference from float64 over the greatest value, of the result or the worst gradient."""
    failure: str | None = None
    """What it raised."""


def settings(tiny: bool) -> list[Setting]:
    """All rows; `tiny`: shapes that interpret mode takes seconds for."""
    if tiny:
        shape = Shape("tiny", 2, 1, 64)
        return [Setting(shape, 128, 48, SOFT_CAP, backward) for backward in (False, True)]
    return [
        Setting(shape, length, WINDOW, soft_cap, backward)
        for length in (8192, 32_768, 131_072)
        for shape in (GEMMA2_9B, GEMMA2_27B)
        for soft_cap in (SOFT_CAP, None)
        for backward in (False, True)
    ]


def window_settings() -> list[Setting]:
    """The speed-up against window length, at T = 32k with the heads of 9B."""
    return [
        Setting(GEMMA2_9B, 32_768, window, None, backward)
        for window in (512, 1024, 2048, 4096, 8192, 16_384, 32_768)
        for backward in (False, True)
    ]


def contestants(setting: Setting) -> dict[str, Attention]:
    """Everybody who can compute the setting, by name; whoever then fails is listed with what was raised."""
    window, cap = setting.sliding_window, setting.logits_soft_cap
    scale = setting.shape.head_dim**-0.5

    def ours(implementation):
        return lambda q, k, v: implementation(attention_inputs(q, k, v, window, cap))

    found = {"zoo triton": ours(local_attention_gpu), "zoo xla": ours(xla_attention)}
    if jax.default_backend() != "gpu":
        return found
    found["zoo mosaic"] = ours(local_attention_hopper)
    if cap is None:
        found["cudnn"] = partial(
            jax.nn.dot_product_attention,
            scale=scale,
            is_causal=True,
            local_window_size=(window - 1, 0),
            implementation="cudnn",
        )
    elif (capped := _cudnn_with_cap(scale, window, cap)) is not None:
        found["cudnn score_mod"] = capped
    if importlib.util.find_spec("tokamax") is not None:
        # In no extra, since it pins packages to versions of its own; timed where somebody has installed it.
        tokamax = importlib.import_module("tokamax")
        for name in ("mosaic", "triton"):
            found[f"tokamax {name}"] = partial(
                tokamax.dot_product_attention,
                scale=scale,
                is_causal=True,
                local_window_size=(window - 1, 0),
                logits_soft_cap=cap,
                implementation=name,
            )
    return found


def _cudnn_with_cap(scale: float, window: int, cap: float) -> Attention | None:
    """cuDNN's own graph for cap * tanh(scores / cap); only newer versions of jax have it, and not in public."""
    try:
        from jax._src.cudnn import fused_attention_stablehlo as cudnn
    except ImportError:
        return None
    attention: Callable = cudnn.dot_product_attention
    if "score_mod" not in inspect.signature(attention).parameters:
        return None

    def soft_cap(score):
        return cap * jnp.tanh(score / cap)

    return partial(
        attention,
        scale=scale,
        mask_type=cudnn.MaskType.CAUSAL,
        sliding_window_length=window,
        score_mod=soft_cap,
    )


def measure(setting: Setting, rounds: int, say: Callable[[str], None]) -> list[Time]:
    """All contestants in turn."""
    arrays = _arrays(setting)
    expected = _expected(setting, arrays)
    runs: dict[str, Callable] = {}
    errors, failures = {}, {}
    names = contestants(setting)
    for name, attention in names.items():
        try:
            runs[name], outcome = _prepare(setting, attention, arrays)
            errors[name] = max(_error(a, b) for a, b in zip(outcome, expected))
            runs[name]()
        except Exception as error:  # a contestant that cannot do it is a result
            runs.pop(name, None)
            failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
            say(f"  {name}: {failures[name]}")
    repeats = {name: max(1, min(50, int(5e-3 / _seconds(run, 1)))) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(_seconds(run, repeats[name]))
    peak = _peak_flops()
    found = []
    for name in names:
        median = statistics.median(seconds[name]) if name in seconds else None
        rate = None if median is None else setting.flops / median
        found.append(
            Time(
                shape=setting.shape.name,
                length=setting.length,
                sliding_window=setting.sliding_window,
                logits_soft_cap=setting.logits_soft_cap,
                backward=setting.backward,
                implementation=name,
                seconds=median,
                teraflops=None if rate is None else rate / 1e12,
                peak=None if rate is None or peak is None else rate / peak,
                error=errors.get(name),
                failure=failures.get(name),
            )
        )
    return found


def _arrays(setting: Setting) -> tuple[jax.Array, ...]:
    shape = setting.shape
    keys = jax.random.split(jax.random.key(0), 4)
    heads = (shape.heads, shape.kv_heads, shape.kv_heads, shape.heads)
    return tuple(
        jax.random.normal(key, (1, setting.length, n, shape.head_dim), jnp.bfloat16) for key, n in zip(keys, heads)
    )


def _prepare(setting: Setting, attention: Attention, arrays) -> tuple[Callable, list[jax.Array]]:
    """(what is timed, its results)."""
    *qkv, out_gradient = arrays
    if not setting.backward:
        forward = jax.jit(attention)
        return lambda: forward(*qkv), [forward(*qkv)]
    # The pull-back is a pytree: its leaves are the residuals, and only its own work is timed.
    _, pullback = jax.jit(lambda *a: jax.vjp(attention, *a))(*qkv)
    backward = jax.jit(lambda pullback, gradient: pullback(gradient))
    return lambda: backward(pullback, out_gradient), list(backward(pullback, out_gradient))


def _expected(setting: Setting, arrays) -> list[np.ndarray]:
    """In float64 by the blocked implementation, which is tested against the dense one; group by group of heads."""
    shape = setting.shape
    group = shape.heads // shape.kv_heads
    parts = []
    with jax.enable_x64(True):

        @jax.jit
        def run(query, key, value, out_gradient):
            def attention(q, k, v):
                return xla_attention(attention_inputs(q, k, v, setting.sliding_window, setting.logits_soft_cap))

            if not setting.backward:
                return (attention(query, key, value),)
            return jax.vjp(attention, query, key, value)[1](out_gradient)

        for head in range(shape.kv_heads):
            own, shared = slice(head * group, (head + 1) * group), slice(head, head + 1)
            cut = [x[:, :, heads].astype(jnp.float64) for x, heads in zip(arrays, (own, shared, shared, own))]
            parts.append([np.asarray(x) for x in run(*cut)])
    return [np.concatenate(pieces, axis=2) for pieces in zip(*parts)]


def _error(found: jax.Array, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max())


def _seconds(run: Callable, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / repeats


def _peak_flops() -> float | None:
    kind = jax.devices()[0].device_kind
    return next((target.flops for target in TARGETS.values() if target.name in kind), None)


def main() -> None:
    """Prints {"device": ..., "times": [...], "windows": [...]} as the last line."""
    on_gpu = jax.default_backend() == "gpu"
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else (20 if on_gpu else 1)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def run(chosen: list[Setting]) -> list[dict]:
        found = []
        for setting in chosen:
            say(str(setting))
            found += [dataclasses.asdict(entry) for entry in measure(setting, rounds, say)]
        return found

    times = run(settings(tiny=not on_gpu))
    windows = run(window_settings()) if on_gpu else []
    device = jax.devices()[0].device_kind if on_gpu else None
    print(json.dumps({"device": device, "rounds": rounds, "times": times, "windows": windows}))


if __name__ == "__main__":
    main()
