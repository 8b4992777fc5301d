"""The file that `krononat config init` prints."""

STARTER = """\
# A core of Krononat. `krononat config explain KEY` tells what a key means, `krononat config check FILE` whether all is right.
# What stands behind a # is the default.

[server]
name = "nat1"
# core = 0                      # its number among those of the server
# cpu = 1                       # default: the last one it may run on
# orphan-s = 30                 # a worker whose supervisor was killed goes on so long, until `krononat run` takes it over

[interfaces.internal]           # towards the subscribers
name = "eth1"
address = "100.64.0.1/24"
gateway = "100.64.0.254"        # next hop to subscribers that are not on-link
# mtu = 1500                    # default: what the interface has
# vlan = 0                      # 802.1Q tag; 0: untagged
# checksums = "auto"

[interfaces.external]           # towards the Internet
name = "eth2"
address = "192.0.2.2/24"
gateway = "192.0.2.1"

# memif = { socket = "/run/vpp/memif.sock", id = 0 }   # shared memory with VPP or DPDK instead of a device: docs/memif.md

# Several of a side, one to each switch, are [[interfaces.internal]] and [[interfaces.external]]; and for the other cores then
# an address that outlives each of them (docs/ports.md):
# [interfaces.loopback]
# address = "10.254.0.1/24"
# side = "internal"

# Instead of these two, a router on a stick:
# [interfaces.both]
# name = "eth1"
# address = "192.0.2.2/24"
# internal-gateway = "192.0.2.254"
# external-gateway = "192.0.2.1"

[io]
# xdp-mode = "auto"             # native, generic
# busy-poll = false
# spare = true                  # a second process that takes over at once if the worker dies
# frames = 8192

[memory]
sessions = 1_000_000

[[subscribers]]
prefix = "100.64.0.0/20"
pool = "main"
# each = 32                     # prefix length of one subscriber
limits = { sessions = 2000, ports = 1000, rate = 200 }

# One subscriber with something of its own:
# [[subscribers.subscriber]]
# prefix = "100.64.0.7/32"
# limits = { sessions = 0 }
# rules = [ { protocol = "udp", remote-ports = "53", action = "accept" } ]
# mappings = [ { protocol = "tcp", internal = "100.64.0.7:80", external = "203.0.113.1:80" } ]

[[pool]]
name = "main"
prefixes = ["203.0.113.0/26"]
# shard = 0                     # what moves between cores, with its subscribers
# ports = "1024-65535"
# block-size = 512
# max-blocks-per-subscriber = 8
# allocation = "dynamic"        # "deterministic": each has the ports that are his by this file alone (RFC 7422)
# filtering = "endpoint-independent"            # or of each protocol: { tcp = "address-dependent" }

[nat]
# hairpin = true
# hold-down-s = 120
# mss-clamp = 0
# inbound-refresh = false
# unsolicited-syn = "silent"    # or "unreachable", after six seconds (docs/limits.md)
# other-protocols = ["gre", "esp", "sctp", "ipip", "6in4"]   # IPv4 beside TCP, UDP, ICMP (docs/protocols.md)

[pcp]                           # subscribers ask for mappings by PCP or NAT-PMP: docs/pcp.md
# enabled = false
# anycast = false               # at 192.0.0.9, too (RFC 7723)
# mappings-each = 64

[timeouts]                      # seconds
# tcp-established = 7440
# tcp-transitory = 240          # or tcp-transitory-open and tcp-transitory-closing
# udp = 300
# icmp = 60
# generic = 300                 # every other protocol
# port = [{ protocol = "udp", ports = "53", seconds = 10 }]     # by destination port

[icmp]
# errors-per-second = 100
# reject-code = 13
# towards = ["internal", "external"]            # which sides are told by ICMP errors of ours
# refusal-code = 1              # to subscribers whose session is refused by a limit, or for want of ports; -1: none

[alarms]                        # percent in use; `krononat status` and metrics have them
# warning = 80
# critical = 90
# clear = 5

[log]
# events = "blocks"             # off, blocks, mappings, sessions; `krononat events` shows them

[[rule]]                        # the first match decides; without one outbound is accepted
direction = "outbound"
protocol = "tcp"
remote-ports = "25"
action = "reject"

# One of several cores, on several servers (docs/replication.md); each [[pool]] then says `shard = N`, all cores the same:
# [cluster]
# map = "/etc/krononat/map.toml"                # `krononat cluster check` tells whether it and this file agree
# store = []                                    # or an etcd that holds the map: ["http://10.0.0.1:2379"]; docs/placement.md
# store-prefix = "/krononat"
# room-for-cores = 0            # how many a newer map may have while this one runs; 0: twice as many as now, 16 at least
# key-file = "/etc/krononat/nat1.key"           # of this core: `krononat cluster key FILE` makes it
# port-key-file = "/etc/krononat/cluster.key"   # the same on every server: ports are derived with it
# dead-after-ms = 150
# join-after-ms = 3000
# grace-s = 10
# quiet-ms = 1000
# replication-threshold-s = 0   # above 0: flows that end sooner (DNS) are not replicated
# replicate-hold-down = true   # false: copies do not know which ports rest after use
# silent-room = "apart"         # what a reserve makes of a home it does not hear: wait, apart, dead; docs/replication.md

# [control]
# socket = "/run/krononat/nat1.sock"    # in a cluster: nat1-0.sock
"""
