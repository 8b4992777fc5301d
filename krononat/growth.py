"""Pools whose addresses come and go while packets pass: what a configuration changes of them, and why it cannot.

Of each pool there is room for as many addresses more as `spare-addresses` says. A new one is announced first, if anything is,
and handed out when the speaker has its route (see `drained`). One that goes must have been drained, and be empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Any, NamedTuple

import numpy as np

from krononat import appliance
from krononat.client import NOT_FOUND, Trouble
from krononat.models import Config, Pool
from krononat.pools import externals_of
from shards import membership
from shards.membership import COMING, Order
from shards.state import DRAINED, EXCLUDED, OPEN, Array, State, external_rows, rows_by

SHOWN = 4  # prefixes of a sentence


class Refusal(NamedTuple):
    """Why a change cannot be, and what to do instead."""

    why: str
    remedy: str


def orders(state: State, after: Config) -> list[Order]:
    """Write what is to be; what the worker is to put in force then."""
    closed, otherwise = appliance.closures(after.pool), COMING if after.bgp else OPEN
    found = [membership.prepare(state, number, wanted, closed, otherwise) for number, _, wanted in _pools(after)]
    return [order for order in found if order]


def new_rows(state: State, told: Iterable[Order]) -> Array:
    """Rows that come into use by orders that are not in force yet, in ascending order."""
    found = [np.setdiff1d(rows_by(state, *order), external_rows(state, order.pool)) for order in told]
    return np.sort(np.concatenate(found)) if found else np.arange(0)


def _pools(config: Config) -> Iterator[tuple[int, Pool, Array]]:
    for number, pool in enumerate(config.pool):
        yield number, pool, np.array(externals_of(pool), np.uint32)


# --- refused --------------------------------------------------------------------------------------------------------------


def refusal(state: State, after: Config) -> Refusal | None:
    """Why pools cannot have the addresses of a configuration, None where they can."""
    for number, pool, wanted in _pools(after):
        new, gone = membership.come_and_go(state, number, wanted)
        if found := _no_room(state, number, pool, len(new)) or _not_empty(state, pool, gone):
            return found
    return None


def _no_room(state: State, number: int, pool: Pool, wanted: int) -> Refusal | None:
    room = len(membership.free_rows(state, number))
    if wanted <= room:
        return None
    why = f"pool {pool.name} was started with room for other addresses, of which {room:,} are free; {wanted:,} are to be added"
    return Refusal(why, f"add {room:,} at most, or raise its `spare-addresses` in the file and start the appliance with it")


def _not_empty(state: State, pool: Pool, gone: Array) -> Refusal | None:
    """An address that is drained and has nothing will have nothing, so it does not matter when the worker is told."""
    open_ones = gone[~np.isin(state.externals["closed"][gone], (DRAINED, EXCLUDED))]
    if len(open_ones):
        what, first = _told(state.externals["address"][open_ones].tolist()), _address(state, open_ones[0])
        remedy = f"krononat pool drain {first} ...; when nothing is left there, this again"
        return Refusal(f"of pool {pool.name}, {what} would go, and is handed out still", remedy)
    used = gone[membership.is_used(state, gone)]
    if len(used):
        count, first = int(state.chunks["used"][used].sum()), _address(state, used[0])
        remedy = f"wait until they have ended, or end them: krononat sessions delete --nat-src {first}"
        return Refusal(
            f"of pool {pool.name}, {_told(state.externals['address'][used].tolist())} has {count:,} mappings", remedy
        )
    return None


def _address(state: State, row: Any) -> str:
    return str(IPv4Address(int(state.externals["address"][row])))


# --- told -----------------------------------------------------------------------------------------------------------------


def told(state: State, after: Config) -> list[str]:
    """What a configuration changes of the pools' addresses, in sentences."""
    found = []
    for number, pool, wanted in _pools(after):
        new, gone = membership.come_and_go(state, number, wanted)
        room = len(membership.free_rows(state, number)) - len(new) + len(gone)
        if len(new):
            found.append(f"pool {pool.name}: {_told(new.tolist())} comes ({_count(new)}); room for {max(room, 0):,} more")
        if len(gone):
            addresses = state.externals["address"][gone].tolist()
            found.append(f"pool {pool.name}: {_told(addresses)} goes ({_count(gone)}); room for {max(room, 0):,} more")
    return found


def _count(rows: Array) -> str:
    return "1 address" if len(rows) == 1 else f"{len(rows):,} addresses"


def _told(addresses: Iterable[int]) -> str:
    """The fewest prefixes that hold them, the first of them."""
    prefixes = [str(prefix).removesuffix("/32") for prefix in collapse_addresses(IPv4Network(each) for each in addresses)]
    more = f" and {len(prefixes) - SHOWN:,} more" if len(prefixes) > SHOWN else ""
    return ", ".join(prefixes[:SHOWN]) + more


# --- changed --------------------------------------------------------------------------------------------------------------

VERBS = ("add", "remove", "exclude", "include")


def changed(config: Config, verb: str, name: str, prefixes: Sequence[IPv4Network]) -> Config:
    """The configuration with a pool that has other prefixes, or excludes others. Trouble where there is no such pool."""
    number = next((number for number, pool in enumerate(config.pool) if pool.name == name), None)
    if number is None:
        names = ", ".join(pool.name for pool in config.pool)
        raise Trouble(f"there is no pool {name!r}", f"there is {names}", "krononat pool list", NOT_FOUND)
    pool = config.pool[number]
    lists: dict[str, Callable[[], dict[str, Any]]] = {
        "add": lambda: {"prefixes": [*pool.prefixes, *prefixes]},
        "remove": lambda: _removed(pool, prefixes),
        "exclude": lambda: {"exclude": [*pool.exclude, *(each for each in prefixes if each not in pool.exclude)]},
        "include": lambda: {"exclude": _without(pool.exclude, prefixes, f"excluded from pool {name}")},
    }
    pools = list(config.pool)
    pools[number] = pool.model_copy(update=lists[verb]())
    return config.model_copy(update={"pool": pools})


def _removed(pool: Pool, prefixes: Sequence[IPv4Network]) -> dict[str, Any]:
    """What is said of addresses that go, goes with them."""
    excluded = [part for prefix in prefixes for part in pool.exclude if part.subnet_of(prefix)]
    return {
        "prefixes": _without(pool.prefixes, prefixes, f"in pool {pool.name}"),
        "drain": [address for address in pool.drain if not any(address in prefix for prefix in prefixes)],
        "exclude": [part for part in pool.exclude if part not in excluded],
    }


def _without(wide: Sequence[IPv4Network], prefixes: Sequence[IPv4Network], where: str) -> list[IPv4Network]:
    left = list(wide)
    for prefix in prefixes:
        around = next((each for each in left if prefix.subnet_of(each)), None)
        if around is None:
            raise Trouble(f"{prefix} is not {where}", f"there is {', '.join(map(str, wide)) or 'nothing'}", "", NOT_FOUND)
        at = left.index(around)
        left[at : at + 1] = sorted(around.address_exclude(prefix))
    return left
