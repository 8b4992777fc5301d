"""One of two ICE peers (RFC 8445), with aioice: `python -m tests.ice_peer controlling|controlled ADDRESS-OF-STUN-SERVER`.

A line of JSON on standard output says by what it can be reached, a line on standard input says the same of the other; then each
sends hundred messages and hears hundred, and the last line on standard output says what was heard and from where. Offered are
the candidates that a STUN server sees alone, so two peers behind one NAT have no other way than through it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from aioice import Candidate, Connection

MESSAGES = 100


def _offer(connection: Connection, outside: bool) -> dict[str, Any]:
    kinds = ("host",) if outside else ("srflx",)
    told = [candidate.to_sdp() for candidate in connection.local_candidates if candidate.type in kinds]
    return {"candidates": told, "user": connection.local_username, "password": connection.local_password}


async def _accept(connection: Connection, told: dict[str, Any]) -> None:
    for candidate in told["candidates"]:
        await connection.add_remote_candidate(Candidate.from_sdp(candidate))
    await connection.add_remote_candidate(None)
    connection.remote_username, connection.remote_password = told["user"], told["password"]


async def _exchange(connection: Connection, name: str) -> list[str]:
    """What is heard of the other's messages, in which each says who it is and which it is."""
    heard: list[str] = []

    async def hear() -> None:
        while len(heard) < MESSAGES:
            heard.append((await connection.recv()).decode())

    hearing = asyncio.create_task(hear())
    for number in range(MESSAGES):
        await connection.send(f"{name} {number}".encode())
        await asyncio.sleep(0.005)
    await asyncio.wait_for(hearing, 10)
    await asyncio.sleep(0.5)  # the other may still be hearing
    return heard


async def main(name: str, server: str) -> None:
    """Gather, tell, listen, connect, exchange."""
    outside = server == "none"
    connection = Connection(name == "controlling", stun_server=None if outside else (server, 3478), use_ipv6=False)
    await connection.gather_candidates()
    print(json.dumps(_offer(connection, outside)), flush=True)
    await _accept(connection, json.loads(await asyncio.to_thread(sys.stdin.readline)))
    await asyncio.wait_for(connection.connect(), 20)
    heard = await _exchange(connection, name)
    remotes = [candidate.host for candidate in connection.remote_candidates]
    print(json.dumps({"heard": heard, "remotes": remotes}), flush=True)
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
