"""`krononat sessions`: what conntrack users expect, in their words where those are good."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any, TypeVar

import click

from krononat import client
from krononat.cli.groups import Group
from krononat.cli.output import open_memory, output_option, print_facts, print_json, print_rows, print_table, socket_option
from shards import protocols

if TYPE_CHECKING:
    from krononat.view import Filter, Session

Command = TypeVar("Command", bound=Callable[..., Any])

COLUMNS = ("id", "proto", "internal", "external", "remote", "state", "age_s", "expires_s", "packets")
NUMBERS = protocols.BY_NAME
CONNTRACK_STATES = {
    "init": "SYN_SENT",
    "init_in": "SYN_RECV",
    "answered": "SYN_RECV",
    "established": "ESTABLISHED",
    "fin_out": "FIN_WAIT",
    "fin_in": "CLOSE_WAIT",
    "closing": "TIME_WAIT",
    "reset": "CLOSE",
}
STATES = (*CONNTRACK_STATES, "udp", "query", "generic")
AT_ONCE = 4096  # sessions ended by one request


class Prefix(click.ParamType[IPv4Network | IPv6Network]):
    """An address or prefix."""

    name = "prefix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Network | IPv6Network:
        """Read it; bits beyond the length are ignored."""
        try:
            return ip_network(value, strict=False)
        except ValueError:
            self.fail(f"{value!r} is not an address or prefix", param, ctx)


PORT = click.IntRange(0, 65535)


def filtering(command: Command) -> Command:
    """The filters, given to the command as `wanted`."""
    options = (
        click.option("-p", "--proto", type=click.Choice(tuple(NUMBERS)), help="Protocol."),
        click.option("-s", "--src", type=Prefix(), help="Internal address or prefix."),
        click.option("-d", "--dst", type=Prefix(), help="Remote address or prefix."),
        click.option("--sport", type=PORT, help="Internal port (ICMP: identifier)."),
        click.option("--dport", type=PORT, help="Remote port."),
        click.option("--nat-src", type=Prefix(), help="External address or prefix."),
        click.option("--nat-port", type=PORT, help="External port."),
        click.option("--state", type=click.Choice(STATES), help="State."),
        click.option("--subscriber", type=Prefix(), help="The subscriber's address or prefix; as --src."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _filter(given: dict[str, Any]) -> Filter:
    """Filter of the options' values."""
    from krononat.view import Filter

    source, subscriber = given["src"], given["subscriber"]
    if source and subscriber:
        if source.version != subscriber.version or not source.overlaps(subscriber):
            raise click.UsageError(f"no session is of both --src {source} and --subscriber {subscriber}")
        source = max(source, subscriber, key=lambda prefix: prefix.prefixlen)
    return Filter(
        NUMBERS.get(given["proto"]),
        source or subscriber,
        given["dst"],
        given["sport"],
        given["dport"],
        given["nat_src"],
        given["nat_port"],
        given["state"],
    )


@click.group(cls=Group)
def sessions() -> None:
    """List, count, show or delete sessions."""


@sessions.command("list", epilog="Example: krononat sessions list -p tcp --subscriber 100.64.0.7 --dport 443 -o jsonl")
@filtering
@click.option("--limit", type=click.IntRange(1), default=1000, show_default=True, help="At most so many.")
@click.option("--all", "everything", is_flag=True, help="No limit.")
@output_option("jsonl", "conntrack")
@socket_option
def list_(limit: int, everything: bool, form: str, socket: str | None, **given: Any) -> None:
    """Sessions that fit all filters, in the order of their rows."""
    from krononat import view

    found = view.sessions(open_memory(socket), _filter(given))
    shown = itertools.islice(found, None if everything else limit)
    if form == "conntrack":
        for session in shown:
            click.echo(conntrack(session))
    else:
        print_rows(map(_row if form == "table" else _facts, shown), COLUMNS, form)
    if not everything and next(found, None) is not None:
        click.echo(f"krononat: more than {limit} fit; --all shows them", err=True)


@sessions.command(epilog="Example: krononat sessions count --state established")
@filtering
@output_option()
@socket_option
def count(form: str, socket: str | None, **given: Any) -> None:
    """How many sessions fit all filters."""
    from krononat import view

    number = view.count_sessions(open_memory(socket), _filter(given))
    print_json({"sessions": number}) if form == "json" else click.echo(number)


@sessions.command(epilog="Example: krononat sessions show 17")
@click.argument("id", type=int)
@output_option()
@socket_option
def show(id: int, form: str, socket: str | None) -> None:
    """One session, by the ID that `list` prints."""
    from krononat import view

    session = view.session(open_memory(socket), id)
    if session is None:
        raise client.Trouble(f"there is no session {id}", "it ended, or never was", "krononat sessions list", client.NOT_FOUND)
    print_json(_facts(session)) if form == "json" else print_facts(_facts(session))


@sessions.command(epilog="Example: krononat sessions delete --subscriber 100.64.0.7 --yes")
@filtering
@click.option("--all", "everything", is_flag=True, help="Every session; needed where no filter is given.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Print the plan as JSON and change nothing.")
@output_option()
@socket_option
def delete(everything: bool, yes: bool, dry_run: bool, form: str, socket: str | None, **given: Any) -> None:
    """End the sessions that fit all filters; their connections stop working."""
    from krononat import view

    if not everything and not any(value is not None for value in given.values()):
        raise click.UsageError("give a filter, or --all for every session")
    found = list(view.sessions(open_memory(socket), _filter(given)))
    if dry_run:
        print_json({"delete": [_facts(session) for session in found]})
        return
    if not found:
        raise client.Trouble("no session fits", "nothing was changed", "krononat sessions list", client.NOT_FOUND)
    _agree(found, yes)
    ended = sum(
        client.delete(client.find_socket(socket), [(session.line, session.generation) for session in found[at : at + AT_ONCE]])
        for at in range(0, len(found), AT_ONCE)
    )
    told = {"chosen": len(found), "deleted": ended}
    print_json(told) if form == "json" else click.echo(f"{ended} of {len(found)} sessions deleted")
    if ended < len(found):
        raise client.Trouble(f"{len(found) - ended} sessions were gone already", "they ended meanwhile", "", client.PARTIAL)


def _agree(found: list[Session], yes: bool) -> None:
    """Show the plan and have it agreed to."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise client.Trouble(
            f"{len(found)} sessions would end", "nobody is there to agree", "say --yes, or --dry-run to see them"
        )
    print_table(map(_row, found[:20]), COLUMNS)
    if len(found) > 20:
        click.echo(f"... and {len(found) - 20} more")
    click.confirm(f"End {len(found)} sessions?", abort=True)


def _facts(session: Session) -> dict[str, Any]:
    return {"id": session.line, **{key: value for key, value in session._asdict().items() if key != "line"}}


def _row(session: Session) -> dict[str, Any]:
    """A session as a table shows it: endpoints in one cell."""
    return {
        "id": str(session.line),
        "proto": session.protocol,
        "internal": _endpoint(session, session.internal, session.internal_port),
        "external": _endpoint(session, session.external, session.external_port),
        "remote": _endpoint(session, session.remote, session.remote_port),
        "state": session.state,
        "age_s": session.age_s,
        "expires_s": session.expires_s,
        "packets": session.packets,
    }


def _has_ports(session: Session) -> bool:
    """Generic protocols have none to us; to IPv6, which is not translated, some have."""
    return session.protocol in ("icmp", "icmp6", "tcp", "udp") or session.internal_port != 0 or session.remote_port != 0


def _endpoint(session: Session, address: str, port: int) -> str:
    if not _has_ports(session):
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def conntrack(session: Session) -> str:
    """A session as `conntrack -L` prints it, for scripts that read that."""
    number = protocols.number(session.protocol)
    state = CONNTRACK_STATES.get(session.state)
    head = [f"{session.protocol:<8} {number} {session.expires_s}", *([state] if state else [])]
    asked, answered = _tuples(session)
    assured = "" if session.state in ("init", "init_in", "answered") else " [ASSURED]"
    return f"{' '.join(head)} {asked} {answered}{assured} mark={session.shard} use=1"


def _tuples(session: Session) -> Iterator[str]:
    if session.protocol in ("icmp", "icmp6"):
        asks, answers = (8, 0) if session.protocol == "icmp" else (128, 129)
        yield f"src={session.internal} dst={session.remote} type={asks} code=0 id={session.internal_port}"
        yield f"src={session.remote} dst={session.external} type={answers} code=0 id={session.external_port}"
    elif not _has_ports(session):
        yield f"src={session.internal} dst={session.remote}"
        yield f"src={session.remote} dst={session.external}"
    else:
        yield f"src={session.internal} dst={session.remote} sport={session.internal_port} dport={session.remote_port}"
        yield f"src={session.remote} dst={session.external} sport={session.remote_port} dport={session.external_port}"
