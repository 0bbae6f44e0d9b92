"""What the runs say: means over seeds with intervals, differences seed by seed, and the goals beside what was found."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.aim import Aim
from experiments.in_context_language.baselines import evaluate
from experiments.in_context_language.documents import material_of
from experiments.in_context_language.evaluation import Setting, documents_of
from experiments.in_context_language.prompts import DIRECTIONS, Direction
from experiments.in_context_language.scores import Score
from experiments.in_context_language.stages import Workload
from experiments.in_context_language.worker import Result
from experiments.interval import Interval, interval

FAR = 20.0
"""chrF that "far above" means."""


@dataclass(frozen=True)
class Baseline:
    """What a translation without a model reaches on the same sentences."""

    name: str
    """Which one."""
    direction: Direction
    shots: int
    """Example sentences that it has, besides the word list."""
    score: Score
    """Of all answers."""


def baselines_of(workload: Workload) -> list[Baseline]:
    """All of them, at every number of sentences of the curve."""
    found = []
    for direction in DIRECTIONS:
        for shots in sorted({*workload.shots, workload.test_shots}):
            setting = Setting("all", direction, shots)
            documents = documents_of(setting, workload)
            scores = evaluate(*map(material_of, documents), direction=direction)
            found += [Baseline(name, direction, shots, reached) for name, reached in scores.items()]
    return found


def complete(runs: Sequence[Result]) -> list[Result]:
    """The runs that went to the end, in the order of their seeds."""
    return sorted((run for run in runs if not run.ended), key=lambda run: run.run.seed)


def settings(runs: Sequence[Result]) -> list[Setting]:
    """What was measured."""
    return list(dict.fromkeys(each.setting for run in complete(runs) for each in run.measured))


def values(runs: Sequence[Result], setting: Setting, what: str = "chrf") -> list[float]:
    """`chrf` or `exact` of each run that went to the end."""
    return [getattr(each.score, what) for run in complete(runs) for each in run.measured if each.setting == setting]


def value(runs: Sequence[Result], setting: Setting | None, what: str = "chrf") -> Interval | None:
    """The mean over seeds; None where it was not measured."""
    found = [] if setting is None else values(runs, setting, what)
    return interval(found) if found else None


def find(
    runs: Sequence[Result], context: str, direction: Direction, *, shots: int | None = None, wrong: bool = False
) -> Setting | None:
    """The setting of a context, by default that of the ablation: the one with most sentences among those that some
    other context has, too."""
    book = "another language's" if wrong else "right"
    found = [s for s in settings(runs) if (s.context, s.direction, s.book) == (context, direction, book)]
    if shots is None and context == "sentences":
        others = {s.shots for s in settings(runs) if s.context != "sentences" and s.shots}
        shots = max(others, default=max((s.shots for s in found), default=0))
    return next((s for s in found if shots is None or s.shots == shots), None)


def paired(runs: Sequence[Result], setting: Setting | None, against: Setting | None) -> Interval | None:
    """The difference in chrF, seed by seed."""
    if setting is None or against is None:
        return None
    pairs = zip(values(runs, setting), values(runs, against), strict=True)
    differences = [ours - theirs for ours, theirs in pairs]
    return interval(differences) if differences else None


def shown(found: Interval | None, unit: str = "") -> str:
    """One decimal; without an interval for one seed."""
    if found is None:
        return "-"
    return f"{found.mean:.1f}{unit}" if found.count == 1 else f"{found.mean:.1f} ± {found.half:.1f}{unit}"


def best_baseline(baselines: Sequence[Baseline], direction: Direction, shots: int) -> Baseline | None:
    """The highest chrF that needs no model."""
    found = [each for each in baselines if (each.direction, each.shots) == (direction, shots)]
    return max(found, key=lambda each: each.score.chrf, default=None)


def curve(runs: Sequence[Result], direction: Direction) -> list[tuple[int, Interval]]:
    """(sentences, chrF) with sentences and nothing else."""
    found = [s for s in settings(runs) if s.context == "sentences" and s.direction == direction]
    return [(s.shots, interval(values(runs, s))) for s in sorted(found, key=lambda s: s.shots)]


def aims(runs: Sequence[Result], baselines: Sequence[Baseline]) -> list[Aim]:
    """The goals that this experiment was set; those whose settings were not measured are left out."""
    listed = []
    for direction in DIRECTIONS:
        told = find(runs, "all", direction) or find(runs, "rules + word list", direction)
        nothing = find(runs, "none", direction)
        difference = paired(runs, told, nothing)
        if told is None or difference is None:
            continue
        ours = value(runs, told)
        assert ours is not None
        name = f"{direction}, {told.context}"
        goal = f"> {FAR:.0f} chrF above nothing told, interval included"
        low = difference.mean if difference.count == 1 else difference.low
        listed.append(Aim(name, goal, f"{shown(difference)} above", low > FAR))
        wrong = find(runs, told.context, direction, wrong=True)
        difference = paired(runs, told, wrong)
        if difference is not None:
            low = difference.mean if difference.count == 1 else difference.low
            goal = f"> {FAR:.0f} chrF above another language's book, interval included"
            listed.append(Aim(name, goal, f"{shown(difference)} above", low > FAR))
        bar = best_baseline(baselines, direction, told.shots or max((b.shots for b in baselines), default=0))
        if bar is not None:
            low = ours.mean if ours.count == 1 else ours.low
            goal = f"above the best without a model, {bar.name}: {bar.score}"
            listed.append(Aim(name, goal, shown(ours), low > bar.score.high))
        listed += _order_aims(runs, direction)
    return listed


def _order_aims(runs: Sequence[Result], direction: Direction) -> list[Aim]:
    """Whether contexts are in the order that the papers report, and whether more sentences are better."""
    listed = []
    names = ("none", "word list", "sentences", "word list + sentences", "all")
    reached = [value(runs, find(runs, name, direction)) for name in names]
    means = [each.mean for each in reached if each is not None]
    if len(means) == len(names):
        nothing, words, sentences, both, everything = means
        ordered = nothing < min(words, sentences) <= max(words, sentences) < both < everything
        text = ", ".join(f"{name} {mean:.1f}" for name, mean in zip(names, means, strict=True))
        goal = "Gemini 1.5's order: nothing < word list, sentences < both < both and grammar"
        listed.append(Aim(f"{direction}, order of contexts", goal, text, ordered))
    points = [each.mean for _, each in curve(runs, direction)]
    if len(points) > 1:
        rises = sum(a < b for a, b in zip(points, points[1:]))
        measured = f"rises {rises} of {len(points) - 1} times, {points[0]:.1f} to {points[-1]:.1f}"
        listed.append(
            Aim(f"{direction}, many-shot curve", "rises at every doubling", measured, rises + 1 == len(points))
        )
    return listed
