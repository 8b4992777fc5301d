"""Where every packet went: the appliance's counters against those of the veths' other ends, which know nothing of it.

Five parties count apart: the peers' kernels (what they sent us, what they got), the steering program, the AF_XDP sockets,
the worker's verdicts, and packet sockets that see only the kernel's own packets (see `witness`). Every line of the ledger is
an equation between two of them that must hold exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from krononat.cli.output import open_memory
from krononat.lab import namespaces
from krononat.lab.laboratory import Lab
from krononat.lab.traffic import Outcome
from krononat.lab.witness import Witness

_QUIET_S = 0.3  # nothing may have moved for so long
_PATIENCE_S = 20.0

Counts = dict[str, int]


class Line(NamedTuple):
    """An equation: what one party counted and what another did."""

    told: str
    left: int
    right: int

    @property
    def holds(self) -> bool:
        """Whether both are the same number."""
        return self.left == self.right


class Closed(NamedTuple):
    """A ledger's end."""

    outcome: Outcome
    lines: list[Line]
    counts: Counts


class Ledger:
    """Counts from a quiet moment on, until `close` at another one."""

    def __init__(self, lab: Lab, witness: Witness) -> None:
        self._lab, self._witness = lab, witness
        self._begin = self._quiet()

    def close(self) -> Closed:
        """Whether all equations hold, the equations, and the counts since the beginning."""
        end = self._quiet()
        counts = {name: end[name] - self._begin.get(name, 0) for name in end}
        interfaces = [own.interface for own, _ in self._lab.topology.ports()]
        drops = _add_sums(interfaces, counts)
        lines = _lines(interfaces, counts)
        wrong = [f"{line.told}: {line.left} ≠ {line.right}" for line in lines if not line.holds]
        told = f"received {counts['seen']:,} = forwarded {counts['forwarded']:,} + punted {counts['punted']:,}"
        told += f" + drops {counts['dropped']:,}, as the peers' own counters say; {len(lines)} equations hold exactly"
        return Closed(Outcome("conservation", not wrong, "; ".join(wrong) or told, {"drops": drops}), lines, counts)

    def _quiet(self) -> Counts:
        deadline = time.monotonic() + _PATIENCE_S
        before = self._count()
        while time.monotonic() < deadline:
            time.sleep(_QUIET_S)
            after = self._count()
            if after == before:
                break
            before = after
        return before

    def _count(self) -> Counts:
        counts: Counts = {}
        kernels = {node: namespaces.counters(name) for node, name in self._lab.namespace.items()}
        for own, peer in self._lab.topology.ports():
            there, here = kernels[peer.node][peer.interface], kernels[own.node][own.interface]
            counts[f"{own.interface} peer sent"] = there["tx"]["packets"]
            counts[f"{own.interface} peer got"] = there["rx"]["packets"]
            counts[f"{own.interface} lost on the wire"] = here["tx"]["dropped"]
        for (interface, way), count in self._witness.counts().items():
            counts[f"{interface} kernel {way}"] = count
        return counts | _of_appliance(self._lab)


def _of_appliance(lab: Lab) -> Counts:
    from krononat import view
    from shards.outcomes import OUTCOMES, PASS

    state = open_memory(str(lab.socket))
    counts = view.counters(state) | {"held now": view.totals(state)["held"]}
    for port in lab.status()["ports"]:
        name, steering, sockets = port["interface"], port["steering"], (port["sockets"], port["control_sockets"])
        counts[f"{name} redirected"] = steering["redirected"] + steering["control"]
        counts[f"{name} no socket"] = steering["no_socket"]
        counts[f"{name} passed"] = sum(steering[outcome.name] for outcome in OUTCOMES if outcome.fate == PASS)
        counts[f"{name} ring full"] = sum(each["rx_dropped"] + each["rx_ring_full"] for each in sockets)
    return counts


def _add_sums(interfaces: list[str], counts: Counts) -> Counts:
    """Add what goes over all interfaces and verdicts; the drops by reason, those before a verdict included."""
    from shards.verdict import DROP, FORWARD, VERDICTS

    for what in ("peer sent", "peer got", "lost on the wire", "kernel sent", "redirected", "no socket", "passed", "ring full"):
        counts[what] = sum(counts[f"{interface} {what}"] for interface in interfaces)
    reasons = [verdict.name for verdict in VERDICTS if verdict.fate == DROP] + ["no socket", "ring full"]
    drops = {reason: counts[reason] for reason in reasons if counts[reason]}
    counts["forwarded"] = sum(counts[verdict.name] for verdict in VERDICTS if verdict.fate == FORWARD)
    counts["seen"], counts["punted"], counts["dropped"] = counts["peer sent"], counts["passed"], sum(drops.values())
    return drops


def _lines(interfaces: list[str], counts: Counts) -> list[Line]:
    lines = []
    for name in interfaces:
        seen = sum(counts[f"{name} {what}"] for what in ("redirected", "no socket", "passed"))
        lines.append(Line(f"{name}: sent by its peer = seen by the steering program", counts[f"{name} peer sent"], seen))
        given = counts[f"{name} kernel given"]
        lines.append(Line(f"{name}: passed by the program = given to the kernel", counts[f"{name} passed"], given))
    taken = counts["received"] + counts["held now"]  # `received` counts what is decided; what waits for a neighbour is not yet
    sent = counts["forwarded"] + counts["originated"] + counts["bfd_sent"] + counts["kernel sent"]
    got = counts["peer got"] + counts["lost on the wire"]
    accounted = counts["forwarded"] + counts["punted"] + counts["bfd_taken"] + counts["dropped"]
    return [
        *lines,
        Line("redirected = taken from the rings + lost at full ones", counts["redirected"], taken + counts["ring full"]),
        Line("forwarded + originated + sent by the kernel = got by the peers", sent, got),
        Line("sent by the peers = forwarded + punted + control + Σ drops by reason", counts["peer sent"], accounted),
    ]


@contextmanager
def watching(lab: Lab) -> Iterator[Ledger]:
    """A ledger opened now, with its witness."""
    witness = Witness(lab.namespace["nat"], [own.interface for own, _ in lab.topology.ports()])
    try:
        yield Ledger(lab, witness)
    finally:
        witness.close()
