"""Mappings that subscribers asked for, as `pcp_server` wants them: rows of `State.grants`, and the mappings they are about.

The rows stand in the state's memory, so a worker's successor goes on with nonces, lifetimes and epoch. Another core that takes
a shard over has the mappings, which are replicated, and neither nonces nor lifetimes: it finds them by a walk over all rows,
*adopts* them for the longest lifetime there is, begins a new epoch (RFC 6887 8.5), and has their hosts told so. Whoever asks
first then, from the very host, has the mapping. What there is no row for lives on, neither renewed nor ended by anybody, and is
adopted when a row is free. A core that is not asked to keep any lets what it finds so go.

The thread that does this forwards packets, too, so whatever there is much of is done in pieces: a turn ends, adopts and frees
WORK_AT_ONCE rows at most, and rows of a worker before are read by as many a turn. Granted mappings need none of it to forward.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import NamedTuple

import numpy as np

from krononat import pcp
from krononat.pcp import Refused
from krononat.pcp_index import Fact, Index
from krononat.pcp_server import ADOPTED, DYNAMIC, ENDED, NAT_PMP, PCP, STATIC, Held, Wish
from shards import grant_rows, grants
from shards.grant_rows import CONFIGURED, GRANTED, NOBODY, ORIGINS
from shards.slabs import MAPPINGS_EACH_EXTENT
from shards.state import HELD, NAT_MAPPING, Array, State
from shards.verdict import (
    MAPPING_LIMIT,
    NO_AUTHORITY,
    PCP_ENDED,
    PCP_GRANTED,
    PORTS_EXHAUSTED,
    PROTOCOL_LIMIT,
    SESSION_LIMIT,
)

WORK_AT_ONCE = 40  # mappings ended, adopted or forgotten in one turn; 10 us each
ENDED_AT_ONCE = 16  # by the request that gives them up; the rest by turns
LOADED_AT_ONCE = 128  # rows of a worker before us, in one turn
SCANNED_AT_ONCE = 8192  # rows looked through for them: some tens of us
SEEN_AT_ONCE = 8192  # mappings looked at in one turn of the walk: some tens of us
KNOWN_AT_ONCE = 512  # granted ones among them
EXTENTS_AT_ONCE = 64
LOOKED_AT_ONCE = 32  # of a subscriber who has enough: whether they still live
PAST_AT_MOST = 1024  # ended ones that are remembered: ten minutes of two a second
TOLD_AT_ONCE = 16  # hosts told of a new epoch in one turn

RESULTS = {
    grants.TAKEN: pcp.CANNOT_PROVIDE_EXTERNAL, NO_AUTHORITY: pcp.NETWORK_FAILURE, SESSION_LIMIT: pcp.USER_EX_QUOTA,
    MAPPING_LIMIT: pcp.USER_EX_QUOTA, PROTOCOL_LIMIT: pcp.USER_EX_QUOTA, PORTS_EXHAUSTED: pcp.USER_EX_QUOTA,
}  # fmt: skip


class Past(NamedTuple):
    """What has ended: whose it was, what it was, and what `owners` has of its port if nobody has had that since."""

    nonce: bytes
    half: int
    life: int
    address: int
    port: int
    rests: int


class GrantTable:
    """Of one core. `now`: tick of the packets' clock, kept up by who uses it; `each`: mappings of a subscriber, at most.

    `longest_s`: lifetime of what is adopted; 0: nothing is kept. Until it is `ready` nothing may be asked of it but turns.
    """

    def __init__(self, state: State, each: int, longest_s: int, now: int) -> None:
        self._state, self._each, self._longest_s, self.now = state, each, longest_s, now
        self._realm = int(state.ports[int(state.settings[0]["internal_port"])]["internal_realm"])
        self._of_shard: dict[int, Index] = {}
        self._left = deque[Index]()  # of shards that others had: their rows are yet to be freed
        self._past: OrderedDict[tuple[int, int, int], Past] = OrderedDict()  # by host, protocol, port
        self._loaded = self._unloaded = 1  # rows up to the first are known; those from the second on were not looked at
        self._free, self._gaps = list[int](), deque[tuple[int, int]]()  # rows, and spans of them: first, one after the last
        self._walk = 0, 0  # extent, row within it
        self._walking = False  # through what may have to be adopted, since an epoch began
        self._work = 0  # what a turn may still do
        self.told: deque[int] = deque()  # hosts whose mappings were adopted and who do not know yet

    def __len__(self) -> int:
        return sum(map(len, self._of_shard.values()))

    @property
    def ready(self) -> bool:
        """Whether all rows of a worker before us are known."""
        return self._unloaded >= len(self._state.grants)

    @property
    def busy(self) -> bool:
        """Whether another turn is wanted soon."""
        return not self.ready or self._work == 0 or self._walking or bool(self.told)

    # --- what the server asks ---------------------------------------------------------------------------------------------

    def epoch_s(self, internal: int, now_s: int) -> int:
        """Seconds since the epoch of the host's shard began."""
        _, shard, _ = grants.subscriber_of(self._state, self._realm, internal)
        return max(now_s - int(self._state.shards[shard]["granting_since"]), 0)

    def subscriber_of(self, internal: int) -> tuple[int, bool]:
        """(account of a host's subscriber or 0, whether this core answers for it)."""
        subscriber, _, ours = grants.subscriber_of(self._state, self._realm, internal)
        return subscriber, bool(ours)

    def may_ask_for(self, source: int, internal: int) -> bool:
        """Whether both hosts are one subscriber's."""
        return self.subscriber_of(source)[0] == self.subscriber_of(internal)[0] != 0

    def address_of(self, internal: int) -> int:
        """External address of a host, 0 if none can be had."""
        return int(grants.address_of(self._state, self._realm, internal, self.now))

    def find(self, internal: int, protocol: int, port: int) -> Held | None:
        """The mapping of an internal endpoint. Refused: it is there, and nothing can be done about it now."""
        half = int(grants.find(self._state, self._realm, internal, protocol, port))
        index = self._index(self._account_of(half))
        number = index.row_of(half) if half else 0
        if number and index.is_given_up(number):
            self._end(index, number)
            half = int(grants.find(self._state, self._realm, internal, protocol, port))
        return self._held(half) if half else None

    def grant(self, wish: Wish, nonce: bytes, origin: str, expires_s: int, now_s: int) -> Held | int:
        """Have a mapping live until then; a result code where that cannot be."""
        subscriber, _ = self.subscriber_of(wish.internal)
        if not self._has_room(subscriber):
            return pcp.USER_EX_QUOTA
        if not self._has_row():
            return pcp.NO_RESOURCES
        if wish.exact and wish.wanted < 0:
            return pcp.CANNOT_PROVIDE_EXTERNAL
        verdict, half = grants.grant(
            self._state, self._realm, wish.internal, wish.protocol, wish.port, max(wish.wanted, 0), wish.wanted_port,
            wish.exact, self._rests(wish, nonce), self.now,
        )  # fmt: skip
        if verdict:
            return RESULTS.get(int(verdict), pcp.NO_RESOURCES)
        self._write(int(half), subscriber, nonce, origin, expires_s, now_s)
        self._state.counters[PCP_GRANTED, 0] += 1
        return self._held(int(half))

    def renew(self, held: Held, nonce: bytes, origin: str, expires_s: int) -> None:
        """Have one that was asked for live until then, for whoever has this nonce."""
        index = self._index(self._account_of(held.half))
        number = index.row_of(held.half)
        row = self._state.grants[number]
        row["nonce"] = np.frombuffer(nonce, np.uint8)
        row["expires_s"], row["origin"] = expires_s, ORIGINS.index(origin)
        index.turn_over(number, origin == PCP)
        index.await_end(number, expires_s)

    def end(self, held: Held) -> None:
        """Have one that was asked for live no longer than its sessions."""
        index = self._index(self._account_of(held.half))
        self._end(index, index.row_of(held.half))

    def end_all(self, internal: int, protocol: int) -> bool:
        """End all of a host that were asked for without a nonce; whether others are left that were asked for, or are static.

        They are no more from now on, though it may take some turns until their ports are free.
        """
        subscriber, _ = self.subscriber_of(internal)
        index = self._index(subscriber)
        index.give_up(internal, protocol)
        self._work = ENDED_AT_ONCE
        self._end_given_up(index)
        return index.has_nonced(internal, protocol) or self._is_configured(internal, protocol)

    def _is_configured(self, internal: int, protocol: int) -> bool:
        told = self._state.statics[: int(self._state.settings[0]["statics"])]
        return bool(np.any((told["internal_address"] == internal) & (told["protocol"] == protocol)))

    # --- what has ended ---------------------------------------------------------------------------------------------------

    def _remember(self, number: int) -> None:
        """A row that is to end: who had it may ask for that again, or for its port (RFC 6887 15, 15.1)."""
        row = self._state.grants[number]
        mapping = self._state.mappings[int(row["half"])]
        key = int(mapping["internal_address"]), int(mapping["internal_realm"]) >> 24, int(mapping["internal_port"])
        self._past.pop(key, None)
        self._past[key] = Past(
            row["nonce"].tobytes(), int(row["half"]), int(row["generation"]), int(mapping["external_address"]),
            int(mapping["external_port"]), HELD | (self.now // 1000 & 0x7FFFFFFF),
        )  # fmt: skip
        if len(self._past) > PAST_AT_MOST:
            self._past.popitem(last=False)

    def _rests(self, wish: Wish, nonce: bytes) -> int:
        """What `owners` has of the wanted port if it rests since it was this very client's, else 0 (RFC 6887 15).

        A port that sessions went on to use was freed later, and thus is as everybody's.
        """
        past = self._past.get((wish.internal, wish.protocol, wish.port))
        same = past and past.nonce == nonce and past.port == wish.wanted_port and wish.wanted in (0, past.address)
        return past.rests if past and same else 0

    # --- rows -------------------------------------------------------------------------------------------------------------

    def _index(self, account: int) -> Index:
        """Of the shard of an account."""
        return self._index_of(int(self._state.accounts[account]["shard"]))

    def _index_of(self, shard: int) -> Index:
        if shard not in self._of_shard:
            self._of_shard[shard] = Index()
        return self._of_shard[shard]

    def _account_of(self, half: int) -> int:
        return int(self._state.mappings[half]["account"])

    def _held(self, half: int) -> Held:
        mapping = self._state.mappings[half]
        told = Held(
            half, int(mapping["internal_realm"]) >> 24, int(mapping["internal_port"]), int(mapping["external_address"]),
            int(mapping["external_port"]), STATIC if mapping["static"] == CONFIGURED else DYNAMIC,
        )  # fmt: skip
        if int(mapping["static"]) != GRANTED:
            past = self._past.get((int(mapping["internal_address"]), told.protocol, told.port))
            same = told.origin == DYNAMIC and past and (past.half, past.life) == (half, int(mapping["generation"]))
            return told._replace(origin=ENDED, nonce=past.nonce) if past and same else told
        index = self._index(int(mapping["account"]))
        if not index.knows(half, int(mapping["generation"])):  # it came from another core, and the walk has not met it yet
            self._adopt(half)
        if not index.knows(half, int(mapping["generation"])):
            if self._longest_s:  # no row is free
                raise Refused(pcp.NO_RESOURCES)
            return told
        grant = self._state.grants[index.row_of(half)]
        return told._replace(
            origin=ORIGINS[int(grant["origin"])] or ADOPTED, expires_s=int(grant["expires_s"]), nonce=grant["nonce"].tobytes()
        )

    def _has_room(self, subscriber: int) -> bool:
        """Whether he may have one more; if not, rows of his whose mapping has ended otherwise are freed, some at a time."""
        index = self._index(subscriber)
        if index.count(subscriber) >= self._each:
            self._work = ENDED_AT_ONCE
            self._end_given_up(index)
            for number in index.look_at(subscriber, LOOKED_AT_ONCE):
                if not self._is_alive(number):
                    self._forget(index, number)
        return index.count(subscriber) < self._each

    def _is_alive(self, row: int) -> bool:
        """Whether a row's mapping is still the one that it is about."""
        grant = self._state.grants[row]
        mapping = self._state.mappings[int(grant["half"])]
        same = mapping["kind"] == NAT_MAPPING and mapping["generation"] == grant["generation"]
        return bool(same and mapping["static"] == GRANTED)

    def _write(self, half: int, subscriber: int, nonce: bytes, origin: str, expires_s: int, now_s: int) -> None:
        index, mapping = self._index(subscriber), self._state.mappings[half]
        if before := index.row_of(half):  # of an earlier life of the mapping's row
            self._forget(index, before)
        number = self._take_row()
        row = self._state.grants[number]
        row["half"], row["account"], row["generation"] = half, subscriber, mapping["generation"]
        row["expires_s"], row["granted_s"] = expires_s, now_s
        row["nonce"] = np.frombuffer(nonce, np.uint8)
        row["origin"] = ORIGINS.index(origin)  # last: until then the row is nobody's
        host, protocol = int(mapping["internal_address"]), int(mapping["internal_realm"]) >> 24
        fact = Fact(half, int(mapping["generation"]), subscriber, host, protocol, origin == PCP)
        index.enter(number, fact, expires_s)

    def _has_row(self) -> bool:
        """Whether a row is free; if need be one of those that nobody has come to free yet."""
        while self._left and not (self._free or self._gaps):
            self._give_back()
        return bool(self._free or self._gaps)

    def _is_full(self) -> bool:
        """Whether there is no row for what came from another core, and would be kept."""
        return self._longest_s > 0 and not self._has_row()

    def _take_row(self) -> int:
        if self._free:
            return self._free.pop()
        first, end = self._gaps.popleft()
        if first + 1 < end:
            self._gaps.appendleft((first + 1, end))
        return first

    def _free_row(self, number: int) -> None:
        self._state.grants[number]["origin"] = NOBODY
        self._free.append(number)

    def _forget(self, index: Index, number: int) -> None:
        """The row is free again."""
        index.drop(number)
        self._free_row(number)

    def _end(self, index: Index, number: int) -> None:
        row = self._state.grants[number]
        if self._is_alive(number):
            self._remember(number)
        if grants.revoke(self._state, int(row["half"]), int(row["generation"]), self.now):
            self._state.counters[PCP_ENDED, 0] += 1
        self._forget(index, number)

    # --- rows of a worker before us ---------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Some more of them. Those of an epoch that is over, which nobody had come to free, are freed now."""
        first = self._unloaded
        taken = np.flatnonzero(self._state.grants["origin"][first : first + SCANNED_AT_ONCE])[:LOADED_AT_ONCE] + first
        for number, account, fact, expires_s, lasts in self._read(taken):
            self._gap(number)
            self._loaded = number + 1
            if lasts and not self._index(account).row_of(fact.half):
                self._index(account).enter(number, fact, expires_s)
            else:
                self._free_row(number)
        all_seen = len(taken) < LOADED_AT_ONCE
        self._unloaded = min(first + SCANNED_AT_ONCE, len(self._state.grants)) if all_seen else self._loaded
        if self.ready:
            self._gap(len(self._state.grants))

    def _gap(self, end: int) -> None:
        """Rows that were not taken, from what is known up to `end`, are free."""
        if self._loaded < end:
            self._gaps.append((self._loaded, end))

    def _read(self, numbers: Array) -> list[tuple[int, int, Fact, int, bool]]:
        """(number, subscriber, fact, second of its end, whether it is of this epoch) of rows."""
        rows = self._state.grants[numbers]
        shards = self._state.accounts["shard"][rows["account"]]
        since = self._state.shards["granting_since"][shards]
        lasts = (since != 0) & (rows["granted_s"] >= since)
        halves, realms = rows["half"], self._state.mappings["internal_realm"]
        facts = map(
            Fact, halves.tolist(), rows["generation"].tolist(), rows["account"].tolist(),
            self._state.mappings["internal_address"][halves].tolist(), (realms[halves] >> 24).tolist(),
            (rows["origin"] == ORIGINS.index(PCP)).tolist(),
        )  # fmt: skip
        told = numbers.tolist(), rows["account"].tolist(), facts, rows["expires_s"].tolist(), lasts.tolist()
        return list(zip(*told, strict=True))

    # --- turns ------------------------------------------------------------------------------------------------------------

    def begin(self, now: int) -> None:
        """End and begin epochs: before anybody is told of one. `now`: tick of the packets' clock."""
        self.now = now
        rows = self._state.shards
        for shard in np.flatnonzero((rows["granting_epoch"] != rows["epoch"]) & (rows["granting_since"] != 0)).tolist():
            self._leave(shard)
        for shard in np.flatnonzero((rows["creates"] != 0) & (rows["granting_since"] == 0)).tolist():
            self._begin(shard, now // grant_rows.SECONDS)

    def turn(self, now: int) -> None:
        """Go on with all there is to do, as far as one turn may. `now`: tick of the packets' clock."""
        self.begin(now)
        self._work = WORK_AT_ONCE
        if not self.ready:
            self._load()
            return
        for index in list(self._of_shard.values()):
            self._expire(index, now // grant_rows.SECONDS)
            self._end_given_up(index)
        while self._work and self._left:
            self._work -= 1
            self._give_back()
        self._go_on()

    def _leave(self, shard: int) -> None:
        """Another core has had the shard since: what was known of its mappings is out of date."""
        self._state.shards[shard]["granting_since"] = 0
        if shard in self._of_shard:
            self._left.append(self._of_shard.pop(shard))
        self._past.clear()

    def _begin(self, shard: int, now_s: int) -> None:
        """An epoch, in which the mappings that are there are adopted."""
        row = self._state.shards[shard]
        row["granting_since"], row["granting_epoch"] = max(now_s, 1), row["epoch"]
        self._walk, self._walking = (0, 0), True

    def _give_back(self) -> None:
        """Free a row of a shard that another core has had."""
        number = self._left[0].take_any()
        if number:
            self._free_row(number)
        else:
            self._left.popleft()

    def _expire(self, index: Index, now_s: int) -> None:
        due = index.due(now_s)
        while self._work and (number := next(due, None)) is not None:
            self._work -= 1
            if number:
                self._end(index, number)

    def _end_given_up(self, index: Index) -> None:
        while self._work and (number := index.given_up()):
            self._end(index, number)
            self._work -= 1

    def _go_on(self) -> None:
        """Adopt what was granted elsewhere, a slice of all mappings in each turn, round and round."""
        extent, first = self._next_extent()
        if extent == 0:
            return
        at = extent * MAPPINGS_EACH_EXTENT + first
        index, seen = self._index_of(int(self._state.extents[extent]["shard"])), min(SEEN_AT_ONCE, MAPPINGS_EACH_EXTENT - first)
        rows = self._state.mappings[at : at + seen]
        granted = np.flatnonzero((rows["static"] == GRANTED) & (rows["kind"] == NAT_MAPPING))[:KNOWN_AT_ONCE]
        reached = int(granted[-1]) + 1 if len(granted) == KNOWN_AT_ONCE else seen
        for offset, life in zip(granted.tolist(), rows["generation"][granted].tolist(), strict=True):
            if index.knows(at + offset, life) or self._is_full():  # then it lives on, and is met again
                continue
            if not self._work:
                reached = offset
                break
            self._work -= 1
            self._adopt(at + offset)
        first += reached
        self._walk = (extent, first) if first < MAPPINGS_EACH_EXTENT else (extent + 1, 0)

    def _next_extent(self) -> tuple[int, int]:
        """Where the walk goes on: extent of mappings of a shard that this core has the authority over, row; 0: nowhere now."""
        extent, first = self._walk
        for _ in range(EXTENTS_AT_ONCE):
            if extent >= min(int(self._state.core[0]["next_extent"]), len(self._state.extents)):
                self._walk, self._walking = (0, 0), False
                return 0, 0
            told = self._state.extents[extent]
            if extent and told["kind"] == NAT_MAPPING and self._state.shards[int(told["shard"])]["creates"]:
                return extent, first
            extent, first = extent + 1, 0
        self._walk = extent, first
        return 0, 0

    def _adopt(self, half: int) -> None:
        """Keep a mapping that came from another core, as long as whoever asked for it may think that it lives; or let it go."""
        mapping = self._state.mappings[half]
        account = int(mapping["account"])
        index = self._index(account)
        if before := index.row_of(half):  # of another mapping, which was here, and has ended
            self._forget(index, before)
        if not self._longest_s:
            grants.revoke(self._state, half, int(mapping["generation"]), self.now)
            return
        if self._is_full():
            return
        subscriber = int(self._state.accounts[account]["parent"]) or account
        now_s = self.now // grant_rows.SECONDS
        self._write(half, subscriber, bytes(grant_rows.NONCE_BYTES), ADOPTED, now_s + self._longest_s, now_s)
        if not self.told or self.told[-1] != int(mapping["internal_address"]):
            self.told.append(int(mapping["internal_address"]))


assert ORIGINS[1:] == (PCP, NAT_PMP, ADOPTED)
