"""`krononat cluster`: what has to be there before cores can speak to each other."""

from __future__ import annotations

from pathlib import Path

import click

from krononat import client
from krononat.cli.groups import Group
from krononat.cli.output import output_option, print_json, print_rows

FILE = click.Path(path_type=Path)


@click.group(cls=Group)
def cluster() -> None:
    """Make the key of a core, check the map of a cluster."""


@cluster.command(epilog="Example: krononat cluster key /etc/krononat/s1-0.key   (prints what stands behind `key =` in the map)")
@click.argument("file", type=FILE)
@output_option()
def key(file: Path, form: str) -> None:
    """Make the secret key of a core in FILE (mode 0600), and print the public one, for the map.

    An existing FILE is left as it is: its public key is printed again.
    """
    from replication import keys

    try:
        if not file.exists():
            keys.write(file, keys.generate())
        public = keys.read(file).public.decode()
    except (OSError, ValueError) as error:
        raise client.Trouble(f"{file} is no key of a core", _why(error), "name another file", client.BAD_CONFIG) from None
    print_json({"file": str(file), "key": public}) if form == "json" else click.echo(public)


def _why(error: OSError | ValueError) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


@cluster.command(epilog="Example: krononat cluster check /etc/krononat/map.toml -c /etc/krononat/s1-0.toml")
@click.argument("file", type=FILE)
@click.option("-c", "--config", "path", type=FILE, help="Configuration of a core: do it and its key agree with the map?")
@output_option()
def check(file: Path, path: Path | None, form: str) -> None:
    """Print who has which shard by the map in FILE; or what is wrong with it, and exit with 78."""
    from krononat import cluster as clusters
    from krononat import config as configuration

    told = clusters.load(file)
    if path:
        config = configuration.load(path)
        found = list(clusters.strangers(config, told))
        if found:
            raise configuration.ConfigError(str(file), file.read_text(), found)
        if config.cluster is None:
            why = f"{path} has no [cluster]"
            raise client.Trouble("this core would be alone", why, "krononat config explain cluster", client.BAD_CONFIG)
        clusters.own_key(config, told)
    if form == "json":
        print_json(told.model_dump(mode="json"))
        return
    print_rows([shard.model_dump() for shard in told.shard], ("id", "primary", "backup", "epoch"), form)
