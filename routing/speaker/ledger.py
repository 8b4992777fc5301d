"""What the cores of a server want said, what was said, and what must be said now: pure, a dictionary each.

A core's routes count while it is alive. Silence for its `dead_after_ms` is death; so is the end of its connection once it has
lingered. Of a core that is silent the wanted set is kept, and said again when it beats; of one that is gone it is not.

    never ─hello─► alive ◄─beat─ silent
                    │ hung up      │ hung up
                    ▼              ▼
                 lingering ──────► gone ─hello─► alive

Times are milliseconds of one clock, handed in. What was said by a helper that died is remembered as doubtful: said again if it
is wanted, withdrawn if not, and neither before its core had the time to come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from routing.speaker.sessions import Plan, Way

ORPHANED = 2000  # ms that a core has to come back after the helper itself was away; supervisors try each 200 ms
MOST_OF_A_COMMAND = 200  # prefixes

NEVER, ALIVE, SILENT, LINGERING, GONE = "never", "alive", "silent", "lingering", "gone"


class Route(NamedTuple):
    """As `announcements.Route`, and as it comes as a list in JSON."""

    prefix: str
    domain: str
    med: int | None
    prepend: int
    communities: tuple[str, ...]
    large_communities: tuple[str, ...]


def route(told: Iterable[object]) -> Route:
    """Route of a list in JSON. ValueError where it is none."""
    match tuple(told):
        case (str(prefix), str(domain), int() | None as med, int(prepend), list() | tuple() as few, list() | tuple() as large):
            texts = [*few, *large]
            if all(isinstance(text, str) and _is_plain(text) for text in texts) and _is_plain(prefix):
                return Route(prefix, domain, med, prepend, tuple(few), tuple(large))
    raise ValueError(f"this is no route: {told!r}")


def _is_plain(text: str) -> bool:
    """A word that ends no command and begins no other."""
    return bool(text) and all(char.isalnum() or char in ".:/" for char in text)


class Said(NamedTuple):
    """What a session was told about a prefix; `core` says whose route it is."""

    core: str
    next_hop: str
    med: int | None
    prepend: int
    communities: tuple[str, ...]
    large_communities: tuple[str, ...]


class Change(NamedTuple):
    """One thing to say to one session: prefixes that have `said` from now on, or, where that is None, are withdrawn."""

    session: str
    said: Said | None
    prefixes: tuple[str, ...]


class _Core:
    def __init__(self, dead_after: int) -> None:
        self.dead_after = dead_after
        self.state = NEVER
        self.since = 0
        self.heard = 0
        self.ends = 0  # lingering until
        self.wanted: tuple[Route, ...] = ()
        self.number = 0  # of the wanted set


class Ledger:
    """All cores of a plan. After any call that may change what is to be said, `changes` says it."""

    def __init__(self, plan: Plan, now: int) -> None:
        self._plan = plan
        self._cores = {name: _Core(voice.dead_after_ms) for name, voice in plan.cores.items()}
        self._said: dict[str, dict[str, Said]] = {session.name: {} for session in plan.sessions}
        self._doubtful: dict[str, set[str]] = {session.name: set() for session in plan.sessions}
        self._touched = set(self._said)  # sessions where something may have to be said
        self._patience, self._patient = now, False  # what is doubtful and unwanted is left alone until then
        for core in self._cores.values():
            core.since = now

    # --- what happens -----------------------------------------------------------------------------------------------------

    def knows(self, name: str) -> bool:
        """Whether the plan has such a core."""
        return name in self._cores

    def hello(self, name: str, now: int) -> None:
        """A core has connected; what its predecessor wanted holds until it says otherwise."""
        self._cores[name].heard = now
        self._enter(name, ALIVE, now)

    def beat(self, name: str, now: int) -> None:
        """A core has said something."""
        self._cores[name].heard = now
        if self._cores[name].state == SILENT:
            self._enter(name, ALIVE, now)

    def want(self, name: str, routes: Iterable[Route], number: int) -> None:
        """The whole set that a core wants said."""
        self._cores[name].wanted, self._cores[name].number = tuple(routes), number
        self._touch(name)

    def hung_up(self, name: str, linger: int, now: int) -> None:
        """A core's connection has ended."""
        core = self._cores[name]
        if core.state == ALIVE and linger:
            core.ends = now + linger
            self._enter(name, LINGERING, now)
        else:
            self._leave(name, now)

    def remember(self, memory: Mapping[str, Iterable[str]], now: int) -> None:
        """What a helper before us may have said, by session."""
        self._patience, self._patient = now + ORPHANED, True
        for session, prefixes in memory.items():
            if session in self._doubtful:
                self._doubtful[session] |= set(prefixes)

    def forget(self, change: Change) -> None:
        """The change was refused: whether the session has it now is doubtful, and it is said again with the next `touch`."""
        for prefix in change.prefixes:
            self._said[change.session].pop(prefix, None)
            self._doubtful[change.session].add(prefix)

    def tick(self, now: int) -> None:
        """Time has passed; everything that has come until now has been told before."""
        for name, core in self._cores.items():
            if core.state == ALIVE and now - core.heard > core.dead_after:
                self._enter(name, SILENT, now)
            if core.state == LINGERING and now >= core.ends:
                self._leave(name, now)
        if self._patient and now >= self._patience:
            self._patient = False
            self._touched |= self._said.keys()

    def touch(self, session: str) -> None:
        """Look anew at what a session was told."""
        self._touched.add(session)

    def due(self, now: int) -> int:
        """Milliseconds until `tick` may change something; at most a second."""
        ends = [core.heard + core.dead_after + 1 for core in self._cores.values() if core.state == ALIVE]
        ends += [core.ends for core in self._cores.values() if core.state == LINGERING]
        ends += [self._patience] if self._patient else []
        return max(0, min([end - now for end in ends] + [1000]))

    def _enter(self, name: str, state: str, now: int) -> None:
        core = self._cores[name]
        if core.state != state:
            core.state, core.since = state, now
            self._touch(name)

    def _touch(self, name: str) -> None:
        self._touched |= {way.session for way in self._plan.cores[name].ways} & self._said.keys()

    def _leave(self, name: str, now: int) -> None:
        self._cores[name].wanted = ()
        self._enter(name, GONE, now)

    # --- what is to be said -----------------------------------------------------------------------------------------------

    def changes(self, now: int) -> list[Change]:
        """Everything to say now, withdrawals last: a prefix is better said twice than not at all. It counts as said."""
        news: list[Change] = []
        ends: list[Change] = []
        for session in sorted(self._touched):
            said, wanted, doubtful = self._said[session], self._wanted(session), self._doubtful[session]
            gone = [prefix for prefix in said if prefix not in wanted]
            if now >= self._patience:
                gone += sorted(doubtful - wanted.keys() - said.keys())
            fresh = {prefix: each for prefix, each in wanted.items() if said.get(prefix) != each or prefix in doubtful}
            news += _grouped(session, fresh)
            ends += _parts(session, None, gone)
            doubtful -= set(gone) | set(fresh)
            said.update(fresh)
            for prefix in gone:
                said.pop(prefix, None)
        self._touched.clear()
        return news + ends

    def _wanted(self, session: str) -> dict[str, Said]:
        """Of two cores that want the same prefix said in one session the one with the lower MED wins, then the first name."""
        found: dict[str, Said] = {}
        for name, core in sorted(self._cores.items()):
            if core.state not in (ALIVE, LINGERING):
                continue
            for way in self._plan.cores[name].ways:
                if way.session == session:
                    for prefix, said in _through(name, core.wanted, way):
                        if prefix not in found or (said.med or 0) < (found[prefix].med or 0):
                            found[prefix] = said
        return found

    def memory(self) -> dict[str, list[str]]:
        """Every prefix that a session may have been told, for the helper after us."""
        return {session: sorted(said.keys() | self._doubtful[session]) for session, said in self._said.items()}

    # --- what people ask --------------------------------------------------------------------------------------------------

    def describe(self, now: int) -> list[dict[str, object]]:
        """A row for each core."""
        return [
            {
                "core": name, "state": core.state, "since_ms": now - core.since, "wanted": len(core.wanted),
                "number": core.number, "untold": self._untold(name),
            }
            for name, core in sorted(self._cores.items())
        ]  # fmt: skip

    def _untold(self, name: str) -> int:
        """Routes that no session can carry: IPv6 ones where no IPv6 next hop is known, or a domain without a switch."""
        ways = self._plan.cores[name].ways
        return sum(not any(True for way in ways for _ in _through(name, [each], way)) for each in self._cores[name].wanted)

    def said(self) -> Iterator[tuple[str, str, Said]]:
        """(session, prefix, what was said)."""
        for session, said in self._said.items():
            for prefix, each in said.items():
                yield session, prefix, each


def _through(core: str, routes: Iterable[Route], way: Way) -> Iterator[tuple[str, Said]]:
    for each in routes:
        next_hop = way.next_hop6 if ":" in each.prefix else way.next_hop
        if next_hop and way.domain in (each.domain, "both"):
            yield each.prefix, Said(core, next_hop, each.med, each.prepend, each.communities, each.large_communities)


def _grouped(session: str, fresh: Mapping[str, Said]) -> list[Change]:
    groups: dict[Said, list[str]] = {}
    for prefix, said in fresh.items():
        groups.setdefault(said, []).append(prefix)
    return [change for said, prefixes in groups.items() for change in _parts(session, said, prefixes)]


def _parts(session: str, said: Said | None, prefixes: list[str]) -> list[Change]:
    """Commands of one address family and of a bearable length."""
    found = []
    for family in ([p for p in prefixes if ":" not in p], [p for p in prefixes if ":" in p]):
        parts = [family[at : at + MOST_OF_A_COMMAND] for at in range(0, len(family), MOST_OF_A_COMMAND)]
        found += [Change(session, said, tuple(part)) for part in parts]
    return found
