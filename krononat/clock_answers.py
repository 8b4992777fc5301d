"""What clients of the control socket are told about the packets' clock, and have done to it; the worker alone moves it.

    client                         supervisor                   worker
    {"do": "clock", ...}     ->    the same, looked at    ->    Clock.obey
    its answer               <-    {"clock": ...}         <-    when everything that was due until then is done

Who only asks is told without the worker. To move it takes sessions away from subscribers, so the configuration must allow it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from krononat.client import BAD_CONFIG, TIMED_OUT, Trouble
from krononat.clock import MOVE_AT_MOST, Clock, ticks
from krononat.control import Answer, Handler, error
from krononat.member import Message
from shards.state import State

PATIENCE = 20_000  # ticks that it may take: millions of sessions may have to end

_FIELDS = {"ahead_ms": int, "stands": bool}


class _Question(NamedTuple):
    reply: Answer
    since: int


class ClockAnswers:
    """The handler of such requests. `send`: gives the worker a message, False where it cannot be given one."""

    def __init__(self, send: Callable[[Message], bool], state: State, movable: bool) -> None:
        self._send, self._state, self._movable = send, state, movable
        self._open: deque[_Question] = deque()

    def handlers(self) -> Mapping[str, Handler]:
        """By the word in "do"."""
        return {"clock": self._ask}

    def _ask(self, request: dict[str, Any], reply: Answer) -> None:
        order = {key: value for key, value in request.items() if key != "do"}
        if wrong := complaint(order):
            raise Trouble("not a request about the clock", wrong, "see `krononat lab clock --help`")
        if not order:
            reply({"ok": True, "clock": Clock(self._state).told(ticks())._asdict(), "movable": self._movable})
            return
        if not self._movable:
            why = "its configuration has no `movable-clock = true` in [server]: it may serve subscribers"
            raise Trouble("this core's clock may not be moved", why, "`krononat lab up` makes one that allows it", BAD_CONFIG)
        if not self._send({"do": "clock", **order}):
            raise Trouble("the worker cannot be told now", "it is starting, or too busy", "krononat status; try again")
        self._open.append(_Question(reply, ticks()))

    def moved(self, message: Message) -> None:
        """The worker's answer came, to the first who waits; one that nobody waits for any more is dropped."""
        if not self._open:
            return
        if message["why"]:
            refusal = Trouble("the clock cannot be moved so far now", message["why"], "try again in a moment")
            self._open.popleft().reply(error(refusal))
        else:
            self._open.popleft().reply({"ok": True, "clock": message["clock"], "movable": True})

    def refuse(self) -> None:
        """The worker has ended: who waits is told so."""
        self._end(Trouble("the worker ended before it answered", "another one is started", "krononat lab clock"))

    def tire(self, now: int) -> None:
        """Give up on answers that take too long; call it now and then."""
        if self._open and now - self._open[0].since > PATIENCE:
            told = f"nothing came in {PATIENCE / 1000:g} s; the clock may move all the same"
            self._end(Trouble("the worker does not answer", told, "krononat lab clock", TIMED_OUT))

    def _end(self, trouble: Trouble) -> None:
        while self._open:
            self._open.popleft().reply(error(trouble))


def complaint(order: Mapping[str, Any]) -> str:
    """What is wrong with an order, empty where nothing is."""
    for name, value in order.items():
        if name not in _FIELDS:
            return f"there is no {name!r} in it; there may be {', '.join(_FIELDS)}"
        if type(value) is not _FIELDS[name]:
            return f"{name!r} is {'true or false' if _FIELDS[name] is bool else 'a whole number of ms'}"
    ahead = order.get("ahead_ms", 0)
    if ahead < 0:
        return f"{ahead} ms: it only goes forwards"
    if ahead > MOVE_AT_MOST:
        return f"{ahead} ms: at most {MOVE_AT_MOST} in one go, a day"
    return ""
