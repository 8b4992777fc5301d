"""A real etcd for a test: one process on free loopback ports, its data in the test's folder."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from krononat.etcd import Etcd, Unreachable


class Server:
    """One member; `url` is where it answers."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("etcd")
        if program is None:
            pytest.skip("no etcd here: apt-get install etcd-server")
        client, peer = _free_ports()
        self.url, self._folder = f"http://127.0.0.1:{client}", folder
        peers = f"http://127.0.0.1:{peer}"
        self._words = [
            program, "--data-dir", str(folder / "etcd"), "--listen-client-urls", self.url, "--advertise-client-urls", self.url,
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"default={peers}",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        """Start it, again or for the first time, and wait until it answers."""
        with open(self._folder / "etcd.log", "a") as log:
            self._process = subprocess.Popen(self._words, stdout=log, stderr=log, env={"PATH": os.environ["PATH"]})
        until = time.monotonic() + 20
        while True:
            try:
                Etcd([self.url], 1.0).get("anything")
                return
            except Unreachable:
                assert time.monotonic() < until and self._process.poll() is None, (self._folder / "etcd.log").read_text()[
                    -2000:
                ]
                time.sleep(0.05)

    def freeze(self) -> None:
        """Let it answer nothing, and keep its connections."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        return one.getsockname()[1], two.getsockname()[1]
