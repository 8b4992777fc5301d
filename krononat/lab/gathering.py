"""Many HTTP requests in flight at once: a server that answers nobody until everybody has asked, and a client that is everybody.

Run as a program in two namespaces: ``python -m krononat.lab.gathering serve ADDRESS PORT`` and ``… ask ADDRESS PORT COUNT``.
Standard library only, so that it starts at once.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time

PATIENCE_S = 30.0
_OPENING_AT_ONCE = 250  # connection attempts; answers are awaited by all


class Gathering:
    """Requests for ``/COUNT`` wait here until COUNT of them have come."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[asyncio.Future[int]]] = {}

    async def meet(self, count: int) -> int:
        """Wait for the others; how many there were when the last one came, or TimeoutError."""
        here = self._waiting.setdefault(count, [])
        place: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        here.append(place)
        if len(here) == count:
            del self._waiting[count]
            for each in here:
                each.set_result(count)
        return await asyncio.wait_for(place, PATIENCE_S)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, one answer."""
        try:
            request = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
            together = await self.meet(int(request.split()[1].strip(b"/")))
            body, status = str(together).encode(), b"200 OK"
        except (TimeoutError, ValueError, IndexError, asyncio.IncompleteReadError, ConnectionError):
            body, status = b"0", b"503 Service Unavailable"
        writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (status, len(body), body))
        writer.close()


async def serve(address: str, port: int) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(Gathering().answer, address, port, backlog=8192)
    async with server:
        await server.serve_forever()


async def ask(address: str, port: int, count: int) -> dict[str, float]:
    """Have `count` requests in flight: how many were answered with 200, how many met, seconds until the last."""
    opening = asyncio.Semaphore(_OPENING_AT_ONCE)
    began = time.monotonic()
    met = await asyncio.gather(*(_ask_once(address, port, count, opening) for _ in range(count)))
    answered = [together for together in met if together]
    return {
        "asked": count,
        "answered": len(answered),
        "together": min(met),
        "seconds": round(time.monotonic() - began, 3),
    }


async def _ask_once(address: str, port: int, count: int, opening: asyncio.Semaphore) -> int:
    try:
        async with opening:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), PATIENCE_S)
        writer.write(f"GET /{count} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
    except (TimeoutError, OSError):
        return 0
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(body) if head.startswith(b"HTTP/1.1 200") else 0


def main() -> None:
    """Serve or ask, with as many open files as the system allows."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    what, address, port, *count = sys.argv[1:]
    if what == "serve":
        asyncio.run(serve(address, int(port)))
    else:
        print(json.dumps(asyncio.run(ask(address, int(port), int(count[0])))))


if __name__ == "__main__":
    main()
