"""Can this machine run the appliance? Each check measures, says what is needed, and how to get it.

A check is a function that yields findings; it reads the system below `Machine.root`, so that tests can show it another one.
Nothing is guessed from lists of drivers: a socket is opened and bound, and closed again.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import platform
import resource
import selectors
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from krononat.client import Trouble
from krononat.models import Config
from krononat.pools import blocks_in, externals_in, spare_in
from krononat.promptness import NICENESS

if TYPE_CHECKING:
    from krononat.cluster import Core, Map

OK, WARN, FAIL, SKIP = "OK", "WARN", "FAIL", "SKIP"

KERNEL_LEAST, KERNEL_WANTED = (5, 10), (6, 1)
STEAL_PERCENT = 1.0
ANSWER_S = 1.0  # that other cores have, all at once

# capabilities(7), as bits of CapEff
CAPABILITIES = {"NET_ADMIN": 12, "NET_RAW": 13, "IPC_LOCK": 14, "BPF": 39}
SYS_ADMIN = 21  # stands for BPF on kernels before 5.8
SYS_NICE = 23

# if_xdp.h
AF_XDP, SOL_XDP = 44, 283
XDP_RX_RING, XDP_UMEM_REG, XDP_FILL_RING, XDP_COMPLETION_RING = 2, 4, 5, 6
XDP_COPY = 1 << 1


class Finding(NamedTuple):
    """What one check found."""

    id: str
    result: str
    measured: str
    needed: str
    fix: str = ""


class Machine(NamedTuple):
    """What is looked at: the system below `root`, and a configuration if one is given."""

    root: Path = Path("/")
    config: Config | None = None

    def read(self, path: str) -> str | None:
        """Contents of a file of the system, None where it cannot be read."""
        try:
            return (self.root / path.lstrip("/")).read_text().strip()
        except OSError:
            return None


Findings = Iterator[Finding]


def examine(machine: Machine) -> list[Finding]:
    """Every finding, in the order in which problems are best solved."""
    checks: tuple[Callable[[Machine], Findings], ...] = (
        kernel, xdp_sockets, capabilities, priority, bpf_jit, memlock, huge_pages, governor, steal, cache, control_socket,
        interfaces, memory, room, cluster,
    )  # fmt: skip
    return [finding for check in checks for finding in check(machine)]


def kernel(machine: Machine) -> Findings:
    """Version of the kernel."""
    release = machine.read("/proc/sys/kernel/osrelease") or platform.release()
    numbers = tuple(int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit())
    result = FAIL if numbers < KERNEL_LEAST else WARN if numbers < KERNEL_WANTED else OK
    yield Finding("kernel", result, release, "5.10, better 6.1 or later", "" if result == OK else "install a newer kernel")


def xdp_sockets(machine: Machine) -> Findings:
    """Whether the kernel has AF_XDP, by opening such a socket."""
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW).close()
    except PermissionError:
        yield Finding("xdp-sockets", FAIL, "not permitted", "AF_XDP sockets", "run as root, or with CAP_NET_RAW")
    except OSError as error:
        fix = "use a kernel with CONFIG_XDP_SOCKETS=y"
        yield Finding("xdp-sockets", FAIL, error.strerror or str(error), "AF_XDP sockets", fix)
    else:
        yield Finding("xdp-sockets", OK, "opened", "AF_XDP sockets")


def _effective(machine: Machine) -> int:
    status = machine.read("/proc/self/status") or ""
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)


def capabilities(machine: Machine) -> Findings:
    """What this process may do; the effective set counts, not who it is."""
    effective = _effective(machine)
    has = {name for name, bit in CAPABILITIES.items() if effective >> bit & 1}
    if effective >> SYS_ADMIN & 1:
        has.add("BPF")
    missing = [name for name in CAPABILITIES if name not in has]
    measured = "missing " + ", ".join(missing) if missing else "all of them"
    fix = "run as root, or grant them (AmbientCapabilities= of systemd)" if missing else ""
    yield Finding("capabilities", FAIL if missing else OK, measured, ", ".join(CAPABILITIES), fix)


def priority(machine: Machine) -> Findings:
    """Whether who forwards packets may go before programs: setpriority(2), and RLIMIT_NICE of getrlimit(2)."""
    may = bool(_effective(machine) >> SYS_NICE & 1)
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    least = -20 if may or limit == resource.RLIM_INFINITY else 20 - limit
    good = min(least, os.getpriority(os.PRIO_PROCESS, 0)) <= NICENESS
    fix = "" if good else f"grant CAP_SYS_NICE (AmbientCapabilities= of systemd), or LimitNICE={NICENESS}"
    measured = "may be raised" if good else "may not be raised: packets wait longer where CPUs are busy"
    yield Finding("priority", OK if good else WARN, measured, f"niceness {NICENESS}", fix)


def bpf_jit(machine: Machine) -> Findings:
    """Whether BPF programs are compiled."""
    path = "/proc/sys/net/core/bpf_jit_enable"
    value = machine.read(path)
    if value is None:
        # Kernels with CONFIG_BPF_JIT_ALWAYS_ON still have the file; it is absent in network namespaces other than the first.
        yield Finding("bpf-jit", SKIP, f"{path} cannot be read", "1")
    else:
        on = value in ("1", "2")
        yield Finding("bpf-jit", OK if on else WARN, value, "1", "" if on else "sysctl net.core.bpf_jit_enable=1")


def memlock(machine: Machine) -> Findings:
    """Whether the umem may be locked into memory."""
    frames = machine.config.io.frames if machine.config else 8192
    needed = frames * 4096
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    free = limit == resource.RLIM_INFINITY or bool(_effective(machine) >> CAPABILITIES["IPC_LOCK"] & 1)
    measured = "unlimited" if limit == resource.RLIM_INFINITY else f"{limit >> 10} KiB" + (", but CAP_IPC_LOCK" if free else "")
    enough = free or limit >= needed
    fix = "" if enough else "ulimit -l unlimited (LimitMEMLOCK=infinity of systemd)"
    yield Finding("memlock", OK if enough else FAIL, measured, f"{needed >> 10} KiB for {frames} frames", fix)


def huge_pages(machine: Machine) -> Findings:
    """Whether shared memory can have huge pages: reserved ones, or transparent ones."""
    reserved = int(machine.read("/proc/sys/vm/nr_hugepages") or 0)
    told = machine.read("/sys/kernel/mm/transparent_hugepage/shmem_enabled") or "none"
    chosen = told[told.find("[") + 1 : told.find("]")] if "[" in told else told
    good = reserved > 0 or chosen in ("always", "advise", "within_size", "force")
    fix = "" if good else "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled (`run` tries this itself)"
    needed = "reserved pages, or shmem_enabled advise"
    yield Finding("huge-pages", OK if good else WARN, f"{reserved} reserved, shmem_enabled {chosen}", needed, fix)


def governor(machine: Machine) -> Findings:
    """Whether the CPUs run at full speed."""
    files = sorted((machine.root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))
    found = {path.read_text().strip() for path in files}
    if not found:
        yield Finding("cpu-governor", SKIP, "the CPUs have none (virtual machine?)", "performance")
        return
    good = found == {"performance"}
    fix = "" if good else "cpupower frequency-set -g performance"
    yield Finding("cpu-governor", OK if good else WARN, ", ".join(sorted(found)), "performance", fix)


def steal(machine: Machine) -> Findings:
    """How much CPU time the host took from this machine since boot."""
    line = (machine.read("/proc/stat") or "").partition("\n")[0].split()
    ticks = [int(word) for word in line[1:9]]
    if len(ticks) < 8 or not sum(ticks):
        yield Finding("cpu-steal", SKIP, "/proc/stat does not tell", f"under {STEAL_PERCENT} %")
        return
    percent = 100 * ticks[7] / sum(ticks)
    good = percent < STEAL_PERCENT
    fix = "" if good else "figures measured here are noisy; use dedicated CPUs"
    yield Finding("cpu-steal", OK if good else WARN, f"{percent:.1f} %", f"under {STEAL_PERCENT} %", fix)


def cache(machine: Machine) -> Findings:
    """Whether compiled code can be kept, and is there already. Needs NUMBA_DISABLE_JIT=1, as `krononat doctor` sets it."""
    from shards import jit

    folder = jit.cache_folder()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    writable = os.access(nearest, os.W_OK)
    fix = "" if writable else "set KRONONAT_CACHE to a folder you may write to"
    yield Finding("cache-writable", OK if writable else FAIL, str(nearest), "a folder for compiled code", fix)
    compiled = sum(1 for _ in folder.rglob("*.nbc")) if folder.exists() else 0
    fix = "" if compiled else "krononat compile"
    yield Finding("cache-warm", OK if compiled else WARN, f"{compiled} compiled functions", "code of this version", fix)


def control_socket(machine: Machine) -> Findings:
    """Whether the control socket can be made."""
    path = Path(machine.config.socket) if machine.config else Path("/run/krononat/nat1.sock")
    nearest = next(folder for folder in path.parents if folder.exists())
    writable = os.access(nearest, os.W_OK)
    fix = "" if writable else "run as root, or set control.socket"
    yield Finding(
        "control-socket", OK if writable else FAIL, f"{nearest} is {'' if writable else 'not '}writable", str(path), fix
    )


def interfaces(machine: Machine) -> Findings:
    """Whether the configured interfaces exist and AF_XDP binds to them."""
    if machine.config is None:
        yield Finding("interfaces", SKIP, "no configuration given", "-c FILE")
        return
    for path, port in machine.config.interfaces.placed():
        if port.memif:
            yield from _memif(machine, port.name, port.memif.socket)
            continue
        folder = f"/sys/class/net/{port.name}"
        if machine.read(f"{folder}/ifindex") is None:
            fix = f"correct {_spelled(machine.config, path)}.name; there is {', '.join(_names(machine))}"
            yield Finding(f"interface-{port.name}", FAIL, "there is none", "an interface", fix)
            continue
        mtu = int(machine.read(f"{folder}/mtu") or 0)
        enough = mtu <= 3498
        fix = "" if enough else f"ip link set {port.name} mtu 3498, or set `mtu`"
        yield Finding(f"interface-{port.name}", OK if enough else WARN, f"MTU {mtu}", "MTU up to 3498", fix)
        yield _bound(port.name)


def _spelled(config: Config, path: tuple[str, str, int]) -> str:
    """A table of the configuration: interfaces.internal, interfaces.external[1] where there are several."""
    section, side, number = path
    several = sum(there == side for there, _ in config.interfaces.named()) > 1
    return f"{section}.{side}" + (f"[{number}]" if several else "")


def _memif(machine: Machine, name: str, path: str) -> Findings:
    """What a memif port needs: taps, and somebody to talk to, who may come later."""
    there = (machine.root / "dev/net/tun").exists()
    fix = "" if there else "modprobe tun"
    yield Finding(f"tap-{name}", OK if there else FAIL, f"/dev/net/tun is {'' if there else 'not '}there", "taps", fix)
    abstract = path.startswith("@")
    server = f" {path}\n" in (machine.read("/proc/net/unix") or "") + "\n" if abstract else (machine.root / path[1:]).exists()
    fix = "" if server else "start VPP, OVS-DPDK or testpmd; `run` connects as soon as somebody listens there"
    yield Finding(f"memif-{name}", OK if server else WARN, f"{path} is {'' if server else 'not '}there", "a memif server", fix)


def _names(machine: Machine) -> list[str]:
    folder = machine.root / "sys/class/net"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def _bound(name: str) -> Finding:
    try:
        bind(name)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return Finding(f"bind-{name}", SKIP, "queue 0 is in use (by a running appliance?)", "AF_XDP bind, copy mode")
        told, fix = error.strerror or str(error), "run as root; see `ethtool -i` for the driver"
        return Finding(f"bind-{name}", FAIL, told, "AF_XDP bind, copy mode", fix)
    return Finding(f"bind-{name}", OK, "bound to queue 0, and let go", "AF_XDP bind, copy mode")


def bind(name: str) -> None:
    """Bind an AF_XDP socket in copy mode to queue 0 and close it again; no packet is taken, for no program sends any there."""
    area = mmap.mmap(-1, 64 * 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    with socket.socket(AF_XDP, socket.SOCK_RAW) as xdp:
        xdp.setsockopt(SOL_XDP, XDP_UMEM_REG, struct.pack("=QQIII4x", address, len(area), 4096, 0, 0))
        for ring in (XDP_FILL_RING, XDP_COMPLETION_RING, XDP_RX_RING):
            xdp.setsockopt(SOL_XDP, ring, struct.pack("=I", 64))
        told = struct.pack("=HHIII", AF_XDP, XDP_COPY, socket.if_nametoindex(name), 0, 0)
        # The module `socket` cannot write a sockaddr_xdp.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(xdp.fileno(), told, len(told)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def memory(machine: Machine) -> Findings:
    """Whether the configured sessions fit, when they all come."""
    if machine.config is None:
        yield Finding("memory", SKIP, "no configuration given", "-c FILE")
        return
    from krononat import appliance
    from shards.state import state_bytes

    sizes, spare = appliance.compose(machine.config), sum(spare_in(machine.config.pool))
    own = sizes._replace(externals=sizes.externals - spare)  # what may be added takes nothing until it is there
    needed, more = state_bytes(own) + machine.config.io.frames * 4096, state_bytes(sizes) - state_bytes(own)
    told = (machine.read("/proc/meminfo") or "").splitlines()
    available = next((int(line.split()[1]) << 10 for line in told if line.startswith("MemAvailable:")), 0)
    enough = available > needed
    fix = "" if enough else "lower memory.sessions, or add memory; only what is used is taken"
    wanted = f"{needed >> 20} MiB for {machine.config.memory.sessions:,} sessions and {own.externals:,} external addresses"
    wanted += f"; {more >> 20} MiB more for {spare:,} that may be added" * bool(spare)
    yield Finding("memory", OK if enough else WARN, f"{available >> 20} MiB available", wanted, fix)


def room(machine: Machine) -> Findings:
    """How many connections the configured memory holds."""
    if machine.config is None:
        yield Finding("connections", SKIP, "no configuration given", "-c FILE")
        return
    from krononat import appliance, capacity

    sizes, wanted = appliance.compose(machine.config), machine.config.memory.sessions
    single, shared = capacity.room(sizes), capacity.room(sizes, 4)
    ports = sum(externals_in(pool) * blocks_in(pool) * pool.block_size for pool in machine.config.pool)
    told = f"{single.connections:,} with a mapping each, {shared.connections:,} with four sessions a mapping, half if protected"
    enough = single.connections >= wanted
    fix = "" if enough else "raise memory.sessions"
    yield Finding("connections", OK if enough else WARN, f"{told}; {ports:,} ports a protocol", f"{wanted:,} sessions", fix)


# --- the cluster ----------------------------------------------------------------------------------------------------------


def cluster(machine: Machine) -> Findings:
    """Whether the map, the keys and the way to the other cores are right. Clocks do not matter: ages travel, never times."""
    config = machine.config
    if config is None or config.cluster is None:
        yield Finding("cluster", SKIP, "no [cluster]" if config else "no configuration given", "-c FILE")
        return
    from krononat import cluster as clusters
    from krononat.config import ConfigError

    path = config.cluster.map
    try:
        told = clusters.load(path)
        found = list(clusters.strangers(config, told))
    except ConfigError as refused:
        found, told = refused.complaints, None
    if found or told is None:
        fix = f"krononat cluster check {path} -c FILE"
        yield Finding("cluster-map", FAIL, f"{path}: {found[0].what}", "a map that agrees with this core", fix)
    else:
        measured = f"version {told.version}: {len(told.core)} cores, {len(told.shard)} shards"
        yield Finding("cluster-map", OK, measured, "the same file on every server")
    if told and not found:
        yield _core_key(config, told)
        yield _listens(next(core for core in told.core if core.name == config.core_name))
        yield _others(told.others(config.core_name))
        yield from _shunts(machine, config, told)
    yield _port_key(config)


def _core_key(config: Config, told: Map) -> Finding:
    from krononat import cluster as clusters

    needed = "a secret file, mode 0600, whose public key the map has"
    try:
        clusters.own_key(config, told)
    except Trouble as trouble:
        return Finding("cluster-key", FAIL, trouble.why, needed, trouble.remedy)
    return Finding("cluster-key", OK, "is the one in the map", needed)


def _port_key(config: Config) -> Finding:
    from krononat import appliance

    assert config.cluster
    path = Path(config.cluster.port_key_file or appliance.KEY_FILE)
    needed, make = "the same fingerprint on every server", f"head -c 32 /dev/urandom > {path}; chmod 600 {path}; copy it to all"
    try:
        key = appliance.read_key(path)
    except (Trouble, OSError) as error:
        why, fix = (error.why, error.remedy) if isinstance(error, Trouble) else (f"{path}: {error.strerror}", "run as root")
        return Finding("port-key", FAIL, why, needed, fix)
    if key is None:
        return Finding("port-key", FAIL, f"{path} is missing", needed, make)
    return Finding("port-key", OK, f"fingerprint {hashlib.sha256(key).hexdigest()[:8]}", needed)


def _endpoint(core: Core) -> tuple[str, int]:
    address, _, port = str(core.replication).rpartition(":")
    return address, int(port)


def _listens(me: Core) -> Finding:
    """Whether this core may listen where the map says."""
    needed = f"{me.replication} to listen at"
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(_endpoint(me))
            tried.listen()  # which is where a second one is noticed
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return Finding("cluster-listen", SKIP, "in use (by a running appliance?)", needed)
            fix = "give an interface that address, or correct `replication` in the map"
            return Finding("cluster-listen", FAIL, error.strerror or str(error), needed, fix)
    return Finding("cluster-listen", OK, "is free", needed)


def _others(cores: list[Core]) -> Finding:
    """Who of the other cores answers a connection where the map says it listens."""
    silent = {core.name: "no answer" for core in cores}
    with selectors.DefaultSelector() as waiting:
        for core in cores:
            tried = socket.socket()
            tried.setblocking(False)
            tried.connect_ex(_endpoint(core))  # how it ends is asked when it has
            waiting.register(tried, selectors.EVENT_WRITE, core.name)
        until = time.monotonic() + ANSWER_S
        while waiting.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                assert isinstance(key.fileobj, socket.socket)
                told = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                silent[key.data] = os.strerror(told) if told else ""
                waiting.unregister(key.fileobj)
                key.fileobj.close()
        for key in waiting.get_map().values():
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
    left_out = [f"{name} ({why})" for name, why in silent.items() if why]
    measured = f"{len(cores) - len(left_out)} of {len(cores)} answer" + (f"; not {', '.join(left_out[:4])}" if left_out else "")
    measured += f" and {len(left_out) - 4} more" if len(left_out) > 4 else ""
    fix = "start them, or find what is between (routes, firewalls: TCP to `replication` in the map)" if left_out else ""
    return Finding("cluster-reach", WARN if left_out else OK, measured, "every other core of the map", fix)


def _shunts(machine: Machine, config: Config, told: Map) -> Findings:
    """Whether a shunted packet of full size fits where it may come: the interface of its address, or all of a side."""
    from krononat.cluster import shunt_side
    from krononat.replica import SHUNT_MTU

    own = next(core for core in told.core if core.name == config.core_name)
    side = shunt_side(config, own.shunt)
    legs = [(path, port) for path, port in config.interfaces.placed() if path[1] in (side, "both")]
    one = [(path, port) for path, port in legs if port.address.ip == own.shunt]
    for path, port in one or legs:
        mtu = port.mtu or int(machine.read(f"/sys/class/net/{port.name}/mtu") or 0)
        if not mtu:
            continue
        enough, needed = mtu >= SHUNT_MTU, f"{SHUNT_MTU}, for shunted packets of 1,500 bytes"
        fix = (
            ""
            if enough
            else f"ip link set {port.name} mtu {SHUNT_MTU}, or set {_spelled(config, path)}.mtu; on the switch, too"
        )
        yield Finding("shunt-mtu", OK if enough else WARN, f"MTU {mtu} of {port.name}", needed, fix)
