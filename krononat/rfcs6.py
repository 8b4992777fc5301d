"""What the RFCs on IPv6 firewalls require, and our answer; written as `rfcs` is. There is no translation of IPv6 here."""

from __future__ import annotations

PICTURE = """
6092 Simple security for IPv6 customer premises equipment
-       must    what nobody inside asked for stays outside
        > Always, but for pinholes, filtering and transparency by configuration.
rec1    must    multicast sources are dropped
        > Always.
rec2    must    multicast does not leave its scope
        > No multicast is forwarded at all.
rec3    should  addresses that must not appear outside are not forwarded either way
        > Loopback, mapped, discard, ULA, site-local, link-local, multicast.
rec4    should  deprecated extension headers are dropped
        > Routing headers of type 0 and 1 always, others while segments are left, but type 2 (RFC 6275).
rec5    should  outbound: the source lies in an assigned prefix
        > `prefix6` of [[subscribers]]; all else is spoofed.
rec6    should  inbound: the source does not lie in a prefix inside
        > Always.
rec7    must    unique local addresses do not cross
        > Always.
rec8    should  no DNS service towards the outside
        > n/a: the appliance serves no DNS.
rec9    should  no DHCPv6 service towards the outside
        > n/a: the appliance serves no DHCP.
rec10   must    ICMPv6 unreachable and too big pass only about what has state
        > Always.
rec11   should  filtering of other protocols: endpoint-independent for transparency, else address-dependent
        > `subscribers.filtering6.other`, address-dependent by default.
rec12   must    state of other protocols outlives two minutes of silence, five by default
        > As UDP: `timeouts.udp`, 300 s.
rec13   must    a way to update the firmware
        > n/a: the operator's package management.
rec14   must    UDP state outlives two minutes, five by default
        > `timeouts.udp`, 300 s.
rec15   may     shorter for UDP to well-known ports
        > `timeouts.port`, a list: none is shorter by default.
rec16   must    outbound packets refresh UDP state, inbound ones may
        > Always; `nat.inbound-refresh` for inbound ones.
rec17   should  filtering of UDP, as REC-11
        > `subscribers.filtering6.udp`.
rec18   must    ICMPv6 errors about a UDP state pass
        > Always.
rec19   must    no ICMPv6 message ends a UDP state
        > Always.
rec20   should  UDP-Lite is treated as UDP
        > Always.
rec21   must    by default what carries AH, to and from hosts inside, is not blocked
        > It passes both ways, unasked too (`firewall6.unasked-ipsec`); AH is stepped over, what it protects is tracked. But
        > ICMPv6 goes by RFC 4890 and `firewall6.echo`, authenticated or not.
rec22   must    by default ESP is not blocked
        > It passes both ways, unasked too (`firewall6.unasked-ipsec`). What comes in makes no session, the host's answer
        > does, within his limits: a scan fills no table of sessions. Of addresses on-link that nobody has it takes rows of the
        > neighbours, for ten seconds each, as one by pings does.
rec23   must    ICMPv6 errors about ESP and AH pass
        > Always.
rec24   must    by default UDP to port 500, IKE's, is not blocked
        > As ESP. Not port 4500, which is for IPsec through NATs.
rec25   should  ESP state is by addresses and protocol, as other protocols'
        > Always: SPIs are not looked at.
rec26   must    by default HIP to and from hosts inside is not blocked
        > As ESP: its sessions are by addresses and protocol.
rec27   may     home address options and type 2 routing headers pass with the flow that they belong to
        > Both pass with the session of the care-of address, whatever the home address is: the mobile node itself refuses a
        > routing header to another than its own (RFC 6275 6.4). One with more than a single stop is `source_routed`.
rec28   may     Mobility headers of outbound and permitted flows pass
        > Out always; in by their state: by addresses and protocol.
rec29   may     with a flow of Mobility headers the tunnel between its ends passes in both directions
        > IPv4 and IPv6 in IPv6 come in unasked from whom a session of Mobility headers is with.
rec30   may     ICMPv6 errors about a flow of Mobility headers pass
        > Always.
rec31   must    every valid sequence of TCP, and simultaneous open
        > The same states as for IPv4.
rec32   must    no window is enforced where the window scale was not seen
        > None is ever.
rec33   should  filtering of TCP, as REC-11
        > `subscribers.filtering6.tcp`.
rec34   should  an unsolicited SYN is answered by "prohibited" after six seconds
        > By default: the same for every address of a subscriber, so it tells scanners nothing of hosts; from a bucket of its
        > own of `icmp.errors-per-second`. `firewall6.unsolicited-syn = "silent"` for those who want silence.
rec35   must    TCP: 2 h 4 min established, four minutes else
        > `timeouts.tcp-established`, `timeouts.tcp-transitory`.
rec36   must    ICMPv6 errors about a TCP state pass
        > Always.
rec37   must    no ICMPv6 message ends a TCP state
        > Always.
rec38   may     every valid sequence of SCTP
        > By addresses and ports, without states of its own.
rec39   may     an unsolicited SCTP INIT is answered after six seconds
        > As a SYN.
rec40   may     SCTP timers
        > n/a: as UDP's; longer ones are not asked of simple security.
rec41   may     ICMPv6 errors about SCTP pass
        > Always.
rec42   may     no ICMPv6 message ends an SCTP state
        > Always.
rec43   may     every valid sequence of DCCP
        > By addresses and ports, without states of its own.
rec44   may     DCCP timers
        > n/a: as UDP's.
rec45   may     ICMPv6 errors about DCCP pass
        > Always.
rec46   may     no ICMPv6 message ends a DCCP state
        > Always.
rec47   may     packets with Shim6 headers pass for outbound and permitted flows
        > Out always; in by their state: by addresses and protocol, whatever a payload header carries.
rec48   should  a protocol by which hosts ask for pinholes
        > By configuration: `[[pinhole]]`. PCP serves IPv4 only.
rec49   must    a way to switch it all off
        > `transparent` of [[subscribers]] and of a single subscriber.
rec50   must    no management service towards the outside
        > The CLI speaks over a Unix socket; metrics are served where `krononat metrics` is told to.

4890 Filtering of ICMPv6
sec4.3.1 must   must not be dropped: 1, 2, 3 code 0, 4 codes 1 and 2, 128, 129
        > Errors about what has state; echo from everyone (`firewall6.echo`).
sec4.3.4 must   must be dropped beyond a link: neighbour discovery, router discovery, redirects, multicast listeners
        > Always.

4443 ICMPv6
-       must    errors of our own: too big, time exceeded, unreachable; their quote, their rate
        > As much of the packet as 1,280 bytes allow; `icmp.errors-per-second`.

5722 Overlapping fragments of IPv6
-       must    a datagram with fragments that overlap is dropped, all of it
        > Always, and counted.

6946 Atomic fragments of IPv6
-       must    a fragment that is a whole datagram is treated as one
        > Always.

7112 Fragments with whole header chains
-       must    a first fragment has all headers up to the transport's
        > One that has not is dropped.

8201 Path MTU discovery
-       must    too big for the next link: the sender is told its MTU
        > Always.
"""
