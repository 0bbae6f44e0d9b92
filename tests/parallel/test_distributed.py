"""A single process is left alone; errors are told from the deaths that cause them, and reported as by a command."""

import jax
import pytest

from zoo.errors import TryAgain, UserError
from zoo.parallel import DistributedConfig, start_distributed
from zoo.parallel.distributed import _broken_connection, _outcome


def test_a_single_process_starts_nothing(capfd):
    with start_distributed(DistributedConfig(), same={}):
        assert not jax.distributed.is_initialized()
    with start_distributed(DistributedConfig("127.0.0.1:1", 1, 0), same={}):
        assert not jax.distributed.is_initialized()
    assert capfd.readouterr().err == ""


def test_the_errors_of_a_single_process_pass_through():
    with pytest.raises(ZeroDivisionError), start_distributed(DistributedConfig(), same={}):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("error", "code", "why"),
    [
        (UserError("no such\n file"), 2, "no such file"),
        (TryAgain("not yet"), 75, "not yet"),
        (SystemExit(1), 1, "see its own output"),
        (KeyboardInterrupt(), 130, "KeyboardInterrupt, see its own output"),
        (ValueError("a bug"), 1, "ValueError, see its own output"),
    ],
)
def test_an_error_is_reported_as_a_command_does_and_told_to_the_others(error, code, why, capsys):
    assert _outcome(error) == (code, why)
    shown = capsys.readouterr().err
    if isinstance(error, UserError | TryAgain):
        assert shown == f"error: {why}\n"
    elif not isinstance(error, SystemExit):
        assert shown.startswith("Traceback") and type(error).__name__ in shown


def test_a_lost_connection_is_recognised_behind_other_errors():
    lost = jax.errors.JaxRuntimeError("UNAVAILABLE: [gloo] Connection closed by peer")
    try:
        raise RuntimeError("the save failed") from lost
    except RuntimeError as error:
        assert _broken_connection(error)
    assert not _broken_connection(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory"))
    assert not _broken_connection(OSError("Connection reset by peer"))


@pytest.mark.parametrize("wrong", [{"start_seconds": 0}, {"heartbeat_seconds": -1}])
def test_times_that_make_no_sense_are_named(wrong):
    with pytest.raises(UserError, match=f"distributed.{next(iter(wrong))} must lie in 1"):
        DistributedConfig(**wrong)
