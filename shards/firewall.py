"""What may open a session: the rule list, looked at on a miss only; the limits are those of `accounts`.

Rules are one ordered list (a device's, its subscriber's, then everyone's; the appliance compiles it so); the first that fits
decides. Without one, outbound is accepted, and inbound is accepted where a mapping allows it.
"""

from __future__ import annotations

from shards.jit import hot, whole
from shards.state import ACCEPT, TCP, UDP, Row, State


@hot
def judge(
    state: State, direction: int, protocol: int, internal: int, internal_port: int, remote: int, remote_port: int
) -> tuple[int, int]:
    """(action, number of the rule + 1) for a packet between an internal endpoint and a remote one; (ACCEPT, 0) without a rule.

    Only TCP and UDP have ports: a rule that names some does not fit the others.
    """
    first = whole(state.settings[0]["rules_at"])
    for r in range(first, first + whole(state.settings[0]["rules"])):
        rule = state.rules[r]
        if fits(rule, direction, protocol, internal, internal_port, remote, remote_port):
            rule["hits"] += 1
            return whole(rule["action"]), whole(rule["number"]) + 1
    return ACCEPT, 0


@hot
def fits(rule: Row, direction: int, protocol: int, internal: int, internal_port: int, remote: int, remote_port: int) -> bool:
    """Whether a rule is about a packet of that direction between these endpoints."""
    return bool(
        whole(rule["directions"]) >> direction & 1
        and (rule["protocol"] == 0 or rule["protocol"] == protocol)
        and internal & whole(rule["internal_mask"]) == whole(rule["internal_network"])
        and remote & whole(rule["remote_mask"]) == whole(rule["remote_network"])
        and ports_fit(rule, protocol in (TCP, UDP), internal_port, remote_port)
    )


@hot
def ports_fit(rule: Row, has_ports: bool, internal_port: int, remote_port: int) -> bool:
    """Whether a rule's ports are a packet's; one that has none fits where every port does."""
    everything = (
        rule["internal_port_low"] == 0
        and rule["internal_port_high"] == 0xFFFF
        and rule["remote_port_low"] == 0
        and rule["remote_port_high"] == 0xFFFF
    )
    if everything or not has_ports:
        return bool(everything)
    return bool(
        rule["internal_port_low"] <= internal_port
        and internal_port <= rule["internal_port_high"]
        and rule["remote_port_low"] <= remote_port
        and remote_port <= rule["remote_port_high"]
    )
