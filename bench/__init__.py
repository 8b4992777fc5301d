"""Figures, always with their environment, their spread and a loss beside them: memory, memif and veth are never mixed.

Read `report` (what a result is, and the command that each bench becomes), `environment`, `traffic` (established flows) and
`flows` (new ones); then a bench: `tables` (the index), `path`, `connections`, `memory`, `scale`, `replication`, `memif`,
`wire`, `start`, `crash`, `routes`, `migrate`, `failover`; then `all`, with `plots`, and `compare`.

What they are made of: `rte_hash` (a driver in C) for tables; `conntrack` for connections; `testpmd` (a child process),
`paced` (a generator over memif, by `clock`) for memif; `survivors` for crash; `switch` (BIRD) for routes; the folder `cluster`
for replication, migrate and failover; `veths`, `devices`, `generator`, `sink`, `probes` and `search` for wire. `test_*.py` are
index and path under pytest-benchmark. docs/benches.md says what each shows and how to read it.
"""
