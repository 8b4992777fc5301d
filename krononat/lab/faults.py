"""What befalls a core of a cluster: its worker or all of it is killed, stopped for a while, started again."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

from krononat.client import NOT_FOUND, Trouble
from krononat.lab import chaos, cluster, steering
from krononat.lab.cluster import Wanted
from krononat.lab.laboratory import Lab

WHATS = ("worker", "core")
_GONE_S = 5.0


def of(lab: Lab) -> Wanted:
    """What cluster this is; Trouble (exit 4) where it is none."""
    if lab.wanted is None:
        told = f"krononat lab up --topology cluster --name {lab.name}"
        raise Trouble(f'the laboratory "{lab.name}" is no cluster', "it has one appliance", told, NOT_FOUND)
    return lab.wanted


def node(lab: Lab, core: str) -> str:
    """The node of a core, "s1/0", or of a server, "s1"; Trouble (exit 4) where there is none."""
    return cluster.node_of(_named(lab, core))


def _named(lab: Lab, core: str) -> str:
    named = core if "/" in core else f"{core}/0"
    steering.check(of(lab), 0, named)
    return named


def processes(lab: Lab, core: str, what: str) -> list[int]:
    """Process numbers of a core: of its worker, or of all that belongs to it."""
    named = _named(lab, core)
    if what == "worker":
        return [lab.worker(lab.label(named))]
    return [each.number for each in chaos.of_core(lab, named)]


def kill(lab: Lab, core: str, what: str = "worker") -> list[int]:
    """`kill -9`; the processes that were killed. Returns at once for a worker, and for a core when all of it is gone."""
    killed = processes(lab, core, what)
    _signal(killed, signal.SIGKILL)
    if what == "core":
        _wait_gone(lab, _named(lab, core))
    return killed


def freeze(lab: Lab, core: str, what: str = "core") -> list[int]:
    """Stop them (SIGSTOP): memory and connections stay, nothing answers. Hand the numbers to `thaw`."""
    frozen = processes(lab, core, what)
    _signal(frozen, signal.SIGSTOP)
    return frozen


def thaw(frozen: list[int]) -> None:
    """Have them go on."""
    _signal(frozen, signal.SIGCONT)


@contextlib.contextmanager
def frozen(lab: Lab, core: str, what: str = "core") -> Iterator[None]:
    """Stopped meanwhile."""
    stopped = freeze(lab, core, what)
    try:
        yield
    finally:
        thaw(stopped)


def start(lab: Lab, core: str) -> None:
    """Start a core that was killed; returns when it answers."""
    lab.start_appliances(lab.label(_named(lab, core)))


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _wait_gone(lab: Lab, core: str) -> None:
    deadline = time.monotonic() + _GONE_S
    while chaos.of_core(lab, core) and time.monotonic() < deadline:
        time.sleep(0.005)
