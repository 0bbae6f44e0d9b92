"""Bars of the comparison and lines of the local layer, as PNG."""

from pathlib import Path

from experiments.plotting import pyplot
from experiments.speed.contest import Contest
from experiments.speed.local_attention import LengthResult


def draw_contest(contest: Contest, path: Path) -> None:
    """Tokens per second of every implementation, one panel per measurement."""
    count = len(contest.measurements)
    figure, panels = pyplot().subplots(1, count, figsize=(3.4 * count, 3.2), squeeze=False)
    for panel, measurement in zip(panels[0], contest.measurements.values()):
        names = list(measurement.seconds)[::-1]
        rates = [measurement.tokens_per_second(name) for name in names]
        panel.barh(names, rates, color=["tab:orange" if name == "zoo" else "tab:gray" for name in names])
        for row, name in enumerate(names):
            seconds = measurement.seconds[name]
            panel.plot([measurement.tokens / max(seconds), measurement.tokens / min(seconds)], [row, row], "k-", lw=1)
        panel.set_title(measurement.title.replace(", ", ",\n", 1), fontsize=8)
        panel.set_xlabel("tokens per second", fontsize=8)
        panel.tick_params(labelsize=7)
        if panel is not panels[0][0]:
            panel.set_yticklabels([])
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def draw_local(results: list[LengthResult], path: Path) -> None:
    """Time and memory against length, beside a straight line through the shortest."""
    lengths = [r.length for r in results]
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(8, 3.2))
    for panel, values, label in (
        (left, [r.seconds * 1e3 for r in results], "ms, forward and backward"),
        (right, [r.temporary_bytes / 1e6 for r in results], "temporary memory, MB"),
    ):
        panel.loglog(lengths, values, "o-", label="measured")
        panel.loglog(lengths, [values[0] * n / lengths[0] for n in lengths], "k:", label="linear in T")
        panel.loglog(lengths, [values[0] * (n / lengths[0]) ** 2 for n in lengths], "k--", lw=0.7, label="T x T")
        panel.set_xlabel("sequence length T")
        panel.set_ylabel(label)
        panel.set_xticks(lengths, [f"{n:,}" for n in lengths])
        panel.minorticks_off()
    left.legend(fontsize=8)
    figure.suptitle("one local attention layer", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
