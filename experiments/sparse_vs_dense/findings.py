"""What the runs say: learning rates, means with intervals, who is ahead, and the goals beside what was measured."""

import statistics
from collections.abc import Sequence

from experiments.aim import Aim
from experiments.interval import Interval, interval
from experiments.sparse_vs_dense.arms import CAPACITY, CHANGES, DENSE, NO_BALANCING, SPARSE
from experiments.sparse_vs_dense.worker import Result


def by_arm(runs: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each arm, in the order of their seeds."""
    found: dict[str, list[Result]] = {}
    for result in sorted(runs, key=lambda result: result.run.seed):
        found.setdefault(result.run.arm, []).append(result)
    return {arm: found[arm] for arm in (DENSE, *CHANGES) if arm in found}


def final_loss(result: Result) -> float:
    """Nats per token on held-out text after the last step."""
    return result.validation[-1][1]


def best_rates(sweep: Sequence[Result]) -> dict[str, float]:
    """For each arm of the sweep the learning rate with the lowest final loss."""
    best: dict[str, Result] = {}
    for result in sweep:
        arm = result.run.arm
        if arm not in best or final_loss(result) < final_loss(best[arm]):
            best[arm] = result
    return {arm: result.run.learning_rate for arm, result in best.items()}


def paired(runs: Sequence[Result], arm: str, against: str) -> Interval | None:
    """The difference of the final losses, seed by seed: both read the same tokens in the same order."""
    found = by_arm(runs)
    ours, theirs = ({r.run.seed: final_loss(r) for r in found.get(name, [])} for name in (arm, against))
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return interval(differences) if differences else None


def steps_to_reach(result: Result, loss: float) -> float | None:
    """The step, between two validations, at which the held-out loss falls to `loss`; None if it never does."""
    points = result.validation
    for (before, high), (after, low) in zip(points, points[1:]):
        if low <= loss < high:
            return before + (after - before) * (high - loss) / (high - low)
    return points[0][0] if points[0][1] <= loss else None


def unevenness(result: Result) -> float:
    """E times the largest part that an expert got in any layer: 1 = balanced, E / k = all tokens choose it."""
    return max(max(layer) * len(layer) for layer in result.load)


def idle_experts(result: Result, below: float = 0.1) -> int:
    """Experts, of all layers, with less than this part of a balanced load."""
    return sum(part * len(layer) < below for layer in result.load for part in layer)


def aims(runs: Sequence[Result]) -> list[Aim]:
    """The goals that this experiment was set; those of arms that did not take part are left out."""
    found = by_arm(runs)
    losses = {arm: interval([final_loss(result) for result in results]) for arm, results in found.items()}
    dense, sparse = losses[DENSE], losses[SPARSE]
    listed = [
        Aim(
            "held-out loss, sparse against dense at equal steps",
            "lower, 95 % intervals apart",
            f"{sparse} against {dense}",
            sparse.high < dense.low,
        )
    ]
    flops = found[SPARSE][0].training_flops_per_token / found[DENSE][0].training_flops_per_token
    listed.append(Aim("FLOPs per token, sparse / dense", "<= 1.01, router included", f"{flops:.4f}", flops <= 1.01))
    uneven = max(map(unevenness, found[SPARSE]))
    listed.append(Aim("largest load of an expert, sparse", "<= 2 x balanced", f"{uneven:.2f} x", uneven <= 2))
    if NO_BALANCING in found:
        without = statistics.fmean(map(unevenness, found[NO_BALANCING]))
        balanced = statistics.fmean(map(unevenness, found[SPARSE]))
        what = "largest load without the balancing loss"
        listed.append(Aim(what, f"> {balanced:.2f} x (with it)", f"{without:.2f} x", without > balanced))
    if CAPACITY in found:
        dropped = statistics.fmean(result.dropped for result in found[CAPACITY])
        listed.append(Aim("choices dropped by capacity 1.25", "<= 5 %", f"{dropped:.2%}", dropped <= 0.05))
    return listed
