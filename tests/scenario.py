"""Scenarios: files that can be read aloud, and that the model and the pipeline must both agree with, frame by frame.

    # RFC 4787 REQ-1: one mapping for all remotes
    given pool 203.0.113.0/30 filtering endpoint-independent
    at 0s    inside  udp 100.64.0.2:4000 > 198.51.100.9:53 → forwarded_out as udp $A > 198.51.100.9:53
             outside udp 192.0.2.7:9 > $A                  → forwarded_in as udp 192.0.2.7:9 > 100.64.0.2:4000
             inside  udp 100.64.0.2:4000 > 8.8.8.8:53 ttl 1 → ttl_exceeded, told time-exceeded
    at +301s outside udp 192.0.2.7:9 > $A                  → no_mapping
             holds   0 sessions 0 mappings

`$A` names an external endpoint that the pipeline chose (bound where it is first seen), `@A` its address. After `frame` stands
what is done to the finished frame: `vlan 7`, `to MAC`, `poke OFFSET BYTE` (from the IPv4 header on), `short BYTES` (datagram
that says so itself), `piece FIRST LAST` (the fragment with these bytes of the IP payload; of IPv6, of what stands behind the
Fragment header that the line has), `pad BYTES` (behind the datagram), `cut BYTES`, `type ETHERTYPE`.

Other steps: `64 x inside udp 100.64.0.2:4000+ > ...` (what is marked by + counts up), `resolved ADDRESS` (a neighbour answers;
what was held leaves), `waits` (what is held is served again), `delete udp ...` (a session, named by an outbound packet), `state
tcp ...` (of a session), `restart` (of the worker, on the same memory; what waited is lost), `at +7s tells` (whom it has told by
itself, when that time passed, that what he had asked for is not permitted).

Several cores: `given peer 192.0.2.9` (another core), `given shard 0 role passive authority 192.0.2.9`. What that core shunts to
this one: `from 192.0.2.9 inside udp ...`; before the side may stand what it says beside: `shard 1`, `epoch 7`, `turned`. What
is given about shards and peers may change: `now shard 0 role active epoch 2`, `now peer 192.0.2.9 dead`.

A pool may have other addresses, as there is room: `given pool 203.0.113.0/31 spare 2`, `now add 203.0.113.4/31`, `now remove`.

Several ports of a side: `given outside2 address ... gateway ...`; a frame comes `inside2` or `outside2`. By which port one may
leave the model knows; `by outside2` behind what came out says which. `now leg outside2 carrier lost`, `peer lost`, `lives`.

After every frame model and pipeline have done the same (`pair`); after every step they hold the same sessions, with the same
state and expiry; at the end the invariants hold.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from shards import invariants, recovery, sessions
from shards.state import NAT_SESSION
from tests import bed6, frames, frames6, shunts
from tests.bare_core import Core, Result
from tests.bed import Bed, fill_legs, fill_shards
from tests.bed_pools import fill_members
from tests.bed_rules import fill_policy
from tests.datagrams import Datagrams
from tests.frames import endpoint, mac_of, spell
from tests.model import Session
from tests.model6 import Session6
from tests.model_unasked import Asked
from tests.pair import Pair, sender_of, sender_of6

SCENARIOS = Path(__file__).parent / "scenarios"
VERBS = (
    "inside", "outside", "inside2", "outside2", "from", "now", "holds", "state", "resolved", "waits", "tells", "delete",
    "restart",
)  # fmt: skip


@dataclass
class Step:
    """One line of a scenario, cut into its parts; `line` is its number from 0."""

    line: int
    when: str  # "" where no time passes
    verb: str
    told: str
    wanted: str
    count: int = 1


@dataclass
class Scenario:
    """A file, parsed."""

    path: Path
    lines: list[str]
    bed: Bed = field(default_factory=Bed)
    steps: list[Step] = field(default_factory=list)


_STEP = re.compile(
    r"(?:at (?P<when>\S+)\s+)?(?:(?P<count>\d+) x )?(?P<verb>[a-z]+2?)\s*(?P<told>.*?)\s*(?:→\s*(?P<wanted>.*))?"
)


def parse(path: Path) -> Scenario:
    """The scenario in a file; ValueError names file and line."""
    scenario = Scenario(path, path.read_text().splitlines())
    for number, text in enumerate(scenario.lines):
        line = text.partition("#")[0].strip()
        try:
            if line.startswith("given "):
                scenario.bed.say(line[6:])
            elif line:
                scenario.steps.append(_parse_step(number, line))
        except (ValueError, KeyError, IndexError) as wrong:
            raise ValueError(f"{path.name}:{number + 1}: {wrong}") from wrong
    scenario.bed.complete()
    return scenario


def _parse_step(number: int, line: str) -> Step:
    found = _STEP.fullmatch(line)
    if not found or found["verb"] not in VERBS:
        raise ValueError(f"{line[:120]!r} is no step")
    return Step(number, found["when"] or "", found["verb"], found["told"], found["wanted"] or "", int(found["count"] or 1))


def run(path: Path, rewrite: bool = False) -> None:
    """Run a scenario; with `rewrite`, write what came out into the file instead of comparing with it."""
    runner = Runner(parse(path))
    for step in runner.scenario.steps:
        runner.take(step, rewrite)
    runner.check()
    if rewrite:
        path.write_text("\n".join(_aligned(runner.scenario.lines)) + "\n")


class Runner(Pair):
    """Model and pipeline side by side, led through a file."""

    def __init__(self, scenario: Scenario, core: Core | None = None) -> None:
        super().__init__(scenario.bed, core)
        self.scenario = scenario
        self.names: dict[str, str] = {}
        self.happened = ""  # in the last step

    def take(self, step: Step, rewrite: bool) -> None:
        """Do one step, and compare or rewrite."""
        self._go_on(step.when)
        happened = [getattr(self, f"_do_{step.verb}")(self._with_names(step.told), step.verb, i) for i in range(step.count)]
        happened = [self._as_written(text, step.wanted) for text in happened]
        self.happened = happened[0] if happened else ""
        self.compare_sessions()
        where = f"{self.scenario.path.name}:{step.line + 1}"
        if step.count > 1:
            happened = [text.partition(" as ")[0] for text in happened]
            assert len(set(happened)) == 1, f"{where}: not all the same: {happened}"
        if rewrite and step.verb != "restart":
            self._rewrite(step, happened[0])
        else:
            wanted = self._bound(step.wanted, happened[0])
            assert wanted == happened[0], f"{where}: {step.told}\n  the file wants  {wanted}\n  what came out   {happened[0]}"

    # --- steps ------------------------------------------------------------------------------------------------------------

    def _do_inside(self, told: str, side: str, repeat: int) -> str:
        frame = self._frame(re.sub(r"(\d+)\+", lambda found: str(int(found[1]) + repeat), told), side)
        return self._spoken(self.receive([(side, frame)])[0])

    _do_outside = _do_inside2 = _do_outside2 = _do_inside

    def _do_from(self, told: str, *_: object) -> str:
        words = told.split()
        at = next(at for at, word in enumerate(words) if word in shunts.SIDES)
        said = dict(zip(words[1:at:2], words[2:at:2], strict=False)) | {"turned": "turned" in words[:at]}
        core, side = frames.address(words[0]), words[at]
        inner = frames.split_frame(self._frame(" ".join(words[at + 1 :]), side))[4]
        wrapping = shunts.Wrapping(
            core, self.bed.shunt_address, side, int(said.get("shard", 0)), int(said.get("epoch", 1)), bool(said["turned"])
        )
        frame = self._frame_of(shunts.wrap(wrapping, inner), self.bed.shunts)
        return self._spoken(self.receive([(self.bed.shunts, frame)])[0])

    def _do_now(self, told: str, *_: object) -> str:
        self.bed.say(told)
        fill_shards(self.core.state, self.bed, self.now)
        fill_members(self.core.state, self.bed)
        self.model.learn_pools()
        fill_policy(self.core.state, self.bed)
        fill_legs(self.core.state, self.bed, self.now)
        return ""

    def _do_resolved(self, told: str, *_: object) -> str:
        return ", ".join(self._spoken(result) for result in self.resolve(bed6.any_address(told)))

    def _do_delete(self, told: str, *_: object) -> str:
        if frames6.is_six(told):
            session6 = self._session6(told)
            del self.model.six.sessions[session6.protocol, session6.internal, session6.remote]
            sessions.delete(self.core.state, self._line6(session6), self.now)
            return ""
        session = self._session(told)
        self.model.end(session)
        sessions.delete(self.core.state, self._line(session), self.now)
        return ""

    def _do_state(self, told: str, *_: object) -> str:
        return self._session6(told).state if frames6.is_six(told) else self._session(told).state

    def _do_holds(self, told: str, *_: object) -> str:
        totals = self.core.state.shards
        there = {"sessions": int(totals["sessions"].sum()), "mappings": int(totals["mappings"].sum())}
        there |= {"blocks": self._blocks(), "refused": int(self.core.state.accounts["refused"].sum())}
        wanted = {word: int(number) for number, word in zip(told.split()[::2], told.split()[1::2], strict=True)}
        assert wanted == {word: there[word] for word in wanted}, f"the scenario says {wanted}, there are {there}"
        return ""

    def _do_waits(self, *_: object) -> str:
        return ", ".join(self._spoken(result) for result in self.wait())

    def _do_tells(self, *_: object) -> str:
        return ", ".join(_asker(asked) for asked in self.told) or "nobody"

    def _do_restart(self, *_: object) -> str:
        self.received -= len(self.waiting)  # frames in the hands of a worker die with it
        self.waiting, self.model.datagrams = [], Datagrams()
        self.core.lose()
        recovery.attach(self.core.state, self.now)
        return ""

    # --- frames -----------------------------------------------------------------------------------------------------------

    def _frame(self, told: str, side: str) -> bytes:
        line, _, changes = told.partition(" frame ")
        if frames6.is_six(line):
            return self._frame_of6(frames6.read(line), side, changes)
        return self._frame_of(frames.read(line), side, changes)

    def _frame_of(self, packet: frames.Packet, side: str, changes: str = "") -> bytes:
        _, port = self.bed.at(side)
        known = [packet.source] if side.startswith("inside") else []
        self.core.resolve(packet.destination, *known)
        facts = {"to": mac_of(port.address).hex(), "vlan": str(port.vlan), "type": "0x0800", "cut": "4096"}
        return self._changed(bytearray(frames.build(packet)), facts, changes, sender_of(self.bed, side, packet))

    def _frame_of6(self, packet: frames6.Packet6, side: str, changes: str) -> bytes:
        _, port = self.bed.at(side)
        known = [packet.source] if side.startswith("inside") else []
        self.core.resolve(packet.destination, *known)
        facts = {"to": mac_of(port.address).hex(), "vlan": str(port.vlan), "type": "0x86DD", "cut": "4096"}
        return self._changed(bytearray(frames6.build(packet)), facts, changes, sender_of6(self.bed, side, packet))

    def _changed(self, data: bytearray, facts: dict[str, str], changes: str, sender: bytes) -> bytes:
        """A frame that carries a datagram, with what is done to both."""
        words = changes.split()
        while words:
            word = words.pop(0)
            if word == "poke":
                at, value = int(words.pop(0)), int(words.pop(0), 0)
                data[at] = value
            elif word == "piece":
                cut = frames6.piece if data[0] >> 4 == 6 else frames.piece
                data = bytearray(cut(bytes(data), int(words.pop(0)), int(words.pop(0))))
            elif word == "pad":
                data += bytes.fromhex("a5") * int(words.pop(0))
            elif word == "short":
                data = bytearray(frames.shortened(bytes(data), int(words.pop(0))))
            else:
                facts[word] = words.pop(0)
        ethernet = bytes.fromhex(facts["to"].replace(":", "")), sender
        return frames.build_frame(*ethernet, bytes(data), int(facts["vlan"]), int(facts["type"], 0))[: int(facts["cut"])]

    # --- sessions ---------------------------------------------------------------------------------------------------------

    def _go_on(self, when: str) -> None:
        self.told = []
        if when:
            self.pass_time(round(float(when.strip("+s")) * 1000) + (self.now if when.startswith("+") else self.began))

    def _session(self, told: str) -> Session:
        packet = frames.read(told)
        remote_port = 0 if packet.protocol == frames.ICMP else packet.destination_port
        return self.model.sessions[packet.protocol, (packet.source, packet.source_port), (packet.destination, remote_port)]

    def _session6(self, told: str) -> Session6:
        packet = frames6.read(told)
        remote_port = 0 if packet.protocol == frames6.ICMP6 else packet.destination_port
        key = packet.protocol, (packet.source, packet.source_port), (packet.destination, remote_port)
        return self.model.six.sessions[key]

    def _line6(self, session: Session6) -> int:
        flows = self.core.state.flows6
        for line in invariants.lines6(self.core.state).tolist():
            flow = flows[line + 1]
            host = int(flow["internal_high"]) << 64 | int(flow["internal_low"])
            remote = int(flow["remote_high"]) << 64 | int(flow["remote_low"])
            ends = (host, int(flow["internal_port"])), (remote, int(flow["remote_port"]))
            if (*ends, int(flow["realm"]) >> 24) == (session.internal, session.remote, session.protocol):
                return int(line)
        raise KeyError(session)

    def _line(self, session: Session) -> int:
        (host, port), (remote, remote_port) = session.mapping.internal, session.remote
        rows = self.core.state.sessions
        lines = np.flatnonzero(
            (rows["kind"] == NAT_SESSION) & (rows["internal_address"] == host) & (rows["internal_port"] == port)
            & (rows["remote_address"] == remote) & (rows["remote_port"] == remote_port)
            & (rows["internal_realm"] >> 24 == session.mapping.protocol)
        )  # fmt: skip
        return int(lines[0])

    def _blocks(self) -> int:
        return int(np.count_nonzero(self.core.state.accounts["blocks"]))

    # --- words ------------------------------------------------------------------------------------------------------------

    def _with_names(self, told: str) -> str:
        return re.sub(r"[$@]\w+", lambda found: self.names[found[0]], told)

    def _spoken(self, result: Result) -> str:
        told = self._said(result)
        return f"{told} by {list(self.bed.places())[result.port]}" if result.sent and self.bed.legs else told

    def _said(self, result: Result) -> str:
        if result.sent is None:
            return result.verdict
        if result.verdict == "shunted":
            return f"shunted to {frames.dotted(frames.dissect(frames.split_frame(result.sent)[4]).destination)}"
        if frames6.is_six_frame(result.sent):
            return self._spoken6(result.verdict, frames6.dissect(frames.split_frame(result.sent)[4]))
        packet = frames.dissect(frames.split_frame(result.sent)[4], arriving=False)
        if result.verdict in ("forwarded_in", "forwarded_out", "hairpinned"):
            # One hop less is not worth words: the checker sees to it.
            cut = f" in {len(result.pieces)}" if result.pieces else ""
            return f"{result.verdict}{cut} as {replace(packet, ttl=packet.ttl + 1)}"
        return f"{result.verdict}, told {str(packet).split()[0]}"

    def _spoken6(self, verdict: str, packet: frames6.Packet6) -> str:
        """Nothing but the hop limit has changed, so what was sent needs no words."""
        told = str(packet).split()[0] + (f" mtu {packet.rest}" if packet.kind == 0x0200 else "")
        return verdict if verdict in ("forwarded_in", "forwarded_out", "hairpinned") else f"{verdict}, told {told}"

    def _as_written(self, happened: str, _: str) -> str:
        """What happened, in the file's own words for what is anybody's choice but has no name."""
        return happened

    def _bound(self, wanted: str, happened: str) -> str:
        """What is wanted, with names replaced; a name seen for the first time takes what stands in its place."""
        pattern = re.escape(wanted.replace("$", "DOLLAR"))
        pattern = re.sub(r"DOLLAR(\w+)", lambda found: f"(?P<{found[1]}>[\\d.:]+)", pattern, count=0)
        unbound = [name for name in re.findall(r"\$(\w+)", wanted) if f"${name}" not in self.names]
        if unbound and (found := re.fullmatch(pattern, happened)):
            for name in unbound:
                self._bind(name, found[name])
        return re.sub(r"[$@]\w+", lambda found: self.names.get(found[0], found[0]), wanted)

    def _bind(self, name: str, value: str) -> None:
        self.names[f"${name}"] = value
        self.names[f"@{name}"] = spell(endpoint(value)[0], 0)

    def _rewrite(self, step: Step, happened: str) -> None:
        if step.wanted and "$" in step.wanted:
            self._bound(step.wanted, happened)
        externals = {spell(*m.external): m for m in self.model.owners.values()}
        for text in sorted(externals, key=len, reverse=True):
            if text in happened and text not in self.names.values():
                self._bind(next(c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if f"${c}" not in self.names), text)
        for name, text in self.names.items():
            happened = re.sub(rf"(?<![\d.]){re.escape(text)}(?![\d:])", lambda _, name=name: name, happened)  # type: ignore[misc]
        before = self.scenario.lines[step.line].partition("→")[0].rstrip()
        self.scenario.lines[step.line] = f"{before} → {happened}" if happened else before


def _asker(asked: Asked) -> str:
    """Who has asked, and how he is told."""
    if isinstance(asked.packet, frames6.Packet6):
        return f"prohibited to {frames6.spell6(asked.packet.source, asked.packet.source_port)}"
    packet = frames.dissect(frames.split_frame(asked.frame)[4])
    return f"port-unreachable to {spell(packet.source, packet.source_port)}"


def _aligned(lines: list[str]) -> list[str]:
    """With the arrows under each other, where that does not make lines too long."""
    cut = [line.partition("→") for line in lines]
    column = max((len(before.rstrip()) for before, arrow, _ in cut if arrow), default=0)
    return [f"{before.rstrip():{min(column, 72)}} → {after.strip()}" if arrow else before for before, arrow, after in cut]
