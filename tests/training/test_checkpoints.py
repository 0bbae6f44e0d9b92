"""Checkpoints come back bit for bit, on any devices; damage is named and passed over; a full disk loses nothing."""

import errno
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import UserError
from zoo.training.checkpoints import Checkpoints, restore_params
from zoo.training.manifest import find_damage
from zoo.training.run_directory import (
    RunInfo,
    RunLock,
    is_checkpoint_dir,
    is_run_dir,
    read_run,
    saved_steps,
    write_run,
)
from zoo.training.state import TrainState


def make_params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "embedder": {"embedding": jax.random.normal(keys[0], (64, 16))},
        "layers": {"0": {"scale": jax.random.normal(keys[1], (16,)).astype(jnp.bfloat16)}},
    }


def make_state(seed=0, params=None) -> TrainState:
    return TrainState(
        step=jnp.int32(seed),
        tokens=jnp.array([1, seed], jnp.uint32),
        params=make_params(seed) if params is None else params,
        opt_state=({"mu": make_params(seed + 100)},),
        rng=jax.random.key(seed),
    )


def save(run, steps, *, keep_last=3, losses=None):
    with Checkpoints(run, keep_last=keep_last) as checkpoints:
        for step in steps:
            checkpoints.save(
                step,
                make_state(step),
                data_state={"next_index": 10 * step},
                meta={"step": step, "run": RUN},
                validation_loss=None if losses is None else losses[step],
            )


RUN = {"format": 1, "recipe": "test", "model": {"architecture": "test"}, "execution": {}}


def restore(run):
    with Checkpoints(run) as checkpoints:
        return checkpoints.restore_newest(make_state())


def assert_same(tree, other):
    def same(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)

    jax.tree.map(same, tree, other)


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_saved_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, [7])
    restored = restore(tmp_path)
    assert restored.step == 7
    assert_same(restored.state, make_state(7))
    assert restored.data_state == {"next_index": 70}
    assert restored.meta["step"] == 7


def test_only_the_parts_of_the_position_that_are_asked_for_are_read(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), data_state={"stream_0-of-2": [1], "stream_1-of-2": {"next": 2}}, meta={})
        checkpoints.wait()
        assert checkpoints.restore_newest(make_state()).data_state.keys() == {"stream_0-of-2", "stream_1-of-2"}
        restored = checkpoints.restore_newest(make_state(), ["stream_1-of-2"])
    assert restored.data_state == {"stream_1-of-2": {"next": 2}}


def test_positions_that_were_saved_before_there_were_streams_are_found(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), data_state={"stream_0-of-1": {"next": 2}}, meta={})
    data = tmp_path / "checkpoints" / "1" / "data"
    (data / "stream_0-of-1.json").rename(data / "process_0-of-1.json")
    (tmp_path / "checkpoints" / "1" / "manifest.json").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(make_state()).data_state == {"stream_0-of-1": {"next": 2}}
        restored = checkpoints.restore_newest(make_state(), ["stream_0-of-1"])
    assert restored.data_state == {"stream_0-of-1": {"next": 2}}


def test_a_part_that_is_missing_is_damage(tmp_path):
    save(tmp_path, [1, 2])
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / "manifest.json").unlink()
    (tmp_path / "checkpoints" / "2" / "data" / "next_index.json").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_newest(make_state(), ["next_index"])
    assert (restored.step, restored.data_state) == (1, {"next_index": 10})


def test_shapes_are_enough_to_restore_into(tmp_path):
    save(tmp_path, [7])
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore_newest(jax.eval_shape(make_state, 0))
    assert_same(restored.state, make_state(7))


def test_a_run_without_checkpoints_restores_nothing(tmp_path):
    assert restore(tmp_path) is None


def test_a_checkpoint_is_restored_onto_another_number_of_devices(tmp_path):
    def on(devices, spec):
        mesh = jax.make_mesh((devices,), ("fsdp",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        return NamedSharding(mesh, spec)

    value = jax.device_put(jnp.arange(64.0).reshape(8, 8), on(8, P("fsdp")))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(params={"w": value}), data_state=None, meta={})
        like = {"w": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=on(2, P(None, "fsdp")))}
        checkpoints.wait()
        restored = checkpoints.restore_newest(make_state(params=like)).state
    assert restored.params["w"].sharding == like["w"].sharding
    assert_same(restored.params["w"], value)


def test_a_save_in_the_background_is_not_touched_by_the_donated_steps_that_follow(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    params = {f"w{i}": jnp.full((512, 512), float(i)) for i in range(8)}
    expected = jax.tree.map(np.array, params)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(params=params), data_state=None, meta={})
        for _ in range(5):
            params = step(params)
        jax.block_until_ready(params)
    assert_same(restore_params(tmp_path, expected), expected)


def test_the_last_ones_and_the_best_one_are_kept(tmp_path):
    save(tmp_path, range(1, 7), keep_last=2, losses={1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 4.0, 6: 5.0})
    assert saved_steps(tmp_path / "checkpoints") == (2, 5, 6)


def test_the_best_one_is_still_known_after_a_restart(tmp_path):
    save(tmp_path, [1, 2], keep_last=1, losses={1: 1.0, 2: 2.0})
    save(tmp_path, [3, 4], keep_last=1, losses={3: 3.0, 4: 2.0})
    assert saved_steps(tmp_path / "checkpoints") == (1, 4)


def test_a_folder_of_a_save_that_was_cut_short_is_ignored_and_cleaned_up(tmp_path):
    save(tmp_path, [1])
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp")
    assert restore(tmp_path).step == 1
    save(tmp_path, [2])
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "2"]


def damage_by_truncating(path):
    path.write_bytes(path.read_bytes()[:-1])


def damage_by_deleting(path):
    path.unlink()


def damage_by_flipping_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [damage_by_truncating, damage_by_deleting, damage_by_flipping_a_bit])
def test_damage_to_any_file_is_found(tmp_path, damage):
    save(tmp_path, [1])
    whole = tmp_path / "checkpoints" / "1"
    assert find_damage(whole) is None
    items = [path for path in files_of(whole) if path.parent != whole and path.stat().st_size]
    assert {path.relative_to(whole).parts[0] for path in items} == {"params", "optimizer", "data", "meta", "metrics"}
    for number, path in enumerate(items):
        copy = tmp_path / f"copy{number}"
        shutil.copytree(whole, copy)
        damage(copy / path.relative_to(whole))
        assert str(path.relative_to(whole)) in find_damage(copy)


@pytest.mark.parametrize("damage", [damage_by_truncating, damage_by_deleting, damage_by_flipping_a_bit])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(tmp_path, damage, caplog):
    save(tmp_path, [1, 2, 3])
    newest = tmp_path / "checkpoints" / "3"
    damage(max((newest / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0))
    with caplog.at_level(logging.WARNING, logger="zoo"):
        restored = restore(tmp_path)
    assert restored.step == 2
    assert_same(restored.state, make_state(2))
    [record] = [record for record in caplog.records if record.name.startswith("zoo")]
    assert str(newest) in record.getMessage() and "\n" not in record.getMessage()
    assert (tmp_path / "damaged" / "3").is_dir()
    save(tmp_path, [3])
    assert restore(tmp_path).step == 3


def test_an_unreadable_manifest_counts_as_damage(tmp_path):
    save(tmp_path, [1, 2])
    (tmp_path / "checkpoints" / "2" / "manifest.json").write_text('{"files": {"params/')
    assert restore(tmp_path).step == 1


@pytest.mark.parametrize("item", ["params", "optimizer"])
def test_a_checkpoint_without_manifest_is_used_if_it_can_be_read_and_passed_over_if_not(tmp_path, item):
    save(tmp_path, [1, 2, 3])
    (tmp_path / "checkpoints" / "2" / "manifest.json").unlink()
    (tmp_path / "checkpoints" / "3" / "manifest.json").unlink()
    (tmp_path / "checkpoints" / "3" / item / "manifest.ocdbt").unlink()
    assert restore(tmp_path).step == 2


def test_if_every_checkpoint_is_damaged_nothing_is_deleted_and_the_user_is_told(tmp_path):
    save(tmp_path, [1, 2])
    for step in (1, 2):
        shutil.rmtree(tmp_path / "checkpoints" / str(step) / "meta")
    with pytest.raises(UserError, match="every checkpoint of .* is damaged"):
        restore(tmp_path)
    assert (tmp_path / "damaged" / "1" / "params").is_dir() and (tmp_path / "damaged" / "2" / "params").is_dir()


def test_parameters_alone_can_be_restored_from_a_run_its_checkpoints_or_one_step(tmp_path):
    save(tmp_path, [1, 2])
    for path, step in [("", 2), ("checkpoints", 2), ("checkpoints/1", 1), ("checkpoints/2", 2)]:
        assert_same(restore_params(tmp_path / path, make_params()), make_params(step))
    assert_same(restore_params(tmp_path, make_params(), step=1), make_params(1))
    with pytest.raises(UserError, match="has no step 5"):
        restore_params(tmp_path, make_params(), step=5)
    with pytest.raises(UserError, match="holds no saved step"):
        restore_params(tmp_path / "elsewhere", make_params())


def test_reading_parameters_passes_over_a_damaged_step_and_moves_nothing(tmp_path, caplog):
    save(tmp_path, [1, 2])
    damage_by_flipping_a_bit(tmp_path / "checkpoints" / "2" / "params" / "_METADATA")
    with caplog.at_level(logging.WARNING, logger="zoo"):
        assert_same(restore_params(tmp_path, make_params()), make_params(1))
    assert "checkpoints/2 is damaged" in caplog.text
    assert saved_steps(tmp_path / "checkpoints") == (1, 2)
    with pytest.raises(UserError, match="checkpoints/2 is damaged"):
        restore_params(tmp_path / "checkpoints" / "2", make_params())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["embedder"].update(embedding=jnp.zeros((64, 8))),
            r"embedder/embedding has shape \(64, 16\), .*\(64, 8\)",
        ),
        (lambda p: p.update(final_norm=jnp.zeros(3)), "it has no final_norm"),
        (lambda p: p.pop("layers"), "the model has no layers/0/scale"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_with_the_first_difference(tmp_path, change, message):
    save(tmp_path, [1])
    params = make_params()
    change(params)
    with pytest.raises(UserError, match=message):
        restore_params(tmp_path, params)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match=message):
        checkpoints.restore_newest(make_state(params=params))
    assert saved_steps(tmp_path / "checkpoints") == (1,)


def test_a_full_disk_during_the_save_is_one_clear_line_and_leaves_the_saved_steps_intact(tmp_path, monkeypatch):
    save(tmp_path, [1, 2], keep_last=2)

    def no_room(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("zoo.training.checkpoints.write_manifest", no_room)
        checkpoints = Checkpoints(tmp_path, keep_last=2)
        checkpoints.save(3, make_state(3), data_state={}, meta={})
        with pytest.raises(UserError, match=r"the disk is full: .*checkpoints/3 could not be saved.* intact: 1, 2"):
            checkpoints.wait()
    assert saved_steps(tmp_path / "checkpoints") == (1, 2)
    assert restore(tmp_path).step == 2


def test_a_run_description_is_read_from_a_run_its_checkpoints_or_one_step(tmp_path):
    run = tmp_path / "run"
    info = RunInfo(run, "nano", {"architecture": "gemma2"}, {"scan_layers": False}, "ab12", None, config={"steps": 3})
    write_run(info)
    (run / "tokenizer").mkdir()
    save(run, [1, 2])
    for path, steps in [(run, (1, 2)), (run / "checkpoints", (1, 2)), (run / "checkpoints" / "1", (1,))]:
        found = read_run(path)
        assert (found.path, found.recipe, found.steps) == (run, "nano", steps)
        assert (found.model_dict, found.execution_dict) == ({"architecture": "gemma2"}, {"scan_layers": False})
        assert (found.tokenizer_dir, found.tokenizer_fingerprint) == (run / "tokenizer", "ab12")
        assert found.config == {"steps": 3}


def test_a_step_that_was_copied_away_from_its_run_still_knows_its_model(tmp_path):
    save(tmp_path / "run", [4])
    shutil.copytree(tmp_path / "run" / "checkpoints" / "4", tmp_path / "elsewhere" / "4")
    found = read_run(tmp_path / "elsewhere" / "4")
    assert (found.model_dict, found.tokenizer_dir, found.steps) == ({"architecture": "test"}, None, (4,))


def test_run_and_checkpoint_folders_are_told_apart(tmp_path):
    write_run(RunInfo(tmp_path, "nano", {}, {}, None, None))
    save(tmp_path, [1])
    checkpoints = tmp_path / "checkpoints"
    assert is_run_dir(tmp_path) and not is_checkpoint_dir(tmp_path)
    assert is_checkpoint_dir(checkpoints) and is_checkpoint_dir(checkpoints / "1") and not is_run_dir(checkpoints)
    assert not is_checkpoint_dir(checkpoints / "1" / "params") and not is_run_dir(tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ('{"format": 2}', "has format 2"),
        ('{"format": 1}', "does not describe a run"),
        ("[]", "cannot be read"),
    ],
)
def test_a_broken_run_description_is_named(tmp_path, content, message):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path)


def test_a_path_that_is_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="neither a run directory"):
        read_run(tmp_path)
    with pytest.raises(UserError, match="no such file or folder"):
        read_run(tmp_path / "missing")


def test_two_processes_cannot_train_into_one_folder(tmp_path):
    with RunLock(tmp_path), pytest.raises(UserError, match="another process is training"):
        RunLock(tmp_path)
    with RunLock(tmp_path):
        pass


def test_the_manifest_without_checksums_still_finds_missing_and_shortened_files(tmp_path):
    with Checkpoints(tmp_path, checksums=False) as checkpoints:
        checkpoints.save(1, make_state(), data_state={}, meta={})
    step = tmp_path / "checkpoints" / "1"
    listed = json.loads((step / "manifest.json").read_text())["files"]
    assert all(len(entry) == 1 for entry in listed.values())
    damage_by_truncating(step / "optimizer" / "_METADATA")
    assert "optimizer/_METADATA has" in find_damage(step)
