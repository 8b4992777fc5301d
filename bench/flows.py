"""First packets of new flows, laid down by numpy: UDP, 60 bytes (64 on the wire), without UDP checksum.

Flow n is remote n % remotes of endpoint n // remotes; 63 endpoints are a subscriber's, as in CSIT's NAT44 ladder.
"""

from __future__ import annotations

import numpy as np

from bench.traffic import FRAME_BYTES, packets_of
from shards.state import Array

MAPPINGS_EACH = 63
SUBSCRIBERS, REMOTES = 0x64400000, 0x08000000  # 100.64.0.0, 8.0.0.0
TO_MAC, FROM_MAC = bytes((2, 0, 0, 0, 0, 1)), bytes((2, 0, 0, 0, 0, 9))


def frames_of(flows: Array, remotes: int) -> Array:
    """A packet outbound of each flow, FRAME_BYTES apart: uint8, flat."""
    frames = np.zeros((len(flows), FRAME_BYTES), np.uint8)
    packets = packets_of(frames.reshape(-1))
    packets[:, :14] = np.frombuffer(TO_MAC + FROM_MAC + b"\x08\x00", np.uint8)
    packets[:, 14:42] = _headers(flows, remotes).view(np.uint8).reshape(len(flows), 28)
    return frames.reshape(-1)


def _headers(flows: Array, remotes: int) -> Array:
    """IPv4 and UDP headers as big-endian 16-bit words: (flows, 14)."""
    endpoint = flows // remotes
    source = SUBSCRIBERS + 2 + endpoint // MAPPINGS_EACH
    destination = REMOTES + (flows * 2654435761 & 0xFFFFFF)
    words = np.zeros((len(flows), 14), ">u2")
    words[:, 0], words[:, 1], words[:, 4] = 0x4500, 46, 64 << 8 | 17
    words[:, 6], words[:, 7], words[:, 8], words[:, 9] = source >> 16, source, destination >> 16, destination
    words[:, 10], words[:, 11], words[:, 12] = 1024 + endpoint % MAPPINGS_EACH, 443 + flows % remotes, 26
    total = words[:, :10].sum(axis=1, dtype=np.uint32)
    total = (total & 0xFFFF) + (total >> 16)
    words[:, 5] = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return words
