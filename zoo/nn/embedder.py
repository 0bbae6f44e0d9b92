"""Token embedding and output head, tied or not."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.nn.execution import Execution
from zoo.nn.packed import PackedWeight, packed_product, packed_rows
from zoo.nn.parameters import fan_in_normal, parameter, precision_of
from zoo.parallel import divided, gather, leave_sublayer, sum_scatter


class Embedder(nnx.Module):
    """x = E[token] * sqrt(D) on the way in, h . E^T on the way out.

    Gemma's normaliser is rounded to the compute dtype first, as the released weights were trained (bf16: 48, 59.75,
    68); with `scaled=False` there is none. With `tied=False` the output has a table of its own, `head`.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        scaled: bool = True,
        tied: bool = True,
        execution: Execution,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.scaled, self.tied = execution.dtype, scaled, tied
        shape, axes, init = (vocab_size, embed_dim), ("vocab", "embed"), fan_in_normal(embed_dim)
        self.embedding = parameter(rngs, shape, axes, init, execution.weight_dtype)
        if not tied:
            self.head = parameter(rngs, shape, axes, init, execution.weight_dtype)

    def encode(self, tokens: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """Embeddings in the compute dtype."""
        table = self.embedding[...]
        if isinstance(table, PackedWeight):
            rows = packed_rows(table, tokens, self.dtype)
        else:
            shares = _Shares(divided("vocab"), divided("embed"))
            rows = leave_sublayer(_look_up(table, tokens, self.dtype, shares), "vocab")
        return rows * jnp.asarray(math.sqrt(rows.shape[-1]), self.dtype) if self.scaled else rows

    def output_table(self) -> Float[Array, "v d"] | PackedWeight:
        """The rows whose products with hidden states are the logits."""
        return (self.embedding if self.tied else self.head)[...]

    def decode(self, hidden: Float[Array, "b t d"], soft_cap: float | None) -> Float[Array, "b t v"]:
        """float32 logits c * tanh(h . E^T / c); c = None: h . E^T."""
        table, precision = self.output_table(), precision_of(hidden.dtype)
        if isinstance(table, PackedWeight):
            rows = hidden.reshape(-1, hidden.shape[-1])
            product = packed_product(rows, table, dtype=jnp.float32, precision=precision)
            logits = product.reshape(*hidden.shape[:-1], -1)
        else:
            logits = jnp.einsum(
                "btd,vd->btv",
                hidden,
                table.astype(hidden.dtype),
                preferred_element_type=jnp.float32,
                precision=precision,
            )
        return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


class _Shares(NamedTuple):
    """Mesh axes among whose devices the table is divided."""

    words: tuple[str, ...]
    width: tuple[str, ...]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _look_up(
    table: Float[Array, "v d"], tokens: Int[Array, "b t"], dtype: jnp.dtype, shares: _Shares
) -> Float[Array, "b t d"]:
    """Rows of the table in `dtype`; where devices share the words, zeros for those of other devices.

    Devices that share the width gather it in `dtype`, and add up its gradient in float32.
    """
    whole = gather(table.astype(dtype), shares.width, axis=1)
    if not shares.words:
        return jnp.take(whole, tokens, axis=0)
    own = _own_words(tokens, len(table), shares)
    return jnp.where((own >= 0)[..., None], jnp.take(whole, jnp.maximum(own, 0), axis=0), 0)


def _look_up_forward(table, tokens, dtype, shares):
    return _look_up(table, tokens, dtype, shares), (table, tokens)


def _look_up_backward(dtype, shares, residuals, gradient):
    table, tokens = residuals
    own = _own_words(tokens, len(table), shares)
    total = jnp.zeros((len(table), gradient.shape[-1]), jnp.promote_types(table.dtype, jnp.float32))
    total = total.at[jnp.where(own < 0, len(table), own)].add(gradient.astype(total.dtype), mode="drop")
    return sum_scatter(total, shares.width, axis=1).astype(table.dtype), None


_look_up.defvjp(_look_up_forward, _look_up_backward)


def _own_words(tokens: Int[Array, "b t"], count: int, shares: _Shares) -> Int[Array, "b t"]:
    """Row in this device's share of `count` words, -1 for words of other devices."""
    if not shares.words:
        return tokens
    own = tokens - jax.lax.axis_index(shares.words) * count
    return jnp.where((own >= 0) & (own < count), own, -1)
