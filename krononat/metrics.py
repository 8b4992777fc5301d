"""What Prometheus is told of the cores of a machine: their control sockets and memories, asked anew at each scrape.

    families    every metric: a drawn table of name, labels and sentence
    gather      what a core says, in one piece          samples     the figures in it, by family
    Metrics     all cores as a collector of prometheus-client

Labels are bounded: cores, shards, pools, interfaces and words, never addresses or subscribers. A counter begins at nothing
again when its process does. A core that does not answer has `krononat_answers` 0 and nothing else.
"""

from __future__ import annotations

import os
import platform
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from krononat import client, usage, view
from shards.state import ROLES, State

PREFIX = "krononat"

# kind, name, labels, sentence. Units are in names; counters get their `_total` from prometheus-client.
_PICTURE = """
gauge    build_info               version,python,numba,kernel  what runs here; always 1
gauge    answers                  socket           whether the core behind a control socket answers
gauge    ready                    core             whether its worker forwards packets
gauge    start_time_seconds       core             when its supervisor began, since 1970
counter  worker_restarts          core             workers that had to be replaced
gauge    quarantined              core             signatures of frames that are dropped because workers died of them
gauge    core_busy_ratio          core             of its CPU that the worker takes
gauge    longest_breath_seconds   core             longest time that a packet waited for the loop, since the worker began
gauge    chores_rest_seconds      core             for how long chores are put off, since others take the core's CPU
counter  received_packets         core             packets that came, those for the kernel included
counter  packets                  core,direction   packets forwarded
counter  drops                    core,reason      packets dropped; `krononat drops` has a sentence for each reason
counter  unasked                  core,outcome     connections asked for by SYNs that nothing permits: told, withdrawn, overflow
gauge    sessions                 core,shard       living sessions, those of copies too
gauge    mappings                 core,shard       living mappings, those of copies too
counter  sessions_created         core             sessions begun here
counter  sessions_ended           core,reason      sessions ended here
gauge    session_table_fill_ratio  core            of the index that is in use
gauge    memory_fill_ratio        core             of the extents for rows that are in use
gauge    asked_mappings           core             mappings that subscribers asked for by PCP or NAT-PMP
counter  pcp_requests             core,result      what hosts sent to the PCP server: served, refused by an error, dropped
counter  pcp_mappings             core,event       mappings granted, and ended (given up, or their lifetime was over)
gauge    pool_blocks              core,pool        blocks of ports of a pool
gauge    pool_blocks_free         core,pool        of these nobody's
gauge    alarm_level              core,what,pool   how bad it is that something is nearly full: 1 warning, 2 critical
counter  alarms_raised            core,what,pool   times that it became worse
gauge    strained_subscribers     core             subscribers that have nearly all the blocks that they may have
gauge    interface_info           core,interface,side,xdp_mode  interfaces; always 1
counter  rx_ring_overruns         core,interface   frames that found the receive ring full
counter  fill_ring_empty          core,interface   times that the kernel had no frame to receive into
counter  socket_drops             core,interface   frames that a socket lost for another reason
gauge    shard_role               core,shard,role  1 for what the core is to the shard
gauge    shard_in_sync            core,shard       whether the copy is whole; only of cores that know it
gauge    shard_epoch              core,shard       counts the owners of a shard
gauge    shard_owned              core,shard       whether the core knows of an owner that it can hear
gauge    alarms                   core,shard       alarms that `krononat replication status` tells
gauge    peer_alive               core,peer        whether another core is heard
gauge    replication_lag_seconds  core,shard,peer  age of the oldest change that the peer may not have
gauge    replication_lag_records  core,shard,peer  changes that the peer may not have
gauge    replication_queue_bytes  core,shard,peer  of these on their way
counter  replication_resyncs      core,shard,peer  copies that had to begin anew
counter  replication_gaps         core,peer        interruptions of what a peer sends
counter  replication_refused      core,reason      frames of peers that were not taken
counter  replication_mismatch     core             rows that `krononat shard verify` found to differ
counter  migrations               core,result      moves that were begun here and are over
counter  failovers                core             times that the core took a shard over without being given it
counter  replication_faults       core             faults of Krononat's in replication; packets are forwarded all the same
"""


class Kind(NamedTuple):
    """A line of the picture."""

    made: type[CounterMetricFamily] | type[GaugeMetricFamily]
    labels: tuple[str, ...]
    sentence: str


def _parse(picture: str) -> dict[str, Kind]:
    made = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
    lines = (line.split(None, 3) for line in picture.strip().splitlines())
    return {name: Kind(made[kind], tuple(labels.split(",")), told) for kind, name, labels, told in lines}


FAMILIES = _parse(_PICTURE)

Sample = tuple[str, tuple[str, ...], float]  # family, values of its labels, figure
Rows = list[dict[str, Any]]


class Core(NamedTuple):
    """What a core says. Of the cluster nothing, where it belongs to none."""

    name: str
    status: dict[str, Any]
    pools: list[str]
    state: State
    shards: Rows
    cores: Rows
    links: Rows
    tallies: dict[str, Any]


def gather(path: str) -> Core:
    """Ask the core with this control socket; Trouble where it does not answer."""
    status = client.ask(path, {"do": "status"})["status"]
    config = tomllib.loads(client.ask(path, {"do": "config"})["config"])
    server = config.get("server", {})
    name, pools = f"{server.get('name', status['server'])}/{server.get('core', 0)}", [row["name"] for row in config["pool"]]
    descriptor = client.memory(path)
    try:
        state = view.open_view(descriptor)
    finally:
        os.close(descriptor)
    if "cluster" not in config:
        return Core(name, status, pools, state, [], [], [], {})
    tallies = client.ask(path, {"do": "tallies"})["tallies"]
    shards, cores, links = (client.rows(path, what)[1] for what in ("shards", "cores", "replication"))
    return Core(name, status, pools, state, shards, cores, links, tallies)


# --- samples --------------------------------------------------------------------------------------------------------------


def samples(core: Core) -> Iterator[Sample]:
    """All figures of a core."""
    for part in (_process, _packets, _rows, _asked, _pools, _alarms, _interfaces, _shards, _links, _tallies):
        for family, labels, figure in part(core):
            yield family, (core.name, *labels), float(figure)


def _process(core: Core) -> Iterator[Sample]:
    worker = core.status["worker"]
    yield "ready", (), worker["ready"]
    yield "start_time_seconds", (), round(time.time() - core.status["uptime_s"], 1)
    yield "worker_restarts", (), worker["restarts"]
    yield "quarantined", (), core.status["quarantined"]["signatures"]
    yield "core_busy_ratio", (), worker["cpu_percent"] / 100
    yield "longest_breath_seconds", (), worker["longest_breath_us"] / 1e6
    yield "chores_rest_seconds", (), worker["rest_ms"] / 1000


def _packets(core: Core) -> Iterator[Sample]:
    counters = view.counters(core.state)
    yield "received_packets", (), core.status["packets"]["received"]
    for direction, counter in (("out", "forwarded_out"), ("in", "forwarded_in"), ("hairpin", "hairpinned")):
        yield "packets", (direction,), counters[counter]
    for drop in view.drops(core.state):
        yield "drops", (drop.reason,), drop.packets
    for outcome in ("told", "withdrawn", "overflow"):
        yield "unasked", (outcome,), counters[f"unasked_{outcome}"]
    yield "sessions_created", (), counters["sessions_created"]
    for reason in ("expired", "deleted"):
        yield "sessions_ended", (reason,), counters[f"sessions_{reason}"]


def _rows(core: Core) -> Iterator[Sample]:
    for number in range(int(core.state.settings[0]["shards"])):
        for what in ("sessions", "mappings"):
            yield what, (str(number),), int(core.state.shards[number][what])
    totals = view.totals(core.state)
    yield "session_table_fill_ratio", (), totals["index_entries"] / totals["index_slots"]
    yield "memory_fill_ratio", (), totals["extents_used"] / totals["extents"]


def _asked(core: Core) -> Iterator[Sample]:
    counters = view.counters(core.state)
    refused, dropped = counters["pcp_refused"], counters["pcp_dropped"]
    yield "asked_mappings", (), int(np.count_nonzero(core.state.grants["origin"]))
    for result, figure in (
        ("served", counters["pcp_requests"] - refused - dropped),
        ("refused", refused),
        ("dropped", dropped),
    ):
        yield "pcp_requests", (result,), max(figure, 0)
    for event in ("granted", "ended"):
        yield "pcp_mappings", (event,), counters[f"pcp_{event}"]


def _pools(core: Core) -> Iterator[Sample]:
    for number, name in enumerate(core.pools):
        row = core.state.pools[number]
        yield "pool_blocks", (name,), int(row["externals"]) * (int(row["end_block"]) - int(row["first_block"]))
        yield "pool_blocks_free", (name,), int(row["blocks_free"])


def _alarms(core: Core) -> Iterator[Sample]:
    for row in usage.alarms(core.state, core.pools):
        if row.what == "subscribers":
            yield "strained_subscribers", (), row.strained
        else:
            yield "alarm_level", (row.what, row.pool), usage.LEVELS.index(row.level)
            yield "alarms_raised", (row.what, row.pool), row.raised


def _interfaces(core: Core) -> Iterator[Sample]:
    for port in core.status["ports"]:
        yield "interface_info", (port["interface"], port["side"], port["xdp_mode"]), 1
        if sockets := port.get("sockets"):
            yield "rx_ring_overruns", (port["interface"],), sockets["rx_ring_full"]
            yield "fill_ring_empty", (port["interface"],), sockets["fill_ring_empty"]
            lost = sockets["rx_dropped"] + sockets["rx_invalid"] + sockets["tx_invalid"]
            yield "socket_drops", (port["interface"],), lost


def _shards(core: Core) -> Iterator[Sample]:
    heard = {row["core"] for row in core.cores if row["evidence"] == "alive"}
    for row in core.shards:
        shard = (str(row["shard"]),)
        for role in ROLES:
            yield "shard_role", (*shard, role), row["role"] == role
        if row["in_sync"] is not None:
            yield "shard_in_sync", shard, row["in_sync"]
        yield "shard_epoch", shard, row["epoch"]
        yield "shard_owned", shard, row["active"] in heard
        yield "alarms", shard, len(row["alarms"])
    for row in core.cores:
        if row["core"] != core.name:
            yield "peer_alive", (row["core"],), row["evidence"] == "alive"


def _links(core: Core) -> Iterator[Sample]:
    for row in core.links:
        if row["shard"] is not None and row["role"] not in ("syncing", "passive"):  # of a copy its owner knows
            labels = str(row["shard"]), row["peer"]
            yield "replication_lag_seconds", labels, row["lag_s"]
            yield "replication_lag_records", labels, row["lag_records"]
            yield "replication_queue_bytes", labels, row["lag_bytes"]
            yield "replication_resyncs", labels, row["resyncs"]
    for peer, gaps in {row["peer"]: row["gaps"] for row in core.links}.items():
        yield "replication_gaps", (peer,), gaps
    for reason, frames in (core.links[0]["refused"] if core.links else {}).items():
        yield "replication_refused", (reason,), frames


def _tallies(core: Core) -> Iterator[Sample]:
    if not core.tallies:
        return
    for result, moves in core.tallies["moves"].items():
        yield "migrations", (result,), moves
    yield "failovers", (), core.tallies["failovers"]
    yield "replication_mismatch", (), core.tallies["mismatch"]
    yield "replication_faults", (), core.tallies["faults"]


# --- for Prometheus -------------------------------------------------------------------------------------------------------


def families(found: Sequence[Sample]) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
    """Samples as prometheus-client wants them, in the order of the picture."""
    for name, kind in FAMILIES.items():
        family = kind.made(f"{PREFIX}_{name}", kind.sentence, labels=kind.labels)
        for told, labels, figure in found:
            if told == name:
                family.add_metric(labels, figure)
        if family.samples:
            yield family


class Metrics(Collector):
    """The cores behind these control sockets; which those are is found out at each scrape."""

    def __init__(self, paths: Callable[[], Sequence[str]]) -> None:
        self._paths = paths

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Ask all of them."""
        found: list[Sample] = [("build_info", _build(), 1.0)]
        for path in self._paths():
            try:
                core = gather(path)
                found += [("answers", (path,), 1.0), *samples(core)]
            except client.Trouble:
                found.append(("answers", (path,), 0.0))
        return families(found)


def _build() -> tuple[str, ...]:
    return metadata.version(PREFIX), platform.python_version(), metadata.version("numba"), platform.release()
