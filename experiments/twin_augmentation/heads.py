"""Every way to decide that is compared, on the features of one network that stays as it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from experiments.twin_augmentation.arms import Size
from experiments.twin_augmentation.controls import best_threshold, prior_corrected
from experiments.twin_augmentation.logistic import Logistic, balanced_weights, fit_logistic
from experiments.twin_augmentation.metrics import balanced_accuracy
from zoo.nn.calibration import calibrated, fit_calibration
from zoo.nn.twin import TwinConfig, fit_twin_head, twin_distances
from zoo.nn.twin_classifier import TwinClassifier, twin_augmented
from zoo.nn.twin_svm import rbf_features, twin_svm

SOFTMAX, PRIOR, THRESHOLD = "softmax", "softmax, prior", "softmax, threshold"
WEIGHTED, FOCAL, LOGISTIC = "weighted", "focal", "logistic"
TWIN, TWIN_CHOSEN, TWIN_THRESHOLD = "twin", "twin, chosen", "twin, threshold"
TWSVM, KERNEL, TWIN_NN = "TWSVM", "TWSVM, kernel", "Twin NN"
HEADS = {
    SOFTMAX: "the network's own classifier, trained by cross-entropy",
    PRIOR: "the same logits less the logarithm of the training shares: a threshold shift that needs no data",
    THRESHOLD: "the same logits with the threshold that is best on held-out patients; calibrated on them",
    WEIGHTED: "the network trained again, cross-entropy weighted by class",
    FOCAL: "the network trained again, focal loss",
    LOGISTIC: "rebalanced logistic regression on the features; penalty chosen on held-out patients",
    TWSVM: "linear twin SVM (its dual) on the features; C and ridge chosen",
    KERNEL: "twin SVM with a Gaussian kernel on the features; C chosen",
    TWIN_NN: "a hidden layer of 32 for each class and a plane behind it, slack of tanh; C chosen",
    TWIN: "twin augmentation: a plane for each class, C = 1, decay 0.001: nothing is chosen",
    TWIN_CHOSEN: "the same with C and weight decay chosen on held-out patients",
    TWIN_THRESHOLD: "the scores of twin with the threshold that is best on held-out patients",
}
"""In the order of the tables."""
RIDGE = 1e-2
"""Of the kernel twin SVM, whose rows have |phi| = 1 at most."""
DUAL_STEPS = 500
"""Most steps of a dual."""

Rows = Float[np.ndarray, "n d"]


@dataclass(frozen=True)
class Judged:
    """What one head says of some images."""

    scores: Float[np.ndarray, " n"]
    """The higher, the more like the rare class."""
    decisions: Int[np.ndarray, " n"]
    """Its classes."""
    probabilities: Float[np.ndarray, "n 2"]
    """Of both classes."""


Judge = Callable[[Rows], Judged]
"""Features (of a softmax: logits) -> what a head says of them."""


def softmax_heads(
    logits: Float[np.ndarray, "n 2"], labels: Int[np.ndarray, " n"], shares: Float[np.ndarray, " 2"]
) -> dict[str, Judge]:
    """The softmax and its two shifts, from held-out logits [n, 2]; `shares`: of the classes in training."""
    threshold = best_threshold(labels == 1, difference(logits))
    platt = fit_calibration(logits, labels)

    def plain(rows: Rows) -> Judged:
        return Judged(difference(rows), np.argmax(rows, axis=1), softmax(rows))

    def shifted(rows: Rows) -> Judged:
        moved = prior_corrected(rows, shares)
        return Judged(difference(rows), np.argmax(moved, axis=1), softmax(moved))

    def cut(rows: Rows) -> Judged:
        scores = difference(rows)
        return Judged(scores, (scores > threshold).astype(int), calibrated(platt, rows))

    return {SOFTMAX: plain, PRIOR: shifted, THRESHOLD: cut}


def feature_heads(
    rows: Rows,
    labels: Int[np.ndarray, " n"],
    held_rows: Rows,
    held_labels: Int[np.ndarray, " m"],
    size: Size,
    seed: int,
) -> tuple[dict[str, Judge], dict[str, str]]:
    """Every head that is fitted on frozen features, and what was chosen for it.

    rows, labels: of the training images. held_rows, held_labels: they choose and calibrate.
    """

    def fitted(fit) -> TwinClassifier:
        return twin_augmented(rows, labels, held_rows, held_labels, fit=fit)

    def best(candidates: Sequence[tuple[str, Judge]]) -> tuple[str, Judge]:
        return max(candidates, key=lambda one: balanced_accuracy(held_labels, one[1](held_rows).decisions))

    def twin(**fields) -> Judge:
        return judge_of(fitted(lambda x, y: fit_twin_head(x, y, TwinConfig(seed=seed, **fields))))

    plain = twin()
    threshold = best_threshold(held_labels == 1, plain(held_rows).scores)

    def cut(found: Rows) -> Judged:
        said = plain(found)
        return Judged(said.scores, (said.scores > threshold).astype(int), said.probabilities)

    kernel = kernel_of(rows, labels, size.centres, seed)
    grid = [(c, penalty) for c in size.margins for penalty in size.penalties]
    candidates: dict[str, list[tuple[str, Judge]]] = {
        LOGISTIC: [(f"penalty {penalty:g}", _logistic(rows, labels, held_rows, held_labels, penalty))
                   for penalty in size.penalties],
        TWSVM: [(f"C {c:g}, ridge {ridge:g}", judge_of(fitted(_dual(c, ridge)))) for c, ridge in grid],
        KERNEL: [(f"C {c:g}", _kernel_svm(kernel, rows, labels, held_rows, held_labels, c)) for c in size.margins],
        TWIN_NN: [(f"C {c:g}", twin(hidden=32, margin="tanh", margin_weight=c)) for c in size.margins],
        TWIN_CHOSEN: [(f"C {c:g}, decay {decay:g}", twin(margin_weight=c, weight_decay=decay)) for c, decay in grid],
    }  # fmt: skip
    chosen = {name: best(ones) for name, ones in candidates.items()}
    judges = {TWIN: plain, TWIN_THRESHOLD: cut} | {name: judge for name, (_, judge) in chosen.items()}
    return judges, {name: what for name, (what, _) in chosen.items()}


def judge_of(classifier: TwinClassifier) -> Judge:
    """A twin classifier's scores are the difference of its distances."""

    def judge(rows: Rows) -> Judged:
        distances = classifier.distances(rows)
        scores = (distances[:, 0] - distances[:, 1]).astype(np.float64)
        return Judged(scores, np.argmin(distances, axis=1), classifier.probabilities(rows))

    return judge


def kernel_of(rows: Rows, labels: Int[np.ndarray, " n"], most: int, seed: int) -> Callable[[Rows], Rows]:
    """Standardised rows -> Nystroem features of a Gaussian kernel of width sqrt(d), its centres training rows: up to
    `most`, as many of both classes as there are."""
    mean, scale = rows.mean(axis=0), rows.std(axis=0)
    scale = np.where(scale > 1e-6, scale, 1)
    rng = np.random.default_rng([seed, 3])
    places = [rng.permutation(np.flatnonzero(labels == label))[: most // 2] for label in (0, 1)]
    centres = ((rows - mean) / scale)[np.sort(np.concatenate(places))]
    gamma = 0.5 / rows.shape[1]
    return lambda found: rbf_features((found - mean) / scale, centres, gamma, jitter=1e-6)


def _kernel_svm(kernel: Callable[[Rows], Rows], rows: Rows, labels, held_rows: Rows, held_labels, c: float) -> Judge:
    """The twin SVM of the kernel's features as they are: standardised, they would be those of another kernel."""
    phi = kernel(rows)
    head = _dual(c, RIDGE)(phi, labels)
    calibration = fit_calibration(-np.asarray(twin_distances(head, kernel(held_rows))), held_labels)
    width = phi.shape[1]
    classifier = TwinClassifier(head, np.zeros(width, np.float32), np.ones(width, np.float32), calibration)
    judge = judge_of(classifier)
    return lambda found: judge(kernel(found))


def _dual(margin_weight: float, ridge: float):
    return lambda x, y: twin_svm(x, y, margin_weight=margin_weight, ridge=ridge, max_steps=DUAL_STEPS).head


def _logistic(rows: Rows, labels, held_rows: Rows, held_labels, penalty: float) -> Judge:
    fit: Logistic = fit_logistic(rows, labels, penalty=penalty, weights=balanced_weights(labels), max_steps=200)
    platt = fit_calibration(fit.logits(held_rows), held_labels)

    def judge(found: Rows) -> Judged:
        logits = fit.logits(found)
        return Judged(difference(logits), np.argmax(logits, axis=1), calibrated(platt, logits))

    return judge


def difference(logits: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
    """The rare class's logit less the other's."""
    return np.asarray(logits[:, 1] - logits[:, 0], np.float64)


def softmax(logits: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """In float64."""
    shifted = np.exp(np.asarray(logits, np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
