"""What clients of the control socket are told about shards, cores and replication: the worker knows it, so it is asked.

    client                       supervisor                                      worker
    {"do": "shards", ...}   ->   {"do": "ask", "id": n, "request": {...}}   ->   Conductor.answer(request)
    its answer              <-   {"answer": {...}, "id": n}                 <-

Requests are looked at here, so that the worker gets none but right ones; what they mean stands in `client`. Its answer goes to
the client as it is. A worker that dies or is silent costs an error, not the client's patience.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from krononat.client import TIMED_OUT, Trouble
from krononat.control import Answer, Handler, error
from krononat.member import Message
from krononat.view import ticks

PATIENCE = 4000  # ticks that an answer may take; less than `client.ask` waits
ASKED_AT_MOST = 32  # at the same time
SHARDS_AT_MOST = 1 << 16

_CORE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}/[0-9]{1,4}")

# What may stand in a request beside "do": the field, whether it must, and what it is.
_PICTURE = """
cores        from    may   number
shards       from    may   number
replication  from    may   number
migrate      shard   must  number
migrate      target  must  core
migrate      dry_run may   yes/no
migrate      copies  may   yes/no
marks        from    may   number
move
verify       shard   must  number
verify       begin   may   yes/no
resync       shard   must  number
tallies
"""


class _Field(NamedTuple):
    name: str
    needed: bool
    kind: str


def _parse(picture: str) -> dict[str, list[_Field]]:
    requests: dict[str, list[_Field]] = {}
    for line in picture.strip().splitlines():
        word, *field = line.split()
        known = requests.setdefault(word, [])
        if field:
            known.append(_Field(field[0], field[1] == "must", field[2]))
    return requests


REQUESTS = _parse(_PICTURE)

_SENTENCES = {
    "number": f"a whole number from 0 to {SHARDS_AT_MOST - 1}",
    "core": "a core, SERVER/NUMBER",
    "yes/no": "true or false",
}


class _Question(NamedTuple):
    reply: Answer
    since: int


class ClusterAnswers:
    """Handlers of all requests about the cluster. `send`: gives the worker a message, False where it cannot be given one."""

    def __init__(self, send: Callable[[Message], bool], clustered: bool) -> None:
        self._send, self._clustered = send, clustered
        self._open: dict[int, _Question] = {}
        self._numbers = itertools.count(1)

    def handlers(self) -> Mapping[str, Handler]:
        """By the word in "do"."""
        return dict.fromkeys(REQUESTS, self._ask)

    def _ask(self, request: dict[str, Any], reply: Answer) -> None:
        wrong = complaint(request)
        if wrong:
            raise Trouble(
                f"not a request of the kind {request['do']!r}", wrong, "see `krononat shard`, `server`, `replication`"
            )
        if not self._clustered:
            told = "its configuration has no [cluster]"
            raise Trouble("this core is alone", told, "krononat config explain cluster")
        if len(self._open) == ASKED_AT_MOST:
            raise Trouble("too much is asked at the same time", f"{ASKED_AT_MOST} answers are not there yet", "try again")
        number = next(self._numbers)
        if not self._send({"do": "ask", "id": number, "request": request}):
            raise Trouble(
                "the worker cannot answer now", "it is starting, or too busy to be told", "krononat status; try again"
            )
        self._open[number] = _Question(reply, ticks())

    def answered(self, message: Message) -> None:
        """The worker's answer came; one that nobody waits for any more is dropped."""
        question = self._open.pop(message["id"], None)
        if question:
            question.reply(message["answer"])

    def refuse(self) -> None:
        """The worker has ended: who waits is told so."""
        trouble = Trouble("the worker ended before it answered", "another one is started", "krononat status")
        while self._open:
            self._open.popitem()[1].reply(error(trouble))

    def tire(self, now: int) -> None:
        """Give up on answers that take too long; call it now and then."""
        for number, question in list(self._open.items()):
            if now - question.since > PATIENCE:
                told = f"nothing came in {PATIENCE / 1000:g} s; what was asked for may happen all the same"
                question.reply(error(Trouble("the worker does not answer", told, "krononat status", TIMED_OUT)))
                del self._open[number]


def complaint(request: Mapping[str, Any]) -> str:
    """What is wrong with a request, empty where nothing is."""
    fields = {field.name: field for field in REQUESTS[request["do"]]}
    for name in request.keys() - fields.keys() - {"do"}:
        return f"there is no {name!r} in it"
    for name, field in fields.items():
        if name not in request:
            if field.needed:
                return f"{name!r} is missing, {_SENTENCES[field.kind]}"
        elif not _is(field.kind, request[name]):
            return f"{name!r} is {_SENTENCES[field.kind]}"
    return ""


def _is(kind: str, value: object) -> bool:
    if kind == "yes/no":
        return isinstance(value, bool)
    if kind == "core":
        return isinstance(value, str) and _CORE.fullmatch(value) is not None
    return type(value) is int and 0 <= value < SHARDS_AT_MOST
