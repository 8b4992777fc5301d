"""The highest rate that a device bears: partial drop rate, as FD.io's CSIT calls it (RFC 2544's throughput, but for some loss).

No loss at all would be a question to the scheduler of a virtual machine, which now and then takes the CPU away for longer than
any ring lasts; hence a little loss is borne, and a rate is given up only after several tries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

LOSS_BORNE = 0.005
HOPELESS = 0.1  # so much is lost by overload only, and not tried again
TRIES = 3


class Trial(NamedTuple):
    """What was offered and what of it arrived, in packets a second."""

    offered: float
    delivered: float

    @property
    def loss(self) -> float:
        """Share that did not arrive; never below 0 (a packet of the trial before may have come late)."""
        return max(0.0, 1 - self.delivered / self.offered)


def highest(attempt: Callable[[int], Trial], low: float, high: float, steps: int) -> Trial:
    """The best trial with no more than `LOSS_BORNE`, by halving [low, high] (packets/s) on a logarithmic scale `steps` times.

    Where nothing passes, the trial at the lowest rate, with its loss.
    """
    best = None
    for _ in range(steps):
        middle = (low * high) ** 0.5
        trial = _tried(attempt, int(middle))
        if trial.loss <= LOSS_BORNE:
            low, best = middle, trial
        else:
            high = middle
    return best or _tried(attempt, int(low))


def _tried(attempt: Callable[[int], Trial], rate: int) -> Trial:
    """The first try that passes or is hopeless, else the last."""
    for _ in range(TRIES):
        trial = attempt(rate)
        if not LOSS_BORNE < trial.loss < HOPELESS:
            break
    return trial
