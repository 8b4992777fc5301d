"""BFD daemons of others as neighbours: BIRD and FRR, each with files of its own in a folder, in a namespace of a test.

A neighbour is another machine and has CPUs of its own. Here it is kept off the core's CPU and goes before whoever floods: all
frames of a flooded veth are handed up on the CPU of whoever sent the first of them (NAPI). Were that the core's, it and the
kernel's thread there (ksoftirqd) would take the CPU from each other, a veth's ring of 256 overflow, and BFD be lost before
anybody of ours could see it: sessions fell in five of twelve minutes of flood, and not once in eight minutes so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from tests.netns import Namespace

_FRR = Path("/usr/lib/frr")
_NICENESS = "-20"


class Pace(NamedTuple):
    """What a session is set to."""

    interval_ms: int = 50
    multiplier: int = 3


class Daemon(Protocol):
    """Somebody who speaks BFD with the core."""

    def is_up(self) -> bool:
        """Whether its session is up."""

    def falls(self) -> list[float]:
        """When its session went down: seconds of the wall clock."""


class Bird:
    """BIRD with one session."""

    def __init__(self, folder: Path, namespace: Namespace) -> None:
        self._folder, self._namespace = folder, namespace

    @staticmethod
    @contextlib.contextmanager
    def speaking(folder: Path, namespace: Namespace, own: str, peer: str, pace: Pace, core: int) -> Iterator[Bird]:
        """BIRD, for a while, beside a core on that CPU."""
        _need("bird", "bird2")
        folder.mkdir()
        (folder / "bird.conf").write_text(
            f'log "{folder}/log" all;\ntimeformat log iso long us;\nrouter id {own};\nprotocol device {{ }}\n'
            f'protocol bfd watch {{ debug {{ states, events }}; interface "eth0" {{ min rx interval {pace.interval_ms} ms; '
            f"min tx interval {pace.interval_ms} ms; idle tx interval 1 s; multiplier {pace.multiplier}; }};\n"
            f"  neighbor {peer} local {own}; }}\n"
        )
        words = ["bird", "-f", "-c", f"{folder}/bird.conf", "-s", f"{folder}/ctl", "-P", f"{folder}/pid"]
        with _running(namespace, _elsewhere(core, words), folder):
            yield Bird(folder, namespace)

    def is_up(self) -> bool:
        """Whether its session is up."""
        told = self._namespace.run("birdc", "-s", f"{self._folder}/ctl", "show", "bfd", "sessions", check=False).stdout
        return bool(re.search(r"^\d\S+\s+eth0\s+Up\b", told, re.MULTILINE))

    def falls(self) -> list[float]:
        """When its session went down: seconds of the wall clock."""
        lines = (self._folder / "log").read_text().splitlines()
        told = [line for line in lines if re.search(r"changed state from Up to Down", line)]
        return [datetime.fromisoformat(" ".join(line.split()[:2])).timestamp() for line in told]


class Frr:
    """FRR's bfdd, with the zebra that it needs, and one session."""

    def __init__(self, folder: Path, namespace: Namespace) -> None:
        self._folder, self._namespace = folder, namespace
        self._falls: list[float] = []

    @staticmethod
    @contextlib.contextmanager
    def speaking(folder: Path, namespace: Namespace, own: str, peer: str, pace: Pace, core: int) -> Iterator[Frr]:
        """Both daemons, for a while, beside a core on that CPU."""
        _need(str(_FRR / "bfdd"), "frr")
        folder.mkdir()
        (folder / "zebra.conf").write_text("")
        (folder / "bfdd.conf").write_text(
            "log timestamp precision 6\ndebug bfd peer\n"
            f"bfd\n peer {peer} local-address {own} interface eth0\n  detect-multiplier {pace.multiplier}\n"
            f"  receive-interval {pace.interval_ms}\n  transmit-interval {pace.interval_ms}\n  no shutdown\n exit\nexit\n"
        )
        with contextlib.ExitStack() as running:
            for name, more in (("zebra", []), ("bfdd", ["--bfdctl", f"{folder}/bfdd.ctl"])):
                words = [str(_FRR / name), "-f", f"{folder}/{name}.conf", "-i", f"{folder}/{name}.pid", "-z", f"{folder}/zserv"]
                words += ["--vty_socket", str(folder), "-P", "0", "-u", "root", "-g", "frrvty", "--log", "stdout", *more]
                running.enter_context(_running(namespace, _elsewhere(core, words), folder, name))
            yield Frr(folder, namespace)

    def _peer(self) -> dict[str, object]:
        words = ("vtysh", "--vty_socket", str(self._folder), "-c", "show bfd peers json")
        with contextlib.suppress(ValueError, IndexError):
            told: dict[str, object] = json.loads(self._namespace.run(*words, check=False).stdout)[0]
            return told
        return {}

    def is_up(self) -> bool:
        """Whether its session is up."""
        return self._peer().get("status") == "up"

    def falls(self) -> list[float]:
        """When its session went down: seconds of the wall clock."""
        lines = (self._folder / "bfdd.out").read_text().splitlines()
        told = [line for line in lines if re.search(r"state-change: .* up -> down", line)]
        return [datetime.strptime(" ".join(line.split()[:2]), "%Y/%m/%d %H:%M:%S.%f").timestamp() for line in told]


def _need(program: str, package: str) -> None:
    if shutil.which(program) is None:
        pytest.fail(f"{program} is missing: apt-get install {package}")


def _elsewhere(core: int, words: list[str]) -> list[str]:
    """The command, on any CPU but the core's (of one CPU: there), before others."""
    cpus = os.sched_getaffinity(0) - {core} or {core}
    return ["taskset", "--cpu-list", ",".join(map(str, cpus)), "nice", "-n", _NICENESS, *words]


@contextlib.contextmanager
def _running(namespace: Namespace, words: list[str], folder: Path, name: str = "daemon") -> Iterator[None]:
    with (folder / f"{name}.out").open("w") as said:
        process = namespace.start(*words, stdout=said, stderr=said)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
