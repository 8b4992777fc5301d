"""The store of a laboratory's map, if that is no file: one etcd, on the network that cores replicate by, and on no other.

A server that is cut off that network is cut off its store as well. What it holds survives its death, on disk.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from krononat.client import Trouble
from krononat.lab import cluster, namespaces

if TYPE_CHECKING:
    from krononat.lab.laboratory import Lab

NODE, LABEL = "fabric", "etcd"
PATIENCE_S = 20.0
_PEERS = "http://127.0.0.1:2380"


def programs(wanted: cluster.Wanted) -> tuple[str, ...]:
    """What must be installed."""
    return ("etcd",) if wanted.etcd else ()


def start(lab: Lab) -> None:
    """Start it, for the first time or again; returns when it answers. Without a cluster that wants one, nothing."""
    if lab.wanted is None or not lab.wanted.etcd or running(lab):
        return
    words = ["etcd", "--data-dir", str(lab.folder / "etcd"), "--listen-peer-urls", _PEERS]
    words += ["--initial-advertise-peer-urls", _PEERS, "--initial-cluster", f"default={_PEERS}"]
    words += ["--listen-client-urls", cluster.STORE, "--advertise-client-urls", cluster.STORE]
    process = lab.start(NODE, LABEL, words)
    deadline = time.monotonic() + PATIENCE_S
    while lab.run(NODE, sys.executable, "-m", __name__, "ask", timeout_s=10.0).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise Trouble("etcd did not start", lab.log(LABEL).read_text(errors="replace")[-1000:])


def fill(lab: Lab, path: Path) -> None:
    """Have it hold the map of a file."""
    done = lab.run(NODE, sys.executable, "-m", __name__, "fill", str(path))
    if done.returncode:
        raise Trouble("etcd was not given the map", done.stderr.strip()[-500:])


def running(lab: Lab) -> list[int]:
    """Its process, if it is there."""
    found = []
    for number in namespaces.processes(lab.namespace[NODE]):
        with suppress(OSError):
            if Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")[0].endswith(b"etcd"):
                found.append(number)
    return found


def kill(lab: Lab) -> None:
    """As a crash does."""
    for number in running(lab):
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE_S
    while running(lab) and time.monotonic() < deadline:
        time.sleep(0.01)


def _main(what: str, *paths: str) -> None:
    """Run in the store's namespace: whether it answers; what it is to hold."""
    from krononat.mapstore import EtcdStore

    store = EtcdStore([cluster.STORE])
    before = store.read()
    if what == "fill":
        with store.lock("krononat lab,") as lock:
            store.write(Path(paths[0]).read_text(), before, lock)


if __name__ == "__main__":
    _main(*sys.argv[1:])
