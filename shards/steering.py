"""Steering: the XDP program of a port, and what goes to the kernel instead of to a core.

Every frame has one of the `outcomes` and is counted under it, packets and bytes, per CPU; so the sum over outcomes is what
the program saw. What is the kernel's business (ARP, LLDP, neighbour discovery, multicast, what is addressed to the core
itself: BGP, ping) passes; all else goes to the AF_XDP socket of the queue it came in by. BFD and packets that another core has
shunted to this one (see `shunt`) go to the queue's other socket, of control, whose ring data cannot fill. Where no
socket is, the frame is dropped and never passed: a kernel that knows routes would forward it untranslated.

The program is written for one port, with the port's own addresses as constants, and tags (802.1Q, 802.1ad) are looked behind
twice. Left out on purpose: reading a tag that a device has already taken off (`ethtool -K DEV rxvlan off`, or on a veth
`txvlan off` at its peer, leaves it in the frame).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import TracebackType
from typing import Any, NamedTuple

from llvmlite import ir

from shards import bpf, xsk
from shards.bpf import I8, I16, I32, I64, POINTER
from shards.outcomes import (
    BFD_PORT,
    BROADCAST,
    CONTROL,
    LINK_LOCAL,
    MULTICAST,
    NEIGHBOUR_DISCOVERY,
    NO_SOCKET,
    NOT_IP,
    OUTCOMES,
    OWN_ADDRESS,
    QUARANTINED,
    REDIRECTED,
    SHUNT_PORT,
)
from shards.signatures import Signature

Network = IPv4Network | IPv6Network

_ALWAYS_KEPT = (("255.255.255.255/32", BROADCAST), ("224.0.0.0/4", MULTICAST), ("169.254.0.0/16", LINK_LOCAL),
                ("ff00::/8", MULTICAST), ("fe80::/10", LINK_LOCAL))  # fmt: skip

# --- the program ----------------------------------------------------------------------------------------------------------

_CONTEXT_DATA, _CONTEXT_END, _CONTEXT_QUEUE = 0, 4, 16  # of struct xdp_md
_TAGS_AT_MOST = 2


class _Decision(bpf.Source):
    """A chain of questions about a frame, each of which may end in an outcome."""

    def __init__(self) -> None:
        super().__init__()
        self.key = self.build.alloca(I32)
        self.data, self.end = (self._context_pointer(at) for at in (_CONTEXT_DATA, _CONTEXT_END))
        self.length = self.build.sub(self.build.ptrtoint(self.end, I64), self.build.ptrtoint(self.data, I64))
        self.conclusion = self.block()
        with self.build.goto_block(self.conclusion):
            self.outcome = self.build.phi(I32)

    def _context_pointer(self, at: int) -> Any:
        return self.build.inttoptr(self.build.zext(self.build.load(self.context(at)), I64), POINTER)

    def read(self, at: int, kind: ir.IntType) -> Any:
        """A field of the frame as it lies there, read in the CPU's (little-endian) order."""
        return self.build.load(self.build.bitcast(self.build.gep(self.data, [I64(at)]), kind.as_pointer()))

    def conclude(self, outcome: int) -> None:
        """Whatever comes here ends in `outcome`."""
        self.outcome.add_incoming(I32(outcome), self.build.block)
        self.build.branch(self.conclusion)

    def conclude_if(self, condition: Any, outcome: int) -> None:
        """What meets the condition ends in `outcome`; the chain goes on with the rest."""
        further = self.block()
        self.outcome.add_incoming(I32(outcome), self.build.block)
        self.build.cbranch(condition, self.conclusion, further)
        self.build.position_at_end(further)

    def need(self, length: int) -> None:
        """Frames shorter than this go to the socket, whose worker says what is wrong with them."""
        beyond = self.build.gep(self.data, [I64(length)])
        self.conclude_if(self.build.icmp_unsigned(">", beyond, self.end), REDIRECTED)


class Maps(NamedTuple):
    """Descriptors of a port's maps: sockets of data and of control by queue, counters by outcome."""

    sockets: int
    controls: int
    counters: int


class Kept(NamedTuple):
    """What a port's program looks for: networks with their outcomes, and UDP ports that are control at an own address."""

    networks: Sequence[tuple[Network, int]]
    ports: Sequence[int]


def _program(kept: Kept, maps: Maps, dropped: Sequence[Signature] = ()) -> bpf.Source:
    """For a port with these maps; frames with these signatures are dropped."""
    program = _Decision()
    _look_behind(program, 0, kept, dropped)
    program.build.position_at_end(program.conclusion)
    _finish(program, maps)
    return program


def _look_behind(program: _Decision, tags: int, kept: Kept, dropped: Sequence[Signature]) -> None:
    l3 = 14 + 4 * tags
    program.need(l3)
    ipv4, ipv6, tagged, other = (program.block() for _ in range(4))
    choice = program.build.switch(program.read(l3 - 2, I16), other)
    for ethertype, block in ((0x0800, ipv4), (0x86DD, ipv6), (0x8100, tagged), (0x88A8, tagged)):
        choice.add_case(I16(int.from_bytes(ethertype.to_bytes(2, "big"), "little")), block)
    program.build.position_at_end(other)
    program.conclude(NOT_IP)
    program.build.position_at_end(ipv4)
    _keep(program, l3, 20, 16, kept, 4)
    _quarantine(program, l3, [each for each in dropped if each.version == 4])
    program.conclude(REDIRECTED)
    program.build.position_at_end(ipv6)
    _keep(program, l3, 40, 24, kept, 6)
    _quarantine(program, l3, [each for each in dropped if each.version == 6])
    _keep_neighbour_discovery(program, l3)
    program.build.position_at_end(tagged)
    if tags == _TAGS_AT_MOST:
        program.conclude(REDIRECTED)
    else:
        _look_behind(program, tags + 1, kept, dropped)


def _keep(program: _Decision, l3: int, header: int, destination: int, kept: Kept, version: int) -> None:
    """Conclude about destinations inside one of the networks of this version."""
    program.need(l3 + header)
    words = [program.read(l3 + destination + at, I32) for at in range(0, 4 if version == 4 else 16, 4)]
    for network, outcome in kept.networks:
        if network.version != version:
            continue
        inside = _inside(program.build, words, network)
        if outcome == OWN_ADDRESS and version == 4:
            _conclude_own(program, l3, inside, kept.ports)
        else:
            program.conclude_if(inside, outcome)


def _conclude_own(program: _Decision, l3: int, own: Any, ports: Sequence[int]) -> None:
    """Of what is addressed to the core itself its kernel gets all but control: UDP to these ports, without options, whole."""
    build = program.build
    here, whole, further = program.block(), program.block(), program.block()
    build.cbranch(own, here, further)
    build.position_at_end(here)
    long_enough = build.icmp_unsigned("<=", build.gep(program.data, [I64(l3 + 28)]), program.end)
    program.outcome.add_incoming(I32(OWN_ADDRESS), build.block)
    build.cbranch(long_enough, whole, program.conclusion)
    build.position_at_end(whole)
    told = ((0, I8, 0xFF, 0x45), (6, I16, 0xFF3F, 0), (9, I8, 0xFF, 17))
    control = ir.IntType(1)(0)
    for port in ports:
        wanted = I16(int.from_bytes(port.to_bytes(2, "big"), "little"))
        control = build.or_(control, build.icmp_unsigned("==", program.read(l3 + 22, I16), wanted))
    for at, kind, mask, value in told:
        field = build.and_(program.read(l3 + at, kind), kind(mask))
        control = build.and_(control, build.icmp_unsigned("==", field, kind(value)))
    program.conclude_if(control, CONTROL)
    program.conclude(OWN_ADDRESS)
    build.position_at_end(further)


def _inside(build: Any, words: Sequence[Any], network: Network) -> Any:
    masks = struct.unpack(f"<{len(words)}I", network.netmask.packed)
    bases = struct.unpack(f"<{len(words)}I", network.network_address.packed)
    equal = ir.IntType(1)(1)
    for word, mask, base in zip(words, masks, bases, strict=True):
        if mask:
            equal = build.and_(equal, build.icmp_unsigned("==", build.and_(word, I32(mask)), I32(base)))
    return equal


def _quarantine(program: _Decision, l3: int, dropped: Sequence[Signature]) -> None:
    """Drop what has one of these signatures, as `Signature.matches` says; a shorter frame than one has not got it."""
    build = program.build
    for each in dropped:
        long_enough, further = program.block(), program.block()
        beyond = build.gep(program.data, [I64(l3 + len(each.mask))])
        build.cbranch(build.icmp_unsigned(">", beyond, program.end), further, long_enough)
        build.position_at_end(long_enough)
        different = I32(0)
        for at, (content,), (mask,) in zip(
            range(l3, l3 + len(each.mask), 4),
            struct.iter_unpack("<I", each.content),
            struct.iter_unpack("<I", each.mask),
            strict=True,
        ):
            if mask:
                unlike = build.xor(build.and_(program.read(at, I32), I32(mask)), I32(content))
                different = build.or_(different, unlike)
        program.conclude_if(build.icmp_unsigned("==", different, I32(0)), QUARANTINED)
        build.branch(further)
        build.position_at_end(further)


def _keep_neighbour_discovery(program: _Decision, l3: int) -> None:
    """Unicast answers and probes, RFC 4861 4: types 133 to 137. Behind an extension header they are not ours to find."""
    build = program.build
    program.conclude_if(build.icmp_unsigned("!=", program.read(l3 + 6, I8), I8(58)), REDIRECTED)
    program.need(l3 + 41)
    beyond = build.sub(program.read(l3 + 40, I8), I8(133))
    program.conclude_if(build.icmp_unsigned("<=", beyond, I8(4)), NEIGHBOUR_DISCOVERY)
    program.conclude(REDIRECTED)


def _finish(program: _Decision, maps: Maps) -> None:
    """Redirect where that was concluded, count, and return what the kernel shall do."""
    build, concluded = program.build, program.build.block
    count = program.block()
    with build.goto_block(count):
        outcome, result = build.phi(I32), build.phi(I32)
    dropped = build.icmp_unsigned("==", program.outcome, I32(QUARANTINED))
    kept = build.select(dropped, I32(bpf.XDP_DROP), I32(bpf.XDP_PASS))
    choice = build.switch(program.outcome, count)
    arriving = [(concluded, program.outcome, kept)]
    for concluded_as, sockets in ((REDIRECTED, maps.sockets), (CONTROL, maps.controls)):
        redirect = program.block()
        choice.add_case(I32(concluded_as), redirect)
        build.position_at_end(redirect)
        asked = to_socket(program, sockets, bpf.XDP_DROP)
        found = build.icmp_unsigned("==", asked, I64(bpf.XDP_REDIRECT))
        arriving.append((redirect, build.select(found, I32(concluded_as), I32(NO_SOCKET)), build.trunc(asked, I32)))
        build.branch(count)
    for source, value, returned in arriving:
        outcome.add_incoming(value, source)
        result.add_incoming(returned, source)
    build.position_at_end(count)
    _count(program, maps.counters, outcome)
    build.ret(result)


def to_socket(program: bpf.Source, sockets: int, otherwise: int) -> Any:
    """Redirect to the socket of the frame's queue; the action to return, which is `otherwise` where the map has none."""
    queue = program.build.zext(program.build.load(program.context(_CONTEXT_QUEUE)), I64)
    return program.call(bpf.REDIRECT_MAP, [POINTER, I64, I64], [program.map(sockets), queue, I64(otherwise)])


def _count(program: _Decision, counters: int, outcome: Any) -> None:
    build = program.build
    build.store(outcome, program.key)
    key = build.bitcast(program.key, POINTER)
    row = program.call(bpf.MAP_LOOKUP_ELEM, [POINTER, POINTER], [program.map(counters), key], POINTER)
    with build.if_then(build.icmp_unsigned("!=", build.ptrtoint(row, I64), I64(0))):
        pair = build.bitcast(row, I64.as_pointer())
        for at, more in ((0, I64(1)), (1, program.length)):
            place = build.gep(pair, [I64(at)])
            build.store(build.add(build.load(place), more), place)


# --- a port's steering ----------------------------------------------------------------------------------------------------


class Steering:
    """The loaded program of one port with its maps; closing it detaches."""

    def __init__(self, own: Iterable[str], broadcast: Iterable[str] = (), queues: int = 1, bfd: bool = True) -> None:
        """Load for a port of `queues` receive queues.

        `own` are addresses (or prefixes) of the core itself, `broadcast` the directed broadcast addresses of its networks.
        Without `bfd` the kernel gets BFD: another program may speak it there.
        """
        self._cpus = bpf.possible_cpus()
        self.link = -1
        self.sockets = bpf.create_map(bpf.XSKMAP, 4, queues, "krn_sockets")
        self.controls = bpf.create_map(bpf.XSKMAP, 4, queues, "krn_controls")
        self.counters = bpf.create_map(bpf.PERCPU_ARRAY, 16, len(OUTCOMES), "krn_steering")
        kept = [*_ALWAYS_KEPT, *((one, BROADCAST) for one in broadcast), *((one, OWN_ADDRESS) for one in own)]
        networks = [(ip_network(text), outcome) for text, outcome in kept]
        self.own = next((str(net[0]) for net, outcome in networks if outcome == OWN_ADDRESS and net.version == 4), "")
        self._kept = Kept(networks, (SHUNT_PORT, BFD_PORT) if bfd else (SHUNT_PORT,))
        self.program = bpf.load_program(_program(self._kept, self._maps), "krononat")

    @property
    def _maps(self) -> Maps:
        return Maps(self.sockets, self.controls, self.counters)

    def place(self, queue: int, socket: int) -> None:
        """Give the frames of a queue to the AF_XDP socket of this descriptor, which must be bound to that very queue."""
        bpf.update_map(self.sockets, queue, struct.pack("<I", socket))

    def place_control(self, queue: int, socket: int) -> None:
        """The same of control traffic."""
        bpf.update_map(self.controls, queue, struct.pack("<I", socket))

    def attach(self, ifindex: int, mode: str = "auto") -> str:
        """Attach to the device in `mode` (native, generic, or auto: native where the driver has it); the mode obtained.

        Raises OSError with a sentence about what to do. In generic mode a super-packet of a local sender (TSO over veth)
        arrives whole and does not fit a frame; in native mode the kernel takes TSO from a veth's peer by itself.
        """
        wanted = {"native": [bpf.NATIVE], "generic": [bpf.GENERIC], "auto": [bpf.NATIVE, bpf.GENERIC]}[mode]
        for flag in wanted:
            try:
                self.link = bpf.attach(self.program, ifindex, flag)
                return "native" if flag == bpf.NATIVE else "generic"
            except OSError as refused:
                # Only a driver that cannot is a reason for the slower mode; anything else would hide a trap.
                if flag == wanted[-1] or refused.errno != xsk.EOPNOTSUPP:
                    raise OSError(refused.errno, bpf.why_not_attached(refused)) from refused
        raise AssertionError("unreachable")

    def quarantine(self, dropped: Sequence[Signature]) -> None:
        """Drop frames with these signatures from now on, and no others: another program takes the place of this one."""
        program = bpf.load_program(_program(self._kept, self._maps, dropped), "krononat")
        if self.link >= 0:
            bpf.exchange(self.link, program)
        xsk.close(self.program)
        self.program = program

    def count(self) -> dict[str, tuple[int, int]]:
        """Packets and bytes by outcome since `reset`, over all CPUs."""
        counted = {}
        for outcome in OUTCOMES:
            raw = struct.unpack(f"<{2 * self._cpus}Q", bpf.read_map(self.counters, outcome.number, 16 * self._cpus))
            counted[outcome.name] = (sum(raw[0::2]), sum(raw[1::2]))
        return counted

    def reset(self) -> None:
        """Begin to count anew."""
        for outcome in OUTCOMES:
            bpf.update_map(self.counters, outcome.number, bytes(16 * self._cpus))

    def close(self) -> None:
        """Detach, and let go of program and maps."""
        for fd in (self.link, self.program, *self._maps):
            xsk.close(fd)
        self.link = self.program = self.sockets = self.controls = self.counters = -1

    def __enter__(self) -> Steering:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
