"""Network namespaces for tests: made under a name of their own, entered by a thread for a while, gone afterwards.

Without root such tests are skipped, but under CI=true they fail: what was not run has not been shown.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A namespace that exists; everything is done in it by `ip netns exec` or by a thread that enters it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A finished command inside."""
        told = ["ip", "netns", "exec", self.name, *command]
        return subprocess.run(told, check=check, capture_output=True, text=True, timeout=60)

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """A running command inside."""
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], text=True, **options)

    def ip(self, command: str) -> str:
        """An `ip` command inside."""
        return subprocess.run(
            ["ip", "-n", self.name, *command.split()], check=True, stdout=subprocess.PIPE, text=True, timeout=10
        ).stdout

    def ip_batch(self, commands: Iterable[str]) -> None:
        """Several of them."""
        words = ["ip", "-n", self.name, "-batch", "-"]
        subprocess.run(words, input="\n".join(commands), check=True, capture_output=True, text=True, timeout=10)

    def link(self, interface: str) -> dict[str, Any]:
        """What `ip -json link` says of an interface."""
        told: list[dict[str, Any]] = json.loads(self.ip(f"-json -details link show {interface}"))
        return told[0]

    def mac(self, interface: str) -> str:
        """MAC address of an interface."""
        return str(self.link(interface)["address"])

    def index(self, interface: str) -> int:
        """Interface index."""
        return int(self.link(interface)["ifindex"])

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is inside meanwhile; sockets it makes stay inside."""
        with open("/proc/thread-self/ns/net", "rb") as before, Path(f"/run/netns/{self.name}").open("rb") as inside:
            _enter(inside.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def namespace(name: str) -> Iterator[Namespace]:
    """A new namespace with its loopback up; removed afterwards."""
    if os.geteuid() != 0:
        told = "network namespaces need root"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True, timeout=10)
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=10)
    try:
        inside = Namespace(name)
        inside.ip("link set lo up")
        yield inside
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=10)
