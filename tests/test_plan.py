"""`krononat plan`: the figures of the size that is meant, and how they are printed."""

from __future__ import annotations

import json
import time
from typing import Any, cast

import pytest

from krononat import plan
from krononat.plan import Size
from routing.announcements import Preference
from tests.test_cli import Run, run

__all__ = ["run"]

MEANT = ("plan", "--shards", "1024", "--servers", "8", "--cores", "40")


def report(run: Run, *more: str) -> dict[str, Any]:
    """As JSON."""
    told = run(*MEANT, *more, "-o", "json")
    assert told.status == 0, told.err
    return cast("dict[str, Any]", json.loads(told.out))


def test_the_size_that_is_meant(run: Run) -> None:
    began = time.monotonic()
    told = report(run)
    assert time.monotonic() - began < 10
    placed = told["placement"]
    assert (placed["shards_a_core"], placed["idle_cores"], placed["shards_a_server"]) == ([3, 4], 0, [128, 128])
    after = placed["after_a_death"]
    assert after["worst_core"] <= 5 and after["worst_server"] <= 147 and after["worst_server_by_mean"] <= 1.15
    more, less = told["one_server_more"], told["one_server_less"]
    assert more["migrations"] <= 112 and more["copies_made"] <= 112 and more["shards_a_server"] == [112, 114]
    assert less["migrations"] <= 152 and less["copies_made"] <= 280 and less["shards_a_server"] == [146, 147]


def test_what_is_announced(run: Run) -> None:
    told = report(run)["announcements"]
    for domain in ("inside", "outside"):
        routes = told["routes"][domain]
        assert routes["a_switch"] == 2048 and routes["a_switch_best"] == 1024  # each shard by its primary and its backup
        assert 2 * 1024 / 320 in range(routes["a_core"][0], 8) or routes["a_core"][0] <= 6.4 <= routes["a_core"][1] <= 8
    assert told["sessions_a_switch"] == {"per-core": {"bgp": 640, "bfd": 640}, "per-server": {"bgp": 16, "bfd": 16}}
    assert told["steering_rules_a_switch"] == 1024
    split = report(run, "--preference", "longest-prefix")["announcements"]["routes"]["outside"]
    assert (split["a_switch"], split["a_switch_best"]) == (3072, 2048)  # the primary tells its halves


def test_rooms_keep_both_copies_and_another_one_can_serve_what_is_lost(run: Run) -> None:
    told = report(run, "--rooms", "2")
    assert told["placement"]["shards_a_core"] == [3, 4] and told["placement"]["after_a_death"]["worst_core"] <= 5
    assert told["a_room_lost"] == {"worst_core": 7, "worst_core_by_mean_of_those_left": 1.094}  # twice the mean: 6.4
    least, most = told["one_server_more"]["shards_a_server"]
    assert 100 <= least <= 103 and most == 128  # the last room's servers give, no other one's
    assert told["one_server_less"]["shards_a_server"] == [128, 171] and "a_room_lost" not in report(run)
    status, _, err = run("plan", "--shards", "12", "--servers", "3", "--cores", "2", "--rooms", "2")
    assert status == 2 and "3 servers are too few for 2 rooms" in err


def test_it_is_a_table_too(run: Run) -> None:
    status, out, _ = run("plan", "--shards", "12", "--servers", "2", "--cores", "2", "--switches", "1", "--domains", "1")
    assert status == 0 and "placement.shards a core" in out and "one server less" not in out
    assert run("plan", "--shards", "1", "--servers", "200", "--cores", "200").status == 2


@pytest.mark.parametrize("preference", ["med", "prepend", "community", "longest-prefix"])
@pytest.mark.parametrize("size", [(1, 2, 1), (7, 3, 2), (96, 3, 16)])
def test_routes_add_up(size: tuple[int, int, int], preference: Preference) -> None:
    told = plan.report(Size(*size, preference=preference))["announcements"]["routes"]["inside"]
    assert told["a_core"][0] * size[1] * size[2] <= told["a_switch"] <= told["a_core"][1] * size[1] * size[2]
