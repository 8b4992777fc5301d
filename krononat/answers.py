"""What clients of the control socket are told: status, memory, configuration; and deletions, which the worker carries out.

About shards and the cluster: `cluster_answers`; about the clock: `clock_answers`.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal, NamedTuple

from krononat import bfd, growth, memory, reload, speaking, usage, view
from krononat.client import BAD_CONFIG, Trouble
from krononat.clock_answers import ClockAnswers
from krononat.cluster import written
from krononat.cluster_answers import ClusterAnswers
from krononat.config import ConfigError, canonical, read
from krononat.control import Answer, Handler, error
from krononat.crew import Crew
from krononat.following import Follower
from krononat.herald import Herald
from krononat.interfaces import Facts
from krononat.lines import Line
from krononat.memory import Memory
from krononat.models import Config
from krononat.neighbours import Neighbours
from krononat.quarantine import Quarantine
from krononat.view import ticks
from shards import membership, xsk
from shards.notes import Notes
from shards.outcomes import OUTCOMES, PASS
from shards.state import State
from shards.steering import Steering

DELETE_AT_ONCE = 256  # sessions that a worker ends between two breaths
PATIENCE = 20_000  # ticks that a deletion may take
NEIGHBOURS_SHOWN = 64
TELL_EACH = 1000  # ticks between two times that a worker is told of what it has not done
LATE = 10_000  # ticks after which people are told as well
_ANEW = "stop the appliance, start it with FILE"


class Parts(NamedTuple):
    """What a running appliance consists of. `devices`, `steerings` and `modes` by port; a memif port is a Line."""

    config: Config
    state: State
    memory: Memory
    sockets: xsk.Sockets
    notes: Notes
    devices: list[Facts]
    steerings: list[Steering | Line]
    modes: list[str]
    neighbours: Neighbours
    crew: Crew
    cpu: int
    began: int  # tick
    quarantine: Quarantine
    follower: Follower | None = None  # of a core that is alone there is none
    herald: Herald | None = None  # of one that announces nothing
    readdress: Callable[[Config, Config], None] | None = None  # before, after: have the kernel answer for other pools


class _Deletion(NamedTuple):
    reply: Answer
    parts: deque[list[list[int]]]
    since: int


class Answers:
    """The handlers of all requests."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.cluster = ClusterAnswers(parts.crew.send, parts.config.cluster is not None)
        self.clock = ClockAnswers(parts.crew.send, parts.state, parts.config.server.movable_clock)
        self._deletions: deque[_Deletion] = deque()
        self._deleted = 0  # by the first of them, so far
        self._unsettled: dict[str, Any] = {}  # what the worker was told to put in force and, as far as is known, has not
        self._told_at = self._changed_at = ticks()
        self._usage = (parts.began, 0.0, 0.0)  # tick, CPU seconds of the worker until then, percent

    @property
    def config(self) -> Config:
        """What is gone by now: live changes are in it."""
        return self._parts.config

    def handlers(self) -> Mapping[str, Handler]:
        """By the word in "do"."""
        own = {
            "status": self._status,
            "memory": self._memory,
            "delete": self._delete,
            "config": self._config,
            "replace": self._replace,
            "quarantine": self._quarantine,
            "bfd": self._bfd,
            "map": self._map,
            "drain": self._drain,
            "apply": self._apply,
            "close": self._close,
            "pool": self._pool,
        }
        return {**own, **self.cluster.handlers(), **self.clock.handlers()}

    def _memory(self, _: dict[str, Any], reply: Answer) -> None:
        reply({"ok": True}, [memory.read_only(self._parts.memory.descriptor)])

    def _config(self, _: dict[str, Any], reply: Answer) -> None:
        reply({"ok": True, "config": canonical(self._parts.config)})

    def _apply(self, request: dict[str, Any], reply: Answer) -> None:
        """Go by another configuration from now on, where that can be; `dry`: only say what would change."""
        self._go_by(_read(str(request.get("config", ""))), request.get("dry") is True, reply)

    def _close(self, request: dict[str, Any], reply: Answer) -> None:
        """Close external addresses to those who are not paired with them, or (`undo`) open them again."""
        try:
            addresses = [IPv4Address(text) for text in request.get("addresses", [])]
        except (ValueError, TypeError) as wrong:
            raise Trouble("not addresses", str(wrong), "see `krononat pool drain --help`") from None
        after = reload.drained(self._parts.config, addresses, request.get("undo") is True)
        self._go_by(_read(canonical(after)), request.get("dry") is True, reply)

    def _pool(self, request: dict[str, Any], reply: Answer) -> None:
        """Give a pool other prefixes, or exclude others of its addresses; `dry`: only say what would change."""
        verb, name = request.get("verb"), request.get("pool")
        try:
            prefixes = [IPv4Network(text) for text in request.get("prefixes", [])]
        except (ValueError, TypeError) as wrong:
            raise Trouble("not prefixes", str(wrong), "see `krononat pool add --help`") from None
        if verb not in growth.VERBS or not isinstance(name, str) or not prefixes:
            raise Trouble("not a change of a pool", f"`verb` is one of {', '.join(growth.VERBS)}", "see `krononat pool --help`")
        after = growth.changed(self._parts.config, verb, name, prefixes)
        self._go_by(_read(canonical(after)), request.get("dry") is True, reply)

    def _go_by(self, after: Config, dry: bool, reply: Answer) -> None:
        plan = reload.plan(self._parts.config, after)
        refused = self._refusal(plan, after)
        told = {"ok": True, "live": plan.live, "restart": plan.restart, "applied": False, "pools": []}
        if not plan.restart:
            told["pools"] = growth.told(self._parts.state, after)
        if dry or not (plan.live or plan.restart):
            reply(told | {"refused": refused.why if refused and not plan.restart else ""})
            return
        if refused:
            raise Trouble("this cannot change while it runs; nothing was changed", refused.why, refused.remedy)
        self._change(after)
        reply(told | {"applied": True})

    def _refusal(self, plan: reload.Plan, after: Config) -> growth.Refusal | None:
        """Why a configuration cannot be gone by without a restart, or not now."""
        if plan.restart:
            return growth.Refusal(reload.because(plan, after), _ANEW)
        if why := reload.room(self._parts.state, after):
            return growth.Refusal(why, _ANEW)
        if (follower := self._parts.follower) and (why := follower.misfit(after)):
            remedy = "let the map say nothing of `external` (krononat shard map apply), then this; or start anew with both"
            return growth.Refusal(why, remedy)
        return growth.refusal(self._parts.state, after)

    def _change(self, after: Config) -> None:
        """Write what is to be, then have the worker put it in force. It is told again until it has done so."""
        parts = self._parts
        if self._unsettled and not self._is_settled():
            raise Trouble("the change before is not in force yet", "the worker was told, and has not done it", "try again")
        self._readdress(parts.config, after)
        pools = growth.orders(parts.state, after)
        memory.populate_addresses(parts.state, growth.new_rows(parts.state, pools))
        message: dict[str, Any] = {"do": "settle", "settings": reload.prepare(parts.state, after), "pools": pools}
        if speaking.properties(after) != speaking.properties(parts.config):
            message["bgp"] = speaking.orders(after, parts.follower.cluster.map if parts.follower else None)
        if not parts.crew.send(message):
            self._readdress(after, parts.config)
            raise Trouble("the worker cannot be told now", "nothing was changed", "try again")
        self._unsettled, self._told_at, self._changed_at = message, ticks(), ticks()
        reload.close(parts.state, after)
        if parts.follower:
            parts.follower.configure(after)
        self._parts = parts._replace(config=after)

    def _readdress(self, before: Config, after: Config) -> None:
        if self._parts.readdress:
            self._parts.readdress(before, after)

    def _is_settled(self) -> bool:
        state, told = self._parts.state, self._unsettled
        return reload.in_force(state, told["settings"]) and membership.is_in_force(state, told["pools"])

    def _settle(self, now: int) -> None:
        """A worker may have died before it did what it was told."""
        if self._is_settled():
            self._unsettled = {}
        elif now - self._told_at >= TELL_EACH and self._parts.crew.send(self._unsettled):
            self._told_at = now

    def _waiting(self) -> list[str]:
        """What an operator should know of a change that a worker does not make: no address goes that is in use."""
        late = self._unsettled and ticks() - self._changed_at > LATE
        return ["warning: what was changed last is not in force: an address that is to go is in use again"] if late else []

    def go_on(self) -> None:
        """Of a worker that was taken over: have it do what it may not have heard."""
        pools = growth.orders(self._parts.state, self._parts.config)
        self._unsettled = {"do": "settle", "settings": {}, "pools": pools} if pools else {}

    def _map(self, _: dict[str, Any], reply: Answer) -> None:
        follower = self._parts.follower
        if follower is None:
            told = "its configuration has no [cluster]"
            raise Trouble("this core is alone", told, "krononat config explain cluster")
        reply({"ok": True, "me": follower.cluster.me, "map": follower.status(), "text": written(follower.cluster.map)})

    def _replace(self, _: dict[str, Any], reply: Answer) -> None:
        """Begin it; how it goes on, `status` says."""
        self._parts.crew.replace()
        reply({"ok": True, "replacement": self._parts.crew.replacement})

    def _quarantine(self, request: dict[str, Any], reply: Answer) -> None:
        quarantine = self._parts.quarantine
        cleared = quarantine.clear() if request.get("clear") is True else 0
        reply({"ok": True, "cleared": cleared, "quarantine": quarantine.rows(), **quarantine.status()})

    def _drain(self, request: dict[str, Any], reply: Answer) -> None:
        """The herald's next turn, which ends this one of the supervisor, has the worker told."""
        on, herald = request.get("on"), self._parts.herald
        if not isinstance(on, bool):
            raise Trouble("not a request of the kind 'drain'", "'on' is true or false", "see `krononat server drain`")
        if herald:
            herald.draining = on
        reply({"ok": True, "draining": on, "announces": herald is not None})

    def _bfd(self, _: dict[str, Any], reply: Answer) -> None:
        reply({"ok": True, "bfd": bfd.rows(self._parts.state, self._names(), ticks())})

    def _names(self) -> list[str]:
        return [port.name for _, port in self._parts.config.interfaces.named()]

    # --- deletions ----------------------------------------------------------------------------------------------------

    def _delete(self, request: dict[str, Any], reply: Answer) -> None:
        lines = request.get("lines")
        if not isinstance(lines, list) or not all(map(_is_line, lines)):
            raise Trouble("not a deletion", "`lines` is a list of [line, generation]", "see `krononat sessions delete`")
        if not lines:
            reply({"ok": True, "deleted": 0})
            return
        parts = deque(lines[at : at + DELETE_AT_ONCE] for at in range(0, len(lines), DELETE_AT_ONCE))
        self._deletions.append(_Deletion(reply, parts, ticks()))
        if len(self._deletions) == 1:
            self._delete_part()

    def _delete_part(self) -> None:
        """Give the worker the next part of the first deletion; it answers each."""
        part = self._deletions[0].parts.popleft()
        if not self._parts.crew.send({"do": "delete", "lines": part}):
            self.refuse_deletions()

    def deleted(self, count: int) -> None:
        """The worker has ended so many sessions of the part it was given."""
        if not self._deletions:
            return  # it was refused meanwhile
        self._deleted += count
        if not self._deletions[0].parts:
            self._deletions.popleft().reply({"ok": True, "deleted": self._deleted})
            self._deleted = 0
        if self._deletions:
            self._delete_part()

    def refuse_deletions(self) -> None:
        """The worker is gone, or does not answer: who waits is told so."""
        trouble = Trouble("the worker cannot delete now", f"{self._deleted} sessions were ended before", "try again")
        while self._deletions:
            self._deletions.popleft().reply(error(trouble))
        self._deleted = 0

    def tire(self, now: int) -> None:
        """Give up on deletions that take too long, and measure the worker's use of its CPU; call it now and then."""
        if self._deletions and now - self._deletions[0].since > PATIENCE:
            self.refuse_deletions()
        if self._unsettled:
            self._settle(now)
        self.cluster.tire(now)
        self.clock.tire(now)
        before, used, _ = self._usage
        if now - before >= 1000:
            using = _cpu_seconds(self._parts.crew.pid)
            self._usage = (now, using, max(100_000 * (using - used) / (now - before), 0.0))

    # --- status -------------------------------------------------------------------------------------------------------

    def _status(self, _: dict[str, Any], reply: Answer) -> None:
        parts = self._parts
        ports = [self._port(number) for number in range(len(parts.devices))]
        totals = view.totals(parts.state)
        punted = sum(port["steering"][told.name] for port in ports for told in OUTCOMES if told.fate == PASS)
        status = {
            "server": parts.config.server.name,
            "pid": os.getpid(),
            "uptime_s": round((ticks() - parts.began) / 1000, 1),
            "worker": self._worker(),
            "spare": {"state": parts.crew.spare(), "pid": parts.crew.spare_pid()},
            "quarantined": parts.quarantine.status(),
            "pages": parts.memory.pages,
            "sessions": totals["sessions"],
            "mappings": totals["mappings"],
            "packets": _with_punted(view.fates(parts.state), punted),
            "alarms": usage.sentences(usage.alarms(parts.state, [pool.name for pool in parts.config.pool])) + self._waiting(),
            "frames": self._frames(),
            "ports": ports,
            "bfd": bfd.summary(parts.state, self._names()),
            "neighbours": self._neighbours(),
        }
        if parts.follower:
            status["map"] = parts.follower.status()
        reply({"ok": True, "status": status})

    def _worker(self) -> dict[str, Any]:
        crew = self._parts.crew
        return {
            "pid": crew.pid,
            "ready": crew.ready_at != 0,
            "restarts": crew.restarts,
            "takeover_ms": crew.takeover_ms,
            "replacement": crew.replacement,
            "cpu": self._parts.cpu,
            "cpu_percent": round(self._usage[2], 1),
            "heartbeat_ms": ticks() - crew.breathed_at,
            "longest_breath_us": int(self._parts.state.core[0]["longest_breath_us"]),
            "rest_ms": int(self._parts.state.core[0]["rest"]),
            "late_compilations": int(self._parts.state.core[0]["late_compilations"]),
        }

    def _port(self, number: int) -> dict[str, Any]:
        parts = self._parts
        side, port = list(parts.config.interfaces.named())[number]
        row, steering = parts.state.ports[number], parts.steerings[number]
        told = {
            "interface": port.name,
            "side": side,
            "address": str(IPv4Address(int(row["address"]))),
            "mac": bytes(row["mac"]).hex(":"),
            "mtu": int(row["mtu"]),
            "vlan": int(row["vlan"]),
            "leg": _leg(row),
            "xdp_mode": parts.modes[number],
            "queues": parts.devices[number].queues,
            "steering": {name: packets for name, (packets, _) in steering.count().items()},
        }
        if isinstance(steering, Line):
            return told | {"memif": steering.status()}
        return told | {"sockets": self._sockets(number, "fd"), "control_sockets": self._sockets(number, "control")}

    def _sockets(self, number: int, which: Literal["fd", "control"]) -> dict[str, int]:
        """The kernel's counters of a port's sockets, of data or of control."""
        queues = [queue for queue in self._parts.sockets.description["queues"] if queue["port"] == number]
        counted = [xsk.statistics(queue[which]) for queue in queues]
        return {name: sum(each[name] for each in counted) for name in counted[0]}

    def _frames(self) -> dict[str, int]:
        description = self._parts.sockets.description
        lost = int(self._parts.notes.ledger[0]["lost"])  # with dead workers and dead memif servers
        return {"all": description["frames"], "ring_entries": description["entries"], "lost": lost}

    def _neighbours(self) -> dict[str, Any]:
        """How many in each state, and who they are, the first of them."""
        rows = self._parts.neighbours.describe()
        counts: dict[str, int] = {}
        for row in rows:
            counts[str(row["state"])] = counts.get(str(row["state"]), 0) + 1
        return {**counts, "rows": rows[:NEIGHBOURS_SHOWN]}


def _read(text: str) -> Config:
    """A configuration; Trouble with its first complaints where it is not a right one."""
    try:
        return read(text)
    except ConfigError as wrong:
        told = "; ".join(f"{complaint.key}: {complaint.what}" for complaint in wrong.complaints[:3])
        raise Trouble("this is not a right configuration", told, "krononat config check FILE", BAD_CONFIG) from None


def _with_punted(fates: dict[str, int], punted: int) -> dict[str, int]:
    """Fates of all packets, those included that the steering program gave to the kernel: received is what they add up to."""
    return fates | {"punt": punted, "received": fates["received"] + punted}


def _leg(row: Any) -> str:
    """How a port is doing, in a word."""
    if row["carrier_lost"]:
        return "no carrier"
    if row["peer_lost"]:
        return "peer lost" if row["dead"] else "peer lost, used for want of another"
    return "up"


def _is_line(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value)


def _cpu_seconds(pid: int | None) -> float:
    """CPU time a process has used, 0 where there is none: proc(5), fields utime and stime."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
