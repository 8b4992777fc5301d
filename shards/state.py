"""Everything mutable of a core, as flat arrays in one piece of shared memory.

The memory is a memfd that the supervisor holds, so it outlives the worker; a restarted worker maps it again and rebuilds what
can be derived (index, timers, free lists, port owners, accounts) from the rows, which are the truth. `open_state` makes the
arrays; nothing here needs the compiler, so the CLI reads a live shard with it.

Units. Times are **ticks of one millisecond** since boot, stored in 32 bits and compared by age (they wrap after 49 days).
Addresses, ports and lengths are host integers; realms are 24-bit indices (0 is the Internet). A *line* is 64 bytes of the
arena, a *unit* 16 bytes: a session is a line, a mapping half a line, and what the index stores is the unit where a key stands.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shards.account_rows import ACCOUNT, LIMITS
from shards.bfd_rows import BFD
from shards.core_rows import CORE, SETTINGS
from shards.event_rows import ALARM, ALARM_POOLS, EVENT
from shards.fragment_rows import FRAGMENTED, FRAGMENTS, IDENTITIES, PIECES_EACH, SHARES
from shards.grant_rows import GRANT
from shards.lifetimes import PORT_TIMER, TIMERS
from shards.rows6 import FLOW6, PREFIX6, RULE6
from shards.unasked_rows import QUOTE_BYTES, UNASKED, UNASKED_ROWS

Array = NDArray[Any]
Row = Any  # of a structured array: numpy.void in Python, a record in compiled code

LAYOUT = 7  # of rows and sections; a worker refuses memory of another layout

# --- kinds of rows, protocols, sides --------------------------------------------------------------------------------------

FREE, NAT_SESSION, NAT_MAPPING, NAT_PERMISSION, FIREWALL_SESSION6 = range(5)

ICMP, TCP, UDP, ICMP6 = 1, 6, 17, 58

OUTBOUND, INBOUND = 0, 1  # direction of a packet: from or towards the subscriber
INTERNAL, EXTERNAL, BOTH = 1, 2, 3  # side of a port; BOTH is the router on a stick
PORTS_AT_MOST = 8  # of a core

SIDES = {INTERNAL: "internal", EXTERNAL: "external", BOTH: "both"}
PROTOCOLS = {ICMP: "icmp", TCP: "tcp", UDP: "udp"}

# --- rows -----------------------------------------------------------------------------------------------------------------

# A session row begins with its two keys, each two 64-bit words exactly as they are hashed and compared:
#   word 0 = address | realm << 32 | protocol << 56        word 1 = remote address | local port << 32 | remote port << 48
# The remote stands in both; that costs six bytes and makes a comparison two loads, whatever the direction.
SESSION = np.dtype(
    [
        ("internal_address", "u4"),
        ("internal_realm", "u4"),  # realm | protocol << 24
        ("remote_address", "u4"),
        ("internal_port", "u2"),  # ICMP query: the identifier; generic protocols: 0, as the other two
        ("remote_port", "u2"),  # ICMP query: 0
        ("external_address", "u4"),
        ("external_realm", "u4"),  # realm | protocol << 24
        ("remote_address_again", "u4"),
        ("external_port", "u2"),
        ("remote_port_again", "u2"),
        ("mapping", "u4"),  # half-line of its mapping
        ("expiry", "u4"),  # tick; the truth about being alive; odd: as another core told (`tcp.ends`)
        ("created", "u4"),  # tick
        ("packets", "u4"),  # both directions, wraps
        ("delta_l3", "u2"),  # RFC 1624 difference of the outbound rewrite, IPv4 header (inbound: its complement)
        ("delta_l4", "u2"),  # the same for TCP, UDP (addresses and port) or ICMP (identifier)
        ("generation", "u2"),  # counts the lives of this row number
        ("shard", "u2"),
        ("rules", "u2"),  # version of the rule list that admitted it
        ("inward", "u2"),  # neighbour towards the subscriber
        ("outward", "u2"),  # neighbour towards the Internet
        ("state", "u1"),  # lifetimes.STATES | number of its timer << 4
        ("kind", "u1"),  # written last when born, first when it dies
    ]
)
assert SESSION.itemsize == 64

# A mapping (RFC 6146: BIB entry): internal endpoint <-> external endpoint. Its key has remote 0:0.
# The same row as a *permission* (pools that filter by address): its key is external endpoint and remote address, with
# protocol | 128, and `sessions` counts those that have that remote.
MAPPING = np.dtype(
    [
        ("internal_address", "u4"),
        ("internal_realm", "u4"),  # realm | protocol << 24
        ("remote_address", "u4"),  # mapping: 0
        ("internal_port", "u2"),
        ("remote_port", "u2"),  # 0; not 0: a shadow, which its internal endpoint does not find (see `apply`)
        ("external_address", "u4"),
        ("account", "u4"),  # whose it is: a device's account or a subscriber's
        ("external_port", "u2"),  # generic protocol: its place (see `generic`)
        ("generation", "u2"),
        ("sessions", "u2"),  # that use it; at 0 a dynamic mapping ends
        ("static", "u1"),  # not 0: it stays without a session; from the configuration, or asked for (see `grant_rows`)
        ("kind", "u1"),
    ]
)
assert MAPPING.itemsize == 32

# A session whose packets are not translated (RFC 6888 REQ-6) has no mapping: its field has this bit and its account's number,
# its external endpoint is the internal one.
BYPASSED = 1 << 31

# Of a session's last word: its kind and the version of the rules that admitted it, which packets compare at once.
ADMITTED = np.uint64(0xFF00_0000_0000_FFFF)


def admitted(version: int) -> int:
    """What the last word of a session that was admitted by rules of a version has under ADMITTED."""
    return NAT_SESSION << 56 | version


EXTENT_LINES = 1 << 16  # rows are handed to shards in extents: 64 Ki lines, 4 MiB, two huge pages

# Rows of a shard are numbered within their class, alike on every core that has a replica: a record names (shard, class, row). A
# replica takes new rows from the classes of its own side only, so two that cannot hear each other never take the same one.
# Permissions follow from the sessions: each core makes its own.
CLASSES = 7
SESSION_0, SESSION_1, MAPPING_0, MAPPING_1, PERMISSION, SESSION6_0, SESSION6_1 = range(CLASSES)

EXTENT = np.dtype([("shard", "u2"), ("kind", "u1"), ("klass", "u1"), ("ordinal", "u4")])  # ordinal: within shard and class

# Links of a line: timer list while a session lives, free list while it does not.
LINK = np.dtype([("next", "u4"), ("previous", "u4")])

# Rows of one class of one shard, lines or half-lines: where the free ones are.
SLAB = np.dtype(
    [
        ("free", "u4"),  # head of the free list, 0 none
        ("fresh", "u4"),  # next never-used row of the newest extent
        ("fresh_end", "u4"),
        ("extents", "u4"),  # how many it has, see `extent_of`
    ]
)

# What a core is to a shard now (see replication.roles). Only ACTIVE creates; each but ABSENT forwards what it knows.
ABSENT, JOINING, SYNCING, PASSIVE, ACTIVE, DRAINING = range(6)
PICKUP, PICKUP_ASIDE = 1, 2  # aside: nobody else has the other side, so new connections take its ports meanwhile
NO_SIDE = 2  # of a replica that may hand out nothing
ROLES = ("absent", "joining", "syncing", "passive", "active", "draining")

SHARD = np.dtype(
    [
        ("id", "u4"),  # its number in the configuration; the row's too
        ("epoch", "u4"),
        ("sessions", "u4"),  # alive
        ("mappings", "u4"),
        ("wanted", "u4"),  # counts packets that need an authority while none is known to live
        ("shunted", "u4"),  # counts packets that were passed to the authority
        ("grace_until", "u4"),  # tick until which connections that began before a takeover may be picked up, and none ends
        ("authority", "u2"),  # row of PEER whose core has the authority, 0 none or this one
        ("backup", "u2"),  # ACTIVE: row of PEER of its backup, 0 none
        ("role", "u1"),
        ("side", "u1"),  # replica side: which port chunks and rows it may hand out; 2: none (see replication.roles)
        ("creates", "u1"),  # 1: has the authority. All that the packet path asks
        ("pickup", "u1"),  # not 0: until `grace_until` TCP without SYN may open by its derived port
        ("risen_at", "u4", (3,)),  # ticks of the last promotions after failures, whoever was promoted (roles.RISES_AT_MOST)
        ("risen_epoch", "u4"),  # the last of them made this epoch
        ("icmp_address", "u4"),  # external one, in no pool, that ICMP errors of routers come from; 0 none
        ("granting_since", "u4"),  # second of the packets' clock at which PCP's epoch began (RFC 6887 8.5); 0: never yet
        ("granting_epoch", "u4"),  # `epoch` in which `grants` were whole
    ]
)
assert SHARD.itemsize == 64

# Another core, as packets know it. Row 0 is this core itself, where there are others: its own address among them.
PEER = np.dtype(
    [
        ("address", "u4"),  # where shunted packets go
        ("mtu", "u4"),  # IPv4 bytes that reach it, as probed; 0 not yet known
        ("sent", "u4"),  # counts packets shunted to it
        ("received", "u4"),  # and from it
        ("alive", "u1"),  # written by the worker's chores
        ("spare", "u1", (47,)),
    ]
)
assert PEER.itemsize == 64

# An internal prefix whose every 2**shift addresses are one account (subscriber, or device behind one).
PREFIX = np.dtype(
    [
        ("network", "u4"),
        ("mask", "u4"),
        ("realm", "u4"),
        ("first_account", "u4"),
        ("parent", "u4"),  # account of the subscriber, for device prefixes; else 0
        ("pool", "u2"),
        ("shard", "u2"),
        ("shift", "u1"),
        ("spare", "u1", (3,)),
        ("ordinal", "u4"),  # of its first subscriber among those of its pool
    ]
)
assert PREFIX.itemsize == 32

ENDPOINT_INDEPENDENT, ADDRESS_DEPENDENT, ADDRESS_AND_PORT_DEPENDENT = 0, 1, 2
FILTERING_BITS = 2  # of `filtering` of a pool for each port space

POOL = np.dtype(
    [
        ("first_external", "u4"),  # ordinal of the first of its rows
        ("block_size", "u4"),  # ports; a multiple of 64
        ("externals", "u4"),  # addresses that it has; this and the next one change in one store (see `membership`)
        ("half", "u4"),  # which of `moved` is in force
        ("first_block", "u4"),  # first and last+1 block number inside an address that may be handed out
        ("end_block", "u4"),
        ("blocks_free", "u4"),
        ("blocks_each", "u2"),  # at most, per subscriber
        ("shard", "u2"),
        ("filtering", "u1"),  # of each port space, see FILTERING_BITS
        ("dry", "u1"),  # no block was found free in the second `dry_at` (its low half): a bit per side and port space
        ("dry_at", "u2"),
        ("ratio", "u4"),  # subscribers of an address who have blocks of their own there (RFC 7422); 0: nobody has
        ("loose_block", "u4"),  # first block that is nobody's own; those from `first_block` on are, `fixed_each` a subscriber
        ("rooms", "u4"),  # rows that it may use, from `first_external` on
        ("fixed_each", "u2"),
        ("spare", "u1", (14,)),
    ]
)
assert POOL.itemsize == 64


def pack_filtering(icmp: int, tcp: int, udp: int) -> int:
    """`filtering` of a pool; its parts stand in the order of the port spaces."""
    return icmp | tcp << FILTERING_BITS | udp << 2 * FILTERING_BITS


def unpack_filtering(told: int) -> tuple[int, int, int]:
    """(of ICMP, of TCP, of UDP) of a pool."""
    return told & 3, told >> FILTERING_BITS & 3, told >> 2 * FILTERING_BITS & 3


EXTERNAL_ADDRESS = np.dtype(
    [
        ("address", "u4"),
        ("pool", "u2"),
        ("blocks_free", "u2"),
        ("closed", "u1"),  # OPEN, or nobody is paired with it anew; written by the supervisor
        ("spare", "u1"),
        # Of this row's place among the pool's: the address that has it in ascending order stands in a row so much further on,
        # modulo 65,536. Of two, one is looked at, the other written meanwhile. 0 where every address stands in its place.
        ("moved", "u2", (2,)),
        ("nth", "u2"),  # ordinal of the address that is as far from the pool's first, those not counted that are excluded
    ]
)
assert EXTERNAL_ADDRESS.itemsize == 16
EXTERNALS_AT_MOST = 1 << 16  # rows
OPEN, DRAINED, EXCLUDED = 0, 1, 2  # the last two differ for people only

CHUNK_PORTS = 64
CHUNK = np.dtype([("account", "u4"), ("epoch", "u4"), ("used", "u2"), ("side", "u1"), ("spare", "u1", (5,))])  # account + 1
assert CHUNK.itemsize == 16

HELD = 1 << 31  # in `owners`: not a mapping but "freed in this second"
PORT_SPACES = 4  # icmp, tcp, udp, generic: see ports.port_space
HELD_SPACES = 3  # those whose ports a backup is told to be held down: no packet shows a place of the last

RULE = np.dtype(
    [
        ("internal_network", "u4"),
        ("internal_mask", "u4"),
        ("remote_network", "u4"),
        ("remote_mask", "u4"),
        ("internal_port_low", "u2"),
        ("internal_port_high", "u2"),
        ("remote_port_low", "u2"),
        ("remote_port_high", "u2"),
        ("directions", "u1"),  # bit OUTBOUND, bit INBOUND
        ("action", "u1"),  # ACCEPT, DROP, REJECT
        ("protocol", "u1"),  # 0 any
        ("spare", "u1"),
        ("number", "u4"),  # position in the configuration, for people
        ("hits", "u8"),
    ]
)
assert RULE.itemsize == 40
ACCEPT, DROP, REJECT = 1, 2, 3

STATIC = np.dtype(
    [
        ("internal_address", "u4"),
        ("external_address", "u4"),
        ("internal_port", "u2"),
        ("external_port", "u2"),
        ("protocol", "u1"),
        ("spare", "u1", (3,)),
    ]
)

PORT = np.dtype(
    [
        ("mac", "u1", (6,)),
        ("mtu", "u2"),
        ("address", "u4"),  # the core's own
        ("network", "u4"),  # on-link
        ("mask", "u4"),
        ("internal_realm", "u4"),
        ("external_realm", "u4"),
        ("vlan", "u2"),  # 0 untagged
        ("internal_gateway", "u2"),  # neighbour row; 0 none: everything inside is on-link
        ("external_gateway", "u2"),
        ("side", "u1"),
        ("partial", "u1"),  # 1: local (veth) senders may leave TCP/UDP checksums partial
        ("carrier_lost", "u1"),  # 1: nothing can leave or come; written by the supervisor
        ("peer_lost", "u1"),  # 1: what keeps watch on its peer (BFD) has lost it; written by the worker's chores
        ("dead", "u1"),  # 1: nothing leaves by it as long as another one of its side can take it; written by `legs.settle`
        ("length6", "u1"),  # of the IPv6 prefix that is on-link; 0: no IPv6 here
        ("since", "u4"),  # tick at which `dead` became what it is; 0: at the start
        ("internal_gateway6", "u2"),
        ("external_gateway6", "u2"),
        ("address6_high", "u8"),  # the core's own
        ("address6_low", "u8"),
    ]
)
PORT_BYTES = 64
assert PORT.itemsize == PORT_BYTES

WANTED, REACHABLE, FAILED = 1, 2, 3
NEIGHBOUR = np.dtype(
    [
        ("address", "u4"),
        ("used", "u4"),  # tick of the last miss that asked for it, or of the wheel's last look at a session that uses it
        # The way packets take, written by the worker alone (see `legs`): its own word below, or that of a gateway instead.
        ("mac", "u1", (6,)),
        ("state", "u1"),
        ("port", "u1"),
        # Who it is: MAC and state are written by the supervisor, in one store of the whole word.
        ("own_mac", "u1", (6,)),
        ("own_state", "u1"),
        ("own_port", "u1"),
        ("kept", "u1"),  # 1: a gateway; its row never changes hands
        ("six", "u1"),  # 1: an IPv6 address, of which `address` is the lowest quarter
        ("spare_bytes", "u1", (2,)),
        ("middle", "u4"),  # the quarter above it
        ("high", "u8"),  # the upper half
        ("spare", "u1", (24,)),
    ]
)
# Of a row; where in it the MAC stands that packets get, and its own, each the head of a word with state and port behind it.
NEIGHBOUR_BYTES, NEIGHBOUR_MAC, NEIGHBOUR_OWN = 64, 8, 16
assert NEIGHBOUR.itemsize == NEIGHBOUR_BYTES

WHEEL_SLOTS = 1 << 17
WHEEL_SHIFT = 6  # ticks a slot: 64 ms, so one turn is 8,388 s, more than the longest default timer
TOMBSTONES = 1 << 16
EVENTS = 1 << 16
COUNTERS = 256


class Sizes(NamedTuple):
    """How many rows of each; fixed for the life of the memory."""

    extents: int  # each EXTENT_LINES lines; sessions and mappings take extents as they need them
    buckets: int  # of the index; a power of two
    externals: int
    accounts: int
    prefixes: int
    devices: int
    limits: int
    pools: int
    rules: int
    statics: int
    ports: int
    shards: int
    peers: int  # other cores; row 0 is none
    neighbours: int  # a power of two, at most 65,536
    bfd: int = 1  # sessions
    prefixes6: int = 1
    rules6: int = 1
    pinholes: int = 1
    bypasses: int = 1
    grants: int = 1  # row 0 is none


class State(NamedTuple):
    """The arrays of one core. Index 0 of lines, half-lines, accounts, limits and neighbours means none."""

    settings: Array  # SETTINGS (1,)
    core: Array  # CORE (1,)
    counters: Array  # uint64 (COUNTERS, 8): column 0 packets, 1 bytes; a row is a cache line
    words: Array  # uint64: the arena, two words a unit
    sessions: Array  # SESSION, a view of the same memory, by line
    flows6: Array  # FLOW6, the same: the second line of each session of IPv6
    mappings: Array  # MAPPING, the same, by half-line
    extents: Array  # EXTENT; the first one is never used, so that line 0 and half-line 0 mean none
    slabs: Array  # SLAB (shards, CLASSES)
    extent_of: Array  # uint32 (shards, CLASSES, extents): the extent of that ordinal, 0 none
    links: Array  # LINK, by line
    tags: Array  # uint16 (buckets, 32): the index's bucket lines as 16-bit words
    refs: Array  # uint32 (buckets, 16): the same lines as 32-bit words
    blooms: Array  # uint64 (buckets, 8): the same lines as 64-bit words
    wheel: Array  # uint32 (WHEEL_SLOTS,): first line of each slot's list
    shards: Array  # SHARD
    peers: Array  # PEER
    prefixes: Array  # PREFIX, longest first
    devices: Array  # PREFIX, longest first
    accounts: Array  # ACCOUNT
    limits: Array  # LIMITS
    pools: Array  # POOL
    externals: Array  # EXTERNAL_ADDRESS
    owners: Array  # uint32 (PORT_SPACES, externals, 65536): half-line of the mapping, or HELD | second of release
    chunks: Array  # CHUNK (externals, 1024)
    protocols: Array  # uint8 (256,): 1 where a generic protocol is translated (see `generic`)
    rules: Array  # RULE, two halves; see SETTINGS
    statics: Array  # STATIC
    prefixes6: Array  # PREFIX6, longest first
    rules6: Array  # RULE6
    pinholes: Array  # RULE6
    bypasses: Array  # RULE: what is not translated; of `directions` INBOUND says who may begin from outside
    grants: Array  # GRANT
    ports: Array  # PORT
    neighbours: Array  # NEIGHBOUR
    bfd: Array  # BFD; those with an address are sessions
    port_timers: Array  # PORT_TIMER
    alarms: Array  # ALARM
    port_bytes: Array  # uint8: the same memory as `ports`, flat
    neighbour_bytes: Array  # uint8: the same memory as `neighbours`, flat
    dirty: Array  # uint64 bitmap, a bit per half-line: changed since last shipped
    summary: Array  # uint64 bitmap, a bit per word of `dirty`: something may be set there
    shipped: Array  # uint64 bitmap, a bit per half-line: this life of the row was sent
    tombstones: Array  # uint64 (TOMBSTONES,): half-line | generation << 32
    events: Array  # EVENT (EVENTS,): number n stands at n mod EVENTS
    fragmented: Array  # FRAGMENTED (FRAGMENTS,)
    covered: Array  # uint32 (FRAGMENTS, PIECES_EACH): first << 16 | last + 1 unit of 8 bytes of each fragment that has come
    shares: Array  # uint16 (SHARES, 2): datagrams and waiting fragments of the addresses of ours whose hash is the row
    identities: Array  # uint16 (IDENTITIES,): counts fragmented datagrams sent to the remotes whose hash is the row
    unasked: Array  # UNASKED, a ring
    quotes: Array  # uint8 (UNASKED_ROWS * QUOTE_BYTES,): the packet of each, from its IP header on
    logged: Array  # uint32 (16,): [0] counts the events written; a cache line of its own, since others watch it


def _sections(sizes: Sizes) -> list[tuple[str, Any, tuple[int, ...]]]:
    lines = sizes.extents * EXTENT_LINES
    return [
        ("settings", SETTINGS, (1,)),
        ("core", CORE, (1,)),
        ("counters", np.uint64, (COUNTERS, 8)),
        ("words", np.uint64, (lines * 8,)),
        ("extents", EXTENT, (sizes.extents,)),
        ("slabs", SLAB, (sizes.shards, CLASSES)),
        ("extent_of", np.uint32, (sizes.shards, CLASSES, sizes.extents)),
        ("links", LINK, (lines,)),
        ("tags", np.uint16, (sizes.buckets, 32)),
        ("wheel", np.uint32, (WHEEL_SLOTS,)),
        ("shards", SHARD, (sizes.shards,)),
        ("peers", PEER, (sizes.peers,)),
        ("prefixes", PREFIX, (sizes.prefixes,)),
        ("devices", PREFIX, (sizes.devices,)),
        ("accounts", ACCOUNT, (sizes.accounts,)),
        ("limits", LIMITS, (sizes.limits,)),
        ("pools", POOL, (sizes.pools,)),
        ("externals", EXTERNAL_ADDRESS, (sizes.externals,)),
        ("owners", np.uint32, (PORT_SPACES, sizes.externals, 65536)),  # so, unused protocols take none
        ("chunks", CHUNK, (sizes.externals, 65536 // CHUNK_PORTS)),
        ("protocols", np.uint8, (256,)),
        ("rules", RULE, (sizes.rules,)),
        ("statics", STATIC, (sizes.statics,)),
        ("prefixes6", PREFIX6, (sizes.prefixes6,)),
        ("rules6", RULE6, (sizes.rules6,)),
        ("pinholes", RULE6, (sizes.pinholes,)),
        ("bypasses", RULE, (sizes.bypasses,)),
        ("grants", GRANT, (sizes.grants,)),
        ("ports", PORT, (sizes.ports,)),
        ("neighbours", NEIGHBOUR, (sizes.neighbours,)),
        ("bfd", BFD, (sizes.bfd,)),
        ("port_timers", PORT_TIMER, (TIMERS - 1,)),
        ("alarms", ALARM, (ALARM_POOLS + sizes.pools,)),
        ("dirty", np.uint64, (lines * 2 // 64,)),
        ("summary", np.uint64, (lines * 2 // 64 // 64,)),
        ("shipped", np.uint64, (lines * 2 // 64,)),
        ("tombstones", np.uint64, (TOMBSTONES,)),
        ("events", EVENT, (EVENTS,)),
        ("fragmented", FRAGMENTED, (FRAGMENTS,)),
        ("covered", np.uint32, (FRAGMENTS, PIECES_EACH)),
        ("shares", np.uint16, (SHARES, 2)),
        ("identities", np.uint16, (IDENTITIES,)),
        ("unasked", UNASKED, (UNASKED_ROWS,)),
        ("quotes", np.uint8, (UNASKED_ROWS * QUOTE_BYTES,)),
        ("logged", np.uint32, (16,)),
    ]


def external_rows(state: State, number: int) -> Array:
    """Rows of a pool's external addresses, in ascending order of these: a copy, as it is now."""
    pool = state.pools[number].copy()
    return rows_by(state, number, int(pool["externals"]), int(pool["half"]))


def rows_by(state: State, number: int, count: int, half: int) -> Array:
    """The same, as it is with `count` addresses and one half of `moved`; what `externals.nth` says of each."""
    first, places = int(state.pools[number]["first_external"]), np.arange(count)
    rows: Array = first + ((places + state.externals["moved"][first : first + count, half]) & (EXTERNALS_AT_MOST - 1))
    return rows


HEADER_BYTES = 4096
SECTION_ALIGN = 2 << 20  # every section on its own huge page: no two share a line, each can be large-paged


def layout_digest() -> str:
    """Names this layout: any change of a dtype or of the sections changes it."""
    told = repr([(name, np.dtype(dtype).descr, shape) for name, dtype, shape in _sections(Sizes(*([2] * len(Sizes._fields))))])
    return hashlib.sha256(f"{LAYOUT} {told}".encode()).hexdigest()[:16]


def state_bytes(sizes: Sizes) -> int:
    """Bytes of memory (sparse: only what is touched is taken) that a state of these sizes spans."""
    at = SECTION_ALIGN
    for _, dtype, shape in _sections(sizes):
        at = _after(at, dtype, shape)
    return at


def _after(at: int, dtype: Any, shape: tuple[int, ...]) -> int:
    size: int = np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
    return -(-(at + max(size, 1)) // SECTION_ALIGN) * SECTION_ALIGN


def open_state(memory: Any, sizes: Sizes) -> State:
    """Arrays over `memory`, any writable (or read-only) buffer of at least `state_bytes(sizes)` bytes."""
    arrays: dict[str, Array] = {}
    at = SECTION_ALIGN
    for name, dtype, shape in _sections(sizes):
        count = int(np.prod(shape, dtype=np.int64))
        arrays[name] = np.frombuffer(memory, dtype, count, at).reshape(shape)
        at = _after(at, dtype, shape)
    arrays["sessions"] = arrays["words"].view(SESSION)
    arrays["flows6"] = arrays["words"].view(FLOW6)
    arrays["mappings"] = arrays["words"].view(MAPPING)
    arrays["refs"] = arrays["tags"].view(np.uint32)
    arrays["blooms"] = arrays["tags"].view(np.uint64)
    arrays["port_bytes"] = arrays["ports"].view(np.uint8)
    arrays["neighbour_bytes"] = arrays["neighbours"].view(np.uint8)
    return State(**arrays)


def new_state(sizes: Sizes) -> State:
    """A state in private anonymous memory (tests, benches, `trace`): zeroed, huge pages asked for, header written."""
    memory = mmap.mmap(-1, state_bytes(sizes), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory gets no huge pages
    memory.madvise(mmap.MADV_HUGEPAGE)
    write_header(memory, sizes)
    return open_state(memory, sizes)


def write_header(memory: Any, sizes: Sizes) -> None:
    """Say at the head of the memory what it holds, so that a file descriptor is all a reader needs."""
    text = json.dumps({"krononat": LAYOUT, "digest": layout_digest(), "sizes": sizes._asdict()}).encode()
    memory[0 : len(text) + 1] = text + b"\0"


def read_header(memory: Any) -> Sizes:
    """Sizes of the state in `memory`; ValueError where it is of another layout or none of ours."""
    raw = bytes(memory[0:HEADER_BYTES]).split(b"\0", 1)[0]
    try:
        told = json.loads(raw)
    except ValueError:
        raise ValueError("this memory holds no Krononat state") from None
    if told.get("digest") != layout_digest():
        theirs, ours = f"{told.get('krononat')}/{told.get('digest')}", f"{LAYOUT}/{layout_digest()}"
        raise ValueError(f"this memory has layout {theirs}, this program {ours}; start anew")
    return Sizes(**told["sizes"])
