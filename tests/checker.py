"""What comes out is judged here without any memory of what went on: nothing invalid leaves, and no internal address shows."""

from __future__ import annotations

from tests.frames import Malformed, Packet, build, dissect, dotted, split_frame


def complaints(emitted: bytes, received: bytes | None, private: list[tuple[int, int]]) -> list[str]:
    """What is wrong with an emitted frame, whoever made it; empty where nothing is.

    `received` is the frame that it is a translation of, None for what we originate; `private` are (network, mask) that no part
    of the frame may show, embedded packets included (for frames that leave towards the Internet).
    """
    try:
        _, _, _, ethertype, data = split_frame(emitted)
        packet = dissect(data, arriving=False)
    except Malformed as wrong:
        return [f"the frame is malformed: {wrong.verdict}"]
    told = [] if ethertype == 0x0800 else [f"ethertype {ethertype:#x}"]
    if packet.is_error and packet.about is None:
        told.append("an ICMP error without an embedded packet that could be read")
    shown = [packet, *([packet.about] if packet.about else [])]
    for part in shown:
        for host in (part.source, part.destination, *recorded(part.ip_options)):
            told += [f"shows the internal address {dotted(host)}" for network, mask in private if host & mask == network]
    return told + (_translation_complaints(packet, dissect(split_frame(received)[4])) if received else _own_complaints(packet))


def recorded(options: bytes) -> list[int]:
    """Addresses in record route and timestamp options (RFC 791 3.1)."""
    told, at = [], 0
    while at + 1 < len(options) and options[at]:
        size = 1 if options[at] == 1 else options[at + 1] or len(options)
        body = options[at : at + size]
        step, first = (4, 3) if body[0] == 7 else (8, 4) if body[0] == 68 and body[3] & 15 in (1, 3) else (0, 0)
        told += [int.from_bytes(body[k : k + 4], "big") for k in range(first, len(body) - 3, step)] if step else []
        at += size
    return told


def _own_complaints(packet: Packet) -> list[str]:
    return [] if packet.residue == 0 else ["a wrong ICMP checksum of our own"]


def _translation_complaints(after: Packet, before: Packet) -> list[str]:
    told = [] if after.ttl == before.ttl - 1 else [f"TTL {before.ttl} became {after.ttl}"]
    if before.residue not in (after.residue, -1):  # -1 may have been finished: the port decides
        told.append(f"the transport checksum was off by {before.residue} and is off by {after.residue}")
    if after.is_error and len(build(after)) < len(build(before)):
        return told  # without extensions that tell too much
    if len(build(after)) != len(build(before)):
        told.append(f"{len(build(before))} bytes became {len(build(after))}")
    if after.about and before.about and after.about.residue != before.about.residue:
        told.append(f"the embedded checksum was off by {before.about.residue} and is off by {after.about.residue}")
    return told
