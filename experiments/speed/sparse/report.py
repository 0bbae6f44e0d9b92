"""Tables, dated report and picture of the sparse contest."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from experiments.aim import Aim
from experiments.plotting import pyplot
from experiments.speed.contest import Contest
from experiments.speed.report import Rows, as_markdown
from experiments.speed.sparse.contest import (
    CAPACITY,
    DENSE,
    DROPLESS,
    LEAST_OF_PEER,
    TUNABLES,
    median_interval,
    ratios_to,
    written,
)
from experiments.speed.sparse.workload import SparseWorkload


@dataclass
class SizeResults:
    """What was found at one size."""

    workload: SparseWorkload
    """Shapes and rounds."""
    facts: dict[str, dict[str, float]]
    """Of "dense" and "dropless": parameters, active_parameters and forward flops_per_token."""
    contest: Contest
    """The comparison."""
    routing: dict[str, dict[str, float]]
    """Of the zoo's sparse models in the last step: largest_load and dropped."""
    aims: list[Aim]
    """Goals and whether they are reached."""

    def flops(self, name: str) -> float:
        """Floating-point operations of the training step of one implementation."""
        fact = self.facts["dense" if name == DENSE else "dropless"]
        return 3 * fact["flops_per_token"] * self.workload.batch_size * self.workload.length

    @property
    def least_seconds(self) -> float:
        """What the dropless step's arithmetic takes at the highest rate of a product that was measured: a bound for
        every implementation, as a step is more than its products."""
        return self.flops(DROPLESS) / max(self.contest.matmul_rates.values())

    def ceiling(self, name: str) -> float:
        """How many times as fast as `name` a step of `least_seconds` is."""
        return statistics.median(self.contest.measurements["train"].seconds[name]) / self.least_seconds


@dataclass
class SparseResults:
    """Everything that one run found out."""

    date: str
    """Day of the run, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit, load."""
    missing: list[str]
    """Packages without which only the zoo is measured."""
    sizes: list[SizeResults]
    """The comparisons, one after the other."""


def sparse_tables(results: SizeResults) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table."""
    found = [("Speed", _speed_rows(results)), ("Memory and arithmetic", _arithmetic_rows(results))]
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


def _speed_rows(results: SizeResults) -> Rows:
    measurement = results.contest.measurements["train"]
    rows = [["training step", "ms", "tokens/s", "dropless is faster by", "nothing could be by more than"]]
    for name, seconds in measurement.seconds.items():
        ratio = "" if name == DROPLESS else written(ratios_to(name, measurement))
        rate = f"{measurement.tokens_per_second(name):.0f}"
        rows.append([name, f"{statistics.median(seconds) * 1e3:.0f}", rate, ratio, f"{results.ceiling(name):.2f}x"])
    return rows


def _arithmetic_rows(results: SizeResults) -> Rows:
    contest = results.contest
    rows = [["", "parameters M", "GFLOP of a step", "GFLOP/s", "product rate GFLOP/s", "peak memory MB"]]
    for name, seconds in contest.measurements["train"].seconds.items():
        fact = results.facts["dense" if name == DENSE else "dropless"]
        flops = results.flops(name)
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
    parts = [
        f"# Sparse mixture of experts on CPU, {results.date}",
        f"`{results.command}`; the protocol is in [experiments/speed](../../experiments/speed/README.md).",
        "Mixtral against the dense model that is the same but for one feed-forward as wide as the experts of a token "
        "in each layer (as many active FLOPs, but for the router), and against transformers' Mixtral. A step is "
        "forward, backward and AdamW in float32 on the same tokens. Interleaved rounds; medians, and in brackets the "
        "95 % interval of the median of the ratios within a round. All processes get memory in pages of 2 MB "
        f"(`{TUNABLES[0]}={TUNABLES[1]}`), transformers' too.",
        as_markdown([["", ""], *([key, value] for key, value in results.machine.items())]),
    ]
    for size in results.sizes:
        parts += _size_parts(size)
    if results.missing:
        parts.append(f"Not compared: {', '.join(results.missing)} not installed.")
    parts.append(f"Capacity ({CAPACITY}) drops choices and computes padding; its rows are for information.")
    parts.append(f"![{picture}]({picture})")
    return "\n\n".join(parts).replace(".\n\n* ", ".\n* ") + "\n"


def _size_parts(size: SizeResults) -> list[str]:
    w, short = size.workload, [aim for aim in size.aims if not aim.reached]
    excess = size.flops(DROPLESS) / size.flops(DENSE) - 1
    parts = [
        f"## {w.title[0].upper()}{w.title[1:]}",
        f"{w.num_experts} experts, {w.experts_per_token} of them per token: {w.num_layers} layers, D = {w.embed_dim}, "
        f"F = {w.hidden_dim} of an expert, {w.num_heads} query and {w.num_kv_heads} key/value heads of {w.head_dim}, "
        f"{w.vocab_size} words; the dense feed-forward has {w.experts_per_token * w.hidden_dim}, and the router "
        f"{excess:.2%} more FLOPs. B = {w.batch_size}, T = {w.length}, {w.rounds} rounds.",
    ]
    for title, rows in sparse_tables(size):
        parts += [f"### {title}", as_markdown(rows)]
    parts.append("### What falls short")
    parts += [f"* {aim.what}: {aim.measured}, aim {aim.aim}." for aim in short] or ["Nothing: all aims are reached."]
    return [*parts, _bounds(size)]


def _bounds(size: SizeResults) -> str:
    """What arithmetic leaves to win, and what equal active FLOPs leave unequal."""
    rate = max(size.contest.matmul_rates.values())
    more = (size.facts["dropless"]["parameters"] - size.facts["dense"]["parameters"]) / 1e6
    text = (
        f"The step's {size.flops(DROPLESS) / 1e9:.1f} GFLOP take {size.least_seconds * 1e3:.0f} ms at the highest rate "
        f"of a large product that was measured here ({rate / 1e9:.0f} GFLOP/s). No implementation of such products can "
        "be faster, so none could win against these by more than the last column of the first table says"
    )
    peers = [name for name in size.contest.measurements["train"].seconds if not name.startswith("zoo")]
    out_of_reach = [f"{name} ({size.ceiling(name):.2f}x)" for name in peers if size.ceiling(name) < LEAST_OF_PEER]
    if out_of_reach:
        text += f"; {LEAST_OF_PEER:g}x is more than arithmetic allows against {', '.join(out_of_reach)}"
    return text + (
        f". Equal active FLOPs are not equal work: {more:.1f}M parameters more than in the dense model are updated in "
        f"every step (AdamW reads four numbers for each and writes three, {28 * more / 1e3:.2f} GB), which batches "
        "this small pay for with few tokens."
    )


def draw_sparse(sizes: list[SizeResults], path: Path) -> None:
    """Tokens per second of every implementation at every size, with the 95 % interval of the median."""
    rows = max(len(size.contest.measurements["train"].seconds) for size in sizes)
    figure, panels = pyplot().subplots(len(sizes), 1, figsize=(7, len(sizes) * (0.8 + 0.42 * rows)), squeeze=False)
    for size, panel in zip(sizes, panels[:, 0]):
        measurement = size.contest.measurements["train"]
        names = list(measurement.seconds)[::-1]
        for row, name in enumerate(names):
            low, high = (measurement.tokens / bound for bound in median_interval(measurement.seconds[name]))
            color = "tab:orange" if name == DROPLESS else "tab:blue" if name.startswith("zoo") else "tab:gray"
            panel.barh(row, measurement.tokens_per_second(name), color=color)
            panel.plot([low, high], [row, row], "k-", lw=1)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_xlabel(f"tokens per second, {measurement.title}: {size.workload.title}", fontsize=8)
        panel.tick_params(axis="x", labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot().close(figure)
