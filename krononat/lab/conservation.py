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


class Ledger:
    """Counts from a quiet moment on, until `close` at another one."""

    def __init__(self, lab: Lab, witness: Witness) -> None:
        self._lab, self._witness = lab, witness
        self._begin = self._quiet()

    def close(self) -> tuple[Outcome, list[Line], Counts]:
        """Whether all equations hold, the equations, and the counts since the beginning."""
        end = self._quiet()
        counts = {name: end[name] - self._begin.get(name, 0) for name in end}
        lines = _lines([own.interface for own, _ in self._lab.topology.ports()], counts)
        wrong = [f"{line.told}: {line.left} ≠ {line.right}" for line in lines if not line.holds]
        told = f"received {counts['peers sent']:,} = forwarded {counts['forwarded']:,} + punted {counts['punted']:,}"
        told += f" + drops {counts['dropped']:,}, as the peers' own counters say; {len(lines)} equations hold exactly"
        return Outcome("conservation", not wrong, "; ".join(wrong) or told, {"equations": len(lines)}), lines, counts

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
    from shards.steering import OUTCOMES
    from shards.verdict import VERDICTS

    state = open_memory(str(lab.socket))
    counts = view.counters(state)
    counts["held now"] = view.totals(state)["held"]
    counts["verdicts to forward"] = sum(counts[verdict.name] for verdict in VERDICTS if verdict.fate == "forward")
    counts["verdicts to drop"] = sum(counts[verdict.name] for verdict in VERDICTS if verdict.fate == "drop")
    for port in lab.status()["ports"]:
        steering, sockets = port["steering"], port["sockets"]
        counts |= {
            f"{port['interface']} redirected": steering["redirected"],
            f"{port['interface']} without socket": steering["no_socket"],
            f"{port['interface']} passed": sum(steering[outcome.name] for outcome in OUTCOMES if outcome.fate == "pass"),
            f"{port['interface']} lost at the ring": sockets["rx_dropped"] + sockets["rx_ring_full"],
        }
    return counts


def _lines(interfaces: list[str], counts: Counts) -> list[Line]:
    """The equations; what they are about in sum is added to `counts` under the words of the README."""

    def total(what: str) -> int:
        return sum(counts[f"{interface} {what}"] for interface in interfaces)

    lines = []
    for name in interfaces:
        seen = sum(counts[f"{name} {what}"] for what in ("redirected", "without socket", "passed"))
        lines.append(Line(f"{name}: sent by its peer = seen by the steering program", counts[f"{name} peer sent"], seen))
        given = counts[f"{name} kernel given"]
        lines.append(Line(f"{name}: passed by the program = given to the kernel", counts[f"{name} passed"], given))
    lost = total("lost at the ring")
    taken = counts["received"] + counts["held now"]  # `received` counts what is decided; what waits for a neighbour is not yet
    decided = counts["verdicts to forward"] + counts["verdicts to drop"]
    sent = counts["verdicts to forward"] + counts["originated"] + total("kernel sent")
    counts["peers sent"], counts["punted"] = total("peer sent"), total("passed")
    counts["forwarded"] = counts["verdicts to forward"]
    counts["dropped"] = counts["verdicts to drop"] + lost + total("without socket")
    accounted = counts["forwarded"] + counts["punted"] + counts["dropped"]
    return [
        *lines,
        Line("redirected = taken from the rings + lost at full ones", total("redirected"), taken + lost),
        Line("decided = forwarded + drops by verdict", counts["received"], decided),
        Line(
            "forwarded + originated + sent by the kernel = got by the peers",
            sent,
            total("peer got") + total("lost on the wire"),
        ),
        Line("received = forwarded + punted + Σ drops", counts["peers sent"], accounted),
    ]


@contextmanager
def watching(lab: Lab) -> Iterator[Ledger]:
    """A ledger opened now, with its witness."""
    witness = Witness(lab.namespace["nat"], [own.interface for own, _ in lab.topology.ports()])
    try:
        yield Ledger(lab, witness)
    finally:
        witness.close()
