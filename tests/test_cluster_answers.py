"""Questions about the cluster: a real control socket, and a worker that answers when the test wants it to."""

from __future__ import annotations

import selectors
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from krononat import client, cluster_answers
from krononat.client import TIMED_OUT, Trouble
from krononat.cluster_answers import ASKED_AT_MOST, PATIENCE, ClusterAnswers
from krononat.control import Control
from krononat.view import ticks


class Core:
    """A supervisor's control socket in a thread; `worker` answers requests, None: not now."""

    def __init__(self, path: str, clustered: bool = True) -> None:
        self.selector = selectors.DefaultSelector()
        self.answers = ClusterAnswers(self.send, clustered)
        self.control = Control(path, self.selector, self.answers.handlers())
        self.asked: list[dict[str, Any]] = []
        self.does: list[Any] = []
        self.up = True
        self.worker: Any = lambda request: {"ok": True, "me": "s1/0", "echo": request}
        self.stopping = False
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def send(self, message: dict[str, Any]) -> bool:
        """The channel to the worker; what it answers comes a turn later."""
        if not self.up:
            return False
        self.asked.append(message)
        answer = self.worker(message["request"])
        if answer is not None:
            self.does.append(lambda: self.answers.answered({"answer": answer, "id": message["id"]}))
        return True

    def serve(self) -> None:
        """Loop of the thread."""
        while not self.stopping:
            for key, _ in self.selector.select(0.005):
                key.data()
            while self.does:
                self.does.pop(0)()

    def close(self) -> None:
        """End the thread."""
        self.stopping = True
        self.thread.join()
        self.control.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s1.sock")


@pytest.fixture
def core(path: str) -> Iterator[Core]:
    made = Core(path)
    yield made
    made.close()


def in_background(path: str, count: int = 1) -> tuple[list[threading.Thread], list[Trouble]]:
    """So many clients ask; what they are refused with."""
    troubles: list[Trouble] = []

    def ask() -> None:
        try:
            client.ask(path, {"do": "move"})
        except Trouble as trouble:
            troubles.append(trouble)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, troubles


def wait_for(condition: Any) -> None:
    """Until it holds; the test's own time limit ends a vain wait."""
    while not condition():
        threading.Event().wait(0.005)


def test_the_worker_is_asked_and_its_answer_comes_back_whole(core: Core, path: str) -> None:
    request = {"do": "migrate", "shard": 3, "target": "s2/0", "dry_run": True}
    assert client.ask(path, request) == {"ok": True, "me": "s1/0", "echo": request}
    assert core.asked == [{"do": "ask", "id": 1, "request": request}]


def test_rows_that_come_in_parts_are_joined(core: Core, path: str) -> None:
    core.worker = lambda request: {
        "ok": True,
        "me": "s1/0",
        "rows": [{"shard": request["from"]}, {"shard": request["from"] + 1}],
        "more": request["from"] + 2 if request["from"] < 4 else None,
    }
    assert client.rows(path, "shards") == ("s1/0", [{"shard": number} for number in range(6)])


def test_answers_find_their_askers_in_any_order(core: Core, path: str) -> None:
    core.worker = lambda _: None
    got: dict[int, Any] = {}

    def ask(shard: int) -> None:
        got[shard] = client.ask(path, {"do": "resync", "shard": shard})["told"]

    threads = [threading.Thread(target=ask, args=(shard,)) for shard in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(core.asked) == 4)
    for message in reversed(core.asked):
        told = {"answer": {"ok": True, "told": message["request"]["shard"]}, "id": message["id"]}
        core.does.append(lambda told=told: core.answers.answered(told))
    for thread in threads:
        thread.join()
    assert got == {shard: shard for shard in range(4)}


def test_a_refusal_of_the_worker_keeps_its_words_and_its_status(core: Core, path: str) -> None:
    core.worker = lambda _: {"ok": False, "error": {"what": "no shard 9", "why": "w", "next": "n", "status": 4}}
    with pytest.raises(Trouble) as refused:
        client.ask(path, {"do": "verify", "shard": 9})
    assert (refused.value.what, refused.value.why, refused.value.remedy, refused.value.status) == ("no shard 9", "w", "n", 4)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({"do": "migrate", "target": "s2/0"}, "'shard' is missing, a whole number"),
        ({"do": "migrate", "shard": True, "target": "s2/0"}, "'shard' is a whole number"),
        ({"do": "migrate", "shard": -1, "target": "s2/0"}, "'shard' is a whole number"),
        ({"do": "migrate", "shard": 65536, "target": "s2/0"}, "'shard' is a whole number"),
        ({"do": "migrate", "shard": 0, "target": "s2"}, "'target' is a core"),
        ({"do": "migrate", "shard": 0, "target": "s2/0\n"}, "'target' is a core"),
        ({"do": "migrate", "shard": 0, "target": 7}, "'target' is a core"),
        ({"do": "migrate", "shard": 0, "target": "s2/0", "dry_run": 1}, "'dry_run' is true or false"),
        ({"do": "move", "shard": 0}, "there is no 'shard' in it"),
        ({"do": "shards", "from": 1.5}, "'from' is a whole number"),
        ({"do": "resync", "shard": "0"}, "'shard' is a whole number"),
    ],
)
def test_what_is_no_request_never_reaches_the_worker(core: Core, path: str, request_: dict[str, Any], why: str) -> None:
    with pytest.raises(Trouble) as refused:
        client.ask(path, request_)
    assert refused.value.why.startswith(why) and request_["do"] in refused.value.what
    assert core.asked == []


def test_a_worker_that_is_down_is_told_of(core: Core, path: str) -> None:
    core.up = False
    with pytest.raises(Trouble, match="the worker cannot answer now"):
        client.ask(path, {"do": "cores"})


def test_a_worker_that_dies_meanwhile_is_told_of_and_its_late_answer_dropped(core: Core, path: str) -> None:
    core.worker = lambda _: None
    threads, troubles = in_background(path, 2)
    wait_for(lambda: len(core.asked) == 2)
    core.does.append(core.answers.refuse)
    for thread in threads:
        thread.join()
    assert [trouble.what for trouble in troubles] == ["the worker ended before it answered"] * 2
    core.does.append(lambda: core.answers.answered({"answer": {"ok": True}, "id": 1}))
    core.worker = lambda _: {"ok": True, "move": None}
    assert client.ask(path, {"do": "move"})["move"] is None


def test_a_silent_worker_costs_an_error_in_time(core: Core, path: str) -> None:
    core.worker = lambda _: None
    threads, troubles = in_background(path)
    wait_for(lambda: core.asked)
    core.does.append(lambda: core.answers.tire(ticks() + PATIENCE - 1000))
    wait_for(lambda: not core.does)
    assert troubles == []
    core.does.append(lambda: core.answers.tire(ticks() + PATIENCE + 1))
    threads[0].join()
    assert troubles[0].status == TIMED_OUT and "may happen all the same" in troubles[0].why


def test_only_so_much_is_asked_at_once(core: Core, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_answers, "ASKED_AT_MOST", 2)
    assert ASKED_AT_MOST > 2
    core.worker = lambda _: None
    threads, _ = in_background(path, 2)
    wait_for(lambda: len(core.asked) == 2)
    with pytest.raises(Trouble, match="too much is asked"):
        client.ask(path, {"do": "move"})
    core.does.append(core.answers.refuse)
    for thread in threads:
        thread.join()


def test_a_core_alone_says_so(path: str) -> None:
    alone = Core(path, clustered=False)
    try:
        with pytest.raises(Trouble, match="this core is alone"):
            client.ask(path, {"do": "shards"})
        assert alone.asked == []
    finally:
        alone.close()
