"""`krononat compile`: every compiled path, ahead of the first packet."""

from __future__ import annotations

import time

import click

from krononat.cli.output import output_option, print_json


@click.command(epilog="Example: krononat compile")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
@output_option()
def compile(quiet: bool, form: str) -> None:
    """Fill the compiler's cache, so that no packet ever waits for it; a full cache is read in seconds.

    The cache is in $KRONONAT_CACHE, or in ~/.cache/krononat.
    """
    from rich.console import Console
    from rich.progress import Progress

    from krononat import warm
    from shards import jit

    begin = time.monotonic()
    console = Console(stderr=True)
    with Progress(console=console, disable=quiet or form == "json") as bar:
        task = bar.add_task("compiling", total=len(warm.STEPS))
        warm.compile(lambda name, done, _: bar.update(task, completed=done, description=f"compiling {name}"))
    told = {"steps": len(warm.STEPS), "seconds": round(time.monotonic() - begin, 1), "cache": str(jit.cache_folder())}
    if form == "json":
        print_json(told)
    else:
        click.echo(f"{told['steps']} steps in {told['seconds']} s; cache: {told['cache']}")
