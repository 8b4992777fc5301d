"""Who died twice with the same frame in hand does not meet it a third time; and nobody else's frames are dropped."""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from krononat import client, quarantine, view
from krononat.member import is_fault
from krononat.quarantine import WITHIN, Death, Suspects
from shards import bpf, frames
from shards.signatures import Signature, sign
from shards.steering import Steering
from tests.frames import build, build_frame, mac_of, read
from tests.place import Place, a_place, until
from tests.veth import ipv6

SYN = "tcp 100.64.0.2:4000 > 198.51.100.9:80 syn"
TAGS = (b"", b"\x81\x00\x00\x05", b"\x88\xa8\x00\x05\x81\x00\x00\x06")


def frame_of(line: str) -> bytes:
    """An Ethernet frame in the scenarios' words, with so much behind it as the frame memory has."""
    return build_frame(mac_of(1), mac_of(2), build(read(line))) + bytes(128)


def signature(line: str) -> Signature:
    found = sign(frame_of(line))
    assert found
    return found


# --- signatures -----------------------------------------------------------------------------------------------------------


def test_a_retransmission_looks_the_same() -> None:
    for line, again in (
        (SYN, f"{SYN} ttl 3 id 77"),
        ("udp 100.64.0.2:4000 > 198.51.100.9:53 len 20", "udp 100.64.0.2:4000 > 198.51.100.9:53 len 20 ttl 9 id 4 tos 3"),
        ("echo 100.64.0.2:77 > 198.51.100.9 seq 1", "echo 100.64.0.2:77 > 198.51.100.9 seq 2 ttl 5"),
    ):
        assert signature(line) == signature(again), line


def test_another_flow_does_not() -> None:
    lines = (
        SYN,
        SYN.replace("4000", "4001"),
        SYN.replace("198.51.100.9", "198.51.100.8"),
        SYN.replace("syn", "rst"),
        f"{SYN} mss 1460",
        "udp 100.64.0.2:4000 > 198.51.100.9:80",
        "echo 100.64.0.2:77 > 198.51.100.9",
        "echo 100.64.0.2:78 > 198.51.100.9",
    )
    assert len({signature(line) for line in lines}) == len(lines)


def tcp(sequence: int, acknowledgement: int, window: int, stamp: int, length: int = 0) -> bytes:
    """A segment with RFC 7323 timestamps, as a Linux sender makes it: NOP NOP TS."""
    options = struct.pack("!BBBBII", 1, 1, 8, 10, stamp, stamp + 5)
    segment = struct.pack("!HHIIBBHHH", 4000, 80, sequence, acknowledgement, 8 << 4, 16, window, stamp & 0xFFFF, 0) + options
    header = struct.pack(
        "!BBHHBBBBH4s4s", 0x45, 0, 52 + length, stamp & 0xFFFF, 64, 0, 64, 6, 0, b"\x64\x40\0\2", b"\xc6\x33\x64\x09"
    )
    return bytes(12) + b"\x08\x00" + header + segment + bytes(128)


def test_what_tcp_changes_when_it_sends_again_is_not_looked_at() -> None:
    assert sign(tcp(1000, 5, 501, 7000)) == sign(tcp(1000, 99, 77, 7400))
    assert sign(tcp(1000, 5, 501, 7000)) != sign(tcp(1001, 5, 501, 7000))
    assert sign(tcp(1000, 5, 501, 7000)) != sign(tcp(1000, 5, 501, 7000, length=8))


def test_tags_do_not_matter_and_what_is_not_ip_has_none() -> None:
    whole = frame_of(SYN)
    assert {sign(whole[:12] + tags + whole[12:]) for tags in TAGS} == {signature(SYN)}
    assert sign(bytes(12) + b"\x08\x06" + bytes(120)) is None
    assert sign(whole[:12] + b"\x81\x00\x00\x05" * 3 + whole[12:]) is None


def test_any_bytes_have_a_signature_that_matches_them_and_can_be_told() -> None:
    chance = random.Random(1)
    for _ in range(3000):
        noise = chance.randbytes(160)
        found = sign(noise[:12] + chance.choice((b"\x08\x00", b"\x86\xdd")) + noise[14:])
        assert found and found.matches(noise[14:]) and len(found.mask) % 4 == 0 and found.told()
        assert not found.matches(noise[14 : 14 + len(found.mask) - 1])


def test_people_read_who_it_is() -> None:
    assert signature(SYN).told() == "tcp 100.64.0.2:4000 > 198.51.100.9:80"
    assert signature("echo 100.64.0.2:77 > 198.51.100.9").told() == "icmp 100.64.0.2 > 198.51.100.9"


@pytest.mark.lab
def test_the_program_drops_what_the_model_says_and_nothing_else() -> None:
    chance = random.Random(3)
    lines = [SYN, "udp 100.64.0.2:4000 > 198.51.100.9:53 len 20", "echo 100.64.0.2:77 > 198.51.100.9", f"{SYN} mss 1460"]
    dropped = [signature(line) for line in lines]
    six = sign(ipv6("2001:db8::1", 17, bytes(range(40))) + bytes(64))
    assert six
    told = [build_frame(mac_of(1), mac_of(2), build(read(line))) for line in [*lines, SYN.replace("4000", "4001")]]
    told.append(ipv6("2001:db8::1", 17, bytes(range(40))))
    for frame in list(told):
        damaged = bytearray(frame)
        damaged[chance.randrange(14, len(frame))] ^= 1 << chance.randrange(8)
        told += [bytes(damaged), frame[: chance.randrange(34, len(frame))], frame[:12] + TAGS[2] + frame[12:]]
    seen = set()
    with Steering(["100.64.0.1"]) as steering:
        for signatures in ([], [*dropped, six]):
            steering.quarantine(signatures)
            for frame in told:
                steering.reset()
                bpf.run(steering.program, frame, struct.pack("<6I", 0, len(frame), 0, 1, 0, 0))
                packet = frame[22:] if frame[12:14] == b"\x88\xa8" else frame[14:]
                wanted = any(each.matches(packet) for each in signatures if each.version == packet[0] >> 4)
                assert (steering.count()["quarantined"][0] == 1) is wanted, frame.hex()
                seen.add((len(signatures), wanted))
    assert seen == {(0, False), (5, False), (5, True)}


# --- whom to blame --------------------------------------------------------------------------------------------------------


def test_twice_within_ten_minutes_is_suspect_and_nothing_else() -> None:
    often, once, other = signature(SYN), signature(f"{SYN} mss 1"), signature("echo 100.64.0.2:1 > 198.51.100.9")
    suspects = Suspects()
    assert suspects.add(Death(0, "SIGSEGV", frozenset({often, once}))) == []
    assert suspects.add(Death(WITHIN + 1, "SIGSEGV", frozenset({often}))) == []
    (found,) = suspects.add(Death(2 * WITHIN, "SIGBUS", frozenset({often, other})))
    assert (found.signature, found.since, found.causes) == (often, 2 * WITHIN, ("SIGSEGV", "SIGBUS"))
    suspects.forget()
    assert suspects.add(Death(2 * WITHIN + 1, "SIGBUS", frozenset({often, other}))) == []


def test_who_is_killed_has_died_of_no_frame() -> None:
    for number in (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE):
        assert is_fault(-number)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        assert not is_fault(-number)
    assert is_fault(1) and not is_fault(0)


def test_a_frame_in_hand_is_what_the_worker_calls_so() -> None:
    assert quarantine._HAND == frames.HAND


# --- for real -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with a_place("krnsq", tmp_path) as made, made.appliance():
        yield made


def die_of(place: Place, sender: socket.socket, remote: str, number: signal.Signals) -> None:
    """A frame to somebody whose address nobody answers for stays in hand; the worker dies meanwhile, and has a successor."""
    before = place.status()["worker"]
    asked_for_anew(place, remote)
    sender.sendto(b"the same each time", (remote, 9))
    descriptor = client.memory(place.socket)
    state = view.open_view(descriptor)
    os.close(descriptor)
    until(lambda: state.core[0]["held"] == 1, 10)
    os.kill(before["pid"], number)
    until(lambda: place.status()["worker"]["restarts"] > before["restarts"] and place.status()["worker"]["ready"], 60)


def asked_for_anew(place: Place, remote: str) -> None:
    """Nobody answers for the address, and that is not known yet: the kernel knew it, as far as it says, and lost it just now.

    What was asked for at an earlier death is given up after three seconds, and frames to it are refused instead of held.
    """
    for told, taken in (("reachable", "reachable"), ("failed", "wanted")):
        place.core.ip(f"neigh replace {remote} lladdr 02:00:00:00:00:99 dev out0 nud {told}")
        until(partial(_is_taken_for, place, remote, taken), 10)


def _is_taken_for(place: Place, address: str, state: str) -> bool:
    """Whether a neighbour that the appliance has asked about is in this state."""
    rows = place.status()["neighbours"]["rows"]
    return all(row["state"] == state for row in rows if row["address"] == address)


def quarantined(place: Place) -> int:
    """Frames dropped at the inside port."""
    return int(place.status()["ports"][0]["steering"]["quarantined"])


@pytest.mark.lab
def test_a_frame_that_killed_twice_is_dropped_and_others_pass(place: Place) -> None:
    with place.inside.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.bind(("100.64.0.9", 4567))
        for _ in range(2):
            die_of(place, sender, "192.0.2.76", signal.SIGKILL)  # an operator's: nobody is to blame
        assert place.status()["quarantined"]["signatures"] == 0
        for _ in range(2):
            die_of(place, sender, "192.0.2.77", signal.SIGSEGV)
        (row,) = client.ask(place.socket, {"do": "quarantine"})["quarantine"]
        assert row["frames"] == "udp 100.64.0.9:4567 > 192.0.2.77:9" and row["deaths"] == "SIGSEGV, SIGSEGV"
        sender.sendto(b"the same each time", ("192.0.2.77", 9))
        until(lambda: quarantined(place) == 1, 10)
        sender.sendto(b"another one, though", ("192.0.2.77", 9))
        assert place.ping() == 3
        assert place.status()["quarantined"] == {"signatures": 1, "frames": 1}
        assert "dropped from now on: udp 100.64.0.9:4567" in place.log.read_text()
        assert client.ask(place.socket, {"do": "quarantine", "clear": True})["cleared"] == 1
        sender.sendto(b"the same each time", ("192.0.2.77", 9))
        assert place.ping() == 3 and quarantined(place) == 1
