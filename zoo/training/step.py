"""One training step and one evaluation step, as pure functions of a state and a batch."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int32

from zoo.errors import UserError
from zoo.training.losses import LossSums
from zoo.training.optimizer import SPIKES
from zoo.training.parameters import flatten_with_names, matching_names
from zoo.training.routing import balanced_biases, router_metrics, selection_biases
from zoo.training.spikes import SpikeRule, judge
from zoo.training.state import TrainState, add_tokens

LossFunction = Callable[..., LossSums]
"""`loss_fn(model, batch) -> LossSums`; a stochastic one is called with a keyword `rng`, a typed key, and one that
learns from a fixed teacher with a keyword `teacher`, that model's parameters."""

Metrics = dict[str, Array]


class TrainStep(Protocol):
    """`step(state, batch)`, or with the parameters of a fixed teacher `step(state, batch, teacher)`."""

    def __call__(self, state: TrainState, batch: Any, teacher: Any = None) -> tuple[TrainState, Metrics]: ...


def count_batch_tokens(batch: Any) -> Int32[Array, ""]:
    """Tokens of a batch that are not padding (segment id 0)."""
    return jnp.count_nonzero(batch.segment_ids).astype(jnp.int32)


def make_train_step(
    graphdef: nnx.GraphDef | None,
    loss_fn: LossFunction,
    optimizer: optax.GradientTransformation,
    *,
    schedule: optax.Schedule,
    accumulation_steps: int = 1,
    frozen_patterns: Sequence[str] = (),
    kept_of_inputs: Sequence[str] = (),
    stochastic: bool = False,
    spike_rule: SpikeRule | None = None,
    balancing_bias_rate: float = 0.0,
    count_tokens: Callable[[Any], Int32[Array, ""]] = count_batch_tokens,
) -> TrainStep:
    """A function `train_step(state, batch) -> (state, metrics)`, to be compiled with `jit_train_step`.

    `graphdef` is the static part of `nnx.split(model, nnx.Param)`, whose other part is `state.params`; None: the loss
    takes `state.params` in place of a model. The gradient is that of sum(loss + z_loss + auxiliary) / sum(weight) over
    the whole batch. It is the same (but for rounding) when the batch is split in `accumulation_steps` micro-batches, of
    which one at a time is in memory, however the weights are distributed; only the losses of routers are those of each
    micro-batch's own load. Parameters covered by `frozen_patterns` are not differentiated; give `make_optimizer` the
    same patterns. `schedule` is only reported.

    A step whose loss or gradient norm is not finite changes nothing in the state: metrics["finite"] is False, and the
    caller should stop. Metrics (float32 scalars): loss and z_loss per unit of weight, in nats; grad_norm before
    clipping; learning_rate of this update; weight, the sum of the loss weights; tokens (int32), not padding; finite;
    and the loss's own, per unit of weight.

    With a `spike_rule` (the one of `make_optimizer`'s config) a spike changes neither parameters nor moments. It counts
    as a step all the same, since its batch was read; the learning rate stays behind by the steps left out.
    Metrics get skipped, skipped_in_a_row, loss_limit and grad_norm_limit (`zoo.training.spikes.judge`).

    With sparse layers, metrics get those of `zoo.training.routing.router_metrics`, of which the load is an array. Their
    selection biases have no gradient (give `make_optimizer` their names as frozen): every update moves each one by
    `balancing_bias_rate` towards a balanced load, unless `frozen_patterns` cover it.

    The parameters named in `kept_of_inputs` have no gradient either (give `make_optimizer` their names as frozen): they
    become what the loss says (`LossSums.statistics`), the mean over micro-batches by weight, unless `frozen_patterns`
    cover them.

    `train_step(state, batch, teacher)` gives its third argument to the loss, as `teacher=`: the parameters of another
    model, which are not differentiated, kept in the state or returned.

    A stochastic loss gets `rng=` a key that is different for every step and micro-batch. An optimizer that takes extra
    arguments is given the keyword `grad_norm`.
    """
    with_extra_args = optax.with_extra_args_support(optimizer)

    def train_step(state: TrainState, batch: Any, teacher: Any = None) -> tuple[TrainState, Metrics]:
        named = flatten_with_names(state.params)
        structure = jax.tree.structure(state.params)
        frozen = matching_names(list(named), frozen_patterns)
        biases = [name for name in selection_biases(named) if name not in frozen] if balancing_bias_rate else []
        kept = [name for name in kept_of_inputs if name not in frozen]
        frozen |= set(selection_biases(named)) | set(kept_of_inputs)

        def objective(trained: dict[str, Array], batch: Any, rng: Array) -> tuple[Array, LossSums]:
            params = jax.tree.unflatten(structure, [trained.get(name, leaf) for name, leaf in named.items()])
            extra = ({"rng": rng} if stochastic else {}) | ({} if teacher is None else {"teacher": teacher})
            sums = loss_fn(params if graphdef is None else nnx.merge(graphdef, params), batch, **extra)
            return sum(sums.auxiliary.values(), sums.loss + sums.z_loss), sums

        trained = {name: leaf for name, leaf in named.items() if name not in frozen}
        rng = jax.random.fold_in(state.rng, state.step)
        with jax.named_scope("loss_and_gradient"):
            sums, gradients = _sums_and_gradients(objective, trained, batch, rng, accumulation_steps)
        # Gradients are multiplied with one number, not divided: XLA:CPU does not repeat a division in the passes that
        # update moments and parameters, but writes all quotients to memory first. With this and the branch below the
        # update runs at memory bandwidth, 3.5 times as fast as without (36M parameters).
        per_weight = 1 / jnp.where(sums.weight > 0, sums.weight, 1.0)
        loss, grad_norm = sums.loss * per_weight, optax.tree.norm(gradients) * per_weight
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        applied, updates_done = finite, state.step
        found: Metrics = {}
        if spike_rule is not None:
            before = state.opt_state[-1][SPIKES]
            values = {"loss": loss, "grad_norm": grad_norm}
            spike, statistics, found = judge(spike_rule, before, values, finite)
            applied, updates_done = finite & ~spike, state.step - before["skipped"]

        def apply() -> tuple[list[Array], optax.OptState]:
            means = [
                (gradients[name] * per_weight).astype(leaf.dtype) if name in gradients else jnp.zeros_like(leaf)
                for name, leaf in named.items()
            ]
            updates, opt_state = with_extra_args.update(
                jax.tree.unflatten(structure, means), state.opt_state, state.params, grad_norm=grad_norm
            )
            updates = flatten_with_names(updates)
            moved = {name: p if name in frozen else p + updates[name] for name, p in named.items()}
            if biases and sums.routing is not None:
                moved |= balanced_biases({n: named[n] for n in biases}, sums.routing.assigned, balancing_bias_rate)
            moved |= {name: (sums.statistics[name] * per_weight).astype(named[name].dtype) for name in kept}
            return list(moved.values()), opt_state

        # A branch, not jnp.where on the results: with that XLA:CPU copies the moments before it updates them.
        with jax.named_scope("optimizer"):
            params, opt_state = jax.lax.cond(applied, apply, lambda: (list(named.values()), state.opt_state))
        if spike_rule is not None:
            opt_state = (*opt_state[:-1], {SPIKES: statistics})
        new_state = TrainState(
            step=jnp.where(finite, state.step + 1, state.step),
            tokens=jnp.where(finite, add_tokens(state.tokens, count_tokens(batch)), state.tokens),
            params=jax.tree.unflatten(structure, params),
            opt_state=opt_state,
            rng=state.rng,
        )
        metrics = {
            "loss": loss,
            "z_loss": sums.z_loss * per_weight,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(updates_done), jnp.float32),
            "weight": sums.weight,
            "tokens": count_tokens(batch),
            "finite": finite,
        }
        metrics |= {name: value * per_weight for name, value in (sums.auxiliary | sums.metrics).items()}
        if sums.routing is not None:
            metrics |= router_metrics(sums.routing)
        return new_state, metrics | found

    return train_step


def jit_train_step(
    train_step: TrainStep, state: TrainState, compiler_options: Mapping[str, bool | str] | None = None
) -> Any:
    """The compiled step. It consumes (donates) its state and returns one with the shardings of `state` (arrays or
    ShapeDtypeStructs); metrics are replicated. Left free, XLA might choose other shardings for the result, and would
    compile again for the second step."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=(shardings, state.step.sharding),
        compiler_options=dict(compiler_options) if compiler_options else None,
    )


def make_eval_step(graphdef: nnx.GraphDef | None, loss_fn: LossFunction) -> Callable[..., LossSums]:
    """A compiled function `eval_step(params, batch) -> LossSums`; sums, so that batches of any weights can be added.
    Without `graphdef` the loss takes `params` in place of a model. `eval_step(params, batch, teacher)` gives its third
    argument to the loss, as `teacher=`."""

    @jax.jit
    def eval_step(params: Any, batch: Any, teacher: Any = None) -> LossSums:
        extra = {} if teacher is None else {"teacher": teacher}
        return loss_fn(params if graphdef is None else nnx.merge(graphdef, params), batch, **extra)

    return eval_step


def split_microbatches(batch: Any, count: int) -> Any:
    """Every array [B, ...] of a batch as [count, B / count, ...]: micro-batch i has the rows i, i + count, ...

    With this order every device keeps its own rows when B is sharded; contiguous pieces would have to move.
    """

    def split(array: Array) -> Array:
        if array.shape[0] % count:
            raise UserError(f"a batch of {array.shape[0]} sequences cannot be split in {count} accumulation steps")
        return jnp.moveaxis(array.reshape(-1, count, *array.shape[1:]), 1, 0)

    return jax.tree.map(split, batch)


def _sums_and_gradients(
    objective: Callable[..., tuple[Array, LossSums]], trained: dict[str, Array], batch: Any, rng: Array, count: int
) -> tuple[LossSums, dict[str, Array]]:
    """Sums of the losses and of their gradients over `count` micro-batches."""
    gradient_of = jax.grad(objective, has_aux=True)
    if count == 1:
        gradients, sums = gradient_of(trained, batch, rng)
        return sums, gradients

    def body(carry: Any, inputs: Any) -> tuple[Any, None]:
        index, microbatch = inputs
        gradients, sums = gradient_of(trained, microbatch, jax.random.fold_in(rng, index))
        return jax.tree.map(jnp.add, carry, (sums, gradients)), None

    zeros = {name: jnp.zeros(leaf.shape, jnp.float32) for name, leaf in trained.items()}
    inputs = (jnp.arange(count), split_microbatches(batch, count))
    first = jax.tree.map(lambda array: array[0], inputs[1])
    no_sums = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(objective, trained, first, rng)[1]
    )
    (sums, gradients), _ = jax.lax.scan(body, (no_sums, zeros), inputs)
    return sums, gradients
