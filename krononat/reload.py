"""What of a configuration may change while packets pass, and how it comes into force (`krononat config apply`).

The supervisor writes what is changed into the half of each table that no packet looks at (see `appliance.fill_rules`); the
worker, between two breaths, then writes the SETTINGS that name that half. So a packet is judged by the rules of before or by
those of now, never by a mixture. What cannot change is named, and then nothing changes at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

from krononat import appliance, checks_nat, deterministic
from krononat.client import NOT_FOUND, Trouble
from krononat.models import Config, Pool
from krononat.models_limits import NO_LIMITS
from shards.membership import COMING, RETURNING
from shards.state import DRAINED, OPEN, State

_TABLES = ("rule", "bypass", "pinhole", "nat", "firewall6", "icmp", "alarms", "log", "timeouts")
_POOL = ("drain", "exclude", "prefixes")
# Of these tables: what sessions and packets of now may rely on.
_FIXED = ("nat.other-protocols", "timeouts.port", "timeouts.port.protocol", "timeouts.port.ports")

Orders = dict[str, int | list[int]]  # values by name of SETTINGS


class Plan(NamedTuple):
    """Keys that differ: those that change at once, and those for which the appliance must be started anew."""

    live: list[str]
    restart: list[str]


def plan(before: Config, after: Config) -> Plan:
    """What applying `after` to a core that runs with `before` would change."""
    changed = list(dict.fromkeys(_differences((), _dump(before), _dump(after))))
    restart = [key for key in changed if not _is_live(key)]
    if list(checks_nat.announced(before)) != list(checks_nat.announced(after)):
        restart.append("bypass.announce")
    for key in ("exclude", "prefixes"):
        if any(_places(one, key) != _places(other, key) for one, other in zip(before.pool, after.pool, strict=False)):
            restart.append(f"pool.{key}")  # everybody behind it would have other ports
    return Plan([key for key in changed if key not in restart], restart)


def _places(pool: Pool, key: str) -> list[IPv4Network]:
    """What says which address of a deterministic pool is the n-th."""
    return sorted(getattr(pool, key)) if deterministic.is_deterministic(pool) else []


def _dump(config: Config) -> dict[str, Any]:
    """What a configuration says, with what its limits leave out."""
    whole = config.model_copy(update={"limits": config.limits.within(NO_LIMITS)})
    return whole.model_dump(mode="json", by_alias=True)


def _differences(path: tuple[str, ...], before: Any, after: Any) -> Iterator[str]:
    """Keys, without the numbers of lists, whose values differ; of lists of unequal length, and of rules, the list itself."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before:
            yield from _differences((*path, key), before[key], after[key])
    elif _is_table(before) and _is_table(after) and len(before) == len(after) and path[-1] not in (*_TABLES, "rules"):
        for one, other in zip(before, after, strict=True):
            yield from _differences(path, one, other)
    elif before != after:
        yield ".".join(path)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _is_live(key: str) -> bool:
    first, last = key.split(".")[0], key.split(".")[-1]
    if key in _FIXED:
        return False
    rules = first == "subscribers" and last == "rules"
    return first in _TABLES or rules or (first == "pool" and last in _POOL)


def because(plan: Plan, after: Config) -> str:
    """Why a restart is needed: the keys, and of pools the reason."""
    fixed = [pool.name for pool in after.pool if deterministic.is_deterministic(pool)]
    told = f" (its ports are deterministic: other addresses of {', '.join(fixed)} would give everybody others)"
    return ", ".join(key + told * (key == "pool.prefixes" and bool(fixed)) for key in plan.restart)


def room(state: State, after: Config) -> str:
    """Why the tables have no room for a configuration, "" where they have."""
    for name, count in appliance.counts(after).items():
        most = len(getattr(state, name)) // 2
        if count > most:
            return f"{count:,} {name}; since its start there is room for {most:,}"
    return ""


def prepare(state: State, after: Config) -> Orders:
    """Write the tables; the SETTINGS that a worker is to write then."""
    settings = state.settings[0]
    version = int(settings["rules_version"]) % 0xFFFF + 1
    return {
        **appliance.fill_rules(state, after, int(settings["rules_at"] == 0), version),
        **appliance.behaviour(after),
    }


def close(state: State, after: Config) -> None:
    """Close external addresses, and open them, as a configuration says; each is one byte, which a packet reads once."""
    for row, closed in _closures(state, after):
        state.externals["closed"][row] = closed


def _opened(config: Config, before: int) -> int:
    """What an address is that is to be handed out again: first of all the network must know the way to it, if it is told."""
    return RETURNING if config.bgp and before in (DRAINED, RETURNING) else OPEN


def _closures(state: State, after: Config) -> Iterator[tuple[int, int]]:
    """(row, what it is from now on) of each external address for which that is another than it was."""
    wanted = appliance.closures(after.pool)
    prefixes = [prefix for pool in after.pool for prefix in pool.prefixes]
    ours = [(int(prefix.network_address), int(prefix.broadcast_address)) for prefix in prefixes]
    for row, address in enumerate(state.externals["address"].tolist()):
        before = int(state.externals["closed"][row])
        if not any(first <= address <= last for first, last in ours) or (before == COMING and address not in wanted):
            continue  # it is going or coming, which is the worker's to do: see `growth`
        told = wanted.get(address, _opened(after, before))
        if before != told:
            yield row, told


def drained(config: Config, addresses: list[IPv4Address], undo: bool) -> Config:
    """The configuration with some external addresses drained, or not any more. Trouble where one is in no pool."""
    pools = list(config.pool)
    for address in addresses:
        number = next((n for n, pool in enumerate(pools) if any(address in prefix for prefix in pool.prefixes)), None)
        if number is None:
            told = ", ".join(str(prefix) for pool in pools for prefix in pool.prefixes)
            raise Trouble(f"{address} is in no pool", f"there are {told}", "krononat pool list", NOT_FOUND)
        others = [each for each in pools[number].drain if each != address]
        pools[number] = pools[number].model_copy(update={"drain": others if undo else [*others, address]})
    return config.model_copy(update={"pool": pools})


def in_force(state: State, orders: Orders) -> bool:
    """Whether a worker has done what it was told."""
    return all(state.settings[0][name].tolist() == value for name, value in orders.items())
