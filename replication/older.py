"""What a peer of the version before is sent: what it knows, and nothing else; the rest an alarm tells of.

Version 1 knows no sessions of IPv6. They are not copied to it, so they are lost if it takes over: their packets are refused
until their hosts begin anew. What it sends needs no care: it has none of them.
"""

from __future__ import annotations

from replication.tables import MAPPINGS, ORDER, Part
from shards.records import MAPPING_RECORD, SESSION_RECORD, TOMBSTONE
from shards.state import SESSION6_0, Array

SINCE_IPV6 = 2
_BEFORE = tuple(klass for klass in ORDER if klass in MAPPINGS or klass < SESSION6_0)


def classes(version: int) -> tuple[int, ...]:
    """Classes whose rows a peer of this version knows, in the order of a snapshot."""
    return ORDER if version >= SINCE_IPV6 else _BEFORE


def known(part: Part, version: int) -> Part:
    """Of what ended and changed, what a peer of this version knows."""
    if version >= SINCE_IPV6:
        return part
    rows = dict(zip([kind for kind, count in enumerate(part.counts) if count], part.rows, strict=True))
    for kind, layout in ((0, TOMBSTONE), (2, SESSION_RECORD)):
        if kind in rows:
            records = rows[kind].view(layout)
            rows[kind] = records[_is_known(records["klass"])].view("u1")
    sizes = (TOMBSTONE.itemsize, MAPPING_RECORD.itemsize, SESSION_RECORD.itemsize)
    counts = tuple(len(rows[kind]) // size if kind in rows else 0 for kind, size in enumerate(sizes))
    return part._replace(counts=counts, rows=[each for each in rows.values() if len(each)])


def _is_known(klasses: Array) -> Array:
    """The second half of a session of IPv6 is of no class at all."""
    return klasses < SESSION6_0
