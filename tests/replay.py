"""Captures through the NAT, model beside pipeline: `python -m tests.replay [--inside PREFIX ...] [-o json] CAPTURE ...`.

Every datagram is played in the capture's order and at its time, to the 256 ms, under other names (`casting`); what leaves is
held against the model (`pair`), and against what any translation must be (`ledger`): one to one, in order, nothing else
changed, checksums as right as they were, no packet that nobody sent, no refusal without a reason. Exit code 1 if
anything is not so, 2 if nothing could be read.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from shards.verdict import BY_NAME, DROP, FORWARD
from tests import captures, roles
from tests.bare_core import FRAME_BYTES, HEADROOM, Result
from tests.bed import Bed
from tests.bed_pools import FILTERINGS
from tests.casting import Casting, TooMany
from tests.frames import build_frame, mac_of, split_frame
from tests.frames6 import mac_of6
from tests.ledger import TRANSLATED, Case, Ledger, refused_rightly
from tests.pair import Pair
from tests.roles import IN, OUT, Roles, Scene

# Lifetimes end between two of the times at which packets come: how soon after the wheel sweeps is not the model's affair.
STEP_MS = 256
BED = """
pool 203.0.113.0/27 block 256 blocks 252 filtering {filtering}
subscribers 100.64.0.0/16
subscribers6 2400:c0de::/48 each 64 of 100.64.0.0/16
inside address 172.16.0.1/24 gateway 172.16.0.2 address6 2400:c0df::1/64 gateway6 fe80::2 mtu {mtu} partial
outside address 192.0.2.2/24 gateway 192.0.2.1 address6 2600:1::2/64 gateway6 fe80::1 mtu {mtu}
shard 0 pickup {pickup}
timeout udp 300.16
timeout icmp 60.032
timeout generic 300.16
errors 1000
"""
BURST = 32
DAY_MS = 86_400_000 // STEP_MS * STEP_MS  # no timer is longer: whatever silence is, is taken for a day
LONGEST = FRAME_BYTES - HEADROOM - 64
MENTIONED = 5  # complaints


@dataclass
class Told:
    """What became of a capture, or of several."""

    captures: int = 0
    packets: int = 0  # datagrams that were caught
    played: int = 0
    translated: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)  # why they were not played
    mappings: int = 0  # pairs of endpoints that were seen
    violations: int = 0
    examples: list[str] = field(default_factory=list)

    def complain(self, complaint: str) -> None:
        """Take down something that must not be."""
        self.violations += 1
        if len(self.examples) < MENTIONED:
            self.examples.append(complaint)

    def add(self, other: Told, name: str) -> None:
        """Add up."""
        for count in ("captures", "packets", "played", "translated", "mappings", "violations"):
            setattr(self, count, getattr(self, count) + getattr(other, count))
        self.verdicts += other.verdicts
        self.left_out += other.left_out
        self.examples += [f"{name}: {example}" for example in other.examples]


class Replay:
    """One capture on one pair of model and pipeline."""

    def __init__(self, filtering: str = FILTERINGS[0], mtu: int = 1500, pickup_s: int = 0, correct: bool = False) -> None:
        bed = Bed(extents=8, buckets=1 << 16)
        for line in BED.format(filtering=filtering, mtu=mtu, pickup=pickup_s).strip().splitlines():
            bed.say(line)
        self.bed, self.mtu, self.correct = bed, mtu, correct
        self.pair = Pair(bed)
        self.ledger = Ledger(self._owner)
        self.casting = Casting(self.ledger.known)
        self.told = Told(captures=1)
        self.waiting: list[Case] = []
        self.begun = self.latest = 0

    def _owner(self, protocol: int, external: tuple[int, int]) -> tuple[int, int] | None:
        mapping = self.pair.model.owners.get((protocol, external))
        return mapping.internal if mapping else None

    def play(self, scenes: Iterable[Scene]) -> Told:
        """All of them; what became of them."""
        try:
            for now, burst in self._bursts(scenes):
                self._pass_time(now)
                self._judge(burst, self.pair.receive([self._frame(case) for case in burst]))
            self._pass_time(self.pair.now + 20 * STEP_MS)
            self.pair.check()
        except TooMany as many:
            self.told.left_out[str(many)] += 1
        except AssertionError as wrong:
            self.told.complain(f"model and pipeline, before frame {self.latest}: {wrong}")
        self.told.mappings = len(self.ledger.internal)
        return self.told

    def _bursts(self, scenes: Iterable[Scene]) -> Iterator[tuple[int, list[Case]]]:
        """Tick, and datagrams of that tick: cut short where one must be addressed by what those before it yield."""
        now, burst, before = self.pair.now, list[Case](), 0
        for scene in scenes:
            self.told.packets += 1
            if not self._is_played(scene):
                continue
            then = now + self._elapsed(scene.caught.ms, before)
            before = max(before, scene.caught.ms)
            if burst and (then != now or len(burst) == BURST or not self._is_known(scene)):
                yield now, burst
                burst = []
            now = then
            burst.append(self._case(scene))
        if burst:
            yield now, burst

    def _elapsed(self, ms: int, before: int) -> int:
        self.begun = self.begun or ms
        steps = ((ms - self.begun) // STEP_MS - (before - self.begun) // STEP_MS) * STEP_MS if before else 0
        return min(max(steps, 0), DAY_MS)

    def _is_played(self, scene: Scene) -> bool:
        why = scene.way if scene.way not in (OUT, IN) else ""
        if len(scene.caught.data) > LONGEST:
            why = "longer than a frame of ours"
        if why:
            self.told.left_out[why] += 1
        return not why

    def _is_known(self, scene: Scene) -> bool:
        return scene.way == OUT or scene.look is None or self.ledger.knows(scene.look, self.casting.inner(scene))

    def _case(self, scene: Scene) -> Case:
        self.told.played += 1
        self.latest = scene.caught.number
        data = self.casting.datagram(scene)
        inner = self.casting.inner(scene) if scene.look else (0, 0)
        return Case(scene.caught.number, scene.way, data, roles.look_at(data) if data else None, inner)

    def _frame(self, case: Case) -> tuple[str, bytes]:
        side, port = ("inside", self.bed.inside) if case.way == OUT else ("outside", self.bed.outside)
        six = case.data[0] >> 4 == 6
        sender = mac_of6(port.gateway6) if six else mac_of(port.gateway)
        return side, build_frame(mac_of(port.address), sender, case.data, port.vlan, 0x86DD if six else 0x0800)

    # --- judging ----------------------------------------------------------------------------------------------------------

    def _pass_time(self, now: int) -> None:
        self.pair.pass_time(now)
        waiting, self.waiting = self.waiting, []
        self._judge(waiting, self.pair.wait())

    def _judge(self, cases: list[Case], results: list[Result]) -> None:
        """Each result is that of the case at its place: what leaves leaves in the order in which it came."""
        for case, result in zip(cases, results, strict=True):
            if result.verdict == "held":
                self.waiting.append(case)
                continue
            self.told.verdicts[result.verdict] += 1
            for complaint in self._complaints(case, result):
                self.told.complain(f"frame {case.number}, {case.way}, {result.verdict}: {complaint}")

    def _complaints(self, case: Case, result: Result) -> list[str]:
        fate = BY_NAME[result.verdict].fate
        if fate == DROP:
            told = [] if refused_rightly(case, result.verdict, self.mtu) else [f"no reason for that: {case.data[:80].hex()}"]
            return told + (["it left all the same"] if result.sent and not self._is_reply(case, result) else [])
        if fate != FORWARD or result.verdict != TRANSLATED[case.way] or not result.sent:
            return ["it should have been translated or refused"]
        self.told.translated += 1
        return self.ledger.judge(case, split_frame(result.sent)[4])

    def _is_reply(self, case: Case, result: Result) -> bool:
        """An ICMP error of our own, to its sender, by the way it came."""
        assert result.sent and case.look
        answer = roles.look_at(split_frame(result.sent)[4])
        back = self.bed.at("inside" if case.way == OUT else "outside")[0]
        return bool(answer and answer.about and answer.destination[0] == case.look.source[0] and result.port == back)


def replay(path: Path, inside: Iterable[str] = (), most: int = 0, mend: bool = True, replaying: Replay | None = None) -> Told:
    """One file, or the first `most` datagrams of it; raises `captures.NoCapture`."""
    replaying = replaying or Replay()
    caught = list(captures.datagrams(path, replaying.told.left_out))[: most or None]
    caught = [roles.mended(each) for each in caught] if mend else caught
    caught = [roles.corrected(each) for each in caught] if replaying.correct else caught
    return replaying.play(Roles(inside).decide(caught))


# --- the command line -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.replay", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("captures", nargs="+", type=Path, metavar="CAPTURE", help="pcap or pcapng")
    parser.add_argument("--inside", action="append", default=[], metavar="PREFIX", help="who is inside; `private`: RFC 1918")
    parser.add_argument("--filtering", choices=FILTERINGS, default=FILTERINGS[0], help="of the pool")
    parser.add_argument("--mtu", type=int, default=1500, help="of both sides")
    parser.add_argument("--pickup", type=int, default=0, metavar="S", help="take up connections that are under way so long")
    parser.add_argument("--packets", type=int, default=0, metavar="N", help="the first N of each capture")
    parser.add_argument("--as-captured", action="store_true", help="do not fill up what the capture has cut off")
    parser.add_argument("--correct", action="store_true", help="put wrong checksums right first, as offloading leaves them")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser


def main(words: list[str] | None = None) -> int:
    """Play, print, and say whether all was as it must be."""
    asked, total = _parser().parse_args(words), Told()
    inside = [prefix for told in asked.inside for prefix in (roles.PRIVATE if told == "private" else (told,))]
    for path in asked.captures:
        began = time.monotonic()
        try:
            ready = Replay(asked.filtering, asked.mtu, asked.pickup, asked.correct)
            told = replay(path, inside, asked.packets, not asked.as_captured, ready)
        except captures.NoCapture as wrong:
            print(wrong, file=sys.stderr)
            total.left_out["files that are no captures"] += 1
            continue
        total.add(told, path.name)
        if asked.output == "table":
            print(_line(path, told, time.monotonic() - began), flush=True)
    print(json.dumps(vars(total)) if asked.output == "json" else "\n".join(_summary(total)))
    return 1 if total.violations else 0 if total.captures else 2


def _line(path: Path, told: Told, seconds: float) -> str:
    mark = f"{told.violations} VIOLATIONS" if told.violations else "ok"
    return f"{path.name:<48} {told.played:>8} played {told.translated:>8} translated {seconds:>6.1f} s  {mark}"


def _summary(told: Told) -> Iterator[str]:
    yield f"\n{told.captures} captures, {told.packets} datagrams, {told.played} played, {told.translated} translated, "
    yield f"{told.mappings} pairs of endpoints, {told.violations} violations\n"
    for name, count in told.verdicts.most_common():
        yield f"{count:>10}  {name:<22} {BY_NAME[name].sentence}"
    yield from (f"{count:>10}  not played: {why}" for why, count in told.left_out.most_common(MENTIONED))
    rest = sum(count for _, count in told.left_out.most_common()[MENTIONED:])
    yield f"{rest:>10}  not played for other reasons; -o json has them all"
    yield from told.examples


if __name__ == "__main__":
    sys.exit(main())
