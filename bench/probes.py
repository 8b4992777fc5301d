"""Latency over `bench wire`'s places: probes at a moderate rate from a packet socket to a UDP socket, both in user space.

A probe carries the time of its sending, and beside it the complement of that: a word and its complement add nothing to an
Internet checksum (RFC 1071), so the frame's is right whatever the time is.
"""

from __future__ import annotations

import gc
import socket
import struct
import time

import numpy as np

from bench.veths import SERVERS, Place, entered
from krononat.lab.namespaces import command
from shards.state import Array

PORT = 7778
_STAMP_AT = 44  # in the frame; 16 bytes: time and complement
_PAYLOAD_AT = 42
_AFTER_S = 0.02
_ALL = (1 << 64) - 1


class Probes:
    """Both ends of one place. `frames`: uint8 (flows, bytes), addressed to `PORT`."""

    def __init__(self, place: Place, frames: Array) -> None:
        self._frames = [frame.tobytes() for frame in frames]
        with entered(place.client):
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._out.bind(("gen0", 0))
        command("ip", "-n", place.server, "route", "replace", "local", SERVERS, "dev", "lo")
        with entered(place.server):
            self._into = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._into.bind(("", PORT))
        self._into.setblocking(False)

    def measure(self, seconds: float, rate: int) -> tuple[Array, float]:
        """Times under way in µs, and the share of probes that got lost."""
        gc.disable()
        try:
            sent, times = self._exchange(int(seconds * rate), 1_000_000_000 // rate)
        finally:
            gc.enable()
        return np.array(times) / 1000, 1 - len(times) / sent

    def _exchange(self, count: int, period_ns: int) -> tuple[int, list[int]]:
        times: list[int] = []
        begun = time.monotonic_ns()
        sent, last = 0, begun + count * period_ns + int(_AFTER_S * 1e9)
        while (now := time.monotonic_ns()) < last:
            if sent < count and now - begun >= sent * period_ns:
                self._out.send(stamped(self._frames[sent % len(self._frames)], time.monotonic_ns()))
                sent += 1
            try:
                payload = self._into.recv(64)
            except BlockingIOError:
                continue
            times.append(time.monotonic_ns() - stamp_of(payload))
        return sent, times

    def close(self) -> None:
        """Both sockets."""
        self._out.close()
        self._into.close()


def stamped(frame: bytes, now: int) -> bytes:
    """The frame with a time in it, in ns, and its UDP checksum still right."""
    return frame[:_STAMP_AT] + struct.pack("<QQ", now, now ^ _ALL) + frame[_STAMP_AT + 16 :]


def stamp_of(payload: bytes) -> int:
    """The time that a probe carries."""
    now, complement = struct.unpack_from("<QQ", payload, _STAMP_AT - _PAYLOAD_AT)
    if now ^ complement != _ALL:
        raise RuntimeError("a probe came back damaged")
    return int(now)
