"""Messages of PCP (RFC 6887) and NAT-PMP (RFC 6886): bytes to requests, answers to bytes.

    read(datagram)      a Request of either protocol; None: no answer is due; Refused: an answer with a result code
    refusal, success    answers of PCP             pmp_refusal, pmp_address, pmp_mapping    of NAT-PMP
    announcement        what tells a client that it must ask anew (RFC 6887 14.1)

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

_PMP_VERSION_REFUSED, _PMP_REFUSED, _PMP_FAILURE, _PMP_NO_RESOURCES, _PMP_OPCODE_REFUSED = range(1, 6)
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
    prefer_failure: bool = False
    third_party: int | None = None
    options: bytes = b""  # those that were obeyed, as they came


def read(datagram: bytes) -> Request | None:
    """What a datagram asks, None where it asks nothing. Refused says how to answer what cannot be obeyed (RFC 6887 8.2)."""
    if len(datagram) < 2 or datagram[1] & _RESPONSE:
        return None
    if datagram[0] == PMP_VERSION:
        return _read_pmp(datagram)
    if datagram[0] != VERSION:
        raise Refused(UNSUPP_VERSION)
    if len(datagram) > BYTES_AT_MOST or len(datagram) % 4 or len(datagram) < _HEADER.size:
        raise Refused(MALFORMED_REQUEST)
    _, opcode, lifetime, client = _HEADER.unpack_from(datagram)
    request = Request(VERSION, opcode, lifetime, ipv4(client))
    if opcode == ANNOUNCE:
        return _with_options(request, datagram, _HEADER.size)
    if opcode == MAP:
        return _read_map(request, datagram)
    raise Refused(UNSUPP_OPCODE)


def _read_map(request: Request, datagram: bytes) -> Request:
    end = _HEADER.size + _MAP.size
    if len(datagram) < end:
        raise Refused(MALFORMED_REQUEST)
    nonce, protocol, port, wanted_port, wanted = _MAP.unpack_from(datagram, _HEADER.size)
    if protocol == 0 and port != 0:  # RFC 6887 11.1: all protocols have all ports
        raise Refused(MALFORMED_REQUEST)
    told = request._replace(nonce=nonce, protocol=protocol, port=port, wanted=ipv4(wanted), wanted_port=wanted_port)
    return _with_options(told, datagram, end)


def _with_options(request: Request, datagram: bytes, at: int) -> Request:
    """The request with what its options say, each at most once (RFC 6887 7.3)."""
    while at < len(datagram):
        code, length = _OPTION.unpack_from(datagram, at)
        end = at + _OPTION.size + length + -length % 4
        if end > len(datagram):
            raise Refused(MALFORMED_OPTION)
        if code < ADVISORY:
            request = _obey(request, code, datagram[at:end], length)
        at = end
    return request


def _obey(request: Request, code: int, option: bytes, length: int) -> Request:
    if code not in _OPTION_BYTES or request.opcode != MAP:
        raise Refused(UNSUPP_OPTION)
    before = request.prefer_failure if code == PREFER_FAILURE else request.third_party is not None
    if before or length != _OPTION_BYTES[code]:
        raise Refused(MALFORMED_OPTION)
    kept = request.options + option
    if code == PREFER_FAILURE:
        return request._replace(prefer_failure=True, options=kept)
    return request._replace(third_party=ipv4(option[_OPTION.size :]), options=kept)


def _read_pmp(datagram: bytes) -> Request:
    """RFC 6886 3.2 and 3.3. What is too short to be either is of no kind that we know."""
    opcode = datagram[1]
    if opcode == PMP_ADDRESS:
        return Request(PMP_VERSION, opcode)
    if opcode not in (PMP_UDP, PMP_TCP) or len(datagram) < _PMP_MAP.size:
        raise Refused(UNSUPP_OPCODE)
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
    return _ANSWER.pack(VERSION, datagram[1] | _RESPONSE, result, told, epoch_s & 0xFFFFFFFF) + kept[_ANSWER.size :]


def success(request: Request, lifetime_s: int, epoch_s: int, external: int, port: int) -> bytes:
    """Answer to a MAP: its external endpoint, and the options that were obeyed (RFC 6887 11.1)."""
    head = _ANSWER.pack(VERSION, MAP | _RESPONSE, SUCCESS, lifetime_s, epoch_s & 0xFFFFFFFF)
    told = _MAP.pack(request.nonce, request.protocol, request.port, port, mapped(max(external, 0)))
    return head + told + request.options


def announcement(epoch_s: int) -> bytes:
    """The answer to an ANNOUNCE, asked for or not (RFC 6887 14.1)."""
    return _ANSWER.pack(VERSION, ANNOUNCE | _RESPONSE, SUCCESS, 0, epoch_s & 0xFFFFFFFF)


def pmp_refusal(datagram: bytes, result: int, epoch_s: int) -> bytes:
    """An error of NAT-PMP, by the result code of PCP that means the same (RFC 6886 3.5)."""
    told = _PMP_RESULTS.get(result, _PMP_REFUSED)
    head = struct.pack("!BBHI", PMP_VERSION, datagram[1] | _RESPONSE, told, epoch_s & 0xFFFFFFFF)
    if datagram[1] in (PMP_UDP, PMP_TCP) and len(datagram) >= _PMP_MAP.size:
        return head + datagram[4:6] + bytes(6)
    return head + bytes(4) if datagram[1] == PMP_ADDRESS else head


def pmp_address(external: int, epoch_s: int) -> bytes:
    """The external address (RFC 6886 3.2)."""
    return struct.pack("!BBHII", PMP_VERSION, PMP_ADDRESS | _RESPONSE, 0, epoch_s & 0xFFFFFFFF, external)


def pmp_mapping(request: Request, lifetime_s: int, epoch_s: int, port: int) -> bytes:
    """A mapping, or with lifetime 0 its end (RFC 6886 3.3, 3.4)."""
    head = struct.pack("!BBHI", PMP_VERSION, request.opcode | _RESPONSE, 0, epoch_s & 0xFFFFFFFF)
    return head + struct.pack("!HHI", request.port, port, lifetime_s)
