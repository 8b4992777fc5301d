"""What there is one of in the state of a core: what configuration decided, and what the worker says about itself."""

from __future__ import annotations

import numpy as np

# What configuration decides; written before the worker starts. Times in ticks (ms), limits in their own unit.
SETTINGS = np.dtype(
    [
        ("seed", "u8", (2,)),  # of the index's hash: random, lives in the state
        ("secret", "u8", (2,)),  # of port derivation: the cluster's key
        ("hold_down_s", "u4"),
        ("neighbour_wait", "u4"),
        ("icmp_rate", "u4"),  # ICMP errors of our own per second; 0 none at all
        ("icmp_burst", "u4"),
        ("mss", "u2"),  # clamp; 0 off
        ("rules", "u2"),  # how many
        ("rules_version", "u2"),
        ("prefixes", "u2"),
        ("devices", "u2"),
        ("pools", "u2"),
        ("ports", "u2"),
        ("statics", "u2"),
        ("shards", "u2"),
        ("internal_port", "u1"),  # first row of PORT of the side; its others follow
        ("external_port", "u1"),
        ("hairpin", "u1"),
        ("inbound_refresh", "u1"),
        ("reject_code", "u1"),  # ICMP code for what policy rejects
        ("log", "u1"),  # LOG_*: which events are written
        ("internal_ports", "u1"),  # how many, from `internal_port` on
        ("external_ports", "u1"),
        ("shunt_side", "u1"),  # INTERNAL or EXTERNAL: where the other cores are
        ("echo6", "u1"),  # 1: everyone may send echo requests in (RFC 4890 4.3.1)
        ("prefixes6", "u2"),  # 0: IPv6 is not forwarded
        ("rules6", "u2"),
        ("pinholes", "u2"),
        ("refusal_code", "u1"),  # ICMP code for what is refused for want of something (RFC 6888 REQ-11); NO_REPLY: silence
        ("refusal_code6", "u1"),  # the same of ICMPv6
        ("port_timers", "u1"),  # rows of PORT_TIMER in use
        ("warning", "u1"),  # percent: see `alarms`
        ("critical", "u1"),
        ("clear", "u1"),  # by so many points something must have sunk for its alarm to sink
        ("room", "u4"),  # sessions that the memory is meant for, 0 not known
        ("quiet", "u1"),  # bit OUTBOUND, bit INBOUND: directions of packets that no ICMP error of ours answers
        ("log_fixed", "u1"),  # 1: blocks and mappings that the configuration tells are written, too (RFC 7422)
        ("bypasses", "u2"),
        ("rules_at", "u2"),  # first row of those in force: each table has two halves, the other is written meanwhile (`reload`)
        ("rules6_at", "u2"),
        ("pinholes_at", "u2"),
        ("bypasses_at", "u2"),
        ("admitted", "u8"),  # what the last word of an IPv4 session says under ADMITTED that the rules of now have admitted
        ("unasked", "u1"),  # 1: who asks for a connection that nothing permits is told, by ICMP (RFC 5382 REQ-4)
        ("unasked6", "u1"),  # by ICMPv6 (RFC 6092 REC-34, 39)
        ("ipsec6", "u1"),  # 1: IPsec and HIP come in unasked (RFC 6092 REC-21, 22, 24, 26)
        ("more_spare", "u1", (13,)),
        ("lifetimes", "u4", (256,)),  # ticks without a packet, by `state` of a session's row: see `lifetimes`
    ]
)
assert SETTINGS.itemsize == 128 + 1024
NO_REPLY = 255

# What the worker alone writes about itself.
CORE = np.dtype(
    [
        ("wheel_at", "u8"),  # last slot of the wheel that was served, counted since boot
        ("breaths", "u8"),
        ("clock_ahead", "i8"),  # ticks, of the packets' clock; and the tick at which it stands, 0: it goes (krononat.clock)
        ("clock_stands", "u8"),
        ("next_extent", "u4"),
        ("icmp_tokens", "u4", (4,)),  # thousandths, by direction of what is answered; 2: of refusals; 3: see `unasked`
        ("icmp_tokens_at", "u4", (4,)),
        ("held", "u4"),  # frames waiting for a neighbour
        ("neighbours_wanted", "u4"),  # counts requests to the supervisor
        ("neighbours_version", "u4"),  # written by the supervisor: counts its answers
        ("index_entries", "u4"),
        ("tombstones", "u4"),  # written ever, mod 2**32
        ("ip_id", "u4"),
        ("late_compilations", "u4"),  # since the worker began to take traffic: must stay 0
        ("longest_breath_us", "u4"),  # since then
        ("rest", "u4"),  # ticks for which chores rest between two turns: others need the CPU, too (krononat.crowding)
        ("in_doubt", "u4"),  # not 0: a change of what is derived is under way, see `doubt`
        ("legs_lost", "u4"),  # what `legs.settle` has settled last: a bit for each dead port, and
        ("legs_version", "u4"),  # the `neighbours_version`
        ("fragmented", "u4"),  # rows of FRAGMENTED in use
        ("parts", "u4"),  # fragments that wait for their first
        ("parted", "u4"),  # as many as the loop has put aside
        ("parts_due", "u4"),  # not 0: some of them need wait no longer
        ("parts_at", "u4"),  # tick at which it was last looked whether one has waited long enough
        ("swept_at", "u4"),  # and when rows of FRAGMENTED that are due were last ended
        ("cuts", "u4"),  # rows of this burst that are longer than their next link's MTU
        ("unasked", "u4"),  # rows of UNASKED written ever, mod 2**32
        ("unasked_done", "u4"),  # and of these those whose time was over
        ("spare", "u1", (40,)),
    ]
)
assert CORE.itemsize == 192

LOG_OFF, LOG_BLOCKS, LOG_MAPPINGS, LOG_SESSIONS = range(4)  # each includes those before it
