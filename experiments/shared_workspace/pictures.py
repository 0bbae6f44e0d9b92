"""Example pages of the three tasks."""

from pathlib import Path

from experiments.plotting import pyplot
from experiments.shared_workspace import bouncing_balls, sort_of_clevr, triangles


def sort_of_clevr_page(path: Path, *, seed: int = 0, scenes: int = 6) -> None:
    """Scenes with two questions of each kind and their answers."""
    data = sort_of_clevr.generate(scenes, seed, questions_per_kind=2)
    figure, axes = pyplot().subplots(2, (scenes + 1) // 2, figsize=(12, 10.8), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, picture) in enumerate(zip(axes.flat, data.pictures())):
        lines = [
            f"{sort_of_clevr.question_text(vector)} {sort_of_clevr.ANSWERS[right]}"
            for vectors, answers in zip(data.questions[number], data.answers[number])
            for vector, right in zip(vectors, answers)
        ]
        axis.imshow(picture, interpolation="nearest")
        axis.plot([-0.5, 74.5, 74.5, -0.5, -0.5], [-0.5, -0.5, 74.5, 74.5, -0.5], color="0.8", linewidth=0.8)
        axis.set_title("\n".join(lines), fontsize=8, loc="left")
    _save(figure, path)


def triangles_page(path: Path, *, seed: int = 0, each: int = 6) -> None:
    """Equilateral triangles, hard negatives and triangles with vertices anywhere, a row each."""
    figure, axes = pyplot().subplots(3, each, figsize=(2 * each, 7.4), layout="constrained")
    for row, (title, share, label) in zip(
        axes,
        [
            ("equilateral", 0.0, triangles.EQUILATERAL),
            ("hard negative", 1.0, triangles.OTHER),
            ("anywhere", 0.0, triangles.OTHER),
        ],
    ):
        found = triangles.generate(2 * each, seed, hard_share=share)
        chosen = found.labels == label
        ratios = triangles.side_ratio(found.vertices[chosen])
        for axis, picture, ratio in zip(row, found.pictures()[chosen], ratios):
            axis.imshow(picture, cmap="gray", interpolation="nearest")
            axis.set_title(f"{title}\nlongest / shortest {ratio:.2f}", fontsize=8)
            axis.axis("off")
    _save(figure, path)


def bouncing_balls_page(path: Path, *, seed: int = 0, frames: int = 8, every: int = 4) -> None:
    """One sequence of each kind, every fourth frame."""
    figure, axes = pyplot().subplots(
        len(bouncing_balls.KINDS), frames, figsize=(1.6 * frames, 5.6), layout="constrained"
    )
    for row, kind in zip(axes, bouncing_balls.KINDS):
        balls = bouncing_balls.generate(kind, 1, frames * every, seed)
        for number, axis in enumerate(row):
            axis.imshow(balls.frames()[0, number * every], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_title(f"{kind}, frame {number * every}", fontsize=8)
            axis.set_xticks([])
            axis.set_yticks([])
    _save(figure, path)


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=100)
    pyplot().close(figure)
