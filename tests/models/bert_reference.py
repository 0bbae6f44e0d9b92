"""BERT from its equations in float64, with a sum over every pair of tokens: what the model's tests compare with."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx
from scipy.special import erf

from zoo.interop.parameters import abstract_model
from zoo.models import BertConfig
from zoo.nn import Execution
from zoo.training.parameters import flatten_with_names

TINY = BertConfig(
    vocab_size=23,
    embed_dim=12,
    num_layers=2,
    num_heads=3,
    hidden_dim=20,
    num_positions=11,
    num_token_types=3,
    mask_token_id=4,
)


def randomised(config: BertConfig, **execution):
    """A model none of whose parameters is the zero or one that it would begin with, so that each one is seen."""
    graphdef, abstract = abstract_model(config, Execution(**execution))
    rng = np.random.default_rng(0)

    def value(path, leaf):
        return jnp.asarray((path[-1] == "scale") + 0.3 * rng.normal(size=leaf.shape), jnp.float32)

    drawn = [(path, leaf.replace(value(path, leaf))) for path, leaf in nnx.to_flat_state(abstract)]
    return nnx.merge(graphdef, nnx.from_flat_state(drawn))


def parameters(model) -> dict[str, np.ndarray]:
    """The parameters of a model with unrolled layers, by name, in float64."""
    return {name: np.asarray(leaf, np.float64) for name, leaf in flatten_with_names(nnx.state(model)).items()}


def hidden_states(
    found: Mapping[str, np.ndarray], config: BertConfig, ids: np.ndarray, types: np.ndarray, places: np.ndarray, sees
) -> np.ndarray:
    """[num_layers + 1, B, T, D]; `sees` [B, T, T] says which token (last axis) each token reads."""

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps)
        return centred / scale * found[f"{name}/scale"] + found[f"{name}/bias"]

    x = found["embedder/embedding"][ids] + found["position"][places] + found["token_type"][types]
    states = [norm(x, "embedding_norm")]
    for layer in range(config.num_layers):
        at, x = f"layers/{layer}", states[-1]
        query, key, value = (
            np.einsum("btd,dnh->bnth", x, found[f"{at}/attention/{name}"])
            + found[f"{at}/attention/{name}_bias"][:, None]
            for name in ("query", "key", "value")
        )
        scores = np.einsum("bnth,bnsh->bnts", query, key) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True)) * sees[:, None]
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("bnts,bnsh,nhd->btd", weights, value, found[f"{at}/attention/output"])
        x = norm(x + attended + found[f"{at}/attention/output_bias"], f"{at}/attention_norm")
        inner = gelu(x @ found[f"{at}/mlp/up"] + found[f"{at}/mlp/up_bias"])
        x = norm(x + inner @ found[f"{at}/mlp/down"] + found[f"{at}/mlp/down_bias"], f"{at}/mlp_norm")
        states.append(x)
    return np.stack(states)


def logits(found: Mapping[str, np.ndarray], config: BertConfig, hidden: np.ndarray) -> np.ndarray:
    """[B, T, V] of the head of masked tokens."""
    x = gelu(hidden @ found["head/kernel"] + found["head/kernel_bias"])
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)
    features = x * found["head/norm/scale"] + found["head/norm/bias"]
    return features @ found["embedder/embedding"].T + found["head/bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    """x * Phi(x)."""
    return x * (1 + erf(x / np.sqrt(2))) / 2
