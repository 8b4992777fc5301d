"""Debian's `dpdk-testpmd` as the other side of memif ports: a server for each, forwarding between it and a veth's end."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.netns import Namespace

_serial = itertools.count()
_MEGABYTES, _MBUFS = 256, 16384  # of memory without huge pages; what testpmd takes by itself does not fit


@contextmanager
def serving(where: Namespace, socket: Path, devices: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """One that listens at `socket` and joins its n-th memif interface with the n-th device, both ways."""
    if shutil.which("dpdk-testpmd") is None:
        told = "dpdk-testpmd is not installed: apt install dpdk-dev"
        if os.environ.get("CI") == "true":
            pytest.fail(told)
        pytest.skip(told)
    socket.unlink(missing_ok=True)  # one that was killed leaves it, and cannot listen there then
    with log.open("w") as file:
        process = where.start(
            *_command(socket, devices), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, process_group=0
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _command(socket: Path, devices: list[str]) -> list[str]:
    servers = [
        f"--vdev=net_memif{number},role=server,id={number},socket={socket},socket-abstract=no" for number in range(len(devices))
    ]
    packets = [f"--vdev=net_af_packet{number},iface={device}" for number, device in enumerate(devices)]
    pairs = ",".join(f"{number},{number + len(devices)}" for number in range(len(devices)))
    return [
        *("dpdk-testpmd", "--lcores=0@0,1@0", "--no-huge", "-m", str(_MEGABYTES), "--no-pci", "--no-telemetry"),
        f"--file-prefix=krnmf{os.getpid()}-{next(_serial)}",
        *servers,
        *packets,
        *("--", f"--total-num-mbufs={_MBUFS}", f"--portlist={pairs}", "--port-topology=paired", "--forward-mode=io"),
        "--stats-period=60",  # without it testpmd ends when its standard input does
    ]
