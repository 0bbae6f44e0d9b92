"""Twin support vector machines in float64: least squares in closed form, and the box-constrained dual.

For each class, with H the rows [x 1] of its own examples (N of them), G the rows of all others, s the share of each of
those (1 / (the number of its class * the number of other classes); they sum to 1), and u = [w; b]:

    least squares   min_u  1/(2N) |H u|^2 + ridge/2 |u|^2 + C/2 sum_i s_i (1 - G_i u)^2
                    u = C (H'H / N + C G' diag(s) G + ridge I)^-1 G' s

    twin SVM        min_u  1/(2N) |H u|^2 + ridge/2 |u|^2 + C sum_i s_i max(0, 1 - G_i u)
                    with A = H'H / N + ridge I, its dual is
                    max_a  sum(a) - 1/2 a' G A^-1 G' a,  0 <= a_i <= C s_i,      u = A^-1 G' a

For two classes these are the problems of Jayadeva, Khemchandani and Chandra (TPAMI 29(5), 2007) and of their
least-squares form, with c = C N / (number of others) and N times this ridge. There the others are at -1 for one of the
two planes, which a distance does not see.

With two classes, C = 1 and no ridge, the least-squares problems mirror each other, y_1 = 1 - y_0: the planes are
parallel, and the decision is that of a linear regression of the label in which both classes count alike. Planes are
non-parallel where C is not 1.
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.optimize
from jaxtyping import Float, Float64, Int

from zoo.nn.twin import TwinHead, count_classes


class TwinSvm(NamedTuple):
    """A twin SVM, and how well it is solved."""

    head: TwinHead
    """One plane for each class; arrays of numpy, float64."""
    multipliers: tuple[Float64[np.ndarray, " m"], ...]
    """a of each class, one for each example of the others, in their order."""
    gaps: Float64[np.ndarray, " c"]
    """Value of the primal less that of the dual, for each class: how far u can be from the optimum; 0 if exact."""


def least_squares_twin_svm(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    margin_weight: float = 1.0,
    ridge: float = 1e-4,
) -> TwinHead:
    """One plane for each class by one linear solve; arrays of numpy, float64. Errors as `count_classes`."""
    planes = []
    for own, others, share in _problems(features, labels, margin_weight, ridge):
        system = own.T @ own / len(own) + margin_weight * (others.T * share) @ others
        system[np.diag_indices_from(system)] += ridge
        planes.append(scipy.linalg.solve(system, margin_weight * others.T @ share, assume_a="pos"))
    return _head(planes)


def twin_svm(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    margin_weight: float = 1.0,
    ridge: float = 1e-4,
    max_steps: int = 2000,
) -> TwinSvm:
    """One plane for each class from the dual, by scipy's L-BFGS-B. A is factored once; a step costs O(others * d).

    Look at `gaps`: a small ridge makes the problem ill-conditioned, and steps may run out. Errors as `count_classes`.
    """
    planes, multipliers, gaps = [], [], []
    for own, others, share in _problems(features, labels, margin_weight, ridge):
        quadratic = own.T @ own / len(own)
        quadratic[np.diag_indices_from(quadratic)] += ridge
        lower = scipy.linalg.cholesky(quadratic, lower=True)
        rows = scipy.linalg.solve_triangular(lower, others.T, lower=True)
        upper = margin_weight * share
        multiplier = _box_constrained(rows, upper, max_steps)
        image = rows @ multiplier
        plane = scipy.linalg.solve_triangular(lower, image, lower=True, trans="T")
        dual = multiplier.sum() - 0.5 * image @ image
        primal = 0.5 * plane @ quadratic @ plane + upper @ np.maximum(0, 1 - others @ plane)
        planes.append(plane)
        multipliers.append(multiplier)
        gaps.append(primal - dual)
    return TwinSvm(_head(planes), tuple(multipliers), np.asarray(gaps))


def rbf_features(
    x: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "m d"], gamma: float, jitter: float = 1e-8
) -> Float64[np.ndarray, "n m"]:
    """phi(x) with phi(x) . phi(z) = exp(-gamma |x - z|^2) for z among the centres: K(x, Z) L'^-1, where
    L L' = K(Z, Z) + jitter I (Nystroem).

    A linear twin SVM on phi is the kernel's, |w| its norm in the kernel's space; exactly so if all training examples
    are centres, and approximately, in m numbers for an example, if some are.
    """
    if not gamma > 0:
        raise ValueError(f"gamma {gamma}: above 0")
    gram = rbf_kernel(centres, centres, gamma)
    gram[np.diag_indices_from(gram)] += jitter
    lower = scipy.linalg.cholesky(gram, lower=True)
    return scipy.linalg.solve_triangular(lower, rbf_kernel(centres, x, gamma), lower=True).T


def rbf_kernel(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"], gamma: float) -> Float64[np.ndarray, "n m"]:
    """exp(-gamma |a - b|^2) of every pair."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1) - 2 * a @ b.T
    return np.exp(-gamma * np.maximum(squares, 0))


def _problems(features, labels, margin_weight: float, ridge: float):
    """(H, G, s) of each class."""
    if not margin_weight > 0 or not ridge > 0:
        raise ValueError(f"margin_weight {margin_weight} and ridge {ridge} are above 0")
    num_classes = count_classes(features, labels)
    labels = np.asarray(labels)
    rows = np.concatenate([np.asarray(features, np.float64), np.ones((len(labels), 1))], axis=1)
    share = 1 / (np.bincount(labels)[labels] * (num_classes - 1))
    for label in range(num_classes):
        own = labels == label
        yield rows[own], rows[~own], share[~own]


def _box_constrained(
    rows: Float64[np.ndarray, "k m"], upper: Float64[np.ndarray, " m"], max_steps: int
) -> Float64[np.ndarray, " m"]:
    """argmax over 0 <= a <= upper of sum(a) - 1/2 |rows a|^2.

    Solved for t = a / upper, times a factor that makes the gradient's linear part 1 on average: the tolerance is
    absolute.
    """
    factor = len(upper) / upper.sum()
    scaled = rows * upper

    def function(t: np.ndarray) -> tuple[float, np.ndarray]:
        image = scaled @ t
        return factor * (0.5 * image @ image - upper @ t), factor * (image @ scaled - upper)

    found = scipy.optimize.minimize(
        function,
        np.zeros_like(upper),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(0, 1),
        options={"maxiter": max_steps, "maxfun": 2 * max_steps, "ftol": 0, "gtol": 1e-8, "maxcor": 30},
    )
    return upper * found.x


def _head(planes: list[np.ndarray]) -> TwinHead:
    stacked = np.stack(planes)
    return TwinHead(stacked[:, None, :-1], stacked[:, -1:])
