"""The map of a cluster: which cores there are, and which of them has each shard. One file, the same on every server.

Where a shard is *now* the cores tell each other (see replication.roles); the map says who is meant to have it at the start, and
with whom a core speaks at all. `[cluster]` of a core's configuration names the file, or the store that holds it (`mapstore`).

A map has a version, and every core goes by the newest that it has seen: `judge` says why it would not. What it forwards does
not depend on that. A core keeps the row of PEER that it has given another one, as long as the map has that (`rows_for`).
"""

from __future__ import annotations

import tomllib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from krononat import mapstore
from krononat.client import BAD_CONFIG, Trouble
from krononat.config import ConfigError
from krononat.locate import Complaint, Place, Places
from krononat.model import Model
from krononat.models import Cluster as Settings
from krononat.models import Config
from krononat.values import Address, EndpointText

if TYPE_CHECKING:
    from replication.keys import Key

CORE = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}/[0-9]{1,4}$"
CORES_AT_MOST = 4096
ROOM_AT_LEAST = 16  # rows of PEER
TEXT_AT_MOST = 8 << 20  # characters of a map


class Core(Model):
    """One core of one server."""

    name: str = Field(pattern=CORE, description="SERVER/NUMBER, as `server.name` and `server.core` of its configuration say.")
    replication: EndpointText = Field(description="Where it listens for the state of others, address:port (TCP).")
    shunt: Address = Field(
        description="Address of one of its interfaces, or of its loopback, that the other cores can send packets to."
    )
    key: str = Field(pattern=r"^[!-~]{40}$", description="Its public key, as `krononat cluster key` printed it.")
    room: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9_.-]{0,32}$",
        description="The room that its server is in: what has power, cooling and switches of its own.",
    )

    @property
    def server(self) -> str:
        """Name of the server that it is a core of."""
        return self.name.partition("/")[0]


class Shard(Model):
    """Where a shard is meant to be."""

    id: int = Field(ge=0, lt=1 << 16, description="Its number, as `shard` of its pools says; numbers begin at 0, without gaps.")
    primary: str = Field(description="The core that has it.")
    backup: str | None = Field(default=None, description="The core, of another server, that keeps a copy.")
    reserve: str | None = Field(
        default=None,
        description="The core, in another room, that serves it while theirs is away: with a new table, as it keeps no copy.",
    )
    epoch: int = Field(default=1, ge=1, lt=1 << 31, description="Counts its owners; raise it to make this map win.")
    external: list[str] = Field(
        default=[], description="Its external prefixes, if they are to be checked here: by all cores, against each other."
    )
    subscribers: list[str] = Field(default=[], description="Its subscribers' prefixes, for the same.")


class Map(Model):
    """All of it."""

    version: int = Field(ge=1, lt=1 << 53, description="Counts the versions of this file.")
    core: list[Core] = Field(min_length=1, max_length=CORES_AT_MOST, description="The cores.")
    shard: list[Shard] = Field(min_length=1, description="The shards.")

    def others(self, me: str) -> list[Core]:
        """Every core but `me`, in the order of the file."""
        return [core for core in self.core if core.name != me]

    @property
    def digest(self) -> int:
        """Tells maps of one version apart."""
        return zlib.crc32(self.model_dump_json().encode())

    def names(self) -> list[str]:
        """Cores, in the order of the file."""
        return [core.name for core in self.core]

    def rooms(self) -> dict[str, str]:
        """Room of each core; empty: none is named."""
        return {core.name: core.room for core in self.core}


class Cluster(NamedTuple):
    """What a core knows of its cluster."""

    me: str
    map: Map
    key: Key  # CURVE
    rows: Mapping[str, int]  # of PEER, by core; 0 for itself

    @property
    def core(self) -> Core:
        """Entry of the core itself."""
        return next(core for core in self.map.core if core.name == self.me)


def load(path: str | Path) -> Map:
    """Map of a file; ConfigError with every complaint where it is not a right one."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError as error:
        raise ConfigError(str(path), "", [Complaint((), f"cannot be read: {error.strerror}")]) from None
    return read(text, str(path))


def read(text: str, name: str = "map") -> Map:
    """Map of a TOML text; ConfigError whatever is wrong with it, for a running core reads what others have written."""
    if len(text) > TEXT_AT_MOST:
        raise ConfigError(name, "", [Complaint((), f"too long for a map: more than {TEXT_AT_MOST:,} characters")])
    try:
        return _read(text, name)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise ConfigError(name, text[:1000], [Complaint((), f"not TOML: {error}")]) from None


def _read(text: str, name: str) -> Map:
    try:
        told = Map.model_validate(tomllib.loads(text), by_alias=True, by_name=False)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(name, text, [Complaint((), f"not TOML: {error}", Place(1, 1))]) from None
    except ValidationError as error:
        raise ConfigError(name, text, _placed([_refusal(each) for each in error.errors()], text)) from None
    found = list(refusals(told))
    if found:
        raise ConfigError(name, text, _placed(found, text))
    return told


def _refusal(error: Any) -> Complaint:
    given = error["input"]
    got = f"; got {given!r}" if isinstance(given, str | int | float | bool) else ""
    context = error.get("ctx", {}).get("error")
    return Complaint(error["loc"], f"{context or error['msg'].replace('Input should', 'must')}{got}")


def _placed(complaints: list[Complaint], text: str) -> list[Complaint]:
    places = Places(text)
    return [told._replace(place=places.of(told.path)) for told in complaints]


def refusals(told: Map) -> Iterator[Complaint]:
    """What contradicts itself in a map."""
    for field in ("name", "replication", "shunt", "key"):
        counted = Counter(str(getattr(core, field)) for core in told.core)
        for number, core in enumerate(told.core):
            if counted[str(getattr(core, field))] > 1:
                yield Complaint(("core", number, field), f"{getattr(core, field)} is another core's, too")
    rooms = told.rooms()
    for number, shard in enumerate(told.shard):
        yield from _places_of(number, shard, rooms)
    servers = {core.server: core.room for core in reversed(told.core)}
    for number, core in enumerate(told.core):
        if core.room != servers[core.server]:
            here, there = (f"room {room}" if room else "no room" for room in (core.room, servers[core.server]))
            yield Complaint(("core", number, "room"), f"{core.name} is in {here}, another core of its server in {there}")
    ids = Counter(shard.id for shard in told.shard)
    for number, shard in enumerate(told.shard):
        if ids[shard.id] > 1:
            yield Complaint(("shard", number, "id"), f"shard {shard.id} stands here twice")
    for missing in sorted(set(range(max(ids))) - set(ids)):
        yield Complaint(("shard",), f"shard {missing} is missing: numbers begin at 0, without gaps")
    for field in ("external", "subscribers"):
        yield from _overlaps(told, field)


def _overlaps(told: Map, field: str) -> Iterator[Complaint]:
    """Prefixes that two shards claim, or that are none."""
    found: list[tuple[IPv4Network | IPv6Network, int, tuple[str | int, ...]]] = []
    for number, shard in enumerate(told.shard):
        for at, text in enumerate(getattr(shard, field)):
            try:
                found.append((ip_network(text), shard.id, ("shard", number, field, at)))
            except ValueError:
                yield Complaint(("shard", number, field, at), f"{text!r} is no prefix, such as 203.0.113.0/28")
    found.sort(key=lambda each: (each[0].version, int(each[0].network_address), each[0].prefixlen))
    for (wide, owner, _), (prefix, shard_id, path) in _reaching(found):
        yield Complaint(path, f"{prefix} of shard {shard_id} overlaps {wide} of shard {owner}")


_Claim = tuple[IPv4Network | IPv6Network, int, tuple[str | int, ...]]


def _reaching(claims: Sequence[_Claim]) -> Iterator[tuple[_Claim, _Claim]]:
    """Each claim with the one before it, in the order of addresses, that reaches farthest, where they overlap."""
    reach: _Claim | None = None
    for claim in claims:
        if reach and reach[0].version == claim[0].version and int(claim[0][0]) <= int(reach[0][-1]):
            yield reach, claim
        else:
            reach = claim


def alarms(told: Map) -> Iterator[str]:
    """What a map can be used with, and nobody should be content with."""
    bare = [str(shard.id) for shard in told.shard if shard.backup is None]
    if bare:
        yield f"no backup by the map: shard {_listed(bare)}"
    rooms = told.rooms()
    torn = [str(shard.id) for shard in told.shard if shard.backup and rooms[shard.primary] != rooms[shard.backup]]
    if torn:
        yield f"primary and backup in two rooms by the map: shard {_listed(torn)}"


def _listed(shards: Sequence[str]) -> str:
    return f"{', '.join(shards[:8])}{f' and {len(shards) - 8} more' if len(shards) > 8 else ''}"


def _places_of(number: int, shard: Shard, rooms: Mapping[str, str]) -> Iterator[Complaint]:
    for field in ("primary", "backup", "reserve"):
        name = getattr(shard, field)
        if name is not None and name not in rooms:
            yield Complaint(("shard", number, field), f"there is no core {name!r}; there are: {', '.join(rooms)}")
    reserve, home = rooms.get(shard.reserve or "", ""), [rooms.get(name or "", "") for name in (shard.primary, shard.backup)]
    if shard.reserve in rooms and not reserve:
        yield Complaint(("shard", number, "reserve"), f"{shard.reserve} is in no room: say `room` of the cores")
    elif shard.reserve in rooms and reserve in home:
        told = f"{shard.reserve} is in the shard's own room {reserve}: it would go with it"
        yield Complaint(("shard", number, "reserve"), told)
    if shard.backup and shard.backup.partition("/")[0] == shard.primary.partition("/")[0]:
        told = f"{shard.backup} is of the same server as the primary: the shard would not outlive the server"
        yield Complaint(("shard", number, "backup"), told)


def of(config: Config) -> Cluster | None:
    """The cluster that a configuration belongs to, None without one; ConfigError where its map or its key cannot be used."""
    if config.cluster is None:
        return None
    if config.cluster.store and not Path(config.cluster.map).exists():
        _fetch(config.cluster)
    told, me = load(config.cluster.map), config.core_name
    found = list(strangers(config, told))
    if found:
        raise ConfigError(config.cluster.map, Path(config.cluster.map).read_text(), found)
    return Cluster(me, told, own_key(config, told), rows_for(told, me, {}, room_for(config, told)))


def _fetch(settings: Settings) -> None:
    """The first map of a core that has none yet; later ones are seen while it runs."""
    store = mapstore.open_store(settings.store, settings.map, settings.store_prefix)
    try:
        seen = store.read()
        if not seen.revision:
            remedy = "krononat shard map apply FILE, on a server that has it"
            raise Trouble(f"{store.name} holds no map", f"and there is no {settings.map}", remedy, BAD_CONFIG)
        mapstore.replace_file(Path(settings.map), seen.text)
    except (mapstore.StoreError, OSError) as error:
        raise Trouble("there is no map", f"no {settings.map}, and {error}", "start the store", BAD_CONFIG) from None


# --- a newer map ------------------------------------------------------------------------------------------------------------


def room_for(config: Config, told: Map) -> int:
    """Cores that memory has rows for, this one too."""
    assert config.cluster
    return max(config.cluster.room_for_cores or max(ROOM_AT_LEAST, 2 * len(told.core)), len(told.core))


def rows_for(told: Map, me: str, before: Mapping[str, int], room: int) -> dict[str, int]:
    """Row of PEER of each core: as before; a new one gets a row that nobody had, or else that of one who left.

    ValueError where `room` rows are not enough.
    """
    rows = {name: before[name] for name in told.names() if name in before} | {me: 0}
    left = {row for name, row in before.items() if name not in rows}
    free = [row for row in range(1, room) if row not in rows.values() and row not in left] + sorted(left)
    new = [name for name in told.names() if name not in rows]
    if len(new) > len(free):
        raise ValueError(f"it has {len(told.core)} cores, this core has room for {room}")
    return rows | dict(zip(new, free, strict=False))


def judge(config: Config, now: Cluster, newer: Map, room: int) -> str:
    """Why a core that goes by one map, with `room` rows of PEER, does not go by another; empty: it does, or it is the same."""
    before = now.map
    if newer.version < before.version:
        return f"it is version {newer.version}, this core goes by version {before.version}: raise the version of what is to win"
    if newer.version == before.version:
        told = f"it is of version {newer.version} as well, but another one: raise the version of what is to win"
        return "" if newer.digest == before.digest else told
    if now.me not in newer.names():
        return f"{now.me} is in it no more: this core goes on by version {before.version}; stop it once it has no shard"
    if len(newer.shard) != len(before.shard):
        return f"it has {len(newer.shard)} shards, this core was started with {len(before.shard)}: start it again"
    return _misfit(config, now, newer, room)


def _misfit(config: Config, now: Cluster, newer: Map, room: int) -> str:
    mine = next(core for core in newer.core if core.name == now.me)
    for field in ("replication", "shunt", "key"):
        if getattr(mine, field) != getattr(now.core, field):
            return f"it has another `{field}` for {now.me}: {getattr(mine, field)}; start this core again"
    for complaint in strangers(config, newer):
        return f"{complaint.key}: {complaint.what}"
    try:
        rows_for(newer, now.me, now.rows, room)
    except ValueError as error:
        return f"{error}: raise `cluster.room-for-cores`, and start it again"
    return ""


def with_map(now: Cluster, newer: Map, room: int) -> Cluster:
    """The same core by a newer map."""
    return now._replace(map=newer, rows=rows_for(newer, now.me, now.rows, room))


def written(told: Map) -> str:
    """A map as TOML, which parses to the same again."""
    lines = [f"version = {told.version}"]
    for core in told.core:
        lines += [
            "",
            "[[core]]",
            *(f"{field} = {_quoted(getattr(core, field))}" for field in ("name", "replication", "shunt", "key")),
            *([f"room = {_quoted(core.room)}"] * bool(core.room)),
        ]
    for shard in told.shard:
        lines += ["", "[[shard]]", f"id = {shard.id}", f"primary = {_quoted(shard.primary)}"]
        lines += [f"backup = {_quoted(shard.backup)}"] * (shard.backup is not None)
        lines += [f"reserve = {_quoted(shard.reserve)}"] * (shard.reserve is not None)
        lines += [f"epoch = {shard.epoch}"] * (shard.epoch != 1)
        for field in ("external", "subscribers"):
            prefixes = getattr(shard, field)
            lines += [f"{field} = [{', '.join(map(_quoted, prefixes))}]"] * bool(prefixes)
    return "\n".join(lines) + "\n"


def _quoted(value: object) -> str:
    """A TOML string: a literal one, unless there is a quote in it (a key has any printable character)."""
    text = str(value)
    return f"'{text}'" if "'" not in text else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def own_key(config: Config, told: Map) -> Key:
    """The key pair of a core that the map has; Trouble where its file is not right, or the map has another one."""
    assert config.cluster
    path, what = config.cluster.key_file, "the key of this core cannot be used"
    from replication import keys  # late: the CLI has no need of ZeroMQ

    try:
        key = keys.read(Path(path))
    except (OSError, ValueError) as error:
        raise Trouble(what, str(error), f"krononat cluster key {path}", BAD_CONFIG) from None
    public, known = key.public.decode(), next(core.key for core in told.core if core.name == config.core_name)
    if public != known:
        why = f"the map has {known} for {config.core_name}, {path} is of {public}: nobody would speak to it"
        raise Trouble(what, why, f"write key = '{public}' into the map of every server", BAD_CONFIG)
    return key


def strangers(config: Config, told: Map) -> Iterator[Complaint]:
    """What a map and the configuration of a core do not agree about."""
    own = next((core for core in told.core if core.name == config.core_name), None)
    if own is None:
        yield Complaint(("core",), f"there is no core {config.core_name!r}, which this configuration is of")
    elif shunt_side(config, own.shunt) is None:
        what = f"{own.shunt} is no address of an interface of {own.name}, nor its loopback's"
        yield Complaint(("core", told.core.index(own), "shunt"), what)
    pools, shards = {pool.shard for pool in config.pool}, {shard.id for shard in told.shard}
    for missing in sorted(pools - shards):
        yield Complaint(("shard",), f"shard {missing} of the configuration's pools is missing")
    for idle in sorted(shards - pools):
        yield Complaint(("shard", [shard.id for shard in told.shard].index(idle), "id"), f"no pool is of shard {idle}")
    for number, shard in enumerate(told.shard):
        yield from _other_prefixes(config, number, shard)


def _other_prefixes(config: Config, number: int, shard: Shard) -> Iterator[Complaint]:
    """Prefixes of a shard by the map, where it says any, that are not those of the configuration."""
    pools = [pool for pool in config.pool if pool.shard == shard.id]
    groups = [group for group in config.subscribers if group.pool in {pool.name for pool in pools}]
    has = {"external": {str(prefix) for pool in pools for prefix in pool.prefixes}}
    has["subscribers"] = {str(group.prefix) for group in groups}
    for field, ours in has.items():
        told = {text for text in getattr(shard, field) if ":" not in text}
        if told and told != ours:
            here = f"this configuration has {', '.join(sorted(ours)) or 'none'}"
            yield Complaint(("shard", number, field), f"not the same everywhere: {here} for shard {shard.id}")


def shunt_side(config: Config, shunt: IPv4Address) -> Literal["internal", "external"] | None:
    """Side of the core on which it has its address of shunts: internal or external; None if it has not got it."""
    loopback = config.interfaces.loopback
    if loopback and loopback.address.ip == shunt:
        return loopback.side
    sides = [side for side, port in config.interfaces.named() if port.address.ip == shunt]
    return None if not sides else "internal" if sides == ["internal"] else "external"


def orders(config: Config, cluster: Cluster, cpus: list[int]) -> dict[str, Any]:
    """All that a worker must know of its cluster, as JSON has it."""
    told = config.cluster
    assert told
    return {
        "me": cluster.me,
        "endpoint": f"tcp://{cluster.core.replication}",
        "key": [cluster.key.public.decode(), cluster.key.secret.decode()],
        "mark": [cluster.map.version, cluster.map.digest],
        "peers": [
            [core.name, f"tcp://{core.replication}", core.key, cluster.rows[core.name], int(core.shunt)]
            for core in cluster.map.others(cluster.me)
        ],
        "shards": [[shard.id, shard.primary, shard.backup or "", shard.reserve or ""] for shard in cluster.map.shard],
        "dead_after": told.dead_after_ms,
        "times": [
            told.join_after_ms, min(300, told.join_after_ms), 1000 * told.grace_s, told.quiet_ms, told.silent_room,
        ],
        "threshold": 1000 * told.replication_threshold_s,
        "holds": told.replicate_hold_down,
        "cpus": cpus,
    }  # fmt: skip
