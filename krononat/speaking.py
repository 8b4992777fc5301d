"""From configurations to what `routing` works with: the plan of a server's speaker, a core's policy, what it is to its shards.

Pure: `krononat bgp routes --plan` and the processes ask the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from krononat import checks_nat
from krononat.checks_bgp import domain_of, leg_of
from krononat.client import BAD_CONFIG, Trouble
from krononat.cluster import Map
from krononat.models import Config
from krononat.models_bgp import Bgp, BgpPeer
from routing.announcements import Meds, Policy, Role, Standing
from routing.speaker.sessions import Plan, Session, Voice, Way


class Property(NamedTuple):
    """What a shard is made of, as the network sees it."""

    external: tuple[str, ...]
    internal6: tuple[str, ...]


def properties(config: Config) -> dict[int, Property]:
    """Prefixes of each shard; a subscriber's is that of his pool, IPv6 too, and IPv4 where a bypass announces it."""
    found: dict[int, Property] = {}
    for pool in config.pool:
        before = found.get(pool.shard, Property((), ()))
        six = (str(group.prefix6) for group in config.subscribers if group.prefix6 and group.pool == pool.name)
        found[pool.shard] = Property(before.external + tuple(map(str, pool.prefixes)), before.internal6 + tuple(six))
    for shard, prefix in checks_nat.announced(config):
        found[shard] = found[shard]._replace(external=(*found[shard].external, str(prefix)))
    return dict(sorted(found.items()))


def policy(bgp: Bgp) -> Policy:
    """What is the same for all shards."""
    return Policy(
        bgp.local_as,
        bgp.preference,
        Meds(**bgp.med.model_dump()),
        bgp.shard_addresses,
        bgp.shard_addresses6,
        tuple(bgp.communities),
        tuple(bgp.aggregates),
        withdraw_unfit=bgp.unfit == "withdraw",
        prepend_step=bgp.prepend_step,
    )


def standings(config: Config, told: Map | None) -> tuple[Standing, ...]:
    """What the core is to its shards by the map; a core without a cluster has them all."""
    return tuple(Standing(shard, *_role(config, told, shard), *made) for shard, made in properties(config).items())


def _role(config: Config, told: Map | None, shard: int) -> tuple[Role, int]:
    place = next((each for each in told.shard if each.id == shard), None) if told else None
    if place is None:
        return ("silent" if told else "primary"), 1
    roles: dict[str | None, Role] = {place.backup: "backup", place.primary: "primary"}
    return roles.get(config.core_name, "silent"), place.epoch


def orders(config: Config, told: Map | None) -> dict[str, Any] | None:
    """All that a worker must know to announce, as JSON has it; None where nothing is announced."""
    if config.bgp is None:
        return None
    epochs = {shard.id: shard.epoch for shard in told.shard} if told else {}
    reserves = {shard.id: shard.reserve or "" for shard in told.shard} if told else {}
    primaries = [shard.id for shard in told.shard if shard.primary == config.core_name] if told else []
    return {
        "core": config.core_name,
        "policy": policy(config.bgp)._asdict() | {"meds": list(policy(config.bgp).meds)},
        "shards": [
            [shard, *made, epochs.get(shard, 1), shard in primaries, reserves.get(shard, "")]
            for shard, made in properties(config).items()
        ],
    }


# --- the speaker of a server ----------------------------------------------------------------------------------------------


def plan(configs: Sequence[Config], memory: str) -> Plan:
    """Sessions of all cores of a server; Trouble where their configurations do not go together."""
    _agree(configs)
    first = configs[0]
    assert first.bgp
    sessions = {session.name: session for config in configs for session, _ in _sessions(config, first)}
    cores = {
        config.core_name: Voice(config.bgp.dead_after_ms, tuple(way for _, way in _sessions(config, first)))
        for config in configs
        if config.bgp
    }
    return Plan(first.speaker_socket, memory, tuple(sessions.values()), cores)


def _sessions(config: Config, first: Config) -> Iterator[tuple[Session, Way]]:
    """In the profile of one session per server it is the first core's: its address and its peers."""
    assert config.bgp and first.bgp
    for peer in config.bgp.peer:
        own = _own(config, peer)
        local = str(peer.local or (_own(first, peer) if config.bgp.profile == "per-server" else own))
        session = Session(str(peer.address), local, peer.as_, config.bgp.local_as, config.bgp.hold_time_s)
        yield session, Way(session.name, domain_of(config, peer), "self" if local == own else own, next_hop6(config, peer))


def _own(config: Config, peer: BgpPeer) -> str:
    leg = leg_of(config, peer)
    assert leg  # or it would have been refused
    return str(leg[1].address.ip)


def next_hop6(config: Config, peer: BgpPeer) -> str:
    """IPv6 address of the core where the peer sends IPv6 packets; empty: unknown."""
    leg = leg_of(config, peer)
    address6 = getattr(leg[1], "address6", None) if leg else None
    return peer.next_hop6 or (str(address6).partition("/")[0] if address6 else "")


def _agree(configs: Sequence[Config]) -> None:
    names = [config.core_name for config in configs]
    told: Mapping[str, bool] = {
        "each configuration needs a [bgp] table": all(config.bgp for config in configs),
        "they are of several servers": len({config.server.name for config in configs}) == 1,
        "two are of the same core": len(set(names)) == len(names),
        "they name several sockets": len({config.speaker_socket for config in configs}) == 1,
        "they say different things of `local-as`, `preference` or `profile`": len(
            {(config.bgp.local_as, config.bgp.preference, config.bgp.profile) for config in configs if config.bgp}
        )
        == 1,
        "one address is two cores'": len({own for config in configs for own in _addresses(config)})
        == sum(len(list(_addresses(config))) for config in configs),
    }
    for why, right in told.items():
        if not right:
            what = f"no speaker can serve {', '.join(names)}"
            raise Trouble(what, why, "a speaker serves all cores of one server, and nobody else", BAD_CONFIG)


def _addresses(config: Config) -> Iterator[str]:
    return (str(port.address.ip) for _, port in config.interfaces.named())
