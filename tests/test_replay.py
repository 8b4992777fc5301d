"""Captures through the NAT: files that the tests write themselves. `python -m tests.replay` does the same with real ones."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests import captures, frames, frames6, ledger, roles
from tests.captures import NoCapture
from tests.frames import Packet, build, piece, read
from tests.ledger import Case, Ledger
from tests.replay import Replay, main, replay
from tests.roles import IN, OUT, PRIVATE, Roles, look_at

CLIENT, SERVER = "10.0.0.5", "8.8.8.8"
DNS = build(read(f"udp {CLIENT}:4000 > {SERVER}:53 len 30"))


def four(*lines: str) -> list[bytes]:
    return [build(read(line)) for line in lines]


def six(*lines: str) -> list[bytes]:
    return [frames6.build(frames6.read(line)) for line in lines]


def pcap(path: Path, records: list[bytes], link: int = 101, step_ms: int = 10, whole: int = 0, order: str = "<") -> Path:
    """A pcap file; `whole`: how long each datagram was before it was cut, if it was."""
    parts = [struct.pack(f"{order}IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, link)]
    for number, data in enumerate(records):
        seconds, ms = divmod(1_600_000_000_000 + number * step_ms, 1000)
        parts += [struct.pack(f"{order}IIII", seconds, 1000 * ms, len(data), whole or len(data)), data]
    path.write_bytes(b"".join(parts))
    return path


def pcapng(path: Path, records: list[tuple[int, int, bytes]]) -> Path:
    """A pcapng file: interface 0 is raw IP in microseconds, 1 Ethernet in nanoseconds; records are (interface, ms, data)."""

    def block(kind: int, body: bytes) -> bytes:
        body += bytes(-len(body) % 4)
        return struct.pack("<II", kind, 12 + len(body)) + body + struct.pack("<I", 12 + len(body))

    parts = [block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1))]
    parts += [block(1, struct.pack("<HHI", 101, 0, 65535)), block(1, struct.pack("<HHIHHB3xI", 1, 0, 65535, 9, 1, 9, 0))]
    for interface, ms, data in records:
        ticks = ms * (1_000_000 if interface else 1000)
        head = struct.pack("<IIIII", interface, ticks >> 32, ticks & 0xFFFFFFFF, len(data), len(data))
        parts.append(block(6, head + data))
    path.write_bytes(b"".join(parts))
    return path


# --- reading ------------------------------------------------------------------------------------------------------------------

MACS = bytes(12)
LINKS = {
    "ethernet": (1, MACS + b"\x08\0"),
    "vlan": (1, MACS + b"\x81\0\0\x05\x08\0"),
    "vlan in vlan": (1, MACS + b"\x88\xa8\0\x05\x81\0\0\x06\x08\0"),
    "mpls": (1, MACS + b"\x88\x47\0\0\x10\x40\0\0\x21\x40"),
    "pppoe": (1, MACS + b"\x88\x64\x11\0\0\x01\0\x3c\0\x21"),
    "snap": (1, MACS + b"\0\x44\xaa\xaa\x03\0\0\0\x08\0"),
    "loopback": (0, b"\x02\0\0\0"),
    "loopback of another byte order": (0, b"\0\0\0\x02"),
    "raw": (101, b""),
    "raw ipv4": (228, b""),
    "cooked": (113, bytes(14) + b"\x08\0"),
    "cooked, second version": (276, b"\x08\0" + bytes(18)),
    "ppp": (9, b"\xff\x03\0\x21"),
    "hdlc": (104, b"\x0f\0\x08\0"),
    "802.11": (105, b"\x08\x01" + bytes(22) + b"\xaa\xaa\x03\0\0\0\x08\0"),
    "802.11 below radiotap": (127, b"\0\0\x08\0\0\0\0\0\x88\x01" + bytes(24) + b"\xaa\xaa\x03\0\0\0\x08\0"),
    "with a frame check sequence": (0x24000001, MACS + b"\x08\0"),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_datagram_is_found_on_every_link(tmp_path: Path, name: str) -> None:
    link, before = LINKS[name]
    other: Counter[str] = Counter()
    found = list(captures.datagrams(pcap(tmp_path / "x.pcap", [before + DNS], link), other))
    assert [each.data for each in found] == [DNS] and not other


def test_what_is_no_datagram_is_counted(tmp_path: Path) -> None:
    other: Counter[str] = Counter()
    arp, cut = MACS + b"\x08\x06" + bytes(28), MACS[:9]
    assert not list(captures.datagrams(pcap(tmp_path / "x.pcap", [arp, cut], 1), other))
    assert other == {"ethertype 0x0806": 1, "cut in its link header": 1}
    assert not list(captures.datagrams(pcap(tmp_path / "y.pcap", [b"abc"], 195), other))
    assert other["link type 195"] == 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_times_and_numbers_of_a_pcap(tmp_path: Path, order: str) -> None:
    found = list(captures.datagrams(pcap(tmp_path / "x.pcap", [DNS] * 3, step_ms=250, order=order), Counter()))
    assert [(each.number, each.ms - found[0].ms, each.cut) for each in found] == [(1, 0, 0), (2, 250, 0), (3, 500, 0)]


def test_times_of_a_pcapng_with_two_clocks(tmp_path: Path) -> None:
    ethernet = MACS + b"\x08\0" + DNS
    path = pcapng(tmp_path / "x.pcapng", [(0, 1_600_000_000_000, DNS), (1, 1_600_000_000_250, ethernet)])
    found = list(captures.datagrams(path, Counter()))
    assert [each.data for each in found] == [DNS, DNS] and found[1].ms - found[0].ms == 250


@pytest.mark.parametrize("data", [b"", b"no capture at all, but long enough for a header", b"\xd4\xc3\xb2\xa1\x02\x00"])
def test_a_file_that_is_no_capture_is_said_to_be_none(tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pcap"
    path.write_bytes(data)
    with pytest.raises(NoCapture, match=r"x\.pcap is no capture"):
        list(captures.datagrams(path, Counter()))
    assert main([str(path)]) == 2 and "is no capture" in capsys.readouterr().err


def test_what_the_capture_has_cut_off_is_filled_up(tmp_path: Path) -> None:
    path = pcap(tmp_path / "x.pcap", [DNS[:40]], whole=len(DNS))
    (cut,) = captures.datagrams(path, Counter())
    assert cut.cut == len(DNS) - 40
    packet = frames.dissect(roles.mended(cut).data)
    assert (packet.residue, len(packet.payload)) == (0, 30)
    assert replay(path).verdicts == {"forwarded_out": 1}
    assert replay(path, mend=False).verdicts == {"bad_length": 1}


def test_checksums_are_put_right_where_that_is_asked_for(tmp_path: Path) -> None:
    records = four(f"udp {CLIENT}:1 > {SERVER}:2 ip-checksum bad checksum bad", f"echo {CLIENT}:7 > {SERVER} checksum bad")
    path = str(pcap(tmp_path / "x.pcap", records))
    assert replay(Path(path)).verdicts == {"bad_ip_checksum": 1, "bad_icmp_checksum": 1}
    (one, other) = (roles.corrected(each) for each in captures.datagrams(Path(path), Counter()))
    assert [frames.dissect(each.data).residue for each in (one, other)] == [0, 0]
    assert main([path, "--correct"]) == 0


# --- who is inside ------------------------------------------------------------------------------------------------------------


def ways(records: list[bytes], *inside: str) -> list[str]:
    caught = [captures.Caught(number, 0, data, 0) for number, data in enumerate(records)]
    return [scene.way for scene in Roles(inside).decide(caught)]


def test_who_begins_is_inside() -> None:
    talk = four(f"udp {CLIENT}:4000 > {SERVER}:53", f"udp {SERVER}:53 > {CLIENT}:4000", f"udp {SERVER}:99 > {CLIENT}:53")
    assert ways(talk) == [OUT, IN, OUT]
    assert ways(four(f"tcp {SERVER}:80 > {CLIENT}:9 syn ack", f"tcp {CLIENT}:9 > {SERVER}:80 ack")) == [IN, OUT]
    assert ways(four(f"echo-reply {SERVER} > {CLIENT}:7", f"echo {CLIENT}:7 > {SERVER}")) == [IN, OUT]


def test_an_error_goes_to_who_has_sent_what_it_is_about() -> None:
    error = f"time-exceeded 9.9.9.9 > {CLIENT} about [udp {CLIENT}:4000 > {SERVER}:53 quote 8]"
    assert ways(four(f"udp {CLIENT}:4000 > {SERVER}:53", error)) == [OUT, IN]


def test_a_fragment_goes_where_the_first_goes_even_if_it_was_caught_before() -> None:
    whole = build(replace(read(f"udp {SERVER}:53 > {CLIENT}:4000 len 64"), id=7))
    first, second = piece(whole, 0, 32), piece(whole, 32, 72)
    assert ways([DNS, second, first]) == [OUT, IN, IN]


def test_prefixes_decide_where_they_are_given() -> None:
    inward, outward = f"udp {SERVER}:2 > {CLIENT}:1", f"udp {CLIENT}:1 > {SERVER}:2"
    lines = four(outward, inward, f"udp {CLIENT}:1 > 192.168.0.1:2", f"udp {SERVER}:1 > 9.9.9.9:2")
    assert ways(lines, *PRIVATE) == [OUT, IN, "stays inside", "stays outside"]


# --- playing ------------------------------------------------------------------------------------------------------------------


def _conversation() -> list[bytes]:
    """Everyday traffic with its odd ends; 13 datagrams that pass."""
    answer = build(replace(read(f"udp {SERVER}:53 > {CLIENT}:4000 len 64"), id=7))
    return [
        *four(f"tcp {CLIENT}:4000 > {SERVER}:80 syn mss 1460", f"tcp {SERVER}:80 > {CLIENT}:4000 syn ack"),
        *four(f"tcp {CLIENT}:4000 > {SERVER}:80 ack psh len 33", f"tcp {SERVER}:80 > {CLIENT}:4000 ack checksum bad"),
        DNS, piece(answer, 32, 72), piece(answer, 0, 32),
        *four(f"udp {CLIENT}:5000 > {SERVER}:53 checksum none", f"udp {CLIENT}:5001 > {SERVER}:53 checksum partial"),
        *four(f"echo {CLIENT}:77 > {SERVER}", f"echo-reply {SERVER} > {CLIENT}:77"),
        *four(f"port-unreachable {SERVER} > {CLIENT} about [udp {CLIENT}:4000 > {SERVER}:53 quote 8]"),
        *four(f"ip/50 {CLIENT} > {SERVER} len 40"),
    ]  # fmt: skip


def test_everyday_traffic_is_translated_and_nothing_is_wrong(tmp_path: Path) -> None:
    told = replay(pcap(tmp_path / "x.pcap", _conversation()))
    assert (told.violations, told.examples) == (0, [])
    assert told.verdicts == {"forwarded_out": 7, "forwarded_in": 6} and told.translated == 13


def test_ipv6_passes_without_a_checksum_being_changed(tmp_path: Path) -> None:
    near, far = "[2001:db8::5]", "[2001:4860::8]"
    records = six(
        f"tcp {near}:4000 > {far}:80 syn", f"tcp {far}:80 > {near}:4000 syn ack", f"udp {near}:5 > {far}:53 len 9",
        f"too-big [2001:77::1] > {near} mtu 1280 about [udp {near}:5 > {far}:53 len 9 quote 17]", f"udp {far}:9 > {near}:4000",
        f"echo {near}:7 > {far}", f"echo-reply {far} > {near}:7",
    )  # fmt: skip
    told = replay(pcap(tmp_path / "x.pcap", records), ["2001:db8::/32"])
    assert (told.violations, told.examples) == (0, [])
    assert told.verdicts == {"forwarded_out": 3, "forwarded_in": 3, "unsolicited": 1}


def test_what_is_refused_is_counted_and_had_it_coming(tmp_path: Path) -> None:
    records = [
        *four(f"udp {CLIENT}:4000 > {SERVER}:53 ttl 1", f"udp {CLIENT}:4000 > {SERVER}:53 df len 1473"),
        *four(f"tcp {CLIENT}:4000 > {SERVER}:80 ack", f"udp {CLIENT}:4000 > 224.0.0.1:53", f"udp 224.0.0.9:68 > {CLIENT}:67"),
        *four(f"udp {CLIENT}:4000 > {SERVER}:53 ip-checksum bad", f"echo {CLIENT}:7 > {SERVER} checksum bad"),
        *four(f"ah {CLIENT} > {SERVER} len 20", f"udp {SERVER}:53 > {CLIENT}:4009"),
        DNS[:19], DNS[:24],
    ]  # fmt: skip
    told = replay(pcap(tmp_path / "x.pcap", records), PRIVATE)
    assert (told.violations, told.examples, told.translated) == (0, [], 0)
    assert sorted(told.verdicts) == sorted([
        "ttl_exceeded", "too_big", "tcp_not_opening", "martian_destination", "martian_source", "bad_ip_checksum",
        "bad_icmp_checksum", "ah_not_served", "no_mapping", "runt", "bad_length",
    ])  # fmt: skip


def test_time_passes_as_in_the_capture(tmp_path: Path) -> None:
    """An answer after 200 s finds its session, one after 400 s does not (RFC 4787 REQ-5: 300 s here)."""
    answer = four(f"udp {SERVER}:53 > {CLIENT}:4000")
    assert replay(pcap(tmp_path / "x.pcap", [DNS, *answer], step_ms=200_000)).verdicts["forwarded_in"] == 1
    told = replay(pcap(tmp_path / "y.pcap", [DNS, *answer], step_ms=400_000))
    assert (told.verdicts["no_mapping"], told.violations) == (1, 0)


def test_connections_under_way_are_taken_up_where_that_is_asked_for(tmp_path: Path) -> None:
    path = pcap(tmp_path / "x.pcap", four(f"tcp {CLIENT}:4000 > {SERVER}:80 ack", f"tcp {SERVER}:80 > {CLIENT}:4000 ack"))
    assert replay(path).verdicts == {"tcp_not_opening": 1, "no_mapping": 1}
    told = replay(path, replaying=Replay(pickup_s=60))
    assert (told.translated, told.violations) == (2, 0)


@pytest.mark.parametrize("filtering", ["address-dependent", "address-and-port-dependent"])
def test_filtering_refuses_who_was_not_asked(tmp_path: Path, filtering: str) -> None:
    path = pcap(tmp_path / "x.pcap", [DNS, *four(f"udp 9.9.9.9:53 > {CLIENT}:4000", f"udp {SERVER}:53 > {CLIENT}:4000")])
    told = replay(path, PRIVATE, replaying=Replay(filtering))
    assert told.verdicts == {"forwarded_out": 1, "filtered": 1, "forwarded_in": 1} and told.violations == 0


def test_the_command_line_prints_counts_and_fails_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(pcap(tmp_path / "x.pcap", _conversation()))
    assert main([path]) == 0
    assert "13 played" in capsys.readouterr().out
    assert main([path, "-o", "json", "--packets", "5"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["captures"], told["packets"], told["violations"]) == (1, 5, 0)


# --- what would be wrong is seen ------------------------------------------------------------------------------------------

BEFORE, AFTER = (
    build(read(f"udp {host}:4000 > {SERVER}:53 len 30 ttl {ttl}")) for host, ttl in (("100.64.0.1", 9), ("203.0.113.1", 8))
)


def judged(sent: bytes, before: bytes = BEFORE, books: Ledger | None = None) -> list[str]:
    look = look_at(before)
    assert look
    return (books or Ledger(lambda *_: (0, 0))).judge(Case(1, OUT, before, look, look.source), sent)


def _turned(data: bytes, **changed: object) -> bytes:
    return build(replace(frames.dissect(data), **changed))  # type: ignore[arg-type]


def test_a_right_translation_is_right() -> None:
    assert judged(AFTER) == []


@pytest.mark.parametrize(
    ("sent", "complaint"),
    [
        (_turned(AFTER, payload=b"x" * 30), "more was changed"),
        (_turned(AFTER, payload=b""), "bytes became"),
        (_turned(AFTER, residue=5), "transport checksum"),
        (_turned(AFTER, residue=None), "transport checksum"),
        (_turned(AFTER, destination=1), "remote end was changed"),
        (_turned(AFTER, tos=4), "more was changed"),
        (AFTER[:10] + b"\0\0" + AFTER[12:], "cannot be read|IP checksum"),
    ],
)
def test_a_wrong_translation_is_seen(sent: bytes, complaint: str) -> None:
    assert re.search(complaint, "; ".join(judged(sent)))


def test_two_internal_endpoints_with_one_external_one_are_seen() -> None:
    books = Ledger(lambda *_: (frames.address("100.64.0.1"), 4000))
    assert judged(AFTER, books=books) == []
    other = _turned(BEFORE, source=frames.address("100.64.0.2"))
    assert any("100.64.0.2:4000's and 100.64.0.1:4000's" in told for told in judged(AFTER, other, books))


def test_one_internal_endpoint_with_two_external_ones_is_seen_while_the_first_lives() -> None:
    internal = frames.address("100.64.0.1"), 4000
    for owner, count in ((internal, 1), (None, 0)):
        books = Ledger(lambda *_, owner=owner: owner)
        assert judged(AFTER, books=books) == []
        assert len(judged(_turned(AFTER, source_port=4001), books=books)) == count


def test_a_refusal_without_a_reason_is_seen() -> None:
    case = Case(1, OUT, BEFORE, look_at(BEFORE), (0, 0))
    for verdict in (
        "table_full",
        "ttl_exceeded",
        "bad_ip_checksum",
        "too_big",
        "martian_source",
        "fragment_orphan",
    ):
        assert not ledger.refused_rightly(case, verdict, 1500), verdict
    assert ledger.refused_rightly(case._replace(data=_turned(BEFORE, ttl=1)), "ttl_exceeded", 1500)


def test_a_packet_that_nobody_sent_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline that lets something else out in place of what came."""
    playing = Replay()
    receive = playing.pair.core.receive

    def wrong(arrivals: list[tuple[str, bytes]], now: int) -> list[object]:
        return [told._replace(sent=told.sent and told.sent[:-1] + b"!") for told in receive(arrivals, now)]

    monkeypatch.setattr(playing.pair.core, "receive", wrong)
    told = replay(pcap(tmp_path / "x.pcap", [DNS]), replaying=playing)
    assert told.violations == 1 and "pipeline" in told.examples[0]


def test_packets_of_ours_read_as_what_they_are() -> None:
    look = look_at(build(Packet(1, 1, 2, kind=0x0800, source_port=9)))
    assert look and (look.source, look.destination) == ((1, 9), (2, 0))
