"""`krononat pool`: how much of the external addresses is in use, and which there are."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from krononat import client, deterministic, history
from krononat import config as configuration
from krononat.cli.groups import Group
from krononat.cli.output import open_memory, output_option, print_changes, print_facts, print_json, print_rows, socket_option
from krononat.values import Endpoint, read_address

if TYPE_CHECKING:
    from krononat.deterministic import Owner, Portion
    from shards.state import State

COLUMNS = (
    "name",
    "addresses",
    "first",
    "last",
    "block_size",
    "blocks",
    "blocks_free",
    "use_percent",
    "subscribers",
    "ports_used",
    "closed",
    "room",
)


config_option = click.option(
    "-c",
    "--config",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="The file that is, or was, in force; with --at a folder of files named after the time since when.",
)
dry_option = click.option("-n", "--dry-run", is_flag=True, help="Only say what would change.")
at_option = click.option("--at", metavar="TIME", help="When: ISO 8601, UTC unless it says otherwise; -c is a folder then.")


class Internal(click.ParamType[IPv4Address]):
    """An internal address."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Address:
        """The address; usage errors end with exit status 2."""
        try:
            return read_address(value)
        except ValueError as wrong:
            self.fail(f"{value!r} {wrong}", param, ctx)


class External(click.ParamType[Endpoint]):
    """An external endpoint."""

    name = "address:port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Endpoint:
        """Address and port; usage errors end with exit status 2."""
        if isinstance(value, Endpoint):
            return value
        host, _, port = str(value).rpartition(":")
        if not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            self.fail(f"{value!r} is not ADDRESS:PORT, 203.0.113.7:4711 say", param, ctx)
        return Endpoint(Internal().convert(host, param, ctx), int(port))


@click.group(cls=Group)
def pool() -> None:
    """Show the use of external addresses and ports, and whose they are; add, drain and exclude addresses."""


@pool.command("list", epilog="Example: krononat pool list")
@output_option("jsonl")
@socket_option
def list_(form: str, socket: str | None) -> None:
    """Every pool in a line."""
    print_rows(_pools(open_memory(socket), socket), COLUMNS, form)


@pool.command(epilog="Example: krononat pool show main -o json")
@click.argument("name", required=False)
@output_option()
@socket_option
def show(name: str | None, form: str, socket: str | None) -> None:
    """One pool with its addresses in use; without NAME all pools."""
    from krononat import view

    state = open_memory(socket)
    pools = [row for row in _pools(state, socket) if name in (None, row["name"])]
    if not pools:
        names = ", ".join(row["name"] for row in _pools(state, socket))
        raise client.Trouble(f"there is no pool {name!r}", f"there is {names}", "krononat pool list", client.NOT_FOUND)
    for row in pools:
        used = [
            address._asdict() for address in view.addresses(state, row["number"]) if address.blocks_used or address.ports_used
        ]
        row["in_use"] = used
    if form == "json":
        print_json(pools)
        return
    for row in pools:
        used = row.pop("in_use")
        print_facts({"pool": row.pop("name"), **row})
        click.echo("")
        print_rows(used, ("address", "blocks_used", "subscribers", "ports_used", "use"), form)


# --- verbs of the same shape: what is in a pool, and what of it is handed out ----------------------------------------------


def _change(verb: str, name: str, prefixes: tuple[str, ...], dry_run: bool, form: str, socket: str | None) -> None:
    """Carry out what is about a pool's prefixes; the appliance knows the verbs (`growth.VERBS`)."""
    request = {"do": "pool", "verb": verb, "pool": name, "prefixes": list(prefixes), "dry": dry_run}
    print_changes(client.ask(client.find_socket(socket), request), form)


def _close(verb: str, addresses: tuple[str, ...], dry_run: bool, form: str, socket: str | None) -> None:
    """Carry out what is about single addresses, and show what is left there."""
    from krononat import view

    request = {"do": "close", "addresses": list(addresses), "undo": verb == "undrain", "dry": dry_run}
    answer = client.ask(client.find_socket(socket), request)
    if dry_run:
        print_changes(answer, form)
        return
    print_rows(view.left(open_memory(socket), addresses), ("address", "use", "mappings", "sessions"), form)


class _Verb(NamedTuple):
    """A command: its arguments and options, what carries it out, and the key of the file that makes it last."""

    parameters: tuple[Callable[[Any], Any], ...]
    carry_out: Callable[..., None]
    key: str
    example: str
    about: str


_OF_A_POOL = (
    click.argument("name"), click.argument("prefixes", nargs=-1, required=True), dry_option, output_option(), socket_option,
)  # fmt: skip
_OF_ADDRESSES = (
    click.argument("addresses", nargs=-1, required=True), dry_option, output_option("jsonl"), socket_option,
)  # fmt: skip
_VERBS = {
    "add": _Verb(
        _OF_A_POOL, _change, "prefixes", "main 203.0.113.64/26 --dry-run",
        "Hand out the addresses of PREFIXES, too, from pool NAME: nothing that lives is touched.\n\n"
        "There is room for as many as `spare-addresses` of the pool says (`room` of `krononat pool show`). They are announced "
        "first. ",
    ),
    "remove": _Verb(
        _OF_A_POOL, _change, "prefixes", "main 203.0.113.64/26 --dry-run",
        "Take PREFIXES, or parts of prefixes, out of pool NAME: they must be drained, and empty.\n\n",
    ),
    "exclude": _Verb(
        _OF_A_POOL, _change, "exclude", "main 203.0.113.0 203.0.113.255",
        "Hand out PREFIXES, or addresses, of pool NAME no more; whoever is paired with them stays until his last mapping "
        "ends.\n\n",
    ),
    "include": _Verb(
        _OF_A_POOL, _change, "exclude", "main 203.0.113.255",
        "Hand out PREFIXES of pool NAME again, or addresses of them, that were excluded.\n\n",
    ),
    "drain": _Verb(
        _OF_ADDRESSES, _close, "drain", "203.0.113.7",
        "Pair nobody with ADDRESSES anew; whoever is paired with them stays so until his last mapping ends.\n\n"
        "Prints what is left there; ask again to see it shrink. ",
    ),
    "undrain": _Verb(_OF_ADDRESSES, _close, "drain", "203.0.113.7", "Hand out ADDRESSES again.\n\n"),
}  # fmt: skip


def _command(name: str, verb: _Verb) -> None:
    """Add a verb to the group."""
    lasts = f"It holds until the appliance is started again; `{verb.key}` of the pool in the file makes it last."
    body: Any = functools.partial(verb.carry_out, name)
    for parameter in reversed(verb.parameters):
        body = parameter(body)
    pool.command(name, help=verb.about + lasts, epilog=f"Example: krononat pool {name} {verb.example}")(body)


for _name, _verb in _VERBS.items():
    _command(_name, _verb)


# --- whose a port is, by the file alone -------------------------------------------------------------------------------------


@pool.command(epilog="Example: krononat pool forward 100.64.3.9 -c nat1.toml")
@click.argument("subscriber", type=Internal())
@config_option
@at_option
@output_option()
def forward(subscriber: IPv4Address, path: Path, at: str | None, form: str) -> None:
    """Which external ports SUBSCRIBER, an internal address, has by a configuration file (RFC 7422); no appliance is asked."""
    path = _file(path, at)
    read = configuration.load(path)
    portion = deterministic.forward(read, subscriber)
    if portion is None:
        groups = [group for group in read.subscribers if subscriber in group.prefix]
        why = f"pool {groups[0].pool!r} is dynamic: `krononat events` knows" if groups else "he is in no subscriber prefix"
        raise client.Trouble(f"{subscriber} has no ports by {path}", why, "krononat config show FILE", client.NOT_FOUND)
    _tell({"file": str(path), "subscriber": str(subscriber), **_said(portion)}, form)


@pool.command(epilog="Example: krononat pool reverse 203.0.113.7:4711 -c nat1.toml -o json")
@click.argument("endpoint", type=External(), metavar="ADDRESS:PORT")
@click.option("-p", "--protocol", type=click.Choice(("tcp", "udp")), help="For static mappings; default: of either.")
@config_option
@at_option
@output_option()
def reverse(endpoint: Endpoint, protocol: str | None, path: Path, at: str | None, form: str) -> None:
    """Whose the external ADDRESS:PORT is, or was when the file was in force (RFC 7422); no appliance is asked.

    `kind` says why: deterministic, static (a mapping of the file), dynamic (only the log of blocks knows whose it was at a
    time), or unused: it is nobody's. Exit status 1 where no subscriber can be named.
    """
    path = _file(path, at)
    owner = deterministic.reverse(configuration.load(path), endpoint.address, endpoint.port, protocol or "")
    if owner is None:
        raise client.Trouble(f"{endpoint.address} is in no pool", f"of {path}", "krononat config show FILE", client.NOT_FOUND)
    _tell({"file": str(path), "external": str(endpoint), **_said(owner)}, form)
    if owner.subscriber is None:
        raise SystemExit(1)


def _file(path: Path, at: str | None) -> Path:
    """The file that is asked."""
    if at is None and path.is_dir():
        raise click.UsageError(f"{path} is a folder: say by --at of which moment")
    if at is None:
        return path
    if not path.is_dir():
        raise click.UsageError(f"--at chooses from a folder of files, and {path} is none")
    try:
        moment = history.read_moment(at)
    except (ValueError, OverflowError) as wrong:
        raise click.BadParameter(str(wrong), param_hint="--at") from None
    return history.in_force(path, moment)


def _said(told: Portion | Owner) -> dict[str, Any]:
    """As JSON has it: addresses are text."""
    return {key: value if isinstance(value, int | None) else str(value) for key, value in told._asdict().items()}


def _tell(told: dict[str, Any], form: str) -> None:
    if form == "json":
        print_json(told)
    else:
        print_facts(
            {key: value if isinstance(value, str) else "nobody" if value is None else str(value) for key, value in told.items()}
        )


def _pools(state: State, socket: str | None) -> list[dict[str, Any]]:
    from krononat import view

    names = _names(socket)
    return [
        {"name": names.get(row.number, str(row.number)), **row._asdict(), "use_percent": _percent(row.blocks, row.blocks_free)}
        for row in view.pools(state)
    ]


def _percent(blocks: int, free: int) -> float:
    return round(100 * (blocks - free) / blocks, 1) if blocks else 0.0


def _names(socket: str | None) -> dict[int, str]:
    """Names of the pools; the state's memory knows numbers only."""
    answer = client.ask(client.find_socket(socket), {"do": "config"})
    return {number: row["name"] for number, row in enumerate(tomllib.loads(answer["config"])["pool"])}
