"""A twin head: non-parallel planes, each close to its own class and at unit distance from the others.

Every class c has its own planes p, y_cp(x) = w_cp . phi_c(x) + b_cp. phi_c is the identity, or a hidden layer of the
class, tanh(U_c x + u_c). p* is the plane of c that is nearest to x. With <..>_k the mean over the examples of class k,

    loss = sum_c  1/2 <y_cp*^2>_c  +  C/2 mean over k != c of <slack(y_cp*)>_k  +  decay/2 |weights|^2
    slack = max(0, 1 - y)^2   ("hinge": convex for one plane without a hidden layer)
    slack = (1 - tanh y)^2    ("tanh": the Twin NN's)
    class(x) = argmin_c min_p |y_cp(x)| / |w_cp|

Means are over one class each, so that how many examples a class has does not count: this is what is to help where
classes are very unequal. Dividing by |w_cp| makes the decision one by distance, whatever the scale of each plane.

Sources: twin SVM, Jayadeva, Khemchandani and Chandra, TPAMI 29(5), 2007; Twin NN, arXiv 1705.00347 (several planes to a
class, hidden layers); on top of a trained network, arXiv 2102.07975, of which only the abstract could be read. The form
of the loss above is this project's: one-sided as the twin SVM's constraints, averaged as the Twin NN's.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32

SMALLEST_NORM = 1e-12
"""A plane's |w| counts as at least this much: one without weights is infinitely far from everything but its offset."""


class TwinHead(NamedTuple):
    """Planes, and hidden layers if there are any."""

    weights: Float[Array | np.ndarray, "c p w"]
    """w_cp."""
    biases: Float[Array | np.ndarray, "c p"]
    """b_cp."""
    hidden: tuple[Float[Array, "c d w"], Float[Array, "c w"]] | None = None
    """U_c and u_c; None: planes are in the space of the features, and w = d."""


@dataclass(frozen=True)
class TwinConfig:
    """How a twin head looks, and how it is fitted."""

    num_planes: int = 1
    """Planes of each class."""

    hidden: int = 0
    """Width of each class's hidden layer; 0 = none. With a layer this is the Twin NN on the features."""

    margin: Literal["hinge", "tanh"] = "hinge"
    """How distance from the other classes is asked for."""

    margin_weight: float = 1.0
    """C: the other classes' part of the loss."""

    weight_decay: float = 1e-3
    """decay, of planes and hidden layers; offsets have none."""

    max_steps: int = 300
    """Most iterations of L-BFGS."""

    seed: int = 0
    """Of the weights to begin with."""

    def __post_init__(self):
        if self.num_planes < 1 or self.hidden < 0 or self.max_steps < 1:
            raise ValueError(f"{self}: num_planes and max_steps are at least 1, hidden at least 0")
        if not self.margin_weight > 0 or not self.weight_decay >= 0:
            raise ValueError(f"{self}: margin_weight is above 0, weight_decay at least 0")
        if self.margin not in ("hinge", "tanh"):
            raise ValueError(f"margin {self.margin!r}: hinge or tanh")


def projections(head: TwinHead, features: Float[Array | np.ndarray, "n d"]) -> Float[Array, "n c p"]:
    """y_cp(x) of every example and plane."""
    exact = jax.lax.Precision.HIGHEST
    if head.hidden is None:
        return jnp.einsum("nd,cpd->ncp", features, head.weights, precision=exact) + head.biases
    inner, offsets = head.hidden
    phi = jnp.tanh(jnp.einsum("nd,cdw->ncw", features, inner, precision=exact) + offsets)
    return jnp.einsum("ncw,cpw->ncp", phi, head.weights, precision=exact) + head.biases


def twin_distances(head: TwinHead, features: Float[Array | np.ndarray, "n d"]) -> Float[Array, "n c"]:
    """min_p |y_cp(x)| / |w_cp|: the distance to the nearest plane of each class."""
    norms = jnp.maximum(jnp.linalg.norm(jnp.asarray(head.weights), axis=-1), SMALLEST_NORM)
    return jnp.min(jnp.abs(projections(head, features)) / norms, axis=-1)


def twin_decisions(head: TwinHead, features: Float[Array | np.ndarray, "n d"]) -> Int32[Array, " n"]:
    """The class whose planes are nearest; of equally near ones the first."""
    return jnp.argmin(twin_distances(head, features), axis=-1).astype(jnp.int32)


def twin_loss(
    head: TwinHead,
    features: Float[Array | np.ndarray, "n d"],
    labels: Int[Array | np.ndarray, " n"],
    config: TwinConfig,
) -> Float[Array, ""]:
    """The loss above. A class that has no example among these (of a small batch) has no terms.

    The gradient goes to the nearest plane alone; p* is constant wherever the loss has a derivative.
    """
    y = projections(head, features)
    num_classes = y.shape[1]
    nearest = jnp.argmin(jnp.abs(jax.lax.stop_gradient(y)), axis=-1, keepdims=True)
    y = jnp.take_along_axis(y, nearest, axis=-1)[..., 0]
    member = jax.nn.one_hot(labels, num_classes, dtype=y.dtype)
    share = member / jnp.maximum(jnp.sum(member, axis=0), 1)
    of_own, of_others = share, (jnp.sum(share, axis=1, keepdims=True) - share) / max(num_classes - 1, 1)
    slack = jnp.maximum(0, 1 - y) if config.margin == "hinge" else 1 - jnp.tanh(y)
    decayed = jnp.sum(jnp.square(head.weights))
    if head.hidden is not None:
        decayed += jnp.sum(jnp.square(head.hidden[0]))
    own = 0.5 * jnp.sum(of_own * jnp.square(y))
    others = 0.5 * config.margin_weight * jnp.sum(of_others * jnp.square(slack))
    return own + others + 0.5 * config.weight_decay * decayed


def initial_twin_head(dim: int, num_classes: int, config: TwinConfig) -> TwinHead:
    """Weights from a normal distribution of variance 1 / (number of inputs), offsets 0."""
    rng = np.random.default_rng(config.seed)
    width = config.hidden or dim
    hidden: Any = None
    if config.hidden:
        inner = rng.normal(0, dim**-0.5, (num_classes, dim, width))
        hidden = (jnp.asarray(inner), jnp.zeros((num_classes, width)))
    weights = rng.normal(0, width**-0.5, (num_classes, config.num_planes, width))
    return TwinHead(jnp.asarray(weights), jnp.zeros((num_classes, config.num_planes)), hidden)


def fit_twin_head(
    features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"], config: TwinConfig = TwinConfig()
) -> TwinHead:
    """The head that minimises `twin_loss` over all examples at once, by L-BFGS (of scipy) in JAX's own precision.

    Every class 0..max(labels) must have an example. Features should be of comparable scales (`twin_augmented`
    standardises them). Raises ValueError for features that are not finite or labels that are not classes.
    """
    from scipy.optimize import minimize

    num_classes = count_classes(features, labels)
    start = initial_twin_head(features.shape[1], num_classes, config)
    leaves, tree = jax.tree.flatten(start)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    x, y = jnp.asarray(features, start.weights.dtype), jnp.asarray(labels, jnp.int32)

    def head_of(point: np.ndarray) -> TwinHead:
        parts = [part.reshape(leaf.shape).astype(leaf.dtype) for part, leaf in zip(np.split(point, ends), leaves)]
        return jax.tree.unflatten(tree, parts)

    def function(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _loss_and_gradient(head_of(point), x, y, config)
        return float(value), _flat(gradient)

    found = minimize(
        function,
        _flat(start),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": config.max_steps, "ftol": 1e-9, "gtol": 1e-6},
    )
    if not np.isfinite(found.fun):
        raise FloatingPointError(f"the loss of the twin head became {found.fun}")
    return jax.tree.map(jnp.asarray, head_of(found.x))


@partial(jax.jit, static_argnames="config")
def _loss_and_gradient(head: TwinHead, features, labels, config: TwinConfig):
    return jax.value_and_grad(twin_loss)(head, features, labels, config)


def _flat(head: TwinHead) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(head)])


def count_classes(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> int:
    """How many classes there are. Raises ValueError if the features are not finite or not one row for each label, or if
    the labels are not the numbers 0, 1, ... with no gap and at least two of them."""
    features, labels = np.asarray(features), np.asarray(labels)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {features.shape} and labels {labels.shape}: [n, d] and [n] are needed")
    if not np.isfinite(features).all():
        raise ValueError("features are not all finite")
    found = np.unique(labels)
    if len(found) < 2 or not np.array_equal(found, np.arange(len(found))):
        raise ValueError(f"labels are {found.tolist()[:20]}: the classes 0, 1, ... are needed, each at least once")
    return len(found)
