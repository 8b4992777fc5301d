"""What [pcp] means beside the rest of a configuration: two more lists of complaints for `checks`."""

from __future__ import annotations

from collections.abc import Iterator

from krononat.locate import Complaint
from krononat.models import Config

Complaints = Iterator[Complaint]


def refusals(config: Config) -> Complaints:
    """What makes [pcp] unusable."""
    told = config.pcp
    if told.min_lifetime_s > told.max_lifetime_s:
        text = f"{told.min_lifetime_s} s is more than `max-lifetime-s`, {told.max_lifetime_s} s"
        yield Complaint(("pcp", "min-lifetime-s"), text)
    memif = [port.name for side, port in config.interfaces.named() if port.memif and side != "external"]
    if told.enabled and told.anycast and memif:
        text = f"needs an interface of the kernel inside; {memif[0]} is a memif port, which has room for no further address"
        yield Complaint(("pcp", "anycast"), text)


def doubts(config: Config) -> Complaints:
    """What is accepted, but likely not what was meant."""
    if not config.pcp.enabled:
        return
    if config.interfaces.both:
        yield Complaint(
            ("pcp",), "on a stick, drop subscribers' addresses that come from outside (BCP 38): they could ask, too"
        )
    if any(group.prefix6 for group in config.subscribers):
        yield Complaint(("pcp",), "serves IPv4 only; what IPv6 may come in is said by [[pinhole]]")
