"""When kernels of switches, and of the routers beside them, changed a route: `ip monitor` in their namespaces."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from bench.cluster.scene import Scene
from krononat.client import Trouble
from krononat.lab import fabric, namespaces


class Change(NamedTuple):
    """A route that changed in a namespace; `at` in ns of the monotonic clock, when it was heard of."""

    at: int
    namespace: str
    line: str


class Watch:
    """Routes of these namespaces, from `with` to its end; of those `beside` them only the story is told."""

    def __init__(self, names: Sequence[str], beside: Sequence[str] = ()) -> None:
        self.changes: list[Change] = []
        self._names = frozenset(names)
        names = (*names, *beside)
        self._processes = [
            subprocess.Popen(
                ["ip", "-n", name, "-oneline", "monitor", "route"], stdout=subprocess.PIPE, env={"PATH": namespaces.PATH}
            )
            for name in names
        ]
        told = zip(names, self._processes, strict=True)
        self._threads = [threading.Thread(target=self._read, args=each, daemon=True) for each in told]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.terminate()
            process.wait()
        for thread in self._threads:
            thread.join()

    def _read(self, namespace: str, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout
        for line in process.stdout:
            self.changes.append(Change(time.monotonic_ns(), namespace, line.decode(errors="replace").strip()))

    def span_ms(self, since_ns: int) -> float:
        """From the first change since then to the last one; 0 where there was none. Trouble where nobody watches any more."""
        if any(process.poll() is not None for process in self._processes):
            raise Trouble("the switches' routes are not watched any more", "`ip monitor` has ended")
        found = [change.at for change in self.changes if change.at >= since_ns and change.namespace in self._names]
        return (max(found) - min(found)) / 1e6 if found else 0.0

    def story(self, since_ns: int) -> list[str]:
        """Every change since then, a line each: when (ms), where, what."""
        found = [change for change in self.changes if change.at >= since_ns]
        return [f"{(change.at - since_ns) / 1e6:.0f} ms {change.namespace}: {change.line}" for change in found]


def watch(here: Scene) -> Watch:
    """Of a cluster whose switches route."""
    switches, routers = ([here.lab.namespace[node] for node in nodes] for nodes in (fabric.nodes(here.wanted), fabric.ROUTERS))
    return Watch(switches, routers)
