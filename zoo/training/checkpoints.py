"""Saving and restoring: asynchronous, atomic, checked; the last few steps and the best one are kept.

A checkpoint is RUN/checkpoints/STEP with four items, so that each can be read alone:

    params     nested dictionary of the parameters (layers/0/attention/query), what inference and export need
    optimizer  nested dictionary of the optimizer state, plus `step`, `tokens` and `rng` (key data)
    data       the data iterator's position after the last batch that was trained on, one file a part (zoo.data.streams)
    meta       JSON: the run's description, step, tokens, metrics

A checkpoint is written into a temporary folder, listed with checksums, and published by one rename. What is committed
is therefore complete, and what was damaged afterwards is noticed, named, and passed over for the step before it.
"""

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from zoo.errors import UserError
from zoo.training.manifest import find_damage, write_manifest
from zoo.training.optimizer import SPIKES
from zoo.training.parameters import flatten_with_names, nested_dict
from zoo.training.run_directory import checkpoints_dir, is_step_dir, saved_steps, wait_until_seen
from zoo.training.state import TrainState

logger = logging.getLogger(__name__)


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be used; the message says what is wrong with it."""


@dataclass(frozen=True)
class Restored:
    """One checkpoint, as it was saved."""

    step: int
    """Number of training steps that were done."""
    state: TrainState
    """The state after that step, on the shardings that were asked for."""
    data_state: dict[str, Any]
    """The parts of the data iterator's position that were asked for."""
    meta: dict[str, Any]
    """The JSON that was saved beside the arrays."""


class Checkpoints:
    """The checkpoints of one run that is being trained. Call on every process alike; close it, or use `with`."""

    def __init__(self, run: str | Path, *, keep_last: int = 3, checksums: bool = True):
        """`checksums=False` records sizes only, where reading back what was saved would take too long."""
        self._folder = checkpoints_dir(run).absolute()
        self._damaged = Path(run).absolute() / "damaged"
        self._checksums = checksums
        self._saving = -1
        policies = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(keep_last),
                checkpoint_managers.BestN(get_metric_fn=_validation_loss, reverse=True, n=1),
            ]
        )
        try:
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies,
                    best_fn=_validation_loss,
                    best_mode="min",
                    cleanup_tmp_directories=True,
                    async_options=ocp.AsyncOptions(post_finalization_callback=self._list_files),
                ),
            )
        except OSError as error:
            raise UserError(f"{self._folder} cannot be used for checkpoints: {error.strerror or error}") from None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def steps(self) -> tuple[int, ...]:
        """The committed steps, rising."""
        return saved_steps(self._folder)

    def save(
        self,
        step: int,
        state: TrainState,
        *,
        data_state: Mapping[str, Any] | None,
        meta: Mapping[str, Any],
        validation_loss: float | None = None,
    ) -> None:
        """Copies the arrays to the host, returns, and writes in the background.

        Args:
            step: number of training steps that were done.
            state: the state after them.
            data_state: what the data iterator's `get_state` gave after the last batch of them: names to JSON. Every
                process gives the parts that are its own.
            meta: the run's description under "run", so that the checkpoint can be opened alone, and anything else.
            validation_loss: decides which checkpoint is the best; None if it was not measured at this step.

        Raises:
            UserError: this save, or the one before it, which still ran in the background, found no room on the disk.
        """
        try:
            self._manager.wait_until_finished()
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(nested_dict(flatten_with_names(state.params))),
                    optimizer=ocp.args.StandardSave(nested_dict(flatten_with_names(_optimizer_item(state)))),
                    data=SaveParts(dict(data_state or {})),
                    meta=ocp.args.JsonSave(dict(meta)),
                ),
                metrics={"validation_loss": validation_loss},
                force=True,
            )
        except Exception as error:
            raise self._explained(error) from error

    def check(self) -> None:
        """Raises what went wrong with the last save, without waiting for one that is still being written."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is committed. Raises what went wrong with it."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Waits for the last save and frees the threads. Raises what went wrong with it."""
        try:
            self._manager.close()
        except Exception as error:
            raise self._explained(error) from error

    def restore_newest(self, like: TrainState, parts: Sequence[str] | None = None) -> Restored | None:
        """Restores the newest checkpoint that is whole, None if there is none at all.

        `like` holds arrays or `jax.ShapeDtypeStruct`s with shardings (`zoo.training.state.abstract_state`): what to
        restore, and onto which devices, which need not be those that it was saved from. `parts` are the parts of the
        data iterator's position that this process needs, whichever process saved them; None is all of them.

        Damaged checkpoints are named in one warning each and moved to RUN/damaged, so that the resumed run can save
        their steps anew.

        Raises:
            UserError: every checkpoint is damaged, or they are of another model.
        """
        step = found = _of_first_process(max(self.steps, default=-1))
        while step >= 0:
            folder = self._folder / str(step)
            wait_until_seen(folder)
            try:
                _check_folder(folder)
                restored = _restore(folder, like, parts)
            except DamagedCheckpoint as damage:
                logger.warning("checkpoint %s is damaged (%s): it is moved to %s", folder, damage, self._damaged)
                self._set_aside(folder)
                step = _of_first_process(max((saved for saved in self.steps if saved < step), default=-1))
            else:
                self._manager.reload()
                return restored
        if found >= 0:
            raise UserError(
                f"every checkpoint of {self._folder.parent} is damaged (moved to {self._damaged}): "
                "run the same command again to start this run from its beginning"
            )
        return None

    def _list_files(self) -> None:
        """Writes the manifest; Orbax calls this when all items are written and the folder is about to be renamed."""
        if jax.process_index() == 0:
            unpublished = sorted(self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"))
            write_manifest(
                unpublished[-1] if unpublished else self._folder / str(self._saving), checksums=self._checksums
            )

    def _set_aside(self, folder: Path) -> None:
        if jax.process_index() == 0:
            self._damaged.mkdir(exist_ok=True)
            target, count = self._damaged / folder.name, 1
            while target.exists():
                target, count = self._damaged / f"{folder.name}.{count}", count + 1
            folder.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("zoo: damaged checkpoint set aside")

    def _explained(self, error: Exception) -> Exception:
        if not disk_is_full(error):
            return error
        kept = ", ".join(map(str, self.steps)) or "none"
        return UserError(
            f"the disk is full: checkpoint {self._folder / str(self._saving)} could not be saved; saved steps that are "
            f"intact: {kept}; free some space and run the same command again to resume"
        )


def restore_params(path: str | Path, params: Any, step: int | None = None) -> Any:
    """Restores the parameters of a run directory, its `checkpoints` folder or one STEP folder.

    Args:
        path: where the checkpoint is.
        params: tree of arrays or `jax.ShapeDtypeStruct`s (nnx.State or nested dictionary, with or without shardings)
            of the saved shapes; values are cast to its dtypes.
        step: which step; by default the newest one that is whole. Damaged newer ones are named in a warning each.

    Raises:
        UserError: there is no (such) checkpoint, none is whole, or it is of another model.
    """
    path = Path(path).absolute()
    if is_step_dir(path):
        folder, steps = path.parent, (int(path.name),)
    else:
        folder = checkpoints_dir(path) if checkpoints_dir(path).is_dir() else path
        steps = saved_steps(folder)
    if not steps:
        raise UserError(f"{path} holds no saved step")
    if step is not None and step not in steps:
        raise UserError(f"{folder} has no step {step} (saved steps: {', '.join(map(str, steps))})")
    for candidate in reversed(steps) if step is None else (step,):
        try:
            _check_folder(folder / str(candidate))
            return _restore_item(folder / str(candidate) / "params", params)
        except DamagedCheckpoint as damage:
            if len(steps) == 1 or step is not None:
                raise UserError(f"checkpoint {folder / str(candidate)} is damaged: {damage}") from None
            logger.warning("checkpoint %s is damaged (%s): trying the one before it", folder / str(candidate), damage)
    raise UserError(f"every checkpoint in {folder} is damaged")


class PartsHandler(ocp.CheckpointHandler):
    """Writes every part as NAME.json, each by the process that has it."""

    def save(self, directory: epath.Path, args: "SaveParts") -> None:
        """Writes the parts of this process."""
        for name, part in args.parts.items():
            (directory / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")

    def restore(self, directory: epath.Path, args: Any = None) -> dict[str, Any]:
        """All parts, of all processes."""
        return _read_parts(Path(directory), None)


@ocp.args.register_with_handler(PartsHandler, for_save=True, for_restore=True)
@dataclass
class SaveParts(ocp.args.CheckpointArgs):
    """What to save with `PartsHandler`."""

    parts: dict[str, Any]
    """Names to JSON."""


def _of_first_process(number: int) -> int:
    """What the first process sees: on a shared file system another one may see it later."""
    return number if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _validation_loss(metrics: Mapping[str, Any]) -> float:
    loss = metrics.get("validation_loss")
    return float("inf") if loss is None else loss


def _check_folder(folder: Path) -> None:
    """Raises `DamagedCheckpoint`, on all processes alike, if the first process finds a file missing or changed."""
    damage = find_damage(folder) if jax.process_index() == 0 else None
    if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(damage is not None)):
        damage = damage or "found by the first process"
    if damage:
        raise DamagedCheckpoint(damage)


def _optimizer_item(state: TrainState) -> dict[str, Any]:
    """All of the state but the parameters; the random key as its data."""
    return {
        "opt_state": state.opt_state,
        "step": state.step,
        "tokens": state.tokens,
        "rng": jax.random.key_data(state.rng),
    }


def _restore(folder: Path, like: TrainState, parts: Sequence[str] | None) -> Restored:
    """Restores one checkpoint. Raises `DamagedCheckpoint`, on all processes alike, if one of them cannot read it."""
    damage: DamagedCheckpoint | None = None
    try:
        restored = Restored(
            step=int(folder.name),
            state=_restore_state(folder, like),
            data_state=_read_parts(folder / "data", parts),
            meta=_read_json(folder / "meta" / "metadata"),
        )
    except DamagedCheckpoint as error:
        damage = error
    if jax.process_count() > 1 and np.any(multihost_utils.process_allgather(np.int32(damage is not None))):
        damage = damage or DamagedCheckpoint("found by another process")
    if damage is not None:
        raise damage
    return restored


def _restore_state(folder: Path, like: TrainState) -> TrainState:
    implementations = []

    def data_of(key: Any) -> Any:
        implementations.append(jax.random.key_impl(key))  # known of a traced key, though not of a ShapeDtypeStruct
        return jax.random.key_data(key)

    data = jax.eval_shape(data_of, like.rng)
    data = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=getattr(like.rng, "sharding", None))
    wanted = {"opt_state": like.opt_state, "step": like.step, "tokens": like.tokens, "rng": data}
    params = _restore_item(folder / "params", like.params)
    item = _restore_item(folder / "optimizer", wanted, optional=SPIKES)
    rng = jax.random.wrap_key_data(item.pop("rng"), impl=implementations[0])
    return TrainState(params=params, rng=rng, **item)


def _restore_item(folder: Path, like: Any, *, optional: str | None = None) -> Any:
    """Restores one item of arrays into a tree like `like`. Raises `UserError` for other names or shapes than saved.

    The part called `optional`, of scalars, may be missing on either side: what was not saved begins at zero, what is
    not wanted is left out.
    """
    abstract = jax.tree.map(_abstract, like)
    named = flatten_with_names(abstract)
    try:
        saved = flatten_with_names(ocp.StandardCheckpointHandler().metadata(epath.Path(folder)).tree)
    except Exception as error:
        raise DamagedCheckpoint(f"{folder.name}: {_first_line(error)}") from error
    new = {name: leaf for name, leaf in named.items() if name not in saved and optional in name.split("/")}
    scalar = next((leaf.sharding for leaf in named.values() if not leaf.shape), None)
    left_out = {
        name: jax.ShapeDtypeStruct(saved[name].shape, saved[name].dtype, sharding=scalar)
        for name in saved
        if name not in named and optional in name.split("/")
    }
    expected = {name: leaf for name, leaf in named.items() if name not in new} | left_out
    _check_same_tree(folder, saved, expected)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            restored = flatten_with_names(checkpointer.restore(folder, nested_dict(expected)))
    except Exception as error:
        raise DamagedCheckpoint(f"{folder.name}: {_first_line(error)}") from error
    for name, leaf in new.items():
        restored[name] = jax.jit(functools.partial(jnp.zeros, leaf.shape, leaf.dtype), out_shardings=leaf.sharding)()
    return jax.tree.unflatten(jax.tree.structure(abstract), [restored[name] for name in named])


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def _check_same_tree(folder: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in wanted:
        if name not in saved:
            raise UserError(f"{folder} is of another model: it has no {name}")
        if tuple(saved[name].shape) != tuple(wanted[name].shape):
            shapes = f"{tuple(saved[name].shape)}, the model needs {tuple(wanted[name].shape)}"
            raise UserError(f"{folder} is of another model: {name} has shape {shapes}")
    for name in saved:
        if name not in wanted:
            raise UserError(f"{folder} is of another model: the model has no {name}")


def _read_parts(folder: Path, names: Sequence[str] | None) -> dict[str, Any]:
    """The parts of a position. Before there were streams every process was one, and the files had its name."""
    if names is None:
        names = sorted(path.stem.replace("process_", "stream_") for path in folder.glob("*.json"))
    older = {name: folder / f"{name.replace('stream_', 'process_')}.json" for name in names}
    return {name: _read_json(older[name] if older[name].is_file() else folder / f"{name}.json") for name in names}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{path.parent.name}/{path.name} cannot be read ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def disk_is_full(error: BaseException | None) -> bool:
    """Whether running out of disk (or quota, or the allowed file size) is behind an error, however deep."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = str(error)
        if any(sign in text for sign in ("No space left on device", "Disk quota exceeded", "File too large")):
            return True
        error = error.__cause__ or error.__context__
    return False
