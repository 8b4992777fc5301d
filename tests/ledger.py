"""What a translation must be, judged by what is seen on both sides of it alone, without model or state.

Internal and external endpoints belong to each other, one to one, for as long as the mapping lives; nothing but addresses,
ports, checksums and TTL changes; and what is refused had it coming: `REASONS` says for every verdict what the packet must be
like.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests import frames
from tests.admission import is_generic
from tests.casting import INSIDE, INSIDE6, has_no_name, spelt
from tests.frames import ICMP, TCP, UDP, ones_sum
from tests.frames6 import ICMP6
from tests.roles import IN, OUT, Endpoint, Look, look_at

TRANSLATED = {OUT: "forwarded_out", IN: "forwarded_in"}
NOBODY = 0xCB00_711F, 0  # 203.0.113.31, the last of the pool


class Case(NamedTuple):
    """A datagram that the NAT was given."""

    number: int  # of the capture's frame
    way: str
    data: bytes
    look: Look | None
    inner: Endpoint  # internal endpoint; address 0 where it cannot be told


class Ledger:
    """Which endpoints belong together."""

    def __init__(self, lives: Callable[[int, Endpoint], Endpoint | None]) -> None:
        """`lives`: by protocol and external endpoint, whose it is at this moment, None if nobody's."""
        self.lives = lives
        self.external: dict[tuple[int, Endpoint], Endpoint] = {}
        self.internal: dict[tuple[int, Endpoint], Endpoint] = {}
        self.host: dict[int, int] = {}  # the external address that a host was last seen by

    def known(self, protocol: int, internal: Endpoint) -> Endpoint:
        """The external endpoint of an internal one; of one that has sent nothing, an endpoint where nobody is."""
        found = self.external.get((protocol, internal))
        return found or (self.host.get(internal[0], NOBODY[0]), internal[1])

    def knows(self, look: Look, inner: Endpoint) -> bool:
        """Whether what comes in for an internal endpoint can be addressed already."""
        about = look.about or look
        if look.six or look.later or is_generic(about.protocol):
            return look.six or inner[0] in self.host
        return (about.protocol, inner) in self.external

    def judge(self, case: Case, sent: bytes) -> list[str]:
        """What is wrong with the datagram that left for one that came."""
        after = look_at(sent)
        if after is None or case.look is None:
            return ["something left that cannot be read"]
        told = unchanged(case.data, sent)
        return told if after.six or case.look.about else told + self._judge_ends(case, case.look, after)

    def _judge_ends(self, case: Case, before: Look, after: Look) -> list[str]:
        near, far, shown = (
            (before.source, after.destination, after.source)
            if case.way == OUT
            else (after.destination, after.source, before.destination)
        )
        told = [] if far == (before.destination if case.way == OUT else before.source) else ["the remote end was changed"]
        if before.later or is_generic(before.protocol):
            same = self.host.setdefault(near[0], shown[0]) == shown[0]
            return told if same or case.way == OUT else [*told, f"{spelt(near[0])} is not known as {spelt(shown[0])}"]
        return told + self._pair(before.protocol, near, shown)

    def _pair(self, protocol: int, internal: Endpoint, external: Endpoint) -> list[str]:
        """Note that two endpoints belong together; complain where either belongs to another that still lives."""
        told = []
        other = self.external.get((protocol, internal), external)
        if other != external and self.lives(protocol, other) == internal:
            told.append(f"{_spell(internal)} was {_spell(other)} and is {_spell(external)}")
        owner = self.internal.get((protocol, external), internal)
        if owner != internal and self.lives(protocol, self.external[protocol, owner]) == owner:
            told.append(f"{_spell(external)} is {_spell(internal)}'s and {_spell(owner)}'s")
        self.external[protocol, internal], self.internal[protocol, external] = external, internal
        self.host[internal[0]] = external[0]
        return told


def _spell(end: Endpoint) -> str:
    return f"{spelt(end[0])}:{end[1]}"


# --- nothing else changes ---------------------------------------------------------------------------------------------------


def unchanged(before: bytes, after: bytes) -> list[str]:
    """What differs of two datagrams that must not."""
    total = 40 + int.from_bytes(before[4:6], "big") if before[0] >> 4 == 6 else int.from_bytes(before[2:4], "big")
    told = [] if len(after) == total or _may_shrink(before) else [f"{total} bytes became {len(after)}"]
    if before[0] >> 4 == 6:
        same = masked6(before[:total]) == masked6(after)
        return told if same else [*told, "more was changed than the hop limit"]
    told += [] if _masked4(before[:total]) == _masked4(after) else ["more was changed than endpoints, TTL and checksums"]
    told += [] if ones_sum(after[: 4 * (after[0] & 15)]) == 0 else ["the IP checksum is wrong"]
    return told + _checksum_complaints(before[:total], after)


def _may_shrink(data: bytes) -> bool:
    """An ICMP error may lose extensions that tell too much."""
    look = look_at(data)
    return look is not None and look.about is not None


def masked6(data: bytes) -> bytes:
    """Without hop limit; a partial checksum may be finished on the way, so without the transport's checksum as well."""
    look = look_at(data)
    at = {TCP: 16, UDP: 6}.get(look.protocol, 0) if look and not look.later and data[6] in (TCP, UDP) else 0
    bare = data[:7] + data[8:]
    return bare[: 39 + at] + bare[41 + at :] if at else bare


def _masked4(data: bytes) -> bytes:
    """Without addresses, identification, TTL, header checksum, recorded addresses, ports and transport checksum."""
    size = 4 * (data[0] & 15)
    head, rest = data[:4] + data[6:8] + data[9:10], data[size:]
    if int.from_bytes(data[6:8], "big") & 0x1FFF or is_generic(data[9]):
        return head + rest
    if data[9] == ICMP:
        return head + rest[:2] + (rest[6:] if rest[0] not in frames.ERRORS else rest[8 : 8 + 8])
    check = {TCP: 16, UDP: 6}[data[9]]
    return head + rest[4:check] + rest[check + 2 :]


def _checksum_complaints(before: bytes, after: bytes) -> list[str]:
    """A transport checksum that was right is right, and none stays none."""
    try:
        was, is_now = frames.dissect(before), frames.dissect(after, arriving=False)
    except frames.Malformed:
        return []  # the first of several fragments, whose checksum covers what is not here
    if was.fragment & 0x3FFF or was.residue == is_now.residue or was.residue == -1:
        return []
    return [f"the transport checksum was off by {was.residue} and is off by {is_now.residue}"]


# --- what may be refused ----------------------------------------------------------------------------------------------------


def _four(case: Case) -> bool:
    return case.data[0] >> 4 == 4


def _size(case: Case) -> int:
    return int.from_bytes(case.data[2:4], "big") if _four(case) else 40 + int.from_bytes(case.data[4:6], "big")


def _is_part(case: Case) -> bool:
    return bool(int.from_bytes(case.data[6:8], "big") & 0x3FFF) if _four(case) else b"\x2c" in case.data[6:7] + case.data[40:]


def _is_error(case: Case) -> bool:
    protocol, at = (case.data[9], 4 * (case.data[0] & 15)) if _four(case) else (ICMP6, 40)
    return protocol == ICMP and case.data[at] in frames.ERRORS if _four(case) else case.look is not None


def _of(*protocols: int) -> Callable[[Case], bool]:
    return lambda case: case.look is not None and (case.look.protocol in protocols or not _four(case))


def _nowhere(end: str) -> Callable[[Case], bool]:
    return lambda case: case.look is not None and has_no_name(getattr(case.look, end)[0], case.look.six)


def _is_ours(host: int, six: bool) -> bool:
    return host >> 80 == int.from_bytes(INSIDE6, "big") if six else host >> 16 == INSIDE >> 16


REASONS: dict[str, Callable[[Case], bool]] = {
    "runt": lambda case: len(case.data) < (20 if _four(case) else 40),
    "bad_ip_header": lambda case: case.data[0] >> 4 not in (4, 6) or (_four(case) and case.data[0] & 15 < 5),
    "bad_length": lambda case: not 20 <= _size(case) <= len(case.data) or not _four(case) or _of(UDP)(case),
    "bad_ip_checksum": lambda case: _four(case) and ones_sum(case.data[: 4 * (case.data[0] & 15)]) != 0,
    "bad_icmp_checksum": _of(ICMP, ICMP6),
    "source_routed": lambda case: case.data[0] & 15 > 5 or not _four(case) or case.data[9] == 47,
    "martian_source": _nowhere("source"),
    "martian_destination": _nowhere("destination"),
    "bad_fragment": _is_part, "tiny_fragment": _is_part, "fragment_overlap": _is_part, "fragment_duplicate": _is_part,
    "fragment_orphan": _is_part, "fragment_refused": _is_part, "error_in_fragments": _is_part, "fragment_limit": _is_part,
    "bad_l4_header": lambda case: True,
    "bad_tcp_flags": _of(TCP),
    "protocol_not_served": lambda case: not _of(ICMP, TCP, UDP)(case) or not _four(case),
    "ah_not_served": _of(51),
    "icmp_type_not_served": lambda case: _of(ICMP, ICMP6)(case) and not (case.look and case.look.about),
    "spoofed_source": _nowhere("source"),
    "ttl_exceeded": lambda case: case.data[8 if _four(case) else 7] <= 1,
    "no_mapping": lambda case: _four(case) and case.way == IN,
    "unsolicited": lambda case: not _four(case) and case.way == IN,
    "filtered": lambda case: case.way == IN,
    "tcp_not_opening": lambda case: _of(TCP)(case) and not (case.look and case.look.opens),
    "protocol_in_use": lambda case: not _of(ICMP, TCP, UDP)(case),
    "icmp_embedded_bad": _is_error,
    "icmp_unrelated": _is_error,
    "bad_extension_header": lambda case: not _four(case),
}  # fmt: skip


def refused_rightly(case: Case, verdict: str, mtu: int) -> bool:
    """Whether a packet like this may be refused so; a verdict that no packet can bring about here is wrong in any case."""
    if verdict == "too_big":
        return _size(case) > mtu and (not _four(case) or case.data[6] & 0x40 != 0)
    return verdict in REASONS and REASONS[verdict](case)
