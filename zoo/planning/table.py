"""A plan as text."""

from collections.abc import Sequence

from zoo.planning.estimate import Estimate, Plan

GB = 1e9
_SPREAD = 3


def describe(plan: Plan) -> str:
    """The whole report, plain text."""
    axes = " x ".join(f"{name}={size}" for name, size in plan.mesh.items()) or "one device"
    slices = f", {plan.slices} slices" if plan.slices > 1 else ""
    lines = [
        f"{plan.recipe}, {plan.program} on {plan.topology}{slices}: {plan.chips:,} chips, mesh {axes}",
        f"{plan.num_parameters:,} parameters; {plan.batch_size:,} sequences of {plan.sequence_length:,} tokens, "
        f"{plan.tokens:,} tokens a step; accumulation {plan.accumulation_steps}, remat {plan.remat_policy}",
        "",
        *_memory(plan),
        "",
        *_arithmetic(plan),
        "",
        *_collectives(plan),
        "",
        *_kernels(plan),
        *_estimates(plan),
        "",
        *_scopes(plan),
        f"compiled in {sum(plan.compile_seconds.values()):.0f} s ("
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in plan.compile_seconds.items())
        + f"), {plan.host_bytes / GB:.1f} GB of host memory; "
        + ", ".join(f"{name} {version}" for name, version in plan.versions.items()),
        "compiler options: " + (", ".join(f"{k}={v}" for k, v in plan.options.items()) or "defaults"),
        "assumptions: " + "; ".join(plan.assumptions),
        *(f"note: {note}" for note in plan.notes),
    ]
    return "\n".join(lines)


def _memory(plan: Plan) -> list[str]:
    spare = plan.memory_capacity - plan.memory_total
    verdict = f"fits, {spare / GB:.2f} GB to spare" if plan.fits else f"does NOT fit, by {-spare / GB:.2f} GB"
    rows = [(name, f"{size / GB:.3f}") for name, size in plan.memory.items()]
    rows.append(("total", f"{plan.memory_total / GB:.3f}"))
    rows.append((f"of {plan.memory_capacity / GB:.2f}", verdict))
    return table(("memory per device", "GB"), rows)


def _arithmetic(plan: Plan) -> list[str]:
    extra = plan.executed_flops / plan.useful_flops - 1
    return [
        f"FLOPs per device and step: useful {plan.useful_flops:.4e}, executed {plan.executed_flops:.4e} "
        f"({extra:+.1%}: recomputed, or masked)",
        f"main memory: {plan.hbm_bytes / GB:,.1f} GB read and written",
    ]


def _collectives(plan: Plan) -> list[str]:
    rows = []
    for group in plan.collectives:
        forms = ", ".join(f"{count:.0f} {form}" for form, count in group["forms"].items())
        hidden = 1 - group["exposed"] / group["seconds"] if group["seconds"] else 0.0
        rows.append(
            (
                group["kind"],
                "+".join(group["axes"]) or "-",
                group["dtype"],
                f"{group['times']:.0f}",
                f"{group['wire_bytes'] / GB:.3f}",
                "".join(group["dimensions"]) or "-",
                f"{group['seconds'] * 1e3:.2f}",
                f"{group['exposed'] * 1e3:.2f}",
                f"{max(0.0, hidden):.0%}",
                forms,
            )
        )
    if not rows:
        return ["no collectives"]
    heads = ("collective", "axes", "type", "times", "GB sent", "links", "ms", "exposed", "hidden", "how")
    return table(heads, rows)


def _kernels(plan: Plan) -> list[str]:
    if not plan.kernels:
        return []
    rows = [
        (k["name"], f"{k['times']:.0f}", f"{k['seconds'] * 1e3:.3f}", f"{k['times'] * k['seconds'] * 1e3:.1f}",
         k["source"])
        for k in plan.kernels
    ]  # fmt: skip
    return [*table(("kernel", "times", "ms each", "ms", "time from"), rows), ""]


def _estimates(plan: Plan) -> list[str]:
    found: list[tuple[str, Estimate | None]] = [("roofline", plan.roofline), ("schedule", plan.schedule)]
    rows = [
        (
            name,
            f"{e.seconds:.4f}",
            f"{e.tokens_per_second:,.0f}",
            f"{e.tokens_per_second_per_chip:,.1f}",
            f"{e.mfu:.1%}",
            ", ".join(f"{part} {seconds:.3f}" for part, seconds in e.parts.items() if seconds >= 5e-4),
        )
        for name, e in found
        if e is not None
    ]
    return table(("estimate", "s / step", "tokens/s", "per chip", "MFU", "seconds of"), rows)


def _scopes(plan: Plan) -> list[str]:
    total = sum(plan.seconds_by_scope.values())
    if plan.schedule is None or not total:
        return []
    parts = [(name, seconds) for name, seconds in plan.seconds_by_scope.items() if seconds > 0.01 * total]
    return ["computations by scope, ms: " + ", ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in parts), ""]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest cell; numbers to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    right = [all(_is_number(row[i]) for row in rows) for i in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        placed = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return (" " * _SPREAD).join(placed).rstrip()

    return [line(heads), *(line(row) for row in rows)]


def _is_number(cell: str) -> bool:
    return cell.strip().rstrip("%").replace(",", "").replace(".", "", 1).lstrip("-+").isdigit()
