"""Tables for the terminal and for the dated report, from the same results."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from experiments.interval import Interval, interval
from experiments.pages import aim_table, falls_short, write_page
from experiments.shared_workspace import arms, cost, findings
from experiments.shared_workspace.cost import Costs
from experiments.shared_workspace.findings import bounded, by_arm, figure, paired
from experiments.shared_workspace.result import Result
from experiments.shared_workspace.rolling_out import TESTS
from experiments.shared_workspace.sizes import SIZES
from experiments.shared_workspace.sort_of_clevr import KINDS, SUBKINDS
from experiments.shared_workspace.writers import ROLES
from experiments.speed.report import Rows, as_text

__all__ = ["WORKS", "Study", "as_json", "as_text", "tables", "write_report"]

WORKS = "Tiny models and a few steps: this shows that the experiment works and nothing else."
STEPS = (1, 5, 10, 15)
"""Of a roll-out, in tables."""
WRITING = ("effective writers", "slot likeness", "fixedness")


@dataclass(frozen=True)
class Study:
    """Everything that is known so far."""

    date: str
    """Day of the report, YYYY-MM-DD."""
    command: str
    """Command line that repeats it."""
    machine: dict[str, str]
    """Processor, versions, commit."""
    size: str
    """Name of the size."""
    runs: list[Result]
    """All that are done, of the arms and seeds that were asked for."""
    missing: list[str]
    """Names of those that are not."""
    costs: Costs | None
    """Of one layer, where it was measured."""


def tables(study: Study) -> list[tuple[str, Rows]]:
    """(title, rows with a header) of every table that has anything in it."""
    runs = study.runs
    found = [
        aim_table(findings.aims(runs, study.costs)),
        ("Sort-of-CLEVR: part of right answers", answer_rows(runs, arms.MAIN)),
        ("Sort-of-CLEVR: TR+HSW and TR+SSW minus the others, seed by seed", difference_rows(runs)),
        ("Sort-of-CLEVR: right answers by question", question_rows(runs)),
        *((f"Sort-of-CLEVR, {kind}: right answers by slots and writers of a slot", sweep_rows(runs, kind))
          for kind in KINDS),
        ("Sort-of-CLEVR: who writes", writing_rows(runs)),
        ("Sort-of-CLEVR without marks: part of right answers", answer_rows(runs, arms.UNMARKED)),
        ("Sort-of-CLEVR from pictures: part of right answers", answer_rows(runs, arms.PIXELS)),
        ("Triangles: part of right answers", triangle_rows(runs)),
        *((f"Bouncing balls, {'4, as in training' if kind == '4' else '6 to 8'}: mean squared distance of a ball from "
           "its place after some steps", roll_out_rows(runs, kind)) for kind in TESTS),
        ("Bouncing balls: specialisation and synchronisation", synchronisation_rows(runs)),
        ("Models", model_rows(runs)),
    ]  # fmt: skip
    if study.costs is not None:
        for part, costs in (("result", study.costs.forward), ("gradient", study.costs.training)):
            found.append((f"One layer's {part}: milliseconds, and MiB of intermediate arrays", cost_rows(costs)))
    return [(title, rows) for title, rows in found if len(rows) > 1]


def _rows(runs: Sequence[Result], header: list[str], names: Sequence[str], chosen: Sequence[arms.Arm]) -> Rows:
    """Arms that have any of the figures x figures."""
    rows = [["arm", "seeds", *header]]
    for arm in chosen:
        cells = [figure(runs, arm.name, name) for name in names]
        if any(cells):
            seeds = max(cell.count for cell in cells if cell is not None)
            rows.append([arm.name, str(seeds), *("-" if cell is None else bounded(cell) for cell in cells)])
    return rows


def answer_rows(runs: Sequence[Result], chosen: Sequence[arms.Arm]) -> Rows:
    """By kind of question."""
    return _rows(runs, list(KINDS), KINDS, chosen)


def difference_rows(runs: Sequence[Result]) -> Rows:
    """Of the two workspaces and every other variant."""
    rows = [["", *KINDS]]
    others = [arm.name for arm in arms.MAIN if arm.trained]
    for ours in ("TR+HSW", "TR+SSW"):
        for other in others if ours == "TR+HSW" else [name for name in others if name != "TR+HSW"]:
            cells = [paired(runs, ours, other, kind) for kind in KINDS]
            if ours != other and any(cells):
                rows.append([f"{ours} - {other}", *("-" if cell is None else signed(cell) for cell in cells)])
    return rows


def signed(value: Interval) -> str:
    """A difference, with its sign."""
    return ("+" if value.mean >= 0 else "") + bounded(value)


def question_rows(runs: Sequence[Result]) -> Rows:
    """By which of the three questions of each kind, means over seeds."""
    names = [f"{kind}: {what}" for kind, all_three in zip(KINDS, SUBKINDS) for what in all_three]
    chosen = [arm.name for arm in arms.MAIN if arm.trained and figure(runs, arm.name, names[0]) is not None]
    rows = [["question", *chosen]]
    for name in names if chosen else ():
        cells = [figure(runs, arm, name) for arm in chosen]
        rows.append([name, *("-" if cell is None else f"{cell.mean:.3f}" for cell in cells)])
    return rows


def sweep_rows(runs: Sequence[Result], kind: str) -> Rows:
    """Slots x writers; nothing unless something of the sweep was run."""
    header = ["all (soft)" if top_k is None else f"k = {top_k}" for top_k in arms.SWEPT_WRITERS]
    rows = [["slots", *header]]
    if not any(run.run.arm in {arm.name for arm in arms.SWEEP} for run in runs):
        return rows
    for slots, cells in zip(arms.SWEPT_SLOTS, findings.sweep(runs, kind), strict=True):
        rows.append([str(slots), *("-" if cell is None else bounded(cell) for cell in cells)])
    return rows


def writing_rows(runs: Sequence[Result]) -> Rows:
    """Measures of `writers`, over all layers; and in the last one, the weight of an object's token in ternary
    questions."""
    roles = [f"last layer, ternary: {role}" for role in ROLES[2:]]
    header = [*WRITING, *(f"ternary: {role}" for role in ROLES[2:])]
    return _rows(runs, header, [*WRITING, *roles], [*arms.MAIN, *arms.SWEEP])


def triangle_rows(runs: Sequence[Result]) -> Rows:
    """Triangles anywhere, and hard negatives; of the latter apart by what is right."""
    names = ["anywhere", "hard negatives", "hard negatives: equilateral", "hard negatives: other"]
    return _rows(runs, names, names, arms.TRIANGLES)


def roll_out_rows(runs: Sequence[Result], kind: str) -> Rows:
    """By step; the box has side 10."""
    return _rows(runs, [f"step {n}" for n in STEPS], [f"{kind}: step {n}" for n in STEPS], arms.BALLS)


def synchronisation_rows(runs: Sequence[Result]) -> Rows:
    """Of true sequences of 4 balls."""
    names = ["synchrony", *WRITING, "agreement", "persistence", "persistence at collisions", "persistence elsewhere"]
    return _rows(runs, names, [f"4: {name}" for name in names], arms.BALLS)


def model_rows(runs: Sequence[Result]) -> Rows:
    """What each arm's model costs."""
    rows = [["arm", "parameters", "ms per training step", "seconds of training", "last training loss"]]
    for arm, own in by_arm(runs).items():
        if own[0].parameters:
            told: list[Callable[[Result], float]] = [lambda r: r.milliseconds, lambda r: r.seconds]
            means = [f"{interval([tell(run) for run in own]).mean:.0f}" for tell in told]
            loss = interval([run.curve[-1][1] for run in own]).mean
            rows.append([arm, f"{own[0].parameters:,}", *means, f"{loss:.4f}"])
    return rows


def cost_rows(costs: Sequence[cost.Cost]) -> Rows:
    """Kinds of layers x numbers of specialists."""
    numbers = sorted({c.specialists for c in costs})
    rows = [["", *(f"{n:,}" for n in numbers)]]
    for kind in dict.fromkeys(c.kind for c in costs):
        own = {c.specialists: c for c in costs if c.kind == kind}
        rows.append([f"{kind}, ms", *(f"{1e3 * own[n].seconds:.3g}" for n in numbers)])
        rows.append([f"{kind}, MiB", *(f"{own[n].temporary_bytes / 2**20:.3g}" for n in numbers)])
    return rows


def write_report(study: Study, pictures: Sequence[str]) -> str:
    """The dated report, Markdown. What falls short is said in so many words."""
    size = SIZES[study.size]
    clevr, triangle, ball = size.clevr.training, size.triangle.training, size.ball.training
    parts = [
        f"# A shared global workspace, {study.date}",
        f"`{study.command}`; claim, arms and protocol are in [experiments/shared_workspace]"
        "(../../experiments/shared_workspace/README.md). Training: "
        f"{clevr.steps:,} steps of {clevr.batch_size} questions, {triangle.steps:,} of {triangle.batch_size} triangles "
        f"and {ball.steps:,} of {ball.batch_size} sequences of {size.ball.length} frames. Means over seeds with "
        "Student's 95 % intervals; differences seed by seed.",
    ]
    load = {} if study.costs is None else {"load before costs were measured": str(study.costs.load)}
    return write_page(
        parts,
        missing=study.missing,
        tables=tables(study),
        ending=falls_short(findings.aims(study.runs, study.costs)),
        pictures=pictures,
        machine=study.machine | load,
    )


def as_json(study: Study) -> dict[str, Any]:
    """Everything but the runs and costs, which are files of their own, with all figures as means over seeds."""
    told = dict[str, dict[str, Any]]()
    for arm, own in by_arm(study.runs).items():
        values = {name: figure(study.runs, arm, name) for name in own[0].figures}
        # JSON has no infinity, which the interval of one seed is.
        told[arm] = {name: asdict(value) for name, value in values.items() if value is not None and value.count > 1}
    fields = {name: getattr(study, name) for name in ("date", "command", "machine", "size", "missing")}
    return {**fields, "runs": [run.run.name for run in study.runs], "intervals": told}
