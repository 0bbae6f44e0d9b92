"""A model that decodes through the kernels generates what it generates without them."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx

from zoo.models import build
from zoo.models.gemma2 import Gemma2Config
from zoo.nn.attention import Attention
from zoo.nn.execution import Execution

TINY = Gemma2Config(
    vocab_size=199,
    num_layers=4,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_dim=48,
    query_pre_attn_scalar=12,
    sliding_window=8,
)
PROMPT = jax.random.randint(jax.random.key(1), (2, 5), 3, TINY.vocab_size)
STEPS = 20


@functools.cache
def greedy(implementation: str) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [B, STEPS], the logits that chose them); the prompt is read by "xla", the steps by `implementation`."""
    model = build(TINY, execution=Execution(attention_implementation="xla"), rngs=nnx.Rngs(0))
    logits, cache = jax.jit(lambda ids: model(ids, cache=model.init_cache(2, PROMPT.shape[1] + STEPS)))(PROMPT)
    layers = [module for _, module in nnx.iter_modules(model) if isinstance(module, Attention)]
    assert len(layers) == TINY.num_layers
    for layer in layers:
        layer.implementation = implementation

    @jax.jit
    def step(token, cache):
        logits, cache = model(token[:, None], cache=cache)
        return logits[:, 0], cache

    all_logits = [logits[:, -1]]
    program = str(jax.make_jaxpr(step)(all_logits[-1].argmax(-1), cache))
    assert ("pallas_call" in program) == implementation.startswith("pallas")
    for _ in range(STEPS - 1):
        logits, cache = step(all_logits[-1].argmax(-1), cache)
        all_logits.append(logits)
    stacked = np.stack(all_logits, 1)
    return stacked.argmax(-1), stacked


@pytest.mark.parametrize("implementation", ["pallas_tpu", "pallas_gpu"])
def test_gemma2_generates_the_same_tokens_past_its_window(implementation):
    expected, expected_logits = greedy("xla")
    tokens, logits = greedy(implementation)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(logits, expected_logits, atol=1e-5, rtol=0)
    assert len(np.unique(tokens)) > 2, "a constant sequence would prove little"
