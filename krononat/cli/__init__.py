"""The command line: one module per command, loaded when it is used, so that `krononat status` imports no compiler.

Data goes to stdout, all else to stderr; `-o json` everywhere; changes are shown before they are made; an error says
what, why, what next. Exit status: 0 done, 1 refused or failed, 2 usage, 3 not reachable, 4 not found, 5 timed out, 6 partial,
77 no privilege, 78 bad configuration.

Reading order: `groups` (names and abbreviations), `output` (tables and JSON), then any command.
"""

from __future__ import annotations

import sys

from krononat.cli.groups import Lazy
from krononat.client import Trouble

COMMANDS = {
    "run": ("krononat.cli.run:run", "Run the appliance in the foreground."),
    "status": ("krononat.cli.status:status", "Show how the appliance is doing."),
    "sessions": ("krononat.cli.sessions:sessions", "List, count, show or delete sessions."),
    "mappings": ("krononat.cli.mappings:mappings", "List mappings, and who keeps them: sessions, the file, subscribers."),
    "events": ("krononat.cli.events:events", "Show what was translated for whom: the log of NAT events."),
    "drops": ("krononat.cli.drops:drops", "Show what was dropped, why, and what to do about it."),
    "pool": ("krononat.cli.pool:pool", "Show the use of external addresses and ports."),
    "subscribers": ("krononat.cli.subscribers:subscribers", "Show who uses how much, and who was refused how often."),
    "shard": ("krononat.cli.shard:shard", "Show shards, move them, compare their copies."),
    "server": ("krononat.cli.server:server", "Show servers, empty one, fill it again, have one join or leave."),
    "replication": ("krononat.cli.replication:replication", "Show how the copies of shards are kept, have one made anew."),
    "bgp": ("krononat.cli.bgp:bgp", "Show what the network is told, and whether it listens."),
    "fabric": ("krononat.cli.fabric:fabric", "Print what the switches around the cores must be told."),
    "speaker": ("krononat.cli.speaker:speaker", "Hold the BGP sessions of this server's cores."),
    "bfd": ("krononat.cli.bfd:bfd", "Show whether the neighbours hear us: sessions of BFD."),
    "metrics": ("krononat.cli.metrics:metrics", "Serve figures for Prometheus."),
    "quarantine": ("krononat.cli.quarantine:quarantine", "Show or forget what is dropped because workers died of it."),
    "worker": ("krononat.cli.worker:worker", "Replace the worker by a new process, without a packet lost."),
    "trace": ("krononat.cli.trace:trace", "Follow one packet through a copy of the state, stage by stage."),
    "plan": ("krononat.cli.plan:plan", "Compute a cluster on paper: placement, movement, announcements."),
    "cluster": ("krononat.cli.cluster:cluster", "Make the key of a core, check the map of a cluster."),
    "config": ("krononat.cli.config:config", "Check, show, explain or begin a configuration."),
    "doctor": ("krononat.cli.doctor:doctor", "Check whether this machine can run the appliance."),
    "compile": ("krononat.cli.compile:compile", "Fill the compiler's cache, so that no packet waits for it."),
    "compliance": ("krononat.cli.compliance:compliance", "Show what the RFCs ask, our answer, and the tests that show it."),
    "lab": ("krononat.lab.commands:lab", "Clients, appliance and Internet in network namespaces."),
    "bench": ("krononat.cli.bench:bench", "Measure."),
    "completion": ("krononat.cli.completion:completion", "Print the completion script of a shell."),
}

EPILOG = "Commands may be shortened as long as they stay unique: `krononat ses l` is `krononat sessions list`."

root = Lazy(
    "krononat",
    COMMANDS,
    help="Carrier NAT and stateful firewall: see and steer the cores of a running appliance, or run one.",
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


def main() -> None:
    """Entry point of `krononat`."""
    try:
        root(prog_name="krononat")
    except Trouble as trouble:
        print(trouble.told(), file=sys.stderr)
        sys.exit(trouble.status)
