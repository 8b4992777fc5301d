"""Is a core fit to have traffic? Facts in, a judgement with reasons out; pure, and slow to change its mind.

A fact is bad when it has been at its bad limit or beyond for a while, and good again only when it has been at its good limit or
below for longer. In between it stays what it was, so a core near a limit does not move its shards to and fro: each change of
mind is a change of routes. What is so bad that nothing moves any more needs no judgement here: beats and BFD end by themselves.

So one standstill of the packet loop is told, and no more. When it is looked at it is over, and whoever minds has acted: the
speaker withdrew our routes after 150 ms of silence, a switch's BFD did as soon. Worse routes for some time after would move a
shard that is well to its backup, which hands what it does not know back to us, and move it home again: up to four changes in
place of two; and where a host gives its CPUs to somebody else for a moment, for all cores at once. Standstills that come again
are unfitness, from the third within half a minute on, as the third flap is damped in routes (RFC 2439, by the usual figures);
that liveness alone is no reason to change the mind each time, RFC 5882 (3.2) has as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# Fact, when it is bad, when it is good again, for how many ms until it is believed, each; whether it makes the core unfit or is
# told only; and what people are told. A pool without ports is told only: elsewhere there are no others, and who uses them up
# would send the shard from core to core. That a copy is not in sync is a matter of the role (`rejoining`).
_PICTURE = """
fact            bad    good   bad-for  good-for  means  told
stall_ms        500    100    0        10000     alarm  the packet loop stood still for {value:.0f} ms
stalls          3      1      0        10000     unfit  the packet loop stood still {value:.0f} times within half a minute
rx_stuck_ms     200    0      0        5000      unfit  frames have waited for {value:.0f} ms in a ring that is not emptied
table_fill      0.95   0.90   1000     10000     unfit  the table of sessions is {value:.0%} full
rows_refused    100    0      2000     10000     unfit  {value:.0f} packets a second find no memory for their session
ports_refused   100    0      2000     10000     alarm  {value:.0f} packets a second find no free port in their pool
"""

STALLS_WITHIN = 30_000  # ticks


class Facts(NamedTuple):
    """What was measured since the last look."""

    stall_ms: float = 0  # the longest time between two turns of the packet loop
    stalls: float = 0  # how often that was at its bad limit or beyond, within `STALLS_WITHIN`
    rx_stuck_ms: float = 0
    table_fill: float = 0  # of the index, 0 to 1
    rows_refused: float = 0  # a second
    ports_refused: float = 0  # a second


class Limit(NamedTuple):
    """A line of the picture."""

    bad: float
    good: float
    bad_for: int
    good_for: int
    means: str
    told: str


def _parse(picture: str) -> dict[str, Limit]:
    lines = (line.split(maxsplit=6) for line in picture.strip().splitlines()[1:])
    return {
        fact: Limit(float(bad), float(good), int(bad_for), int(good_for), means, told)
        for fact, bad, good, bad_for, good_for, means, told in lines
    }


LIMITS = _parse(_PICTURE)
assert tuple(LIMITS) == Facts._fields


class Sign(NamedTuple):
    """One fact over time."""

    bad: bool = False
    since: int | None = None  # it has looked otherwise since then
    value: float = 0  # the worst one while it is bad


class Health(NamedTuple):
    """What is thought of a core."""

    signs: tuple[Sign, ...] = (Sign(),) * len(LIMITS)

    @property
    def fit(self) -> bool:
        """Whether it should have traffic."""
        return not any(sign.bad and limit.means == "unfit" for limit, sign in self._looks())

    @property
    def alarms(self) -> list[str]:
        """What is wrong, in sentences, whether or not it makes the core unfit."""
        return [limit.told.format(value=sign.value) for limit, sign in self._looks() if sign.bad]

    def _looks(self) -> Iterator[tuple[Limit, Sign]]:
        return zip(LIMITS.values(), self.signs, strict=True)


def judge(health: Health, facts: Facts, now: int) -> Health:
    """What is thought of it from now (ms) on."""
    limits = LIMITS.values()
    return Health(tuple(_look(*each, now) for each in zip(health.signs, limits, facts, strict=True)))


def _look(sign: Sign, limit: Limit, value: float, now: int) -> Sign:
    otherwise = value <= limit.good if sign.bad else value >= limit.bad
    if not otherwise:
        return Sign(sign.bad, None, max(sign.value, value) if sign.bad else 0)
    since = now if sign.since is None else sign.since
    if now - since < (limit.good_for if sign.bad else limit.bad_for):
        return Sign(sign.bad, since, sign.value)
    return Sign(not sign.bad, None, value)
