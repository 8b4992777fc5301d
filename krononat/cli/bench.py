"""`krononat bench`: measurements, each in a module of the folder `bench`."""

from __future__ import annotations

from krononat.cli.groups import Lazy

bench = Lazy(
    "bench",
    {
        "tables": ("bench.tables:tables", "The index in memory, beside DPDK's rte_hash."),
        "path": ("bench.path:path", "The packet path in memory, beside the bare lookup."),
        "connections": ("bench.connections:connections", "New sessions a second, and their end."),
        "memory": ("bench.memory:memory", "Bytes per connection, computed and measured."),
        "scale": ("bench.scale:scale", "Two cores in memory, beside one."),
        "memif": ("bench.memif:memif", "The loop with I/O over memif, beside testpmd."),
        "wire": ("bench.wire:wire", "AF_XDP on veth, beside the kernel and testpmd."),
        "start": ("bench.start:start", "From a start to the first packet, and the compiler's time."),
        "crash": ("bench.crash:crash", "The worker killed at random moments, without a backup."),
        "replication": ("bench.replication:replication", "What replication costs a core in memory."),
        "routes": ("bench.routes:routes", "Routes that follow when shards move, through ExaBGP to BIRD."),
        "migrate": ("bench.migrate:migrate", "A shard moved again and again under traffic."),
        "show": ("bench.showing:show", "A cluster moved, drained, broken and mended, in one table."),
        "events": ("bench.events:events", "What happens to a cluster that routes by itself."),
        "overload": ("bench.overload:overload_bench", "Twice what a core can take: who notices?"),
        "attack": ("bench.attack:attack_bench", "Three subscribers misbehave; the others lose nothing."),
        "rooms": ("bench.rooms:rooms", "A whole room is lost, another one serves, and it comes back."),
        "failover": ("bench.failover:failover", "The primary dies, the backup sleeps, the link is cut."),
        "verify": ("bench.verify:verify", "Divergences are planted in a copy, and to be found."),
        "all": ("bench.all:everything", "All of them, with a report and plots."),
        "compare": ("bench.compare:compare", "What changed between two reports beyond the noise."),
    },
    help="Measure; never mix figures of kinds. What each shows: docs/benches.md.",
)
