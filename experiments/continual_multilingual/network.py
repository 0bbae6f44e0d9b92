"""The one model of a family, its loss, and the Fisher information of its parameters."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float32, Int, Key

from experiments.continual_multilingual.rows import NO_LABEL
from experiments.continual_multilingual.sizes import Family, Size
from zoo.models.bert import Bert, BertConfig
from zoo.nn import Execution
from zoo.nn.parameters import fan_in_normal, parameter, project

HEAD = ("head_kernel", "head_bias")
"""Names of the output layer's parameters."""


class Network(nnx.Module):
    """A small BERT and one output layer that all languages share; it is not told the language.

    Logits of each place [B, T, C]; classification: of the mean over the places that are not padding [B, C].
    """

    def __init__(self, config: BertConfig, family: Family, outputs: int, *, rngs: nnx.Rngs):
        execution = Execution()
        self.encoder = Bert(config, execution=execution, rngs=rngs)
        del self.encoder.head  # a pooler or a guess of masked tokens: nothing reads it
        self.mean = family.name == "classification"
        init = fan_in_normal(config.embed_dim)
        self.head_kernel = parameter(rngs, (config.embed_dim, outputs), ("embed", None), init, jnp.float32)
        self.head_bias = parameter(rngs, (outputs,), ("norm",), jax.nn.initializers.zeros, jnp.float32)

    def __call__(self, tokens: Int[Array, "b t"], rng: Key[Array, ""] | None = None) -> Float32[Array, "b ..."]:
        """rng turns dropout on."""
        real = tokens > 0
        hidden = self.encoder(tokens, real, rng=rng)
        if self.mean:
            weights = real.astype(hidden.dtype)
            weights = weights / jnp.maximum(weights.sum(1, keepdims=True), 1.0)
            hidden = jnp.einsum("btd,bt->bd", hidden, weights)[:, None]
        logits = project("btd,dc->btc", hidden, self.head_kernel[...]) + self.head_bias[...]
        return logits[:, 0] if self.mean else logits


def network_of(family: Family, size: Size, vocab_size: int, outputs: int, seed: int) -> Network:
    """With random weights."""
    config = BertConfig(
        vocab_size=vocab_size,
        embed_dim=size.embed_dim,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        hidden_dim=size.hidden_dim,
        num_positions=family.length,
        num_token_types=1,
        head="pooler",
        dropout=family.dropout,
    )
    return Network(config, family, outputs, rngs=nnx.Rngs(seed))


def cross_entropy(logits: Float32[Array, "b ... c"], labels: Int[Array, "b ..."]) -> Float32[Array, ""]:
    """Mean over what is asked, in nats; 0 where nothing is."""
    asked = labels != NO_LABEL
    log_probabilities = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probabilities, jnp.where(asked, labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(asked, picked, 0.0)) / jnp.maximum(asked.sum(), 1)


def fisher_information(graphdef: Any, params: nnx.State, tokens: Any, labels: Any, rows_at_once: int) -> nnx.State:
    """Diagonal of the empirical Fisher information: the mean over rows of the squared gradient of a row's loss, divided
    by its mean over all parameters, so that a pull is of the same size as one that is the same for all.

    EWC (Kirkpatrick et al., arXiv 1612.00796). The rows are labelled ones, whose labels stand for draws of the model.
    """

    def loss(params, tokens, labels):
        return cross_entropy(nnx.merge(graphdef, params)(tokens[None]), labels[None])

    @jax.jit
    def squares(params, tokens, labels):
        gradients = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, tokens, labels)
        return jax.tree.map(lambda one: jnp.square(one).sum(0), gradients)

    total = None
    for first in range(0, len(tokens) - rows_at_once + 1, rows_at_once):
        found = squares(params, tokens[first : first + rows_at_once], labels[first : first + rows_at_once])
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    if total is None:
        raise ValueError(f"{len(tokens)} rows are fewer than the {rows_at_once} that are read at once")
    leaves = jax.tree.leaves(total)
    mean = sum(leaf.sum() for leaf in leaves) / sum(leaf.size for leaf in leaves)
    return jax.tree.map(lambda one: one / jnp.maximum(mean, 1e-30), total)
