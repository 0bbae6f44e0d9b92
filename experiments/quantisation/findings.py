"""What the runs say: increases of perplexity with their intervals, sizes, memory, and the goals beside them."""

import dataclasses
from collections.abc import Sequence

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.quantisation.kinds import BFLOAT16, INT4, INT8, PACKINGS
from experiments.quantisation.programs import Memory
from experiments.quantisation.seed import SeedResult
from experiments.quantisation.sizes import Size

LARGEST_INCREASE = {INT8: 0.1, INT4: 2.0}
"""Percent of perplexity against bfloat16: goals of our own, the reports name none."""


def increase(seeds: Sequence[SeedResult], kind: str, against: str = BFLOAT16) -> Interval:
    """100 (perplexity / that of `against` - 1), taken seed by seed: both are the same model on the same text."""
    pairs = [(result.scores[kind].perplexity, result.scores[against].perplexity) for result in seeds]
    return interval([100 * (ours / theirs - 1) for ours, theirs in pairs])


def percent(found: Interval) -> str:
    """An increase with its interval."""
    text = f"{found.mean:+.4f} %" if abs(found.mean) < 0.01 else f"{found.mean:+.2f} %"
    if found.count == 1:
        return f"{text} (one seed)"
    digits = 4 if found.half < 0.01 else 2
    return f"{text} ± {found.half:.{digits}f}"


def above_formula(seeds: Sequence[SeedResult], kind: str) -> float:
    """Part of the formula by which the file is larger."""
    score = seeds[0].scores[kind]
    assert score.formula is not None
    return score.bytes_on_disk / score.formula - 1


def kinds_of(seeds: Sequence[SeedResult]) -> list[str]:
    """All kinds that were scored, in the order of the tables."""
    return list(seeds[0].scores)


def unpacked_bytes(memory: Memory, width: int = 2) -> int:
    """Of the weights, were they not packed."""
    return width * memory.parameters


def aims(seeds: Sequence[SeedResult], sizes: Sequence[Size], memory: Sequence[Memory]) -> list[Aim]:
    """The goals, and whether they are reached."""
    packed = [kind for kind in kinds_of(seeds) if kind in PACKINGS]
    worst = max(packed, key=lambda kind: abs(above_formula(seeds, kind)))
    found = above_formula(seeds, worst)
    listed = [
        Aim(f"size on disk against the formula, trained model (worst: {worst})", "within 2 %", f"{found:+.2%}",
            abs(found) <= 0.02),
        *(_header_aim([size for size in sizes if size.model == name], name) for name in {s.model: 0 for s in sizes}),
    ]  # fmt: skip
    for kind, most in LARGEST_INCREASE.items():
        grown = increase(seeds, kind)
        listed.append(
            Aim(f"perplexity, {kind} against bfloat16", f"at most +{most:g} %, interval included", percent(grown),
                grown.high <= most)
        )  # fmt: skip
    for name in dict.fromkeys(each.model for each in memory):
        ours = [each for each in memory if each.model == name and each.kind in PACKINGS]
        most = max(ours, key=lambda each: each.temporary_bytes)
        part = most.temporary_bytes / unpacked_bytes(most)
        listed.append(
            Aim(f"temporaries of decoding, {name} (worst: {most.kind})", "at most 25 % of the bf16 weights",
                f"{part:.2%}", part <= 0.25)
        )  # fmt: skip
    return listed


def _header_aim(sizes: Sequence[Size], name: str) -> Aim:
    worst = max(sizes, key=lambda size: size.header / size.formula)
    part = worst.header / worst.formula
    return Aim(f"header of the file, {name} (worst: {worst.kind})", "within 2 %", f"{part:+.4%}", part <= 0.02)


def as_plain(items: Sequence) -> list[dict]:
    """Dataclasses as JSON takes them."""
    return [dataclasses.asdict(item) for item in items]
