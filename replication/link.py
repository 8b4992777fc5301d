"""Sockets: one ROUTER that peers connect to, one DEALER for each peer. Nothing here ever waits.

What a core has to tell a peer goes from its DEALER to the peer's ROUTER; acknowledgements and requests come back the same way.
Whose a connection is, its key says (CURVE; ZeroMQ asks us by ZAP which keys may come in), never a name in a message: two
connections with one key are two, and neither can take the other's place.

ZeroMQ encrypts, sends and receives in a thread of its own, which is kept off the worker's CPU. Its queues are short and end
with the connection: that `send` took a message says nothing about its arrival.
"""

from __future__ import annotations

import select
import struct
from typing import NamedTuple

import numpy as np
import zmq
import zmq.backend
from zmq.utils import z85

from replication.frames import BODY_AT_MOST, HEADER_AT_MOST, Body, Counts
from replication.inquest import Inquest
from replication.keys import Key
from replication.protocol import Peer, age
from shards.state import Array

HIGH_WATER = 64  # messages in each queue of ZeroMQ's, at most BODY_AT_MOST each
# ms. The exchange's pings are the heartbeats; this is for connections that are of no use any more: the kernel ends one on which
# nothing was acknowledged for so long (TCP_USER_TIMEOUT, RFC 5482), and asks for a sign on one that is idle (keepalive).
# ZeroMQ's own heartbeats (ZMTP 3.1) are left out on purpose: who does not read for a while, its queue being full, answers none;
# the peer hangs up for that, and libzmq 4.3.5 ends our process when its next heartbeat is due (`!_io_error`).
_UNHEARD, _HANDSHAKE_AT_MOST = 1500, 2000
_KEEPALIVE_S, _KEEPALIVE_TIMES = 1, 2
_RECONNECT, _RECONNECT_AT_MOST = 20, 200  # ms
_REMAKE_AFTER = 1000  # ticks: ZeroMQ gives up for good where a handshake failed, which a newer map may set right
_PARTS_AT_MOST = 64  # of a message nobody asked for that are thrown away at one go
_ASKED_AT_MOST = 16  # ZAP questions and monitor events at one go

_ZAP_ADDRESS, _ZAP_DOMAIN = "inproc://zeromq.zap.01", b"krononat"
_UNFINISHED = int(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)  # who hung up, and why, is not said
_REFUSED = zmq.Event.HANDSHAKE_FAILED_PROTOCOL | zmq.Event.HANDSHAKE_FAILED_AUTH | _UNFINISHED
_ENDED = int(zmq.Event.DISCONNECTED)
_BEGUN = int(zmq.Event.HANDSHAKE_SUCCEEDED)


# Plain numbers, and the socket's own send: asked all the time, and every call from Python to Python is seen in the rate.
_EVENTS, _POLLIN, _FD, _RCVMORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.FD), int(zmq.RCVMORE)
_AT_ONCE, _MORE = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)
_hand_over = zmq.backend.Socket.send


class Message(NamedTuple):
    """A message as it came. Its body is a view of the link's one buffer: valid until the next one is fetched."""

    peer: str
    way: bytes  # of the connection it came by, for the answer; empty: it is an answer itself
    header: bytes
    body: Array


class Changes(NamedTuple):
    """Connections of ours, by peer; and whose process has ended with one."""

    begun: list[str]
    ended: list[str]
    dead: list[str]


class Link:
    """All sockets of a core."""

    def __init__(self, me: Peer, key: Key, cpus: tuple[int, ...], refused: Counts) -> None:
        self.refused = refused
        self.again = 0  # messages that ZeroMQ did not take at once
        self._key = key
        self._names: dict[bytes, str] = {}  # by public key, 32 bytes: who may come in
        self._whose: dict[bytes, str] = {}  # by way
        self._dealers: dict[str, zmq.Socket[bytes]] = {}
        self._monitors: dict[str, zmq.Socket[bytes]] = {}
        self._peers: dict[str, Peer] = {}
        self._tried: dict[str, int] = {}  # by peer: tick at which its socket was made
        self._made = 0  # sockets, ever
        self._connected: set[str] = set()
        self._poll = select.epoll()  # one descriptor, the same for ever: sockets are made anew behind the back of who sleeps
        self._inquest = Inquest(self._poll)
        self._news: set[int] = set()  # descriptors of sockets that may have something
        self._descriptors: dict[zmq.Socket[bytes], int] = {}
        self._skipping: zmq.Socket[bytes] | None = None
        self._body = np.zeros(BODY_AT_MOST + 8, np.uint8)
        self._header = bytearray(HEADER_AT_MOST + 1)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        for cpu in cpus:
            self._context.set(zmq.THREAD_AFFINITY_CPU_ADD, cpu)
        self._zap = self._context.socket(zmq.ROUTER)
        self._zap.bind(_ZAP_ADDRESS)
        self._router = self._listen(me.endpoint)
        self._knocks = self._router.get_monitor_socket(_REFUSED)
        for socket in (self._zap, self._router, self._knocks):
            self._watch(socket)

    # --- making -----------------------------------------------------------------------------------------------------------

    def _listen(self, endpoint: str) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        _set(router)
        router.set(zmq.ROUTER_MANDATORY, 1)  # an answer to nobody is an error that is seen
        router.set(zmq.CURVE_SERVER, 1)
        router.set(zmq.CURVE_SECRETKEY, self._key.secret)
        router.set(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        try:
            router.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise OSError(error.errno, f"cannot listen for replication at {endpoint}: {error.strerror}") from None
        return router

    @property
    def endpoint(self) -> str:
        """Where peers connect to."""
        return bytes(self._router.get(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()

    def meet(self, peer: Peer, now: int) -> None:
        """Let a peer in, and connect to it, now and whenever the connection has ended."""
        self._names[z85.decode(peer.public_key)] = peer.name
        self._peers[peer.name] = peer
        self._connect(peer, now)

    def _connect(self, peer: Peer, now: int) -> None:
        dealer = self._context.socket(zmq.DEALER)
        _set(dealer)
        dealer.set(zmq.CURVE_SERVERKEY, peer.public_key)
        dealer.set(zmq.CURVE_PUBLICKEY, self._key.public)
        dealer.set(zmq.CURVE_SECRETKEY, self._key.secret)
        self._made += 1  # its monitor's own name: pyzmq would take the descriptor's number, which may be in use again
        monitor = dealer.get_monitor_socket(_BEGUN | _ENDED, f"inproc://krononat.monitor.{self._made}")
        self._monitors[peer.name] = monitor
        self._watch(dealer)
        self._watch(monitor)
        dealer.connect(peer.endpoint)
        self._dealers[peer.name] = dealer
        self._tried[peer.name] = now

    def _disconnect(self, peer: str) -> None:
        dealer = self._dealers.pop(peer)
        if self._skipping is dealer:
            self._skipping = None
        dealer.disable_monitor()
        for socket in (self._monitors.pop(peer), dealer):
            self._poll.unregister(self._descriptors[socket])
            self._news.discard(self._descriptors.pop(socket))
            socket.close(0)

    def part(self, peer: str) -> None:
        """Forget a peer: the map has it no longer."""
        self._names = {key: name for key, name in self._names.items() if name != peer}
        self._whose = {way: name for way, name in self._whose.items() if name != peer}
        if self._peers.pop(peer, None):
            self._disconnect(peer)
        self._inquest.drop(peer)
        self._connected.discard(peer)

    def descriptors(self) -> list[int]:
        """To wait for while idle. They tell of news only; after each wake all messages must be fetched."""
        return [self._poll.fileno()]

    def close(self) -> None:
        """Let go of everything at once; what was not sent is lost."""
        self._context.destroy(0)
        self._inquest.close()
        self._poll.close()

    # --- sending ----------------------------------------------------------------------------------------------------------

    def send(self, peer: str, header: bytes, body: Body = b"") -> bool:
        """Hand a message for the peer to ZeroMQ. False: not taken, since it is not connected or the queue is full."""
        return self._send(self._dealers[peer], b"", header, body)

    def answer(self, way: bytes, header: bytes) -> bool:
        """The same, back to where a message came from."""
        return self._send(self._router, way, header, b"")

    def _send(self, socket: zmq.Socket[bytes], way: bytes, header: bytes, body: Body) -> bool:
        self._news.add(self._descriptors[socket])  # to send is to look, too: what it finds is told no more
        try:
            if way:
                _hand_over(socket, way, _MORE)
            _hand_over(socket, header, _MORE)
            _hand_over(socket, body, _AT_ONCE)
        except zmq.ZMQError:  # full, or gone; either way it is not sent
            self.again += 1
            return False
        return True

    # --- news -------------------------------------------------------------------------------------------------------------

    def _watch(self, socket: zmq.Socket[bytes]) -> None:
        self._descriptors[socket] = int(socket.get(_FD))
        self._poll.register(self._descriptors[socket], select.EPOLLIN)
        self._news.add(self._descriptors[socket])

    def listen(self) -> bool:
        """Find out, once a turn, which sockets may have something: one system call for all. A descriptor tells only once.

        False: there is nothing to fetch, and nothing to look at.
        """
        self._news.update([descriptor for descriptor, _ in self._poll.poll(0)])
        return bool(self._news) or self._skipping is not None or len(self._connected) < len(self._peers)

    def others_have_news(self, descriptors: set[int]) -> bool:
        """`listen`, but for sockets that are looked after by whoever asks. Peers without a connection are no news."""
        self._news.update([descriptor for descriptor, _ in self._poll.poll(0)])
        self._news |= descriptors  # to send there, as compiled code does now, is to look, too
        return self._skipping is not None or len(self._news) > len(descriptors)

    def handle(self, peer: str) -> tuple[int, int]:
        """Of the socket to a peer, until it is made anew: its address, as ZeroMQ's functions take it, and its descriptor."""
        dealer = self._dealers[peer]
        return int(dealer.underlying), self._descriptors[dealer]

    def message(self, peer: str, header: bytes, body: Array, parts: int) -> Message:
        """An answer that somebody else has received, but for its third part and what follows."""
        if parts > 2:
            self._skipping = self._dealers[peer]
        if parts != 2 or len(header) > HEADER_AT_MOST or len(body) > BODY_AT_MOST:
            return Message(peer, b"", b"", self._body[:0])  # which no frame is
        return Message(peer, b"", header, body)

    @property
    def is_asking(self) -> bool:
        """Whether somebody's kernel is asked if his process lives."""
        return self._inquest.is_open

    @property
    def is_skipping(self) -> bool:
        """Whether a message that has too many parts is not read to its end."""
        return self._skipping is not None

    def has_frames(self) -> bool:
        """Whether a peer may have sent something of its own accord, not just an answer."""
        self.listen()
        return self._readable(self._router)

    def has_news(self) -> bool:
        """Whether a message came that no descriptor will tell of any more, since a send found it."""
        sockets = [socket for socket, descriptor in self._descriptors.items() if descriptor in self._news]
        return any(self._readable(socket) for socket in sockets)

    def _readable(self, socket: zmq.Socket[bytes]) -> bool:
        """Whether a socket has a message; one that has none is not asked again before there are news of it."""
        descriptor = self._descriptors[socket]
        if descriptor not in self._news:
            return False
        if int(socket.get(_EVENTS)) & _POLLIN:
            return True
        self._news.discard(descriptor)
        return False

    # --- receiving --------------------------------------------------------------------------------------------------------

    def fetch(self) -> Message | None:
        """The next message of any peer, in the order of each."""
        if self._skipping is not None or not self._readable(self._router):
            self._skip()
            return None
        first = self._router.recv(_AT_ONCE, copy=False)
        way = first.bytes
        if way not in self._whose:
            self._whose[way] = str(first.get("User-Id"))
            self._forget_ways()
        return self._rest(self._router, self._whose[way], way)

    def fetch_answer(self, peer: str) -> Message | None:
        """The next answer of a peer."""
        dealer = self._dealers[peer]
        if self._skipping is not None or not self._readable(dealer):
            self._skip()
            return None
        self._connected.add(peer)  # whatever its monitor has said: who answers need not be connected to anew
        return self._rest(dealer, peer, b"")

    def _rest(self, socket: zmq.Socket[bytes], peer: str, way: bytes) -> Message:
        """Header and body; what consists of anything else is thrown away."""
        length = socket.recv_into(self._header, flags=_AT_ONCE)
        size, parts = 0, 1
        if socket.get(_RCVMORE):
            size, parts = socket.recv_into(self._body.data, flags=_AT_ONCE), 2
            if socket.get(_RCVMORE):
                self._skipping, parts = socket, 3
                self._skip()
        if parts != 2 or length > HEADER_AT_MOST or size > BODY_AT_MOST:
            return Message(peer, way, b"", self._body[:0])  # which no frame is
        return Message(peer, way, bytes(memoryview(self._header)[:length]), self._body[:size])

    def _skip(self) -> None:
        """Throw away more parts of a message than it should have; a bounded number at a time, since it may have any."""
        for _ in range(_PARTS_AT_MOST):
            if self._skipping is None:
                return
            if not self._skipping.get(_RCVMORE):
                self._skipping = None
                return
            self._skipping.recv_into(bytearray(1), flags=_AT_ONCE)

    def _forget_ways(self) -> None:
        """A way is one connection; of ended ones only so many are remembered."""
        while len(self._whose) > 16 * (1 + len(self._dealers)):
            del self._whose[next(iter(self._whose))]

    # --- watching ---------------------------------------------------------------------------------------------------------

    def look(self, now: int) -> Changes:
        """Let in who may come in; which connections of ours have begun and ended since the last look."""
        self._open_door()
        changes = Changes([], [], [])
        for peer, monitor in self._monitors.items():
            for event in self._events(monitor):
                (changes.begun if event == _BEGUN else changes.ended).append(peer)
                (self._connected.add if event == _BEGUN else self._connected.discard)(peer)
        for peer in changes.ended:
            self._inquest.ask(peer, self._peers[peer].endpoint, now)
        for peer in changes.begun:
            if peer in self._connected:
                self._inquest.drop(peer)
        changes.dead.extend(self._inquest.dead(now))
        self._news.intersection_update(self._descriptors.values())  # questions that are answered have no news any more
        if len(self._connected) < len(self._peers):
            self._remake(now)
        return changes

    def _open_door(self) -> None:
        """Who knocks? Let in those who may come in."""
        for _ in range(_ASKED_AT_MOST):
            if not self._readable(self._zap):
                break
            self._admit(self._zap.recv_multipart(_AT_ONCE))
        for event in self._events(self._knocks):
            self.refused["handshake" if event == _UNFINISHED else "key"] += 1

    def _events(self, monitor: zmq.Socket[bytes]) -> list[int]:
        """What a monitor has seen."""
        seen: list[int] = []
        while len(seen) < _ASKED_AT_MOST and self._readable(monitor):
            seen.append(struct.unpack("=hi", monitor.recv_multipart(_AT_ONCE)[0])[0])
        return seen

    def _remake(self, now: int) -> None:
        """Make sockets anew that are without a connection for long."""
        for peer in self._peers.keys() - self._connected:
            if age(now, self._tried[peer]) > _REMAKE_AFTER:
                self.renew(peer, now)

    def renew(self, peer: str, now: int) -> None:
        """Make the socket to a peer anew, whatever is known of its connection."""
        self._connected.discard(peer)
        self._disconnect(peer)
        self._connect(self._peers[peer], now)

    def _admit(self, question: list[bytes]) -> None:
        """Answer ZeroMQ's question (ZAP, RFC 27) whether a key may come in."""
        route, empty, version, number, _, _, _, mechanism, *credentials = question
        name = self._names.get(credentials[0]) if mechanism == b"CURVE" and credentials else None
        verdict = [b"200", b"OK", name.encode()] if name else [b"400", b"not in the map", b""]
        self._zap.send_multipart([route, empty, version, number, *verdict, b""], zmq.DONTWAIT)


def _set(socket: zmq.Socket[bytes]) -> None:
    """What both kinds have in common."""
    for option, value in (
        (zmq.SNDHWM, HIGH_WATER),
        (zmq.RCVHWM, HIGH_WATER),
        (zmq.MAXMSGSIZE, BODY_AT_MOST + 1024),
        (zmq.LINGER, 0),
        (zmq.IMMEDIATE, 1),  # no queue before there is a connection
        (zmq.TCP_MAXRT, _UNHEARD),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, _KEEPALIVE_S),
        (zmq.TCP_KEEPALIVE_INTVL, _KEEPALIVE_S),
        (zmq.TCP_KEEPALIVE_CNT, _KEEPALIVE_TIMES),
        (zmq.HANDSHAKE_IVL, _HANDSHAKE_AT_MOST),
        (zmq.RECONNECT_IVL, _RECONNECT),
        (zmq.RECONNECT_IVL_MAX, _RECONNECT_AT_MOST),
    ):
        socket.set(option, value)
