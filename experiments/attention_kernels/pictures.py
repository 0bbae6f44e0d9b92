"""Bundles per tile of both contestants per chip; temporary memory against T; on hardware, speed-up against W."""

from pathlib import Path

from experiments.attention_kernels.hardware import ZOO_KERNELS, Time
from experiments.attention_kernels.lengths import LENGTHS, Growth
from experiments.attention_kernels.schedules import OURS, Pass
from experiments.plotting import pyplot

_COLORS = {OURS: "tab:orange", "jax splash": "tab:gray"}


def draw_bundles(passes: list[Pass], path: Path) -> None:
    """Bundles per 512 x 512 scores, per chip; one panel per pass and shape, the soft-cap on."""
    capped = [p for p in passes if p.logits_soft_cap is not None]
    panels = list(dict.fromkeys((p.shape, p.backward) for p in capped))
    figure, axes = pyplot().subplots(1, len(panels), figsize=(3.6 * len(panels), 3.4), squeeze=False)
    for axis, (shape, backward) in zip(axes[0], panels):
        shown = [p for p in capped if (p.shape, p.backward) == (shape, backward)]
        targets = list(dict.fromkeys(p.target for p in shown))
        for shift, subject in ((-0.2, OURS), (0.2, "jax splash")):
            means = [next(p.mean for p in shown if (p.subject, p.target) == (subject, t)) for t in targets]
            bars = axis.bar(
                [i + shift for i in range(len(targets))], means, 0.38, color=_COLORS[subject], label=subject
            )
            if subject == OURS:
                rivals = [next(p.mean for p in shown if p.subject != OURS and p.target == t) for t in targets]
                axis.bar_label(bars, [f"{a / b:.2f}" for a, b in zip(means, rivals)], fontsize=7)
        axis.set_xticks(range(len(targets)), targets, fontsize=8)
        axis.set_title(f"{shape} heads, {'backward' if backward else 'forward'}", fontsize=9)
        axis.tick_params(axis="y", labelsize=7)
    axes[0][0].set_ylabel("bundles per 512 x 512 scores", fontsize=8)
    axes[0][0].legend(fontsize=7, loc="upper right")
    figure.suptitle("Instruction bundles per tile, W = 4096, soft-cap 50; on the bars: ratio to splash", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def draw_memory(growths: list[Growth], path: Path) -> None:
    """Temporary memory of forward and backward pass against T, one line per chip."""
    figure, axis = pyplot().subplots(figsize=(5.4, 3.8))
    markers = dict(zip(dict.fromkeys(g.target for g in growths), "os^Dv"))
    for g in growths:
        style = "-" if g.subject == OURS else "--"
        axis.loglog(
            LENGTHS,
            [n / 1e9 for n in g.temporary_bytes],
            markers[g.target] + style,
            color=_COLORS[g.subject],
            label=f"{g.subject}, {g.target}",
            ms=4,
            lw=1,
        )
    least = min(g.temporary_bytes[0] for g in growths) / 1e9
    axis.loglog(LENGTHS, [least * n / LENGTHS[0] for n in LENGTHS], "k:", lw=0.8, label="linear in T")
    axis.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS])
    axis.minorticks_off()
    axis.set_xlabel("sequence length T")
    axis.set_ylabel("temporary memory, GB")
    axis.legend(fontsize=7, ncols=2)
    axis.set_title(f"Forward and backward, {growths[0].shape} heads, W = 4096", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def draw_windows(times: list[Time], path: Path) -> None:
    """Speed-up of our fastest kernel over each of the others, against the window."""
    figure, axes = pyplot().subplots(1, 2, figsize=(8, 3.4), sharey=True)
    for axis, backward in zip(axes, (False, True)):
        timed = [t for t in times if t.backward == backward and t.seconds is not None]
        windows = sorted({t.sliding_window for t in timed})
        ours = {w: min(_seconds(t) for t in timed if t.sliding_window == w and _is_ours(t)) for w in windows}
        for name in dict.fromkeys(t.implementation for t in timed if not _is_ours(t)):
            line = [(t.sliding_window, _seconds(t) / ours[t.sliding_window]) for t in timed if t.implementation == name]
            axis.loglog(*zip(*sorted(line)), "o-", label=name, ms=4)
        axis.axhline(1, color="k", lw=0.7)
        axis.set_title("backward" if backward else "forward", fontsize=9)
        axis.set_xlabel("window W")
        axis.set_xticks(windows, [f"{w:,}" for w in windows], fontsize=6)
        axis.minorticks_off()
    axes[0].set_ylabel("times faster than")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)


def _is_ours(t: Time) -> bool:
    return t.implementation in ZOO_KERNELS


def _seconds(t: Time) -> float:
    assert t.seconds is not None
    return t.seconds
