"""What must hold of a state at any quiet moment, whatever packets it has seen."""

from __future__ import annotations

from typing import Any

import numpy as np

from shards import cuckoo, ports, sessions, sessions6
from shards.account_rows import PROTOCOL_CLASSES
from shards.accounts import CLASS_OF
from shards.generic import is_generic
from shards.state import (
    BYPASSED,
    CHUNK_PORTS,
    EXTENT_LINES,
    FIREWALL_SESSION6,
    HELD,
    NAT_MAPPING,
    NAT_SESSION,
    Array,
    State,
    external_rows,
)
from shards.verdict import RECEIVED, SHUNTED, VERDICTS


def living(state: State) -> Array:
    """Copies of all session rows that are alive."""
    return state.sessions[lines(state)]


def check(state: State, received: int, held: int) -> None:
    """Assert all of it; `received` frames were handed in, `held` of them wait for a neighbour."""
    told = complaints(state) + _conservation(state, received, held)
    assert not told, "\n".join(told)


def complaints(state: State) -> list[str]:
    """What is wrong with the rows and what is derived from them; packets are not counted."""
    return [*cuckoo.check(state), *_sessions(state), *_sessions6(state), *_mappings(state), *_accounts(state)]


def lines(state: State) -> Array:
    """Lines of all sessions that are alive."""
    return _rows(state, NAT_SESSION, state.sessions["kind"], 1)


def lines6(state: State) -> Array:
    """First lines of all sessions of IPv6 that are alive."""
    return _rows(state, FIREWALL_SESSION6, state.sessions["kind"], 1)


def halves(state: State) -> Array:
    """Half-lines of all mappings that are alive."""
    return _rows(state, NAT_MAPPING, state.mappings["kind"], 2)


def _rows(state: State, kind: int, kinds: Array, each: int) -> Array:
    """Numbers of the living rows of a kind, looked for in the extents of that kind only."""
    extents = np.flatnonzero(state.extents["kind"] == kind)
    size = EXTENT_LINES * each
    found = [extent * size + np.flatnonzero(kinds[extent * size : (extent + 1) * size] == kind) for extent in extents]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _sessions(state: State) -> list[str]:
    """Both tuples find the session; it agrees with its mapping."""
    told = []
    for line in lines(state).tolist():
        row, words = state.sessions[line], state.words[line * 8 : line * 8 + 4]
        bypassed = int(row["mapping"]) >= BYPASSED
        mapping = state.mappings[0 if bypassed else int(row["mapping"])]
        if cuckoo.lookup(state, words[0], words[1]) != line << 2:
            told.append(f"session {line}: its outbound tuple does not find it")
        if cuckoo.lookup(state, words[2], words[3]) != line << 2 | 1:
            told.append(f"session {line}: its inbound tuple does not find it")
        told += [f"session {line}: {wrong}" for wrong in _next_hops(state, row)]
        if bypassed:
            ends = [(row[f"internal_{end}"], row[f"external_{end}"]) for end in ("address", "port")]
            told += [f"session {line} is not translated, but has {ends}" for one, other in ends if one != other]
            continue
        for name in ("internal_address", "internal_port", "external_address", "external_port"):
            wanted = 0 if name == "external_port" and is_generic(int(row["internal_realm"]) >> 24) else mapping[name]
            if row[name] != wanted or mapping["kind"] != NAT_MAPPING:
                told.append(f"session {line}: its mapping has another {name}")
    return told


def _sessions6(state: State) -> list[str]:
    """The one key finds the session, and is that of its tuple."""
    told = []
    for line in lines6(state).tolist():
        words, flow = state.words[line * 8 : line * 8 + 2], state.flows6[line + 1]
        if line & 1 or cuckoo.lookup(state, words[0], words[1]) != line << 2:
            told.append(f"session {line}: its tuple does not find it")
        key = sessions6.key(
            state, int(flow["realm"]) & 0xFFFFFF, int(flow["realm"]) >> 24, flow["internal_high"], flow["internal_low"],
            flow["remote_high"], flow["remote_low"], int(flow["internal_port"]), int(flow["remote_port"]),
        )  # fmt: skip
        if key != (words[0], words[1]):
            told.append(f"session {line}: its key is not that of its tuple")
    return told


def _next_hops(state: State, row: Any) -> list[str]:
    """Each way leads to the host itself, where it is on-link, or to a gateway of that side; never to one of the other side."""
    told = []
    settings = state.settings[0]
    for way, side, host in (("inward", "internal", row["internal_address"]), ("outward", "external", row["remote_address"])):
        hop, first = int(row[way]), int(settings[f"{side}_port"])
        if hop == sessions.HAIRPIN_HOP:
            continue
        ports_of_it = state.ports[first : first + int(settings[f"{side}_ports"])]
        gateways = [int(port[f"{side}_gateway"]) for port in ports_of_it if port[f"{side}_gateway"]]
        on_link = any(host & port["mask"] == port["network"] for port in ports_of_it)
        itself = hop < len(state.neighbours) and state.neighbours[hop]["address"] == host
        # What was on-link at a dead port goes by the gateway of another one.
        right = (itself and (on_link or not gateways)) or (hop in gateways and (not on_link or len(ports_of_it) > 1))
        if not right:
            told.append(f"{way} leads to neighbour {hop}")
    return told


def _mappings(state: State) -> list[str]:
    """Each mapping is found by its internal endpoint, owns its external one alone, and counts its sessions."""
    told, owned = [], 0
    used: dict[tuple[int, int], int] = {}
    told_of = state.sessions["mapping"][lines(state)]
    users = np.bincount(told_of[told_of < BYPASSED], minlength=1)
    for half in halves(state).tolist():
        row = state.mappings[half]
        external, port = sessions.external_ordinal(state, int(row["external_address"])), int(row["external_port"])
        owned += 1
        used[external, port // CHUNK_PORTS] = used.get((external, port // CHUNK_PORTS), 0) + 1
        if cuckoo.lookup(state, state.words[half * 4], state.words[half * 4 + 1]) != half << 1:
            told.append(f"mapping {half}: its internal endpoint does not find it")
        if int(state.owners[ports.port_space(int(row["internal_realm"]) >> 24), external, port]) != half:
            told.append(f"mapping {half}: its external port has another owner")
        has = int(users[half]) if half < len(users) else 0
        if int(row["sessions"]) != has:
            told.append(f"mapping {half}: counts {row['sessions']} sessions, has {has}")
    owners = state.owners[(state.owners != 0) & (state.owners & HELD == 0)]
    if len(owners) != owned:
        told.append(f"{len(owners)} external ports are owned by {owned} mappings")
    return told + _chunks(state, used)


def _chunks(state: State, used: dict[tuple[int, int], int]) -> list[str]:
    told = []
    for external, chunk in np.argwhere(state.chunks["used"] > 0).tolist() + [list(key) for key in used]:
        counts, has = int(state.chunks[external, chunk]["used"]), used.get((external, chunk), 0)
        if counts != has:
            told.append(f"chunk {external}/{chunk} counts {counts} ports in use, has {has}")
    for number, pool in enumerate(state.pools):
        each, rows = int(pool["block_size"]) // CHUNK_PORTS, external_rows(state, number)
        if (np.diff(state.externals["address"][rows].astype(np.int64)) <= 0).any():
            told.append(f"the addresses of pool {number} do not stand in ascending order")
        chunks = state.chunks[rows]
        busy = ((chunks["account"] != 0) | (chunks["used"] != 0)).reshape(len(chunks), -1, each).any(axis=2)
        free = int(np.count_nonzero(~busy[:, int(pool["first_block"]) : int(pool["end_block"])]))
        if free != pool["blocks_free"]:
            told.append(f"a pool says {pool['blocks_free']} free blocks, there are {free}")
    return told + _blocks(state)


def _blocks(state: State) -> list[str]:
    """An account's blocks and the chunks' owners say the same."""
    told, named = [], 0
    for number in np.flatnonzero(state.accounts["external"]).tolist():
        account = state.accounts[number]
        each = int(state.pools[int(account["pool"])]["block_size"]) // CHUNK_PORTS
        for block in account["blocks"][account["blocks"] > 0].tolist():
            owners = state.chunks["account"][int(account["external"]) - 1, (block - 1) * each : block * each]
            named += each
            if not np.all(owners == number + 1):
                told.append(f"account {number}: block {block - 1} is not wholly its own")
    if (owned := int(np.count_nonzero(state.chunks["account"]))) != named:
        told.append(f"{owned} chunks have an owner, accounts name {named}")
    return told


def _accounts(state: State) -> list[str]:
    """What accounts and shards count equals the rows."""
    told = []
    counted: dict[tuple[int, str], int] = {}
    accounts = state.mappings["account"]
    told_of = state.sessions["mapping"][lines(state)]
    whose = np.where(told_of < BYPASSED, accounts[told_of & (told_of < BYPASSED) * (BYPASSED - 1)], told_of & (BYPASSED - 1))
    users = [whose, state.flows6["account"][lines6(state) + 1]]
    owners = {"sessions": np.concatenate(users), "mappings": accounts[halves(state)]}
    realms = state.mappings["internal_realm"]
    of = [state.sessions["internal_realm"][lines(state)], state.flows6["realm"][lines6(state) + 1]]
    classes = {"sessions": np.concatenate(of) >> 24, "mappings": realms[halves(state)] >> 24}
    for name, charged in owners.items():
        for account in charged.tolist():
            while account:
                counted[account, name] = counted.get((account, name), 0) + 1
                account = int(state.accounts[account]["parent"])
        if int(state.shards[name].sum()) != len(charged):
            told.append(f"shards count {state.shards[name].sum()} {name}, there are {len(charged)}")
        told += _classes(state, name, charged, classes[name])
        for account in {*np.flatnonzero(state.accounts[name]).tolist(), *(key[0] for key in counted if key[1] == name)}:
            counts, has = int(state.accounts[account][name]), counted.get((account, name), 0)
            if counts != has:
                told.append(f"account {account} counts {counts} {name}, has {has}")
    return told


def _classes(state: State, name: str, charged: Array, protocols: Array) -> list[str]:
    """What accounts count by class of protocol equals the rows. `charged`: the account of each row."""
    counted = np.zeros((len(state.accounts), PROTOCOL_CLASSES), np.int64)
    at = charged.astype(np.int64)
    while np.any(at):
        np.add.at(counted, (at, CLASS_OF[protocols]), at != 0)
        at = state.accounts["parent"][at].astype(np.int64)
    wrong = np.flatnonzero(np.any(counted != state.accounts[f"{name}_of"], axis=1))
    return [f"account {number} counts {name} of {state.accounts[number][f'{name}_of']}" for number in wrong.tolist() if number]


def _conservation(state: State, received: int, held: int) -> list[str]:
    """Received = forwarded + punted + shunted + held + drops, and the meters' own number of received agrees."""
    packets: Any = state.counters[:, 0]
    decided = int(packets[: len(VERDICTS)].sum())
    told = [] if decided + held == received else [f"{received} frames came, {decided} have a verdict, {held} are held"]
    if int(packets[RECEIVED]) + held != received:
        told.append(f"{received} frames came, `received` says {packets[RECEIVED]} and {held} are held")
    passed_on, to_peers = int(state.shards["shunted"].sum()), int(state.peers["sent"].sum())
    if not int(packets[SHUNTED]) == passed_on == to_peers:
        told.append(f"{packets[SHUNTED]} packets were shunted, shards count {passed_on} and peers {to_peers}")
    if packets[0]:
        told.append(f"{packets[0]} packets were left undecided")
    return told
