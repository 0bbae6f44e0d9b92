"""Averages of checkpoints of one architecture: of several runs, or of the saved steps of one.

    mean            sum_i p_i / n                                        (Wortsman et al., arXiv 2203.05482)
    moving average  a_1 = p_1,  a_i = decay * a_(i-1) + (1 - decay) * p_i    (Polyak and Juditsky 1992, as usually run)

Gemma 2 averages models of runs with other hyper-parameters after its fine-tuning (arXiv 2408.00118). Whether an average
is better than its parts is for validation to say: runs that began with other random weights have nothing in common
that could be averaged.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from zoo.errors import UserError
from zoo.interop import Loaded, load, read_config, source_of
from zoo.interop.adapters import is_adapter_run
from zoo.interop.parameters import OnTensor
from zoo.models import config_to_dict
from zoo.recipes.weights import model_difference
from zoo.training.run_directory import checkpoints_dir, is_run_dir, saved_steps


def moving_average_weights(count: int, decay: float) -> list[float]:
    """What each of `count` checkpoints, oldest first, counts in this module's moving average; the sum is 1."""
    return [decay ** (count - 1)] + [(1 - decay) * decay ** (count - 1 - i) for i in range(1, count)]


def steps_to_average(run: str | Path) -> list[Path]:
    """The folders of all saved steps of a run directory, oldest first. Raises `UserError` if it is none, or has fewer
    than two."""
    if not is_run_dir(run):
        raise UserError(f"{run} is no run directory of zoo.train: a moving average is taken over a run's saved steps")
    steps = saved_steps(checkpoints_dir(run))
    if len(steps) < 2:
        found = "no saved step" if not steps else f"one saved step, {steps[0]}"
        raise UserError(f"{run} has {found}: an average needs two (loop.keep_last sets how many a run keeps)")
    return [checkpoints_dir(run) / str(step) for step in steps]


def check_same_model(checkpoints: Sequence[str | Path]) -> None:
    """Raises `UserError` if two of the checkpoints are one, if one holds packed weights, or if one is of another model
    than the first, naming the first field that differs. Nothing is loaded."""
    first, known = checkpoints[0], dict[Path, str | Path]()
    wanted = config_to_dict(read_config(first))
    for checkpoint in checkpoints:
        place = _place(checkpoint)
        if place in known:
            raise UserError(f"{checkpoint} and {known[place]} are one checkpoint: each counts once in an average")
        known[place] = checkpoint
        if is_adapter_run(checkpoint):
            raise UserError(f"{checkpoint} holds an adapter: export it merged first (zoo.export --format orbax)")
        if source_of(checkpoint) == "quantised":
            raise UserError(f"{checkpoint} holds packed weights, which cannot be averaged: give what they were made of")
        found = model_difference(config_to_dict(read_config(checkpoint)), wanted)
        if found is not None:
            name, there, here = found
            raise UserError(
                f"{checkpoint} is of another model: {name} is {there!r} there and {here!r} in {first}; "
                "only checkpoints of one architecture can be averaged"
            )


def load_average(
    checkpoints: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    *,
    on_tensor: OnTensor | None = None,
) -> Loaded:
    """sum_i weights[i] * p_i / sum(weights) of the parameters of checkpoints, added in float32, in the dtypes that
    those of the first are stored in. Two models are in memory at a time, and the sum.

    Args:
        checkpoints: whatever `zoo.load` takes; the result has the first one's configuration and tokenizer.
        weights: one for each; None: all the same.
        on_tensor: called with each tensor's name when it has been read.

    Raises:
        UserError: they are not of one model (`check_same_model`) or have other tokenizers, one is damaged, or has
            parameters that are not finite.
    """
    weights = [1.0] * len(checkpoints) if weights is None else list(weights)
    check_same_model(checkpoints)
    result = load(checkpoints[0], param_dtype="stored", on_tensor=on_tensor)
    first = nnx.state(result.model, nnx.Param)
    total = _added(None, first, weights[0], checkpoints[0])
    for checkpoint, weight in zip(checkpoints[1:], weights[1:], strict=True):
        other = load(checkpoint, param_dtype="stored", on_tensor=on_tensor)
        _check_same_tokenizer(result, other)
        total = _added(total, nnx.state(other.model, nnx.Param), weight, checkpoint)
    scale = math.fsum(weights)
    nnx.update(result.model, jax.tree.map(lambda leaf, like: (leaf / scale).astype(like.dtype), total, first))
    return result


def _place(checkpoint: str | Path) -> Path:
    """The folder that is read: of a run directory, that of its newest step."""
    place = Path(checkpoint).resolve()
    steps = saved_steps(checkpoints_dir(place)) if is_run_dir(place) else ()
    return checkpoints_dir(place) / str(steps[-1]) if steps else place


def _added(total: nnx.State | None, params: nnx.State, weight: float, checkpoint: str | Path) -> nnx.State:
    for path, leaf in nnx.to_flat_state(params):
        if not jnp.all(jnp.isfinite(leaf.get_value())):
            raise UserError(f"{checkpoint}: {'/'.join(map(str, path))} is not finite, nor would be an average with it")
    weighted = jax.tree.map(lambda leaf: weight * leaf.astype(jnp.float32), params)
    return weighted if total is None else jax.tree.map(jnp.add, total, weighted)


def _check_same_tokenizer(first: Loaded, other: Loaded) -> None:
    ours, theirs = first.tokenizer, other.tokenizer
    if ours is not None and theirs is not None and ours.fingerprint != theirs.fingerprint:
        raise UserError(
            f"{other.path} has another tokenizer (sha256 {theirs.fingerprint[:12]}...) than {first.path} "
            f"(sha256 {ours.fingerprint[:12]}...): the same token means two things, and there is nothing to average"
        )
