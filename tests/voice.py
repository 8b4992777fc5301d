"""A core's part in announcing as a process of its own, without a packet path: ``python -m tests.voice ORDERS``.

ORDERS, JSON: {"socket": path, "orders": of `speaking.orders`, "posts": {shard: [role, epoch]} or null, "linger": ms}. Each line
on its stdin is new posts. It connects again when it is hung up on, as a worker's supervisor sees to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import time
from types import SimpleNamespace
from typing import Any, cast

from krononat.announcer import Announcer
from krononat.view import ticks
from replication.roles import Post
from routing.health import Facts

TRY_EACH_S = 0.2


def posts(told: dict[str, Any]) -> dict[int, Post]:
    """Posts of a JSON object."""
    return {int(shard): Post(role, epoch, 0, 0) for shard, (role, epoch) in told.items()}


def main() -> None:
    """Announce until stdin ends."""
    told = json.loads(sys.argv[1])
    conductor = SimpleNamespace(posts=posts(told["posts"])) if told["posts"] else None
    announcer = Announcer(told["orders"], cast(Any, conductor), lambda now: Facts())
    tried = 0.0
    while True:
        if not announcer.attached and time.monotonic() - tried > TRY_EACH_S:
            tried = time.monotonic()
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stream:
                stream.connect(told["socket"])
                announcer.attach(os.dup(stream.fileno()), told["linger"])
        announcer.turn(ticks())
        if select.select([sys.stdin], [], [], 0.005)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            if conductor:
                conductor.posts = posts(json.loads(line))


if __name__ == "__main__":
    main()
