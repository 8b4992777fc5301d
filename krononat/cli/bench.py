"""`krononat bench`: measurements, each in a module of the folder `bench`."""

from __future__ import annotations

from krononat.cli.groups import Lazy

bench = Lazy(
    "bench",
    {
        "path": ("bench.path:path", "The packet path in memory, without I/O."),
        "tables": ("bench.tables:tables", "The index in memory."),
    },
    help="Measure; never mix figures of kinds.",
)
