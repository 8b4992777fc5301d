"""A real switch to speak to: BIRD in a namespace, joined by a veth to the one of servers with many addresses.

NAME-srv  up0 10.1.0.11, .12, … /16 ────────── down0 10.1.0.1/16  NAME-sw (BIRD, its routes in the kernel)
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krononat.client import Trouble
from krononat.lab import namespaces
from krononat.lab.namespaces import command, inside

PEER, PEER6, LOCAL_AS, PEER_AS = "10.1.0.1", "2001:db8:1::1", 65010, 65000


def core_address(number: int) -> str:
    """IPv4 address of a core of the server."""
    return f"10.1.{number // 200}.{11 + number % 200}"


def core_address6(number: int) -> str:
    """IPv6 address of it."""
    return f"2001:db8:1::{11 + number:x}"


def configuration(cores: Sequence[int]) -> str:
    """BIRD's: a session for each core, imports filtered as a real switch's should be, everything accepted into the kernel."""
    sessions = "".join(
        f"protocol bgp c{core} from core {{ local {PEER} as {PEER_AS}; neighbor {core_address(core)} as {LOCAL_AS}; }}\n"
        for core in cores
    )
    return f"""router id {PEER};
protocol device {{ scan time 60; }}
protocol direct {{ ipv4; ipv6; }}
protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol kernel {{ ipv6 {{ import none; export where source = RTS_BGP; }}; }}
template bgp core {{
  hold time 9; connect retry time 1; error wait time 1, 3; passive on; direct;
  ipv4 {{ import where net ~ [203.0.113.0/24+, 198.18.0.0/15+, 10.255.0.0/16+]; export none; gateway direct; }};
  ipv6 {{ import where net ~ [2001:db8:f000::/36+]; export none; gateway direct; }};
}}
{sessions}"""


class Switch:
    """BIRD that runs in a namespace."""

    def __init__(self, place: str, folder: Path, cores: Sequence[int]) -> None:
        self.place, self._folder = place, folder
        (folder / "bird.conf").write_text(configuration(cores))
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it."""
        words = ["bird", "-f", "-c", str(self._folder / "bird.conf"), "-s", str(self._folder / "bird.ctl")]
        self._process = started(self.place, *words, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """End it at once."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, *words: str) -> str:
        """What it answers to a command of birdc."""
        try:
            return command(*inside(self.place, ["birdc", "-s", str(self._folder / "bird.ctl"), *words]))
        except Trouble:  # it is not there, or not yet
            return ""

    def sessions(self) -> int:
        """How many are up."""
        return self.ask("show", "protocols").count("Established")

    def routes(self, core: int | None = None) -> dict[str, dict[str, str]]:
        """Attributes of every route learned, of one session or the best ones, by prefix."""
        which = ["protocol", f"c{core}"] if core is not None else ["primary"]
        return parse(self.ask("show", "route", *which, "all"))

    def kernel(self) -> dict[str, str]:
        """Next hop in the kernel by prefix."""
        told: list[dict[str, Any]] = []
        for family in ("-4", "-6"):
            told += json.loads(command("ip", "-n", self.place, "-json", family, "route", "show", "proto", "bird") or "[]")
        return {route["dst"]: route.get("gateway", "") for route in told}


def parse(text: str) -> dict[str, dict[str, str]]:
    """Routes as `birdc show route all` prints them."""
    found: dict[str, dict[str, str]] = {}
    prefix = ""
    for line in text.splitlines():
        words = line.split()
        if line[:1].isalnum() and "/" in words[0]:
            prefix = words[0]
            found[prefix] = {}
        elif ":" in line and line.startswith("\tBGP.") and prefix:
            key, _, value = line.strip().partition(": ")
            found[prefix][key.removeprefix("BGP.")] = value.strip()
    return found


class Monitor:
    """When the kernel's routes of a namespace change: `ip monitor route`, each line with the time it came (monotonic, s)."""

    def __init__(self, place: str) -> None:
        self._process = started(place, "ip", "-o", "monitor", "route", stdout=subprocess.PIPE, bufsize=1)
        self.lines: list[tuple[float, str]] = []
        threading.Thread(target=self._read, daemon=True).start()
        time.sleep(0.2)

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            if " proto kernel " not in line:  # an address that a device has got a moment ago is nobody's announcement
                self.lines.append((time.monotonic(), line.strip()))

    def since(self, moment: float) -> list[tuple[float, str]]:
        """(ms after the moment, line)."""
        return [(1000 * (at - moment), line) for at, line in list(self.lines) if at >= moment]

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


def started(place: str, *words: str, **options: Any) -> subprocess.Popen[str]:
    """A process in a namespace."""
    environment = {**options.pop("env", os.environ), "PATH": namespaces.PATH}
    return subprocess.Popen(inside(place, words), text=True, env=environment, **options)


@contextmanager
def pair(name: str, folder: Path, cores: Sequence[int], speaking: Sequence[int] | None = None) -> Iterator[tuple[str, Switch]]:
    """Name of the servers' namespace, and the switch, whose BIRD runs. `speaking`: cores with a session; default: all."""
    namespaces.need("ip", "bird", "birdc")
    server, place = f"{name}-srv", f"{name}-sw"
    namespaces.delete([server, place])
    try:
        _build(server, place, cores)
        switch = Switch(place, folder, cores if speaking is None else speaking)
        switch.start()
        try:
            yield server, switch
        finally:
            switch.stop()
    finally:
        namespaces.delete([server, place])


def _build(server: str, place: str, cores: Sequence[int]) -> None:
    for name in (server, place):
        command("ip", "netns", "add", name)
        command("ip", "-n", name, "link", "set", "lo", "up")
    command("ip", "-n", server, "link", "add", "up0", "type", "veth", "peer", "name", "down0", "netns", place)
    own = [f"{core_address(core)}/16" for core in cores] + [f"{core_address6(core)}/64" for core in cores]
    for name, device, addresses in ((server, "up0", own), (place, "down0", [f"{PEER}/16", f"{PEER6}/64"])):
        lines = [f"address add {each} dev {device}{' nodad' * (':' in each)}" for each in addresses]
        command("ip", "-n", name, "-batch", "-", given="\n".join([*lines, f"link set {device} up"]) + "\n")


def eventually(true: Callable[[], object], seconds: float = 10.0) -> float:
    """Seconds until it is true; Trouble where it does not become so."""
    began = time.monotonic()
    while not true():
        if time.monotonic() - began > seconds:
            raise Trouble("what should have become of the routes has not", f"not within {seconds:g} s")
        time.sleep(0.02)
    return time.monotonic() - began
