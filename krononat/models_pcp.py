"""What a configuration may say about mappings that subscribers ask for: [pcp], a table of `models`."""

from __future__ import annotations

from pydantic import Field

from krononat.model import Model

WEEK_S = 7 * 86_400


class Pcp(Model):
    """The server of PCP (RFC 6887) and NAT-PMP (RFC 6886), by which subscribers ask for mappings (docs/pcp.md)."""

    enabled: bool = Field(
        default=False, description="Whether subscribers may ask for mappings, at the core's internal address."
    )
    anycast: bool = Field(default=False, description="Whether it answers at 192.0.0.9 as well (RFC 7723).")
    nat_pmp: bool = Field(default=True, description="Whether clients of NAT-PMP are served; else they are told to speak PCP.")
    third_party: bool = Field(
        default=False, description="Whether one host of a subscriber may ask for another one of the same (RFC 6887 13.1)."
    )
    min_lifetime_s: int = Field(default=120, ge=1, le=WEEK_S, description="A shorter one of PCP is made so long, in s.")
    max_lifetime_s: int = Field(default=86_400, ge=60, le=WEEK_S, description="A longer lifetime is made so short, in s.")
    mappings_each: int = Field(default=64, ge=1, le=65_535, description="Mappings that a subscriber may have asked for.")
    mappings: int = Field(default=65_536, ge=1, le=16_777_216, description="Mappings that all subscribers of this core may.")
    requests_per_second: int = Field(
        default=500, ge=1, le=10_000, description="Requests answered by this core; what is beyond is dropped."
    )
    requests_each: int = Field(default=10, ge=1, le=10_000, description="Requests of a subscriber answered in a second.")
