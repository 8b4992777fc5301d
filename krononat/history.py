"""Configurations of the past: a folder of files that are named after the moment from which each was in force.

`2026-11-22.toml`, `2026-11-22T0930.toml`, `2026-11-22T093000Z-more-addresses.toml`: UTC, whatever stands behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from krononat.client import NOT_FOUND, Trouble

_NAME = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d):?(\d\d):?(\d\d)?Z?)?(?![\dT]).*\.toml")


def read_moment(text: str) -> datetime:
    """A moment in ISO 8601; UTC where it names no zone. ValueError where it is none."""
    told = datetime.fromisoformat(text)
    return told.astimezone(UTC) if told.tzinfo else told.replace(tzinfo=UTC)


def in_force(folder: Path, at: datetime) -> Path:
    """The file that was in force at a moment; Trouble where the folder has none."""
    known = sorted(_dated(folder))
    before = [path for since, path in known if since <= at]
    if not before:
        first = known[0][0].isoformat() if known else ""
        why = f"the first of {len(known)} is of {first}" if known else "no file there is named YYYY-MM-DD...toml"
        raise Trouble(f"{folder} has no configuration of {at.isoformat()}", why, "see docs/pools.md", NOT_FOUND)
    return before[-1]


def _dated(folder: Path) -> Iterator[tuple[datetime, Path]]:
    for path in folder.iterdir():
        found = _NAME.fullmatch(path.name)
        if found:
            day, hour, minute, second = found.groups()
            yield read_moment(f"{day}T{hour or '00'}:{minute or '00'}:{second or '00'}"), path
