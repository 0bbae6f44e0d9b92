"""Tables for the terminal and for the dated report, from the same results."""

from dataclasses import asdict, dataclass, field

from experiments.attention_kernels.aims import Aim, layout, ratio, rival
from experiments.attention_kernels.correctness import Error
from experiments.attention_kernels.gpu_kernels import GpuKernel
from experiments.attention_kernels.hardware import Time
from experiments.attention_kernels.lengths import LENGTHS, Decode, Growth, Memory
from experiments.attention_kernels.schedules import OURS, Pass

Rows = list[list[str]]
NOT_MEASURED = (
    "Not measured on hardware: no GPU at hand. `python -m experiments.attention_kernels` measures where there is one."
)


@dataclass
class Results:
    """Everything that one run found out."""

    date: str
    """Day of the run, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    errors: list[Error]
    """Interpret mode against float64."""
    passes: list[Pass] = field(default_factory=list)
    """Schedules of both contestants."""
    growths: list[Growth] = field(default_factory=list)
    """Trips, memory and declared cost against T."""
    global_growths: list[Growth] = field(default_factory=list)
    """The same of layers without a window."""
    memories: list[Memory] = field(default_factory=list)
    """Temporary memory by layout."""
    decodes: list[Decode] = field(default_factory=list)
    """The decode kernel."""
    gpu_kernels: list[GpuKernel] = field(default_factory=list)
    """Registers, spills and shared memory."""
    device: str | None = None
    """The GPU on which times were taken; None = not measured."""
    times: list[Time] = field(default_factory=list)
    """Times on it."""
    windows: list[Time] = field(default_factory=list)
    """Times against the window."""
    aims: list[Aim] = field(default_factory=list)
    """Goals and whether they are reached."""
    remarks: list[str] = field(default_factory=list)
    """What this run left out, and why."""


def as_json(results: Results) -> dict:
    """For results.json."""
    return asdict(results)


def tables(results: Results) -> list[tuple[str, str, Rows]]:
    """(title, what the columns mean, rows with a header) of every table that has rows."""
    found = [
        ("Aims", "", [["", "aim", "measured", ""], *([a.what, a.aim, a.measured, _word(a)] for a in results.aims)])
    ]
    for backward in (False, True):
        title = f"TPU, {'backward' if backward else 'forward'}: bundles per 512 x 512 scores"
        found.append((title, _BACKWARD_TEXT if backward else _FORWARD_TEXT, _pass_rows(results.passes, backward)))
    found.append(("TPU, forward and backward against T", _GROWTH_TEXT, _growth_rows(results.growths)))
    found.append(("TPU, temporary memory by layout, v5p, T = 32k", _MEMORY_TEXT, _memory_rows(results.memories)))
    found.append(("TPU, layers without a window", _GLOBAL_TEXT, _growth_rows(results.global_growths)))
    found.append(("TPU, decode", _DECODE_TEXT, _decode_rows(results.decodes)))
    found.append(("GPU targets, compiled", _GPU_TEXT, _gpu_rows(results.gpu_kernels)))
    found.append((f"On hardware: {results.device}", _TIME_TEXT, _time_rows(results.times)))
    found.append(("Interpret mode against float64", _ERROR_TEXT, _error_rows(results.errors)))
    return [entry for entry in found if len(entry[2]) > 1]


_FORWARD_TEXT = (
    "interior, masked: a step of the grid without and with a mask, the loop's own bundles included; mean: over the "
    "9 tiles of a row of queries, with the row's start and end. Splash masks every tile: its mean. In the other "
    "columns `zoo / splash`. peak: needed products over what the matrix units could do if a bundle took one cycle; "
    "filled: matrix slots between the first and the last product of the interior tile; spills: vector registers "
    "stored per tile, over the row; naive: all bundles of the kernel, each region once, whatever a step executes "
    "(ours holds several variants of a tile of two heads); trips: passes of the grid loop per core, and what the "
    "formula of the band says."
)
_BACKWARD_TEXT = (
    "As above; splash is the sum of its two kernels. cores: of a device's two (v4, v5p), how many work. Where "
    "splash leaves one idle, its time is twice what its bundles say; the ratio does not count that. A peak above 1:"
    " bundles are issued faster than the matrix units finish, and wait."
)
_GROWTH_TEXT = (
    "Temporary memory of the whole program (arguments and gradients excluded; at 8k a part of it fits into the "
    "chip's own memory and is not counted); trips of the kernels' grid loops per core, forward first; declared: "
    "FLOPs of the cost estimate over those of the visited tiles at 128k (splash declares none). Splash runs through"
    " `zoo.kernels.global_attention` here, which builds its masks quickly and takes larger tiles."
)
_MEMORY_TEXT = (
    "The kernels take heads before tokens. A model that keeps [B, T, N, H], as ours do, pays for transposed copies of "
    "query, key, value and gradients, whichever kernel it calls, unless XLA lets the projections write them so."
)
_GLOBAL_TEXT = "The kernel is splash, unfused backward; its grid covers what lies above the diagonal, too."
_DECODE_TEXT = (
    "9B heads, batch of 8, ring of 4,096 and full cache of 8,192 slots. A step should take fewer bundles than pass "
    "while its keys and values arrive (2 MiB at the core's share of the HBM bandwidth): then only reading the cache"
    " counts. declared: bytes of the cost estimate over those of the cache, read once."
)
_GPU_TEXT = "From ptxas, default tiles, T = 8,192, W = 4,096, soft-cap 50, bfloat16, forward and backward."
_TIME_TEXT = (
    "Medians of interleaved rounds; TFLOP/s on visible pairs; error: greatest, over the greatest value, in float64."
)
_ERROR_TEXT = "Greatest difference over the greatest value of the dense reference; T = 200, W = 150, two heads of 64."


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
    short = [aim for aim in results.aims if not aim.reached]
    parts = [
        f"# Attention kernels, {results.date}",
        f"`{results.command}`; claim and protocol are in [experiments/attention_kernels]"
        "(../../experiments/attention_kernels/README.md). What is said of TPUs is read from programs compiled for "
        "them on a machine that has none; none of them ran.",
        as_markdown([["", ""], *([key, value] for key, value in results.machine.items())]),
    ]
    for title, text, rows in tables(results):
        parts += [f"## {title}", *([text] if text else []), as_markdown(rows)]
    if results.device is None:
        parts += ["## On hardware", NOT_MEASURED]
    parts += results.remarks
    parts.append("## What falls short")
    parts.append(
        "\n".join(f"* {a.what}: {a.measured}, aim {a.aim}." for a in short) or "Nothing: all aims are reached."
    )
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def _pass_rows(passes: list[Pass], backward: bool) -> Rows:
    figures = ["interior", "masked", "mean", "splash", "ratio", "peak", "filled", "spills", "naive", "cores"]
    rows = [["chip", "heads", "cap", *figures, "trips", "formula"]]
    for p in passes:
        if p.subject != OURS or p.backward != backward:
            continue
        pair = p, rival(passes, p)
        rows.append(
            [
                p.target,
                p.shape,
                _cap(p.logits_soft_cap),
                *(f"{x:.0f}" for x in (p.interior, p.masked, p.mean, pair[1].mean)),
                f"{ratio(passes, p):.2f}",
                " / ".join(f"{one.peak:.2f}" for one in pair),
                " / ".join("+".join(f"{x:.2f}" for x in one.matrix_use) for one in pair),
                " / ".join(f"{one.spill_stores:.0f}" for one in pair),
                " / ".join("+".join(map(str, one.naive)) for one in pair),
                " / ".join(str(one.cores) for one in pair),
                "+".join(map(str, p.trips)),
                "+".join(map(str, p.expected_trips)),
            ]
        )
    return rows


def _cap(logits_soft_cap: float | None) -> str:
    return "-" if logits_soft_cap is None else f"{logits_soft_cap:g}"


def _growth_rows(growths: list[Growth]) -> Rows:
    names = [f"{n // 1024}k" for n in LENGTHS]
    memory = [f"MB at {name}" for name in names]
    rows = [
        ["chip", "kernel", *memory, "128k / 8k", f"trips at {names[0]}", f"at {names[-1]}", "128k / 8k", "declared"]
    ]
    for g in growths:
        declared = [a / b for a, b in zip(g.declared, g.visited)]
        rows.append(
            [
                g.target,
                g.subject,
                *(f"{n / 1e6:.0f}" for n in g.temporary_bytes),
                f"{g.memory_growth:.1f}",
                *(" + ".join(str(trips[i]) for trips in g.trips) for i in (0, -1)),
                " / ".join(f"{x:.2f}" for x in g.trip_growth),
                f"{declared[-1]:.3f}" if g.subject == OURS else "-",
            ]
        )
    return rows


def _memory_rows(memories: list[Memory]) -> Rows:
    rows = [["heads", "arrays", "zoo, MB", "splash, MB"]]
    return rows + [[m.shape, layout(m), f"{m.ours / 1e6:.0f}", f"{m.splash / 1e6:.0f}"] for m in memories]


def _decode_rows(decodes: list[Decode]) -> Rows:
    rows = [
        ["chip", "cache", "bundles per step", "bundles while it is read", "ratio", "spills", "declared", "temporary MB"]
    ]
    for d in decodes:
        rows.append(
            [
                d.target,
                d.cache,
                str(d.step_bundles),
                f"{d.copy_bundles:.0f}",
                f"{d.step_bundles / d.copy_bundles:.2f}",
                str(d.spill_stores),
                f"{d.declared_bytes / d.cache_bytes:.3f}",
                f"{d.temporary_bytes / 1e6:.1f}",
            ]
        )
    return rows


def _gpu_rows(kernels: list[GpuKernel]) -> Rows:
    rows = [["GPU", "implementation", "heads", "kernel", "registers", "spills (bytes)", "shared memory KiB", "of"]]
    for k in kernels:
        figures = [str(k.registers), str(k.spill_stores), f"{k.shared_memory / 1024:.0f}"]
        figures.append(f"{k.shared_memory_limit / 1024:.0f}")
        rows.append(
            [k.target, k.implementation, k.shape, k.kernel or k.failure or "", *(figures if k.kernel else "----")]
        )
    return rows


def _time_rows(times: list[Time]) -> Rows:
    rows = [["heads", "T", "W", "cap", "pass", "implementation", "ms", "TFLOP/s", "of the peak", "error"]]
    for t in times:
        direction = "backward" if t.backward else "forward"
        setting = [t.shape, f"{t.length:,}", f"{t.sliding_window:,}", _cap(t.logits_soft_cap), direction]
        if t.seconds is None or t.teraflops is None:
            rows.append([*setting, t.implementation, t.failure or "", "-", "-", "-"])
            continue
        peak = "-" if t.peak is None else f"{t.peak:.0%}"
        rows.append(
            [*setting, t.implementation, f"{t.seconds * 1e3:.3f}", f"{t.teraflops:.0f}", peak, f"{t.error or 0:.1e}"]
        )
    return rows


def _error_rows(errors: list[Error]) -> Rows:
    rows = [["kernel", "dtype", "cap", "forward", "limit", "gradients", "limit", ""]]
    for e in errors:
        figures = [f"{x:.1e}" for x in (e.forward, e.forward_limit, e.gradient, e.gradient_limit)]
        rows.append([e.kernel, e.dtype, _cap(e.logits_soft_cap), *figures, "passed" if e.passed else "FAILED"])
    return rows


def _word(aim: Aim) -> str:
    return "reached" if aim.reached else "NOT reached"
