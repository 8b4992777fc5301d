"""A client of etcd (3.4 and later) by its JSON gateway, with the standard library alone: no gRPC in a process that forwards.

POST /v3/kv/range, /v3/kv/txn, /v3/lease/grant, /v3/lease/keepalive, /v3/lease/revoke; keys and values are base64, whole numbers
are text (etcd.io/docs/v3.4/dev-guide/api_grpc_gateway). Each URL is waited for `timeout_s` at most, so nothing of
this belongs on a path of packets, nor in a loop that must turn.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import Any, NamedTuple, TypeVar

Body = dict[str, Any]
Meaning = TypeVar("Meaning")


class Unreachable(Exception):
    """No member of the store answers; the argument says what each said."""


class Value(NamedTuple):
    """What stands under a key; `revision` 0: nothing."""

    text: str
    revision: int  # mod_revision


NOTHING = Value("", 0)


class Etcd:
    """A store with these URLs, http://ADDRESS:PORT each; any of them will do."""

    def __init__(self, urls: Sequence[str], timeout_s: float = 2.0) -> None:
        self.urls, self.timeout_s = [url.rstrip("/") for url in urls], timeout_s
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever the environment says

    def get(self, key: str) -> Value:
        """What stands under a key."""
        return self._call("kv/range", {"key": _coded(key)}, _found)

    def put_if(self, key: str, text: str, conditions: Sequence[Body], lease: int = 0) -> bool:
        """Write if all conditions hold, in one transaction. False: one does not, nothing is written."""
        put: Body = {"key": _coded(key), "value": _coded(text)}
        if lease:
            put["lease"] = str(lease)
        return self._call("kv/txn", {"compare": list(conditions), "success": [{"requestPut": put}]}, _succeeded)

    def delete_if(self, key: str, conditions: Sequence[Body]) -> bool:
        """Remove if all conditions hold."""
        delete = {"requestDeleteRange": {"key": _coded(key)}}
        return self._call("kv/txn", {"compare": list(conditions), "success": [delete]}, _succeeded)

    def grant(self, seconds: int) -> int:
        """A lease: what is written with it is gone when it has not been kept alive for so long."""
        return self._call("lease/grant", {"TTL": str(seconds)}, lambda answer: int(answer["ID"]))

    def keep(self, lease: int) -> int:
        """Seconds that a lease has again; 0: it is over."""
        return self._call("lease/keepalive", {"ID": str(lease)}, lambda answer: int(answer.get("result", {}).get("TTL", 0)))

    def revoke(self, lease: int) -> None:
        """End a lease, and what was written with it."""
        self._call("lease/revoke", {"ID": str(lease)}, lambda answer: None)

    def _call(self, what: str, body: Body, meant: Callable[[Body], Meaning]) -> Meaning:
        """Ask one member after another; the first counts whose answer means something."""
        told = []
        for url in self.urls:
            try:
                return meant(self._ask(f"{url}/v3/{what}", body))
            except (OSError, HTTPException, *_NO_ANSWER) as error:
                told.append(f"{url}: {_why(error)}")
        raise Unreachable("; ".join(told))

    def _ask(self, url: str, body: Body) -> Body:
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST")
        with self._opener.open(request, timeout=self.timeout_s) as answer:
            line = answer.readline(_ANSWER_AT_MOST)  # a stream (keepalive) gives one line for each answer
        found = json.loads(line)
        if not isinstance(found, dict) or "error" in found:
            raise ValueError(f"it answers {line[:200]!r}")
        return found


_ANSWER_AT_MOST = 8 << 20
_NO_ANSWER = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # of what is no JSON, or says something else


def _found(answer: Body) -> Value:
    return _value(answer["kvs"][0]) if answer.get("kvs") else NOTHING


def _succeeded(answer: Body) -> bool:
    return bool(answer.get("succeeded"))


def is_at(key: str, revision: int) -> Body:
    """Condition: what stands under the key was written in this revision; 0: nothing stands there."""
    if revision == 0:
        return {"key": _coded(key), "target": "CREATE", "result": "EQUAL", "createRevision": "0"}
    return {"key": _coded(key), "target": "MOD", "result": "EQUAL", "modRevision": str(revision)}


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _value(told: Body) -> Value:
    return Value(base64.b64decode(told.get("value", "")).decode(errors="replace"), int(told["mod_revision"]))


def _why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.read(200).decode(errors='replace').strip()}"
    if isinstance(error, urllib.error.URLError):
        return str(getattr(error.reason, "strerror", None) or error.reason)
    if isinstance(error, KeyError):
        return f"its answer lacks {error}"
    return str(error) or type(error).__name__
