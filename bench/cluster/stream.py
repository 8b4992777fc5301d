"""What became of a numbered stream: RFC 7680 (loss), RFC 4737 (late), RFC 5560 (duplicates), and the longest silence."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import NamedTuple

import numpy as np

from bench.cluster.ledger import CONNECTION, Ledger
from shards.state import Array

_PAUSE_NS, _PACES = 2_000_000, 10  # nothing left for that long, or for ten times as long as usual: the generator slept


class Became(NamedTuple):
    """Of the datagrams of one direction that left in a span of time."""

    sent: int
    lost: int
    duplicated: int
    late: int
    longest_gap_ms: float  # between two that came, one right after the other, or from the last that came to the last that left
    longest_way_ms: float  # from leaving to coming
    longest_pause_ms: float = 0.0  # between two that left: of whoever sent them, on a CPU that others want, too
    longest_silence_ms: float = 0.0  # the longest gap with the generator's own pauses in it


class Awake(NamedTuple):
    """A clock that stands still while the generator sleeps: it sends nothing then, and sees nothing of what comes.

    `edges`, `asleep`: when its pauses began and ended, ns, and for how long it had slept by then.
    """

    edges: Array
    asleep: Array

    def at(self, times: Array) -> Array:
        """These times (ns) by that clock."""
        return times - np.interp(times, self.edges, self.asleep) if len(self.edges) else times


def awake(datagrams: Array) -> Awake:
    """By when all datagrams of a direction left."""
    sent = datagrams["sent"][datagrams["sent"] > 0]
    pauses = np.diff(sent)
    long = np.flatnonzero(pauses > max(_PAUSE_NS, _PACES * np.median(pauses))) if len(pauses) else np.zeros(0, np.int64)
    slept = np.cumsum(pauses[long])
    asleep = np.stack((slept - pauses[long], slept), axis=1).ravel()
    return Awake(np.stack((sent[long], sent[long + 1]), axis=1).ravel() if len(long) else sent[:0], asleep)


def became(datagrams: Array, since_ns: int, until_ns: int) -> Became:
    """Of those that left in this span. A gap counts where its end lies in the span, or later if it was sent in it."""
    some = datagrams[(datagrams["sent"] >= since_ns) & (datagrams["sent"] < until_ns)]
    came = some[some["times"] > 0]
    lost, twice, late = len(some) - len(came), int(np.sum(came["times"] > 1)), int(came["late"].sum())
    way = int((came["came"] - came["sent"]).max(initial=0))
    pause = int(np.diff(some["sent"]).max(initial=0))
    edges = _edges(some["sent"], came["came"])
    gap, silence = (int(np.diff(clock.at(edges)).max(initial=0)) for clock in (awake(some), Awake(edges[:0], edges[:0])))
    return Became(len(some), lost, twice, late, gap / 1e6, way / 1e6, pause / 1e6, silence / 1e6)


def _edges(sent: Array, came: Array) -> Array:
    """When something came, in that order. Up to the last one's leaving: a stream that never returns is no short gap."""
    if not len(sent):
        return came
    return np.sort(np.concatenate((came, [came.min(initial=sent.min()), max(came.max(initial=0), sent.max())])))


def silence_ms(datagrams: Array, clock: Awake, since_ns: int, until_ns: int) -> float:
    """The longest time in this span in which none of these came, whenever they left: one that is late makes no silence.

    `clock`: see `awake`, of the direction whose datagrams they are.
    """
    came = datagrams["came"][datagrams["times"] > 0]
    heard = np.sort(came[(came > since_ns) & (came < until_ns)])
    return float(np.diff(clock.at(np.concatenate(([since_ns], heard, [until_ns])))).max()) / 1e6


class Survival(NamedTuple):
    """Of the connections that were established in a span of time: how many, and how many of them answered later on."""

    established: int
    alive: int

    @property
    def share(self) -> float:
        """Share of those alive; 0 where there were none: then nothing was shown."""
        return self.alive / self.established if self.established else 0.0


def survival(connections: Array, turned: int, since_ns: int, until_ns: int) -> Survival:
    """Of those whose first answer came in this span, and which were not closed: who answered in round `turned` as ever."""
    if connections.dtype != CONNECTION:
        raise TypeError("no connections")
    some = connections[(connections["established"] >= max(since_ns, 1)) & (connections["established"] < until_ns)]
    some = some[some["closed"] == 0]
    alive = (some["round"] > turned) & (some["moved"] == 0) & (some["refused"] == 0)
    return Survival(len(some), int(alive.sum()))


def owners(ledger: Ledger, alive: bool = False) -> int:
    """External TCP endpoints that two internal ones have had: connections of one endpoint share theirs, others must not.

    `alive`: of connections only that have answered again since they were established; what died with its owner is lost.
    """
    some = ledger.connections["external"] != 0
    return _too_many(shared(ledger, some & (ledger.connections["round"] > 1) if alive else some))


def reused(ledger: Ledger) -> int:
    """External endpoints of closed connections that other internal ones have had, too.

    None should: no scene lasts as long as a port is to rest (RFC 6888 REQ-8: 120 s).
    """
    closed = ledger.connections["external"][ledger.connections["closed"] == 1]
    return _too_many(shared(ledger, np.isin(ledger.connections["external"], closed[closed != 0])))


def shared(ledger: Ledger, chosen: Array) -> dict[int, list[int]]:
    """External endpoints of these connections that several internal ones have had: of each of these the first connection."""
    from bench.cluster.tcp import internal_of

    firsts: dict[int, dict[int, int]] = {}
    for row in map(int, np.flatnonzero(chosen)):
        firsts.setdefault(int(ledger.connections["external"][row]), {}).setdefault(internal_of(ledger, row), row)
    return {external: list(rows.values()) for external, rows in firsts.items() if len(rows) > 1}


def _too_many(sharing: dict[int, list[int]]) -> int:
    return sum(len(rows) - 1 for rows in sharing.values())


def story(ledger: Ledger, external: int, rows: list[int], killed: int) -> str:
    """Who has had an external endpoint: internal one, when its SYN left, whether it was answered before and after the kill."""
    from bench.cluster.tcp import internal_of

    parts = []
    for row in rows:
        one = ledger.connections[row]
        opened, established = (int(one[name]) - killed for name in ("opened", "established"))
        answered = "never answered" if not one["established"] else f"answered after {(established - opened) / 1e6:.1f} ms"
        later = ", ".join(name for name in ("moved", "refused", "closed") if one[name]) or f"last in round {one['round']}"
        parts.append(f"{endpoint(internal_of(ledger, row))} opened {opened / 1e6:+.1f} ms, {answered}, {later}")
    return f"{endpoint(external)}: {'; '.join(parts)}"


def endpoint(packed: int) -> str:
    """An endpoint (address << 16 | port), for people."""
    return f"{IPv4Address(packed >> 16)}:{packed & 0xFFFF}"
