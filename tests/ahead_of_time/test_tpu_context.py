"""Two layers whose sequence is divided among TPUs, compiled for them: what is exchanged, and whether it is hidden."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from zoo.ahead_of_time import tpu
from zoo.inference import INFERENCE_RULES, Sampling
from zoo.inference.generation import _programs
from zoo.inference.model import take_apart
from zoo.models.gemma2 import Gemma2, Gemma2Config
from zoo.nn import Execution
from zoo.parallel import MeshConfig, ShardingRules, activation_sharding, batch_sharding, make_mesh, state_shardings

needs_libtpu = pytest.mark.skipif(
    not tpu.has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)"
)

# Heads and window of Gemma 2 9B; a narrow model, since its width is not what is asked about.
CONFIG = Gemma2Config(
    vocab_size=1024,
    embed_dim=1024,
    num_layers=2,
    num_heads=16,
    num_kv_heads=8,
    head_dim=256,
    hidden_dim=2048,
    query_pre_attn_scalar=256,
)
LENGTH = 32_768


def compiled(context: int, topology: str, rules: ShardingRules) -> jax.stages.Compiled:
    """Loss and gradient of one packed row."""
    mesh = make_mesh(MeshConfig(context=context), tpu.tpu_devices(tpu.V5P, topology))
    execution = Execution(compute_dtype="bfloat16", remat_policy="mlp")
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: Gemma2(CONFIG, execution=execution, rngs=nnx.Rngs(0))))
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        abstract,
        state_shardings(abstract, mesh, rules),
    )
    row = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32, sharding=batch_sharding(mesh, rules))

    def loss(state, tokens, positions, segments):
        with activation_sharding(mesh, rules):
            hidden = nnx.merge(graphdef, state).hidden_states(tokens, positions=positions, segment_ids=segments)
            return hidden.astype(jnp.float32).sum()

    return tpu.compile_for_tpu(jax.value_and_grad(loss), state, row, row, row, target=tpu.V5P, mesh=mesh)


def permutes(text: str) -> list[tuple[str, str, float, int]]:
    """(scope, shape, cycles that the compiler reckons between start and done, kernels between them) of each."""
    found = []
    for computation in re.split(r"\n(?=%|ENTRY)", text):
        lines = computation.splitlines()
        for index, line in enumerate(lines):
            match = re.search(r"%(collective-permute-start\S*) = \(([^,]+\[[\d,]*\])", line)
            if match is None or "ppermute" not in line:
                continue
            done = next(i for i, other in enumerate(lines) if f"collective-permute-done(%{match[1]})" in other)
            between = "\n".join(lines[index + 1 : done])
            cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', between)))
            scope = re.search(r"(local|global)_attention", line)
            found.append((scope[1] if scope else "", match[2], cycles, between.count('"tpu_custom_call"')))
    return found


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(("context", "topology"), [(4, "v5p:2x2x1"), (8, "v5p:2x2x2")])
def test_a_ring_and_a_halo_travel_while_the_chip_works(context, topology):
    program = compiled(context, topology, ShardingRules(context_exchange="ring"))
    found = permutes(program.as_text())
    print(found, program.memory_analysis().temp_size_in_bytes)
    tokens = LENGTH // context
    halo = [(shape, cycles) for scope, shape, cycles, _ in found if scope == "local"]
    # ceil(4095 / tokens) = 1 forward and 1 backward: what a layer keeps is not fetched again.
    assert [shape for shape, _ in halo] == ["bf16[1,4095,16,256]"] * 2
    assert all(cycles > 0 for _, cycles in halo)
    ring = [x for x in found if x[0] == "global"]
    # Forward (k, v); backward (k, v) and their gradients; the first permute of the backward ring and its last.
    assert len(ring) == 1 + 2 + 2
    assert {shape.split("[")[1] for _, shape, _, _ in ring} == {f"1,{tokens},16,256]"}
    assert sum(kernels > 0 for *_, kernels in ring) >= 4, "only what goes home in the end has no kernel beside it"
    assert not re.search(rf"\[(\d+,)*{LENGTH},(\d+,)*{LENGTH}\]", program.as_text())
    # Memory beside the arguments is that of the device's own tokens: 2.0 GB for 8,192, 1.0 GB for 4,096.
    assert program.memory_analysis().temp_size_in_bytes < 0.27e6 * tokens


@needs_libtpu
@pytest.mark.slow
def test_a_decode_step_merges_what_devices_find_in_their_slots():
    mesh = make_mesh(MeshConfig(context=4), tpu.tpu_devices(tpu.V5P))
    model = nnx.eval_shape(lambda: Gemma2(CONFIG, execution=Execution(compute_dtype="bfloat16"), rngs=nnx.Rngs(0)))
    structure, arrays = take_apart(model)
    batch = 2
    with activation_sharding(mesh, INFERENCE_RULES), jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        programs = _programs(structure, Sampling(), 0, (mesh, INFERENCE_RULES))
        row = jax.ShapeDtypeStruct((batch, 4096), jnp.int32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), batch))
        stops = jax.ShapeDtypeStruct((1,), jnp.int32)
        cache, last = jax.eval_shape(
            lambda *x: programs.prefill(*x, cache_length=8192), arrays, row, row, row, keys, stops
        )
        decode = tpu.compile_for_tpu(
            programs.decode, arrays, cache, last, keys, stops, jax.ShapeDtypeStruct((), jnp.int32),
            target=tpu.V5P, mesh=mesh,
        )  # fmt: skip
    text = decode.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert not re.search(r" all-gather(-start)?\(.*attention", text)
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) >= 1
