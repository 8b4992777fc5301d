"""User-space steering of memif ports says what the BPF program of a device says, frame by frame."""

from __future__ import annotations

import random
import struct
from ipaddress import IPv4Address

import numpy as np
import pytest

from shards import bpf, tap
from shards.memif_rings import LINE
from shards.outcomes import BFD_PORT, OUTCOMES, REDIRECTED, SHUNT_PORT
from shards.steering import Steering
from tests.veth import ipv4, ipv6

OWN, BROADCAST = ["100.64.0.1", "192.0.2.2"], ["100.64.0.255", "100.64.0.0"]
ADDRESSES = (
    "100.64.0.1", "192.0.2.2", "100.64.0.255", "100.64.0.0", "100.64.0.2", "198.51.100.7", "255.255.255.255", "224.0.0.1",
    "239.255.255.255", "240.0.0.1", "223.255.255.255", "169.254.0.0", "169.254.255.255", "169.253.255.255", "169.255.0.0",
)  # fmt: skip
ADDRESSES6 = ("ff02::1", "ff00::", "fe80::1", "febf::1", "fec0::1", "2001:db8::1", "2001:db8::7")
TAGS = ("", "81000005", "88a80005", "8100000588a80006", "810000058100000681000007")


def frames() -> list[bytes]:
    """Every kind of destination behind every kind of tags, whole, cut short and damaged."""
    random_, told = random.Random(4), []
    for text in TAGS:
        tags = bytes.fromhex(text)
        told += [ipv4(address, tags=tags) for address in ADDRESSES]
        told += [ipv4(address, tags=tags, port=port) for address in [*OWN, "100.64.0.2"] for port in (SHUNT_PORT, BFD_PORT)]
        told += [ipv6(address, 17, tags=tags) for address in ADDRESSES6]
        told += [ipv6("2001:db8::1", 58, bytes([kind]) + bytes(7), tags=tags) for kind in (132, 133, 137, 138)]
        told += [bytes(12) + tags + kind + bytes(46) for kind in (b"\x08\x06", b"\x88\xcc", b"\0\x40")]
    for frame in list(told):
        told += [frame[:length] for length in random_.sample(range(14, len(frame)), 6)]
        damaged = bytearray(frame)
        damaged[random_.randrange(12, len(frame))] = random_.randrange(256)
        told.append(bytes(damaged))
    return told + nearly_shunted()


def nearly_shunted() -> list[bytes]:
    """A shunted packet to the core's own address, with each byte of its headers changed, and cut at each length."""
    shunted, told = ipv4(OWN[1], port=SHUNT_PORT), []
    for at in range(14, len(shunted)):
        told += [shunted[:at] + bytes([shunted[at] ^ bit]) + shunted[at + 1 :] for bit in (1, 0x20, 0x40, 0x80)]
        told.append(shunted[:at])
    return told


@pytest.mark.lab
@pytest.mark.parametrize("speaks_bfd", [True, False])
def test_steering_is_the_same_in_the_kernel_and_in_user_space(speaks_bfd: bool) -> None:
    line = np.zeros(1, LINE)[0]
    line["bfd"] = speaks_bfd
    line["own6"] = [0x2001_0DB8, 0, 0, 7, -1, -1, -1, -1]
    line["own"], line["broadcast"] = ([int(IPv4Address(text)) for text in told] for told in (OWN, BROADCAST))
    context, seen = np.zeros(4096, np.uint8), set()
    with Steering([*OWN, "2001:db8::7"], BROADCAST, bfd=speaks_bfd) as steering:
        for frame in frames():
            steering.reset()
            bpf.run(steering.program, frame, struct.pack("<6I", 0, len(frame), 0, 1, 0, 0))
            (name,) = (name for name, (packets, _) in steering.count().items() if packets)
            context[64 : 64 + len(frame)] = np.frombuffer(frame, np.uint8)
            said = tap.outcome(context, 64, len(frame), line)
            # Without a socket the program drops what it would redirect.
            assert ("no_socket" if said == REDIRECTED else OUTCOMES[said].name) == name, frame.hex()
            seen.add(name)
    assert seen == {outcome.name for outcome in OUTCOMES} - {"redirected", "control", "quarantined"}
