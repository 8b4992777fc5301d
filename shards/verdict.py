"""Every outcome of a packet: at once a number, a counter, a metric label, a word in scenarios and a sentence for people.

Conservation holds by construction, because one place counts: received = forwarded + punted + shunted + held + control +
sum of drops.
The constants below are plain module integers, so that compiled code freezes them; `VERDICTS` is the same as a table.
"""

from __future__ import annotations

from typing import NamedTuple

FORWARD, PUNT, SHUNT, HOLD, CONTROL, DROP = "forward", "punt", "shunt", "hold", "control", "drop"


class Verdict(NamedTuple):
    """One outcome; `name` is the word used everywhere, `remedy` what an operator can do about it."""

    number: int
    name: str
    fate: str
    sentence: str
    remedy: str


_PICTURE = """
# fate    name: sentence; below it, after >, the remedy
forward   forwarded_out          translated and sent towards the Internet
forward   forwarded_in           translated and sent towards the subscriber
forward   hairpinned             between two subscribers of ours, by their external endpoints (RFC 4787 REQ-9)
punt      punted                 not ours to forward: given to the kernel by the steering program
shunt     shunted                passed to the core that has the authority over its shard
hold      held                   waits for the neighbour's MAC address, or for a core to take the authority over its shard
control   bfd_taken              BFD of a neighbour, for this core itself: its session has heard it
drop      runt                   shorter than its Ethernet or IPv4 header
          > look at the sender's link and driver
drop      foreign_mac            addressed to another station's MAC
          > a switch floods, or a neighbour has a stale ARP entry
drop      vlan_unexpected        tagged for a VLAN that this port does not carry, or untagged on a tagged port
          > compare `vlan` of the interface with the switch's port
drop      not_ip                 neither IPv4 nor something the kernel handles
          > nothing to do; steering should have passed it
drop      ipv6_not_served        IPv6, and no subscriber has an IPv6 prefix
          > `prefix6` of [[subscribers]] gives them one
drop      bad_ip_header          IP version or header length impossible
          > look for a broken or hostile sender
drop      bad_length             length of the IP packet or of UDP does not fit the frame
          > look for a broken or hostile sender
drop      bad_ip_checksum        IPv4 header checksum wrong (RFC 1812 5.2.2)
          > look for damage on the path before us
drop      bad_icmp_checksum      ICMP checksum wrong (RFC 5508 REQ-3)
          > look for damage on the path before us
drop      source_routed          carries a source-route option (RFC 7126), routing header (RFC 5095) or GRE routing (RFC 2784)
          > nothing to do; source routing is refused on purpose
drop      martian_source         source can never be a sender (0/8, 127/8, multicast, broadcast; fc00::/7, fe80::/10)
          > look for a broken or hostile sender
drop      martian_destination    destination can never be forwarded to
          > look for a broken or hostile sender
drop      land                   source and destination endpoints are equal
          > an attack from the nineties; nothing to do
drop      bad_fragment           a fragment of impossible offset or length (RFC 791, RFC 8200), or of one beyond 65,535 bytes
          > look for a broken or hostile sender
drop      tiny_fragment          an IP fragment that cuts a header: of TCP, UDP, ICMP, or any of IPv6's (RFC 1858, 3128, 7112)
          > nobody needs such fragments; look for a hostile sender
drop      fragment_overlap       an IP fragment over what another one has brought: all of its datagram is refused (RFC 5722)
          > an attack (teardrop), or a sender that uses an identification twice
drop      fragment_duplicate     an IP fragment that has come before
          > look for a loop or a doubling link
drop      fragment_orphan        an IP fragment whose first fragment, which has the ports, did not come in time
          > normal where packets are lost; else an attack: `krononat status` has the rate
drop      fragment_refused       an IP fragment whose first fragment was refused, or which comes after an overlap
          > the verdict of the first fragment says why
drop      fragment_limit         more fragments than one address may have under way, or waiting for their first, at once
          > an attack, or a sender that should lower its MTU; other addresses lose nothing
drop      error_in_fragments     an ICMP error in fragments: its checksum covers what is not there yet (RFC 5508 REQ-3)
          > nothing to do: errors of routers have 576 bytes at most
drop      bad_l4_header          TCP, UDP or ICMP header cut short or its length field impossible
          > look for a broken or hostile sender
drop      bad_tcp_flags          TCP flags that no stack sends together
          > a scan; nothing to do
drop      protocol_not_served    an IP protocol other than TCP, UDP and ICMP that the configuration does not have translated
          > name it in `other-protocols` of [nat], if hosts need it; `krononat config explain nat` says which can be
drop      ah_not_served          IPsec AH: it protects the addresses, so it cannot pass a translation (RFC 4302 3.3.3.1)
          > have its ends use ESP, best of all in UDP (RFC 3948)
drop      icmp_type_not_served   an ICMP type that is neither query nor error
          > nothing to do (RFC 5508 REQ-11)
drop      spoofed_source         source outside the subscriber prefixes (BCP 38)
          > add the prefix to [[subscribers]], or find the spoofer
drop      not_our_destination    arrived outside for an address that is in no pool
          > correct the route that leads here
drop      inside_destination     asks for one of our own prefixes from the other side of the translation
          > correct the route that leads here
drop      ttl_exceeded           its time to live ended here
          > traceroute does this; many of them mean a routing loop
drop      too_big                longer than the next link's MTU and marked not to be fragmented
          > path MTU discovery learns from it; check the MTUs
drop      needs_fragmenting      longer than the next link's MTU, and no frame was free for the pieces
          > raise the MTU of the next link, or `frames` of [io]
drop      no_mapping             came unasked: no mapping has this external endpoint
          > normal background noise of the Internet; a static mapping would let it in
drop      filtered               a mapping has this external endpoint, but its filtering refuses this remote
          > `filtering` of the pool decides (RFC 4787 5)
drop      tcp_not_opening        TCP without SYN and without a session
          > the connection ended or began elsewhere; its ends will find out
drop      rule_dropped           refused silently by a rule
          > `krononat trace` names the rule
drop      rule_rejected          refused by a rule, and told so
          > `krononat trace` names the rule
drop      session_limit          its subscriber, device or external port has as many sessions as allowed
          > raise `limits.sessions` or `limits.sessions-per-port`, or look for what opens them
drop      mapping_limit          its subscriber or device has as many mappings as allowed
          > raise `limits.ports`, or look for what opens them
drop      protocol_limit         its subscriber or device has all it may have of this protocol; the rest is others' reserve
          > raise `ports` or `sessions` of `limits.tcp`, `.udp`, `.icmp` or `.other`, or look for what opens them
drop      rate_limit             its subscriber or device opens sessions faster than allowed
          > raise `limits.rate`, or look for what opens them
drop      ports_exhausted        the subscriber's port blocks are full and it may have no more
          > raise `max-blocks-per-subscriber` or `block-size`
drop      pool_exhausted         no block is free in the pool
          > add addresses to the pool
drop      protocol_in_use        it has no ports, and another host speaks it to this remote by the same external address
          > it is free when that session ends; tunnels inside UDP (RFC 3948) have no such limit
drop      table_full             no room in the index
          > raise `memory.sessions`
drop      rows_exhausted         no row is free
          > raise `memory.sessions`
drop      neighbour_unresolved   nobody answers for the next hop's address
          > check the next hop, its link and its address
drop      neighbours_exhausted   too many neighbours at once
          > use a router for large access networks
drop      hold_overflow          too many frames wait for a neighbour at once
          > normal when a scan meets an empty network
drop      icmp_embedded_bad      an ICMP error whose embedded packet is cut short or has a wrong checksum
          > look for a broken or hostile sender
drop      icmp_unrelated         an ICMP error about a packet that no session or mapping of ours has sent
          > background noise, or an attack; nothing to do
drop      hairpin_refused        hairpinning is switched off, or would loop
          > `hairpin` of the configuration
drop      no_authority           no core that can be reached has the authority over its shard
          > `krononat replication status` has the alarms; are its packets steered to a core that has it?
drop      shunt_too_big          with the header of shunting it is longer than what reaches the core it is for
          > raise the MTU between the cores by 44 bytes
drop      shunt_refused          came shunted, but this core has no authority over its shard either; never shunted twice
          > normal for moments while an authority moves; else compare the cluster maps of the cores
drop      shunt_foreign          claims to be shunted, but by no core of this cluster, or its seal is wrong
          > compare `port-key` of `krononat doctor -c FILE` on the cores, and their shunt addresses; or find who sends it
drop      shunt_malformed        claims to be shunted, but is of another version, or its lengths contradict each other
          > look for damage on the path, or for a core of another release
drop      bfd_hops               BFD that was sent from beyond the link: its TTL is not 255 (RFC 5082)
          > somebody forges it, or the peer speaks multihop BFD: it must be on the link
drop      bfd_malformed          BFD of another version, cut short, damaged, or with a zero that must not be (RFC 5880 6.8.6)
          > look for damage on the path, or for a broken or hostile sender
drop      bfd_unknown_peer       BFD from an address on this link that we have no session with
          > add it to `[bfd]` `peers` or as `[[bgp.peer]]`, or stop BFD towards us there
drop      bfd_unknown_session    BFD whose discriminator is not that of our session with its sender
          > normal for moments after a restart; many of them: somebody forges it
drop      bfd_authenticated      BFD with authentication, which this release does not have
          > switch authentication off at the peer
drop      bfd_closed             BFD for a session that is administratively down: this core is stopping
          > nothing to do
drop      bad_extension_header   IPv6 extension headers cut short, out of place, too many, or of a kind that is not known
          > look for a broken or hostile sender
drop      unsolicited            came unasked for an IPv6 subscriber: no session, filtering, pinhole or `firewall6` lets it in
          > normal background noise of the Internet; [[pinhole]] would let it in
drop      tx_full                the transmit ring was full, or nobody is connected to the memif port
          > the link is slower than the traffic (counted loss); `krononat status` has the state of memif ports
"""


def _parse(picture: str) -> tuple[Verdict, ...]:
    verdicts = [Verdict(0, "undecided", HOLD, "no stage has decided yet; never seen in a counter", "")]
    for line in picture.strip().splitlines()[1:]:
        if line.lstrip().startswith(">"):
            verdicts[-1] = verdicts[-1]._replace(remedy=line.strip("> "))
        else:
            fate, name, sentence = line.split(None, 2)
            verdicts.append(Verdict(len(verdicts), name, fate, sentence, ""))
    return tuple(verdicts)


VERDICTS = _parse(_PICTURE)
BY_NAME = {verdict.name: verdict for verdict in VERDICTS}

# Frozen by the compiler wherever they are used; a test holds them against the picture.
(
    UNDECIDED, FORWARDED_OUT, FORWARDED_IN, HAIRPINNED, PUNTED, SHUNTED, HELD_BACK, BFD_TAKEN,
    RUNT, FOREIGN_MAC, VLAN_UNEXPECTED, NOT_IP, IPV6_NOT_SERVED, BAD_IP_HEADER, BAD_LENGTH, BAD_IP_CHECKSUM, BAD_ICMP_CHECKSUM,
    SOURCE_ROUTED, MARTIAN_SOURCE, MARTIAN_DESTINATION, LAND, BAD_FRAGMENT, TINY_FRAGMENT, FRAGMENT_OVERLAP, FRAGMENT_DUPLICATE,
    FRAGMENT_ORPHAN, FRAGMENT_REFUSED, FRAGMENT_LIMIT, ERROR_IN_FRAGMENTS, BAD_L4_HEADER, BAD_TCP_FLAGS, PROTOCOL_NOT_SERVED,
    AH_NOT_SERVED,
    ICMP_TYPE_NOT_SERVED, SPOOFED_SOURCE, NOT_OUR_DESTINATION, INSIDE_DESTINATION, TTL_EXCEEDED, TOO_BIG, NEEDS_FRAGMENTING,
    NO_MAPPING, FILTERED, TCP_NOT_OPENING, RULE_DROPPED, RULE_REJECTED, SESSION_LIMIT, MAPPING_LIMIT,
    PROTOCOL_LIMIT, RATE_LIMIT,
    PORTS_EXHAUSTED, POOL_EXHAUSTED, PROTOCOL_IN_USE,
    TABLE_FULL, ROWS_EXHAUSTED, NEIGHBOUR_UNRESOLVED, NEIGHBOURS_EXHAUSTED, HOLD_OVERFLOW,
    ICMP_EMBEDDED_BAD, ICMP_UNRELATED, HAIRPIN_REFUSED, NO_AUTHORITY, SHUNT_TOO_BIG, SHUNT_REFUSED, SHUNT_FOREIGN,
    SHUNT_MALFORMED, BFD_HOPS, BFD_MALFORMED, BFD_UNKNOWN_PEER, BFD_UNKNOWN_SESSION, BFD_AUTHENTICATED, BFD_CLOSED,
    BAD_EXTENSION_HEADER, UNSOLICITED, TX_FULL,
) = range(74)  # fmt: skip
assert len(VERDICTS) == 74
FRAGMENT = -1  # no outcome: what `parse` says of a fragment, for which the slow path is (see `fragments`)

# --- meters: what is counted beside the verdicts, in the same array, from METERS on ---------------------------------------

METERS = 128
METER_NAMES = (
    "received",  # frames taken from the rings (or handed to `process`)
    "originated",  # ICMP errors of our own that were sent
    "suppressed",  # ICMP errors of our own that the rate limit, or RFC 1122 3.2.2, kept back
    "sessions_created",
    "sessions_expired",
    "sessions_deleted",
    "mappings_created",
    "mappings_ended",
    "blocks_taken",
    "blocks_returned",
    "ports_derived",  # mappings that got the port derived first
    "ports_moved",  # mappings that got another one of their block
    "sent",  # frames put on transmit rings, originated ones included
    "mss_clamped",
    "checksums_completed",  # partial checksums of local senders that were finished
    "bfd_sent",  # packets of BFD; not among `sent`, which counts what bursts send
    "fragmented",  # packets that were cut for the MTU of the next link
    "pieces",  # into so many
    "unasked_told",  # who asked for a connection that nothing permits, and has been told so
    "unasked_withdrawn",  # who has been told nothing: meanwhile it was permitted, or is not ours to say
    "unasked_overflow",  # who will be told nothing: too many were waiting
    "pcp_requests",  # that hosts of subscribers sent to the PCP server, those of NAT-PMP included
    "pcp_refused",  # of these answered by an error
    "pcp_dropped",  # and not answered: no requests, not a subscriber's of ours, or too many
    "pcp_granted",  # mappings made because they were asked for
    "pcp_ended",  # of these those that were given up, or whose lifetime was over
)
(
    RECEIVED, ORIGINATED, SUPPRESSED, SESSIONS_CREATED, SESSIONS_EXPIRED, SESSIONS_DELETED, MAPPINGS_CREATED, MAPPINGS_ENDED,
    BLOCKS_TAKEN, BLOCKS_RETURNED, PORTS_DERIVED, PORTS_MOVED, SENT, MSS_CLAMPED, CHECKSUMS_COMPLETED,
    BFD_SENT, FRAGMENTED, PIECES, UNASKED_TOLD, UNASKED_WITHDRAWN, UNASKED_OVERFLOW, PCP_REQUESTS, PCP_REFUSED, PCP_DROPPED,
    PCP_GRANTED, PCP_ENDED,
) = range(METERS, METERS + 26)  # fmt: skip
