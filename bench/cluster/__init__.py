"""Traffic through a cluster laboratory that remembers what it did: what was lost, what arrived twice, what moved.

Reading order: `ledger` (what is told and remembered), `ends` (an AF_XDP socket of ours at the edge), `packets` (what is written
and read there), `tcp` (connections that are really opened, and asked again later), `datagrams` (a population of UDP sessions; a
numbered stream both ways), `generator` (the compiled loop that plays subscribers and Internet at once, in a thread), `scene` (a
laboratory with a generator), `moving` (one move, watched), `programs` (iperf3, curl and scp, which go on meanwhile),
`stillness` (CPUs that do nothing of ours for a while). `pair` is without a laboratory: cores in memory that replicate from
process to process.
"""
