"""What the tests of the sparse decoders share: folders with what transformers computed, and a model's inner values."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import zoo
from zoo.inference import Sampling, generate
from zoo.models import Decoder, build
from zoo.models.decoder import LayerContext
from zoo.nn import Execution, SparseFeedForward

TOLERANCE = 2e-4


def folder_and_expected(request, name: str, golden: str) -> tuple[Path, dict[str, np.ndarray]]:
    """The committed golden, or a folder of the shared fixtures; skips where these are not."""
    if name == "golden":
        folder = request.getfixturevalue("repository") / "tests" / "goldens" / golden
    else:
        folder = request.getfixturevalue("shared_dir") / "fixtures" / name
    if not folder.is_dir():
        pytest.skip(f"optional test data: no {folder}")
    with np.load(folder / "expected.npz", allow_pickle=False) as expected:
        return folder, dict(expected)


def load(folder: Path, **execution) -> Decoder:
    return zoo.load(folder, execution=Execution(**execution)).decoder


def logits_of(model: Decoder, tokens, **arguments) -> np.ndarray:
    graphdef, state = nnx.split(model)
    return np.asarray(jax.jit(lambda state: nnx.merge(graphdef, state)(jnp.asarray(tokens), **arguments))(state))


def inner_values(model: Decoder, tokens) -> dict[str, np.ndarray]:
    """logits, hidden_states [L + 1, B, T, D] as transformers counts them, router_logits_i and router_topk_i."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state):
        model = nnx.merge(graphdef, state)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        context = LayerContext(model.rotary(positions), positions, None, None, None)
        x = model.embed(jnp.asarray(tokens), None)
        hidden, routings = [x], []
        for layer in model.layers:
            attended, _ = layer.attention(layer.pre_attention_norm(x), context.angles, positions, None, None)
            if isinstance(layer.mlp, SparseFeedForward):
                routings.append(layer.mlp.router(layer.pre_ffw_norm(x + attended)))
            x, _, _ = layer(x, context, None)
            hidden.append(x)
        hidden[-1] = model.final_norm(x)
        return model(jnp.asarray(tokens)), jnp.stack(hidden), routings

    logits, hidden, routings = jax.device_get(run(state))
    values = {"logits": logits, "hidden_states": hidden}
    for i, routing in enumerate(routings):
        values[f"router_logits_{i}"] = routing.logits.reshape(-1, routing.logits.shape[-1])
        values[f"router_topk_{i}"] = routing.chosen.reshape(-1, routing.chosen.shape[-1])
    return values


def check_values(model: Decoder, expected: dict[str, np.ndarray]) -> None:
    """Logits, hidden states after every layer, router logits and choices are the expected ones."""
    values = inner_values(model, expected["input_ids"])
    names = {name for name in expected if name in ("logits", "hidden_states") or name.startswith("router_")}
    assert names == set(values)
    for name in sorted(names):
        if name.startswith("router_topk"):
            np.testing.assert_array_equal(values[name], expected[name], err_msg=name)
        else:
            np.testing.assert_allclose(values[name], expected[name], rtol=0, atol=TOLERANCE, err_msg=name)


def check_continuation(model: Decoder, expected: dict[str, np.ndarray], kind: str) -> None:
    """Greedy tokens after the prompts, by prefill and cached steps, are the expected ones."""
    wanted, mask = expected[f"gen_ids_{kind}"], expected.get(f"gen_mask_{kind}")
    sampling = Sampling(temperature=0.0)
    new = generate(model, expected[f"gen_prompt_{kind}"], mask, max_new_tokens=wanted.shape[1], sampling=sampling)
    np.testing.assert_array_equal(new, wanted)


def check_right_padding(model: Decoder, expected: dict[str, np.ndarray]) -> None:
    """Padding behind a row changes no logit of its real tokens."""
    mask = expected["rpad_mask"].astype(np.int32)
    logits = logits_of(model, expected["rpad_input_ids"], segment_ids=jnp.asarray(mask))
    np.testing.assert_allclose(logits[mask == 1], expected["logits"][mask == 1], rtol=0, atol=TOLERANCE)


def with_config(model: Decoder, **changes) -> Decoder:
    """The same weights under another configuration; fields of `experts` are given as `experts=dict(...)`."""
    if "experts" in changes:
        changes["experts"] = replace(model.config.experts, **changes["experts"])
    config = replace(model.config, **changes)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, nnx.state(model))


def difference(model: Decoder, expected: dict[str, np.ndarray]) -> float:
    """Largest difference of a logit."""
    return float(np.abs(logits_of(model, expected["input_ids"]) - expected["logits"]).max())


def count_parameters(config, **execution) -> int:
    """Parameters of the model that would be built."""
    abstract = nnx.eval_shape(lambda: build(config, execution=Execution(**execution), rngs=nnx.Rngs(0)))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(nnx.state(abstract)))
