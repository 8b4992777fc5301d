"""What a worker knows by heart of the grants of one shard: by mapping, subscriber and host, and when each is due.

Nothing here looks at the state, and whatever is asked of it costs the same however much there is: an answer to one request must
not keep the packets of everybody else waiting. So a whole shard is forgotten by letting go of its index, and all that a host
asked for is taken out together, to be ended little by little.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from itertools import islice
from typing import NamedTuple, TypeVar

_Key = TypeVar("_Key", bound=Hashable)


class Fact(NamedTuple):
    """Of a row: its mapping (half-line, generation), whose it is, and whether only who has its nonce may end it."""

    half: int
    life: int
    subscriber: int
    host: int
    protocol: int
    nonced: bool


class Index:
    """Rows of `State.grants` by their numbers; times in seconds."""

    def __init__(self) -> None:
        self._row_of: dict[int, int] = {}  # half-line: row
        self._facts: dict[int, Fact] = {}
        self._of_subscriber: dict[int, dict[int, None]] = {}  # in the order in which they are looked at
        self._of_host: dict[tuple[int, int, bool], set[int]] = {}  # host, protocol, whether they have a nonce
        self._ending: dict[tuple[int, int], set[int]] = {}  # host, protocol: given up, and still there
        self._due_at: dict[int, int] = {}  # row: second
        self._due_in: dict[int, set[int]] = {}  # second: rows
        self._seconds: list[int] = []  # a heap, each once; in some nothing is due any more
        self._known = set[int]()  # those in the heap

    def __len__(self) -> int:
        return len(self._facts)

    def enter(self, number: int, fact: Fact, expires_s: int) -> None:
        """Know a row. No other one may be about the same mapping."""
        self._row_of[fact.half], self._facts[number] = number, fact
        self._of_subscriber.setdefault(fact.subscriber, {})[number] = None
        self._of_host.setdefault((fact.host, fact.protocol, fact.nonced), set()).add(number)
        self.await_end(number, expires_s)

    def drop(self, number: int) -> None:
        """Know a row no longer."""
        fact = self._facts.pop(number)
        del self._row_of[fact.half]
        _discard(self._due_in, self._due_at.pop(number), number)
        _discard(self._of_host, (fact.host, fact.protocol, fact.nonced), number)
        _discard(self._ending, (fact.host, fact.protocol), number)
        rows = self._of_subscriber[fact.subscriber]
        del rows[number]
        if not rows:
            del self._of_subscriber[fact.subscriber]

    def take_any(self) -> int:
        """Drop one, whichever; its number, 0 if there is none."""
        if not self._facts:
            return 0
        number, fact = self._facts.popitem()
        self._facts[number] = fact
        self.drop(number)
        return number

    # --- by mapping -------------------------------------------------------------------------------------------------------

    def row_of(self, half: int) -> int:
        """Row that is about a mapping, in this or an earlier life of it; 0: none is."""
        return self._row_of.get(half, 0)

    def knows(self, half: int, life: int) -> bool:
        """Whether there is a row of a mapping's very life."""
        number = self._row_of.get(half, 0)
        return number != 0 and self._facts[number].life == life

    # --- by subscriber and host -------------------------------------------------------------------------------------------

    def count(self, subscriber: int) -> int:
        """How many a subscriber has."""
        return len(self._of_subscriber.get(subscriber, ()))

    def look_at(self, subscriber: int, at_most: int) -> list[int]:
        """Some rows of a subscriber, those that were looked at last the longest ago."""
        rows = self._of_subscriber.get(subscriber, {})
        found = list(islice(rows, at_most))
        for number in found:
            del rows[number]
            rows[number] = None
        return found

    def has_nonced(self, host: int, protocol: int) -> bool:
        """Whether a host has one that only who has its nonce may end."""
        return (host, protocol, True) in self._of_host

    def turn_over(self, number: int, nonced: bool) -> None:
        """Who asked for it has, or has not, a nonce from now on."""
        fact = self._facts[number]
        if fact.nonced != nonced:
            _discard(self._of_host, (fact.host, fact.protocol, fact.nonced), number)
            self._of_host.setdefault((fact.host, fact.protocol, nonced), set()).add(number)
            self._facts[number] = fact._replace(nonced=nonced)

    # --- their ends -------------------------------------------------------------------------------------------------------

    def give_up(self, host: int, protocol: int) -> None:
        """All of a host and protocol that have no nonce are to end."""
        rows = self._of_host.pop((host, protocol, False), None)
        if rows:
            self._ending.setdefault((host, protocol), rows).update(rows)

    def is_given_up(self, number: int) -> bool:
        """Whether it is to end, and nobody has come to it yet."""
        fact = self._facts[number]
        return number in self._ending.get((fact.host, fact.protocol), ())

    def given_up(self) -> int:
        """One that is to end, and is to be dropped now; 0 if there is none."""
        return next(iter(self._ending.values())).pop() if self._ending else 0

    def await_end(self, number: int, expires_s: int) -> None:
        """Its lifetime is over in that second, whatever was said before."""
        if number in self._due_at:
            _discard(self._due_in, self._due_at[number], number)
        self._due_at[number] = expires_s
        self._due_in.setdefault(expires_s, set()).add(number)
        if expires_s not in self._known:
            self._known.add(expires_s)
            heapq.heappush(self._seconds, expires_s)

    def due(self, now_s: int) -> Iterator[int]:
        """Rows whose lifetime is over, each to be dropped before the next; 0 where there was nothing in a second, after all."""
        while self._seconds and self._seconds[0] <= now_s:
            if rows := self._due_in.get(self._seconds[0]):
                yield rows.pop()
            else:
                self._known.discard(heapq.heappop(self._seconds))
                yield 0


def _discard(index: dict[_Key, set[int]], key: _Key, number: int) -> None:
    rows = index.get(key)
    if rows is not None:
        rows.discard(number)
        if not rows:
            del index[key]
