"""The loop: what is written down, saved and resumed is the same whether it was stopped or not."""

import errno
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from zoo.errors import UserError
from zoo.training.checkpoints import Checkpoints
from zoo.training.loop import LoopConfig, run_loop
from zoo.training.run_directory import saved_steps
from zoo.training.state import TrainState
from zoo.training.stopping import StopRequest

MESH = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
SHARDING = NamedSharding(MESH, P("data"))
REPLICATED = NamedSharding(MESH, P())


class Numbers:
    """Batch i holds the numbers that seed i draws; `at` maps a batch to what happens when it is read."""

    def __init__(self, at=None):
        self.position, self.at = 0, at or {}

    def __next__(self):
        self.position += 1
        rows = np.random.default_rng(self.position).normal(size=(4, 3)).astype(np.float32)
        return self.at.get(self.position, lambda rows: rows)(rows)

    def get_state(self):
        return {"position": self.position}


def new_state():
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros(2, jnp.uint32),
        params={"w": jnp.linspace(-1, 1, 3)},
        opt_state={},
        rng=jax.random.key(0),
    )
    return jax.device_put(state, REPLICATED)


@jax.jit
def train_step(state, batch):
    loss, gradient = jax.value_and_grad(lambda w: jnp.mean((batch @ w - 1) ** 2))(state.params["w"])
    finite = jnp.isfinite(loss)
    new = TrainState(
        step=state.step + finite,
        tokens=state.tokens + jnp.array([0, batch.size], jnp.uint32),
        params={"w": jnp.where(finite, state.params["w"] - 0.1 * gradient, state.params["w"])},
        opt_state={},
        rng=state.rng,
    )
    return new, {
        "loss": loss,
        "grad_norm": jnp.linalg.norm(gradient),
        "tokens": jnp.int32(batch.size),
        "finite": finite,
    }


def train(run, *, batches=None, records=None, evaluate=lambda _params: {}, record=None, **config):
    """Trains from the newest checkpoint of `run`; returns the outcome and the records of all invocations so far."""
    config = LoopConfig(**{"steps": 12, "checkpoint_every": 4, "evaluate_every": 100} | config)
    records, batches = [] if records is None else records, batches or Numbers()
    with Checkpoints(run, keep_last=config.keep_last) as checkpoints:
        restored = checkpoints.restore_newest(new_state())
        if restored is not None:
            batches.position = restored.data_state["position"]
        outcome = run_loop(
            new_state() if restored is None else restored.state,
            train_step,
            batches,
            config=config,
            run=run,
            sharding=SHARDING,
            checkpoints=checkpoints,
            evaluate=evaluate,
            record=record or records.append,
            meta={"run": {}},
        )
    return outcome, records


def losses(records):
    return [(record["step"], record["loss"], record["tokens"]) for record in records]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("uninterrupted"))


def test_each_step_is_written_down_once_in_order_with_the_tokens_so_far(uninterrupted):
    outcome, records = uninterrupted
    assert (outcome.step, outcome.stopped) == (12, False)
    assert [(record["step"], record["tokens"], record["step_tokens"]) for record in records] == [
        (step, 12 * step, 12) for step in range(1, 13)
    ]


def test_the_loss_written_down_for_a_step_is_that_steps_loss(uninterrupted):
    state = new_state()
    for record in uninterrupted[1]:
        state, metrics = train_step(state, np.random.default_rng(record["step"]).normal(size=(4, 3)).astype(np.float32))
        np.testing.assert_allclose(record["loss"], metrics["loss"], rtol=1e-6)


def test_a_run_that_was_stopped_and_resumed_equals_the_uninterrupted_one_bit_for_bit(tmp_path, uninterrupted):
    outcome, records = train(tmp_path, stop_at_step=5)
    assert outcome.stopped and outcome.step == 5
    resumed, more = train(tmp_path)
    assert not resumed.stopped
    assert losses(records + more) == losses(uninterrupted[1])
    np.testing.assert_array_equal(resumed.state.params["w"], uninterrupted[0].state.params["w"])


def send(signum):
    def at(rows):
        os.kill(os.getpid(), signum)
        return rows

    return at


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("batch", [1, 7])
def test_a_signal_lets_the_step_finish_and_saves_it(tmp_path, uninterrupted, signum, batch):
    before = signal.getsignal(signum)
    outcome, records = train(tmp_path, batches=Numbers({batch: send(signum)}))
    assert signal.getsignal(signum) is before
    assert outcome.stopped and outcome.step < batch + 1
    assert outcome.preempted == (signum != signal.SIGINT)
    if outcome.step:
        assert saved_steps(tmp_path / "checkpoints")[-1] == outcome.step
    resumed, more = train(tmp_path)
    assert losses(records + more) == losses(uninterrupted[1])


def test_a_second_signal_is_not_held_back():
    received = []
    before = signal.signal(signal.SIGTERM, lambda signum, _frame: received.append(signum))
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested(0) and not received
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_loss_that_is_not_finite_names_step_and_batch_and_keeps_the_last_good_checkpoint(tmp_path, uninterrupted):
    poisoned = Numbers({7: lambda rows: rows * np.nan})
    records = []
    with pytest.raises(UserError, match=r"step 7: the loss is nan on batch 7 .*step 4, is kept"):
        train(tmp_path, batches=poisoned, records=records)
    assert losses(records) == losses(uninterrupted[1])[:6]
    assert saved_steps(tmp_path / "checkpoints") == (4,)


def test_a_step_that_is_not_finite_is_never_saved(tmp_path):
    with pytest.raises(UserError, match="step 4: .*no checkpoint was saved before it"):
        train(tmp_path, batches=Numbers({4: lambda rows: rows * np.inf}))
    assert saved_steps(tmp_path / "checkpoints") == ()


def test_validation_is_written_beside_its_step_and_decides_which_checkpoint_is_the_best(tmp_path):
    values = iter([3.0, 1.0, 2.0, 4.0])
    outcome, records = train(
        tmp_path,
        evaluate=lambda _params: {"validation_loss": next(values)},
        evaluate_every=3,
        checkpoint_every=3,
        keep_last=1,
    )
    assert {record["step"]: record["validation_loss"] for record in records if "validation_loss" in record} == {
        3: 3.0,
        6: 1.0,
        9: 2.0,
        12: 4.0,
    }
    assert saved_steps(tmp_path / "checkpoints") == (6, 12)
    assert outcome.validation == {"validation_loss": 4.0}


def test_every_step_of_a_checkpoint_was_written_down_before_it_was_saved(tmp_path, monkeypatch):
    records, seen, save = [], [], Checkpoints.save

    def watched(self, step, *args, **kwargs):
        seen.append((step, [record["step"] for record in records]))
        return save(self, step, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", watched)
    train(tmp_path, records=records)
    assert seen == [(step, list(range(1, step + 1))) for step in (4, 8, 12)]


def test_a_full_disk_while_writing_metrics_is_one_clear_line(tmp_path):
    def record(numbers):
        if numbers["step"] == 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"the disk is full: step 6 could not be written .* intact: 4"):
        train(tmp_path, record=record)
    assert train(tmp_path)[0].step == 12


def test_a_run_that_is_finished_trains_no_further(tmp_path):
    train(tmp_path)
    outcome, records = train(tmp_path)
    assert (outcome.step, outcome.stopped, outcome.preempted, records) == (12, False, False, [])


def test_a_run_that_goes_on_says_what_share_of_all_its_time_counted(tmp_path):
    _, records = train(tmp_path, stop_at_step=5)
    _, more = train(tmp_path)
    shares = [record["goodput"] for record in records + more]
    assert shares[0] == 0 and all(0 < share < 1 for share in shares[1:])
    account = json.loads((tmp_path / "goodput.json").read_text())
    assert [(start["first_step"], start["last_step"]) for start in account["starts"]] == [(0, 5), (5, 12)]
    assert account["seconds"]["redone"] == 0 < account["seconds"]["down"] + account["seconds"]["checkpoint"]


def test_a_profile_is_written(tmp_path):
    train(tmp_path, profile_steps=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"steps": -5}, {"log_every": 0}, {"checkpoint_every": -1}, {"evaluate_every": 0}, {"keep_last": 0}]
    + [{"steps": 2**31}, {"profile_steps": -1}, {"stop_at_step": 0}, {"replay_check": -1}],
)
def test_negative_and_absurd_sizes_are_named(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        LoopConfig(**wrong)
