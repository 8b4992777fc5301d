"""Frames: a header of msgpack and a body of flat rows.

    header   a map, smallest keys: v version, k kind, l life of the link, q number in that life, s shard, e epoch, i series,
             n counts, f fields, and last c: CRC-32 of all that comes before it in the header, and of the body
    body     tombstones, mappings, sessions, one after another, as `shards.records` lays them out; or bits; or nothing

A version speaks to itself and to the one before, so that servers are upgraded one by one: whoever opens a link says which it
understands, whoever answers chooses the newest of both. What is missing in a header of the version before has its default.

Changes of rows are mostly written by compiled code (`steady`), the header byte by byte as `encode` does, which is its model.

Everything is checked before anything is believed: `decode` refuses with a reason that is counted, never with anything else.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import msgpack

from replication.protocol import Fields

VERSION = 2  # 2: `updates`, and rows of IPv6 (see `older`)
UNDERSTOOD = (VERSION, VERSION - 1)  # newest first

BODY_AT_MOST = 1 << 16
HEADER_AT_MOST = 1 << 16  # a core's posts stand in one: up to 200 bytes for each of its shards

# --- reasons --------------------------------------------------------------------------------------------------------------

REASONS = {
    "key": "a connection with a key that the map does not have, or with none",
    "handshake": "a connection that ended before its handshake did: another protocol, or nobody answered in time",
    "malformed": "header or body are not what this kind of frame consists of",
    "version": "of a protocol version that is neither ours nor the one before",
    "corrupted": "its checksum is wrong",
    "lost": "a number that never came: the link begins anew, and with it every copy",
    "duplicated": "its number was there before",
    "reordered": "it came after one with a higher number",
    "after_gap": "it came on a link that misses a frame before it",
    "stale": "of a life of its link that is over, or of none: late, or replayed",
    "foreign": "about a shard whose rows are not taken from this core",
    "old_epoch": "of an epoch that is over",
    "early": "its copy has not begun",
    "deaf": "a message that nobody fetched",
}

Body = bytes | memoryview
Counts = dict[str, int]


def none_refused() -> Counts:
    """All reasons, at zero."""
    return dict.fromkeys(REASONS, 0)


class Refused(Exception):
    """A frame that is not applied; the argument is one of REASONS."""

    def __init__(self, reason: str) -> None:
        super().__init__(REASONS[reason])
        self.reason = reason


# --- kinds ----------------------------------------------------------------------------------------------------------------

# numbered: has a number in the life of its link, is delivered once and in order, or the link begins anew.
# rows: about the rows of a shard; only taken from whom they are accepted.
# since: the first version that has it.
# parts: bytes of each thing that is counted in `n`, in the order of the body; eighths where a thing is a bit. `updates` are
# several `update`, one after another, each of which a row of its field `p` describes: shard, epoch, series, counts.
_PICTURE = """
kind     numbered  rows  since  parts
open     no        no    0      -
opened   no        no    0      -
broken   no        no    0      -
ping     no        no    0      -
ack      no        no    0      -
resync   no        no    0      -
compared no        no    0      -
told     yes       no    0      -
begin    yes       yes   0      -
update   yes       yes   0      8  32  64
updates  yes       yes   2      8  32  64
holds    yes       yes   0      12
bitmap   yes       yes   0      1/8
end      yes       yes   0      -
compare  yes       yes   0      8  1/8
"""


class Kind(NamedTuple):
    """A line of the picture; `eighths`: of a byte, for each thing counted."""

    name: str
    numbered: bool
    rows: bool
    since: int
    eighths: tuple[int, ...]


def _parse(picture: str) -> dict[str, Kind]:
    kinds = {}
    for line in picture.strip().splitlines()[1:]:
        name, numbered, rows, since, *parts = line.split()
        sizes = tuple(1 if part == "1/8" else 8 * int(part) for part in parts if part != "-")
        kinds[name] = Kind(name, numbered == "yes", rows == "yes", int(since), sizes)
    return kinds


KINDS = _parse(_PICTURE)


class Frame(NamedTuple):
    """A header, read."""

    kind: str
    life: int = 0
    number: int = 0
    shard: int = 0
    epoch: int = 0
    series: int = 0
    counts: tuple[int, ...] = ()
    fields: Fields = {}  # noqa: RUF012 - never written
    version: int = VERSION

    @property
    def numbered(self) -> bool:
        """Whether it has a number in the life of its link."""
        return KINDS[self.kind].numbered


# --- writing --------------------------------------------------------------------------------------------------------------


def encode(frame: Frame, body: Body = b"") -> bytes:
    """The header of a frame with this body."""
    told: dict[str, Any] = {"v": frame.version, "k": frame.kind, "l": frame.life, "q": frame.number, "s": frame.shard}
    told["e"], told["i"], told["n"] = frame.epoch, frame.series, frame.counts
    if frame.fields:
        told["f"] = frame.fields
    told["c"] = 0xFFFFFFFF  # five bytes, the last four of which are the checksum's place
    head: bytes = msgpack.packb(told)[:-4]
    return head + zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "big")


# --- reading --------------------------------------------------------------------------------------------------------------

_LIMITS = {"max_str_len": 1024, "max_bin_len": 4096, "max_array_len": 4096, "max_map_len": 4096, "max_ext_len": 0}
_DEFAULTS: dict[str, Any] = {"l": 0, "q": 0, "s": 0, "e": 0, "i": 0, "n": [], "f": {}}
_PART_MOST = (2**16 - 1, 2**32 - 1, 2**32 - 1, BODY_AT_MOST, BODY_AT_MOST, BODY_AT_MOST)
_MOST = {"l": 2**64 - 1, "q": 2**48, "s": 2**16 - 1, "e": 2**32 - 1, "i": 2**32 - 1}


def decode(header: bytes, body: Body) -> Frame:
    """What a header says; `Refused` unless header and body are right in every respect that can be seen here."""
    if not 5 < len(header) <= HEADER_AT_MOST or len(body) > BODY_AT_MOST:
        raise Refused("malformed")
    if zlib.crc32(body, zlib.crc32(header[:-4])) != int.from_bytes(header[-4:], "big"):
        raise Refused("corrupted")
    told = _unpack(header)
    if told.get("v") not in UNDERSTOOD or isinstance(told["v"], bool):
        raise Refused("version")
    kind = KINDS.get(told["k"]) if isinstance(told.get("k"), str) else None
    if kind is None or kind.since > told["v"]:
        raise Refused("malformed")
    told = {**_DEFAULTS, **told}
    for key, most in _MOST.items():
        if not _is_whole(told[key], most):
            raise Refused("malformed")
    counts = _counts(kind, told["n"], len(body))
    if not isinstance(told["f"], dict):
        raise Refused("malformed")
    return Frame(kind.name, told["l"], told["q"], told["s"], told["e"], told["i"], counts, told["f"], told["v"])


def _unpack(header: bytes) -> dict[str, Any]:
    try:
        told = msgpack.unpackb(header, strict_map_key=False, **_LIMITS)
    except Exception:  # msgpack's own errors have no common ancestor but this, and none may reach the loop
        raise Refused("malformed") from None
    if not isinstance(told, dict):
        raise Refused("malformed")
    return told


def _is_whole(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


def _counts(kind: Kind, told: object, length: int) -> tuple[int, ...]:
    if not isinstance(told, list) or len(told) != len(kind.eighths):
        raise Refused("malformed")
    if not all(_is_whole(count, 8 * BODY_AT_MOST) for count in told):
        raise Refused("malformed")
    if sum(count * eighths for count, eighths in zip(told, kind.eighths, strict=True)) != 8 * length:
        raise Refused("malformed")
    return tuple(told)


def parts_of(frame: Frame) -> list[tuple[Frame, int]]:
    """Each `update` that `updates` consist of, and where its rows end; `Refused` unless they are all of the body."""
    told, parts, end = frame.fields.get("p"), [], 0
    for row in told if isinstance(told, list) else []:
        if not isinstance(row, list) or len(row) != 6 or not all(map(_is_whole, row, _PART_MOST)):
            raise Refused("malformed")
        counts = tuple(row[3:])
        end += sum(count * eighths for count, eighths in zip(counts, KINDS["update"].eighths, strict=True)) // 8
        parts.append((frame._replace(kind="update", shard=row[0], epoch=row[1], series=row[2], counts=counts, fields={}), end))
    if tuple(map(sum, zip(*(part.counts for part, _ in parts), strict=True))) != frame.counts:
        raise Refused("malformed")
    return parts


def whole(fields: Fields, key: str, most: int = 2**32 - 1) -> int:
    """A field that must be a whole number from 0 to `most`; `Refused` where it is not."""
    value = fields.get(key)
    if not _is_whole(value, most):
        raise Refused("malformed")
    return int(value)  # type: ignore[arg-type]  # _is_whole has looked
