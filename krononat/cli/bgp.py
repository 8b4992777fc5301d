"""`krononat bgp`: what the network is told of the cores of this server, and whether it listens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from krononat import client, cluster, speaking
from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_json, print_rows
from krononat.config import Config, load
from routing import announcements
from routing.speaker.ask import ask

FILES = click.Path(exists=True, dir_okay=False, path_type=Path)
ROUTES = ("core", "situation", "domain", "prefix", "med", "prepend", "communities", "large_communities")
SAID = ("core", "session", "prefix", "next_hop", "med", "prepend", "communities", "large_communities", "acknowledged")
SESSIONS = ("peer", "local", "as", "state", "since_s", "ups", "why")
CORES = ("core", "state", "since_s", "wanted", "acknowledged", "alarms")

speaker_socket = click.option(
    "--socket", envvar="KRONONAT_SPEAKER", metavar="PATH", help="Socket of the speaker; default: the only one in /run/krononat."
)


@click.group(cls=Group)
def bgp() -> None:
    """Show what the network is told, and whether it listens."""


@bgp.command(epilog="Example: krononat bgp routes --plan -c /etc/krononat/s1-0.toml   (needs no daemon)")
@click.option("-c", "--config", "paths", type=FILES, multiple=True, help="Configuration of a core; several times for several.")
@click.option("--plan", "planned", is_flag=True, help="What these cores would announce, in each situation; asks nobody.")
@click.option("--situation", "only", type=click.Choice([each.name for each in announcements.SITUATIONS]), help="Only this one.")
@output_option("jsonl")
@speaker_socket
def routes(paths: Sequence[Path], planned: bool, only: str | None, form: str, socket: str | None) -> None:
    """Every route that is announced now, or with --plan would be."""
    if planned:
        if not paths:
            raise click.UsageError("--plan needs the configuration of a core: -c FILE")
        rows = [row for path in paths for row in plan(load(path), only)]
        return print_rows([_told(row) for row in rows] if form == "table" else rows, ROUTES, form)
    cores = [load(path).core_name for path in paths]
    found = [row for row in _ask(_socket(socket, paths), "routes")[0] if not cores or row["core"] in cores]
    print_rows([_told(row) for row in found] if form == "table" else found, SAID, form)


def plan(config: Config, only: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows of what a core would announce, by situation."""
    if config.bgp is None:
        why, remedy = f"{config.core_name} has no [bgp] table", "krononat config explain bgp"
        raise client.Trouble("nothing is announced", why, remedy, client.BAD_CONFIG)
    told = cluster.load(config.cluster.map) if config.cluster else None
    standings, policy = speaking.standings(config, told), speaking.policy(config.bgp)
    for situation in announcements.SITUATIONS:
        if only in (None, situation.name):
            for route in announcements.in_situation(situation, standings, policy):
                yield {"core": config.core_name, "situation": situation.name, **route._asdict()}


@bgp.command(epilog="Example: krononat bgp status --check   (exits with 1 where a session is down or a core is not heard)")
@click.option("--check", is_flag=True, help="Exit with 1 where a session is down, a core is not heard, or an alarm stands.")
@click.option("-c", "--config", "paths", type=FILES, multiple=True, help="Configuration of a core, to find the socket by.")
@output_option()
@speaker_socket
def status(check: bool, paths: Sequence[Path], form: str, socket: str | None) -> None:
    """Sessions with the switches, cores that are heard, what ExaBGP refused; alarms, in words."""
    path = _socket(socket, paths)
    sessions, about = _ask(path, "sessions")
    cores, _ = _ask(path, "cores")
    for row in (*sessions, *cores):
        row["since_s"] = row.pop("since_ms") // 1000
    alarms = list(_alarms(sessions, cores, about))
    if form == "json":
        print_json({"sessions": sessions, "cores": cores, "alarms": alarms, **about})
    else:
        print_rows([{**row, "state": "up" if row["up"] else "down"} for row in sessions], SESSIONS, form)
        click.echo()
        print_rows([_told(row) for row in cores], CORES, form)
    for alarm in alarms:
        click.echo(f"krononat: alarm: {alarm}", err=True)
    if check and alarms:
        raise SystemExit(1)


def _alarms(sessions: list[dict[str, Any]], cores: list[dict[str, Any]], about: dict[str, Any]) -> Iterator[str]:
    for row in sessions:
        if not row["up"]:
            which = f"session of {row['local']} with {row['peer']} (AS {row['as']})"
            yield f"{which} is down for {row['since_s']:,} s: {row['why']}"
    for row in cores:
        if row["state"] != "alive":
            yield f"core {row['core']} is {row['state']} for {row['since_s']:,} s: nothing of it is announced"
        if row["untold"]:
            yield f"core {row['core']}: {row['untold']} routes have no session, or no IPv6 next hop (`next-hop6`)"
        yield from (f"core {row['core']}: {alarm}" for alarm in row["alarms"])
    if about["refused"]:
        yield f"ExaBGP refused {about['refused']:,} commands, the last one about {about['last_refusal']}"


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """Lists as words."""
    return {key: " ".join(map(str, value)) or "-" if isinstance(value, list | tuple) else value for key, value in row.items()}


def _socket(given: str | None, paths: Sequence[Path]) -> str:
    """Path of the speaker's socket: given, by a configuration, or the only one there is."""
    if given or paths:
        return given or load(paths[0]).speaker_socket
    found = sorted(map(str, client.FOLDER.glob("*.bgp")))
    if len(found) == 1:
        return found[0]
    why = ", ".join(found) or f"{client.FOLDER} holds no socket of a speaker"
    what = "several speakers are running here" if found else "no speaker is running here"
    raise client.Trouble(what, why, "`krononat speaker run CONFIG...` starts one; --socket names one", client.NOT_REACHABLE)


def _ask(path: str, what: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    try:
        return ask(path, what)
    except TimeoutError:
        raise client.Trouble("the speaker does not answer", f"nothing came from {path}", status=client.TIMED_OUT) from None
    except PermissionError:
        raise client.Trouble("you may not ask the speaker", f"{path} is root's", "run as root", client.NO_PRIVILEGE) from None
    except OSError as error:
        remedy = "start it with `krononat speaker run CONFIG...`, or name its socket with --socket"
        why = f"{path}: {error.strerror}"
        raise client.Trouble("the speaker cannot be reached", why, remedy, client.NOT_REACHABLE) from None
    except ValueError as error:
        raise client.Trouble("the speaker's answer makes no sense", str(error), status=client.NOT_REACHABLE) from None
