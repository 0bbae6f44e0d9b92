"""Quality against size, and what a decode program holds, as one PNG."""

from collections.abc import Sequence
from pathlib import Path

from experiments.plotting import pyplot
from experiments.quantisation.findings import increase, kinds_of
from experiments.quantisation.kinds import BFLOAT16, FLOAT32, PACKINGS
from experiments.quantisation.programs import Memory
from experiments.quantisation.seed import SeedResult


def draw(seeds: Sequence[SeedResult], memory: Sequence[Memory], path: Path) -> None:
    """Left: size against the increase of perplexity with its interval. Right: weights and temporaries of decoding."""
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(12, 4.2))
    unpacked = seeds[0].scores[BFLOAT16].bytes_on_disk
    for number, kind in enumerate(kind for kind in kinds_of(seeds) if kind not in (FLOAT32, BFLOAT16)):
        found, size = increase(seeds, kind), seeds[0].scores[kind].bytes_on_disk / unpacked
        half = found.half if found.count > 1 else 0
        left.errorbar(size, found.mean, half, fmt="o", capsize=3, color=f"C{number}", label=kind)
        for result in seeds:
            one = increase([result], kind).mean
            left.plot(size, one, "_", ms=12, color=f"C{number}", alpha=0.6)
    left.axhline(0, color="black", lw=0.7, ls=":")
    left.set_xlabel("size on disk / bfloat16")
    left.set_ylabel("perplexity above bfloat16 (%)")
    left.set_title(f"held-out text, {len(seeds)} seeds, 95 % interval", fontsize=9)
    left.legend(fontsize=7)

    shown = [each for each in memory if each.kind in PACKINGS]
    rows = range(len(shown))
    weights = [100 * each.weight_bytes / (2 * each.parameters) for each in shown]
    temporaries = [100 * each.temporary_bytes / (2 * each.parameters) for each in shown]
    right.barh(rows, weights, color="tab:blue", label="packed weights")
    right.barh(rows, temporaries, left=weights, color="tab:orange", label="temporaries of decoding")
    right.axvline(100, color="black", lw=0.7, ls=":")
    right.set_yticks(rows, [f"{each.model}, {each.kind}" for each in shown], fontsize=7)
    right.invert_yaxis()
    right.set_xlabel("% of the bfloat16 weights")
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
