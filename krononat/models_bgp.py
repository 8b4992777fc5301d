"""What a configuration may say about routing: [bgp] and [bfd], two tables of `models`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from krononat.model import Model
from krononat.values import Address, Community, RoutePrefix, one_of

AS_AT_MOST = (1 << 32) - 2  # RFC 7300: the last one is reserved
MED_AT_MOST = (1 << 32) - 1
PREFERENCES = ("med", "prepend", "community", "longest-prefix")
PROFILES = ("per-core", "per-server")
DOMAINS = ("inside", "outside", "both")


class BgpPeer(Model):
    """A switch that is told our routes, in one routing domain of it."""

    address: Address = Field(description="Its address, on-link at one of the core's interfaces.")
    as_: int = Field(ge=1, le=AS_AT_MOST, description="Number of its autonomous system.")
    domain: Annotated[Literal["inside", "outside", "both"] | None, one_of(DOMAINS)] = Field(
        default=None, description="Which routes it is told; default: by the side of the interface that it is on-link at."
    )
    local: Address | None = Field(
        default=None, description="Own end of the session; default: address of the interface that the peer is on-link at."
    )
    next_hop6: str | None = Field(
        default=None,
        pattern=r"^[0-9a-fA-F:.]+$",
        description="IPv6 address of the core that IPv6 routes lead to; default: the interface's IPv6 address, if it has one.",
    )


class Meds(Model):
    """MULTI_EXIT_DISC of each role; the least one is preferred."""

    promoted: int = Field(default=50, ge=0, le=MED_AT_MOST, description="Of a core that took the shard over.")
    primary: int = Field(default=100, ge=0, le=MED_AT_MOST, description="Of the core that has it by the map.")
    leaving: int = Field(
        default=150,
        ge=0,
        le=MED_AT_MOST,
        description="Of a core that is being emptied and has it; with the next; default: midway from primary to backup.",
    )
    backup: int = Field(default=200, ge=0, le=MED_AT_MOST, description="Of the core that keeps a copy.")
    unfit: int = Field(default=250, ge=0, le=MED_AT_MOST, description="Of a core in bad health; it and the next two are used.")
    rejoining: int = Field(default=300, ge=0, le=MED_AT_MOST, description="Of a core whose copy is not complete yet.")
    aggregate: int = Field(default=400, ge=0, le=MED_AT_MOST, description="Of the `aggregates`.")

    @model_validator(mode="before")
    @classmethod
    def _between(cls, told: Any) -> Any:
        """A file may have others that fit, and be older than `leaving`: where it has none, that lies between them."""
        if not isinstance(told, dict) or "leaving" in told:
            return told
        ends = [told.get(name, cls.model_fields[name].default) for name in ("primary", "backup")]
        if any(type(end) is not int or not 0 <= end <= MED_AT_MOST for end in ends):  # refused by its own name
            return told
        return {**told, "leaving": sum(ends) // 2}


class Bgp(Model):
    """What the network is told, and by whom: `krononat speaker run` holds the sessions (docs/routing.md)."""

    local_as: int = Field(ge=1, le=AS_AT_MOST, description="Own autonomous system, the same on all cores.")
    peer: list[BgpPeer] = Field(min_length=1, description="The switches.")
    preference: Annotated[Literal["med", "prepend", "community", "longest-prefix"], one_of(PREFERENCES)] = Field(
        default="med", description="How the primary's routes are made better than the backup's."
    )
    med: Meds = Field(default=Meds(), description="MULTI_EXIT_DISC of each role.")
    prepend_step: int = Field(default=2, ge=1, le=10, description="How often the own AS is prepended for each step down.")
    profile: Annotated[Literal["per-core", "per-server"], one_of(PROFILES)] = Field(
        default="per-core",
        description="A session for each core, or one of the whole server, whose routes name the cores as next hops.",
    )
    hold_time_s: int = Field(default=9, ge=3, le=65535, description="Silence after which a session ends (RFC 4271 4.2).")
    shard_addresses: RoutePrefix | None = Field(
        default=None, description="IPv4 network of the shards' addresses, the same everywhere; default: none are announced."
    )
    shard_addresses6: RoutePrefix | None = Field(default=None, description="The same for IPv6 packets of subscribers.")
    communities: list[Community] = Field(default=[], description="Communities of every route.")
    aggregates: list[RoutePrefix] = Field(
        default=[], description="Wider prefixes that this core announces too: the second line, for another room's shards."
    )
    unfit: Annotated[Literal["worse", "withdraw"], one_of(("worse", "withdraw"))] = Field(
        default="worse", description="What a core in bad health does about its routes."
    )
    dead_after_ms: int = Field(
        default=150, ge=50, le=60_000, description="Silence of a core after which the speaker withdraws its routes, in ms."
    )
    linger_ms: int = Field(
        default=60,
        ge=0,
        le=10_000,
        description="How long routes outlive a worker that dies while a spare stands ready, in ms.",
    )
    socket: str | None = Field(
        default=None, description="Where the speaker of this server listens; default: /run/krononat/SERVER.bgp."
    )


class Bfd(Model):
    """Liveness of the link and of this core's packet loop, as neighbours see it (RFC 5880, RFC 5881)."""

    enabled: bool = Field(default=True, description="Speak BFD with the neighbours named below.")
    interval_ms: int = Field(
        default=50, ge=10, le=60_000, description="Time between packets, both ways, in ms; the slower end decides."
    )
    multiplier: int = Field(
        default=3, ge=1, le=255, description="After so many intervals of silence a neighbour is dead, and so are we to it."
    )
    settle_ms: int = Field(
        default=2000,
        ge=0,
        le=600_000,
        description="How long a neighbour that was lost must be up again before packets are sent by its link while another one "
        "is sound, in ms: a switch that has just started answers before its routes are back.",
    )
    peers: list[Address] | None = Field(
        default=None, description="Neighbours, each on-link at one of the interfaces; default: every [[bgp.peer]]."
    )
