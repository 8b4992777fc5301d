"""`krononat shard map`: see the map that cores go by, have them go by a newer one; and the right to do so, for all movers."""

from __future__ import annotations

import getpass
import os
import socket as sockets
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from krononat import client, mapstore
from krononat.cli import moves
from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_json, print_rows, print_table, socket_option
from krononat.mapstore import Lock, Seen, Store
from replication.layout import Homes, Step
from replication.placement import server_of

if TYPE_CHECKING:  # else late: what reads maps takes longer to import than all the rest
    from krononat.cluster import Map, Shard

COLUMNS = ("shard", "primary", "backup", "reserve", "epoch", "active", "passive")
FOLLOWED_WITHIN_S = 15.0  # a core looks each second
FILE = click.Path(path_type=Path)


class Stored(NamedTuple):
    """The map as the store of the cores here has it."""

    store: Store
    seen: Seen
    map: Map


def stored(socket: str | None) -> Stored:
    """Read it; Trouble where it cannot be, then nothing can be changed either."""
    from krononat import cluster as clusters

    answer = max(asked(socket), key=lambda each: each["map"]["version"])
    told = answer["map"]
    store = mapstore.open_store(told["store"], told["file"], told["prefix"])
    try:
        seen = store.read()
    except mapstore.StoreError as error:
        remedy = "every core forwards on by the map that it has; mend the store"
        raise client.Trouble("the map cannot be changed now", str(error), remedy) from None
    return Stored(store, seen, _legible(seen, clusters.read(answer["text"]), store.name))


def _legible(seen: Seen, followed: Map, name: str) -> Map:
    """What a store holds; where that is nothing, or no map, what the cores go by: a right one may so be written over it."""
    from krononat import cluster as clusters
    from krononat.config import ConfigError

    if not seen.revision:
        return followed
    try:
        return clusters.read(seen.text, name)
    except ConfigError as error:
        told = f"krononat: what stands in {name} is no map; the cores go by version {followed.version}:"
        click.echo(f"{told}\n{error.told()}", err=True)
        return followed


def asked(socket: str | None) -> list[dict[str, Any]]:
    """What each core here says about its map; who is silent is left out, Trouble where all are."""
    answers, troubles = list[dict[str, Any]](), list[client.Trouble]()
    for path in moves.sockets(socket):
        try:
            answers.append({**client.ask(path, {"do": "map"}), "socket": path})
        except client.Trouble as trouble:
            troubles.append(trouble)
    if not answers:
        raise troubles[0]
    return answers


def rooms(socket: str | None) -> dict[str, str]:
    """Room of each core by the map that is gone by; empty where none is named."""
    from krononat import cluster as clusters

    found = clusters.read(max(asked(socket), key=lambda each: each["map"]["version"])["text"]).rooms()
    return found if any(found.values()) else {}


@contextmanager
def right_to_move(socket: str | None, what: str) -> Iterator[tuple[Stored, Lock]]:
    """Have it while shards are moved, or the map is changed. Trouble where another one has it."""
    told = stored(socket)
    try:
        with told.store.lock(f"{what} by {getpass.getuser()}, process {os.getpid()} on {sockets.gethostname()},") as lock:
            yield told, lock
    except mapstore.Busy as error:
        raise client.Trouble("nothing was moved", str(error), "wait until that is over") from None
    except mapstore.StoreError as error:
        remedy = "shards are where they are, and every core forwards on; mend the store, then try again"
        raise client.Trouble("the map was not changed", str(error), remedy) from None


def held(lock: Lock) -> None:
    """Trouble where the right to move is lost."""
    if not lock.held():
        told = "the store has not answered for so long that another one may move shards by now"
        raise client.Trouble("no more moves are begun", told, "krononat shard map; then try again")


def put(told: Stored, lock: Lock, newer: Map) -> Stored:
    """Write a newer map. StoreError; Trouble where no core could read it."""
    from krononat import cluster as clusters
    from krononat.config import ConfigError

    text = clusters.written(newer)
    try:
        clusters.read(text)
    except ConfigError as error:
        why = "; ".join(f"{complaint.key}: {complaint.what}" for complaint in error.complaints[:3])
        raise client.Trouble("the map was not changed: no core could read it then", why, "krononat shard list") from None
    return told._replace(seen=told.store.write(text, told.seen, lock), map=newer)


def placed(told: Map, homes: Homes, epochs: dict[int, int], without: str = "") -> Map:
    """The next version of a map, in which shards are meant to be where they are, and a server is no more.

    Trouble where a shard that nobody has would be meant to be on that server.
    """
    shards = []
    for shard in told.shard:
        home = homes.get(shard.id)
        changes: dict[str, Any] = {"primary": home.primary, "backup": home.backup} if home else {}
        if without and server_of(str(changes.get("backup", shard.backup))) == without:
            changes["backup"] = None
        if shard.reserve and _is_no_reserve(told, shard.reserve, {**shard.model_dump(), **changes}, without):
            changes["reserve"] = None
        shards.append(shard.model_copy(update={**changes, "epoch": max(shard.epoch, epochs.get(shard.id, 0))}))
    if lost := [str(shard.id) for shard in shards if without and server_of(shard.primary) == without]:
        remedy = f"krononat shard show {lost[0]}; a map of yours can name another primary: krononat shard map apply FILE"
        why = f"nobody has shard {', '.join(lost)} now, and the map means it to be there"
        raise client.Trouble(f"the map cannot do without {without}", why, remedy)
    cores = [core for core in told.core if core.server != without]
    return told.model_copy(update={"version": told.version + 1, "core": cores, "shard": shards})


def _is_no_reserve(told: Map, reserve: str, placed: dict[str, Any], without: str) -> bool:
    """Whether a shard's reserve leaves, or is in its room now."""
    rooms = told.rooms()
    return server_of(reserve) == without or rooms[reserve] in {rooms.get(placed[key] or "") for key in ("primary", "backup")}


def move_and_record(
    socket: str | None, view: moves.View, steps: Sequence[Step], timeout_s: float, form: str, what: str, without: str = ""
) -> None:
    """Carry a plan out, and write into the map where the shards of it are then, even if it came to an end too early."""
    with right_to_move(socket, what) as (told, lock):
        try:
            moves.carry_out_all(view, steps, timeout_s, form, lambda: held(lock))
        except client.Trouble:
            record(told, lock, moves.look(socket), {step.shard for step in steps})
            raise
        record(told, lock, moves.look(socket), {step.shard for step in steps}, without)


def record(told: Stored, lock: Lock, view: moves.View, shards: Collection[int], without: str = "") -> Stored:
    """The map says where these shards are; unchanged where it did already."""
    homes = {shard: home for shard, home in view.homes().items() if shard in shards}
    newer = placed(told.map, homes, {shard: epoch for shard, epoch in view.epochs().items() if shard in shards}, without)
    return told if newer.shard == told.map.shard and not without else put(told, lock, newer)


def wait_followed(socket: str | None, version: int, leaving: str = "") -> None:
    """Wait until all cores here go by the version; Trouble with what those say that do not."""
    until = time.monotonic() + FOLLOWED_WITHIN_S
    while True:
        behind = [each for each in asked(socket) if each["map"]["version"] < version and server_of(each["me"]) != leaving]
        if not behind:
            return
        if time.monotonic() > until:
            told = "; ".join(f"{each['me']}: {', '.join(each['map']['alarms']) or 'has not seen it'}" for each in behind)
            raise client.Trouble(f"not every core goes by version {version}", told, "krononat shard map", client.PARTIAL)
        time.sleep(moves.EVERY_S)


# --- commands ---------------------------------------------------------------------------------------------------------------


@click.group(name="map", cls=Group, invoke_without_command=True, epilog="Example: krononat shard map show -o json")
@click.pass_context
def group(context: click.Context) -> None:
    """Show the map that the cores go by; have them go by a newer one."""
    if context.invoked_subcommand is None:
        context.invoke(show, form="table", socket=None)


@group.command(epilog="Example: krononat shard map show")
@output_option()
@socket_option
def show(form: str, socket: str | None) -> None:
    """The map: version, store, by which version each core goes, where each shard is meant to be, and is."""
    from krononat import cluster as clusters

    answers = asked(socket)
    newest = max(answers, key=lambda each: each["map"]["version"])
    told = clusters.read(newest["text"])
    marks = {row["core"]: row["version"] for each in answers for row in client.rows(each["socket"], "marks")[1]}
    alarms = list(dict.fromkeys(f"{each['me']}: {alarm}" for each in answers for alarm in each["map"]["alarms"]))
    view = {row["shard"]: row for row in moves.look(socket).shards}
    rows = [_row(shard, view.get(shard.id, {})) for shard in told.shard]
    if form == "json":
        print_json({**newest["map"], "alarms": alarms, "marks": marks, "shards": rows})
        return
    store = ", ".join(newest["map"]["store"]) or newest["map"]["file"]
    reachable = "" if newest["map"]["reachable"] else " (does not answer: the map cannot be changed)"
    click.echo(f"version {told.version}, {len(told.core)} cores, {len(told.shard)} shards, kept in {store}{reachable}")
    behind = [f"{core} by {version}" for core, version in marks.items() if version not in (0, told.version)]
    click.echo(f"going by another version: {', '.join(behind)}\n" if behind else "every core that was heard goes by it\n")
    print_table(rows, [name for name in COLUMNS if name != "reserve" or any(shard.reserve for shard in told.shard)])
    for alarm in alarms:
        click.echo(f"krononat: alarm: {alarm}", err=True)


def _row(shard: Shard, now: dict[str, Any]) -> dict[str, Any]:
    places = {"primary": shard.primary, "backup": shard.backup or "-", "reserve": shard.reserve or "-"}
    told = {"shard": shard.id, **places, "epoch": shard.epoch}
    return {**told, "active": now.get("active") or "-", "passive": now.get("passive") or "-"}


@group.command(epilog="Example: krononat shard map apply new.toml --dry-run")
@click.argument("file", type=FILE)
@moves.yes_option
@moves.dry_run_option
@output_option()
@socket_option
def apply(file: Path, yes: bool, dry_run: bool, form: str, socket: str | None) -> None:
    """Have every core go by the map in FILE. Nothing that is forwarded changes by that.

    A shard stays where it is, but for its copy: that goes to the new backup by itself, where its primary has the shard.
    """
    have_applied(file, yes, dry_run, form, socket)


def have_applied(file: Path, yes: bool, dry_run: bool, form: str, socket: str | None) -> None:
    """Have every core go by the map in FILE, and wait until those here do. `form`: json, table, or none."""
    from krononat import cluster as clusters

    newer = clusters.load(file)
    told = stored(socket)
    changes = differences(told.map, newer)
    if told.seen.revision or newer != told.map:  # an empty store may be given what the cores go by
        check(told.map, newer, moves.look(socket), str(file))
    if dry_run:
        print_json({"from": told.map.version, "to": newer.version, "changes": changes})
        return
    question = f"Go from version {told.map.version} to {newer.version}?"
    moves.agree(question, yes, lambda: print_rows([{"change": each} for each in changes], ("change",), "table"))
    with right_to_move(socket, "shard map apply") as (now, lock):
        if now.seen != told.seen:
            raise mapstore.Changed("somebody else has written it meanwhile")
        now.store.write(file.read_text(errors="replace"), now.seen, lock)
    leaving = _gone(told.map, newer)
    wait_followed(socket, newer.version, leaving[0] if leaving else "")
    if form == "json":
        print_json({"version": newer.version, "changes": changes})
    elif form == "table":
        click.echo(f"every core here goes by version {newer.version}")


def _gone(before: Map, newer: Map) -> list[str]:
    return sorted({core.server for core in before.core} - {core.server for core in newer.core})


def differences(before: Map, newer: Map) -> list[str]:
    """What a newer map changes, in sentences."""
    from krononat import cluster as clusters

    found = [f"{name} joins" for name in newer.names() if name not in before.names()]
    found += [f"{name} leaves" for name in before.names() if name not in newer.names()]
    old = {shard.id: shard for shard in before.shard}
    for shard in newer.shard:
        known = old.get(shard.id)
        if known and (known.primary, known.backup) != (shard.primary, shard.backup):
            told = f"{known.primary}, {known.backup or 'no backup'} to {shard.primary}, {shard.backup or 'no backup'}"
            found.append(f"shard {shard.id}: from {told}")
        if known and known.reserve != shard.reserve:
            found.append(f"shard {shard.id}: its reserve is {shard.reserve or 'nobody'}, was {known.reserve or 'nobody'}")
    return found + [f"alarm: {each}" for each in clusters.alarms(newer)]


def check(before: Map, newer: Map, view: moves.View, name: str) -> None:
    """Trouble where a newer map would be refused by cores, or would take a shard from under its owner."""
    if newer.version <= before.version:
        told = f"it is version {newer.version}, the cores go by {before.version}"
        raise client.Trouble(f"{name} is not newer", told, f"write version = {before.version + 1} into it", client.BAD_CONFIG)
    if len(newer.shard) != len(before.shard):
        told = f"it has {len(newer.shard)} shards, the cores were started with {len(before.shard)}"
        raise client.Trouble(
            f"{name} cannot be gone by", told, "start every core with it, one after another", client.BAD_CONFIG
        )
    left = set(before.names()) - set(newer.names())
    alive = set(view.alive())
    for row in view.shards:
        if row["active"] in left & alive:
            told = f"{row['active']} has shard {row['shard']}, and is not in it"
            raise client.Trouble(f"{name} leaves out who is needed", told, f"krononat server leave {server_of(row['active'])}")
    new = set(newer.names()) - set(before.names())
    for shard in newer.shard:
        if at := new & {shard.primary, str(shard.backup)}:
            told = f"shard {shard.id} would be at {', '.join(sorted(at))}, who has nothing yet"
            remedy = "leave shards where they are in it; then krononat server join SERVER moves some there"
            raise client.Trouble(f"{name} gives shards to who is new", told, remedy, client.BAD_CONFIG)
