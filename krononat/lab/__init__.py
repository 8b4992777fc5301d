"""The laboratory: real clients and servers around one appliance, in network namespaces of this machine.

Reading order: `topology` (what is connected to what, drawn), `cluster` and `steering` (several servers, and the router that
divides shards among them), `legs`, `fabric`, `routers`, `switches`, `seen`, `overview` (the same with switches that route),
`namespaces` (every command to the kernel), `servers` (nginx, dnsmasq, iperf3, and `gathering`, the server that lets everybody
wait for everybody), `laboratory` (up, down, and what survives a crash), `traffic` (one function a claim), `crash` (the worker
is killed), `faults` and `chaos` (what befalls a cluster), `leaks`, `witness` and `conservation` (where every packet went),
`demo` (all of it, as ./run.sh does), `report`, `picture` and `graph`, `commands` and `cluster_commands`.
"""
