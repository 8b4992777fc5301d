"""The process that has the privileges: it sets everything up, keeps a worker alive, and takes everything back.

It holds memory, sockets and BPF links, so they outlive a worker. The worker holds them, too, and outlives the supervisor by
`server.orphan-s`: who is started meanwhile takes it over (`heir`), and no packet notices. Else, and with a port of memif at
once, its death ends all of it; the settings it leaves are taken back by the next run. One thread, one selector, nothing that
waits; no packet comes here and no compiled code is loaded.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import socket
import sys
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from krononat import appliance, cluster, heir, interfaces, memory, pcp_orders, privileges, promptness, speaking
from krononat.answers import Answers, Parts
from krononat.carrier import Carriers
from krononat.client import BAD_CONFIG, Trouble
from krononat.control import Control, lock
from krononat.crew import Crew, Given, Hooks
from krononat.following import Follower
from krononat.herald import Herald
from krononat.lines import Line, Place, link_of
from krononat.member import Message
from krononat.memif import Wanted
from krononat.models import Config
from krononat.neighbours import Neighbours
from krononat.quarantine import Quarantine
from krononat.reach import Reach
from krononat.tap import open_tap
from krononat.view import ticks
from shards import selftest, xsk
from shards.notes import map_notes, new_notes, notes_of
from shards.state import WANTED, State, open_state, state_bytes, write_header
from shards.steering import Steering

CHORES = 250  # ticks between two rounds of chores
SHORT = 50  # while neighbours are asked for, or rows are taken so fast that pages of more were needed


def run(config: Config, path: Path, environment: dict[str, str]) -> int:
    """Run the appliance until SIGTERM or SIGINT; its exit status. Trouble where it cannot, after all was taken back.

    `environment`: the worker's.
    """
    privileges.check()
    with contextlib.ExitStack() as undoing:
        Supervisor(config, path, environment, undoing).run()
    _say("stopped, everything taken back")
    return 0


def _say(line: str) -> None:
    print(f"krononat: {line}", file=sys.stderr, flush=True)


def notify(state: str) -> None:
    """Tell systemd, if it started us: sd_notify(3) without its library."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stream:
            stream.connect("\0" + address[1:] if address.startswith("@") else address)
            stream.send(state.encode())


class Supervisor:
    """One appliance. What it sets up, it also pushes on `undoing`."""

    def __init__(self, config: Config, path: Path, environment: dict[str, str], undoing: contextlib.ExitStack) -> None:
        self._config, self._path, self._environment, self._undoing = config, path, environment, undoing
        self._cluster = cluster.of(config)
        self._record = config.socket + ".undo"
        self._began = ticks()
        self._stopping = False
        self._selector = undoing.enter_context(selectors.DefaultSelector())
        self._taps: dict[str, int] = {}
        self._lines: list[Line] = []
        self._control: Control | None = None
        self._answers: Answers | None = None
        self._reach: Reach | None = None
        self._follower = Follower(config, self._cluster, _say) if self._cluster else None
        self._followed = self._cluster  # what the worker goes by
        self._herald: Herald | None = None
        self._heritage: heir.Heritage | None = None
        self._listener: socket.socket | None = None  # for who comes after us if we are killed
        self._inherited: list[interfaces.Step] = []
        self._undone: set[interfaces.Step] = set()  # before the end
        self._entrusted: tuple[object, ...] = ()

    # --- the way up ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Up, round and round, until a signal says so."""
        promptness.ask_for()
        if not promptness.go_first():
            _say(f"may not raise its priority to {promptness.NICENESS} (CAP_SYS_NICE): packets wait longer where CPUs are busy")
        self._heed_signals()
        self._undoing.enter_context(lock(self._config.socket))
        self._inherit()
        left = self._left_behind()
        if not self._heritage:
            self._take_back(left)
        self._note = self._undoing.enter_context(interfaces.record(self._record))
        if self._heritage:
            self._inherited = left
            for known in left:
                self._remember(known)
        for step in (self._set_up_interfaces, self._make_state, self._open_sockets, self._hire):
            step()
            if self._stopping:
                return
        while not self._stopping:
            self._turn()
        notify("STOPPING=1")
        _say("stopping")

    def _heed_signals(self) -> None:
        """SIGTERM and SIGINT end the loop at its next turn, and interrupt nothing else."""
        inner, outer = socket.socketpair()
        inner.setblocking(False)
        outer.setblocking(False)
        before = signal.set_wakeup_fd(outer.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            self._undoing.callback(signal.signal, number, signal.signal(number, self._stop))
        self._undoing.callback(outer.close)
        self._undoing.callback(inner.close)
        self._undoing.callback(signal.set_wakeup_fd, before)
        self._selector.register(inner, selectors.EVENT_READ, lambda: inner.recv(64))

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _inherit(self) -> None:
        """Take over a worker that forwards on since a supervisor before us was killed."""
        path = self._waits_at = f"{self._config.socket}.heir"
        found = self._heritage = heir.claim(path, self._config, self._cluster, _say)
        if found:  # until the crew has it, it ends with us
            self._config = found.config
            os.close(found.descriptors.pop("config"))
            self._unadopted = self._undoing.enter_context(contextlib.ExitStack())
            self._unadopted.callback(found.member.end)
        if found and self._cluster and self._follower:
            told, me, room = self._cluster.map, self._cluster.me, found.sizes.peers
            rows = cluster.rows_for(told, me, found.about["rows"], room)
            self._cluster = self._cluster._replace(rows=rows)
            self._follower.resume(self._cluster, room)
            self._followed = self._cluster if found.about["mark"] == [told.version, told.digest] else None
        if self._config.server.orphan_s and not any(port.memif for _, port in self._config.interfaces.named()):
            number = found.descriptors["listener"] if found else -1
            self._listener = socket.socket(fileno=number) if found else heir.listen(path)
            self._undoing.callback(heir.forget, path)
            self._undoing.callback(self._listener.close)

    def _left_behind(self) -> list[interfaces.Step]:
        try:
            return interfaces.left_behind(self._record)
        except Trouble as trouble:
            _say(f"{trouble.what}: {trouble.why}")
            return []

    def _take_back(self, left: list[interfaces.Step]) -> None:
        """A killed run could not. What we want again is set again, so that its first value is what comes back at last."""
        for step in reversed(left):
            self._undo(step)
        if left:
            _say(f"{len(left)} settings that a killed run left behind taken back")

    def _act(self, steps: list[interfaces.Step]) -> None:
        for step in steps:
            if step not in self._inherited and step not in self._undone:  # those will be undone already
                self._remember(step)
            interfaces.act(step)
            _say(str(step))

    def _remember(self, step: interfaces.Step) -> None:
        """Have it undone at the end: by us, or by the next run if we are killed. What a tap has goes with it."""
        if step.interface.partition(".")[0] in self._taps:
            return
        self._note(step)
        self._undoing.callback(self._undo, step)

    def _undo(self, step: interfaces.Step) -> None:
        if step not in self._undone and (trouble := interfaces.undo(step)):
            _say(trouble)

    def _readdress(self, before: Config, after: Config) -> None:
        """Have the kernel answer for the pools of another configuration, as far as they are on-link."""
        steps, gone = interfaces.readdressed(before, after)
        self._act(steps)
        self._undone.difference_update(steps)
        for step in gone:
            self._undo(step)
            self._undone.add(step)

    def _set_up_interfaces(self) -> None:
        """Taps first: they are what the settings of a memif port are made on, and go with them."""
        for _, port in self._config.interfaces.named():
            if port.memif:
                self._taps[port.name] = open_tap(port.name, self._config.server.name)
                self._undoing.callback(os.close, self._taps[port.name])
        host = interfaces.observe(self._config)
        self._act(interfaces.decide(self._config, host))
        self._host = interfaces.observe(self._config)

    def _make_state(self) -> None:
        if before := memory.allow_huge_pages():
            self._remember(interfaces.Step("huge pages", "shared memory", "", "advise", before))
        sizes = self._heritage.sizes if self._heritage else appliance.compose(self._config, self._cluster)
        made = self._memory = self._heritage.memory if self._heritage else self._new_memory(state_bytes(sizes))
        self._undoing.callback(os.close, made.descriptor)
        if self._heritage:
            self._state: State = open_state(made.map, sizes)
            return
        write_header(made.map, sizes)
        self._state = open_state(made.map, sizes)
        key = self._port_key()
        appliance.fill(
            self._state,
            self._config,
            interfaces.links(self._config, self._host),
            secrets.token_bytes(16),
            key or secrets.token_bytes(16),
            self._cluster,
        )
        _say(f"state: room for {self._config.memory.sessions:,} sessions, {made.pages} pages")
        if key is None:
            _say(f"no {appliance.KEY_FILE}: ports are derived with a key of this run (a cluster needs the same one everywhere)")

    def _new_memory(self, size: int) -> memory.Memory:
        try:
            return memory.create("krononat-state", size)
        except OSError as trouble:
            told = f"{size >> 20} MiB: {trouble.strerror}"
            raise Trouble("no memory for the state", told, "lower `memory.sessions`") from None

    def _port_key(self) -> bytes | None:
        """The key of port derivation. A cluster must have one: by it a backup makes the same ports, and seals are made."""
        told = self._config.cluster
        path = Path(told.port_key_file) if told and told.port_key_file else appliance.KEY_FILE
        key = appliance.read_key(path)
        if told and key is None:
            remedy = f"head -c 32 /dev/urandom > {path}; chmod 600 {path}; the same file on every core"
            raise Trouble("this cluster has no key of its ports", f"{path} is missing", remedy, BAD_CONFIG)
        return key

    def _open_sockets(self) -> None:
        """Everything about packets but the attaching, which waits for a worker."""
        ports = [port for _, port in self._config.interfaces.named()]
        self._devices = [self._host.interfaces[port.name] for port in ports]
        privileges.unlimit_locked_memory()
        try:
            self._make_frames()
            if self._heritage:
                self._go_on_with(self._heritage)
                return
            wanted = [
                None if port.memif else xsk.Port(device.ifindex, device.queues)
                for port, device in zip(ports, self._devices, strict=True)
            ]
            self._sockets = xsk.open_sockets(self._frames, self._config.io.frames, wanted)
            self._undoing.callback(self._sockets.close)
            self._steer(wanted)
        except (OSError, ValueError, RuntimeError) as trouble:
            remedy = f"krononat doctor -c FILE says more{heir.told_of_others()}"
            raise Trouble("AF_XDP cannot be set up", str(trouble), remedy) from trouble
        for port, device in zip(ports, self._devices, strict=True):
            if not port.memif:
                _say(f"{port.name}: {device.queues} queue{'s' * (device.queues > 1)}, each proven to receive")

    def _make_frames(self) -> None:
        frames = self._config.io.frames
        if self._heritage:
            self._frames, self._notes_descriptor = (self._heritage.descriptors[name] for name in ("frames", "notes"))
        else:
            self._frames, self._notes_descriptor = xsk.new_memory(frames), new_notes(frames)
        for descriptor in (self._frames, self._notes_descriptor):
            self._undoing.callback(os.close, descriptor)
        self._notes = notes_of(map_notes(self._notes_descriptor, frames), frames)

    def _go_on_with(self, heritage: heir.Heritage) -> None:
        """Its sockets and programs are ours, too, from now on."""
        self._sockets = heritage.sockets()
        self._undoing.callback(self._sockets.close)
        self._steerings: list[Steering | Line] = []
        for number, device in enumerate(self._devices):
            self._steerings.append(heritage.steer(self._steering(number, device.queues), number))

    def _steer(self, wanted: Sequence[xsk.Port | None]) -> None:
        """Programs of the ports with sockets, proven; a line for each of the others."""
        programs = [self._steering(number, port.queues) if port else None for number, port in enumerate(wanted)]
        for queue in self._sockets.description["queues"]:
            if program := programs[queue["port"]]:
                program.place(queue["queue"], queue["fd"])
                program.place_control(queue["queue"], queue["control"])
        if any(programs):
            selftest.prove(self._frames, self._sockets, [device.ifindex for device in self._devices], programs)
        self._steerings = [program or self._line(number) for number, program in enumerate(programs)]

    def _kept(self, number: int) -> tuple[list[IPv4Address], list[IPv4Address]]:
        """The core's own addresses as a port sees them, and the port's broadcast addresses.

        An external address is the core's own from inside, too; an internal one only inside.
        """
        ports = list(self._config.interfaces.named())
        side, port = ports[number]
        own = [other.address.ip for there, other in ports if side == "internal" or there != "internal"]
        if (loopback := self._config.interfaces.loopback) and (side == "internal" or loopback.side != "internal"):
            own.append(loopback.address.ip)
        own += pcp_orders.anycast(self._config) if side != "external" else []
        network = port.address.network
        return own, [network.broadcast_address, network.network_address] if network.prefixlen < 31 else []

    def _own6(self, number: int) -> list[IPv6Address]:
        """The same of IPv6."""
        ports = list(self._config.interfaces.named())
        side, port = ports[number]
        reached = [other for there, other in ports if side == "internal" or there != "internal"]
        seen = [port, *(other for other in reached if other is not port)]
        return [each.address6.ip for each in seen if each.address6]

    def _steering(self, number: int, queues: int) -> Steering:
        own, broadcast = self._kept(number)
        kept = [*map(str, own), *map(str, self._own6(number))]
        return self._undoing.enter_context(Steering(kept, map(str, broadcast), queues, self._speaks_bfd()))

    def _speaks_bfd(self) -> bool:
        return bool((self._state.bfd["address"] != 0).any())

    def _line(self, number: int) -> Line:
        _, port = list(self._config.interfaces.named())[number]
        assert port.memif
        own, broadcast = self._kept(number)
        entries = min(port.memif.ring_size, self._sockets.description["entries"])
        wanted = Wanted(
            port.memif.id,
            self._frames,
            self._config.io.frames * xsk.FRAME_BYTES,
            f"krononat {self._config.server.name}",
            port.memif.secret,
            entries.bit_length() - 1,
        )
        row = len(self._lines)
        place = Place(
            number, port.name, port.memif.socket, wanted, self._taps[port.name], own, broadcast, self._speaks_bfd(),
            self._own6(number),
        )  # fmt: skip
        line = Line(row, place, link_of(self._notes.links, row), self._selector, self._tell, _say)
        self._lines.append(line)
        self._undoing.callback(line.close)
        return line

    def _tell(self, message: Message, descriptors: Sequence[int]) -> None:
        self._crew.send(message, descriptors)

    def _hire(self) -> None:
        """Start the worker; the rest of the way up is `_open`, when it is ready."""
        self._indices = interfaces.indices(self._config)
        self._neighbours = Neighbours(self._state, self._indices)
        self._undoing.callback(self._neighbours.close)
        self._selector.register(self._neighbours, selectors.EVENT_READ, self._hear_of_neighbours)
        self._carriers = Carriers(self._state, [device.ifindex for device in self._devices])
        self._undoing.callback(self._carriers.close)
        self._selector.register(self._carriers, selectors.EVENT_READ, self._hear_of_carriers)
        cpu = self._config.server.cpu
        self._cpu = max(os.sched_getaffinity(0)) if cpu is None else cpu
        if self._cpu not in os.sched_getaffinity(0):
            told = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise Trouble(f"CPU {self._cpu} is not ours to use", f"we may run on {told}", "correct `server.cpu`", BAD_CONFIG)
        frames = xsk.frames_of(xsk.map_memory(self._frames, self._config.io.frames), self._config.io.frames)
        self._quarantine = Quarantine(self._notes, frames, self._steerings, _say)
        hooks = Hooks(self._standing, self._orders, self._hear, self._quarantine.blame, _say)
        self._crew = Crew(self._selector, hooks, self._environment, self._config.io.spare)
        self._undoing.callback(self._crew.stop)
        if self._heritage:
            self._crew.adopt(self._heritage.member, self._heritage.about["code"])
            self._unadopted.pop_all()
        else:
            self._crew.start()
        self._keep_off(self._cpu)
        memory.populate(self._state)
        self._extents, self._grows = memory.keep_ahead(self._state, 0), False
        if self._heritage:
            self._open()
            return
        _say(f"worker {self._crew.pid} on CPU {self._cpu}: loading compiled code (compiling it, if it is new here)")

    def _keep_off(self, cpu: int) -> None:
        """Leave the worker's CPU to it, if there is another: a turn of ours there is a millisecond without a packet."""
        others = os.sched_getaffinity(0) - {cpu}
        if others:
            os.sched_setaffinity(0, others)

    @property
    def _now(self) -> Config:
        """What is gone by: live changes are in it."""
        return self._answers.config if self._answers else self._config

    def _standing(self) -> Given:
        """What who stands by is told, and inherits."""
        told = {
            "state": self._memory.descriptor,
            "frames": self._frames,
            "notes": self._notes_descriptor,
            "sockets": self._sockets.description,
            "cpu": self._cpu,
            "core": self._config.core_name,
            "busy_poll": self._config.io.busy_poll,
            "cluster": None,
            "bgp": speaking.orders(self._now, None),
            "pcp": pcp_orders.orders(self._config, self._indices),
        }
        if self._follower:
            told |= self._by_map(self._follower.cluster)
        return told, [self._memory.descriptor, self._frames, self._notes_descriptor, *self._sockets.fds()]

    def _orders(self) -> Given:
        """What who takes over is told, and given: memif servers come and go meanwhile."""
        descriptors = [descriptor for line in self._lines for descriptor in line.descriptors()]
        told: Message = {"lines": [line.told() for line in self._lines], "bgp": speaking.orders(self._now, None)}
        if self._follower:  # it may have been told an older one when it began to stand by
            told |= self._by_map(self._follower.cluster)
            self._followed = self._follower.cluster
        return told, descriptors

    def _by_map(self, now: cluster.Cluster) -> Message:
        """What of the orders another map makes others."""
        cpus = sorted(os.sched_getaffinity(0) - {self._cpu})
        return {"cluster": cluster.orders(self._config, now, cpus), "bgp": speaking.orders(self._now, now.map)}

    def _follow(self, follower: Follower) -> None:
        """Have the worker go by the newest map; one that is too busy to be told is told later."""
        follower.turn()
        newest = follower.cluster
        if self._followed is not newest and self._crew.send({"do": "follow", **self._by_map(newest)}):
            self._followed = newest

    def _open(self) -> None:
        """A worker is ready: take traffic, answer for the pools, answer on the control socket."""
        modes = self._modes = [self._attach(number) for number in range(len(self._devices))]
        self._act(interfaces.decide_late(self._config))
        if self._config.bgp:
            self._herald = Herald(self._config.speaker_socket, self._config.bgp.linger_ms, self._crew, _say)
            if self._heritage:
                self._herald.resume(**self._heritage.said)
        parts = Parts(
            self._config, self._state, self._memory, self._sockets, self._notes, self._devices, self._steerings, modes,
            self._neighbours, self._crew, self._cpu, self._began, self._quarantine, self._follower, self._herald,
            self._readdress,
        )  # fmt: skip
        if self._follower and self._cluster:
            self._follower.start()
            self._undoing.callback(self._follower.close)
            side = cluster.shunt_side(self._config, self._cluster.core.shunt) or "external"
            legs = [interfaces.home(port) for port in self._config.interfaces.of(side)]
            self._reach = Reach(self._state, self._cluster.core.shunt, self._selector, legs if len(legs) > 1 else ())
            self._undoing.callback(self._reach.close)
        self._answers = Answers(parts)
        if self._heritage:
            self._answers.go_on()
        self._control = Control(self._config.socket, self._selector, self._answers.handlers())
        self._undoing.callback(self._control.close)
        notify("READY=1")
        _say(f"ready after {(ticks() - self._began) / 1000:.1f} s, control socket {self._config.socket}")

    def _attach(self, number: int) -> str:
        _, port = list(self._config.interfaces.named())[number]
        steering = self._steerings[number]
        if isinstance(steering, Line):
            return "memif"
        if self._heritage:
            return str(self._heritage.about["modes"][number])
        try:
            mode = steering.attach(self._devices[number].ifindex, self._config.io.xdp_mode)
        except OSError as trouble:
            raise Trouble(f"cannot attach to {port.name}", str(trouble.strerror), "see `krononat doctor`") from trouble
        _say(f"{port.name}: XDP attached, {mode}")
        return mode

    # --- round and round ----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        waiting = bool((self._state.neighbours["own_state"] == WANTED).any())
        rest = SHORT if waiting or self._grows else CHORES
        for key, _ in self._selector.select((self._herald.due(rest) if self._herald else rest) / 1000):
            if self._selector.get_map().get(key.fd) == key:  # an earlier one of this turn may have closed it, and opened more
                key.data()
        now = ticks()
        if self._neighbours.serve(now):
            self._crew.send({"do": "wake"})
        had, self._extents = self._extents, memory.keep_ahead(self._state, self._extents)
        self._grows = self._extents > had
        self._crew.watch(int(self._state.core[0]["breaths"]), now)
        if self._crew.ready_at:
            for line in self._lines:
                line.watch(now)
        if self._reach:
            self._reach.turn(now)
        if self._follower:
            self._follow(self._follower)
        if self._herald:
            self._herald.turn(now)
        if self._control and self._answers:
            self._control.tire(now)
            self._answers.tire(now)
        self._entrust()
        if self._crew.ready_at:
            notify("WATCHDOG=1")

    def _entrust(self) -> None:
        """Leave the worker what another supervisor needs to go on with it if we are killed; anew where that has changed."""
        if self._listener is None or self._answers is None or not self._crew.ready_at:
            return
        config, followed = self._answers.config, self._followed
        known = self._crew.pid, config, followed
        if known == self._entrusted:
            return
        about = {
            "patience": 1000 * self._config.server.orphan_s,
            "code": self._crew.code,
            "pages": self._memory.pages,
            "sockets": self._sockets.description,
            "modes": self._modes,
            "rows": dict(followed.rows) if followed else {},
            "mark": [followed.map.version, followed.map.digest] if followed else [],
        }
        steerings = [each for each in self._steerings if isinstance(each, Steering)]
        if heir.leave(self._crew.send, about, config, self._listener.fileno(), steerings):
            self._entrusted = known
            heir.note(self._waits_at, self._crew.pid or 0)

    def _hear_of_neighbours(self) -> None:
        if self._neighbours.listen(ticks()):
            self._crew.send({"do": "wake"})

    def _hear_of_carriers(self) -> None:
        """What leaves by a port that has lost its carrier takes another way at the worker's next breath."""
        changed = self._carriers.listen()
        for number in changed:
            self._neighbours.doubt(number)
        if changed:
            self._crew.send({"do": "wake"})
            self._neighbours.serve(ticks())
        for number in changed:
            self._tell_of_carrier(number)

    def _tell_of_carrier(self, number: int) -> None:
        """Say it; and what a link has lost of its routes when it was set down it gets again."""
        _, port = list(self._config.interfaces.named())[number]
        lost = bool(self._state.ports[number]["carrier_lost"])
        _say(f"{port.name}: the carrier is {'lost' if lost else 'there'}")
        for step in [] if lost else interfaces.again(self._now, self._host, number):
            try:
                interfaces.act(step)
            except Trouble as trouble:
                _say(f"{trouble.what}: {trouble.why}")

    def _hear(self, message: Message) -> None:
        """From the worker, or about it."""
        if "ready" in message:
            told = f"{message['alive']:,} sessions alive{', index rebuilt' * message['rebuilt']}"
            _say(f"worker {self._crew.pid} has taken over in {message['ms']} ms, {told}")
            for line in self._lines:
                line.announce()  # it may have changed since the worker was given its orders
            if self._control is None:
                self._open()
            if self._herald:
                self._herald.hurry()
                self._herald.turn(ticks())
        elif "speaker" in message and self._herald:
            self._herald.lost(message["why"])
        elif "deleted" in message and self._answers:
            self._answers.deleted(message["deleted"])
        elif "answer" in message and self._answers:
            self._answers.cluster.answered(message)
        elif "clock" in message and self._answers:
            self._answers.clock.moved(message)
        elif "ended" in message and self._answers:
            self._answers.refuse_deletions()
            self._answers.cluster.refuse()
            self._answers.clock.refuse()
