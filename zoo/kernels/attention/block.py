"""Attention of one block of queries to one block of keys, and its gradient.

The backward pass keeps one number per score, the logarithm of its weight: automatic differentiation would keep three or
four arrays of that size (measured: 2.8 to 3.5 times the memory), and takes no less time.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

NO_MAXIMUM_SOFT_CAP = 80.0
"""Up to this cap, exp(score) stays inside the range of float32 and bfloat16: softmax needs no maximum."""

_MASKED = -1e9
"""Logarithm of the weight of a key that is not visible: exp is zero, and its square is still finite."""

NO_KEY = -1e30
"""Logarithm of the weights of a query that sees no key: finite, so that no difference of two is a NaN."""


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
    query: Float[Array, "*x k g c h"],
    key: Float[Array, "*x k s h"],
    value: Float[Array, "*x k s h"],
    mask: Bool[Array, "*#x 1 1 c s"],
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "*x k g c h"]:
    """softmax over the visible keys of cap(scale * q . k), times v; zeros for a query that sees none.

    The g query heads of a group are rows of one matrix product with their shared keys. Sums are float32 (float64 for
    float64 inputs), products take operands of the inputs' dtype.
    """
    return _forward(query, key, value, mask, scale, soft_cap)[0]


def _forward(query, key, value, mask, scale, soft_cap):
    scores = _capped_scores(query, key, scale, soft_cap)
    largest = None
    if soft_cap is None or soft_cap > NO_MAXIMUM_SOFT_CAP or query.dtype == jnp.float16:
        largest = jnp.max(scores, axis=-1, keepdims=True, where=mask, initial=_MASKED)
        scores = scores - largest
    log_weights = jnp.where(mask, scores, _MASKED)
    weights = jnp.exp(log_weights)
    total = weights.sum(-1, keepdims=True)
    inverse = 1 / jnp.where(total == 0, 1, total)
    out = _product("...rs,...sh->...rh", _rows(weights).astype(value.dtype), value).reshape(query.shape)
    out = (out * inverse).astype(query.dtype)
    return out, (query, key, value, log_weights, largest, inverse, out)


def _backward(scale, soft_cap, residuals, out_gradient):
    query, key, value, log_weights, largest, inverse, out = residuals
    accumulator = log_weights.dtype
    gradient = out_gradient.astype(accumulator) * inverse
    mean = (gradient * out.astype(accumulator)).sum(-1, keepdims=True)
    gradient = gradient.astype(value.dtype)
    weights = jnp.exp(log_weights)
    weight_gradient = _product("...rh,...sh->...rs", _rows(gradient), value).reshape(weights.shape)
    score_gradient = scale * weights * (weight_gradient - mean)
    if soft_cap is not None:
        capped = log_weights if largest is None else log_weights + largest
        score_gradient *= 1 - jnp.square(capped / soft_cap)
    score_gradient = _rows(score_gradient).astype(query.dtype)
    return (
        _product("...rs,...sh->...rh", score_gradient, key).reshape(query.shape).astype(query.dtype),
        _product("...rs,...rh->...sh", score_gradient, _rows(query)).astype(key.dtype),
        _product("...rs,...rh->...sh", _rows(weights).astype(value.dtype), _rows(gradient)).astype(value.dtype),
        None,
    )


attend.defvjp(_forward, _backward)


def attend_part(
    query: Float[Array, "*x k g c h"],
    key: Float[Array, "*x k s h"],
    value: Float[Array, "*x k s h"],
    mask: Bool[Array, "*#x 1 1 c s"],
    scale: float,
    soft_cap: float | None,
) -> tuple[Float[Array, "*x k g c h"], Float[Array, "*x k g c"]]:
    """`attend`, and the logarithm of each query's sum of exp(score), +inf where it sees no key."""
    out, (_, _, _, _, largest, inverse, _) = _forward(query, key, value, mask, scale, soft_cap)
    lse = -jnp.log(inverse) if largest is None else largest - jnp.log(inverse)
    return out, jnp.where(mask.any(-1), lse[..., 0], jnp.inf)


def part_gradients(
    query: Float[Array, "*x k g c h"],
    key: Float[Array, "*x k s h"],
    value: Float[Array, "*x k s h"],
    mask: Bool[Array, "*#x 1 1 c s"],
    scale: float,
    soft_cap: float | None,
    lse: Float[Array, "*x k g c"],
    delta: Float[Array, "*x k g c"],
    out_gradient: Float[Array, "*x k g c h"],
) -> tuple[Float[Array, "*x k g c h"], Float[Array, "*x k s h"], Float[Array, "*x k s h"]]:
    """Gradients of query, key and value in the dtype of sums, for keys that are a part of those in `lse`, `delta`.

    p = exp(score - lse);  dv = p' do;  ds = p (do v' - delta), times 1 - (score / cap)^2;  dq = scale ds k;
    dk = scale ds' q.  delta = sum(do * out) over a head.
    """
    scores = _capped_scores(query, key, scale, soft_cap)
    weights = jnp.exp(jnp.where(mask, scores - lse[..., None], _MASKED))
    gradient = _rows(out_gradient.astype(value.dtype))
    change = weights * (_product("...rh,...sh->...rs", gradient, value).reshape(weights.shape) - delta[..., None])
    if soft_cap is not None:
        change *= 1 - jnp.square(scores / soft_cap)
    change = _rows(scale * change).astype(query.dtype)
    return (
        _product("...rs,...sh->...rh", change, key).reshape(query.shape),
        _product("...rs,...rh->...sh", change, _rows(query)),
        _product("...rs,...rh->...sh", _rows(weights).astype(value.dtype), gradient),
    )


def _capped_scores(query, key, scale, soft_cap) -> Float[Array, "*x k g c s"]:
    scores = scale * _product("...rh,...sh->...rs", _rows(query), key)
    scores = scores.reshape(*query.shape[:-1], key.shape[-2])
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def _rows(x: Float[Array, "*x g c n"]) -> Float[Array, "*x r n"]:
    """The heads of a group stacked as rows."""
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def _product(equation: str, left: Array, right: Array) -> Array:
    accumulator = jnp.promote_types(left.dtype, jnp.float32)
    precision = jax.lax.Precision.HIGHEST if left.dtype == accumulator else None
    return jnp.einsum(equation, left, right, preferred_element_type=accumulator, precision=precision)
