"""Configurations of the past: a folder of files that are named after the moment from which each was in force.

`2026-11-22.toml`, `2026-11-22T0930.toml`, `2026-11-22T093000Z-more-addresses.toml`: UTC; behind `-` or `_` and a letter what
you like. A name that begins with a date and goes on in another way is not passed over, nor taken for midnight: the answer would
name another subscriber, and nobody would notice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from krononat.client import BAD_CONFIG, NOT_FOUND, Trouble

_NAME = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d)(:?)(\d\d)(?:\3(\d\d))?Z?)?(?:[-_](?!T\d)[A-Za-z].*)?\.toml", re.ASCII)
_DATED = re.compile(r"\d{4}-?\d\d-?\d\d.*\.toml", re.ASCII | re.IGNORECASE)
_FORMS = "YYYY-MM-DD.toml or YYYY-MM-DDTHHMM.toml (UTC), with -NAME before the .toml or without"


def read_moment(text: str) -> datetime:
    """A moment in ISO 8601; UTC where it names no zone. ValueError where it is none."""
    told = datetime.fromisoformat(text)
    return told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)


def in_force(folder: Path, at: datetime) -> Path:
    """The file that was in force at a moment; Trouble where there is none, or one whose moment is not sure."""
    known = sorted(_dated(folder))
    before = [path for since, path in known if since <= at]
    if not before:
        first = known[0][0].isoformat() if known else ""
        why = f"the first of {len(known)} is of {first}" if known else "no file there is named YYYY-MM-DD...toml"
        raise Trouble(f"{folder} has no configuration of {at.isoformat()}", why, "see docs/pools.md", NOT_FOUND)
    return before[-1]


def _dated(folder: Path) -> Iterator[tuple[datetime, Path]]:
    seen: dict[datetime, Path] = {}
    for path in sorted(folder.iterdir()):
        if not _DATED.fullmatch(path.name):
            continue
        since = _since(path)
        if since in seen:
            raise _unclear(folder, f"{seen[since].name} and {path.name} are both since {since.isoformat()}")
        seen[since] = path
        yield since, path


def _since(path: Path) -> datetime:
    found = _NAME.fullmatch(path.name)
    if not found:
        raise _unclear(path.parent, f"{path.name} begins with a date, and how it goes on is not understood")
    day, hour, _, minute, second = found.groups()
    try:
        return read_moment(f"{day}T{hour or '00'}:{minute or '00'}:{second or '00'}")
    except ValueError as wrong:
        raise _unclear(path.parent, f"{path.name}: {wrong}") from None


def _unclear(folder: Path, why: str) -> Trouble:
    return Trouble(
        f"which configuration of {folder} was in force when cannot be told", why, f"have it named {_FORMS}", BAD_CONFIG
    )
