"""`krononat bench start`: from spawning `krononat run` to the first packet that came through, and what compiling it all costs.

Every start is in new wires (`bench.veths`), where nothing is known yet: no neighbour, no session. A subscriber sends a UDP
datagram every few milliseconds from the moment of spawning on; the clock stops when one of them has been forwarded, and its
answer has been, too. Each carries the time of its sending, so it is also seen how long the very first one through was under
way. Then a TCP handshake and an ICMP echo, each once, the first of their kind. All ends are ordinary sockets of the kernel's.

Compiling is `krononat compile` into an empty folder, from spawning to exit; the starts then find that cache, warm. With
`--quick` it is left out, since it takes longer than that may, and the starts use the user's cache.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench import devices, report
from bench.devices import Running
from bench.report import Result, Told
from bench.veths import CLIENT, SERVER, Place, entered
from krononat import client
from krononat.client import Trouble
from krononat.lab import namespaces

KIND = "veth"
PREFIX = "sta"
GOAL_S, COMPILE_GOAL_S = 5.0, 90.0

STARTS, QUICK_STARTS = 7, 3
SESSIONS = 1_000_000  # what `krononat config init` proposes
EVERY_S = 0.003  # between two datagrams
PATIENCE_S = 5.0  # for a handshake or an echo
PORT = 7779

_STAMP = struct.Struct("<d")
_ECHO, _REPLY = struct.pack("!BBHHH", 8, 0, 0xF7FD, 1, 1), 0  # RFC 792; number 1 of identifier 1, checksum ready
_IP_HEADER = 20  # a raw socket hands it up


class Start(NamedTuple):
    """One of them: seconds until the first answer, how long each kind's first was under way, compilations after the start."""

    seconds: float
    answers: dict[str, float]
    late_compilations: int


class Ends:
    """A subscriber and a server on both sides of a place; one thread does the work of both."""

    def __init__(self, place: Place, undoing: contextlib.ExitStack) -> None:
        def made(kind: int, protocol: int = 0) -> socket.socket:
            return undoing.enter_context(socket.socket(socket.AF_INET, kind, protocol))

        with entered(place.client):
            self._asking, self._calling = made(socket.SOCK_DGRAM), made(socket.SOCK_STREAM)
            self._echoing = made(socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with entered(place.server):
            self._answering, self._listening = made(socket.SOCK_DGRAM), made(socket.SOCK_STREAM)
        for server in (self._answering, self._listening):
            server.bind((SERVER, PORT))
        self._listening.listen()
        for subscriber in (self._asking, self._calling, self._echoing):
            subscriber.bind((CLIENT, 0))
            subscriber.settimeout(PATIENCE_S)
        self._asking.connect((SERVER, PORT))

    def ask(self) -> float | None:
        """Send a datagram; how long the one was under way whose answer came, None if none did soon."""
        self._asking.send(_STAMP.pack(time.monotonic()))
        latest = time.monotonic() + EVERY_S
        while (left := latest - time.monotonic()) > 0:
            ready, _, _ = select.select([self._answering, self._asking], [], [], left)
            if self._answering in ready:
                self._answering.sendto(*self._answering.recvfrom(64))
            if self._asking in ready:
                (sent,) = _STAMP.unpack(self._asking.recv(64))
                return time.monotonic() - float(sent)
        return None

    def call(self) -> float:
        """Seconds that a TCP handshake takes."""
        begun = time.monotonic()
        self._calling.connect((SERVER, PORT))
        return time.monotonic() - begun

    def echo(self) -> float:
        """Seconds that an ICMP echo takes."""
        begun = time.monotonic()
        self._echoing.sendto(_ECHO, (SERVER, 0))
        while self._echoing.recv(64)[_IP_HEADER] != _REPLY:
            pass
        return time.monotonic() - begun


def run(quick: bool, told: Told) -> list[Result]:
    """All of it; Trouble where root or programs are missing, or where it does not start."""
    namespaces.need("ip")
    with tempfile.TemporaryDirectory(prefix="krononat-start-") as folder:
        environment = {} if quick else {"KRONONAT_CACHE": folder}
        told("filling the cache (only with a cold one does that take long)" if quick else "compiling from cold: a minute or so")
        took = compile(environment)
        starts = []
        for number in range(QUICK_STARTS if quick else STARTS):
            told(f"start {number + 1}")
            with Place("start", PREFIX) as place:
                starts.append(begin(place, environment))
    if quick:
        told("start/compile is left out: a minute is too long for --quick")
    return figures(starts, None if quick else took)


def compile(environment: Mapping[str, str]) -> float:
    """Seconds that `krononat compile` takes, from spawning it to its end."""
    begun = time.monotonic()
    added = (f"{name}={value}" for name, value in environment.items())
    namespaces.command("env", *added, sys.executable, "-m", "krononat", "compile", "--output", "json")
    return time.monotonic() - begun


def begin(place: Place, environment: Mapping[str, str], sessions: int = SESSIONS) -> Start:
    """Start the appliance in a place, have the first packet of each kind pass, and stop it."""
    with contextlib.ExitStack() as undoing:
        folder = Path(undoing.enter_context(tempfile.TemporaryDirectory(prefix="krononat-start-")))
        config = devices.configuration(folder, max(os.sched_getaffinity(0)), sessions)
        ends = Ends(place, undoing)
        begun = time.monotonic()
        running = undoing.enter_context(devices.spawned(place.device, folder, config, environment))
        answers = {"udp": _first_answer(ends, running, begun + devices.STARTING_S)}
        seconds = time.monotonic() - begun
        try:
            answers |= {"tcp": ends.call(), "icmp": ends.echo()}
        except OSError as late:
            raise Trouble("a handshake or an echo did not come through", running.said()) from late
        running.answers()
        worker = client.ask(str(running.socket), {"do": "status"})["status"]["worker"]
        return Start(seconds, answers, int(worker["late_compilations"]))


def _first_answer(ends: Ends, running: Running, latest: float) -> float:
    while (took := ends.ask()) is None:
        running.check(latest)
    return took


def figures(starts: list[Start], compiled_s: float | None) -> list[Result]:
    """What they amount to."""
    results = [
        report.measured("start/first_packet", "s", [each.seconds for each in starts], GOAL_S),
        report.measured("start/first_answer_ms", "ms", [1000 * max(each.answers.values()) for each in starts]),
        report.measured("start/late_compilations", "count", [sum(each.late_compilations for each in starts)], 0),
    ]
    if compiled_s is not None:
        results.append(report.measured("start/compile", "s", [compiled_s], COMPILE_GOAL_S))
    return results


start = report.command("start", KIND, run, "From a start to the first packet, and the compiler's time.")

if __name__ == "__main__":
    start()
