"""Processes meet, compare what they run, and notice within a moment who is gone. (Here each is a thread.)"""

import contextlib
import queue
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from zoo.errors import TryAgain, UserError
from zoo.parallel.cluster import Cluster, split_address
from zoo.parallel.peers import Gone, meet


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def meet_all(count, values=lambda _process: {}, indices=None, sizes=None, timeout=20.0):
    """What `meet` gives, or raises, on each of `count` processes."""
    address, indices, sizes = free_address(), indices or range(count), sizes or [count] * count

    def one(place):
        process, size = place
        try:
            return meet(Cluster("test", size, process, address), values(process), timeout)
        except (UserError, TryAgain) as error:
            return error

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(one, zip(indices, sizes, strict=True)))


@pytest.fixture
def three():
    """Three processes that have met, and what each of them notices."""
    met = meet_all(3)
    noticed = [queue.Queue() for _ in met]
    for (peers, _), found in zip(met, noticed, strict=True):
        peers.watch(found.put)
    yield [peers for peers, _ in met], noticed
    for peers, _ in met:
        peers.close()


def test_all_are_told_the_same_address_of_jaxs_own_service():
    met = meet_all(3, lambda _process: {"recipe": {"sizes": (1, 2)}})
    [address] = {address for _, address in met}
    assert address.startswith("127.0.0.1:")
    for peers, _ in met:
        peers.close()


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_all_others_notice_who_has_died(three, victim):
    peers, noticed = three
    peers[victim].close()  # without a word, as the system does when a process dies
    for process in {0, 1, 2} - {victim}:
        gone = noticed[process].get(timeout=10)
        assert (gone.process, gone.code) == (victim, None) and "closed" in gone.why
        assert noticed[process].empty()


@pytest.mark.parametrize("leaver", [0, 1])
def test_all_others_are_told_why_one_leaves(three, leaver):
    peers, noticed = three
    peers[leaver].leave(2, "no such file")
    for process in {0, 1, 2} - {leaver}:
        assert noticed[process].get(timeout=10) == Gone(leaver, socket.gethostname(), 2, "no such file")


def test_the_end_is_reached_when_all_have_come_to_it(three):
    peers, noticed = three
    assert not peers[1].finish(timeout=0.1)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda index: peers[index].finish(timeout=10), (2, 0))) == [True, True]
    assert peers[1].finish(timeout=10)
    for each in peers:
        each.close()
    assert all(found.empty() for found in noticed)


def test_a_value_that_is_not_the_same_is_named_on_all():
    for error in meet_all(2, lambda process: {"seed": 0, "optimizer.learning_rate": 0.1 + process}):
        assert isinstance(error, UserError)
        assert "optimizer.learning_rate is 0.1 on process 0 (host" in str(error)
        assert "and 1.1 on process 1 (host" in str(error)


@pytest.mark.parametrize(
    ("indices", "sizes", "message"),
    [((0, 1, 1), (3, 3, 3), "two processes are process 1 of 3"), ((0, 1), (2, 3), "process 1 .* is one of 3")],
)
def test_numbers_that_contradict_each_other_are_named(indices, sizes, message):
    first = meet_all(len(indices), indices=indices, sizes=sizes, timeout=1.0)[0]
    with pytest.raises(UserError, match=message):
        raise first


def test_those_who_do_not_come_are_named():
    [error] = meet_all(1, indices=[0], sizes=[4], timeout=0.2)
    with pytest.raises(TryAgain, match="process 0 of 4 waited 0.2 s on port .*; missing: 1, 2, 3"):
        raise error


def test_a_first_process_that_cannot_be_reached_is_named():
    [error] = meet_all(1, indices=[1], sizes=[2], timeout=0.2)
    with pytest.raises(TryAgain, match="process 1 of 2 found nobody at 127.0.0.1:.* in 0.2 s .*refused"):
        raise error


def test_strangers_at_the_door_do_not_matter():
    address = free_address()
    with ThreadPoolExecutor(2) as threads:
        host = threads.submit(meet, Cluster("test", 2, 0, address), {}, 20.0)
        while True:
            with (
                contextlib.suppress(ConnectionRefusedError),
                socket.create_connection(split_address(address)) as visitor,
            ):
                visitor.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert visitor.recv(1) == b""
                break
        guest = threads.submit(meet, Cluster("test", 2, 1, address), {}, 20.0)
        for met in (host, guest):
            met.result(timeout=20)[0].close()
