"""What every bench prints: results with goal, spread and loss, and the environment that they were measured in."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """One figure. `low` and `high`: its spread over the repetitions; `loss`: share of packets that did not arrive."""

    name: str
    value: float
    unit: str
    low: float
    high: float
    goal: float | None = None
    ok: bool | None = None
    loss: float | None = None


def environment() -> dict[str, Any]:
    """Where it was measured; a figure without it says nothing."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "numba": metadata.version("numba"),
        "numpy": metadata.version("numpy"),
        "commit": _commit(),
        "transparent_hugepages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_before": os.getloadavg()[0],
        "steal_ticks": _steal(),
        "kind": "memory",  # never to be mixed with memif, veth or NIC figures
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    here = Path(__file__).parent
    told = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def _chosen(path: str) -> str:
    text = Path(path).read_text() if Path(path).exists() else ""
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _steal() -> int:
    return int(Path("/proc/stat").read_text().split()[8])


def as_json(results: list[Result], env: dict[str, Any]) -> str:
    """The shape that `bench compare` and the reports read."""
    return json.dumps({"results": [asdict(result) for result in results], "env": env}, indent=2)


def show(results: list[Result], env: dict[str, Any]) -> None:
    """The same for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{env['cpu']}, {env['kind']}, load {env['load_before']:.1f}")
    for column in ("name", "value", "low", "high", "unit", "goal", "ok", "loss"):
        table.add_column(column, justify="left" if column in ("name", "unit") else "right")
    for result in results:
        told = [f"{x:.2f}" for x in (result.value, result.low, result.high)]
        goal = "" if result.goal is None else f"{result.goal:g}"
        fine = {None: "", True: "yes", False: "no"}[result.ok]
        table.add_row(result.name, *told, result.unit, goal, fine, "" if result.loss is None else f"{result.loss:.6f}")
    Console().print(table)
