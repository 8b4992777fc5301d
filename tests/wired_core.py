"""A real core at real wires: `krononat run` in a namespace, its veths' far ends in another, and what the tests need of both.

To the tests it is a `Core` like the one without rings. Its clock stands, and moves as a scenario says, so it does not matter
how fast this machine is. Its state is its own memory, looked at where it lies. Nothing here waits for time: whether everything
that was sent has become something is told by its counters.

    received + in hand + passed to its kernel = sent, and what it sent has come here

What became of frames is taken from a pool: verdicts that were counted, frames that came. A verdict is one frame's of those that
the model says it of, and the frames come in the order in which the model sends them; at the end of a step nothing may be left.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import numpy as np

from krononat import client
from shards.outcomes import OUTCOMES, REDIRECT
from shards.state import FAILED, WANTED, State, open_state, read_header, state_bytes
from shards.verdict import FORWARD, FRAGMENTED, ORIGINATED, PIECES, RECEIVED, SENT, SHUNT, VERDICTS
from tests import bed6, frames, frames6, model6
from tests.bare_core import Core, Result
from tests.bed import Bed, Port
from tests.far_end import Came, FarEnd
from tests.frames import mac_of
from tests.netns import Namespace, namespace
from tests.outcome import Outcome

PLACES = ("inside", "inside2", "outside", "outside2")
PATIENCE_S = 10.0
START_S = 200.0  # with a cold cache it compiles first
LONGEST_MTU = 3498
SETTLED_TICKS, REST_TICKS = 10_000_000, 3_700_000  # after the first no session lives, after the other no port rests

# What is for the core's own address its kernel would answer: here only what the core says may come out.
_MUTE = """
add table ip mute
add chain ip mute out { type filter hook output priority 0; policy drop; }
add table ip6 mute
add chain ip6 mute out { type filter hook output priority 0; policy drop; }
add rule ip6 mute out icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
"""
_QUIET = {
    "ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/dad_transmits": 0, "ipv6/conf/default/router_solicitations": 0,
    "ipv6/conf/default/autoconf": 0, "ipv6/conf/default/accept_ra": 0,
}  # fmt: skip
_FORWARDS = [told.number for told in VERDICTS if told.fate in (FORWARD, SHUNT)]
_MANY, _ONE = 10_000, 1  # solicitations before a neighbour is given up


class Wires(contextlib.ExitStack):
    """Two namespaces with a veth pair for every port that a core may have."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._tagged: dict[str, str] = {}  # place -> device of its tag

    def __enter__(self) -> Wires:
        self.near, self.far = (self.enter_context(namespace(f"{self._name}-{end}")) for end in ("core", "far"))
        _write(self.far, {"ipv6/conf/all/disable_ipv6": 1, "ipv6/conf/default/disable_ipv6": 1})
        _write(self.near, _QUIET)
        for number, place in enumerate(PLACES):  # all with different numbers: see krononat.lab.namespaces
            own, far = 100 + 2 * number, 101 + 2 * number
            self.near.ip(f"link add {place} index {own} type veth peer name {place} index {far} netns {self.far.name}")
            self.far.ip(f"link set {place} mtu {LONGEST_MTU}")
            for end in (self.near, self.far):
                end.run("ethtool", "--offload", place, "tx", "off")
        probe = self.near.run(*["ip", "link", "add", "link", "inside", "name", "probe", "type", "vlan", "id", "9"], check=False)
        self._knows_no_tags = probe.returncode != 0
        subprocess.run(["ip", "netns", "exec", self.near.name, "nft", "-f", "-"], input=_MUTE, text=True, check=True)
        self.stations = self.enter_context(contextlib.closing(FarEnd(self.far, dict(zip(PLACES, PLACES, strict=True)))))
        return self

    def lay(self, bed: Bed) -> None:
        """Give the ports the addresses that a bed's have, and have nothing be known of its neighbours."""
        wanted = {place: port for place, (_, port) in bed.places().items()}
        self.near.ip_batch(f"link set {place} down" for place in PLACES)
        self.far.ip_batch(f"link set {place} {'up' if place in wanted else 'down'}" for place in PLACES)
        ups = [f"link set {place} address {mac_of(port.address).hex(':')} mtu 1500 up" for place, port in wanted.items()]
        self.near.ip_batch(ups)
        self._lay_tagged({place: port for place, port in wanted.items() if port.vlan})
        self.ask(list(wanted), _MANY)
        self.stations.forget()
        self.stations.came.clear()

    def _lay_tagged(self, ports: Mapping[str, Port]) -> None:
        """Where the kernel has no 802.1Q another wire does what its device for the tag would: the core's own ARP goes there."""
        for device in self._tagged.values():
            self.near.ip(f"link del {device}")
        self._tagged.clear()
        for place, port in ports.items() if self._knows_no_tags else ():
            device = self._tagged[place] = f"{place}.{port.vlan}"[-15:]
            self.near.ip(
                f"link add {device} address {mac_of(port.address).hex(':')} type veth peer {device} netns {self.far.name}"
            )
            self.near.ip(f"link set {device} up")
            self.far.ip(f"link set {device} up")
        self.stations.also({device: place for place, device in self._tagged.items()})

    def ask(self, devices: Sequence[str], times: int) -> None:
        """How often the core's kernel asks for a neighbour before it gives it up."""
        told = ["default", *devices, *self._tagged.values()]
        paths = [f"{family}/neigh/{device}" for family in ("ipv4", "ipv6") for device in told]
        with self.near.entered():
            for path in paths:
                with contextlib.suppress(FileNotFoundError):  # where the MTU is less than IPv6's least
                    Path(f"/proc/sys/net/{path}/mcast_solicit").write_text(str(times))
                    Path(f"/proc/sys/net/{path}/retrans_time_ms").write_text("20")


def _write(where: Namespace, settings: dict[str, int]) -> None:
    with where.entered():
        for path, value in settings.items():
            Path(f"/proc/sys/net/{path}").write_text(str(value))


class Appliance:
    """`krononat run` with a configuration, from its start to its end."""

    def __init__(self, where: Namespace, folder: Path, config: str) -> None:
        self.socket = str(folder / "core.sock")
        self._log = folder / "core.log"
        (folder / "core.toml").write_text(config)
        with self._log.open("wb") as log:
            run = [sys.executable, "-m", "krononat", "run", "-c", str(folder / "core.toml")]
            words = ["ip", "netns", "exec", where.name, *run]
            self._process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def is_up(self) -> bool:
        """Whether it answers; AssertionError with its last words where it has ended."""
        with contextlib.suppress(client.Trouble):
            client.ask(self.socket, {"do": "clock"})
            return True
        assert self._process.poll() is None, f"the core did not start:\n{self._log.read_text()[-3000:]}"
        return False

    def memory(self) -> State:
        """Its state, where it lies; mapped so that nothing done to it here reaches it."""
        descriptor = client.memory(self.socket)
        try:
            sizes = read_header(os.pread(descriptor, mmap.PAGESIZE, 0))
            private = mmap.mmap(descriptor, state_bytes(sizes), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
            return open_state(private, sizes)
        finally:
            os.close(descriptor)

    def status(self) -> dict[str, Any]:
        """What it says of itself."""
        told: dict[str, Any] = client.ask(self.socket, {"do": "status"})["status"]
        return told

    def clock(self, **order: Any) -> int:
        """Move its clock; what it shows then, when everything that is due has been done."""
        return int(client.ask(self.socket, {"do": "clock", **order}, 30.0)["clock"]["now"])

    def end(self) -> None:
        """Have it take everything back."""
        self._process.terminate()

    def ended(self) -> None:
        """Wait for that."""
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class WiredCore(Core):
    """A running appliance as the tests see a core."""

    def __init__(self, wires: Wires, appliance: Appliance, bed: Bed) -> None:
        self.wires, self.appliance, self.bed, self.stations = wires, appliance, bed, wires.stations
        self.stations.silent = set(bed.silent | bed.failed)
        self._wait(appliance.is_up, "it does not answer", START_S)
        self.now = appliance.clock(stands=True)
        self.state = appliance.memory()
        wires.near.ip_batch(f"link set {place} mtu {LONGEST_MTU}" for place in bed.places())  # what is longer comes in, too
        self.sent, self._passed, self._captured = 0, 0, int(self._count(SENT))
        self._received = self._count(RECEIVED)
        self._verdicts: Counter[str] = Counter()
        self._frames: list[Came] = []
        self._base = self._counters()
        self._cuts = self._made = 0
        self._idle = self._passed_by_steering()
        self.wait_for_neighbours()

    # --- as a Core ----------------------------------------------------------------------------------------------------

    def receive(self, arrivals: list[tuple[str, bytes]], now: int) -> list[Result]:
        """Have frames arrive; what becomes of them is `claimed`."""
        assert now == self.now
        for side, frame in arrivals:
            self.stations.send(list(self.bed.places())[self.bed.at(side)[0]], frame)
            self.sent += 1
        self.settle()
        return [UNKNOWN] * len(arrivals)

    def pass_time(self, now: int) -> None:
        """Move its clock."""
        self.now = self.appliance.clock(ahead_ms=now - self.now)
        assert self.now == now
        self.settle()

    def said(self, places: list[str]) -> list[Result]:
        """The frames that came, in their order at each place; between two places nobody knows it."""
        said = []
        for place in places:
            at = next((at for at, came in enumerate(self._frames) if came.place == place), None)
            if at is not None:
                said.append(Result("", self._frames.pop(at).frame, list(self.bed.places()).index(place)))
        return said

    def resolve(self, *hosts: int) -> None:
        """Neighbours are asked for when they are needed; called for none, who is silent no longer says so."""
        for host in [] if hosts else self.stations.silent - self.bed.silent - self.bed.failed:
            self.stations.silent.discard(host)
            for place, (_, port) in self.bed.places().items():
                if _is_on_link(port, host):
                    self.stations.announce(place, host, port)
        self.wait_for_neighbours()

    def claimed(self, result: Result, outcome: Outcome) -> Result:
        """Take out of the pool what the model says of a frame; where that is not there, what is."""
        verdict = outcome.verdict
        if verdict == "held":
            return Result(verdict, None, 0)
        if self._verdicts[verdict] == 0 and self._passed and not outcome.packet:
            self._passed -= 1
            return Result(verdict, None, 0)  # the kernel has it, which forwards nothing
        if self._verdicts[verdict] == 0:
            verdict = next((name for name, count in self._verdicts.items() if count), "nothing")
        self._verdicts[verdict] -= 1
        wanted = outcome.packet or outcome.reply
        return self._with_frame(verdict, outcome) if wanted and self._frames else Result(verdict, None, 0)

    def begin(self, bed: Bed) -> None:
        """A scenario begins that is given the same as the one before."""
        self.bed, self.stations.silent = bed, set(bed.silent | bed.failed)

    # --- beside -------------------------------------------------------------------------------------------------------

    @property
    def in_hand(self) -> int:
        """Frames that it holds back."""
        return int(self.state.core[0]["held"]) + int(self.state.core[0]["parted"])

    @property
    def handed(self) -> int:
        """Frames that have reached its worker, since it began."""
        return int(self._received) + self.sent - self._kernels

    def left(self) -> str:
        """What is in the pool, empty where nothing is."""
        told = [f"{count} x {name}" for name, count in self._verdicts.items() if count]
        told += [f"by {place}: {frame.hex()}" for place, frame in self._frames]
        return ", ".join(told)

    def carry(self, place: str, carrier: bool) -> None:
        """Take a port's carrier away, or give it back."""
        row, wanted = self.bed.at(place)[0], not carrier
        self.wires.far.ip(f"link set {place} {'up' if carrier else 'down'}")
        self._wait(lambda: bool(self.state.ports[row]["carrier_lost"]) == wanted, f"{place} keeps its carrier as it was")
        self.appliance.status()  # answered behind the turn in which that was heard, and gateways there were doubted
        if carrier:
            self.wires.ask([place], _MANY)
        self.wait_for_neighbours()
        self.settle()

    def restart(self) -> None:
        """Kill the worker; another one goes on with its memory, but what it held is gone with it."""
        worker, lost = self.appliance.status()["worker"], self.in_hand
        os.kill(worker["pid"], signal.SIGKILL)
        self._wait(lambda: self._has_restarted(worker["restarts"]), "no worker comes again", START_S)
        assert self.appliance.clock() == self.now, "the clock went on while there was no worker"
        self.sent -= lost
        self.settle()

    def _has_restarted(self, before: int) -> bool:
        told = self.appliance.status()["worker"]
        return bool(told["ready"] and told["restarts"] > before)

    def delete(self, line: int) -> None:
        """End a session, as an operator does."""
        lives = [(line, int(self.state.sessions[line]["generation"]))]
        assert client.delete(self.appliance.socket, lives) == 1

    def clear(self) -> bool:
        """Let everything end that a scenario has left; whether that has come about."""
        for ticks in (SETTLED_TICKS, REST_TICKS):
            self.now = self.appliance.clock(ahead_ms=ticks)
        self.settle()
        self._verdicts.clear()
        self._frames.clear()
        self._passed = self._cuts = self._made = 0
        shards = self.state.shards
        return self.in_hand == 0 and not shards["sessions"].any() and int(shards["mappings"].sum()) == len(self.bed.statics)

    # --- quiet --------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Wait until everything that was sent has become something, and put that into the pool."""
        self._since = time.monotonic()
        self._wait(self._is_quiet, "it is not quiet")
        if self._hand:  # it may have been served again since
            self.appliance.clock(ahead_ms=0)
            self._wait(self._is_quiet, "it is not quiet")
        self._collect()

    def _is_quiet(self) -> bool:
        self._hand = self.in_hand  # looked at once: while it is served again it is nowhere
        missing = self.sent - int(self._count(RECEIVED) - self._received) - self._hand - self._kernels
        if missing and time.monotonic() - self._since > 0.004:
            self._kernels = self._passed_by_steering() - self._idle
        return missing == 0 and self._put_out() and self._captured_all() and not (self._hand and self._asked())

    def _put_out(self) -> bool:
        """Whether what has a verdict by which something is sent has been counted as sent, which comes a little later."""
        gained = self._counters() - self._base
        return bool(gained[SENT] >= gained[_FORWARDS].sum() + gained[ORIGINATED])

    def _captured_all(self) -> bool:
        return self._captured + len(self.stations.came) == int(self._count(SENT))

    def _asked(self) -> bool:
        """Whether somebody is asked for who will answer, or will be given up, or has and is not seen yet."""
        hosts = self._wanted()
        if hosts & self.bed.failed:
            self.wires.ask(list(self.bed.places()), _ONE)
            self._wait(lambda: not self._wanted() & self.bed.failed, "nobody is given up")
            self.wires.ask(list(self.bed.places()), _MANY)
        core = self.state.core[0]
        return bool(hosts - self.bed.silent) or core["legs_version"] != core["neighbours_version"] or self._has_to_say()

    def _wanted(self) -> set[int]:
        """Who is asked for where an answer can come from."""
        return {host for host, row in self._hosts(WANTED) if not self.state.ports[row]["carrier_lost"]}

    def _hosts(self, state: int) -> list[tuple[int, int]]:
        """Neighbours in a state, and their ports."""
        rows = self.state.neighbours[self.state.neighbours["own_state"] == state]
        return [(bed6.host_of(row) if row["six"] else int(row["address"]), int(row["own_port"])) for row in rows]

    def _has_to_say(self) -> bool:
        """Whether somebody was given up while nobody listened here, and says now that he is there."""
        places = list(self.bed.places().items())
        unheard = [told for told in self._hosts(FAILED) if told[0] not in self.bed.failed | self.bed.silent]
        unheard = [(host, row) for host, row in unheard if not self.state.ports[row]["carrier_lost"]]
        for host, row in unheard:
            self.stations.announce(places[row][0], host, places[row][1][1])
        return bool(unheard)

    def wait_for_neighbours(self) -> None:
        """Until everybody who is asked for has answered, but the silent ones, and the worker knows it."""
        self._wait(lambda: not self._asked(), "a neighbour does not answer")

    def _wait(self, condition: Callable[[], bool], told: str, patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, f"{told}: {self.how()}"
            self.stations.listen(0.0005)

    def how(self) -> str:
        """What it has done, for who wonders."""
        if not hasattr(self, "_base"):
            return "it has not begun"
        return (
            f"sent {self.sent}, received {int(self._count(RECEIVED) - self._received)}, in hand {self.in_hand}, "
            f"kernel {self._kernels}, {len(self.stations.came)} came of {int(self._count(SENT)) - self._captured}, "
            f"wanted {[str(_spelt(host)) for host in self._wanted()]}"
        )

    # --- the pool -----------------------------------------------------------------------------------------------------

    def _count(self, number: int) -> Any:
        return self.state.counters[number, 0]

    def _counters(self) -> Any:
        return self.state.counters[:, 0].astype(np.int64)

    def _passed_by_steering(self) -> int:
        """Frames that its kernel got, or nobody; but for what stations say of themselves: whom it asks answers it."""
        counted: Counter[str] = Counter()
        for port in self.appliance.status()["ports"]:
            counted.update(port["steering"])
        return sum(counted[told.name] for told in OUTCOMES if told.fate != REDIRECT) - self.stations.said

    _kernels = 0  # frames of a scenario that its kernel got

    def _collect(self) -> None:
        now, before = self._counters(), self._base
        gained = now - before
        self._base = now
        for verdict in VERDICTS[1:]:
            if gained[verdict.number]:
                self._verdicts[verdict.name] += int(gained[verdict.number])
        self._passed += self.sent - self._collected - int(gained[RECEIVED]) - (self._hand - self._in_hand)
        self._collected, self._in_hand = self.sent, self._hand
        self._cuts, self._made = self._cuts + int(gained[FRAGMENTED]), self._made + int(gained[PIECES])
        self._captured += len(self.stations.came)
        self._frames += self.stations.came
        self.stations.came.clear()

    _collected = _in_hand = _hand = 0

    def _with_frame(self, verdict: str, outcome: Outcome) -> Result:
        """The first frame that came where the model allows it, or the pieces of the one that was cut."""
        allowed = [way.place for way in outcome.ways] if outcome.packet and not outcome.reply else list(self.bed.places())
        at = min(range(len(self._frames)), key=lambda at: self._unlike(self._frames[at], allowed, outcome))
        place = self._frames[at].place
        row = list(self.bed.places()).index(place)
        if not (self._cuts and _is_fragment(self._frames[at].frame)):
            return Result(verdict, self._frames.pop(at).frame, row)
        assert self._cuts == 1, "of two that were cut nobody can tell the pieces"
        pieces = tuple(came.frame for came in self._frames[at : at + self._made])
        del self._frames[at : at + self._made]
        self._cuts = self._made = 0
        cut = [frames.split_frame(piece)[4] for piece in pieces]
        return Result(verdict, pieces[0][: -len(cut[0])] + frames.put_together(cut), row, pieces)

    def _unlike(self, came: Came, allowed: Sequence[str], outcome: Outcome) -> int:
        """How little a frame is like what the model expects: but for the identification, or only its way is right, or not that.

        More than one can be there where what was held back has left together with what is looked at.
        """
        return 2 if came.place not in allowed else 1 - _is_like(came.frame, outcome)


def _is_like(frame: bytes, outcome: Outcome) -> bool:
    """Whether a frame is what the model expects, but for what is the core's own choice."""
    data, six = frames.split_frame(frame)[4], frames6.is_six_frame(frame)
    if outcome.reply:
        told = frames6.dissect(data) if six else frames.dissect(data)
        return told.protocol in (frames.ICMP, frames6.ICMP6) and (told.kind, told.rest) == outcome.reply
    if isinstance(outcome.packet, frames6.Packet6):
        return six and _is_like6(model6.read(data), outcome.packet)
    if six or outcome.packet is None:
        return False
    packet = frames.dissect(data, arriving=False)
    known = outcome.datagram is None or outcome.datagram.identity in (None, packet.id)
    return known and replace(packet, id=outcome.packet.id) == outcome.packet


def _is_like6(packet: frames6.Packet6, wanted: frames6.Packet6) -> bool:
    """A hop less to live; checksum and MSS may have been mended (`model6.expected`)."""
    return packet == replace(wanted, ttl=wanted.ttl - 1, residue=packet.residue, tcp_options=packet.tcp_options)


UNKNOWN = Result("", None, 0)  # what became of a frame, before the model has said something of it


def _is_on_link(port: Port, host: int) -> bool:
    if host >> 32:
        return host >> 64 == 0xFE80 << 48 or (port.on_link6 is not None and IPv6Address(host) in port.on_link6)
    return IPv4Address(host) in port.on_link


def _is_fragment(frame: bytes) -> bool:
    _, _, _, ethertype, data = frames.split_frame(frame)
    return ethertype == 0x0800 and int.from_bytes(data[6:8], "big") & 0x3FFF != 0


def _spelt(host: int) -> IPv4Address | IPv6Address:
    return IPv6Address(host) if host >> 32 else IPv4Address(host)
