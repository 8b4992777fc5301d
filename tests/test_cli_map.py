"""`krononat shard map`, `server join` and `leave`, the movers' lock, against cores with real control sockets and map file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from krononat import client
from krononat import cluster as maps
from krononat.cli import mapping
from krononat.etcd import Etcd
from krononat.mapstore import EtcdStore, Seen
from replication.placement import server_of
from shards.jit import PURE
from tests.etcd import Server
from tests.fake_cluster import CORES, Cluster, map_text
from tests.test_cli import Run, run
from tests.test_cli_cluster import cluster, lines

__all__ = ["cluster", "run"]

FOUR = (*CORES, "s4/0")


def newer(cluster: Cluster, folder: Path, cores: tuple[str, ...] = FOUR, version: int = 2) -> str:
    """A file with a map of the same shards."""
    (folder / "new.toml").write_text(map_text(cluster.shards, cores, version))
    return str(folder / "new.toml")


def stored(cluster: Cluster) -> maps.Map:
    """The map as it stands in the store."""
    return maps.read(cluster.store.read().text)


# --- looking, changing ------------------------------------------------------------------------------------------------------


def test_the_map_is_shown_with_where_shards_are(run: Run, cluster: Cluster) -> None:
    cluster.shards[1].active, cluster.shards[1].passive = "s3/0", "s1/0"
    status, out, _ = run("shard", "map")
    assert status == 0 and out.startswith("version 1, 3 cores, 5 shards, kept in ") and "every core that was heard" in out
    assert lines(out)[5] == ["1", "s1/0", "s3/0", "1", "s3/0", "s1/0"]
    told = json.loads(run("shard", "map", "show", "-o", "json").out)
    assert (told["version"], told["marks"]) == (1, dict.fromkeys(CORES, 1)) and len(told["shards"]) == 5


def test_a_newer_map_is_written_and_waited_for(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    file = newer(cluster, tmp_path)
    told = json.loads(run("shard", "map", "apply", file, "--dry-run").out)
    assert told == {"from": 1, "to": 2, "changes": ["s4/0 joins"]} and stored(cluster).version == 1
    assert run("shard", "map", "apply", file).status == 1  # nobody is there to agree
    status, out, _ = run("shard", "map", "apply", file, "--yes")
    assert (status, out) == (0, "every core here goes by version 2\n")
    assert stored(cluster).names() == list(FOUR)
    assert (tmp_path / "map.toml").read_text() == Path(file).read_text()  # with all its comments


def test_what_is_no_newer_map_is_refused_in_words(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    before = cluster.store.read()

    def refused(text: str) -> tuple[int, str]:
        (tmp_path / "new.toml").write_text(text)
        told = run("shard", "map", "apply", str(tmp_path / "new.toml"), "--yes")
        assert cluster.store.read() == before
        return told.status, told.err

    right = map_text(cluster.shards, FOUR, 2)
    status, err = refused(map_text(cluster.shards, FOUR, 1))
    assert status == 78 and "it is version 1, the cores go by 1" in err and "write version = 2 into it" in err
    status, err = refused(map_text(cluster.shards[:4], FOUR, 2))
    assert status == 78 and "it has 4 shards, the cores were started with 5" in err
    status, err = refused(map_text(cluster.shards, CORES[1:], 2))
    assert status == 78 and "there is no core 's1/0'" in err
    status, err = refused(right.replace('"s1/0"\nbackup = "s2/0"', '"s2/0"\nbackup = "s4/0"'))
    assert status == 78 and "shard 0 would be at s4/0, who has nothing yet" in err and "krononat server join" in err
    status, err = refused(right.replace('backup = "s2/0"', 'backup = "s1/0"'))
    assert status == 78 and "the shard would not outlive the server" in err
    cluster.shards[0].active = "s2/0"
    for shard in cluster.shards:
        shard.primary = shard.primary.replace("s2", "s3").replace("s3/0", "s1/0" if shard.backup == "s3/0" else "s3/0")
        shard.backup = shard.backup.replace("s2/0", "s3/0" if shard.primary == "s1/0" else "s1/0")
    status, err = refused(map_text(cluster.shards, ("s1/0", "s3/0"), 2))
    assert status == 1 and "s2/0 has shard 0, and is not in it" in err and "krononat server leave s2" in err


def test_cores_that_do_not_follow_are_told_of(
    run: Run, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapping, "FOLLOWED_WITHIN_S", 0.1)
    cluster.follow = False
    status, _, err = run("shard", "map", "apply", newer(cluster, tmp_path), "--yes")
    assert (
        status == 6 and "not every core goes by version 2" in err and "s1/0: the map is not followed: it is of next year" in err
    )


# --- the movers' lock -------------------------------------------------------------------------------------------------------

MOVERS = [
    ("shard", "migrate", "0", "s3/0"), ("shard", "swap", "0"), ("shard", "copy", "0", "s3/0"),
    ("shard", "rebalance", "--by", "sessions"),
    ("server", "drain", "s1"), ("server", "undrain", "s1"), ("server", "leave", "s1"),
]  # fmt: skip


@pytest.mark.parametrize("words", MOVERS, ids=[" ".join(words[:2]) for words in MOVERS])
def test_there_is_one_mover_at_a_time(run: Run, cluster: Cluster, words: tuple[str, ...]) -> None:
    cluster.shards[2].active, cluster.shards[2].passive = "s1/0", "s2/0"
    cluster.shards[1].active, cluster.shards[1].passive = "s3/0", "s1/0"
    with cluster.store.lock("rebalance by ann"):
        status, _, err = run(*words, "--yes")
        assert status == 1 and "nothing was moved" in err and "rebalance by ann moves shards now" in err
        assert run(*words, "--dry-run").status == 0  # looking is everybody's
    assert cluster.move is None
    assert run(*words, "--yes").status == 0


def test_who_loses_the_lock_begins_no_more_moves(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([True, False, True, True, True])
    monkeypatch.setattr("krononat.mapstore._FileLock.held", lambda self: next(looks))
    status, out, err = run("server", "drain", "s1", "--yes")
    assert status == 6 and len(out.splitlines()) == 1  # the first was made
    assert "no more moves are begun" in err and "1 of 2 moves were made" in err


# --- servers that come and go -----------------------------------------------------------------------------------------------


def test_a_server_joins_and_gets_its_share(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    file = newer(cluster, tmp_path)
    assert run("server", "join", "s4").status == 4
    plan = json.loads(run("server", "join", "s4", "--map", file, "--dry-run").out)["moves"]
    assert {move["target"] for move in plan if move["kind"] == "migrate"} == {"s4/0"} and cluster.move is None
    assert stored(cluster).version == 1
    status, out, _ = run("server", "join", "s4", "--map", file, "--yes")
    assert status == 0 and [shard.active for shard in cluster.shards].count("s4/0") == 1, out
    told = stored(cluster)
    assert told.version == 3 and {(shard.primary, shard.backup) for shard in told.shard} == {
        (shard.active, shard.passive) for shard in cluster.shards
    }
    (moved,) = [shard for shard in cluster.shards if shard.active == "s4/0"]
    assert told.shard[moved.number].epoch == moved.epoch == 2
    again = run("server", "join", "s4", "--yes")
    assert again.status == 0 and "nothing to move" in again.out


def test_a_server_leaves_with_all_it_has(run: Run, cluster: Cluster) -> None:
    plan = json.loads(run("server", "leave", "s3", "--dry-run").out)["moves"]
    assert {move["shard"] for move in plan} == {1, 3, 4} and cluster.move is None
    status, _, err = run("server", "leave", "s3", "--yes")
    assert status == 0 and "version 2 of the map is without s3: it can be stopped" in err
    assert all("s3/0" not in (shard.active, shard.passive) for shard in cluster.shards)
    assert all(server_of(shard.active) != server_of(shard.passive) for shard in cluster.shards)
    told = stored(cluster)
    assert told.names() == ["s1/0", "s2/0"] and {shard.backup for shard in told.shard} == {"s1/0", "s2/0"}


def test_a_dead_server_leaves_the_map_and_its_copies_get_another_home(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    (cluster.shards[4].active, cluster.shards[4].passive), cluster.shards[4].epoch = ("s1/0", "s3/0"), 2
    cluster.dead.add("s3/0")
    (tmp_path / "s3-0.sock").unlink()
    status, _, err = run("server", "leave", "s3", "--yes")
    assert status == 0 and "without s3" in err and cluster.move is None  # nothing can be asked of the dead
    told = stored(cluster)
    assert [(shard.primary, shard.backup) for shard in told.shard] == [
        ("s1/0", "s2/0"), ("s1/0", "s2/0"), ("s2/0", "s1/0"), ("s2/0", "s1/0"), ("s1/0", "s2/0"),
    ]  # fmt: skip
    assert told.shard[4].epoch == 2


def test_a_server_that_has_nothing_leaves_by_consent_alone(run: Run, cluster: Cluster) -> None:
    for shard in cluster.shards:
        shard.active, shard.passive = "s1/0", "s2/0"
    before = cluster.store.read()
    status, _, err = run("server", "leave", "s3")
    assert status == 1 and "Have a map without s3?" in err and cluster.store.read() == before
    assert json.loads(run("server", "leave", "s3", "--dry-run").out) == {"moves": []} and cluster.store.read() == before
    assert run("server", "leave", "s3", "--yes").status == 0 and stored(cluster).names() == ["s1/0", "s2/0"]


def test_a_server_does_not_leave_with_a_shard_that_nobody_has(run: Run, cluster: Cluster) -> None:
    before = cluster.store.read()
    (lost,) = [shard for shard in cluster.shards if shard.primary == "s3/0"][:1]
    lost.active = lost.passive = ""
    status, _, err = run("server", "leave", "s3", "--yes")
    assert status == 1 and "the map cannot do without s3" in err and f"nobody has shard {lost.number} now" in err
    assert cluster.store.read() == before and cluster.move is None


def test_a_map_that_nobody_could_read_is_not_written(cluster: Cluster) -> None:
    before, told = cluster.store.read(), stored(cluster)
    wrong = told.model_copy(update={"shard": [told.shard[0].model_copy(update={"primary": "s9/0"}), *told.shard[1:]]})
    with cluster.store.lock("test") as lock, pytest.raises(client.Trouble, match="no core could read it then") as refused:
        mapping.put(mapping.Stored(cluster.store, before, told), lock, wrong)
    assert "there is no core 's9/0'" in refused.value.why and cluster.store.read() == before


def test_a_right_map_can_be_written_over_nonsense(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    cluster.follow = False
    (tmp_path / "map.toml").write_text("version = 2\nnonsense")
    status, _, err = run("shard", "map", "apply", newer(cluster, tmp_path, CORES), "--dry-run")
    assert status == 0, err
    assert "is no map; the cores go by version 1" in err and "not TOML" in err


def test_a_plan_that_fails_is_in_the_map_as_far_as_it_came(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive = cluster._arrive

    def once(*given: object) -> None:
        arrive(*given)  # type: ignore[arg-type]
        cluster.fails = "the link is cut"

    for shard in cluster.shards:
        shard.active, shard.passive = "s1/0", "s2/0" if shard.number % 2 else "s3/0"
    monkeypatch.setattr(cluster, "_arrive", once)
    assert run("shard", "rebalance", "--yes", "--by", "sessions").status == 6
    told = stored(cluster)
    assert told.version == 2 and [shard.primary for shard in told.shard] == [shard.active for shard in cluster.shards]


# --- etcd -------------------------------------------------------------------------------------------------------------------

if PURE:

    def test_a_store_that_is_gone_changes_nothing_but_what_can_be_changed(
        run: Run, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = Server(tmp_path)
        try:
            place = {"store": [server.url], "prefix": "/test", "file": str(tmp_path / "map.toml")}
            monkeypatch.setattr(cluster, "where", lambda: place)
            monkeypatch.setattr(cluster, "store", EtcdStore([server.url], "/test"))
            with cluster.store.lock("first") as lock:
                cluster.store.write(map_text(cluster.shards), Seen("", 0), lock)
            assert run("shard", "migrate", "0", "s3/0", "--yes").status == 0
            assert Etcd([server.url]).get("/test/mover").revision == 0  # let go
            assert run("server", "join", "s4", "--map", newer(cluster, tmp_path), "--yes").status == 0
            assert stored(cluster).version == 3
            monkeypatch.setattr(
                cluster, "store", type("Still", (), {"read": lambda _: Seen(map_text(cluster.shards, FOUR), 1)})()
            )
            server.stop()
            status, _, err = run("shard", "swap", "1", "--yes")
            assert status == 1 and "the map cannot be changed now" in err and "Connection refused" in err
            assert "every core forwards on" in err
            assert run("shard", "list").status == 0
        finally:
            server.stop()

    def test_an_empty_store_is_given_what_the_cores_go_by(
        run: Run, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = Server(tmp_path)
        try:
            place = {"store": [server.url], "prefix": "/test", "file": str(tmp_path / "map.toml")}
            monkeypatch.setattr(cluster, "where", lambda: place)
            status, out, _ = run("shard", "map", "apply", str(tmp_path / "map.toml"), "--yes")
            assert (status, out) == (0, "every core here goes by version 1\n")
            assert EtcdStore([server.url], "/test").read().text == (tmp_path / "map.toml").read_text()
        finally:
            server.stop()


def test_nobody_is_there(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FOLDER", tmp_path)
    assert run("shard", "map").status == 3 and run("server", "join", "s4").status == 3
