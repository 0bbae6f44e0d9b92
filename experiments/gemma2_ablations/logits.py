"""The largest logits of a model before their soft-caps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from zoo.kernels.attention.visibility import visible
from zoo.models.decoder import LayerContext
from zoo.nn.parameters import project
from zoo.nn.rope import apply_rope


@partial(jax.jit, static_argnums=0)
def largest_logits(
    graphdef: Any, params: Any, tokens: Int[Array, "b t"]
) -> tuple[Float[Array, " layers"], Float[Array, ""]]:
    """(largest |scale * rope(q) . rope(k)| of each layer over heads and visible pairs, largest |h . E^T|), float32,
    both before the soft-cap, of a Gemini model (`nnx.split(model, nnx.Param)`); every row is one document."""
    model = nnx.merge(graphdef, params)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    x, found = model.embed(tokens, None), []
    context = LayerContext(model.rotary(positions), positions, None, None, None)
    for layer in model.layers:
        scores = attention_logits(layer.attention, layer.pre_attention_norm(x), context.angles[layer.is_global])
        seen = visible(positions, positions, sliding_window=layer.attention.sliding_window)
        found.append(jnp.max(jnp.abs(scores), where=seen[:, None], initial=0))
        x = layer(x, context, None)[0]
    logits = jnp.einsum("btd,vd->btv", model.final_norm(x), model.output_embedding())
    return jnp.stack(found), jnp.abs(logits).max()


def attention_logits(attention: Any, x: Float[Array, "b t d"], angles: Any) -> Float[Array, "b n t s"]:
    """scale * rope(q) . rope(k) of all pairs of tokens, whatever they see, without the soft-cap."""
    query = apply_rope(project("btd,dnh->btnh", x, attention.query[...]), angles)
    key = apply_rope(project("btd,dkh->btkh", x, attention.key[...]), angles)
    batch, length, heads, head_dim = query.shape
    query = query.reshape(batch, length, key.shape[2], -1, head_dim)
    scores = attention.scale * jnp.einsum("btkgh,bskh->bkgts", query, key)
    return scores.reshape(batch, heads, length, length)
