"""`krononat metrics`: figures of the cores of this machine for Prometheus."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence

import click

from krononat import client

LISTEN = "127.0.0.1:9642"


def _address(_: click.Context, __: click.Parameter, told: str) -> tuple[str, int]:
    """Callback of --listen."""
    host, _colon, port = told.rpartition(":")
    if not host or not port.isdigit() or not int(port) < 1 << 16:
        raise click.BadParameter(f"{told!r} is not ADDRESS:PORT, {LISTEN} say, or [::1]:9642")
    return host.strip("[]"), int(port)


@click.command(epilog="Example: krononat metrics --once | grep krononat_shard")
@click.option(
    "--listen", default=LISTEN, show_default=True, callback=_address, metavar="ADDRESS:PORT", help="Where Prometheus scrapes."
)
@click.option("--once", is_flag=True, help="Print the figures and end.")
@click.option(
    "--socket", "given", multiple=True, envvar="KRONONAT_SOCKET", metavar="PATH",
    help="Control socket of a core, several times for several; default: all in /run/krononat, looked for at each scrape.",
)  # fmt: skip
def metrics(listen: tuple[str, int], once: bool, given: tuple[str, ...]) -> None:
    """Serve /metrics until it is ended: packets, drops, sessions, pools, shards, copies, moves; names begin with krononat_."""
    from prometheus_client import CollectorRegistry, generate_latest

    from krononat.metrics import Metrics

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Metrics(lambda: _paths(given)))
    if once:
        client.find_socket(given[0]) if given else _need_any()
        click.echo(generate_latest(registry).decode(), nl=False)
        return
    _serve(registry, *listen)


def _paths(given: Sequence[str]) -> Sequence[str]:
    return given or sorted(str(path) for path in client.FOLDER.glob("*.sock"))


def _need_any() -> None:
    """Trouble where no core runs here: a person asks, who wants to know why nothing comes."""
    if not _paths(()):
        client.find_socket()


def _serve(registry: object, host: str, port: int) -> None:
    from prometheus_client import start_http_server

    try:
        server, thread = start_http_server(port, host, registry)  # type: ignore[arg-type]
    except OSError as error:
        told, remedy = f"{host}:{port}: {error.strerror}", "choose another one with --listen"
        raise client.Trouble("metrics cannot be served", told, remedy) from None
    click.echo(f"krononat: metrics at http://{host}:{server.server_port}/metrics", err=True)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    ended.wait()
    server.shutdown()
    thread.join()
