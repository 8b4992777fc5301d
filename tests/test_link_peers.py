"""A connection whose peer dies while we do not read: our process is to outlive it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import pytest
import zmq

from replication import link

_SPAWN = multiprocessing.get_context("spawn")  # ZeroMQ's threads do not outlive a fork
_MESSAGE = bytes(60_000)


def _send(port: int) -> None:
    """Fill the peer's queue, and go on."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        link._set(socket)
        socket.connect(f"tcp://127.0.0.1:{port}")
        while True:
            try:
                socket.send(_MESSAGE, zmq.DONTWAIT)
            except zmq.Again:
                time.sleep(0.01)


def _receive(ports: Connection) -> None:
    """Hear of a peer, read nothing for longer than any of its patiences, then read what has come."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        link._set(socket)
        ports.send(socket.bind_to_random_port("tcp://127.0.0.1"))
        assert socket.poll(20_000)
        ports.send(0)
        time.sleep(3.5)
        assert socket.poll(1000) and socket.recv_multipart()


@pytest.fixture
def ended() -> Iterator[list[BaseProcess]]:
    made: list[BaseProcess] = []
    yield made
    for process in made:
        process.kill()
        process.join()


@pytest.mark.alone
def test_a_peer_that_dies_while_our_queue_is_full_does_not_end_us(ended: list[BaseProcess]) -> None:
    """With ZeroMQ's own heartbeats libzmq 4.3.5 aborts (`!_io_error`): see `link`."""
    ports, its = _SPAWN.Pipe()
    reader = _SPAWN.Process(target=_receive, args=(its,))
    ended.append(reader)
    reader.start()
    assert ports.poll(20)
    sender = _SPAWN.Process(target=_send, args=(ports.recv(),))
    ended.append(sender)
    sender.start()
    assert ports.poll(20)  # it has heard of its peer
    time.sleep(0.5)  # by now its queue and the kernel's are full
    sender.kill()
    reader.join(20)
    assert reader.exitcode == 0
