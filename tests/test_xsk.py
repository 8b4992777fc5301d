"""Sockets and steering on real wires: what goes where, and that all of it is counted."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from shards import rings, xsk
from shards.burst import BURST, new_burst
from shards.frames import census
from shards.outcomes import BFD_PORT, OUTCOMES, SHUNT_PORT
from tests.core import FRAMES, Core
from tests.veth import Wires, drain, ipv4, ipv6

pytestmark = pytest.mark.lab

_TAG, _SERVICE_TAG = bytes.fromhex("81000007"), bytes.fromhex("88a80064")
_ARP = bytes.fromhex("ffffffffffff 020000000002 0806") + bytes(46)
_LLDP = bytes.fromhex("0180c200000e 020000000002 88cc") + bytes(46)
_SPANNING_TREE = bytes.fromhex("0180c2000000 020000000002 0026") + bytes(46)

STEERED = [
    ("redirected", ipv4("198.51.100.7")),
    ("redirected", ipv4("0.0.0.0")),
    ("redirected", ipv4("198.51.100.7", bytes(1400))),
    ("redirected", ipv4("198.51.100.7", tags=_TAG)),
    ("redirected", ipv4("198.51.100.7", tags=_SERVICE_TAG + _TAG)),
    ("redirected", ipv4("224.0.0.5", tags=_TAG * 3)),  # deeper than is looked: the worker's to refuse
    ("redirected", ipv4("198.51.100.7")[:20]),  # cut short: the worker says so
    ("redirected", ipv6("2001:db8::1")),
    ("redirected", ipv6("2001:db8::1", 58, b"\x80" + bytes(7))),  # a ping through us
    ("redirected", ipv6("2001:db8::1", 58, b"")),
    ("not_ip", _ARP),
    ("not_ip", _LLDP),
    ("not_ip", _SPANNING_TREE),
    ("not_ip", _ARP[:12] + _TAG + _ARP[12:]),
    ("broadcast", ipv4("255.255.255.255")),
    ("broadcast", ipv4("100.64.255.255")),
    ("multicast", ipv4("224.0.0.5")),
    ("multicast", ipv4("239.255.255.250", tags=_TAG)),
    ("multicast", ipv6("ff02::1")),
    ("link_local", ipv4("169.254.3.4")),
    ("link_local", ipv6("fe80::1")),
    ("link_local", ipv6("febf::1", tags=_SERVICE_TAG + _TAG)),
    ("redirected", ipv6("fec0::1")),
    ("neighbour_discovery", ipv6("2001:db8::1", 58, b"\x85" + bytes(7))),
    ("neighbour_discovery", ipv6("2001:db8::1", 58, b"\x89" + bytes(7), tags=_TAG)),
    ("redirected", ipv6("2001:db8::1", 58, b"\x84" + bytes(7))),
    ("redirected", ipv6("2001:db8::1", 58, b"\x8a" + bytes(7))),
    ("own_address", ipv4("100.64.0.1")),
    ("own_address", ipv4("100.64.0.1", tags=_SERVICE_TAG + _TAG)),
    ("own_address", ipv6("2001:db8:ffff::1")),
    ("control", ipv4("100.64.0.1", port=SHUNT_PORT)),
    ("control", ipv4("100.64.0.1", tags=_SERVICE_TAG + _TAG, port=SHUNT_PORT)),
    ("control", ipv4("100.64.0.1", port=BFD_PORT)),
    ("control", ipv4("100.64.0.1", tags=_TAG, port=BFD_PORT)),
    ("redirected", ipv4("100.64.0.2", port=BFD_PORT)),
    ("own_address", ipv4("100.64.0.1", port=SHUNT_PORT)[:40]),
    ("redirected", ipv4("100.64.0.2")),
    ("redirected", ipv6("2001:db8:ffff::2")),
]


@pytest.fixture(scope="module")
def one_port() -> Iterator[tuple[Wires, Core]]:
    with Wires() as wires, Core(wires, ("100.64.0.1", "2001:db8:ffff::1"), ("100.64.255.255",)) as core:
        yield wires, core


@pytest.mark.parametrize("outcome, frame", STEERED)
def test_each_kind_of_frame_goes_its_way_and_is_counted(one_port: tuple[Wires, Core], outcome: str, frame: bytes) -> None:
    wires, core = one_port
    core.steerings[0].reset()
    with wires.peer(0) as peer, wires.kernel(0) as kernel:
        peer.send(frame)
        counted = {name: told for name, told in core.steerings[0].count().items() if told != (0, 0)}
        assert counted == {outcome: (1, len(frame))}
        passed = {each.name for each in OUTCOMES if each.fate == "pass"}
        assert len(drain(kernel)) == (outcome in passed)


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_what_the_sockets_got_and_lost_is_what_was_redirected_to_them(mode: str) -> None:
    with Wires() as wires, Core(wires, mode=mode) as core, wires.peer(0) as peer:
        for serial in range(300):
            peer.send(ipv4("198.51.100.7", serial.to_bytes(4, "big")))
        assert core.steerings[0].count()["redirected"][0] == 300 == wires.counters(0)["tx"][0]
        assert core.sockets.lost() == 300  # nobody has offered a frame to receive into


def test_control_gets_in_where_data_has_filled_its_ring() -> None:
    with Wires() as wires, Core(wires, ("100.64.0.1",), frames=256) as core, wires.peer(0) as peer:
        handles = core.open_rings()
        rings.flush(handles)
        for serial in range(500):
            peer.send(ipv4("198.51.100.7", serial.to_bytes(4, "big")))
        for _ in range(10):
            peer.send(ipv4("100.64.0.1", port=BFD_PORT))
        data, control = (xsk.statistics(fd) for fd in core.sockets.fds())
        assert data["rx_ring_full"] + data["rx_dropped"] == 500 - core.sockets.description["entries"]
        assert control["rx_ring_full"] == control["rx_dropped"] == 0
        burst = new_burst()
        assert rings.receive_control(handles, burst, BURST) == 10
        assert rings.receive(handles, burst, BURST) == core.sockets.description["entries"]


def test_what_is_sent_as_control_overtakes_data_that_waits() -> None:
    with Wires() as wires, Core(wires, frames=256) as core, wires.peer(0) as peer:
        handles = core.open_rings()
        frame = rings.spare_frame(handles, 0)
        told = np.frombuffer(ipv4("192.0.2.1", b"hello"), np.uint8)
        handles.frames[frame << 12 : (frame << 12) + len(told)] = told
        assert rings.send_control(handles, 0, frame << 12, len(told))
        assert drain(peer) == [told.tobytes()]
        before = census(handles)
        assert before["sending"] == 1 and rings.flush(handles) == 1 and census(handles)["sending"] == 0


def test_self_test_catches_a_control_socket_of_another_queue() -> None:
    with Wires([2]) as wires:
        core = Core(wires, ("100.64.0.1",))
        core.prove()
        core.steerings[0].place_control(1, core.sockets.fds()[2])
        with pytest.raises(RuntimeError, match=r"queue 1 .* control traffic: .* another queue or device"):
            core.prove()
        core.close()


def test_without_a_socket_frames_are_dropped_and_never_passed() -> None:
    with Wires([2]) as wires, Core(wires, unplaced=((0, 0), (0, 1))) as core, wires.peer(0) as peer:
        with wires.kernel(0) as kernel:
            for flow in range(50):
                peer.send(ipv4("198.51.100.7", flow=flow))
            assert drain(kernel) == []
        assert core.steerings[0].count()["no_socket"][0] == 50


def test_frames_stay_dropped_when_the_sockets_are_closed() -> None:
    with Wires() as wires, Core(wires) as core, wires.peer(0) as peer, wires.kernel(0) as kernel:
        core.sockets.close()
        peer.send(ipv4("198.51.100.7"))
        assert drain(kernel) == []
        assert core.steerings[0].count()["no_socket"][0] == 1


def test_closing_detaches() -> None:
    with Wires() as wires:
        with Core(wires):
            assert "xdp" in wires.core.ip("link show port0")
        assert "xdp" not in wires.core.ip("link show port0")


# --- self-test ------------------------------------------------------------------------------------------------------------


def test_self_test_proves_every_queue_and_leaves_no_trace() -> None:
    with Wires([2, 1, 4]) as wires:
        core = Core(wires)
        core.prove()
        core.prove()
        assert all(told == (0, 0) for steering in core.steerings for told in steering.count().values())
        core.close()


@pytest.mark.parametrize("port, queue, instead", [(0, 1, 0), (0, 0, 1), (1, 0, 0), (0, 0, 2)])
def test_self_test_catches_a_socket_of_another_queue_or_device(port: int, queue: int, instead: int) -> None:
    with Wires([2, 1]) as wires:
        core = Core(wires)
        core.steerings[port].place(queue, core.sockets.fds()[instead])
        with pytest.raises(RuntimeError, match=f"queue {queue} of device {core.ifindexes[port]} .* another queue or device"):
            core.prove()
        core.close()


def test_self_test_catches_a_missing_socket() -> None:
    with Wires([2]) as wires:
        core = Core(wires, unplaced=((0, 1),))
        with pytest.raises(RuntimeError, match=r"queue 1 .* no socket in its slot"):
            core.prove()
        core.close()


# --- what goes wrong in the field, and what is said about it --------------------------------------------------------------


def test_a_peer_with_large_frames_is_named() -> None:
    with Wires() as wires:
        wires.peers[0].ip("link set peer0 mtu 9000")
        core = Core(wires)
        with pytest.raises(OSError, match="MTU is too large for XDP"):
            core.attach()
        core.close()


def test_a_peer_with_more_queues_is_named() -> None:
    with Wires([2]) as wires:
        wires.core.run("ethtool", "-L", "port0", "rx", "1")
        core = Core(wires)
        with pytest.raises(OSError, match="more transmit queues"):
            core.attach()
        core.close()


def test_a_second_program_on_the_device_is_refused() -> None:
    with Wires() as wires, Core(wires) as core, pytest.raises(OSError, match="another XDP program"), wires.core.entered():
        core.steerings[0].attach(core.ifindexes[0], "auto")


def test_a_queue_that_another_holds_is_named() -> None:
    sentence = r"cannot bind to queue 0 .* another AF_XDP socket holds it"
    with Wires() as wires, Core(wires) as core, wires.core.entered(), pytest.raises(OSError, match=sentence):
        xsk.open_sockets(core.memory_fd, FRAMES, [xsk.Port(core.ifindexes[0], 1)])


def test_a_queue_that_is_not_there_is_named() -> None:
    with Wires() as wires:
        core = Core(wires)
        core.sockets.close()
        with pytest.raises(OSError, match=r"cannot bind to queue 1 .* no such queue"), wires.core.entered():
            xsk.open_sockets(core.memory_fd, FRAMES, [xsk.Port(core.ifindexes[0], 2)])
        core.close()


def test_too_few_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="too few for 9 queues"):
        xsk.open_sockets(-1, FRAMES, [xsk.Port(1, 9)])
    with pytest.raises(ValueError, match="power of two"):
        xsk.new_memory(1000)


# --- offloads of an untouched peer ----------------------------------------------------------------------------------------


def _super_packet(payload: int, segment: int) -> bytes:
    """A TCP packet for PACKET_VNET_HDR that the sender leaves to the device to cut and to checksum (virtio_net_hdr)."""
    frame = ipv4("198.51.100.7")[:34]
    frame = frame[:16] + (40 + payload).to_bytes(2, "big") + frame[18:23] + b"\x06" + frame[24:]
    tcp = struct.pack("!HHIIBBHHH", 4000, 80, 1, 1, 0x50, 0x10, 1000, 0, 0)
    needs_checksum, tcp4 = 1, 1
    return struct.pack("<BBHHHH", needs_checksum, tcp4, 54, segment, 34, 16) + frame + tcp + bytes(payload)


def test_super_packets_of_a_local_sender_arrive_as_frames_that_fit() -> None:
    """Attaching in native mode takes TSO from the peer by itself (veth_fix_features), so its kernel cuts them up."""
    with Wires() as wires, Core(wires) as core, wires.peer(0) as peer:
        peer.setsockopt(263, 15, 1)  # SOL_PACKET, PACKET_VNET_HDR
        peer.send(_super_packet(14480, 1448))
        assert core.steerings[0].count()["redirected"] == (10, 10 * (54 + 1448))
        assert "tcp-segmentation-offload: off" in wires.peers[0].run("ethtool", "-k", "peer0").stdout


def test_super_packets_in_generic_mode_are_lost_and_counted() -> None:
    with Wires() as wires, Core(wires, mode="generic") as core, wires.peer(0) as peer:
        peer.setsockopt(263, 15, 1)
        peer.send(_super_packet(14480, 1448))
        assert (core.steerings[0].count()["redirected"][0], core.sockets.lost()) == (1, 1)


def test_a_multi_queue_port_spreads_flows_over_its_sockets() -> None:
    with Wires([4]) as wires, Core(wires) as core, wires.peer(0) as peer:
        for flow in range(200):
            peer.send(ipv4("198.51.100.7", flow=flow))
        time.sleep(0.01)
        each = [xsk.statistics(fd)["rx_dropped"] for fd in core.sockets.fds()[:4]]
        assert sum(each) == 200 and all(each), each
