"""The tests' own reading of the wire: lines, values and bytes say the same, and Scapy agrees."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP

from tests import checker, frames

LINES = """
udp 100.64.0.2:4000 > 198.51.100.9:53 ttl 3 len 20
udp 100.64.0.2:4000 > 198.51.100.9:53 len 33 checksum bad
udp 100.64.0.2:4000 > 198.51.100.9:53 checksum none
udp 100.64.0.2:4000 > 198.51.100.9:53 len 3 checksum partial
udp 100.64.0.2:4000 > 198.51.100.9:53 udp-length 20 len 33
tcp 100.64.0.2:4000 > 198.51.100.9:80 syn df mss 1460
tcp 100.64.0.2:4000 > 198.51.100.9:80 fin psh ack tcp-options 01020405b4010101 len 7
tcp 100.64.0.2:4000 > 198.51.100.9:80 ack len 9 checksum partial
echo 100.64.0.2:77 > 198.51.100.9 rest 3 len 56
echo-reply 198.51.100.9 > 100.64.0.2:77
timestamp 100.64.0.2:77 > 198.51.100.9 len 12
icmp/3/10 192.0.2.2 > 100.64.0.2 about [udp 100.64.0.2:4000 > 198.51.100.9:53]
time-exceeded 198.51.100.1 > 203.0.113.1 about [udp 203.0.113.1:1024 > 198.51.100.9:53 len 20 quote 8]
frag-needed 198.51.100.1 > 203.0.113.1 mtu 1400 about [tcp 203.0.113.1:1024 > 198.51.100.9:53 df len 1400 quote 8]
port-unreachable 198.51.100.1 > 203.0.113.1 about [tcp 203.0.113.1:1024 > 198.51.100.9:53 ack len 19 quote 25]
port-unreachable 198.51.100.1 > 203.0.113.1 len 4 about [echo 203.0.113.1:9 > 198.51.100.9 options router-alert]
ip/98 100.64.0.2 > 198.51.100.9 options record-route len 9
""".strip().splitlines()


ODD = ("checksum", "udp-length", "quote", "len 4")  # Scapy would put these right, or takes them for padding


@pytest.mark.parametrize("line", LINES)
def test_a_line_survives_the_wire(line: str) -> None:
    packet = frames.read(line)
    assert frames.dissect(frames.build(packet)) == packet
    assert str(packet) == line


@pytest.mark.parametrize("line", [line for line in LINES if not any(word in line for word in ODD)])
def test_scapy_computes_the_same_checksums(line: str) -> None:
    data = frames.build(frames.read(line))
    other = IP(data)
    for layer in (other, other.payload):
        if "chksum" in getattr(layer, "fields", {}):
            del layer.chksum
    assert bytes(other) == data


@pytest.mark.parametrize("line", ["udp 1.2.3.4:5", "frob 1.2.3.4 > 2.3.4.5", "udp 1.2.3.4:5 > 2.3.4.5:6 wobble 3", "udp a > b"])
def test_what_is_no_packet_is_said_to_be_none(line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        frames.read(line)


def test_the_checker_sees_what_is_wrong() -> None:
    def frame(line: str) -> bytes:
        return frames.build_frame(bytes(6), bytes(6), frames.build(frames.read(line)))

    received = frame("udp 100.64.0.2:4000 > 198.51.100.9:53 len 9")
    private = [(frames.address("100.64.0.0"), frames.address("255.255.0.0"))]
    assert checker.complaints(frame("udp 203.0.113.1:1024 > 198.51.100.9:53 len 9 ttl 63"), received, private) == []
    for wrong, complaint in {
        "udp 203.0.113.1:1024 > 198.51.100.9:53 len 9": "TTL",
        "udp 203.0.113.1:1024 > 198.51.100.9:53 len 9 ttl 63 checksum bad": "checksum",
        "udp 203.0.113.1:1024 > 198.51.100.9:53 len 9 ttl 63 ip-checksum bad": "malformed",
        "udp 100.64.0.2:1024 > 198.51.100.9:53 len 9 ttl 63": "internal address",
        "udp 203.0.113.1:1024 > 198.51.100.9:53 len 8 ttl 63": "bytes",
    }.items():
        assert complaint in str(checker.complaints(frame(wrong), received, private))
    leak = frame("time-exceeded 192.0.2.1 > 198.51.100.9 about [udp 198.51.100.9:53 > 100.64.0.2:4000]")
    assert "internal address" in str(checker.complaints(leak, None, private))
