"""Configuration of who may answer: [pool] filtering, [subscribers] filtering6 and [firewall6]; and what others are told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, WrapSerializer

from krononat.model import Model
from krononat.values import one_of

FILTERINGS = ("endpoint-independent", "address-dependent", "address-and-port-dependent")
Filtering = Annotated[Literal["endpoint-independent", "address-dependent", "address-and-port-dependent"], one_of(FILTERINGS)]

UnsolicitedSyn = Annotated[Literal["silent", "unreachable"], one_of(("silent", "unreachable"))]
UnsolicitedSyn6 = Annotated[Literal["prohibited", "silent"], one_of(("prohibited", "silent"))]
UnaskedIpsec = Annotated[Literal["pass", "drop"], one_of(("pass", "drop"))]


class Filtering6(Model):
    """Who may write to an internal IPv6 endpoint that has a session, beside the remote of that (RFC 6092 REC-11, 17, 33)."""

    tcp: Filtering = Field(default="address-dependent", description="For TCP.")
    udp: Filtering = Field(default="address-dependent", description="For UDP and UDP-Lite.")
    other: Filtering = Field(default="address-dependent", description="For everything else.")


class Firewall6(Model):
    """The IPv6 firewall, where `prefix6` gives subscribers IPv6."""

    echo: bool = Field(default=True, description="Everyone may ping subscribers (RFC 4890 4.3.1).")
    unsolicited_syn: UnsolicitedSyn6 = Field(
        default="prohibited",
        description="What the sender of a TCP SYN (or SCTP INIT) that nothing permits gets after six seconds without one from "
        "inside: ICMPv6 `prohibited`, or nothing (RFC 6092 REC-34, REC-39).",
    )
    unasked_ipsec: UnaskedIpsec = Field(
        default="pass",
        description="What becomes of ESP, AH, IKE (UDP to port 500) and HIP that no host inside has asked for: they `pass` to "
        "subscribers, without a session until there is an answer, or `drop` (RFC 6092 REC-21, 22, 24, 26).",
    )


class PoolFiltering(Model):
    """Who may write to an external endpoint, beside the remotes that it has sessions with (RFC 4787 5, RFC 5382 REQ-3)."""

    tcp: Filtering = Field(default="endpoint-independent", description="For TCP.")
    udp: Filtering = Field(default="endpoint-independent", description="For UDP.")
    icmp: Filtering = Field(default="endpoint-independent", description="For ICMP queries.")

    @property
    def words(self) -> tuple[str, str, str]:
        """Of ICMP, TCP, UDP: the order of the port spaces."""
        return self.icmp, self.tcp, self.udp


def _for_all(value: Any) -> Any:
    """One word is for every protocol."""
    if isinstance(value, str) and value not in FILTERINGS:
        raise ValueError(f"must be one of {', '.join(FILTERINGS)}")
    return dict.fromkeys(("tcp", "udp", "icmp"), value) if isinstance(value, str) else value


def _in_a_word(value: PoolFiltering, handler: SerializerFunctionWrapHandler) -> Any:
    """What is alike for every protocol is one word."""
    return value.udp if len(set(value.words)) == 1 else handler(value)


OneFiltering = Annotated[
    PoolFiltering, BeforeValidator(_for_all, json_schema_input_type=Filtering | PoolFiltering), WrapSerializer(_in_a_word)
]
