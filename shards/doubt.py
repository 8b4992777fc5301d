"""Whether what is derived from the rows can be believed by somebody who finds the memory without its worker.

A session is born, moved to another slot of the wheel, or ended in dozens of stores; between the first and the last of them
index, timers, free lists, owners of ports and counts do not fit together. Whoever makes such a change says so before it and
after it. A worker that was killed outside of all of them has left nothing to repair: see `resume`. Hits that only count and
renew one row need not say anything, and most bursts are made of those.

Stores become visible in the order of the program as far as a kill is concerned (whatever the processor had finished is in
memory); what could mix them up is the compiler, which moves nothing across a fence.
"""

from __future__ import annotations

from shards.atomics import fence
from shards.jit import hot
from shards.state import State


@hot
def begin(state: State) -> None:
    """What is derived is being changed: from here on it is in doubt. May be nested."""
    state.core[0]["in_doubt"] += 1
    fence()


@hot
def end(state: State) -> None:
    """The change is complete."""
    fence()
    state.core[0]["in_doubt"] -= 1
