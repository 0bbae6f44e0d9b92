"""The processes of a run keep in touch: they meet before JAX starts, agree on what they run, and notice who is gone.

Process 0 listens; each of the others holds one TCP connection to it, over which go lines of JSON:

    others -> 0   {"process", "of", "host", "values"}    at the meeting
    0 -> others   {"begin": port of JAX's own service, "host"}   or {"refused": why}
    both ways     {"done"}                               this process (from 0: every process) has come to its end
    both ways     {"gone": process, "host", "code", "why"}   that process has ended before its time

The system closes the connections of a process that dies, whatever killed it; TCP's own keep-alive notices a host that
is no longer there. Nothing else is sent while a run trains.
"""

import contextlib
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.errors import TryAgain, UserError
from zoo.parallel.cluster import Cluster, split_address

KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 30_000}
"""A host that does not answer for about 30 s is gone."""
BIND_SECONDS = 20.0
"""How long the port may still belong to the process that ran before."""
MESSAGE_BYTES = 1 << 20


@dataclass(frozen=True)
class Gone:
    """A process that ended before its time."""

    process: int
    host: str
    code: int | None
    """Its exit code, None if it died without a word."""
    why: str


class Peers:
    """The connections of one process. `on_gone` is called once, by a thread of its own, when a process is gone."""

    def __init__(self, process: int, connections: Mapping[int, socket.socket], hosts: Mapping[int, str]):
        """`connections`: for process 0 those to all others, for another process the one to process 0."""
        self._process, self._connections, self._hosts = process, dict(connections), dict(hosts)
        self._done = {process: False} | dict.fromkeys(self._connections, False)
        self._everyone_is_done = threading.Event()
        self._lock = threading.Lock()
        self._on_gone: Callable[[Gone], None] = lambda _gone: None
        self._closed = False

    def watch(self, on_gone: Callable[[Gone], None]) -> None:
        """Starts the thread that notices who is gone."""
        self._on_gone = on_gone
        threading.Thread(target=self._watch, name="peers", daemon=True).start()

    def finish(self, timeout: float) -> bool:
        """Says that this process has come to its end; waits for the others. Whether all of them came to it in time."""
        with self._lock:
            self._done[self._process] = True
            if self._process:
                _send(self._connections[0], {"done": True})
            else:
                self._tell_if_all_are_done()
        return self._everyone_is_done.wait(timeout)

    def leave(self, code: int, why: str) -> None:
        """Tells the others that this process ends before its time, with this exit code."""
        with self._lock:
            self._closed = True
            self._tell(Gone(self._process, self._hosts[self._process], code, why))

    def close(self) -> None:
        """Ends the watch."""
        with self._lock:
            self._closed = True
            for connection in self._connections.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _tell(self, gone: Gone) -> None:
        message = {"gone": gone.process, "host": gone.host, "code": gone.code, "why": gone.why}
        for process, connection in self._connections.items():
            if process != gone.process:
                _send(connection, message)

    def _tell_if_all_are_done(self) -> None:
        if all(self._done.values()):
            for connection in self._connections.values():
                _send(connection, {"done": True})
            self._everyone_is_done.set()

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for process, connection in self._connections.items():
                selector.register(connection, selectors.EVENT_READ, (process, _Lines(connection)))
            while selector.get_map() and not self._closed:
                for key, _events in selector.select():
                    process, lines = key.data
                    messages, ended = lines.read()
                    for message in messages:
                        self._receive(process, message)
                    if ended:
                        selector.unregister(key.fileobj)
                        self._ended(process, ended)

    def _receive(self, process: int, message: Mapping[str, Any]) -> None:
        if "gone" in message:
            self._report(Gone(message["gone"], message["host"], message["code"], message["why"]))
        elif "done" in message:
            with self._lock:
                self._done[process] = True
                if self._process:
                    self._everyone_is_done.set()
                else:
                    self._tell_if_all_are_done()

    def _ended(self, process: int, how: str) -> None:
        if not self._everyone_is_done.is_set():
            self._report(Gone(process, self._hosts[process], None, how))

    def _report(self, gone: Gone) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._process:
                self._tell(gone)
        self._on_gone(gone)


def meet(cluster: Cluster, values: Mapping[str, Any], timeout: float) -> tuple[Peers, str]:
    """Waits until every process is there, and compares what they are going to run.

    Args:
        cluster: the place of this process.
        values: names to JSON values that must be the same on all processes.
        timeout: seconds.

    Returns:
        The connections, and HOST:PORT for JAX's own service: the first free port above that of the meeting.

    Raises:
        UserError: on all processes, because they contradict each other; the first difference is named.
        TryAgain: some did not come in time, or the port is still taken.
    """
    assert cluster.address is not None
    deadline = time.monotonic() + timeout
    # As JSON knows them: a tuple here is a list there.
    values = json.loads(json.dumps(dict(values)))
    return (_join if cluster.process_id else _gather)(cluster, values, deadline, timeout)


def _gather(cluster: Cluster, values: Mapping[str, Any], deadline: float, timeout: float) -> tuple[Peers, str]:
    host, port = split_address(cluster.address or "")
    connections: dict[int, socket.socket] = {}
    hosts = {0: socket.gethostname()}
    with _listening(port, cluster.num_processes) as listener:
        while len(connections) < cluster.num_processes - 1:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _peer = listener.accept()
            except TimeoutError:
                missing = [i for i in range(1, cluster.num_processes) if i not in connections]
                shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
                raise TryAgain(
                    f"process 0 of {cluster.num_processes} waited {timeout:g} s on port {port}; missing: {shown}; "
                    "run the same command again on all of them"
                ) from None
            hello = _hello(connection)
            if hello is None:  # a stranger
                connection.close()
                continue
            refusal = _refusal(cluster, hosts, values, hello)
            if refusal is not None:
                for each in (*connections.values(), connection):
                    _send(each, {"refused": refusal})
                raise UserError(refusal)
            connections[hello["process"]], hosts[hello["process"]] = connection, hello["host"]
    jax_port = _free_port(port + 1)
    for connection in connections.values():
        _send(connection, {"begin": jax_port, "host": hosts[0]})
    return Peers(0, connections, hosts), _joined(host, jax_port)


def _join(cluster: Cluster, values: Mapping[str, Any], deadline: float, timeout: float) -> tuple[Peers, str]:
    host, port = split_address(cluster.address or "")
    own = socket.gethostname()
    reason: object = ""
    while time.monotonic() < deadline:
        try:
            connection = socket.create_connection((host, port), timeout=max(0.1, min(5, deadline - time.monotonic())))
            break
        except OSError as error:  # it may not have begun to listen, or have no name yet
            reason = error.strerror or error
            time.sleep(0.2)
    else:
        raise TryAgain(
            f"process {cluster.process_id} of {cluster.num_processes} found nobody at {cluster.address} in "
            f"{timeout:g} s ({reason}): process 0 must run there, and its port must be open to the others; "
            "run the same command again on all of them"
        )
    _keep_alive(connection)
    _send(connection, {"process": cluster.process_id, "of": cluster.num_processes, "host": own, "values": dict(values)})
    lines = _Lines(connection)
    connection.settimeout(max(1.0, deadline - time.monotonic() + 5))
    messages, ended = lines.read()
    while not messages and not ended:
        messages, ended = lines.read()
    reply = messages[0] if messages else {}
    if "refused" in reply:
        raise UserError(reply["refused"])
    if "begin" not in reply:
        raise TryAgain(
            f"process {cluster.process_id} of {cluster.num_processes} was not let in at {cluster.address}: "
            f"{ended or 'another program answers there'}; run the same command again on all of them"
        )
    connection.settimeout(None)
    hosts = {0: reply.get("host", host), cluster.process_id: own}
    return Peers(cluster.process_id, {0: connection}, hosts), _joined(host, reply["begin"])


def _refusal(
    cluster: Cluster, hosts: Mapping[int, str], values: Mapping[str, Any], hello: Mapping[str, Any]
) -> str | None:
    """Why a process cannot take part, None if it can."""
    process, count, host = hello["process"], hello["of"], hello["host"]
    if count != cluster.num_processes:
        here = f"process 0 (host {hosts[0]}) of {cluster.num_processes}"
        return f"process {process} (host {host}) is one of {count}, {here}"
    if process in hosts or not 0 < process < count:
        return f"two processes are process {process} of {count}: hosts {hosts.get(process)} and {host}"
    for name, value in values.items():
        there = hello["values"].get(name)
        if there != value:
            return (
                f"the processes do not run the same: {name} is {value!r} on process 0 (host {hosts[0]}) and {there!r} "
                f"on process {process} (host {host})"
            )
    return None


@contextlib.contextmanager
def _listening(port: int, count: int) -> Iterator[socket.socket]:
    """A listening socket, closed at the end: whoever comes later finds nobody and tries again."""
    deadline = time.monotonic() + BIND_SECONDS
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    while True:
        try:
            listener = socket.create_server(("", port), family=family, backlog=count, dualstack_ipv6=both)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise TryAgain(f"process 0 cannot listen on port {port}: {error.strerror or error}") from None
            time.sleep(0.5)
    with listener:
        yield listener


def _free_port(first: int) -> int:
    for port in range(first, min(first + 100, 2**16)):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise TryAgain(f"no port from {first} on is free")


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _hello(connection: socket.socket) -> dict[str, Any] | None:
    """How a process introduces itself, None if the connection is of another program."""
    connection.settimeout(5.0)
    lines = _Lines(connection)
    messages, ended = lines.read()
    while not messages and not ended:
        messages, ended = lines.read()
    connection.settimeout(None)
    _keep_alive(connection)
    return messages[0] if messages and {"process", "of", "host", "values"} <= messages[0].keys() else None


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEP_ALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Sends one line; that nobody reads it any more is noticed by the watch."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


class _Lines:
    """Cuts what arrives into messages."""

    def __init__(self, connection: socket.socket):
        self._connection, self._rest = connection, b""

    def read(self) -> tuple[list[dict[str, Any]], str]:
        """Waits for bytes. The messages that are complete, and how the connection ended if it did."""
        try:
            arrived = self._connection.recv(1 << 16)
        except TimeoutError:
            return [], "it did not answer"
        except OSError as error:
            return [], os.strerror(error.errno) if error.errno else str(error)
        if not arrived:
            return [], "its connection closed"
        *lines, self._rest = (self._rest + arrived).split(b"\n")
        if len(self._rest) > MESSAGE_BYTES:
            return [], "it is no process of this run"
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return [], "it is no process of this run"
        if not all(isinstance(message, dict) for message in messages):
            return [], "it is no process of this run"
        return messages, ""
