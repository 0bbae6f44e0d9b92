"""One run on bouncing balls: training on the next state, roll-outs of 4 balls and of 6 to 8, and who writes."""

from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from experiments.shared_workspace import material, writers
from experiments.shared_workspace.arms import FLIES_ON, Arm, Run
from experiments.shared_workspace.bouncing_balls import BOX, Balls
from experiments.shared_workspace.result import Result
from experiments.shared_workspace.sizes import Ball, Size, rims_of
from experiments.shared_workspace.trainer import next_state_loss, train
from zoo.models.rims import Rims

TESTS = ("4", "678")
SHOWN = 3
"""Test sequences whose writers are drawn."""


def rims(run: Run, arm: Arm, size: Size) -> Result:
    """Trains units that speak in one way, and lets them go on by themselves."""
    config, ball = rims_of(arm, size), size.ball
    model = Rims(config, rngs=nnx.Rngs(run.seed))
    states = material.balls_of(ball, run.seed)
    orders = material.orders(len(states), ball.training.batch_size, ball.training.steps, run.seed)
    batches = (states[order] for order in orders)
    trained = train(run.name, model, next_state_loss, batches, ball.training, run.seed)
    figures: dict[str, float] = {}
    pictures: dict[str, Any] = {}
    for kind in TESTS:
        balls = material.test_balls(ball, kind)  # type: ignore[arg-type]
        found = rolled_out(trained.model, balls, ball)
        figures |= named(kind, squared_distance(found[..., :2], balls, ball))
        if kind == "4":
            more, pictures = synchronisation(trained.model, balls)
            figures |= {f"{kind}: {name}": value for name, value in more.items()}
    return Result(run, figures, trained.curve, config.num_parameters(), trained.milliseconds, trained.seconds, pictures)


def without_model(run: Run, arm: Arm, size: Size) -> Result:
    """Every ball flies on: through everything, or bouncing off walls and through other balls."""
    figures: dict[str, float] = {}
    for kind in TESTS:
        balls = material.test_balls(size.ball, kind)  # type: ignore[arg-type]
        found = flown_on(balls, size.ball, walls=arm.model != FLIES_ON)
        figures |= named(kind, squared_distance(found, balls, size.ball))
    return Result(run, figures)


def flown_on(balls: Balls, size: Ball, *, walls: bool) -> Float[np.ndarray, "n t k 2"]:
    """Places, in -1..1, of balls that keep their last seen velocity; `walls`: between walls that mirror them."""
    place, velocity = (found[:, size.seen - 1, :, None] for found in (balls.positions, balls.velocities))
    found = place + velocity * np.arange(1, size.rolled_out + 1)[:, None]
    if walls:
        radius = balls.radii[:, :, None, None]
        room = BOX - 2 * radius
        around = np.mod(found - radius, 2 * room)
        found = radius + np.minimum(around, 2 * room - around)
    return found.swapaxes(1, 2) / (BOX / 2) - 1


def rolled_out(model: Any, balls: Balls, size: Ball) -> Float[np.ndarray, "n t k 4"]:
    """States after those that are given."""
    graphdef, params = nnx.split(model)
    run = jax.jit(lambda params, x, present: nnx.merge(graphdef, params).roll_out(x, size.rolled_out, present))
    return np.asarray(run(params, balls.states()[:, : size.seen], balls.present))


def squared_distance(places: Float[np.ndarray, "n t k 2"], balls: Balls, size: Ball) -> Float[np.ndarray, " t"]:
    """Mean, over the balls that there are, of the squared distance to where they truly are; the box has side 10."""
    true = balls.positions[:, size.seen : size.seen + size.rolled_out]
    squared = (((places + 1) * (BOX / 2) - true) ** 2).sum(-1)
    shown = np.broadcast_to(balls.present[:, None], squared.shape)
    return np.where(shown, squared, 0).sum((0, 2)) / shown.sum((0, 2))


def named(kind: str, by_step: Float[np.ndarray, " t"]) -> dict[str, float]:
    """Figures of a roll-out. What has left all bounds counts as the box's diagonal, squared, a thousand times: JSON has
    no infinity."""
    most = 1000 * 2 * BOX**2
    clipped = np.minimum(np.where(np.isfinite(by_step), by_step, most), most)
    return {f"{kind}: step {number}": float(value) for number, value in enumerate(clipped, start=1)}


def synchronisation(model: Any, balls: Balls) -> tuple[dict[str, float], dict[str, Any]]:
    """(figures, pictures) of units that see true sequences: `writers`' measures."""
    active, moves, weights = (None if part is None else np.asarray(part) for part in watched(model, balls))
    assert active is not None and moves is not None
    figures = {"synchrony": writers.synchrony(moves)}
    if weights is None:
        return figures, {}
    hit = writers.collisions(balls.velocities, balls.masses)
    figures |= {
        "effective writers": writers.effective_writers(weights),
        "slot likeness": writers.slot_likeness(weights),
        "fixedness": writers.fixedness(weights),
        "agreement": writers.agreement(weights),
        "persistence": writers.persistence(weights),
        "persistence at collisions": writers.persistence(weights, hit),
        "persistence elsewhere": writers.persistence(weights, ~hit),
    }
    chosen = np.argsort(-hit.sum(1), kind="stable")[:SHOWN]  # with the most to see
    shown = {
        "weights": weights[chosen].mean(2).round(4).tolist(),
        "active": active[chosen].astype(int).tolist(),
        "collisions": hit[chosen].astype(int).tolist(),
    }
    return {name: value for name, value in figures.items() if np.isfinite(value)}, shown


def watched(model: Any, balls: Balls) -> tuple[Array, Float[Array, "b t k"], Array | None]:
    """(which units are active, how far each state moves, who writes) at every step of the true sequences."""
    graphdef, params = nnx.split(model)

    def run(params, states, present):
        model: Any = nnx.merge(graphdef, params)

        def step(state, x):
            new, _, active, weights = model.step(state, x, present)
            move = ((new.hidden - state.hidden) ** 2).sum(-1) ** 0.5
            return new, (active, move, weights)

        found = jax.lax.scan(step, model.initial_state(len(states)), states.swapaxes(0, 1))[1]
        return jax.tree.map(lambda x: x.swapaxes(0, 1), found)

    return jax.jit(run)(params, balls.states(), balls.present)
