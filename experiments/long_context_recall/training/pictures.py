"""Recall by length, a line for each arm; and the recipe's heat map over all seeds (`heat_map.draw`)."""

from collections.abc import Sequence
from pathlib import Path

from experiments.long_context_recall import heat_map
from experiments.long_context_recall.training.arms import MAIN
from experiments.long_context_recall.training.examination import pooled
from experiments.long_context_recall.training.findings import by_arm, lengths_of, recall_of, tasks_of
from experiments.long_context_recall.training.worker import Result
from experiments.plotting import pyplot


def draw_all(results: Sequence[Result], folder: Path, stem: str) -> list[str]:
    """Both; gives their file names."""
    names = [f"{stem}.png", f"{stem}-by-length.png"]
    draw_map(results, folder / names[0])
    draw_lines(results, folder / names[1])
    return names


def draw_lines(results: Sequence[Result], path: Path) -> None:
    """One panel for each task that more than one arm was asked, or for all if there is one arm only."""
    arms = by_arm(results)
    asked = {task: [arm for arm, runs in arms.items() if task in tasks_of(runs)] for task in tasks_of(results)}
    several = [task for task, names in asked.items() if len(names) > 1]
    tasks = several or list(asked)
    figure, axes = pyplot().subplots(
        1, len(tasks), figsize=(4.2 * len(tasks) + 1.5, 4), squeeze=False, sharey=True, layout="constrained"
    )
    colours = pyplot().get_cmap("tab20")
    for panel, task in zip(axes[0], tasks, strict=True):
        for number, (arm, runs) in enumerate(arms.items()):
            lengths = lengths_of(runs, task)
            found = [(length, recall) for length in lengths if (recall := recall_of(runs, task, [length])) is not None]
            if found:
                style = {"linewidth": 2.5, "color": "black"} if arm == MAIN else {"color": colours(number % 20)}
                panel.plot(*zip(*((length, 100 * recall.mean) for length, recall in found), strict=True), marker="o",
                           markersize=3, label=arm, **style)  # fmt: skip
        for length in {result.trained_length for result in results}:
            panel.axvline(length, color="grey", linestyle=":")
        panel.set(xscale="log", xlabel="tokens (dotted: trained lengths)", title=task, ylim=(-3, 103))
        panel.set_xscale("log", base=2)
    axes[0, 0].set_ylabel("right answers, percent, mean over seeds")
    axes[0, -1].legend(fontsize=7, loc="lower left")
    figure.savefig(path, dpi=130)
    pyplot().close(figure)


def draw_map(results: Sequence[Result], path: Path) -> None:
    """Of the recipe; of the first arm where the recipe was left out."""
    arms = by_arm(results)
    name = MAIN if MAIN in arms else next(iter(arms))
    runs = arms[name]
    title = f"{name}, {len(runs)} seed{'s' * (len(runs) > 1)}: answers written, percent"
    heat_map.draw(pooled(run.examined for run in runs), title, path, "written", runs[0].trained_length)
