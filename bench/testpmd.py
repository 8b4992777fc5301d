"""`dpdk-testpmd`, the forwarder that everybody in this field knows, as a child process: start, ask, stop.

Each instance gets two lcores on one CPU: the first reads commands and sleeps, the second forwards and never sleeps. Its memory
is hugepages, reserved here for as long as it runs and given back afterwards. Commands go to its standard input; `stdbuf` has it
print its answers at once, since into a pipe it would keep them.

Specified in DPDK's "Testpmd Application User Guide" (22.11, as in Debian 12).
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from krononat.client import NO_PRIVILEGE, Trouble

PATIENCE_S = 20.0
MBUFS = 32768  # more than the rings and caches of two ports hold
MEMORY_MIB = 128  # what they take, with room for rings
HUGEPAGE_MIB = 2

_NR_HUGEPAGES = Path("/proc/sys/vm/nr_hugepages")
_PROMPT = "testpmd> "
_COUNT = re.compile(r"(RX-packets|RX-missed|TX-packets|TX-errors|RX-nombuf): +(\d+)")
_STATISTICS = re.compile(r"NIC statistics for port (\d+) .*?\n *#{40,}\n", re.DOTALL)


class Counts(NamedTuple):
    """What a port has received and sent since it was started, in packets, and when (s, monotonic) it was asked."""

    received: int
    sent: int
    at: float


def need() -> None:
    """Trouble unless testpmd can be run here."""
    if shutil.which("dpdk-testpmd") is None:
        raise Trouble("there is no dpdk-testpmd to compare with", "", "apt-get install --no-install-recommends dpdk-dev")
    if os.geteuid() != 0:
        raise Trouble("you may not run this bench", "hugepages and namespaces need root", "try again as root", NO_PRIVILEGE)


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is inside as Ctrl-C does, so that it can take everything back."""
    before = {number: signal.signal(number, _terminated) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _terminated(number: int, _: object) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def hugepages(mib: int) -> Iterator[None]:
    """So many MiB of 2 MiB pages more than there are, for a while. Trouble where memory is too scattered for them."""
    more = -(-mib // HUGEPAGE_MIB)
    _reserve(more)
    try:
        yield
    finally:
        _reserve(-more)


def _reserve(more: int) -> None:
    wanted = int(_NR_HUGEPAGES.read_text()) + more
    _NR_HUGEPAGES.write_text(str(wanted))
    if more > 0 and (got := int(_NR_HUGEPAGES.read_text())) < wanted:
        _NR_HUGEPAGES.write_text(str(got - max(0, got - (wanted - more))))
        raise Trouble(f"no memory for {more} hugepages", f"the kernel found {got}", "end what uses memory, or reboot")


class Testpmd:
    """A running testpmd on one CPU; `with` ends it. It forwards from `start` to `stop`."""

    __test__ = False  # no test of pytest's

    def __init__(self, cpu: int, devices: Sequence[str], options: Sequence[str], namespace: str | None = None) -> None:
        """`devices`: arguments of --vdev; `options`: testpmd's own, beyond EAL's."""
        words = [f"--vdev={device}" for device in devices]
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        self._line = [
            *inside, "stdbuf", "-o0", "dpdk-testpmd", f"--lcores=0@{cpu},1@{cpu}", "-m", str(MEMORY_MIB), "--in-memory",
            "--no-pci", "--no-telemetry", *words, "--", "-i", "--nb-cores=1",
            f"--total-num-mbufs={MBUFS}", *options,
        ]  # fmt: skip
        self._told = ""

    def __enter__(self) -> Testpmd:
        with contextlib.ExitStack() as undoing:
            undoing.enter_context(hugepages(MEMORY_MIB))
            # A session of its own: Ctrl-C is for the bench, which then ends it.
            self._process = subprocess.Popen(
                self._line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
            undoing.callback(self._end)
            assert self._process.stdout
            os.set_blocking(self._process.stdout.fileno(), False)
            self._selector = undoing.enter_context(selectors.DefaultSelector())
            self._selector.register(self._process.stdout, selectors.EVENT_READ)
            self._until(re.compile(_PROMPT))
            self._undoing = undoing.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    def close(self) -> None:
        """End it, and give back what it had."""
        self._undoing.close()

    def start(self) -> None:
        """Forward."""
        self._say("start")

    def stop(self) -> None:
        """Forward nothing, and leave the CPU to others."""
        self._say("stop")

    def counts(self, port: int = 0) -> Counts:
        """Statistics of a port."""
        self._told = ""
        self._say(f"show port stats {port}")
        found = self._until(_STATISTICS)
        counted = dict(_COUNT.findall(found))
        return Counts(int(counted["RX-packets"]), int(counted["TX-packets"]), time.monotonic())

    def _say(self, command: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(command.encode() + b"\n")
        self._process.stdin.flush()

    def _until(self, pattern: re.Pattern[str]) -> str:
        """What it has said, up to a match; Trouble with its last words where it ends or says nothing of the kind."""
        assert self._process.stdout
        latest = time.monotonic() + PATIENCE_S
        while not (found := pattern.search(self._told)):
            self._selector.select(max(0.0, latest - time.monotonic()))
            more = self._process.stdout.read()
            if more == b"" or time.monotonic() > latest:
                last = "\n".join(self._told.splitlines()[-12:])
                raise Trouble("dpdk-testpmd did not do as told", last, f"try it by hand: {' '.join(self._line)}")
            self._told += (more or b"").decode(errors="replace")
        text, self._told = self._told[: found.end()], self._told[found.end() :]
        return text

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._say("quit")
        for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._drain(patience_s)
                self._process.wait(0.1)
                break
            self._process.send_signal(number)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if stream:
                    stream.close()

    def _drain(self, patience_s: float) -> None:
        """Read on until it has ended: a full pipe would keep it."""
        assert self._process.stdout
        latest = time.monotonic() + patience_s
        while self._process.poll() is None and time.monotonic() < latest:
            time.sleep(0.01)
            self._process.stdout.read()
