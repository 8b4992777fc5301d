"""What a core is to a shard, and what makes it something else: a drawn table and the rules around it, pure.

Every core tells its peers, again and again, what it is to each shard (`Told`). Nothing is ever asked and answered: a message
that is lost is told anew, and a core that was away learns all it must know from the next one. `decide` looks at what this core
is (`Post`) and at what the others told, and says what it is from now on.

**Authority.** Only ACTIVE creates. An epoch has one ACTIVE core: a promotion takes the next epoch, a handover names it. Who
hears of a higher one steps back: it first gives the winner what it has made itself (`winner`), then copies the winner.

**Sides.** A replica hands out ports and rows of its own side only, so two that cannot hear each other never hand out the same.
A side changes hands in two steps: who has it lets go (`NO_SIDE`) and says so, then the other takes it. Letting go needs an
order from the ACTIVE core (`yours`), which grants a side only once nobody else has it.

**Death.** CLOSED is known: the process has ended, and if it comes back it asks first, so its side is taken at once. SILENT
may be a partition: the heir goes on with its own side. Nobody but the heir is promoted, and only if packets arrive.

**Rooms.** A shard may have a *reserve*, a core in another room that keeps no copy. It is promoted where its packets come to it
and whoever has something of the shard is away: then routes have fallen to the wider prefixes that the reserve announces. It
begins with nothing: on side 0 where all others are known to be dead, else on side 1, which is the backup's, who hands out
nothing as long as the ACTIVE core is there.

Left out on purpose: rooms that are cut off each other while the backup, too, hands out ports (it has just been given the shard,
or lost the ACTIVE core): both use side 1 then. Whoever must exclude that lets the reserve wait for words (`WAIT`). And a core
that crashes and is cut off at the same moment. It cannot ask then, goes on after `resume_after`, and its heir, which saw it
CLOSED, may have taken its side; the higher epoch wins when they meet, and what it has not is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from replication.protocol import ALIVE, CLOSED, SILENT, Evidence
from shards.state import ABSENT, ACTIVE, DRAINING, JOINING, NO_SIDE, PASSIVE, ROLES, SYNCING

# Events in the order in which they are looked at; a cell is the role from then on, "." no change.
#
#   higher    another core is ACTIVE at a higher epoch (or at the same, and its name comes first)
#   invited   the ACTIVE core names this one as its backup, or as its guest
#   released  the ACTIVE core names another one
#   handed    the ACTIVE core handed its authority over to this one
#   bereft    the core that had the authority is back with empty memory: what we have is all there is
#   dead      the core that has the authority is dead, this one is its heir, and packets want an authority
#   orphaned  so are all who have something of the shard, this one is its reserve, and packets want an authority
#   alone     nobody has the authority; all others have said so, or had the time to
#   synced    the ACTIVE core says that our copy is complete
#   behind    it says that it is not
#   lapsed    the core that was to take the authority over has not
#   quiet     the core that took it over has seen to it that no packet comes here any more
_PICTURE = """
            higher   invited  released handed  bereft  dead    orphaned alone   synced   behind   lapsed  quiet
absent      .        syncing  .        .       .       .       active   .       .        .        .       .
joining     syncing  syncing  absent   .       .       .       .        active  .        .        .       .
syncing     syncing  .        absent   active  active  active  .        .       passive  .        .       .
passive     syncing  .        absent   active  active  active  .        .       .        syncing  .       .
active      syncing  .        .        .       .       .       .        .       .        .        .       .
draining    syncing  .        .        .       active  active  .        .       .        .        active  passive
"""


def _parse(picture: str) -> tuple[tuple[str, ...], dict[tuple[int, str], int]]:
    head, *lines = picture.strip().splitlines()
    events = tuple(head.split())
    table = {}
    for line in lines:
        name, *cells = line.split()
        for event, cell in zip(events, cells, strict=True):
            if cell != ".":
                table[ROLES.index(name), event] = ROLES.index(cell)
    return events, table


EVENTS, FOLLOWING = _parse(_PICTURE)


class Told(NamedTuple):
    """What another core said last of a shard, and what is known about its being alive."""

    name: str
    role: int = ABSENT
    epoch: int = 0
    side: int = NO_SIDE
    cold: bool = False  # joining with empty memory
    wants: bool = False  # it would apply rows of ours
    winner: str = ""  # the core to which it gives what it has made
    backup: str = ""  # ACTIVE: the core that is meant to be its backup
    guest: str = ""  # ACTIVE: another core that shall have a copy
    yours: int = NO_SIDE  # ACTIVE: the side that this core shall have
    heir: bool = False  # ACTIVE: this core may take over; anybody else: it thinks that it may itself
    synced: bool = False  # ACTIVE: this core has a complete copy
    taken: bool = False  # ACTIVE: its authority was handed over to it
    evidence: Evidence = ALIVE


class Post(NamedTuple):
    """What this core is to a shard."""

    role: int
    epoch: int
    side: int
    since: int  # tick at which the role began
    cold: bool = False  # joining with empty memory
    heir: bool = False  # may take over
    whole: bool = False  # our copy was complete once since we began to follow: no row of ours is another's by now
    backup: str = ""  # the core that is our backup, or is to be
    guest: str = ""  # another core that shall have a copy: it is about to become the backup
    authority: str = ""  # the core that has the authority, as far as is known; empty: none, or this one
    winner: str = ""  # the core to which we give what we have made, before we copy it
    pickup: bool = False  # connections may be picked up in their middle: the last owner is known to be dead
    taker: str = ""  # draining: who takes over
    taken: bool = False  # active: the authority was handed over to us, in this epoch


WAIT, APART, DEAD = "wait", "apart", "dead"  # for words of it; use side 1, it may be cut off only; use side 0, it is dead


class Facts(NamedTuple):
    """What else there is to know."""

    me: str
    now: int
    wanted: bool = False  # packets came that needed an authority
    primary: bool = False  # by the map
    partner: str = ""  # by the map: the other one of primary and backup
    home: tuple[str, ...] = ()  # by the map: primary and backup
    reserve: bool = False  # by the map: to serve it when all who have something of it are away
    silent_room: str = APART  # what a reserve makes of a home of which nothing is heard
    heard_reserve: bool = True  # it has told us something since we began; True where there is none
    heard_all: bool = False  # every core of the map has told us something since we began
    handed: int = 0  # epoch that the ACTIVE core has just handed over to us, 0 none
    successor: str = ""  # the backup that comes with it
    quiet: bool = False  # draining: no packet came for long enough
    given: bool = False  # the winner has all that we had to give
    promotions: int = 0  # of this shard, after failures, by whichever core, within the last `RISES_WITHIN` (see `rises`)
    join_after: int = 3000  # ticks
    resume_after: int = 300
    lapse_after: int = 300


RISES_AT_MOST, RISES_WITHIN = 3, 30_000  # promotions by failures; ticks. What kills one owner after another must not walk on


def active_among(others: Sequence[Told]) -> Told | None:
    """The core with the authority, by the newest that was told."""
    found = [told for told in others if told.role == ACTIVE]
    return max(found, key=lambda told: (told.epoch, -_rank(told.name, others)), default=None)


def _rank(name: str, others: Sequence[Told]) -> int:
    return sorted(told.name for told in others).index(name)


def decide(post: Post, others: Sequence[Told], facts: Facts) -> Post:
    """What this core is to the shard from now on; `others`: every other core of the map."""
    for event in EVENTS:
        following = FOLLOWING.get((post.role, event))
        if following is not None and _LOOKS[event](post, others, facts):
            post = _CHANGES[event](post._replace(role=following), post, others, facts)
            break
    return _settle(post, others, facts)


# --- what happens ---------------------------------------------------------------------------------------------------------


def _is_higher(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    top = active_among([told for told in others if told.evidence != CLOSED])  # what the dead said last may come late
    if top is None or (post.role == DRAINING and top.name == post.taker and (top.taken or post.authority)):
        return False
    if post.role in (ACTIVE, DRAINING):
        return (top.epoch, facts.me) > (post.epoch, top.name)
    return top.epoch > post.epoch or (top.epoch == post.epoch and post.role == JOINING)


def _is_invited(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    top = active_among(others)
    named = top is not None and facts.me in (top.backup, top.guest)
    return top is not None and named and top.epoch >= post.epoch and top.evidence == ALIVE


def _is_released(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    top = active_among(others)
    if top is None or top.epoch < post.epoch or top.evidence != ALIVE or post.winner:
        return False
    return facts.me not in (top.backup, top.guest)


def _is_handed(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    return facts.handed > post.epoch and post.side != NO_SIDE


def _is_bereft(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    owner = _owner(post, others)
    bereft = owner is not None and owner.role == JOINING and owner.cold and owner.evidence == ALIVE
    return bereft and (post.heir or _is_next(others, facts)) and _has_asked(post, facts)


def _is_next(others: Sequence[Told], facts: Facts) -> bool:
    """Whether this core inherits where nobody was named: the heir came back a moment ago, and has not been told again."""
    holders = [told for told in others if told.role in (SYNCING, PASSIVE, DRAINING)]
    return not any(told.heir for told in holders) and all(facts.me < told.name for told in holders)


def _owner(post: Post, others: Sequence[Told]) -> Told | None:
    return next((told for told in others if told.name == post.authority), None)


def _has_asked(post: Post, facts: Facts) -> bool:
    """Whether the reserve would have told us by now that it has the authority: it may have taken it while we were away."""
    return facts.heard_reserve or facts.now - post.since >= facts.resume_after


def _is_dead(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    owner = _owner(post, others)
    if not (facts.wanted and post.heir and _has_asked(post, facts)) or facts.promotions >= RISES_AT_MOST:
        return False
    if owner is None or not owner.epoch:  # nobody has said that he has the authority since we began
        return post.side != NO_SIDE and facts.now - post.since >= facts.join_after
    silent = owner.evidence == SILENT and post.side != NO_SIDE and (post.whole or post.role == DRAINING)
    return owner.evidence == CLOSED or silent


def _is_orphaned(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    if not (facts.reserve and facts.wanted) or facts.promotions >= RISES_AT_MOST:
        return False
    if not post.authority and facts.now - post.since < 2 * facts.join_after:
        return False  # nobody has said since we began that he has it: those at home may be beginning, too
    gone = (CLOSED,) if facts.silent_room == WAIT else (CLOSED, SILENT)
    return all(told.evidence in gone for told in _holders(others, facts))


def _holders(others: Sequence[Told], facts: Facts) -> list[Told]:
    """Who has something of the shard, or may have."""
    return [told for told in others if told.name in facts.home or _has_something(told)]


def _is_alone(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    if active_among([told for told in others if told.evidence == ALIVE]):
        return False
    waited = facts.now - post.since
    if any(told.epoch > post.epoch and not told.cold and told.evidence == ALIVE for told in others):
        return False  # somebody has had the authority since
    if not post.cold:  # it had the authority when it died, and nobody has taken it
        partner = next((told for told in others if told.name == post.backup and told.evidence == ALIVE), None)
        asked = not post.backup or (partner is not None and partner.epoch > 0)
        return (asked and _has_asked(post, facts)) or waited >= facts.resume_after
    if any(told.role in (SYNCING, PASSIVE, DRAINING) and told.evidence == ALIVE for told in others):
        return False  # they have something, we have nothing
    if facts.primary:
        return facts.heard_all or waited >= facts.join_after
    return facts.wanted and waited >= 2 * facts.join_after


def _is_synced(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    top = active_among(others)
    return top is not None and top.name == post.authority and top.synced and not post.winner


def _is_behind(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    top = active_among(others)
    return top is not None and top.name == post.authority and top.evidence == ALIVE and not top.synced


def _is_lapsed(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    taken = any(told.name == post.taker and told.role == ACTIVE and told.epoch > post.epoch for told in others)
    return not post.authority and not taken and facts.now - post.since >= facts.lapse_after


def _is_quiet(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    return bool(post.authority) and facts.quiet


_LOOKS = {
    "higher": _is_higher, "invited": _is_invited, "released": _is_released, "handed": _is_handed, "bereft": _is_bereft,
    "dead": _is_dead, "orphaned": _is_orphaned, "alone": _is_alone, "synced": _is_synced, "behind": _is_behind,
    "lapsed": _is_lapsed, "quiet": _is_quiet,
}  # fmt: skip


# --- what becomes of it ---------------------------------------------------------------------------------------------------


def _follow(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    """Step back, or join: who has made rows of its own gives them away first."""
    top = active_among(others)
    assert top
    made = old.role in (ACTIVE, DRAINING) or (old.role == JOINING and not old.cold) or bool(old.winner)
    made = made and top.side != old.side  # who took our side, knowing us dead, has used our rows and ports meanwhile
    return new._replace(
        epoch=top.epoch, authority=top.name, since=facts.now, cold=False, heir=False, backup="", guest="", taker="",
        whole=False, pickup=False, winner=top.name if made else "", side=NO_SIDE if old.cold else old.side,
    )  # fmt: skip


def _accept(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    top = active_among(others)
    assert top
    side = NO_SIDE if old.cold else old.side  # what was made of it in an earlier life, others know
    return new._replace(epoch=top.epoch, authority=top.name, since=facts.now, cold=False, side=side, whole=False)


def _leave(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    top = active_among(others)
    assert top
    return Post(ABSENT, top.epoch, NO_SIDE, facts.now, authority=top.name)


def _take_over(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    """The epoch that was handed over; our own side, until the one who handed over lets go of the other."""
    backup = facts.successor or old.authority
    return new._replace(
        epoch=facts.handed, since=facts.now, heir=False, backup=backup, authority="", winner="", pickup=False, taken=True
    )


def _promote(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    """The next epoch. The side of one who is known to be dead, or to have lost its memory, is ours."""
    owner = _owner(old, others)
    known = owner is not None and (owner.evidence == CLOSED or owner.cold)
    return new._replace(
        epoch=max(old.epoch, owner.epoch if owner else 0) + 1,
        side=0 if known else old.side,
        since=facts.now, heir=False, backup=old.authority or facts.partner, authority="", pickup=known, winner="", taker="",
        taken=False,
    )  # fmt: skip


def _step_in(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    """The next epoch, with nothing; whoever comes home copies us. Where all are known to be dead their ports are free."""
    known = facts.silent_room == DEAD or all(told.evidence == CLOSED for told in _holders(others, facts))
    return new._replace(
        epoch=max(old.epoch, *(told.epoch for told in others)) + 1, side=0 if known else 1, since=facts.now, heir=False,
        backup=next(iter(facts.home), ""), authority="", pickup=known, winner="", taker="", taken=False, whole=False,
    )  # fmt: skip


def look_for_backup(post: Post, others: Sequence[Told], facts: Facts) -> Post:
    """A reserve that serves takes whoever has come home for its backup, if the one that it has named is not back."""
    if post.role != ACTIVE or not facts.reserve or post.guest:
        return post
    back = [name for name in facts.home for told in others if told.name == name and told.evidence == ALIVE]
    return post if post.backup in back or not back else post._replace(backup=back[0])


def _begin(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    """Go on where it stopped, or begin as the map says."""
    return new._replace(since=facts.now, cold=False, authority="", backup=old.backup or facts.partner, taken=False)


def _mark(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    return new if new.role == old.role else new._replace(since=facts.now, whole=old.whole or new.role == PASSIVE)


def _resume(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    """Two epochs on: above that of a taker who took it and could not say so."""
    return new._replace(epoch=old.epoch + 2, since=facts.now, authority="", taker="", taken=False)


def _retire(new: Post, old: Post, others: Sequence[Told], facts: Facts) -> Post:
    return new._replace(since=facts.now, taker="", whole=True)


_CHANGES = {
    "higher": _follow, "invited": _accept, "released": _leave, "handed": _take_over, "bereft": _promote, "dead": _promote,
    "orphaned": _step_in, "alone": _begin, "synced": _mark, "behind": _mark, "lapsed": _resume, "quiet": _retire,
}  # fmt: skip


def _settle(post: Post, others: Sequence[Told], facts: Facts) -> Post:
    """What follows without an event: whom we follow, whether we may inherit, which side we have."""
    if post.winner and facts.given:
        post = post._replace(winner="")
    if post.role == ACTIVE:
        return _outdo(post if _is_early(post, others, facts) else _take_side(post, others, facts.me), others)
    if post.role == DRAINING and post.taker and not post.authority:
        taken = next((told for told in others if told.name == post.taker and told.role == ACTIVE), None)
        if taken is None or taken.epoch <= post.epoch or not taken.taken:
            return post
    top = active_among(others)
    if top is None or top.epoch < post.epoch or post.role == JOINING:
        return post
    if post.role == DRAINING and top.name != post.taker:
        return post
    post = post._replace(authority=top.name, epoch=top.epoch)
    if top.evidence != ALIVE:
        return post
    heir = top.heir and post.role in (SYNCING, PASSIVE, DRAINING)
    return post._replace(side=_ordered(post, top), heir=heir)


def _ordered(post: Post, top: Told) -> int:
    """The side that the ACTIVE core says is ours; from one to the other only by letting go in between.

    What was made of a side is given away before it: whoever has it next must know.
    """
    if post.winner:
        return post.side
    if post.side != top.yours and post.side != NO_SIDE:
        return NO_SIDE
    return post.side if top.yours == top.side else top.yours


def _take_side(post: Post, others: Sequence[Told], me: str) -> Post:
    """The ACTIVE core takes side 0 as soon as every other one that may have it has let go, and given what it made with it.

    Who was built before `_ordered` waited for that lets go first and gives then: so `winner` counts, too.
    """
    if post.side == 0 or any(told.side == 0 or told.winner == me for told in others):
        return post
    return post._replace(side=0)


def _is_early(post: Post, others: Sequence[Told], facts: Facts) -> bool:
    """Whether a reserve that stepped in does not know yet who has which side: what it was told before is old."""
    holders = _holders(others, facts) if facts.reserve else []
    return any(told.epoch < post.epoch and told.evidence != CLOSED and _has_something(told) for told in holders)


def _has_something(told: Told) -> bool:
    return told.role != ABSENT or told.side != NO_SIDE


def _outdo(post: Post, others: Sequence[Told]) -> Post:
    """A core had a higher epoch when it died, and nobody knew: when it is back it follows only one that is higher still."""
    back = max((told.epoch for told in others if told.role == JOINING or told.evidence == CLOSED), default=0)
    return post._replace(epoch=back + 1) if back > post.epoch else post


def without(post: Post, gone: Collection[str], now: int) -> Post:
    """The same where some cores are cores no longer: the map has them no more, nobody will hear of them again.

    Who followed one of them waits as after a start; whoever had handed over to one goes on itself, once that has lapsed.
    """
    if post.authority in gone or post.taker in gone:
        post = post._replace(since=now)
    backup, guest, authority, winner, taker = (
        "" if name in gone else name for name in (post.backup, post.guest, post.authority, post.winner, post.taker)
    )
    return post._replace(backup=backup, guest=guest, authority=authority, winner=winner, taker=taker)


# --- what the ACTIVE core says to another one ------------------------------------------------------------------------------


def yours(post: Post, to: Told, others: Sequence[Told], whole: bool) -> int:
    """The side that `to` shall have: the one that is free, if it is our backup and nobody else holds on to it.

    `whole`: since we have our side all rows were sent to our backup, so that it knows what was made of the other one.
    """
    if post.role != ACTIVE or to.name != post.backup or post.side == NO_SIDE:
        return NO_SIDE
    if post.side != 0:
        return NO_SIDE if to.side == 0 else to.side  # first it lets go of side 0, for us
    held = any(told.side == 1 and told.name != to.name for told in others)
    return 1 if not held and (whole or to.side == 1) else NO_SIDE


def heir(post: Post, to: Told, others: Sequence[Told]) -> bool:
    """Whether `to` may take over: never two at a time. Complete or not: an incomplete copy is better than none."""
    if any(told.heir and told.role != ACTIVE and told.name != to.name for told in others):
        return False
    return post.role == ACTIVE and to.name == post.backup and to.side != post.side


def wants(post: Post) -> bool:
    """Whether rows of the core with the authority are applied here."""
    return post.role in (SYNCING, PASSIVE, DRAINING) and not post.winner
