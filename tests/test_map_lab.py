"""A server leaves a running cluster, and comes back, while connections and a stream go on; the map is a file, or an etcd."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from bench.cluster import stream
from bench.cluster.ledger import ASK, OPEN, STREAM_IN, STREAM_OUT, Sizes
from bench.cluster.scene import People, Scene, scene, until
from krononat import client
from krononat import cluster as maps
from krononat.cli import root
from krononat.lab import cluster, faults, namespaces
from krononat.lab.cluster import Wanted
from krononat.lab.laboratory import PROGRAMS
from krononat.lab.steering import Hand
from shards.jit import PURE

SERVERS, SHARDS = 4, 4
WANTED = Wanted(SERVERS, SHARDS, sessions=20_000)


class Routing:
    """Does what routing does: sends each shard's packets to the core that has it, looking again and again."""

    def __init__(self, here: Scene) -> None:
        self._here, self._ending = here, threading.Event()
        self.at: dict[int, str] = {shard: cluster.first_core(WANTED, shard) for shard in range(SHARDS)}
        self._thread = threading.Thread(target=self._follow)

    def _follow(self) -> None:
        with Hand(self._here.tor) as hand:
            while not self._ending.wait(0.01):
                for shard, core in self._owners().items():
                    if core != self.at[shard]:
                        hand.steer([shard], core)
                        self.at[shard] = core

    def _owners(self) -> dict[int, str]:
        found: dict[int, str] = {}
        for core in cluster.cores(WANTED):
            try:
                rows = client.rows(self._here.path(core), "shards")[1]
            except client.Trouble:
                continue
            found |= {row["shard"]: core for row in rows if row["role"] == "active"}
        return found

    def __enter__(self) -> Routing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()


if not PURE:

    @pytest.fixture(scope="module")
    def here() -> Iterator[Scene]:
        """Four servers, four shards, one each at first, and a generator on all of them."""
        try:
            namespaces.need(*PROGRAMS)
        except client.Trouble as trouble:
            pytest.skip(f"{trouble.what}: {trouble.why}")  # under CI=true conftest makes it a failure
        with scene("kmp", WANTED, Sizes(2_000, 1, 60_000), People(tuple(range(SHARDS)), 25, 20), lambda _: None) as made:
            yield made

    @pytest.fixture
    def call(here: Scene, monkeypatch: pytest.MonkeyPatch) -> object:
        """A command, as if on a machine where all control sockets are."""
        monkeypatch.setattr(client, "FOLDER", here.lab.folder)

        def run(*words: str) -> Result:
            done = CliRunner().invoke(root, list(words))
            told = done.exception.told() if isinstance(done.exception, client.Trouble) else str(done.exception)
            assert done.exit_code == 0, f"{' '.join(words)}: {done.output} {told}"
            return done

        return run

    def asked(here: Scene) -> stream.Survival:
        """Every connection is asked from outside whether it still stands."""
        turned = here.generator.rounds
        here.generator.ask(turned, 20_000)
        here.generator.wait(ASK)
        return stream.survival(here.generator.ledger.connections, turned, 0, time.monotonic_ns())

    @pytest.mark.lab
    def test_a_server_leaves_and_joins_and_nobody_notices(here: Scene, call: object, tmp_path: Path) -> None:
        run, made = call, here.generator
        assert callable(run)
        map_file = here.lab.folder / "map.toml"
        for shard in range(SHARDS):
            here.until_synced(shard)
        made.open(1_000, 5_000)
        made.wait(OPEN)
        everybody = asked(here)
        assert everybody.alive == everybody.established > 900
        before = map_file.read_text()
        made.stream(1000)
        began = time.monotonic_ns()
        with Routing(here) as routing:
            run("server", "leave", "s4", "--yes")
            assert "s4/0" not in routing.at.values()
            told = maps.load(map_file)
            assert told.version == 2 and told.names() == ["s1/0", "s2/0", "s3/0"]
            faults.kill(here.lab, "s4", "core")
            back = maps.read(before)
            back = told.model_copy(update={"version": 3, "core": back.core})
            (tmp_path / "new.toml").write_text(maps.written(back))
            run("shard", "map", "apply", str(tmp_path / "new.toml"), "--yes")
            faults.start(here.lab, "s4/0")
            run("server", "join", "s4", "--yes", "--over", "0.5")
            until(lambda: "s4/0" in routing.at.values(), "s4 got nothing", 10.0)
            told = maps.load(map_file)
            assert told.version == 4 and [shard.primary for shard in told.shard].count("s4/0") == 1
            time.sleep(0.3)
        ended = time.monotonic_ns()
        for kind in (STREAM_OUT, STREAM_IN):
            made.halt(kind)
        for way in (made.ledger.out, made.ledger.into):
            became = stream.became(way, began, ended)
            assert (became.lost, became.sent > 1000) == (0, True), became
        assert asked(here) == everybody

    @pytest.mark.lab
    def test_what_a_core_cannot_follow_is_told_and_forwarding_goes_on(here: Scene, call: object) -> None:
        run, map_file = call, here.lab.folder / "map.toml"
        assert callable(run)
        right = map_file.read_text()
        try:
            map_file.write_text(right.replace("version = 4", "version = 9").replace("'s2/0'\nrepl", "'s1/0'\nrepl"))
            until(lambda: "is another core's, too" in run("shard", "map", "show").output, "nobody says so", 10.0, 0.2)
            everybody = asked(here)
            assert everybody.alive == everybody.established
        finally:
            map_file.write_text(right)
        until(lambda: "is another core's" not in run("shard", "map", "show").output, "it goes on saying so", 10.0, 0.2)
