"""Krononat: a carrier NAT of small parts. This folder is the appliance around the packet path.

Reading order: `values` and `models` say what a configuration is, `config` reads one; `locate`, `fields`, `mend` and
`checks` complain about it, all at once; `starter` is the file to begin with. `appliance` composes a core's memory from it;
`supervisor` sets all up, with `interfaces`, `memory`, `crew` (of `member`s), `quarantine` and `neighbours`; `standby` is a
core's process until it takes over, `warm` what it loads meanwhile, `worker` its loop, which goes on without its supervisor
(`orphan`) until the next one takes it over (`heir`). `cluster` is the map of the other
cores, `replica` what the loop does for them, `reach` how long a packet to them may be; `lines` are a core's memif ports,
with `memif`, the handshake, and `tap`, the kernel's share. `capacity` says what a memory holds.

From outside `client` asks (`control`, `answers` and `cluster_answers` reply), `view` reads a core's memory and `natlog` the
log in it, `trace` and `packet` follow a packet through a copy of it, `doctor` examines the machine; `cli` is how people do
all this, `lab` where they try it.
"""

__version__ = "0.1.0"
