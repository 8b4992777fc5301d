"""Three cores without packets: real control sockets and `ClusterAnswers`, and workers that keep a map in Python.

Everything that a command sees goes through the same sockets and the same checks as with real workers. A move goes on by a stage
each time it is looked at.
"""

from __future__ import annotations

import selectors
import threading
from pathlib import Path
from typing import Any

from krononat import cluster as maps
from krononat.cluster_answers import ClusterAnswers
from krononat.control import Control, Handler
from krononat.mapstore import FileStore

CORES = ("s1/0", "s2/0", "s3/0")
STAGES = ("copying", "handing over", "shunting", "done")


class Shard:
    """Where a shard is."""

    def __init__(self, number: int, primary: str, backup: str, sessions: int) -> None:
        self.number, self.primary, self.backup, self.sessions = number, primary, backup, sessions
        self.active, self.passive, self.epoch = primary, backup, 1
        self.in_sync, self.differing, self.alarms = True, [], []  # type: bool, list[list[int]], list[str]


def map_text(shards: list[Shard], cores: tuple[str, ...] = CORES, version: int = 1) -> str:
    """A map of these cores and shards."""
    told = [f"version = {version}"]
    for number, name in enumerate(cores, 1):
        told += ["[[core]]", f'name = "{name}"', f'replication = "192.168.77.{number}:7600"', f'shunt = "192.0.2.{number}"']
        told.append(f'key = "{name:-<40}"')
    for shard in shards:
        told += ["[[shard]]", f"id = {shard.number}", f'primary = "{shard.primary}"', f'backup = "{shard.backup}"']
    return "\n".join(told) + "\n"


class Cluster:
    """The cores, and the thread that serves all their sockets."""

    def __init__(self, folder: Path, shards: list[Shard]) -> None:
        self.shards = shards
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.dead: set[str] = set()
        self.fails = ""  # why a move fails, empty: it does not
        self.stuck = False
        self.move: dict[str, Any] | None = None
        self._looks = 0
        self._later: list[Any] = []
        self._selector = selectors.DefaultSelector()
        self.store = FileStore(folder / "map.toml")
        self.follow = True  # cores go by what stands in the store; else by what stood there first
        (folder / "map.toml").write_text(map_text(shards))
        self._first = self.store.read().text
        self._controls = [self._core(folder / f"{name.replace('/', '-')}.sock", name) for name in CORES]
        self._stopping = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _core(self, path: Path, name: str) -> Control:
        def send(message: dict[str, Any]) -> bool:
            self.asked.append((name, message["request"]))
            told = {"answer": self.answer(name, message["request"]), "id": message["id"]}
            self._later.append(lambda: answers.answered(told))
            return name not in self.dead

        answers = ClusterAnswers(send, True)
        own: dict[str, Handler] = {
            "map": lambda _, reply: reply(self._map(name)),
            "drain": lambda request, reply: reply(self._drain(name, request)),
        }
        return Control(str(path), self._selector, {**answers.handlers(), **own})

    def _drain(self, me: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the supervisor of a core answers."""
        self.asked.append((me, request))
        return {"ok": True, "draining": request["on"], "announces": False}

    def _map(self, me: str) -> dict[str, Any]:
        """What the supervisor of a core answers."""
        text = self.store.read().text if self.follow else self._first
        told = maps.read(text)
        alarms = [] if self.follow else ["the map is not followed: it is of next year"]
        facts = {"version": told.version, "digest": told.digest, "cores": len(told.core), "room": 16, "reachable": True}
        return {"ok": True, "me": me, "map": {**facts, **self.where(), "alarms": alarms}, "text": text}

    def where(self) -> dict[str, Any]:
        """Where the map is kept."""
        return {"store": [], "prefix": "/krononat", "file": str(self.store.path)}

    def _marks(self, me: str, _: dict[str, Any]) -> dict[str, Any]:
        told = maps.read(self.store.read().text if self.follow else self._first)
        return {"rows": [{"core": name, "version": told.version, "digest": told.digest} for name in told.names()], "more": None}

    def _serve(self) -> None:
        while not self._stopping:
            for key, _ in self._selector.select(0.01):
                key.data()
            while self._later:
                self._later.pop(0)()

    def close(self) -> None:
        """End the thread."""
        self._stopping = True
        self._thread.join()
        for control in self._controls:
            control.close()

    def asked_for(self, what: str) -> list[tuple[str, dict[str, Any]]]:
        """Requests of a kind: who was asked what."""
        return [(name, request) for name, request in self.asked if request["do"] == what]

    # --- workers ------------------------------------------------------------------------------------------------------

    def answer(self, me: str, request: dict[str, Any]) -> dict[str, Any]:
        """What the worker of a core answers."""
        if "shard" in request and request["shard"] >= len(self.shards):
            error = {"what": "no such shard", "why": "the map has none", "next": "krononat shard list", "status": 4}
            return {"ok": False, "error": error}
        answer: dict[str, Any] = getattr(self, f"_{request['do']}")(me, request)
        return {"ok": True, "me": me, **answer}

    def _shards(self, me: str, request: dict[str, Any]) -> dict[str, Any]:
        """Two rows at a time."""
        at = request["from"]
        rows = [self._row(me, shard) for shard in self.shards[at : at + 2]]
        return {"rows": rows, "more": at + 2 if at + 2 < len(self.shards) else None}

    def _row(self, me: str, shard: Shard) -> dict[str, Any]:
        role = {shard.active: "active", shard.passive: "passive"}.get(me, "absent")
        return {
            "shard": shard.number, "primary": shard.primary, "backup": shard.backup, "active": shard.active,
            "passive": shard.passive, "role": role, "side": 0, "epoch": shard.epoch,
            "in_sync": None if role == "absent" else shard.in_sync,
            "sessions": shard.sessions if role != "absent" else 0, "mappings": shard.sessions // 2, "wanted": 0, "shunted": 0,
            "alarms": shard.alarms,
        }  # fmt: skip

    def _cores(self, me: str, _: dict[str, Any]) -> dict[str, Any]:
        rows = [
            {
                "core": name,
                "evidence": "closed" if name in self.dead else "alive",
                "endpoint": f"tcp://192.168.77.{number}:7600",
                "active": sum(shard.active == name for shard in self.shards),
                "passive": sum(shard.passive == name for shard in self.shards),
                "sessions": sum(shard.sessions for shard in self.shards if name in (shard.active, shard.passive)),
            }
            for number, name in enumerate(maps.read(self.store.read().text if self.follow else self._first).names(), 1)
        ]
        return {"rows": rows, "more": None}

    def _replication(self, me: str, _: dict[str, Any]) -> dict[str, Any]:
        rows = []
        for shard in self.shards:
            if me in (shard.active, shard.passive):
                peer = shard.passive if me == shard.active else shard.active
                rows.append(
                    {
                        "shard": shard.number, "peer": peer, "role": "active" if me == shard.active else "passive",
                        "epoch": shard.epoch, "evidence": "alive", "in_sync": shard.in_sync, "lag_records": 12,
                        "lag_bytes": 768, "lag_s": 0.004, "gaps": 1, "resyncs": 1,
                        "refused": {"lost": 1, "corrupted": 0}, "alarms": shard.alarms,
                    }
                )  # fmt: skip
        return {"rows": rows, "more": None}

    def _migrate(self, me: str, request: dict[str, Any]) -> dict[str, Any]:
        shard, target = self.shards[request["shard"]], request["target"]
        kind = "backup" if request.get("copies") else "swap" if target == shard.passive else "copy"
        plan = {"shard": shard.number, "source": shard.active, "target": target, "kind": kind, "sessions": shard.sessions}
        plan |= {"mappings": shard.sessions // 2, "epoch": shard.epoch + 1, "warnings": []}
        if request.get("dry_run"):
            return {"plan": plan, "move": None}
        self._looks = 0
        self.move = {"id": len(self.asked), "shard": shard.number, "source": shard.active, "target": target}
        self.move["copies"] = bool(request.get("copies"))
        return {"plan": plan, "move": self.move["id"]}

    def _move(self, me: str, _: dict[str, Any]) -> dict[str, Any]:
        if self.move is None:
            return {"move": None}
        stage, fails = STAGES[0 if self.stuck else self._looks], self.fails
        done = stage == "done" or (bool(fails) and stage == "handing over")
        if done and not fails:
            self._arrive(self.shards[self.move["shard"]], self.move["target"], self.move["copies"])
        self._looks += not done
        figures = {"duration_ms": 312, "lag_records": 3 - self._looks, "sessions": self.shards[self.move["shard"]].sessions}
        figures |= {"mappings": 2, "pause_ms": 3.1, "shunted": 40, "lost": 0}
        return {"move": {**self.move, "stage": stage, "done": done, "succeeded": not fails, "why": fails, **figures}}

    def _arrive(self, shard: Shard, target: str, copies: bool) -> None:
        if copies:
            shard.passive = target
        elif shard.active != target:
            shard.active, shard.passive, shard.epoch = target, shard.active, shard.epoch + 1

    def _verify(self, me: str, request: dict[str, Any]) -> dict[str, Any]:
        shard = self.shards[request["shard"]]
        found = {"shard": shard.number, "peer": shard.passive, "done": not request.get("begin") and not self.stuck}
        return {"verification": {**found, "rows": shard.sessions, "differing": shard.differing, "error": ""}}

    def _resync(self, me: str, request: dict[str, Any]) -> dict[str, Any]:
        shard = self.shards[request["shard"]]
        return {"resync": {"shard": shard.number, "source": shard.active, "target": shard.passive}}
