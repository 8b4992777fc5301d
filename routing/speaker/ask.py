"""What a running speaker knows, asked at its socket (see `routing.helper`)."""

from __future__ import annotations

import json
import socket
from typing import Any

MESSAGE_AT_MOST = 1 << 18


def ask(path: str, what: str, timeout_s: float = 3.0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(rows of "sessions", "cores" or "routes", what else is told). OSError where nobody answers, ValueError for nonsense."""
    rows: list[dict[str, Any]] = []
    part: int | None = 0
    told: dict[str, Any] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stream:
        stream.settimeout(timeout_s)
        stream.connect(path)
        while part is not None:
            stream.send(json.dumps({"ask": what, "from": part}).encode())
            told = json.loads(stream.recv(MESSAGE_AT_MOST))
            if "rows" not in told:
                raise ValueError(told.get("refused", "an answer without rows"))
            rows += told.pop("rows")
            part = told.pop("more")
    return rows, told
