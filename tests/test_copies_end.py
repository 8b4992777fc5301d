"""When sessions end that another core has told of: never before their original, and soon after it, however often they moved."""

from __future__ import annotations

import numpy as np
import pytest

from shards import invariants, timers
from shards.lifetimes import SLACK
from shards.state import ACTIVE, DRAINING, PASSIVE, PICKUP_ASIDE
from tests.bare_core import Core
from tests.fuzz import bed
from tests.pair import EPOCH
from tests.twins import PLAIN, Receiver, Sender, Twins, endpoint_of, ready, say


def test_a_copy_is_never_the_first_to_expire_and_learns_of_refreshes_by_the_bitmap() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    for port in (4000, 4001):
        say(twins.one, f"udp 100.64.0.2:{port} > 198.51.100.1:53", EPOCH)
    twins.settle(EPOCH + 7)
    twins.sender.since = EPOCH + 8
    say(twins.one, "udp 100.64.0.2:4001 > 198.51.100.1:53", EPOCH + 200_000)
    twins.sender.liveness(EPOCH + 200_500)
    twins.deliver(EPOCH + 200_501)
    left = {
        int(row["internal_port"]): [timers.remaining(EPOCH + 200_501, int(row["expiry"])) for row in (row, copy)]
        for row, copy in zip(*(invariants.living(core.state) for core in (twins.one, twins.other)), strict=True)
    }
    assert left[4000] == [99_499, 99_500 + SLACK] and left[4001] == [299_499, 300_000 + SLACK]
    twins.other.pass_time(EPOCH + 400_000)
    assert len(invariants.living(twins.other.state)) == 2  # only the authority ends
    twins.one.pass_time(EPOCH + 400_000)
    twins.settle(EPOCH + 400_000)
    twins.check()
    assert len(invariants.living(twins.other.state)) == 1


@pytest.mark.parametrize("renewed", [0, 60])
@pytest.mark.parametrize("answers", [False, True])
def test_a_session_whose_shard_moves_again_and_again_ends_when_it_is_due(renewed: int, answers: bool) -> None:
    """Each second the other core has the authority, after a whole copy; both have told each other who lives, as in a handover.

    A packet from inside renews it until second `renewed`; those from outside, `answers`, come all the time and renew nothing.
    """
    twins = Twins(bed(PLAIN), EPOCH)
    ready(twins.one, twins.other)
    out = "udp 100.64.0.2:4000 > 198.51.100.1:53"
    say(twins.one, out, EPOCH)
    back = "udp 198.51.100.1:53 > {}:{}".format(*endpoint_of(twins.one))
    has, gets, ended, refused = twins.one, twins.other, 0, 0
    for second in range(1, 400):
        now = EPOCH + 1000 * second
        if second <= renewed:
            say(has, out, now)
        if answers:
            say(has, back, now, "outside")
        refused += tell(has, gets, now, snapshot=True)
        twins.role(has, DRAINING, 1)
        twins.role(gets, ACTIVE, 0, epoch=1 + second)
        refused += tell(has, gets, now + 2) + tell(gets, has, now + 3) + tell(has, gets, now + 4)
        twins.role(has, PASSIVE, 1)
        has, gets = gets, has
        has.pass_time(now + 5)
        ended = ended or second * (len(invariants.living(has.state)) == 0)
    assert renewed + 300 <= ended <= renewed + 300 + SLACK // 1000 + 25 and refused == 0


def test_who_was_used_at_the_old_owner_the_new_one_tells_on_and_nothing_comes_round() -> None:
    twins = Twins(bed(PLAIN), EPOCH)
    one, other = twins.one, twins.other
    ready(one, other)
    for port in (4000, 4001):
        say(one, f"udp 100.64.0.2:{port} > 198.51.100.1:53", EPOCH)
    tell(one, other, EPOCH)
    twins.role(one, DRAINING, 1)
    twins.role(other, ACTIVE, 0, epoch=2)
    say(one, "udp 100.64.0.2:4001 > 198.51.100.1:53", EPOCH + 200_000)
    tell(one, other, EPOCH + 200_500)
    ends = {int(row["internal_port"]): int(row["expiry"]) - EPOCH for row in invariants.living(other.state)}
    assert ends[4000] == 300_000 + SLACK | 1 and ends[4001] == 500_501 + SLACK | 1
    assert [int(line) << 1 for line in invariants.lines(other.state) if ends_at(other, line) == 4001] == dirty(other)
    tell(other, one, EPOCH + 200_600)
    assert dirty(one) == dirty(other) == []
    tell(one, other, EPOCH + 210_600)
    assert dirty(other) == []
    assert {int(row["internal_port"]): int(row["expiry"]) - EPOCH for row in invariants.living(other.state)} == ends


def test_a_grace_that_is_over_leaves_nothing_that_counts_when_its_tick_comes_round() -> None:
    core = Core(bed(PLAIN), EPOCH)
    ready(core)
    say(core, "udp 100.64.0.2:4000 > 198.51.100.1:53", EPOCH)
    row = core.state.shards[0]
    row["grace_until"], row["pickup"] = EPOCH + 10_000, PICKUP_ASIDE
    core.pass_time(EPOCH + 400_000)
    assert len(invariants.living(core.state)) == 0 and row["grace_until"] == row["pickup"] == 0


def ends_at(core: Core, line: int) -> int:
    """Internal port of a session."""
    return int(core.state.sessions[line]["internal_port"])


def dirty(core: Core) -> list[int]:
    """Half-lines that have changed."""
    bits = np.unpackbits(core.state.dirty.view(np.uint8), bitorder="little")
    return [int(half) for half in np.flatnonzero(bits)]


def tell(source: Core, target: Core, now: int, snapshot: bool = False) -> int:
    """What changed, or all, and who was used within the 20 s before; how many records were refused."""
    sender, receiver = Sender(source), Receiver(target)
    sender.since = now - 20_000  # as of a sweep that takes its time
    (sender.snapshot if snapshot else sender.changes)(now)
    sender.liveness(now)
    for sent in sender.way:
        receiver.take(sent, now + 1)
    return receiver.refused
