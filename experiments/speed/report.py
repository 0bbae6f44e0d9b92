"""Tables for the terminal and for the dated report, from the same results."""

import statistics
from dataclasses import dataclass
from typing import Any

from experiments.speed.aims import Aim
from experiments.speed.contest import Contest
from experiments.speed.local_attention import LengthResult
from experiments.speed.peers import ZOO
from experiments.speed.workload import Workload

Rows = list[list[str]]


@dataclass
class Results:
    """Everything that one run found out."""

    date: str
    """Day of the run, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    workload: Workload
    """Shapes and rounds."""
    parameters: int
    """Parameters of the model."""
    training_flops: float
    """Floating-point operations of one training step (windows, GQA and causal halves counted once)."""
    read_bytes_per_second: float
    """Measured memory bandwidth, reading as many bytes as the weights have."""
    copy_bytes_per_second: float
    """The same for copying."""
    contest: Contest
    """The comparison."""
    missing: list[str]
    """Packages without which only the zoo is measured."""
    local: list[LengthResult]
    """The single local layer."""
    aims: list[Aim]
    """Goals and whether they are reached."""


def tables(results: Results) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    contest = results.contest
    found = [("Speed", _speed_rows(contest)), ("Training: memory and arithmetic", _training_rows(results))]
    decoding = _decoding_rows(results)
    if decoding[1:]:
        found.append(("Decoding: memory bandwidth", decoding))
    if len(contest.agreement) > 1:
        found.append((f"Agreement with {ZOO}", _agreement_rows(contest)))
    found.append(("One local attention layer, forward and backward", _local_rows(results.local)))
    found.append(
        ("Aims", [["", "aim", "measured", ""], *([a.what, a.aim, a.measured, _word(a)] for a in results.aims)])
    )
    return found


def as_text(rows: Rows) -> str:
    """Columns for a terminal: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def as_markdown(rows: Rows) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def write_report(results: Results, pictures: list[str]) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    w = results.workload
    short = [aim for aim in results.aims if not aim.reached]
    parts = [
        f"# {w.preset} on CPU, {results.date}",
        f"`{results.command}`; the protocol is in [experiments/speed](../../experiments/speed/README.md). "
        f"{results.parameters / 1e6:.1f}M parameters, float32, B = {w.batch_size}, T = {w.length}, {w.rounds} "
        "interleaved rounds; medians, and in brackets the smallest and the largest ratio of a round.",
        as_markdown([["", ""], *([key, value] for key, value in results.machine.items())]),
    ]
    for title, rows in tables(results):
        parts += [f"## {title}", as_markdown(rows)]
    if results.missing:
        parts.append(f"Not compared: {', '.join(results.missing)} not installed.")
    parts.append("## What falls short, and why")
    parts += [f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in short] or ["Nothing: all aims are reached."]
    if short and results.contest.matmul_rates:
        parts.append(_matmul_limit(results))
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts).replace(".\n\n* ", ".\n* ") + "\n"


def _matmul_limit(results: Results) -> str:
    contest = results.contest
    rates = contest.matmul_rates
    best = max(rates.values())
    least_ms = results.training_flops / best * 1e3
    ours = statistics.median(contest.measurements["train"].seconds[ZOO]) * 1e3
    text = (
        f"The matrix products of a training step are {results.training_flops / 1e9:.0f} GFLOP: at the best product "
        f"rate measured in this run ({best / 1e9:.0f} GFLOP/s) they alone take {least_ms:.0f} ms of the zoo's "
        f"{ours:.0f} ms."
    )
    others = {name: rate for name, rate in rates.items() if name != ZOO}
    if others:
        theirs = max(others.values())
        text += (
            f" The ratio of the two product rates ({rates[ZOO] / theirs:.2f} = zoo / best of torch) bounds what can be "
            "won: where torch multiplies as fast as XLA does, only what lies between the products can be saved."
        )
    return text


def _speed_rows(contest: Contest) -> Rows:
    rows = [["", "implementation", "ms", "tokens/s", "zoo is faster by"]]
    for measurement in contest.measurements.values():
        for name, seconds in measurement.seconds.items():
            ratios = measurement.speedups(name)
            faster = "" if name == ZOO else f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} .. {max(ratios):.2f})"
            title = measurement.title if name == ZOO else ""
            milliseconds = f"{statistics.median(seconds) * 1e3:.0f}"
            rows.append([title, name, milliseconds, f"{measurement.tokens_per_second(name):.0f}", faster])
    return rows


def _training_rows(results: Results) -> Rows:
    contest = results.contest
    rows = [["implementation", "peak memory MB", "product rate GFLOP/s", "step GFLOP/s", "part of the product rate"]]
    for name, rate in contest.matmul_rates.items():
        step = results.training_flops / statistics.median(contest.measurements["train"].seconds[name])
        peak = f"{contest.peak_bytes[name] / 1e6:.0f}"
        rows.append([name, peak, f"{rate / 1e9:.0f}", f"{step / 1e9:.0f}", f"{step / rate:.0%}"])
    return rows


def _decoding_rows(results: Results) -> Rows:
    """Every new token reads all weights once, whatever the batch size: that is the bound of batch 1."""
    rows = [["", "weights read, GB/s", f"part of the {results.read_bytes_per_second / 1e9:.1f} GB/s measured"]]
    measurement = results.contest.measurements.get("decode-1")
    for name, seconds in measurement.seconds.items() if measurement else ():
        rate = 4 * results.parameters * results.workload.new_tokens / statistics.median(seconds)
        rows.append([f"batch 1, {name}", f"{rate / 1e9:.1f}", f"{rate / results.read_bytes_per_second:.0%}"])
    return rows


def _agreement_rows(contest: Contest) -> Rows:
    keys = list(contest.agreement[ZOO])
    rows = [["implementation", *keys]]
    for name, values in contest.agreement.items():
        if name != ZOO:
            rows.append([name, *(f"{values[k]:.0%}" if "tokens" in k else f"{values[k]:.1e}" for k in keys)])
    return rows


def _local_rows(local: list[LengthResult]) -> Rows:
    first = local[0]
    rows = [["T", "ms", "x", "temporary memory MB", "x", "largest array, M elements"]]
    for r in local:
        rows.append(
            [
                f"{r.length:,}",
                f"{r.seconds * 1e3:.1f}",
                f"{r.seconds / first.seconds:.2f}",
                f"{r.temporary_bytes / 1e6:.0f}",
                f"{r.temporary_bytes / first.temporary_bytes:.2f}",
                f"{r.largest_buffer_elements / 1e6:.1f}",
            ]
        )
    return rows


def _word(aim: Aim) -> str:
    return "reached" if aim.reached else "short"


def as_json(results: Results) -> dict[str, Any]:
    """All results, every round's time included."""
    from dataclasses import asdict

    return asdict(results)
