"""Tables for the terminal and for the dated report, from the same results."""

import os
import statistics
from dataclasses import dataclass

from experiments.interval import interval
from experiments.quantisation.findings import above_formula, aims, increase, kinds_of, percent, unpacked_bytes
from experiments.quantisation.kinds import BFLOAT16, FLOAT32, INT4, PACKINGS, Workload, model_of
from experiments.quantisation.programs import Memory, Speed, median_ratio, timed_model_of
from experiments.quantisation.seed import SeedResult
from experiments.quantisation.sizes import Size
from experiments.speed import machine
from experiments.speed.report import Rows, as_markdown, as_text

__all__ = ["Results", "as_text", "describe", "tables", "write_report"]


@dataclass
class Results:
    """Everything that the runs found out."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    source: str
    """What the text is."""
    workload: Workload
    """Sizes."""
    seeds: list[SeedResult]
    """Trained models."""
    sizes: list[Size]
    """Of the two presets of Gemini Nano, by formula."""
    memory: list[Memory]
    """Decode programs, compiled and not run."""
    speed: list[Speed]
    """Generation on this machine."""


def describe() -> dict[str, str]:
    """What the figures were taken on."""
    return machine.describe(sorted(os.sched_getaffinity(0)))


def tables(results: Results) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    listed = aims(results.seeds, results.sizes, results.memory)
    rows = [[aim.what, aim.aim, aim.measured, "reached" if aim.reached else "short"] for aim in listed]
    return [
        ("Quality and size of the trained models", _quality_rows(results.seeds)),
        ("Gemini Nano: size on disk by the formula", _size_rows(results.sizes)),
        ("Memory of the decode program, batch 1", _memory_rows(results.memory)),
        ("Generation on this machine, batch 1 (information only)", _speed_rows(results.speed)),
        ("Aims", [["", "aim", "measured", ""], *rows]),
    ]


def _quality_rows(seeds: list[SeedResult]) -> Rows:
    rows = [["weights", "perplexity", "against bfloat16, paired", "bits per byte", "bits per weight", "kB on disk",
             "above the formula"]]  # fmt: skip
    parameters = seeds[0].scores[FLOAT32].bytes_on_disk / 4
    for kind in kinds_of(seeds):
        scores = [result.scores[kind] for result in seeds]
        size = scores[0].bytes_on_disk
        rows.append(
            [
                kind,
                f"{interval([score.perplexity for score in scores]).mean:.3f}",
                "" if kind == BFLOAT16 else percent(increase(seeds, kind)),
                f"{statistics.fmean(score.bits_per_byte for score in scores):.5f}",
                f"{8 * size / parameters:.2f}",
                f"{size / 1e3:.1f}",
                f"{above_formula(seeds, kind):+.2%}" if kind in PACKINGS else "",
            ]
        )
    return rows


def _sentences(seeds: list[SeedResult]) -> str:
    """What the other ways to 4 bits change against int4, seed by seed, and whether that can be told from nothing."""
    lines = ["Perplexity against int4, seed by seed:"]
    for kind in (kind for kind in kinds_of(seeds) if kind.startswith(f"{INT4},")):
        found = increase(seeds, kind, INT4)
        apart = found.low > 0 or found.high < 0
        verdict = "larger than its interval" if apart else "which cannot be told from none"
        lines.append(f"* {kind}: {percent(found)}, {verdict}.")
    return "\n".join(lines)


def _size_rows(sizes: list[Size]) -> Rows:
    rows = [["model", "parameters", "weights", "GB by the formula", "of bfloat16", "header, kB", "header / formula"]]
    for size in sizes:
        rows.append(
            [
                size.model,
                f"{size.parameters / 1e9:.3f}B",
                size.kind,
                f"{size.formula / 1e9:.4f}",
                f"{size.formula / (2 * size.parameters):.1%}",
                f"{size.header / 1e3:.1f}",
                f"{size.header / size.formula:.4%}",
            ]
        )
    return rows


def _memory_rows(memory: list[Memory]) -> Rows:
    rows = [["model", "weights", "weights, MB", "cache, MB", "temporaries, MB", "temporaries / bf16 weights",
             "temporaries / float32 weights", "weights and temporaries / bf16 weights"]]  # fmt: skip
    for each in memory:
        halves, wholes = unpacked_bytes(each), unpacked_bytes(each, 4)
        rows.append(
            [
                f"{each.model} ({each.parameters / 1e6:.0f}M)",
                each.kind,
                f"{each.weight_bytes / 1e6:.1f}",
                f"{each.cache_bytes / 1e6:.1f}",
                f"{each.temporary_bytes / 1e6:.2f}",
                f"{each.temporary_bytes / halves:.2%}",
                f"{each.temporary_bytes / wholes:.2%}",
                f"{(each.weight_bytes + each.temporary_bytes) / halves:.1%}",
            ]
        )
    return rows


def _speed_rows(speed: list[Speed]) -> Rows:
    rows = [["weights", "tokens/s", "x float32, median of rounds", "smallest .. largest"]]
    for each in speed:
        ratios = each.ratios
        rows.append(
            [
                each.kind,
                f"{statistics.median(each.tokens_per_second):.0f}",
                f"{median_ratio(each):.2f}",
                "" if each.kind == FLOAT32 else f"{min(ratios):.2f} .. {max(ratios):.2f}",
            ]
        )
    return rows


def write_report(results: Results, picture: str) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    w, config = results.workload, model_of(results.workload)
    timed = timed_model_of(w)
    short = [aim for aim in aims(results.seeds, results.sizes, results.memory) if not aim.reached]
    first = results.seeds[0]
    parts = [
        f"# Packed weights: quality, size, memory, {results.date}",
        f"`{results.command}`; the protocol is in [experiments/quantisation]"
        "(../../experiments/quantisation/README.md). "
        f"Text: {results.source}. {len(results.seeds)} models of {config.num_parameters() / 1e6:.2f}M parameters "
        f"(Gemini Nano's block: {w.num_layers} layers, width {w.embed_dim}, feed-forward {w.hidden_dim}, "
        f"{w.vocab_size} tokens), each trained for {w.steps} steps of {w.batch_size} x {w.sequence_length} tokens; "
        f"scored are {first.tokens:,} tokens that were not trained on. Intervals are Student's 95 %, over differences "
        "taken seed by seed.",
    ]
    for title, rows in tables(results):
        parts += [f"## {title}", as_markdown(rows)]
        if title.startswith("Quality") and len(results.seeds) > 1:
            parts.append(_sentences(results.seeds))
        if title.startswith("Generation"):
            parts.append(
                f"A model of {timed.num_parameters() / 1e6:.1f}M parameters with random weights, {w.speed_rounds} "
                f"interleaved rounds of {w.speed_tokens} new tokens. The machine was not quiet: see its load below."
            )
    parts.append("## What falls short")
    parts.append("\n".join(f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in short) or "Nothing of the aims.")
    parts += [f"![{picture}]({picture})"]
    parts += ["## Machine", as_markdown([["", ""], *([key, value] for key, value in results.machine.items())])]
    return "\n\n".join(parts) + "\n"
