"""Is a triangle equilateral? Pictures of three clusters of points, with hard negatives.

Rules of the generator of github.com/anirudh9119/shared_workspace: a picture has 64 x 64 pixels, black and white; a
vertex is eight points, four at random within one pixel of it and their mirror images, each drawn as a disc of radius 2;
half of the triangles are equilateral, with two vertices anywhere and the third one turned by 60 degrees about the
first; the others have three vertices anywhere.

Unlike there, a label can be told from a picture in principle: vertices are rounded instead of cut to whole pixels,
equilateral triangles have sides of at least 16 pixels, so that their sides differ by less than a tenth, and of all
others the longest is longer than the shortest by at least a tenth. Hard negatives are made as equilateral ones are,
with the third vertex moved until the longest side is longer than the shortest by 10 to 25 percent: neither size nor
place nor a general impression tells them apart.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

SIZE, RADIUS, PATCH = 64, 2, 4
"""Pixels along a side of a picture, from a point's centre to its edge, and along a side of a patch."""
LEAST_SIDE, LEAST_RATIO, MOST_HARD_RATIO = 16, 1.1, 1.25
EQUILATERAL, OTHER = 0, 1
_DISC = np.array([(y, x) for y in range(-RADIUS, RADIUS + 1) for x in range(-RADIUS, RADIUS + 1) if x * x + y * y <= 4])


class Triangles(NamedTuple):
    """Triangles and what they are."""

    vertices: Int[np.ndarray, "n 3 2"]
    """Column and row."""
    offsets: Float[np.ndarray, "n 3 8 2"]
    """Points of the clusters, from their vertex."""
    labels: Int[np.ndarray, " n"]
    """EQUILATERAL or OTHER."""

    def pictures(self) -> UInt8[np.ndarray, "n 64 64"]:
        """All of them, drawn, in 0 and 255."""
        return draw(self.vertices, self.offsets)


def generate(count: int, seed: int, *, hard_share: float = 0.0) -> Triangles:
    """`count` triangles, half of them equilateral, in random order; `hard_share`: which part of the others is hard."""
    random = np.random.default_rng(seed)
    equal = count // 2
    hard = round((count - equal) * hard_share)
    parts = [_equilateral(equal, random), _hard(hard, random), _anywhere(count - equal - hard, random)]
    vertices = np.concatenate(parts)
    labels = np.array([EQUILATERAL] * equal + [OTHER] * (count - equal))
    order = random.permutation(count)
    half = random.uniform(-1, 1, (count, 3, 4, 2))
    return Triangles(vertices[order], np.concatenate([half, -half], axis=2), labels[order])


def side_ratio(vertices: Int[np.ndarray, "*n 3 2"]) -> Float[np.ndarray, "*n"]:
    """Longest side / shortest side; infinite where two vertices are one."""
    sides = np.sqrt(((vertices - np.roll(vertices, 1, axis=-2)) ** 2).sum(-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(sides.min(-1) > 0, sides.max(-1) / sides.min(-1), np.inf)


def draw(vertices: Int[np.ndarray, "n 3 2"], offsets: Float[np.ndarray, "n 3 8 2"]) -> UInt8[np.ndarray, "n 64 64"]:
    """The points as discs, in 255 on 0."""
    centres = np.rint(vertices[:, :, None] + offsets).astype(int)
    pixels = (centres[:, :, :, None, ::-1] + _DISC).reshape(len(vertices), -1, 2)
    pictures = np.zeros((len(vertices), SIZE + 2 * SIZE, SIZE + 2 * SIZE), np.uint8)
    # With a margin, so that what lies outside needs no case of its own.
    pictures[np.arange(len(vertices))[:, None], pixels[..., 0] + SIZE, pixels[..., 1] + SIZE] = 255
    return pictures[:, SIZE:-SIZE, SIZE:-SIZE]


def patches(pictures: UInt8[np.ndarray, "n 64 64"]) -> Float32[np.ndarray, "n 256 16"]:
    """256 patches of 4 x 4 pixels in 0..1, row by row."""
    count = SIZE // PATCH
    split = pictures.reshape(len(pictures), count, PATCH, count, PATCH).swapaxes(2, 3)
    return (split.reshape(len(pictures), count * count, -1) / 255).astype(np.float32)


def _points(count: int, random: np.random.Generator) -> Int[np.ndarray, "n 2"]:
    return random.integers(1, SIZE - 1, (count, 2))


def _turned(first: np.ndarray, second: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """The third vertex: `second` turned by 60 degrees about `first`."""
    turn = np.array([[0.5, -np.sqrt(0.75)], [np.sqrt(0.75), 0.5]])
    return first + (second - first) @ turn.T


def _kept(count: int, random: np.random.Generator, make, keep) -> Int[np.ndarray, "n 3 2"]:
    """The first `count` of what `make` makes and `keep` keeps, all of it inside of the picture."""
    found = np.zeros((0, 3, 2), int)
    while len(found) < count:
        made = make(2 * count + 16, random)
        inside = ((made >= 1) & (made < SIZE - 1)).all(axis=(1, 2))
        found = np.concatenate([found, made[inside & keep(made)]])
    return found[:count]


def _long_enough(vertices: np.ndarray) -> np.ndarray:
    return ((vertices[:, 1] - vertices[:, 0]) ** 2).sum(-1) >= LEAST_SIDE**2


def _equilateral(count: int, random: np.random.Generator) -> Int[np.ndarray, "n 3 2"]:
    def make(many, random):
        first, second = _points(many, random), _points(many, random)
        return np.stack([first, second, np.rint(_turned(first, second)).astype(int)], axis=1)

    return _kept(count, random, make, _long_enough)


def _hard(count: int, random: np.random.Generator) -> Int[np.ndarray, "n 3 2"]:
    def make(many, random):
        first, second = _points(many, random), _points(many, random)
        length = np.sqrt(((second - first) ** 2).sum(-1, keepdims=True))
        moved = _turned(first, second) + random.uniform(-0.3, 0.3, (many, 2)) * length
        return np.stack([first, second, np.rint(moved).astype(int)], axis=1)

    def keep(vertices):
        ratio = side_ratio(vertices)
        return _long_enough(vertices) & (ratio >= LEAST_RATIO) & (ratio <= MOST_HARD_RATIO)

    return _kept(count, random, make, keep)


def _anywhere(count: int, random: np.random.Generator) -> Int[np.ndarray, "n 3 2"]:
    def make(many, random):
        return _points(3 * many, random).reshape(many, 3, 2)

    return _kept(count, random, make, lambda vertices: side_ratio(vertices) >= LEAST_RATIO)
