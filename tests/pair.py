"""Model and pipeline side by side: every frame goes to both, and whatever they do not agree on is an error.

In verdict, packet, port, MAC addresses and ICMP error; and the checker (`frames.complaints`) must find nothing wrong with what
is sent. `compare_sessions` holds their sessions against each other, `check` the pipeline's state against its invariants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

from shards import invariants, nat, sessions, tcp
from shards.lifetimes import STATE_MASK
from tests import checker, frames, frames6, model6, shunts
from tests.admission import blanked, is_generic
from tests.bare_core import Core, Result
from tests.bed import INTERNAL_REALM, Bed, Port
from tests.frames import mac_of
from tests.frames6 import Packet6, is_six_frame, mac_of6
from tests.model import Model, Session
from tests.model_unasked import Asked
from tests.outcome import Outcome, Unchosen

EPOCH = 10_000_000  # tick at which tests begin


class Pair:
    """A bed twice."""

    def __init__(self, bed: Bed, core: Core | None = None) -> None:
        """`core`: another one than a new one without rings; its `now` is when it begins."""
        self.bed = bed
        self.core = core or Core(bed, EPOCH)
        self.now = self.began = self.core.now
        self.model = Model(bed, self.now)
        self.waiting: list[tuple[str, bytes, int]] = []  # side, frame, until when it may wait (0: not said yet)
        self.received = 0
        self.told: list[Asked] = []  # when time passed last
        self.core.resolve(*(internal for _, _, (internal, _) in bed.statics), *bed.peers)

    def receive(self, arrivals: list[tuple[str, bytes]]) -> list[Result]:
        """Hand a burst of (side, frame) to both; what the pipeline did."""
        self.received += len(arrivals)
        results = self.core.receive(arrivals, self.now)
        return self._judge_all([(side, frame, 0) for side, frame in arrivals], results)

    def resolve(self, host: int) -> list[Result]:
        """A silent neighbour answers; what became of the frames that were held."""
        self.bed.silent.discard(host)
        self.core.resolve()
        return self.wait()

    def wait(self) -> list[Result]:
        """Serve the held frames again; what became of them."""
        arrivals, self.waiting = self.waiting, []
        return self._judge_all(arrivals, self.core.again(self.now))

    def _judge_all(self, arrivals: list[tuple[str, bytes, int]], results: Iterable[Result]) -> list[Result]:
        judged = []
        for (side, frame, until), result in zip(arrivals, results, strict=True):
            outcome = self.model.receive(side, frame, self.now, self._chosen, until)
            self.model.unasked.came_as(*self._as_it_was(side, frame))
            until = until or self.now + outcome.patience
            if outcome.verdict == "held" and self.now >= until and not outcome.follows:
                outcome = self.model.give_up(outcome)
            elif outcome.verdict == "held":
                self.waiting.append((side, frame, until))
            judged.append(self.core.claimed(result, outcome))
            self._judge(*self._as_it_was(side, frame), judged[-1], outcome)
        return judged

    def pass_time(self, now: int) -> None:
        """Let it be `now` for both."""
        self.now = now
        self.core.pass_time(now)
        self.model.pass_time(now)
        told = self.model.unasked.due()
        said = self.core.said([asked.place for asked, _ in told])
        assert len(said) == len(told), f"{len(said)} were told what they asked for in vain, the model says {len(told)}"
        for (asked, reply), result in zip(told, said, strict=True):
            assert result.sent and result.verdict in ("", asked.verdict)
            self._judge_reply(asked.frame, asked.place, result.sent, reply)
        self.told = [asked for asked, _ in told]

    def check(self) -> None:
        """Assert that the sessions are the same and the invariants hold."""
        self.compare_sessions()
        invariants.check(self.core.state, self.received, len(self.core.held))

    def compare_sessions(self) -> None:
        """The same sessions, in the same state, ending at the same tick."""
        ours = {key: (shown(s), s.state, s.expiry & 0xFFFFFFFF) for key, s in self.model.sessions.items()}
        theirs = {}
        for row in invariants.living(self.core.state):
            internal = int(row["internal_address"]), int(row["internal_port"])
            remote = int(row["remote_address"]), int(row["remote_port"])
            external = int(row["external_address"]), int(row["external_port"])
            theirs[int(row["internal_realm"]) >> 24, internal, remote] = (
                external,
                tcp.STATES[row["state"] & STATE_MASK],
                int(row["expiry"]),
            )
        self._compare_sessions6()
        assert theirs == ours, f"sessions differ: only pipeline {_missing(theirs, ours)}, only model {_missing(ours, theirs)}"

    def _compare_sessions6(self) -> None:
        ours = {key: (s.state, s.expiry & 0xFFFFFFFF) for key, s in self.model.six.sessions.items()}
        theirs, state = {}, self.core.state
        for line in invariants.lines6(state).tolist():
            row, flow = state.sessions[line], state.flows6[line + 1]
            ends = [
                (int(flow[f"{end}_high"]) << 64 | int(flow[f"{end}_low"]), int(flow[f"{end}_port"]))
                for end in ("internal", "remote")
            ]
            theirs[int(flow["realm"]) >> 24, ends[0], ends[1]] = tcp.STATES[row["state"] & STATE_MASK], int(row["expiry"])
        assert theirs == ours, f"sessions differ: only pipeline {_missing(theirs, ours)}, only model {_missing(ours, theirs)}"

    # --- frames -----------------------------------------------------------------------------------------------------------

    def _as_it_was(self, side: str, frame: bytes) -> tuple[bytes, str]:
        """A frame and the side it came by; what came shunted as if from a station of that side."""
        told = self.model.came
        if told is None:
            return frame, side
        inner = frames.dissect(frames.split_frame(frame)[4]).payload[16:]
        port = self.bed.inside if told.side == "inside" else self.bed.outside
        sender = mac_of(self.model.ways(told.side, frames.dissect_header(inner).source)[0].hop)
        return frames.build_frame(mac_of(port.address), sender, inner, port.vlan), told.side

    def _judge(self, frame: bytes, side: str, result: Result, outcome: Outcome) -> None:
        """Hold one result against the model's word and the checker's."""
        both = f"the pipeline says {result.verdict}, the model {outcome.verdict}"
        assert result.verdict == outcome.verdict, f"{described(frame)}: {both}"
        if outcome.reply:
            assert result.sent, f"{described(frame)}: its sender should be told, and is not"
            self._judge_reply(frame, side, result.sent, outcome.reply)
        elif outcome.shunt:
            assert result.sent, f"{described(frame)}: nothing was sent"
            self._judge_shunted(result, outcome, outcome.shunt)
        elif outcome.packet and outcome.verdict != "held":
            assert result.sent, f"{described(frame)}: nothing was sent"
            self._judge_sent(frame, result, outcome)
        else:
            assert result.sent is None, f"{described(frame)}: {described(result.sent or b'')} should not have been sent"

    def _judge_sent(self, frame: bytes, result: Result, outcome: Outcome) -> None:
        assert result.sent and outcome.packet
        if isinstance(outcome.packet, Packet6):
            self._judge_sent6(frame, result, outcome)
            return
        to, source, vlan, _, data = frames.split_frame(result.sent)
        port, hop = self._way(result, outcome)
        packet = frames.dissect(data, arriving=False)
        if result.pieces or outcome.datagram:
            outcome = outcome._replace(packet=self._identified(packet, outcome, frame, result))
        self._judge_pieces(data, result, port.mtu)
        assert packet == outcome.packet, f"pipeline {packet!r}\n   model {outcome.packet!r}"
        assert len(data) == len(frames.build(outcome.packet)), "trailing bytes"
        assert (to, source, vlan) == (mac_of(hop), mac_of(port.address), port.vlan), f"{to.hex()} {source.hex()} {vlan}"
        private = self.bed.private if outcome.side == "outside" and not self._is_untranslated(outcome.packet) else []
        assert not (told := checker.complaints(result.sent, frame, private)), told

    def _identified(self, packet: frames.Packet, outcome: Outcome, frame: bytes, result: Result) -> frames.Packet:
        """The packet that the model expects, with the identification that the pipeline chose for its datagram (RFC 6864)."""
        assert isinstance(outcome.packet, frames.Packet)
        before = frames.dissect(frames.split_frame(frame)[4])
        if packet.source == before.source:
            return outcome.packet
        if outcome.datagram and not outcome.datagram.is_known_as(packet.id):
            return replace(outcome.packet, id=-1)
        return replace(outcome.packet, id=packet.id)

    def _judge_pieces(self, data: bytes, result: Result, mtu: int) -> None:
        """What is too long leaves in pieces that are none, and together what it was."""
        assert bool(result.pieces) == (len(data) > mtu), f"{len(data)} bytes in {len(result.pieces)} pieces"
        if result.pieces:
            cut = [frames.split_frame(piece)[4] for piece in result.pieces]
            assert all(len(piece) <= mtu for piece in cut) and frames.put_together(cut) == data
            assert {piece[: -len(part)] for piece, part in zip(result.pieces, cut, strict=True)} == {
                result.sent[: -len(data)] if result.sent else b""
            }

    def _judge_shunted(self, result: Result, outcome: Outcome, told: shunts.Wrapping) -> None:
        """It goes to the other core with all that this has to know, and the packet inside is what came."""
        assert result.sent and outcome.packet
        to, source, vlan, ethertype, data = frames.split_frame(result.sent)
        port, hop = self._way(result, outcome)
        assert (to, source, vlan, ethertype) == (mac_of(hop), mac_of(port.address), port.vlan, 0x0800)
        outer = frames.dissect(data)
        wrapping, inner = shunts.unwrap(outer)
        assert wrapping == told, f"pipeline {wrapping}\n   model {told}"
        packet = frames.dissect(inner, arriving=False)
        if outcome.datagram and told.turned and outcome.datagram.is_known_as(packet.id):
            assert isinstance(outcome.packet, frames.Packet)
            outcome = outcome._replace(packet=replace(outcome.packet, id=packet.id))
        assert packet == outcome.packet, f"pipeline {packet!r}\n   model {outcome.packet!r}"
        assert outer == shunts.wrap(told, inner)
        assert data == frames.build(outer) and len(data) <= port.mtu

    def _is_untranslated(self, packet: frames.Packet) -> bool:
        """Whether the model lets a packet out with an address of the inside, which is then in a bypass."""
        shown = packet.source if packet.about is None else packet.about.destination
        named = any(shown & int(entry.internal.netmask) == int(entry.internal.network_address) for entry in self.bed.bypasses)
        return self.model.untranslated.in_hand and named

    def _way(self, result: Result, outcome: Outcome) -> tuple[Port, int]:
        """Port and next hop of a frame that has left; both must be among those that the model allows."""
        rows = {self.bed.at(way.place)[0]: way for way in outcome.ways}
        assert result.port in rows, f"it left by port {result.port}; allowed were {outcome.ways}"
        return self.bed.at(rows[result.port].place)[1], rows[result.port].hop

    def _judge_sent6(self, frame: bytes, result: Result, outcome: Outcome) -> None:
        """Every byte of it is known beforehand."""
        assert result.sent
        to, source, vlan, ethertype, data = frames.split_frame(result.sent)
        port, hop = self._way(result, outcome)
        wanted = model6.expected(frames.split_frame(frame)[4], self.bed.mss, self._port_of(frame).partial)
        assert data == wanted, f"pipeline {data.hex()}\n   model {wanted.hex()}"
        assert (to, source, vlan, ethertype) == (mac_of6(hop), mac_of(port.address), port.vlan, 0x86DD)

    def _port_of(self, frame: bytes) -> Port:
        return next(port for _, port in self.bed.ports() if frame[:6] == mac_of(port.address))

    def _judge_reply6(self, frame: bytes, side: str, sent: bytes, reply: tuple[int, int]) -> None:
        to, source, vlan, ethertype, data = frames.split_frame(sent)
        _, port = self.bed.at(side)
        packet, before = frames6.dissect(data), frames.split_frame(frame)[4]
        assert (packet.kind, packet.rest) == reply, f"told {packet}"
        assert packet.source == port.address6 and packet.destination == frames6.dissect(before).source
        assert (to, source, vlan, ethertype) == (frame[6:12], mac_of(port.address), port.vlan, 0x86DD)
        asked = model6.expected(before, 0, port.partial, hops=0)
        assert packet.payload == asked[: 1280 - 48], f"{asked.hex()} is not quoted by {packet.payload.hex()}"

    def _judge_reply(self, frame: bytes, side: str, sent: bytes, reply: tuple[int, int]) -> None:
        if is_six_frame(frame):
            self._judge_reply6(frame, side, sent, reply)
            return
        to, source, vlan, _, data = frames.split_frame(sent)
        _, port = self.bed.at(side)
        packet, received = frames.dissect(data), frames.dissect(frames.split_frame(frame)[4])
        assert (packet.kind, packet.rest) == reply, f"told {packet}"
        assert packet.source == self.model.our_name(received, side) and packet.destination == received.source
        assert (to, source, vlan) == (frame[6:12], mac_of(port.address), port.vlan)
        if side.startswith("inside") or self.bed.stick:  # so has been what its options had recorded
            received = replace(received, ip_options=blanked(received.ip_options))
        if received.residue == -1 and port.partial:  # has been finished before it was quoted
            received = replace(received, residue=0)
        asked, quoted = frames.build(received), data[28:]
        assert asked.startswith(quoted) and len(quoted) >= min(28, len(asked)), f"{asked.hex()} is not quoted by {quoted.hex()}"
        # It shows its asker nothing but his own packet; so there is no address in it that he had not sent.
        assert len(data) <= 576 and not (told := checker.complaints(sent, None, [])), told

    def _chosen(self, protocol: int, internal: tuple[int, int]) -> tuple[int, int]:
        half = sessions.find_mapping(self.core.state, internal[0], INTERNAL_REALM, protocol, internal[1])
        if half == 0:
            raise Unchosen(self._paired(internal[0]))
        row = self.core.state.mappings[half]
        return int(row["external_address"]), int(row["external_port"])

    def _paired(self, host: int) -> int:
        """The external address of the subscriber with an internal one, 0 if he has none."""
        _, account = nat.find_account(self.core.state, INTERNAL_REALM, host)
        external = int(self.core.state.accounts[account]["external"]) - 1
        return int(self.core.state.externals[external]["address"]) if external >= 0 else 0


def shown(session: Session) -> tuple[int, int]:
    """The external endpoint of a session as its packets show it."""
    host, port = session.mapping.external
    return host, 0 if is_generic(session.protocol) else port


def sender_of(bed: Bed, side: str, packet: frames.Packet) -> bytes:
    """MAC address of the station that would send `packet` to us: the source itself where it is on-link, else the gateway."""
    _, port = bed.at(side)
    on_link = packet.source & int(port.on_link.netmask) == int(port.on_link.network_address)
    return mac_of(packet.source if on_link else port.gateway)


def sender_of6(bed: Bed, side: str, packet: Packet6) -> bytes:
    """The same for a packet of IPv6."""
    port = bed.inside if side == "inside" else bed.outside
    on_link = port.on_link6 is not None and IPv6Address(packet.source) in port.on_link6
    return mac_of6(packet.source if on_link else port.gateway6)


def described(frame: bytes) -> str:
    """A frame as a line, and in hexadecimal digits for those who want to look themselves."""
    reader = frames6.dissect if is_six_frame(frame) else frames.dissect
    try:
        told = str(reader(frames.split_frame(frame)[4]))
    except frames.Malformed as wrong:
        told = f"a frame that is {wrong.verdict}"
    return f"{told} ({frame.hex()})"


def _missing(some: Mapping[Any, object], others: Mapping[Any, object]) -> object:
    return {key: value for key, value in some.items() if others.get(key) != value}
