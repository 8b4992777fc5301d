"""Moving a shard to another core while packets flow: what the old owner does, step by step; pure.

    join      name the target as a guest, until it wants our rows
    sync      send it everything, half-open connections too, until it lags no more, and it is known that it knows all of the
              shard's external addresses
    release   name it as our backup instead of the one before, until that has let go of its side and the target has it, and
              it is known still
    pause     create nothing more (misses are held), until every row is on its way
    handover  name the next epoch, until the target says that it has it
    drain     pass misses on to it, until no packet comes here any more
    done / failed

A move may be of the copy alone (`copies`): it ends with `release`, and the authority stays where it is.

Up to `pause` everything can be undone by naming the old backup again. From `handover` on the rules of `roles` hold whatever
dies: the target has the next epoch or has not. Where it does not say so in time we go on, two epochs further: the higher one
wins.
"""

from __future__ import annotations

from typing import NamedTuple

from replication.protocol import ALIVE
from replication.roles import Post, Told
from shards.state import ACTIVE, DRAINING, NO_SIDE

JOIN, SYNC, RELEASE, PAUSE, HANDOVER, DRAIN, DONE, FAILED = PHASES = (
    "join", "sync", "release", "pause", "handover", "drain", "done", "failed",
)  # fmt: skip

# Ticks that a phase may take; a shard of ten million sessions takes half a minute to copy, and after a takeover nobody is given
# the other side before the grace is over (10 s by default, see `conduct`).
PATIENCE = {JOIN: 5_000, SYNC: 300_000, RELEASE: 15_000, PAUSE: 300}


class Move(NamedTuple):
    """A shard on its way."""

    shard: int
    source: str
    target: str
    successor: str  # its backup afterwards
    before: str  # its backup before
    began: int  # tick
    since: int  # tick at which the phase began
    phase: str = JOIN
    why: str = ""  # of a failure
    copies: bool = False  # the backup moves, not the authority
    anyway: bool = False  # whatever addresses the target knows
    # What was measured.
    sessions: int = 0  # when it was handed over
    paused_at: int = 0
    taken_at: int = 0
    ended_at: int = 0

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase in (DONE, FAILED)

    @property
    def minds(self) -> bool:
        """Whether it matters still which addresses the target knows."""
        return self.phase in (JOIN, SYNC, RELEASE) and not self.anyway


class Seen(NamedTuple):
    """What the old owner sees of the world."""

    target: Told
    synced: bool  # the target lags no more
    flushed: bool  # nothing is left to be sent to it
    sessions: int
    lacking: str = ""  # what the target does not know of the shard's external addresses, as a sentence
    unsure: bool = False  # it knows others, and has not said yet which


def plan(
    shard: int, me: str, post: Post, target: Told, now: int, successor: str = "", copies: bool = False, anyway: bool = False
) -> Move:
    """The move of a shard of ours, or of its copy; one that is refused is born failed, and says why."""
    move = Move(shard, me, target.name, successor or me, post.backup, now, now, copies=copies, anyway=anyway)
    if why := _refuse(me, post, target) or (_refuse_copy(me, post, target) if copies else ""):
        return move._replace(phase=FAILED, why=why, ended_at=now)
    return move._replace(phase=SYNC if target.name == post.backup else JOIN)


def _refuse(me: str, post: Post, target: Told) -> str:
    if post.role != ACTIVE:
        return f"{me} has not the authority over it" + (f"; {post.authority} has" if post.authority else "")
    if target.name == me:
        return "it is there already"
    if target.evidence != ALIVE:
        return f"{target.name} is {target.evidence}"
    if post.side == NO_SIDE:
        return "its sides are being swapped; try again"
    return ""


def _refuse_copy(me: str, post: Post, target: Told) -> str:
    if target.name == post.backup:
        return "its copy is there already"
    if target.name.partition("/")[0] == me.partition("/")[0]:
        return f"{target.name} is of the same server as {me}: the shard would not outlive the server"
    return ""


def step(move: Move, post: Post, seen: Seen, now: int) -> tuple[Move, Post]:
    """The move and our post a moment later."""
    if move.over:
        return move, post
    if move.phase != DRAIN and (why := _interrupted(move, post, seen, now)):
        return _fail(move, post, why, now)
    return _STEPS[move.phase](move, post, seen, now)


def _interrupted(move: Move, post: Post, seen: Seen, now: int) -> str:
    if move.phase == HANDOVER:
        return "" if post.role == DRAINING else f"{move.target} did not say that it has it; {move.source} goes on"
    if post.role not in (ACTIVE, DRAINING):
        return f"{move.source} has lost the authority"
    if move.phase == PAUSE and post.role == ACTIVE:  # it has lapsed
        return f"{_WAITED_FOR[PAUSE]} within {PATIENCE[PAUSE] / 1000:g} s"
    if seen.target.evidence != ALIVE:
        return f"{move.target} is {seen.target.evidence}"
    if seen.lacking and move.minds:  # a pool has got addresses meanwhile
        return seen.lacking
    if now - move.since > PATIENCE[move.phase]:
        return f"{_waited_for(move, post, seen).format(move)} within {PATIENCE[move.phase] / 1000:g} s"
    return ""


def _waited_for(move: Move, post: Post, seen: Seen) -> str:
    """What has not come, of all that a phase waits for."""
    rest = {SYNC: seen.synced, RELEASE: _has_let_go(post, seen)}.get(move.phase, False)
    return _UNSAID if rest and _is_unsure(move, seen) else _WAITED_FOR[move.phase]


_UNSAID = "{0.target} knows other external addresses than {0.source}, and did not say which"
_WAITED_FOR = {
    JOIN: "{0.target} did not ask for the rows",
    SYNC: "{0.target} did not have all rows",
    RELEASE: "{0.before}, its backup, did not let go of its ports",
    PAUSE: "what was left could not be sent",
}


def give_up(move: Move, post: Post, why: str, now: int) -> tuple[Move, Post]:
    """End a move whose target is no core any more. Who has handed over already goes by the rules of `roles`."""
    if move.over or move.phase in (HANDOVER, DRAIN):
        return move._replace(phase=FAILED, why=why, since=now, ended_at=now) if not move.over else move, post
    return _fail(move, post, why, now)


def _fail(move: Move, post: Post, why: str, now: int) -> tuple[Move, Post]:
    if post.role == DRAINING and move.phase == PAUSE:  # nothing was said yet
        post = post._replace(role=ACTIVE, since=now, taker="")
    if post.role == ACTIVE:
        post = post._replace(backup=move.before, guest="")
    return move._replace(phase=FAILED, why=why, since=now, ended_at=now), post


def _join(move: Move, post: Post, seen: Seen, now: int) -> tuple[Move, Post]:
    """It may want them still from a move that failed: it is named all the same, or it would be released in a moment."""
    post = post._replace(guest=move.target)
    if seen.target.wants and seen.target.epoch == post.epoch:
        return move._replace(phase=SYNC, since=now), post
    return move, post


def _sync(move: Move, post: Post, seen: Seen, now: int) -> tuple[Move, Post]:
    """The backup before is let go only if it is likely that nothing else is in the way."""
    if not seen.synced or _is_unsure(move, seen):
        return move, post
    return move._replace(phase=RELEASE, since=now), post._replace(backup=move.target, guest="")


def _release(move: Move, post: Post, seen: Seen, now: int) -> tuple[Move, Post]:
    if not _has_let_go(post, seen) or _is_unsure(move, seen):
        return move, post
    if move.copies:
        return move._replace(phase=DONE, since=now, sessions=seen.sessions, ended_at=now), post
    paused = post._replace(role=DRAINING, taker=move.target, authority="", since=now)
    return move._replace(phase=PAUSE, since=now, paused_at=now), paused


def _has_let_go(post: Post, seen: Seen) -> bool:
    """Whether the target has the side that the backup before had."""
    return seen.target.side not in (NO_SIDE, post.side)


def _is_unsure(move: Move, seen: Seen) -> bool:
    return seen.unsure and move.minds


def _pause(move: Move, post: Post, seen: Seen, now: int) -> tuple[Move, Post]:
    """The handover itself is said by whoever carries this out, in the same stream behind the last row."""
    if not seen.flushed:
        return move, post
    return move._replace(phase=HANDOVER, since=now, sessions=seen.sessions), post._replace(since=now)


def _handover(move: Move, post: Post, seen: Seen, now: int) -> tuple[Move, Post]:
    if post.authority == move.target:
        return move._replace(phase=DRAIN, since=now, taken_at=now), post
    return move, post


def _drain(move: Move, post: Post, seen: Seen, now: int) -> tuple[Move, Post]:
    if post.role == DRAINING:
        return move, post
    return move._replace(phase=DONE, since=now, ended_at=now), post


_STEPS = {JOIN: _join, SYNC: _sync, RELEASE: _release, PAUSE: _pause, HANDOVER: _handover, DRAIN: _drain}
