"""Mappings that subscribers asked for, as `pcp_server` wants them: rows of `State.grants`, and the mappings they are about.

The rows stand in the state's memory, so a worker's successor goes on with nonces, lifetimes and epoch. Another core that takes
a shard over has the mappings, which are replicated, and neither nonces nor lifetimes: it finds them by a walk over all rows,
*adopts* them for the longest lifetime there is, begins a new epoch (RFC 6887 8.5), and has their hosts told so. Whoever asks
first then, from the very host, has the mapping. A core that is not asked to keep any lets what it finds so go.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

import numpy as np

from krononat import pcp
from krononat.pcp_server import ADOPTED, DYNAMIC, NAT_PMP, PCP, STATIC, Held, Wish
from shards import grant_rows, grants
from shards.grant_rows import GRANTED, NOBODY, ORIGINS
from shards.slabs import MAPPINGS_EACH_EXTENT
from shards.state import NAT_MAPPING, State
from shards.verdict import (
    MAPPING_LIMIT,
    NO_AUTHORITY,
    PCP_ENDED,
    PCP_GRANTED,
    PORTS_EXHAUSTED,
    PROTOCOL_LIMIT,
    SESSION_LIMIT,
)

ENDED_AT_ONCE = 64  # mappings whose lifetime is over, in one turn
SEEN_AT_ONCE = 8192  # rows looked at in one turn of the walk: some tens of us
EXTENTS_AT_ONCE = 64
_VOID_AT_MOST = 1024  # times to look again that are in the heap for nothing
TOLD_AT_ONCE = 16  # hosts told of a new epoch in one turn

RESULTS = {
    grants.TAKEN: pcp.CANNOT_PROVIDE_EXTERNAL, NO_AUTHORITY: pcp.NETWORK_FAILURE, SESSION_LIMIT: pcp.USER_EX_QUOTA,
    MAPPING_LIMIT: pcp.USER_EX_QUOTA, PROTOCOL_LIMIT: pcp.USER_EX_QUOTA, PORTS_EXHAUSTED: pcp.USER_EX_QUOTA,
}  # fmt: skip


class GrantTable:
    """Of one core. `now`: tick of the packets' clock, kept up by who uses it; `each`: mappings of a subscriber, at most.

    `longest_s`: lifetime of what is adopted; 0: nothing is kept.
    """

    def __init__(self, state: State, each: int, longest_s: int, now: int) -> None:
        self._state, self._each, self._longest_s, self.now = state, each, longest_s, now
        self._realm = int(state.ports[int(state.settings[0]["internal_port"])]["internal_realm"])
        self._row_of: dict[int, int] = {}  # half-line: row
        self._rows_of: dict[int, set[int]] = {}  # subscriber: rows
        self._due: list[tuple[int, int]] = []  # (second, row), a heap; those that `_due_at` does not know are void
        self._due_at: dict[int, int] = {}
        self._walk = 0, 0  # extent, row within it
        self.told: deque[int] = deque()  # hosts whose mappings were adopted and who do not know yet
        taken = np.flatnonzero(state.grants["origin"] != NOBODY).tolist()
        self._free = [row for row in range(len(state.grants) - 1, 0, -1) if state.grants["origin"][row] == NOBODY]
        for row in taken:
            self._enter(row)

    def __len__(self) -> int:
        return len(self._row_of)

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
        """The mapping of an internal endpoint."""
        half = int(grants.find(self._state, self._realm, internal, protocol, port))
        return self._held(half) if half else None

    def asked_for(self, internal: int) -> list[Held]:
        """All mappings of a host that were asked for."""
        subscriber, _ = self.subscriber_of(internal)
        halves = [int(self._state.grants[row]["half"]) for row in self._living(subscriber)]
        return [self._held(half) for half in halves if int(self._state.mappings[half]["internal_address"]) == internal]

    def grant(self, wish: Wish, nonce: bytes, origin: str, expires_s: int, now_s: int) -> Held | int:
        """Have a mapping live until then; a result code where that cannot be."""
        subscriber, _ = self.subscriber_of(wish.internal)
        if len(self._rows_of.get(subscriber, ())) >= self._each and len(self._living(subscriber)) >= self._each:
            return pcp.USER_EX_QUOTA
        if not self._free:
            return pcp.NO_RESOURCES
        if wish.exact and wish.wanted < 0:
            return pcp.CANNOT_PROVIDE_EXTERNAL
        verdict, half = grants.grant(
            self._state, self._realm, wish.internal, wish.protocol, wish.port, max(wish.wanted, 0), wish.wanted_port,
            wish.exact, self.now,
        )  # fmt: skip
        if verdict:
            return RESULTS.get(int(verdict), pcp.NO_RESOURCES)
        self._write(int(half), subscriber, nonce, origin, expires_s, now_s)
        self._state.counters[PCP_GRANTED, 0] += 1
        return self._held(int(half))

    def renew(self, held: Held, nonce: bytes, origin: str, expires_s: int) -> None:
        """Have one that was asked for live until then, for whoever has this nonce."""
        number = self._row_of[held.half]
        row = self._state.grants[number]
        row["nonce"] = np.frombuffer(nonce, np.uint8)
        row["expires_s"], row["origin"] = expires_s, ORIGINS.index(origin)
        if expires_s < self._due_at[number]:  # one that lives longer is found alive when it was due
            self._await(number)

    def end(self, held: Held) -> None:
        """Have one that was asked for live no longer than its sessions."""
        self._end(self._row_of[held.half])

    # --- rows -------------------------------------------------------------------------------------------------------------

    def _held(self, half: int) -> Held:
        mapping = self._state.mappings[half]
        told = Held(
            half, int(mapping["internal_realm"]) >> 24, int(mapping["internal_port"]), int(mapping["external_address"]),
            int(mapping["external_port"]), STATIC if mapping["static"] else DYNAMIC,
        )  # fmt: skip
        if int(mapping["static"]) != GRANTED:
            return told
        row = self._row_of.get(half)
        if row is None or not self._is_alive(row):  # it came from another core, and the walk has not met it yet
            self._adopt(half)
            row = self._row_of.get(half)
        if row is None:  # there was no room to keep it
            return told._replace(origin=DYNAMIC)
        grant = self._state.grants[row]
        return told._replace(
            origin=ORIGINS[int(grant["origin"])] or ADOPTED, expires_s=int(grant["expires_s"]), nonce=grant["nonce"].tobytes()
        )

    def _living(self, subscriber: int) -> list[int]:
        """Rows of a subscriber, in order; those whose mapping has ended otherwise are free from now on."""
        for row in [row for row in self._rows_of.get(subscriber, ()) if not self._is_alive(row)]:
            self._forget(row)
        return sorted(self._rows_of.get(subscriber, ()))

    def _is_alive(self, row: int) -> bool:
        """Whether a row's mapping is still the one that it is about."""
        grant = self._state.grants[row]
        mapping = self._state.mappings[int(grant["half"])]
        same = mapping["kind"] == NAT_MAPPING and mapping["generation"] == grant["generation"]
        return bool(same and mapping["static"] == GRANTED)

    def _write(self, half: int, subscriber: int, nonce: bytes, origin: str, expires_s: int, now_s: int) -> None:
        if (before := self._row_of.get(half)) is not None:  # of an earlier life of the mapping's row
            self._forget(before)
        number = self._free.pop()
        row = self._state.grants[number]
        row["half"], row["account"], row["generation"] = half, subscriber, self._state.mappings[half]["generation"]
        row["expires_s"], row["granted_s"] = expires_s, now_s
        row["nonce"] = np.frombuffer(nonce, np.uint8)
        row["origin"] = ORIGINS.index(origin)  # last: until then the row is nobody's
        self._enter(number)

    def _enter(self, number: int) -> None:
        row = self._state.grants[number]
        self._row_of[int(row["half"])] = number
        self._rows_of.setdefault(int(row["account"]), set()).add(number)
        self._await(number)

    def _await(self, number: int) -> None:
        """Look at a row again when its lifetime will be over."""
        self._due_at[number] = int(self._state.grants[number]["expires_s"])
        heapq.heappush(self._due, (self._due_at[number], number))
        if len(self._due) > 2 * len(self._due_at) + _VOID_AT_MOST:  # whoever asks and takes back leaves one each time
            self._due = [(due_s, row) for row, due_s in self._due_at.items()]
            heapq.heapify(self._due)

    def _forget(self, number: int) -> None:
        """The row is free again."""
        row = self._state.grants[number]
        row["origin"] = NOBODY
        half, subscriber = int(row["half"]), int(row["account"])
        if self._row_of.get(half) == number:
            del self._row_of[half]
        self._rows_of[subscriber].discard(number)
        if not self._rows_of[subscriber]:
            del self._rows_of[subscriber]
        self._due_at.pop(number, None)
        self._free.append(number)

    def _end(self, number: int) -> None:
        row = self._state.grants[number]
        if grants.revoke(self._state, int(row["half"]), int(row["generation"]), self.now):
            self._state.counters[PCP_ENDED, 0] += 1
        self._forget(number)

    # --- turns ------------------------------------------------------------------------------------------------------------

    def turn(self, now: int) -> None:
        """End what is due, begin epochs, and go on with the walk. `now`: tick of the packets' clock."""
        self.now = now
        now_s = now // grant_rows.SECONDS
        rows = self._state.shards
        for shard in np.flatnonzero((rows["granting_epoch"] != rows["epoch"]) & (rows["granting_since"] != 0)).tolist():
            self._leave(shard)
        for shard in np.flatnonzero((rows["creates"] != 0) & (rows["granting_since"] == 0)).tolist():
            self._begin(shard, now_s)
        self._expire(now_s)
        self._go_on()

    def _leave(self, shard: int) -> None:
        """Another core has had the shard since: what was known of its mappings is out of date."""
        self._state.shards[shard]["granting_since"] = 0
        for number in list(self._due_at):
            if int(self._state.accounts[int(self._state.grants[number]["account"])]["shard"]) == shard:
                self._forget(number)

    def _begin(self, shard: int, now_s: int) -> None:
        """An epoch, in which the mappings that are there are adopted."""
        row = self._state.shards[shard]
        row["granting_since"], row["granting_epoch"] = max(now_s, 1), row["epoch"]
        self._walk = 0, 0

    def _expire(self, now_s: int) -> None:
        for _ in range(ENDED_AT_ONCE):
            if not self._due or self._due[0][0] > now_s:
                return
            due_s, number = heapq.heappop(self._due)
            if self._due_at.get(number) != due_s:
                continue
            if int(self._state.grants[number]["expires_s"]) <= now_s or not self._is_alive(number):
                self._end(number)
            else:  # it was renewed
                self._await(number)

    def _go_on(self) -> None:
        """Adopt what was granted elsewhere, a slice of all mappings in each turn, round and round."""
        for half in self._slice():
            number = self._row_of.get(half)
            if number is None or not self._is_alive(number):
                self._adopt(half)

    def _slice(self) -> Iterator[int]:
        """Half-lines that are granted, of the next rows of shards that this core has the authority over."""
        extent, first = self._walk
        for _ in range(EXTENTS_AT_ONCE):
            if extent >= min(int(self._state.core[0]["next_extent"]), len(self._state.extents)):
                extent, first = 0, 0
                break
            told = self._state.extents[extent]
            if told["kind"] == NAT_MAPPING and self._state.shards[int(told["shard"])]["creates"]:
                break
            extent, first = extent + 1, 0
        else:
            self._walk = extent, first
            return
        at = extent * MAPPINGS_EACH_EXTENT + first
        rows = self._state.mappings[at : at + SEEN_AT_ONCE]
        last = first + SEEN_AT_ONCE >= MAPPINGS_EACH_EXTENT
        self._walk = (extent + 1, 0) if last else (extent, first + SEEN_AT_ONCE)
        if extent:
            granted = np.flatnonzero((rows["static"] == GRANTED) & (rows["kind"] == NAT_MAPPING))
            yield from (at + offset for offset in granted.tolist())

    def _adopt(self, half: int) -> None:
        """Keep a mapping that came from another core, as long as whoever asked for it may think that it lives; or let it go."""
        mapping = self._state.mappings[half]
        if (before := self._row_of.get(half)) is not None:  # of another mapping, which was here, and has ended
            self._forget(before)
        if not self._longest_s or not self._free:
            grants.revoke(self._state, half, int(mapping["generation"]), self.now)
            return
        account = int(mapping["account"])
        subscriber = int(self._state.accounts[account]["parent"]) or account
        now_s = self.now // grant_rows.SECONDS
        self._write(half, subscriber, bytes(grant_rows.NONCE_BYTES), ADOPTED, now_s + self._longest_s, now_s)
        if not self.told or self.told[-1] != int(mapping["internal_address"]):
            self.told.append(int(mapping["internal_address"]))


assert ORIGINS[1:] == (PCP, NAT_PMP, ADOPTED)
