"""The worker and the spare one, as their supervisor sees them: started, talked to, watched, replaced, stopped.

Both begin alike, as somebody who stands by (see `standby`). Whoever stands by when there is no worker takes over; after that
another one is started, to stand by as the spare. A worker that died is so replaced in milliseconds, or, without a spare, as
soon as a new one has loaded its code. One that keeps dying is replaced more and more slowly, until that is called a failure.

    start ─► loading ─► standing by ─► worker ─► died, or retired
               │ refused, died: another one later
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from krononat.client import Trouble
from krononat.member import UNSEEN, Member, Message, cause, is_fault
from krononat.view import ticks

QUICK = 10_000  # ticks; a worker that died of a fault sooner after it was ready has a problem that will come again
PAUSES = (0, 0, 500, 1000, 2000, 4000, 8000, 8000)  # ticks before the next one, by quick deaths in a row
SPARE_PAUSES = (200, 1000, 4000, 16_000, 60_000)  # ticks before the next spare, by spares that came to nothing in a row
STALLED = 10_000  # ticks without a breath
LOW = 10  # niceness of a spare while it loads

Given = tuple[Message, Sequence[int]]  # a message, and descriptors that go with it


class Hooks(NamedTuple):
    """What the crew asks of its supervisor."""

    place: Callable[[], Given]  # what somebody is told and inherits who is to stand by
    orders: Callable[[], Given]  # what is told and given to who takes over
    hear: Callable[[Message], None]  # the worker's messages, and {"ended": pid} when it died
    blame: Callable[[str], None]  # it died of a fault, as the word says; the next one has not taken over yet
    say: Callable[[str], None]


class Crew:
    """Keeps one worker alive, and a spare if wanted, in a selector whose keys' data are functions to call when ready."""

    def __init__(self, selector: selectors.BaseSelector, hooks: Hooks, environment: Mapping[str, str], spare: bool) -> None:
        self._selector, self._hooks, self._environment, self._wants_spare = selector, hooks, dict(environment), spare
        self._worker: Member | None = None
        self._next: Member | None = None  # who loads or stands by
        self._quick, self._due = 0, 0  # quick deaths of workers in a row, and when the next may start
        self._failed, self._spare_due = 0, 0  # the same of spares
        self._breaths = -1
        self._left_at = 0.0  # of the monotonic clock: when the last worker was found gone, or was told to go
        self._code = ""  # digest of the last worker's code
        self._stalled = False  # the worker is being ended because it breathes no more
        self.replacement: dict[str, Any] = {"state": "none"}
        self.breathed_at = ticks()
        self.takeover_ms: float | None = None  # the last one's, from being gone to being ready again
        self.restarts = -1
        self.refusal = ""  # why the last spare could not stand by

    # --- asked from outside -------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Process number of the worker, or of who is to be it; None between two."""
        member = self._worker or self._next
        return member.pid if member else None

    @property
    def code(self) -> str:
        """Digest of the code that the worker has loaded."""
        return self._code

    @property
    def ready_at(self) -> int:
        """Tick since when the worker takes packets; 0 while none does."""
        return self._worker.ready_at if self._worker else 0

    def spare(self) -> str:
        """How the spare is doing, in a word, or why there is none."""
        if not self._wants_spare:
            return "off"
        if self._next and self._worker:
            return "ready" if self._next.loaded_at else "starting"
        return f"refused: {self.refusal}" if self.refusal else "starting"

    @property
    def replacing(self) -> bool:
        """Whether somebody loads, or stands by, for whom the worker is to retire."""
        return bool(self.replacement["state"] == "starting")

    def spare_pid(self) -> int | None:
        """Process number of the spare."""
        return self._next.pid if self._next and self._worker else None

    def start(self) -> None:
        """Start somebody who takes over as soon as possible."""
        self._recruit(0)

    def adopt(self, member: Member, code: str) -> None:
        """Go on with a worker that forwards already. `code`: digest of what it has loaded."""
        self._worker, self._code = member, code
        member.go_first()
        self.restarts, self.breathed_at = 0, ticks()
        self._attend(member)

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Whether the worker was told, and given the descriptors; it is not while it is down or has too much to do."""
        return bool(self.ready_at and self._worker and self._worker.send(message, descriptors))

    def replace(self) -> None:
        """Have a new process take the worker's place, of the code that is on disk now. Trouble where that cannot begin."""
        if not self.ready_at:
            raise Trouble("there is no worker to replace now", "it is starting", "try again when `krononat status` says ready")
        if self.replacing:
            raise Trouble("the worker is being replaced already", "", "wait for it")
        if self._next:
            self._dismiss(self._next)
        self.replacement = {"state": "starting", "from": self.pid}
        self._hooks.say(f"worker {self.pid} is to be replaced: starting another")
        self._recruit(0)

    # --- coming -------------------------------------------------------------------------------------------------------

    def _recruit(self, nice: int) -> None:
        told, inherited = self._hooks.place()
        spare = self._worker is not None and not self.replacing
        member = self._next = Member({**told, "nice": nice, "spare": spare}, inherited, self._environment)
        self._attend(member)

    def _attend(self, member: Member) -> None:
        self._selector.register(member.channel, selectors.EVENT_READ, lambda: self._listen(member))
        self._selector.register(member.pidfd, selectors.EVENT_READ, lambda: self._ended(member))

    def _listen(self, member: Member) -> None:
        for told in member.hear():
            if "loaded" in told:
                self._loaded(member)
            elif "refused" not in told:
                if "ready" in told:
                    self._took_over(member)
                self._hooks.hear(told)

    def _loaded(self, member: Member) -> None:
        self._failed, self.refusal = 0, ""
        if self._worker is None:
            self._promote()
        elif self.replacing:
            self._left_at = time.monotonic()
            self._worker.send({"do": "retire"})
        else:
            self._hooks.say(f"spare worker {member.pid} stands by")

    def _promote(self) -> None:
        """Who stands by takes over: from here on it is the worker. Who cannot be told so is of no use."""
        member = self._next
        assert member
        orders, descriptors = self._hooks.orders()
        reindex = self._code != member.code  # other code may look for things elsewhere
        if not member.send({**orders, "do": "take", "reindex": reindex, "descriptors": list(descriptors)}, descriptors):
            member.refused, member.loaded_at = "it cannot be given its orders", 0
            member.kill()
            return
        self._next = None
        self._worker, self._code = member, member.code
        self.restarts += 1
        self.breathed_at = ticks()

    def _took_over(self, member: Member) -> None:
        if self._left_at:
            self.takeover_ms = round(1000 * (time.monotonic() - self._left_at), 1)
            self._left_at = 0.0
        if self.replacing:
            self.replacement |= {"state": "done", "to": member.pid, "takeover_ms": self.takeover_ms}
        self._spare_due = ticks() + SPARE_PAUSES[0]

    # --- going --------------------------------------------------------------------------------------------------------

    def _ended(self, member: Member) -> None:
        status = member.ended()
        if member is self._worker:
            self._worker_ended(member, status)
        elif member is self._next and self._worker:
            self._spare_ended(member, status)
        else:
            self._next = None
            self._note_quick(True, status, member.refused)
            self._hooks.say(f"worker {member.pid} came to nothing: {member.refused or cause(status)}")
            self._due = ticks() + PAUSES[self._quick]
        self._let_go(member)
        if self._worker is None and self._next is None and ticks() >= self._due:
            self._recruit(0)

    def _worker_ended(self, member: Member, status: int) -> None:
        """Have it replaced first of all, then talk about it."""
        self._left_at = self._left_at or time.monotonic()
        self._worker = None
        retired = self.replacing and status in (0, UNSEEN) and not self._stalled  # of an inherited one nobody sees it
        fault = is_fault(status) or self._stalled
        self._stalled = False
        if fault:
            self._hooks.blame(cause(status))
        lived = member.ready_at and self.breathed_at - member.ready_at >= QUICK
        self._note_quick((fault or status == 0) and not retired and not lived, status, "")
        self._due = ticks() + PAUSES[self._quick]
        if self._next and not PAUSES[self._quick]:
            self._hasten(self._next)
        self._hooks.say(f"worker {member.pid} " + ("has retired" if retired else f"died ({cause(status)})"))
        self._hooks.hear({"ended": member.pid})

    def _hasten(self, member: Member) -> None:
        if member.loaded_at:
            self._promote()
        else:
            member.hurry()

    def _note_quick(self, quick: bool, status: int, why: str) -> None:
        self._quick = self._quick + 1 if quick else 0
        if self._quick >= len(PAUSES):
            told = why or "its messages stand above"
            raise Trouble(f"the worker keeps dying ({cause(status)})", told, "is it a bug? report it")

    def _spare_ended(self, member: Member, status: int) -> None:
        self._next = None
        self.refusal = member.refused or f"it ended with {cause(status)}"
        self._failed = min(self._failed + 1, len(SPARE_PAUSES) - 1)
        self._spare_due = ticks() + SPARE_PAUSES[self._failed]
        self._hooks.say(f"spare worker {member.pid} cannot stand by: {self.refusal}")
        if self.replacing:
            self.replacement |= {"state": "refused", "why": self.refusal}

    def _let_go(self, member: Member) -> None:
        for each in (member.channel, member.pidfd):
            self._selector.unregister(each)
        member.close()

    def _dismiss(self, member: Member) -> None:
        for each in (member.channel, member.pidfd):
            self._selector.unregister(each)
        member.end()
        if member is self._next:
            self._next = None

    # --- round and round ----------------------------------------------------------------------------------------------

    def watch(self, breaths: int, now: int) -> None:
        """Start whoever is missing, end a worker that breathes no more. `breaths`: its count of them."""
        if breaths != self._breaths or not self.ready_at:
            self._breaths, self.breathed_at = breaths, now
        elif now - self.breathed_at > STALLED and self._worker:
            self._hooks.say(f"worker {self._worker.pid} has not breathed for {(now - self.breathed_at) / 1000:.1f} s")
            self._stalled = not self._worker.is_stopped()  # nothing that came is to blame for what a person did
            self._worker.kill()
            self.breathed_at = now
        if self.replacing and self._worker and self._next and self._next.loaded_at:
            self._worker.send({"do": "retire"})  # it did not listen
        if self._worker is None and now >= self._due:
            if self._next is None:
                self._recruit(0)
            elif self._next.loaded_at:
                self._promote()
        elif self._wants_spare and self._next is None and self.ready_at and now >= self._spare_due:
            self._recruit(LOW)

    def stop(self) -> None:
        """End both."""
        for member in (self._next, self._worker):  # in this order nobody takes over
            if member:
                self._dismiss(member)
        self._worker = None
