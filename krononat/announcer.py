"""The chore by which a core says what the network is to know of it, between two breaths: posts, standings, routes, speaker.

The supervisor connects to the server's speaker and hands the connection over (`herald`); this end is the only one that stays
open, so the connection ends with this process, however it ends. On it goes a beat each `BEAT` ticks, from the loop itself: of a
worker that turns no more the speaker withdraws the routes.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from krononat.drained import NOTHING, Drained
from replication.protocol import age
from replication.roles import Post
from routing import announcements, health
from routing.announcements import Meds, Policy, Role, Route, Standing
from routing.will import Will
from shards.frames import XDP, Rings
from shards.state import ABSENT, ACTIVE, DRAINING, JOINING, PASSIVE, SIDES, SYNCING, State
from shards.verdict import POOL_EXHAUSTED, ROWS_EXHAUSTED, TABLE_FULL

BEAT = 20  # ticks
LOOK_EACH = 200  # ticks between two looks at the health
ROUTES_AT_ONCE = 400  # of a message
MESSAGE_AT_MOST = 1 << 16
SETTLES = 1000  # ticks that a worker who comes into a living memory may take to know what it is
FAREWELL = 300  # ticks that a core goes on forwarding after it has withdrawn its routes and before it ends

_ROLES: Mapping[int, Role] = {
    ABSENT: "silent", JOINING: "silent", SYNCING: "rejoining", PASSIVE: "backup", ACTIVE: "promoted", DRAINING: "backup",
}  # fmt: skip


class Property(NamedTuple):
    """A shard as the network and the map see it."""

    shard: int
    external: tuple[str, ...]
    internal6: tuple[str, ...]
    epoch: int  # by the map
    primary: bool  # by the map
    reserve: str = ""  # by the map: the core in another room that has it while this one's is away


class HasPosts(Protocol):
    """The conductor, as far as it matters here."""

    posts: dict[int, Post]


def role_of(post: Post, place: Property, before: Role) -> Role:
    """What a core is in the network by what it is to a shard; `before`: until now."""
    if post.role == ACTIVE and place.primary and post.epoch == place.epoch:
        return "primary"
    if post.role == DRAINING and not post.authority:  # nobody has taken it over yet
        return before
    if post.role == SYNCING and place.reserve and post.authority == place.reserve:
        return "silent"  # a room that is back: its narrower routes would win where no MED is compared, and it has nothing yet
    return _ROLES[post.role]


def standings(
    places: Iterable[Property],
    posts: Mapping[int, Post] | None,
    before: Iterable[Standing],
    fit: bool,
    empty: frozenset[int] = frozenset(),
) -> tuple[Standing, ...]:
    """What a core is to its shards; without posts it is alone, and has them all. `empty`: addresses that nobody uses.

    They are left out only where nobody else can have the shard. In a cluster a part of a prefix beats the whole of whoever has
    it meanwhile, by no MED and no mark: a partitioned or unfit owner would go on drawing the packets of his successor.
    """
    roles = {each.shard: each.role for each in before}
    found = []
    for place in places:
        post = posts.get(place.shard) if posts is not None else None
        epoch = post.epoch if post else place.epoch
        role: Role = role_of(post, place, roles.get(place.shard, "silent")) if post else "silent"
        role = "primary" if posts is None else role
        alone = posts is None and fit
        external = announcements.without(place.external, empty) if alone and empty else place.external
        found.append(Standing(place.shard, role, epoch, external, place.internal6, fit))
    return tuple(found)


def _places(shards: Iterable[Any]) -> list[Property]:
    return [Property(shard, tuple(external), tuple(internal6), *rest) for shard, external, internal6, *rest in shards]


class Announcer:
    """Made when a worker takes over; `told` are its orders (`speaking.orders`)."""

    def __init__(
        self,
        told: Mapping[str, Any],
        conductor: HasPosts | None,
        examine: Callable[[int], health.Facts],
        drained: Drained | None = None,
    ) -> None:
        self._drained = drained
        self._seen = drained.look() if drained else NOTHING
        self._core, self._conductor, self._examine = told["core"], conductor, examine
        policy = dict(told["policy"])
        lists = {name: tuple(policy[name]) for name in ("communities", "aggregates")}
        self.policy = Policy(**{**policy, **lists, "meds": Meds(*policy["meds"])})
        self.places = _places(told["shards"])
        self.health = health.Health()
        self.standings: tuple[Standing, ...] = ()
        self.routes: tuple[Route, ...] = ()
        self.leaving = False
        self.cut = ""  # side that no leg leads to any more
        self._posts: list[Post] = []
        self._stream: socket.socket | None = None
        self._will: Will | None = None  # made by the thread that turns: its death is what is told
        self._linger = 0
        self._number = self._said = self.acknowledged = 0
        self._queue: list[dict[str, Any]] = []
        self.refusal = ""  # why the speaker will have nothing of us
        self._anew = True  # something else than posts has changed
        self._beat = self._looked = self._began = -1

    # --- the connection ---------------------------------------------------------------------------------------------------

    def attach(self, descriptor: int, linger: int) -> None:
        """A connection to the speaker: say who we are, and in the next turn everything. `linger`: ms that routes outlive us."""
        self.detach()
        self._stream = socket.socket(fileno=descriptor)
        self._stream.setblocking(False)
        self._linger, self.refusal = linger, ""
        self.acknowledged = 0  # another speaker may be there, which has nothing of us yet
        self._will = self._will or Will()
        hello = json.dumps({"core": self._core, "linger": linger, "alarms": self.health.alarms}).encode()
        try:
            socket.send_fds(self._stream, [hello], [self._will.descriptor])
        except OSError:  # it has hung up already, which the next turn sees
            return
        self._said = -1

    def detach(self) -> None:
        """Let go of the connection."""
        if self._stream:
            self._stream.close()
        self._stream, self._queue = None, []

    @property
    def attached(self) -> bool:
        """Whether there is a connection."""
        return self._stream is not None

    @property
    def waiting(self) -> bool:
        """Whether something is still to be said, or sent."""
        return self._said != self._number or bool(self._queue)

    def linger(self, ms: int) -> None:
        """How long our routes may outlive this process from now on."""
        self._linger = ms
        self._tell({"linger": ms})

    def leave(self) -> None:
        """Withdraw everything: this core is about to end."""
        self.leaving = self._anew = True
        self._tell({"linger": 0})

    def sever(self, side: str) -> None:
        """Packets could come by the other side, and would not get on: withdraw everything while a side is cut off."""
        self.cut, self._anew = side, True

    def drain(self, on: bool) -> None:
        """Ask that others be preferred, as our shards are about to move (`routing.announcements`): all stays announced."""
        self.policy, self._anew = self.policy._replace(draining=on), True

    def replace(self, shards: Iterable[Any]) -> None:
        """The map has changed: what stands in `shards` of our orders from now on."""
        self.places, self._anew = _places(shards), True

    def _tell(self, message: dict[str, Any]) -> None:
        if self._stream:
            self._queue.append(message)

    # --- a turn -----------------------------------------------------------------------------------------------------------

    def due(self, now: int) -> int:
        """Ticks until the next beat."""
        return max(0, BEAT - age(now, self._beat)) if self._beat >= 0 else 0

    def turn(self, now: int) -> bool:
        """Look, and say what is new; False where the connection was lost."""
        if self._began < 0:
            self._began = self._looked = now
        if age(now, self._looked) >= LOOK_EACH:
            self._look(now)
        self._follow(now)
        if self._stream is None:
            return True
        self._flush()
        if self._stream and not self._queue:  # what changes while a speaker does not read is then said once
            self._prepare(now)
            if self._queue:
                self._flush()
                self._hear()
        return self.attached

    def _prepare(self, now: int) -> None:
        if self._number and self._said != self._number:
            self._say_routes()
        elif self._beat < 0 or age(now, self._beat) >= BEAT:
            self._queue, self._beat = [{"beat": now}], now

    def _look(self, now: int) -> None:
        self._looked, before = now, self.health
        self.health = health.judge(before, self._examine(now), now)
        if self.health.alarms != before.alarms:
            self._tell({"alarms": self.health.alarms})
        self._anew |= self.health.fit != before.fit
        if self._drained:
            self._look_at(self._drained)

    def _look_at(self, drained: Drained) -> None:
        """What is empty is withdrawn; what returns is opened once its route, to which the last look led, is acknowledged."""
        before, self._seen = self._seen, drained.look()
        told = not self.attached or (not self.waiting and self.acknowledged >= self._number)
        if told and not self._anew:
            drained.open(self._seen.returning & before.returning)
        self._anew |= self._seen.empty != before.empty

    def _follow(self, now: int) -> None:
        """From posts to routes, where something has changed."""
        posts = self._conductor.posts if self._conductor else None
        seen = list(posts.values()) if posts else []
        if not self._anew and seen == self._posts:
            return
        if self._is_settling(seen, now):
            return  # until then the speaker keeps what our predecessor said, or has withdrawn it already
        self._posts, self._anew = seen, False
        empty = frozenset[int]() if self.policy.draining else self._seen.empty
        self.standings = standings(self.places, posts, self.standings, self.health.fit, empty)
        routes = () if self.leaving or self.cut else announcements.routes(self.standings, self.policy)
        if routes != self.routes or not self._number:
            self.routes, self._number = routes, self._number + 1

    def _is_settling(self, posts: list[Post], now: int) -> bool:
        joining = any(post.role == JOINING and not post.cold for post in posts)
        return joining and not self._number and age(now, self._began) < SETTLES

    def _say_routes(self) -> None:
        self._said = self._number
        parts = [self.routes[at : at + ROUTES_AT_ONCE] for at in range(0, len(self.routes), ROUTES_AT_ONCE)] or [()]
        self._queue += [{"routes": part, "n": self._number, "more": part is not parts[-1]} for part in parts]

    def _flush(self) -> None:
        """Send what waits; never waits itself."""
        try:
            while self._queue and self._stream:
                self._stream.send(json.dumps(self._queue[0]).encode())
                self._queue.pop(0)
        except BlockingIOError:
            return
        except OSError:
            self._hear()  # who has hung up may have said why
            self.detach()

    def _note(self, told: dict[str, Any]) -> None:
        self.refusal = str(told.get("refused", ""))
        self.acknowledged = int(told.get("done", self.acknowledged))

    def _hear(self) -> None:
        """What the speaker says; with its end our connection ends."""
        try:
            while self._stream:
                message = _received(self._stream)
                if not message:
                    self.detach()
                else:
                    self._note(json.loads(message))
        except BlockingIOError:
            return
        except OSError:
            self.detach()


def _received(stream: socket.socket) -> bytes:
    """The next message. That the other end left with something unread is told before what it had said (unix(7): ECONNRESET)."""
    try:
        return stream.recv(MESSAGE_AT_MOST)
    except ConnectionResetError:
        return stream.recv(MESSAGE_AT_MOST)


class Examiner:
    """Measures what `health` judges, in the worker. Cheap: a few numbers of shared memory."""

    def __init__(self, state: State, rings: Rings) -> None:
        self._state, self._rings = state, rings
        self._turned = self._examined = -1
        self._stall = 0
        self._stalls: list[int] = []  # when the loop went on after each
        self._refused = self._count()
        self._waits: dict[int, tuple[int, int]] = {}  # by queue that had frames: its consumer, and since when it stands
        sides = [int(side) for side in state.ports["side"]]
        self._legs = {SIDES[side]: [row for row, each in enumerate(sides) if each == side] for side in set(sides)}

    def turned(self, now: int) -> None:
        """The loop has made a turn."""
        stall = age(now, self._turned) if self._turned >= 0 else 0
        self._turned, self._stall = now, max(self._stall, stall)
        if stall >= health.LIMITS["stall_ms"].bad:
            self._stalls.append(now)

    def cut(self) -> str:
        """The side whose every leg has lost its carrier; "" where none has.

        A lost peer (BFD) does not count: where a switch's daemon is away all cores lose theirs, and none would have routes.
        """
        lost = self._state.ports["carrier_lost"]
        return next((side for side, rows in self._legs.items() if all(lost[row] for row in rows)), "")

    def __call__(self, now: int) -> health.Facts:
        """What there is to know since the last call."""
        seconds = max(age(now, self._examined), 1) / 1000 if self._examined >= 0 else 1.0
        refused = self._count()
        rows, ports = ((new - old) / seconds for new, old in zip(refused, self._refused, strict=True))
        stall, self._stall, self._refused, self._examined = self._stall, 0, refused, now
        fill = int(self._state.core[0]["index_entries"]) / (len(self._state.tags) * 8)
        self._stalls = [each for each in self._stalls if age(now, each) < health.STALLS_WITHIN]
        return health.Facts(stall, len(self._stalls), self._stuck(now), fill, rows, ports)

    def _count(self) -> tuple[int, int]:
        counted = self._state.counters[:, 0]
        return int(counted[TABLE_FULL]) + int(counted[ROWS_EXHAUSTED]), int(counted[POOL_EXHAUSTED])

    def _stuck(self, now: int) -> int:
        """Ticks for which frames have waited in some ring of which nothing was taken."""
        rings, before = self._rings, self._waits
        self._waits = {}
        for number, (queue, rx) in enumerate(zip(rings.queues, rings.rx, strict=True)):
            consumer = int(rings.words[rx["consumer"]])
            if queue["kind"] == XDP and consumer != int(rings.words[rx["producer"]]):
                taken, since = before.get(number, (consumer, now))
                self._waits[number] = (consumer, since if taken == consumer else now)
        return max((age(now, since) for _, since in self._waits.values()), default=0)
