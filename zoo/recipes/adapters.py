"""Runs that train an adapter: the base is an argument of the step, as a fixed teacher is, and no part of the state.

So a checkpoint holds the adapter alone, the optimizer keeps moments of it alone, and the base is neither copied nor
donated. RUN/base.json says which weights the base has, RUN/mask.safetensors which entries a sparse adapter trains.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import safetensors.numpy
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.errors import UserError
from zoo.interop.adapters import BASE_FILE, MASK_FILE, read_mask
from zoo.models import CoDistilledConfig
from zoo.parallel import state_shardings
from zoo.peft import AdaptedModel, adapted_model, base_fingerprint, first_parameters, put_together, trainable_report
from zoo.peft.adapted import is_key
from zoo.peft.sparse import Mask, mask_to_host, top_k_changed
from zoo.recipes.recipe import Recipe
from zoo.recipes.weights import AbstractModel, abstract_model, load_params
from zoo.training.losses import LossSums
from zoo.training.run_directory import write_json_atomically
from zoo.training.state import TrainState
from zoo.training.step import LossFunction


class Fixed(NamedTuple):
    """What a step with an adapter reads and leaves as it is."""

    base: nnx.State
    """Parameters of the base."""
    buffers: nnx.State
    """Constants of the adapter."""
    teacher: Any
    """Parameters of a fixed teacher; None without one."""


@dataclass(frozen=True)
class AdapterProgram:
    """An adapter's part of a training program."""

    base: AbstractModel
    """The base, without numbers."""
    training: AdaptedModel
    """The model that is trained, with dropout."""
    plain: AdaptedModel
    """The same without dropout."""
    params: nnx.State
    """Shapes and shardings of the adapter's parameters."""
    buffers: nnx.State
    """Shapes and shardings of its constants."""


def adapter_program(recipe: Recipe, mesh: Mesh) -> AdapterProgram | None:
    """The structure of a recipe's adapter, None without one. Nothing is allocated, but of a sparse one whose run has
    not begun: the base and the run that its mask is from are read."""
    if not recipe.peft.trains_adapter:
        return None
    base, mask = abstract_model(recipe, mesh), _mask(recipe, mesh)
    training, plain = (
        adapted_model(nnx.merge(base.graphdef, base.params), recipe.peft, mask=mask, training=training)
        for training in (True, False)
    )
    params, buffers = jax.eval_shape(lambda: first_parameters(training, recipe.seed))
    return AdapterProgram(base, training, plain, _placed(params, recipe, mesh), _placed(buffers, recipe, mesh))


def _placed(abstract: nnx.State, recipe: Recipe, mesh: Mesh) -> nnx.State:
    shardings = state_shardings(abstract, mesh, recipe.rules)
    return jax.tree.map(lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to), abstract, shardings)


def begin_adapter(recipe: Recipe, program: AdapterProgram) -> nnx.State:
    """The adapter's parameters before training, born sharded."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.params)
    return jax.jit(lambda: first_parameters(program.training, recipe.seed)[0], out_shardings=shardings)()


def load_fixed(recipe: Recipe, mesh: Mesh, program: AdapterProgram | None, teacher: Any) -> Any:
    """What the step takes besides state and batch: base, constants and teacher; without an adapter the teacher."""
    if program is None:
        return teacher
    if recipe.init_from is None:
        raise UserError(f"peft.method={recipe.peft.method} trains beside a model that stays: say --init-from CKPT")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.buffers)
    buffers = jax.jit(lambda: first_parameters(program.training, recipe.seed)[1], out_shardings=shardings)()
    return Fixed(load_params(recipe.init_from, recipe, mesh), buffers, teacher)


def adapter_loss(program: AdapterProgram, loss: LossFunction, *, stochastic: bool, has_teacher: bool) -> LossFunction:
    """`loss(parameters of the adapter, batch, teacher=Fixed) -> LossSums` out of a loss of a model."""

    def of_adapter(params: nnx.State, batch: Any, *, teacher: Fixed, rng: Any = None) -> LossSums:
        noise = None if rng is None else jax.random.fold_in(rng, 1 << 20)
        model = put_together(program.training, params, teacher.base, teacher.buffers, noise)
        extra: dict[str, Any] = {"rng": rng} if stochastic else {}
        return loss(model, batch, **extra | ({"teacher": teacher.teacher} if has_teacher else {}))

    return of_adapter


def validation_loss(program: AdapterProgram, loss: LossFunction) -> LossFunction:
    """`loss((parameters of the adapter, Fixed), batch) -> LossSums` out of a loss of a model."""
    return lambda both, batch: loss(plain_model(program, *both), batch)


def plain_model(program: AdapterProgram, params: nnx.State, fixed: Fixed) -> Any:
    """The model as it is outside of training."""
    without_keys = [(path, leaf) for path, leaf in nnx.to_flat_state(fixed.buffers) if not is_key(path)]
    return put_together(program.plain, params, fixed.base, nnx.from_flat_state(without_keys))


def evaluation_of(program: AdapterProgram | None, evaluate: Callable[[Any], Mapping[str, float]], fixed: Any):
    """An evaluation of the state's parameters, which are the adapter's where there is one."""
    return evaluate if program is None else lambda params: evaluate((params, fixed))


def whole_model(program: AdapterProgram | None, model: AbstractModel, params: Any, fixed: Any) -> tuple[Any, Any]:
    """(graphdef, state) of the trained model, adapter included."""
    return (model.graphdef, params) if program is None else nnx.split(plain_model(program, params, fixed))


def check_adapter_run(recipe: Recipe) -> None:
    """Raises `UserError` for a run that can train no adapter."""
    how = recipe.peft
    if not how.trains_adapter:
        return
    if recipe.freeze:
        raise UserError(f"peft.method={how.method} leaves the whole model as it is: leave out --freeze")
    if isinstance(recipe.model, CoDistilledConfig):
        raise UserError(f"peft.method={how.method}: {recipe.name} trains a pair of models; adapters are for one")
    if how.method == "sparse" and how.mask_from is None:
        raise UserError("peft.method=sparse needs a run that tuned the whole base: say --peft.mask-from RUN")


def check_same_base(recipe: Recipe, program: AdapterProgram | None, fixed: Any, *, new: bool) -> None:
    """Writes down which weights the base of a new run has, and a sparse adapter's mask; of one that is resumed, raises
    `UserError`, on all processes alike, if it began with others."""
    if program is None:
        return
    run = Path(recipe.run_dir)
    path, found = run / BASE_FILE, base_fingerprint(nnx.merge(program.base.graphdef, fixed.base))
    if not new and path.is_file():
        saved = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        if saved != found:
            raise UserError(
                f"--init-from {recipe.init_from} has other weights (sha256 {str(found)[:12]}...) than when "
                f"{recipe.run_dir} began (sha256 {saved[:12]}...): put those back, or choose another --run-dir"
            )
    elif jax.process_index() == 0:
        if program.plain.mask:
            model = nnx.merge(program.base.graphdef, fixed.base)
            safetensors.numpy.save_file(mask_to_host(model, program.plain.mask), run / MASK_FILE)
        write_json_atomically(path, {"path": recipe.init_from, "sha256": found})


def describe_adapter(recipe: Recipe, program: AdapterProgram | None, state: TrainState) -> str:
    """A line for the beginning of a run, with a line break before it; empty without an adapter."""
    if program is None:
        return ""
    report = trainable_report(state.params, program.base.params, state.opt_state)
    return f"\nadapter    {recipe.peft.method} on {recipe.init_from}: {report}"


def _mask(recipe: Recipe, mesh: Mesh) -> Mask:
    """Which entries a sparse adapter trains: as its run began with, or those that changed most."""
    if recipe.peft.method != "sparse":
        return {}
    assert recipe.init_from is not None and recipe.peft.mask_from is not None
    graphdef = abstract_model(recipe, mesh).graphdef
    file = Path(recipe.run_dir) / MASK_FILE
    if file.is_file():
        return read_mask(file, nnx.merge(graphdef, abstract_model(recipe, mesh).params))
    whole = NamedSharding(mesh, PartitionSpec())
    if not whole.is_fully_addressable:
        raise UserError("peft.method=sparse: choose the mask in one process first, several hosts cannot")
    base, tuned = (
        nnx.merge(graphdef, load_params(path, recipe, mesh)) for path in (recipe.init_from, recipe.peft.mask_from)
    )
    return top_k_changed(base, tuned, recipe.peft.target, recipe.peft.density)
