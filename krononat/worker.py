"""One core's loop: takes over memory and sockets, breathes, and does what is asked of it between breaths.

Its process is `standby`'s, which has loaded all compiled code and given up its privileges before; the channel of JSON messages
is that one's, too. When it has taken over, in either direction:

    {"do": "wake"}                                   neighbours have answered
    {"do": "delete", "lines": [[line, generation]]}  {"deleted": n}
    {"do": "connect", "line": n, "connection": ...}  the n-th memif port; its descriptors come along, null: nobody is there
    {"do": "speaker", "linger": ms}                  a connection to the server's speaker comes along, see `announcer`
                                                     {"speaker": "lost"}: it has ended
    {"do": "linger", "ms": n}                        how long our routes may outlive us
    {"do": "drain", "on": bool}                      ask the network to prefer others (RFC 8326), or no more
    {"do": "ask", "id": n, "request": {...}}         {"id": n, "answer": {...}}: about the cluster, see `replica`
    {"do": "follow", "cluster": ..., "bgp": ...}     go by a newer map, see `cluster.orders`, `speaking.orders`
    {"do": "clock", "ahead_ms": n, "stands": bool}   {"clock": ..., "why": ...}: moved (or why not), and what was due has ended
    {"do": "settle", "settings": {...}, ...}         write these SETTINGS: other rules come into force, see `reload`; "pools":
                                                     other addresses do (`membership.Order`), announced by "bgp", if there
    {"do": "keep", ...}                              what the next supervisor needs if this one is killed, see `orphan`
    {"do": "retire"}                                 finish this breath and end: another one takes over
                                                     {"ready": ...}, {"wanted": n}: neighbours are asked for

Everything a packet may need is imported and called once before the first packet comes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, cast

import numpy as np

from krononat import announcer, memory, pcp_listener, replica, warm
from krononat.channel import MESSAGE_AT_MOST, receive
from krononat.clock import Clock, ticks
from krononat.crowding import REST_AT_MOST, Crowding
from krononat.drained import Drained
from krononat.orphan import DESCRIPTORS_AT_MOST, Orphan
from shards import alarms, bfd, loop, membership, memif, memif_rings, resume, rings, sessions, shard, xsk
from shards.bound import bound
from shards.burst import new_burst
from shards.notes import map_notes
from shards.state import open_state, read_header

BURSTS = 16  # of a breath at most, in memory or with a CPU that is never given away: a third of a millisecond
KERNEL_BURSTS = 4  # of one whose packets the kernel copies: most of a millisecond over a veth
LOOKS, BUSY_LOOKS = 300, 3000  # at empty rings before a turn in Python, which takes as long as 900: about 3 and 35 us
NAP = 100  # ms without a frame
LOOK_EVERY = 1000  # ms between two looks at how full things are
CLUSTER_NAP = 30  # as often as other cores are told that this one lives


class Worker:
    """The loop and its chores. `told`: what the supervisor wants, see `supervisor`."""

    def __init__(self, channel: socket.socket, told: dict[str, Any]) -> None:
        self._channel = channel
        self._busy = bool(told["busy_poll"])
        self._map = memory.attach(told["state"])
        self._state = open_state(self._map, read_header(self._map))
        self._description: xsk.Description = told["sockets"]
        self._frames = xsk.map_memory(told["frames"], self._description["frames"])
        self._notes = map_notes(told["notes"], self._description["frames"])
        self._lines: list[memif.Line] = []
        self._burst, self._waiting = new_burst(), shard.new_waiting()
        self._stopping, self._closing = False, False
        self._wanted = 0
        self._cluster: dict[str, Any] | None = told["cluster"]
        self._replica: replica.Replica | None = None
        self._announced: dict[str, Any] | None = told["bgp"]
        self._announcer: announcer.Announcer | None = None
        self._pcp: pcp_listener.Listener | None = None
        self._asked: dict[str, Any] | None = told["pcp"]
        self._left_at = 0  # tick at which we said that we end
        self._more = False  # to be replicated at once
        self._spoken_to = False  # the supervisor has just said something: more may follow
        self._looked_at = 0  # tick at which it was last seen how full things are
        self._inbox = bytearray(MESSAGE_AT_MOST)
        self._lost, self._faults = False, 0  # the connection to the speaker; of announcing
        own = {name: int(told[name]) for name in ("state", "frames", "notes")}
        for number, queue in enumerate(self._description["queues"]):
            own |= {f"data{number}": queue["fd"], f"control{number}": queue["control"]}
        self._orphan = Orphan(own)
        self._nap = CLUSTER_NAP if self._cluster or self._announced else NAP

    def stand_by(self, spare: bool) -> None:
        """Leave the garbage collector nothing to do; and have all pages of the memory at hand if there is time for that now."""
        if spare:
            memory.populate(self._state)
            memory.keep_ahead(self._state, 0)
        gc.collect()
        gc.freeze()
        gc.disable()

    def prepare(self, orders: dict[str, Any]) -> int:
        """Take over; sessions found alive. After it nothing is left to compile, and receiving can begin."""
        self._lines = orders["lines"]
        self._cluster, self._announced = orders.get("cluster", self._cluster), orders.get("bgp", self._announced)
        self._clock = Clock(self._state)  # not before: while this one stood by, it may have been moved
        alive, self.rebuilt = resume.resume(self._state, orders["reindex"], self._clock.at(ticks()))
        also = [self._channel.fileno()]
        if self._cluster:
            self._replica = replica.Replica(self._state, self._cluster, ticks())
            also += self._replica.descriptors()
        if self._asked:
            self._pcp = pcp_listener.Listener(self._state, self._asked, ticks())
            also += self._pcp.descriptors()
        self._rings = rings.open_rings(self._description, self._frames, self._notes, self._lines, also)
        most = BURSTS if self._lines or self._busy else KERNEL_BURSTS
        self._pace = loop.new_pace(most, BUSY_LOOKS if self._busy else LOOKS)
        self._others = len(also)
        self._packets = self._rings._replace(polled=self._rings.polled[: -self._others])  # to wait for these alone
        self._crowding = Crowding(min(REST_AT_MOST, self._replica.rest_at_most if self._replica else REST_AT_MOST))
        self._bind()
        self._events = {
            number: [told["out_event"], told["back_event"]]
            for number, line in enumerate(self._lines)
            if (told := line["connection"])
        }
        if self._announced:
            self._examiner = announcer.Examiner(self._state, self._rings)
            conductor = self._replica.conductor if self._replica else None
            drained = Drained(self._state)
            self._announcer = announcer.Announcer(self._announced, conductor, self._examiner, drained)
        bfd.begin(self._state, ticks())
        self._breathe(self._clock.at(ticks()), 0)
        self._wait(0)
        self._state.core[0]["longest_breath_us"] = 0
        warm.watch(self._state)
        self._channel.setblocking(False)
        return int(alive)

    def _bind(self) -> None:
        """What is called in every turn, or for every sleep."""
        common = self._rings.frames, self._burst, self._waiting, self._pace
        self._breathe = bound(loop.breathe, self._state, self._rings, *common)
        self._breathe_on = bound(loop.serve, self._state, self._packets, *common)
        self._wait, self._listen = bound(rings.wait, self._rings), bound(rings.listen, self._rings)
        self._wait_of_bfd = bound(bfd.wait, self._state)

    def run(self) -> None:
        """Breathe until SIGTERM, or until the supervisor hangs up."""
        signal.signal(signal.SIGTERM, self._stop)
        last, called = 0, True
        while not self._stopping:
            now = ticks()
            if rest := self._resting(now, last):
                self._serve(now + rest)
                now = ticks()
            handled = self._breathe(self._clock.at(now), int(self._pace[loop.BURSTS]))
            if called or now != last:
                self._look_round(now)
                self._chores(now, called)
                last, called = now, self._more
            if handled == 0 and not (self._busy or self._stopping or self._more):
                called = self._sleep(now)
        if self._closing:
            shard.close(self._state, self._rings, self._rings.frames, ticks())

    def _look_round(self, now: int) -> None:
        """How long do we wait for the CPU? And let people see what that leads to."""
        self._crowding.look(now)
        self._state.core[0]["rest"] = self._crowding.rest

    def _resting(self, now: int, last: int) -> int:
        """Ticks for which no chore is to be done: others need the CPU, too. What packets wait for is not put off."""
        if self._more or self._spoken_to or self._stopping or self._busy or not self._crowding.rest:
            return 0
        if self._replica and self._replica.is_pressed:
            return 0
        rest = self._crowding.rest
        if self._pcp:
            rest = min(rest, self._pcp.due())
        if self._announced:
            rest = rest if self._examiner.cut() == (self._announcer.cut if self._announcer else "") else 0
        return max(0, rest - (now - last))

    def _serve(self, until: int) -> None:
        """Nothing but packets up to that tick."""
        self._pace[loop.AHEAD], self._pace[loop.STANDS] = self._clock.ahead, self._clock.stands
        self._breathe_on(until)

    def _sleep(self, now: int) -> bool:
        """Sleep until something comes, or something is due; whether it was more than packets that ended it.

        Packets that come one by one wake the loop each time; a turn of all chores for each would cost ten times as much.
        """
        if not self._wait(self._rest(now)):
            return True
        return bool(np.any(self._rings.polled[-self._others :, 1] >> 16))  # revents of struct pollfd

    def _rest(self, now: int) -> int:
        """How long to sleep if nothing comes, in ms."""
        nap = loop.SHORT_NAP if self._state.core[0]["held"] else min(self._nap, self._wait_of_bfd(now))
        nap = min(nap, self._announcer.due(now)) if self._announcer else nap
        nap = min(nap, self._pcp.due()) if self._pcp else nap
        return min(nap, self._replica.due(now)) if self._replica else nap

    def _stop(self, *_: object) -> None:
        """End, BFD closed in order; where others are told of us, not before they had the time to look elsewhere.

        Who retires, or has lost its supervisor, says nothing.
        """
        if self._announcer and self._announcer.attached and not self._announcer.leaving:
            self._left_at = ticks()
            self._announcer.leave()
        elif not self._left_at:
            self._stopping = self._closing = True

    def _guarded(self, told: announcer.Announcer, now: int) -> None:
        """A fault of ours here must not end the forwarding: it is told once, and the connection is made anew."""
        try:
            self._announce(told, now)
        except Exception:
            if not self._faults:
                with contextlib.suppress(OSError):  # who read our messages may be gone
                    traceback.print_exc()
            self._faults += 1
            told.detach()
            self._lost = True

    def _announce(self, told: announcer.Announcer, now: int) -> None:
        self._examiner.turned(now)
        if severed := (cut := self._examiner.cut()) != told.cut:
            told.sever(cut)
        try:
            self._lost |= not told.turn(now)
        finally:
            if severed and cut and self._replica:
                self._replica.hand_over(now)
        if self._lost:  # until the supervisor has taken it, or another connection has come
            self._lost = not self.say({"speaker": "lost", "why": told.refusal})
        if told.leaving and now - self._left_at >= announcer.FAREWELL:
            self._stopping = self._closing = True

    def _chores(self, now: int, called: bool) -> None:
        """What is done between breaths; each of it is short."""
        wanted = int(self._state.core[0]["neighbours_wanted"])
        if wanted != self._wanted:
            self._wanted = wanted
            self.say({"wanted": wanted})
        if now - self._looked_at >= LOOK_EVERY:
            self._looked_at = now
            alarms.look(self._state, self._clock.at(now))
        if self._lines:
            self._listen()
        if self._announcer and self._examiner.cut() != self._announcer.cut:
            self._guarded(self._announcer, now)  # before all else: until switches hear of it packets come to a dead end
        if self._replica:
            self._more = self._replica.turn(now, called)
        if self._pcp:
            self._pcp.turn(now, self._clock.at(now), called)
        if self._announcer:
            self._guarded(self._announcer, now)
        if self._orphan.since is not None:
            self._wait_for_heir(now, self._orphan.since)
            return
        try:
            message, descriptors = receive(self._channel, self._inbox, DESCRIPTORS_AT_MOST)
        except BlockingIOError:
            self._spoken_to = False
            return
        except ConnectionError:
            message = b""
        self._spoken_to = bool(message)
        if message:
            self._obey(json.loads(message), descriptors, now)
        else:
            self._bereaved(now)

    def _bereaved(self, now: int) -> None:
        """The supervisor is gone. Packets need it for nothing; only nobody asks for new neighbours, and no spare stands by."""
        if not self._orphan.patience:
            self._stopping = True
            return
        self._orphan.begin(self._channel, now)
        if self._announcer:
            self._announcer.linger(0)
        told = f"forwarding on for {self._orphan.patience / 1000:g} s, unless another one comes"
        with contextlib.suppress(OSError):  # who read our messages may have died with it
            print(f"krononat: worker {os.getpid()}: the supervisor has died; {told}", file=sys.stderr, flush=True)

    def _wait_for_heir(self, now: int, since: int) -> None:
        """Another supervisor takes over, or our time is over: then we go in good order."""
        if self._left_at:
            return
        told = self._announcer
        said = {"draining": bool(told and told.policy.draining), "attached": bool(told and told.attached)}
        if self._orphan.turn(self._channel, said):
            self._channel.setblocking(False)
            self._wanted = 0  # it does not know yet whom we ask for
            self._lost = False  # that it knows
        elif now - since >= self._orphan.patience:
            self._stop()

    def _obey(self, told: dict[str, Any], descriptors: list[int], now: int) -> None:
        if told["do"] == "connect":
            self._connect(told["line"], told["connection"], descriptors)
        if told["do"] == "follow" and self._replica:
            self._replica.follow(told["cluster"], now)
            if self._announcer:
                self._announcer.replace(told["bgp"]["shards"])
        if told["do"] == "speaker" and self._announcer and descriptors:
            self._announcer.attach(descriptors[0], told["linger"])
            self._lost = False
        if told["do"] == "linger" and self._announcer:
            self._announcer.linger(told["ms"])
        if told["do"] == "drain" and self._announcer:
            self._announcer.drain(told["on"])
        if told["do"] == "ask" and self._replica:
            self.say({"id": told["id"], "answer": self._replica.answer(told["request"])})
        if told["do"] == "clock":
            self._move_clock(told, now)
        if told["do"] == "settle":
            self._settle(told, now)
        if told["do"] == "keep":
            self._orphan.keep(told, descriptors)
        if told["do"] == "retire":
            self._stopping = True
        if told["do"] == "delete":
            lives = np.array(told["lines"], np.int64).reshape(-1, 2)
            self.say({"deleted": int(sessions.delete_lives(self._state, lives, self._clock.at(now)))})

    def _settle(self, told: dict[str, Any], now: int) -> None:
        """The network is told of new addresses before anybody gets one (see `drained`)."""
        if told.get("bgp") and self._announcer:
            self._announcer.replace(told["bgp"]["shards"])
        for name, value in told["settings"].items():
            self._state.settings[0][name] = value
        if pools := [membership.Order(*each) for each in told.get("pools", ())]:
            membership.settle(self._state, pools)
            if self._replica:
                self._replica.enlarge(now)

    def _move_clock(self, told: dict[str, Any], now: int) -> None:
        """Whoever moved it finds everything done that was due until then."""
        refused = self._clock.obey(told, now)
        while self._breathe(self._clock.at(now), 0):
            continue
        self.say({"clock": self._clock.told(now)._asdict(), "why": refused})

    def _connect(self, number: int, connection: memif.Connection | None, descriptors: list[int]) -> None:
        """Begin or end a connection. Rings stay mapped without their descriptor, so only those of events are kept."""
        queue, done = len(self._description["queues"]) + number, descriptors
        if connection is None:
            memif_rings.disconnect(self._rings, queue)
            done = self._events.pop(number, [])
        else:
            region, out, back = descriptors
            mine = {**connection, "region": region, "out_event": out, "back_event": back}
            if memif_rings.connect(self._rings, queue, cast(memif.Connection, mine)):
                done = [region, *self._events.pop(number, [])]
                self._events[number] = [out, back]
        for descriptor in done:
            os.close(descriptor)

    def say(self, message: dict[str, Any]) -> bool:
        """Tell the supervisor; whether it was taken. What was not, the supervisor mostly sees for itself a little later."""
        with contextlib.suppress(OSError):  # full, closed, or too long a message: no reason to stop forwarding
            self._channel.send(json.dumps(message).encode())
            return True
        return False
