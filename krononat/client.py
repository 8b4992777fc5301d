"""The other end of the control socket: one JSON line asks, one answers, and a file descriptor may come along (SCM_RIGHTS).

{"do": "status"}                                  {"ok": true, "status": {...}}
{"do": "memory"}                                  {"ok": true} and a read-only descriptor of the state's memory
{"do": "delete", "lines": [[line, generation]]}   {"ok": true, "deleted": n}
{"do": "config"}                                  {"ok": true, "config": "canonical TOML"}
{"do": "replace"}                                 {"ok": true, "replacement": {...}}: begun; `status` says how it goes on
{"do": "drain", "on": bool}                       {"ok": true, "draining": bool, "announces": bool (a [bgp])}: routes are told
                                                  so that others are preferred (docs/routing.md), or as always again
{"do": "apply", "config": TOML, "dry": bool}      {"ok": true, "applied": bool, "live": [key], "restart": [key]}: what differs
                                                  `dry`: only say so. Refused as a whole where a key needs a restart
                                                  "pools": [sentence] of addresses; "refused": why `dry` would be, else ""
{"do": "close", "addresses": [IPv4], "undo": bool, "dry": bool}    the same: pair nobody with these anew, or do again
{"do": "pool", "verb": word, "pool": name, "prefixes": [IPv4], "dry": bool}    the same: add them to a pool, remove them,
                                                  exclude addresses of its prefixes, or include them
{"do": "quarantine", "clear": bool}               {"ok": true, "quarantine": [...], "cleared": n, ...}
{"do": "clock", "ahead_ms": n, "stands": bool}    {"ok": true, "clock": {"now": tick, "ahead_ms": n, "stands": bool}, ...}
    The packets' clock (see `clock`), moved by so much and then standing or going; with neither of the two it is only told.
    "movable": whether the configuration allows to move it.
whatever is refused                               {"ok": false, "error": {"what": ..., "why": ..., "next": ..., "status": 1}}

Of a core that belongs to a cluster, answered by its worker. A core is named SERVER/NUMBER; "" is none. What a core knows of
shards that it has no copy of is what it was told last, at the start the map.

{"do": "cores"}                                   {"ok": true, "me": core, "rows": [...]}, a row for each core of the map
    core, evidence (alive, silent, closed; of itself: alive), endpoint, active, passive (how many shards, now), sessions
{"do": "shards"}                                  {"ok": true, "me": core, "rows": [...]}, a row for each shard of the map
    shard, primary, backup (by the map), active, passive (cores, now), role (of this core), side, epoch, in_sync (of the
    copy; null: this core has nothing of the shard, and does not know), sessions, mappings, wanted, shunted, alarms (sentences)
{"do": "replication"}                             {"ok": true, "me": core, "rows": [...]}, a row for each shard and link it uses
    shard, peer, role, epoch, evidence, in_sync, lag_records, lag_bytes, lag_s, gaps, resyncs, refused {reason: frames, of all
    links}, alarms (sentences). The shard of a row is null where it is about a link that carries none.
  These three come in parts: {"do": ..., "from": n} with the "more" of the answer before; null: that was all.
{"do": "map"}                                     {"ok": true, "me": core, "map": {...}, "text": TOML}: what it goes by
    version, digest, cores, room (how many it could have), store, prefix, file, reachable (the store), alarms (sentences)
{"do": "marks"}                                   {"ok": true, "me": core, "rows": [...]}: what each core says that it goes by
    core, version, digest. In parts, as the three above.
{"do": "migrate", "shard": n, "target": core, "dry_run": bool}    {"ok": true, "plan": {...}, "move": id, null after a dry run}
    "copies": true moves the backup, not the authority.
    plan: shard, source, target, kind (swap: the target is the backup; copy: it has nothing yet; backup: the copy alone moves),
    sessions, mappings, epoch (afterwards), warnings (sentences). The core that has the authority carries it out; another one
    refuses and names the core to ask.
{"do": "move"}                                    {"ok": true, "move": {...}}, null: none yet. The current or last one
    id, shard, source, target, stage (a word), done, succeeded (bools), why (a sentence where it did not), duration_ms,
    lag_records, sessions, mappings, pause_ms, shunted, lost
{"do": "verify", "shard": n, "begin": bool}       {"ok": true, "verification": {...}}: begin once, then ask until it is done
    shard, peer, done, rows (compared), differing [[class, row]], error (a sentence where it ended early)
{"do": "tallies"}                                 {"ok": true, "tallies": {...}}: what is only counted, since the worker began
    moves {done, failed: n}, failovers (shards taken over without being given), mismatch (rows that `verify` found), faults
{"do": "resync", "shard": n}                      {"ok": true, "resync": {"shard": n, "source": core, "target": core}}
    The copy is sent anew: asked of the core that has it, or of the one that sends it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path("/run/krononat")  # where sockets are by default
ANSWER_AT_MOST = 16 << 20  # bytes


class Trouble(Exception):
    """An error for people: what happened, why, what to do next; `status` is the exit status it deserves."""

    def __init__(self, what: str, why: str = "", remedy: str = "", status: int = 1) -> None:
        super().__init__(what)
        self.what, self.why, self.remedy, self.status = what, why, remedy, status

    def told(self) -> str:
        """All of it, a line each."""
        lines = [f"krononat: {self.what}"]
        lines += [f"  why:  {self.why}"] if self.why else []
        lines += [f"  next: {self.remedy}"] if self.remedy else []
        return "\n".join(lines)


NOT_REACHABLE, NOT_FOUND, TIMED_OUT, PARTIAL, NO_PRIVILEGE, BAD_CONFIG = 3, 4, 5, 6, 77, 78
_START = "start it with `krononat run -c FILE`, or name its socket with --socket"


def find_socket(given: str | None = None) -> str:
    """Path of the control socket: the given one, else the only one there is in `FOLDER`."""
    if given:
        return given
    found = sorted(str(path) for path in FOLDER.glob("*.sock"))
    if not found:
        raise Trouble("no appliance is running here", f"{FOLDER} holds no socket", _START, NOT_REACHABLE)
    if len(found) > 1:
        raise Trouble("several appliances are running here", ", ".join(found), "choose one with --socket", NOT_REACHABLE)
    return found[0]


def ask(path: str, request: dict[str, Any], timeout_s: float = 5.0) -> dict[str, Any]:
    """Answer to `request`; Trouble where nobody answers or it is refused."""
    answer, descriptors = _exchange(path, request, timeout_s)
    for descriptor in descriptors:
        os.close(descriptor)
    return answer


def memory(path: str, timeout_s: float = 5.0) -> int:
    """Read-only descriptor of the state's memory; the caller closes it."""
    _, descriptors = _exchange(path, {"do": "memory"}, timeout_s)
    if len(descriptors) != 1:
        for descriptor in descriptors:
            os.close(descriptor)
        raise Trouble("no memory came with the answer", f"{len(descriptors)} descriptors came from {path}", "is it a krononat?")
    return descriptors[0]


def delete(path: str, lines: Sequence[tuple[int, int]], timeout_s: float = 30.0) -> int:
    """Sessions that ended of those named by (line, generation); one that is gone or reborn meanwhile is left alone."""
    answer = ask(path, {"do": "delete", "lines": [list(line) for line in lines]}, timeout_s)
    return int(answer["deleted"])


def rows(path: str, what: str) -> tuple[str, list[dict[str, Any]]]:
    """Name of the core asked, and all rows of an answer that comes in parts."""
    found: list[dict[str, Any]] = []
    part: int | None = 0
    while part is not None:
        answer = ask(path, {"do": what, "from": part})
        found += answer["rows"]
        part = answer["more"]
    return str(answer["me"]), found


def _exchange(path: str, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], list[int]]:
    descriptors: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            _connect(stream, path, timeout_s)
            stream.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_line(stream, descriptors))
    except TimeoutError:
        raise Trouble(
            "the appliance does not answer", f"nothing came from {path} in {timeout_s:g} s", status=TIMED_OUT
        ) from None
    except PermissionError:
        raise Trouble("you may not ask the appliance", f"{path} is not open to you", "run as root", NO_PRIVILEGE) from None
    except OSError as error:
        raise Trouble("the appliance cannot be reached", f"{path}: {error.strerror}", _START, NOT_REACHABLE) from None
    except ValueError:
        raise Trouble(
            "the answer makes no sense", f"what came from {path} is not a line of JSON", status=NOT_REACHABLE
        ) from None
    if not answer.get("ok"):
        told = answer.get("error", {})
        raise Trouble(told.get("what", "refused"), told.get("why", ""), told.get("next", ""), told.get("status", 1))
    return answer, descriptors


def _connect(stream: socket.socket, path: str, timeout_s: float) -> None:
    """Connect, and wait for so long where a crowd waits already: a socket with a timeout of Python's own, which does not block,
    would be refused at once (unix(7): EAGAIN).
    """
    seconds, rest = divmod(timeout_s, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(rest * 1_000_000)))
    try:
        stream.connect(path)
    except BlockingIOError:
        raise TimeoutError from None
    stream.settimeout(timeout_s)


def _line(stream: socket.socket, descriptors: list[int]) -> bytes:
    """One line from the stream; descriptors that come along are collected, close-on-exec as Python makes them."""
    line = bytearray()
    while not line.endswith(b"\n") and len(line) < ANSWER_AT_MOST:
        data, came, _, _ = socket.recv_fds(stream, 65536, 4)
        descriptors += came
        if not data:
            break
        line += data
    return bytes(line)
