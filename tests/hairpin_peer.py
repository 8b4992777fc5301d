"""Ends of a hairpin as a program, with sockets of the kernel: a mirror outside, one inside who is called, one who calls him.

`mirror ADDRESS PORT` answers UDP and TCP with the endpoint that it sees. `called ADDRESS PORT MIRROR PORT` tells its external
endpoints in a line, then answers each caller with what it sees. `caller ADDRESS MIRROR PORT UDP TCP` tells in a line by which
endpoint UDP and TCP (ADDRESS:PORT each) see it, and who answers.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
from collections.abc import Callable

PATIENCE_S = 5.0

Where = tuple[str, int]


def _bound(kind: socket.SocketKind, where: Where) -> socket.socket:
    """A socket whose port others of this program may have, too: who listens calls from the same one."""
    made = socket.socket(socket.AF_INET, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.settimeout(PATIENCE_S)
    made.bind(where)
    return made


def _read(text: str) -> Where:
    host, _, port = text.rpartition(":")
    return host, int(port)


def _answer(datagrams: socket.socket, listener: socket.socket) -> None:
    """Tell everybody by which endpoint he is seen, until this program is ended."""
    selector = selectors.DefaultSelector()
    selector.register(datagrams, selectors.EVENT_READ)
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is datagrams:
                _, seen = datagrams.recvfrom(64)
                datagrams.sendto(json.dumps(seen).encode(), seen)
            else:
                stream, seen = listener.accept()
                stream.sendall(json.dumps(seen).encode() + b"\n")


def _ask(datagrams: socket.socket, of: Where) -> tuple[Where, Where]:
    """(endpoint that is seen there, endpoint that answers), by UDP."""
    for _ in range(5):  # the first may wait for a neighbour
        datagrams.sendto(b"?", of)
        datagrams.settimeout(1.0)
        try:
            told, by = datagrams.recvfrom(64)
        except TimeoutError:
            continue
        host, port = json.loads(told)
        return (host, port), by
    raise SystemExit(f"nobody answers at {of[0]}:{of[1]}/udp")


def _connect(where: Where, of: Where) -> tuple[Where, socket.socket]:
    """(endpoint that is seen there, connection), by TCP."""
    stream = _bound(socket.SOCK_STREAM, where)
    stream.connect(of)
    host, port = json.loads(stream.makefile().readline())
    return (host, port), stream


def mirror(address: str, port: str) -> None:
    """See the module."""
    listener = _bound(socket.SOCK_STREAM, (address, int(port)))
    listener.listen()
    datagrams = _bound(socket.SOCK_DGRAM, (address, int(port)))
    print("{}", flush=True)
    _answer(datagrams, listener)


def called(address: str, port: str, host: str, mirror_port: str) -> None:
    """See the module."""
    where, outside = (address, int(port)), (host, int(mirror_port))
    listener = _bound(socket.SOCK_STREAM, where)
    listener.listen()
    datagrams = _bound(socket.SOCK_DGRAM, where)
    udp, _ = _ask(datagrams, outside)
    tcp, _open = _connect(where, outside)
    print(json.dumps({"udp": udp, "tcp": tcp}), flush=True)
    datagrams.settimeout(None)
    _answer(datagrams, listener)


def caller(address: str, host: str, mirror_port: str, udp: str, tcp: str) -> None:
    """See the module."""
    where, outside = (address, 4600), (host, int(mirror_port))
    datagrams = _bound(socket.SOCK_DGRAM, where)
    own, _ = _ask(datagrams, outside)
    seen, by = _ask(datagrams, _read(udp))
    seen_by_tcp, _ = _connect(where, _read(tcp))
    print(json.dumps({"own": own, "udp": seen, "udp_by": by, "tcp": seen_by_tcp}), flush=True)


ROLES: dict[str, Callable[..., None]] = {"mirror": mirror, "called": called, "caller": caller}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
