"""gpt-oss's layers, attention sinks and experts with biases among them, compiled for accelerators, forward and back."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from zoo.ahead_of_time import gpu, tpu
from zoo.models import build, preset
from zoo.nn import Execution

LENGTH = 1024
CONFIG = preset("gpt-oss-20b")
# A local and a global layer with the published heads and window, narrow experts and a small vocabulary.
SMALL = replace(
    CONFIG, vocab_size=1024, embed_dim=512, num_layers=2, experts=replace(CONFIG.experts, num_experts=8, hidden_dim=512)
)


def step():
    """(loss and gradients of packed rows as a function, its arguments)."""
    execution = Execution(compute_dtype="bfloat16", remat_policy="norms")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: build(SMALL, execution=execution, rngs=nnx.Rngs(0))))
    state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    row = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)

    def loss(state, tokens, positions, segments):
        model = nnx.merge(graphdef, state)
        hidden = model.hidden_states(tokens, positions=positions, segment_ids=segments)
        return jnp.sum(hidden.astype(jnp.float32) ** 2)

    return jax.value_and_grad(loss), (state, row, row, row)


@pytest.mark.slow
@pytest.mark.skipif(not tpu.has_libtpu(), reason="libtpu is not installed (it comes with the extra `tpu`)")
@pytest.mark.parametrize("name", ["v4", "v5e"])
def test_layers_with_sinks_compile_for_tpus_with_our_kernels_and_no_array_of_scores(name):
    function, arguments = step()
    compiled = tpu.compile_for_tpu(function, *arguments, target=tpu.TARGETS[name])
    text = compiled.as_text()
    kernels = re.findall(r"%([a-z_]+)[.\d]* = [^\n]*custom-call\([^\n]*\"tpu_custom_call\"", text)
    for kernel in ("local_attention_forward", "local_attention_backward"):
        assert sum(kernel in name for name in kernels) >= 2  # the local and the global layer
    assert {"grouped_matmul", "grouped_matmul_outer", "grouped_matmul_transposed"} <= set(kernels)
    assert f"{LENGTH},{LENGTH}]" not in text


@pytest.mark.slow
def test_layers_with_sinks_are_lowered_for_gpus_to_our_kernels_and_no_array_of_scores():
    function, arguments = step()
    text = gpu.lower_for_gpu(function, *arguments, target=gpu.H200).as_text()
    kernels = re.findall(r'name = "([a-z_]+)"', text)
    for kernel in ("local_attention_forward", "local_attention_key_value_gradient", "grouped_matmul_outer"):
        assert kernels.count(kernel) >= 2
    assert f"x{LENGTH}x{LENGTH}x" not in text
