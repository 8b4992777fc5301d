"""What is right of a configuration with wrong fields, so that the rules between fields can still be looked at.

Whatever is wrong is left out where it has a default, and replaced by a stand-in where it must be there. A stand-in collides
with nothing; a complaint that something is absent or does not fit names what it rests on (`Complaint.needs`), and is not told
if that was wrong.
"""

from __future__ import annotations

import copy
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from krononat.fields import field_at, meant, model_of
from krononat.locate import Path
from krononat.models import SIDES, Config
from krononat.values import Endpoint, Protocol

ROUNDS = 8  # a table that stands in has fields that must be there, and so on; deeper than the models are nested

NOWHERE = IPv4Address(0)  # "this host" (RFC 6890): in no prefix that is accepted
STAND_INS = {
    IPv4Address: NOWHERE,
    IPv4Network: IPv4Network(NOWHERE),
    IPv4Interface: IPv4Interface(NOWHERE),
    IPv6Network: IPv6Network("::/128"),
    Endpoint: Endpoint(NOWHERE, 0),
    str: "stand-in",
    Protocol: Protocol("tcp"),
}


class Mended(NamedTuple):
    """A configuration (None: beyond mending), what was wrong with it at first, and every path whose value is not the file's.

    `values` are the file's; paths have the number of an entry also where the file has a single table (see `written`).
    """

    values: dict[str, Any]
    config: Config | None
    errors: list[ErrorDetails]
    broken: list[Path]


def mend(values: dict[str, Any]) -> Mended:
    """Configuration of `values`, with stand-ins for what is wrong; `values` stay as they are."""
    given, values = values, _with_lists(copy.deepcopy(values))
    errors: list[ErrorDetails] = []
    broken: list[Path] = []
    for _ in range(ROUNDS):
        try:
            return Mended(given, Config.model_validate(values, by_alias=True, by_name=False), errors, broken)
        except ValidationError as error:
            found = error.errors()
        errors = errors or found
        broken += [path for told in found for path in _in_doubt(told)]
        for told in found:
            _replace(values, told["loc"])
    return Mended(given, None, errors, broken)


def _with_lists(values: dict[str, Any]) -> dict[str, Any]:
    """Single tables of interfaces as lists of one, so that paths to what is wrong are the same either way (see `written`)."""
    interfaces = values.get("interfaces")
    if isinstance(interfaces, dict):
        for side in SIDES:
            if side in interfaces and not isinstance(interfaces[side], list):
                interfaces[side] = [interfaces[side]]
    return values


def written(path: Path, values: Any) -> Path:
    """A path as the file has it: without the number of an entry where the file has a single table."""
    found: list[str | int] = []
    for part in path:
        if isinstance(part, int) and values is not None and not isinstance(values, list):
            continue
        found.append(part)
        inside = isinstance(values, list) and isinstance(part, int) and part < len(values)
        values = values[part] if inside else values.get(part) if isinstance(values, dict) else None
    return tuple(found)


def _in_doubt(error: ErrorDetails) -> list[Path]:
    """Paths that an error leaves open: its own, and that of the key which a mistyped one may mean."""
    path = error["loc"]
    near = meant(path) if error["type"] == "extra_forbidden" else ""
    return [path, (*path[:-1], near)] if near else [path]


def _replace(values: Any, path: Path) -> None:
    for part in path[:-1]:
        values = values[part]
    field = field_at(path)
    if field and field.required:
        values[path[-1]] = stand_in(field.annotation)
    else:
        values.pop(path[-1], None)


def stand_in(annotation: Any) -> Any:
    """A value of that type which means nothing."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is list:
        return [stand_in(parts[0])]
    if origin is Annotated:
        return stand_in(parts[0])
    if origin is Literal:
        return parts[0]
    return {} if model_of(annotation) else STAND_INS[annotation]
