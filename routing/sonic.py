"""SONiC: its routing is FRR, so that is what it gets; the policy and its floor are rules of its Linux. Untested.

Rules steer what the CPU forwards. Where packets are forwarded by the ASIC, its ACLs redirect to a next hop that they do not
resolve anew; there give every shard group a VRF of its own with a default route `recursive` to the shard address.
"""

from __future__ import annotations

from routing import fabric as fabrics
from routing import frr
from routing.fabric import Fabric, Instance


def render(fabric: Fabric, one: Instance) -> str:
    """frr.conf, and the rules beside it as comments."""
    head = [f"! SONiC, switch {one.switch.name}, domain {one.domain}: UNTESTED, read it before you use it"]
    rules = [f"!   ip {line}" for line in fabrics.rules(fabric, one)]
    told = ["! Rules of its Linux, before anything else, and again after each boot:", *rules] if rules else []
    return "\n".join([*head, *told, frr.render(fabric, one)])
