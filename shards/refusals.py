"""What is refused for want of something: counted for whom, told to him, and logged (RFC 6888 REQ-11, RFC 5508 REQ-8).

Nothing is deleted to make room (REQ-11 D). The sender is told by an ICMP error (`icmp.answer`), at most once in ANSWER_TICKS
each subscriber and from a bucket of their own, so that who is refused a million times a second takes nothing of what path MTU
discovery needs; the log is told once a second each subscriber.
"""

from __future__ import annotations

import numpy as np

from shards import events, verdict
from shards.account_rows import REASONS
from shards.burst import Burst
from shards.core_rows import NO_REPLY
from shards.jit import hot, whole
from shards.state import Array, Row, State
from shards.timers import age

ANSWER_TICKS = 100
TELL = -1  # in `detail` of a row: its sender may be told
BUCKET = 2  # of `icmp_tokens`

# verdict, reason, natEvent (RFC 8158 4.3), whether its sender is told
_PICTURE = """
session_limit        sessions   13  told
mapping_limit        ports      13  told
protocol_limit       protocol   13  told
rate_limit           rate       13  told
ports_exhausted      blocks     12  told
pool_exhausted       room        3  told
protocol_in_use      room       12  told
table_full           room       13  told
rows_exhausted       room       13  told
neighbours_exhausted room       13  told
fragment_limit       fragments  13  -
"""


def _parse(picture: str) -> tuple[Array, Array, Array]:
    """Of each verdict: reason + 1 (0: no refusal for want of something), kind of event, whether it is told."""
    reason, kind, told = (np.zeros(len(verdict.VERDICTS), np.uint8) for _ in range(3))
    for name, why, event, answered in map(str.split, picture.strip().splitlines()):
        number = verdict.BY_NAME[name].number
        reason[number], kind[number], told[number] = REASONS.index(why) + 1, int(event), answered == "told"
    return reason, kind, told


REASON, KIND, TOLD = _parse(_PICTURE)


@hot
def note(state: State, burst: Burst, i: int, account: int, port: int, now: int) -> None:
    """Row `i`, of an account and from an internal port, was refused: count it, log it, see whether its sender is told."""
    number = burst.verdict[i]
    if REASON[number] == 0:
        return
    at = account
    while at:
        row = state.accounts[at]
        row["refused"][whole(REASON[number]) - 1] += 1
        at = whole(row["parent"])
    row = state.accounts[account]
    address = whole(row["base"]) if burst.six[i] else burst.source[i]
    events.refusal(state, whole(KIND[number]), account, number, burst.protocol[i], address, port, total(row), now)
    if TOLD[number] != 0 and age(now, whole(row["answered_at"])) >= ANSWER_TICKS:
        row["answered_at"] = now & 0xFFFFFFFF
        burst.detail[i] = TELL


@hot
def total(account: Row) -> int:
    """Packets of an account refused so far, for whatever reason."""
    refused = 0
    for reason in range(len(REASONS)):
        refused += whole(account["refused"][reason])
    return refused & 0xFFFFFFFF


@hot
def is_told(number: int) -> bool:
    """Whether a verdict is a refusal of which its sender is told."""
    return bool(TOLD[number] != 0)


@hot
def reply(unreachable: int, code: int) -> int:
    """Type << 8 | code of the error about a refusal; 0 for none."""
    return 0 if code == NO_REPLY else unreachable << 8 | code
