"""Which map a core goes by: the newest that it can, in whatever order they come; and why not another, in words."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krononat import cluster, following, mapstore
from krononat.client import Trouble
from krononat.cluster import Cluster
from krononat.config import Config, ConfigError
from krononat.following import Follower
from krononat.mapstore import FileStore, Seen
from shards.jit import PURE
from tests.test_cluster import CONFIG, MAP, _files

MORE = """
[[core]]
name = "s{0}/0"
replication = "192.168.77.{2}:7600"
shunt = "192.0.2.{2}"
key = "{1}"
"""


def own(folder: Path) -> tuple[Config, Cluster]:
    """The core s1/0 of the map of `test_cluster`."""
    config = _files(folder)
    found = cluster.of(config)
    assert found
    return config, found


def text_of(now: Cluster, version: int, cores: int = 0, changed: dict[str, str] | None = None) -> str:
    """A newer map, with that many more cores, and words replaced."""
    text = cluster.written(now.map).replace("version = 1", f"version = {version}")
    for before, after in (changed or {}).items():
        text = text.replace(before, after)
    return text + "".join(MORE.format(number, f"{number:-<40}", 10 + number) for number in range(3, 3 + cores))


if PURE:  # nothing here is compiled: once is enough

    def test_a_map_that_is_written_is_read_again(tmp_path: Path) -> None:
        told = cluster.read(MAP.replace('backup = "s2/0"', 'backup = "s2/0"\nexternal = ["203.0.113.0/31"]'))
        assert cluster.read(cluster.written(told)) == told
        odd = told.model_copy(update={"core": [told.core[0].model_copy(update={"key": "'\"\\" + "x" * 37}), *told.core[1:]]})
        assert cluster.read(cluster.written(odd)) == odd

    def test_prefixes_of_two_shards_must_not_overlap() -> None:
        for field, one, other, refused in (
            ("external", "203.0.113.0/28", "203.0.113.8/29", "203.0.113.8/29 of shard 1 overlaps 203.0.113.0/28 of shard 0"),
            ("subscribers", "100.64.0.0/10", "100.100.0.0/16", "100.100.0.0/16 of shard 1 overlaps 100.64.0.0/10 of shard 0"),
            ("external", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1::/48 of shard 1 overlaps 2001:db8::/32 of shard 0"),
            ("external", "nonsense", "203.0.113.0/28", "'nonsense' is no prefix"),
            ("external", "203.0.113.0/28", "203.0.113.16/28", ""),
        ):
            text = MAP.replace("id = 0", f'id = 0\n{field} = ["{one}"]').replace("id = 1", f'id = 1\n{field} = ["{other}"]')
            if not refused:
                cluster.read(text)
                continue
            with pytest.raises(ConfigError) as told:
                cluster.read(text)
            assert refused in str(told.value) and f"{field}[0]" in str(told.value)

    def test_prefixes_of_the_map_are_those_of_every_configuration(tmp_path: Path) -> None:
        for prefix, right in (("203.0.113.0/31", True), ("203.0.113.0/30", False)):
            told = _files(tmp_path, MAP.replace("id = 0", f'id = 0\nexternal = ["{prefix}"]'))
            if right:
                assert cluster.of(told)
                continue
            with pytest.raises(ConfigError, match=r"this configuration has 203.0.113.0/31 for shard 0"):
                cluster.of(told)

    def test_a_shard_without_a_backup_is_an_alarm(tmp_path: Path) -> None:
        told = cluster.read(MAP.replace('backup = "s2/0"\n', ""))
        assert list(cluster.alarms(told)) == ["no backup by the map: shard 0"]
        assert list(cluster.alarms(cluster.read(MAP))) == []

    # --- what is followed -----------------------------------------------------------------------------------------------

    def test_why_a_map_is_not_gone_by(tmp_path: Path) -> None:
        config, now = own(tmp_path)
        room = cluster.room_for(config, now.map)
        key = str(now.core.key)
        for text, why in (
            (text_of(now, 2, 2), ""),
            (text_of(now, 1), ""),  # the same
            (text_of(now, 1, 1), "it is of version 1 as well, but another one: raise the version"),
            (text_of(now, 2, 0, {"'s1/0'": "'s9/0'"}), "s1/0 is in it no more: this core goes on by version 1"),
            (text_of(now, 2, 0, {"192.168.77.1:": "192.168.77.7:"}), "another `replication` for s1/0: 192.168.77.7:7600"),
            (text_of(now, 2, 0, {"'192.0.2.1'": "'192.0.2.77'"}), "it has another `shunt` for s1/0"),
            (text_of(now, 2, 0, {key: "x" * 40}), "it has another `key` for s1/0"),
            (text_of(now, 2) + "[[shard]]\nid = 2\nprimary = 's1/0'\n", "it has 3 shards, this core was started with 2"),
            (text_of(now, 2, 0, {"id = 0": "id = 0\nexternal = ['10.0.0.0/8']"}), "shard[0].external: not the same everywhere"),
            (text_of(now, 2, room), f"it has {room + 3} cores, this core has room for {room}"),
        ):
            assert why in cluster.judge(config, now, cluster.read(text), room) and bool(why) == bool(
                cluster.judge(config, now, cluster.read(text), room)
            )
        later = cluster.with_map(now, cluster.read(text_of(now, 5)), room)
        assert "it is version 4, this core goes by version 5" in cluster.judge(
            config, later, cluster.read(text_of(now, 4)), room
        )

    def test_a_core_keeps_its_row_and_a_new_one_gets_one_that_nobody_had(tmp_path: Path) -> None:
        _, now = own(tmp_path)
        assert now.rows == {"s1/0": 0, "s2/0": 1, "s2/1": 2}
        without = cluster.read(text_of(now, 2, 1).replace("'s2/0'", "'s9/9'"))
        then = cluster.with_map(now, without, 16)
        assert then.rows == {"s1/0": 0, "s2/1": 2, "s9/9": 3, "s3/0": 4}  # row 1 may still be named somewhere
        full = cluster.rows_for(without, "s1/0", now.rows, 5)
        assert full == {"s1/0": 0, "s2/1": 2, "s9/9": 3, "s3/0": 4}
        assert cluster.rows_for(without, "s1/0", {**now.rows, "old": 3}, 5)["s3/0"] in (1, 3)
        with pytest.raises(ValueError, match="it has 4 cores, this core has room for 3"):
            cluster.rows_for(without, "s1/0", now.rows, 3)

    def test_who_goes_on_with_memory_that_another_has_made_has_its_room_whatever_today_would_give(tmp_path: Path) -> None:
        config, now = own(tmp_path)
        for room, followed in ((5, True), (4, False)):
            follower = Follower(config, now, lambda line: None, FileStore(tmp_path / "map"))
            follower.resume(now._replace(rows={"s1/0": 0, "s2/0": 3, "s2/1": 2}), room)
            assert follower.look(Seen(text_of(now, 2, 2), 1)) == followed
            assert follower.status()["room"] == room and follower.cluster.rows["s2/0"] == 3

    @given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.randoms(use_true_random=False))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
    def test_any_order_of_versions_ends_in_the_newest_everywhere(
        tmp_path: Path, versions: list[int], dice: random.Random
    ) -> None:
        config, now = own(tmp_path)
        maps = [Seen(text_of(now, version, version), version) for version in [*versions, 10]]
        ends: set[int] = set()
        for _ in range(3):  # cores
            follower = Follower(config, now, lambda _: None)
            order = [*maps, *dice.sample(maps, dice.randint(0, len(maps)))]
            dice.shuffle(order)
            highest = 1
            for seen in order:
                followed = follower.look(seen)
                assert followed == (seen.revision > highest)
                highest = max(highest, seen.revision)
                assert follower.cluster.map.version == highest
            assert follower.cluster.map.version == 10 and len(follower.cluster.map.core) == 13
            ends.add(follower.cluster.map.digest)
            rows = follower.cluster.rows
            assert len(set(rows.values())) == len(rows) and rows["s1/0"] == 0
        assert len(ends) == 1

    def test_what_is_refused_changes_nothing_and_is_said_until_it_is_right(tmp_path: Path) -> None:
        config, now = own(tmp_path)
        said: list[str] = []
        follower = Follower(config, now, said.append)
        assert not follower.look(Seen("version = 2\nnonsense", 2))
        assert follower.cluster is now and "not followed: " in follower.alarms()[0] and "not TOML" in said[0]
        assert not follower.look(Seen(text_of(now, 2, 0, {"'s2/0'\nrepl": "'s2/1'\nrepl"}), 3))
        assert "s2/1 is another core's, too" in follower.alarms()[0]
        assert follower.look(Seen(text_of(now, 2), 4)) and follower.alarms() == []
        assert said[-1] == "going by version 2 of the map: 3 cores"

    def test_nonsense_of_any_kind_is_refused_in_words(tmp_path: Path) -> None:
        config, now = own(tmp_path)
        follower = Follower(config, now, lambda _: None)
        for number, (text, why) in enumerate(
            (
                ("a=" + "[" * 4000, "not TOML: maximum recursion depth"),
                ("version = " + "9" * 5000, "not TOML: Exceeds the limit"),
                ("version = 0x" + "f" * 5000, "not TOML: Exceeds the limit"),
                (text_of(now, 1 << 53), "version: must be less than"),
                ("#" * (cluster.TEXT_AT_MOST + 1), "too long for a map"),
            )
        ):
            assert not follower.look(Seen(text, number))
            assert follower.cluster is now and why in follower.alarms()[0]

    def test_a_map_that_no_worker_can_be_told_of_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config, now = own(tmp_path)
        follower = Follower(config, now, lambda _: None)
        assert follower.look(Seen(text_of(now, 2, 1), 1))
        monkeypatch.setattr(following, "ORDERS_AT_MOST", 900)
        assert not follower.look(Seen(text_of(now, 3, 8), 2)) and "bytes of orders, there may be 900" in follower.alarms()[0]
        assert follower.look(Seen(text_of(now, 4, 1), 3)) and follower.alarms() == []

    def test_a_file_that_changes_is_followed_within_a_moment(tmp_path: Path) -> None:
        config, now = own(tmp_path)
        follower = Follower(config, now, lambda _: None)
        assert not follower.turn()
        follower.start()
        try:
            time.sleep(0.1)
            assert not follower.turn() and follower.status()["version"] == 1
            mapstore.replace_file(tmp_path / "map.toml", text_of(now, 2, 1))
            until = time.monotonic() + 10
            while not follower.turn():
                assert time.monotonic() < until
                time.sleep(0.05)
            assert follower.status()["version"] == 2 and follower.cluster.rows["s3/0"] == 3
            (tmp_path / "map.toml").unlink()
            while not follower.alarms():
                follower.turn()
                assert time.monotonic() < until
                time.sleep(0.05)
            assert "cannot be changed" in follower.alarms()[0] and "holds no map" in follower.alarms()[0]
            assert follower.status()["reachable"] is False and follower.status()["version"] == 2
        finally:
            follower.close()

    def test_with_a_store_the_file_is_what_was_seen_last(tmp_path: Path) -> None:
        config, now = own(tmp_path)
        told = CONFIG.replace("[cluster]", "[cluster]\nstore = ['http://127.0.0.1:9']")
        from krononat import config as configuration

        config = configuration.read(told.format(map=tmp_path / "map.toml", key=tmp_path / "key"))
        follower = Follower(config, now, lambda _: None, FileStore(tmp_path / "elsewhere"))
        assert follower.look(Seen(text_of(now, 7), 1))
        assert cluster.load(tmp_path / "map.toml").version == 7
        (tmp_path / "map.toml").unlink()
        with pytest.raises(Trouble, match="there is no map") as refused:
            cluster.of(config)
        assert "Connection refused" in refused.value.why
