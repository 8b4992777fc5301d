"""Messages of PCP (RFC 6887) and NAT-PMP (RFC 6886): bytes to requests, answers to bytes.

    read(datagram, …)           a Request of either protocol; None: no answer is due; Refused: an answer with a result code
    refusal, success, ended     answers of PCP             pmp_refusal, pmp_address, pmp_mapping    of NAT-PMP
    announcement                what tells a client that it must ask anew (RFC 6887 14.1)

Nothing here knows of mappings; addresses are host integers. What is read was written by anybody: every length is looked at
before what it covers, and whatever bytes come, one of the three above comes of them.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PORT, CLIENT_PORT = 5351, 5350  # RFC 6887 8.1.1, 14.1
VERSION, PMP_VERSION = 2, 0
BYTES_AT_MOST = 1100  # RFC 6887 7: of a message

ANNOUNCE, MAP, PEER = range(3)
PMP_ADDRESS, PMP_UDP, PMP_TCP = range(3)
THIRD_PARTY, PREFER_FAILURE, FILTER = 1, 2, 3
ADVISORY = 128  # options from here on may be passed over (RFC 6887 7.3)
TCP, UDP = 6, 17

# RFC 6887 7.4; those of NAT-PMP are others (RFC 6886 3.5).
(
    SUCCESS, UNSUPP_VERSION, NOT_AUTHORIZED, MALFORMED_REQUEST, UNSUPP_OPCODE, UNSUPP_OPTION, MALFORMED_OPTION,
    NETWORK_FAILURE, NO_RESOURCES, UNSUPP_PROTOCOL, USER_EX_QUOTA, CANNOT_PROVIDE_EXTERNAL, ADDRESS_MISMATCH,
    EXCESSIVE_REMOTE_PEERS,
) = range(14)  # fmt: skip
LONG_S, SHORT_S = 1800, 30  # RFC 6887 7.4: how long an error is good for
_SHORT = (NETWORK_FAILURE, NO_RESOURCES, USER_EX_QUOTA, CANNOT_PROVIDE_EXTERNAL)
_NOT_PARSED = (UNSUPP_VERSION, MALFORMED_REQUEST, MALFORMED_OPTION)  # what these are said of (RFC 6887 7.2)

_PMP_VERSION_REFUSED, _PMP_REFUSED, _PMP_FAILURE, _PMP_NO_RESOURCES, _PMP_OPCODE_REFUSED = range(1, 6)  # RFC 6886 3.5
_PMP_RESULTS = {
    SUCCESS: 0, UNSUPP_VERSION: _PMP_VERSION_REFUSED, NOT_AUTHORIZED: _PMP_REFUSED, NETWORK_FAILURE: _PMP_FAILURE,
    NO_RESOURCES: _PMP_NO_RESOURCES, USER_EX_QUOTA: _PMP_NO_RESOURCES, UNSUPP_OPCODE: _PMP_OPCODE_REFUSED,
}  # fmt: skip

_RESPONSE = 0x80
_HEADER = struct.Struct("!BBxxI16s")  # version, R and opcode, lifetime, client's address
_ANSWER = struct.Struct("!BBxBII12x")  # version, R and opcode, result, lifetime, epoch
_MAP = struct.Struct("!12sB3xHH16s")  # nonce, protocol, internal port, external port, external address
_OPTION = struct.Struct("!BxH")
_PMP_MAP = struct.Struct("!BBxxHHI")
_OPTION_BYTES = {THIRD_PARTY: 16, PREFER_FAILURE: 0}
_AT_LEAST = {ANNOUNCE: _HEADER.size, MAP: _HEADER.size + _MAP.size}  # bytes of a request
_KEPT_FROM = 12  # of an answer: the last 96 bits of its header lie where a request has those of the client's address
_V4_MAPPED = bytes(10) + b"\xff\xff"
NOT_IPV4 = -1


class Refused(Exception):
    """A request that is answered by a result code, whatever mappings there are."""

    def __init__(self, result: int) -> None:
        super().__init__(result)
        self.result = result


class Request(NamedTuple):
    """What is asked. `client` and `wanted` are IPv4, or NOT_IPV4; 0: none is named."""

    version: int
    opcode: int
    lifetime: int = 0
    client: int = 0
    nonce: bytes = bytes(12)
    protocol: int = 0
    port: int = 0
    wanted: int = 0
    wanted_port: int = 0
    suggested: bytes = bytes(16)  # `wanted` as it came
    prefer_failure: bool = False
    third_party: int | None = None
    options: bytes = b""  # those that were obeyed, as they came


def read(datagram: bytes, source: int, nat_pmp: bool) -> Request | None:
    """What `source` asks, None where it asks nothing. Refused says how to answer what cannot be obeyed.

    The order of questions is that of RFC 6887 8.2. `nat_pmp`: whether that is spoken, too.
    """
    if len(datagram) < 2 or datagram[1] & _RESPONSE:
        return None
    if datagram[0] == PMP_VERSION and nat_pmp:
        return _read_pmp(datagram)
    if datagram[0] != VERSION:
        raise Refused(UNSUPP_VERSION)
    if len(datagram) < _HEADER.size:
        return None
    _, opcode, lifetime, client = _HEADER.unpack_from(datagram)
    if len(datagram) > BYTES_AT_MOST or len(datagram) % 4 or len(datagram) < _AT_LEAST.get(opcode, 0):
        raise Refused(MALFORMED_REQUEST)
    if ipv4(client) != source:
        raise Refused(ADDRESS_MISMATCH)
    if opcode not in _AT_LEAST:
        raise Refused(UNSUPP_OPCODE)
    request = Request(VERSION, opcode, lifetime, source)
    return _read_map(request, datagram) if opcode == MAP else _with_options(request, datagram)


def _read_map(request: Request, datagram: bytes) -> Request:
    nonce, protocol, port, wanted_port, wanted = _MAP.unpack_from(datagram, _HEADER.size)
    if protocol == 0 and port != 0:  # RFC 6887 11.3, 15.1: all protocols have all ports
        raise Refused(MALFORMED_REQUEST)
    told = request._replace(
        nonce=nonce, protocol=protocol, port=port, wanted=ipv4(wanted), wanted_port=wanted_port, suggested=wanted
    )
    told = _with_options(told, datagram)
    if told.prefer_failure and (told.lifetime == 0 or told.wanted_port == 0):  # it makes no sense (RFC 6887 11.3, 13.2)
        raise Refused(MALFORMED_OPTION)
    return told


def _with_options(request: Request, datagram: bytes) -> Request:
    """The request with what its options say, in their order (RFC 6887 7.3)."""
    for code, length, option in _options(datagram, _AT_LEAST[request.opcode]):
        if code < ADVISORY:
            request = _obey(request, code, option, length)
    return request


def _options(datagram: bytes, at: int) -> list[tuple[int, int, bytes]]:
    """(code, length of its value, all of its bytes) of each. All must be whole before one is looked into (RFC 6887 7.3)."""
    found = []
    while at < len(datagram):
        code, length = _OPTION.unpack_from(datagram, at)
        end = at + _OPTION.size + length + -length % 4
        if end > len(datagram):
            raise Refused(MALFORMED_OPTION)
        found.append((code, length, datagram[at:end]))
        at = end
    return found


def _obey(request: Request, code: int, option: bytes, length: int) -> Request:
    """Each at most once."""
    if code not in _OPTION_BYTES or request.opcode != MAP:
        raise Refused(UNSUPP_OPTION)
    before = request.prefer_failure if code == PREFER_FAILURE else request.third_party is not None
    if before or length != _OPTION_BYTES[code]:
        raise Refused(MALFORMED_OPTION)
    kept = request.options + option
    if code == PREFER_FAILURE:
        return request._replace(prefer_failure=True, options=kept)
    return request._replace(third_party=ipv4(option[_OPTION.size :]), options=kept)


def _read_pmp(datagram: bytes) -> Request | None:
    """RFC 6886 3.2 and 3.3. What is too short to be what it says has no result code there: None."""
    opcode = datagram[1]
    if opcode == PMP_ADDRESS:
        return Request(PMP_VERSION, opcode)
    if opcode not in (PMP_UDP, PMP_TCP):
        raise Refused(UNSUPP_OPCODE)
    if len(datagram) < _PMP_MAP.size:
        return None
    _, _, port, wanted_port, lifetime = _PMP_MAP.unpack_from(datagram)
    protocol = UDP if opcode == PMP_UDP else TCP
    return Request(PMP_VERSION, opcode, lifetime, protocol=protocol, port=port, wanted_port=wanted_port)


def ipv4(field: bytes) -> int:
    """Host integer of an address as PCP has it, 16 bytes; 0: none is named, of either family; NOT_IPV4: one of IPv6."""
    if field[:12] == _V4_MAPPED:
        return int.from_bytes(field[12:], "big")
    return 0 if field == bytes(16) else NOT_IPV4


def mapped(address: int) -> bytes:
    """An IPv4 address (host integer) as PCP has it (RFC 6887 5)."""
    return _V4_MAPPED + address.to_bytes(4, "big")


# --- answers --------------------------------------------------------------------------------------------------------------


def lifetime_of(result: int) -> int:
    """Seconds for which a client may believe in an error."""
    return SHORT_S if result in _SHORT else LONG_S


def refusal(datagram: bytes, result: int, epoch_s: int, lifetime_s: int | None = None) -> bytes:
    """An error: the request's bytes, with the header of an answer over them (RFC 6887 7.2, 8.2)."""
    kept = datagram[:BYTES_AT_MOST]
    kept += bytes(max(_ANSWER.size - len(kept), -len(kept) % 4))
    told = lifetime_of(result) if lifetime_s is None else lifetime_s
    head = _ANSWER.pack(VERSION, datagram[1] | _RESPONSE, result, told, epoch_s & 0xFFFFFFFF)
    begins = _KEPT_FROM if result in _NOT_PARSED else _ANSWER.size
    return head[:begins] + kept[begins:]


def success(request: Request, lifetime_s: int, epoch_s: int, external: int, port: int) -> bytes:
    """Answer to a MAP: its external endpoint (RFC 6887 11.1)."""
    return _map_answer(request, lifetime_s, epoch_s, mapped(external), port)


def ended(request: Request, epoch_s: int) -> bytes:
    """Answer to a MAP of lifetime 0: what was suggested is copied, whatever it is (RFC 6887 15.1)."""
    return _map_answer(request, 0, epoch_s, request.suggested, request.wanted_port)


def _map_answer(request: Request, lifetime_s: int, epoch_s: int, external: bytes, port: int) -> bytes:
    """With the options that were obeyed (RFC 6887 7.3)."""
    head = _ANSWER.pack(VERSION, MAP | _RESPONSE, SUCCESS, lifetime_s, epoch_s & 0xFFFFFFFF)
    return head + _MAP.pack(request.nonce, request.protocol, request.port, port, external) + request.options


def announcement(epoch_s: int) -> bytes:
    """The answer to an ANNOUNCE, asked for or not (RFC 6887 14.1)."""
    return _ANSWER.pack(VERSION, ANNOUNCE | _RESPONSE, SUCCESS, 0, epoch_s & 0xFFFFFFFF)


def pmp_refusal(datagram: bytes, result: int, epoch_s: int) -> bytes:
    """An error of NAT-PMP, by the result code of PCP that means the same (RFC 6886 3.5).

    What is no known opcode is returned entire, but for the header of an answer over it: 3.6 wants the epoch in every packet.
    """
    told = _PMP_RESULTS.get(result, _PMP_REFUSED)
    head = struct.pack("!BBHI", PMP_VERSION, datagram[1] | _RESPONSE, told, epoch_s & 0xFFFFFFFF)
    if datagram[1] in (PMP_UDP, PMP_TCP):
        return head + datagram[4:6] + bytes(6)
    return head + (bytes(4) if datagram[1] == PMP_ADDRESS else datagram[8:BYTES_AT_MOST])


def pmp_address(external: int, epoch_s: int) -> bytes:
    """The external address (RFC 6886 3.2)."""
    return struct.pack("!BBHII", PMP_VERSION, PMP_ADDRESS | _RESPONSE, 0, epoch_s & 0xFFFFFFFF, external)


def pmp_mapping(request: Request, lifetime_s: int, epoch_s: int, port: int) -> bytes:
    """A mapping, or with lifetime 0 its end (RFC 6886 3.3, 3.4)."""
    head = struct.pack("!BBHI", PMP_VERSION, request.opcode | _RESPONSE, 0, epoch_s & 0xFFFFFFFF)
    return head + struct.pack("!HHI", request.port, port, lifetime_s)
