"""Rules between the fields of a configuration that are about limits, alarms and lifetimes (see `checks`)."""

from __future__ import annotations

from collections.abc import Iterator

from krononat.locate import Complaint, Path
from krononat.models import Config, Subscriber, Subscribers
from krononat.models_limits import CLASSES, Limits, PortTimer

Complaints = Iterator[Complaint]

# RFC 5382 REQ-5 and RFC 7857 2.1 (TCP), RFC 4787 REQ-5 (UDP), RFC 5508 REQ-2 (ICMP), RFC 6092 REC-12 (generic): seconds.
MINIMA = {
    "tcp-established": 7440, "tcp-transitory": 240, "tcp-transitory-closing": 240, "udp": 120, "icmp": 60, "generic": 120,
}  # fmt: skip
OPENING_AT_LEAST = 240  # advised; RFC 7857 2.1 allows less
WELL_KNOWN = 1024  # ports below it may have shorter timers (RFC 4787 REQ-5 a)
_PORT_MINIMA = {"udp": 120, "tcp": 7440}


def named_subscribers(config: Config) -> Iterator[tuple[Path, Subscribers, Subscriber]]:
    """Subscribers with something of their own, with their paths and prefixes."""
    for number, group in enumerate(config.subscribers):
        for index, subscriber in enumerate(group.subscriber):
            yield ("subscribers", number, "subscriber", index), group, subscriber


def _every_limits(config: Config) -> Iterator[tuple[Path, Limits, Limits]]:
    """Limits of every scope: what it says itself, and what holds there."""
    yield ("limits",), config.limits, config.limits
    for number, group in enumerate(config.subscribers):
        yield ("subscribers", number, "limits"), group.limits, group.limits.within(config.limits)
    for path, group, subscriber in named_subscribers(config):
        yield (*path, "limits"), subscriber.limits, subscriber.limits.within(group.limits.within(config.limits))
        for number, device in enumerate(subscriber.device):
            yield (*path, "device", number, "limits"), device.limits, device.limits


def _limits(config: Config) -> Complaints:
    for path, own, held in _every_limits(config):
        if own.burst and not held.rate:
            wider = tuple((*path[:length], "limits", "rate") for length in range(0, len(path), 2))
            yield Complaint((*path, "burst"), "means nothing without `rate`", needs=wider)


def _shares(config: Config) -> Complaints:
    """What is reserved must be there, and not more than its protocol may have."""
    for path, own, held in _every_limits(config):
        reserves = {name: share.reserve or 0 for name, share in held.shares().items()}
        if not any(own.shares()[name].reserve for name in CLASSES):
            continue
        key = next(name for name in CLASSES if own.shares()[name].reserve)
        if not held.sessions and not held.ports and not held.rate:
            yield Complaint((*path, key, "reserve"), "means nothing without `sessions`, `ports` or `rate` of these limits")
        for what, limit in (("sessions", held.sessions), ("ports", held.ports)):
            if limit and sum(reserves.values()) > limit:
                told = f"{sum(reserves.values())} are reserved of {limit} {what}"
                yield Complaint((*path, key, "reserve"), told)
        for name, share in held.shares().items():
            yield from _own_share(path, own, name, reserves[name], share.sessions or 0, share.ports or 0)


def _own_share(path: Path, own: Limits, name: str, reserve: int, sessions: int, ports: int) -> Complaints:
    for what, limit in (("sessions", sessions), ("ports", ports)):
        if limit and own.shares()[name].reserve and reserve > limit:
            yield Complaint((*path, name, "reserve"), f"{reserve} are reserved, but it may have {limit} {what} only")


def _alarms(config: Config) -> Complaints:
    told = config.alarms
    if told.warning and told.critical and told.critical < told.warning:
        yield Complaint(("alarms", "critical"), f"{told.critical} % is less than `warning`, {told.warning} %")


def _timers(config: Config) -> Complaints:
    if config.timeouts.allow_short_timers:
        return
    for key, minimum in MINIMA.items():
        seconds = getattr(config.timeouts, key.replace("-", "_"))
        if seconds is not None and seconds < minimum:
            yield Complaint(("timeouts", key), _too_short(seconds, minimum), needs=(("timeouts", "allow-short-timers"),))
    for number, timer in enumerate(config.timeouts.port):
        minimum = _PORT_MINIMA[timer.protocol]
        if timer.seconds < minimum and not _may_be_short(timer):
            path = ("timeouts", "port", number, "seconds")
            yield Complaint(path, _too_short(timer.seconds, minimum), needs=(("timeouts", "allow-short-timers"),))


def _may_be_short(timer: PortTimer) -> bool:
    """RFC 4787 REQ-5 a: UDP to well-known ports. For TCP there is no such exception."""
    return timer.protocol == "udp" and timer.ports.high < WELL_KNOWN


def _too_short(seconds: int, minimum: int) -> str:
    return f"{seconds} s is under the minimum of {minimum} s; `allow-short-timers = true` accepts it"


# --- doubts ---------------------------------------------------------------------------------------------------------------


def _short_timers(config: Config) -> Complaints:
    """What the RFCs have as a minimum is told, though it was allowed to be less."""
    told = config.timeouts
    if told.opening < OPENING_AT_LEAST:
        key = "tcp-transitory" if told.tcp_transitory_open is None else "tcp-transitory-open"
        text = f"{told.opening} s for connections that open; RFC 7857 2.1 advises {OPENING_AT_LEAST} s"
        yield Complaint(("timeouts", key), text)
    if not told.allow_short_timers:
        return
    for key, minimum in MINIMA.items():
        seconds = getattr(told, key.replace("-", "_"))
        if seconds is not None and seconds < minimum and key != "tcp-transitory":
            yield Complaint(("timeouts", key), f"{seconds} s is under the minimum of {minimum} s that the RFCs demand")


def _hidden_timers(config: Config) -> Complaints:
    """The first that fits counts."""
    told = config.timeouts.port
    for number, timer in enumerate(told):
        if any(_covers(earlier, timer) for earlier in told[:number]):
            path = ("timeouts", "port", number, "ports")
            yield Complaint(path, f"{timer.ports} has a timer already; this one is not used")


def _covers(one: PortTimer, other: PortTimer) -> bool:
    return one.protocol == other.protocol and one.ports.low <= other.ports.low and other.ports.high <= one.ports.high


REFUSALS = (_limits, _shares, _alarms, _timers)
DOUBTS = (_short_timers, _hidden_timers)
