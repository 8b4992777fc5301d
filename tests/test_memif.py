"""memif's control channel: what is said and understood, what is refused, and a whole handshake between our two halves."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from krononat import memif
from krononat.memif import Ack, AddRegion, AddRing, Connect, Connected, Disconnect, Hello, Init, Message, Refused, Wanted
from shards import xsk
from shards.memif import COOKIE, ring_bytes

FRAMES_BYTES = 1 << 16

# Bytes after the type, written by hand after memif.h: what VPP and DPDK say and expect.
SPOKEN: list[tuple[Message, str]] = [
    (Ack(), "0100"),
    (Hello("DPDK 22.11.11", 0x200, 0x200, 255, 254, 253, 14), "0200" + b"DPDK 22.11.11".ljust(32, b"\0").hex()
     + "0002" "0002" "ff00" "fe00" "fd00" "0e"),
    (Init(0x200, 7, 0, "pssst", "krononat"), "0300" "0002" "07000000" "00" + b"pssst".ljust(24, b"\0").hex()
     + b"krononat".ljust(32, b"\0").hex()),
    (AddRegion(1, 1 << 32), "0400" "0100" "0000000001000000"),
    (AddRing(1, 2, 3, 0x1080, 11, 5), "0500" "0100" "0200" "0300" "80100000" "0b" "0500"),
    (Connect("port0"), "0600" + b"port0".hex()),
    (Connected("net_memif0"), "0700" + b"net_memif0".hex()),
    (Disconnect(3, "ID not found"), "0800" "03000000" + b"ID not found".hex()),
]  # fmt: skip


@pytest.mark.parametrize(("message", "told"), SPOKEN, ids=lambda each: type(each).__name__)
def test_a_message_is_said_as_memif_h_has_it(message: Message, told: str) -> None:
    raw = bytes.fromhex(told).ljust(memif.MESSAGE_BYTES, b"\0")
    assert memif.encode(message) == raw
    assert memif.decode(raw) == message


@given(some.binary(max_size=140))
def test_any_bytes_are_a_message_or_refused(raw: bytes) -> None:
    with contextlib.suppress(Refused):
        message = memif.decode(raw)
        assert len(raw) == memif.MESSAGE_BYTES
        assert all(text.isprintable() for text in message if isinstance(text, str))


@pytest.fixture
def frames() -> Iterator[int]:
    descriptor = memif.new_region("frames", FRAMES_BYTES)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "memif.sock")


def accepting(server: memif.Server, into: list[memif.Peer | Exception]) -> threading.Thread:
    """A thread in which the server accepts one client."""

    def accept() -> None:
        try:
            into.append(server.accept())
        except (Refused, TimeoutError) as refused:
            into.append(refused)

    thread = threading.Thread(target=accept)
    thread.start()
    return thread


def open_descriptors() -> list[str]:
    """What is at hand of what comes with messages, memory and events; sockets may be those of earlier tests' threads."""
    gc.collect()  # what tests before this one left to be closed
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(told for told in found if "memfd:" in told or "[eventfd]" in told or "(deleted)" in told)


def test_both_halves_come_to_share_memory(path: str, frames: int) -> None:
    before = open_descriptors()
    with memif.Server(path, "generator", log2_entries=9) as server:
        met: list[memif.Peer | Exception] = []
        thread = accepting(server, met)
        client = memif.connect(path, Wanted(5, frames, FRAMES_BYTES, "nat1"))
        thread.join()
        (peer,) = met
        assert isinstance(peer, memif.Peer)
        assert (client.peer, client.log2_entries) == ("generator generator", 9)
        assert (peer.id, peer.name) == (5, "nat1")
        assert [(ring.to_server, ring.offset) for ring in peer.rings] == [(True, 0), (False, ring_bytes(9))]
        os.pwrite(frames, b"seen", 100)
        assert peer.regions[1][100:104] == b"seen"
        os.eventfd_write(client.events[0], 1)
        assert os.eventfd_read(peer.rings[0].event) == 1
        peer.close("enough")
        with pytest.raises(Refused, match="the server disconnected: enough"):
            client.hear()
        client.close()
    assert open_descriptors() == before
    assert not Path(path).exists()


@pytest.mark.parametrize("make", [lambda: memif.new_region("rings", 4096), lambda: xsk.new_memory(1024)])
@pytest.mark.parametrize("seal", [0x02, 0x08, 0x10], ids=["shrink", "write", "future_write"])
def test_whoever_has_our_memory_cannot_keep_us_from_mapping_it(make: Callable[[], int], seal: int) -> None:
    descriptor = make()
    with pytest.raises(PermissionError):
        fcntl.fcntl(descriptor, 1033, seal)
    os.close(descriptor)


@pytest.mark.parametrize(("secret", "right"), [("", False), ("wrong", False), ("pssst", True)])
def test_the_secret_is_compared(path: str, frames: int, secret: str, right: bool) -> None:
    with memif.Server(path, secret="pssst") as server:
        met: list[memif.Peer | Exception] = []
        thread = accepting(server, met)
        try:
            memif.connect(path, Wanted(0, frames, FRAMES_BYTES, secret=secret)).close()
            assert right
        except Refused as refused:
            assert not right
            assert "disconnected: the secret is not the right one" in str(refused)
        thread.join()
        assert isinstance(met[0], memif.Peer) == right
        if isinstance(met[0], memif.Peer):
            met[0].close()


def test_nobody_there_is_said(path: str, frames: int) -> None:
    with pytest.raises(Refused, match=r"nobody answers at .*memif.sock: No such file"):
        memif.connect(path, Wanted(0, frames, FRAMES_BYTES))


def test_a_silent_server_is_given_up(path: str, frames: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(Refused, match="no answer in time"):
            memif.connect(path, Wanted(0, frames, FRAMES_BYTES), timeout_s=0.05)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([Ack()], "Ack came out of turn"),
        ([Connected("x")], "Connected came out of turn"),
        ([Hello("x", 0x300, 0x301)], "the server speaks version 3.0 to 3.1, we 2.0"),
        ([Hello("x", regions=0)], "takes one region only"),
        ([Hello("x"), Hello("x")], "Hello came out of turn"),
        ([Hello("x"), Connected("x")], "Connected came out of turn"),
        ([Hello("x"), *[Ack()] * 6], "Ack came out of turn"),
        ([Hello("x"), *[Ack()] * 5, Connected("x"), Connected("x")], "Connected came out of turn"),
        ([Hello("x"), Init(0x200, 0, 0, "", "")], "Init came out of turn"),
        ([Disconnect(0, "")], "it gave no reason"),
    ],
)
def test_a_client_refuses_what_is_out_of_turn(frames: int, said: list[Message], why: str) -> None:
    before = open_descriptors()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = memif.Client(ours, Wanted(0, frames, FRAMES_BYTES))
    with theirs:
        for message in said:
            memif.send(theirs, message, [theirs.fileno()])  # a descriptor that nobody asked for
        with pytest.raises(Refused, match=why):
            for _ in said:
                client.hear()
        client.close("tested")
    assert open_descriptors() == before


def resizable() -> int:
    """Memory that its owner could take away again."""
    descriptor = os.memfd_create("loose")
    os.ftruncate(descriptor, FRAMES_BYTES)
    return descriptor


def rings(cookie: int = COOKIE) -> int:
    """Region 0 of two rings of 16 entries."""
    descriptor = memif.new_region("rings", 2 * ring_bytes(4))
    for at in (0, ring_bytes(4)):
        os.pwrite(descriptor, struct.pack("<I", cookie), at)
    return descriptor


INIT, REGION = Init(0x200, 0, 0, "", ""), AddRegion(0, 2 * ring_bytes(4))
RING, BACK = AddRing(1, 0, 0, 0, 4), AddRing(0, 0, 0, ring_bytes(4), 4)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([Connect("x")], "Connect came out of turn"),
        ([REGION], "AddRegion came out of turn"),
        ([INIT, INIT], "Init came out of turn"),
        ([INIT, Hello("x")], "Hello came out of turn"),
        ([Init(0x100, 0, 0, "", "")], "version 1.0, mode 0"),
        ([Init(0x200, 0, 1, "", "")], "version 2.0, mode 1"),
        ([INIT, AddRegion(1, 4096)], "region 1 came out of order"),
        ([INIT, AddRegion(0, 0)], "is not 0 bytes"),
        ([INIT, AddRegion(0, 1 << 40)], "is not 1099511627776 bytes"),
        ([INIT, RING], "has 2\\^4 entries at 0 of region 0"),
        ([INIT, REGION, AddRing(1, 1, 0, 0, 4)], "ring 1 came out of order"),
        ([INIT, REGION, AddRing(1, 0, 1, 0, 4)], "of region 1"),
        ([INIT, REGION, AddRing(1, 0, 0, 0, 15)], "has 2\\^15 entries"),
        ([INIT, REGION, AddRing(1, 0, 0, 0, 255)], "has 2\\^255 entries"),
        ([INIT, REGION, AddRing(1, 0, 0, 8, 4)], "entries at 8"),
        ([INIT, REGION, AddRing(1, 0, 0, 16 + ring_bytes(4), 4)], "beyond region 0"),
        ([INIT, REGION, AddRing(1, 0, 0, 0xFFFFFFF0, 4)], "beyond region 0"),
        ([INIT, REGION, RING, Connect("x")], "a ring each way"),
        ([INIT, REGION, RING, BACK._replace(offset=0x20), Connect("x")], "instead of memif's cookie"),
        ([INIT, Disconnect(0, "changed my mind")], "the client disconnected: changed my mind"),
    ],
)
def test_a_server_refuses_what_does_not_fit(path: str, said: list[Message], why: str) -> None:
    before = open_descriptors()
    with memif.Server(path) as server, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        met: list[memif.Peer | Exception] = []
        thread = accepting(server, met)
        client.connect(path)
        for message in said:
            descriptor = rings()
            memif.send(client, message, [descriptor])
            os.close(descriptor)
        thread.join()
        assert isinstance(met[0], Refused) and re.search(why, str(met[0]))
        met.clear()
    assert open_descriptors() == before


@pytest.mark.parametrize("descriptors", [0, 1, 2])
def test_a_region_needs_one_descriptor_that_stays(path: str, descriptors: int) -> None:
    with memif.Server(path) as server, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        met: list[memif.Peer | Exception] = []
        thread = accepting(server, met)
        client.connect(path)
        memif.send(client, INIT)
        loose = resizable()
        memif.send(client, AddRegion(0, FRAMES_BYTES), [loose] * descriptors)
        os.close(loose)
        thread.join()
        why = {0: "without a descriptor", 1: "sealed against shrinking", 2: "more than one descriptor"}[descriptors]
        assert why in str(met[0])
