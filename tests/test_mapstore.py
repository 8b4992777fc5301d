"""Stores of the map, a file and a real etcd: compare-and-swap, one mover at a time, and what happens when the store is gone."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from krononat import mapstore
from krononat.etcd import Etcd, Unreachable
from krononat.mapstore import Busy, Changed, EtcdStore, FileStore, Gone, Seen, Store, Watcher
from shards.jit import PURE
from tests.etcd import Server

NONE = Seen("", 0)

if PURE:  # nothing here is compiled: once is enough

    @pytest.fixture(scope="module")
    def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
        server = Server(tmp_path_factory.mktemp("etcd"))
        yield server
        server.stop()

    @pytest.fixture(params=["file", "etcd"])
    def store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
        """Makes another client of one store, each time it is called."""
        if request.param == "file":
            return lambda: FileStore(tmp_path / "map.toml")
        url = request.getfixturevalue("etcd").url
        return lambda: EtcdStore([url], f"/{tmp_path.name}", lease_s=2)

    def until(what: Callable[[], object], seconds: float = 10.0) -> None:
        """Wait for it."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, "it did not come to that"
            time.sleep(0.01)

    # --- both ---------------------------------------------------------------------------------------------------------------

    def test_what_is_written_is_read_by_all(store: Callable[[], Store]) -> None:
        one, other = store(), store()
        assert one.read() == other.read() == NONE
        with one.lock("one") as lock:
            first = one.write("version = 1\n", NONE, lock)
            assert other.read() == first and first.text == "version = 1\n" and first.revision
            second = one.write("version = 2, größer\n", first, lock)
        assert other.read() == second != first

    def test_who_has_not_read_the_newest_writes_nothing(store: Callable[[], Store]) -> None:
        one, other = store(), store()
        with one.lock("one") as lock:
            first = one.write("a", NONE, lock)
            one.write("b", first, lock)
            with pytest.raises(Changed, match="somebody else has written"):
                other.write("c", first, lock)
            with pytest.raises(Changed):
                other.write("c", NONE, lock)
        assert one.read().text == "b"

    def test_there_is_one_mover_and_the_others_are_told_who(store: Callable[[], Store]) -> None:
        one, other = store(), store()
        with one.lock("rebalance by ann") as lock:
            assert lock.held()
            with pytest.raises(Busy, match="rebalance by ann moves shards now"):
                other.lock("bob")
        assert not lock.held()
        with pytest.raises(Changed, match="lost"):
            one.write("late", one.read(), lock)
        with other.lock("bob") as later:
            assert later.held()

    def test_of_many_movers_that_race_each_writes_what_it_has_read(store: Callable[[], Store]) -> None:
        """Each adds its mark to what stands there: none gets lost, none stands there twice, and never two at a time."""
        inside, most, refused = [0], [0], [0]

        def move(name: str) -> None:
            mine = store()
            for turn in range(4):
                while True:
                    try:
                        with mine.lock(name) as lock:
                            inside[0] += 1
                            most[0] = max(most[0], inside[0])
                            before = mine.read()
                            mine.write(f"{before.text}{name}{turn} ", before, lock)
                            inside[0] -= 1
                        break
                    except Busy:
                        refused[0] += 1
                        time.sleep(0.005)

        threads = [threading.Thread(target=move, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        written = store().read().text.split()
        assert sorted(written) == sorted(f"{name}{turn}" for name in "abc" for turn in range(4))
        assert most == [1] and refused[0] >= 0
        for name in "abc":
            assert [each for each in written if each[0] == name] == [f"{name}{turn}" for turn in range(4)]

    def test_of_two_that_write_at_once_without_the_same_map_one_wins(store: Callable[[], Store]) -> None:
        one = store()
        with one.lock("both") as lock:
            first, results = one.write("0", NONE, lock), list[str]()
            barrier = threading.Barrier(4)

            def write(name: str) -> None:
                barrier.wait()
                try:
                    store().write(name, first, lock)
                    results.append(name)
                except Changed:
                    pass

            threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
        assert results == [one.read().text]

    def test_a_watcher_sees_each_newer_map_and_never_waits(store: Callable[[], Store]) -> None:
        one = store()
        watcher = Watcher(store(), 0.02)
        try:
            until(lambda: "holds no map" in watcher.trouble)
            assert watcher.take() is None
            with one.lock("ann") as lock:
                first = one.write("a", NONE, lock)
                until(lambda: watcher.take() == first)
                assert watcher.take() is None and watcher.trouble == ""
                second = one.write("b", first, lock)
                until(lambda: watcher.take() == second)
        finally:
            watcher.close()

    # --- a file -------------------------------------------------------------------------------------------------------------

    def test_a_file_is_replaced_keeps_its_mode_and_leaves_nothing_behind(tmp_path: Path) -> None:
        (tmp_path / "real.toml").write_text("old")
        (tmp_path / "real.toml").chmod(0o640)
        (tmp_path / "map.toml").symlink_to("real.toml")
        store = FileStore(tmp_path / "map.toml")
        with store.lock("ann") as lock, open(tmp_path / "map.toml") as reader:
            store.write("new", store.read(), lock)
            assert reader.read() == "old"  # who was reading reads on
        assert (tmp_path / "map.toml").is_symlink() and (tmp_path / "real.toml").read_text() == "new"
        assert (tmp_path / "real.toml").stat().st_mode & 0o777 == 0o640
        assert {path.name for path in tmp_path.iterdir()} == {"real.toml", "map.toml", "map.toml.mover", "map.toml.write"}

    def test_a_mover_that_is_killed_holds_no_file(tmp_path: Path) -> None:
        store, (ready, tell) = FileStore(tmp_path / "map.toml"), os.pipe()
        child = os.fork()
        if child == 0:
            held = FileStore(tmp_path / "map.toml").lock("child")
            os.write(tell, b"x")
            time.sleep(60)
            os._exit(held.token and 0)
        os.read(ready, 1)
        with pytest.raises(Busy, match="child moves shards"):
            store.lock("parent")
        os.kill(child, 9)
        os.waitpid(child, 0)
        with store.lock("parent") as lock:
            assert lock.held()

    def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
        store = FileStore(tmp_path / "none" / "map.toml")
        assert store.read() == NONE
        with pytest.raises(Gone, match="cannot be locked: No such file"):
            store.lock("ann")
        (tmp_path / "folder").mkdir()
        with pytest.raises(Gone, match="cannot be read: Is a directory"):
            FileStore(tmp_path / "folder").read()

    # --- etcd ---------------------------------------------------------------------------------------------------------------

    def test_whose_lease_has_run_out_writes_nothing_and_does_not_hinder_the_next(etcd: Server) -> None:
        slow, quick = EtcdStore([etcd.url], "/fencing", lease_s=2), EtcdStore([etcd.url], "/fencing", lease_s=2)
        lock = slow.lock("slow")
        lock._ending.set()  # type: ignore[attr-defined]  # as if its process were stopped: it keeps nothing alive
        lock._thread.join()  # type: ignore[attr-defined]
        lock._ending.clear()  # type: ignore[attr-defined]
        until(lambda: not lock.held())
        taken: list[mapstore.Lock] = []

        def take() -> bool:
            with contextlib.suppress(Busy):
                taken.append(quick.lock("quick"))
            return bool(taken)

        until(take)
        with taken[0] as later:
            assert later.token > lock.token
            with pytest.raises(Changed, match="its lease has run out"):
                slow.write("late", NONE, lock)
            lock._until = time.monotonic() + 60  # type: ignore[attr-defined]  # it does not know yet: the store does
            with pytest.raises(Changed, match="the right to move shards is lost"):
                slow.write("late", NONE, lock)
            assert quick.write("in time", NONE, later).text == "in time"

    def test_a_lease_outlives_its_time_as_long_as_it_is_kept(etcd: Server) -> None:
        with EtcdStore([etcd.url], "/kept", lease_s=2).lock("ann") as lock:
            time.sleep(3.5)
            assert lock.held()
            with pytest.raises(Busy):
                EtcdStore([etcd.url], "/kept").lock("bob")

    def test_a_store_that_is_gone_is_told_in_words_and_the_lock_is_lost_with_it(tmp_path: Path) -> None:
        server = Server(tmp_path)
        store = EtcdStore([server.url], timeout_s=0.3, lease_s=2)
        watcher = Watcher(EtcdStore([server.url], timeout_s=0.3), 0.05)
        try:
            lock = store.lock("ann")
            first = store.write("version = 1", NONE, lock)
            until(lambda: watcher.take() == first)
            server.freeze()  # it takes connections, and answers nothing
            until(lambda: "does not answer" in watcher.trouble)
            began = time.monotonic()
            with pytest.raises(Gone, match="does not answer"):
                store.read()
            assert time.monotonic() - began < 3
            until(lambda: not lock.held())
            server.thaw()
            until(lambda: not watcher.trouble)
            server.stop()
            until(lambda: "Connection refused" in watcher.trouble)
            with pytest.raises(Gone, match="Connection refused"):
                store.lock("bob")
            server.start()
            until(lambda: not watcher.trouble)
            assert store.read().text == "version = 1" and watcher.take() is None
        finally:
            watcher.close()
            server.thaw()
            server.stop()

    def test_any_member_will_do(etcd: Server) -> None:
        client = Etcd(["http://127.0.0.1:9", etcd.url], 0.5)
        assert client.get("nothing").revision == 0
        with pytest.raises(Unreachable, match=r"127.0.0.1:9: Connection refused; http://127.0.0.1:10: Connection refused"):
            Etcd(["http://127.0.0.1:9", "http://127.0.0.1:10"], 0.5).get("nothing")

    def test_what_is_no_etcd_is_told(tmp_path: Path) -> None:
        import http.server

        class Other(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.send_response(404 if "range" in self.path else 200)
                self.end_headers()
                self.wfile.write(b"<html>")

            def log_message(self, format: str, *args: object) -> None: ...

        with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            with pytest.raises(Unreachable, match="404 <html>"):
                Etcd([url]).get("x")
            with pytest.raises(Gone, match="does not answer"):
                EtcdStore([url]).lock("ann")
            server.shutdown()

    @pytest.mark.parametrize(
        ("answer", "told"),
        [
            (b"nonsense\r\n\r\n", "nonsense"),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "Expecting value"),
            (b"HTTP/1.1 200 OK\r\n\r\n{}", "its answer lacks 'ID'"),
            (b'HTTP/1.1 200 OK\r\n\r\n{"ID": [1], "result": 5, "kvs": [6]}', "must be a string"),
            (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, "recursion"),
        ],
    )
    def test_whatever_answers_it_is_unreachable_and_nothing_worse(answer: bytes, told: str) -> None:
        import socketserver

        class Other(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.recv(1 << 16)
                self.request.sendall(answer)

        with socketserver.TCPServer(("127.0.0.1", 0), Other) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            etcd = Etcd([f"http://127.0.0.1:{server.server_address[1]}"])
            with pytest.raises(Unreachable, match=told):
                etcd.grant(10)
            if b"{}" not in answer:  # which is how it says that there is nothing
                for ask in (lambda: etcd.get("x"), lambda: etcd.keep(1)):
                    with pytest.raises(Unreachable):
                        ask()
            server.shutdown()
