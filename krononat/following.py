"""How a running core follows the map: what the store holds is looked at, judged, given to the worker.

The store is read by a thread, so it may be slow, or gone: then the core goes on by the map that it has, and says so. A map that
is refused changes nothing and stands in words among the alarms until another one is there. With an etcd as the store the file
is written anew with each map that is followed, so that a core can be started while the store is gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from krononat import cluster, mapstore, speaking
from krononat.channel import ORDERS_AT_MOST
from krononat.cluster import Cluster
from krononat.config import ConfigError
from krononat.mapstore import Seen, Store, Watcher
from krononat.models import Config


class Follower:
    """The map of one core. `turn` and everything else returns at once."""

    def __init__(self, config: Config, now: Cluster, say: Callable[[str], None], store: Store | None = None) -> None:
        assert config.cluster
        settings = config.cluster
        self.cluster = now
        self._config, self._say = config, say
        self._store = store or mapstore.open_store(settings.store, settings.map, settings.store_prefix)
        self._copy = Path(settings.map) if settings.store else None
        self._room = cluster.room_for(config, now.map)  # as memory was made, whatever comes
        self._watcher: Watcher | None = None
        self._refused = ""
        self._trouble = ""

    def resume(self, now: Cluster, room: int) -> None:
        """Go on where another one has been: by the rows that it has given, in the memory that it has made."""
        self.cluster, self._room = now, room

    def configure(self, config: Config) -> None:
        """Judge maps by another configuration from now on."""
        self._config = config

    def misfit(self, config: Config) -> str:
        """What the map, as it is, and another configuration of this core do not agree about; empty: they do."""
        found = next(cluster.strangers(config, self.cluster.map), None)
        return f"the map does not go with it: {found.key}: {found.what}" if found else ""

    def start(self) -> None:
        """Begin to look at the store."""
        self._watcher = Watcher(self._store)

    def close(self) -> None:
        """Look no more."""
        if self._watcher:
            self._watcher.close()

    def turn(self) -> bool:
        """Whether there is a newer map to go by: `cluster` is of it."""
        if self._watcher is None:
            return False
        if self._watcher.trouble != self._trouble:
            self._trouble = self._watcher.trouble
            self._say(f"the map: {self._trouble or f'{self._store.name} answers again'}")
        seen = self._watcher.take()
        return seen is not None and self.look(seen)

    def look(self, seen: Seen) -> bool:
        """Judge a map; whether it is gone by from now on."""
        try:
            newer = cluster.read(seen.text, self._store.name)
            told = cluster.judge(self._config, self.cluster, newer, self._room) or self._too_long(newer)
        except ConfigError as error:
            told = "; ".join(f"{complaint.key}: {complaint.what}" for complaint in error.complaints[:3])
        if told != self._refused and told:
            self._say(f"the map in {self._store.name} is not followed: {told}")
        self._refused = told
        if told or newer.version == self.cluster.map.version:
            return False
        self.cluster = cluster.with_map(self.cluster, newer, self._room)
        self._say(f"going by version {newer.version} of the map: {len(newer.core)} cores")
        self._keep(seen)
        return True

    def _too_long(self, newer: cluster.Map) -> str:
        """Why a worker cannot be told of a map: what it must know does not fit a message."""
        now = cluster.with_map(self.cluster, newer, self._room)
        size = len(json.dumps([cluster.orders(self._config, now, []), speaking.orders(self._config, newer)]))
        most = f"there may be {ORDERS_AT_MOST:,}: have fewer cores and shards in it, or shorter names"
        return f"it makes {size:,} bytes of orders, {most}" if size > ORDERS_AT_MOST else ""

    def _keep(self, seen: Seen) -> None:
        if self._copy:
            try:
                mapstore.replace_file(self._copy, seen.text)
            except OSError as error:
                self._say(f"the map cannot be kept in {self._copy}: {error.strerror}")

    def alarms(self) -> list[str]:
        """What an operator should know of the map, in sentences."""
        found = [f"the map cannot be read, and cannot be changed: {self._trouble}"] if self._trouble else []
        if self._refused:
            found.append(f"the map in {self._store.name} is not followed: {self._refused}")
        return found + list(cluster.alarms(self.cluster.map))

    def status(self) -> dict[str, Any]:
        """For the control socket."""
        settings = self._config.cluster
        assert settings
        return {
            "version": self.cluster.map.version,
            "digest": self.cluster.map.digest,
            "cores": len(self.cluster.map.core),
            "room": self._room,
            "store": settings.store,
            "prefix": settings.store_prefix,
            "file": str(Path(settings.map).resolve()),
            "reachable": not self._trouble,
            "alarms": self.alarms(),
        }
