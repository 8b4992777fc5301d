"""A place for one appliance: a client, the core's namespace and a server; and the appliance in it, from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from krononat import client, view
from tests.netns import Namespace, namespace

PATIENCE_S = 240  # a cold cache is compiled first
CONFIG = """
[server]
name = "krnsv"
[interfaces.internal]
name = "in0"
address = "100.64.0.1/24"
[interfaces.external]
name = "out0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
[memory]
sessions = 10000
[[subscribers]]
prefix = "100.64.0.0/24"
pool = "main"
[[pool]]
name = "main"
prefixes = ["192.0.2.64/30"]
[control]
socket = "SOCKET"
"""


class Place:
    """A client, the core's namespace and a server; and the appliance's configuration."""

    def __init__(self, folder: Path, inside: Namespace, core: Namespace, outside: Namespace) -> None:
        self.inside, self.core, self.outside = inside, core, outside
        self.socket = str(folder / "krnsv.sock")
        self.record = folder / "krnsv.sock.undo"
        self.config = folder / "krnsv.toml"
        self.log = folder / "krnsv.log"
        self.config.write_text(CONFIG.replace("SOCKET", self.socket))

    def start(self, *before: str) -> subprocess.Popen[str]:
        """`krononat run`, in the core's namespace."""
        command = (*before, sys.executable, "-m", "krononat", "run", "-c", str(self.config))
        with self.log.open("w") as log:
            return self.core.start(*command, stdout=log, stderr=log)

    def run(self, *before: str) -> tuple[int, str]:
        """The same for what ends by itself: exit status and messages."""
        status = self.start(*before).wait(60)
        return status, self.log.read_text()

    @contextmanager
    def appliance(self) -> Iterator[subprocess.Popen[str]]:
        """A running one, ready when its socket answers; ended the hard way if a test did not."""
        process = self.start()
        try:
            until(lambda: self.answers() or process.poll() is not None, PATIENCE_S)
            assert process.poll() is None, self.log.read_text()
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(20)

    def end_orphan(self) -> None:
        """End whoever a killed run has left, as a test has failed before somebody took him over."""
        with contextlib.suppress(OSError, ValueError):
            pid, _ = json.loads(Path(f"{self.socket}.heir.pid").read_text())
            os.kill(pid, signal.SIGKILL)
            until(lambda: not alive(pid), 5)

    def answers(self) -> bool:
        """Whether somebody is there (a killed one leaves its socket behind)."""
        with contextlib.suppress(client.Trouble):
            return bool(self.status())
        return False

    def status(self) -> dict[str, Any]:
        """What the appliance says of itself."""
        told: dict[str, Any] = client.ask(self.socket, {"do": "status"})["status"]
        return told

    def ping(self, count: int = 3, timeout_s: int = 2) -> int:
        """Answers that the client gets from the server."""
        told = self.inside.run("ping", "-c", str(count), "-i", "0.05", "-W", str(timeout_s), "192.0.2.1", check=False).stdout
        return told.count("bytes from")

    def asks(self, source: str) -> int:
        """Answers that one address of the client gets from the server, to three questions."""
        words = ("-I", source, "-c", "3", "-i", "0.05", "-W", "2", "192.0.2.1")
        return self.inside.run("ping", *words, check=False).stdout.count("bytes from")

    def krononat(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command about the appliance."""
        return self.core.run(sys.executable, "-m", "krononat", *words, "--socket", self.socket)

    def sessions(self, internal: str) -> list[view.Session]:
        """Those of an internal address, by their rows."""
        descriptor = client.memory(self.socket)
        try:
            return list(view.sessions(view.open_view(descriptor), view.Filter(source=IPv4Network(internal))))
        finally:
            os.close(descriptor)

    def external(self, internal: str) -> str:
        """External address of an internal one's last session."""
        return next((told.external for told in reversed(self.sessions(internal))), "")

    def until_spare(self, other_than: int = 0) -> None:
        """Until a spare worker stands by."""
        until(lambda: self._stands_by(other_than), PATIENCE_S)

    def _stands_by(self, other_than: int) -> bool:
        spare = self.status()["spare"]
        return bool(spare["state"] == "ready" and spare["pid"] != other_than)

    def replaced(self, pid: int) -> bool:
        """Whether another worker than this one is ready: of one answer, for between two a worker may die."""
        worker = self.status()["worker"]
        return bool(worker["ready"] and worker["pid"] != pid)

    def breaths(self) -> int:
        """Breaths of the worker until now."""
        descriptor = client.memory(self.socket)
        try:
            return int(view.open_view(descriptor).core[0]["breaths"])
        finally:
            os.close(descriptor)

    def settings(self) -> str:
        """All that may have been changed and must be as it was."""
        told = [
            self.core.ip("-o addr"),
            self.core.ip("route show table all"),
            self.core.ip("-d link").replace("qdisc noqueue", "qdisc noop"),
        ]
        told += [self.core.run("ethtool", "-k", name).stdout for name in ("in0", "out0")]
        told += [self.core.run("sh", "-c", f"grep . /proc/sys/net/ipv4/conf/{name}/*").stdout for name in ("in0", "out0")]
        return "\n".join(line for text in told for line in text.splitlines() if "valid_lft" not in line)


def until(reached: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process runs (one that nobody has waited for yet does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def a_place(prefix: str, folder: Path) -> Iterator[Place]:
    """Namespaces whose names begin with `prefix`; the external interface has two queues."""
    with namespace(f"{prefix}-c") as inside, namespace(f"{prefix}-n") as core, namespace(f"{prefix}-s") as outside:
        core.ip(f"link add in0 type veth peer name eth0 netns {inside.name}")
        core.ip(f"link add out0 numrxqueues 2 numtxqueues 2 type veth peer name eth0 netns {outside.name}")
        inside.ip("addr add 100.64.0.9/24 dev eth0")
        outside.ip("addr add 192.0.2.1/24 dev eth0")
        for end in (inside, outside):
            end.ip("link set eth0 up")
        inside.ip("route add default via 100.64.0.1")
        made = Place(folder, inside, core, outside)
        try:
            yield made
        finally:
            made.end_orphan()
