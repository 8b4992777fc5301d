"""What the RFCs on NAT of IPv4 require, row by row, and our answer; `rfcs6` has those on IPv6, `compliance` reads both.

A row is what tests that show it are named after: `req9a` of RFC 4787 by `rfc4787-req9a-NAME.nat` or `test_rfc4787_req9a_NAME`.
RFCs without numbered requirements have rows by section (`sec2.2`), or one for all of them (`-`). Priorities are those of the
RFC: must, should (RECOMMENDED as well), may. An answer that begins with "n/a:" says why there is
nothing to show, one with "no:" why it is not as the RFC has it.
"""

from __future__ import annotations

PICTURE = """
4787 Behaviour for UDP (BCP 127)
req1    must    endpoint-independent mapping: every remote meets the same external endpoint
        > Always. A mapping belongs to the internal endpoint alone, and lives as long as any of its sessions.
req2    should  address pooling is paired: a host has one external address
        > Always. A subscriber's port blocks lie on one external address; he gets another only after giving back all of them.
req3    must    no port overloading: no two internal endpoints share an external one
        > Always. A port has one owner at a time; where none is free the packet is refused.
req3a   should  source ports from 1024 on stay there, and those below 1024 stay below
        > The first half: every port handed out is 1024 or more (`pool.ports`). Ports below are not kept: they stay free for
        > the operator's own services, and RFC 6888 REQ-15 wants ports that are hard to guess.
req4    should  port parity is preserved
        > n/a: RFC 7857 section 8 takes it back; where a parity is wanted a static mapping gives the port itself.
req5    must    a UDP mapping outlives two minutes of silence
        > `timeouts.udp`; less than 120 s is refused unless `timeouts.allow-short-timers` says that it is meant.
req5a   may     shorter timers for well-known destination ports
        > `timeouts.port`, a list: none is shorter by default.
req5b   may     the UDP timer is configurable
        > `timeouts.udp`.
req5c   should  the UDP timer's default is five minutes or more
        > 300 s.
req6    must    outbound packets refresh a mapping
        > Always.
req6a   may     inbound packets refresh a mapping
        > `nat.inbound-refresh`; off by default, or whoever is outside keeps mappings alive.
req7    must    internal and external addresses that conflict are kept apart or translated
        > The external addresses are configured, not learned: a configuration in which they overlap with subscribers is refused,
        > and a packet for an internal address that comes to the wrong side is dropped.
req8    should  endpoint-independent filtering where transparency counts, else address-dependent
        > `pool.filtering`: endpoint-independent by default, address-dependent or address-and-port-dependent by choice.
req9    must    hairpinning
        > `nat.hairpin`, on by default; between shards and cores as well.
req9a   must    a hairpinned packet shows its external source address and port
        > Always.
req10   should  ALGs for UDP are off
        > There is none: payloads pass untouched.
req10a  should  each ALG has its own switch
        > n/a: there is no ALG for UDP to switch.
req11   must    deterministic: neither mapping nor filtering ever changes its kind, whatever the load
        > Always. What is full refuses; nothing falls back to another behaviour.
req12   must    no ICMP message ends a mapping
        > Always.
req12a  should  ICMP is not filtered by its source address
        > Always: whoever is on the way may speak.
req12b  should  destination unreachable is supported
        > Always, in both directions.
req13   must    too big and DF: the sender is told "fragmentation needed"
        > Always, with the MTU of the next link (RFC 1191), within `icmp.errors-per-second`.
req13a  must    too big without DF: fragmented, in order
        > Always.
req14   must    fragments are received in any order
        > Always: each is translated as it comes, those before the first wait for it, for two seconds.
req14a  must    fragments cannot be used to harm what is not fragmented
        > Memory for them is fixed, each address has a share of it, overlaps and orphans are dropped and counted.

5382 Behaviour for TCP (BCP 142)
req1    must    endpoint-independent mapping for TCP
        > Always.
req2    must    every valid sequence of segments, for connections from inside and, where permitted, from outside
        > The states of RFC 6146 as RFC 7857 amends them, without windows: half-close, challenge ACKs, RST that answers a SYN
        > and the reuse of closed or stale connections pass.
req2a   must    simultaneous open
        > Always, whichever SYN comes first.
req3    should  endpoint-independent filtering where transparency counts, else address-dependent
        > `pool.filtering`: endpoint-independent by default.
req3a   may     the filtering of TCP is configurable
        > `pool.filtering.tcp`.
req3b   may     the filtering of TCP is independent of that of UDP
        > `pool.filtering = { tcp = ..., udp = ..., icmp = ... }`.
req4    must    an unsolicited inbound SYN is not answered for six seconds, and never if a SYN goes out meanwhile
        > By default it is never answered: the policy is silence, as REQ-4a allows. `nat.unsolicited-syn = "unreachable"` has
        > port unreachable sent after six seconds. A SYN that goes out meanwhile opens the connection, and nobody is told.
req4a   must    silence where an answer would violate the security policy
        > By default, `nat.unsolicited-syn = "silent"`. Other answers tell scans nothing of what is in use either.
req5    must    established connections outlive 2 h 4 min of silence, those that open or close four minutes
        > `timeouts.tcp-established` 7440 s, `timeouts.tcp-transitory` 240 s; less only by `timeouts.allow-short-timers`.
req5a   may     these timers are configurable
        > Both.
req6    should  ALGs for TCP are off by default, but for FTP
        > There is none unless configured: payloads pass untouched.
req7    must    no port overloading for TCP
        > Always.
req8    must    hairpinning for TCP
        > `nat.hairpin`, on by default.
req9    should  ICMP destination unreachable is translated
        > Always, with the embedded segment, were it eight bytes.
req10   must    no ICMP message ends a mapping or connection
        > Always.

5508 Behaviour for ICMP (BCP 148)
req1    must    queries pass out, and their answers in
        > Echo and timestamp.
req1a   should  the mapping of an identifier is the same for every external host
        > Always.
req2    must    a query's session outlives 60 s
        > `timeouts.icmp` 60 s; less only by `timeouts.allow-short-timers`.
req2a   should  the timer is configurable
        > `timeouts.icmp`.
req3    should  an error with a wrong ICMP checksum is dropped in silence
        > Always.
req3a   should  so is one whose embedded IP header has a wrong checksum
        > Always.
req3b   must    IP options of the embedded packet are stepped over
        > Always.
req3c   should  the embedded transport checksum is not validated
        > Never: what is wrong stays as wrong, none stays none.
req3d   must    ICMP extensions and padding do not count as part of the embedded packet
        > Always (RFC 4884).
req4    should  an error from outside about nothing that is mapped is dropped in silence
        > Always.
req4a   must    else the embedded packet is as its sender sent it
        > Always.
req4b   must    its type and code stay
        > Always.
req4c   must    it goes to whoever sent the embedded packet
        > Always.
req5    should  an error from inside about nothing that is mapped is dropped in silence
        > Always.
req5a   must    else the embedded packet is as its sender sent it
        > Always.
req5b   must    its type and code stay
        > Always.
req5c   must    its source is an external address of ours, whoever inside has sent it
        > The mapping's; for routers inside `pool.icmp-address`, if there is one.
req6    must    an error about a query neither refreshes nor deletes its session
        > Always.
req7    must    hairpinned errors pass
        > Always.
req7a   must    a hairpinned error goes to whoever sent the embedded packet
        > Always.
req8    should  who is refused a session, by policy or for want of room, is told so
        > By "unreachable" with `icmp.reject-code` (13) where a rule rejects; for limits and full pools see RFC 6888 REQ-11B.
req9    may     errors of ours can be suppressed towards an interface
        > `icmp.towards` names the sides that are told; `icmp.errors-per-second = 0` is silence.
req10a  must    destination unreachable, time exceeded, echo
        > Errors of ours have both; echo to the core's own address is answered by the kernel.
req10b  may     redirect, timestamp, source route, address mask, parameter problem, router discovery
        > Timestamps and parameter problems are translated, the others are not forwarded.
req10c  should  neither source quench nor information requests are originated or served
        > Neither is; a source quench from a router on the way is translated like any error.
req10d  should  DS field of errors
        > Errors of ours are CS6, internetwork control (RFC 1812 4.3.2.5).
req10e  should  when not to send errors (RFC 1812 4.3.2.7)
        > Never about an error, a fragment behind the first, or to an address that names no host.
req10f  should  errors are limited in rate (RFC 1812 4.3.2.8)
        > `icmp.errors-per-second`, towards each side apart.
req11   may     ICMP that is neither query nor error may be dropped
        > It is.

7857 Updates of these requirements (BCP 127)
sec2    should  the connection states of RFC 6146 (figure 1)
        > `shards/tcp.py` draws them.
sec2.1  should  timers of opening and of closing connections are configured apart, both four minutes by default
        > `timeouts.tcp-transitory-open`, `timeouts.tcp-transitory-closing`; what is not set is
        > `timeouts.tcp-transitory`, 240 s.
sec2.2  must    a RST is translated, and the session kept for four minutes, or longer if packets come
        > Always; a forged one ends nothing.
sec3    may     ports may overlap where destinations differ
        > n/a: mappings are endpoint-independent.
sec4    should  paired pooling whatever the protocol
        > Always: the pair is of the subscriber.
sec5    should  endpoint-independent mappings are each of one protocol
        > Always.
sec6    should  so is endpoint-independent filtering
        > Always.
sec7    should  an inbound packet that only filtering lets in refreshes nothing
        > Always, also with `nat.inbound-refresh`: only sessions are refreshed.
sec7.1  should  neither ICMP errors nor RSTs that go out in answer to inbound packets refresh a mapping
        > Always. A RST in answer to a SYN that filtering let in leaves by the mapping, and opens nothing.
sec8    should  port parity is not preserved
        > It is not.
sec9    should  ports are random (RFC 6056)
        > Derived by a keyed function (SipHash) that only the cluster knows.
sec10   should  the IPv4 identification of packets that share an address is handled as RFC 6864 5.3.1 says
        > Fragments of one datagram get one identification, unique among those to the same remote.
sec11   may     an ICMP mapping ends with its last session
        > It does.
sec12   must    hairpinned ICMP errors pass; queries where the NAT is Basic NAT
        > Errors do. A query has no external identifier to address, as this is NAPT.

6888 Carrier-grade NAT (BCP 127)
req1    must    the behaviour required of each protocol that is forwarded
        > The tables of RFC 4787, 5382, 5508, 7857.
req2    must    address pooling is paired by default
        > Always.
req3    should  no limit of the pool's size or contiguity
        > `pool.prefixes` is a list; single addresses, gaps and any order will do. `krononat pool add` adds while it runs.
req4    must    a subscriber's external ports and identifiers can be limited
        > `limits.ports`, `pool.max-blocks-per-subscriber`.
req4a   must    these limits are configurable
        > For all, for a prefix, for one subscriber, for a device behind him.
req4b   may     and so for each protocol
        > `limits.tcp`, `limits.udp`, `limits.icmp`, `limits.other`, each with a reserve that the others leave.
req4c   should  a subscriber's use of the processor can be limited
        > `limits.rate`, `limits.burst`: new sessions a second.
req5    should  memory for state is limited, each mapping's and each subscriber's
        > `limits.sessions`, `limits.sessions-per-port`; no mapping has more than 65,535 sessions.
req5a   should  these limits are configurable
        > As those of REQ-4.
req5b   should  so is the rate at which state is taken
        > `limits.rate`.
req6    must    translation can be switched off for destinations and ports
        > `[[bypass]]`, by subscriber, destination, protocol and ports.
req7    should  endpoint-independent filtering
        > The default of `pool.filtering`.
req8    should  a freed port rests for 120 s
        > `nat.hold-down-s`.
req8a   may     but for TCP that is tracked until it is closed
        > n/a: TCP rests, too; the exception is allowed, not asked for.
req8b   may     but for blocks that are assigned for ever
        > n/a: the exception is allowed, not asked for.
req8c   may     but where filtering was by address
        > n/a: the exception is allowed, not asked for.
req9    must    a protocol by which subscribers control mappings, PCP by preference
        > `pcp.enabled`: PCP (RFC 6887) and, with `pcp.nat-pmp`, NAT-PMP (RFC 6886); off by default. `krononat mappings list`
        > shows what was asked for. The operator gives static mappings (`[[mapping]]`).
req10   should  it can be managed
        > n/a: by Prometheus (`krononat metrics`) and JSON (`-o json`) rather than the NAT-MIB, which RFC 7659 replaced.
req11a  must    where no mapping can be made the packet is dropped
        > Always.
req11b  should  and its sender told: unreachable, code 1
        > `icmp.refusal-code`: 1 by default, 13 as RFC 5508 REQ-8 has it, or -1: silence; limited in rate.
req11c  should  and management notified
        > The log of events (`krononat events`), at most once a second for each subscriber; counters for each reason.
req11d  must    and no mapping deleted to make room
        > Never.
req12   should  destinations are not logged
        > `log.events = "blocks"`, the default, knows none, nor does `"mappings"`; `"sessions"` does.
req13   should  ports are used well
        > Blocks are small, and further ones are given as the first are full.
req14   should  little is logged
        > One line for a block, not for a mapping.
req15   should  ports are hard to guess
        > Derived by a keyed function within the subscriber's blocks, and so are the blocks.

6887 Port Control Protocol
sec7.3  must    options that must be obeyed are, or the request is refused; others are passed over
        > Always.
sec8.2  must    requests are checked in order, and errors say what was wrong
        > Always; what is no request, or comes from no subscriber of this core, is not answered, nor is who asks too often
        > (`pcp.requests-each`, `pcp.requests-per-second`). A host that floods is in the way of those alone who share one of
        > eight sockets with it; a subscriber who floods from many addresses can be in the way of all.
sec8.5  must    the epoch goes on as long as no mapping is lost, and begins anew where one may have been
        > Of each shard: it goes on in another worker, and begins anew at another core.
sec11.3 must    MAP: an endpoint that stays the same for whoever has the nonce
        > Of one port of TCP or UDP; all ports, all protocols and others are UNSUPP_PROTOCOL. Never ports 5350 and 5351 of UDP.
sec12   may     PEER: the lifetime of a connection's mapping is asked for
        > no: UNSUPP_OPCODE. A MAP of the same internal port keeps the mapping as well, as all of its remotes share it.
sec13.1 may     THIRD_PARTY: one host asks for another
        > `pcp.third-party`, off by default, and within one subscriber only; else UNSUPP_OPTION, or NOT_AUTHORIZED.
sec13.2 should  PREFER_FAILURE: the suggested endpoint or none
        > Always. A port must lie in a block of the subscriber's, or in one that can become his.
sec13.3 must    FILTER: only some remotes may come in by a mapping
        > no: UNSUPP_OPTION. Filters are a pool's; a mapping that was asked for lets everyone in, but for what rules drop.
sec14   should  clients learn soon that state was lost
        > Hosts whose mappings another core has taken over are sent an ANNOUNCE each.
sec14.1 must    ANNOUNCE is answered
        > With the epoch.
sec15   should  lifetimes are neither too short nor too long
        > `pcp.min-lifetime-s`, `pcp.max-lifetime-s`: 120 s and a day. A port that rests is given to the client that had it.
sec15.1 must    lifetime 0 ends what was asked for, and nothing else
        > Sessions that use the mapping go on, and with them the mapping; who repeats himself is told the same again.

6886 NAT Port Mapping Protocol
-       may     what PCP came from is served beside it
        > `pcp.nat-pmp`, on by default where PCP is on; without it its clients are told to speak PCP (RFC 6887 appendix A).

7723 PCP anycast address
-       may     the server is reached at an address that is everywhere the same
        > `pcp.anycast`: 192.0.0.9.

7422 Deterministic mapping
-       may     mappings can be computed from the configuration, both ways
        > `pool.allocation = "deterministic"`; `krononat pool forward` and `reverse` need nothing but the file. What
        > `overflow` adds for whoever has used his ports up is dynamic, and logged.

6864 Identification of IPv4
-       must    packets of several hosts that leave from one address in fragments keep identifications apart
        > See RFC 7857 section 10.

6056 Port randomisation
-       should  ports are chosen so that an attacker cannot foretell them
        > Algorithm 3 (simple hash) with a keyed PRF: same endpoint, same port while it is free; unrelated to its neighbour's.

6146 Connection states
sec3.5.2 must   the states of a connection and their timers
        > As figure 1 of RFC 7857 has them.

9293 TCP
-       must    half-closed connections live, closed ones can be opened again
        > Always.

1812 Routers
-       must    errors of our own: their source, their quote, their rate
        > From the port they came by, quoting what was received as its sender sent it, at most 576 bytes.

4884 ICMP extensions
-       must    extensions behind the embedded packet are not part of it
        > They pass; from inside without what names interfaces or addresses (RFC 5837).

3022 Traditional NAT
-       must    no internal address is seen outside, not even inside an ICMP error
        > Embedded packets are translated; what cannot be is not sent.

8326 Graceful BGP session shutdown
-       may     routes that are about to go are marked, so that others are taken first
        > A core that is drained marks its copies and aggregates with GRACEFUL_SHUTDOWN before anything moves, and a shard's own
        > routes when its successor has it; until then they rank behind any healthy owner's, and before every copy's.
"""
