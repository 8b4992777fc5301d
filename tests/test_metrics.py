"""What Prometheus is told: names, labels and figures, as its own parser reads them."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from krononat import client, metrics
from krononat.lab import namespaces
from krononat.lab.cluster import Wanted
from krononat.lab.laboratory import PROGRAMS, Lab, living
from krononat.metrics import FAMILIES, Core, Metrics, samples
from shards.state import ROLES
from shards.verdict import DROP, FORWARDED_OUT, PCP_DROPPED, PCP_GRANTED, PCP_REFUSED, PCP_REQUESTS, TABLE_FULL, VERDICTS
from tests.bare_core import Core as Rows
from tests.fuzz import RICH, bed
from tests.test_cli import Run, run

pytestmark = pytest.mark.company

__all__ = ["run"]

STATUS: dict[str, Any] = {
    "server": "s1", "uptime_s": 60.0, "quarantined": {"signatures": 2, "frames": 9}, "packets": {"received": 777},
    "worker": {"ready": True, "restarts": 3, "cpu_percent": 41.5, "longest_breath_us": 1500, "rest_ms": 6},
    "ports": [
        {"interface": "in0", "side": "internal", "xdp_mode": "native",
         "sockets": {"rx_dropped": 1, "rx_invalid": 2, "tx_invalid": 4, "rx_ring_full": 8, "fill_ring_empty": 16}},
        {"interface": "memif0", "side": "external", "xdp_mode": "memif"},
    ],
}  # fmt: skip
SHARD = {"shard": 0, "role": "active", "active": "s1/0", "epoch": 7, "in_sync": True, "alarms": ["one", "two"]}
LINK = {
    "shard": 0, "peer": "s2/0", "role": "active", "lag_s": 0.25, "lag_records": 10, "lag_bytes": 640, "resyncs": 1, "gaps": 5,
    "refused": {"lost": 3, "key": 0},
}  # fmt: skip


def told(**more: Any) -> Core:
    """A core with some figures, alone."""
    rows = Rows(bed(RICH), 0)
    rows.state.counters[FORWARDED_OUT, 0], rows.state.counters[TABLE_FULL, 0] = 1000, 4
    given = Core("s1/0", STATUS, ["home"], rows.state, [], [], [], {})
    return given._replace(**more)


def in_cluster() -> Core:
    """The same core in a cluster of two."""
    cores = [{"core": "s1/0", "evidence": "alive"}, {"core": "s2/0", "evidence": "silent"}]
    gone = {**SHARD, "shard": 1, "role": "absent", "active": "s2/0", "in_sync": None, "alarms": []}
    tallies = {"moves": {"done": 2, "failed": 1}, "failovers": 4, "mismatch": 0, "faults": 0}
    return told(shards=[SHARD, gone], cores=cores, links=[LINK], tallies=tallies)


def scraped(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Figures by name and labels."""
    families = text_string_to_metric_families(text)
    return {(each.name, frozenset(each.labels.items())): each.value for family in families for each in family.samples}


def figure(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    """One of them."""
    return found[f"krononat_{name}", frozenset({"core": "s1/0", **labels}.items())]


@pytest.fixture
def scrape(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What is scraped where a core says so; a path that begins with "dead" is one that does not answer."""

    def scrape(core: Core, *paths: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        def gather(path: str) -> Core:
            if path.startswith("dead"):
                raise client.Trouble("nobody there")
            return core

        monkeypatch.setattr(metrics, "gather", gather)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Metrics(lambda: paths or ("one",)))
        return scraped(generate_latest(registry).decode())

    yield scrape


def test_figures_of_a_core_that_is_alone(scrape: Any) -> None:
    found = scrape(told())
    assert figure(found, "ready") == 1 and figure(found, "worker_restarts_total") == 3
    assert figure(found, "packets_total", direction="out") == 1000 and figure(found, "received_packets_total") == 777
    assert figure(found, "drops_total", reason="table_full") == 4
    assert figure(found, "core_busy_ratio") == 0.415 and figure(found, "longest_breath_seconds") == 0.0015
    assert figure(found, "chores_rest_seconds") == 0.006
    assert figure(found, "rx_ring_overruns_total", interface="in0") == 8
    assert figure(found, "socket_drops_total", interface="in0") == 7
    assert figure(found, "pool_blocks", pool="home") == 4032
    assert figure(found, "pool_blocks_free", pool="home") == 4031  # a static mapping has one
    assert not any(name.startswith("krononat_shard") or name.startswith("krononat_replication") for name, _ in found)


def test_figures_of_a_core_in_a_cluster(scrape: Any) -> None:
    found = scrape(in_cluster())
    assert [figure(found, "shard_role", shard="0", role=role) for role in ROLES] == [role == "active" for role in ROLES]
    assert figure(found, "shard_in_sync", shard="0") == 1 and figure(found, "shard_epoch", shard="0") == 7
    assert ("krononat_shard_in_sync", frozenset({("core", "s1/0"), ("shard", "1")})) not in found  # not known here
    assert (figure(found, "shard_owned", shard="0"), figure(found, "shard_owned", shard="1")) == (1, 0)  # s2/0 is silent
    assert figure(found, "alarms", shard="0") == 2 and figure(found, "peer_alive", peer="s2/0") == 0
    assert figure(found, "replication_lag_seconds", shard="0", peer="s2/0") == 0.25
    assert figure(found, "replication_gaps_total", peer="s2/0") == 5
    assert figure(found, "replication_refused_total", reason="lost") == 3
    assert figure(found, "migrations_total", result="done") == 2 and figure(found, "failovers_total") == 4


def test_figures_of_what_subscribers_asked_for(scrape: Any) -> None:
    core = told()
    for meter, count in ((PCP_REQUESTS, 10), (PCP_REFUSED, 2), (PCP_DROPPED, 3), (PCP_GRANTED, 4)):
        core.state.counters[meter, 0] = count
    core.state.grants["origin"][1:5] = 1
    found = scrape(core)
    results = [figure(found, "pcp_requests_total", result=result) for result in ("served", "refused", "dropped")]
    assert results == [5, 2, 3] and figure(found, "asked_mappings") == 4
    assert [figure(found, "pcp_mappings_total", event=event) for event in ("granted", "ended")] == [4, 0]


def test_a_core_that_does_not_answer_hides_no_other(scrape: Any) -> None:
    found = scrape(in_cluster(), "one", "dead")
    assert found["krononat_answers", frozenset({("socket", "one")})] == 1
    assert found["krononat_answers", frozenset({("socket", "dead")})] == 0
    assert figure(found, "ready") == 1


def test_every_sample_is_of_a_family_with_these_labels() -> None:
    found = list(samples(in_cluster()))
    assert {name for name, _, _ in found} == FAMILIES.keys() - {"build_info", "answers"}
    assert all(len(labels) == len(FAMILIES[name].labels) for name, labels, _ in found)
    assert len({(name, labels) for name, labels, _ in found}) == len(found)
    assert sum(name == "drops" for name, _, _ in found) == sum(verdict.fate == DROP for verdict in VERDICTS)


def test_alerts_speak_of_metrics_that_there_are() -> None:
    text = (Path(__file__).parents[1] / "contrib/prometheus/alerts.yml").read_text()
    used = set(re.findall(r"krononat_([a-z_]+)", text))
    known = {name + ("_total" if kind.made.__name__.startswith("Counter") else "") for name, kind in FAMILIES.items()}
    assert used and used <= known


@pytest.mark.parametrize("listen", ["9642", "host", "127.0.0.1:99999", "127.0.0.1:x"])
def test_a_wrong_address_is_refused(run: Run, listen: str) -> None:
    status, out, err = run("metrics", "--listen", listen)
    assert (status, out) == (2, "") and "is not ADDRESS:PORT" in err


def test_where_nothing_runs_it_says_so(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FOLDER", tmp_path)
    status, out, err = run("metrics", "--once")
    assert (status, out) == (client.NOT_REACHABLE, "") and "no appliance is running here" in err


# --- with real cores ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    """Two servers and two shards."""
    try:
        namespaces.need(*PROGRAMS)
    except client.Trouble as trouble:
        pytest.skip(f"{trouble.what}: {trouble.why}")  # under CI=true conftest makes it a failure
    lab = Lab.of_cluster("kme", Wanted(2, 2, sessions=10_000))
    with living(lab, lambda _: None):
        yield lab


@pytest.mark.lab
def test_real_cores_are_scraped(cluster: Lab, run: Run) -> None:
    paths = [str(cluster.socket_of(node)) for node in ("s1", "s2")]
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    owners: list[frozenset[tuple[str, str]]] = []
    until = time.monotonic() + 20
    while len(owners) < 2 and time.monotonic() < until:  # each shard has one, as soon as the cores have heard each other
        status, out, err = run("metrics", "--once", "--socket", paths[0], "--socket", paths[1])
        assert (status, err) == (0, "")
        found = scraped(out)
        roles = [labels for (name, labels), value in found.items() if name == "krononat_shard_role" and value == 1]
        owners = [labels for labels in roles if ("role", "active") in labels]
    assert len(owners) == 2
    assert [found["krononat_answers", frozenset({("socket", path)})] for path in paths] == [1, 1]
    assert figure(found, "ready") == 1 and 0 <= figure(found, "core_busy_ratio") <= 2
    assert all(value == 0 for (name, _), value in found.items() if name == "krononat_replication_faults_total")
