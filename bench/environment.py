"""Where a figure was measured: the machine, its load before and after, the versions and the page size that was obtained.

A figure without it says nothing, and figures of two environments are compared with a warning (`bench compare`).
"""

from __future__ import annotations

import mmap
import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from shards.state import Array

KINDS = ("memory", "memif", "veth")  # figures of two kinds are never mixed

_CPU = Path("/sys/devices/system/cpu/cpu0")
_HUGE = Path("/sys/kernel/mm/transparent_hugepage")
_PROBE_BYTES = 4 << 20


def before(kind: str, quick: bool = False) -> dict[str, Any]:
    """What holds while it is measured, and the load just before."""
    if kind not in KINDS:
        raise ValueError(f"a figure's kind is one of {', '.join(KINDS)}, not {kind!r}")
    return {
        "kind": kind,
        "quick": quick,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        **_hardware(),
        **_memory(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("numba", "llvmlite", "numpy")},
        "dpdk": _dpdk(),
        "load_before": os.getloadavg()[0],
        "steal_ticks": _steal(),
    }


def after(env: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The same with the load afterwards, and what the host took meanwhile: ticks of a hundredth of a second, all cores."""
    return {
        **env,
        "load_after": os.getloadavg()[0],
        "steal_ticks": _steal() - int(env["steal_ticks"]),
        "seconds": round(seconds, 1),
    }


def commit() -> str:
    """Short name of the commit, with `-dirty` where files differ from it; "unknown" outside of a clone."""
    here = Path(__file__).parent
    told = subprocess.run(["git", "-C", here, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def available() -> int:
    """Bytes of memory that can be had without swapping (proc(5), meminfo)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def resident(array: Array) -> tuple[int, int]:
    """Bytes of memory that `array` holds: all of it, and of that on huge pages (proc(5), smaps: Rss, AnonHugePages).

    Counted is the whole mapping that it lies in, which for a state is the state.
    """
    at, sums = int(array.ctypes.data), {"Rss:": 0, "AnonHugePages:": 0, "ShmemPmdMapped:": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head:
            first, _, end = head.partition("-")
            inside = int(first, 16) <= at < int(end, 16)
        elif inside and head in sums:
            sums[head] += int(rest.split()[0]) << 10
    return sums["Rss:"], sums["AnonHugePages:"] + sums["ShmemPmdMapped:"]


def small_share(process: int, name: str) -> float:
    """Share of what a process has mapped under `name`, or beneath it, that is on 4 KiB pages (proc(5), smaps).

    1.0 where it has nothing of that name: what cannot be found is not known to be on large ones.
    """
    resident, large, inside = 0, 0, False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        head, _, rest = line.partition(" ")
        if "-" in head:
            inside = name in rest
        elif inside and head == "Rss:":
            resident += int(rest.split()[0])
        elif inside and head in ("AnonHugePages:", "ShmemPmdMapped:"):
            large += int(rest.split()[0])
        elif inside and head in ("Shared_Hugetlb:", "Private_Hugetlb:"):  # which Rss does not count
            resident, large = resident + int(rest.split()[0]), large + int(rest.split()[0])
    return 1 - large / resident if resident else 1.0


def _hardware() -> dict[str, Any]:
    governors = {path.read_text().strip() for path in _CPU.parent.glob("cpu[0-9]*/cpufreq/scaling_governor")}
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads_a_core": len((_CPU / "topology/thread_siblings_list").read_text().replace("-", ",").split(",")),
        "caches": _caches(),
        "governor": ", ".join(sorted(governors)) or "none (virtual machine?)",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _caches() -> dict[str, str]:
    found = {}
    for folder in sorted(_CPU.glob("cache/index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level}{kind[0].lower() if kind != 'Unified' else ''}"] = size
    return found


def _memory() -> dict[str, Any]:
    return {
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "transparent_hugepages": _chosen(_HUGE / "enabled"),
        "shmem_hugepages": _chosen(_HUGE / "shmem_enabled"),
        "reserved_hugepages": int(Path("/proc/sys/vm/nr_hugepages").read_text()),
        "pages": _pages_obtained(),
    }


def _pages_obtained() -> str:
    """What a state's memory gets here (`shards.state.new_state` asks alike); promises of the kernel are not always kept."""
    memory = mmap.mmap(-1, _PROBE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    array[:] = 1
    return "2 MiB transparent" if resident(array)[1] else "4 KiB"


def _chosen(path: Path) -> str:
    text = path.read_text() if path.exists() else ""
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _dpdk() -> str:
    if not shutil.which("pkg-config"):
        return "none"
    told = subprocess.run(["pkg-config", "--modversion", "libdpdk"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "none"


def _steal() -> int:
    return int(Path("/proc/stat").read_text().split()[8])
