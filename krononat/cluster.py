"""The map of a cluster: which cores there are, and which of them has each shard. One file, the same on every server.

Where a shard is *now* the cores tell each other (see replication.roles); the map says who is meant to have it at the start, and
with whom a core speaks at all. `[cluster]` of a core's configuration names the file.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from krononat.client import BAD_CONFIG, Trouble
from krononat.config import ConfigError
from krononat.locate import Complaint, Place, Places
from krononat.models import Config, Model
from krononat.values import Address, EndpointText

if TYPE_CHECKING:
    from replication.keys import Key

CORE = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}/[0-9]{1,4}$"
CORES_AT_MOST = 4096


class Core(Model):
    """One core of one server."""

    name: str = Field(pattern=CORE, description="SERVER/NUMBER, as `server.name` and `server.core` of its configuration say.")
    replication: EndpointText = Field(description="Where it listens for the state of others, address:port (TCP).")
    shunt: Address = Field(
        description="Address of one of its interfaces, or of its loopback, that the other cores can send packets to."
    )
    key: str = Field(pattern=r"^[!-~]{40}$", description="Its public key, as `krononat cluster key` printed it.")

    @property
    def server(self) -> str:
        """Name of the server that it is a core of."""
        return self.name.partition("/")[0]


class Shard(Model):
    """Where a shard is meant to be."""

    id: int = Field(ge=0, lt=1 << 16, description="Its number, as `shard` of its pools says; numbers begin at 0, without gaps.")
    primary: str = Field(description="The core that has it.")
    backup: str | None = Field(default=None, description="The core, of another server, that keeps a copy.")
    epoch: int = Field(default=1, ge=1, lt=1 << 31, description="Counts its owners; raise it to make this map win.")


class Map(Model):
    """All of it."""

    version: int = Field(ge=1, description="Counts the versions of this file.")
    core: list[Core] = Field(min_length=1, max_length=CORES_AT_MOST, description="The cores.")
    shard: list[Shard] = Field(min_length=1, description="The shards.")

    def others(self, me: str) -> list[Core]:
        """Every core but `me`, in the order of the file: the n-th is row n + 1 of PEER."""
        return [core for core in self.core if core.name != me]

    def row(self, me: str, name: str) -> int:
        """Row of PEER that another core has in the memory of `me`; 0 for itself."""
        return 0 if name == me else 1 + [core.name for core in self.others(me)].index(name)


class Cluster(NamedTuple):
    """What a core knows of its cluster at the start."""

    me: str
    map: Map
    key: Key  # CURVE

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
    """Map of a TOML text."""
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
    names = [core.name for core in told.core]
    for number, shard in enumerate(told.shard):
        yield from _places_of(number, shard, names)
    ids = Counter(shard.id for shard in told.shard)
    for number, shard in enumerate(told.shard):
        if ids[shard.id] > 1:
            yield Complaint(("shard", number, "id"), f"shard {shard.id} stands here twice")
    for missing in sorted(set(range(max(ids))) - set(ids)):
        yield Complaint(("shard",), f"shard {missing} is missing: numbers begin at 0, without gaps")


def _places_of(number: int, shard: Shard, names: list[str]) -> Iterator[Complaint]:
    for field in ("primary", "backup"):
        name = getattr(shard, field)
        if name is not None and name not in names:
            yield Complaint(("shard", number, field), f"there is no core {name!r}; there are: {', '.join(names)}")
    if shard.backup and shard.backup.partition("/")[0] == shard.primary.partition("/")[0]:
        told = f"{shard.backup} is of the same server as the primary: the shard would not outlive the server"
        yield Complaint(("shard", number, "backup"), told)


def of(config: Config) -> Cluster | None:
    """The cluster that a configuration belongs to, None without one; ConfigError where its map or its key cannot be used."""
    if config.cluster is None:
        return None
    told, me = load(config.cluster.map), config.core_name
    found = list(strangers(config, told))
    if found:
        raise ConfigError(config.cluster.map, Path(config.cluster.map).read_text(), found)
    return Cluster(me, told, own_key(config, told))


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
        "peers": [[core.name, f"tcp://{core.replication}", core.key] for core in cluster.map.others(cluster.me)],
        "shards": [[shard.id, shard.primary, shard.backup or ""] for shard in cluster.map.shard],
        "dead_after": told.dead_after_ms,
        "times": [told.join_after_ms, min(300, told.join_after_ms), 1000 * told.grace_s, told.quiet_ms],
        "threshold": 1000 * told.replication_threshold_s,
        "holds": told.replicate_hold_down,
        "cpus": cpus,
    }
