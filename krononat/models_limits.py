"""What a configuration may say of limits and of lifetimes (see `models`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from krononat.model import Model
from krononat.values import Ports, one_of

LONGEST_TIMER_S = 8000  # shorter than a neighbour is remembered (shards.neighbours) and than a turn of the timer wheel
CLASSES = ("tcp", "udp", "icmp", "other")  # of protocols, as shards.accounts has them
PORT_TIMERS_AT_MOST = 15  # as shards.lifetimes

# --- limits ---------------------------------------------------------------------------------------------------------------


class Share(Model):
    """What a subscriber or device may have of one class of protocols; 0: no limit, left out: as the next wider scope says."""

    sessions: int | None = Field(default=None, ge=0, le=2**31, description="Sessions of it at once.")
    ports: int | None = Field(default=None, ge=0, le=2**31, description="Mappings (external ports) of it (RFC 6888 REQ-4 B).")
    reserve: int | None = Field(
        default=None,
        ge=0,
        le=2**31,
        description="Of `sessions` and of `ports` of the limits so many are left to it by the others; these leave it half of "
        "`burst`, too. So a flood of another protocol does not lock it out.",
    )


class Limits(Model):
    """Limits of a subscriber or device; 0: none, left out: as the next wider scope says."""

    sessions: int | None = Field(default=None, ge=0, le=2**31, description="Sessions at once.")
    ports: int | None = Field(default=None, ge=0, le=2**31, description="Mappings (external ports) at once.")
    rate: int | None = Field(default=None, ge=0, le=1_000_000, description="New sessions a second.")
    burst: int | None = Field(
        default=None, ge=0, le=1_000_000, description="New sessions that may come at once; 0 or left out: as many as `rate`."
    )
    sessions_per_port: int | None = Field(
        default=None, ge=0, le=65535, description="Sessions that one mapping may have (RFC 6888 REQ-5)."
    )
    tcp: Share = Field(default=Share(), description="What TCP may have of it, and what it is left.")
    udp: Share = Field(default=Share(), description="What UDP (and UDP-Lite) may have of it.")
    icmp: Share = Field(default=Share(), description="What ICMP queries may have of it.")
    other: Share = Field(default=Share(), description="What all other protocols together may have of it.")

    @property
    def bucket(self) -> int:
        """Depth of the token bucket behind `rate`."""
        return self.burst or self.rate or 0

    def shares(self) -> dict[str, Share]:
        """By class of protocol."""
        return {"tcp": self.tcp, "udp": self.udp, "icmp": self.icmp, "other": self.other}

    def within(self, wider: Limits) -> Limits:
        """These limits, with what they leave out taken from the wider scope."""
        ours, theirs = self.model_dump(exclude_none=True), wider.model_dump(exclude_none=True)
        return Limits(**(theirs | ours | {name: theirs[name] | ours[name] for name in CLASSES}))


NO_SHARE = Share(sessions=0, ports=0, reserve=0)
NO_LIMITS = Limits(
    sessions=0, ports=0, rate=0, burst=0, sessions_per_port=0, tcp=NO_SHARE, udp=NO_SHARE, icmp=NO_SHARE, other=NO_SHARE
)

# --- lifetimes ------------------------------------------------------------------------------------------------------------


class PortTimer(Model):
    """A lifetime of its own for sessions with certain destination ports (RFC 4787 REQ-5 a), such as DNS."""

    protocol: Annotated[Literal["tcp", "udp"], one_of(("tcp", "udp"))] = Field(default="udp", description="Protocol.")
    ports: Ports = Field(description="Destination ports, one or a range.")
    seconds: int = Field(
        ge=1,
        le=LONGEST_TIMER_S,
        description="Silence after which a session ends, in s; of TCP an established one. UDP: >= 120, or whatever for ports "
        "below 1024; TCP: >= 7440.",
    )


class Timeouts(Model):
    """Seconds of silence after which a session ends."""

    allow_short_timers: bool = Field(default=False, description="Accept timers under the minimum of the RFCs (for tests).")
    tcp_established: int = Field(
        default=7440, ge=1, le=LONGEST_TIMER_S, description="Established TCP, in s (RFC 5382 REQ-5: >= 7440)."
    )
    tcp_transitory: int = Field(
        default=240, ge=1, le=LONGEST_TIMER_S, description="Opening or closing TCP, in s (RFC 5382: >= 240)."
    )
    tcp_transitory_open: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST_TIMER_S,
        description="Opening TCP, in s; default: `tcp-transitory` (RFC 7857 2.1: it may be less than 240).",
    )
    tcp_transitory_closing: int | None = Field(
        default=None, ge=1, le=LONGEST_TIMER_S, description="Closing TCP, in s (>= 240); default: `tcp-transitory`."
    )
    udp: int = Field(default=300, ge=1, le=LONGEST_TIMER_S, description="UDP, in s (RFC 4787 REQ-5: >= 120).")
    icmp: int = Field(default=60, ge=1, le=LONGEST_TIMER_S, description="ICMP queries, in s (RFC 5508 REQ-2: >= 60).")
    generic: int = Field(
        default=300, ge=1, le=LONGEST_TIMER_S, description="All other protocols, in s (RFC 6092 REC-12: >= 120)."
    )
    port: list[PortTimer] = Field(
        default=[],
        max_length=PORT_TIMERS_AT_MOST,
        description="Lifetimes of sessions with certain destination ports; the first that fits counts.",
    )

    @property
    def opening(self) -> int:
        """Of TCP that opens."""
        return self.tcp_transitory if self.tcp_transitory_open is None else self.tcp_transitory_open

    @property
    def closing(self) -> int:
        """Of TCP that closes."""
        return self.tcp_transitory if self.tcp_transitory_closing is None else self.tcp_transitory_closing
