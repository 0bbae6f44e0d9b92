"""The TPU kernel where memory is poisoned and races are looked for, and as libtpu compiles it for real chips."""

import functools
import itertools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from tests.kernels.decode_attention.cases import DecodeCase, abstract
from tests.marks import all_but, slow
from zoo.ahead_of_time.tpu import TARGETS, compile_for_tpu, has_libtpu
from zoo.kernels.decode_attention.reference import reference_decode_attention
from zoo.kernels.decode_attention.tpu import STEP_BYTES, tpu_decode_attention
from zoo.nn import empty_cache
from zoo.nn.attention import Attention
from zoo.nn.execution import Execution
from zoo.nn.rope import rope_angles

needs_libtpu = pytest.mark.skipif(not has_libtpu(), reason="libtpu, which compiles for TPUs, is not installed")

GEMMA2_9B = DecodeCase(1, 8, 2, 256, 4096, 4096)
GEMMA2_27B = DecodeCase(8, 16, 2, 128, 8192, None)
SMALL = DecodeCase(3, 2, 1, 64, 300, 300)


@pytest.mark.parametrize(
    ("case", "soft_cap"),
    [(DecodeCase(3, 2, 2, 16, 301, None), None), (DecodeCase(1, 1, 3, 16, 131, 131), 50.0)],
    ids=str,
)
def test_nothing_uninitialized_is_read_and_nothing_races(case, soft_cap, capfd):
    arguments, options = case.arguments(jnp.float32), case.options(soft_cap)
    interpret = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    call = functools.partial(tpu_decode_attention, block=128, interpret=interpret, **options)
    out = jax.jit(call)(*arguments)
    np.testing.assert_allclose(out, reference_decode_attention(*arguments, **options), atol=2e-6, rtol=0)
    assert "RACE" not in capfd.readouterr().out


COMPILED = [
    (GEMMA2_9B, "bfloat16", "bfloat16"),
    (GEMMA2_27B, "bfloat16", "bfloat16"),
    (SMALL, "float32", "float32"),
    (SMALL, "bfloat16", "float32"),
]
ON_CHIPS = [(*case, target) for case in COMPILED for target in TARGETS]


@needs_libtpu
@pytest.mark.parametrize(
    ("case", "dtype", "cache_dtype", "target", "soft_cap"),
    # Every case on every chip, with and without the cap in turn (five chips: a chip gets both).
    all_but(
        [(*cell, cap) for cell, cap in zip(ON_CHIPS, itertools.cycle([50.0, None]))],
        [(*cell, cap) for cell in ON_CHIPS for cap in (50.0, None)],
    ),
    ids=str,
)
def test_it_compiles_for_every_tpu_and_declares_each_cached_byte_once(case, dtype, cache_dtype, soft_cap, target):
    call = functools.partial(tpu_decode_attention, **case.options(soft_cap))
    compiled = compile_for_tpu(call, *abstract(case, dtype, cache_dtype), target=TARGETS[target])
    slot_bytes = 2 * case.head_dim * jnp.dtype(cache_dtype).itemsize
    cache_bytes = case.batch * case.kv_heads * case.slots * slot_bytes
    if case is SMALL:
        return  # XLA stores heads of 64 and 300 slots otherwise and copies such a cache at the border of the program
    assert cache_bytes <= compiled.cost_analysis()["bytes accessed"] <= 1.02 * cache_bytes
    assert compiled.memory_analysis().temp_size_in_bytes <= STEP_BYTES


@needs_libtpu
@pytest.mark.parametrize("target", ["v5e", *slow("v6e"), "TPU7x"])
def test_a_decoding_loop_updates_the_cache_in_place(target):
    """No copy of the cache, neither in main memory nor by way of vector memory, in a program that decodes 16 tokens."""
    case, embed_dim = GEMMA2_9B, 512
    execution = Execution(compute_dtype="bfloat16", param_dtype="bfloat16", attention_implementation="pallas_tpu")
    module = nnx.eval_shape(
        lambda: Attention(
            embed_dim,
            case.kv_heads * case.group,
            case.kv_heads,
            case.head_dim,
            scale=0.06,
            sliding_window=case.window,
            logits_soft_cap=50.0,
            execution=execution,
            rngs=nnx.Rngs(0),
        )
    )
    graphdef, state = nnx.split(module)

    def decode(state, x, positions, cache):
        attention = nnx.merge(graphdef, state)

        def step(_, carry):
            x, positions, cache = carry
            angles = rope_angles(positions, case.head_dim, 10_000.0)
            out, cache = attention(x, angles, positions, None, cache)
            return x + out, positions + 1, cache

        return jax.lax.fori_loop(0, 16, step, (x, positions, cache))

    def arguments():
        cache = empty_cache(case.batch, case.slots, case.kv_heads, case.head_dim, jnp.bfloat16)
        x, positions = jnp.zeros((case.batch, 1, embed_dim), jnp.bfloat16), jnp.zeros((case.batch, 1), jnp.int32)
        return x, positions, replace(cache, empty=False)

    x, positions, cache = jax.eval_shape(arguments)
    compiled = compile_for_tpu(decode, state, x, positions, cache, target=TARGETS[target], donate_argnums=3)
    cache_bytes = 2 * cache.key.size * cache.key.dtype.itemsize
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    cached = "|".join(",".join(map(str, x.shape)) for x in (cache.key, cache.value))
    copy = re.compile(rf"bf16\[({cached})\].* copy(-start)?\(")
    copies = [line for line in compiled.as_text().splitlines() if copy.search(line)]
    assert not copies, copies[0]
