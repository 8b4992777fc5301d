"""Scenarios on real wires: the same files, the same model, and `krononat run` over AF_XDP in place of the pipeline by itself.

What is looked at is the same, too: verdict, packet, port, MAC addresses, ICMP error, and after every step the sessions with
their states and expiries, in the core's own memory. Scenarios that are given the same are played to one core, one by one.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from shards import invariants
from tests import frames, frames6, scenario, wired_config
from tests.bare_core import Result
from tests.bed import Port
from tests.datagrams import Datagrams
from tests.outcome import Outcome
from tests.scenario import Runner, Scenario, Step
from tests.wired_core import UNKNOWN, Appliance, WiredCore, Wires

_ETHERNET_BYTES = 14  # a kernel sends nothing shorter
_BY = re.compile(r"(?<= by )\w+")
_IDENTIFICATION = re.compile(r"(?<= id )\d+")


class WiredRunner(Runner):
    """A scenario led through by the model and a real core."""

    core: WiredCore

    def __init__(self, told: Scenario, core: WiredCore) -> None:
        super().__init__(told, core)
        self.left_out: list[str] = []  # steps that cannot be done from outside
        self._identifications: dict[str, str] = {}  # in the file -> of this core
        # The sender as it knows itself, since subscribers share an address outside; destination, allowed ways -> port
        self._gateways: dict[tuple[bytes, int, tuple[str, ...]], int] = {}

    def take(self, step: Step, rewrite: bool) -> None:
        """Do a step; nothing may have happened that nobody expected."""
        try:
            super().take(step, rewrite)
        except AssertionError as wrong:
            where = f"{self.scenario.path.name}:{step.line + 1}"
            raise AssertionError(f"{where}: {wrong}\n  the core: {self.core.how()}; beside: {self.core.left()}") from wrong
        left = self.core.left()
        assert self.waiting or not left, f"{self.scenario.path.name}:{step.line + 1}: nobody expected {left}"

    def wait(self) -> list[Result]:
        """A real core serves what it holds back by itself."""
        arrivals, self.waiting = self.waiting, []
        self.core.settle()
        return self._judge_all(arrivals, [UNKNOWN] * len(arrivals))

    def check(self) -> None:
        """What is still held is served, too."""
        self.wait()
        self.compare_sessions()
        assert not self.core.left(), f"nobody expected {self.core.left()}"
        invariants.check(self.core.state, self.core.handed, len(self.waiting))

    # --- steps that are done otherwise ----------------------------------------------------------------------------------

    def _do_now(self, told: str, *_: object) -> str:
        """A port loses its carrier when its far end is set down."""
        self.bed.say(told)
        words = told.split()
        self.core.carry(words[1], words[-1] == "lives")
        return ""

    def _do_delete(self, told: str, *_: object) -> str:
        if frames6.is_six(told):
            session6 = self._session6(told)
            self.core.delete(self._line6(session6))
            del self.model.six.sessions[session6.protocol, session6.internal, session6.remote]
        else:
            session = self._session(told)
            self.core.delete(self._line(session))
            self.model.end(session)
        return ""

    def _do_restart(self, *_: object) -> str:
        self.received -= len(self.waiting)  # frames in the hands of a worker die with it
        self.waiting, self.model.datagrams = [], Datagrams()
        self.core.restart()
        return ""

    def _do_inside(self, told: str, side: str, repeat: int) -> str:
        if "frame" in told and len(self._frame(told, side)) < _ETHERNET_BYTES:
            self.left_out.append(f"{side} {told}: no kernel sends a frame that is shorter than its own header")
            return _LEFT_OUT
        return super()._do_inside(told, side, repeat)

    _do_outside = _do_inside2 = _do_outside2 = _do_inside

    # --- ways ---------------------------------------------------------------------------------------------------------

    def _judge(self, frame: bytes, side: str, result: Result, outcome: Outcome) -> None:
        """`_way` needs to know who has sent it."""
        self._judged = frame
        super()._judge(frame, side, result, outcome)

    def _way(self, result: Result, outcome: Outcome) -> tuple[Port, int]:
        """Which gateway a pair of hosts has is by a key of this core's own; but while all live it has one."""
        way = super()._way(result, outcome)
        packet = outcome.packet
        assert packet
        data = frames.split_frame(self._judged)[4]
        sender = data[8:24] if frames6.is_six_frame(self._judged) else data[12:16]
        pair = sender, packet.destination, tuple(told.place for told in outcome.ways)
        before = self._gateways.setdefault(pair, result.port)
        assert before == result.port or len(outcome.ways) == 1, f"{packet} left by port {result.port}, before by {before}"
        return way

    # --- words --------------------------------------------------------------------------------------------------------

    def _as_written(self, happened: str, wanted: str) -> str:
        """Identifications are chosen at random by each core (RFC 7739): the file's stand for this one's, each for one."""
        if happened == _LEFT_OUT:
            return self._bound(wanted, wanted)
        ours, theirs = _IDENTIFICATION.findall(happened), _IDENTIFICATION.findall(wanted)
        known = self._identifications
        for here, there in zip(ours, theirs, strict=False):
            if here != there and there not in known and here not in known.values():
                known[there] = here
        back = {here: there for there, here in known.items()}
        happened = _IDENTIFICATION.sub(lambda found: back.get(found[0], found[0]), happened)
        # Which of several ways it took the model has allowed, and `_way` has held against the one before.
        ways = iter(_BY.findall(wanted))
        return _BY.sub(lambda found: next(ways, found[0]), happened)


_LEFT_OUT = "left out"


# --- one core after another -------------------------------------------------------------------------------------------------


class Group(NamedTuple):
    """Scenarios that are given the same."""

    config: str
    paths: tuple[Path, ...]
    deaf: bool  # there are neighbours that do not answer: only for so long they are not given up (krononat.neighbours)


_NAME, _SOCKET = "wired", Path("/run/wired.sock")  # in configurations that are only compared


def in_order(paths: Iterable[Path]) -> list[Path]:
    """The scenarios that can be played to a real core, those of one core one after another (a core that is left has ended)."""

    def given(path: Path) -> tuple[list[str], str]:
        return sorted(line for line in path.read_text().splitlines() if line.startswith("given ")), path.stem

    return [path for group in groups(sorted(paths, key=given)) for path in group.paths]


def groups(paths: Iterable[Path]) -> list[Group]:
    """The scenarios that can be played to a real core, those for one core together."""
    found: dict[tuple[str, str], list[Path]] = {}
    for path in paths:
        told = scenario.parse(path)
        if not wired_config.why_not(told):
            # A core that has once heard of a neighbour knows it: who is silent, or fails, must be so from the start.
            alone = path.stem if told.bed.silent | told.bed.failed else ""
            found.setdefault((wired_config.of(told.bed, _NAME, _SOCKET), alone), []).append(path)
    return [Group(config, tuple(told), alone != "") for (config, alone), told in found.items()]


class _Seat:
    """Wires, and the appliance that is at them."""

    def __init__(self, wires: Wires) -> None:
        self.wires, self.folder = wires, Path(tempfile.mkdtemp(prefix="krononat-"))
        self.group: Group | None = None
        self.appliance: Appliance | None = None
        self.core: WiredCore | None = None

    def start(self, group: Group) -> None:
        """Have the appliance of a group begin to start."""
        self.end()
        self.ended()
        bed = scenario.parse(group.paths[0]).bed
        self.wires.lay(bed)
        self.wires.stations.silent = set(bed.silent | bed.failed)
        self.group, self.core = group, None
        self.appliance = Appliance(self.wires.near, self.folder, wired_config.of(bed, _NAME, self.folder / "core.sock"))

    def end(self) -> None:
        """Have it begin to end."""
        if self.appliance:
            self.appliance.end()

    def ended(self) -> None:
        """Wait until it has."""
        if self.appliance:
            self.appliance.ended()
        self.appliance = self.group = self.core = None


class Stage(contextlib.ExitStack):
    """Plays scenarios; while those of one core are played the next core starts at other wires."""

    def __init__(self, name: str, order: Sequence[Group]) -> None:
        super().__init__()
        self._name, self._order = name, list(order)

    def __enter__(self) -> Stage:
        self._seats = [_Seat(self.enter_context(Wires(f"{self._name}{number}"))) for number in range(min(2, len(self._order)))]
        for seat in self._seats:
            self.callback(shutil.rmtree, seat.folder, ignore_errors=True)
        for ending in (_Seat.ended, _Seat.end):
            for seat in self._seats:
                self.callback(ending, seat)
        return self

    def play(self, path: Path) -> WiredRunner:
        """Play a scenario to the end; AssertionError with file and line where core and model, or the file, do not agree."""
        runner = self.begin(path)
        try:
            for step in runner.scenario.steps:
                runner.take(step, False)
            runner.check()
        except AssertionError:
            self._clear_away(runner)
            raise
        return runner

    def _clear_away(self, runner: WiredRunner) -> None:
        """Whatever a core still has from a scenario that failed is not the next one's."""
        seat = next(seat for seat in self._seats if seat.core is runner.core)
        seat.end()
        seat.ended()

    def begin(self, path: Path) -> WiredRunner:
        """A core that is as if it had just begun, and a scenario's runner for it."""
        told = scenario.parse(path)
        group = next(group for group in self._order if path in group.paths)
        seat = self._seat(group)
        for other in self._seats:
            if other.group and self._order.index(other.group) < self._order.index(group):
                other.end()
        if seat.core and not seat.core.clear():
            seat.start(group)
        if seat.core is None:
            assert seat.appliance
            seat.core = WiredCore(seat.wires, seat.appliance, told.bed)
        self._hasten(group)
        seat.core.begin(told.bed)
        return WiredRunner(told, seat.core)

    def _seat(self, group: Group) -> _Seat:
        seat = next((seat for seat in self._seats if seat.group == group), None)
        if seat is None:
            seat = self._seats[0]
            seat.start(group)
        return seat

    def _hasten(self, group: Group) -> None:
        """Have the next group's core start at the wires that are free, if it does not already."""
        at = self._order.index(group) + 1
        while at < len(self._order) and self._order[at].deaf:
            at += 1
        if at < len(self._order) and all(seat.group != self._order[at] for seat in self._seats):
            next(seat for seat in self._seats if seat.group != group).start(self._order[at])


@contextlib.contextmanager
def stage(name: str, paths: Sequence[Path]) -> Iterator[Stage]:
    """A stage for these scenarios."""
    with Stage(name, groups(paths)) as told:
        yield told
