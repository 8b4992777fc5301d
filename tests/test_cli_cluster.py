"""`krononat shard`, `server` and `replication` against cores whose control sockets are real."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from krononat import client
from krononat import cluster as maps
from krononat.cli import moves
from tests.fake_cluster import Cluster, Shard
from tests.test_cli import Run, run

__all__ = ["run"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three cores here, five shards: two on s1, two on s2, one on s3."""
    monkeypatch.setattr(client, "FOLDER", tmp_path)
    monkeypatch.setattr(moves, "EVERY_S", 0.001)
    placed = [("s1/0", "s2/0"), ("s1/0", "s3/0"), ("s2/0", "s1/0"), ("s2/0", "s3/0"), ("s3/0", "s1/0")]
    made = Cluster(tmp_path, [Shard(number, *places, 100 + number) for number, places in enumerate(placed)])
    yield made
    made.close()


def lines(out: str) -> list[list[str]]:
    """Words of each line."""
    return [re.split(r" {2,}", line.strip()) for line in out.splitlines()]


# --- looking --------------------------------------------------------------------------------------------------------------


def test_shard_list_joins_what_each_core_knows(run: Run, cluster: Cluster) -> None:
    status, out, _ = run("shard", "list")
    assert status == 0
    assert lines(out)[1] == ["0", "s1/0", "s2/0", "s1/0", "s2/0", "1", "yes", "100", "50", "0", "-"]
    assert [line[0] for line in lines(out)[1:]] == ["0", "1", "2", "3", "4"]
    rows = json.loads(run("sh", "l", "-o", "json").out)
    assert [row["role"] for row in rows] == ["active"] * 5  # of each shard the row of the core that has it
    assert [row["sessions"] for row in rows] == [100, 101, 102, 103, 104]


def test_one_socket_gives_the_view_of_one_core(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    rows = json.loads(run("shard", "list", "-o", "json", "--socket", str(tmp_path / "s3-0.sock")).out)
    assert [row["role"] for row in rows] == ["absent", "passive", "absent", "passive", "active"]
    assert {name for name, _ in cluster.asked} == {"s3/0"}
    table = lines(run("shard", "list", "--socket", str(tmp_path / "s3-0.sock")).out)
    assert [line[6] for line in table] == ["IN SYNC", "-", "yes", "-", "yes", "yes"]


def test_shard_show(run: Run, cluster: Cluster) -> None:
    assert json.loads(run("shard", "show", "3", "-o", "json").out)["passive"] == "s3/0"
    assert "alarms    -" in run("shard", "show", "3").out
    status, out, err = run("shard", "show", "5")
    assert (status, out) == (4, "") and "there is no shard 5" in err and "next: krononat shard list" in err


def test_server_list_and_show(run: Run, cluster: Cluster) -> None:
    cluster.dead.add("s2/0")
    (s1, s2, s3) = json.loads(run("server", "list", "-o", "json", "--socket", str(client.FOLDER / "s1-0.sock")).out)
    assert (s1["cores"], s1["alive"], s1["active"], s1["passive"]) == (1, 1, 2, 2)
    assert (s2["server"], s2["alive"], s3["alive"]) == ("s2", 0, 1)
    assert lines(run("server", "show", "s2").out)[1][:2] == ["s2/0", "closed"]
    assert run("server", "show", "s9").status == 4


def test_a_core_that_does_not_answer_is_told_of_and_the_others_are_asked(run: Run, cluster: Cluster) -> None:
    cluster.dead.add("s1/0")
    status, out, err = run("shard", "list")
    assert status == 0 and len(out.splitlines()) == 6
    assert "the worker cannot answer now" in err
    cluster.dead |= {"s2/0", "s3/0"}
    assert run("shard", "list").status == 1


# --- moving one -----------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_moves_nothing(run: Run, cluster: Cluster) -> None:
    plan = json.loads(run("shard", "migrate", "0", "s3/0", "--dry-run").out)["plan"]
    assert (plan["source"], plan["target"], plan["kind"], plan["epoch"]) == ("s1/0", "s3/0", "copy", 2)
    assert cluster.move is None


def test_nothing_moves_unless_somebody_agrees(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    status, _, err = run("shard", "migrate", "0", "s3/0")
    assert status == 1 and "nobody is there to agree" in err and "--yes" in err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    questions: list[str] = []

    def refuse(question: str, abort: bool) -> None:
        questions.append(question)
        raise click.Abort

    monkeypatch.setattr("click.confirm", refuse)
    status, out, _ = run("shard", "migrate", "0", "s3/0")
    assert status == 1 and questions == ["Move shard 0 from s1/0 to s3/0?"]
    assert "kind" in out and "copy" in out  # the plan stood before the question
    assert cluster.move is None


def test_a_move_is_asked_of_the_owner_waited_for_and_told_with_its_figures(run: Run, cluster: Cluster) -> None:
    status, out, err = run("shard", "migrate", "2", "s3/0", "--yes")
    assert status == 0
    told = "shard 2: 102 sessions from s2/0 to s3/0 in 312 ms; pause 3.1 ms, 40 packets shunted, 0 lost\n"
    assert out == told
    assert [line.split(": ")[-1] for line in err.splitlines()] == ["copying", "handing over", "shunting", "done"]
    assert {name for name, _ in cluster.asked_for("migrate")} == {"s2/0"}
    assert cluster.shards[2].active == "s3/0"
    done = json.loads(run("shard", "migrate", "2", "s2/0", "--yes", "-o", "json").out)["move"]
    assert (done["succeeded"], done["lost"], done["pause_ms"]) == (True, 0, 3.1)


def test_swap_is_a_move_to_the_backup(run: Run, cluster: Cluster) -> None:
    assert run("shard", "swap", "1", "--yes").status == 0
    assert (cluster.shards[1].active, cluster.shards[1].passive) == ("s3/0", "s1/0")
    cluster.shards[1].passive = ""
    status, _, err = run("shard", "swap", "1", "--yes")
    assert status == 1 and "no other core keeps a copy" in err


def test_no_wait_leaves_the_move_to_itself(run: Run, cluster: Cluster) -> None:
    assert re.fullmatch(r"move \d+ has begun\n", run("shard", "migrate", "0", "s2/0", "--yes", "--no-wait").out)
    assert cluster.asked_for("move") == []


def test_a_move_that_takes_too_long_goes_on_without_us(run: Run, cluster: Cluster) -> None:
    cluster.stuck = True
    status, out, err = run("shard", "migrate", "0", "s2/0", "--yes", "--timeout", "0.1")
    assert (status, out) == (5, "") and "still at: copying, and goes on" in err


def test_a_move_that_fails_says_why(run: Run, cluster: Cluster) -> None:
    cluster.fails = "s2/0 has not taken it over in 300 ms; s1/0 has it again"
    status, out, err = run("shard", "migrate", "0", "s2/0", "--yes")
    assert (status, out) == (1, "") and cluster.fails in err and "next: krononat shard show 0" in err


def test_a_move_that_is_forgotten_is_not_waited_for(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_move", lambda me, request: {"move": None})
    status, _, err = run("shard", "migrate", "0", "s2/0", "--yes")
    assert status == 1 and "lost from sight" in err


@pytest.mark.parametrize("target", ["s2", "s2/", "/0", "s2/0/0"])
def test_what_is_no_core_is_refused(run: Run, cluster: Cluster, target: str) -> None:
    status, _, err = run("shard", "migrate", "0", target, "--yes")
    assert status == 2 and "is no core: SERVER/NUMBER" in err
    assert cluster.asked_for("migrate") == []


def test_a_core_that_the_map_does_not_have_is_not_found(run: Run, cluster: Cluster) -> None:
    status, _, err = run("shard", "migrate", "0", "s9/0", "--dry-run")
    assert status == 4 and "there are: s1/0, s2/0, s3/0" in err


def test_who_has_not_the_shard_is_not_asked_to_move_it_or_to_compare_it(run: Run, cluster: Cluster) -> None:
    here = ("--socket", str(client.FOLDER / "s1-0.sock"))
    for words in (("shard", "migrate", "2", "s1/0", "--yes"), ("shard", "verify", "2"), ("shard", "swap", "2", "--yes")):
        status, _, err = run(*words, *here)
        assert status == 1 and "s2/0 has it, whose control socket is not here" in err and "next: run this on s2" in err
    cluster.shards[2].active = ""
    assert "nobody has shard 2" in run("shard", "migrate", "2", "s1/0", "--yes", *here).err
    assert cluster.asked_for("migrate") == cluster.asked_for("verify") == []


# --- moving many ----------------------------------------------------------------------------------------------------------


def test_drain_undrain(run: Run, cluster: Cluster) -> None:
    planned = json.loads(run("server", "drain", "s1", "--dry-run").out)["moves"]
    assert [(move["shard"], move["target"]) for move in planned] == [(1, "s3/0"), (0, "s2/0")]
    assert cluster.move is None and run("server", "drain", "s1").status == 1
    status, out, err = run("server", "drain", "s1", "--yes")
    assert status == 0 and len(out.splitlines()) == 2
    assert "s1 has no shard any more: it is safe to stop" in err and "4 shards have their copy there" in err
    assert all(shard.active != "s1/0" for shard in cluster.shards)
    assert run("server", "drain", "s1", "--yes").out == "nothing to move\n"
    done = json.loads(run("server", "undrain", "s1", "--yes", "-o", "json").out)["moves"]
    assert [(move["shard"], move["target"]) for move in done] == [(0, "s1/0"), (1, "s1/0")]
    assert [shard.active for shard in cluster.shards] == [shard.primary for shard in cluster.shards]


def test_rfc8326_who_is_drained_asks_for_others_before_anything_moves(run: Run, cluster: Cluster) -> None:
    run("server", "drain", "s1", "--dry-run")
    assert not cluster.asked_for("drain")
    run("server", "drain", "s1", "--yes")
    told = [(name, request.get("on")) for name, request in cluster.asked if request["do"] in ("drain", "migrate")]
    assert told == [("s1/0", True), ("s1/0", None), ("s1/0", None)]
    run("server", "undrain", "s1", "--yes")
    run("server", "undrain", "s1", "--yes")
    assert cluster.asked_for("drain")[1:] == [("s1/0", {"do": "drain", "on": False})] * 2, "where nothing is to move, too"


def test_a_dead_core_is_given_nothing(run: Run, cluster: Cluster) -> None:
    cluster.dead |= {"s2/0", "s3/0"}
    status, _, err = run("server", "drain", "s1", "--yes", "--socket", str(client.FOLDER / "s1-0.sock"))
    assert status == 1 and "nowhere to go" in err
    assert run("server", "drain", "s7", "--yes").status == 4


def test_a_plan_that_fails_midway_says_how_far_it_came(run: Run, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    arrive = cluster._arrive

    def once(shard: Shard, target: str, copies: bool) -> None:
        arrive(shard, target, copies)
        cluster.fails = "the link is cut"

    monkeypatch.setattr(cluster, "_arrive", once)
    status, out, err = run("server", "drain", "s1", "--yes")
    assert status == 6 and len(out.splitlines()) == 1
    assert "the link is cut; 1 of 2 moves were made" in err


def test_what_others_must_move_is_left_to_the_last(run: Run, cluster: Cluster) -> None:
    cluster.shards[1].active, cluster.shards[1].passive = "s3/0", "s1/0"
    cluster.shards[0].active, cluster.shards[0].passive = "s2/0", "s1/0"
    status, out, err = run("server", "undrain", "s1", "--yes", "--socket", str(client.FOLDER / "s3-0.sock"))
    assert status == 6 and out.startswith("shard 1: ") and "shard 0 is another core's" in err and "run this on s2" in err


def test_rebalance(run: Run, cluster: Cluster) -> None:
    for shard in cluster.shards:
        shard.active, shard.passive = "s1/0", "s2/0" if shard.number % 2 else "s3/0"
    planned = run("shard", "rebalance", "--plan")
    assert planned.status == 0 and "s1 has 1,100.0 a core, s2 0.0" in planned.out
    assert [line[1] for line in lines(planned.out)[1:4]] == ["migrate"] * 3
    assert json.loads(run("shard", "rebalance", "--plan", "-o", "json").out)["moves"][0]["source"] == "s1/0"
    assert cluster.move is None
    assert run("shard", "rebalance", "--yes").status == 0
    assert sorted(sum(shard.active == core for shard in cluster.shards) for core in ("s1/0", "s2/0", "s3/0")) == [1, 2, 2]
    assert run("shard", "rebalance", "--plan").out == "nothing to move\n"
    told = maps.read(cluster.store.read().text)  # and the map knows it
    assert told.version == 2 and [shard.primary for shard in told.shard] == [shard.active for shard in cluster.shards]


# --- copies ---------------------------------------------------------------------------------------------------------------


def test_verify_finds_what_differs(run: Run, cluster: Cluster) -> None:
    status, out, _ = run("shard", "verify")
    assert status == 0 and [line[4] for line in lines(out)] == ["DIFFERING", "0", "0", "0", "0", "0"]
    cluster.shards[3].differing = [[0, 77]]
    status, out, err = run("shard", "verify", "-o", "json")
    assert status == 1 and "1 of 5 shards have no true copy" in err and "they are: 3" in err
    assert [row["differing"] for row in json.loads(out)] == [[], [], [], [[0, 77]], []]
    assert run("shard", "verify", "2").status == 0
    status, out, err = run("shard", "verify", "--socket", str(client.FOLDER / "s3-0.sock"))
    assert status == 0 and [line[0] for line in lines(out)[1:]] == ["4"]  # what differs is of s2
    assert "not compared: of the shards of s1/0, s2/0 ask there" in err
    cluster.stuck = True
    assert run("shard", "verify", "2", "--timeout", "0.1").status == 5


def test_what_has_no_copy_is_not_said_to_be_right(run: Run, cluster: Cluster) -> None:
    cluster.shards[2].passive = ""
    assert "not compared: no copy of 2" in run("shard", "verify").err
    status, out, err = run("shard", "verify", "2")
    assert (status, out) == (1, "") and "shard 2 has no copy to compare" in err
    for shard in cluster.shards:
        shard.passive = ""
    assert run("shard", "verify").status == 1


def test_replication_status_has_a_row_for_each_end_and_alarms_in_words(run: Run, cluster: Cluster) -> None:
    status, out, err = run("replication", "status")
    assert (status, err) == (0, "") and len(lines(out)) == 11
    assert lines(out)[1] == ["s1/0", "0", "active", "1", "s2/0", "alive", "yes", "12", "768", "0.004", "1", "1", "lost 1"]
    assert run("replication", "status", "--check").status == 0
    cluster.shards[2].alarms = ["shard 2 has no synced backup"]
    for form in ("table", "json", "jsonl"):
        status, _, err = run("replication", "status", "--check", "-o", form)
        assert status == 1 and "krononat: alarm: s2/0: shard 2 has no synced backup\n" in err
    assert run("replication", "status").status == 0
    cluster.shards[2].alarms = []
    cluster.dead.add("s3/0")
    status, out, err = run("replication", "status", "--check")
    assert status == 1 and "s1/0" in out and "the worker cannot answer now" in err


def test_resync_is_asked_of_the_core_that_has_the_copy(run: Run, cluster: Cluster) -> None:
    assert run("replication", "resync", "4").out == "shard 4: s1/0 copies s3/0 anew\n"
    assert cluster.asked_for("resync") == [("s1/0", {"do": "resync", "shard": 4})]
    here = ("--socket", str(client.FOLDER / "s3-0.sock"))
    assert run("replication", "resync", "4", *here).status == 0 and cluster.asked_for("resync")[-1][0] == "s3/0"
    assert run("replication", "resync", "0", *here).status == 1
    cluster.shards[4].passive = ""
    assert run("replication", "resync", "4").status == 1
    assert run("replication", "resync", "9").status == 4
