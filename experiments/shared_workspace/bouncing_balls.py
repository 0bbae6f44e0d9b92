"""Balls that bounce off walls and off each other: 4 of them, 6 to 8 of different sizes, or 3 behind a curtain.

After the script of Sutskever, Hinton and Taylor's recurrent temporal RBM (2008), as kept in
github.com/AlbertoCenzato/dnn_bouncing_balls: a box of 10 x 10, radius 1.2, velocities normal and then scaled so that
all of them together have length 1/2; a frame is two steps of half of a velocity; a wall turns the velocity inwards; two
balls that touch exchange momentum along the line between their centres, elastically. A pixel is
sum_i exp(-(distance to ball i / its radius)^8), at most 1.

Unlike there, balls that touch exchange momentum only while they approach, so that none stick together. The sets "4",
"678" and "curtain" have the names of the paper's (arXiv 2103.01197); how large and heavy 6 to 8 balls are, and where
the curtain hangs, is ours: radii are uniform in 0.7..1.1 and masses grow with their squares; the curtain is a square of
4 x 4 anywhere in the box, behind which nothing is seen.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32

Kind = Literal["4", "678", "curtain"]
KINDS: tuple[Kind, ...] = ("4", "678", "curtain")
BOX, RADIUS, SPEED, SUBSTEPS = 10.0, 1.2, 0.5, 2
"""Side of the box, radius of the balls of "4" and "curtain", length of all velocities together, steps of a frame."""
SMALL_RADII = (0.7, 1.1)
CURTAIN = 4.0
"""Side of the curtain."""


@dataclass(frozen=True)
class Balls:
    """Sequences of frames. Where there are fewer balls than k, those that are not `present` are of radius 0."""

    positions: Float[np.ndarray, "n t k 2"]
    """Centres, (across, down) in 0..10."""
    velocities: Float[np.ndarray, "n t k 2"]
    """Way per frame."""
    radii: Float[np.ndarray, "n k"]
    """Of the balls."""
    masses: Float[np.ndarray, "n k"]
    """Of the balls."""
    present: Bool[np.ndarray, "n k"]
    """Which balls there are."""
    curtains: Float[np.ndarray, "n 2"] | None
    """Corner of the curtain next to the origin; None = there is none."""

    def hidden(self) -> Bool[np.ndarray, "n t k"]:
        """Which balls have their centre behind the curtain."""
        if self.curtains is None:
            return np.zeros(self.positions.shape[:3], bool)
        inside = self.positions - self.curtains[:, None, None]
        return ((inside >= 0) & (inside < CURTAIN)).all(-1)

    def states(self) -> Float32[np.ndarray, "n t k 4"]:
        """What is seen of each ball: place in -1..1 and velocity / SPEED; zeros for what is hidden or not there."""
        seen = np.concatenate([self.positions / (BOX / 2) - 1, self.velocities / SPEED], axis=-1)
        shown = self.present[:, None] & ~self.hidden()
        return np.where(shown[..., None], seen, 0).astype(np.float32)

    def frames(self, size: int = 64) -> Float32[np.ndarray, "n t size size"]:
        """Pictures, row by row, in 0..1."""
        places = (np.arange(size) + 0.5) * BOX / size
        columns, rows = np.meshgrid(places, places)
        picture = np.zeros((*self.positions.shape[:2], size, size))
        for ball in np.flatnonzero(self.present.any(0)):
            x, y = (self.positions[:, :, ball, axis, None, None] for axis in range(2))
            radius = np.where(self.present[:, ball], self.radii[:, ball], 1)[:, None, None, None]
            part = np.exp(-((((columns - x) ** 2 + (rows - y) ** 2) / radius**2) ** 4))
            picture += np.where(self.present[:, ball, None, None, None], part, 0)
        if self.curtains is not None:
            left, top = (self.curtains[:, axis, None, None, None] for axis in range(2))
            behind = (columns >= left) & (columns < left + CURTAIN) & (rows >= top) & (rows < top + CURTAIN)
            picture = np.where(behind, 0, picture)
        return np.minimum(picture, 1).astype(np.float32)


def generate(kind: Kind, count: int, length: int, seed: int) -> Balls:
    """`count` sequences of `length` frames."""
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    random = np.random.default_rng(seed)
    most = {"4": 4, "678": 8, "curtain": 3}[kind]
    numbers = random.integers(6, 9, count) if kind == "678" else np.full(count, most)
    present = np.arange(most) < numbers[:, None]
    if kind == "678":
        radii = np.where(present, random.uniform(*SMALL_RADII, (count, most)), 0)
    else:
        radii = np.full((count, most), RADIUS)
    masses = np.where(present, (radii / RADIUS) ** 2, 1)
    places = np.stack([_places(own, there, random) for own, there in zip(radii, present, strict=True)])
    velocities = np.where(present[..., None], random.normal(size=(count, most, 2)), 0)
    velocities *= SPEED / np.sqrt((velocities**2).sum((1, 2), keepdims=True))
    positions, velocities = simulate(places, velocities, radii, masses, present, length)
    curtains = random.uniform(0, BOX - CURTAIN, (count, 2)) if kind == "curtain" else None
    return Balls(positions, velocities, radii, masses, present, curtains)


def _places(radii: np.ndarray, present: np.ndarray, random: np.random.Generator) -> Float[np.ndarray, "k 2"]:
    """Places inside of the box where no ball touches another one."""
    while True:
        places = random.uniform(radii[:, None], BOX - radii[:, None], (len(radii), 2))
        distances = np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))
        apart = distances > radii[:, None] + radii[None]
        if (apart | np.eye(len(radii), dtype=bool) | ~(present[:, None] & present[None])).all():
            return places


def simulate(
    positions: Float[np.ndarray, "n k 2"],
    velocities: Float[np.ndarray, "n k 2"],
    radii: Float[np.ndarray, "n k"],
    masses: Float[np.ndarray, "n k"],
    present: Bool[np.ndarray, "n k"],
    length: int,
) -> tuple[Float[np.ndarray, "n t k 2"], Float[np.ndarray, "n t k 2"]]:
    """(positions, velocities) of `length` frames, the first of which is what is given."""
    found = []
    for _ in range(length):
        found.append((positions, velocities))
        for _ in range(SUBSTEPS):
            positions = positions + velocities / SUBSTEPS
            velocities = _off_walls(positions, velocities, radii)
            for first in range(radii.shape[1]):
                for second in range(first):
                    velocities = collide(positions, velocities, radii, masses, present, first, second)
    return np.stack([p for p, _ in found], 1), np.stack([v for _, v in found], 1)


def _off_walls(positions, velocities, radii):
    """Velocities that point inwards where a ball reaches beyond a wall."""
    low, high = positions < radii[..., None], positions > BOX - radii[..., None]
    return np.where(low, np.abs(velocities), np.where(high, -np.abs(velocities), velocities))


def collide(
    positions: Float[np.ndarray, "n k 2"],
    velocities: Float[np.ndarray, "n k 2"],
    radii: Float[np.ndarray, "n k"],
    masses: Float[np.ndarray, "n k"],
    present: Bool[np.ndarray, "n k"],
    first: int,
    second: int,
) -> Float[np.ndarray, "n k 2"]:
    """Velocities after two balls bounced off each other, where they touch and approach.

    Along the line between the centres, with speeds a and b and the speed c = (m_a a + m_b b) / (m_a + m_b) of the two
    together: a' = 2 c - a, b' = 2 c - b. Momentum and energy stay; across the line nothing changes.
    """
    between = positions[:, first] - positions[:, second]
    distance = np.sqrt((between**2).sum(-1))
    line = between / np.maximum(distance, 1e-12)[:, None]
    a, b = ((velocities[:, ball] * line).sum(-1) for ball in (first, second))
    both = present[:, first] & present[:, second]
    bounce = both & (distance < radii[:, first] + radii[:, second]) & (a - b < 0)
    together = (masses[:, first] * a + masses[:, second] * b) / (masses[:, first] + masses[:, second])
    velocities = velocities.copy()
    for ball, speed in ((first, a), (second, b)):
        velocities[:, ball] += np.where(bounce, 2 * (together - speed), 0)[:, None] * line
    return velocities
