"""A PCP server as a function: a request, who sent it, the second and the mappings there are make an answer (RFC 6887, 6886).

    answer(policy, table, datagram, source, now_s)      an Answer: bytes or none, and in a word what became of it

The order of questions is that of RFC 6887 8.2 and 11.3. What a request may do to a mapping says the picture below: by who keeps
the mapping, and whether it shall live or end. Not obeyed, on purpose: PEER, FILTER, mappings of all ports (UNSUPP_...).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from krononat import pcp
from krononat.pcp import Refused, Request

# ENDED: by who had its nonce; it goes on as that of the sessions that use it. Who repeats himself is told the same again
# (RFC 6887 15.1), to anybody else it is DYNAMIC.
DYNAMIC, ENDED, STATIC, PCP, NAT_PMP, ADOPTED = "dynamic", "ended", "static", "pcp", "nat-pmp", "adopted"
FOR_EVER = 0xFFFFFFFF  # lifetime of a static mapping (RFC 6887 11.3)

# What is done to a mapping: (who keeps it, who asks) -> to have it live, to have it end. RFC 6887 15.1 forbids to end what
# sessions keep; to NAT-PMP, which knows of none, there is nothing to end then (RFC 6886 3.4).
_PICTURE = """
kept by     asks        live        end
nobody      pcp         grant       nothing
nobody      nat-pmp     grant       nothing
dynamic     pcp         grant       refuse
dynamic     nat-pmp     grant       nothing
ended       pcp         grant       nothing
ended       nat-pmp     grant       nothing
static      pcp         tell        refuse
static      nat-pmp     tell        refuse
pcp         pcp         renew       end
pcp         nat-pmp     tell        refuse
nat-pmp     pcp         renew       end
nat-pmp     nat-pmp     renew       end
adopted     pcp         renew       end
adopted     nat-pmp     renew       end
"""
RULES = {(kept, asks): (live, end) for kept, asks, live, end in (line.split() for line in _PICTURE.strip().splitlines()[1:])}


class Policy(NamedTuple):
    """What of [pcp] a request meets; times in seconds."""

    minimum_s: int = 120
    maximum_s: int = 86_400
    nat_pmp: bool = True
    third_party: bool = False


class Held(NamedTuple):
    """A mapping: its external endpoint, who keeps it (one of the words above), until when and by which nonce."""

    half: int
    protocol: int
    port: int
    external: int
    external_port: int
    origin: str
    expires_s: int = 0
    nonce: bytes = bytes(12)


class Wish(NamedTuple):
    """A mapping as it is wanted; `exact`: this external endpoint or none."""

    internal: int
    protocol: int
    port: int
    wanted: int
    wanted_port: int
    exact: bool


class Table(Protocol):
    """Mappings of the subscribers of this core. Addresses are host integers."""

    def epoch_s(self, internal: int, now_s: int) -> int:
        """Seconds since mappings were lost last, of those that the host could have (RFC 6887 8.5)."""

    def may_ask_for(self, source: int, internal: int) -> bool:
        """Whether both hosts are one subscriber's."""

    def address_of(self, internal: int) -> int:
        """External address of a host, 0 if none can be had."""

    def find(self, internal: int, protocol: int, port: int) -> Held | None:
        """The mapping of an internal endpoint. Refused: it is there, and nothing can be done about it now."""

    def grant(self, wish: Wish, nonce: bytes, origin: str, expires_s: int, now_s: int) -> Held | int:
        """Have a mapping live until then; a result code of PCP where that cannot be."""

    def renew(self, held: Held, nonce: bytes, origin: str, expires_s: int) -> None:
        """Have one that was asked for live until then, for whoever has this nonce."""

    def end(self, held: Held) -> None:
        """Have one that was asked for live no longer than its sessions."""

    def end_all(self, internal: int, protocol: int) -> bool:
        """End all of a host that were asked for without a nonce; whether others are left that were asked for, or are static."""


class Answer(NamedTuple):
    """Bytes to send, none where nothing is due; and the result code, None of what was dropped."""

    datagram: bytes
    result: int | None


NOTHING = Answer(b"", None)


def answer(policy: Policy, table: Table, datagram: bytes, source: int, now_s: int) -> Answer:
    """Answer what the subscriber's host `source` sent, and change the table as it asks."""
    epoch_s = table.epoch_s(source, now_s)
    try:
        request = pcp.read(datagram, source, policy.nat_pmp)
        if request is None:
            return NOTHING
        if request.version == pcp.PMP_VERSION:
            return _answer_pmp(policy, table, request, source, now_s)
        if request.opcode == pcp.ANNOUNCE:
            return Answer(pcp.announcement(epoch_s), pcp.SUCCESS)
        return _answer_map(policy, table, datagram, request, source, now_s)
    except Refused as refused:
        if datagram[0] == pcp.PMP_VERSION and policy.nat_pmp:
            return Answer(pcp.pmp_refusal(datagram, refused.result, epoch_s), refused.result)
        return Answer(pcp.refusal(datagram, refused.result, epoch_s), refused.result)


def _answer_map(policy: Policy, table: Table, datagram: bytes, request: Request, source: int, now_s: int) -> Answer:
    internal = _internal(policy, table, request, source)
    epoch_s = table.epoch_s(internal, now_s)
    if request.protocol not in (pcp.TCP, pcp.UDP) or request.port == 0:
        return _answer_other(request, epoch_s)
    held = _as_seen_by(table.find(internal, request.protocol, request.port), request.nonce)
    if held and held.origin == PCP and held.nonce != request.nonce:
        return Answer(pcp.refusal(datagram, pcp.NOT_AUTHORIZED, epoch_s, _left(held, now_s)), pcp.NOT_AUTHORIZED)
    wish = Wish(internal, request.protocol, request.port, request.wanted, request.wanted_port, request.prefer_failure)
    done = _carry_out(policy, table, request, wish, held, PCP, now_s)
    if done is None:
        return Answer(pcp.ended(request, epoch_s), pcp.SUCCESS)
    return Answer(pcp.success(request, done.lifetime_s, epoch_s, done.external, done.port), pcp.SUCCESS)


def _answer_other(request: Request, epoch_s: int) -> Answer:
    """Mappings of all ports, or of other protocols, are not made, so none is there to be ended (RFC 6887 11.3, 15.1).

    To end that of all ports ends nothing else: it has a nonce of its own.
    """
    if request.lifetime:
        raise Refused(pcp.UNSUPP_PROTOCOL)
    return Answer(pcp.ended(request, epoch_s), pcp.SUCCESS)


def _as_seen_by(held: Held | None, nonce: bytes) -> Held | None:
    return held._replace(origin=DYNAMIC) if held and held.origin == ENDED and held.nonce != nonce else held


def _internal(policy: Policy, table: Table, request: Request, source: int) -> int:
    """Whose mapping it is about (RFC 6887 13.1)."""
    if request.third_party is None:
        return source
    if not policy.third_party:
        raise Refused(pcp.UNSUPP_OPTION)
    if request.third_party == source:
        raise Refused(pcp.MALFORMED_REQUEST)
    if request.third_party <= 0 or not table.may_ask_for(source, request.third_party):
        raise Refused(pcp.NOT_AUTHORIZED)
    return request.third_party


class Done(NamedTuple):
    """What a mapping is, after all."""

    external: int
    port: int
    lifetime_s: int


def _carry_out(
    policy: Policy, table: Table, request: Request, wish: Wish, held: Held | None, asks: str, now_s: int
) -> Done | None:
    """Do what the picture says; the mapping as it is then, None where there is none. Refused where it cannot be."""
    deed = RULES[held.origin if held else "nobody", asks][request.lifetime == 0]
    if deed == "refuse":
        raise Refused(pcp.NOT_AUTHORIZED)
    if held and request.lifetime and wish.exact and not _is_wanted(held, wish):
        raise Refused(pcp.CANNOT_PROVIDE_EXTERNAL)
    lifetime_s = _lifetime(policy, request.lifetime, asks)
    if deed == "grant":
        granted = table.grant(wish, request.nonce, asks, now_s + lifetime_s, now_s)
        if isinstance(granted, int):
            raise Refused(granted)
        held = granted
    if held and deed == "tell":
        lifetime_s = _of_another(policy, request, held, asks, now_s)
    if held and deed == "renew":
        table.renew(held, request.nonce, asks, now_s + lifetime_s)
    if held and deed == "end":
        table.end(held)
    return Done(held.external, held.external_port, lifetime_s) if held and deed in ("grant", "renew", "tell") else None


def _is_wanted(held: Held, wish: Wish) -> bool:
    """Whether a mapping has the external endpoint, as far as that is named (RFC 6887 13.2)."""
    return wish.wanted in (0, held.external) and wish.wanted_port in (0, held.external_port)


def _lifetime(policy: Policy, asked_s: int, asks: str) -> int:
    """Neither shorter nor longer than is good (RFC 6887 15); NAT-PMP is offered no longer than it asks for (RFC 6886 3.3)."""
    return min(max(asked_s, policy.minimum_s if asks == PCP else 0), policy.maximum_s)


def _of_another(policy: Policy, request: Request, held: Held, asks: str, now_s: int) -> int:
    """Lifetime that is told of a mapping that somebody else keeps."""
    left_s = FOR_EVER if held.origin == STATIC else _left(held, now_s)
    return left_s if asks == PCP else min(left_s, _lifetime(policy, request.lifetime, asks))


def _left(held: Held, now_s: int) -> int:
    return max(held.expires_s - now_s, 0)


# --- NAT-PMP --------------------------------------------------------------------------------------------------------------


def _answer_pmp(policy: Policy, table: Table, request: Request, source: int, now_s: int) -> Answer:
    epoch_s = table.epoch_s(source, now_s)
    if request.opcode == pcp.PMP_ADDRESS:
        external = table.address_of(source)
        if not external:
            raise Refused(pcp.NETWORK_FAILURE)
        return Answer(pcp.pmp_address(external, epoch_s), pcp.SUCCESS)
    if request.port == 0:
        return _pmp_end_all(table, request, source, epoch_s)
    held = table.find(source, request.protocol, request.port)
    wish = Wish(source, request.protocol, request.port, 0, request.wanted_port, False)
    done = _carry_out(policy, table, request, wish, held, NAT_PMP, now_s)
    if done is None:
        return Answer(pcp.pmp_mapping(request, 0, epoch_s, 0), pcp.SUCCESS)
    return Answer(pcp.pmp_mapping(request, done.lifetime_s, epoch_s, done.port), pcp.SUCCESS)


def _pmp_end_all(table: Table, request: Request, source: int, epoch_s: int) -> Answer:
    """RFC 6886 3.4: port 0 with lifetime 0 ends all that the host asked for of a protocol; it never makes anything.

    As many as can be end; what stays is told by the result.
    """
    if request.lifetime or table.end_all(source, request.protocol):
        raise Refused(pcp.NOT_AUTHORIZED)
    return Answer(pcp.pmp_mapping(request, 0, epoch_s, 0), pcp.SUCCESS)
