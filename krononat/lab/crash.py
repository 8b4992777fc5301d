"""The worker is killed with ``kill -9`` under a running download, and nobody but a stopwatch should notice."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time

from krononat.lab import servers
from krononat.lab.laboratory import Lab
from krononat.lab.traffic import Outcome, sha256

GAP_AT_MOST_S = 3.0
_RATE = "40M"  # bytes/s: the download lasts about two and a half seconds
_KILL_AFTER_S = 1.0
_PING_EVERY_S = 0.02


def kill_worker(lab: Lab, client: str = "c1") -> Outcome:
    """Kill the worker during a download: the same connection ends with the right sha256, and packets stop for under 3 s."""
    arrived = lab.folder / "crash.bin"
    target = lab.topology.address("h1")
    pings = lab.start(client, "crash-ping", ("ping", "-n", "-D", "-i", str(_PING_EVERY_S), target))
    url = f"http://{target}/payload.bin"
    words = ("curl", "-sS", "--fail", "--max-time", "60", "--limit-rate", _RATE, "-o", str(arrived), url)
    download = lab.start(client, "crash-curl", words)
    time.sleep(_KILL_AFTER_S)
    before = lab.worker()
    os.kill(before, signal.SIGKILL)
    ended = download.wait(90)
    pings.send_signal(signal.SIGINT)
    pings.wait(10)
    wanted, found = sha256(servers.payload(lab.folder)), sha256(arrived)
    arrived.unlink(missing_ok=True)
    gap_s = longest_gap_s(lab.log("crash-ping").read_text())
    after = lab.worker()
    held = ended == 0 and wanted == found and before != after and gap_s < GAP_AT_MOST_S
    told = f"download went on (sha256 {'equal' if wanted == found else 'differs'}), longest gap {gap_s:.2f} s"
    return Outcome("kill_worker", held, told, {"gap_s": gap_s, "workers": [before, after], "curl": ended})


def longest_gap_s(pings: str) -> float:
    """Longest time between two answers in the output of ``ping -D``; infinite with fewer than two."""
    times = [float(each) for each in re.findall(r"^\[([\d.]+)\] \d+ bytes from", pings, re.MULTILINE)]
    return round(max((b - a for a, b in itertools.pairwise(times)), default=float("inf")), 3)
