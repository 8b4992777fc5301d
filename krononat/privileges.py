"""What only the supervisor may do: its capabilities, and its limit of locked memory. The worker drops them (`standby`)."""

from __future__ import annotations

import contextlib
import resource
from pathlib import Path

from krononat.client import NO_PRIVILEGE, Trouble

_NEEDED = {"NET_ADMIN": (12,), "NET_RAW": (13,), "BPF": (39, 21)}  # capabilities(7); or SYS_ADMIN


def check() -> None:
    """Trouble (77) where a capability is missing; who we are does not matter."""
    status = Path("/proc/self/status").read_text()
    effective = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    missing = [name for name, bits in _NEEDED.items() if not any(effective >> bit & 1 for bit in bits)]
    if missing:
        why = f"this process lacks CAP_{', CAP_'.join(missing)}"
        raise Trouble("not enough privileges to run the appliance", why, "run as root", NO_PRIVILEGE)


def unlimit_locked_memory() -> None:
    """The umem is locked into memory; where we may not lift the limit, CAP_IPC_LOCK or the limit itself must do."""
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
