"""Tables, dated report and picture of the sparse contest."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from experiments.aim import Aim
from experiments.speed.contest import Contest
from experiments.speed.report import Rows, as_markdown
from experiments.speed.sparse.contest import CAPACITY, DENSE, DROPLESS, median_interval, ratios_to, written
from experiments.speed.sparse.workload import SparseWorkload


@dataclass
class SparseResults:
    """Everything that one run found out."""

    date: str
    """Day of the run, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit, load."""
    workload: SparseWorkload
    """Shapes and rounds."""
    facts: dict[str, dict[str, float]]
    """Of "dense" and "dropless": parameters, active_parameters and forward flops_per_token."""
    contest: Contest
    """The comparison."""
    routing: dict[str, dict[str, float]]
    """Of the zoo's sparse models in the last step: largest_load and dropped."""
    missing: list[str]
    """Packages without which only the zoo is measured."""
    aims: list[Aim]
    """Goals and whether they are reached."""


def sparse_tables(results: SparseResults) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = [("Speed", _speed_rows(results.contest)), ("Memory and arithmetic", _arithmetic_rows(results))]
    agreement = results.contest.agreement
    if len(agreement) > 1:
        rows = [[name, f"{values['losses']:.1e}"] for name, values in agreement.items() if name != DROPLESS]
        steps = f"largest difference of the first {results.workload.checked_steps} losses"
        found.append((f"Agreement with {DROPLESS}", [["implementation", steps], *rows]))
    rows = [[name, f"{r['largest_load']:.2f}", f"{r['dropped']:.1%}"] for name, r in results.routing.items()]
    header = ["", "largest load of an expert (1 = balanced)", "choices dropped"]
    found.append(("Routers in the last step", [header, *rows]))
    if results.aims:
        aims = [[a.what, a.aim, a.measured, "reached" if a.reached else "short"] for a in results.aims]
        found.append(("Aims", [["", "aim", "measured", ""], *aims]))
    return found


def _speed_rows(contest: Contest) -> Rows:
    measurement = contest.measurements["train"]
    rows = [["training step", "ms", "tokens/s", "dropless is faster by"]]
    for name, seconds in measurement.seconds.items():
        ratio = "" if name == DROPLESS else written(ratios_to(name, measurement))
        rate = f"{measurement.tokens_per_second(name):.0f}"
        rows.append([name, f"{statistics.median(seconds) * 1e3:.0f}", rate, ratio])
    return rows


def _arithmetic_rows(results: SparseResults) -> Rows:
    contest, w = results.contest, results.workload
    rows = [["", "parameters M", "GFLOP of a step", "GFLOP/s", "product rate GFLOP/s", "peak memory MB"]]
    for name, seconds in contest.measurements["train"].seconds.items():
        fact = results.facts["dense" if name == DENSE else "dropless"]
        flops = 3 * fact["flops_per_token"] * w.batch_size * w.length
        rows.append(
            [
                name,
                f"{fact['parameters'] / 1e6:.1f}",
                f"{flops / 1e9:.1f}",
                f"{flops / statistics.median(seconds) / 1e9:.0f}",
                f"{contest.matmul_rates[name] / 1e9:.0f}",
                f"{contest.peak_bytes[name] / 1e6:.0f}",
            ]
        )
    return rows


def write_sparse_report(results: SparseResults, picture: str) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    w = results.workload
    facts, short = results.facts, [aim for aim in results.aims if not aim.reached]
    excess = facts["dropless"]["flops_per_token"] / facts["dense"]["flops_per_token"] - 1
    parts = [
        f"# Sparse mixture of experts on CPU, {results.date}",
        f"`{results.command}`; the protocol is in [experiments/speed](../../experiments/speed/README.md).",
        f"Mixtral with {w.num_experts} experts, {w.experts_per_token} of them per token: {w.num_layers} layers, D = "
        f"{w.embed_dim}, F = {w.hidden_dim} of an expert, {w.num_heads} query and {w.num_kv_heads} key/value heads of "
        f"{w.head_dim}, {w.vocab_size} words (Mixtral 8x7B's widths divided by eight). The dense model is the same but "
        f"for one feed-forward of {w.experts_per_token * w.hidden_dim} in a layer: as many active FLOPs, the router's "
        f"{excess:.2%} excepted. A step is forward, backward and AdamW in float32, B = {w.batch_size}, T = {w.length}, "
        f"on the same tokens. {w.rounds} interleaved rounds; medians, and in brackets the 95 % interval of the median "
        "of the ratios within a round.",
        as_markdown([["", ""], *([key, value] for key, value in results.machine.items())]),
    ]
    for title, rows in sparse_tables(results):
        parts += [f"## {title}", as_markdown(rows)]
    if results.missing:
        parts.append(f"Not compared: {', '.join(results.missing)} not installed.")
    parts.append("## What falls short")
    parts += [f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in short] or ["Nothing: all aims are reached."]
    parts.append(_ceiling(results))
    parts.append(f"![{picture}]({picture})")
    return "\n\n".join(parts).replace(".\n\n* ", ".\n* ") + "\n"


def _ceiling(results: SparseResults) -> str:
    """What equal active FLOPs leave unequal: parameters that AdamW updates and gradients that are written."""
    facts = results.facts
    more = (facts["dropless"]["parameters"] - facts["dense"]["parameters"]) / 1e6
    return (
        f"Equal active FLOPs are not equal work: {more:.1f}M parameters more are updated in every step (AdamW reads "
        f"four numbers for each and writes three, {28 * more / 1e3:.2f} GB), which batches this small pay for with few "
        f"tokens. Capacity ({CAPACITY}) drops choices and computes padding; its row is for information."
    )


def draw_sparse(contest: Contest, path: Path) -> None:
    """Tokens per second of every implementation, with the 95 % interval of the median."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    measurement = contest.measurements["train"]
    names = list(measurement.seconds)[::-1]
    figure, panel = pyplot.subplots(figsize=(7, 0.6 + 0.42 * len(names)))
    for row, name in enumerate(names):
        seconds = measurement.seconds[name]
        low, high = (measurement.tokens / bound for bound in median_interval(seconds))
        color = "tab:orange" if name == DROPLESS else "tab:blue" if name.startswith("zoo") else "tab:gray"
        panel.barh(row, measurement.tokens_per_second(name), color=color)
        panel.plot([low, high], [row, row], "k-", lw=1)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_xlabel(f"tokens per second, {measurement.title}", fontsize=8)
    panel.tick_params(axis="x", labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
