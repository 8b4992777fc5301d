"""`krononat trace`: what would become of this packet, and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from krononat import client
from krononat.cli.output import output_option, print_json, print_table, socket_option

if TYPE_CHECKING:
    from krononat.appliance import ScopedRule
    from krononat.models import Config
    from shards.state import State


@click.command(epilog="Example: krononat trace 'udp 100.64.0.2:4000 > 198.51.100.9:53'")
@click.argument("expression", nargs=-1, required=True, metavar="PACKET")
@click.option("--from", "side", type=click.Choice(("internal", "external")), help="Side it comes from; default: by its source.")
@click.option(
    "-c", "--config", "path", type=click.Path(path_type=Path), help="Trace through this configuration, not a running core."
)
@output_option()
@socket_option
def trace(expression: tuple[str, ...], side: str | None, path: Path | None, form: str, socket: str | None) -> None:
    """Follow one packet through a copy of the running core's state, stage by stage; nothing is changed.

    PACKET is `udp SOURCE:PORT > DESTINATION:PORT`, `tcp [syn,ack,...] ...` or `icmp [echo|echo-reply] SOURCE > DESTINATION`,
    then `ttl N`, `length N`, `id N` as wanted. Quote it: the shell would take the arrow.
    """
    from krononat.packet import read_packet

    packet = read_packet(" ".join(expression))
    os.environ["NUMBA_DISABLE_JIT"] = "1"  # before anything of the packet path is imported
    from krononat import clock
    from krononat import trace as tracing
    from shards.state import EXTERNAL, INTERNAL

    state, config = _offline(path, clock.ticks()) if path else _running(socket)
    now = clock.now(state)
    came = {"internal": INTERNAL, "external": EXTERNAL}[side] if side else tracing.side_of(state, packet)
    told = tracing.trace(state, packet, came, _rules(config), now)
    if form == "json":
        print_json(
            {
                "stages": [stage._asdict() for stage in told.stages],
                "verdict": told.verdict._asdict(),
                "sent": told.sent,
            }
        )
        return
    print_table([stage._asdict() for stage in told.stages], ("stage", "told"))
    click.echo(f"\nverdict: {told.verdict.name}: {told.verdict.sentence}")
    if told.verdict.remedy and "krononat trace" not in told.verdict.remedy:
        click.echo(f"remedy:  {told.verdict.remedy}")


def _running(socket: str | None) -> tuple[State, Config]:
    """Copy of the running core's state, and its configuration."""
    from krononat import config as configuration
    from krononat import trace as tracing

    path = client.find_socket(socket)
    config = configuration.read(client.ask(path, {"do": "config"})["config"], "running configuration")
    descriptor = client.memory(path)
    try:
        return tracing.copy_of(descriptor), config
    except ValueError as error:
        raise client.Trouble("this program cannot read the core's memory", str(error), "use the program that runs it") from None
    finally:
        os.close(descriptor)


def _offline(path: Path, now: int) -> tuple[State, Config]:
    """A core as it would be at its start with this configuration."""
    from krononat import appliance
    from krononat import config as configuration
    from krononat import trace as tracing

    config = configuration.load(path)
    state = appliance.offline(config)
    tracing.settle_in(state, now)
    return state, config


def _rules(config: Config) -> list[str]:
    """Every rule in the order of its number, as the configuration says it."""
    from krononat import appliance

    return [_told(scoped) for scoped in appliance.rules(config)]


def _told(scoped: ScopedRule) -> str:
    values = scoped.rule.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    owner = f" (of {scoped.scope})" if scoped.scope else ""
    return ", ".join(f"{key} {value}" for key, value in values.items()) + owner
