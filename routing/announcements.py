"""What a core tells the network: a pure function of what it is to each shard -> routes, the same everywhere by one policy.

Two kinds of routes lead to a shard. Its *external* prefixes are told outside: packets of the Internet come by them. Its *shard
address* is told inside: subscribers' packets come by it, as every switch has a static policy "source prefix of shard k -> next
hop: address of shard k, recursively". Nothing else moves when a shard moves.

The backup's routes stand in the network beforehand, less preferred, so a withdrawal alone moves traffic. How "less preferred"
is said is the policy's `preference`:

    med             MULTI_EXIT_DISC (RFC 4271 5.1.4). Compared between routes of one neighbouring AS only, never passed on to
                    another: enough for one switch, or for switches of one AS
    prepend         the own AS again and again (RFC 4271 5.1.2); a step is two: the way over one more AS does not matter
    community       LOCAL_AS:MED, which the switch maps to LOCAL_PREF by a policy of its own
    longest-prefix  the backup tells P, the primary its halves, who was promoted its quarters. Holds in every AS, at no policy

The MED always goes along. A prefix that cannot be quartered takes MED, prepending and community together, whoever tells it.

A core that is being emptied is behind whoever is not, and what decides is what it is to the shard *now*. What it has the
authority of ranks as `leaving`, between a primary and a backup: it may have been promoted long after it was emptied, by a
failure, and who comes back from that with nothing must not draw the packets. What it keeps copies of it marks with
GRACEFUL_SHUTDOWN, which is heeded before any MED: that must never stand on an authority's route, where a copy's has none.
Whoever rejoins marks its routes, too, emptied or not, else they would win against the marked copy, which is complete.

Left out on purpose: equal routes. Two cores of one shard always differ, so no multipath ever makes two owners of one flow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network, summarize_address_range
from itertools import islice, pairwise
from typing import Literal, NamedTuple

Domain = Literal["inside", "outside"]
Preference = Literal["med", "prepend", "community", "longest-prefix"]
Role = Literal["promoted", "primary", "backup", "rejoining", "silent"]
Network = IPv4Network | IPv6Network

GRACEFUL_SHUTDOWN = "65535:0"  # RFC 8326 4: whoever hears it prefers anything else (LOCAL_PREF 0)
PIECES = 128  # of the prefixes of a shard that addresses are left out of
DEEPEST = 2  # bits that a prefix grows by: quarters
SHARD_BITS = 2  # where prefixes are split, each shard has four addresses: itself, its halves and its quarters are prefixes

# Ranks, best first. How deep a prefix is split (where it is), and how many steps are prepended where it is not split and where
# it is: there nobody who tells P itself need be worse than who tells its halves.
_PICTURE = """
                  depth  steps  split-steps
promoted          2      0      0
primary           1      1      0
leaving-promoted  1      2      1
leaving-primary   1      3      2
backup            0      4      0
unfit-promoted    0      5      1
unfit-primary     0      6      2
unfit-backup      0      7      3
rejoining         0      8      4
"""


class Rank(NamedTuple):
    """A row of the picture."""

    depth: int
    steps: int
    split_steps: int


def _parse(picture: str) -> dict[str, Rank]:
    lines = [line.split() for line in picture.strip().splitlines()[1:]]
    return {name: Rank(*map(int, numbers)) for name, *numbers in lines}


RANKS = _parse(_PICTURE)
_COUNTED = ("promoted", "primary", "backup")
_COPIES = ("backup", "unfit-backup")


class Standing(NamedTuple):
    """What this core is to a shard, and what the shard is made of."""

    shard: int
    role: Role
    epoch: int
    external: tuple[str, ...] = ()  # IPv4 and IPv6 prefixes that the Internet knows
    internal6: tuple[str, ...] = ()  # IPv6 prefixes of subscribers: not translated, so told outside
    fit: bool = True


class Meds(NamedTuple):
    """MULTI_EXIT_DISC by role: the least one wins. Two count up by role: + 0 promoted, + 1 primary, `unfit` + 2 backup."""

    promoted: int = 50
    primary: int = 100
    leaving: int = 150
    backup: int = 200
    unfit: int = 250
    rejoining: int = 300
    aggregate: int = 400


class Policy(NamedTuple):
    """What is the same for all shards of a core."""

    local_as: int
    preference: Preference = "med"
    meds: Meds = Meds()
    shard_addresses: str | None = None  # network of them; None: none are told
    shard_addresses6: str | None = None
    communities: tuple[str, ...] = ()  # of every route, "65010:1"
    aggregates: tuple[str, ...] = ()  # second line: what is told whoever has the shards
    draining: bool = False  # the core is being emptied, or has been
    withdraw_unfit: bool = False  # say nothing of a shard that we are not fit for, in place of a worse MED
    prepend_step: int = 2


class Route(NamedTuple):
    """One destination; the next hop is the core's leg in the domain."""

    prefix: str
    domain: Domain
    med: int | None
    prepend: int = 0  # how many times the own AS stands there beside the one of the session itself
    communities: tuple[str, ...] = ()
    large_communities: tuple[str, ...] = ()


def routes(standings: Iterable[Standing], policy: Policy) -> tuple[Route, ...]:
    """All that is to be announced, in the order of prefixes; what is not in it is to be withdrawn."""
    found = [route for standing in standings for route in _of_shard(standing, policy)]
    found += [_aggregate(prefix, policy) for prefix in policy.aggregates]
    return tuple(sorted(found, key=lambda route: (route.domain, *_order(route.prefix))))


def without(prefixes: Sequence[str], absent: Iterable[int]) -> tuple[str, ...]:
    """The fewest prefixes that hold every address of some (which do not overlap) but those that are absent (numbers, IPv4).

    Where that were more than `PIECES` they stay whole: a peer may take so many prefixes and no more (RFC 4486: Maximum Number
    of Prefixes Reached), and its session ends with the next one.
    """
    gone, most = sorted(absent), max(PIECES, len(prefixes))
    parts = tuple(islice((part for prefix in prefixes for part in _left(ip_network(prefix), gone)), most + 1))
    return parts if len(parts) <= most else tuple(prefixes)


def _left(prefix: Network, gone: Sequence[int]) -> Iterator[str]:
    begin, end = int(prefix.network_address), int(prefix.broadcast_address) + 1
    within = gone[bisect_left(gone, begin) : bisect_left(gone, end)] if prefix.version == 4 else ()
    if not within:
        yield str(prefix)
        return
    for before, after in pairwise((begin - 1, *within, end)):
        if before + 1 < after:
            yield from map(str, summarize_address_range(IPv4Address(before + 1), IPv4Address(after - 1)))


def rank_of(standing: Standing, draining: bool = False, withdraw_unfit: bool = False) -> str:
    """Name in `RANKS`; empty: nothing is said."""
    if standing.role == "silent" or (withdraw_unfit and not standing.fit):
        return ""
    if standing.role == "rejoining":
        return "rejoining"
    if not standing.fit:
        return f"unfit-{standing.role}"
    return f"leaving-{standing.role}" if draining and standing.role != "backup" else standing.role


def med_of(rank: str, meds: Meds) -> int:
    """MED of a rank: "leaving-primary" is the second of the leaving ones."""
    group, _, role = rank.rpartition("-")
    return int(getattr(meds, group) + _COUNTED.index(role) if group else getattr(meds, rank))


def shard_address(network: str, shard: int, preference: Preference) -> str:
    """Address of a shard, which the switches' static policy names. ValueError where the network has no room for it."""
    whole, place = ip_network(network), shard << _bits(preference)
    if place + (1 << _bits(preference)) > whole.num_addresses:
        raise ValueError(f"{network} has no address for shard {shard}")
    return str(whole[place])


def shards_in(network: str, preference: Preference) -> int:
    """How many shards have an address there."""
    return ip_network(network).num_addresses >> _bits(preference)


def _bits(preference: Preference) -> int:
    return SHARD_BITS if preference == "longest-prefix" else 0


def _of_shard(standing: Standing, policy: Policy) -> Iterator[Route]:
    rank = rank_of(standing, policy.draining, policy.withdraw_unfit)
    if not rank:
        return
    for prefix in (*standing.external, *standing.internal6):
        yield from _told(ip_network(prefix), "outside", rank, standing, policy)
    for network in filter(None, (policy.shard_addresses, policy.shard_addresses6)):
        address = ip_network(shard_address(network, standing.shard, policy.preference))
        own = address.supernet(_bits(policy.preference))
        yield from _told(own, "inside", rank, standing, policy)


def _told(prefix: Network, domain: Domain, rank: str, standing: Standing, policy: Policy) -> Iterator[Route]:
    """The prefix, or its parts, as preferred as the rank deserves."""
    split = policy.preference == "longest-prefix" and prefix.prefixlen + DEEPEST <= prefix.max_prefixlen
    med, large = med_of(rank, policy.meds), (f"{policy.local_as}:{standing.shard}:{standing.epoch}",)
    own = _own_community(policy, med) if policy.preference == "community" or _is_unsplit(policy, split) else ()
    communities = (*policy.communities, *own, *_mark(rank, policy))
    for part in prefix.subnets(RANKS[rank].depth if split else 0):
        yield Route(str(part), domain, med, _prepended(rank, policy, split), communities, large)


def _is_unsplit(policy: Policy, split: bool) -> bool:
    return policy.preference == "longest-prefix" and not split


def _prepended(rank: str, policy: Policy, split: bool) -> int:
    if split:
        return RANKS[rank].split_steps * policy.prepend_step
    wanted = policy.preference in ("prepend", "longest-prefix")
    return RANKS[rank].steps * policy.prepend_step if wanted else 0


def _own_community(policy: Policy, med: int) -> tuple[str, ...]:
    return (f"{policy.local_as}:{med}",) if policy.local_as < 1 << 16 else ()  # RFC 1997: 16 bits each


def _mark(rank: str, policy: Policy) -> tuple[str, ...]:
    """Never of an authority: who is emptied is known before a failure makes it the only one that has the shard."""
    last = rank == "rejoining" or (policy.draining and rank in _COPIES)
    return (GRACEFUL_SHUTDOWN,) if last else ()


def _aggregate(prefix: str, policy: Policy) -> Route:
    """Found only where no shard's own route is left: it is wider than all of them."""
    mark = (GRACEFUL_SHUTDOWN,) if policy.draining else ()
    return Route(prefix, domain_of(prefix, policy), policy.meds.aggregate, 0, (*policy.communities, *mark))


def domain_of(aggregate: str, policy: Policy) -> Domain:
    """Inside what holds shard addresses, outside what holds anything else."""
    wide = ip_network(aggregate)
    homes = map(ip_network, filter(None, (policy.shard_addresses, policy.shard_addresses6)))
    return "inside" if any(home.version == wide.version and home.overlaps(wide) for home in homes) else "outside"


def _order(prefix: str) -> tuple[int, int, int]:
    network = ip_network(prefix)
    return network.version, int(network.network_address), network.prefixlen


# --- situations -----------------------------------------------------------------------------------------------------------

# What a core is to a shard when something happens, by what the map wants it to be; for `krononat bgp routes --plan`.
_SITUATIONS = """
                 primary    backup     told
configured       primary    backup     as the map has it
partner-dead     primary    promoted   the other core of each shard has died, and packets have come here
returned         rejoining  rejoining  this core is back after its own death, and has not caught up yet
swapped          backup     promoted   each shard has moved to its backup
drained          silent     silent     all shards have moved elsewhere
unfit            primary    backup     health is bad (table full, rings stuck)
draining         primary    backup     the core is about to be emptied (RFC 8326)
called-back      promoted   promoted   it was emptied, and then whoever had taken its shards over died
"""


class Situation(NamedTuple):
    """One line of the table."""

    name: str
    primary: Role
    backup: Role
    told: str


def _read_situations(picture: str) -> tuple[Situation, ...]:
    rows = (line.split(maxsplit=3) for line in picture.strip().splitlines()[1:])
    return tuple(Situation(*row) for row in rows)  # type: ignore[arg-type]  # the words are roles, or a test says so


SITUATIONS = _read_situations(_SITUATIONS)


def in_situation(situation: Situation, standings: Iterable[Standing], policy: Policy) -> tuple[Route, ...]:
    """Routes of a core that would be `standings` by the map, when that has happened."""
    roles: dict[str, Role] = {"primary": situation.primary, "backup": situation.backup}
    raised = situation.name in ("partner-dead", "swapped", "returned", "called-back")
    then = [
        each._replace(
            role=roles.get(each.role, each.role),
            epoch=each.epoch + (raised and roles.get(each.role) != each.role),
            fit=situation.name != "unfit",
        )
        for each in standings
    ]
    return routes(then, policy._replace(draining=situation.name in ("draining", "called-back")))
