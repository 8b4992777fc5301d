"""Groups of commands: loaded on use, and shortened to any unique beginning, as in BIRD's client."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click
from click.exceptions import NoSuchCommand


class Group(click.Group):
    """A group whose commands may be shortened to a unique beginning."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Command of that name, or the only one that begins so."""
        names = self.list_commands(ctx)
        if cmd_name not in names:
            matching = [name for name in names if name.startswith(cmd_name)]
            if len(matching) > 1:
                told = f"{', '.join(matching[:-1])} or {matching[-1]}"
                ctx.fail(f"{cmd_name!r} may be {told}: type as much of it as tells them apart.")
            if not matching:
                return None
            cmd_name = matching[0]
        return self.load(cmd_name)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """Command that `args` begin with; where there is none, those that are near are told, loaded or not."""
        try:
            return super().resolve_command(ctx, args)
        except NoSuchCommand as error:
            raise NoSuchCommand(error.command_name, possibilities=self.list_commands(ctx), ctx=ctx) from None

    def load(self, name: str) -> click.Command | None:
        """Command of exactly that name."""
        return self.commands.get(name)


class Lazy(Group):
    """A group that knows where its commands are, (module:attribute, short help) each, and imports the one that is used."""

    def __init__(self, name: str, places: Mapping[str, tuple[str, str]], **settings: Any) -> None:
        super().__init__(name, **settings)
        self.places = places

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which they are told."""
        return list(self.places)

    def load(self, name: str) -> click.Command | None:
        """Import the command's module."""
        module, _, attribute = self.places[name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Help from the table alone: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, told) for name, (_, told) in self.places.items()])
