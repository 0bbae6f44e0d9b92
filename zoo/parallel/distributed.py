"""Starting a run of several processes, and ending it when one of them dies.

JAX aborts a process that is told that another one is gone (SIGABRT, a stack trace, exit code 134), and until then
leaves it waiting in a collective operation. Here the connections of `zoo.parallel.peers` notice it within a second;
every process left then says which one is gone, and exits with code 75: run the same command again.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import jax

from zoo.errors import TRY_AGAIN, TryAgain, UserError, run_command
from zoo.parallel.cluster import Cluster, find_cluster
from zoo.parallel.peers import Gone, Peers, meet

logger = logging.getLogger(__name__)

NOTICE_SECONDS = 1.0
"""How long JAX may still write its own messages before the last line."""
GRACE_SECONDS = 3.0
"""How long a process may go on that is told of another one's error: it may be about to report the same one."""
ABORT_SECONDS = 5.0
"""How long it may take to learn who is gone once JAX has aborted this process."""
END_SECONDS = 600.0
"""How long the first process waits at the end of a run for the last one."""


@dataclass(frozen=True)
class DistributedConfig:
    """Several processes; on TPU slices and under SLURM, Open MPI, SkyPilot and Kubernetes all of it is found out."""

    coordinator_address: str | None = None
    """HOST:PORT where process 0 runs and may listen; JAX's own service takes the next free port."""
    num_processes: int | None = None
    """How many there are."""
    process_id: int | None = None
    """Which one this is, from 0."""
    start_seconds: int = 300
    """How long to wait for the other processes at the start."""
    heartbeat_seconds: int = 40
    """After how long without a sign of life JAX gives up a process whose connections are still open (a frozen one)."""

    def __post_init__(self) -> None:
        for name in ("start_seconds", "heartbeat_seconds"):
            if not 1 <= getattr(self, name) <= 86_400:
                raise UserError(f"distributed.{name} must lie in 1 .. 86,400, got {getattr(self, name)}")


@contextlib.contextmanager
def start_distributed(
    config: DistributedConfig, *, same: Mapping[str, Any], how_to_go_on: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Connects the processes of a run for as long as the `with` block lasts; a single process is left alone.

    Call it before anything touches a device. What was found is said in one line on standard error. An exception that
    leaves the block ends the other processes, too, and this one at once: JAX's own shutdown would wait for the others.

    Args:
        config: where the processes meet; by default it is found out (`zoo.parallel.cluster`).
        same: names to JSON values that must be the same on all processes, such as every field of the recipe.
        how_to_go_on: half a sentence for the line that says that a process died: which step is saved.

    Raises:
        UserError: the options or the environment contradict themselves or each other, or a value is not the same.
        TryAgain: the processes did not find each other in time.
    """
    cluster = find_cluster(config.coordinator_address, config.num_processes, config.process_id)
    if cluster is None:
        yield
        return
    peers, jax_address = meet(cluster, {"jax": jax.__version__, **same}, config.start_seconds)
    end = _End(cluster, how_to_go_on)
    peers.watch(end.after_a_death)
    with end.instead_of_aborting():
        try:
            jax.distributed.initialize(
                jax_address,
                cluster.num_processes,
                cluster.process_id,
                local_device_ids=None if cluster.local_device is None else [cluster.local_device],
                cluster_detection_method="deactivate",
                initialization_timeout=config.start_seconds,
                heartbeat_timeout_seconds=config.heartbeat_seconds,
                shutdown_timeout_seconds=60,
            )
            if cluster.process_id == 0:
                found = f"{cluster.num_processes} processes (found by {cluster.source}), meeting at {cluster.address}"
                print(f"{found}; process 0 is on {socket.gethostname()}", file=sys.stderr, flush=True)
            yield
        except SystemExit as stop:
            if stop.code not in (None, 0, TRY_AGAIN):
                end.after_an_error(stop, peers)
            _end_together(peers)
            raise
        except BaseException as error:
            end.after_an_error(error, peers)
        else:
            _end_together(peers)


def _end_together(peers: Peers) -> None:
    """Waits for the others, then frees what JAX holds; without the first JAX would abort the slow ones."""
    if peers.finish(END_SECONDS):
        jax.distributed.shutdown()
    peers.close()


class _End:
    """Ends this process, once, with a last line."""

    def __init__(self, cluster: Cluster, how_to_go_on: Callable[[], str]):
        self._cluster, self._how_to_go_on = cluster, how_to_go_on
        self._ending = threading.Lock()
        self._death = threading.Event()

    def after_a_death(self, gone: Gone) -> None:
        """Another process is gone. Called by the thread that watches."""
        who = f"process {gone.process} of {self._cluster.num_processes} (host {gone.host})"
        if gone.code is None:
            self._death.set()
            time.sleep(NOTICE_SECONDS)
            self._exit(TRY_AGAIN, f"{who} stopped responding: {gone.why}; {self._next()}")
        time.sleep(GRACE_SECONDS)
        self._exit(gone.code, f"{who} ended with exit code {gone.code}: {gone.why}")

    def after_an_error(self, error: BaseException, peers: Peers) -> NoReturn:
        """An exception ends this process, unless it only follows from a death, which is reported instead."""
        expected = isinstance(error, UserError | TryAgain | SystemExit | KeyboardInterrupt)
        if not expected and self._death.wait(GRACE_SECONDS):
            time.sleep(60)  # the thread that watches ends the process before that
        if _broken_connection(error):
            why = " ".join(str(error).split())[:300]
            self._exit(TRY_AGAIN, f"the connection to another process broke ({why}); {self._next()}", peers)
        code, why = _outcome(error)
        self._exit(code, None, peers, why)

    @contextlib.contextmanager
    def instead_of_aborting(self) -> Iterator[None]:
        """Inside, SIGABRT ends the process as a death does. (JAX has no public hook for what it does on one, and a
        signal handler written with `signal` would only run after the abort.)"""

        def on_abort(_signum: int) -> None:
            time.sleep(ABORT_SECONDS)  # the thread that watches is faster if it knows who is gone
            cause = "the JAX runtime stopped this process (see above), most likely because another one is gone"
            self._exit(TRY_AGAIN, f"{cause}; {self._next()}")

        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(on_abort)
        libc = ctypes.CDLL(None)
        libc.signal.restype = ctypes.c_void_p
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        before = libc.signal(signal.SIGABRT, ctypes.cast(handler, ctypes.c_void_p))
        try:
            yield
        finally:
            libc.signal(signal.SIGABRT, before)

    def _next(self) -> str:
        try:
            return self._how_to_go_on() or "run the same command again"
        except Exception:
            return "run the same command again"

    def _exit(self, code: int, line: str | None, peers: Peers | None = None, why: str = "") -> NoReturn:
        self._ending.acquire()  # never released: whoever comes second waits for the end
        if peers is not None:
            peers.leave(code, why or line or "")
        for child in multiprocessing.active_children():
            child.kill()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if line is not None:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"error: {line}\n".encode())
        os._exit(code)


def _outcome(error: BaseException) -> tuple[int, str]:
    """Reports an exception as a command does; the exit code, and one line."""

    def again() -> None:
        raise error

    try:
        run_command(again)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        why = "" if isinstance(error, SystemExit) else " ".join(str(error).split())
        return code, why or "see its own output"
    except BaseException:
        traceback.print_exc()
        return 130 if isinstance(error, KeyboardInterrupt) else 1, f"{type(error).__name__}, see its own output"
    raise AssertionError("not reached")


def _broken_connection(error: BaseException) -> bool:
    """Whether an error of the runtime, however deep, says that it lost another process."""
    signs = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "Connection closed by peer", "Connection reset", "Broken pipe", "Gloo")
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, jax.errors.JaxRuntimeError) and any(sign in str(found) for sign in signs):
            return True
        found = found.__cause__ or found.__context__
    return False
