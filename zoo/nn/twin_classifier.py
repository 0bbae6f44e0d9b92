"""Twin augmentation: a twin head on the features of a network that is trained and stays as it is.

The idea is arXiv 2102.07975's, of which only the abstract could be read; this reconstruction is the project's own:
features of the last layer before the classifier, standardised with the training examples' means and deviations, a twin
head fitted to them, and its distances calibrated on examples that were held out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32

from zoo.nn.calibration import Calibration, calibrated, fit_calibration
from zoo.nn.twin import TwinHead, count_classes, fit_twin_head, twin_distances

FitHead = Callable[[Float[np.ndarray, "n d"], Int[np.ndarray, " n"]], TwinHead]
"""(features, labels) -> head: `fit_twin_head`, `least_squares_twin_svm`, or `twin_svm` without its multipliers."""


@dataclass(frozen=True)
class TwinClassifier:
    """A classifier of features, of the same network that those it was fitted on are of."""

    head: TwinHead
    """In the space of standardised features."""
    mean: Float32[np.ndarray, " d"]
    """Of the training features."""
    scale: Float32[np.ndarray, " d"]
    """Their standard deviation; 1 where a feature is constant."""
    calibration: Calibration
    """From distances to probabilities."""

    def distances(self, features: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n c"]:
        """To the nearest plane of each class."""
        return np.asarray(twin_distances(self.head, _standardised(features, self.mean, self.scale)), np.float32)

    def predictions(self, features: Float[np.ndarray, "n d"]) -> Int32[np.ndarray, " n"]:
        """The class whose planes are nearest. This need not be the most probable one: a rare class is decided for where
        its plane is the nearer one, though `probabilities` count in how rare it is."""
        return np.argmin(self.distances(features), axis=1).astype(np.int32)

    def probabilities(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, "n c"]:
        """Calibrated; rows sum to 1."""
        return calibrated(self.calibration, -self.distances(features))


def twin_augmented(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    held_out_features: Float[np.ndarray, "m d"],
    held_out_labels: Int[np.ndarray, " m"],
    *,
    fit: FitHead = fit_twin_head,
    with_offsets: bool = True,
) -> TwinClassifier:
    """The classifier by a twin head of a trained network's features.

    Args:
      features: of the network's penultimate layer, on training examples.
      labels: their classes, 0, 1, ...
      held_out_features: of examples that neither network nor head was trained on; they are for calibration alone.
      held_out_labels: their classes.
      fit: fits the head to standardised float32 features.
      with_offsets: Platt's form; False: temperature only (`zoo.nn.calibration`).

    Raises ValueError for arrays that do not fit together, numbers that are not finite, and classes without examples.
    """
    features, held_out_features = np.asarray(features), np.asarray(held_out_features)
    count_classes(features, labels)
    if held_out_features.ndim != 2 or held_out_features.shape[1] != features.shape[1]:
        raise ValueError(f"held-out features {held_out_features.shape}, features {features.shape}: of one width")
    mean = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    deviation = features.std(axis=0, dtype=np.float64)
    constant = deviation <= 1e-6 * np.maximum(1e-30, np.abs(mean))
    scale = np.where(constant, 1, deviation).astype(np.float32)
    head = fit(_standardised(features, mean, scale), np.asarray(labels))
    distances = np.asarray(twin_distances(head, _standardised(held_out_features, mean, scale)))
    calibration = fit_calibration(-distances, held_out_labels, with_offsets=with_offsets)
    return TwinClassifier(head, mean, scale, calibration)


def _standardised(features: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Float32[np.ndarray, "n d"]:
    return ((np.asarray(features, np.float32) - mean) / scale).astype(np.float32)
